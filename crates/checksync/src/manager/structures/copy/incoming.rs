//! An epoch on its way in: looked through before it counts, and then applied.

use bytes::Bytes;
use image::{CheckpointId, Sync};
use replica::StandbyEvent;
use structure::{FRAME_BYTES_MAX, Frames, Malformed, Store, check_all};
use wire::Changes;

use super::State;
use crate::manager::wall_clock_ns;

/// An epoch has what waited for it, which is less than a frame more than the primary lets wait.
const EPOCH_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;

/// What has come of an epoch.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) id: CheckpointId,
    /// Of a full epoch: what its frames made so far.
    store: Option<Store>,
    /// What came and is not in it.
    frames: Vec<u8>,
}

/// An epoch that is whole and in which nothing can fail.
#[derive(Debug)]
pub(super) struct Epoch {
    id: CheckpointId,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Full(Store),
    Since(Bytes),
}

#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("an epoch of more than {EPOCH_BYTES_MAX} bytes")]
    TooLong,
}

impl State {
    pub(super) fn take_changes(&mut self, changes: Changes) {
        let Changes { id, sync, frames, last } = changes;
        if self.staging.as_ref().is_none_or(|staging| staging.id != id) {
            // The machine answers with `Receive`, or with a refusal, after which parts of it go nowhere.
            self.beginning = Some(sync);
            self.step_alone(StandbyEvent::EpochBegins { id, sync, eligible: true });
            self.beginning = None;
        }
        let Some(staging) = self.staging.as_mut().filter(|staging| staging.id == id) else { return };
        match staging.take(frames, last) {
            Ok(None) => {}
            Ok(Some(content)) => {
                self.staging = None;
                self.prepared = Some(Epoch { id, content });
                self.held_since_ns = Some(wall_clock_ns());
                self.step_alone(StandbyEvent::Prepared { id });
            }
            Err(why) => {
                self.staging = None;
                self.refuse_epoch(id, why.to_string());
            }
        }
    }

    pub(super) fn receive(&mut self, id: CheckpointId) {
        let store = (self.beginning == Some(Sync::Full)).then(Store::default);
        self.staging = Some(Staging { id, store, frames: Vec::new() });
    }

    pub(super) fn apply(&mut self, id: CheckpointId) {
        let Some(Epoch { content, .. }) = self.prepared.take_if(|epoch| epoch.id == id) else { return };
        match content {
            Content::Full(store) => self.store = store,
            Content::Since(frames) => {
                self.store.apply_all(&frames).expect("it was looked through to its end");
            }
        }
        self.events.push_back(StandbyEvent::Applied { id });
    }
}

impl Staging {
    fn take(&mut self, part: Bytes, last: bool) -> Result<Option<Content>, Unfit> {
        if self.frames.len() + part.len() > EPOCH_BYTES_MAX {
            return Err(Unfit::TooLong);
        }
        if let Some(store) = &mut self.store {
            self.frames.extend_from_slice(&part);
            let whole = whole_frames(&self.frames)?;
            store.apply_all(&self.frames[..whole])?;
            self.frames.drain(..whole);
            return match (last, self.frames.is_empty()) {
                (true, true) => Ok(self.store.take().map(Content::Full)),
                (true, false) => Err(Malformed::CutOff.into()),
                (false, _) => Ok(None),
            };
        }
        let frames = match (last, self.frames.is_empty()) {
            // Nearly every epoch: there is nothing to put together.
            (true, true) => part,
            (_, _) => {
                self.frames.extend_from_slice(&part);
                if !last {
                    return Ok(None);
                }
                std::mem::take(&mut self.frames).into()
            }
        };
        check_all(&frames)?;
        Ok(Some(Content::Since(frames)))
    }
}

fn whole_frames(buffer: &[u8]) -> Result<usize, Malformed> {
    let mut frames = Frames::of(buffer);
    while frames.take()?.is_some() {}
    Ok(frames.taken())
}

#[cfg(test)]
mod tests {
    use structure::Change;

    use super::*;

    fn staging(store: Option<Store>) -> Staging {
        Staging { id: CheckpointId::new(1, 1), store, frames: Vec::new() }
    }

    fn changes() -> Vec<u8> {
        let mut frames = Vec::new();
        for key in 0..10_u8 {
            Change::Put { name: b"m", key: &[key], value: &[key; 100] }.append(&mut frames);
        }
        frames
    }

    #[test]
    fn an_epoch_in_parts_of_any_size_is_the_same_epoch() {
        let frames = changes();
        let mut whole = Store::default();
        whole.apply_all(&frames).unwrap();
        for len in [1, 7, 100, frames.len()] {
            for full in [false, true] {
                let mut staging = staging(full.then(Store::default));
                let parts = frames.chunks(len).map(Bytes::copy_from_slice);
                let last = frames.len().div_ceil(len) - 1;
                let content = parts.enumerate().find_map(|(n, part)| staging.take(part, n == last).unwrap());
                match content.unwrap() {
                    Content::Full(store) => assert_eq!(store, whole),
                    Content::Since(taken) => assert_eq!(taken, frames),
                }
            }
        }
    }

    #[test]
    fn an_epoch_that_ends_within_a_frame_is_refused_whole() {
        let mut frames = Bytes::from(changes());
        frames.truncate(frames.len() - 1);
        for full in [false, true] {
            let taken = staging(full.then(Store::default)).take(frames.clone(), true);
            assert!(matches!(taken, Err(Unfit::Malformed(Malformed::CutOff))), "{taken:?}");
        }
    }
}
