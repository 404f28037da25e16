//! The machines' steps, and what their actions come to.

use image::{CheckpointId, Member, Sync};
use replica::primary::{AppExit, Output, Permit, Switchover};
use replica::{Grounds, Primary, PrimaryAction, PrimaryEvent, Right, StandbyAction, StandbyEvent};

use super::{Consistency, Event, Flaw, Message, NAMES, Ruler, Whom, World};

impl Ruler {
    /// The engine carries what changed since `parent`, if its ledger goes back so far.
    fn note_base(&mut self, id: CheckpointId, parent: CheckpointId) {
        assert!(
            Some(parent) >= self.forgotten,
            "{id} is to go on from {parent}, which the ledger has forgotten"
        );
        assert!(Some(parent) >= self.based_on, "{id} is to go on from {parent}, before the last full sync");
        self.bases.insert(id, parent);
    }
}

impl World {
    pub(super) fn primary_receives(&mut self, host: usize, message: &Message) {
        let Some(ruler) = &mut self.hosts[host].ruler else { return };
        let current = |session: u64| ruler.seats.iter().find(|seat| seat.session == session);
        let taken_by = |session: u64| current(session).and_then(|seat| seat.taken_by.clone());
        let event = match message {
            Message::Welcome { session, standby, held } => {
                let Some(seat) = ruler.seat_in(*session).filter(|seat| seat.taken_by.is_none()) else {
                    return;
                };
                seat.taken_by = Some(standby.clone());
                PrimaryEvent::PeerConnected { standby: standby.clone(), held: *held }
            }
            Message::Ack { session, id } => {
                let Some(from) = taken_by(*session) else { return };
                if self.flaw == Flaw::OneSpeaksForAll {
                    let others = ruler.seats.iter().filter_map(|seat| seat.taken_by.clone());
                    let others: Vec<Member> = others.filter(|other| *other != from).collect();
                    for from in others {
                        self.step_primary(host, PrimaryEvent::Acked { from, id: *id });
                    }
                }
                PrimaryEvent::Acked { from, id: *id }
            }
            Message::RefuseEpoch { session, id, why } => {
                let Some(from) = taken_by(*session) else { return };
                PrimaryEvent::EpochRefused { from, id: *id, why: why.to_string() }
            }
            message => match message.to_primary(ruler.machine.reign().term) {
                Some(event) => event,
                None => return,
            },
        };
        self.step_primary(host, event);
    }

    pub(super) fn standby_receives(&mut self, from: usize, host: usize, message: Message) {
        let now = self.now;
        let Some(keeper) = &mut self.hosts[host].keeper else { return };
        let current = |session: u64| session == keeper.session;
        if matches!(message, Message::Header { .. } | Message::Body { .. }) && now < keeper.preparing_until {
            let until = keeper.preparing_until;
            return self.schedule(until, Event::Message(from, host, message));
        }
        let life = keeper.life;
        let event = match message {
            Message::Connect { session, reign } if session > keeper.session => {
                let primary = Member::new(NAMES[from], reign.incarnation.0);
                return self.primary_connects(
                    from,
                    host,
                    session,
                    StandbyEvent::PrimaryConnected { primary, reign },
                );
            }
            Message::Header { session, id, sync, eligible } if current(session) => {
                StandbyEvent::EpochBegins { id, sync, eligible }
            }
            Message::Body { session, id } if current(session) => {
                keeper.bodies.insert(id);
                let until = now + self.chance.micros(100, 2_000);
                keeper.preparing_until = until;
                return self.schedule(until, Event::Standby(host, life, StandbyEvent::Prepared { id }));
            }
            Message::Heartbeat { reign, sent_at, progress } => {
                keeper.primary_host = if keeper.session == 0 { from } else { keeper.primary_host };
                let mut actions = Vec::new();
                let clock = self.clock(host);
                if let Some(keeper) = &mut self.hosts[host].keeper {
                    let beat = StandbyEvent::Heartbeat { reign, sent_at, progress };
                    keeper.machine.step(clock, beat, &mut actions);
                }
                return actions.into_iter().for_each(|action| self.do_for_standby(host, from, action));
            }
            message => match message.into_standby_event() {
                Some(event) => event,
                None => return,
            },
        };
        self.step_standby(host, event);
    }

