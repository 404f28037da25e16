//! The standbys together: which of them have to hold an epoch before it is committed, and who may be written into the
//! register.
//!
//! The register names the members and a *quorum* R: so many must have spoken up before one takes over, and then the one
//! that holds the newest. An epoch is committed when W of the N members hold it, and W + R = N + 1: among any R is one who
//! holds it. One order keeps this true while members come and go: *the newest committed epoch satisfies every value that
//! the register may have*. A commit is checked against all of them, and so is a new value against the newest commit,
//! before it is asked for. A register that names nobody asks for nothing, since nobody can take over.
//!
//! The permit follows from the same: R members must be silent for T2 before anybody serves, so it lasts until R of them
//! have not answered for T1.

use std::fmt;
use std::str::FromStr;

use image::{CheckpointId, Member, Register};
use serde::{Deserialize, Serialize};

use super::link::Link;
use super::{Consistency, OnStandbyLoss, Permit, Primary, PrimaryAction, Reason};
use crate::{Committed, Fencing, Nanos};

/// `--commit-on`: how many standbys have to hold an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CommitOn {
    /// One: output waits for the fastest, and a takeover waits for the word of all.
    Any,
    /// All: output waits for the slowest, and whoever is left takes over at once and alone.
    #[default]
    All,
    /// So many.
    Count(u32),
    /// The store, which is one of them, and all others.
    Store,
}

impl CommitOn {
    /// Of so many standbys.
    pub fn holders(self, standbys: u32) -> u32 {
        match self {
            Self::Any => 1,
            Self::All | Self::Store => standbys.max(1),
            Self::Count(count) => count.clamp(1, standbys.max(1)),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not say how many standbys; it is `any`, `all`, `store`, or a number from 1 on")]
pub struct NoRule(String);

impl FromStr for CommitOn {
    type Err = NoRule;

    fn from_str(text: &str) -> Result<Self, NoRule> {
        match text {
            "any" => Ok(Self::Any),
            "all" => Ok(Self::All),
            "store" => Ok(Self::Store),
            count => match count.parse() {
                Ok(count) if count > 0 => Ok(Self::Count(count)),
                Ok(_) | Err(_) => Err(NoRule(text.to_owned())),
            },
        }
    }
}

impl fmt::Display for CommitOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::All => f.write_str("all"),
            Self::Store => f.write_str("store"),
            Self::Count(count) => write!(f, "{count}"),
        }
    }
}

/// One standby, as the group's status shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StandbyView {
    pub standby: Member,
    pub held: Option<CheckpointId>,
    /// Epochs that are on their way to it.
    pub in_flight: usize,
    /// The register names it, and it holds what it may take over with.
    pub eligible: bool,
    /// Why it could not take over, or how it holds the others up.
    pub why_not: Option<Reason>,
}

impl Primary {
    pub(super) fn link(&self, standby: &Member) -> Option<&Link> {
        self.links.iter().find(|link| link.standby == *standby)
    }

