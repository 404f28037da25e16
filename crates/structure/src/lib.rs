//! Replicated structures: what a library and its manager say to each other, byte for byte, and the copy that a
//! manager keeps. `docs/structures.md` has the protocol for whoever writes a library.
//!
//! - [`frame`] cuts a stream of bytes into frames, and bounds them before anything is allocated.
//! - [`Change`] is one change of one structure. Its frame is the same in a library's request, in an epoch on its
//!   way to the standby, and in a snapshot, so that nothing is encoded twice.
//! - [`Store`] is the structures as a manager keeps them.
//!
//! Changes say what is there afterwards, not what is done to it. So a suffix of a log that is applied once more
//! ends in the same state, and a snapshot may be taken in pieces while changes go on: see [`Store::piece`].

mod change;
pub mod frame;
mod message;
mod store;

pub use change::{Change, Malformed};
pub use frame::{FRAME_BYTES_MAX, Frame, Frames};
pub use message::{FromLibrary, PROTOCOL_VERSION, ToLibrary};
pub use store::{Cursor, Store, check_all};

/// A name of a structure has one byte for its length.
pub const NAME_BYTES_MAX: usize = 255;
pub const KEY_BYTES_MAX: usize = 64 << 10;
pub const VALUE_BYTES_MAX: usize = 256 << 20;
