//! What a standby is told, what it asks for, and what it says of itself.

use image::{CheckpointId, Member, Register, Sync, Term};
use serde::Serialize;

use crate::primary::AppExit;
use crate::{Answer, Ask, Fencing, Nanos, Progress, Question, Reign, Right, Timing};

#[derive(Debug, Clone)]
pub struct StandbyConfig {
    /// With an incarnation that no earlier life of this daemon had.
    pub me: Member,
    pub timing: Timing,
    pub fencing: Fencing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StandbyEvent {
    /// Time has passed. At least twice per heartbeat.
    Tick,
    /// A primary opened the page stream.
    PrimaryConnected {
        primary: Member,
        reign: Reign,
    },
    /// The page stream ended.
    StreamEnded,
    /// The header of an epoch arrived: the next of a stream is read only when the one before is `Prepared`, or
    /// was refused. `eligible`: the register may still name us for what we hold.
    EpochBegins {
        id: CheckpointId,
        sync: Sync,
        eligible: bool,
    },
    /// Whole, verified, and everything that can fail is done.
    Prepared {
        id: CheckpointId,
    },
    /// The answer to `Apply`.
    Applied {
        id: CheckpointId,
    },
    /// The other answer: the copy is neither what it was nor what it was to be.
    ApplyFailed {
        id: CheckpointId,
        why: String,
    },
    Heartbeat {
        reign: Reign,
        sent_at: Nanos,
        progress: Progress,
    },
    /// The primary wrote us into the register.
    Enrolled {
        register: Register,
    },
    /// The guard's word: the copy of this reign is silent for good.
    Silenced {
        reign: Reign,
    },
    AppEnded {
        reign: Reign,
        exit: AppExit,
    },
    AppCrashed {
        reign: Reign,
        signal: i32,
    },
    /// The operator moves the app here: it stands still after what is held, and is silent until the register has
    /// decided.
    HandedOver {
        reign: Reign,
    },
    RegisterAnswer {
        ask: Ask,
        answer: Answer,
    },
    /// The answers to `Promote`.
    RestoreFinished,
    RestoreFailed {
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StandbyAction {
    /// Accept the page stream, and say what is held.
    Welcome {
        held: Option<CheckpointId>,
    },
    /// Close the page stream, or answer the heartbeat, with this.
    Refuse(Refusal),
    /// Let the body of this epoch come, and prepare it beside what is held.
    Receive {
        id: CheckpointId,
    },
    /// Take no byte of this epoch; the primary learns why, and keeps the stream.
    RefuseEpoch {
        id: CheckpointId,
        why: EpochRefusal,
    },
    /// End the page stream: the copy that it went on from is lost. The primary connects anew, hears that nothing
    /// is held, and syncs in full.
    EndStream {
        why: Discarded,
    },
    /// Everything up to `id` is held.
    Ack {
        id: CheckpointId,
    },
    /// Apply this prepared epoch (of a full one: let it replace the copy). One at a time, in order.
    Apply {
        id: CheckpointId,
    },
    /// Throw away what arrived of this epoch.
    DropHalf {
        id: CheckpointId,
    },
    /// `sent_at` as it was in the heartbeat.
    AnswerHeartbeat {
        sent_at: Nanos,
        held: Option<CheckpointId>,
    },
    AskArbiter {
        ask: Ask,
        question: Question,
    },
    /// Restore the copy and serve. Point of no return.
    Promote {
        right: Right,
        from: CheckpointId,
    },
    /// Throw the copy away.
    Discard(Discarded),
    /// The copy is gone, as the primary asked when the app ended.
    ConfirmEnd {
        exit: AppExit,
    },
    Status(StandbyStatus),
}

/// Why a primary isn't let in. `Serving` goes to the primary as `Superseded`; after the others it may try again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub enum Refusal {
    #[error("{by} serves this app in term {term}")]
    Serving { term: Term, by: Member },
    #[error("a takeover is being decided")]
    Claiming,
    #[error("term {yours} is over; the copy here is of term {mine}")]
    OldTerm { yours: Term, mine: Term },
    #[error("another primary of this app, {0}, is alive; end it or choose another name")]
    Followed(Member),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub enum EpochRefusal {
    #[error("{id} builds on {parent}, but {} is held", .held.map_or("nothing".to_owned(), |id| id.to_string()))]
    NotItsParent { id: CheckpointId, parent: CheckpointId, held: Option<CheckpointId> },
    #[error("{id} is not newer than {held}, which is held")]
    NotNewer { id: CheckpointId, held: CheckpointId },
    #[error("{id} is not of term {term}, in which the stream was opened")]
    OtherTerm { id: CheckpointId, term: Term },
    #[error("{id} came although {waiting} epochs wait to be applied")]
    Overrun { id: CheckpointId, waiting: usize },
    #[error("{id} came outside a stream")]
    NoStream { id: CheckpointId },
}

/// Why there is no copy any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub enum Discarded {
    #[error("the app ended")]
    AppEnded(AppExit),
    #[error("{winner} won term {term}")]
    Lost { winner: Member, term: Term },
    #[error("a new run of the app began under {0}")]
    NewRun(Member),
    #[error("a full sync replaces it, and nobody may take over with it")]
    Replaced,
    #[error("epoch {0} could not be applied: {1}")]
    Broken(CheckpointId, String),
    #[error("it could not be restored: {0}")]
    NotRestored(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum StandbyStatus {
    Empty,
    /// The first full sync is under way.
    Receiving,
    Following,
    /// All is well with the primary, but the register does not answer: the copy could not take over.
    CutOff {
        why: String,
    },
    Suspecting(Suspicion),
    Claiming {
        trouble: Option<String>,
    },
    Promoting {
        term: Term,
    },
    Serving {
        term: Term,
    },
    Discarded(Discarded),
}

/// Why a standby that holds a copy isn't following, or the primary isn't protected by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub enum Suspicion {
    #[error("the page stream ended")]
    StreamEnded,
    #[error("the primary is silent")]
    Silent,
    #[error("the primary's engine is hung")]
    EngineStalled,
    #[error("the primary is silent; taking over on silence needs --arbiter or --fencing none")]
    NoFencing,
    #[error("the primary is silent, but the register does not name us: {0} serves alone in term {1}")]
    NotNamed(Member, Term),
    #[error("the primary is silent, and the register is empty")]
    NoRegister,
}