    pub(super) fn link_mut(&mut self, standby: &Member) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.standby == *standby)
    }

    /// Everybody who was asked for, and is there or not.
    pub fn group(&self, now: Nanos) -> Vec<StandbyView> {
        let view = |link: &Link| StandbyView {
            standby: link.standby.clone(),
            held: link.held,
            in_flight: link.in_flight(),
            eligible: self.is_eligible(link),
            why_not: self
                .ailment(now, link)
                .or_else(|| (!self.is_eligible(link)).then_some(Reason::NotEnrolled)),
        };
        self.links.iter().map(view).collect()
    }

    /// What is wrong with a standby by itself.
    pub(super) fn ailment(&self, now: Nanos, link: &Link) -> Option<Reason> {
        if let Some(why) = &link.refused {
            return Some(Reason::EpochRefused(why.clone()));
        }
        if link.held.is_none() {
            return Some(Reason::FullSync);
        }
        (!self.answers(now, link)).then(|| match self.is_store(&link.standby) {
            true => Reason::StoreSilent(link.standby.name.clone()),
            false => Reason::StandbySilent,
        })
    }

    /// How many standbys were asked to hold each epoch.
    pub(super) fn holders_asked_for(&self) -> u32 {
        self.config.commit_on.holders(self.config.standbys)
    }

    /// How many members of so many have to speak up before one of them takes over.
    pub(super) fn quorum_of(&self, members: usize) -> u32 {
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        members.saturating_sub(self.holders_asked_for().min(members)) + 1
    }

    /// Whether a takeover by these members can't miss `id`.
    fn covers(&self, members: &[Member], quorum: u32, id: CheckpointId) -> bool {
        let holds = |member: &&Member| self.link(member).is_some_and(|link| link.holds(id));
        // All but these have spoken up.
        let unheard = members.len().saturating_sub(quorum as usize);
        members.is_empty() || members.iter().filter(holds).count() > unheard
    }

    pub(super) fn would_cover_what_is_committed(&self, members: &[Member]) -> bool {
        self.committed.is_none_or(|id| self.covers(members, self.quorum_of(members.len()), id))
    }

    /// Whether no takeover can go back behind `id`, whatever the register holds. Who is about to become a member counts
    /// as one, else it would never have caught up.
    fn is_safe(&self, now: Nanos, id: CheckpointId) -> bool {
        let mut values = self.desk.possible();
        let entitled = self.entitled(now);
        let enough = match self.config.consistency {
            Consistency::Strong { on_standby_loss: OnStandbyLoss::Stop } => {
                let copies = self.links.iter().filter(|link| link.holds(id)).count();
                copies >= self.holders_asked_for() as usize
            }
            Consistency::Strong { on_standby_loss: OnStandbyLoss::Continue } | Consistency::Timeline => true,
        };
        enough
            && values.all(|register| self.covers(&register.members, register.quorum, id))
            && self.covers(&entitled, self.quorum_of(entitled.len()), id)
    }

    /// Commits the newest epoch that can't be lost any more.
    pub(super) fn settle_commit(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let news = self.links.iter().filter_map(|link| link.held).filter(|id| Some(*id) > self.committed);
        let newest = news.filter(|id| self.is_safe(now, *id)).max();
        if let Some(id) = newest {
            self.committed = Some(id);
            // First of all: clients wait for it.
            self.release(now, id, actions);
            actions.push(PrimaryAction::Committed(Committed::by_acknowledgement(id)));
        }
        self.settle_ledger(actions);
    }

    /// What all hold who go on from what they hold, nobody will ask for again.
    fn settle_ledger(&mut self, actions: &mut Vec<PrimaryAction>) {
        let least = self.links.iter().filter(|link| !link.needs_full).map(|link| link.held).min().flatten();
        let forgotten = self.sent.iter().position(|sent| Some(*sent) == least);
        if let (Some(id), Some(before)) = (least, forgotten)
            && self.forgotten < Some(id)
        {
            self.forgotten = Some(id);
            self.sent.drain(..before);
            actions.push(PrimaryAction::Forget(id));
        }
    }

    /// Who ought to be able to take over: whoever holds our epochs and answers.
    pub(super) fn entitled(&self, now: Nanos) -> Vec<Member> {
        if now < self.paused_until {
            return Vec::new();
        }
        let chosen = self.planned.as_ref().map(|planned| planned.to());
        let entitled = self.links.iter().filter(|link| {
            chosen.is_none_or(|chosen| *chosen == link.standby)
                && link.held.is_some()
                && self.answers(now, link)
                && self.is_covered(now, link)
        });
        let mut members: Vec<Member> = entitled.map(|link| link.standby.clone()).collect();
        members.sort();
        members
    }

    /// The register's next value in service, if it is to change and may.
    ///
    /// A doubt is ended by writing even what already stands: the new version outruns the swap that may still land.
    pub(super) fn next_members(&self, now: Nanos, known: &Register) -> Option<Register> {
        let members = self.entitled(now);
        let quorum = self.quorum_of(members.len());
        if known.members == members && known.quorum == quorum && !self.desk.in_doubt() {
            return None;
        }
        let safe = self.would_cover_what_is_committed(&members) && self.permits(now, &members, quorum);
        safe.then(|| known.with_quorum(members, quorum))
    }

    /// Whether the permit that is in force would have been given with these members: it can't be shortened.
    fn permits(&self, now: Nanos, members: &[Member], quorum: u32) -> bool {
        match self.permit {
            Permit::Until(deadline) if deadline > now && !members.is_empty() => {
                self.lease(members, quorum) >= Some(deadline)
            }
            Permit::Until(_) | Permit::Open | Permit::Shut => true,
        }
    }

    /// Until when nobody can have taken over, if the register names these.
    pub(super) fn lease(&self, members: &[Member], quorum: u32) -> Option<Nanos> {
        let lease = |member: &Member| {
            let answered = self.link(member).and_then(|link| link.answered);
            answered.map(|sent_at| sent_at + self.permit_from(member))
        };
        let mut leases: Vec<Option<Nanos>> = members.iter().map(lease).collect();
        leases.sort();
        leases[(quorum as usize).clamp(1, leases.len()) - 1]
    }

    /// Whether the register is known to name it, for what it holds.
    pub(super) fn is_eligible(&self, link: &Link) -> bool {
        link.held.is_some()
            && match self.config.fencing {
                Fencing::Register => {
                    self.desk.register().is_some_and(|register| register.lists(&link.standby))
                }
                Fencing::None | Fencing::Absent => true,
            }
    }

    /// How many eligible standbys a takeover takes.
    pub(super) fn quorum(&self) -> usize {
        self.desk.register().map_or(1, |register| register.quorum.max(1) as usize)
    }

    /// Whether a takeover would succeed, if all who are there spoke up.
    pub(super) fn eligible(&self) -> bool {
        self.links.iter().filter(|link| self.is_eligible(link)).count() >= self.quorum()
    }

    /// Whether somebody may take over for all we know: an enrolment whose answer was lost may have landed.
    pub(super) fn may_be_eligible(&self) -> bool {
        self.links.iter().any(|link| {
            link.held.is_some()
                && (self.is_eligible(link) || self.desk.rivals().any(|rival| *rival == link.standby))
        })
    }
}
