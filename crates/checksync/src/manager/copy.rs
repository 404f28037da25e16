//! The standby's actor: one app's copy, its engine, and the machine that decides about a takeover.
//!
//! It lives from the first hello of an app until the app, taken over, has ended here. Inputs are taken one
//! by one on a thread of its own, so that neither another app nor the network is in front of a heartbeat.

mod drilling;
mod epochs;
mod from_store;
mod stream;
mod takeover;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use engine::{AppExit, AppStdio, Command, Engine, Event, RestoreReport};
use image::{CheckpointId, Incarnation, Member, Sync, Term};
use replica::primary::{AppExit as Exited, Ending, SyncCall};
use replica::standby::StandbyStatus;
use replica::{
    Answer, Ask, Fencing, Nanos, Progress, Reign, Standby, StandbyAction, StandbyConfig, StandbyEvent, Timing,
};
use tokio::runtime::Handle;
use tokio::sync::{mpsc as tokio_mpsc, oneshot};
use wire::{
    EngineState, EpochRefused, Exit, FromPrimary, FromStandby, Heartbeat, HeartbeatAnswer, Hello, Opening,
    Outgoing, PROTOCOL_VERSION, RELEASE, Refusal, RefusalCode, Silent, StandbyState, TlsFiles, TokenHash,
    Welcome,
};

use self::drilling::Drills;
pub use self::drilling::Schedule;
use self::stream::Intake;
use self::takeover::Plan;
use super::app_socket::AppSocket;
use super::arrived::Arrived;
use super::asker::{Asker, term_of};
use super::cell::{CellKit, GuardLine};
use super::drill;
use super::fence::Fence;
use super::network::CopyNetwork;
use super::output::Forwarding;
use super::policy::NoStoreHere;
use super::primary::{Outcome, exit_text};
use super::register::RegisterDesk;
use super::stages::Stages;
use super::store::{NamedBy, StoreSettings, StoreStatus};
use super::survivor::Note;
use super::ticks::Ticks;
use super::{engine_settings, exit_of, fresh_incarnation, now, span, wall_clock_ns};
use crate::mpsc;
use crate::status::{AppReport, Board, Role};

/// What an actor is made with.
#[derive(Debug, Clone)]
pub struct Setup {
    pub app: String,
    pub host: String,
    pub timing: Timing,
    pub fencing: Fencing,
    pub arbiter: Option<arbiter::ArbiterSpec>,
    pub tls: TlsFiles,
    pub state: Option<PathBuf>,
    /// Files of apps that this host lacks.
    pub shipped: Arc<engine::Cache>,
    pub promote_hook: Option<OsString>,
    pub pki: PathBuf,
    /// Of the app, once it was taken over.
    pub standbys: Vec<String>,
    /// Where it goes on to be kept then, instead of where its primary says.
    pub store: Option<StoreSettings>,
    /// Its output is to be held back then.
    pub gated: bool,
    /// The app's own, here.
    pub network: Option<gate::NetworkSpec>,
    pub host_facts: Bytes,
    pub drills: Schedule,
    pub board: Board,
    pub runtime: Handle,
}

#[derive(Debug)]
pub enum Input {
    Hello(Box<Hello>, Opening),
    /// From the session with this number.
    Said(u64, FromPrimary),
    StreamEnded(u64),
    Beat {
        from: String,
        beat: Heartbeat,
        answers: Outgoing<HeartbeatAnswer>,
    },
    Silent(Silent, oneshot::Sender<Result<(), Refusal>>),
    Engine(Event),
    Register(Ask, Answer),
    /// The app, which was taken over, calls `sync`.
    Sync(SyncCall, Option<Duration>),
    /// The daemon stops: an app that is served here gets this long to end.
    Stop {
        grace: Duration,
    },
    Drill(drill::Order),
    Drilled(Box<drill::Drilled>),
    /// The primary that the app was left to has ended, and with it the app.
    Over(Outcome),
}

/// What there is of the app on this host: it becomes the primary's after a takeover.
struct Body {
    engine: Arc<Engine>,
    guard: GuardLine,
    forwarding: Option<Forwarding>,
    fence: Fence,
    network: Option<CopyNetwork>,
    socket: AppSocket,
}

/// A page stream.
struct Session {
    number: u64,
    /// Queues without a bound of their own: one small message per epoch, which the primary limits.
    outgoing: tokio_mpsc::UnboundedSender<FromStandby>,
    token: Option<TokenHash>,
    reign: Reign,
}

