//! What can go wrong while a process is captured or set going.

use std::io;

use tracee::TraceError;

use crate::Unsupported;

#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("cannot read {what} of thread {tid}")]
    Kernel {
        what: &'static str,
        tid: i32,
        #[source]
        source: io::Error,
    },
    #[error("the kernel's text about {what} of thread {tid} is not as we know it; update checksync")]
    Unreadable { what: &'static str, tid: i32 },
}

impl SaveError {
    pub(super) fn kernel<E: Into<io::Error>>(what: &'static str, tid: i32) -> impl FnOnce(E) -> Self {
        move |source| match source.into() {
            gone if gone.raw_os_error() == Some(libc::ESRCH) => Self::Trace(TraceError::Ended(tid)),
            source => Self::Kernel { what, tid, source },
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("cannot {what} in thread {tid} of the app")]
    Kernel {
        what: String,
        /// As the cell counts.
        tid: i32,
        #[source]
        source: io::Error,
    },
    /// The hosts are not alike.
    #[error(
        "the app has capabilities that checksync lacks on this host (mask {missing:#x}); run it with them"
    )]
    Capabilities { missing: u64 },
    /// The image contradicts itself.
    #[error("the captured state of process {pid} has {what}")]
    Inconsistent { pid: i32, what: String },
}

impl RestoreError {
    pub(super) fn kernel<E: Into<io::Error>>(what: &str, tid: i32) -> impl FnOnce(E) -> Self {
        move |source| Self::Kernel { what: what.to_owned(), tid, source: source.into() }
    }
}
