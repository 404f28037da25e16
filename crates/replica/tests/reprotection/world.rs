//! Hosts of equal rights, a network between them and a register, under one virtual clock.
//!
//! Each host has a daemon, which keeps a copy, or has taken over and is a primary as well; and a clock of its own. The
//! first primary is a process beside its host's daemon. An app is more than its manager: a guard and a kernel permit work
//! without it. Datagrams get lost, late and doubled; a stream keeps its order, and breaks.

mod acts;
mod faults;

use std::collections::{BTreeMap, BTreeSet};

use image::{CheckpointId, Member, Register, Term, Vote};
use replica::primary::{CommitOn, Consistency, OnStandbyLoss, Output, Permit, Phase};
use replica::standby::StandbyStatus;
use replica::{
    Answer, Ask, Fencing, Nanos, Primary, PrimaryConfig, PrimaryEvent, Question, Reign, Right, Standby,
    StandbyConfig, StandbyEvent,
};

use crate::chance::Chance;
use crate::common::{Agenda, Message, TICK, ask, breaks, datagram, decide};
pub use faults::{Fault, Flaw};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Which machine of a host, and in which of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whom {
    Primary(usize, u64),
    Standby(usize, u64),
}

#[derive(Debug, Clone)]
enum Event {
    Tick(Whom),
    Heartbeat(usize, u64),
    Connect(usize, u64),
    Primary(usize, u64, PrimaryEvent),
    Standby(usize, u64, StandbyEvent),
    /// To the second, from the first.
    Message(usize, usize, Message),
    Question(Whom, Ask, Box<Question>),
    StreamEnd(usize, u64),
    /// Of this app, to these hosts.
    GuardSpeaks(usize, Vec<usize>, Reign, u32),
    Comes(usize),
    Fault(Fault),
}

/// A running copy, which may outlive its manager.
#[derive(Debug)]
struct App {
    host: usize,
    alive: bool,
    kernel: Permit,
    output: Output,
    guard_armed: bool,
    /// Since this epoch it stands still.
    stands: Option<CheckpointId>,
    /// The standby was told of a planned move, and nobody has called it off.
    moving: bool,
}

#[derive(Debug)]
struct Ruler {
    life: u64,
    machine: Primary,
    app: usize,
    /// It came to be by a takeover, and dies with its host's daemon.
    of_daemon: bool,
    heartbeats: bool,
    seats: Vec<Seat>,
    eligible: BTreeMap<CheckpointId, bool>,
    /// What each epoch was captured since, and the newest of which the ledger knows no more.
    bases: BTreeMap<CheckpointId, CheckpointId>,
    forgotten: Option<CheckpointId>,
    /// Nothing from before this full sync can be built on.
    based_on: Option<CheckpointId>,
}

/// Room for one standby.
#[derive(Debug)]
struct Seat {
    /// Whose turn it is.
    to: usize,
    session: u64,
    /// Who has taken it.
    taken_by: Option<Member>,
}

/// How many hosts there are, and how many of them protect the app at a time.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub hosts: usize,
    pub standbys: usize,
    pub commit_on: CommitOn,
}

impl Shape {
    /// One protects, the third waits.
    pub const PAIR: Self = Self { hosts: 3, standbys: 1, commit_on: CommitOn::All };

    /// All others protect.
    pub const fn group(hosts: usize, commit_on: CommitOn) -> Self {
        Self { hosts, standbys: hosts - 1, commit_on }
    }
}

impl Ruler {
    fn seat_of(&self, member: &Member) -> Option<&Seat> {
        self.seats.iter().find(|seat| seat.taken_by.as_ref() == Some(member))
    }

    fn seat_in(&mut self, session: u64) -> Option<&mut Seat> {
        self.seats.iter_mut().find(|seat| seat.session == session && session > 0)
    }
}

#[derive(Debug)]
struct Keeper {
    life: u64,
    machine: Standby,
    session: u64,
    primary_host: usize,
    /// Epochs whose bytes all came.
    bodies: BTreeSet<CheckpointId>,
    applied: Option<CheckpointId>,
    fail_next_apply: bool,
    /// Until then nothing more is read from the stream.
    preparing_until: Nanos,
    won: Option<(Right, CheckpointId)>,
    /// What it has taken over.
    app: Option<usize>,
    status: StandbyStatus,
}

#[derive(Debug)]
struct Host {
    ruler: Option<Ruler>,
    /// None: the daemon does not run.
    keeper: Option<Keeper>,
    /// What a daemon must not remember.
    earlier: Option<(u64, Standby)>,
    offset: Nanos,
    paused_until: Nanos,
    cut: bool,
    unreachable: bool,
}