pub struct Actor {
    setup: Setup,
    inbox: mpsc::Receiver<Input>,
    post: mpsc::Sender<Input>,
    machine: Standby,
    /// Until a primary has it.
    body: Option<Body>,
    /// The app's ends of its output, for the takeover.
    stdio: Option<AppStdio>,
    arrived: Arrived,
    succession: Plan,
    register: Option<RegisterDesk>,
    incarnation: u64,
    session: Option<Session>,
    /// The number of the newest session, whose frames the engine takes.
    current: Arc<Mutex<u64>>,
    /// The stream that may go on giving its guard's word, after the session has ended.
    armed: Option<(TokenHash, Reign)>,
    announced: HashMap<CheckpointId, Sync>,
    /// What the engine is taking in.
    receiving: Option<CheckpointId>,
    /// How often it was told to drop that and has not said that it has: until then it speaks of what is dropped.
    dropping: usize,
    held_since_ns: Option<u64>,
    stages: Stages,
    drills: Drills,
    /// When the first frame of what is taken in was there.
    header_at: Arc<Mutex<Option<Instant>>>,
    serving: Option<RestoreReport>,
    note: Option<Note>,
    /// When the primary was given up, and when the right to serve was won.
    suspected_at_ns: Option<u64>,
    won_at_ns: u64,
    status: StandbyStatus,
    /// The daemon stops as soon as the takeover is over.
    stopping: Option<Duration>,
    ended: bool,
    /// How it ended, of an app that was served here.
    outcome: Option<Outcome>,
    /// It was made for this takeover alone.
    only_to_go_on: bool,
}

impl Actor {
    /// On failure nothing of it is left.
    pub fn new(setup: Setup) -> anyhow::Result<(Self, mpsc::Sender<Input>)> {
        let (post, inbox) = mpsc::channel();
        let fence = Fence::raise(&setup.app, setup.fencing)?;
        let create = |spec| CopyNetwork::create(spec, &setup.app, fence.handle());
        let network = setup.network.clone().map(create).transpose()?;
        let new = if setup.gated { CellKit::gated } else { CellKit::new };
        let mut kit = new(fence.handle()).context("cannot prepare a cell")?;
        let namespace = network.as_ref().map(CopyNetwork::namespace).transpose();
        kit.spec.network = namespace.context("cannot give the copy its network")?;
        kit.spec.cgroup = fence.directory();
        let answered = post.clone();
        let patience = span(setup.timing.register_timeout());
        let answer = move |ask, answer| drop(answered.send(Input::Register(ask, answer)));
        let register = setup
            .arbiter
            .as_ref()
            .map(|spec| RegisterDesk::open(spec, &setup.tls, &setup.app, patience, answer));
        let (said, called) = (post.clone(), post.clone());
        let succession = Plan::new(Box::new(move |event| drop(said.send(Input::Engine(event)))));
        let on_sync = Box::new(move |call, patience| drop(called.send(Input::Sync(call, patience))));
        let socket =
            AppSocket::new(&setup.app, &setup.host, on_sync).context("cannot hear calls of the app")?;
        let mut settings = engine_settings(&setup.app, 0);
        settings.manager = Some(socket.for_engine());
        settings.shipped = Some(Arc::clone(&setup.shipped));
        let engine = Engine::stand_by(settings, kit.spec, succession.events());
        let log = setup.state.as_ref().map(|state| state.join(format!("{}.log", setup.app)));
        let incarnation = fresh_incarnation();
        let config = StandbyConfig {
            me: Member::new(&setup.host, incarnation),
            timing: setup.timing,
            fencing: setup.fencing,
        };
        let stages = Stages::default();
        let drills = Drills::new(&setup);
        setup.board.set_stages(&setup.app, stages.clone());
        let body = Body {
            engine: Arc::new(engine.context("cannot start an engine")?),
            guard: kit.guard,
            forwarding: Some(Forwarding::start(kit.streams, log).context("cannot open the app's log")?),
            fence,
            network,
            socket,
        };
        let actor = Self {
            machine: Standby::new(config),
            body: Some(body),
            stdio: Some(kit.stdio),
            succession,
            arrived: Arrived::default(),
            register: register.transpose()?,
            inbox,
            post: post.clone(),
            setup,
            incarnation,
            session: None,
            current: Arc::default(),
            armed: None,
            announced: HashMap::new(),
            receiving: None,
            dropping: 0,
            held_since_ns: None,
            stages,
            drills,
            header_at: Arc::default(),
            serving: None,
            note: None,
            suspected_at_ns: None,
            won_at_ns: 0,
            status: StandbyStatus::Empty,
            stopping: None,
            ended: false,
            outcome: None,
            only_to_go_on: false,
        };
        Ok((actor, post))
    }

