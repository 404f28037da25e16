//! The machine beside the app.
//!
//! ```text
//! Registering ── the term is ours ──▶ Serving ── app ends ──▶ Retiring ── nobody can take over ──▶ Ended
//!      │                                │ ├── app crashes, standby eligible ──▶ HandingOver ─────────▶ Ended
//!      │                                │ └── planned, all is at the standby ─▶ Moving (and back) ──▶ Ended
//!      └────── another owns it ─────────┴─────────────────────────────────────────────────▶ Fenced
//! ```
//!
//! While it serves, its [`Phase`] tells how far the pair is: Unpaired, Syncing, Protected, StandbyLost.
//!
//! A step has two halves. The first takes the event into the state. The second, `settle`, looks only at the
//! state and asks for what follows from it: what the register should say, then the permit that is safe while
//! it may say so, and only then the question to the register. So no event can forget the permit, and the
//! order "limit, then enrol" holds by construction.

mod archive;
mod group;
mod link;
mod output;
mod settle;
mod store;
mod switchover;
mod sync;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::collections::{BTreeSet, VecDeque};

use image::{CheckpointId, Epoch, Member, Sync, Term};

pub use group::{CommitOn, StandbyView};
pub use sync::SyncCall;
pub use vocabulary::{
    AppExit, Consistency, Ending, Notice, OnCrash, OnStandbyLoss, Output, Permit, PrimaryAction,
    PrimaryConfig, PrimaryEvent, Reason, Status, Switchover,
};

use crate::desk::{Desk, Outcome};
use crate::{Grounds, Nanos, Progress, Reign, Right};
use archive::Archive;
use link::{Acked, Link};
use switchover::Planned;

/// How far a primary is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before the term is ours.
    Registering,
    /// No standby has connected yet.
    Unpaired,
    Syncing,
    /// An eligible standby holds a committed epoch.
    Protected,
    StandbyLost,
    /// The app has ended or crashed; the pair is being wound up.
    Leaving,
    Fenced,
    Ended,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Life {
    Registering {
        since: Nanos,
    },
    Serving,
    Retiring {
        then: Then,
        until: Nanos,
    },
    HandingOver {
        signal: i32,
        until: Nanos,
    },
    /// The app stands still, and `to` was told to take over.
    Moving {
        to: Member,
        until: Nanos,
        /// The app ended although it stands still: somebody killed it.
        exit: Option<AppExit>,
    },
    Fenced {
        by: String,
    },
    Ended,
}

/// What follows once nobody can take over any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    End(AppExit),
    Restart,
}

/// Output that waits for a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Nothing,
    /// More is to be expected.
    Some,
    All,
}

#[derive(Debug, Clone)]
struct Capture {
    id: CheckpointId,
    sync: Sync,
    /// The connections that a full sync goes out on while it is made.
    sessions: Vec<u64>,
    begun_at: Nanos,
    /// For a store in the background, and for nobody else.
    archived: bool,
}

#[derive(Debug)]
pub struct Primary {
    config: PrimaryConfig,
    life: Life,
    term: Term,
    desk: Desk,
    /// One for each standby that is there.
    links: Vec<Link>,
    lost: Option<String>,
    sessions: u64,
    /// The newest epoch that no takeover goes back behind.
    committed: Option<CheckpointId>,
    /// The newest name given out.
    newest: Epoch,
    captured: Option<CheckpointId>,
    /// What was sent, in order, and can be built on: the ledger knows what changed since. Nothing of another address
    /// space or another run is in it.
    sent: VecDeque<CheckpointId>,
    /// The newest that every standby holds that goes on from what it holds.
    forgotten: Option<CheckpointId>,
    capturing: Option<Capture>,
    capture_due: Nanos,
    /// When the next full sync may begin, and the next for the sake of some that are behind the others.
    full_due: Nanos,
    join_due: Nanos,
    /// When the last capture was done, and how long it took.
    captured_at: Nanos,
    capture_cost: Nanos,
    released_at: Nanos,
    /// What no capture under way covers.
    waiting: Waiting,
    /// Calls of `sync` that wait, in their order.
    syncs: Vec<sync::Waiter>,
    output: Output,
    /// Since output is held back: the newest name given out before.
    held_back_from: Option<Epoch>,
    /// The last epoch of a move that was called off.
    moved_with: Option<Epoch>,
    /// Whose copies of an app that has ended are gone.
    confirmed: BTreeSet<Member>,
    capture_failure: Option<String>,
    /// They were let go for acknowledging nothing. What one holds counts only once it acknowledges anew.
    unproven: BTreeSet<Member>,
    children: BTreeSet<i32>,
    stopping: bool,
    archive: Archive,
    planned: Option<Planned>,
    /// Before this instant nobody is enrolled.
    paused_until: Nanos,
    permit: Permit,
    guard_armed: bool,
    reported: Progress,
    told: Option<Status>,
    /// If it is; else when it last was.
    unprotected_since: Nanos,
}

