//! What the machine asks for, done in its order.

use std::sync::{Arc, PoisonError};
use std::thread;

use image::{CheckpointId, Member, Sync, Term};
use replica::primary::{Notice, Output, Permit};
use replica::{PrimaryAction, PrimaryEvent};
use rustix::process::Signal;
use structure::ToLibrary;
use wire::{Changes, Exit, FromPrimary};

use super::{Actor, Input};
use crate::manager::introduction::wire_exit;
use crate::manager::link::{self, Dialling};
use crate::manager::structures::PART_BYTES;
use crate::manager::structures::program::Program;
use crate::manager::{now, wall_clock_ns};

impl Actor {
    pub(super) fn step(&mut self, event: PrimaryEvent) {
        self.events.push_back(event);
        self.settle();
    }

    /// Does what is to be done, until there is nothing more or it has to wait.
    pub(super) fn settle(&mut self) {
        loop {
            if now() < self.wait_until {
                return;
            }
            if let Some(action) = self.actions.pop_front() {
                self.act(action);
            } else if let Some(event) = self.events.pop_front() {
                let mut actions = Vec::new();
                self.machine.step(now(), event, &mut actions);
                self.actions.extend(actions);
            } else {
                return;
            }
        }
    }

    fn act(&mut self, action: PrimaryAction) {
        match action {
            PrimaryAction::StartApp { term } => self.start_program(term),
            PrimaryAction::StartFullSync { id, to: _, eligible: _ } => self.start_full_sync(id),
            PrimaryAction::CaptureNow { id, parent: _ } => self.capture(id),
            PrimaryAction::SendEpoch { id, to: _, sync } => self.send_epoch(id, sync),
            PrimaryAction::Committed(committed) => {
                self.log.committed(committed.id());
                self.committed_at_ns = Some(wall_clock_ns());
                self.make_room();
            }
            // There is one standby: what it has is what is committed.
            PrimaryAction::Forget(_) | PrimaryAction::Archive(_) | PrimaryAction::GiveUpFullSync(_) => {}
            PrimaryAction::ReturnToLedger { ids: _ } => {
                self.captured = None;
                self.log.take_back();
                if self.log.is_lost() {
                    self.lose_log();
                }
            }
            PrimaryAction::SetPermit(permit) => self.set_permit(permit),
            PrimaryAction::SetOutput(output) => self.set_output(output),
            PrimaryAction::Release(id) => {
                if let Some(reach) = self.log.reach_of(id) {
                    self.keep.release(reach);
                }
            }
            // The program dies with us by itself.
            PrimaryAction::ArmGuard | PrimaryAction::DisarmGuard => {}
            PrimaryAction::AskArbiter { ask, question } => {
                if let Some(register) = &self.register {
                    register.ask(ask, question);
                }
            }
            PrimaryAction::Tell { standby, notice } => self.tell(&standby, &notice),
            PrimaryAction::StopHeartbeats => self.stop_heart(),
            PrimaryAction::DropPeer { standby: _, why } => {
                tracing::warn!("let the standby go: {why}");
                self.end_session();
            }
            PrimaryAction::Report(progress) => {
                if let Some(heart) = &self.heart {
                    heart.report(progress);
                }
            }
            PrimaryAction::Status(status) => self.say_status(status),
            // A write of a structure returns when it is committed: there is nothing else to ask for.
            PrimaryAction::Synced { .. } | PrimaryAction::SyncRefused { .. } => {}
            // Nobody can order a planned move: the program would have to be ended here first.
            PrimaryAction::CaptureLast { .. } | PrimaryAction::Thaw | PrimaryAction::Switchover(_) => {}
            PrimaryAction::StopApp => self.stop_program(),
            PrimaryAction::RestartApp => self.restart_program(),
            PrimaryAction::KillApp => self.fence(),
            PrimaryAction::EndPair(ending) => {
                self.ending = Some(ending);
                self.make_room();
                self.tell_over();
            }
        }
    }

    pub(super) fn start_program(&mut self, term: Term) {
        {
            let mut hello = self.hello.lock().unwrap_or_else(PoisonError::into_inner);
            hello.term = term;
        }
        tracing::info!(%term, app = self.settings.app, "serving");
        if let Some(heart) = &self.heart {
            heart.begin(term);
        }
        self.begun = true;
        self.run_program();
        self.dial();
    }

    fn run_program(&mut self) {
        let Some(door) = &self.door else { return };
        let post = self.post.clone();
        let ended = move |exit| drop(post.send(Input::Exited(exit)));
        match Program::start(&self.command, door.path(), &self.settings.app, ended) {
            Ok(program) => {
                self.exited = false;
                self.program = Some(program);
            }
            Err(why) => {
                self.failure = Some(format!("{why:#}"));
                self.tell_over();
            }
        }
    }

