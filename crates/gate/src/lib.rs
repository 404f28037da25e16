//! What stands between a cell's network and the world.
//!
//! A [`Gate`] makes one promise: once it is closed, nobody outside hears the app any more, whatever the app,
//! its manager or the kernel's retransmission timers still do. It is *closed by default*: a gate that was never
//! opened, or whose owner died, lets nothing out. There are three kinds:
//!
//! - [`Open`] stands for no gate at all: `--fencing none`.
//! - [`Permit`] is the gate of timeline mode. It holds nothing back; a BPF program on the app's cgroup drops
//!   every packet, in and out, once a deadline on the host's boot clock has passed.
//! - [`TapGate`] is the gate of strong mode. It holds each packet until the epoch that covers it is committed;
//!   the cell lives in a [`CellNetwork`] for that, which has the service's address while this side may serve.
//!
//! This crate knows checkpoints by name only, and decides nothing: who may serve is the register's business,
//! and how long a heartbeat's answer is worth is the manager's.

mod cgroup;
mod filter;
mod frame;
mod ingress;
mod mount;
mod namespace;
pub mod netlink;
mod network;
mod packet;
mod permit;
mod tap;

use image::CheckpointId;

pub use cgroup::{CellCgroup, CgroupError};
pub use ingress::{Batch, OnPackets, Recorded, Recorder, RecorderCounters, Replayed, replay};
pub use namespace::Namespace;
pub use network::{CellNetwork, Claim, NetworkError, NetworkSpec, ServiceAddress, SpecError, sealed_network};
pub use permit::{Permit, PermitError, PermitHandle, Revoked, boot_clock_ns};
pub use tap::{
    OnWaiting, QUEUE_FRAMES, TapCounters, TapError, TapGate, TapHandle, TapOptions, TapState, Waiting,
};

/// What can hold a cell's output.
///
/// `Proof` is what the caller must show to let output go: a value that only an acknowledged epoch makes (the
/// replica's `Committed`). A gate reads the epoch's name from it and nothing else.
///
/// Per epoch: [`barrier`](Self::barrier) while the app stands still, then either [`release`](Self::release)
/// of that epoch or of a later one, or nothing. Names only grow within the life of a gate.
pub trait Gate<Proof: Into<CheckpointId>>: Send {
    /// Marks what has gone out so far as covered by `epoch`. Call it with the app frozen and *before* any of
    /// the kernel's state is read: what leaves after the mark counts to the next epoch, which is always safe.
    /// What comes in is never touched. Holds back on failure, too: the mark is then the next epoch's.
    fn barrier(&mut self, epoch: CheckpointId) -> Result<(), GateError>;

    /// Lets out, in order, what was marked by `proof`'s epoch and by those before it. A repeated or late proof
    /// does nothing. On failure the rest stays held.
    fn release(&mut self, proof: Proof) -> Result<(), GateError>;

    /// Closes for good, and throws away what is held: this side has lost the term. Nothing opens the gate
    /// again; every later call but `discard` answers [`GateError::Discarded`]. On failure the caller has to
    /// assume that the app can still be heard, and kill it.
    fn discard(&mut self) -> Result<(), GateError>;
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GateError {
    #[error("gate is closed for good: this side has lost the term, kill its copy of the app")]
    Discarded,
}

/// No gate: the app is heard as long as it runs, and after a split both copies may be. `status` shows it.
#[derive(Debug, Default)]
pub struct Open {
    discarded: bool,
}

impl Open {
    fn still_open(&self) -> Result<(), GateError> {
        if self.discarded { Err(GateError::Discarded) } else { Ok(()) }
    }
}

impl<Proof: Into<CheckpointId>> Gate<Proof> for Open {
    fn barrier(&mut self, _epoch: CheckpointId) -> Result<(), GateError> {
        self.still_open()
    }

    fn release(&mut self, _proof: Proof) -> Result<(), GateError> {
        self.still_open()
    }

    /// Silences nobody: the caller kills the app.
    fn discard(&mut self) -> Result<(), GateError> {
        self.discarded = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_gate_refuses_epochs_once_the_term_is_lost() {
        let mut gate: Box<dyn Gate<CheckpointId>> = Box::new(Open::default());
        let epoch = CheckpointId::new(1, 1);
        assert_eq!(gate.barrier(epoch), Ok(()));
        assert_eq!(gate.release(epoch), Ok(()));
        assert_eq!(gate.discard(), Ok(()));
        assert_eq!(gate.barrier(epoch.next()), Err(GateError::Discarded));
        assert_eq!(gate.release(epoch), Err(GateError::Discarded));
        assert_eq!(gate.discard(), Ok(()));
    }
}
