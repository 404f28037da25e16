//! A host that has nothing of the app installed: what is missing, or another one, comes by content and is at its path for
//! the app that goes on, and for nobody else.

mod hosts;
mod pair;
mod stored;
#[path = "../world/mod.rs"]
mod world;
