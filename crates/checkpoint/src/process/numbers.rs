//! What the cell calls the threads that we know by the host's numbers.

use std::collections::HashMap;
use std::fs;

use tracee::Frozen;

use super::error::SaveError;
use super::status::Status;

/// The numbers of threads inside the cell, kept for as long as each thread lives.
#[derive(Debug, Default)]
pub struct CellNumbers {
    /// By the host's number; a number belongs to one birth.
    known: HashMap<i32, (u64, i32)>,
}

impl CellNumbers {
    pub fn new() -> Self {
        Self::default()
    }

    /// The number in the cell of a thread of the frozen tree.
    pub fn of(&mut self, frozen: &Frozen<'_>, tid: i32) -> Result<i32, SaveError> {
        let birth = frozen.birth(tid).ok_or(tracee::TraceError::Ended(tid))?;
        if let Some(&(known, number)) = self.known.get(&tid)
            && known == birth
        {
            return Ok(number);
        }
        let text = fs::read_to_string(format!("/proc/{tid}/status"))
            .map_err(SaveError::kernel("the number in its namespace", tid))?;
        let number = Status(&text).innermost_number();
        let number = number.ok_or(SaveError::Unreadable { what: "the number in its namespace", tid })?;
        self.known.insert(tid, (birth, number));
        Ok(number)
    }

    /// Forgets threads that are gone.
    pub fn keep(&mut self, threads: &[i32]) {
        if self.known.len() > threads.len() {
            self.known.retain(|tid, _| threads.contains(tid));
        }
    }
}
