//! Replication, failover and terms as two pure state machines: events in, actions out.
//!
//! [`Primary`] runs beside the app and decides when to capture, what is committed, for how long the app may
//! be heard, and when the pair ends. [`Standby`] keeps one app's copy and decides when it may take over.
//! Neither reads a clock, opens a socket or asks the kernel: the caller passes `now` with every event, does
//! the actions **in their order**, one after the other, and brings back what came of them.
//!
//! Invariants, in terms of the events that both machines see:
//! 1. At every instant at most one copy can make itself heard. The primary's kernel lets it speak until T1
//!    after it *sent* the last heartbeat that was answered; a standby asks for the term only after T2 > T1
//!    of silence, and answers no heartbeat while it asks. It asks earlier only on the word of somebody who
//!    silenced the old copy for good.
//! 2. The primary's permit is unlimited only while the register names no one who may take over. So the
//!    permit is limited *before* a standby is written into the register, and stays limited until the swap
//!    that removes it is known to have won. A swap whose fate is unknown counts as done and as not done,
//!    whichever is worse.
//! 3. A standby acknowledges an epoch only when it is prepared and its parent is what is held, and applies
//!    all that it acknowledged before it promotes. So a takeover restores the newest committed epoch, or a
//!    newer one.
//! 4. [`Committed`] is made by acknowledgements alone, of so many standbys that every possible takeover holds it, and
//!    [`Right`] by a won swap ([`StoreClaim`] is who makes it out of a store), by the word of the owner that its copy is
//!    silent, or by an explicit `--fencing none`. Terms and committed epochs only grow.

mod desk;
mod from_store;
pub mod primary;
mod proof;
pub mod standby;
mod time;

pub use desk::{Answer, Ask, Question};
pub use from_store::{Alone, NoClaim, StoreClaim};
pub use primary::{Primary, PrimaryAction, PrimaryConfig, PrimaryEvent};
pub use proof::{Committed, Grounds, Right};
pub use standby::{Standby, StandbyAction, StandbyConfig, StandbyEvent};
pub use time::{Nanos, Timing, TimingError};

use image::{CheckpointId, Term};
use serde::{Deserialize, Serialize};

/// What keeps two copies from being heard at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fencing {
    /// The register of the term, and a kernel permit that runs out.
    Register,
    /// `--fencing none`: the operator takes it on himself. A cut-off primary and its standby may both serve.
    None,
    /// Neither was configured: a takeover needs the word of the old owner, and never follows from silence.
    Absent,
}

/// What a heartbeat says of the engine, so that a hung one is not taken for a protected app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    pub captured: Option<CheckpointId>,
    pub committed: Option<CheckpointId>,
    /// The engine has captured nothing for too long, although it was to.
    pub stalled: bool,
}

/// Who speaks: a life of a manager, in a term. What an earlier life or term said no longer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reign {
    pub term: Term,
    pub incarnation: image::Incarnation,
}
