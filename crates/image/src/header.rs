//! The header of an epoch: the first frame, readable alone.

use serde::{Deserialize, Serialize};

use crate::name::CheckpointId;

/// What an epoch builds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sync {
    /// Everything; replaces whatever the receiver held of this app.
    Full,
    /// What changed since the parent; means nothing without it.
    Since(CheckpointId),
}

/// Says which checkpoint of which app follows, what it builds on and when the app stood still for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub app: String,
    pub id: CheckpointId,
    pub sync: Sync,
    /// The wall clock of the primary at the freeze, nanoseconds since 1970. No write that was acknowledged
    /// before this instant is missing from the checkpoint. A full sync's header goes out before its freeze
    /// and says zero here; the state frame's clock is the one to rely on.
    pub frozen_at_ns: u64,
}

impl Header {
    pub fn parent(&self) -> Option<CheckpointId> {
        match self.sync {
            Sync::Full => None,
            Sync::Since(parent) => Some(parent),
        }
    }
}
