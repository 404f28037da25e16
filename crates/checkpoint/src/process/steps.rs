//! Calls that must succeed, each with a name for the case that it does not.

use std::io;

use tracee::{Batch, Call, Remote};

use super::error::RestoreError;

/// The names of the calls in a batch, in their order.
#[derive(Debug, Default)]
pub(super) struct Steps {
    names: Vec<&'static str>,
}

impl Steps {
    pub fn add<const N: usize>(
        &mut self,
        batch: &mut Batch,
        what: &'static str,
        number: libc::c_long,
        arguments: [u64; N],
    ) {
        batch.call(number, arguments);
        self.names.push(what);
    }

    /// The first call that failed is the error; `tid` is the cell's number of the thread that made them.
    pub fn check(&self, tid: i32, results: &[i64]) -> Result<(), RestoreError> {
        assert_eq!(self.names.len(), results.len(), "each call has a name");
        match self.names.iter().zip(results).find(|(_, result)| **result < 0) {
            Some((what, result)) => Err(RestoreError::kernel(what, tid)(error(*result))),
            None => Ok(()),
        }
    }

    /// Has one thread make the calls of `batch`, whose bytes are in its buffer already.
    pub fn run(&self, remote: &mut Remote<'_, '_>, tid: i32, calls: &[Call]) -> Result<(), RestoreError> {
        let results = remote.calls(calls)?;
        self.check(tid, &results)
    }
}

fn error(result: i64) -> io::Error {
    sys::kernel::error(result)
}
