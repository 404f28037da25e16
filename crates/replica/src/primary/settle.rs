//! The second half of a step: what follows from the state alone. The order of the actions matters and is
//! argued at each place.

use image::{CheckpointId, Member, Register, Sync, Term};

use super::{
    Capture, Consistency, Ending, Life, Notice, Permit, Primary, PrimaryAction, Reason, Status, Then, Waiting,
};
use crate::{Fencing, Nanos, Progress, Question};

impl Primary {
    pub(super) fn settle(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        self.settle_term(now, actions);
        self.settle_leaving(now, actions);
        match self.life {
            Life::Ended | Life::Fenced { .. } => return,
            Life::Registering { .. } | Life::Serving | Life::Retiring { .. } => {}
            Life::HandingOver { .. } | Life::Moving { .. } => {}
        }
        self.settle_patience(now, actions);
        let question = self.question(now);
        let asked = question.map(|question| self.desk.ask(now, question));
        // With the question under way, who may take over includes whom it would enrol: limit, then ask.
        let permit = self.safe_permit();
        self.set_permit(permit, actions);
        self.settle_output(now, actions);
        self.settle_syncs(now, actions);
        actions.extend(asked.map(|(ask, question)| PrimaryAction::AskArbiter { ask, question }));
        self.settle_switchover(now, actions);
        self.settle_guard(actions);
        self.settle_capture(now, actions);
        self.report(now, actions);
        self.tell_status(now, actions);
    }

    /// Takes the term, or loses it, as the register was last seen.
    fn settle_term(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        if self.config.fencing != Fencing::Register {
            return self.take_term(now, Term(1).max(self.term), actions);
        }
        self.desk.expire(now, self.config.timing);
        let Some(register) = self.desk.register() else { return };
        let (term, owner) = (register.term, register.owner.clone());
        if owner == self.config.me {
            self.take_term(now, term, actions);
        } else if owner.name != self.config.me.name || !matches!(self.life, Life::Registering { .. }) {
            self.fence(owner.to_string(), actions);
        }
    }

    fn take_term(&mut self, now: Nanos, term: Term, actions: &mut Vec<PrimaryAction>) {
        assert!(self.term <= term, "the term falls from {} to {term}", self.term);
        self.term = term;
        if matches!(self.life, Life::Registering { .. }) {
            self.life = Life::Serving;
            let permit = self.safe_permit();
            self.set_permit(permit, actions);
            self.settle_output(now, actions);
            actions.push(PrimaryAction::StartApp { term });
        }
    }

    fn settle_leaving(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let alone = self.desk.rivals().next().is_none();
        match self.life {
            Life::Retiring { then, .. } if alone => self.finish(now, then, actions),
            // The app ended, and neither register nor standby can be told: it must not keep us here.
            Life::Retiring { then: then @ Then::End(_), until } if now >= until => {
                self.finish(now, then, actions)
            }
            Life::HandingOver { signal, until } if now >= until => {
                self.end(Ending::App(super::AppExit::Signal(signal)), actions);
            }
            Life::Registering { .. } | Life::Serving | Life::Retiring { .. } | Life::HandingOver { .. } => {}
            Life::Moving { .. } | Life::Fenced { .. } | Life::Ended => {}
        }
    }

    /// What to ask the register, if there is anything to ask and it may be asked.
    fn question(&self, now: Nanos) -> Option<Question> {
        if self.config.fencing != Fencing::Register || !self.desk.may_ask(now) {
            return None;
        }
        let Some(known) = self.desk.known() else { return Some(Question::Read) };
        let idle = now.since(self.desk.seen_at()) >= self.check_interval();
        match self.wanted(now, known.as_ref()) {
            Some(new) => Some(self.desk.swap(new)),
            None => idle.then_some(Question::Read),
        }
    }

    fn check_interval(&self) -> Nanos {
        let timing = self.config.timing;
        match self.life {
            Life::Registering { .. } | Life::HandingOver { .. } | Life::Moving { .. } => timing.suspicion(),
            Life::Serving | Life::Retiring { .. } | Life::Fenced { .. } | Life::Ended => {
                timing.register_check()
            }
        }
    }

