//! What the primary's app has said, as far as anybody outside can know: in strong consistency no takeover may go back
//! behind it.

use std::collections::BTreeMap;

use image::CheckpointId;
use replica::Nanos;
use replica::primary::{Consistency, OnStandbyLoss, Output, SyncCall};

#[derive(Debug)]
pub struct Said {
    pub consistency: Consistency,
    /// A gate that lets everything out.
    broken: bool,
    output: Output,
    /// When each epoch's state was true, at the earliest.
    frozen: BTreeMap<CheckpointId, Nanos>,
    heard_until: Nanos,
    calls: u64,
    /// Calls of `sync` that wait, with when each came.
    syncs: BTreeMap<SyncCall, Nanos>,
    /// When the latest one came that was answered.
    synced_until: Nanos,
}

impl Said {
    pub fn new(seed: u64, broken: bool) -> Self {
        let consistency = match seed % 4 {
            _ if broken => Consistency::Strong { on_standby_loss: OnStandbyLoss::Continue },
            0 | 1 => Consistency::Timeline,
            2 => Consistency::Strong { on_standby_loss: OnStandbyLoss::Continue },
            _ => Consistency::Strong { on_standby_loss: OnStandbyLoss::Stop },
        };
        let (output, frozen) = (Output::Shut, BTreeMap::new());
        let (calls, syncs) = (0, BTreeMap::new());
        let (heard_until, synced_until) = (Nanos(0), Nanos(0));
        Self { consistency, broken, output, frozen, heard_until, calls, syncs, synced_until }
    }

    /// Another app, which has nothing to do with what was said before.
    pub fn start_anew(&mut self) {
        (self.heard_until, self.synced_until) = (Nanos(0), Nanos(0));
        self.frozen.clear();
        self.syncs.clear();
    }

    pub fn set(&mut self, output: Output) {
        self.output = output;
    }

    pub fn captures(&mut self, id: CheckpointId, now: Nanos) {
        self.frozen.insert(id, now);
    }

    /// The app may say anything at any time.
    pub fn pass_time(&mut self, now: Nanos, audible: bool) {
        if audible && (self.output == Output::Passing || self.broken) {
            self.heard_until = now;
        }
    }

    pub fn release(&mut self, id: CheckpointId, audible: bool) {
        if let Some(&frozen) = self.frozen.get(&id).filter(|_| audible && self.output != Output::Shut) {
            self.heard_until = self.heard_until.max(frozen);
        }
    }

    pub fn sync(&mut self, now: Nanos) -> SyncCall {
        self.calls += 1;
        self.syncs.insert(SyncCall(self.calls), now);
        SyncCall(self.calls)
    }

    pub fn synced(&mut self, call: SyncCall) {
        let came =
            self.syncs.remove(&call).unwrap_or_else(|| panic!("{call:?} is answered, and does not wait"));
        self.synced_until = self.synced_until.max(came);
    }

    pub fn sync_refused(&mut self, call: SyncCall) {
        assert!(self.syncs.remove(&call).is_some(), "{call:?} is refused, and does not wait");
    }

    /// Since when a call waits.
    pub fn oldest_sync(&self) -> Option<Nanos> {
        self.syncs.values().min().copied()
    }

    /// Connections to a manager end with it.
    pub fn forget_syncs(&mut self) {
        self.syncs.clear();
    }

    pub fn check_takeover(&self, from: CheckpointId) {
        let Some(&frozen) = self.frozen.get(&from) else { return };
        assert!(
            self.synced_until <= frozen,
            "sync answered a call of {}, but {from} of {frozen} is restored",
            self.synced_until
        );
        let strong = self.consistency != Consistency::Timeline;
        assert!(
            !strong || self.heard_until <= frozen,
            "heard until {}, but {from} of {frozen} is restored",
            self.heard_until
        );
    }
}