    fn dial(&mut self) {
        if self.dialling.is_some() {
            return;
        }
        let this = self.this.clone();
        let dialling = Dialling {
            candidates: Arc::clone(&self.candidates),
            tls: self.settings.shared.tls.clone(),
            facts: None,
            hello: Arc::clone(&self.hello),
            on_link: Arc::new(move |session, event| {
                if let Some(manager) = this.upgrade() {
                    manager.lock().take_link(session, event);
                }
            }),
        };
        self.dialling = Some(tokio::spawn(link::keep_connected(dialling)));
    }

    /// What waits becomes an epoch.
    fn capture(&mut self, id: CheckpointId) {
        if self.log.is_lost() {
            let why = "what the standby lacks is gone from the log".to_owned();
            self.events.push_back(PrimaryEvent::CaptureFailed { id, why });
            return self.events.push_back(PrimaryEvent::Executed);
        }
        let frames = self.log.capture(id, self.keep.taken());
        self.captured = Some((id, frames));
        self.events.push_back(PrimaryEvent::Captured { id });
        self.make_room();
    }

    fn send_epoch(&mut self, id: CheckpointId, sync: Sync) {
        let Some((_, mut frames)) = self.captured.take_if(|(captured, _)| *captured == id) else { return };
        let Some(session) = &self.session else { return };
        loop {
            let part = frames.split_to(frames.len().min(PART_BYTES));
            let last = frames.is_empty();
            session.sender.send(FromPrimary::Changes(Changes { id, sync, frames: part, last }));
            if last {
                return;
            }
        }
    }

    /// A standby can only go on with a full sync.
    pub(super) fn lose_log(&mut self) {
        self.log.lose();
        self.make_room();
        self.events.push_back(PrimaryEvent::Executed);
    }

    pub(super) fn end_session(&mut self) {
        self.session = None;
        if let Some(id) = self.log.give_up_sync() {
            let why = "the standby was lost during the full sync".to_owned();
            self.events.push_back(PrimaryEvent::CaptureFailed { id, why });
            self.lose_log();
        }
    }

    /// A permit without an end was passed on with one: what follows a limit waits until that has passed, too. Of a
    /// limited permit no more was promised than it had.
    fn set_permit(&mut self, permit: Permit) {
        let was_open = std::mem::replace(&mut self.is_open, permit == Permit::Open);
        let limit = match permit {
            Permit::Open => return,
            Permit::Until(deadline) => deadline,
            Permit::Shut => now(),
        };
        if was_open && self.leased_until > limit {
            self.wait_until = self.leased_until;
        }
    }

    fn set_output(&mut self, output: Output) {
        self.output = output;
        match output {
            Output::Passing => {
                self.log.released();
                self.keep.release_all();
            }
            // Who was covered before has to be covered anew.
            Output::Held => self.events.push_back(PrimaryEvent::OutputWaits { all: true }),
            Output::Muted | Output::Shut => {}
        }
    }

    fn tell(&mut self, standby: &Member, notice: &Notice) {
        let message = match notice {
            // The standby reads the register itself when it needs it.
            Notice::Enrolled(_) | Notice::HandedOver { .. } => return,
            Notice::AppEnded { exit, .. } => {
                FromPrimary::AppExited { how: wire_exit(*exit), silenced: false }
            }
            Notice::AppCrashed { signal, .. } => {
                self.handed_over = true;
                FromPrimary::AppExited { how: Exit::Signal(*signal), silenced: true }
            }
        };
        let session = self.session.as_ref().filter(|session| session.standby == *standby);
        if let Some(session) = session {
            session.sender.send(message);
        }
    }

    /// On another thread: it may take as long as a heartbeat, and the word to the standby must not.
    fn stop_heart(&mut self) {
        let heart = self.heart.take();
        let stopped = thread::Builder::new().name("heart's end".to_owned()).spawn(move || drop(heart));
        if let Err(why) = stopped {
            tracing::warn!("heartbeats were stopped late: {why}");
        }
    }

    fn stop_program(&mut self) {
        self.kill(Signal::TERM);
        let (this, grace) = (self.this.clone(), self.settings.grace);
        tokio::spawn(async move {
            tokio::time::sleep(grace).await;
            if let Some(manager) = this.upgrade() {
                manager.lock().kill(Signal::KILL);
            }
        });
    }

    fn restart_program(&mut self) {
        tracing::info!("starting the program afresh");
        self.run_program();
    }

    /// The program learns who serves instead. It may go on for a moment, to tell its clients: its structures answer
    /// nothing any more.
    fn fence(&mut self) {
        let (term, by) = self.superseded.clone().unwrap_or_default();
        self.keep.shut_out(Some(ToLibrary::Fenced { term: term.0, by: &by }));
    }
}