    pub fn run(mut self) -> Option<Outcome> {
        const PRIORITY: i32 = 15;
        if let Err(why) = sys::task::become_real_time(PRIORITY) {
            tracing::warn!("no real-time priority for the standby, a busy host may take over wrongly: {why}");
        }
        let tick = Duration::from_nanos(self.setup.timing.heartbeat().0 / 2);
        let mut ticks = Ticks::every(tick, Instant::now());
        while !self.ended {
            match self.inbox.recv_timeout(ticks.next().saturating_duration_since(Instant::now())) {
                Ok(input) => self.take(input),
                Err(_) if ticks.take(Instant::now()) => {
                    self.step(StandbyEvent::Tick, &mut Asker::default());
                    self.drill_if_due();
                }
                Err(_) => {}
            }
            self.ended |= self.stopping.is_some() && self.may_stop();
        }
        let outcome = self.outcome.take();
        self.finish();
        outcome
    }

    /// A term that is ours, or that a question under way may make ours, has to come to life: its app is nowhere else.
    fn may_stop(&self) -> bool {
        match self.status {
            StandbyStatus::Promoting { .. } | StandbyStatus::Serving { .. } => false,
            StandbyStatus::Claiming { .. } => !self.machine.is_asking(),
            StandbyStatus::Empty
            | StandbyStatus::Receiving
            | StandbyStatus::Following
            | StandbyStatus::CutOff { .. }
            | StandbyStatus::Suspecting(_)
            | StandbyStatus::Discarded(_) => true,
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Hello(hello, opening) => self.take_hello(hello, opening),
            Input::Said(number, message) if self.is_current(number) => self.take_said(message),
            Input::StreamEnded(number) if self.is_current(number) => {
                self.session = None;
                self.step_alone(StandbyEvent::StreamEnded);
            }
            Input::Said(..) | Input::StreamEnded(_) => {} // Of a stream that another one replaced.
            Input::Beat { from, beat, answers } => self.take_beat(&from, beat, answers),
            Input::Silent(silent, answer) => {
                let taken = self.take_word(&silent);
                // The guard may be gone; its word counts.
                let _ = answer.send(taken);
            }
            Input::Engine(event) => self.take_engine(event),
            Input::Register(ask, answer) => self.step_alone(StandbyEvent::RegisterAnswer { ask, answer }),
            Input::Sync(call, patience) => self.take_sync(call, patience),
            Input::Stop { grace } => self.stop(grace),
            Input::Drill(order) => self.take_drill(order),
            Input::Drilled(drilled) => self.drilled(*drilled),
            Input::Over(outcome) => self.end_with(outcome),
        }
    }

    fn stop(&mut self, grace: Duration) {
        if self.succession.stop() {
            return;
        }
        if self.serving.is_some() {
            return self.command(Command::Stop { grace });
        }
        self.stopping = Some(grace);
    }

    fn is_current(&self, number: u64) -> bool {
        self.session.as_ref().is_some_and(|session| session.number == number)
    }

    fn take_hello(&mut self, hello: Box<Hello>, opening: Opening) {
        let primary = Member::new(&hello.primary_name, hello.incarnation);
        let reign = Reign { term: hello.term, incarnation: primary.incarnation };
        let mut asker = Asker { opening: Some((hello, opening)), ..Asker::default() };
        self.step(StandbyEvent::PrimaryConnected { primary, reign }, &mut asker);
    }

    fn take_said(&mut self, message: FromPrimary) {
        let Some(session) = &mut self.session else { return };
        let reign = session.reign;
        match message {
            FromPrimary::GuardArmed(armed) => {
                session.token = Some(armed.token_hash);
                self.armed = Some((armed.token_hash, reign));
            }
            FromPrimary::AppExited { how: Exit::Signal(signal), silenced: true } => {
                tracing::warn!(app = self.setup.app, "the app died by signal {signal} on its primary");
                self.step_alone(StandbyEvent::AppCrashed { reign, signal });
            }
            FromPrimary::AppExited { how, silenced: _ } => {
                let exit = match how {
                    Exit::Code(code) => Exited::Code(code),
                    Exit::Signal(signal) => Exited::Signal(signal),
                };
                self.step_alone(StandbyEvent::AppEnded { reign, exit });
            }
            FromPrimary::HandedOver => {
                tracing::warn!(app = self.setup.app, "the app is handed over, as an operator asked");
                self.step_alone(StandbyEvent::HandedOver { reign });
            }
            FromPrimary::Arrived(packets) => self.arrived.keep(packets),
            FromPrimary::Frames(_) => unreachable!("frames go to the engine by themselves"),
            FromPrimary::Changes(_) => tracing::warn!("changes of structures came for the copy of a process"),
        }
    }

