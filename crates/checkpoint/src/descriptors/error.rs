//! What can go wrong while descriptors are captured or rebuilt.

use std::io;

use crate::Unsupported;

#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    #[error("cannot {what} of fd {number} in pid {pid}")]
    Kernel {
        pid: i32,
        number: i32,
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// The process is gone, or is not ours to look into.
    #[error("cannot list the descriptors of pid {pid}")]
    List {
        pid: i32,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// Something here is not as it was on the primary: nothing was changed yet if `prepare` says so.
    #[error("cannot {what}")]
    Kernel {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not the kind of file that the app had open; make it one on this host")]
    OtherKind { path: String },
    #[error("the captured state names {what}, which is not in it")]
    Inconsistent { what: String },
    /// The skeleton can no longer be told what to do.
    #[error("cannot run system calls in the skeleton")]
    Target(#[source] io::Error),
}

/// Says what was being done when the kernel refused.
pub(super) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, RebuildError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, RebuildError> {
        self.map_err(|source| RebuildError::Kernel { what: what(), source: source.into() })
    }
}
