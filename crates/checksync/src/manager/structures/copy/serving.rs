//! After a takeover: the program runs here, and its library has the structures.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use image::{CheckpointId, Member, Term};
use replica::primary::AppExit;
use replica::{Right, StandbyEvent};
use rustix::process::Signal;
use structure::{Cursor, Malformed};

use super::{Copies, State};
use crate::arguments::Format;
use crate::config::Shared;
use crate::manager::policy::{Here, Policy};
use crate::manager::primary::exit_text;
use crate::manager::structures::PART_BYTES;
use crate::manager::structures::keep::Keep;
use crate::manager::structures::library::{Door, Keeper, Outbox};
use crate::manager::structures::primary::Succession;
use crate::manager::structures::program::Program;
use crate::manager::{hook, wall_clock_ns};
use crate::status::TakeoverReport;

pub(super) struct Serving {
    term: Term,
    keep: Keep,
    pub(super) program: Program,
    _door: Door,
}

impl State {
    pub(super) fn promote(&mut self, right: &Right, from: CheckpointId) {
        let (term, won_at_ns) = (right.term(), wall_clock_ns());
        tracing::warn!(app = self.setup.app, %term, %from, "taking over");
        let begun = Instant::now();
        if let Err(why) = self.serve(right, from) {
            let why = format!("{why:#}");
            tracing::error!(app = self.setup.app, "the takeover failed: {why}");
            return self.events.push_back(StandbyEvent::RestoreFailed { why });
        }
        let id = CheckpointId { term, epoch: from.epoch };
        if let Some(command) = &self.setup.promote_hook {
            hook::promoted(command, &self.setup.app, id);
        }
        self.setup.board.add_takeover(TakeoverReport {
            app: self.setup.app.clone(),
            term: term.0,
            epoch: from.epoch.0,
            frozen_at_ns: self.held_since_ns.unwrap_or(won_at_ns),
            suspected_at_ns: self.suspected_at_ns.unwrap_or(won_at_ns),
            won_at_ns,
            serving_at_ns: wall_clock_ns(),
            restore_us: begun.elapsed().as_micros() as u64,
        });
        self.events.push_back(StandbyEvent::RestoreFinished);
        tracing::warn!(app = self.setup.app, %term, %from, "SERVING");
    }

    /// By a primary, if there is somebody who could be its standby.
    fn serve(&mut self, right: &Right, restored: CheckpointId) -> anyhow::Result<()> {
        let _inside = self.setup.runtime.enter();
        match self.policy.take().filter(|_| !self.setup.standbys.is_empty()) {
            Some(policy) => self.succeed(&policy, right.clone(), restored),
            None => self.serve_alone(right.term()),
        }
    }

    fn succeed(&mut self, policy: &Policy, right: Right, restored: CheckpointId) -> anyhow::Result<()> {
        let setup = &self.setup;
        let here = Here {
            store: None,
            app: setup.app.clone(),
            standbys: setup.standbys.clone(),
            timing: setup.timing,
            network: None,
            structures: true,
            shared: Shared {
                tls: setup.tls.clone(),
                pki: setup.pki.clone(),
                fencing: setup.fencing,
                arbiter: setup.arbiter.clone(),
                state: setup.state.clone(),
                format: Format::Text,
            },
        };
        let succession = Succession {
            settings: policy.settings(here),
            command: self.command.clone(),
            board: setup.board.clone(),
            me: Member::new(&setup.host, self.incarnation),
            right,
            restored,
            store: std::mem::take(&mut self.store),
        };
        let this = self.this.clone();
        let over = move || {
            if let Some(copies) = this.upgrade() {
                let mut state = copies.lock();
                state.ended = true;
                state.setup.board.remove(&state.setup.app);
            }
        };
        self.heir = Some(succession.begin(&self.setup.socket, over)?);
        Ok(())
    }

    fn serve_alone(&mut self, term: Term) -> anyhow::Result<()> {
        let copies = self.this.upgrade().context("nobody keeps the structures any more")?;
        let path = &self.setup.socket;
        let door = Door::open(path, &copies);
        let door = door.with_context(|| format!("cannot listen on {}", path.display()))?;
        let this = self.this.clone();
        let ended = move |exit| {
            if let Some(copies) = this.upgrade() {
                copies.lock().program_ended(exit);
            }
        };
        let program = Program::start(&self.command, path, &self.setup.app, ended)?;
        let keep = Keep::new(std::mem::take(&mut self.store));
        self.serving = Some(Serving { term, keep, program, _door: door });
        Ok(())
    }

    fn program_ended(&mut self, exit: AppExit) {
        tracing::info!(
            app = self.setup.app,
            "the program, which was taken over, has ended: {}",
            exit_text(exit)
        );
        self.ended = true;
        if let Some(mut serving) = self.serving.take() {
            serving.keep.shut_out(None);
        }
        self.setup.board.remove(&self.setup.app);
    }
}

/// Ends what is served; a copy just goes.
pub(super) fn stop(state: &Mutex<State>, grace: Duration) {
    const POLL: Duration = Duration::from_millis(5);
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let signal = |signal| {
        let mut state = lock();
        match (&state.heir, &state.serving) {
            (Some(heir), _) => heir.stop(),
            (None, Some(serving)) => serving.program.signal(signal),
            (None, None) => state.ended = true,
        }
        state.ended
    };
    let deadline = Instant::now() + grace;
    if signal(Signal::TERM) {
        return;
    }
    while !lock().ended {
        if Instant::now() >= deadline {
            signal(Signal::KILL);
        }
        thread::sleep(POLL);
    }
}

impl Keeper for Copies {
    fn join(&self, number: u64, outbox: Arc<Outbox>) -> Result<(), String> {
        match &mut self.lock().serving {
            Some(serving) => serving.keep.join(number, outbox),
            None => Err("the structures are not served here".to_owned()),
        }
    }

    fn leave(&self, number: u64) {
        if let Some(serving) = &mut self.lock().serving {
            serving.keep.leave(number);
        }
    }

    fn piece(&self, cursor: Cursor, out: &mut Vec<u8>) -> Cursor {
        match &self.lock().serving {
            Some(serving) => serving.keep.piece(cursor, PART_BYTES, out),
            None => Cursor::End,
        }
    }

    fn take(&self, number: u64, frames: &[u8]) -> Result<(), Malformed> {
        if let Some(serving) = &mut self.lock().serving {
            serving.keep.take(number, frames)?;
            serving.keep.release_all();
        }
        Ok(())
    }

    async fn room(&self) {}

    fn term(&self) -> u64 {
        self.lock().serving.as_ref().map_or(0, |serving| serving.term.0)
    }

    /// Nobody can take over from here.
    fn lease(&self) -> Duration {
        Duration::from_nanos(self.lock().setup.timing.permit().0)
    }

    fn lease_every(&self) -> Duration {
        Duration::from_nanos(self.lock().setup.timing.heartbeat().0)
    }
}
