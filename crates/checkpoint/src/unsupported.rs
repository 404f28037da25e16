//! What can't be captured: refused by name, with a way out, never passed over in silence.

/// Something that cannot be captured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot protect pid {pid}: {what}; {way_out}")]
pub struct Unsupported {
    pub pid: i32,
    /// `fd 9 is an io_uring`.
    pub what: String,
    /// What its user can do about it.
    pub way_out: String,
}
