//! Two hosts, a network between them and a register, under one virtual clock.
//!
//! Each host has a clock of its own (an offset apart), a manager that can be paused or die, and on the
//! primary's a guard and a kernel permit that work without it. Datagrams (heartbeats, notices, the guard's
//! word, questions to the register) get lost, late and doubled; a stream keeps its order, and breaks.

mod faults;

use std::collections::{BTreeMap, BTreeSet};

use image::{CheckpointId, Member, Register, Term};
use replica::primary::{AppExit, Ending, Permit, Phase, Switchover};
use replica::standby::{Discarded, StandbyStatus};
use replica::{
    Answer, Ask, Fencing, Nanos, Primary, PrimaryAction, PrimaryConfig, PrimaryEvent, Question, Reign,
    Standby, StandbyAction, StandbyConfig, StandbyEvent,
};

use crate::chance::Chance;
use crate::common::{Agenda, Message, TICK, ask, breaks, datagram, decide};
use crate::said::Said;
pub use faults::{Fault, Flaw};

pub const A: usize = 0;
pub const B: usize = 1;
/// Longer than an app can be without protection until its calls are refused, and than two epochs take.
const SYNC_MAX: Nanos = Nanos::from_millis(2_000);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    Tick(usize, u64),
    Heartbeat(u64),
    Connect(u64),
    Primary(u64, PrimaryEvent),
    Standby(u64, StandbyEvent),
    Message(usize, Message),
    Question(usize, u64, Ask, Box<Question>),
    StreamEnd(usize, u64),
    GuardSpeaks(Reign, u32),
    Fault(Fault),
}

#[derive(Debug)]
struct PrimaryHost {
    alive: bool,
    life: u64,
    machine: Option<Primary>,
    app_alive: bool,
    kernel: Permit,
    guard_armed: bool,
    heartbeats: bool,
    session: u64,
    connected: bool,
    /// Who is connected, or was last.
    standby: Member,
    eligible: BTreeMap<CheckpointId, bool>,
    fail_next_capture: bool,
    /// Since this epoch the app stands still.
    stands: Option<CheckpointId>,
    /// The standby was told of a planned move, and nobody has called it off.
    moving: bool,
    /// Its end, which is noticed when it is to go on.
    ended_standing: Option<AppExit>,
    over: Option<Ending>,
}

#[derive(Debug)]
struct StandbyHost {
    life: u64,
    machine: Option<Standby>,
    session: u64,
    /// Epochs whose bytes all came.
    bodies: BTreeSet<CheckpointId>,
    applied: Option<CheckpointId>,
    fail_next_apply: bool,
    /// Until then nothing more is read from the stream.
    preparing_until: Nanos,
    serving: Option<Term>,
    status: StandbyStatus,
}

#[derive(Debug)]
pub struct World {
    pub chance: Chance,
    flaw: Flaw,
    now: Nanos,
    agenda: Agenda<Event>,
    a: PrimaryHost,
    b: StandbyHost,
    said: Said,
    offset: [Nanos; 2],
    paused_until: [Nanos; 2],
    cut: [bool; 2],
    unreachable: [bool; 2],
    loss_percent: u64,
    stream_at: [Nanos; 2],
    register: Option<Register>,
    committed: Option<CheckpointId>,
    highest_term: Term,
    pub takeovers: u32,
    pub moves: u32,
    pub called_off: u32,
    pub commits: u32,
    pub copies_broken: u32,
}

