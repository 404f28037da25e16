//! `--on-crash restart`: the app is started afresh, at once unless it did not last.

use std::time::{Duration, Instant};

use engine::Command;
use wire::{FromPrimary, GuardArmed};

use super::Actor;
use crate::guard::Order;

/// An app that ran for so long has not failed for the reason that it failed for before.
const LASTING: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// When the app was started, and when it is to be again.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    begun: Option<Instant>,
    pause: Duration,
    due: Option<Instant>,
}

impl Restarts {
    pub(super) fn begun(&mut self, now: Instant) {
        self.begun = Some(now);
    }

    pub(super) fn due_at(&self) -> Option<Instant> {
        self.due
    }

    /// False if none is due.
    pub(super) fn call_off(&mut self) -> bool {
        self.due.take().is_some()
    }

    /// Says how long to wait: the first time not at all, and twice as long each time that it does not last.
    fn crashed(&mut self, now: Instant) -> Duration {
        let lasted = self.begun.is_some_and(|begun| now - begun >= LASTING);
        let pause = if lasted { Duration::ZERO } else { self.pause };
        self.pause = (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.due = Some(now + pause);
        pause
    }

    fn take_due(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }
}

impl Actor {
    pub(super) fn restart_app(&mut self) {
        match self.restarts.crashed(Instant::now()) {
            Duration::ZERO => tracing::info!("starting the app afresh"),
            pause => tracing::warn!("the app did not last; starting it afresh in {pause:?}"),
        }
    }

    pub(super) fn restart_if_due(&mut self) {
        if !self.restarts.take_due(Instant::now()) {
            return;
        }
        self.finish_engine();
        self.exited = false;
        match self.start_engine() {
            Ok(()) => {
                let (term, token_hash) = (self.machine.reign().term, self.token.hash());
                for session in self.seats.sessions() {
                    session.sender.send(FromPrimary::GuardArmed(GuardArmed { term, token_hash }));
                }
                self.order(&Order::Live);
                self.command(Command::Start);
                self.restarts.begun(Instant::now());
            }
            Err(why) => {
                self.failure = Some(format!("{why:#}"));
                self.app_pid = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_that_does_not_last_is_started_ever_less_often() {
        let mut restarts = Restarts::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            restarts.begun(now);
            now += Duration::from_secs(1);
            let pause = restarts.crashed(now);
            assert!(pause.is_zero() || !restarts.take_due(now));
            now += pause;
            assert!(pause.is_zero() || restarts.take_due(now));
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        restarts.begun(now);
        assert_eq!(restarts.crashed(now + LASTING), Duration::ZERO, "it had lasted");
        assert!(restarts.call_off() && !restarts.call_off());
    }
}