    /// One that is refused leaves the session that there is.
    fn primary_connects(&mut self, from: usize, host: usize, session: u64, event: StandbyEvent) {
        let (now, mut actions) = (self.clock(host), Vec::new());
        let Some(keeper) = &mut self.hosts[host].keeper else { return };
        keeper.machine.step(now, event, &mut actions);
        if actions.iter().any(|action| matches!(action, StandbyAction::Welcome { .. })) {
            (keeper.session, keeper.primary_host) = (session, from);
        }
        actions.into_iter().for_each(|action| self.do_for_standby(host, from, action));
    }

    pub(super) fn step_primary(&mut self, host: usize, event: PrimaryEvent) {
        let (now, mut actions) = (self.clock(host), Vec::new());
        let Some(ruler) = &mut self.hosts[host].ruler else { return };
        ruler.machine.step(now, event, &mut actions);
        for action in actions {
            self.do_for_primary(host, action);
        }
    }

    fn do_for_primary(&mut self, host: usize, action: PrimaryAction) {
        let Some(ruler) = &mut self.hosts[host].ruler else { return };
        let (life, number) = (ruler.life, ruler.app);
        let app = &mut self.apps[number];
        match action {
            PrimaryAction::StartApp { .. } => (app.alive, ruler.heartbeats) = (true, true),
            PrimaryAction::StartFullSync { id, eligible, to: _ } => {
                ruler.eligible.insert(id, eligible);
                ruler.based_on = Some(id);
                self.capture(host, life, id, (20_000, 200_000));
            }
            PrimaryAction::CaptureNow { id, parent } => {
                ruler.note_base(id, parent);
                self.capture(host, life, id, (500, 4_000));
            }
            PrimaryAction::CaptureLast { id, parent } => {
                ruler.note_base(id, parent);
                app.stands = Some(id);
                self.capture(host, life, id, (500, 4_000));
            }
            PrimaryAction::Thaw => (app.stands, app.moving) = (None, false),
            PrimaryAction::Switchover(Switchover::Told) => app.moving = true,
            PrimaryAction::SendEpoch { id, to, sync } => {
                if self.flaw == Flaw::ArchivesTooEarly {
                    self.archived = self.archived.max(Some(id));
                }
                let eligible = ruler.eligible.get(&id).copied().unwrap_or(true);
                if let Sync::Since(parent) = sync {
                    let base = ruler.bases[&id];
                    assert!(parent >= base && parent < id, "{id} since {base} does not fit on {parent}");
                }
                let Some((to, session)) = ruler.seat_of(&to).map(|seat| (seat.to, seat.session)) else {
                    return;
                };
                self.stream(host, to, session, Message::Header { session, id, sync, eligible });
                self.stream(host, to, session, Message::Body { session, id });
            }
            PrimaryAction::Archive(id) => {
                let serves = self.register.as_ref().map_or(id.term, |register| register.term);
                assert!(id.term == serves, "{id} is for the store, and {serves} is served elsewhere");
                self.archives += 1;
                self.archived = self.archived.max(Some(id));
            }
            PrimaryAction::GiveUpFullSync(id) => {
                if self.chance.percent(70) {
                    let why = "there is a standby".to_owned();
                    let failed = PrimaryEvent::CaptureFailed { id, why };
                    self.after((100, 5_000), Event::Primary(host, life, failed));
                }
            }
            PrimaryAction::Forget(id) => ruler.forgotten = Some(id),
            PrimaryAction::Committed(committed) => {
                if self.flaw == Flaw::ForgetsForTheSlow {
                    ruler.forgotten = Some(committed.id());
                }
                self.committed = self.committed.max(Some(committed.id()));
            }
            PrimaryAction::SetPermit(permit) => app.kernel = permit,
            PrimaryAction::SetOutput(output) => app.output = output,
            PrimaryAction::Release(id) => {
                if let Some(&frozen) = self
                    .frozen
                    .get(&id)
                    .filter(|_| self.apps[number].output != Output::Shut && self.audible(number))
                {
                    self.heard_until = self.heard_until.max(frozen);
                }
            }
            PrimaryAction::ArmGuard => app.guard_armed = true,
            PrimaryAction::DisarmGuard => app.guard_armed = false,
            PrimaryAction::AskArbiter { ask, question } => self.ask(Whom::Primary(host, life), ask, question),
            PrimaryAction::Tell { standby, notice } => {
                if let Some(to) = NAMES.iter().position(|name| *name == standby.name) {
                    self.datagram(host, to, Message::Notice(notice));
                }
            }
            PrimaryAction::StopHeartbeats => ruler.heartbeats = false,
            PrimaryAction::DropPeer { standby, .. } => {
                let seat = ruler.seats.iter_mut().find(|seat| seat.taken_by.as_ref() == Some(&standby));
                if let Some(seat) = seat {
                    let (to, session) = (seat.to, seat.session);
                    (seat.taken_by, seat.session) = (None, 0);
                    self.after((50, 2_000), Event::StreamEnd(to, session));
                }
            }
            PrimaryAction::KillApp => app.alive = false,
            PrimaryAction::StopApp => {
                app.alive = false;
                self.after((100, 900), Event::Primary(host, life, PrimaryEvent::AppExited(AppExit::Code(0))));
            }
            PrimaryAction::EndPair(_) => self.abdicate(host),
            PrimaryAction::RestartApp => unreachable!("a crash hands over here"),
            PrimaryAction::Switchover(Switchover::Begun | Switchover::CalledOff { .. })
            | PrimaryAction::Synced { .. }
            | PrimaryAction::SyncRefused { .. }
            | PrimaryAction::ReturnToLedger { .. }
            | PrimaryAction::Report(_)
            | PrimaryAction::Status(_) => {}
        }
    }

