//! The register of an app: who serves it, in which term, and who may take over. One value, changed only by
//! the arbiter's compare-and-swap.
//!
//! Invariants, each a clause of [`Register::follows`]: the version grows by one with every swap, so that a
//! swap which was delayed on its way can never win against a value that merely looks like the one it saw;
//! the term never falls, and a new owner always comes with a new term.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::{CheckpointId, Term};

/// One life of a manager. A restarted manager holds nothing of what its earlier life held, and is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// A manager in one of its lives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    pub incarnation: Incarnation,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    pub version: u64,
    pub term: Term,
    pub owner: Member,
    /// Who may take over: each held an epoch of the owner's when it was written here.
    pub members: Vec<Member>,
    /// How many members must have spoken up before one of them may take over: so many that among any so many is one who
    /// holds the newest committed epoch. With one, each may at once.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub quorum: u32,
    /// Who has spoken up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub votes: Vec<Vote>,
}

/// A member's word: this is the newest that I hold, and as long as this stands here I take nothing newer and answer no
/// heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    pub member: Member,
    pub held: CheckpointId,
}

fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_one(quorum: &u32) -> bool {
    *quorum == 1
}

impl Member {
    pub fn new(name: impl Into<String>, incarnation: u64) -> Self {
        Self { name: name.into(), incarnation: Incarnation(incarnation) }
    }
}

impl Register {
    /// The first value of an app that no register names yet.
    pub fn first(owner: Member) -> Self {
        Self { version: 1, term: Term(1), owner, members: Vec::new(), quorum: 1, votes: Vec::new() }
    }

    /// The same owner and term, with other members, each of whom may take over by itself.
    pub fn with_members(&self, members: Vec<Member>) -> Self {
        self.with_quorum(members, 1)
    }

    /// As [`Self::with_members`], but `quorum` of them must have spoken up first. What was said before is void.
    pub fn with_quorum(&self, members: Vec<Member>, quorum: u32) -> Self {
        Self { version: self.version + 1, members, quorum, votes: Vec::new(), ..self.clone() }
    }

    /// The same, and the word of `member`: that it holds `held`, or no word any more.
    pub fn with_vote(&self, member: &Member, held: Option<CheckpointId>) -> Self {
        let mut next = Self { version: self.version + 1, ..self.clone() };
        next.votes.retain(|vote| vote.member != *member);
        next.votes.extend(held.map(|held| Vote { member: member.clone(), held }));
        next
    }

    /// A new term of `owner`, who is alone.
    pub fn taken_by(&self, owner: Member) -> Self {
        Self { version: self.version + 1, term: self.term.next(), ..Self::first(owner) }
    }

    pub fn vote_of(&self, member: &Member) -> Option<CheckpointId> {
        self.votes.iter().find(|vote| vote.member == *member).map(|vote| vote.held)
    }

    /// Whether so many have spoken up who hold nothing newer than `held` that none of the others can hold anything newer
    /// that is committed. Who asks counts as one of them.
    pub fn lets_take_over(&self, member: &Member, held: CheckpointId) -> bool {
        let behind = |vote: &&Vote| vote.member != *member && self.lists(&vote.member) && vote.held <= held;
        let heard = 1 + self.votes.iter().filter(behind).count();
        self.lists(member) && heard >= self.quorum as usize
    }

    pub fn lists(&self, member: &Member) -> bool {
        self.members.contains(member)
    }

    /// Whether this value may replace `old`.
    pub fn follows(&self, old: Option<&Self>) -> bool {
        old.map_or(self.version == 1, |old| {
            let same_owner = self.owner == old.owner && self.term == old.term;
            self.version == old.version + 1 && (same_owner || self.term > old.term)
        })
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.name, self.incarnation.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_heard_enough_and_holds_the_newest_may_take_over() {
        let [a, b, c] = ["a", "b", "c"].map(|name| Member::new(name, 1));
        let (old, new) = (CheckpointId::new(1, 5), CheckpointId::new(1, 6));
        let any = Register::first(a).with_quorum(vec![b.clone(), c.clone()], 2);
        assert!(!any.lets_take_over(&b, old), "nobody has spoken up");
        let one = any.with_vote(&b, Some(old));
        assert!(!one.lets_take_over(&b, old), "the other may hold more");
        let both = one.with_vote(&c, Some(new));
        assert!(!both.lets_take_over(&b, old) && both.lets_take_over(&c, new));
        assert!(!both.with_vote(&b, None).lets_take_over(&c, new), "a word was taken back");
        let stranger = one.with_vote(&Member::new("c", 2), Some(old));
        assert!(!stranger.lets_take_over(&b, old), "the word of another life counts for nothing");
        let all = any.with_members(vec![b.clone(), c]);
        assert!(all.lets_take_over(&b, old), "each holds all that is committed");
    }

    /// A register that an earlier release wrote is compared byte for byte.
    #[test]
    fn a_register_of_a_pair_is_written_as_it_always_was() {
        let pair = Register::first(Member::new("a", 1)).with_members(vec![Member::new("b", 1)]);
        let bytes = crate::frame::encode(&pair);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(!text.contains("quorum") && !text.contains("votes"), "{text:?}");
        assert_eq!(crate::frame::decode::<Register>(&bytes, "register").unwrap(), pair);
    }

    #[test]
    fn only_a_new_term_makes_a_new_owner() {
        let (a, b) = (Member::new("a", 1), Member::new("b", 1));
        let first = Register::first(a.clone());
        let paired = first.with_members(vec![b.clone()]);
        let taken = paired.taken_by(b.clone());
        assert!(first.follows(None) && paired.follows(Some(&first)) && taken.follows(Some(&paired)));
        assert!(!taken.follows(Some(&first)), "a version was skipped");
        assert!(!paired.follows(Some(&taken)), "the term fell");
        let stolen = Register { owner: b, ..first.with_members(Vec::new()) };
        assert!(!stolen.follows(Some(&first)), "another owner in the same term");
    }
}