    fn take_beat(&mut self, from: &str, beat: Heartbeat, answers: Outgoing<HeartbeatAnswer>) {
        let followed = self.machine.primary().filter(|(member, reign)| {
            // A beat that says `Starting` comes from a manager that was never welcomed.
            member.name == from && reign.term == beat.term && beat.engine != EngineState::Starting
        });
        let stranger = Reign { term: beat.term, incarnation: Incarnation(0) };
        let reign = followed.map_or(stranger, |(_, reign)| reign);
        let progress = Progress {
            captured: beat.newest_captured,
            committed: None,
            stalled: beat.engine == EngineState::Stuck,
        };
        let sent_at = Nanos(beat.sent_at_ns);
        let mut asker = Asker { beat: Some((beat, answers)), ..Asker::default() };
        self.step(StandbyEvent::Heartbeat { reign, sent_at, progress }, &mut asker);
    }

    fn take_word(&mut self, silent: &Silent) -> Result<(), Refusal> {
        let armed =
            self.armed.filter(|(hash, reign)| hash.matches(&silent.token) && reign.term == silent.term);
        let Some((_, reign)) = armed else {
            return Err(Refusal {
                code: RefusalCode::Guard,
                why: format!("no guard with this token is armed for {}", self.setup.app),
                way_out: "nothing is to be done: the app was taken over or has ended".to_owned(),
            });
        };
        tracing::warn!(
            app = self.setup.app,
            "the primary's manager is dead and its copy silent, says its guard"
        );
        self.step_alone(StandbyEvent::Silenced { reign });
        Ok(())
    }

    fn command(&self, command: Command) {
        if let Some(body) = &self.body {
            body.engine.send(command);
        }
    }

    fn take_engine(&mut self, event: Event) {
        // It was said just before the primary began to listen.
        let Some(event) = self.succession.pass_on(event) else { return };
        match event {
            Event::HalfDropped => self.dropping = self.dropping.saturating_sub(1),
            Event::EpochBegins { .. } | Event::Prepared { .. } | Event::Refused { .. }
                if self.dropping > 0 =>
            {
                tracing::debug!(?event, "of what is being dropped");
            }
            Event::EpochBegins { id, sync } => {
                // It has left what was before.
                self.receiving = None;
                self.announced.insert(id, sync);
                // The engine keeps the old copy until the new one is whole, whoever may take over meanwhile.
                self.step_alone(StandbyEvent::EpochBegins { id, sync, eligible: true });
                self.announced.remove(&id);
            }
            Event::Prepared { id } => {
                let prepared_at = Instant::now();
                self.receiving = None;
                self.step_alone(StandbyEvent::Prepared { id });
                self.note_times(prepared_at);
                // Not if it was refused while it was being prepared.
                if self.machine.held() == Some(id) {
                    self.held_since_ns = Some(now().0);
                    self.arrived.covered_by(id);
                }
                self.publish();
            }
            Event::Refused { id, why, lacks } => {
                self.receiving = None;
                tracing::warn!(app = self.setup.app, %id, "refused an epoch: {why}");
                self.say(FromStandby::EpochRefused(EpochRefused { id, why, lacks }));
            }
            Event::Applied { id } => self.step_alone(StandbyEvent::Applied { id }),
            Event::ApplyFailed { id, why } => self.step_alone(StandbyEvent::ApplyFailed { id, why }),
            Event::Restored(report) => self.restored(report),
            Event::RestoreFailed { why } => {
                tracing::error!(app = self.setup.app, "the takeover failed: {why}");
                if let Some(network) = self.body.as_ref().and_then(|body| body.network.as_ref()) {
                    network.give_up();
                }
                self.step_alone(StandbyEvent::RestoreFailed { why: why.clone() });
                if self.stopping.is_some() || self.only_to_go_on {
                    self.end_with(Outcome::Failed(format!("the takeover failed: {why}")));
                }
            }
            Event::Exited(exit) => self.app_exited(exit),
            Event::Failed { why } => tracing::error!(app = self.setup.app, "{why}"),
            Event::Ended => self.ended = true,
            Event::ChildSeen { .. } | Event::ChildGone { .. } | Event::Executed | Event::Dying { .. } => {}
            Event::Ready { .. }
            | Event::Captured { .. }
            | Event::CaptureFailed { .. }
            | Event::Uncovered { .. }
            | Event::Progress(_) => {
                tracing::warn!(?event, "a copy's engine spoke of captures");
            }
        }
    }

