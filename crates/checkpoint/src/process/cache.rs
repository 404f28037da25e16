//! What is kept from one freeze to the next, and for how long: see the module's header.

use std::collections::HashMap;
use std::fs::File;

use image::process::{Credentials, MemoryMap, ProcessAttributes};

use super::RECHECK_EVERY;
use super::credentials::Fingerprint;

/// Of one process. A new one is as good as an old one, only slower.
#[derive(Debug, Default)]
pub struct ProcessCache {
    pub(super) freezes: u64,
    pub(super) threads: HashMap<i32, KnownThread>,
    pub(super) process: Option<KnownProcess>,
    /// Memory for registers on their way.
    pub(super) area: Vec<u8>,
}

/// What is not read in every freeze, of one thread.
#[derive(Debug)]
pub(super) struct KnownThread {
    pub birth: u64,
    pub fingerprint: Fingerprint,
    pub credentials: Credentials,
    pub scheduling: Scheduling,
}

#[derive(Debug, Clone)]
pub(super) struct Scheduling {
    pub attributes: sys::task::SchedulingAttributes,
    pub affinity: Vec<u8>,
    pub io_priority: u32,
}

/// The same of the process.
#[derive(Debug)]
pub(super) struct KnownProcess {
    pub birth: u64,
    pub timers: File,
    /// As the last freeze found it.
    pub umask: u32,
    /// Its `brk` is read each time.
    pub memory: MemoryMap,
    /// Personality, dumpable, subreaper and huge pages are read each time.
    pub attributes: ProcessAttributes,
}

impl ProcessCache {
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a freeze: whatever belongs to threads that are gone is forgotten.
    pub(super) fn begin(&mut self, threads: &[i32]) {
        self.freezes += 1;
        if self.threads.len() > threads.len() {
            self.threads.retain(|tid, _| threads.contains(tid));
        }
    }

    /// The process, which the freeze has looked at.
    pub(super) fn known(&self) -> &KnownProcess {
        self.process.as_ref().expect("looked at before it is asked for")
    }

    /// Whether it is the turn of number `index` to be looked at again.
    pub(super) fn is_due(&self, index: usize) -> bool {
        (self.freezes + index as u64).is_multiple_of(RECHECK_EVERY)
    }
}
