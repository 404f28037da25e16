//! The process that descriptors are rebuilt in, as far as this module must know it.

use std::io;

use super::error::RebuildError;

/// A system call: its number and its arguments.
pub type Call = (i64, [u64; 6]);

/// A process that stands still and makes system calls for us.
pub trait Target {
    /// Makes the calls one after the other; what each returned, `-errno` where it failed. However many
    /// there are: the implementation splits them as it must.
    fn calls(&mut self, calls: &[Call]) -> io::Result<Vec<i64>>;
    fn write(&mut self, address: u64, bytes: &[u8]) -> io::Result<()>;
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Memory in the target that nothing else uses while descriptors are installed: at least
    /// [`SCRATCH_BYTES_MIN`].
    fn scratch(&self) -> Scratch;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scratch {
    pub address: u64,
    pub len: usize,
}

/// One page holds the largest thing that a step needs: a control message with 253 descriptors.
pub const SCRATCH_BYTES_MIN: usize = 4096;

/// Makes the calls, each of which must succeed; `what` names them in the error.
pub(super) fn all(target: &mut dyn Target, what: &str, calls: &[Call]) -> Result<Vec<u64>, RebuildError> {
    let results = target.calls(calls).map_err(RebuildError::Target)?;
    assert_eq!(results.len(), calls.len(), "a target answered {} of {} calls", results.len(), calls.len());
    results.into_iter().map(|result| returned(what, result)).collect()
}

/// Makes one call, with `bytes` in the scratch memory; `arguments` is given their address.
pub(super) fn with_bytes(
    target: &mut dyn Target,
    what: &str,
    bytes: &[u8],
    call: impl FnOnce(u64) -> Call,
) -> Result<u64, RebuildError> {
    let address = put(target, bytes)?;
    all(target, what, &[call(address)]).map(|results| results[0])
}

/// Writes `bytes` to the start of the scratch memory; its address.
pub(super) fn put(target: &mut dyn Target, bytes: &[u8]) -> Result<u64, RebuildError> {
    let scratch = target.scratch();
    assert!(bytes.len() <= scratch.len, "{} bytes do not fit into the scratch memory", bytes.len());
    target.write(scratch.address, bytes).map_err(RebuildError::Target)?;
    Ok(scratch.address)
}

fn returned(what: &str, result: i64) -> Result<u64, RebuildError> {
    u64::try_from(result).map_err(|_| RebuildError::Kernel {
        what: format!("{what} in the skeleton"),
        source: io::Error::from_raw_os_error(result.unsigned_abs() as i32),
    })
}