    fn note_times(&mut self, prepared_at: Instant) {
        let header_at = self.header_at.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(header_at) = header_at {
            self.stages.note("receive", prepared_at.saturating_duration_since(header_at));
            self.stages.note("answer", prepared_at.elapsed());
        }
    }

    fn app_exited(&mut self, exit: AppExit) {
        let text = exit_text(exit_of(exit));
        tracing::info!(app = self.setup.app, "the app, which was taken over, has ended: {text}");
        self.end_with(Outcome::Ended(Ending::App(exit_of(exit))));
    }

    fn step_alone(&mut self, event: StandbyEvent) {
        self.step(event, &mut Asker::default());
    }

    fn step(&mut self, event: StandbyEvent, asker: &mut Asker) {
        let mut actions = Vec::new();
        self.machine.step(now(), event, &mut actions);
        for action in actions {
            self.act(action, asker);
        }
    }

    fn act(&mut self, action: StandbyAction, asker: &mut Asker) {
        match action {
            StandbyAction::Welcome { held } => {
                if let Some((hello, opening)) = asker.opening.take() {
                    self.welcome(&hello, opening, held);
                }
            }
            StandbyAction::Refuse(refusal) => {
                asker.refuse(&self.setup.app, &refusal, self.term(), self.serving.is_some());
            }
            StandbyAction::Receive { id } => self.receive(id),
            StandbyAction::RefuseEpoch { id, why } => self.refuse_epoch(id, &why),
            StandbyAction::EndStream { why } => self.end_stream(&why),
            StandbyAction::Ack { id } => self.say(FromStandby::Ack(id)),
            StandbyAction::Apply { id } => self.command(Command::Apply(id)),
            StandbyAction::DropHalf { id } => self.drop_half(id),
            StandbyAction::AnswerHeartbeat { sent_at: _, held } => {
                let state = if held.is_some() { StandbyState::Ready } else { StandbyState::Syncing };
                asker.answer(self.term(), held, state);
            }
            StandbyAction::AskArbiter { ask, question } => {
                if let Some(register) = &self.register {
                    register.ask(ask, question);
                }
            }
            StandbyAction::Promote { right, from } => self.promote(&right, from),
            StandbyAction::Discard(why) => self.discard(&why),
            StandbyAction::ConfirmEnd { exit: _ } => self.say(FromStandby::Refusal(Refusal {
                code: RefusalCode::Stopping,
                why: "the app has ended, and its copy is gone".to_owned(),
                way_out: "nothing is to be done".to_owned(),
            })),
            StandbyAction::Status(status) => self.say_status(status),
        }
    }

