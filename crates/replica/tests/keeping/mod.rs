//! Hosts, a store that commits, and a register, under one virtual clock.
//!
//! One host serves; its machine is a [`Primary`] with a store among its members, and what stands between the two does in
//! small steps what the manager's threads do. Others may be told to go on with the app out of the store, at any time, and
//! several at once. Each host has a clock of its own, can be paused, and loses its way to the store or to the register.

mod claimant;
mod committer;
pub mod faults;
mod store;

use std::collections::BTreeMap;

use image::{CheckpointId, Incarnation, Member, Register, Sync, Term};
use replica::primary::{CommitOn, Consistency, OnStandbyLoss, Output, Permit, Phase};
use replica::{
    Answer, Ask, Fencing, Nanos, Primary, PrimaryAction, PrimaryConfig, PrimaryEvent, Question, Right,
};

use crate::chance::Chance;
use crate::common::{Agenda, ask, decide};
use claimant::{Act, Claimant};
use committer::{Act as Stored, Committer};
pub use faults::{Fault, Flaw};
use store::{Objects, Reply, Request, later};

const NAMES: [&str; 3] = ["a", "b", "c"];
const STORE: &str = "store s3://x";
const TICK: Nanos = Nanos::from_millis(20);
/// As the manager has it.
const PULSE: (u64, u64) = (500_000, 500_001);
const REST: (u64, u64) = (500_000, 500_001);

fn is_store(member: &Member) -> bool {
    member.name == STORE
}

/// Who asks the store or the register, in which of his lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Machine(usize, u64),
    Committer(usize, u64),
    Pulse(usize, u64),
    Claimant(usize, u64),
}

impl Who {
    fn host(self) -> usize {
        match self {
            Self::Machine(host, _) | Self::Committer(host, _) | Self::Pulse(host, _) => host,
            Self::Claimant(host, _) => host,
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Tick(usize, u64),
    Primary(usize, u64, PrimaryEvent),
    Wake(usize, u64),
    Pulse(usize, u64),
    /// With the number of the request, and when it was sent by the clock of its sender.
    ToStore(Who, u64, Nanos, Request, bool),
    FromStore(Who, u64, Nanos, Reply),
    ToRegister(Who, Ask, Box<Question>),
    FromRegister(Who, Ask, Answer),
    GoesOn(usize, u64),
    Crown(usize, u64, Right, CheckpointId),
    Operator,
    Fault(Fault),
}

#[derive(Debug)]
struct App {
    host: usize,
    alive: bool,
    kernel: Permit,
    output: Output,
    guard_armed: bool,
}

#[derive(Debug)]
struct Server {
    life: u64,
    machine: Primary,
    app: usize,
    committer: Committer,
    asked: u64,
}

#[derive(Debug)]
struct Claiming {
    life: u64,
    machine: Claimant,
    asked: u64,
}

#[derive(Debug)]
struct Host {
    server: Option<Server>,
    claimant: Option<Claiming>,
    offset: Nanos,
    paused_until: Nanos,
    store_cut: bool,
    register_cut: bool,
}

/// How a history may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    Protected,
    /// It ended by itself, or its host died while the register named nobody.
    Over,
}

#[derive(Debug)]
pub struct World {
    pub chance: Chance,
    flaw: Flaw,
    consistency: Consistency,
    now: Nanos,
    agenda: Agenda<Event>,
    hosts: Vec<Host>,
    apps: Vec<App>,
    lives: u64,
    requests: u64,
    loss_percent: u64,
    store_gone: bool,
    store_slow: bool,
    fail_next_capture: bool,
    healed: bool,
    store: Objects,
    register: Option<Register>,
    highest_term: Term,
    committed: Option<CheckpointId>,
    frozen: BTreeMap<CheckpointId, Nanos>,
    heard_until: Nanos,
    pub takeovers: u32,
    pub refused: u32,
    pub commits: u32,
    pub orphans: u32,
}

impl World {
    pub fn new(seed: u64, flaw: Flaw) -> Self {
        let mut chance = Chance::new(seed);
        let loss_percent = chance.below(4);
        let hosts = NAMES.iter().map(|_| Host {
            server: None,
            claimant: None,
            offset: chance.micros(1_000, 10_000_000),
            paused_until: Nanos(0),
            store_cut: false,
            register_cut: false,
        });
        let hosts = hosts.collect();
        let mut world = Self {
            chance,
            flaw,
            consistency: match seed % 3 {
                0 => Consistency::Timeline,
                1 => Consistency::Strong { on_standby_loss: OnStandbyLoss::Continue },
                _ => Consistency::Strong { on_standby_loss: OnStandbyLoss::Stop },
            },
            now: Nanos(0),
            agenda: Agenda::default(),
            hosts,
            apps: Vec::new(),
            lives: 0,
            requests: 0,
            loss_percent,
            store_gone: false,
            store_slow: false,
            fail_next_capture: false,
            healed: false,
            store: Objects::default(),
            register: None,
            highest_term: Term(0),
            committed: None,
            frozen: BTreeMap::new(),
            heard_until: Nanos(0),
            takeovers: 0,
            refused: 0,
            commits: 0,
            orphans: 0,
        };
        let life = world.new_life();
        let machine = Primary::new(world.config(0, life), world.clock(0));
        let app = world.new_app(0, false, Permit::Shut, Output::Shut);
        world.crown(0, life, machine, app);
        world
    }

