//! Signals that were pending at the freeze, queued again with all that came with them.
//!
//! A process may send itself anything, with any origin: so each thread queues its own, and the leader those
//! of the process.

use serde_bytes::ByteBuf;
use tracee::{Batch, Frozen};

use super::error::RestoreError;
use super::steps::Steps;

/// Whom a signal waits for, by the cell's numbers.
#[derive(Debug, Clone, Copy)]
pub(super) enum For {
    Process,
    Thread { leader: i32 },
}

/// Has `tid`, which the cell calls `number`, queue the signals. They stay pending: a thread on loan takes
/// none, and a stopped one neither.
pub(super) fn queue(
    frozen: &mut Frozen<'_>,
    (pid, tid, number): (i32, i32, i32),
    whom: For,
    signals: &[ByteBuf],
) -> Result<(), RestoreError> {
    if signals.is_empty() {
        return Ok(());
    }
    let mut remote = frozen.remote_in(pid, tid)?;
    let start = remote.buffer().0;
    let (mut batch, mut steps) = (Batch::default(), Steps::default());
    for info in signals {
        let at = start + batch.put(info);
        let bytes = info.first_chunk().ok_or_else(|| RestoreError::Inconsistent {
            pid: number,
            what: "a pending signal of no length".to_owned(),
        })?;
        let signal = i32::from_ne_bytes(*bytes) as u64;
        let own = number as u64;
        match whom {
            For::Process => {
                steps.add(&mut batch, "queue a signal", libc::SYS_rt_sigqueueinfo, [own, signal, at, 0]);
            }
            For::Thread { leader } => {
                let arguments = [leader as u64, own, signal, at];
                steps.add(&mut batch, "queue a thread's signal", libc::SYS_rt_tgsigqueueinfo, arguments);
            }
        }
    }
    remote.put(0, &batch.bytes);
    steps.run(&mut remote, number, &batch.calls)
}
