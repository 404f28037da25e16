//! The typed model of a captured app, and its one encoding for wire, one-shot directory and store.
//!
//! An epoch is a sequence of [`frame`]s: a [`header`], any number of changes of [`files`], layouts and page batches,
//! one [`state`] or [`change`] of it, and an end. Each frame carries its own checksum, which is verified before anything in it is
//! decoded, and no length, count or offset in it is trusted. This crate knows nothing of the kernel or the
//! network: it works on bytes.

pub mod batch;
pub mod change;
pub mod descriptor;
pub mod files;
pub mod frame;
pub mod header;
pub mod layout;
pub mod name;
pub mod process;
pub mod ranges;
pub mod register;
pub mod shipped;
pub mod state;

pub use batch::{PageBatch, PageTarget};
pub use change::StateChange;
pub use files::{FileChanges, FileId};
pub use frame::{Frame, FrameError, FrameKind};
pub use header::{Header, Sync};
pub use name::{CheckpointId, Epoch, Term};
pub use ranges::{Range, RangeSet};
pub use register::{Incarnation, Member, Register, Vote};
pub use shipped::{ContentDigest, Shipped, ShippedFile};

/// The size of a page on the one architecture that we claim, x86-64.
pub const PAGE_BYTES: u64 = 4096;