/// How a history may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    Protected,
    /// It ended by itself, or whoever could have gone on with it died first.
    Over,
}

#[derive(Debug)]
pub struct World {
    pub chance: Chance,
    shape: Shape,
    flaw: Flaw,
    consistency: Consistency,
    now: Nanos,
    agenda: Agenda<Event>,
    hosts: Vec<Host>,
    apps: Vec<App>,
    lives: u64,
    sessions: u64,
    loss_percent: u64,
    stream_at: BTreeMap<(u64, usize), Nanos>,
    register: Option<Register>,
    highest_term: Term,
    committed: Option<CheckpointId>,
    /// The newest that a store in the background was given while nobody protected the app.
    archived: Option<CheckpointId>,
    /// When each epoch's state was true, at the earliest.
    frozen: BTreeMap<CheckpointId, Nanos>,
    heard_until: Nanos,
    pub archives: u32,
    pub takeovers: u32,
    pub moves: u32,
    /// What the register asked for before its last swap.
    asked_quorum: u32,
    /// Takeovers that heard more than one.
    pub quorums: u32,
}

impl World {
    pub fn new(seed: u64, shape: Shape, flaw: Flaw) -> Self {
        let mut chance = Chance::new(seed);
        let loss_percent = chance.below(6);
        let host = |_| Host {
            ruler: None,
            keeper: None,
            earlier: None,
            offset: chance.micros(1_000, 10_000_000),
            paused_until: Nanos(0),
            cut: false,
            unreachable: false,
        };
        let hosts = (0..shape.hosts).map(host).collect();
        let mut world = Self {
            chance,
            shape,
            flaw,
            consistency: match seed % 4 {
                0 | 1 => Consistency::Timeline,
                2 => Consistency::Strong { on_standby_loss: OnStandbyLoss::Continue },
                _ => Consistency::Strong { on_standby_loss: OnStandbyLoss::Stop },
            },
            now: Nanos(0),
            agenda: Agenda::default(),
            hosts,
            apps: Vec::new(),
            lives: 0,
            sessions: 0,
            loss_percent,
            stream_at: BTreeMap::new(),
            register: None,
            highest_term: Term(0),
            committed: None,
            archived: None,
            archives: 0,
            frozen: BTreeMap::new(),
            heard_until: Nanos(0),
            takeovers: 0,
            moves: 0,
            asked_quorum: 1,
            quorums: 0,
        };
        (0..shape.hosts).for_each(|host| world.start_daemon(host));
        let life = world.new_life();
        let machine = Primary::new(world.config(Member::new(NAMES[0], life)), world.clock(0));
        let app = world.new_app(0, Permit::Shut, Output::Shut, false);
        world.crown(0, life, machine, app, false);
        world
    }

    pub fn hosts(&self) -> usize {
        self.shape.hosts
    }

    /// As many standbys as there can be could take over.
    pub fn everybody_is_eligible(&self) -> bool {
        let eligible = |ruler: &Ruler| {
            let group = ruler.machine.group(self.clock(self.apps[ruler.app].host));
            group.iter().filter(|view| view.eligible && view.why_not.is_none()).count()
        };
        let rulers = self.hosts.iter().filter_map(|host| host.ruler.as_ref());
        self.at_rest() == Ok(Rest::Protected) && rulers.map(eligible).max() == Some(self.shape.standbys)
    }

    pub fn now(&self) -> Nanos {
        self.now
    }