    pub fn fault_at(&mut self, at: Nanos, fault: Fault) {
        self.agenda.schedule(at, Event::Fault(fault));
    }

    pub fn hosts(&self) -> u64 {
        self.hosts.len() as u64
    }

    /// Runs until `end`, or until `done`.
    pub fn run(&mut self, end: Nanos, done: impl Fn(&Self) -> bool) {
        while !done(self)
            && let Some((at, event)) = self.agenda.next(end)
        {
            self.now = at;
            self.happen(event);
            self.check();
        }
    }

    fn strong(&self) -> bool {
        self.consistency != Consistency::Timeline
    }

    fn check(&mut self) {
        let audible: Vec<usize> = (0..self.apps.len()).filter(|app| self.audible(*app)).collect();
        assert!(audible.len() < 2, "two copies can be heard at {}", self.now);
        if audible.iter().any(|app| self.apps[*app].output == Output::Passing) {
            self.heard_until = self.now;
        }
        let term = self.register.as_ref().map_or(Term(0), |register| register.term);
        assert!(self.highest_term <= term, "the term fell from {} to {term}", self.highest_term);
        self.highest_term = term;
    }

    fn audible(&self, app: usize) -> bool {
        let app = &self.apps[app];
        app.alive
            && match app.kernel {
                Permit::Open => true,
                Permit::Shut => false,
                Permit::Until(deadline) => self.clock(app.host) < deadline,
            }
    }

    /// What must come about once all faults are over; an error says what has not.
    pub fn at_rest(&self) -> Result<Rest, String> {
        let servers: Vec<&Server> = self.hosts.iter().filter_map(|host| host.server.as_ref()).collect();
        match servers.as_slice() {
            [] if self.may_be_claimed() => Err("nobody serves what the store has".to_owned()),
            [] => Ok(Rest::Over),
            [server] if server.machine.phase() == Phase::Protected && self.audible(server.app) => {
                Ok(Rest::Protected)
            }
            servers => Err(format!(
                "served, and {:?}",
                servers.iter().map(|server| server.machine.phase()).collect::<Vec<_>>()
            )),
        }
    }

    /// The register gives whoever comes a right.
    fn may_be_claimed(&self) -> bool {
        self.register.as_ref().is_some_and(|register| register.members.iter().any(is_store))
    }

    fn clock(&self, host: usize) -> Nanos {
        self.now + self.hosts[host].offset
    }

    fn after(&mut self, micros: (u64, u64), event: Event) {
        let span = self.chance.micros(micros.0, micros.1);
        self.agenda.schedule(self.now + span, event);
    }

