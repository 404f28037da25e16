//! What an engine can be told.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use bytes::Bytes;
use checkpoint::descriptors::{CellNetwork, Connections, ManagerSocket};
use checkpoint::shipped::Cache;
use image::layout::FileIdentity;
use image::{CheckpointId, FileId};

use crate::cell::CellSpec;
use crate::twin::Showing;

/// What is called when everything stands still and nothing has been read yet, with the checkpoint's name.
#[derive(Clone)]
pub struct Barrier(pub Arc<dyn Fn(CheckpointId) -> Result<(), String> + Send + Sync>);

impl std::fmt::Debug for Barrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Barrier")
    }
}

/// What holds for an engine's whole life.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The app's name, for headers and messages.
    pub app: String,
    /// Bounds the memory for previous versions of hot pages on the primary; zero sends pages whole.
    pub shadow_bytes: u64,
    /// An incremental epoch that is longer is refused by the standby.
    pub epoch_bytes_max: u64,
    /// How long a freeze may take until it is given up; the app then runs on and the capture has failed.
    pub freeze_patience: std::time::Duration,
    /// What becomes of the app's TCP connections at a takeover.
    pub connections: Connections,
    /// The gate's, in strong consistency. A capture whose barrier fails has failed.
    pub barrier: Option<Barrier>,
    /// What an app in a cell may call the manager on.
    pub manager: Option<Arc<dyn ManagerSocket>>,
    /// What the app writes below these is replicated with its memory.
    pub state_dirs: Vec<PathBuf>,
    /// What it writes below these is on the standby's host as well.
    pub shared_dirs: Vec<PathBuf>,
    /// Where a copy's engine keeps files that this host lacks. Without it a checkpoint that needs them is refused.
    pub shipped: Option<Arc<Cache>>,
    /// Nobody waits for this engine, and those of others come first.
    pub in_background: bool,
}

/// Starts a program in a cell of its own.
#[derive(Debug)]
pub struct Launch {
    pub cell: CellSpec,
    pub program: OsString,
    pub arguments: Vec<OsString>,
    pub directory: Option<PathBuf>,
    pub stdio: AppStdio,
    /// The app is moved into this cgroup before its first instruction: `cgroup.procs`' directory.
    pub cgroup: Option<PathBuf>,
}

/// Protects a process that runs already, where it is.
#[derive(Debug)]
pub struct Attach {
    pub pid: i32,
}

/// The app's ends of its standard streams. Output pipes' other ends belong to the manager, which forwards
/// and logs. The standard input is `/dev/null`.
#[derive(Debug)]
pub struct AppStdio {
    pub output: OwnedFd,
    pub error: OwnedFd,
}

/// Makes a copy the app.
#[derive(Debug)]
pub struct Promotion {
    pub stdio: AppStdio,
    /// As in [`Launch`]; sockets made at the takeover belong to it.
    pub cgroup: Option<PathBuf>,
    /// The cell's own network, if it has one: brought up on the way.
    pub network: Option<Box<dyn CellNetwork>>,
    /// Nobody is there whom the app was connected with: its connections to others end, and nobody is asked.
    pub alone: bool,
}

/// What a promoted copy's captures are like, in the place of what [`Settings`] say, which were made before anybody knew
/// whether it would ever be an app.
#[derive(Debug, Clone, Default)]
pub struct Captures {
    pub shadow_bytes: u64,
    pub connections: Connections,
    pub barrier: Option<Barrier>,
    pub state_dirs: Vec<PathBuf>,
    pub shared_dirs: Vec<PathBuf>,
}

/// Where a full sync's frames go. Blocks while there is no room; `false`: the peer is gone, stop.
pub type FrameSink = Box<dyn FnMut(Bytes) -> bool + Send>;

pub enum Command {
    /// Lets a launched app begin.
    Start,
    /// Captures everything, the most of it while the app runs. Frames go to `sink` as they are made, from
    /// the header to the end; then [`crate::Event::Captured`] with no frames, or `CaptureFailed`.
    FullSync { id: CheckpointId, sink: FrameSink },
    /// The next full sync brings the content of these, which somebody lacks.
    Ship(Vec<FileIdentity>),
    /// Captures what changed since `parent`, which is the last captured checkpoint or older.
    Capture { id: CheckpointId, parent: CheckpointId },
    /// As `Capture`, but the app stands still afterwards, until `Thaw`, `Kill` or the engine's end; all other commands
    /// wait. With `barrier` the app's connections travel along, whatever the settings say: it is called like theirs,
    /// and has to silence the app's network until the `Thaw`.
    CaptureLast { id: CheckpointId, parent: CheckpointId, barrier: Option<Barrier> },
    /// Lets an app go on that stands still. Without effect on another.
    Thaw,
    /// The standby holds this checkpoint; what it carried leaves the ledger.
    Committed(CheckpointId),
    /// Every checkpoint that is not committed is lost: what they carried goes into the next one.
    ReturnToLedger,
    /// To the app's process.
    Signal(i32),
    /// SIGTERM, then SIGKILL after the grace.
    Stop { grace: std::time::Duration },
    /// SIGKILL to every process of the cell.
    Kill,
    /// Lets go of the app, which runs on, and ends the engine.
    Release,

    /// Frames of the epoch that comes in, joined ([`image::frame::split`]). A full epoch begins a new copy; the old one stays until
    /// `Apply`, if `keep_old` said so in `Receive`.
    Frames(Bytes),
    /// An epoch is about to come in.
    Receive { id: CheckpointId, full: bool, keep_old: bool },
    /// Throws away the half of an epoch that came in.
    DropHalf,
    /// Applies the prepared epoch.
    Apply(CheckpointId),
    /// How the app is captured that the copy is about to become: before `Promote`.
    CaptureAs(Captures),
    /// Makes the copy the app.
    Promote(Promotion),
    /// Has the copy watched, as it is and as it becomes, by somebody who makes another of it.
    Show(Showing),
    /// Answers with a file in the copy's state directories, while it is there.
    Lend { file: FileId, to: Sender<Option<File>> },
    /// Throws the copy away.
    Discard,

    /// Ends the engine; an app of its own is killed.
    End,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Self::Start => "Start",
            Self::FullSync { id, .. } => return write!(f, "FullSync({id})"),
            Self::Ship(files) => return write!(f, "Ship({} files)", files.len()),
            Self::Capture { id, parent } => return write!(f, "Capture({id} since {parent})"),
            Self::CaptureLast { id, parent, .. } => return write!(f, "CaptureLast({id} since {parent})"),
            Self::Thaw => "Thaw",
            Self::Committed(id) => return write!(f, "Committed({id})"),
            Self::ReturnToLedger => "ReturnToLedger",
            Self::Signal(signal) => return write!(f, "Signal({signal})"),
            Self::Stop { grace } => return write!(f, "Stop({grace:?})"),
            Self::Kill => "Kill",
            Self::Release => "Release",
            Self::Frames(bytes) => return write!(f, "Frames({} bytes)", bytes.len()),
            Self::Receive { id, full, .. } => return write!(f, "Receive({id}, full: {full})"),
            Self::DropHalf => "DropHalf",
            Self::Apply(id) => return write!(f, "Apply({id})"),
            Self::CaptureAs(_) => "CaptureAs",
            Self::Promote(_) => "Promote",
            Self::Show(_) => "Show",
            Self::Lend { .. } => "Lend",
            Self::Discard => "Discard",
            Self::End => "End",
        };
        f.write_str(name)
    }
}
