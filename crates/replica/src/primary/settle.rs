//! The second half of a step: what follows from the state alone. The order of the actions matters and is
//! argued at each place.

use image::{CheckpointId, Register, Sync, Term};

use super::link::Link;
use super::{
    Capture, Consistency, Ending, Life, Notice, OnStandbyLoss, Permit, Primary, PrimaryAction, Reason,
    Status, Then, Waiting,
};
use crate::{Fencing, Nanos, Progress, Question};

/// From a full sync that one standby needed to the next, in times of what is waited after a refused one.
const JOIN_PAUSES: u32 = 10;

impl Primary {
    pub(super) fn settle(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        self.settle_term(now, actions);
        if self.is_over() {
            return;
        }
        // Not before it is known whose the register is.
        self.settle_commit(now, actions);
        self.settle_leaving(now, actions);
        if self.is_over() {
            return;
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

    fn is_over(&self) -> bool {
        matches!(self.life, Life::Ended | Life::Fenced { .. })
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
                // In strong consistency never: it may hold answers that nobody else knows of. Nor is a store, where
                // somebody has to come for it.
                Some(earlier) => {
                    let patient =
                        self.config.consistency != Consistency::Timeline || self.in_store(earlier).is_some();
                    let over = !patient && now >= since + self.config.timing.farewell();
                    (over || self.config.abandon_standby).then(|| earlier.taken_by(me.clone()))
                }
            },
            Life::Serving => self.next_members(now, known?),
            Life::Retiring { .. } => self.without_members(known?),
            Life::Moving { .. } => self.moving_is_over(now).then(|| self.without_members(known?)).flatten(),
            Life::HandingOver { .. } | Life::Fenced { .. } | Life::Ended => None,
        }
    }

    fn without_members(&self, known: &Register) -> Option<Register> {
        (!known.members.is_empty() || self.desk.in_doubt()).then(|| known.with_members(Vec::new()))
    }

    /// The most that the app may be allowed while the register says, or may come to say, what it does.
    pub(super) fn safe_permit(&self) -> Permit {
        match self.life {
            Life::Registering { .. } | Life::HandingOver { .. } | Life::Moving { .. } => return Permit::Shut,
            Life::Fenced { .. } | Life::Ended => return Permit::Shut,
            Life::Serving | Life::Retiring { .. } => {}
        }
        let limits = self.desk.possible().filter(|register| !register.members.is_empty());
        let leases = limits.map(|register| self.lease(&register.members, register.quorum));
        let Some(lease) = leases.min() else { return Permit::Open };
        let before = match self.permit {
            Permit::Until(deadline) => Some(deadline),
            Permit::Open | Permit::Shut => None,
        };
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
        if arm && !self.guard_armed {
            self.links.iter_mut().for_each(|link| link.told = false);
        }
        self.arm_guard(arm, actions);
        let Some(register) = self.desk.register().filter(|_| arm) else { return };
        for link in &mut self.links {
            let named = register.lists(&link.standby);
            if named && !link.told {
                let (standby, notice) = (link.standby.clone(), Notice::Enrolled(register.clone()));
                actions.push(PrimaryAction::Tell { standby, notice });
            }
            link.told = named;
        }
    }

    pub(super) fn arm_guard(&mut self, arm: bool, actions: &mut Vec<PrimaryAction>) {
        if self.guard_armed != arm {
            self.guard_armed = arm;
            actions.push(if arm { PrimaryAction::ArmGuard } else { PrimaryAction::DisarmGuard });
        }
    }

    fn settle_capture(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        if !self.links.is_empty() {
            self.put_the_archive_off(now);
        }
        let able = matches!(self.life, Life::Serving)
            && self.capturing.is_none()
            && self.planned.is_none()
            && self.children.is_empty();
        if !able || self.begins_full_sync(now, actions) {
            return;
        }
        if self.links.is_empty() {
            return self.capture_for_the_archive(now, actions);
        }
        if now >= self.capture_due || self.output_is_due(now) || self.sync_waits() {
            self.capture_for_whoever_has_room(now, actions);
        }
    }

