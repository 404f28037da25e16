//! The frames of epochs on their way to the standby, and what becomes of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::{CaptureReport, Command, FrameSink};
use image::frame::{self, Frame, FrameError, FrameKind, FrameWriter};
use image::{CheckpointId, Header, Member, Sync};
use replica::PrimaryEvent;
use wire::{ArrivedPacket, FromPrimary};

use super::{Actor, Input};
use crate::manager::on_our_clock;
use crate::mpsc;
use crate::progress::Progress;

/// How long a full sync waits for one of several standbys to take the next frame.
const FULL_SYNC_PATIENCE: Duration = Duration::from_secs(1);
/// Small epochs travel in one message.
const JOINED_BYTES_MAX: usize = 1 << 20;
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
    pub(super) fn capture(&mut self, id: CheckpointId, parent: CheckpointId) {
        self.parent = Some(parent);
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
        self.progress = None;
        self.syncing = None;
        self.last_is_over(id);
        self.feed_store(id, &frames);
        self.captured = Some((id, frames));
        if self.network.as_ref().is_some_and(|network| !network.waits()) {
            // What was told between the question and the barrier is in this epoch.
            self.step(PrimaryEvent::NothingWaits);
        }
        self.step(PrimaryEvent::Captured { id });
        // Whoever could take it has it.
        self.captured = None;
        *self.end_frame.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What was captured for the sake of one that is behind builds on what that one has; the store has more.
    fn feed_store(&mut self, id: CheckpointId, frames: &[Bytes]) {
        let Some(store) = &mut self.store else { return };
        let has = self.stored.max(self.machine.committed());
        match frames.first().filter(|_| self.parent < has).zip(has).map(|(first, has)| built_on(first, has)) {
            Some(Ok(header)) => {
                let frames: Vec<Bytes> = std::iter::once(header).chain(frames[1..].iter().cloned()).collect();
                store.captured(id, &frames);
            }
            Some(Err(why)) => tracing::warn!(%id, "an epoch is not for the store: {why}"),
            None => store.captured(id, frames),
        }
        self.stored = Some(id);
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

    pub(super) fn start_full_sync(&mut self, id: CheckpointId, to: &[Member]) {
        *self.end_frame.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.parent = None;
        let mut ways = Vec::new();
        for session in to.iter().filter_map(|standby| self.seats.of(standby)) {
            // One alone may be as slow as it is.
            let patience = (to.len() > 1).then_some(FULL_SYNC_PATIENCE);
            let sink = session.sender.sink(Arc::clone(&self.end_frame), patience);
            ways.push((session.standby.clone(), sink));
        }
        let to_store = self.store_seat.as_ref().filter(|seat| seat.is_open() && to.contains(&seat.member));
        let archived = to.is_empty() && self.store.is_some();
        if ways.is_empty() && to_store.is_none() && !archived {
            return tracing::warn!(%id, "a full sync without a standby");
        }
        let held = SinkHeld { id, post: self.post.clone() };
        self.full_sync_unwanted = Arc::new(AtomicBool::new(false));
        let unwanted = Arc::clone(&self.full_sync_unwanted);
        let sink: FrameSink = Box::new(move |frame| {
            let SinkHeld { post, .. } = &held;
            if unwanted.load(Ordering::Acquire) {
                return false;
            }
            ways.retain_mut(|(standby, sink)| {
                let takes = sink(frame.clone());
                if !takes {
                    // Whose session has ended is known already. The actor may have ended first.
                    let _ = post.send(Input::TooSlow(standby.clone()));
                }
                takes
            });
            !ways.is_empty() || archived
        });
        let sink = match (&mut self.store, to_store) {
            (Some(store), _) => store.full(id, sink),
            (None, Some(seat)) => seat.full(sink),
            (None, None) => sink,
        };
        self.progress = Some(Progress::start("full sync"));
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

    pub(super) fn send_epoch(&mut self, id: CheckpointId, to: &Member, sync: Sync) {
        let frames = match &self.captured {
            Some((captured, frames)) if *captured == id => frames.as_slice(),
            Some(_) | None => &[],
        };
        let end = self.end_frame.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let seat = self.store_seat.as_ref().filter(|seat| seat.member == *to);
        let session = self.seats.of(to);
        if session.is_none() && seat.is_none() {
            return;
        }
        // One that is ahead of what this was captured since goes on from what it has: it carries more than that needs.
        let header = match (sync, frames.first()) {
            (Sync::Since(parent), Some(first)) if Some(parent) != self.parent => {
                match built_on(first, parent) {
                    Ok(header) => Some(header),
                    Err(why) => return tracing::error!(%id, %to, "an epoch can't be sent: {why}"),
                }
            }
            (Sync::Full | Sync::Since(_), first) => first.cloned(),
        };
        if let Some(seat) = seat {
            let rest = || header.into_iter().chain(frames.iter().skip(1).cloned()).collect();
            seat.send((sync != Sync::Full).then(rest));
            return self.passage.sent(id);
        }
        let Some(session) = session else { return };
        // Of a full sync only its end waits here; of any other epoch, all of it.
        let frames = header.into_iter().chain(frames.iter().skip(1).cloned()).chain(end);
        for frames in frame::join(frames, JOINED_BYTES_MAX) {
            session.sender.send(FromPrimary::Frames(frames));
        }
        self.passage.sent(id);
    }

    pub(super) fn committed(&mut self, id: CheckpointId) {
        let frozen = self.frozen.iter().find(|(captured, _)| *captured == id);
        self.committed_at_ns = frozen.map(|(_, at_ns)| *at_ns).or(self.committed_at_ns);
        if let Some(store) = &mut self.store {
            store.committed(id);
        }
        if let Some(socket) = &self.socket {
            socket.tell(|role| role.epoch = Some(id.epoch.0));
        }
    }

    /// Nobody goes on from before it.
    pub(super) fn forget(&mut self, id: CheckpointId) {
        while self.frozen.front().is_some_and(|(captured, _)| *captured < id) {
            self.frozen.pop_front();
        }
        self.command(Command::Committed(id));
    }

    /// To whoever may have to take over before the app has acted on them.
    pub(super) fn pass_on(&self, packets: gate::Batch) {
        for packets in packets.chunks(ARRIVED_PER_MESSAGE) {
            let packet = |recorded: &gate::Recorded| ArrivedPacket {
                since: recorded.since,
                packet: Bytes::copy_from_slice(&recorded.packet),
            };
            let packets: Vec<ArrivedPacket> = packets.iter().map(packet).collect();
            for session in self.seats.sessions() {
                session.sender.offer(FromPrimary::Arrived(packets.clone()));
            }
        }
    }
}

/// The header of an epoch, so that it goes on from `parent`.
fn built_on(first: &Bytes, parent: CheckpointId) -> Result<Bytes, FrameError> {
    let header: Header = Frame::parse(first.clone())?.decode("header")?;
    let header = Header { sync: Sync::Since(parent), ..header };
    Ok(FrameWriter::default().cbor(FrameKind::Header, &header))
}