impl World {
    pub fn new(seed: u64, flaw: Flaw) -> Self {
        let mut chance = Chance::new(seed);
        let offset = [chance.micros(1_000, 10_000_000), chance.micros(1_000, 10_000_000)];
        let loss_percent = chance.below(6);
        let a = PrimaryHost {
            alive: true,
            life: 0,
            machine: None,
            app_alive: false,
            kernel: Permit::Shut,
            guard_armed: false,
            heartbeats: false,
            session: 0,
            connected: false,
            standby: Member::new("b", 0),
            eligible: BTreeMap::new(),
            fail_next_capture: false,
            stands: None,
            moving: false,
            ended_standing: None,
            over: None,
        };
        let b = StandbyHost {
            life: 0,
            machine: None,
            session: 0,
            bodies: BTreeSet::new(),
            applied: None,
            fail_next_apply: false,
            preparing_until: Nanos(0),
            serving: None,
            status: StandbyStatus::Empty,
        };
        let mut world = Self {
            chance,
            flaw,
            now: Nanos(0),
            agenda: Agenda::default(),
            a,
            b,
            said: Said::new(seed, flaw == Flaw::GateLeaks),
            offset,
            paused_until: [Nanos(0); 2],
            cut: [false; 2],
            unreachable: [false; 2],
            loss_percent,
            stream_at: [Nanos(0); 2],
            register: None,
            committed: None,
            highest_term: Term(0),
            takeovers: 0,
            moves: 0,
            called_off: 0,
            commits: 0,
            copies_broken: 0,
        };
        world.start_standby();
        world.start_manager();
        world
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
        self.said.pass_time(self.now, self.primary_audible() && self.a.stands.is_none());
        let audible = [self.primary_audible(), self.b.serving.is_some()];
        assert!(audible != [true, true], "two copies can be heard at {}", self.now);
        let term = self.register.as_ref().map_or(Term(0), |register| register.term);
        assert!(self.highest_term <= term, "the term fell from {} to {term}", self.highest_term);
        self.highest_term = term;
    }

    fn primary_audible(&self) -> bool {
        let extra = if self.flaw == Flaw::PermitTooLong { Nanos::from_millis(60) } else { Nanos(0) };
        self.a.app_alive
            && match self.a.kernel {
                Permit::Open => true,
                Permit::Shut => false,
                Permit::Until(deadline) => self.clock(A) < deadline + extra,
            }
    }

