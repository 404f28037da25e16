//! Replicated structures: the way without a capture, without a cell and without root.
//!
//! ```text
//! program ── library ══ unix socket ══ primary manager ══ gRPC ══ standby manager
//!            the maps,    `library`      `primary`: a log    wire    `copy`: the same structures
//!            for reading                 and a `keep`
//! ```
//!
//! The machines of `replica` decide here as they do for a process, in strong consistency. An *epoch* is what changed
//! since the last, a *full sync* a snapshot in pieces, and the *output* that is held back until an epoch covers it is
//! the word to the library that its changes are committed. So a write returns when the standby has it, in a term that
//! nobody has taken from us, and all that the machines promise of packets holds for writes.
//!
//! A takeover starts the program; its library gets the structures with its first connection.
//!
//! The path of a write is what is measured here, so that it has few threads: on the primary one for everything but
//! heartbeats and register, on the standby the network's own, which steps the machine itself.

mod awake;
mod copy;
mod keep;
mod library;
mod primary;
mod program;

pub use copy::{Copies, Setup};
pub use primary::protect;

/// What goes in one message to the standby.
const PART_BYTES: usize = 1 << 20;
