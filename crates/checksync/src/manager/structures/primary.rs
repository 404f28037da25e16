//! The primary's actor: the structures, the program that has them, and the machine that decides.
//!
//! One thread does everything, and whoever brings an event steps the machine himself, under one lock: what a change
//! waits for is never another thread of ours. Only heartbeats and the register have threads, and they post.
//!
//! Between the newest committed epoch and now stands the *log*: what was sent and is not acknowledged, then what waits.
//! A standby that comes back gets it from where it stands; once it is lost, because it grew too long or a snapshot took
//! its place, there is a full sync. Applying a part of it twice is harmless: changes say what is there afterwards.

mod acts;
mod log;
mod report;
mod succession;
mod sync;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use image::{CheckpointId, Member, Term};
use replica::primary::{AppExit, Ending, Output, Status};
use replica::{Answer, Ask, Fencing, Nanos, Primary, PrimaryAction, PrimaryConfig, PrimaryEvent};
use rustix::process::Signal;
use structure::{Cursor, Malformed};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use wire::{FromStandby, HeartbeatAnswer, Hello, RefusalCode, StandbyState};

use self::log::Log;
pub use self::succession::{Heir, Succession};
use super::PART_BYTES;
use super::awake::{Awake, stay_awake};
use super::keep::Keep;
use super::library::{Door, Keeper, Outbox};
use super::program::Program;
use crate::config::PrimarySettings;
use crate::manager::candidates::Candidates;
use crate::manager::heart::Heart;
use crate::manager::link::{LinkEvent, LinkSender};
use crate::manager::lock::Lock;
use crate::manager::primary::Outcome;
use crate::manager::register::RegisterDesk;
use crate::manager::{fresh_incarnation, now, signals, span};
use crate::status::{self, Board, Role};
use crate::verbs::attach::{end, lock_state};

/// Without changes an epoch is a sign of life only.
const INTERVAL: Nanos = Nanos::from_millis(1_000);
/// How long a program that was fenced may tell its clients so; and how long it may then take to end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What comes from another thread or task.
#[derive(Debug)]
enum Input {
    Heart { from: String, answer: HeartbeatAnswer },
    Register(Ask, Answer),
    Exited(AppExit),
    Stop,
    Signal(i32),
    Tick,
}

/// A session as the machine sees it.
#[derive(Debug)]
struct Session {
    number: u64,
    standby: Member,
    sender: LinkSender,
}

struct Actor {
    settings: PrimarySettings,
    command: Vec<OsString>,
    board: Board,
    me: Member,
    this: Weak<Manager>,
    machine: Primary,
    /// What the machine asked for and is not done, and until when it has to wait.
    actions: VecDeque<PrimaryAction>,
    wait_until: Nanos,
    /// What came of actions, for the machine.
    events: VecDeque<PrimaryEvent>,
    keep: Keep,
    log: Log,
    /// Captured, and not allowed to go yet.
    captured: Option<(CheckpointId, Bytes)>,
    output: Output,
    /// The permit has no end.
    is_open: bool,
    /// Without a register a permit never ends, and only this tells that the standby has not taken over: when the last
    /// heartbeat was sent that one answered.
    heard_at: Option<Nanos>,
    /// Reads may be answered until then, for all that was promised to a library.
    leased_until: Nanos,
    program: Option<Program>,
    door: Option<Door>,
    hello: Arc<Mutex<Hello>>,
    candidates: Arc<Candidates>,
    heart: Option<Heart>,
    register: Option<RegisterDesk>,
    dialling: Option<JoinHandle<()>>,
    session: Option<Session>,
    post: mpsc::UnboundedSender<Input>,
    status: Option<Status>,
    link_trouble: Option<String>,
    committed_at_ns: Option<u64>,
    /// Who serves instead of us, and in which term.
    superseded: Option<(Term, String)>,
    begun: bool,
    exited: bool,
    handed_over: bool,
    end_confirmed: bool,
    stops: u32,
    failure: Option<String>,
    ending: Option<Ending>,
}

struct Manager {
    actor: Mutex<Actor>,
    /// Told when changes may come again.
    room: Notify,
    /// Told when something may have come to its end.
    over: Notify,
    awake: Arc<Awake>,
}

