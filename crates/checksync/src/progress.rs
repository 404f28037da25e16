//! How far the copying of a whole memory has come, for whoever watches a terminal.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use engine::FullSyncProgress;

use crate::verbs::describe::bytes;

/// One line that is written over again and again, and is gone in the end.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    began: Instant,
    watched: bool,
}

impl Progress {
    pub fn start(what: &'static str) -> Self {
        Self { what, began: Instant::now(), watched: io::stderr().is_terminal() }
    }

    pub fn show(&self, now: FullSyncProgress) {
        if self.watched {
            write(format_args!("{}: {}", self.what, text(now, self.began.elapsed())));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.watched {
            write(format_args!(""));
        }
    }
}

/// In the place of what stands there. A terminal that is gone has nobody who watches.
fn write(line: fmt::Arguments<'_>) {
    let _ = write!(io::stderr(), "\r\x1b[K{line}");
}

fn text(now: FullSyncProgress, elapsed: Duration) -> String {
    let total = now.bytes_total.max(now.bytes_done).max(1);
    let percent = now.bytes_done * 100 / total;
    let rate = now.bytes_done as f64 / elapsed.as_secs_f64().max(1e-3);
    let left = (total - now.bytes_done) as f64 / rate.max(1.0);
    format!("{percent} %, {}/s, {left:.0} s left", bytes(rate as u64))
}

#[cfg(test)]
mod tests {
    use image::CheckpointId;

    use super::*;

    #[test]
    fn progress_says_how_much_how_fast_and_how_long() {
        let now =
            FullSyncProgress { id: CheckpointId::new(1, 1), bytes_done: 256 << 20, bytes_total: 1 << 30 };
        assert_eq!(text(now, Duration::from_secs(2)), "25 %, 128.0 MiB/s, 6 s left");
    }

    #[test]
    fn progress_of_an_app_that_shrank_is_not_more_than_all() {
        let now = FullSyncProgress { id: CheckpointId::new(1, 1), bytes_done: 4096, bytes_total: 0 };
        assert!(text(now, Duration::ZERO).starts_with("100 %"));
    }
}