    /// Lets the stream in.
    fn welcome(&mut self, hello: &Hello, opening: Opening, held: Option<CheckpointId>) {
        let (outgoing, incoming) = opening.welcome(Welcome {
            protocol_version: PROTOCOL_VERSION,
            release: RELEASE.to_owned(),
            standby_name: self.setup.host.clone(),
            incarnation: self.incarnation,
            held,
            host_facts: self.setup.host_facts.clone(),
        });
        tracing::info!(app = self.setup.app, primary = hello.primary_name, "a primary is connected");
        self.succession.learn(hello);
        self.say_store();
        let number = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            *current += 1;
            *current
        };
        self.drop_all();
        let (queue, queued) = tokio_mpsc::unbounded_channel();
        self.setup.runtime.spawn(stream::write(queued, outgoing));
        let intake = Intake {
            number,
            current: Arc::clone(&self.current),
            engine: self.body.as_ref().map(|body| Arc::downgrade(&body.engine)).unwrap_or_default(),
            post: self.post.clone(),
            header_at: Arc::clone(&self.header_at),
        };
        self.setup.runtime.spawn(intake.read(incoming));
        let reign = Reign { term: hello.term, incarnation: Incarnation(hello.incarnation) };
        self.armed = hello.guard_token_hash.map(|hash| (hash, reign));
        self.session = Some(Session { number, outgoing: queue, token: hello.guard_token_hash, reign });
    }

    /// Where checkpoints would go from here, or why they would not.
    fn say_store(&self) {
        let status = match self.store() {
            Some(Ok(store)) => StoreStatus::at_rest(store.location.to_string(), store.named_by, None),
            Some(Err(NoStoreHere { location, why })) => {
                StoreStatus::at_rest(location, NamedBy::Primary, Some(why))
            }
            None => return self.setup.board.remove_store(&self.setup.app),
        };
        self.setup.board.set_store(&self.setup.app, status);
    }

    /// The one that is served here, or followed.
    fn term(&self) -> Option<Term> {
        term_of(&self.status, &self.machine)
    }

    fn say(&self, message: FromStandby) {
        if let Some(session) = &self.session {
            // If it has ended, that is told by an input.
            let _ = session.outgoing.send(message);
        }
    }

    fn say_status(&mut self, status: StandbyStatus) {
        tracing::info!(app = self.setup.app, "{}", status_words(&status).0);
        if matches!(status, StandbyStatus::Claiming { .. } | StandbyStatus::Promoting { .. }) {
            self.drills.call_off();
        }
        match status {
            StandbyStatus::Suspecting(_) | StandbyStatus::Claiming { .. } => {
                self.suspected_at_ns.get_or_insert_with(wall_clock_ns);
            }
            StandbyStatus::Empty
            | StandbyStatus::Receiving
            | StandbyStatus::Following
            | StandbyStatus::CutOff { .. }
            | StandbyStatus::Discarded(_) => self.suspected_at_ns = None,
            StandbyStatus::Promoting { .. } | StandbyStatus::Serving { .. } => (),
        }
        self.status = status;
        self.publish();
    }

    fn publish(&self) {
        if self.body.is_none() {
            return; // The primary speaks for the app.
        }
        let (state, why_not) = status_words(&self.status);
        let serving = self.serving.is_some();
        let age_ns = self.held_since_ns.map(|at| now().0.saturating_sub(at));
        self.setup.board.set(AppReport {
            app: self.setup.app.clone(),
            role: if serving { Role::Primary } else { Role::Standby },
            state: state.to_owned(),
            protected: self.status == StandbyStatus::Following,
            why_not,
            term: self.term().map(|term| term.0),
            epoch: self.machine.held().map(|id| id.epoch.0),
            lag_ms: age_ns.filter(|_| !serving).map(|ns| ns / 1_000_000),
            pause_us: None,
            stages_us: BTreeMap::new(), // The board reads them when it is asked.
            store: None,
            unreplicated_files: Vec::new(),
            drill: None,
            app_pid: self.serving.map(|report| report.pid),
            peer: self.machine.primary().map(|(member, _)| member.name.clone()),
            commit_on: None,
            standbys: Vec::new(),
        });
    }

    fn finish(self) {
        let (app, board) = (self.setup.app, self.setup.board);
        drop(self.stdio);
        if let Some(body) = self.body {
            // A reader may hold the engine for one more frame; then it ends there.
            drop(body.engine);
            if let Some(forwarding) = body.forwarding {
                forwarding.finish();
            }
            body.fence.take_down();
        }
        board.remove(&app);
    }
}

/// What a host lacks that has just taken over.
const UNPROTECTED: &str = "unprotected: it has no standby";

fn status_words(status: &StandbyStatus) -> (&'static str, Option<String>) {
    match status {
        StandbyStatus::Empty => ("empty", Some("no checkpoint has come yet".to_owned())),
        StandbyStatus::Receiving => ("receiving", Some("the first full sync is under way".to_owned())),
        StandbyStatus::Following => ("following", None),
        StandbyStatus::CutOff { why } => ("cut-off", Some(format!("cannot take over: {why}"))),
        StandbyStatus::Suspecting(why) => ("suspecting", Some(why.to_string())),
        StandbyStatus::Claiming { trouble } => ("claiming", trouble.clone()),
        StandbyStatus::Promoting { .. } => ("promoting", Some("the copy is being restored".to_owned())),
        StandbyStatus::Serving { .. } => ("serving", Some(UNPROTECTED.to_owned())),
        StandbyStatus::Discarded(why) => ("discarded", Some(why.to_string())),
    }
}
