//! What can go wrong between a tracer and its tracee.

use std::io;

/// One variant per different reaction.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// An answer, not a fault: reap it and go on.
    #[error("process {0} has ended")]
    Ended(i32),
    /// The tree grew while it was being stopped; it runs again. Try later.
    #[error("process {0} made a process while it was being stopped")]
    Forked(i32),
    /// Everything runs again; try later.
    #[error("thread {tid} did not stop within {waited_ms} ms (it sleeps in the kernel, as after vfork)")]
    NotStopping { tid: i32, waited_ms: u64 },
    #[error("cannot trace process {pid}: {why}")]
    Refused { pid: i32, why: String },
    #[error("cannot {what} in thread {tid}")]
    Kernel { what: &'static str, tid: i32, source: io::Error },
    #[error("there is no room for {0} bytes of ours in the address space of process {1}")]
    NoRoom(u64, i32),
    #[error("thread {tid} was lost while it ran a call for us: it stopped with {stop}")]
    NotRestored { tid: i32, stop: String },
}

impl TraceError {
    pub(crate) fn kernel(what: &'static str, tid: i32) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::ESRCH) => Self::Ended(tid),
            _ => Self::Kernel { what, tid, source },
        }
    }
}
