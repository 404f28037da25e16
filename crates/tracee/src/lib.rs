//! One tracer per app: threads that are lent to us, stopped, looked at and given back.
//!
//! A [`Tree`] is the traced app: it stays seized from start to end and runs at full speed. [`Tree::freeze`]
//! stops every thread and returns [`Frozen`], the loan; registers, remote system calls and remote memory
//! exist only on it, and dropping it gives every thread back. Nothing here is `Send`: ptrace answers only
//! the thread that seized.
//!
//! What this crate deliberately knows nothing of: images, checkpoints, the network.

mod error;
mod frozen;
mod loan;
mod release;
mod rest;
mod restart;
mod scratch;
mod threads;
mod tree;

pub use error::TraceError;
pub use frozen::{Frozen, Remote};
pub use rest::Rest;
pub use restart::Timeout;
pub use scratch::{Batch, Call, LEADER_CALLS, SCRATCH_BYTES, THREAD_CALLS};
pub use tree::{Ending, Tree, TreeEvent};

pub use sys::ptrace::Registers;
