//! The two directions of a page stream, each a task of the network's.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use bytes::Bytes;
use engine::Engine;
use image::frame::FrameKind;
use tokio::sync::mpsc as tokio_mpsc;
use wire::{FromPrimary, FromStandby, Incoming, Outgoing};

use crate::mpsc;

use super::super::link::kind_of;
use super::Input;

pub async fn write(mut queue: tokio_mpsc::UnboundedReceiver<FromStandby>, outgoing: Outgoing<FromStandby>) {
    while let Some(message) = queue.recv().await {
        if let Err(why) = outgoing.send(message).await {
            return tracing::debug!("an answer did not go: {why}");
        }
    }
}

/// What comes in: frames go straight to the engine, everything else to the actor.
pub struct Intake {
    pub number: u64,
    /// Whose frames the engine takes. N.B. a connection that was given up may still bring some, beside the next one's.
    pub current: Arc<Mutex<u64>>,
    pub engine: Weak<Engine>,
    pub post: mpsc::Sender<Input>,
    /// When the newest epoch began to come.
    pub header_at: Arc<Mutex<Option<Instant>>>,
}

impl Intake {
    /// Until the stream ends, which is told.
    pub async fn read(self, mut incoming: Incoming<FromPrimary>) {
        loop {
            let taken = match incoming.recv().await {
                Some(Ok(FromPrimary::Frames(frames))) => self.feed(frames).await,
                Some(Ok(message)) => self.post.send(Input::Said(self.number, message)).is_ok(),
                Some(Err(why)) => {
                    tracing::warn!("the page stream is lost: {why}");
                    false
                }
                None => false,
            };
            if !taken {
                break;
            }
        }
        // The actor may have ended first.
        let _ = self.post.send(Input::StreamEnded(self.number));
    }

    /// False if there is no engine any more, or another stream is in this one's place. An engine that has too much to do
    /// holds up this stream, and nobody else.
    async fn feed(&self, mut frames: Bytes) -> bool {
        if kind_of(&frames) == Some(FrameKind::Header as u16) {
            *self.header_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        loop {
            let Some(engine) = self.engine.upgrade() else { return false };
            match self.offer(&engine, frames) {
                Ok(taken) => return taken,
                Err(back) => frames = back,
            }
            // A panic was logged, and would be the engine's end.
            if tokio::task::spawn_blocking(move || engine.await_room()).await.is_err() {
                return false;
            }
        }
    }

    /// Gives them back if there is no room. False if they are nobody's any more.
    fn offer(&self, engine: &Engine, frames: Bytes) -> Result<bool, Bytes> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if *current == self.number { engine.offer(frames).map(|()| true) } else { Ok(false) }
    }
}
