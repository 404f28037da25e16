//! Which checkpoints are kept: `last=24,hourly=48,daily=14`.

use std::fmt;
use std::str::FromStr;

/// The newest `last`; and of each of the newest `hourly` hours and `daily` days that have any, the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    pub last: usize,
    pub hourly: usize,
    pub daily: usize,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no retention; write last=N,hourly=N,daily=N, with at least last=1")]
pub struct RetentionError(String);

const HOUR_NS: u64 = 3_600_000_000_000;
const DAY_NS: u64 = 24 * HOUR_NS;

impl Default for Retention {
    fn default() -> Self {
        Self { last: 24, hourly: 48, daily: 14 }
    }
}

impl Retention {
    /// Of checkpoints in their order, the newest last, by when they were frozen: which are kept.
    pub fn keep(&self, frozen_at_ns: &[u64]) -> Vec<bool> {
        let mut keep = vec![false; frozen_at_ns.len()];
        let newest = frozen_at_ns.iter().enumerate().rev();
        newest.clone().take(self.last).for_each(|(n, _)| keep[n] = true);
        for (span_ns, count) in [(HOUR_NS, self.hourly), (DAY_NS, self.daily)] {
            let mut spans = Vec::new();
            for (n, at_ns) in newest.clone() {
                let span = at_ns / span_ns;
                if spans.len() < count && !spans.contains(&span) {
                    spans.push(span);
                    keep[n] = true;
                }
            }
        }
        keep
    }
}

impl FromStr for Retention {
    type Err = RetentionError;

    fn from_str(text: &str) -> Result<Self, RetentionError> {
        let wrong = || RetentionError(text.to_owned());
        let mut retention = Self { last: 0, hourly: 0, daily: 0 };
        for part in text.split(',') {
            let (name, count) = part.trim().split_once('=').ok_or_else(wrong)?;
            let count = count.parse().map_err(|_| wrong())?;
            match name {
                "last" => retention.last = count,
                "hourly" => retention.hourly = count,
                "daily" => retention.daily = count,
                _ => return Err(wrong()),
            }
        }
        if retention.last == 0 { Err(wrong()) } else { Ok(retention) }
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "last={},hourly={},daily={}", self.last, self.hourly, self.daily)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_NS: u64 = HOUR_NS / 60;

    #[test]
    fn the_newest_of_each_hour_and_each_day_stay() {
        // One a minute for three days.
        let times: Vec<u64> = (0..3 * 24 * 60).map(|minute| minute * MINUTE_NS).collect();
        let keep = Retention { last: 3, hourly: 5, daily: 2 }.keep(&times);
        let kept: Vec<u64> =
            times.iter().zip(keep).filter(|(_, keep)| *keep).map(|(at, _)| at / MINUTE_NS).collect();
        let end = 3 * 24 * 60 - 1;
        let expected = [end - 24 * 60, end - 240, end - 180, end - 120, end - 60, end - 2, end - 1, end];
        assert_eq!(kept, expected);
    }

    #[test]
    fn what_is_new_stays_whatever_its_clock_says() {
        let keep = Retention { last: 2, hourly: 0, daily: 0 }.keep(&[900, 100, 500, 0, 0]);
        assert_eq!(keep, [false, false, false, true, true]);
        assert!(Retention::default().keep(&[]).is_empty());
    }

    #[test]
    fn text_survives_and_nonsense_is_refused_by_name() {
        let default = Retention::default();
        assert_eq!(default.to_string().parse(), Ok(default));
        assert_eq!("last=1".parse(), Ok(Retention { last: 1, hourly: 0, daily: 0 }));
        for text in ["", "last", "last=0", "last=x", "weekly=3", "hourly=3"] {
            assert_eq!(text.parse::<Retention>(), Err(RetentionError(text.to_owned())));
        }
    }
}
