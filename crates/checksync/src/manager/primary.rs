//! The primary's actor: one app, its engine, its gate, and the machine that decides.
//!
//! All that happens comes in through one inbox; [`Actor::act`] does what the machine answers, in order. The
//! actor ends when the machine ends the pair, and leaves nothing behind: no cell, no cgroup, no thread.

mod ending;
mod epochs;
mod moving;
mod outreach;
mod peer;
mod report;
mod restarts;
mod seats;
mod storing;
mod succession;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use engine::{Attach, Command, Connections, Engine, Event, Launch};
use gate::TapState;
use image::{CheckpointId, Member, Term};
use replica::primary::{AppExit, Ending, Permit, Status, SyncCall};
use replica::{Answer, Ask, Primary, PrimaryAction, PrimaryConfig, PrimaryEvent};
use rustix::process::Pid;
use tokio::runtime::Handle;
use wire::{GuardToken, HeartbeatAnswer, Hello};

use self::moving::Moving;
use self::outreach::Outreach;
use self::restarts::Restarts;
use self::seats::{Seat, Seats};
use self::storing::Stores;
pub use self::storing::life_of;
pub use self::succession::{ENGINE, Estate, Succession};
use super::app_socket::AppSocket;
use super::cell::{CellKit, GuardLine};
use super::control::{Listener, Order as Asked};
use super::fence::Fence;
use super::heart::Heart;
use super::host::HostFacts;
use super::link::{self, Dialling, LinkEvent};
use super::network::AppNetwork;
use super::output::Forwarding;
use super::register::RegisterDesk;
use super::stages::Passage;
use super::store::{StoreFeed, StoreNews, StoreSeat};
use super::survivor::Note;
use super::{engine_settings, exit_of, fresh_incarnation, now};
use crate::config::{PrimarySettings, nanos};
use crate::guard::{Arm, Order};
use crate::mpsc;
use crate::progress::Progress;
use crate::status::{Board, PauseRing};

/// What is protected.
#[derive(Debug, Clone)]
pub enum Target {
    Command {
        program: OsString,
        arguments: Vec<OsString>,
    },
    Process(i32),
    /// A copy that was taken over: nobody here has started it.
    Copy,
}

#[derive(Debug)]
pub enum Input {
    /// Of the engine with this number: a restarted app has another.
    Engine(u64, Event),
    /// Of this seat's session.
    Link(usize, u64, LinkEvent),
    Heart {
        seat: usize,
        from: String,
        answer: HeartbeatAnswer,
    },
    Register(Ask, Answer),
    /// Output of the app waits for an epoch.
    OutputWaits(gate::Waiting),
    /// The app calls `sync`, with how long it will wait for protection.
    Sync(SyncCall, Option<Duration>),
    /// What came in for the app.
    Arrived(gate::Batch),
    /// Of a store that has to hold each epoch.
    Store(StoreNews),
    /// The engine has let go of this full sync's sink.
    SyncOver(CheckpointId),
    /// This one took a full sync so slowly that the others had to wait.
    TooSlow(Member),
    /// The operator asks us to stop.
    Stop,
    /// The operator asks for something else, and hears what comes of it.
    Order(Asked, Listener),
    /// Nobody listens any more.
    Withdrawn,
    /// A signal that is the app's.
    Signal(i32),
}

/// How it ended, for the exit code.
#[derive(Debug)]
pub enum Outcome {
    Ended(Ending),
    /// The app never began, or can't be started.
    Failed(String),
}