    /// It is over for this primary. The daemon of one that had taken over goes on with nothing.
    fn abdicate(&mut self, host: usize) {
        let Some(ruler) = self.hosts[host].ruler.take() else { return };
        self.apps[ruler.app].alive = false;
        self.end_sessions(&ruler, (50, 2_000));
        if ruler.of_daemon {
            self.hosts[host].keeper = None;
            self.start_daemon(host);
        }
    }

    fn capture(&mut self, host: usize, life: u64, id: CheckpointId, micros: (u64, u64)) {
        self.frozen.insert(id, self.now);
        self.after(micros, Event::Primary(host, life, PrimaryEvent::Captured { id }));
    }

    pub(super) fn step_standby(&mut self, host: usize, event: StandbyEvent) {
        let (now, mut actions) = (self.clock(host), Vec::new());
        let Some(keeper) = &mut self.hosts[host].keeper else { return };
        keeper.machine.step(now, event, &mut actions);
        let primary = keeper.primary_host;
        for action in actions {
            self.do_for_standby(host, primary, action);
        }
    }

    /// `to`: who spoke, or is followed.
    fn do_for_standby(&mut self, host: usize, to: usize, action: StandbyAction) {
        let Some(keeper) = &mut self.hosts[host].keeper else { return };
        let (life, session) = (keeper.life, keeper.session);
        let me = Member::new(NAMES[host], life);
        match action {
            StandbyAction::Welcome { held } => {
                if self.flaw == Flaw::EnrolledTooEarly {
                    self.register =
                        self.register.as_ref().map(|register| register.with_members(vec![me.clone()]));
                }
                self.stream(host, to, session, Message::Welcome { session, standby: me, held });
            }
            StandbyAction::Refuse(refusal) => self.datagram(host, to, Message::Refusal(refusal)),
            StandbyAction::Receive { .. } | StandbyAction::DropHalf { .. } => {}
            StandbyAction::RefuseEpoch { id, why } => {
                self.stream(host, to, session, Message::RefuseEpoch { session, id, why });
            }
            StandbyAction::EndStream { .. } => {
                keeper.session = 0;
                self.after((50, 3_000), Event::StreamEnd(to, session));
            }
            StandbyAction::Ack { id } => self.stream(host, to, session, Message::Ack { session, id }),
            StandbyAction::Apply { id } => {
                keeper.applied = Some(id);
                let event = match std::mem::take(&mut keeper.fail_next_apply) {
                    true => StandbyEvent::ApplyFailed { id, why: "no memory".to_owned() },
                    false => StandbyEvent::Applied { id },
                };
                self.after((100, 30_000), Event::Standby(host, life, event));
            }
            StandbyAction::AnswerHeartbeat { sent_at, held } => {
                self.datagram(host, to, Message::Answer { from: me, sent_at, held });
            }
            StandbyAction::AskArbiter { ask, question } => self.ask(Whom::Standby(host, life), ask, question),
            StandbyAction::Promote { right, from } => self.promote(host, right, from),
            StandbyAction::Discard(_) => keeper.applied = None,
            StandbyAction::ConfirmEnd { .. } => self.datagram(host, to, Message::ConfirmEnd(me)),
            StandbyAction::Status(status) => {
                keeper.status = status;
                self.succeed(host);
            }
        }
    }

