//! The name of a checkpoint: the term that it was taken in and its epoch, written `3/1042`.
//!
//! Terms order who may serve; epochs order checkpoints. Epochs go on growing across terms, so that of two
//! checkpoints of one lineage the greater name is always the newer state.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Who may serve, as a number that only grows. Only the arbiter's swap makes a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Term(pub u64);

/// The time between two checkpoints, and the checkpoint that ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Term {
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Epoch {
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The name of a checkpoint everywhere: on the wire, in a directory, in the store, in `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct CheckpointId {
    pub term: Term,
    pub epoch: Epoch,
}

impl CheckpointId {
    pub fn new(term: u64, epoch: u64) -> Self {
        Self { term: Term(term), epoch: Epoch(epoch) }
    }

    /// The next checkpoint of the same term.
    pub fn next(self) -> Self {
        Self { term: self.term, epoch: self.epoch.next() }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.term, self.epoch)
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not the name of a checkpoint; names look like 3/1042 (term/epoch)")]
pub struct NotAName(String);

impl FromStr for CheckpointId {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let not_a_name = || NotAName(text.to_owned());
        let (term, epoch) = text.split_once('/').ok_or_else(not_a_name)?;
        let number = |digits: &str| digits.parse().map_err(|_| not_a_name());
        Ok(Self::new(number(term)?, number(epoch)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_survives_printing_and_parsing() {
        let name = CheckpointId::new(3, 1042);
        assert_eq!(name.to_string(), "3/1042");
        assert_eq!("3/1042".parse(), Ok(name));
    }

    #[test]
    fn anything_else_is_refused_by_its_text() {
        for text in ["", "3", "3/", "/1", "3/x", "-1/2", "3/1/2"] {
            assert_eq!(text.parse::<CheckpointId>(), Err(NotAName(text.to_owned())));
        }
    }

    #[test]
    fn a_new_term_is_newer_than_any_epoch_of_the_old_one() {
        assert!(CheckpointId::new(2, 1) > CheckpointId::new(1, 9));
        assert!(CheckpointId::new(1, 9).next() > CheckpointId::new(1, 9));
    }
}