impl Primary {
    /// A manager that is about to start an app. The first tick begins to ask for the term; without a
    /// register the term is 1 until a peer knows better.
    pub fn new(config: PrimaryConfig, now: Nanos) -> Self {
        Self {
            life: Life::Registering { since: now },
            term: Term(0),
            desk: Desk::default(),
            links: Vec::new(),
            lost: None,
            sessions: 0,
            committed: None,
            newest: Epoch(0),
            captured: None,
            sent: VecDeque::new(),
            forgotten: None,
            capturing: None,
            capture_due: now,
            full_due: now,
            join_due: now,
            captured_at: now,
            released_at: now,
            capture_cost: Nanos(0),
            waiting: Waiting::Nothing,
            syncs: Vec::new(),
            output: Output::Shut,
            held_back_from: None,
            moved_with: None,
            confirmed: BTreeSet::new(),
            capture_failure: None,
            unproven: BTreeSet::new(),
            children: BTreeSet::new(),
            stopping: false,
            archive: Archive::from(now + config.archive_patience()),
            planned: None,
            paused_until: Nanos(0),
            permit: Permit::Shut,
            guard_armed: false,
            reported: Progress::default(),
            told: None,
            unprotected_since: now,
            config,
        }
    }

    /// The winner of a takeover, which serves `restored` and goes on as a primary: unprotected until a
    /// standby joins. Epochs go on from the restored one.
    pub fn after_takeover(config: PrimaryConfig, right: &Right, restored: CheckpointId, now: Nanos) -> Self {
        let desk = match right.grounds() {
            Grounds::Won(register) => Desk::knowing(register.clone()),
            Grounds::Word | Grounds::Unfenced => Desk::default(),
        };
        let new = Self::new(config, now);
        Self { life: Life::Serving, term: right.term(), desk, newest: restored.epoch, ..new }
    }

    /// Takes in what happened at `now`, and appends what is to be done about it, in order.
    pub fn step(&mut self, now: Nanos, event: PrimaryEvent, actions: &mut Vec<PrimaryAction>) {
        match self.life {
            Life::Ended | Life::Fenced { .. } => {}
            Life::Registering { .. }
            | Life::Serving
            | Life::Retiring { .. }
            | Life::HandingOver { .. }
            | Life::Moving { .. } => {
                self.take_in(now, event, actions);
                self.settle(now, actions);
            }
        }
    }

    pub fn phase(&self) -> Phase {
        match &self.life {
            Life::Registering { .. } => Phase::Registering,
            Life::Retiring { .. } | Life::HandingOver { .. } | Life::Moving { .. } => Phase::Leaving,
            Life::Fenced { .. } => Phase::Fenced,
            Life::Ended => Phase::Ended,
            Life::Serving if self.eligible() => Phase::Protected,
            Life::Serving => match (self.links.is_empty(), &self.lost) {
                (false, _) => Phase::Syncing,
                (true, Some(_)) => Phase::StandbyLost,
                (true, None) => Phase::Unpaired,
            },
        }
    }

    pub fn reign(&self) -> Reign {
        Reign { term: self.term, incarnation: self.config.me.incarnation }
    }

    pub fn committed(&self) -> Option<CheckpointId> {
        self.committed
    }

    pub fn permit(&self) -> Permit {
        self.permit
    }

    pub fn progress(&self) -> Progress {
        self.reported
    }

