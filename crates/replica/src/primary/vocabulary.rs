//! What a primary is told, what it asks for, and what it says of itself.

use image::{CheckpointId, Member, Register, Sync, Term};
use serde::{Deserialize, Serialize};

use super::{CommitOn, SyncCall};
use crate::{Answer, Ask, Committed, Fencing, Nanos, Progress, Question, Reign, Timing};

/// `--on-crash`: what follows when the app dies by a signal that nobody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OnCrash {
    /// The standby takes over; without an eligible one, as `Stop`.
    #[default]
    Failover,
    /// The command is started afresh here, and synced in full.
    Restart,
    Stop,
}

/// What clients may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Consistency {
    /// Output leaves at once, and a takeover may lose the last epochs.
    #[default]
    Timeline,
    /// Output waits until an epoch that covers it is committed.
    Strong { on_standby_loss: OnStandbyLoss },
}

/// `--on-standby-loss`: what becomes of output that no standby can cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OnStandbyLoss {
    /// It leaves, as soon as the register says that nobody can take over.
    #[default]
    Continue,
    /// It waits until there is a standby again.
    Stop,
}

#[derive(Debug, Clone)]
pub struct PrimaryConfig {
    pub me: Member,
    pub timing: Timing,
    pub fencing: Fencing,
    pub on_crash: OnCrash,
    pub consistency: Consistency,
    /// How many standbys are kept up to date at once, if so many are there. Several take a register.
    pub standbys: u32,
    pub commit_on: CommitOn,
    /// The store, where that has to hold each epoch: a member like a standby, but nobody takes over there by himself.
    /// Counts among the `standbys`.
    pub store: Option<Member>,
    /// So often a store in the background is to get a checkpoint while nobody protects the app. It takes a register.
    pub archive: Option<Nanos>,
    /// Start although an earlier run's standby may hold what clients were answered: that is lost.
    pub abandon_standby: bool,
    /// From one capture to the next, at most: output that waits asks for one earlier.
    pub interval: Nanos,
    /// How many epochs may be captured and not acknowledged. What gets dirty beyond them waits in the ledger
    /// and goes with a later epoch, so memory is bounded.
    pub in_flight_max: usize,
    /// After this without a capture that was due, the engine counts as hung.
    pub stalled_after: Nanos,
    /// From a refused full sync to the next attempt.
    pub full_sync_retry: Nanos,
    /// For how long the app may be unprotected until calls of `sync` are refused.
    pub sync_patience: Nanos,
}

impl PrimaryConfig {
    pub fn new(me: Member, fencing: Fencing) -> Self {
        Self {
            me,
            timing: Timing::default(),
            fencing,
            on_crash: OnCrash::default(),
            consistency: Consistency::default(),
            standbys: 1,
            commit_on: CommitOn::default(),
            store: None,
            archive: None,
            abandon_standby: false,
            interval: Nanos::from_millis(50),
            in_flight_max: 2,
            stalled_after: Nanos::from_millis(2_000),
            full_sync_retry: Nanos::from_millis(1_000),
            sync_patience: Nanos::from_millis(1_000),
        }
    }

