//! The clocks of this host and of an app in a time namespace.

use std::fs;

use image::state::Clocks;
use rustix::time::{ClockId, clock_gettime};

const SECOND_NS: i64 = 1_000_000_000;

pub fn now_ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * SECOND_NS as u64 + now.tv_nsec as u64
}

/// How a process's clocks differ from ours. They stay until it replaces its program: a time
/// namespace's offsets are fixed when the first process enters it, and only an exec enters another.
#[derive(Debug, Clone, Copy)]
pub struct ClockShift {
    monotonic_ns: i64,
    boottime_ns: i64,
}

impl ClockShift {
    pub fn of(pid: i32) -> Self {
        let offsets = fs::read_to_string(format!("/proc/{pid}/timens_offsets")).unwrap_or_default();
        let own = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
        let shift = |name: &str| offset_in(&offsets, name).wrapping_sub(offset_in(&own, name));
        Self { monotonic_ns: shift("monotonic"), boottime_ns: shift("boottime") }
    }

    /// The clocks as the process reads them now.
    pub fn now(self) -> Clocks {
        Clocks {
            realtime_ns: now_ns(ClockId::Realtime),
            monotonic_ns: now_ns(ClockId::Monotonic).wrapping_add_signed(self.monotonic_ns),
            boottime_ns: now_ns(ClockId::Boottime).wrapping_add_signed(self.boottime_ns),
        }
    }
}

fn offset_in(text: &str, name: &str) -> i64 {
    let line = text.lines().find(|line| line.starts_with(name));
    let mut numbers = line.into_iter().flat_map(|line| line.split_ascii_whitespace().skip(1));
    let mut number = || numbers.next().and_then(|n| n.parse::<i64>().ok()).unwrap_or(0);
    let (seconds, nanoseconds) = (number(), number());
    seconds * SECOND_NS + nanoseconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_with_their_signs() {
        let text = "monotonic          -4   500000000\nboottime            3           7\n";
        assert_eq!(offset_in(text, "monotonic"), -3_500_000_000);
        assert_eq!(offset_in(text, "boottime"), 3_000_000_007);
        assert_eq!(offset_in("", "boottime"), 0);
    }
}
