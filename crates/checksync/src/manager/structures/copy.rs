//! The standby's side: one app's structures as they were last committed, and the machine that decides about a takeover.
//!
//! There is no thread of its own: whoever brings an event, a task of the network most of the time, steps the machine
//! under the app's lock. An epoch is looked through to its end before it is acknowledged, so applying it can't fail.
//!
//! After a takeover a primary has them, which looks for a standby; with nobody to look for, they are served from here,
//! by the same rules as on a primary that nobody can take over from: what a library changes is committed at once.

mod incoming;
mod report;
mod serving;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use image::{CheckpointId, Incarnation, Member, Sync, Term};
use replica::primary::AppExit;
use replica::standby::{Discarded, StandbyStatus};
use replica::{
    Answer, Ask, Fencing, Nanos, Progress, Reign, Standby, StandbyAction, StandbyConfig, StandbyEvent, Timing,
};
use structure::Store;
use tokio::runtime::Handle;
use wire::{
    EngineState, EpochRefused, Exit, FromPrimary, FromStandby, Heartbeat, HeartbeatAnswer, Hello, Incoming,
    Opening, Outgoing, PROTOCOL_VERSION, RELEASE, Refusal, RefusalCode, StandbyState, TlsFiles, Welcome,
};

use self::incoming::{Epoch, Staging};
use self::serving::Serving;
use super::awake::{Awake, stay_awake};
use super::primary::Heir;
use crate::manager::asker::{Asker, term_of};
use crate::manager::policy::Policy;
use crate::manager::register::RegisterDesk;
use crate::manager::ticks::Ticks;
use crate::manager::{fresh_incarnation, now, span, wall_clock_ns};
use crate::status::Board;

/// What an app is kept with.
#[derive(Debug, Clone)]
pub struct Setup {
    pub app: String,
    pub host: String,
    pub timing: Timing,
    pub fencing: Fencing,
    pub arbiter: Option<arbiter::ArbiterSpec>,
    pub tls: TlsFiles,
    pub promote_hook: Option<OsString>,
    pub pki: PathBuf,
    pub state: Option<PathBuf>,
    /// Of the app, once it was taken over.
    pub standbys: Vec<String>,
    pub board: Board,
    pub runtime: Handle,
    /// Where its library will find us.
    pub socket: PathBuf,
}

/// The structures of one app.
pub struct Copies {
    awake: Arc<Awake>,
    state: Mutex<State>,
}

struct State {
    setup: Setup,
    this: Weak<Copies>,
    machine: Standby,
    /// What came of actions, for the machine.
    events: VecDeque<StandbyEvent>,
    register: Option<RegisterDesk>,
    incarnation: u64,
    command: Vec<OsString>,
    store: Store,
    staging: Option<Staging>,
    /// While the machine is told of a new epoch: what it is.
    beginning: Option<Sync>,
    /// Whole, and acknowledged as soon as the machine says so.
    prepared: Option<Epoch>,
    /// What the session is to be told.
    says: Vec<FromStandby>,
    session: u64,
    reign: Option<Reign>,
    /// What the primary said last of what was asked for.
    policy: Option<Policy>,
    serving: Option<Serving>,
    /// The primary that serves them, if a standby is looked for.
    heir: Option<Heir>,
    held_since_ns: Option<u64>,
    suspected_at_ns: Option<u64>,
    status: StandbyStatus,
    ended: bool,
}

