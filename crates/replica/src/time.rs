//! Time as the caller gives it, and the two spans that keep two copies apart.

use std::fmt;
use std::ops::{Add, Mul};

use serde::{Deserialize, Serialize};

/// Nanoseconds: an instant of one host's clock that runs while the host is suspended (`CLOCK_BOOTTIME`), or
/// a span. Instants of two hosts are never compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nanos(pub u64);

impl Nanos {
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * 1_000_000)
    }

    /// The span from `earlier` to this instant; none if `earlier` is later.
    pub fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

impl Add for Nanos {
    type Output = Self;

    fn add(self, span: Self) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Mul<u32> for Nanos {
    type Output = Self;

    fn mul(self, times: u32) -> Self {
        Self(self.0.saturating_mul(u64::from(times)))
    }
}

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} ms", self.0 / 1_000_000, self.0 / 1_000 % 1_000)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    #[error("a heartbeat of {0} is too short; take at least 1 ms")]
    HeartbeatTooShort(Nanos),
    #[error("{0} missed heartbeats are too few to tell silence from delay; take at least 3")]
    TooFewMissed(u32),
}

/// Every span of the protocol, from the two that the operator sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    heartbeat: Nanos,
    missed: u32,
}

impl Timing {
    pub fn new(heartbeat: Nanos, missed: u32) -> Result<Self, TimingError> {
        if heartbeat < Nanos::from_millis(1) {
            return Err(TimingError::HeartbeatTooShort(heartbeat));
        }
        if missed < 3 {
            return Err(TimingError::TooFewMissed(missed));
        }
        Ok(Self { heartbeat, missed })
    }

    pub fn heartbeat(self) -> Nanos {
        self.heartbeat
    }

    /// T1: how long after the send time of an answered heartbeat the app may be heard. One heartbeat less
    /// than T2: the margin for clocks that run at different speeds, of which they use a ten-thousandth.
    pub fn permit(self) -> Nanos {
        self.heartbeat * (self.missed - 1)
    }

    /// T2: how long a standby hears nothing before it asks for the term.
    pub fn suspicion(self) -> Nanos {
        self.heartbeat * self.missed
    }

    /// T1 towards a store: how long after a look at it, at which nobody had begun to restore from it, the app may be heard.
    /// Long, because a store answers late.
    pub fn store_permit(self) -> Nanos {
        Nanos::from_millis(4_000).max(self.permit())
    }

    /// T2 towards a store: how long whoever restores from it waits, after he has made himself known there.
    pub fn store_suspicion(self) -> Nanos {
        Nanos::from_millis(5_000).max(self.suspicion())
    }

    /// After this an unanswered question to the register counts as unanswered.
    pub fn register_timeout(self) -> Nanos {
        self.suspicion() * 5
    }

    /// Between two attempts at a register that does not answer.
    pub fn register_retry(self) -> Nanos {
        self.suspicion()
    }

    /// Between two looks at a register that need not change.
    pub fn register_check(self) -> Nanos {
        self.suspicion() * 10
    }

    /// How long an owner that leaves, or hands over, waits for the others.
    pub fn farewell(self) -> Nanos {
        self.suspicion() * 20
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat: Nanos::from_millis(20), missed: 5 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_always_ends_before_suspicion_begins() {
        for missed in 3..20 {
            let timing = Timing::new(Nanos::from_millis(1), missed).unwrap();
            assert!(timing.permit() + timing.heartbeat() <= timing.suspicion());
            assert!(timing.store_permit() + timing.heartbeat() <= timing.store_suspicion());
        }
        assert_eq!(Timing::new(Nanos::from_millis(20), 2), Err(TimingError::TooFewMissed(2)));
        assert_eq!(Timing::new(Nanos(5), 5), Err(TimingError::HeartbeatTooShort(Nanos(5))));
    }
}
