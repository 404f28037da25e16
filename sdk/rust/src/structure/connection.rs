//! The connection to the manager: changes go out in one order, and come into force when they are committed.
//!
//! Whoever changes something appends it to the buffer under the lock, and writes the buffer unless somebody else does
//! already: so what many threads have to say goes with few calls. One thread reads what the manager says.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::{self, Thread};
use std::time::Duration;

use super::frames::{Change, Reader, Said, append_hello, append_question};
use super::lease::Lease;
use super::local::{Cell, Table};
use super::{KEY_BYTES_MAX, Result, StructureError, VALUE_BYTES_MAX};

const NAME_BYTES_MAX: usize = 255;
/// With more than this waiting to be written, who comes next waits, too.
const UNWRITTEN_BYTES_MAX: usize = 1 << 20;

/// What a change does here, once it is committed.
#[derive(Debug)]
pub(super) enum Edit {
    Put { table: Arc<Table>, key: Box<[u8]>, value: Arc<[u8]> },
    Delete { table: Arc<Table>, key: Box<[u8]> },
    Store { cell: Arc<Cell>, value: Arc<[u8]> },
}

impl Edit {
    fn apply(self) {
        match self {
            Self::Put { table, key, value } => table.put(key, value),
            Self::Delete { table, key } => table.delete(&key),
            Self::Store { cell, value } => cell.store(value),
        }
    }
}

/// The handle that the program has. Dropping it ends the connection.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    stream: UnixStream,
    term: u64,
    outgoing: Mutex<Outgoing>,
    /// Somebody has written.
    written: Condvar,
    /// How many changes are committed.
    committed: AtomicU64,
    waiting: Mutex<Vec<(u64, Thread)>>,
    failure: OnceLock<StructureError>,
    lease: Lease,
    named: RwLock<Named>,
}

#[derive(Debug, Default)]
struct Outgoing {
    unwritten: Vec<u8>,
    writing: bool,
    /// How many changes were submitted.
    submitted: u64,
    /// Those that are not committed, the oldest first.
    open: VecDeque<Edit>,
}

#[derive(Debug, Default)]
struct Named {
    tables: HashMap<Arc<str>, Arc<Table>>,
    cells: HashMap<Arc<str>, Arc<Cell>>,
}

impl Named {
    fn table(&mut self, name: &str) -> (Arc<str>, Arc<Table>) {
        if let Some((name, table)) = self.tables.get_key_value(name) {
            return (Arc::clone(name), Arc::clone(table));
        }
        let (name, table): (Arc<str>, Arc<Table>) = (name.into(), Arc::default());
        self.tables.insert(Arc::clone(&name), Arc::clone(&table));
        (name, table)
    }

    fn cell(&mut self, name: &str) -> (Arc<str>, Arc<Cell>) {
        if let Some((name, cell)) = self.cells.get_key_value(name) {
            return (Arc::clone(name), Arc::clone(cell));
        }
        let (name, cell): (Arc<str>, Arc<Cell>) = (name.into(), Arc::default());
        self.cells.insert(Arc::clone(&name), Arc::clone(&cell));
        (name, cell)
    }
}

