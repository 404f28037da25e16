//! The frames of epochs on their way to the standby, and what becomes of them.

use std::sync::{Arc, PoisonError, mpsc};
use std::time::Instant;

use bytes::Bytes;
use engine::{CaptureReport, Command, FrameSink};
use image::CheckpointId;
use replica::PrimaryEvent;
use store::Life;
use wire::{ArrivedPacket, FromPrimary};

use super::{Actor, Input};
use crate::manager::store::StoreFeed;
use crate::manager::{on_our_clock, wall_clock_ns};

/// Each has at most 64 KiB, and a message a frame's size.
const ARRIVED_PER_MESSAGE: usize = 15;

/// Tells when the engine drops the sink that it is in.
struct SinkHeld {
    id: CheckpointId,
    post: mpsc::Sender<Input>,
}

impl Drop for SinkHeld {
    fn drop(&mut self) {
        // The actor may have ended first.
        let _ = self.post.send(Input::SyncOver(self.id));
    }
}

impl Actor {
    /// The store's threads are made before the app is, and know the term when there is one.
    pub(super) fn open_store(&mut self) -> anyhow::Result<()> {
        let Some(settings) = &self.settings.store else { return Ok(()) };
        let shared = &self.settings.shared;
        let life = Life {
            host: shared.host().to_owned(),
            register: shared.arbiter.as_ref().map(ToString::to_string),
            incarnation: self.me.incarnation.0,
            begun_at_ns: wall_clock_ns(),
        };
        let feed = StoreFeed::start(settings, &self.settings.app, life)?;
        self.board.set_store(&self.settings.app, feed.status());
        self.store = Some(feed);
        Ok(())
    }

    pub(super) fn capture(&mut self, id: CheckpointId, parent: CheckpointId) {
        self.passage.asked(id);
        tracing::trace!(target: "epochs", %id, "epoch asked for");
        self.command(Command::Capture { id, parent });
    }

    pub(super) fn captured(&mut self, id: CheckpointId, frames: Vec<Bytes>, report: &CaptureReport) {
        // Of one after which the app stands still, it is not known yet.
        if !report.pause.is_zero() {
            self.pauses.push(report.pause);
        }
        self.passage.captured(id, report);
        self.frozen.push_back((id, on_our_clock(report.frozen_at_ns)));
        self.progress.end();
        self.syncing = None;
        self.last_is_over(id);
        if let Some(store) = &mut self.store {
            store.captured(id, &frames);
        }
        self.captured = Some((id, frames));
        if self.network.as_ref().is_some_and(|network| !network.waits()) {
            // What was told between the question and the barrier is in this epoch.
            self.step(PrimaryEvent::NothingWaits);
        }
        self.step(PrimaryEvent::Captured { id });
    }

    /// What `id` covers may be heard.
    pub(super) fn release(&mut self, id: CheckpointId) {
        let heard_at = Instant::now();
        tracing::trace!(target: "epochs", %id, "epoch covered");
        if let Some(network) = &self.network {
            network.release(id);
        }
        self.passage.released(id, heard_at);
        tracing::trace!(target: "epochs", %id, "epoch released");
    }

    pub(super) fn start_full_sync(&mut self, id: CheckpointId) {
        let Some(session) = &self.session else {
            return tracing::warn!(%id, "a full sync without a standby");
        };
        *self.end_frame.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let mut sink = session.sender.sink(Arc::clone(&self.end_frame));
        let held = SinkHeld { id, post: self.post.clone() };
        let sink: FrameSink = Box::new(move |frame| {
            let SinkHeld { .. } = &held;
            sink(frame)
        });
        let sink = match &mut self.store {
            Some(store) => store.full(id, sink),
            None => sink,
        };
        self.progress.begin();
        self.syncing = Some(id);
        self.command(Command::FullSync { id, sink });
    }

    /// Without an answer before it, the engine has given the full sync up: it would be waited for in vain.
    pub(super) fn sync_over(&mut self, id: CheckpointId) {
        if self.syncing.take_if(|syncing| *syncing == id).is_some() {
            let why = "the engine gave the full sync up".to_owned();
            self.step(PrimaryEvent::CaptureFailed { id, why });
        }
    }

    pub(super) fn send_epoch(&mut self, id: CheckpointId) {
        let frames = self.captured.take().filter(|(captured, _)| *captured == id);
        let end = self.end_frame.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(session) = &self.session else { return };
        // Of a full sync only its end waits here; of any other epoch, all of it.
        for frame in frames.into_iter().flat_map(|(_, frames)| frames).chain(end) {
            session.sender.send(FromPrimary::Frame(frame));
        }
        self.passage.sent(id);
    }

    pub(super) fn committed(&mut self, id: CheckpointId) {
        while let Some(&(captured, at_ns)) = self.frozen.front().filter(|(captured, _)| *captured <= id) {
            self.frozen.pop_front();
            if captured == id {
                self.committed_at_ns = Some(at_ns);
            }
        }
        if let Some(store) = &mut self.store {
            store.committed(id);
        }
        if let Some(socket) = &self.socket {
            socket.tell(|role| role.epoch = Some(id.epoch.0));
        }
        self.command(Command::Committed(id));
    }

    /// To the standby, which may have to take over before the app has acted on them.
    pub(super) fn pass_on(&self, packets: gate::Batch) {
        let Some(session) = &self.session else { return };
        for packets in packets.chunks(ARRIVED_PER_MESSAGE) {
            let packet = |recorded: &gate::Recorded| ArrivedPacket {
                since: recorded.since,
                packet: Bytes::copy_from_slice(&recorded.packet),
            };
            session.sender.offer(FromPrimary::Arrived(packets.iter().map(packet).collect()));
        }
    }
}
