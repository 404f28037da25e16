//! What an engine says.

use std::time::Duration;

use bytes::Bytes;
use checkpoint::descriptors::ConnectionCounts;
use image::layout::FileIdentity;
use image::{CheckpointId, Sync};

/// How the app ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppExit {
    Code(i32),
    Signal(i32),
}

#[derive(Debug)]
pub enum Event {
    /// The app exists and waits for [`crate::Command::Start`]; or it was attached to, and runs.
    Ready {
        pid: i32,
    },
    /// The engine could not start at all.
    Failed {
        why: String,
    },
    /// The checkpoint is taken and the app runs again. `frames` are the whole epoch; empty after a full
    /// sync, whose frames went to its sink.
    Captured {
        id: CheckpointId,
        frames: Vec<Bytes>,
        report: CaptureReport,
    },
    /// The app runs on; what was found is in the ledger. `refused`: by name, for what the app is doing.
    CaptureFailed {
        id: CheckpointId,
        why: String,
        refused: bool,
    },
    Progress(FullSyncProgress),
    /// The app has these open for writing, and nobody replicates them. Said when they are others than before.
    Uncovered {
        paths: Vec<String>,
    },
    ChildSeen {
        pid: i32,
    },
    ChildGone {
        pid: i32,
    },
    /// The app replaced its program: only a full sync can follow.
    Executed,
    /// A signal is killing the app: what is left of it takes long to be torn down if its memory is large. `Exited`
    /// follows.
    Dying {
        signal: i32,
    },
    Exited(AppExit),

    /// The header of an incoming epoch.
    EpochBegins {
        id: CheckpointId,
        sync: Sync,
    },
    /// All of it is here, verified and certain to apply.
    Prepared {
        id: CheckpointId,
    },
    /// It can't be applied; the copy is what it was.
    Refused {
        id: CheckpointId,
        why: String,
        /// Because these are not here, and are taken if they come.
        lacks: Vec<FileIdentity>,
    },
    /// The answer to `DropHalf` and `Discard`: what was said of epochs before may be of what was dropped.
    HalfDropped,
    Applied {
        id: CheckpointId,
    },
    /// A prepared epoch failed to apply: the copy is lost.
    ApplyFailed {
        id: CheckpointId,
        why: String,
    },
    /// The copy is the app now, and runs.
    Restored(RestoreReport),
    RestoreFailed {
        why: String,
    },

    /// The engine is gone; nothing follows.
    Ended,
}

/// One capture in figures.
#[derive(Debug, Clone, Copy, Default)]
pub struct CaptureReport {
    /// From the first thread's stop to the last one's thaw.
    pub pause: Duration,
    pub stop: Duration,
    pub scan: Duration,
    pub copy: Duration,
    pub state: Duration,
    /// Looking at state directories, in the freeze.
    pub files: Duration,
    pub thaw: Duration,
    pub pages: u64,
    pub bytes: u64,
    pub threads: usize,
    pub frozen_at_ns: u64,
    /// After the thaw: until the frames were ready.
    pub encode: Duration,
}

#[derive(Debug, Clone, Copy)]
pub struct FullSyncProgress {
    pub id: CheckpointId,
    pub bytes_done: u64,
    /// What the app has resident now; it may grow meanwhile.
    pub bytes_total: u64,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct RestoreReport {
    pub id: CheckpointId,
    pub pid: i32,
    pub frozen_at_ns: u64,
    /// From the command to the first instruction.
    pub total: Duration,
    pub clocks: Duration,
    pub objects: Duration,
    pub descriptors: Duration,
    pub threads: Duration,
    /// From the opening of the network to the last connection that goes on.
    pub revival: Duration,
    pub connections: ConnectionCounts,
}
