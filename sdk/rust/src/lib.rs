//! What a program that CheckSync protects may say to its manager. No program has to.
//!
//! [`sync`] returns when everything that happened before the call is committed: the death of this host does not take
//! it back any more. [`epoch`] and [`role`] tell how things are, and [`on_promote`] that this process was restored on
//! another host.
//!
//! ```no_run
//! # fn answer_the_client() {}
//! match checksync_sdk::sync() {
//!     Ok(_) => answer_the_client(),
//!     Err(why) => eprintln!("not safe: {why}"),
//! }
//! ```
//!
//! A call that waits while its host dies is answered on the next one: the process is restored in the middle of it.
//! Underneath is HTTP over the socket that `CHECKSYNC_SOCKET` names; a [`Manager`] has its own settings.

mod connection;
mod json;
mod manager;
mod structure;

pub use manager::{Checkpoint, Error, Manager, Role};
pub use structure::{Commit, Map, StructureError, Structures, Value};

use std::sync::OnceLock;

/// The usual manager: that of `CHECKSYNC_SOCKET`, with the usual patience.
fn usual() -> Result<&'static Manager, Error> {
    static USUAL: OnceLock<Manager> = OnceLock::new();
    match USUAL.get() {
        Some(manager) => Ok(manager),
        None => Manager::from_environment().map(|manager| USUAL.get_or_init(|| manager)),
    }
}

/// Returns once everything before the call is committed, with the checkpoint that has it. [`Error::Unprotected`]: it is
/// as safe as this host is.
pub fn sync() -> Result<Checkpoint, Error> {
    usual()?.sync()
}

/// The newest committed checkpoint, if there is one in this term.
pub fn epoch() -> Result<Option<Checkpoint>, Error> {
    usual()?.epoch()
}

/// Where this process runs, and how well it is protected.
pub fn role() -> Result<Role, Error> {
    usual()?.role()
}

/// Calls `promoted` on a thread of its own, each time that this process was restored on another host.
pub fn on_promote(promoted: impl FnMut(&Role) + Send + 'static) -> Result<(), Error> {
    usual()?.on_promote(promoted)
}