    fn new_life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    fn new_app(&mut self, host: usize, alive: bool, kernel: Permit, output: Output) -> usize {
        self.apps.push(App { host, alive, kernel, output, guard_armed: false });
        self.apps.len() - 1
    }

    fn config(&self, host: usize, life: u64) -> PrimaryConfig {
        let mut config = PrimaryConfig::new(Member::new(NAMES[host], life), Fencing::Register);
        config.full_sync_retry = Nanos::from_millis(200);
        config.consistency = self.consistency;
        config.interval = Nanos::from_millis(200);
        config.commit_on = CommitOn::Store;
        config.store = Some(member(life));
        config
    }

    fn crown(&mut self, host: usize, life: u64, machine: Primary, app: usize) {
        let mut committer = Committer::new(life);
        committer.trusts_itself = self.flaw == Flaw::TrustsItsOwnWord;
        self.hosts[host].server = Some(Server { life, machine, app, committer, asked: 0 });
        self.after((0, 10_000), Event::Tick(host, life));
    }

    /// Somebody says `run --from-store`. One manager of an app is on a host at a time.
    fn claim(&mut self, host: usize) {
        if self.hosts[host].server.is_some() || self.hosts[host].claimant.is_some() {
            return;
        }
        let life = self.new_life();
        let (machine, act) = Claimant::begin(Member::new(NAMES[host], life), self.flaw);
        self.hosts[host].claimant = Some(Claiming { life, machine, asked: 0 });
        self.do_for_claimant(host, life, act);
    }

    fn happen(&mut self, event: Event) {
        let host = match &event {
            Event::Tick(host, _)
            | Event::Primary(host, ..)
            | Event::Wake(host, _)
            | Event::Pulse(host, _)
            | Event::GoesOn(host, _)
            | Event::Crown(host, ..) => Some(*host),
            Event::FromStore(who, ..) | Event::FromRegister(who, ..) => Some(who.host()),
            Event::ToStore(..) | Event::ToRegister(..) | Event::Operator | Event::Fault(_) => None,
        };
        // Who stands still finds all of it when he goes on, in the old order.
        if let Some(host) = host
            && self.now < self.hosts[host].paused_until
        {
            return self.agenda.schedule(self.hosts[host].paused_until, event);
        }
        match event {
            Event::Tick(host, life) => {
                if self.server(host, life).is_some() {
                    self.agenda.schedule(self.now + TICK, Event::Tick(host, life));
                    self.step(host, PrimaryEvent::Tick);
                }
            }
            Event::Primary(host, life, event) => {
                if self.server(host, life).is_some() {
                    self.step(host, event);
                }
            }
            Event::Wake(host, life) => {
                if let Some(server) = self.server(host, life) {
                    let acts = server.committer.wake();
                    self.do_for_committer(host, life, acts);
                }
            }
            Event::Pulse(host, life) => {
                if self.server(host, life).is_some() {
                    self.send(Who::Pulse(host, life), Request::Runs);
                }
            }
            Event::ToStore(who, number, sent_at, request, answered) => {
                let reply = self.store.answer(request);
                if answered {
                    self.after((500, 20_000), Event::FromStore(who, number, sent_at, reply));
                }
            }
            Event::FromStore(who, number, sent_at, reply) => self.store_answers(who, number, sent_at, reply),
            Event::ToRegister(who, ask, question) => {
                let answer = decide(&mut self.register, *question);
                let lost = self.hosts[who.host()].register_cut || self.chance.percent(self.loss_percent);
                // It took place; a claimant hears at least that nobody answered.
                let answer = match (lost, who) {
                    (false, _) => answer,
                    (true, Who::Claimant(..)) => Answer::Unreachable { why: "late".to_owned() },
                    (true, _) => return,
                };
                self.after((100, 4_000), Event::FromRegister(who, ask, answer));
            }
            Event::FromRegister(who, ask, answer) => self.register_answers(who, ask, answer),
            Event::GoesOn(host, life) => {
                if let Some(claiming) = self.claiming_of(host, life) {
                    let act = claiming.machine.goes_on();
                    self.do_for_claimant(host, life, act);
                }
            }
            Event::Crown(host, life, right, id) => self.succeed(host, life, &right, id),
            Event::Operator => self.operate(),
            Event::Fault(fault) => self.fault(fault),
        }
    }

