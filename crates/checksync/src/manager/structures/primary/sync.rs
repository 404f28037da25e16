//! A full sync: a snapshot in pieces, each behind what changed since the one before, while changes go on.

use std::sync::Weak;

use bytes::Bytes;
use image::{CheckpointId, Sync};
use replica::PrimaryEvent;
use structure::Cursor;
use wire::{Changes, FromPrimary};

use super::{Actor, Manager};
use crate::manager::structures::PART_BYTES;

impl Actor {
    pub(super) fn start_full_sync(&mut self, id: CheckpointId) {
        if self.session.is_none() {
            let why = "the standby went away before the sync began".to_owned();
            return self.events.push_back(PrimaryEvent::CaptureFailed { id, why });
        }
        self.log.begin_sync(id);
        self.make_room();
        tokio::spawn(sync(self.this.clone(), id));
    }

    /// The snapshot's next piece, with its room. False when there is none.
    fn send_piece(
        &mut self,
        id: CheckpointId,
        cursor: &mut Cursor,
        room: tokio::sync::OwnedSemaphorePermit,
    ) -> bool {
        if !self.log.is_sync(id) {
            return false;
        }
        let mut frames = self.log.take_waiting();
        self.make_room();
        *cursor = self.keep.piece(std::mem::take(cursor), PART_BYTES, &mut frames);
        let whole = *cursor == Cursor::End;
        if whole {
            self.log.end_sync(id, self.keep.taken());
            self.captured = Some((id, frames.into()));
            self.step(PrimaryEvent::Captured { id });
        } else if let Some(session) = &self.session {
            let frames = Bytes::from(frames);
            session
                .sender
                .send_in(room, FromPrimary::Changes(Changes { id, sync: Sync::Full, frames, last: false }));
        }
        !whole
    }
}

async fn sync(manager: Weak<Manager>, id: CheckpointId) {
    let mut cursor = Cursor::default();
    loop {
        let room = {
            let Some(manager) = manager.upgrade() else { return };
            let actor = manager.lock();
            let Some(session) = &actor.session else { return };
            session.sender.room()
        };
        // Without room the session is over, and whoever ends it gives the full sync up.
        let Some(room) = room.await else { return };
        let Some(manager) = manager.upgrade() else { return };
        if !manager.lock().send_piece(id, &mut cursor, room) {
            return;
        }
    }
}