    fn take_in(&mut self, now: Nanos, event: PrimaryEvent, actions: &mut Vec<PrimaryAction>) {
        match event {
            PrimaryEvent::Tick => {}
            PrimaryEvent::PeerConnected { standby, held } => self.connect(now, standby, held, actions),
            PrimaryEvent::PeerLost { standby, why } => self.disconnect(&standby, why, actions),
            PrimaryEvent::HeartbeatAnswered { from, sent_at, held } => {
                self.heartbeat_answered(now, &from, sent_at, held);
            }
            PrimaryEvent::Acked { from, id } => self.acked(&from, id, actions),
            PrimaryEvent::EpochRefused { from, id, why } => self.epoch_refused(now, &from, id, why, actions),
            PrimaryEvent::OutputWaits { all } => self.output_waits(all),
            PrimaryEvent::NothingWaits => self.waiting = Waiting::Nothing,
            PrimaryEvent::Captured { id } => self.captured(now, id, actions),
            PrimaryEvent::SyncAsked { call, patience } => self.sync_asked(now, call, patience),
            PrimaryEvent::CaptureFailed { id, why } => self.capture_failed(now, id, why),
            PrimaryEvent::ChildSeen { pid } => drop(self.children.insert(pid)),
            PrimaryEvent::ChildGone { pid } => drop(self.children.remove(&pid)),
            PrimaryEvent::Executed => self.begin_unrelated(now),
            PrimaryEvent::ArchiveLost => self.archive_anew(),
            PrimaryEvent::AppDying { signal } => self.app_dying(now, signal, actions),
            PrimaryEvent::AppExited(exit) => self.app_exited(now, exit, actions),
            PrimaryEvent::RegisterAnswer { ask, answer } => {
                match self.desk.answer(now, ask, answer, self.config.timing) {
                    Outcome::Seen | Outcome::Unreachable | Outcome::Stale => {} // `settle` looks at the desk.
                }
            }
            PrimaryEvent::Superseded { term, by } => self.superseded(term, by, actions),
            PrimaryEvent::EndConfirmed { from } => self.end_confirmed(now, from, actions),
            PrimaryEvent::Shutdown => self.shutdown(actions),
            PrimaryEvent::SwitchOver { to } => self.switch_over(now, to.as_deref(), actions),
            PrimaryEvent::Pause { until } => self.paused_until = until,
            PrimaryEvent::CancelSwitchover => self.cancel_switchover(actions),
        }
    }

    fn connect(
        &mut self,
        now: Nanos,
        standby: Member,
        held: Option<CheckpointId>,
        actions: &mut Vec<PrimaryAction>,
    ) {
        if self.life != Life::Serving {
            return actions.push(PrimaryAction::DropPeer { standby, why: "not serving".to_owned() });
        }
        self.make_room(&standby, actions);
        self.sessions += 1;
        let held = held.filter(|id| self.sent.contains(id) && !self.unproven.contains(&standby));
        if self.links.is_empty() {
            // One full sync for all who come at about the same time.
            let others = if self.config.standbys > 1 { self.config.timing.suspicion() } else { Nanos(0) };
            self.full_due = self.full_due.max(now + others);
        }
        self.links.push(Link::new(standby, self.sessions, held));
        self.give_way(actions);
        self.lost = None;
        self.capture_due = now;
    }

    /// An earlier life of the same host is over, and so is an earlier connection; and there are never more than were
    /// asked for.
    fn make_room(&mut self, standby: &Member, actions: &mut Vec<PrimaryAction>) {
        let crowded = self.links.len() >= self.config.standbys.max(1) as usize;
        let same = self.links.iter().find(|link| link.standby.name == standby.name);
        let gone = same.or(self.links.first().filter(|_| crowded)).map(|link| link.standby.clone());
        if let Some(gone) = gone {
            self.disconnect(&gone, "it connected anew".to_owned(), actions);
        }
    }

    fn disconnect(&mut self, standby: &Member, why: String, actions: &mut Vec<PrimaryAction>) {
        let Some(at) = self.links.iter().position(|link| link.standby == *standby) else { return };
        let mut link = self.links.remove(at);
        self.return_to_ledger(link.take_in_flight(), actions);
        self.lost = Some(why);
    }

    /// A peer that breaks the protocol is let go; it may connect anew.
    fn drop_peer(&mut self, standby: &Member, why: String, actions: &mut Vec<PrimaryAction>) {
        actions.push(PrimaryAction::DropPeer { standby: standby.clone(), why: why.clone() });
        self.disconnect(standby, why, actions);
    }

    /// What nobody else was sent, either, is as if it had never been captured.
    fn return_to_ledger(&mut self, mut ids: Vec<CheckpointId>, actions: &mut Vec<PrimaryAction>) {
        ids.retain(|id| !self.links.iter().any(|link| link.is_sent(*id)));
        if !ids.is_empty() {
            actions.push(PrimaryAction::ReturnToLedger { ids });
        }
    }

    fn heartbeat_answered(&mut self, now: Nanos, from: &Member, sent_at: Nanos, held: Option<CheckpointId>) {
        let Some(link) = self.link_mut(from) else { return };
        if sent_at > now {
            return; // We never sent it.
        }
        link.answered(sent_at);
        let acked = held.filter(|id| Some(*id) > link.held);
        // An answer may be older than the connection and name what went before it: no breach.
        if let Some(id) = acked
            && link.acked(id) == Acked::New
        {
            self.unproven.remove(from);
        }
    }