impl Connection {
    /// Connects, and returns when the structures are here.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)?;
        let mut hello = Vec::new();
        append_hello(&mut hello);
        (&stream).write_all(&hello)?;
        let mut reader = Reader::new(stream.try_clone()?);
        let (mut term, mut named) = (0, Named::default());
        let lease_every = loop {
            match reader.next()? {
                Said::Welcome { term: ours } => term = ours,
                Said::Put { name, key, value } => named.table(name).1.put(key.into(), value.into()),
                Said::Store { name, value } => named.cell(name).1.store(value.into()),
                Said::Ready { lease_every_ns } => break Duration::from_nanos(lease_every_ns),
                Said::Fenced { term, by } => return Err(StructureError::Fenced { term, by: by.to_owned() }),
                Said::Refused { why } => return Err(StructureError::Refused(why.to_owned())),
                Said::Committed { .. } | Said::Lease { .. } => {
                    return Err(StructureError::Refused("it answered what nobody asked".to_owned()));
                }
            }
        };
        let shared = Arc::new(Shared {
            stream,
            term,
            outgoing: Mutex::default(),
            written: Condvar::new(),
            committed: AtomicU64::new(0),
            waiting: Mutex::default(),
            failure: OnceLock::new(),
            lease: Lease::new(),
            named: RwLock::new(named),
        });
        let connection = Self { shared };
        let shared = Arc::clone(&connection.shared);
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        named("structures").spawn(move || shared.listen(reader))?;
        let shared = Arc::clone(&connection.shared);
        named("lease").spawn(move || shared.keep_lease(lease_every))?;
        Ok(connection)
    }

    pub(super) fn term(&self) -> u64 {
        self.shared.term
    }

    pub(super) fn table(&self, name: &str) -> Result<(Arc<str>, Arc<Table>)> {
        check("name", name.as_bytes(), NAME_BYTES_MAX)?;
        Ok(self.shared.named.write().unwrap_or_else(PoisonError::into_inner).table(name))
    }

    pub(super) fn cell(&self, name: &str) -> Result<(Arc<str>, Arc<Cell>)> {
        check("name", name.as_bytes(), NAME_BYTES_MAX)?;
        Ok(self.shared.named.write().unwrap_or_else(PoisonError::into_inner).cell(name))
    }

    /// Sends a change, and returns its number.
    pub(super) fn submit(&self, change: Change<'_>, edit: impl FnOnce() -> Edit) -> Result<u64> {
        let (key, value): (&[u8], &[u8]) = match change {
            Change::Put { key, value, .. } => (key, value),
            Change::Delete { key, .. } => (key, b""),
            Change::Store { value, .. } => (b"", value),
        };
        check("key", key, KEY_BYTES_MAX)?;
        check("value", value, VALUE_BYTES_MAX)?;
        self.shared.submit(change, edit())
    }

    pub(super) fn is_done(&self, sequence: u64) -> bool {
        self.shared.is_done(sequence)
    }

    pub(super) fn wait(&self, sequence: u64) -> Result<()> {
        self.shared.wait(sequence)
    }

    pub(super) fn may_read(&self) -> Result<()> {
        if self.shared.lease.is_valid() {
            return Ok(());
        }
        self.shared.lease.wait();
        self.shared.failure.get().cloned().map_or(Ok(()), Err)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The threads end with it.
        let _ = self.shared.stream.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(u64, Thread)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(&self, change: Change<'_>, edit: Edit) -> Result<u64> {
        let mut outgoing = self.outgoing();
        while outgoing.writing && outgoing.unwritten.len() > UNWRITTEN_BYTES_MAX {
            outgoing = self.written.wait(outgoing).unwrap_or_else(PoisonError::into_inner);
        }
        // Looked at under the lock: who fails does so before it empties what is open.
        if let Some(why) = self.failure.get() {
            return Err(why.clone());
        }
        change.append(&mut outgoing.unwritten);
        outgoing.open.push_back(edit);
        outgoing.submitted += 1;
        let sequence = outgoing.submitted;
        self.write(outgoing);
        Ok(sequence)
    }

    /// Writes what waits, unless somebody does. That the manager is gone is told by the one who reads.
    fn write<'a>(&'a self, mut outgoing: MutexGuard<'a, Outgoing>) {
        if outgoing.writing {
            return;
        }
        outgoing.writing = true;
        let mut bytes = Vec::new();
        while !outgoing.unwritten.is_empty() {
            bytes.clear();
            std::mem::swap(&mut bytes, &mut outgoing.unwritten);
            drop(outgoing);
            let sent = (&self.stream).write_all(&bytes);
            outgoing = self.outgoing();
            if sent.is_err() {
                outgoing.unwritten.clear();
            }
            self.written.notify_all();
        }
        // The next to write needs no new buffer, unless this was a long one.
        if bytes.capacity() <= UNWRITTEN_BYTES_MAX {
            bytes.clear();
            outgoing.unwritten = bytes;
        }
        outgoing.writing = false;
    }

    fn is_done(&self, sequence: u64) -> bool {
        self.committed.load(Ordering::Acquire) >= sequence || self.failure.get().is_some()
    }

    fn wait(&self, sequence: u64) -> Result<()> {
        if !self.is_done(sequence) {
            self.waiting().push((sequence, thread::current()));
            // Whoever commits looks at those who wait only afterwards.
            while !self.is_done(sequence) {
                thread::park();
            }
        }
        match self.failure.get() {
            Some(why) if self.committed.load(Ordering::Acquire) < sequence => Err(why.clone()),
            _ => Ok(()),
        }
    }

    fn listen(&self, mut reader: Reader<UnixStream>) {
        let why = loop {
            match reader.next() {
                Ok(Said::Committed { count }) => {
                    if let Err(why) = self.commit(count) {
                        break why;
                    }
                }
                Ok(Said::Lease { number, span_ns }) => self.lease.answered(number, span_ns),
                Ok(Said::Fenced { term, by }) => break StructureError::Fenced { term, by: by.to_owned() },
                Ok(Said::Refused { why }) => break StructureError::Refused(why.to_owned()),
                Ok(Said::Welcome { .. } | Said::Put { .. } | Said::Store { .. } | Said::Ready { .. }) => {
                    break StructureError::Refused("it sent the structures a second time".to_owned());
                }
                Err(why) => break why.into(),
            }
        };
        self.fail(why);
    }

    /// Brings all changes up to this one into force, and lets go who waits for them.
    fn commit(&self, count: u64) -> Result<()> {
        let before = self.committed.load(Ordering::Relaxed);
        let edits: Vec<Edit> = {
            let mut outgoing = self.outgoing();
            let more = count.saturating_sub(before).try_into().unwrap_or(usize::MAX);
            if more > outgoing.open.len() {
                return Err(StructureError::Refused("it committed more than it was sent".to_owned()));
            }
            outgoing.open.drain(..more).collect()
        };
        edits.into_iter().for_each(Edit::apply);
        self.committed.fetch_max(count, Ordering::AcqRel);
        self.wake(count);
        Ok(())
    }

    fn wake(&self, up_to: u64) {
        self.waiting().retain(|(sequence, thread)| {
            let waits = *sequence > up_to;
            if !waits {
                thread.unpark();
            }
            waits
        });
    }

    fn fail(&self, why: StructureError) {
        // The first cause counts.
        let _ = self.failure.set(why);
        self.lease.end();
        self.outgoing().open.clear();
        self.wake(u64::MAX);
        // Who writes must not wait for a manager that reads no more.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn keep_lease(&self, every: Duration) {
        loop {
            if let Some(number) = self.lease.ask() {
                let mut outgoing = self.outgoing();
                append_question(&mut outgoing.unwritten, number);
                self.write(outgoing);
            }
            if !self.lease.pause(every) {
                return;
            }
        }
    }
}

fn check(what: &'static str, bytes: &[u8], max: usize) -> Result<()> {
    let len = bytes.len();
    if len <= max { Ok(()) } else { Err(StructureError::TooLong { what, len, max }) }
}
