//! Everything of an epoch that is not memory: one tree of processes and what they share.

use serde::{Deserialize, Serialize};

use crate::descriptor::{OpenFile, Pipe, Stray};
use crate::process::{MemoryMap, Process};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub clocks: Clocks,
    /// A list from the start, so that trees need no other format; one entry for now.
    pub processes: Vec<Process>,
    /// One per address space; pages and layouts name it by its index.
    pub spaces: Vec<MemoryMap>,
    pub files: Vec<OpenFile>,
    pub pipes: Vec<Pipe>,
    #[serde(default)]
    pub strays: Vec<Stray>,
}

/// The clocks as the app saw them at the freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Clocks {
    pub realtime_ns: u64,
    pub monotonic_ns: u64,
    pub boottime_ns: u64,
}
