//! Values that only their cause can make.

use image::{CheckpointId, Register, Term};

/// A standby holds this checkpoint, prepared to the last thing that can fail. Ledgers are trimmed and gates
/// opened for this value, and only [`crate::Primary`] makes one: from an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Committed(CheckpointId);

impl Committed {
    pub(crate) fn by_acknowledgement(id: CheckpointId) -> Self {
        Self(id)
    }

    pub fn id(self) -> CheckpointId {
        self.0
    }
}

/// Why a standby may serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grounds {
    /// It owns this value of the register.
    Won(Register),
    /// The old owner, or its guard, said that its copy is silent for good. No register is configured.
    Word,
    /// Silence, and `--fencing none`.
    Unfenced,
}

/// The right to serve in a term. Promotion takes one, and only [`crate::Standby`] makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    term: Term,
    grounds: Grounds,
}

impl Right {
    pub(crate) fn new(term: Term, grounds: Grounds) -> Self {
        Self { term, grounds }
    }

    pub fn term(&self) -> Term {
        self.term
    }

    pub fn grounds(&self) -> &Grounds {
        &self.grounds
    }
}
