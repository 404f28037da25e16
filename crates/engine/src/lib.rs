//! The engine of one app: a thread that traces it and captures it, or keeps its copy and becomes it.
//!
//! Commands in, events out; the engine decides nothing about replication. All waiting for the app is here,
//! none for the network: what must go to the peer leaves as ready frames.
//!
//! ```text
//! primary: Launch or Attach ─▶ running ─ FullSync, Capture ─▶ frames ─ Committed / Fail
//! standby: nothing ─ Frame … ─▶ copy ─ Apply … ─ Promote ─▶ running, as a primary
//! ```

mod awake;
mod capture;
pub mod cell;
mod clock;
mod command;
mod event;
mod files;
mod primary;
mod standby;
mod supply;
mod thread;
mod told;
pub mod twin;

pub use checkpoint::descriptors::{CellNetwork, ConnectionCounts, Connections, ManagerSocket, Unanswered};
pub use checkpoint::shipped::{Cache, ShipError, Shipment};
pub use command::{AppStdio, Attach, Barrier, Captures, Command, FrameSink, Launch, Promotion, Settings};
pub use event::{AppExit, CaptureReport, Event, FullSyncProgress, RestoreReport};
pub use files::written_outside;
pub use primary::output_pipes;
pub use thread::{Engine, EventSink, Lender};
