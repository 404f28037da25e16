//! What is said, as types of our own.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use image::layout::FileIdentity;
use image::{CheckpointId, Sync, Term};

use crate::token::{GuardToken, TokenHash};

/// Both sides of a pair must say the same number; it grows with every change that an older release would
/// misunderstand.
pub const PROTOCOL_VERSION: u32 = 4;

/// The release of this build, as it is told to the peer.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// The primary's opening message for one app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`], except in tests.
    pub protocol_version: u32,
    pub release: String,
    pub app: String,
    pub term: Term,
    /// Who the register says owns the term.
    pub owner: String,
    pub incarnation: u64,
    pub primary_name: String,
    /// What the standby compares with its own host; encoded and read by another crate.
    pub host_facts: Bytes,
    pub consistency: Consistency,
    pub heartbeat: Duration,
    pub missed: u32,
    pub guard_token_hash: Option<TokenHash>,
    /// Whether a register decides about the term; without one, `fencing` says what stands in for it.
    pub has_register: bool,
    pub fencing: String,
    /// The app's own address, if it has one.
    pub network: Option<ServiceNetwork>,
    /// Instead of a process, structures are replicated.
    pub structures: Option<Structures>,
    /// What the operator asked for, for whoever takes over; encoded and read by another crate.
    pub policy: Bytes,
}

/// What is replicated instead of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Structures {
    /// The program and its arguments, to be started where the structures are taken over.
    pub command: Vec<Bytes>,
}

/// Where an app is on the network, as it was written; another crate reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceNetwork {
    pub address: String,
    pub link: String,
    pub gateway: Option<String>,
}

/// The standby's answer to a [`Hello`] that it accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    pub protocol_version: u32,
    pub release: String,
    pub standby_name: String,
    pub incarnation: u64,
    /// The newest checkpoint of the app that the standby holds already.
    pub held: Option<CheckpointId>,
    pub host_facts: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    Timeline,
    Strong,
}

/// A "no" that a person can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: RefusalCode,
    pub why: String,
    pub way_out: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.why, self.way_out)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalCode {
    /// The protocols differ.
    Version,
    /// The term is not the one that the standby knows to be the newest.
    Term,
    /// The hosts differ in something that matters.
    Host,
    /// Another primary is protecting an app of this name here, or the app serves here.
    Busy,
    /// The two sides have not been told the same about who decides.
    Fencing,
    /// A question to a register that cannot be answered.
    Register,
    /// The guard's token is not the one that was armed.
    Guard,
    Stopping,
    /// A code of a newer release; the text says what is meant.
    Other(i32),
}

/// What follows the [`Hello`], from the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromPrimary {
    /// Encoded frames of an epoch, joined; [`image::frame::split`] takes them apart, [`image::Frame::parse`] verifies
    /// them.
    Frames(Bytes),
    AppExited {
        how: Exit,
        /// Nothing of the app can be heard any more.
        silenced: bool,
    },
    GuardArmed(GuardArmed),
    /// The operator moves the app: it stands still after what is held, until the register has decided.
    HandedOver,
    /// What came in for the app, to be repeated after a takeover; best effort.
    Arrived(Vec<ArrivedPacket>),
    Changes(Changes),
}

/// A part of an epoch of structures; the parts of one epoch follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    pub id: CheckpointId,
    pub sync: Sync,
    /// Crate `structure` verifies them. A part may end within one.
    pub frames: Bytes,
    pub last: bool,
}

/// A packet from its IP header on, and the last barrier before it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrivedPacket {
    pub since: Option<CheckpointId>,
    pub packet: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

/// From now on the holder of the token with this hash may say that the app is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardArmed {
    pub term: Term,
    pub token_hash: TokenHash,
}

/// What follows the [`Welcome`], from the standby.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromStandby {
    /// This checkpoint is held, and with it all before it.
    Ack(CheckpointId),
    EpochRefused(EpochRefused),
    Progress(Progress),
    /// The app that was handed over runs here, in this term.
    Serving(Term),
    /// The standby ends the replication of this app.
    Refusal(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRefused {
    pub id: CheckpointId,
    pub why: String,
    /// Files that are lacking: the next full sync is to bring their content.
    pub lacks: Vec<FileIdentity>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    pub receiving: Option<CheckpointId>,
    pub received_bytes: u64,
    /// The newest checkpoint that the skeleton has taken on.
    pub applied: Option<CheckpointId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    pub app: String,
    pub term: Term,
    pub sequence: u64,
    /// The sender's monotonic clock. It comes back unchanged and means nothing to anybody else.
    pub sent_at_ns: u64,
    pub newest_captured: Option<CheckpointId>,
    pub engine: EngineState,
}

/// What the primary's engine does, so that a hung one is not taken for a protected app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineState {
    Starting,
    /// The first, full epoch is on its way.
    Syncing,
    Capturing,
    /// Something can't be captured at the moment.
    Unprotected,
    /// No progress, though some was due.
    Stuck,
    Stopping,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    pub sequence: u64,
    pub sent_at_ns: u64,
    /// The newest term that the standby knows.
    pub term: Term,
    pub held: Option<CheckpointId>,
    pub state: StandbyState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandbyState {
    /// Holds no whole checkpoint of the app.
    Empty,
    Syncing,
    /// Could take over now.
    Ready,
    TakingOver,
    Serving,
    Stopping,
}

/// The guard's word that nothing of the app can be heard any more in this term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    pub app: String,
    pub term: Term,
    pub token: GuardToken,
}