    /// All take part in a full sync: it takes the base away that the others could have gone on from. So those that are
    /// in step have it for the sake of another only now and then.
    fn begins_full_sync(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) -> bool {
        let waiting = self.links.iter().filter(|link| link.needs_full).count();
        let joins = waiting < self.links.len();
        let complete = self.links.len() >= self.config.standbys as usize;
        let failed = self.capture_failure.is_some() || self.links.iter().any(|link| link.refused.is_some());
        // Who waits alone waits for others to come at most until `full_due`.
        let due = now >= self.full_due || (complete && self.sent.is_empty() && !failed);
        let room = self.links.iter().all(|link| link.in_flight() < self.config.in_flight_max);
        if waiting == 0 || !due || !room || (joins && now < self.join_due) {
            return false;
        }
        let eligible = self.may_be_eligible();
        let (to, sessions) = self.links.iter().map(|link| (link.standby.clone(), link.session)).unzip();
        for link in &mut self.links {
            link.waits_for_others = !std::mem::replace(&mut link.needs_full, true);
        }
        if joins {
            self.join_due = now + self.config.full_sync_retry * JOIN_PAUSES;
        }
        self.sent.clear();
        let id = self.begin_capture(now, Sync::Full, sessions);
        actions.push(PrimaryAction::StartFullSync { id, to, eligible });
        true
    }

    /// Who has no room is passed over, and what it misses goes with a later epoch.
    fn capture_for_whoever_has_room(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let most = self.config.in_flight_max;
        let mut parents = Vec::new();
        for link in self.links.iter_mut().filter(|link| !link.needs_full) {
            if link.in_flight() >= most {
                link.crowded_since.get_or_insert(now);
            } else {
                link.crowded_since = None;
                parents.extend(link.parent());
            }
        }
        if let Some(parent) = parents.into_iter().min() {
            let id = self.begin_capture(now, Sync::Since(parent), Vec::new());
            actions.push(PrimaryAction::CaptureNow { id, parent });
        }
    }

    /// The name of the next checkpoint, which is under way from now on.
    pub(super) fn begin_capture(&mut self, now: Nanos, sync: Sync, sessions: Vec<u64>) -> CheckpointId {
        self.newest = self.newest.next();
        let id = CheckpointId { term: self.term, epoch: self.newest };
        self.capturing = Some(Capture { id, sync, sessions, begun_at: now, archived: false });
        self.capture_due = now + self.config.interval;
        self.waiting = Waiting::Nothing;
        id
    }

    pub(super) fn stalled(&self, now: Nanos) -> bool {
        self.capturing.as_ref().is_some_and(|capture| match capture.sync {
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
                Some(earlier) if !earlier.members.is_empty() => match self.in_store(earlier) {
                    Some(store) => Reason::InStore(store.name.clone()),
                    None => Reason::EarlierRun(earlier.members[0].to_string()),
                },
                Some(_) | None => Reason::NotOwner { why: trouble() },
            }),
            Life::Retiring { .. } | Life::Ended => Some(Reason::Ended),
            Life::HandingOver { signal, .. } => Some(Reason::HandingOver(*signal)),
            Life::Moving { to, .. } => Some(Reason::Moving(to.to_string())),
            Life::Fenced { by } => Some(Reason::Fenced(by.clone())),
        };
        let patience = self.config.interval * 4;
        let late = |link: &Link| link.crowded_since.is_some_and(|since| now >= since + patience);
        let behind = |link: &Link| self.is_eligible(link) && (link.needs_full || late(link));
        match reason {
            Some(reason) => Status::Unprotected(reason),
            None if self.links.iter().any(behind) => Status::CatchingUp,
            None => Status::Protected,
        }
    }

    /// The first thing that would keep the app from surviving its host right now.
    pub(super) fn weakness(&self, now: Nanos) -> Option<Reason> {
        if now < self.paused_until {
            return Some(Reason::Paused);
        }
        if self.links.is_empty() {
            let why = self.lost.clone();
            return Some(match &self.config.store {
                Some(store) => Reason::NoStore { store: store.name.clone(), why },
                None => Reason::NoStandby { why },
            });
        }
        if let Some(child) = self.children.first() {
            return Some(Reason::Child(*child));
        }
        if let Some(why) = &self.capture_failure {
            return Some(Reason::CaptureFailed(why.clone()));
        }
        let ailments: Vec<Reason> = self.links.iter().filter_map(|link| self.ailment(now, link)).collect();
        let well = self.links.len() - ailments.len();
        if well < self.quorum()
            && let Some(first) = ailments.into_iter().next()
        {
            return Some(first);
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
        let (there, wanted) = (u32::try_from(well).unwrap_or(u32::MAX), self.holders_asked_for());
        let waits = Consistency::Strong { on_standby_loss: OnStandbyLoss::Stop };
        if self.config.consistency == waits && there < wanted {
            return Some(Reason::TooFewStandbys { there, wanted });
        }
        (self.config.fencing == Fencing::Absent).then_some(Reason::NoFencing)
    }
}