    fn server(&mut self, host: usize, life: u64) -> Option<&mut Server> {
        self.hosts[host].server.as_mut().filter(|server| server.life == life)
    }

    fn claiming_of(&mut self, host: usize, life: u64) -> Option<&mut Claiming> {
        self.hosts[host].claimant.as_mut().filter(|claiming| claiming.life == life)
    }

    /// To the store: it may be gone or slow, and the request be lost, doubled or late. Whoever asked gives up at some time,
    /// whatever becomes of it.
    fn send(&mut self, who: Who, request: Request) {
        self.requests += 1;
        let (number, sent_at) = (self.requests, self.clock(who.host()));
        match who {
            Who::Committer(host, life) => {
                if let Some(server) = self.server(host, life) {
                    server.asked = number;
                }
            }
            Who::Claimant(host, life) => {
                if let Some(claiming) = self.claiming_of(host, life) {
                    claiming.asked = number;
                }
            }
            Who::Machine(..) | Who::Pulse(..) => {}
        }
        let away = self.store_gone || self.hosts[who.host()].store_cut;
        let lost = self.chance.percent(if away { 70 } else { self.loss_percent });
        let late = self.store_slow || away || self.chance.percent(2);
        let way = if late { (1_000, 7_000_000) } else { (500, 20_000) };
        let heard = !away && !self.chance.percent(self.loss_percent);
        if !lost {
            self.after(way, Event::ToStore(who, number, sent_at, request.clone(), heard));
            if self.chance.percent(2) {
                self.after((1_000, 9_000_000), Event::ToStore(who, number, sent_at, request, false));
            }
        }
        let patience = if self.chance.percent(50) { (5_000, 1_000_000) } else { (1_000_000, 10_000_000) };
        if lost || !heard || late {
            self.after(patience, Event::FromStore(who, number, sent_at, Reply::Failed));
        }
    }

    fn store_answers(&mut self, who: Who, number: u64, sent_at: Nanos, reply: Reply) {
        let now = self.clock(who.host());
        match who {
            Who::Committer(host, life) => {
                let Some(server) = self.server(host, life).filter(|server| server.asked == number) else {
                    return;
                };
                server.asked = 0;
                let acts = server.committer.take(now, reply);
                self.do_for_committer(host, life, acts);
            }
            Who::Pulse(host, life) => self.looked(host, life, sent_at, &reply),
            Who::Claimant(host, life) => {
                let Some(claiming) = self.claiming_of(host, life).filter(|it| it.asked == number) else {
                    return;
                };
                claiming.asked = 0;
                let act = claiming.machine.hears_store(now, reply);
                self.do_for_claimant(host, life, act);
            }
            Who::Machine(..) => {}
        }
    }

    fn looked(&mut self, host: usize, life: u64, sent_at: Nanos, reply: &Reply) {
        let (now, flaw) = (self.clock(host), self.flaw);
        let Some(server) = self.server(host, life) else { return };
        match server.committer.run().and_then(|run| later(reply, run)) {
            Some(false) if server.committer.open => {
                let sent_at = if flaw == Flaw::CountsFromTheAnswer { now } else { sent_at };
                let answered = PrimaryEvent::HeartbeatAnswered { from: member(life), sent_at, held: None };
                self.step(host, answered);
            }
            Some(true) => {
                let acts = server.committer.overtaken();
                return self.do_for_committer(host, life, acts);
            }
            Some(false) | None => {}
        }
        self.after(PULSE, Event::Pulse(host, life));
    }

