//! What the standby does not hold yet, and how far each epoch goes.

use std::collections::VecDeque;

use bytes::Bytes;
use image::CheckpointId;

/// More than this does not wait: whoever changes the structures waits instead.
const WAITING_BYTES_MAX: usize = 8 << 20;

#[derive(Debug, Default)]
pub(super) struct Log {
    /// Captured and not committed; nothing for the end of a full sync, whose parts are gone.
    open: VecDeque<(CheckpointId, Option<Bytes>)>,
    waiting: Vec<u8>,
    /// Something of it is gone: only a full sync goes on from what a standby holds.
    lost: bool,
    syncing: Option<CheckpointId>,
    /// Up to which number of a change each epoch goes, until it is released.
    reach: VecDeque<(CheckpointId, u64)>,
}

impl Log {
    pub(super) fn wait(&mut self, frames: &[u8]) {
        if !self.lost || self.is_syncing() {
            self.waiting.extend_from_slice(frames);
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_BYTES_MAX
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    pub(super) fn lose(&mut self) {
        self.lost = true;
        self.waiting = Vec::new();
    }

    /// A snapshot begins, which has all that was taken so far.
    pub(super) fn begin_sync(&mut self, id: CheckpointId) {
        self.lose();
        self.syncing = Some(id);
    }

    pub(super) fn is_syncing(&self) -> bool {
        self.syncing.is_some()
    }

    pub(super) fn is_sync(&self, id: CheckpointId) -> bool {
        self.syncing == Some(id)
    }

    pub(super) fn give_up_sync(&mut self) -> Option<CheckpointId> {
        let given_up = self.syncing.take();
        if given_up.is_some() {
            self.lose();
        }
        given_up
    }

    /// What goes in front of the next piece of a snapshot.
    pub(super) fn take_waiting(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.waiting)
    }

    /// The snapshot is whole, and reaches to this number.
    pub(super) fn end_sync(&mut self, id: CheckpointId, reach: u64) {
        self.syncing = None;
        self.lost = false;
        self.open.push_back((id, None));
        self.reach.push_back((id, reach));
    }

    /// All that waits becomes an epoch.
    pub(super) fn capture(&mut self, id: CheckpointId, reach: u64) -> Bytes {
        let frames = Bytes::from(self.take_waiting());
        self.open.push_back((id, Some(frames.clone())));
        self.reach.push_back((id, reach));
        frames
    }

    pub(super) fn committed(&mut self, id: CheckpointId) {
        while self.open.pop_front_if(|(open, _)| *open <= id).is_some() {}
    }

    /// What was captured and will not be acknowledged waits again, in front of what does.
    pub(super) fn take_back(&mut self) {
        let mut frames = Vec::new();
        for (_, open) in std::mem::take(&mut self.open) {
            match open {
                Some(open) => frames.extend_from_slice(&open),
                None => self.lost = true,
            }
        }
        if self.lost {
            return self.lose();
        }
        frames.append(&mut self.waiting);
        self.waiting = frames;
    }

    /// Up to which number `id` and what was before it go.
    pub(super) fn reach_of(&mut self, id: CheckpointId) -> Option<u64> {
        let mut reach = None;
        while let Some((_, to)) = self.reach.pop_front_if(|(epoch, _)| *epoch <= id) {
            reach = Some(to);
        }
        reach
    }

    /// Nothing of it has to be released any more.
    pub(super) fn released(&mut self) {
        self.reach.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(epoch: u64) -> CheckpointId {
        CheckpointId::new(1, epoch)
    }

    #[test]
    fn what_is_taken_back_goes_again_in_order() {
        let mut log = Log::default();
        log.wait(b"a");
        assert_eq!(log.capture(id(1), 1), "a");
        log.wait(b"b");
        assert_eq!(log.capture(id(2), 2), "b");
        log.wait(b"c");
        log.committed(id(1));
        log.take_back();
        assert_eq!(log.capture(id(3), 3), "bc");
        assert_eq!(
            log.reach_of(id(2)),
            Some(2),
            "a standby that comes back with the lost epoch has its changes"
        );
        assert_eq!(log.reach_of(id(3)), Some(3));
        assert_eq!(log.reach_of(id(3)), None);
    }

    #[test]
    fn a_full_sync_that_is_taken_back_leaves_no_log_to_go_on_from() {
        let mut log = Log::default();
        log.begin_sync(id(1));
        log.wait(b"a");
        assert_eq!(log.take_waiting(), b"a");
        log.end_sync(id(1), 1);
        log.wait(b"b");
        assert!(!log.is_lost());
        log.take_back();
        assert!(log.is_lost());
        log.wait(b"c");
        assert_eq!(log.take_waiting(), b"", "nobody can use it");
    }
}