impl Copies {
    pub fn new(setup: Setup) -> anyhow::Result<Arc<Self>> {
        let incarnation = fresh_incarnation();
        let config = StandbyConfig {
            me: Member::new(&setup.host, incarnation),
            timing: setup.timing,
            fencing: setup.fencing,
        };
        let tick = Duration::from_nanos(setup.timing.heartbeat().0 / 2);
        let runtime = setup.runtime.clone();
        let copies = Arc::new_cyclic(|this| Self {
            awake: Arc::default(),
            state: Mutex::new(State {
                machine: Standby::new(config),
                this: this.clone(),
                events: VecDeque::new(),
                register: None,
                incarnation,
                command: Vec::new(),
                store: Store::default(),
                staging: None,
                beginning: None,
                prepared: None,
                says: Vec::new(),
                session: 0,
                reign: None,
                policy: None,
                serving: None,
                heir: None,
                held_since_ns: None,
                suspected_at_ns: None,
                status: StandbyStatus::Empty,
                ended: false,
                setup,
            }),
        });
        let this = Arc::downgrade(&copies);
        let answer = move |ask, answer| {
            if let Some(copies) = this.upgrade() {
                copies.lock().take_register(ask, answer);
            }
        };
        {
            let mut state = copies.lock();
            let Setup { arbiter, tls, app, timing, .. } = &state.setup;
            let patience = span(timing.register_timeout());
            let register = arbiter.as_ref().map(|spec| RegisterDesk::open(spec, tls, app, patience, answer));
            state.register = register.transpose()?;
        }
        runtime.spawn(stay_awake(Arc::clone(&copies.awake)));
        runtime.spawn(tick_for_life(Arc::downgrade(&copies), tick));
        Ok(copies)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing of the app is here any more.
    pub fn is_over(&self) -> bool {
        self.lock().ended
    }

    pub fn hello(&self, hello: Box<Hello>, opening: Opening) {
        self.lock().take_hello(hello, opening);
    }

    pub fn beat(&self, from: &str, beat: Heartbeat, answers: Outgoing<HeartbeatAnswer>) {
        self.lock().take_beat(from, beat, answers);
    }

    /// The daemon stops: a program that is served here gets this long to end.
    pub fn stop(&self, grace: Duration) {
        serving::stop(&self.state, grace);
    }
}

async fn tick_for_life(copies: Weak<Copies>, tick: Duration) {
    let mut ticks = Ticks::every(tick, Instant::now());
    loop {
        tokio::time::sleep_until(ticks.next().into()).await;
        let is_time = ticks.take(Instant::now());
        let Some(copies) = copies.upgrade() else { return };
        let mut state = copies.lock();
        if state.ended {
            return;
        }
        if is_time {
            state.step_alone(StandbyEvent::Tick);
        }
    }
}

impl State {
    fn take_register(&mut self, ask: Ask, answer: Answer) {
        self.step_alone(StandbyEvent::RegisterAnswer { ask, answer });
    }

    fn take_hello(&mut self, hello: Box<Hello>, opening: Opening) {
        let primary = Member::new(&hello.primary_name, hello.incarnation);
        let reign = Reign { term: hello.term, incarnation: primary.incarnation };
        let mut asker = Asker { opening: Some((hello, opening)), ..Asker::default() };
        self.step(StandbyEvent::PrimaryConnected { primary, reign }, &mut asker);
    }

    fn take_beat(&mut self, from: &str, beat: Heartbeat, answers: Outgoing<HeartbeatAnswer>) {
        let followed = self.machine.primary().filter(|(member, reign)| {
            // A beat that says `Starting` comes from a manager that was never welcomed.
            member.name == from && reign.term == beat.term && beat.engine != EngineState::Starting
        });
        let stranger = Reign { term: beat.term, incarnation: Incarnation(0) };
        let reign = followed.map_or(stranger, |(_, reign)| reign);
        let stalled = beat.engine == EngineState::Stuck;
        let progress = Progress { captured: beat.newest_captured, committed: None, stalled };
        let sent_at = Nanos(beat.sent_at_ns);
        let mut asker = Asker { beat: Some((beat, answers)), ..Asker::default() };
        self.step(StandbyEvent::Heartbeat { reign, sent_at, progress }, &mut asker);
    }

    /// From the session with this number. Gives back what it is to be told.
    fn take_said(&mut self, number: u64, message: FromPrimary) -> Vec<FromStandby> {
        let Some(reign) = self.reign.filter(|_| self.session == number) else { return Vec::new() };
        match message {
            FromPrimary::Changes(changes) => self.take_changes(changes),
            FromPrimary::AppExited { how: Exit::Signal(signal), silenced: true } => {
                tracing::warn!(app = self.setup.app, "the program died by signal {signal} on its primary");
                self.step_alone(StandbyEvent::AppCrashed { reign, signal });
            }
            FromPrimary::AppExited { how, silenced: _ } => {
                let exit = match how {
                    Exit::Code(code) => AppExit::Code(code),
                    Exit::Signal(signal) => AppExit::Signal(signal),
                };
                self.step_alone(StandbyEvent::AppEnded { reign, exit });
            }
            FromPrimary::Frames(_)
            | FromPrimary::GuardArmed(_)
            | FromPrimary::Arrived(_)
            | FromPrimary::HandedOver => {
                tracing::warn!(app = self.setup.app, "a primary of structures spoke of a process");
            }
        }
        std::mem::take(&mut self.says)
    }

