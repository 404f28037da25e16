//! Everything that a process has open: captured in the freeze, rebuilt at the takeover.
//!
//! [`save`] walks over the descriptors of a frozen process and changes nothing in it. [`prepare`] makes what
//! can be made before the takeover and has no effect that anybody could see; [`install`] does the rest, in
//! the manager where plain calls do, and in the target where the kernel looks at who calls (sockets belong
//! to the control group of their creator, epoll entries to a descriptor number, POSIX locks to a process).
//!
//! Each kind has one module that both saves and restores it. What cannot be captured is refused by name.
//!
//! Known limits, all of them chosen: what waits unread in an inotify is not carried (it is like what happens between
//! the last epoch and the takeover); multicast memberships and TCP-MD5 keys cannot be read from a socket at all.

mod admit;
mod ahead;
mod anonymous;
mod cache;
mod conversation;
mod datagrams;
mod diagnosis;
mod error;
mod fdinfo;
mod files;
mod gathered;
mod inside;
mod install;
mod internet;
mod kernel_memory;
mod look;
mod moves;
mod options;
mod orphans;
mod pipes;
mod prepare;
mod probe;
mod redeliver;
mod requests;
mod revive;
mod save;
mod segments;
mod sockets;
mod strays;
mod stream;
mod target;
mod unix;
mod unix_queue;
mod watch;

pub(crate) use admit::warm_up as warm_up_admission;
pub use cache::Cache;
pub use conversation::{ManagerSocket, Unanswered};
pub use error::{RebuildError, SaveError};
pub(crate) use files::open_below;
pub use inside::{addresses, forget_others};
pub use install::{Skeleton, install};
pub(crate) use prepare::check_references;
pub use prepare::{Prepared, Surroundings, prepare};
pub use revive::{CellNetwork, Connections as ConnectionCounts, Revival};
pub use save::{Connections, Saved, Subject, save};
pub(crate) use strays::check_strays;
pub use target::{Call, SCRATCH_BYTES_MIN, Scratch, Target};