pub struct Actor {
    settings: PrimarySettings,
    target: Target,
    board: Board,
    runtime: Handle,
    inbox: mpsc::Receiver<Input>,
    post: mpsc::Sender<Input>,
    machine: Primary,
    me: Member,
    fence: Fence,
    engine: Option<Arc<Engine>>,
    /// After the engine, whose app is in it.
    network: Option<AppNetwork>,
    /// What an app in a cell of ours may call us on.
    socket: Option<AppSocket>,
    engines: u64,
    guard: Option<GuardLine>,
    token: GuardToken,
    hello: Arc<Mutex<Hello>>,
    forwarding: Option<Forwarding>,
    register: Option<RegisterDesk>,
    seats: Seats,
    /// The term is ours, and the app was told to begin.
    begun: bool,
    /// The full sync that the engine owes an answer for.
    syncing: Option<CheckpointId>,
    /// Ends the full sync under way.
    full_sync_unwanted: Arc<AtomicBool>,
    /// What the capture under way, or the last one, builds on.
    parent: Option<CheckpointId>,
    captured: Option<(CheckpointId, Vec<Bytes>)>,
    /// The last frame of a full sync, until it may go.
    end_frame: Arc<Mutex<Option<Bytes>>>,
    /// When each captured checkpoint's state was true, until everybody has it.
    frozen: VecDeque<(CheckpointId, u64)>,
    committed_at_ns: Option<u64>,
    pauses: PauseRing,
    passage: Passage,
    store: Option<StoreFeed>,
    /// The store instead, where that commits.
    store_seat: Option<StoreSeat>,
    /// The newest that the store was given.
    stored: Option<CheckpointId>,
    /// Of a full sync that is under way.
    progress: Option<Progress>,
    status: Option<Status>,
    app_pid: Option<i32>,
    /// For whoever comes after us, should we die.
    note: Option<Note>,
    exited: bool,
    restarts: Restarts,
    /// The standby was told to take over.
    handed_over: bool,
    moving: Moving,
    /// Files that the app writes to, and that nobody replicates.
    uncovered: Vec<String>,
    stops: u32,
    failure: Option<String>,
    ending: Option<Ending>,
}