    fn acked(&mut self, from: &Member, id: CheckpointId, actions: &mut Vec<PrimaryAction>) {
        let Some(link) = self.link_mut(from) else { return };
        match link.acked(id) {
            Acked::New => drop(self.unproven.remove(from)),
            Acked::Old => {}
            Acked::NeverSent => {
                self.drop_peer(from, format!("it acknowledged {id}, which it was never sent"), actions)
            }
        }
    }

    fn epoch_refused(
        &mut self,
        now: Nanos,
        from: &Member,
        id: CheckpointId,
        why: String,
        actions: &mut Vec<PrimaryAction>,
    ) {
        let Some(link) = self.link_mut(from).filter(|link| Some(id) > link.held) else { return };
        link.needs_full = true;
        link.refused = Some(why);
        let (session, ids) = (link.session, link.take_in_flight());
        self.return_to_ledger(ids, actions);
        self.full_due = now + self.config.full_sync_retry;
        if let Some(capture) = self.capturing.as_mut().filter(|it| it.id == id && it.sync == Sync::Full) {
            capture.sessions.retain(|taker| *taker != session);
            let unwanted = capture.sessions.is_empty();
            actions.extend(unwanted.then_some(PrimaryAction::GiveUpFullSync(id)));
        }
    }

    fn captured(&mut self, now: Nanos, id: CheckpointId, actions: &mut Vec<PrimaryAction>) {
        let Some(capture) = self.capturing.take_if(|capture| capture.id == id) else { return };
        self.captured = Some(id);
        self.capture_failure = None;
        (self.captured_at, self.capture_cost) = (now, now.since(capture.begun_at));
        if capture.archived {
            return self.archived(now, id, actions);
        }
        let takers = self.takers(&capture);
        if takers.is_empty() {
            return actions.push(PrimaryAction::ReturnToLedger { ids: vec![id] });
        }
        if capture.sync == Sync::Full {
            self.sent.clear();
        }
        self.sent.push_back(id);
        for to in takers {
            let Some(link) = self.link_mut(&to) else { continue };
            // What has piled up for one that was behind goes on from what that one has.
            let sync = match (capture.sync, link.parent()) {
                (Sync::Since(_), Some(parent)) => Sync::Since(parent),
                (Sync::Full | Sync::Since(_), _) => Sync::Full,
            };
            link.needs_full = false;
            link.sent(id);
            actions.push(PrimaryAction::SendEpoch { id, to, sync });
        }
    }

    /// Who can go on with it: a connection may be another, or an epoch refused, since the capture began. It carries all
    /// that changed since its parent, so it is right for whoever has anything newer, too.
    fn takers(&self, capture: &Capture) -> Vec<Member> {
        let takes = |link: &&Link| match capture.sync {
            Sync::Full => capture.sessions.contains(&link.session),
            Sync::Since(base) => {
                let fits = !link.needs_full && link.in_flight() < self.config.in_flight_max;
                fits && link.parent().is_some_and(|parent| parent >= base)
            }
        };
        self.links.iter().filter(takes).map(|link| link.standby.clone()).collect()
    }

    fn capture_failed(&mut self, now: Nanos, id: CheckpointId, why: String) {
        let Some(capture) = self.capturing.take_if(|capture| capture.id == id) else { return };
        if capture.archived {
            return self.archive_failed(now);
        }
        if capture.sync == Sync::Full && capture.sessions.is_empty() {
            return; // It was refused: what was captured of it was right.
        }
        self.capture_failure = Some(why);
        match capture.sync {
            Sync::Full => self.full_due = now + self.config.full_sync_retry,
            Sync::Since(_) => {}
        }
    }

    /// From here on the app's memory has nothing to do with what was sent.
    fn begin_unrelated(&mut self, now: Nanos) {
        self.capture_due = now;
        self.archive_anew();
        self.sent.clear();
        self.links.iter_mut().for_each(|link| link.needs_full = true);
    }

    fn app_exited(&mut self, now: Nanos, exit: AppExit, actions: &mut Vec<PrimaryAction>) {
        match &mut self.life {
            Life::Serving => {}
            Life::Moving { exit: killed, .. } => return *killed = Some(exit),
            _ => return,
        }
        match exit {
            AppExit::Signal(signal) if !self.stopping => match self.config.on_crash {
                OnCrash::Failover if self.eligible() => self.hand_over(now, signal, actions),
                OnCrash::Failover | OnCrash::Stop => self.retire(now, Then::End(exit), actions),
                OnCrash::Restart => self.retire(now, Then::Restart, actions),
            },
            AppExit::Signal(_) | AppExit::Code(_) => self.retire(now, Then::End(exit), actions),
        }
    }

