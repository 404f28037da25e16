//! What a standby holds of the app: epochs that arrive, are prepared, acknowledged and applied, in order.

use std::collections::VecDeque;

use image::{CheckpointId, Sync};

use super::{EpochRefusal, StandbyAction};

/// An epoch is acknowledged when it is prepared and at most this many wait to be applied, itself included:
/// one is being applied, one is ready. So the primary's limit of unacknowledged epochs bounds our memory.
const ACKNOWLEDGED_MAX: usize = 2;
/// A primary that sends more than this ahead of acknowledgements keeps no limit.
const WAITING_MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Copy {
    arriving: Option<(CheckpointId, Sync)>,
    /// Prepared and not applied; the first is being applied.
    waiting: VecDeque<CheckpointId>,
    held: Option<CheckpointId>,
    acked: Option<CheckpointId>,
}

impl Copy {
    /// Applied, and acknowledged to nobody.
    pub(super) fn holding(id: CheckpointId) -> Self {
        Self { held: Some(id), ..Self::default() }
    }

    /// The newest epoch that is prepared or applied.
    pub(super) fn held(&self) -> Option<CheckpointId> {
        self.held
    }

    pub(super) fn acked(&self) -> Option<CheckpointId> {
        self.acked
    }

    pub(super) fn is_arriving(&self) -> bool {
        self.arriving.is_some()
    }

    pub(super) fn is_applied(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What is held counts as acknowledged: the primary was told by other means.
    pub(super) fn tell(&mut self) -> Option<CheckpointId> {
        self.acked = self.held;
        self.held
    }

    pub(super) fn check(&self, id: CheckpointId, sync: Sync) -> Result<(), EpochRefusal> {
        match sync {
            Sync::Since(parent) if Some(parent) != self.held => {
                return Err(EpochRefusal::NotItsParent { id, parent, held: self.held });
            }
            Sync::Since(_) | Sync::Full => {}
        }
        if let Some(held) = self.held.filter(|held| *held >= id) {
            return Err(EpochRefusal::NotNewer { id, held });
        }
        let waiting = self.waiting.len();
        if waiting >= WAITING_MAX { Err(EpochRefusal::Overrun { id, waiting }) } else { Ok(()) }
    }

    pub(super) fn begin(&mut self, id: CheckpointId, sync: Sync, actions: &mut Vec<StandbyAction>) {
        self.drop_half(actions);
        self.arriving = Some((id, sync));
        actions.push(StandbyAction::Receive { id });
    }

    pub(super) fn drop_half(&mut self, actions: &mut Vec<StandbyAction>) {
        actions.extend(self.arriving.take().map(|(id, _)| StandbyAction::DropHalf { id }));
    }

    pub(super) fn prepared(&mut self, id: CheckpointId, actions: &mut Vec<StandbyAction>) {
        let Some((_, sync)) = self.arriving.take_if(|(arriving, _)| *arriving == id) else {
            return; // It was dropped while it was being prepared.
        };
        assert_eq!(self.check(id, sync), Ok(()), "an epoch was let in that can't be held");
        self.held = Some(id);
        self.waiting.push_back(id);
        // Somebody waits for that, and for nothing else.
        self.acknowledge(actions);
        if self.waiting.len() == 1 {
            actions.push(StandbyAction::Apply { id });
        }
    }

    pub(super) fn applied(&mut self, id: CheckpointId, actions: &mut Vec<StandbyAction>) {
        if self.waiting.front() != Some(&id) {
            return; // The answer to a copy that was discarded meanwhile.
        }
        self.waiting.pop_front();
        self.acknowledge(actions);
        actions.extend(self.waiting.front().map(|id| StandbyAction::Apply { id: *id }));
    }

    fn acknowledge(&mut self, actions: &mut Vec<StandbyAction>) {
        let newest = self.waiting.iter().take(ACKNOWLEDGED_MAX).next_back().copied();
        if newest > self.acked {
            self.acked = newest;
            actions.extend(newest.map(|id| StandbyAction::Ack { id }));
        }
    }
}
