//! Who may serve: the register of the term, and the back-ends that keep it.
//!
//! A back-end does one thing: it replaces an app's [`Register`] if, and only if, it still holds the value
//! that the caller expects. Of any number of callers that expect the same value exactly one wins. An error
//! says nothing about whether a swap took place: the caller must count it as both until it sees a newer
//! version.

mod file;
mod spec;

use std::path::PathBuf;

pub use file::FileArbiter;
pub use image::{Incarnation, Member, Register};
pub use spec::{ArbiterSpec, SpecError};

/// Calls block: for a file on a slow disk or another host's lock, without a limit of their own.
pub trait Arbiter: Send {
    /// The register of `app`; none if nobody ever wrote one.
    fn read(&mut self, app: &str) -> Result<Option<Register>, ArbiterError>;

    /// Writes `new` if the register still is `expected`.
    ///
    /// # Panics
    /// If `new` does not follow `expected` (see [`Register::follows`]): terms only grow, whoever asks.
    fn swap(&mut self, app: &str, expected: Option<&Register>, new: Register) -> Result<Swap, ArbiterError>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    Won,
    /// What the register holds instead of the expected value.
    Lost(Option<Register>),
}

/// One variant per reaction: try again later, call the operator, or mend the name.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    #[error("cannot {what} {path}", path = .path.display())]
    Unreachable {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "the register {path} is corrupt: {why}; nobody can take over until it is put right: make sure that \
         no copy of the app runs, then remove it",
        path = .path.display()
    )]
    Corrupt { path: PathBuf, why: String },
    #[error(
        "{0:?} can't name an app here: use letters, digits, '.', '_' and '-', not '.' first, at most 100"
    )]
    BadName(String),
}