    fn promote(&mut self, host: usize, right: Right, from: CheckpointId) {
        let term = right.term();
        assert!(Some(from) >= self.committed, "{:?} was committed, {from} is restored", self.committed);
        assert!(Some(from) >= self.archived, "{:?} is in the store, {from} is restored", self.archived);
        assert!(from.term < term, "{from} is restored in term {term}");
        let frozen = self.frozen[&from];
        assert!(
            self.consistency == Consistency::Timeline || self.heard_until <= frozen,
            "heard until {}, but {from} of {frozen} is restored",
            self.heard_until
        );
        for app in self.apps.iter_mut().filter(|app| app.alive && app.moving) {
            assert!(app.stands == Some(from), "a planned move lost what came after {from}");
            app.moving = false;
            self.moves += 1;
        }
        // Until a primary has it, nothing holds its output back; and the register names nobody.
        let app = self.new_app(host, Permit::Open, Output::Passing, true);
        let Some(keeper) = &mut self.hosts[host].keeper else { return };
        assert!(keeper.bodies.contains(&from), "the committed epoch {from} never came whole");
        assert_eq!(keeper.applied, Some(from), "what is restored was not applied");
        if let Grounds::Won(_) = right.grounds() {
            self.quorums += u32::from(self.asked_quorum > 1);
        }
        keeper.won = Some((right, from));
        keeper.app = Some(app);
        self.takeovers += 1;
        let life = keeper.life;
        self.after((500, 5_000), Event::Standby(host, life, StandbyEvent::RestoreFinished));
    }

    /// The winner goes on as a primary, under the name that the register knows it by.
    fn succeed(&mut self, host: usize) {
        let Some(keeper) = &mut self.hosts[host].keeper else { return };
        if !matches!(keeper.status, replica::standby::StandbyStatus::Serving { .. }) {
            return;
        }
        let (Some((right, from)), Some(app)) = (keeper.won.take(), keeper.app) else { return };
        let life = keeper.life;
        let config = self.config(Member::new(NAMES[host], life));
        let machine = Primary::after_takeover(config, &right, from, self.clock(host));
        // The process that was started here, if there was one, has lost the term long ago.
        if let Some(loser) = self.hosts[host].ruler.take() {
            self.apps[loser.app].alive = false;
        }
        self.crown(host, life, machine, app, true);
    }
}
