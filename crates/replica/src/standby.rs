//! The machine that keeps one app's copy and decides when it may take over.
//!
//! ```text
//! Watching ── T2 of silence, or the owner's word ──▶ Claiming ── swap won ──▶ Promoting ──▶ Serving
//!    ▲ │                                               │  │
//!    │ └── app ended ──▶ Discarded ◀── swap lost ──────┘  │
//!    └────────── heard again, register unreachable ───────┘
//! ```
//!
//! `Watching` is Empty, Receiving, Following or Suspecting, by what is held and heard: see [`StandbyStatus`].
//!
//! Why the silence is sound: the old copy is heard until T1 after the send time of the last heartbeat that
//! we answered. A claim begins T2 > T1 after we heard that one, and a claim answers no heartbeat. If the
//! register can't be reached and the primary is heard again, we step back before we answer, and the next
//! claim waits for T2 anew; should the old swap land meanwhile, the primary learns of it from the register,
//! and we at the next claim. A swap that is under way is waited for: if it wins, stepping back would only
//! have made the pause longer.
//!
//! Where the register asks for a quorum (`image::Register`), a claim first writes there what is held, and waits until
//! enough others have done so; then whoever holds the newest swaps. What was written is a promise to take nothing newer:
//! so stepping back begins with taking it back.

mod copy;
#[cfg(test)]
mod tests;
mod vocabulary;

use image::{CheckpointId, Member, Register, Sync};

pub use vocabulary::{
    Discarded, EpochRefusal, Refusal, StandbyAction, StandbyConfig, StandbyEvent, StandbyStatus, Suspicion,
};

use crate::desk::{Desk, Outcome};
use crate::primary::AppExit;
use crate::{Fencing, Grounds, Nanos, Progress, Question, Reign, Right};
use copy::Copy;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Life {
    Watching,
    Claiming {
        cause: Cause,
        since: Nanos,
    },
    /// The right is ours; what is prepared is applied first.
    Finishing {
        right: Right,
    },
    Promoting {
        right: Right,
    },
    Serving {
        right: Right,
    },
    Discarded(Discarded),
}

/// Why a claim was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Silence,
    /// The old copy is silent for good, says its owner or its guard: nothing heard later changes that.
    Word,
    /// The old copy stands still, and may go on if nobody takes over in time: the register decides.
    Move,
}

#[derive(Debug)]
pub struct Standby {
    config: StandbyConfig,
    life: Life,
    copy: Copy,
    desk: Desk,
    primary: Option<(Member, Reign)>,
    streaming: bool,
    heard_at: Nanos,
    /// When the primary was heard although it was given up, and not answered.
    stirred_at: Option<Nanos>,
    progress: Progress,
    /// After a claim that the register turned down: when the next may begin.
    claim_due: Nanos,
    turned_down: Option<Suspicion>,
    told: Option<StandbyStatus>,
}

impl Standby {
    pub fn new(config: StandbyConfig) -> Self {
        Self {
            config,
            life: Life::Watching,
            copy: Copy::default(),
            desk: Desk::default(),
            primary: None,
            streaming: false,
            heard_at: Nanos(0),
            stirred_at: None,
            progress: Progress::default(),
            claim_due: Nanos(0),
            turned_down: None,
            told: None,
        }
    }

    /// Whoever has the right already, and a copy that was made from a store: the next tick promotes it.
    pub fn from_store(config: StandbyConfig, right: Right, id: CheckpointId) -> Self {
        Self { life: Life::Finishing { right }, copy: Copy::holding(id), ..Self::new(config) }
    }

    /// Takes in what happened at `now`, and appends what is to be done about it, in order.
    pub fn step(&mut self, now: Nanos, event: StandbyEvent, actions: &mut Vec<StandbyAction>) {
        self.take_in(now, event, actions);
        self.settle(now, actions);
        self.tell_status(now, actions);
    }

    /// A question to the register is under way, and may make us the owner of the term.
    pub fn is_asking(&self) -> bool {
        self.desk.busy()
    }

    /// The newest epoch that is prepared or applied.
    pub fn held(&self) -> Option<CheckpointId> {
        self.copy.held()
    }

    /// What the primary said of its engine last.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Who is followed, or was last.
    pub fn primary(&self) -> Option<(&Member, Reign)> {
        self.primary.as_ref().map(|(member, reign)| (member, *reign))
    }