    fn do_for_committer(&mut self, host: usize, life: u64, acts: Vec<Stored>) {
        let standby = member(life);
        for act in acts {
            match act {
                Stored::Ask(request) => self.send(Who::Committer(host, life), request),
                Stored::Ready => {
                    self.after((0, 1_000), Event::Pulse(host, life));
                    self.step(host, PrimaryEvent::PeerConnected { standby: standby.clone(), held: None });
                }
                Stored::Stored(id) => self.step(host, PrimaryEvent::Acked { from: standby.clone(), id }),
                Stored::Lost => {
                    let why = "gone".to_owned();
                    self.step(host, PrimaryEvent::PeerLost { standby: standby.clone(), why });
                }
                Stored::Rest => self.after(REST, Event::Wake(host, life)),
            }
        }
    }

    fn ask(&mut self, who: Who, number: Ask, question: Question) {
        let (arrives, refused) = ask(&mut self.chance, self.hosts[who.host()].register_cut);
        let answer = || Answer::Unreachable { why: "no route".to_owned() };
        if let Some(span) = refused {
            self.agenda.schedule(self.now + span, Event::FromRegister(who, number, answer()));
        }
        match (arrives, who) {
            (Some(span), _) => {
                let event = Event::ToRegister(who, number, Box::new(question));
                self.agenda.schedule(self.now + span, event);
            }
            (None, Who::Claimant(..)) if refused.is_none() => {
                self.after((500_000, 2_000_000), Event::FromRegister(who, number, answer()));
            }
            (None, _) => {}
        }
    }

    fn register_answers(&mut self, who: Who, ask: Ask, answer: Answer) {
        let now = self.clock(who.host());
        match who {
            Who::Machine(host, life) => {
                if self.server(host, life).is_some() {
                    self.step(host, PrimaryEvent::RegisterAnswer { ask, answer });
                }
            }
            Who::Claimant(host, life) => {
                let Some(claiming) = self.claiming_of(host, life).filter(|it| it.asked == ask.0) else {
                    return;
                };
                claiming.asked = 0;
                let act = claiming.machine.hears_register(now, answer);
                self.do_for_claimant(host, life, act);
            }
            Who::Committer(..) | Who::Pulse(..) => {}
        }
    }

    fn do_for_claimant(&mut self, host: usize, life: u64, act: Act) {
        match act {
            Act::AskRegister(question) => {
                self.requests += 1;
                let number = self.requests;
                if let Some(claiming) = self.claiming_of(host, life) {
                    claiming.asked = number;
                }
                self.ask(Who::Claimant(host, life), Ask(number), question);
            }
            Act::AskStore(request) => self.send(Who::Claimant(host, life), request),
            Act::WaitUntil(at) => {
                let span = at.since(self.clock(host)).max(self.chance.micros(50_000, 500_000));
                self.agenda.schedule(self.now + span, Event::GoesOn(host, life));
            }
            Act::GoOn(right, id) => self.promote(host, life, right, id),
            Act::GiveUp => {
                self.refused += 1;
                self.hosts[host].claimant = None;
            }
        }
    }

    fn promote(&mut self, host: usize, life: u64, right: Right, id: CheckpointId) {
        assert!(Some(id) >= self.committed, "{:?} was committed, {id} is restored", self.committed);
        let frozen = self.frozen[&id];
        assert!(
            !self.strong() || self.heard_until <= frozen,
            "heard until {}, but {id} of {frozen} is restored",
            self.heard_until
        );
        self.takeovers += 1;
        self.after((500, 5_000), Event::Crown(host, life, right, id));
    }

    /// The app runs, and its manager is a primary.
    fn succeed(&mut self, host: usize, life: u64, right: &Right, id: CheckpointId) {
        if self.claiming_of(host, life).is_none() {
            return; // It died in the midst of it.
        }
        self.hosts[host].claimant = None;
        let stops = Consistency::Strong { on_standby_loss: OnStandbyLoss::Stop };
        let output = if self.consistency == stops { Output::Held } else { Output::Passing };
        let machine = Primary::after_takeover(self.config(host, life), right, id, self.clock(host));
        let app = self.new_app(host, true, Permit::Open, output);
        self.crown(host, life, machine, app);
        if let Some(server) = self.server(host, life) {
            let acts = server.committer.begin(right.term().0);
            self.do_for_committer(host, life, acts);
        }
    }