    /// The next value of the register, if it is to change.
    fn wanted(&self, now: Nanos, known: Option<&Register>) -> Option<Register> {
        let me = &self.config.me;
        match self.life {
            Life::Registering { since } => match known {
                None => Some(Register::first(me.clone())),
                Some(earlier) if earlier.members.is_empty() => Some(earlier.taken_by(me.clone())),
                // An earlier run left a standby with committed state. It goes first: it holds more than we
                // do. Only when it has not come forward for long is it taken for dead.
                // In strong consistency never: it may hold answers that nobody else knows of.
                Some(earlier) => {
                    let patient = self.config.consistency != Consistency::Timeline;
                    let over = !patient && now >= since + self.config.timing.farewell();
                    (over || self.config.abandon_standby).then(|| earlier.taken_by(me.clone()))
                }
            },
            Life::Serving => self.with_members(known?, self.entitled(now)),
            Life::Retiring { .. } => self.with_members(known?, Vec::new()),
            Life::Moving { .. } => self.with_members(known?, self.moving_members(now)?),
            Life::HandingOver { .. } | Life::Fenced { .. } | Life::Ended => None,
        }
    }

    /// A doubt is ended by writing even what already stands: the new version outruns the swap that may
    /// still land.
    fn with_members(&self, known: &Register, members: Vec<Member>) -> Option<Register> {
        (known.members != members || self.desk.in_doubt()).then(|| known.with_members(members))
    }

    /// Who ought to be able to take over: a standby that holds our epochs and answers.
    fn entitled(&self, now: Nanos) -> Vec<Member> {
        let permit = self.config.timing.permit();
        if !self.covered(now) || now < self.paused_until {
            return Vec::new();
        }
        let entitled = self.link.iter().filter(|link| link.held.is_some() && link.answers(now, permit));
        entitled.map(|link| link.standby.clone()).collect()
    }

    /// The most that the app may be allowed while the register says, or may come to say, what it does.
    pub(super) fn safe_permit(&self) -> Permit {
        match self.life {
            Life::Registering { .. } | Life::HandingOver { .. } | Life::Moving { .. } => return Permit::Shut,
            Life::Fenced { .. } | Life::Ended => return Permit::Shut,
            Life::Serving | Life::Retiring { .. } => {}
        }
        let mut rivals = self.desk.rivals().peekable();
        if rivals.peek().is_none() {
            return Permit::Open;
        }
        let before = match self.permit {
            Permit::Until(deadline) => Some(deadline),
            Permit::Open | Permit::Shut => None,
        };
        // Only the answers of the one who can take over count: another's say nothing of its silence.
        let lease = self.link.as_ref().filter(|link| rivals.all(|rival| *rival == link.standby));
        let lease = lease.and_then(|link| link.answered).map(|sent_at| sent_at + self.config.timing.permit());
        lease.max(before).map_or(Permit::Shut, Permit::Until)
    }

    pub(super) fn set_permit(&mut self, permit: Permit, actions: &mut Vec<PrimaryAction>) {
        if self.permit != permit {
            self.permit = permit;
            actions.push(PrimaryAction::SetPermit(permit));
        }
    }

    /// Armed only once the register is *known* to name the standby: until then a dead manager's app is better
    /// left running. Disarmed only once it is known to name nobody.
    fn settle_guard(&mut self, actions: &mut Vec<PrimaryAction>) {
        let serving = matches!(self.life, Life::Serving | Life::Moving { .. });
        let rivals = self.desk.rivals().next().is_some();
        let arm = serving && (self.eligible() || (self.guard_armed && rivals));
        let newly = arm && !self.guard_armed;
        self.arm_guard(arm, actions);
        if newly && let Some(register) = self.desk.register() {
            self.tell(Notice::Enrolled(register.clone()), actions);
        }
    }

    pub(super) fn arm_guard(&mut self, arm: bool, actions: &mut Vec<PrimaryAction>) {
        if self.guard_armed != arm {
            self.guard_armed = arm;
            actions.push(if arm { PrimaryAction::ArmGuard } else { PrimaryAction::DisarmGuard });
        }
    }