    fn take_in(&mut self, now: Nanos, event: StandbyEvent, actions: &mut Vec<StandbyAction>) {
        match event {
            StandbyEvent::Tick => {}
            StandbyEvent::PrimaryConnected { primary, reign } => self.connect(now, primary, reign, actions),
            StandbyEvent::StreamEnded => {
                self.streaming = false;
                self.copy.drop_half(actions);
            }
            StandbyEvent::EpochBegins { id, sync, eligible } => {
                self.epoch_begins(id, sync, eligible, actions)
            }
            StandbyEvent::Prepared { id } => self.copy.prepared(id, actions),
            StandbyEvent::Applied { id } => self.copy.applied(id, actions),
            StandbyEvent::ApplyFailed { id, why } => self.apply_failed(id, why, actions),
            StandbyEvent::Heartbeat { reign, sent_at, progress } => {
                self.heartbeat(now, reign, sent_at, progress, actions);
            }
            StandbyEvent::Enrolled { register } => {
                if self.config.fencing == Fencing::Register {
                    self.desk.learn(register);
                    self.claim_due = Nanos(0);
                }
            }
            StandbyEvent::Silenced { reign } | StandbyEvent::AppCrashed { reign, .. } => {
                if self.follows(reign) {
                    self.begin_claim(now, Cause::Word);
                }
            }
            StandbyEvent::HandedOver { reign } => {
                if self.follows(reign) {
                    self.begin_claim(now, Cause::Move);
                }
            }
            StandbyEvent::AppEnded { reign, exit } => self.app_ended(reign, exit, actions),
            StandbyEvent::RegisterAnswer { ask, answer } => {
                match self.desk.answer(now, ask, answer, self.config.timing) {
                    Outcome::Seen | Outcome::Unreachable | Outcome::Stale => {} // `settle` looks at the desk.
                }
            }
            StandbyEvent::RestoreFinished => {
                if let Life::Promoting { right } = &self.life {
                    self.life = Life::Serving { right: right.clone() };
                }
            }
            StandbyEvent::RestoreFailed { why } => {
                if matches!(self.life, Life::Promoting { .. }) {
                    self.discard(Discarded::NotRestored(why), actions);
                }
            }
        }
    }

    fn connect(&mut self, now: Nanos, primary: Member, reign: Reign, actions: &mut Vec<StandbyAction>) {
        if let Err(refusal) = self.admit(now, reign) {
            return actions.push(StandbyAction::Refuse(refusal));
        }
        let other = self.primary.as_ref().is_some_and(|(_, followed)| *followed != reign);
        if other && self.copy.held().is_some() {
            self.discard(Discarded::NewRun(primary.clone()), actions);
        }
        self.copy.drop_half(actions);
        self.primary = Some((primary, reign));
        self.streaming = true;
        self.life = Life::Watching;
        self.hear(now);
        actions.push(StandbyAction::Welcome { held: self.copy.tell() });
    }

