//! How far a full sync is, on a terminal.

use std::io::IsTerminal;
use std::time::Instant;

use engine::FullSyncProgress;

/// The progress of a full sync, on a terminal.
#[derive(Debug, Default)]
pub(super) struct Progress {
    began: Option<Instant>,
    shown: bool,
}

impl Progress {
    pub(super) fn begin(&mut self) {
        *self = Self { began: Some(Instant::now()), shown: false };
    }

    pub(super) fn show(&mut self, progress: &FullSyncProgress) {
        let Some(began) = self.began.filter(|_| std::io::stderr().is_terminal()) else { return };
        let seconds = began.elapsed().as_secs_f64().max(1e-3);
        let (done, total) =
            (progress.bytes_done as f64, progress.bytes_total.max(progress.bytes_done) as f64);
        let rate = done / seconds;
        let left = if rate > 0.0 { (total - done) / rate } else { 0.0 };
        let percent = if total > 0.0 { 100.0 * done / total } else { 100.0 };
        eprint!("\rfull sync: {percent:3.0} %, {:.0} MB/s, {left:.0} s left ", rate / 1e6);
        self.shown = true;
    }

    pub(super) fn end(&mut self) {
        if std::mem::take(self).shown {
            eprintln!();
        }
    }
}
