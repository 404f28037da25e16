//! The register of an app: who serves it, in which term, and who may take over. One value, changed only by
//! the arbiter's compare-and-swap.
//!
//! Invariants, each a clause of [`Register::follows`]: the version grows by one with every swap, so that a
//! swap which was delayed on its way can never win against a value that merely looks like the one it saw;
//! the term never falls, and a new owner always comes with a new term.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::Term;

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
    /// Who may take over: each held a committed epoch when it was written here.
    pub members: Vec<Member>,
}

impl Member {
    pub fn new(name: impl Into<String>, incarnation: u64) -> Self {
        Self { name: name.into(), incarnation: Incarnation(incarnation) }
    }
}

impl Register {
    /// The first value of an app that no register names yet.
    pub fn first(owner: Member) -> Self {
        Self { version: 1, term: Term(1), owner, members: Vec::new() }
    }

    /// The same owner and term, with other members.
    pub fn with_members(&self, members: Vec<Member>) -> Self {
        Self { version: self.version + 1, members, ..self.clone() }
    }

    /// A new term of `owner`, who is alone.
    pub fn taken_by(&self, owner: Member) -> Self {
        Self { version: self.version + 1, term: self.term.next(), owner, members: Vec::new() }
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