    pub fn fault_at(&mut self, at: Nanos, fault: Fault) {
        self.schedule(at, Event::Fault(fault));
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

    fn check(&mut self) {
        let audible: Vec<usize> = (0..self.apps.len()).filter(|app| self.audible(*app)).collect();
        assert!(audible.len() < 2, "two copies can be heard at {}", self.now);
        let speaks =
            |app: &&usize| self.apps[**app].output == Output::Passing && self.apps[**app].stands.is_none();
        if audible.iter().any(|app| speaks(&app)) {
            self.heard_until = self.now;
        }
        let term = self.register.as_ref().map_or(Term(0), |register| register.term);
        assert!(self.highest_term <= term, "the term fell from {} to {term}", self.highest_term);
        self.highest_term = term;
    }

    fn audible(&self, app: usize) -> bool {
        let extra = if self.flaw == Flaw::PermitTooLong { Nanos::from_millis(60) } else { Nanos(0) };
        let app = &self.apps[app];
        app.alive
            && match app.kernel {
                Permit::Open => true,
                Permit::Shut => false,
                Permit::Until(deadline) => self.clock(app.host) < deadline + extra,
            }
    }

    /// What must come about once all faults are over; an error says what has not.
    pub fn at_rest(&self) -> Result<Rest, String> {
        let rulers: Vec<&Ruler> = self.hosts.iter().filter_map(|host| host.ruler.as_ref()).collect();
        if let Some(ruler) =
            rulers.iter().find(|ruler| ruler.machine.phase() == Phase::Protected && self.audible(ruler.app))
        {
            let others = rulers.len() - 1;
            let rest = Ok(Rest::Protected);
            return if others == 0 {
                rest
            } else {
                Err(format!("{others} beside {:?}", ruler.machine.reign()))
            };
        }
        if !rulers.is_empty() {
            let phases: Vec<Phase> = rulers.iter().map(|ruler| ruler.machine.phase()).collect();
            return Err(format!("served, and {phases:?}"));
        }
        match self.heirs().as_slice() {
            [] => Ok(Rest::Over),
            heirs => Err(format!("somebody may take over: {heirs:?}")),
        }
    }

    /// Who could go on with the app, if enough are left for that. Where somebody has spoken up who held what nobody has
    /// any more, and what may have been committed, an operator decides.
    fn heirs(&self) -> Vec<&StandbyStatus> {
        let Some(register) = &self.register else { return Vec::new() };
        let heir = |(host, it): (usize, &'_ Host)| {
            let keeper = it.keeper.as_ref()?;
            let member = Member::new(NAMES[host], keeper.life);
            let held = keeper.machine.held().filter(|_| register.lists(&member))?;
            Some((Vote { member, held }, host))
        };
        let heirs: Vec<(Vote, usize)> = self.hosts.iter().enumerate().filter_map(heir).collect();
        // The word of one who has died meanwhile still counts.
        let is_gone = |vote: &&Vote| heirs.iter().all(|(heir, _)| heir.member != vote.member);
        let gone = register.votes.iter().filter(is_gone);
        let words: Vec<&Vote> = heirs.iter().map(|(heir, _)| heir).chain(gone).collect();
        let may = |heir: &Vote| {
            let behind = words.iter().filter(|word| word.held <= heir.held).count();
            behind >= register.quorum as usize
        };
        let able = heirs.iter().filter(|(heir, _)| may(heir));
        able.filter_map(|(_, host)| self.hosts[*host].keeper.as_ref().map(|keeper| &keeper.status)).collect()
    }

    fn clock(&self, host: usize) -> Nanos {
        self.now + self.hosts[host].offset
    }

    fn schedule(&mut self, at: Nanos, event: Event) {
        self.agenda.schedule(at, event);
    }

    fn after(&mut self, micros: (u64, u64), event: Event) {
        let span = self.chance.micros(micros.0, micros.1);
        self.schedule(self.now + span, event);
    }

    fn new_life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    fn new_app(&mut self, host: usize, kernel: Permit, output: Output, alive: bool) -> usize {
        let app = App { host, alive, kernel, output, guard_armed: false, stands: None, moving: false };
        self.apps.push(app);
        self.apps.len() - 1
    }

    fn config(&self, me: Member) -> PrimaryConfig {
        let mut config = PrimaryConfig::new(me, Fencing::Register);
        config.full_sync_retry = Nanos::from_millis(200);
        config.consistency = self.consistency;
        config.archive = Some(Nanos::from_millis(100));
        (config.standbys, config.commit_on) = (self.shape.standbys as u32, self.shape.commit_on);
        config
    }

    fn start_daemon(&mut self, host: usize) {
        if self.hosts[host].keeper.is_some() {
            return;
        }
        let earlier = self.hosts[host].earlier.take();
        let (life, machine) = match earlier.filter(|_| self.flaw == Flaw::RemembersItsEarlierLife) {
            Some(earlier) => earlier,
            None => self.new_keeper(host),
        };
        self.hosts[host].keeper = Some(Keeper {
            life,
            machine,
            session: 0,
            primary_host: 0,
            bodies: BTreeSet::new(),
            applied: None,
            fail_next_apply: false,
            preparing_until: Nanos(0),
            won: None,
            app: None,
            status: StandbyStatus::Empty,
        });
        self.step_standby(host, StandbyEvent::StreamEnded);
        self.after((0, 10_000), Event::Tick(Whom::Standby(host, life)));
    }

    fn new_keeper(&mut self, host: usize) -> (u64, Standby) {
        let life = self.new_life();
        let me = Member::new(NAMES[host], life);
        let config = StandbyConfig { me, timing: replica::Timing::default(), fencing: Fencing::Register };
        (life, Standby::new(config))
    }

    /// A primary begins here.
    fn crown(&mut self, host: usize, life: u64, machine: Primary, app: usize, of_daemon: bool) {
        self.hosts[host].ruler = Some(Ruler {
            life,
            machine,
            app,
            of_daemon,
            heartbeats: of_daemon,
            seats: (1..=self.shape.standbys)
                .map(|next| Seat { to: (host + next) % self.shape.hosts, session: 0, taken_by: None })
                .collect(),
            eligible: BTreeMap::new(),
            bases: BTreeMap::new(),
            forgotten: None,
            based_on: None,
        });
        self.after((0, 10_000), Event::Tick(Whom::Primary(host, life)));
        self.after((0, 20_000), Event::Heartbeat(host, life));
        self.after((0, 30_000), Event::Connect(host, life));
        if of_daemon {
            self.step_primary(host, PrimaryEvent::Tick);
        }
    }

    fn ruler(&mut self, host: usize, life: u64) -> Option<&mut Ruler> {
        self.hosts[host].ruler.as_mut().filter(|ruler| ruler.life == life)
    }

    fn happen(&mut self, event: Event) {
        let host = match &event {
            Event::Tick(Whom::Primary(host, _) | Whom::Standby(host, _))
            | Event::Heartbeat(host, _)
            | Event::Connect(host, _)
            | Event::Primary(host, ..)
            | Event::Standby(host, ..)
            | Event::Message(_, host, _)
            | Event::StreamEnd(host, _) => Some(*host),
            Event::Question(..) | Event::GuardSpeaks(..) | Event::Comes(_) | Event::Fault(_) => None,
        };
        // A paused host finds all of it when it goes on, in the old order.
        if let Some(host) = host
            && self.now < self.hosts[host].paused_until
        {
            return self.schedule(self.hosts[host].paused_until, event);
        }
        match event {
            Event::Tick(whom) => self.tick(whom),
            Event::Heartbeat(host, life) => self.send_heartbeat(host, life),
            Event::Connect(host, life) => self.try_connect(host, life),
            Event::Primary(host, life, event) => {
                if self.ruler(host, life).is_some() {
                    self.step_primary(host, event);
                }
            }
            Event::Standby(host, life, event) => {
                if self.hosts[host].keeper.as_ref().is_some_and(|keeper| keeper.life == life) {
                    self.step_standby(host, event);
                }
            }
            Event::Message(from, to, message) => {
                self.primary_receives(to, &message);
                self.standby_receives(from, to, message);
            }
            Event::Question(whom, ask, question) => self.register_answers(whom, ask, *question),
            Event::StreamEnd(host, session) => self.stream_ended(host, session),
            Event::GuardSpeaks(app, to, reign, tries) => self.guard_speaks(app, &to, reign, tries),
            Event::Comes(host) => self.start_daemon(host),
            Event::Fault(fault) => self.fault(fault),
        }
    }

    fn tick(&mut self, whom: Whom) {
        match whom {
            Whom::Primary(host, life) if self.ruler(host, life).is_some() => {
                self.schedule(self.now + TICK, Event::Tick(whom));
                self.step_primary(host, PrimaryEvent::Tick);
            }
            Whom::Standby(host, life)
                if self.hosts[host].keeper.as_ref().is_some_and(|keeper| keeper.life == life) =>
            {
                self.schedule(self.now + TICK, Event::Tick(whom));
                self.step_standby(host, StandbyEvent::Tick);
            }
            Whom::Primary(..) | Whom::Standby(..) => {}
        }
    }

    fn send_heartbeat(&mut self, host: usize, life: u64) {
        let sent_at = self.clock(host);
        let Some(ruler) = self.ruler(host, life) else { return };
        let (reign, progress) = (ruler.machine.reign(), ruler.machine.progress());
        let to: Vec<usize> = ruler.seats.iter().map(|seat| seat.to).filter(|_| ruler.heartbeats).collect();
        self.schedule(self.now + Nanos::from_millis(20), Event::Heartbeat(host, life));
        for to in to {
            self.datagram(host, to, Message::Heartbeat { reign, sent_at, progress });
        }
    }

    /// Where there is only one seat, at one after the other, until somebody takes it.
    fn try_connect(&mut self, host: usize, life: u64) {
        let (hosts, turns) = (self.shape.hosts, self.shape.standbys == 1);
        let mut sessions = self.sessions;
        let Some(ruler) = self.ruler(host, life) else { return };
        let (reign, mut calls) = (ruler.machine.reign(), Vec::new());
        let begun = ruler.heartbeats;
        for seat in ruler.seats.iter_mut().filter(|seat| begun && seat.taken_by.is_none()) {
            if seat.session > 0 && turns {
                let next = (seat.to + 1) % hosts;
                seat.to = if next == host { (next + 1) % hosts } else { next };
            }
            sessions += 1;
            seat.session = sessions;
            calls.push((seat.to, sessions));
        }
        self.sessions = sessions;
        for (to, session) in calls {
            self.datagram(host, to, Message::Connect { session, reign });
        }
        self.after((20_000, 40_000), Event::Connect(host, life));
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.hosts[from].cut || self.hosts[to].cut
    }

    fn datagram(&mut self, from: usize, to: usize, message: Message) {
        if self.is_cut(from, to) {
            return;
        }
        for span in datagram(&mut self.chance, self.loss_percent) {
            self.schedule(self.now + span, Event::Message(from, to, message.clone()));
        }
    }

    /// On a page stream: in order, or not at all, and then both ends notice, each in its time.
    fn stream(&mut self, from: usize, to: usize, session: u64, message: Message) {
        if self.is_cut(from, to) || breaks(&mut self.chance, self.loss_percent) {
            self.after((500, 300_000), Event::StreamEnd(from, session));
            return self.after((500, 300_000), Event::StreamEnd(to, session));
        }
        let span = self.chance.micros(50, 3_000);
        let before = self.stream_at.get(&(session, to)).copied().unwrap_or_default();
        let at = (self.now + span).max(before);
        self.stream_at.insert((session, to), at);
        self.schedule(at, Event::Message(from, to, message));
    }

    fn stream_ended(&mut self, host: usize, session: u64) {
        let seat = self.hosts[host].ruler.as_mut().and_then(|ruler| ruler.seat_in(session));
        if let Some(seat) = seat
            && let Some(standby) = seat.taken_by.take()
        {
            // Where it was it may still hold a copy: that one is asked first.
            seat.session = 0;
            self.step_primary(host, PrimaryEvent::PeerLost { standby, why: "reset".to_owned() });
        }
        if let Some(keeper) = self.hosts[host].keeper.as_mut().filter(|keeper| keeper.session == session) {
            keeper.session = 0;
            self.step_standby(host, StandbyEvent::StreamEnded);
        }
    }

    fn register_answers(&mut self, whom: Whom, ask: Ask, question: Question) {
        // What is asked is asked of what is shown.
        let held = self.register.clone();
        let mut shown = held.clone().map(|register| self.flaw.shows(whom, register));
        let answer = decide(&mut shown, question);
        self.register = match &answer {
            Answer::Won => shown.map(|new| self.flaw.writes(whom, new)),
            Answer::Value(_) | Answer::Lost(_) | Answer::Unreachable { .. } => held.clone(),
        };
        if answer == Answer::Won {
            self.asked_quorum = held.map_or(1, |register| register.quorum);
        }
        let (Whom::Primary(host, _) | Whom::Standby(host, _)) = whom;
        if self.hosts[host].unreachable || self.chance.percent(2) {
            return; // It took place, and nobody hears of it.
        }
        self.after((100, 4_000), answer_to(whom, ask, answer));
    }

    fn ask(&mut self, whom: Whom, number: Ask, question: Question) {
        let (Whom::Primary(host, _) | Whom::Standby(host, _)) = whom;
        let (arrives, refused) = ask(&mut self.chance, self.hosts[host].unreachable);
        if let Some(span) = refused {
            let answer = Answer::Unreachable { why: "no route".to_owned() };
            self.schedule(self.now + span, answer_to(whom, number, answer));
        }
        if let Some(span) = arrives {
            self.schedule(self.now + span, Event::Question(whom, number, Box::new(question)));
        }
    }
}

fn answer_to(whom: Whom, ask: Ask, answer: Answer) -> Event {
    match whom {
        Whom::Primary(host, life) => Event::Primary(host, life, PrimaryEvent::RegisterAnswer { ask, answer }),
        Whom::Standby(host, life) => Event::Standby(host, life, StandbyEvent::RegisterAnswer { ask, answer }),
    }
}
