//! Structures that were taken over, and the primary that goes on with them: it starts the program and looks for a standby.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use image::{CheckpointId, Member};
use replica::{Primary, PrimaryEvent, Right};
use structure::Store;
use tokio::sync::mpsc;

use super::{Input, Manager, Outcome, config, now, stay_awake};
use crate::config::PrimarySettings;
use crate::manager::structures::keep::Keep;
use crate::manager::structures::library::Door;
use crate::status::Board;

/// What the winner goes on with.
pub struct Succession {
    pub settings: PrimarySettings,
    pub command: Vec<OsString>,
    pub board: Board,
    pub me: Member,
    pub right: Right,
    pub restored: CheckpointId,
    pub store: Store,
}

/// The primary, for the one whose copy it has.
#[derive(Debug)]
pub struct Heir(mpsc::UnboundedSender<Input>);

impl Heir {
    /// The program is asked to end; at the second time it is killed.
    pub fn stop(&self) {
        // If the primary has ended, so has the program.
        let _ = self.0.send(Input::Stop);
    }
}

impl Succession {
    /// Inside a runtime: starts the program at `socket`, and calls `over` when it has ended, here or for good.
    pub fn begin(self, socket: &Path, over: impl FnOnce() + Send + 'static) -> anyhow::Result<Heir> {
        let Self { settings, command, board, me, right, restored, store } = self;
        let app = settings.app.clone();
        let (post, inbox) = mpsc::unbounded_channel();
        let machine = Primary::after_takeover(config(&settings, &me), &right, restored, now());
        let keep = Keep::new(store);
        let manager = Manager::make(settings, command, board, post.clone(), me, (machine, keep))?;
        let door = Door::open(socket, &manager);
        let door = door.with_context(|| format!("cannot listen on {}", socket.display()))?;
        {
            let mut actor = manager.lock();
            actor.door = Some(door);
            // Permit and output first, as for a program that is started for the first time.
            actor.step(PrimaryEvent::Tick);
            actor.start_program(right.term());
            if let Some(why) = actor.failure.take() {
                bail!(why);
            }
        }
        let awake = tokio::spawn(stay_awake(Arc::clone(&manager.awake)));
        tokio::spawn(async move {
            match manager.serve(inbox).await {
                Ok(Outcome::Ended(ending)) => tracing::warn!(app, ?ending, "no longer served here"),
                Ok(Outcome::Failed(why)) => tracing::error!(app, "no longer served here: {why}"),
                Err(why) => tracing::error!(app, "no longer served here: {why:#}"),
            }
            awake.abort();
            over();
        });
        Ok(Heir(post))
    }
}