/// Runs a primary manager until the program has ended, here or for good.
pub fn protect(settings: PrimarySettings, command: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let name = format!("primary-{}", settings.app);
    let _app = Lock::take(&status::run_dir()?, &name, &format!("app {}", settings.app))?;
    let _state = lock_state(settings.shared.state.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start tokio")?;
    let format = settings.shared.format;
    let outcome = runtime.block_on(run(settings, command, &name))?;
    end(outcome, format)
}

async fn run(settings: PrimarySettings, command: Vec<OsString>, name: &str) -> anyhow::Result<Outcome> {
    let shared = &settings.shared;
    let fencing = crate::config::fencing_name(shared.fencing);
    let board = Board::new(Role::Primary, shared.host(), fencing, None);
    let _socket = board.serve(name)?;
    let (post, inbox) = mpsc::unbounded_channel();
    let path = status::run_dir()?.join(format!("{name}.structures"));
    let manager = Manager::new(settings, command, board, post.clone())?;
    let door = Door::open(&path, &manager);
    let door = door.with_context(|| format!("cannot listen on {}", path.display()))?;
    manager.lock().door = Some(door);
    tokio::spawn(stay_awake(Arc::clone(&manager.awake)));
    let signalled = post.clone();
    signals::forward(move |number| signalled.send(number.map_or(Input::Stop, Input::Signal)).is_ok())?;
    manager.serve(inbox).await
}

impl Manager {
    fn new(
        settings: PrimarySettings,
        command: Vec<OsString>,
        board: Board,
        post: mpsc::UnboundedSender<Input>,
    ) -> anyhow::Result<Arc<Self>> {
        let me = Member::new(settings.shared.host(), fresh_incarnation());
        let machine = Primary::new(config(&settings, &me), now());
        Self::make(settings, command, board, post, me, (machine, Keep::default()))
    }

    fn make(
        settings: PrimarySettings,
        command: Vec<OsString>,
        board: Board,
        post: mpsc::UnboundedSender<Input>,
        me: Member,
        (machine, keep): (Primary, Keep),
    ) -> anyhow::Result<Arc<Self>> {
        let shared = &settings.shared;
        let posted = post.clone();
        let answer = move |ask, answer| drop(posted.send(Input::Register(ask, answer)));
        let patience = span(settings.timing.register_timeout());
        let register = shared
            .arbiter
            .as_ref()
            .map(|spec| RegisterDesk::open(spec, &shared.tls, &settings.app, patience, answer));
        let candidates = Arc::new(Candidates::new(settings.standbys.clone()));
        let heart = report::prepare_heart(&settings, &candidates, post.clone())
            .context("no heartbeats can be sent")?;
        let hello = Arc::new(Mutex::new(report::hello(&settings, &me, &command)));
        let register = register.transpose()?;
        Ok(Arc::new_cyclic(|this| Self {
            actor: Mutex::new(Actor {
                machine,
                me,
                this: this.clone(),
                actions: VecDeque::new(),
                wait_until: Nanos(0),
                events: VecDeque::new(),
                keep,
                log: Log::default(),
                captured: None,
                output: Output::Shut,
                is_open: false,
                heard_at: None,
                leased_until: Nanos(0),
                program: None,
                door: None,
                hello,
                candidates,
                heart: Some(heart),
                register,
                dialling: None,
                session: None,
                post,
                status: None,
                link_trouble: None,
                committed_at_ns: None,
                superseded: None,
                begun: false,
                exited: false,
                handed_over: false,
                end_confirmed: false,
                stops: 0,
                failure: None,
                ending: None,
                settings,
                command,
                board,
            }),
            room: Notify::new(),
            over: Notify::new(),
            awake: Arc::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Actor> {
        self.actor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn config(settings: &PrimarySettings, me: &Member) -> PrimaryConfig {
    let mut config = PrimaryConfig::new(me.clone(), settings.shared.fencing);
    config.timing = settings.timing;
    config.on_crash = settings.on_crash;
    config.interval = INTERVAL;
    config.consistency = settings.consistency;
    config.abandon_standby = settings.abandon_standby;
    config
}

impl Keeper for Manager {
    fn join(&self, number: u64, outbox: Arc<Outbox>) -> Result<(), String> {
        let mut actor = self.lock();
        if actor.exited || actor.ending.is_some() || !actor.begun {
            return Err("the structures are not served here".to_owned());
        }
        actor.keep.join(number, outbox)?;
        actor.step(PrimaryEvent::OutputWaits { all: true });
        Ok(())
    }

    fn leave(&self, number: u64) {
        self.lock().keep.leave(number);
    }

    fn piece(&self, cursor: Cursor, out: &mut Vec<u8>) -> Cursor {
        self.lock().keep.piece(cursor, PART_BYTES, out)
    }

    fn take(&self, number: u64, frames: &[u8]) -> Result<(), Malformed> {
        self.awake.stay();
        self.lock().take_changes(number, frames)
    }

    async fn room(&self) {
        while !self.lock().has_room() {
            self.room.notified().await;
        }
    }

    fn term(&self) -> u64 {
        self.lock().machine.reign().term.0
    }

    fn lease(&self) -> Duration {
        self.lock().lease()
    }

    fn lease_every(&self) -> Duration {
        Duration::from_nanos(self.lock().settings.timing.heartbeat().0)
    }
}

impl Actor {
    fn is_over(&self) -> bool {
        self.ending.is_some() || self.failure.is_some()
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Heart { from, answer } => self.take_answer(from, answer),
            Input::Register(ask, answer) => {
                if let Answer::Value(Some(register)) | Answer::Lost(Some(register)) = &answer
                    && register.owner != self.me
                {
                    self.superseded = Some((register.term, register.owner.to_string()));
                }
                self.step(PrimaryEvent::RegisterAnswer { ask, answer });
            }
            Input::Exited(exit) => self.program_exited(exit),
            Input::Stop => self.stop(),
            Input::Signal(signal) => {
                if let (Some(program), Some(signal)) = (&self.program, Signal::from_named_raw(signal)) {
                    program.signal(signal);
                }
            }
            Input::Tick => {
                self.step(PrimaryEvent::Tick);
                self.publish();
            }
        }
    }

    fn take_changes(&mut self, number: u64, frames: &[u8]) -> Result<(), Malformed> {
        let before = self.keep.taken();
        self.keep.take(number, frames)?;
        if self.keep.taken() == before {
            return Ok(());
        }
        self.log.wait(frames);
        match self.output {
            Output::Passing => {
                self.keep.release_all();
                self.log.released();
                if !self.log.has_room() && !self.log.is_syncing() {
                    self.lose_log();
                    self.settle();
                }
            }
            Output::Held | Output::Muted => self.step(PrimaryEvent::OutputWaits { all: true }),
            Output::Shut => {}
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.log.has_room() || self.exited || self.is_over()
    }

    /// What reads may rely on: never longer than the permit, and never without an end.
    fn lease(&mut self) -> Duration {
        let now = now();
        let until = match self.machine.permit() {
            replica::primary::Permit::Shut => now,
            replica::primary::Permit::Until(deadline) => deadline,
            replica::primary::Permit::Open => self.heard_at.unwrap_or(now) + self.settings.timing.permit(),
        };
        if self.output == Output::Shut {
            return Duration::ZERO;
        }
        self.leased_until = self.leased_until.max(until);
        Duration::from_nanos(until.since(now).0)
    }

    fn program_exited(&mut self, exit: AppExit) {
        self.exited = true;
        self.program = None;
        self.keep.shut_out(None);
        // Nobody is left to answer reads.
        self.leased_until = Nanos(0);
        tracing::info!("the program has ended: {}", crate::manager::primary::exit_text(exit));
        self.step(PrimaryEvent::AppExited(exit));
        self.make_room();
    }

    fn take_link(&mut self, number: u64, event: LinkEvent) {
        let current = self.session.as_ref().is_some_and(|session| session.number == number);
        match event {
            LinkEvent::Connected { standby, address: _, held, sender } => {
                tracing::info!(%standby, held = held.map(|id| id.to_string()), "a standby is connected");
                self.link_trouble = None;
                self.end_session();
                self.session = Some(Session { number, standby: standby.clone(), sender });
                if let Some(heart) = &self.heart {
                    heart.welcomed();
                }
                self.step(PrimaryEvent::PeerConnected { standby, held });
            }
            LinkEvent::Said(message) if current => self.take_said(message),
            LinkEvent::Ended { why } if current => {
                tracing::warn!("the standby is lost: {why}");
                self.lose_peer(why);
            }
            LinkEvent::Failed { why } => {
                if self.link_trouble.as_ref() != Some(&why) {
                    tracing::warn!("no standby: {why}");
                    self.link_trouble = Some(why);
                }
            }
            LinkEvent::Said(_) | LinkEvent::Ended { .. } => {} // Of a session that we let go.
        }
    }

    fn lose_peer(&mut self, why: String) {
        let standby = self.session.as_ref().map(|session| session.standby.clone());
        self.end_session();
        if let Some(standby) = standby {
            self.step(PrimaryEvent::PeerLost { standby, why });
        }
    }

    fn take_said(&mut self, message: FromStandby) {
        let Some(from) = self.session.as_ref().map(|session| session.standby.clone()) else { return };
        match message {
            FromStandby::Ack(id) => self.step(PrimaryEvent::Acked { from, id }),
            FromStandby::EpochRefused(refused) => {
                tracing::warn!(id = %refused.id, "the standby refused an epoch: {}", refused.why);
                self.step(PrimaryEvent::EpochRefused { from, id: refused.id, why: refused.why });
            }
            FromStandby::Progress(_) | FromStandby::Serving(_) => {}
            // It has forgotten the structures as it was told, or can take over no more.
            FromStandby::Refusal(refusal) if refusal.code == RefusalCode::Stopping && self.exited => {
                self.end_confirmed = true;
                self.step(PrimaryEvent::EndConfirmed { from });
            }
            FromStandby::Refusal(refusal) => {
                tracing::warn!("the standby ends the replication: {refusal}");
                self.lose_peer(refusal.to_string());
            }
        }
        self.tell_over();
    }

    fn take_answer(&mut self, from: String, answer: HeartbeatAnswer) {
        match answer.state {
            StandbyState::Serving | StandbyState::TakingOver => {
                if answer.term > self.machine.reign().term {
                    self.superseded = Some((answer.term, from.clone()));
                }
                self.step(PrimaryEvent::Superseded { term: answer.term, by: from });
            }
            StandbyState::Empty | StandbyState::Syncing | StandbyState::Ready | StandbyState::Stopping => {
                let session = self.session.as_ref().filter(|session| session.standby.name == from);
                let Some(from) = session.map(|session| session.standby.clone()) else { return };
                let (sent_at, held) = (Nanos(answer.sent_at_ns), answer.held);
                if self.settings.shared.fencing != Fencing::Register {
                    self.heard_at = self.heard_at.max(Some(sent_at));
                }
                self.step(PrimaryEvent::HeartbeatAnswered { from, sent_at, held });
            }
        }
    }

    fn stop(&mut self) {
        self.stops += 1;
        match (self.stops, self.begun) {
            (1, true) => self.step(PrimaryEvent::Shutdown),
            // The term never was ours, so the program has never begun.
            (1, false) => self.ending = Some(Ending::App(AppExit::Signal(libc::SIGTERM))),
            _ => self.kill(Signal::KILL),
        }
    }

    fn kill(&self, signal: Signal) {
        if let Some(program) = &self.program {
            program.signal(signal);
        }
    }

    /// Wakes whoever waits for room.
    fn make_room(&self) {
        if let Some(manager) = self.this.upgrade() {
            manager.room.notify_one();
        }
    }

    fn tell_over(&self) {
        if let Some(manager) = self.this.upgrade() {
            manager.over.notify_one();
        }
    }
}

impl Manager {
    /// Until the program has ended, here or for good.
    async fn serve(&self, mut inbox: mpsc::UnboundedReceiver<Input>) -> anyhow::Result<Outcome> {
        let tick = Duration::from_nanos(self.lock().settings.timing.heartbeat().0 / 2);
        let mut ticks = tokio::time::interval(tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        while !self.lock().is_over() {
            let input = tokio::select! {
                Some(input) = inbox.recv() => input,
                _ = ticks.tick() => Input::Tick,
                () = self.over.notified() => continue,
            };
            self.lock().take(input);
        }
        self.finish(inbox).await
    }

    /// The standby is told, and nothing is left behind.
    async fn finish(&self, mut inbox: mpsc::UnboundedReceiver<Input>) -> anyhow::Result<Outcome> {
        self.await_farewell(&mut inbox).await;
        self.await_program(&mut inbox).await;
        let mut actor = self.lock();
        if let Some(dialling) = actor.dialling.take() {
            dialling.abort();
        }
        actor.session = None;
        actor.door = None;
        actor.heart = None;
        Ok(match (actor.ending.take(), actor.failure.take()) {
            (Some(Ending::App(_)) | None, Some(why)) => Outcome::Failed(why),
            (Some(ending), _) => Outcome::Ended(ending),
            (None, None) => Outcome::Failed("the manager's inbox closed".to_owned()),
        })
    }

    /// A standby that was not told of a clean end would take silence for a death. With a register it needs no
    /// telling; otherwise heartbeats go on until it has answered.
    async fn await_farewell(&self, inbox: &mut mpsc::UnboundedReceiver<Input>) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let waits = || {
            let actor = self.lock();
            let told = !actor.handed_over && matches!(actor.ending, Some(Ending::App(_)));
            told && actor.session.is_some() && !actor.end_confirmed
        };
        while waits() {
            tokio::select! {
                () = self.over.notified() => (),
                _ = inbox.recv() => (),
                () = tokio::time::sleep_until(deadline) => {
                    return tracing::warn!("the standby has not confirmed the program's end");
                }
            }
        }
    }

    /// A program that was fenced, or that a failure left behind, has a while to end by itself.
    async fn await_program(&self, inbox: &mut mpsc::UnboundedReceiver<Input>) {
        let mut deadline = tokio::time::Instant::now() + LAST_WORDS;
        let mut signals = [Signal::TERM, Signal::KILL].into_iter();
        while self.lock().program.is_some() {
            tokio::select! {
                Some(input) = inbox.recv() => match input {
                    Input::Exited(_) => self.lock().program = None,
                    Input::Stop => self.lock().kill(Signal::KILL),
                    Input::Heart { .. } | Input::Register(..) | Input::Signal(_) | Input::Tick => {}
                },
                () = tokio::time::sleep_until(deadline) => {
                    self.lock().kill(signals.next().unwrap_or(Signal::KILL));
                    deadline += LAST_WORDS;
                }
            }
        }
    }
}
