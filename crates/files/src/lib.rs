//! State directories: what the app writes below them is replicated consistently with its memory.
//!
//! [`Source`] is the primary's side. Change notifications (inotify, one watch per directory) say where to look, and the
//! looking is done while the app stands still: so what is read is what the files were at the freeze. Files are compared
//! with digests of their pages, so that only what differs travels. Notifications do not tell of writes through shared
//! mappings: while a file is mapped so, its content belongs to the memory's tracker, and afterwards it is compared.
//!
//! [`Mirror`] is the standby's. It keeps the trees in `PATH/.checksync`, beside what is at PATH, and puts them in its
//! place at the takeover; what was there before stays in `PATH/.checksync` for inspection. So nothing at PATH is ever
//! half, and a host that returns as a standby loses nothing silently.
//!
//! What this crate deliberately knows nothing of: processes, epochs on the wire, who may serve.

mod content;
mod encode;
mod error;
mod look;
mod mirror;
mod notice;
mod place;
mod source;

pub use content::Content;
pub use encode::frames;
pub use error::FilesError;
pub use mirror::{Located, Mirror};
pub use place::{Replaced, finish_replacing};
pub use source::{Mapped, Opened, Source, Taken};

/// What is ours in a state directory, and is not replicated.
pub const OURS: &[u8] = b".checksync";
