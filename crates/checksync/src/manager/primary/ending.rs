//! The end of an app's actor: the standby is told, and nothing is left behind.

use std::time::{Duration, Instant};

use engine::Command;
use replica::primary::Ending;

use super::{Actor, Input, Outcome, Target};

impl Actor {
    /// Everything of this app on this host ends here.
    pub(super) fn finish(mut self) -> Outcome {
        self.await_farewell();
        self.await_move();
        self.seats.stop_hearts();
        for seat in self.seats.iter_mut() {
            if let Some(dialling) = seat.dialling.take() {
                dialling.abort();
            }
            seat.session = None;
        }
        self.finish_engine();
        self.fence.take_down();
        match (self.ending, self.failure) {
            // A program that can't be started has an exit code of its own, and a message.
            (Some(Ending::App(_)) | None, Some(why)) => Outcome::Failed(why),
            (Some(ending), _) => Outcome::Ended(ending),
            (None, None) => Outcome::Failed("the manager's inbox closed".to_owned()),
        }
    }

    /// A standby that was not told of a clean end would take silence for a death. With a register it needs
    /// no telling; otherwise heartbeats go on until it has answered.
    fn await_farewell(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let deadline = Instant::now() + PATIENCE;
        if self.handed_over || !matches!(self.ending, Some(Ending::App(_))) {
            return;
        }
        while self.seats.iter().any(|seat| seat.session.is_some() && !seat.end_confirmed) {
            match self.inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Input::Link(seat, number, event)) => self.take_link(seat, number, event),
                Ok(_) => {}
                Err(_) => return tracing::warn!("a standby has not confirmed the app's end"),
            }
        }
    }

    pub(super) fn finish_engine(&mut self) {
        if let (Target::Process(_), Some(engine)) = (&self.target, &self.engine) {
            engine.send(Command::Release);
        }
        drop(self.engine.take());
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
        if let Some(forwarding) = self.forwarding.take() {
            forwarding.finish();
        }
    }
}
