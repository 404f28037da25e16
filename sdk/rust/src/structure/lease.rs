//! Until when reads may be answered here.
//!
//! The manager says how long, counted from when it was asked. So the span never reaches past what the manager may
//! promise, however long its answer took, and no clock but our own is read.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Questions that the manager has not answered; it answers all, in order.
const OPEN_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Lease {
    origin: Instant,
    /// Nanoseconds since the origin.
    until: AtomicU64,
    open: Mutex<Open>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Open {
    questions: VecDeque<(u64, Instant)>,
    asked: u64,
    over: bool,
}

impl Lease {
    pub(super) fn new() -> Self {
        let (until, open) = (AtomicU64::new(0), Mutex::default());
        Self { origin: Instant::now(), until, open, changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since_origin(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.origin).as_nanos() as u64
    }

    pub(super) fn is_valid(&self) -> bool {
        self.since_origin(Instant::now()) < self.until.load(Ordering::Acquire)
    }

    /// The number of a question that is sent now; none while too many are open.
    pub(super) fn ask(&self) -> Option<u64> {
        let mut open = self.lock();
        if open.questions.len() >= OPEN_MAX {
            return None;
        }
        open.asked += 1;
        let number = open.asked;
        open.questions.push_back((number, Instant::now()));
        Some(number)
    }

    pub(super) fn answered(&self, number: u64, span_ns: u64) {
        let mut open = self.lock();
        while let Some((asked, at)) = open.questions.pop_front_if(|(asked, _)| *asked <= number) {
            if asked == number {
                let until = self.since_origin(at).saturating_add(span_ns);
                self.until.fetch_max(until, Ordering::AcqRel);
            }
        }
        self.changed.notify_all();
    }

    /// Nobody is to wait any more.
    pub(super) fn end(&self) {
        self.lock().over = true;
        self.until.store(0, Ordering::Release);
        self.changed.notify_all();
    }

    /// Waits until there is a lease, or there will be none.
    pub(super) fn wait(&self) {
        let mut open = self.lock();
        while !open.over && !self.is_valid() {
            open = self.changed.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits this long. False: it is over.
    pub(super) fn pause(&self, span: Duration) -> bool {
        let open = self.lock();
        let paused = self.changed.wait_timeout_while(open, span, |open| !open.over);
        !paused.unwrap_or_else(PoisonError::into_inner).0.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_its_question_and_ends() {
        let lease = Lease::new();
        assert!(!lease.is_valid());
        let number = lease.ask().unwrap();
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        lease.answered(number, 5_000_000);
        assert!(!lease.is_valid(), "it was over when the answer came");
        let number = lease.ask().unwrap();
        lease.answered(number, 60_000_000_000);
        assert!(lease.is_valid());
        lease.wait();
        lease.end();
        assert!(!lease.is_valid());
        lease.wait();
    }

    #[test]
    fn an_answer_that_nobody_asked_for_gives_nothing() {
        let lease = Lease::new();
        lease.answered(3, u64::MAX);
        assert!(!lease.is_valid());
    }
}
