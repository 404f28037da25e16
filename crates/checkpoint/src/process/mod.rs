//! A process and its threads: everything of them but memory and descriptors.
//!
//! # What is read when
//! Nearly nothing here has a sign of change, so what matters for going on correctly is read in every freeze:
//! from outside what ptrace tells (registers, vectors, signals, rseq); what else only the thread can say
//! ([`thread`]) from the kernel's own structures ([`roll`]), or by one table of calls in each thread, all
//! threads at once; and by such a table in the leader what belongs to the process ([`whole`]). Three things are kept from one freeze to the next:
//!
//! * *Credentials* exist as text only, 20 µs per thread. The thread's table asks for everything in them that
//!   a call answers (users, groups, the capability sets, securebits, no_new_privs, the seccomp mode), and the
//!   text is read again when one of these answers differs. The bounding and the ambient set are not among
//!   them: they say what a later exec may have, and can be as old as [`RECHECK_EVERY`] freezes.
//! * *Seccomp filters* can only be added: they are read again when there is one more than were known.
//! * What no correctness hangs on (out-of-memory score, core dump filter) or what is fixed from an exec on but
//!   for rare privileged calls (executable, code and data bounds, auxiliary vector) is read every [`RECHECK_EVERY`] freezes, each thread at its turn.
//!
//! A thread is known by its birth ([`tracee::Frozen::birth`]), so nothing is taken over from one that had its
//! number before, or from before an exec.
//!
//! # Putting it back
//! [`restore`] works on a stopped, single-threaded skeleton and leaves it stopped. A failure leaves a skeleton
//! that is good for nothing but to be killed.

mod cache;
mod credentials;
mod elf;
mod error;
pub(crate) mod layout;
mod numbers;
mod pending;
mod posix_timers;
mod restore;
mod roll;
mod save;
mod status;
mod steps;
mod thread;
pub(crate) mod types;
mod whole;

pub use cache::ProcessCache;
pub use error::{RestoreError, SaveError};
pub use numbers::CellNumbers;
pub use restore::restore;
pub use save::save;

/// See the module's header.
pub const RECHECK_EVERY: u64 = 16;
