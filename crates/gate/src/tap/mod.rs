//! The gate of strong mode: what the cell says waits until the epoch that covers it is committed.
//!
//! ```text
//!   app ─ eth0 ─ filter ──redirect──▶ TAP ──read──▶ [ unmarked │ epoch n │ epoch n-1 ] ──▶ AF_PACKET ─ eth0
//! ```
//!
//! The filter leads all that leaves `eth0` to the TAP device. What is sent back to `eth0` by the packet socket
//! has the network's mark, so it does not go in circles; and it leaves only while the permit lasts: who releases may have
//! stood still since he looked.
//!
//! | state | what the app says | ARP, neighbour discovery |
//! |---|---|---|
//! | closed, at first | is lost | is lost |
//! | holding | waits for its epoch | leaves at once |
//! | passing | leaves at once | leaves at once |
//! | discarded, for good | is lost | is lost |
//!
//! - *Frames are orphaned before they wait.* The TAP's driver takes them out of their socket's account. A frame
//!   that waits in a queue of the kernel's stays charged to its socket, and TCP sends no more than a few at a
//!   time then: a hundredth of the bandwidth.
//! - *Fail closed.* The device is gone with the last descriptor of ours, and the filter drops what it can't
//!   lead anywhere.
//! - *Bounded.* Beyond [`TapOptions::held_bytes_max`] frames are lost as on a full link, counted; TCP then sends
//!   less. They are still read, because neighbours must be answered all the same. What waits in the kernel
//!   before us is bounded by [`QUEUE_FRAMES`], and is TCP's own send buffer, shared, as far as it is TCP.
//! - *Who waits for whom.* `intake` covers reading and marking, for a bounded number of frames at a time;
//!   `way_out` sending, for as long as a release takes. The barrier never waits for a release, and nobody waits
//!   for a full device: whoever releases sends what there is room for, and the gate's thread the rest. Locks are
//!   taken in this order: `turnstile`, `intake`, `way_out`, `side_outlet`, `marked`, `spares`.

mod congestion;
mod outlet;
mod queue;
mod shared;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use image::CheckpointId;

use crate::network::{CellNetwork, NetworkError};
use crate::{Gate, GateError, namespace};
use outlet::Outlet;
use shared::Shared;

/// The TAP device, as the cell's processes may see it.
const DEVICE: &str = "gate0";
const DEVICE_INDEX: u32 = 3;
/// How many frames may wait in the device while our thread does not run.
pub const QUEUE_FRAMES: u32 = 10_000;

/// Output that waits for a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// When the first frame began to wait.
    pub since: Instant,
    /// As many wait as did lately when everybody had been answered: an epoch now has them all.
    pub all: bool,
}

/// Called by the thread that reads the frames: it must return at once, and must not call the gate.
pub type OnWaiting = Box<dyn Fn(Waiting) + Send + Sync>;

pub struct TapOptions {
    /// How much memory the frames that wait may take. It may become half a MiB more, and up to 16 MiB are kept to
    /// be used again.
    pub held_bytes_max: usize,
    /// What becomes of output until the gate is told otherwise. Closed, unless the cell speaks already and nothing of
    /// what it says is to be lost.
    pub at_first: TapState,
    /// Told of the first frame that waits since the last barrier, and when all do.
    pub on_waiting: Option<OnWaiting>,
}

impl Default for TapOptions {
    fn default() -> Self {
        Self { held_bytes_max: 64 << 20, at_first: TapState::Closed, on_waiting: None }
    }
}

impl std::fmt::Debug for TapOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TapOptions").field("held_bytes_max", &self.held_bytes_max).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error(
        "this host has no /dev/net/tun; load the module (`modprobe tun`), or in a container pass the device in, \
         or run without strong mode"
    )]
    NoTun(#[source] io::Error),
    #[error("this process may not {what}: run as root (CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN)")]
    Forbidden {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("another gate of this cell still exists; drop its handles first")]
    Taken,
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("cannot {what}")]
    Kernel {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

impl From<io::Error> for TapError {
    fn from(source: io::Error) -> Self {
        to("enter the cell's network namespace")(source)
    }
}

fn to(what: &'static str) -> impl Fn(io::Error) -> TapError {
    move |source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::Forbidden { what, source },
        Some(libc::EBUSY | libc::EEXIST) => TapError::Taken,
        _ => TapError::Kernel { what, source },
    }
}

/// Which frames leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TapState {
    Closed,
    Holding,
    Passing,
    Discarded,
}

impl TapState {
    fn from_raw(raw: u8) -> Self {
        [Self::Closed, Self::Holding, Self::Passing]
            .into_iter()
            .find(|state| *state as u8 == raw)
            .unwrap_or(Self::Discarded)
    }
}

/// What a gate has done so far. Frames that the kernel has not cut up yet count as one, and neighbour discovery
/// is not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TapCounters {
    pub held_frames: u64,
    /// Memory that the held frames take.
    pub held_bytes: usize,
    pub held_bytes_peak: usize,
    /// Sent, by a release or at once.
    pub released_frames: u64,
    /// Came while the gate was closed, or were held when it was discarded or forgot them.
    pub dropped_frames: u64,
    /// Came while there was no room.
    pub overflowed_frames: u64,
    /// Were refused by the device.
    pub lost_frames: u64,
}

