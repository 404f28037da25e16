//! What can go wrong with a structure, by what there is to do about it.

use std::fmt;
use std::io;
use std::sync::Arc;

#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum StructureError {
    /// No manager started this program: run it with `checksync run --replicate structures`.
    NoManager,
    /// The manager can't be reached, or it is gone. This program is to end: the standby takes over, or has.
    Lost(Arc<io::Error>),
    /// Another serves in this term. Nothing that has not returned `Ok` will be committed from here.
    Fenced { term: u64, by: String },
    /// The manager does not take us, and says why.
    Refused(String),
    /// A name, key or value is longer than any may be.
    TooLong { what: &'static str, len: usize, max: usize },
}

impl fmt::Display for StructureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoManager => f.write_str(
                "no manager started this program; run it with `checksync run --replicate structures`",
            ),
            Self::Lost(why) => write!(f, "the manager of the structures is lost: {why}"),
            Self::Fenced { term, by } => write!(f, "fenced: {by} serves the structures in term {term}"),
            Self::Refused(why) => write!(f, "the manager refused: {why}"),
            Self::TooLong { what, len, max } => write!(f, "a {what} of {len} bytes; at most {max} are taken"),
        }
    }
}

impl std::error::Error for StructureError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Lost(why) => Some(&**why),
            Self::NoManager | Self::Fenced { .. } | Self::Refused(_) | Self::TooLong { .. } => None,
        }
    }
}

impl From<io::Error> for StructureError {
    fn from(why: io::Error) -> Self {
        Self::Lost(Arc::new(why))
    }
}