    /// Whoever waits for the end of it all waits for the kernel to tear down its memory.
    fn app_dying(&mut self, now: Nanos, signal: i32, actions: &mut Vec<PrimaryAction>) {
        let serves = matches!(self.life, Life::Serving) && !self.stopping;
        if serves && self.config.on_crash == OnCrash::Failover && self.eligible() {
            self.hand_over(now, signal, actions);
        }
    }

    fn hand_over(&mut self, now: Nanos, signal: i32, actions: &mut Vec<PrimaryAction>) {
        self.life = Life::HandingOver { signal, until: now + self.config.timing.farewell() };
        // Its sockets go on being torn down for a while: silent first, then the word. The heartbeats stop,
        // so that a word that gets lost is replaced by silence.
        self.set_permit(Permit::Shut, actions);
        self.set_output(Output::Shut, actions);
        self.tell_all(&Notice::AppCrashed { reign: self.reign(), signal }, actions);
        actions.push(PrimaryAction::StopHeartbeats);
    }

    /// `settle` goes on with `then` as soon as nobody can take over.
    fn retire(&mut self, now: Nanos, then: Then, actions: &mut Vec<PrimaryAction>) {
        self.life = Life::Retiring { then, until: now + self.config.timing.farewell() };
        match then {
            Then::End(exit) => self.tell_all(&Notice::AppEnded { reign: self.reign(), exit }, actions),
            Then::Restart => {}
        }
    }

    fn tell_all(&self, notice: &Notice, actions: &mut Vec<PrimaryAction>) {
        let tell =
            |link: &Link| PrimaryAction::Tell { standby: link.standby.clone(), notice: notice.clone() };
        actions.extend(self.links.iter().map(tell));
    }

    fn end_confirmed(&mut self, now: Nanos, from: Member, actions: &mut Vec<PrimaryAction>) {
        let Life::Retiring { then: then @ Then::End(_), .. } = self.life else { return };
        self.confirmed.insert(from);
        if self.all_confirmed() {
            self.finish(now, then, actions);
        }
    }

    /// Whoever may take over has thrown its copy away.
    fn all_confirmed(&self) -> bool {
        !self.confirmed.is_empty() && self.desk.rivals().all(|rival| self.confirmed.contains(rival))
    }

    fn shutdown(&mut self, actions: &mut Vec<PrimaryAction>) {
        if matches!(self.life, Life::Serving) && !self.stopping {
            actions.push(PrimaryAction::StopApp);
        }
        self.stopping = true;
    }

    fn superseded(&mut self, term: Term, by: String, actions: &mut Vec<PrimaryAction>) {
        if term > self.term {
            self.fence(by, actions);
        }
    }

    /// The point of no return: somebody else has the term.
    fn fence(&mut self, by: String, actions: &mut Vec<PrimaryAction>) {
        let handed_over = matches!(self.life, Life::HandingOver { .. } | Life::Moving { .. });
        self.set_permit(Permit::Shut, actions);
        self.set_output(Output::Shut, actions);
        actions.push(PrimaryAction::KillApp);
        self.arm_guard(false, actions);
        let ending = if handed_over {
            Ending::HandedOver { to: by.clone() }
        } else {
            Ending::Fenced { by: by.clone() }
        };
        self.life = Life::Fenced { by };
        self.tell_status(Nanos(0), actions);
        actions.push(PrimaryAction::EndPair(ending));
    }

    fn finish(&mut self, now: Nanos, then: Then, actions: &mut Vec<PrimaryAction>) {
        match then {
            Then::End(exit) => self.end(Ending::App(exit), actions),
            Then::Restart => {
                self.life = Life::Serving;
                self.forget_syncs();
                self.begin_unrelated(now);
                let mut ids = BTreeSet::new();
                for link in &mut self.links {
                    link.held = None;
                    ids.extend(link.take_in_flight());
                }
                self.return_to_ledger(ids.into_iter().collect(), actions);
                actions.push(PrimaryAction::RestartApp);
            }
        }
    }

    fn end(&mut self, ending: Ending, actions: &mut Vec<PrimaryAction>) {
        self.life = Life::Ended;
        self.set_permit(Permit::Shut, actions);
        let output = self.last_output(&ending);
        self.set_output(output, actions);
        self.arm_guard(false, actions);
        self.tell_status(Nanos(0), actions);
        actions.push(PrimaryAction::EndPair(ending));
    }
}
