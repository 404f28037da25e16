//! Memory: which pages changed, copying them in the freeze, and what is owed to the standby.
//!
//! [`Tracker`] follows one address space. It is told what changed by write protection that the kernel takes
//! off by itself (asynchronous userfaultfd) and a scan of the page tables that puts it back; see
//! `tracker.rs` for the traps. [`Encoder`] turns what was captured into frames after the thaw.

mod classify;
mod encode;
mod ledger;
mod maps;
mod objects;
mod pages;
pub mod self_test;
mod shadow;
mod sign;
mod staging;
mod tracker;
mod workers;

pub use classify::build_id;
pub use encode::Encoder;
pub use ledger::{Ledger, Pages};
pub(crate) use maps::parse as parse_maps;
pub use staging::Chunk;
pub use tracker::{Capture, CaptureError, OpenObjects, Precopied, ScanTimes, Tracker, workers};
pub use workers::{Started, Workers};