    fn settle_capture(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let due = matches!(self.life, Life::Serving)
            && (now >= self.capture_due || self.output_is_due(now) || self.sync_waits())
            && self.capturing.is_none()
            && self.planned.is_none()
            && self.children.is_empty();
        let Some(link) = self.link.as_ref().filter(|_| due) else { return };
        if link.in_flight() >= self.config.in_flight_max {
            self.crowded_since.get_or_insert(now);
            return;
        }
        self.crowded_since = None;
        let (session, parent) = (link.session, link.parent().filter(|_| !link.needs_full));
        let eligible = self.may_be_eligible();
        let id = self.begin_capture(now, parent.map_or(Sync::Full, Sync::Since), session);
        actions.push(match parent {
            None => PrimaryAction::StartFullSync { id, eligible },
            Some(parent) => PrimaryAction::CaptureNow { id, parent },
        });
    }

    /// The name of the next checkpoint, which is under way from now on.
    pub(super) fn begin_capture(&mut self, now: Nanos, sync: Sync, session: u64) -> CheckpointId {
        self.newest = self.newest.next();
        let id = CheckpointId { term: self.term, epoch: self.newest };
        self.capturing = Some(Capture { id, sync, session, begun_at: now });
        self.capture_due = now + self.config.interval;
        self.waiting = Waiting::Nothing;
        id
    }

    pub(super) fn stalled(&self, now: Nanos) -> bool {
        self.capturing.is_some_and(|capture| match capture.sync {
            Sync::Full => false, // As long as it takes; the engine shows its progress.
            Sync::Since(_) => now >= capture.begun_at + self.config.stalled_after,
        })
    }

    fn report(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let progress =
            Progress { captured: self.captured, committed: self.committed, stalled: self.stalled(now) };
        if self.reported != progress {
            self.reported = progress;
            actions.push(PrimaryAction::Report(progress));
        }
    }

    pub(super) fn tell_status(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let status = self.status(now);
        if self.told.as_ref() != Some(&status) {
            if !matches!(self.told, Some(Status::Unprotected(_))) {
                self.unprotected_since = now;
            }
            self.told = Some(status.clone());
            actions.push(PrimaryAction::Status(status));
        }
    }

    fn status(&self, now: Nanos) -> Status {
        let trouble = || self.desk.trouble().map(str::to_owned);
        let reason = match &self.life {
            Life::Serving => self.weakness(now),
            Life::Registering { .. } => Some(match self.desk.register() {
                Some(earlier) if !earlier.members.is_empty() => {
                    Reason::EarlierRun(earlier.members[0].to_string())
                }
                Some(_) | None => Reason::NotOwner { why: trouble() },
            }),
            Life::Retiring { .. } | Life::Ended => Some(Reason::Ended),
            Life::HandingOver { signal, .. } => Some(Reason::HandingOver(*signal)),
            Life::Moving { to, .. } => Some(Reason::Moving(to.to_string())),
            Life::Fenced { by } => Some(Reason::Fenced(by.clone())),
        };
        let patience = self.config.interval * 4;
        let crowded = self.crowded_since.is_some_and(|since| now >= since + patience);
        let resyncing = self.link.as_ref().is_some_and(|link| link.needs_full);
        match reason {
            Some(reason) => Status::Unprotected(reason),
            None if crowded || resyncing => Status::CatchingUp,
            None => Status::Protected,
        }
    }

    /// The first thing that would keep the app from surviving its host right now.
    pub(super) fn weakness(&self, now: Nanos) -> Option<Reason> {
        if now < self.paused_until {
            return Some(Reason::Paused);
        }
        let Some(link) = &self.link else { return Some(Reason::NoStandby { why: self.lost.clone() }) };
        if let Some(child) = self.children.first() {
            return Some(Reason::Child(*child));
        }
        if let Some(why) = &self.capture_failure {
            return Some(Reason::CaptureFailed(why.clone()));
        }
        if let Some(why) = &link.refused {
            return Some(Reason::EpochRefused(why.clone()));
        }
        if link.held.is_none() {
            return Some(Reason::FullSync);
        }
        if !link.answers(now, self.config.timing.permit()) {
            return Some(Reason::StandbySilent);
        }
        if let Some(why) = self.desk.trouble() {
            return Some(Reason::RegisterUnreachable(why.to_owned()));
        }
        if !self.eligible() {
            return Some(Reason::NotEnrolled);
        }
        if self.stalled(now) {
            return Some(Reason::EngineStalled);
        }
        (self.config.fencing == Fencing::Absent).then_some(Reason::NoFencing)
    }
}
