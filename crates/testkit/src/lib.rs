//! What the tests of every crate share: guest programs, real servers, and the helpers around them.
//!
//! - [`programs`] finds and builds what tests run: the `guest` binary, the Go programs of `apps/`.
//! - [`process`] runs them: a child that dies with its guard, its lines read with deadlines.
//! - [`guest`] drives one guest program: ready, go, verdict.
//! - [`servers`] is the table of real servers that nobody here wrote, with a small load for each.
//! - [`rights`] has `needs!`: a test that lacks what it needs skips aloud, or fails in the privileged CI job.
//! - [`swap`] gives the kernel something to swap to.
//! - [`wait`] has the deadlines. No test sleeps to synchronise.
//!
//! Every failure here is a failed test, so these helpers panic, with the caller's line.

pub mod guest;
pub mod process;
pub mod programs;
pub mod rights;
pub mod servers;
pub mod stat;
pub mod swap;
pub mod wait;