impl Actor {
    /// Makes the app, which does not run yet. On failure nothing of it is left.
    pub fn new(
        settings: PrimarySettings,
        target: Target,
        board: Board,
        runtime: Handle,
    ) -> anyhow::Result<Self> {
        let me = Member::new(settings.shared.host(), fresh_incarnation());
        if let (Target::Process(pid), Some(_)) = (&target, &settings.network) {
            anyhow::bail!(
                "process {pid} stays in the network that it is in, so it can get no address of its own; start the \
                 program with `checksync run`, or attach without --address and --consistency strong"
            );
        }
        let fencing = settings.shared.fencing;
        let fence = match &target {
            Target::Command { .. } | Target::Copy => Fence::raise(&settings.app, fencing)?,
            Target::Process(pid) => Fence::around(*pid, fencing)?,
        };
        for directory in &settings.state_dirs {
            files::finish_replacing(directory)?;
        }
        let facts = HostFacts::read().context("cannot look at this host")?;
        // Before the engine: it is to find no thread that locks memory while it tries the kernel out.
        let outreach = Outreach::open(&settings, &me, &facts)?;
        let create = |spec| AppNetwork::create(spec, &settings.app, fence.handle());
        let network = settings.network.clone().map(create).transpose()?;
        let machine = Primary::new(config(&settings, &me), now());
        let mut actor = Self::make(settings, target, me, machine, outreach, fence, board, runtime);
        actor.network = network;
        actor.board.set_stages(&actor.settings.app, actor.passage.stages());
        let stores = Stores::open(&actor.settings, &actor.me, &actor.post)?;
        actor.keep(stores);
        actor.hold_back()?;
        actor.open_socket()?;
        actor.start_engine()?;
        Ok(actor)
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "each is one of its parts, and there is one caller for each kind"
    )]
    fn make(
        settings: PrimarySettings,
        target: Target,
        me: Member,
        machine: Primary,
        outreach: Outreach,
        fence: Fence,
        board: Board,
        runtime: Handle,
    ) -> Self {
        let Outreach { post, inbox, register, seats, hello } = outreach;
        Self {
            settings,
            target,
            board,
            runtime,
            inbox,
            post,
            machine,
            me,
            fence,
            engine: None,
            network: None,
            socket: None,
            engines: 0,
            guard: None,
            token: GuardToken::random(),
            hello,
            forwarding: None,
            register,
            seats,
            begun: false,
            syncing: None,
            full_sync_unwanted: Arc::default(),
            parent: None,
            captured: None,
            end_frame: Arc::default(),
            frozen: VecDeque::new(),
            committed_at_ns: None,
            pauses: PauseRing::default(),
            passage: Passage::default(),
            store: None,
            store_seat: None,
            stored: None,
            progress: None,
            status: None,
            app_pid: None,
            note: None,
            exited: false,
            restarts: Restarts::default(),
            handed_over: false,
            moving: Moving::default(),
            uncovered: Vec::new(),
            stops: 0,
            failure: None,
            ending: None,
        }
    }

    fn open_socket(&mut self) -> anyhow::Result<()> {
        if matches!(self.target, Target::Process(_)) {
            return Ok(()); // It is in no cell, where it would find the socket again.
        }
        let post = self.post.clone();
        let on_sync = Box::new(move |call, patience| drop(post.send(Input::Sync(call, patience))));
        let (app, host) = (&self.settings.app, self.settings.shared.host());
        self.socket = Some(AppSocket::new(app, host, on_sync).context("cannot hear calls of the app")?);
        Ok(())
    }

    fn hold_back(&mut self) -> anyhow::Result<()> {
        let Some(network) = self.network.as_mut().filter(|_| self.settings.is_strong()) else {
            return Ok(());
        };
        outreach::hold_back(network, TapState::Closed, &self.post)
    }

    /// Where signals go.
    pub fn post(&self) -> mpsc::Sender<Input> {
        self.post.clone()
    }

    /// Runs the pair to its end.
    pub fn run(mut self) -> Outcome {
        // Above the engine's: clients wait for what is decided here, and it is decided at once.
        const PRIORITY: i32 = 15;
        if self.settings.is_strong()
            && let Err(why) = sys::task::become_real_time(PRIORITY)
        {
            tracing::warn!("no real-time priority for the manager, clients of a busy app wait longer: {why}");
        }
        let tick = (self.settings.timing.heartbeat().0 / 2).min(nanos(self.settings.interval).0 / 4);
        let tick = Duration::from_nanos(tick.max(500_000));
        let mut next_tick = Instant::now();
        while self.ending.is_none() && !self.hopeless() {
            let mut wait = next_tick.saturating_duration_since(Instant::now());
            if let Some(at) = self.machine.wake_at() {
                wait = wait.min(Duration::from_nanos(at.since(now()).0));
            }
            if let Some(at) = self.restarts.due_at() {
                wait = wait.min(at.saturating_duration_since(Instant::now()));
            }
            match self.inbox.recv_timeout(wait) {
                Ok(input) => self.take(input),
                Err(_) if Instant::now() < next_tick => self.step(PrimaryEvent::Tick),
                Err(_) => {
                    next_tick = Instant::now() + tick;
                    self.step(PrimaryEvent::Tick);
                    self.look_at_the_store();
                    self.publish();
                }
            }
            self.restart_if_due();
        }
        self.finish()
    }

    /// The app could not be started, and there is nothing to protect.
    fn hopeless(&self) -> bool {
        self.failure.is_some() && self.app_pid.is_none()
    }

    fn start_engine(&mut self) -> anyhow::Result<()> {
        self.engines += 1;
        let (number, post) = (self.engines, self.post.clone());
        let events = Box::new(move |event| drop(post.send(Input::Engine(number, event))));
        let mut settings = engine_settings(&self.settings.app, self.settings.shadow_bytes);
        settings.manager = self.socket.as_ref().map(AppSocket::for_engine);
        settings.state_dirs = self.settings.state_dirs.clone();
        settings.shared_dirs = self.settings.shared_dirs.clone();
        if self.settings.is_strong() {
            settings.connections = Connections::Keep;
            settings.barrier = self.network.as_ref().and_then(AppNetwork::barrier);
        }
        let engine = match self.target.clone() {
            Target::Command { program, arguments } => {
                let new = if self.settings.is_strong() { CellKit::gated } else { CellKit::new };
                let mut kit = new(self.fence.handle()).context("cannot prepare a cell")?;
                kit.spec.socket = self.socket.is_some();
                let namespace = self.network.as_ref().map(AppNetwork::namespace).transpose();
                kit.spec.network = namespace.context("cannot give the app its network")?;
                let log = self.settings.shared.state.as_ref();
                let log = log.map(|state| state.join(format!("{}.log", self.settings.app)));
                self.forwarding =
                    Some(Forwarding::start(kit.streams, log).context("cannot open the app's log")?);
                self.put_in_charge(kit.guard);
                let launch = Launch {
                    cell: kit.spec,
                    program,
                    arguments,
                    directory: None,
                    stdio: kit.stdio,
                    cgroup: self.fence.directory(),
                };
                Engine::launch(settings, launch, events)
            }
            Target::Process(pid) => {
                let process = Pid::from_raw(pid).context("there is no process 0")?;
                let guard = GuardLine::beside(process, self.fence.handle());
                self.put_in_charge(guard.with_context(|| format!("cannot guard process {pid}"))?);
                Engine::attach(settings, Attach { pid }, events)
            }
            Target::Copy => anyhow::bail!("a copy that was taken over can't be started afresh"),
        };
        self.engine = Some(Arc::new(engine.context("cannot start the engine")?));
        Ok(())
    }

    fn hello(&self) -> std::sync::MutexGuard<'_, Hello> {
        self.hello.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Engine(number, event) if number == self.engines => self.take_engine(event),
            Input::Engine(..) => {} // Of an app that was restarted.
            Input::Link(seat, number, event) => self.take_link(seat, number, event),
            Input::Heart { seat, from, answer } => self.take_answer(seat, from, answer),
            Input::Register(ask, answer) => self.step(PrimaryEvent::RegisterAnswer { ask, answer }),
            Input::OutputWaits(gate::Waiting { since, all }) => {
                self.passage.output_waits(since);
                self.step(PrimaryEvent::OutputWaits { all });
            }
            Input::Sync(call, patience) => {
                let patience = patience.map(nanos);
                self.step(PrimaryEvent::SyncAsked { call, patience });
            }
            Input::Arrived(packets) => self.pass_on(packets),
            Input::Store(news) => self.take_store_news(news),
            Input::SyncOver(id) => self.sync_over(id),
            Input::TooSlow(standby) => self.let_go(&standby, "it takes a full sync too slowly"),
            Input::Stop => self.stop(),
            Input::Order(order, listener) => self.take_order(order, listener),
            Input::Withdrawn => self.withdraw(),
            Input::Signal(signal) => self.command(Command::Signal(signal)),
        }
    }

    fn take_engine(&mut self, event: Event) {
        match event {
            Event::Ready { pid } => {
                self.app_pid = Some(pid);
                self.tell_stores();
                tracing::debug!(pid, "the app's process is there");
                self.note = None; // It would take the next one's file along.
                self.note = Note::leave(&self.settings.app, pid);
                self.dial();
            }
            Event::Failed { why } => {
                tracing::error!("{why}");
                self.failure = Some(why);
            }
            Event::Captured { id, frames, report } => self.captured(id, frames, &report),
            Event::CaptureFailed { id, why, refused } => {
                self.progress = None;
                self.syncing = None;
                self.last_is_over(id);
                tracing::debug!(%id, refused, "capture failed: {why}");
                self.step(PrimaryEvent::CaptureFailed { id, why });
            }
            Event::Progress(now) => self.progress.iter().for_each(|progress| progress.show(now)),
            Event::Uncovered { paths } => self.note_uncovered(paths),
            Event::ChildSeen { pid } => self.step(PrimaryEvent::ChildSeen { pid }),
            Event::ChildGone { pid } => self.step(PrimaryEvent::ChildGone { pid }),
            Event::Executed => self.step(PrimaryEvent::Executed),
            // What is left of it may speak unless there is a permit to be shut.
            Event::Dying { signal } if self.fence.handle().is_some() => {
                tracing::info!("signal {signal} is killing the app");
                self.step(PrimaryEvent::AppDying { signal });
            }
            Event::Dying { .. } => {}
            Event::Exited(exit) => self.app_exited(exit_of(exit)),
            // An engine that is gone has taken its cell along.
            Event::Ended if !self.exited => self.app_exited(AppExit::Signal(libc::SIGKILL)),
            Event::Ended => {}
            Event::EpochBegins { .. }
            | Event::Prepared { .. }
            | Event::Refused { .. }
            | Event::HalfDropped
            | Event::Applied { .. }
            | Event::ApplyFailed { .. }
            | Event::Restored(_)
            | Event::RestoreFailed { .. } => tracing::warn!(?event, "an app's engine spoke of a copy"),
        }
    }

    fn app_exited(&mut self, exit: AppExit) {
        self.exited = true;
        tracing::info!("the app has ended: {}", exit_text(exit));
        self.step(PrimaryEvent::AppExited(exit));
    }

    fn stop(&mut self) {
        self.stops += 1;
        match (self.stops, self.begun) {
            (1, true) => self.step(PrimaryEvent::Shutdown),
            // The term never was ours, so the app has never begun.
            (1, false) => self.ending = Some(Ending::App(AppExit::Signal(libc::SIGTERM))),
            _ => self.command(Command::Kill),
        }
    }

    fn step(&mut self, event: PrimaryEvent) {
        let mut actions = Vec::new();
        self.machine.step(now(), event, &mut actions);
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: PrimaryAction) {
        match action {
            PrimaryAction::StartApp { term } => self.start_app(term),
            PrimaryAction::StartFullSync { id, to, eligible: _ } => self.start_full_sync(id, &to),
            PrimaryAction::CaptureNow { id, parent } => self.capture(id, parent),
            PrimaryAction::CaptureLast { id, parent } => self.capture_last(id, parent),
            PrimaryAction::Thaw => self.thaw(),
            PrimaryAction::Switchover(news) => self.tell_operator(news),
            PrimaryAction::SendEpoch { id, to, sync } => self.send_epoch(id, &to, sync),
            PrimaryAction::Committed(committed) => self.committed(committed.id()),
            PrimaryAction::Archive(id) => self.store.iter_mut().for_each(|store| store.committed(id)),
            PrimaryAction::GiveUpFullSync(id) => {
                tracing::info!(%id, "a full sync is given up, since nobody takes it any more");
                self.full_sync_unwanted.store(true, Ordering::Release);
            }
            PrimaryAction::Forget(id) => self.forget(id),
            PrimaryAction::ReturnToLedger { ids } => {
                self.captured = None;
                self.frozen.retain(|(id, _)| !ids.contains(id));
                self.store.iter_mut().for_each(StoreFeed::given_up);
                self.stored = None;
                self.passage.given_up();
                self.command(Command::ReturnToLedger);
            }
            PrimaryAction::SetPermit(permit) => self.set_permit(permit),
            PrimaryAction::Release(id) => self.release(id),
            PrimaryAction::SetOutput(output) => {
                if let Some(network) = &mut self.network {
                    network.set_output(output);
                }
            }
            PrimaryAction::ArmGuard => self.arm_guard(),
            PrimaryAction::DisarmGuard => self.order(&Order::Disarm),
            PrimaryAction::AskArbiter { ask, question } => {
                if let Some(register) = &self.register {
                    register.ask(ask, question);
                }
            }
            PrimaryAction::Tell { standby, notice } => self.tell(&standby, &notice),
            PrimaryAction::StopHeartbeats => self.seats.stop_hearts(),
            PrimaryAction::DropPeer { standby, why } => {
                tracing::warn!(%standby, "let a standby go: {why}");
                self.dismiss(&standby);
            }
            PrimaryAction::Synced { call, id } => {
                if let Some(socket) = &self.socket {
                    socket.synced(call, id);
                }
            }
            PrimaryAction::SyncRefused { call, why } => {
                if let Some(socket) = &self.socket {
                    socket.refuse(call, self.why_not(&why));
                }
            }
            PrimaryAction::Report(progress) => self.seats.iter().for_each(|seat| seat.heart.report(progress)),
            PrimaryAction::Status(status) => self.say_status(status),
            PrimaryAction::StopApp => self.stop_app(),
            PrimaryAction::RestartApp => self.restart_app(),
            PrimaryAction::KillApp => {
                if let Some(network) = &self.network {
                    network.give_up();
                }
                self.command(Command::Kill);
            }
            PrimaryAction::EndPair(ending) => self.ending = Some(ending),
        }
    }

    fn command(&self, command: Command) {
        if let Some(engine) = &self.engine {
            engine.send(command);
        }
    }

    fn put_in_charge(&mut self, guard: GuardLine) {
        self.guard = Some(guard);
        self.token = GuardToken::random();
        self.hello().guard_token_hash = Some(self.token.hash());
    }

    fn order(&mut self, order: &Order) {
        if let Some(guard) = &mut self.guard {
            guard.send(order);
        }
    }

    fn start_app(&mut self, term: Term) {
        {
            let mut hello = self.hello();
            hello.term = term;
            hello.owner = self.me.name.clone();
        }
        if let Some(Err(why)) = self.network.as_ref().map(AppNetwork::serve) {
            self.failure = Some(format!("{why:#}"));
            self.ending = Some(Ending::App(AppExit::Signal(libc::SIGKILL)));
            return self.command(Command::Kill);
        }
        self.order(&Order::Live);
        self.command(Command::Start);
        self.restarts.begun(Instant::now());
        tracing::info!(%term, app = self.settings.app, "serving");
        self.seats.iter().for_each(|seat| seat.heart.begin(term));
        self.begun = true;
        self.store_seat.iter().for_each(|seat| seat.begin(term));
        self.dial();
    }

    /// Looks for standbys, once there is something to protect.
    fn dial(&mut self) {
        if !self.begun || self.app_pid.is_none() {
            return;
        }
        let hello = Arc::clone(&self.hello);
        // They were read before.
        let facts = HostFacts::decode(&self.hello().host_facts).expect("our own encoding");
        for (number, seat) in self.seats.iter_mut().enumerate().filter(|(_, seat)| seat.dialling.is_none()) {
            let post = self.post.clone();
            let dialling = Dialling {
                candidates: Arc::clone(&seat.candidates),
                tls: self.settings.shared.tls.clone(),
                facts: Some(facts.clone()),
                hello: Arc::clone(&hello),
                on_link: Arc::new(move |session, event| {
                    drop(post.send(Input::Link(number, session, event)));
                }),
            };
            seat.dialling = Some(self.runtime.spawn(link::keep_connected(dialling)));
        }
    }

    fn set_permit(&mut self, permit: Permit) {
        if self.fence.allow(permit).is_err() {
            tracing::error!("the permit was revoked: the app's guard took this manager for dead");
            self.command(Command::Kill);
        }
    }

    fn arm_guard(&mut self) {
        // Whoever is connected; else who was, or would be asked next.
        let here = self.seats.iter().filter(|seat| seat.session.is_some());
        let mut standbys: Vec<String> = here.filter_map(|seat| seat.address.clone()).collect();
        if standbys.is_empty() {
            let known = |seat: &Seat| seat.address.clone().unwrap_or_else(|| seat.candidates.current());
            standbys = self.seats.iter().map(known).collect();
        }
        let shared = &self.settings.shared;
        let arm = Arm {
            app: self.settings.app.clone(),
            term: self.machine.reign().term.0,
            token: *self.token.as_bytes(),
            standbys,
            pki: shared.pki.clone(),
            host: shared.host().to_owned(),
        };
        self.order(&Order::Arm(arm));
    }

    fn stop_app(&mut self) {
        match self.target {
            Target::Command { .. } if self.restarts.call_off() => {
                self.app_exited(AppExit::Signal(libc::SIGTERM))
            }
            Target::Command { .. } | Target::Copy => {
                self.command(Command::Stop { grace: self.settings.grace });
            }
            // What ran before us runs on: only its protection ends.
            Target::Process(pid) => {
                tracing::info!("process {pid} runs on, unprotected");
                self.exited = true;
                self.step(PrimaryEvent::AppExited(AppExit::Code(0)));
            }
        }
    }
}

fn config(settings: &PrimarySettings, me: &Member) -> PrimaryConfig {
    let mut config = PrimaryConfig::new(me.clone(), settings.shared.fencing);
    config.timing = settings.timing;
    config.on_crash = settings.on_crash;
    config.interval = nanos(settings.interval);
    config.consistency = settings.consistency;
    (config.store, config.archive) = (storing::member_of(settings, me), storing::archive_of(settings));
    let seats = settings.seats().len() + usize::from(config.store.is_some());
    config.standbys = u32::try_from(seats).unwrap_or(u32::MAX);
    config.commit_on = settings.commit_on;
    config.abandon_standby = settings.abandon_standby;
    config
}

pub fn exit_text(exit: AppExit) -> String {
    match exit {
        AppExit::Code(code) => format!("exit code {code}"),
        AppExit::Signal(signal) => format!("signal {signal}"),
    }
}
