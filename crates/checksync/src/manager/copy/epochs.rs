//! Epochs on their way in: what the engine is told of them, beside the frames that it gets from the stream itself.
//!
//! It takes in what goes on from what it has before anybody told it to. So whoever tells it to drop that waits for its
//! word: until then it speaks of epochs that are gone, and one that was taken for held would never be applied.

use engine::Command;
use image::{CheckpointId, Sync};
use replica::standby::{Discarded, EpochRefusal};
use wire::{EpochRefused, FromStandby, Refusal, RefusalCode};

use super::Actor;

impl Actor {
    pub(super) fn receive(&mut self, id: CheckpointId) {
        let full = self.announced.get(&id) == Some(&Sync::Full);
        self.receiving = Some(id);
        self.command(Command::Receive { id, full, keep_old: true });
    }

    pub(super) fn refuse_epoch(&mut self, id: CheckpointId, why: &EpochRefusal) {
        tracing::debug!(app = self.setup.app, %id, "refused an epoch: {why}");
        self.drop_all();
        self.say(FromStandby::EpochRefused(EpochRefused { id, why: why.to_string(), lacks: Vec::new() }));
    }

    pub(super) fn end_stream(&mut self, why: &Discarded) {
        self.say(FromStandby::Refusal(Refusal {
            code: RefusalCode::Busy,
            why: format!("the copy is lost: {why}"),
            way_out: "a full sync follows by itself; the standby's log says more".to_owned(),
        }));
        // Without a queue the stream ends as soon as that has gone.
        self.session = None;
    }

    /// Only of what the engine still takes in: it may have refused that epoch and begun the next.
    pub(super) fn drop_half(&mut self, id: CheckpointId) {
        if self.receiving == Some(id) {
            self.drop_all();
        }
    }

    /// What has come in and is not prepared.
    pub(super) fn drop_all(&mut self) {
        self.receiving = None;
        self.tell_to_drop(Command::DropHalf);
    }

    fn tell_to_drop(&mut self, command: Command) {
        if self.body.is_some() {
            self.dropping += 1;
            self.command(command);
        }
    }

    pub(super) fn discard(&mut self, why: &Discarded) {
        tracing::info!(app = self.setup.app, "the copy is discarded: {why}");
        self.receiving = None;
        self.held_since_ns = None;
        self.tell_to_drop(Command::Discard);
    }
}
