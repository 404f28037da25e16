//! Strong consistency: what the app says is held back until it is covered, and hurries the epoch that covers it.
//!
//! Two orders hold here. *Hold, then enrol*: a standby may be written into the register only once it holds an epoch
//! that was captured while output was held, or it could take over from a state before something that left. And
//! *strike out, then pass*: output leaves uncovered only once the register is known to name nobody.

use image::Member;

use super::{Consistency, Life, OnStandbyLoss, Output, Primary, PrimaryAction};
use crate::{Fencing, Nanos};

impl Primary {
    /// Whether a standby could be kept up to date right now.
    fn candidate(&self, now: Nanos) -> Option<&Member> {
        let permit = self.config.timing.permit();
        let link = self.link.as_ref()?;
        let healthy = self.children.is_empty() && self.capture_failure.is_none() && !link.needs_full;
        (healthy && link.held.is_some() && link.answers(now, permit)).then_some(&link.standby)
    }

    /// What may be enrolled: in strong consistency only who holds what was captured behind a shut gate.
    pub(super) fn covered(&self, now: Nanos) -> bool {
        match self.config.consistency {
            Consistency::Timeline => true,
            Consistency::Strong { .. } => {
                let held = self.link.as_ref().and_then(|link| link.held);
                let from = self.held_back_from.filter(|_| self.candidate(now).is_some());
                held.zip(from).is_some_and(|(held, from)| held.epoch > from)
            }
        }
    }

    /// What is safe while the register says, or may come to say, what it does.
    pub(super) fn settle_output(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let Consistency::Strong { on_standby_loss } = self.config.consistency else { return };
        let output = match self.life {
            Life::Registering { .. } | Life::HandingOver { .. } | Life::Fenced { .. } | Life::Ended => {
                Output::Shut
            }
            Life::Serving | Life::Retiring { .. } => {
                let nobody = self.desk.rivals().next().is_none() && self.config.fencing == Fencing::Register;
                let goes_on =
                    on_standby_loss == OnStandbyLoss::Continue || !matches!(self.life, Life::Serving);
                match nobody && goes_on && self.candidate(now).is_none() {
                    true => Output::Passing,
                    false => Output::Held,
                }
            }
        };
        self.set_output(output, actions);
    }

    pub(super) fn set_output(&mut self, output: Output, actions: &mut Vec<PrimaryAction>) {
        if self.config.consistency == Consistency::Timeline || self.output == output {
            return;
        }
        self.output = output;
        // A capture under way may have frozen the app before this is in force.
        self.held_back_from = (output == Output::Held).then_some(self.newest);
        actions.push(PrimaryAction::SetOutput(output));
    }
}
