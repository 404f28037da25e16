//! What is kept from one freeze to the next, and for how long: see the module's header.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use image::process::{Credentials, MemoryMap, ProcessAttributes};

use super::credentials::Fingerprint;
use super::roll::Roll;
use super::{RECHECK_EVERY, whole};

/// Of one process. A new one is as good as an old one, only slower.
#[derive(Debug, Default)]
pub struct ProcessCache {
    pub(super) freezes: u64,
    pub(super) threads: HashMap<i32, KnownThread>,
    pub(super) process: Option<KnownProcess>,
    roll: Trusted,
    /// What the leader said of the process, and the signs that it would say so again.
    answer: Option<(Vec<u8>, Arc<whole::Answers>)>,
    /// Memory for registers on their way.
    pub(super) area: Vec<u8>,
}

/// The roll, as far as it is believed.
#[derive(Debug, Default)]
enum Trusted {
    #[default]
    NotTried,
    Yes(Roll),
    No,
}

/// What is not read in every freeze, of one thread.
#[derive(Debug)]
pub(super) struct KnownThread {
    pub birth: u64,
    pub fingerprint: Fingerprint,
    pub credentials: Credentials,
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

    pub(super) fn roll(&mut self, pid: i32) -> Option<&mut Roll> {
        if matches!(self.roll, Trusted::NotTried) {
            self.roll = Roll::of(pid).map_or(Trusted::No, Trusted::Yes);
        }
        match &mut self.roll {
            Trusted::Yes(roll) => Some(roll),
            Trusted::NotTried | Trusted::No => None,
        }
    }

    /// What the leader said when there were these signs.
    pub(super) fn answered(&self, signs: &[u8]) -> Option<Arc<whole::Answers>> {
        let (known, answer) = self.answer.as_ref()?;
        (known == signs).then(|| Arc::clone(answer))
    }

    /// Keeps it, unless time alone changes it.
    pub(super) fn keep_answer(&mut self, signs: Vec<u8>, answer: &Arc<whole::Answers>) {
        self.answer = (!answer.counts_down()).then(|| (signs, Arc::clone(answer)));
    }

    pub(super) fn distrust_roll(&mut self) {
        self.roll = Trusted::No;
    }

    /// Whether it is the turn of number `index` to be looked at again.
    pub(super) fn is_due(&self, index: usize) -> bool {
        (self.freezes + index as u64).is_multiple_of(RECHECK_EVERY)
    }
}