    fn admit(&self, now: Nanos, reign: Reign) -> Result<(), Refusal> {
        match &self.life {
            Life::Finishing { right } | Life::Promoting { right } | Life::Serving { right } => {
                return Err(Refusal::Serving { term: right.term(), by: self.config.me.clone() });
            }
            Life::Claiming { .. } if !self.may_step_back() => return Err(Refusal::Claiming),
            Life::Discarded(_) => return Ok(()),
            Life::Claiming { .. } | Life::Watching => {}
        }
        match &self.primary {
            Some((_, followed)) if reign.term < followed.term => {
                Err(Refusal::OldTerm { yours: reign.term, mine: followed.term })
            }
            // The same term twice happens only without a register; then the living one stays.
            Some((member, followed))
                if reign.term == followed.term && reign != *followed && !self.silent(now) =>
            {
                Err(Refusal::Followed(member.clone()))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn epoch_begins(
        &mut self,
        id: CheckpointId,
        sync: Sync,
        eligible: bool,
        actions: &mut Vec<StandbyAction>,
    ) {
        if let Err(why) = self.check_epoch(id, sync) {
            self.copy.drop_half(actions);
            return actions.push(StandbyAction::RefuseEpoch { id, why });
        }
        // What nobody may take over with is not worth the memory of two copies.
        if sync == Sync::Full && !eligible && self.copy.held().is_some() {
            self.copy = Copy::default();
            actions.push(StandbyAction::Discard(Discarded::Replaced));
        }
        self.copy.begin(id, sync, actions);
    }

    fn check_epoch(&self, id: CheckpointId, sync: Sync) -> Result<(), EpochRefusal> {
        let Some((_, reign)) = self.primary.as_ref().filter(|_| self.streaming && self.watching()) else {
            return Err(EpochRefusal::NoStream { id });
        };
        if id.term != reign.term {
            return Err(EpochRefusal::OtherTerm { id, term: reign.term });
        }
        self.copy.check(id, sync)
    }

    fn apply_failed(&mut self, id: CheckpointId, why: String, actions: &mut Vec<StandbyAction>) {
        match self.life {
            Life::Watching | Life::Claiming { .. } | Life::Finishing { .. } => {
                let streamed = self.streaming;
                let why = Discarded::Broken(id, why);
                self.discard(why.clone(), actions);
                // Else a primary that is heard would go on for ever with what nothing here can take.
                if streamed {
                    actions.push(StandbyAction::EndStream { why });
                }
            }
            Life::Promoting { .. } | Life::Serving { .. } | Life::Discarded(_) => {}
        }
    }

    fn heartbeat(
        &mut self,
        now: Nanos,
        reign: Reign,
        sent_at: Nanos,
        progress: Progress,
        actions: &mut Vec<StandbyAction>,
    ) {
        match &self.life {
            Life::Finishing { right } | Life::Promoting { right } | Life::Serving { right } => {
                let refusal = Refusal::Serving { term: right.term(), by: self.config.me.clone() };
                return actions.push(StandbyAction::Refuse(refusal));
            }
            Life::Claiming { .. } if !self.may_step_back() => {
                if self.follows(reign) {
                    self.stirred_at = Some(now);
                }
                return;
            }
            Life::Claiming { .. } | Life::Watching => {}
            Life::Discarded(_) => return,
        }
        if self.follows(reign) {
            self.life = Life::Watching;
            self.progress = progress;
            self.hear(now);
            actions.push(StandbyAction::AnswerHeartbeat { sent_at, held: self.copy.acked() });
        }
    }

    fn hear(&mut self, now: Nanos) {
        self.heard_at = now;
        self.stirred_at = None;
        self.claim_due = Nanos(0);
        self.turned_down = None;
    }

    /// A claim on silence may be given up while no swap is under way; one on somebody's word never.
    fn may_step_back(&self) -> bool {
        let on_silence = matches!(self.life, Life::Claiming { cause: Cause::Silence, .. });
        on_silence && !self.desk.busy() && !self.may_have_spoken_up()
    }

    /// The others may count on it that we take nothing newer.
    fn may_have_spoken_up(&self) -> bool {
        self.desk.possible().any(|register| register.vote_of(&self.config.me).is_some())
    }

    /// The primary was heard again, a moment ago.
    fn regrets(&self, now: Nanos) -> bool {
        let on_silence = matches!(self.life, Life::Claiming { cause: Cause::Silence, .. });
        on_silence && self.stirred_at.is_some_and(|at| now < at + self.config.timing.suspicion())
    }

    fn app_ended(&mut self, reign: Reign, exit: AppExit, actions: &mut Vec<StandbyAction>) {
        if !self.follows(reign) {
            return;
        }
        match self.life {
            Life::Watching | Life::Claiming { .. } => self.discard(Discarded::AppEnded(exit), actions),
            Life::Discarded(Discarded::AppEnded(_)) => {} // It asks again: the confirmation was lost.
            Life::Discarded(_) | Life::Finishing { .. } | Life::Promoting { .. } | Life::Serving { .. } => {
                return;
            }
        }
        actions.push(StandbyAction::ConfirmEnd { exit });
    }

    fn discard(&mut self, why: Discarded, actions: &mut Vec<StandbyAction>) {
        self.copy.drop_half(actions);
        self.copy = Copy::default();
        self.streaming = false;
        self.life = Life::Discarded(why.clone());
        actions.push(StandbyAction::Discard(why));
    }

    fn begin_claim(&mut self, now: Nanos, cause: Cause) {
        let held = self.copy.held().is_some();
        match self.life {
            Life::Watching if held => self.life = Life::Claiming { cause, since: now },
            // A word makes a claim on silence final.
            Life::Claiming { since, .. } => self.life = Life::Claiming { cause, since },
            Life::Watching | Life::Discarded(_) => {}
            Life::Finishing { .. } | Life::Promoting { .. } | Life::Serving { .. } => {}
        }
    }

    fn settle(&mut self, now: Nanos, actions: &mut Vec<StandbyAction>) {
        self.desk.expire(now, self.config.timing);
        let may_claim = self.config.fencing != Fencing::Absent && now >= self.claim_due;
        if self.watching() && may_claim && self.silent(now) {
            self.begin_claim(now, Cause::Silence);
        }
        if let Life::Claiming { cause, since } = self.life {
            match self.config.fencing {
                // The original lives: nothing is asked for that might then not come to life.
                Fencing::Register if cause == Cause::Move && !self.copy.is_applied() => {}
                Fencing::Register => self.pursue_claim(now, since, actions),
                Fencing::None if cause == Cause::Silence => self.win(Grounds::Unfenced),
                Fencing::None | Fencing::Absent => self.win(Grounds::Word),
            }
        }
        self.finish_applying(actions);
        self.watch_register(now, actions);
    }

    /// A copy that could not get the term protects nobody, so the register is looked at also while there is nothing to
    /// ask. What it holds is then at hand when a claim begins.
    fn watch_register(&mut self, now: Nanos, actions: &mut Vec<StandbyAction>) {
        let watched =
            self.config.fencing == Fencing::Register && self.watching() && self.copy.held().is_some();
        let due = now.since(self.desk.seen_at()) >= self.config.timing.register_check();
        if watched && due && !self.silent(now) && self.desk.may_ask(now) {
            let (ask, question) = self.desk.ask(now, Question::Read);
            actions.push(StandbyAction::AskArbiter { ask, question });
        }
    }

    /// Asks the register for the term, as far as it has not answered that yet.
    fn pursue_claim(&mut self, now: Nanos, since: Nanos, actions: &mut Vec<StandbyAction>) {
        if self.desk.busy() {
            return;
        }
        let current = self.desk.seen_at() >= since && self.desk.trouble().is_none();
        let question = match self.desk.register() {
            Some(register) if self.owns(register) => {
                return self.win(Grounds::Won(register.clone()));
            }
            Some(register) if self.names_us(register) => match self.next_word(now, register) {
                Some(new) => {
                    if !new.votes.is_empty() {
                        // From here on nothing newer is held.
                        self.copy.drop_half(actions);
                    }
                    self.desk.swap(new)
                }
                None if now.since(self.desk.seen_at()) < self.config.timing.heartbeat() => return,
                None => Question::Read,
            },
            Some(_) | None if !current => Question::Read,
            Some(register) => return self.turn_down(now, Some(register.clone()), actions),
            None => return self.turn_down(now, None, actions),
        };
        if self.desk.may_ask(now) {
            let (ask, question) = self.desk.ask(now, question);
            actions.push(StandbyAction::AskArbiter { ask, question });
        }
    }

    /// What we would have a register hold that names us: nothing else, while the others have to speak.
    fn next_word(&self, now: Nanos, register: &Register) -> Option<Register> {
        let (me, held) = (&self.config.me, self.copy.held()?);
        if register.quorum > 1 && self.regrets(now) {
            return self.may_have_spoken_up().then(|| register.with_vote(me, None));
        }
        if register.lets_take_over(me, held) {
            return Some(register.taken_by(me.clone()));
        }
        (register.vote_of(me) != Some(held)).then(|| register.with_vote(me, Some(held)))
    }

    /// Whether the register lets us take over from the primary whose copy we hold.
    fn names_us(&self, register: &Register) -> bool {
        let followed = self.primary.as_ref().is_some_and(|(_, reign)| reign.term == register.term);
        followed && register.lists(&self.config.me)
    }

    /// Whether a swap of ours has won, whoever told us. A term that we owned before the one we follow is over.
    fn owns(&self, register: &Register) -> bool {
        let newer = self.primary.as_ref().is_some_and(|(_, reign)| register.term > reign.term);
        newer && register.owner == self.config.me
    }

    /// The register does not let us. If the primary merely went on alone, the copy is too old to serve but
    /// not too old to go on from, and an enrolment that is still under way may land: so it is kept.
    fn turn_down(&mut self, now: Nanos, register: Option<Register>, actions: &mut Vec<StandbyAction>) {
        let term = self.primary.as_ref().map(|(_, reign)| reign.term);
        self.claim_due = now + self.config.timing.register_check();
        self.life = Life::Watching;
        self.turned_down = Some(match register {
            Some(register) if Some(register.term) > term => {
                let lost = Discarded::Lost { winner: register.owner, term: register.term };
                return self.discard(lost, actions);
            }
            Some(register) => Suspicion::NotNamed(register.owner, register.term),
            None => Suspicion::NoRegister,
        });
    }

    fn win(&mut self, grounds: Grounds) {
        let followed = self.primary.as_ref().map(|(_, reign)| reign.term).unwrap_or_default();
        let term = match &grounds {
            Grounds::Won(register) => register.term,
            Grounds::Word | Grounds::Unfenced => followed.next(),
        };
        assert!(term > followed, "a takeover of term {followed} in term {term}");
        self.life = Life::Finishing { right: Right::new(term, grounds) };
    }

    /// Promotes once everything that was acknowledged is applied.
    fn finish_applying(&mut self, actions: &mut Vec<StandbyAction>) {
        let Life::Finishing { right } = &self.life else { return };
        if !self.copy.is_applied() {
            return;
        }
        let right = right.clone();
        self.copy.drop_half(actions);
        let from = self.copy.held().expect("a claim is begun only with a copy");
        self.life = Life::Promoting { right: right.clone() };
        actions.push(StandbyAction::Promote { right, from });
    }

    fn follows(&self, reign: Reign) -> bool {
        self.primary.as_ref().is_some_and(|(_, followed)| *followed == reign)
    }

    fn watching(&self) -> bool {
        matches!(self.life, Life::Watching)
    }

    fn silent(&self, now: Nanos) -> bool {
        self.primary.is_some() && now.since(self.heard_at) >= self.config.timing.suspicion()
    }

    fn tell_status(&mut self, now: Nanos, actions: &mut Vec<StandbyAction>) {
        let status = self.status(now);
        if self.told.as_ref() != Some(&status) {
            self.told = Some(status.clone());
            actions.push(StandbyAction::Status(status));
        }
    }

    pub fn status(&self, now: Nanos) -> StandbyStatus {
        match &self.life {
            Life::Watching if self.copy.held().is_none() => {
                if self.copy.is_arriving() {
                    StandbyStatus::Receiving
                } else {
                    StandbyStatus::Empty
                }
            }
            Life::Watching => match (self.suspicion(now), self.desk.trouble()) {
                (Some(suspicion), _) => StandbyStatus::Suspecting(suspicion),
                (None, Some(why)) => StandbyStatus::CutOff { why: why.to_owned() },
                (None, None) => StandbyStatus::Following,
            },
            Life::Claiming { .. } => {
                let trouble = self.desk.trouble().map(str::to_owned);
                StandbyStatus::Claiming { trouble: trouble.or_else(|| self.unheard()) }
            }
            Life::Finishing { right } | Life::Promoting { right } => {
                StandbyStatus::Promoting { term: right.term() }
            }
            Life::Serving { right } => StandbyStatus::Serving { term: right.term() },
            Life::Discarded(why) => StandbyStatus::Discarded(why.clone()),
        }
    }

    /// Who has to speak up before anybody takes over.
    fn unheard(&self) -> Option<String> {
        let register = self.desk.register().filter(|register| register.quorum > 1)?;
        let silent = register.members.iter().filter(|member| register.vote_of(member).is_none());
        let names: Vec<&str> = silent.map(|member| member.name.as_str()).collect();
        let (said, quorum) = (register.votes.len(), register.quorum);
        Some(match said < quorum as usize {
            true => format!(
                "{said} of {quorum} standbys have spoken up; {} may hold something newer",
                names.join(" and ")
            ),
            false => "another standby holds something newer".to_owned(),
        })
    }

    fn suspicion(&self, now: Nanos) -> Option<Suspicion> {
        if let Some(turned_down) = &self.turned_down {
            return Some(turned_down.clone());
        }
        if self.silent(now) {
            let absent = self.config.fencing == Fencing::Absent;
            return Some(if absent { Suspicion::NoFencing } else { Suspicion::Silent });
        }
        if self.progress.stalled {
            return Some(Suspicion::EngineStalled);
        }
        (!self.streaming).then_some(Suspicion::StreamEnded)
    }
}
