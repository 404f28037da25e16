//! What the app says, and what of it is heard.
//!
//! In strong consistency output is held back until it is covered, and hurries the epoch that covers it. Three orders
//! hold here. *Hold, then enrol*: a standby may be written into the register only once it holds an epoch that was
//! captured while output was held, or it could take over from a state before something that left. *Strike out, then
//! pass*: output leaves uncovered only once the register is known to name nobody. And what is covered leaves only on
//! the word of the one who may take over: another's acknowledgement covers nothing.
//!
//! In either consistency a side whose permit has run out gives up its address until it is extended, so that it does not
//! draw clients away from the winner.

use image::{CheckpointId, Member};

use super::{Consistency, Ending, Life, OnStandbyLoss, Output, Permit, Primary, PrimaryAction, Waiting};
use crate::{Fencing, Nanos};

impl Primary {
    pub(super) fn output_waits(&mut self, all: bool) {
        if all {
            self.waiting = Waiting::All;
        } else if self.waiting == Waiting::Nothing {
            self.waiting = Waiting::Some;
        }
    }

    /// When output that waits asks for a capture.
    ///
    /// Alone, a client gets its epoch at once. Where many share one, those who have just been answered will be back,
    /// and two groups that take turns would cost twice the captures: so the others wait for them, as long as a capture
    /// takes. That is also the time that the app has, whatever it says, between two captures.
    fn output_due(&self) -> Option<Nanos> {
        let flying = self.link.as_ref().is_some_and(|link| link.in_flight() > 0);
        match self.waiting {
            Waiting::Nothing => None,
            Waiting::Some | Waiting::All if flying => Some(self.captured_at + self.capture_cost * 2),
            Waiting::Some => Some(self.captured_at.max(self.released_at) + self.capture_cost),
            Waiting::All => Some(self.captured_at),
        }
    }

    pub(super) fn output_is_due(&self, now: Nanos) -> bool {
        self.output_due().is_some_and(|due| now >= due)
    }

    /// When a tick is due that no other event will bring.
    pub fn wake_at(&self) -> Option<Nanos> {
        let crowded = self.link.as_ref().is_none_or(|link| link.in_flight() >= self.config.in_flight_max);
        let able = matches!(self.life, Life::Serving) && self.capturing.is_none() && self.children.is_empty();
        self.output_due().filter(|_| able && !crowded && self.planned.is_none())
    }

    /// Whether a standby could be kept up to date right now.
    fn candidate(&self, now: Nanos) -> Option<&Member> {
        let permit = self.config.timing.permit();
        let link = self.link.as_ref()?;
        let captures = self.children.is_empty() && self.capture_failure.is_none() && !self.stalled(now);
        let healthy = captures && !link.needs_full;
        (healthy && link.held.is_some() && link.answers(now, permit)).then_some(&link.standby)
    }

    /// What may be enrolled: in strong consistency only who holds what was captured behind a shut gate.
    pub(super) fn covered(&self, now: Nanos) -> bool {
        match self.config.consistency {
            // The last epoch of a move that was called off has connections in it as they were: whoever took over with
            // that would go on with some that have gone on without it.
            Consistency::Timeline => self.moved_with.is_none_or(|moved| {
                let held = self.link.as_ref().and_then(|link| link.held);
                held.is_some_and(|held| held.epoch > moved)
            }),
            Consistency::Strong { .. } => {
                let held = self.link.as_ref().and_then(|link| link.held);
                let from = self.held_back_from.filter(|_| self.candidate(now).is_some());
                held.zip(from).is_some_and(|(held, from)| held.epoch > from)
            }
        }
    }

    /// Clients wait for a standby that acknowledges nothing: it is no standby. One that comes back and would go on
    /// from what it holds would have them wait again.
    pub(super) fn settle_patience(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let awaited = self.config.consistency != Consistency::Timeline || self.somebody_syncs();
        if awaited && self.crowded_since.is_some_and(|since| now >= since + self.config.stalled_after) {
            self.crowded_since = None;
            self.unproven = true;
            self.drop_peer("it acknowledges nothing".to_owned(), actions);
        }
    }

    /// What is safe while the register says, or may come to say, what it does.
    pub(super) fn settle_output(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let output = match self.life {
            Life::Registering { .. } | Life::HandingOver { .. } | Life::Fenced { .. } | Life::Ended => {
                Output::Shut
            }
            Life::Moving { .. } => Output::Muted,
            Life::Serving | Life::Retiring { .. } => match self.permit {
                Permit::Until(deadline) if now >= deadline => Output::Muted,
                Permit::Until(_) | Permit::Open | Permit::Shut => self.audible_output(now),
            },
        };
        self.set_output(output, actions);
        self.settle_release(now, actions);
    }

    fn audible_output(&self, now: Nanos) -> Output {
        let Consistency::Strong { on_standby_loss } = self.config.consistency else { return Output::Passing };
        let goes_on = on_standby_loss == OnStandbyLoss::Continue || !matches!(self.life, Life::Serving);
        match self.alone() && goes_on && self.candidate(now).is_none() {
            true => Output::Passing,
            false => Output::Held,
        }
    }

    /// The register is known to name nobody who could take over.
    fn alone(&self) -> bool {
        self.desk.rivals().next().is_none() && self.config.fencing == Fencing::Register
    }

    pub(super) fn set_output(&mut self, output: Output, actions: &mut Vec<PrimaryAction>) {
        if self.output == output {
            return;
        }
        self.output = output;
        self.held_back_from = match output {
            // A capture under way may have frozen the app before this is in force.
            Output::Held => self.held_back_from.or(Some(self.newest)),
            Output::Muted => self.held_back_from,
            Output::Shut | Output::Passing => None,
        };
        actions.push(PrimaryAction::SetOutput(output));
    }

    /// What `id` covers may leave, as soon as nobody can take over from before it.
    pub(super) fn may_release(&mut self, id: CheckpointId) {
        if self.config.consistency != Consistency::Timeline {
            self.release_due = Some(id);
        }
    }

    pub(super) fn settle_release(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let Some(link) = &self.link else { return };
        if self.desk.rivals().all(|rival| *rival == link.standby)
            && let Some(id) = self.release_due.take()
        {
            actions.push(PrimaryAction::Release(id));
            self.released_at = now;
            // Whoever waits now was all while the others had no answer.
            if self.waiting == Waiting::All {
                self.waiting = Waiting::Some;
            }
        }
    }

    /// An app that has ended has said its last words: they leave, if nobody can take over from before them.
    pub(super) fn last_output(&self, ending: &Ending) -> Output {
        match ending {
            Ending::App(_) if self.alone() || self.end_confirmed => Output::Passing,
            Ending::App(_) | Ending::HandedOver { .. } | Ending::Fenced { .. } => Output::Shut,
        }
    }
}
