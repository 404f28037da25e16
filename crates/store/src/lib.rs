//! Checkpoints that outlive both machines: in a folder, in S3 or in Azure, through one object-store library.
//!
//! ```text
//! PREFIX/APP/RUN/begun                     a primary's life: its term, its host
//! PREFIX/APP/RUN/segments/DIGEST           frames, compressed, by the SHA-256 of what is stored
//! PREFIX/APP/RUN/manifests/TERM-EPOCH      what a checkpoint is made of, and what it builds on
//! PREFIX/APP/RUN/bases/TERM-EPOCH          the same checkpoint once more, as a full one
//! PREFIX/APP/RUN/closed                    what the run is made of, for ever
//! ```
//!
//! A checkpoint exists once its manifest does, and the manifest is written when all that it names is there.
//!
//! **One writer.** Whatever lies in a run was written by the manager that began it, one thing after the other, so
//! nothing of it is ever collected while somebody is about to build on it. A later primary begins a run of its own
//! with a higher number, and *closes* those before it: writes down which manifests and bases are there. What a stalled
//! primary adds to a closed run afterwards is no part of it, and since it looks for later runs after everything that
//! its deletions rest on, it deletes nothing that the list needs. None of this rests on a clock or on how long
//! something takes.
//!
//! **Folding.** A checkpoint that builds on many others gets a base: the same checkpoint without a parent, of which
//! only the 4-MiB windows of memory that changed are written anew. A restore reads one base and a few epochs,
//! however long the history is.
//!
//! This crate works on bytes and objects: it reads no clock, and knows nothing of engines and of who may serve.

mod chain;
mod collect;
mod contents;
mod error;
mod files;
mod fold;
mod gathered;
mod listing;
mod location;
mod manifest;
mod names;
mod objects;
mod pages;
mod retention;
mod run;
mod segment;
mod spool;
mod tree;
mod verify;

pub use chain::{Chain, Link};
pub use collect::Collected;
pub use error::StoreError;
pub use gathered::{Basis, GatherError, Gathered, Layouts};
pub use listing::{Listed, Unreadable, Which};
pub use location::{Location, LocationError};
pub use manifest::{Manifest, Parent, SegmentKind, SegmentRef};
pub use names::RunName;
pub use objects::Store;
pub use retention::{Retention, RetentionError};
pub use run::{Life, Run, Uploaded};
pub use tree::Tree;
pub use verify::Verdict;