    /// How long a standby may take to come, or come back, until the store in the background gets what it does not.
    pub(super) fn archive_patience(&self) -> Nanos {
        self.timing.farewell().min(self.archive.unwrap_or_default())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum AppExit {
    Code(i32),
    Signal(i32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimaryEvent {
    /// Time has passed. At least once per heartbeat, better twice.
    Tick,
    /// A standby opened the page stream and named the newest epoch that it holds of this app.
    PeerConnected {
        standby: Member,
        held: Option<CheckpointId>,
    },
    /// The page stream ended, or an epoch could not be sent.
    PeerLost {
        standby: Member,
        why: String,
    },
    /// `sent_at` is when *we sent* the heartbeat that was answered; `held` the newest epoch acknowledged.
    HeartbeatAnswered {
        from: Member,
        sent_at: Nanos,
        held: Option<CheckpointId>,
    },
    /// The standby holds `id`, prepared, and everything before it.
    Acked {
        from: Member,
        id: CheckpointId,
    },
    /// The standby can't take this epoch. It still holds what it held.
    EpochRefused {
        from: Member,
        id: CheckpointId,
        why: String,
    },
    /// Output has begun to wait for an epoch that covers it; `all`: no more of it is to be expected before some has
    /// left. Strong consistency only.
    OutputWaits {
        all: bool,
    },
    /// What was said to wait is covered by the capture under way.
    NothingWaits,
    /// The app asks to be told when everything before this is committed. While it is unprotected the call waits for
    /// `patience`; without one it is refused as soon as that has lasted for [`PrimaryConfig::sync_patience`].
    SyncAsked {
        call: SyncCall,
        patience: Option<Nanos>,
    },
    /// The answer to `CaptureNow` or `StartFullSync`: frozen, thawed, ready to be sent.
    Captured {
        id: CheckpointId,
    },
    /// The other answer: nothing of `id` will be sent, and its pages are in the ledger again.
    CaptureFailed {
        id: CheckpointId,
        why: String,
    },
    /// A child process lives that can't be captured.
    ChildSeen {
        pid: i32,
    },
    ChildGone {
        pid: i32,
    },
    /// The app replaced its address space: what was tracked is gone.
    Executed,
    /// The store in the background can't go on from what it was given.
    ArchiveLost,
    /// A signal is killing the app, and the rest of it is silent as soon as the permit is shut. `AppExited` follows.
    AppDying {
        signal: i32,
    },
    AppExited(AppExit),
    RegisterAnswer {
        ask: Ask,
        answer: Answer,
    },
    /// An authenticated peer serves this app in `term`.
    Superseded {
        term: Term,
        by: String,
    },
    /// The standby has discarded its copy, as it was told the app's end.
    EndConfirmed {
        from: Member,
    },
    /// The operator asked us to stop (SIGTERM).
    Shutdown,
    /// The operator wants the app to go on at the standby; at the one of this name, if one is given.
    SwitchOver {
        to: Option<String>,
    },
    /// The operator does not want it any more. Without effect once the standby was told to take over.
    CancelSwitchover,
    /// Until then nobody is to take over by itself: the operator works on the hosts. Zero ends it.
    Pause {
        until: Nanos,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// Nothing goes in or out.
    Shut,
    /// Until this instant, whether or not the manager lives.
    Until(Nanos),
    /// Without end: nobody can take over.
    Open,
}

/// What becomes of what the app says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Nothing leaves any more, and the address is given up: the term is not ours.
    Shut,
    /// Nothing leaves, and the address is given up for the time: the permit has run out.
    Muted,
    /// It waits for its epoch to be committed.
    Held,
    /// It leaves at once, and what waited first: in strong consistency nobody can take over.
    Passing,
}

/// What goes to the standby besides epochs and heartbeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The register names you: this is its value, to be expected in a swap.
    Enrolled(Register),
    /// The app ended by itself, or was told to: forget it.
    AppEnded { reign: Reign, exit: AppExit },
    /// The app died by a signal; its copy here is silent for good. Take over.
    AppCrashed { reign: Reign, signal: i32 },
    /// The app stands still after what you hold, and is silent. Take over, if the register still lets you.
    HandedOver { reign: Reign },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimaryAction {
    /// The term is ours: start the app (or take up the running one), with its permit as set before.
    /// Heartbeats go out from now on, each with its send time, until `StopHeartbeats` or `EndPair`.
    StartApp {
        term: Term,
    },
    /// Capture everything as epoch `id`, streaming to all of these while the app runs; to none of them, if it is for the
    /// store alone. `eligible`: a standby may still
    /// take over with what it holds, and is to keep that until `id` is whole.
    StartFullSync {
        id: CheckpointId,
        to: Vec<Member>,
        eligible: bool,
    },
    /// Capture what changed since `parent`. If that is not the last epoch captured, pages must go whole.
    CaptureNow {
        id: CheckpointId,
        parent: CheckpointId,
    },
    /// As `CaptureNow`, but the app stands still from then on, until `Thaw` or `KillApp`.
    CaptureLast {
        id: CheckpointId,
        parent: CheckpointId,
    },
    /// The app goes on here.
    Thaw,
    Switchover(Switchover),
    /// `id` may go out (of a full sync: its end). It goes on from what this standby has, which may be newer than what
    /// it was captured since.
    SendEpoch {
        id: CheckpointId,
        to: Member,
        sync: Sync,
    },
    Committed(Committed),
    /// Nobody protects the app, nor can anybody take it over: this is for the store.
    Archive(CheckpointId),
    /// The full sync under way is for nobody any more: who it was for has refused it, or it was for the store alone and now
    /// there is a standby. `CaptureFailed` is its answer, or `Captured` if it was through.
    GiveUpFullSync(CheckpointId),
    /// Every standby that goes on from what it holds has this: the ledger need not remember more.
    Forget(CheckpointId),
    /// Everything before this call is in `id` or older, which whoever takes over holds.
    Synced {
        call: SyncCall,
        id: CheckpointId,
    },
    SyncRefused {
        call: SyncCall,
        why: Reason,
    },
    /// These epochs will not be acknowledged: their pages are dirty again.
    ReturnToLedger {
        ids: Vec<CheckpointId>,
    },
    /// To be in force in the kernel before the next action is begun.
    SetPermit(Permit),
    /// Likewise.
    SetOutput(Output),
    /// What left the app before this epoch's barrier may be heard. Strong consistency only.
    Release(CheckpointId),
    /// From now on the manager's death silences and kills the app.
    ArmGuard,
    /// From now on the app outlives its manager.
    DisarmGuard,
    AskArbiter {
        ask: Ask,
        question: Question,
    },
    /// Best effort, on any connection to the standby.
    Tell {
        standby: Member,
        notice: Notice,
    },
    /// Send no heartbeat from now on.
    StopHeartbeats,
    /// Close the page stream; `PeerLost` was taken care of.
    DropPeer {
        standby: Member,
        why: String,
    },
    /// What the next heartbeats say.
    Report(Progress),
    Status(Status),
    /// SIGTERM to the app; its exit, whatever it is, then ends the pair.
    StopApp,
    /// Start the command afresh: a new app that knows nothing of the old.
    RestartApp,
    /// SIGKILL, and no more of it is heard.
    KillApp,
    /// The last action.
    EndPair(Ending),
}

/// What became of an operator's wish. That it came true is told by `EndPair`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Switchover {
    /// The last epoch is being taken: from here on clients wait.
    Begun,
    /// The standby was told: the register decides now.
    Told,
    /// The app goes on here, as before.
    CalledOff { why: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Ending {
    /// The app ended here; its end is the pair's.
    App(AppExit),
    /// The app died here and goes on there.
    HandedOver { to: String },
    /// Somebody else has the term; our copy is dead.
    Fenced { by: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Status {
    Protected,
    /// The standby can take over, but epochs wait for it.
    CatchingUp,
    Unprotected(Reason),
}

/// Why the app would not survive its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub enum Reason {
    #[error("the register has not answered yet{}", .why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    NotOwner { why: Option<String> },
    #[error(
        "the register still names {0} as able to take over from an earlier run; waiting for it to do so (strong \
         consistency waits for ever: `--abandon-standby` starts afresh and loses what it holds)"
    )]
    EarlierRun(String),
    #[error(
        "{0} holds the app of an earlier run: `--from-store` instead of its command goes on with it, `--abandon-standby` \
         starts it afresh and loses that"
    )]
    InStore(String),
    #[error("no standby is connected{}", .why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    NoStandby { why: Option<String> },
    #[error("nothing is committed, {store} takes no checkpoint{}", .why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    NoStore { store: String, why: Option<String> },
    #[error("{0} does not answer")]
    StoreSilent(String),
    #[error("the first full sync has not been committed yet")]
    FullSync,
    #[error("the standby does not answer heartbeats")]
    StandbySilent,
    #[error("the standby refused an epoch: {0}")]
    EpochRefused(String),
    #[error("the last capture failed: {0}")]
    CaptureFailed(String),
    #[error("the engine has not captured for too long")]
    EngineStalled,
    #[error("child process {0} can't be captured; protected again when it ends")]
    Child(i32),
    #[error("the standby is not in the register yet")]
    NotEnrolled,
    #[error("cannot fail over: {0}")]
    RegisterUnreachable(String),
    #[error(
        "{there} of the {wanted} standbys that are to hold each answer are there; answers wait for the others"
    )]
    TooFewStandbys { there: u32, wanted: u32 },
    #[error("takeover on silence needs --arbiter or --fencing none")]
    NoFencing,
    #[error("the app has ended")]
    Ended,
    #[error("the app died by signal {0} and is handed over")]
    HandingOver(i32),
    #[error("the app stands still while {0} takes over, as the operator asked")]
    Moving(String),
    #[error("takeover is paused by the operator; `checksync pause --end` ends that before its time")]
    Paused,
    #[error("fenced: {0} has the term")]
    Fenced(String),
}
