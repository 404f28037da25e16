//! What a program that CheckSync protects may say to its manager. No program has to.

mod structure;

pub use structure::{Commit, Map, StructureError, Structures, Value};
