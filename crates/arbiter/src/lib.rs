//! Who may serve: the register of the term, and the back-ends that keep it.
//!
//! A back-end does one thing: it replaces an app's [`Register`] if, and only if, it still holds the value
//! that the caller expects. Of any number of callers that expect the same value exactly one wins. An error
//! says nothing about whether a swap took place: the caller must count it as both until it sees a newer
//! version.
//!
//! Asking again for a swap that was not answered is safe, and the back-ends that go over a network do it: every
//! value has a version of its own, so the swap lands at most once, and finding its own value there means that an
//! earlier attempt has won.

mod encoding;
mod etcd;
mod file;
mod members;
mod object;
mod probe;
mod spec;
mod witness;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use etcd::EtcdArbiter;
pub use file::FileArbiter;
pub use image::{Incarnation, Member, Register};
pub use object::ObjectArbiter;
pub use spec::{ArbiterSpec, EtcdSpec, SpecError};
pub use witness::WitnessArbiter;

/// Calls block, until the deadline at the latest.
pub trait Arbiter: Send {
    /// The register of `app`; none if nobody ever wrote one.
    fn read(&mut self, app: &str, deadline: Instant) -> Result<Option<Register>, ArbiterError>;

    /// Writes `new` if the register still is `expected`.
    ///
    /// # Panics
    /// If `new` does not follow `expected` (see [`Register::follows`]): terms only grow, whoever asks.
    fn swap(
        &mut self,
        app: &str,
        expected: Option<&Register>,
        new: Register,
        deadline: Instant,
    ) -> Result<Swap, ArbiterError>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    Won,
    /// What the register holds instead of the expected value.
    Lost(Option<Register>),
}

/// One variant per reaction: try again later, mend the configuration, call the operator, or mend the name.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    #[error("cannot {what} {path}", path = .path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the register {register} cannot be asked: {why}")]
    Unreachable { register: String, why: String },
    #[error("the register {register} has not answered within {waited:?}; is the majority of its hosts up?")]
    Late { register: String, waited: Duration },
    #[error("the register {register} cannot be used: {why}")]
    Setup { register: String, why: String },
    #[error(
        "the register {register} is corrupt: {why}; nobody can take over until it is put right: make sure that \
         no copy of the app runs, then remove it"
    )]
    Corrupt { register: String, why: String },
    #[error(
        "{0:?} can't name an app here: use letters, digits, '.', '_' and '-', not '.' first, at most 100"
    )]
    BadName(String),
}
