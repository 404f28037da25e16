//! Waiting with a deadline. What does not come in time fails the test by name.

use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(2);

/// An instant after which waiting is over.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    end: Instant,
}

impl Deadline {
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self { end: Instant::now() + limit }
    }

    /// What is left of it; zero once it has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    #[must_use]
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }

    /// Asks `probe` until it has an answer, or returns `None` once the deadline has passed.
    pub fn poll<T>(self, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
        loop {
            // The order matters: a probe that is slower than the deadline still counts.
            let late = self.passed();
            if let Some(answer) = probe() {
                return Some(answer);
            }
            if late {
                return None;
            }
            thread::sleep(POLL);
        }
    }
}

/// Waits until `probe` has an answer; panics after `limit`.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, probe: impl FnMut() -> Option<T>) -> T {
    match Deadline::after(limit).poll(probe) {
        Some(answer) => answer,
        None => panic!("waited {limit:?} in vain for {what}"),
    }
}

/// Waits until `condition` holds; panics after `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, limit, || condition().then_some(()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poll_returns_the_first_answer() {
        let mut asked = 0;
        let answer = Deadline::after(Duration::from_secs(10)).poll(|| {
            asked += 1;
            (asked == 3).then_some("third")
        });
        assert_eq!((answer, asked), (Some("third"), 3));
    }

    #[test]
    fn poll_gives_up_at_the_deadline_but_asks_once() {
        let mut asked = 0;
        let answer: Option<()> = Deadline::after(Duration::ZERO).poll(|| {
            asked += 1;
            None
        });
        assert_eq!((answer, asked), (None, 1));
    }
}
