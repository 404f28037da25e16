//! What the app says, and what of it is heard.
//!
//! In strong consistency output is held back until it is covered, and hurries the epoch that covers it. Three orders
//! hold here. *Hold, then enrol*: a standby may be written into the register only once it holds an epoch that was
//! captured while output was held, or it could take over from a state before something that left. *Strike out, then
//! pass*: output leaves uncovered only once the register is known to name nobody. And what is covered leaves only when no
//! takeover can go back behind it (`group`): another's acknowledgement covers nothing.
//!
//! In either consistency a side whose permit has run out gives up its address until it is extended, so that it does not
//! draw clients away from the winner.

use image::{CheckpointId, Member};

use super::link::Link;
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
        let flying = self.links.iter().any(|link| link.in_flight() > 0);
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
        let crowded = self.links.iter().all(|link| link.in_flight() >= self.config.in_flight_max);
        let able = matches!(self.life, Life::Serving) && self.capturing.is_none() && self.children.is_empty();
        self.output_due().filter(|_| able && !crowded && self.planned.is_none())
    }

    /// Whether a standby could be kept up to date right now.
    ///
    /// One that is synced in full for the sake of another is, for a time: clients wait for that, but not for ever.
    fn is_candidate(&self, now: Nanos, link: &Link) -> bool {
        let captures = self.children.is_empty() && self.capture_failure.is_none() && !self.stalled(now);
        let in_step = !link.needs_full || (link.waits_for_others && now < self.joining_until());
        captures && in_step && link.held.is_some() && self.answers(now, link)
    }

    fn joining_until(&self) -> Nanos {
        let begun = self.capturing.as_ref().map_or(Nanos(0), |capture| capture.begun_at);
        begun + self.config.stalled_after
    }

    /// What may be enrolled: in strong consistency only who holds what was captured behind a shut gate.
    pub(super) fn is_covered(&self, now: Nanos, link: &Link) -> bool {
        match self.config.consistency {
            // The last epoch of a move that was called off has connections in it as they were: whoever took over with
            // that would go on with some that have gone on without it.
            Consistency::Timeline => {
                self.moved_with.is_none_or(|moved| link.held.is_some_and(|held| held.epoch > moved))
            }
            Consistency::Strong { .. } => {
                let from = self.held_back_from.filter(|_| self.is_candidate(now, link));
                link.held.zip(from).is_some_and(|(held, from)| held.epoch > from)
            }
        }
    }

    /// Clients wait for a standby that acknowledges nothing: it is no standby. One that comes back and would go on
    /// from what it holds would have them wait again. And the others do not wait for it in any case.
    pub(super) fn settle_patience(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let awaited = self.config.consistency != Consistency::Timeline || self.somebody_syncs();
        if !awaited && self.links.len() < 2 && self.config.store.is_none() {
            return;
        }
        let patience = |link: &Link| match self.is_store(&link.standby) {
            true => self.config.timing.store_permit(),
            false => self.config.stalled_after,
        };
        let stuck = |link: &&Link| link.crowded_since.is_some_and(|since| now >= since + patience(link));
        let stuck: Vec<Member> = self.links.iter().filter(stuck).map(|link| link.standby.clone()).collect();
        for standby in stuck {
            self.unproven.insert(standby.clone());
            self.drop_peer(&standby, "it acknowledges nothing".to_owned(), actions);
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
    }

    fn audible_output(&self, now: Nanos) -> Output {
        let Consistency::Strong { on_standby_loss } = self.config.consistency else { return Output::Passing };
        let goes_on = on_standby_loss == OnStandbyLoss::Continue || !matches!(self.life, Life::Serving);
        let candidate = self.links.iter().any(|link| self.is_candidate(now, link));
        match self.alone() && goes_on && !candidate {
            true => Output::Passing,
            false => Output::Held,
        }
    }

    /// The register is known to name nobody who could take over.
    pub(super) fn alone(&self) -> bool {
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

    /// What `id` covers may leave: nobody can take over from before it.
    pub(super) fn release(&mut self, now: Nanos, id: CheckpointId, actions: &mut Vec<PrimaryAction>) {
        if self.config.consistency == Consistency::Timeline {
            return;
        }
        actions.push(PrimaryAction::Release(id));
        self.released_at = now;
        // Whoever waits now was all while the others had no answer.
        if self.waiting == Waiting::All {
            self.waiting = Waiting::Some;
        }
    }

    /// An app that has ended has said its last words: they leave, if nobody can take over from before them.
    pub(super) fn last_output(&self, ending: &Ending) -> Output {
        match ending {
            Ending::App(_) if self.alone() || self.all_confirmed() => Output::Passing,
            Ending::App(_) | Ending::HandedOver { .. } | Ending::Fenced { .. } => Output::Shut,
        }
    }
}