/// The gate's thread and device. Dropping it discards what is held, and closes.
#[derive(Debug)]
pub struct TapGate {
    handle: TapHandle,
    thread: Option<JoinHandle<()>>,
}

/// A gate, for whoever marks and releases; each may do so from a thread of its own.
#[derive(Debug, Clone)]
pub struct TapHandle(Arc<Shared>);

impl TapGate {
    /// A gate for the cell's output, closed unless `options` say otherwise. From now on nothing leaves the cell but
    /// through it; what leaves while it is being made waits in its device.
    pub fn open(network: &CellNetwork, options: TapOptions) -> Result<Self, TapError> {
        let (tap, outlets) = namespace::within(network.namespace(), || {
            congestion::go_by_loss();
            let tap = sys::tun::open_tap(DEVICE, DEVICE_INDEX).map_err(|why| match why.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoTun(why),
                _ => to("make a TAP device")(why),
            })?;
            let outlet =
                || Outlet::open(network.device(), network.mark()).map_err(to("open the way out of the gate"));
            Ok::<_, TapError>((tap, [outlet()?, outlet()?]))
        })?;
        let inside = network.inside();
        inside.keep_quiet(DEVICE_INDEX).map_err(to("keep the gate's device quiet"))?;
        // Without it frames pass one queue more.
        let _ = inside.remove_queue(DEVICE_INDEX);
        inside.set_up_as_queue(DEVICE_INDEX, QUEUE_FRAMES).map_err(to("switch the gate's device on"))?;
        network.divert_to(DEVICE_INDEX)?;
        Self::start(tap, outlets, options).map_err(to("start the gate's thread"))
    }

    fn start(tap: OwnedFd, outlets: [Outlet; 2], options: TapOptions) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(tap, outlets, options)?);
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new().name("gate".to_owned()).spawn(move || own.run())?;
        Ok(Self { handle: TapHandle(shared), thread: Some(thread) })
    }

    pub fn handle(&self) -> TapHandle {
        self.handle.clone()
    }
}

impl std::ops::Deref for TapGate {
    type Target = TapHandle;

    fn deref(&self) -> &TapHandle {
        &self.handle
    }
}

impl Drop for TapGate {
    fn drop(&mut self) {
        self.handle.discard();
        self.handle.0.stop();
        if let Some(thread) = self.thread.take() {
            // It does nothing that panics but the callback, and then the gate is closed.
            let _ = thread.join();
        }
    }
}

impl TapHandle {
    pub fn state(&self) -> TapState {
        self.0.state()
    }

    /// From now on output waits for its epoch. Only for whoever holds the term. After
    /// [`pass`](Self::pass), what has left has left: the next barrier covers what comes from now on.
    pub fn hold(&self) -> Result<(), GateError> {
        self.0.hold()
    }

    /// From now on output leaves at once, behind what was held. Only for whoever holds the term
    /// *and* has the arbiter's word that no standby can take over from an epoch before this.
    pub fn pass(&self) -> Result<(), GateError> {
        self.0.pass()
    }

    /// As [`Gate::barrier`]. Takes as long as reading what is in the device, which the gate's own thread has
    /// left empty unless the app has just spoken.
    pub fn barrier(&self, epoch: CheckpointId) -> Result<(), GateError> {
        self.0.barrier(epoch)
    }

    /// As [`Gate::release`]. What the device has no room for leaves later.
    pub fn release(&self, epoch: CheckpointId) -> Result<(), GateError> {
        self.0.release(epoch)
    }

    /// Throws away what waits, and what the kernel has not handed over yet: for an app that is started afresh, so
    /// that nothing that its predecessor said uncovered leaves under a later epoch. What was released leaves all
    /// the same. The gate goes on as it was.
    ///
    /// Call it when no process of the predecessor's is left. N.B. connections that it left behind repeat what they
    /// had said, and say that they end: those have to be ended, or be left in a network of their own.
    pub fn forget(&self) -> Result<(), GateError> {
        self.0.forget()
    }

    /// As [`Gate::discard`], and it can't fail: when this returns, nothing leaves any more.
    pub fn discard(&self) {
        self.0.discard();
    }

    /// Since when output has been waiting for a barrier, and how many bytes.
    pub fn waiting(&self) -> Option<(Instant, usize)> {
        self.0.waiting()
    }

    pub fn counters(&self) -> TapCounters {
        self.0.counters()
    }
}

impl<Proof: Into<CheckpointId>> Gate<Proof> for TapHandle {
    fn barrier(&mut self, epoch: CheckpointId) -> Result<(), GateError> {
        TapHandle::barrier(self, epoch)
    }

    fn release(&mut self, proof: Proof) -> Result<(), GateError> {
        TapHandle::release(self, proof.into())
    }

    fn discard(&mut self) -> Result<(), GateError> {
        TapHandle::discard(self);
        Ok(())
    }
}
