//! What failed in a run of tests, kept aside while its output goes by: thousands of lines later it is said once
//! more, where people look first.

use std::io::{BufRead, BufReader, Read};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A test that prints for ever doesn't fill our memory.
const LINES_MAX: usize = 2_000;
/// libtest's words around what failing tests have printed; the names follow under a second such heading.
const HEADING: &str = "failures:";
const RESULT: &str = "test result: ";
const POLL: Duration = Duration::from_millis(50);
const FAREWELL: Duration = Duration::from_secs(5);

pub struct Failures {
    kept: Arc<Mutex<Kept>>,
    reader: JoinHandle<()>,
}

#[derive(Default)]
struct Kept {
    lines: Vec<String>,
    within: bool,
}

impl Failures {
    /// Passes `output` on to ours until its last writer is gone.
    pub fn of(output: impl Read + Send + 'static) -> Self {
        let kept = Arc::<Mutex<Kept>>::default();
        let keeper = Arc::clone(&kept);
        let reader = thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                println!("{line}");
                lock(&keeper).add(&line);
            }
        });
        Self { kept, reader }
    }

    /// What was kept. What a test left behind may hold the output open, so its end is not waited for for ever.
    pub fn once_more(self) -> Vec<String> {
        let end = Instant::now() + FAREWELL;
        while !self.reader.is_finished() && Instant::now() < end {
            thread::sleep(POLL);
        }
        mem::take(&mut lock(&self.kept).lines)
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    fn add(&mut self, line: &str) {
        if line == HEADING {
            self.within = true;
        }
        if self.within && self.lines.len() < LINES_MAX {
            self.lines.push(line.to_owned());
        }
        if line.starts_with(RESULT) {
            self.within = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(output: &str) -> Vec<String> {
        let mut kept = Kept::default();
        output.lines().for_each(|line| kept.add(line));
        kept.lines
    }

    #[test]
    fn what_a_failing_test_printed_is_kept_with_its_name() {
        let output = "test a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\nit broke\n\n\
                      failures:\n    b\n\ntest result: FAILED. 1 passed; 1 failed\n\ntest c ... ok\n";
        let kept = kept(output);
        assert_eq!((kept[2].as_str(), kept[3].as_str()), ("---- b stdout ----", "it broke"));
        assert!(kept.last().unwrap().starts_with("test result: FAILED"), "{kept:?}");
    }

    #[test]
    fn nothing_is_kept_of_tests_that_pass() {
        assert_eq!(kept("test a ... ok\n\ntest result: ok. 1 passed; 0 failed\n"), [""; 0]);
    }

    #[test]
    fn a_flood_is_cut() {
        assert_eq!(kept(&format!("failures:\n{}", "flood\n".repeat(3 * LINES_MAX))).len(), LINES_MAX);
    }
}