    fn stream_ended(&mut self, number: u64) {
        if self.session == number {
            self.reign = None;
            self.step_alone(StandbyEvent::StreamEnded);
        }
    }

    fn step_alone(&mut self, event: StandbyEvent) {
        self.step(event, &mut Asker::default());
    }

    fn step(&mut self, event: StandbyEvent, asker: &mut Asker) {
        self.events.push_back(event);
        while let Some(event) = self.events.pop_front() {
            let mut actions = Vec::new();
            self.machine.step(now(), event, &mut actions);
            for action in actions {
                self.act(action, asker);
            }
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
                let serving = self.serving.is_some() || self.heir.is_some();
                asker.refuse(&self.setup.app, &refusal, self.term(), serving);
            }
            StandbyAction::Receive { id } => self.receive(id),
            StandbyAction::RefuseEpoch { id, why } => self.refuse_epoch(id, why.to_string()),
            StandbyAction::Ack { id } => self.says.push(FromStandby::Ack(id)),
            StandbyAction::Apply { id } => self.apply(id),
            StandbyAction::DropHalf { id } => drop(self.staging.take_if(|staging| staging.id == id)),
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
            StandbyAction::EndStream { why } => self.says.push(FromStandby::Refusal(Refusal {
                code: RefusalCode::Busy,
                why: format!("the structures are lost: {why}"),
                way_out: "a full sync follows by itself; the standby's log says more".to_owned(),
            })),
            StandbyAction::ConfirmEnd { exit: _ } => self.says.push(FromStandby::Refusal(Refusal {
                code: RefusalCode::Stopping,
                why: "the program has ended, and its structures are gone".to_owned(),
                way_out: "nothing is to be done".to_owned(),
            })),
            StandbyAction::Status(status) => self.say_status(status),
        }
    }

    fn welcome(&mut self, hello: &Hello, opening: Opening, held: Option<CheckpointId>) {
        let (outgoing, incoming) = opening.welcome(Welcome {
            protocol_version: PROTOCOL_VERSION,
            release: RELEASE.to_owned(),
            standby_name: self.setup.host.clone(),
            incarnation: self.incarnation,
            held,
            host_facts: bytes::Bytes::new(),
        });
        tracing::info!(app = self.setup.app, primary = hello.primary_name, "a primary is connected");
        self.command = hello
            .structures
            .as_ref()
            .map(|structures| super::program::from_bytes(&structures.command))
            .unwrap_or_default();
        self.policy = Policy::of_hello(hello);
        self.session += 1;
        self.reign = Some(Reign { term: hello.term, incarnation: Incarnation(hello.incarnation) });
        self.setup.runtime.spawn(follow(self.this.clone(), self.session, incoming, outgoing));
    }

    /// The one that is served here, or followed.
    fn term(&self) -> Option<Term> {
        term_of(&self.status, &self.machine)
    }

    fn refuse_epoch(&mut self, id: CheckpointId, why: String) {
        tracing::warn!(app = self.setup.app, %id, "refused an epoch: {why}");
        self.says.push(FromStandby::EpochRefused(EpochRefused { id, why, lacks: Vec::new() }));
    }

    fn discard(&mut self, why: &Discarded) {
        tracing::info!(app = self.setup.app, "the structures are discarded: {why}");
        self.store = Store::default();
        self.staging = None;
        self.prepared = None;
        self.held_since_ns = None;
    }

    fn say_status(&mut self, status: StandbyStatus) {
        tracing::info!(app = self.setup.app, "{}", report::words(&status).0);
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
}

/// One session, to its end.
async fn follow(
    copies: Weak<Copies>,
    number: u64,
    mut incoming: Incoming<FromPrimary>,
    outgoing: Outgoing<FromStandby>,
) {
    'session: loop {
        let message = match incoming.recv().await {
            Some(Ok(message)) => message,
            Some(Err(why)) => {
                tracing::warn!("the stream of changes is lost: {why}");
                break;
            }
            None => break,
        };
        let Some(copies) = copies.upgrade() else { return };
        copies.awake.stay();
        let says = copies.lock().take_said(number, message);
        for said in says {
            if let Err(why) = outgoing.send(said).await {
                tracing::debug!("an answer did not go: {why}");
                break 'session;
            }
        }
    }
    if let Some(copies) = copies.upgrade() {
        copies.lock().stream_ended(number);
    }
}
