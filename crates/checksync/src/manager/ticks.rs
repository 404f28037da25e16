//! When a standby looks whether its primary is silent. Whoever stood still itself, with its machine or behind others on
//! it, has heard nothing either: what was said meanwhile is given the time to arrive before silence counts.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Ticks {
    period: Duration,
    next: Instant,
    /// The last look was put off. Never two in a row: a machine that is always late has to decide some time.
    put_off: bool,
}

impl Ticks {
    pub fn every(period: Duration, now: Instant) -> Self {
        Self { period, next: now, put_off: false }
    }

    pub fn next(&self) -> Instant {
        self.next
    }

    /// The time has come, or is over: whether to look.
    pub fn take(&mut self, now: Instant) -> bool {
        let was_late = now.saturating_duration_since(self.next) > self.period;
        self.put_off = was_late && !self.put_off;
        self.next = now + self.period;
        !self.put_off
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(10);

    #[test]
    fn who_is_late_waits_once() {
        let begun = Instant::now();
        let mut ticks = Ticks::every(PERIOD, begun);
        assert!(ticks.take(begun));
        assert!(ticks.take(ticks.next() + PERIOD), "a little late is not late");
        let stood_still = ticks.next() + 20 * PERIOD;
        assert!(!ticks.take(stood_still), "nothing can have been heard");
        assert_eq!(ticks.next(), stood_still + PERIOD);
        assert!(ticks.take(ticks.next()));
    }

    #[test]
    fn who_is_always_late_looks_every_second_time() {
        let begun = Instant::now();
        let mut ticks = Ticks::every(PERIOD, begun);
        let looks = [(); 6].map(|()| ticks.take(ticks.next() + 3 * PERIOD));
        assert_eq!(looks, [false, true, false, true, false, true]);
    }
}