    /// What must come about once all faults are over; an error says what has not.
    pub fn settled(&self) -> Result<(), String> {
        let owner = self.register.as_ref().map(|register| register.owner.name.as_str());
        if let Some(ending @ (Ending::App(_) | Ending::HandedOver { .. })) = &self.a.over
            && owner == Some("a")
        {
            return if self.primary_audible() { Err(format!("audible after {ending:?}")) } else { Ok(()) };
        }
        if owner == Some("b") {
            let lives = self.b.machine.is_some() && self.b.status != StandbyStatus::Empty;
            let fenced = !self.a.app_alive || self.a.machine.is_none();
            // The word that the app ended may come while the swap is under way: then nobody is to serve.
            let ended = matches!(self.b.status, StandbyStatus::Discarded(Discarded::AppEnded(_)));
            let broken = self.is_broken();
            let serves = matches!(self.b.status, StandbyStatus::Serving { .. });
            let serves = serves || ended || broken || self.b.life > 1 || !lives;
            return if serves && fenced {
                Ok(())
            } else {
                Err(format!("b owns the term and is {:?}", self.b.status))
            };
        }
        match &self.a.machine {
            Some(machine) if machine.phase() == Phase::Protected && self.primary_audible() => {
                let waits = self.said.oldest_sync().map_or(Nanos(0), |since| self.now.since(since));
                if waits < SYNC_MAX { Ok(()) } else { Err(format!("a call of sync has waited for {waits}")) }
            }
            Some(machine) => Err(format!("the primary is {:?}, permit {:?}", machine.phase(), self.a.kernel)),
            None => {
                let named =
                    self.register.as_ref().is_some_and(|register| register.lists(&self.standby_member()));
                if named && !self.is_broken() {
                    Err(format!("the standby may take over, and is {:?}", self.b.status))
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Two faults at once: the copy broke when the primary died.
    fn is_broken(&self) -> bool {
        matches!(self.b.status, StandbyStatus::Discarded(Discarded::Broken(..)))
    }

    fn clock(&self, host: usize) -> Nanos {
        self.now + self.offset[host]
    }

    fn schedule(&mut self, at: Nanos, event: Event) {
        self.agenda.schedule(at, event);
    }

    fn after(&mut self, micros: (u64, u64), event: Event) {
        let span = self.chance.micros(micros.0, micros.1);
        self.schedule(self.now + span, event);
    }

    fn standby_member(&self) -> Member {
        Member::new("b", self.b.life)
    }

    fn start_manager(&mut self) {
        self.a.life += 1;
        let mut config = PrimaryConfig::new(Member::new("a", self.a.life), Fencing::Register);
        config.full_sync_retry = Nanos::from_millis(200);
        config.consistency = self.said.consistency;
        // Somebody has to be there for it: no history may end with nobody serving.
        config.abandon_standby = self.a.life > 1;
        self.a.machine = Some(Primary::new(config, self.clock(A)));
        self.a.connected = false;
        self.a.heartbeats = false;
        self.said.forget_syncs();
        self.after((0, 10_000), Event::Tick(A, self.a.life));
        self.after((0, 20_000), Event::Heartbeat(self.a.life));
        self.after((0, 30_000), Event::Connect(self.a.life));
    }

    fn start_standby(&mut self) {
        self.b.life += 1;
        let config = StandbyConfig {
            me: self.standby_member(),
            timing: replica::Timing::default(),
            fencing: Fencing::Register,
        };
        self.b.machine = Some(Standby::new(config));
        self.after((0, 10_000), Event::Tick(B, self.b.life));
    }

    fn happen(&mut self, event: Event) {
        let host = match &event {
            Event::Tick(host, _) | Event::Message(host, _) | Event::StreamEnd(host, _) => Some(*host),
            Event::Heartbeat(_) | Event::Connect(_) | Event::Primary(..) => Some(A),
            Event::Standby(..) => Some(B),
            Event::Question(..) | Event::GuardSpeaks(..) | Event::Fault(_) => None,
        };
        // A paused manager finds all of it when it goes on, in the old order.
        if let Some(host) = host
            && self.now < self.paused_until[host]
        {
            return self.schedule(self.paused_until[host], event);
        }
        match event {
            Event::Tick(host, life) => self.tick(host, life),
            Event::Heartbeat(life) => self.send_heartbeat(life),
            Event::Connect(life) => self.try_connect(life),
            Event::Primary(life, event) if life == self.a.life => self.step_primary(event),
            Event::Standby(life, event) if life == self.b.life => self.step_standby(event),
            Event::Primary(..) | Event::Standby(..) => {}
            Event::Message(A, message) => self.primary_receives(message),
            Event::Message(_, message) => self.standby_receives(message),
            Event::Question(host, life, ask, question) => self.register_answers(host, life, ask, *question),
            Event::StreamEnd(host, session) => self.stream_ended(host, session),
            Event::GuardSpeaks(reign, tries) => self.guard_speaks(reign, tries),
            Event::Fault(fault) => self.fault(fault),
        }
    }

    fn tick(&mut self, host: usize, life: u64) {
        let own = if host == A { self.a.life } else { self.b.life };
        let alive = if host == A { self.a.machine.is_some() } else { self.b.machine.is_some() };
        if own != life || !alive {
            return;
        }
        self.schedule(self.now + TICK, Event::Tick(host, life));
        if host == A && self.a.heartbeats && self.a.app_alive && self.chance.percent(10) {
            let call = self.said.sync(self.now);
            let patience = self.chance.percent(50).then(|| self.chance.micros(0, 500_000));
            self.step_primary(PrimaryEvent::SyncAsked { call, patience });
        }
        if host == A { self.step_primary(PrimaryEvent::Tick) } else { self.step_standby(StandbyEvent::Tick) }
    }

    fn send_heartbeat(&mut self, life: u64) {
        let Some(machine) = self.a.machine.as_ref().filter(|_| life == self.a.life) else { return };
        let message = Message::Heartbeat {
            reign: machine.reign(),
            sent_at: self.clock(A),
            progress: machine.progress(),
        };
        self.schedule(self.now + Nanos::from_millis(20), Event::Heartbeat(life));
        if self.a.heartbeats {
            self.datagram(B, message);
        }
    }

    fn try_connect(&mut self, life: u64) {
        let Some(machine) = self.a.machine.as_ref().filter(|_| life == self.a.life) else { return };
        let reign = machine.reign();
        self.after((20_000, 40_000), Event::Connect(life));
        if self.a.heartbeats && !self.a.connected {
            self.a.session += 1;
            self.datagram(B, Message::Connect { session: self.a.session, reign });
        }
    }

    fn datagram(&mut self, to: usize, message: Message) {
        if self.cut[to] {
            return;
        }
        for span in datagram(&mut self.chance, self.loss_percent) {
            self.schedule(self.now + span, Event::Message(to, message.clone()));
        }
    }

    /// On the page stream: in order, or not at all, and then both ends notice, each in its time.
    fn stream(&mut self, to: usize, session: u64, message: Message) {
        if self.cut[to] || breaks(&mut self.chance, self.loss_percent) {
            self.after((500, 300_000), Event::StreamEnd(A, session));
            return self.after((500, 300_000), Event::StreamEnd(B, session));
        }
        let span = self.chance.micros(50, 3_000);
        self.stream_at[to] = (self.now + span).max(self.stream_at[to]);
        self.schedule(self.stream_at[to], Event::Message(to, message));
    }

    fn stream_ended(&mut self, host: usize, session: u64) {
        if host == A && self.a.connected && session == self.a.session {
            self.a.connected = false;
            let (standby, why) = (self.a.standby.clone(), "reset".to_owned());
            self.step_primary(PrimaryEvent::PeerLost { standby, why });
        } else if host == B && session == self.b.session {
            self.b.session = 0;
            self.step_standby(StandbyEvent::StreamEnded);
        }
    }

    fn register_answers(&mut self, host: usize, life: u64, ask: Ask, question: Question) {
        let answer = match question {
            Question::Swap { new, .. } if self.flaw == Flaw::RegisterForgets => {
                self.register = Some(new);
                Answer::Won
            }
            question => decide(&mut self.register, question),
        };
        if self.unreachable[host] || self.chance.percent(2) {
            return; // It took place, and nobody hears of it.
        }
        let event = match host {
            A => Event::Primary(life, PrimaryEvent::RegisterAnswer { ask, answer }),
            _ => Event::Standby(life, StandbyEvent::RegisterAnswer { ask, answer }),
        };
        self.after((100, 4_000), event);
    }

    fn ask(&mut self, host: usize, number: Ask, question: Question) {
        let life = if host == A { self.a.life } else { self.b.life };
        let (arrives, refused) = ask(&mut self.chance, self.unreachable[host]);
        if let Some(span) = refused {
            let answer = Answer::Unreachable { why: "no route".to_owned() };
            let event = match host {
                A => Event::Primary(life, PrimaryEvent::RegisterAnswer { ask: number, answer }),
                _ => Event::Standby(life, StandbyEvent::RegisterAnswer { ask: number, answer }),
            };
            self.schedule(self.now + span, event);
        }
        if let Some(span) = arrives {
            self.schedule(self.now + span, Event::Question(host, life, number, Box::new(question)));
        }
    }

    fn primary_receives(&mut self, message: Message) {
        let Some(machine) = &self.a.machine else { return };
        let live = |session: u64| session == self.a.session;
        let event = match message {
            Message::Welcome { session, standby, held } if live(session) && !self.a.connected => {
                self.a.connected = true;
                self.a.standby = standby.clone();
                Some(PrimaryEvent::PeerConnected { standby, held })
            }
            Message::Ack { session, id } if live(session) && self.a.connected => {
                Some(PrimaryEvent::Acked { from: self.a.standby.clone(), id })
            }
            Message::RefuseEpoch { session, id, why } if live(session) && self.a.connected => {
                let from = self.a.standby.clone();
                Some(PrimaryEvent::EpochRefused { from, id, why: why.to_string() })
            }
            message => message.to_primary(machine.reign().term),
        };
        if let Some(event) = event {
            self.step_primary(event);
        }
    }

    fn standby_receives(&mut self, message: Message) {
        let live = |session: u64| session == self.b.session;
        if matches!(message, Message::Header { .. } | Message::Body { .. })
            && self.now < self.b.preparing_until
        {
            return self.schedule(self.b.preparing_until, Event::Message(B, message));
        }
        let event = match message {
            Message::Connect { session, reign } if session > self.b.session => {
                self.b.session = session;
                Some(StandbyEvent::PrimaryConnected { primary: Member::new("a", reign.incarnation.0), reign })
            }
            Message::Header { session, id, sync, eligible } if live(session) => {
                Some(StandbyEvent::EpochBegins { id, sync, eligible })
            }
            Message::Body { session, id } if live(session) => {
                self.b.bodies.insert(id);
                let until = self.now + self.chance.micros(100, 2_000);
                self.b.preparing_until = until;
                return self.schedule(until, Event::Standby(self.b.life, StandbyEvent::Prepared { id }));
            }
            message => message.into_standby_event(),
        };
        if let Some(event) = event {
            self.step_standby(event);
        }
    }

    fn step_primary(&mut self, event: PrimaryEvent) {
        let (now, mut actions) = (self.clock(A), Vec::new());
        let Some(machine) = &mut self.a.machine else { return };
        machine.step(now, event, &mut actions);
        for action in actions {
            self.do_for_primary(action);
        }
    }

    fn do_for_primary(&mut self, action: PrimaryAction) {
        let (life, session) = (self.a.life, self.a.session);
        match action {
            PrimaryAction::StartApp { .. } => {
                (self.a.app_alive, self.a.heartbeats) = (true, true);
                (self.a.stands, self.a.moving, self.a.ended_standing) = (None, false, None);
                self.said.start_anew();
            }
            PrimaryAction::StartFullSync { id, eligible, to: _ } => {
                self.a.eligible.insert(id, eligible);
                self.capture(id, (20_000, 200_000));
            }
            PrimaryAction::CaptureNow { id, .. } => self.capture(id, (500, 4_000)),
            PrimaryAction::CaptureLast { id, .. } => {
                self.a.stands = Some(id).filter(|_| self.flaw != Flaw::RunsOn);
                self.capture(id, (500, 4_000));
            }
            PrimaryAction::Thaw => self.thaw(),
            PrimaryAction::Switchover(Switchover::Told) => self.a.moving = true,
            PrimaryAction::Switchover(Switchover::CalledOff { .. }) => self.called_off += 1,
            PrimaryAction::SendEpoch { id, sync, to: _ } => {
                let eligible = self.a.eligible.get(&id).copied().unwrap_or(true);
                self.stream(B, session, Message::Header { session, id, sync, eligible });
                self.stream(B, session, Message::Body { session, id });
            }
            PrimaryAction::Committed(committed) => {
                self.committed = self.committed.max(Some(committed.id()));
                self.commits += 1;
            }
            PrimaryAction::SetPermit(permit) => self.a.kernel = permit,
            PrimaryAction::SetOutput(output) => self.said.set(output),
            PrimaryAction::Synced { call, .. } => self.said.synced(call),
            PrimaryAction::SyncRefused { call, .. } => self.said.sync_refused(call),
            PrimaryAction::Release(id) => self.said.release(id, self.primary_audible()),
            PrimaryAction::ArmGuard => self.a.guard_armed = true,
            PrimaryAction::DisarmGuard => self.a.guard_armed = false,
            PrimaryAction::AskArbiter { ask, question } => self.ask(A, ask, question),
            PrimaryAction::Tell { notice, .. } => self.datagram(B, Message::Notice(notice)),
            PrimaryAction::StopHeartbeats => self.a.heartbeats = false,
            PrimaryAction::DropPeer { .. } => {
                self.a.connected = false;
                self.after((50, 2_000), Event::StreamEnd(B, session));
            }
            PrimaryAction::KillApp => self.a.app_alive = false,
            PrimaryAction::StopApp => {
                self.a.app_alive = false;
                self.after((100, 900), Event::Primary(life, PrimaryEvent::AppExited(AppExit::Code(0))));
            }
            PrimaryAction::RestartApp => {
                self.a.app_alive = true;
                self.said.start_anew();
            }
            PrimaryAction::EndPair(ending) => {
                self.a.machine = None;
                self.a.over = Some(ending);
            }
            // Without anybody who takes over again, nothing can be seen to be wrong with it here.
            PrimaryAction::Archive(_) => unreachable!("nobody asked for an archive"),
            PrimaryAction::GiveUpFullSync(id) => {
                if self.chance.percent(70) {
                    let failed = PrimaryEvent::CaptureFailed { id, why: "nobody wants it".to_owned() };
                    self.after((100, 5_000), Event::Primary(life, failed));
                }
            }
            PrimaryAction::Switchover(Switchover::Begun)
            | PrimaryAction::ReturnToLedger { .. }
            | PrimaryAction::Forget(_)
            | PrimaryAction::Report(_)
            | PrimaryAction::Status(_) => {}
        }
    }

    fn thaw(&mut self) {
        (self.a.stands, self.a.moving) = (None, false);
        if let Some(exit) = self.a.ended_standing.take() {
            self.after((20, 500), Event::Primary(self.a.life, PrimaryEvent::AppExited(exit)));
        }
    }

    fn capture(&mut self, id: CheckpointId, micros: (u64, u64)) {
        self.said.captures(id, self.now);
        let event = if std::mem::take(&mut self.a.fail_next_capture) {
            PrimaryEvent::CaptureFailed { id, why: "fd 9 is an io_uring".to_owned() }
        } else {
            PrimaryEvent::Captured { id }
        };
        self.after(micros, Event::Primary(self.a.life, event));
    }

    fn step_standby(&mut self, event: StandbyEvent) {
        let (now, mut actions) = (self.clock(B), Vec::new());
        let Some(machine) = &mut self.b.machine else { return };
        machine.step(now, event, &mut actions);
        for action in actions {
            self.do_for_standby(action);
        }
    }

    fn do_for_standby(&mut self, action: StandbyAction) {
        let (life, session, me) = (self.b.life, self.b.session, self.standby_member());
        match action {
            StandbyAction::Welcome { held } => {
                self.stream(A, session, Message::Welcome { session, standby: me, held });
            }
            StandbyAction::Refuse(refusal) => self.datagram(A, Message::Refusal(refusal)),
            StandbyAction::Receive { id } if self.flaw == Flaw::PreparedTooEarly => {
                self.schedule(self.now, Event::Standby(life, StandbyEvent::Prepared { id }));
            }
            StandbyAction::Receive { .. } | StandbyAction::DropHalf { .. } => {}
            StandbyAction::RefuseEpoch { id, why } => {
                self.stream(A, session, Message::RefuseEpoch { session, id, why });
            }
            StandbyAction::EndStream { .. } if self.flaw == Flaw::LossKeptSilent => {}
            StandbyAction::EndStream { .. } => {
                self.b.session = 0;
                self.after((50, 3_000), Event::StreamEnd(A, session));
            }
            StandbyAction::Ack { id } => self.stream(A, session, Message::Ack { session, id }),
            StandbyAction::Apply { id } => {
                self.b.applied = Some(id);
                let event = match std::mem::take(&mut self.b.fail_next_apply) {
                    true => StandbyEvent::ApplyFailed { id, why: "no memory".to_owned() },
                    false => StandbyEvent::Applied { id },
                };
                self.after((100, 30_000), Event::Standby(life, event));
            }
            StandbyAction::AnswerHeartbeat { sent_at, held } => {
                self.datagram(A, Message::Answer { from: me, sent_at, held });
            }
            StandbyAction::AskArbiter { ask, question } => self.ask(B, ask, question),
            StandbyAction::Promote { right, from } => self.promote(right.term(), from),
            StandbyAction::Discard(why) => {
                self.copies_broken += u32::from(matches!(why, Discarded::Broken(..)));
                (self.b.applied, self.b.serving) = (None, None);
            }
            StandbyAction::ConfirmEnd { .. } => self.datagram(A, Message::ConfirmEnd(me)),
            StandbyAction::Status(status) => self.b.status = status,
        }
    }

    fn promote(&mut self, term: Term, from: CheckpointId) {
        assert!(Some(from) >= self.committed, "{:?} was committed, {from} is restored", self.committed);
        assert!(self.b.bodies.contains(&from), "the committed epoch {from} never came whole");
        assert_eq!(self.b.applied, Some(from), "what is restored was not applied");
        assert!(from.term < term, "{from} is restored in term {term}");
        self.said.check_takeover(from);
        if self.a.moving {
            assert!(self.a.stands == Some(from), "a planned move lost what came after {from}");
            self.moves += 1;
        }
        self.b.serving = Some(term);
        self.takeovers += 1;
        self.after((500, 5_000), Event::Standby(self.b.life, StandbyEvent::RestoreFinished));
    }
}
