//! What whoever goes on from the last epoch knows: the next one says only what became of it.

use bytes::Bytes;
use checkpoint::memory::{Capture, Encoder};
use image::frame::FrameWriter;
use image::state::State;
use image::{CheckpointId, StateChange};

#[derive(Debug)]
pub(crate) struct Told {
    pages: Encoder,
    state: Option<(CheckpointId, State)>,
    /// Until there is time to forget it: a state is in many pieces.
    outdated: Option<(CheckpointId, State)>,
}

impl Told {
    /// `shadow_bytes` bounds the memory for the last versions of pages.
    pub fn new(shadow_bytes: u64) -> Self {
        Self { pages: Encoder::new(shadow_bytes), state: None, outdated: None }
    }

    /// What they have is not known any more.
    pub fn forget(&mut self) {
        self.pages.forget();
        self.state = None;
    }

    /// Nobody waits for anything.
    pub fn tidy_up(&mut self) {
        self.outdated = None;
    }

    pub fn memory(&mut self, capture: &Capture, frames: &mut FrameWriter, out: impl FnMut(Bytes)) {
        self.pages.encode(capture, frames, out);
    }

    /// The frames of the state of epoch `id`.
    pub fn state(&mut self, id: CheckpointId, state: State, frames: &mut FrameWriter) -> Vec<Bytes> {
        let mut before = self.state.take();
        let change = before.as_mut().and_then(|(since, before)| StateChange::between(*since, before, &state));
        let said = match change {
            Some(change) => frames.state_change(&change),
            None => frames.state(&state),
        };
        (self.state, self.outdated) = (Some((id, state)), before);
        said
    }
}
