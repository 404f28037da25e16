//! Capturing a running app and rebuilding it: one module per resource, save and restore side by side.
//!
//! Nothing here knows who receives an image, or why.

pub mod memory;
pub mod process;
pub mod shipped;
pub mod skeleton;
pub mod unsupported;

pub use unsupported::Unsupported;
pub mod descriptors;