    fn step(&mut self, host: usize, event: PrimaryEvent) {
        let (now, mut actions) = (self.clock(host), Vec::new());
        let Some(server) = &mut self.hosts[host].server else { return };
        let life = server.life;
        server.machine.step(now, event, &mut actions);
        for action in actions {
            self.act(host, life, action);
        }
    }

    fn act(&mut self, host: usize, life: u64, action: PrimaryAction) {
        let now = self.clock(host);
        let Some(server) = self.hosts[host].server.as_mut().filter(|server| server.life == life) else {
            return;
        };
        let app = &mut self.apps[server.app];
        match action {
            PrimaryAction::StartApp { term } => {
                app.alive = true;
                let acts = server.committer.begin(term.0);
                self.do_for_committer(host, life, acts);
            }
            PrimaryAction::StartFullSync { id, .. } => self.capture(host, life, id, (20_000, 200_000)),
            PrimaryAction::CaptureNow { id, .. } => self.capture(host, life, id, (500, 4_000)),
            PrimaryAction::SendEpoch { id, sync, to: _ } => {
                let acts = server.committer.give(now, id, sync == Sync::Full);
                self.do_for_committer(host, life, acts);
            }
            PrimaryAction::Committed(committed) => {
                self.commits += 1;
                self.committed = self.committed.max(Some(committed.id()));
            }
            PrimaryAction::SetPermit(permit) => app.kernel = permit,
            PrimaryAction::SetOutput(output) => app.output = output,
            PrimaryAction::Release(id) => {
                let heard = app.output != Output::Shut;
                let number = server.app;
                if let Some(&frozen) = self.frozen.get(&id).filter(|_| heard && self.audible(number)) {
                    self.heard_until = self.heard_until.max(frozen);
                }
            }
            PrimaryAction::ArmGuard => app.guard_armed = true,
            PrimaryAction::DisarmGuard => app.guard_armed = false,
            PrimaryAction::AskArbiter { ask, question } => self.ask(Who::Machine(host, life), ask, question),
            PrimaryAction::DropPeer { .. } => {
                let acts = server.committer.let_go();
                self.do_for_committer(host, life, acts);
            }
            PrimaryAction::KillApp | PrimaryAction::StopApp => app.alive = false,
            PrimaryAction::EndPair(_) => {
                app.alive = false;
                self.hosts[host].server = None;
            }
            PrimaryAction::CaptureLast { .. } | PrimaryAction::Thaw | PrimaryAction::RestartApp => {
                unreachable!("nobody asks for it here")
            }
            PrimaryAction::Switchover(_)
            | PrimaryAction::Archive(_)
            | PrimaryAction::GiveUpFullSync(_)
            | PrimaryAction::Forget(_)
            | PrimaryAction::Tell { .. }
            | PrimaryAction::StopHeartbeats
            | PrimaryAction::Synced { .. }
            | PrimaryAction::SyncRefused { .. }
            | PrimaryAction::ReturnToLedger { .. }
            | PrimaryAction::Report(_)
            | PrimaryAction::Status(_) => {}
        }
    }

    fn capture(&mut self, host: usize, life: u64, id: CheckpointId, micros: (u64, u64)) {
        self.frozen.insert(id, self.now);
        let event = match std::mem::take(&mut self.fail_next_capture) {
            true => PrimaryEvent::CaptureFailed { id, why: "fd 9 is an io_uring".to_owned() },
            false => PrimaryEvent::Captured { id },
        };
        self.after(micros, Event::Primary(host, life, event));
    }
}

/// The store, as the manager of this life uses it.
fn member(life: u64) -> Member {
    Member { name: STORE.to_owned(), incarnation: Incarnation(life) }
}
