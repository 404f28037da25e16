//! `sync()`: calls of the app that are answered when everything before them is committed.
//!
//! A call is covered by the first epoch that is named after it came, since only that one's freeze is certain to lie
//! behind it. It makes that epoch due at once, and every call that comes before the naming shares it. The answer is a
//! promise that the death of this host costs nothing of what was before the call: so it is given only while somebody may
//! take over, and nobody from before it.

use image::{CheckpointId, Epoch};

use super::{Life, Primary, PrimaryAction, Reason, Status};
use crate::{Fencing, Nanos};

/// Names a call, for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyncCall(pub u64);

#[derive(Debug, Clone, Copy)]
pub(super) struct Waiter {
    call: SyncCall,
    /// The first that covers it.
    epoch: Epoch,
    asked_at: Nanos,
    patience: Option<Nanos>,
}

impl Primary {
    pub(super) fn sync_asked(&mut self, now: Nanos, call: SyncCall, patience: Option<Nanos>) {
        self.syncs.push(Waiter { call, epoch: self.newest.next(), asked_at: now, patience });
    }

    /// Whether a call waits that no capture under way covers.
    pub(super) fn sync_waits(&self) -> bool {
        self.syncs.iter().any(|waiter| waiter.epoch > self.newest)
    }

    pub(super) fn somebody_syncs(&self) -> bool {
        !self.syncs.is_empty()
    }

    /// The app that called is no more.
    pub(super) fn forget_syncs(&mut self) {
        self.syncs.clear();
    }

    pub(super) fn settle_syncs(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        if self.syncs.is_empty() || self.life != Life::Serving {
            return;
        }
        if let Some(id) = self.safely_committed() {
            let covered = |waiter: &mut Waiter| waiter.epoch <= id.epoch;
            let calls = self.syncs.extract_if(.., covered).map(|waiter| waiter.call);
            actions.extend(calls.map(|call| PrimaryAction::Synced { call, id }));
        }
        let Some((since, why)) = self.unprotected() else { return };
        let usual = self.config.sync_patience;
        let given_up = |waiter: &mut Waiter| match waiter.patience {
            Some(patience) => now >= since.max(waiter.asked_at) + patience,
            None => now >= since + usual,
        };
        let calls = self.syncs.extract_if(.., given_up).map(|waiter| waiter.call);
        actions.extend(calls.map(|call| PrimaryAction::SyncRefused { call, why: why.clone() }));
    }

    /// What nobody who may take over can be behind of, if there is somebody.
    fn safely_committed(&self) -> Option<CheckpointId> {
        self.committed.filter(|_| self.eligible() && self.config.fencing != Fencing::Absent)
    }

    /// Since when the app would not survive its host, and why.
    fn unprotected(&self) -> Option<(Nanos, Reason)> {
        match &self.told {
            Some(Status::Unprotected(why)) => Some((self.unprotected_since, why.clone())),
            Some(Status::Protected | Status::CatchingUp) | None => None,
        }
    }
}
