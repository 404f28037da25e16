//! The connection to the manager: changes go out in one order, and come into force when they are committed.
//!
//! A round trip costs the processors ten times what a change in it costs, so changes travel together. One batch is on
//! its way at a time; what is submitted meanwhile waits for its end, unless it becomes too much. Threads that were let
//! go together will come together again: who would write the next batch waits a moment for as many as that, an eighth of
//! a round trip at most. And who waits for a short round trip looks for its end a while before it sleeps, because
//! waking an idle core takes as long as all the rest.
//!
//! Whoever submits writes, unless somebody else does already. One thread reads what the manager says.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::frames::{Change, Reader, Said, append_hello, append_question};
use super::lease::Lease;
use super::local::{Cell, Table};
use super::{KEY_BYTES_MAX, Result, StructureError, VALUE_BYTES_MAX};

const NAME_BYTES_MAX: usize = 255;
/// With more than this waiting to be written, who comes next waits, too.
const UNWRITTEN_BYTES_MAX: usize = 1 << 20;

/// A batch that is longer doesn't wait for the one before.
const BATCH_BYTES: usize = 64 << 10;
/// Who waits for a longer round trip sleeps at once.
const SPIN_MAX: Duration = Duration::from_micros(250);

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
    /// Threads that wait, awake or asleep.
    waiters: AtomicU64,
    /// Nanoseconds: a mean that forgets.
    round_trip: AtomicU64,
    failure: OnceLock<StructureError>,
    lease: Lease,
    named: RwLock<Named>,
}

#[derive(Debug, Default)]
struct Outgoing {
    unwritten: Vec<u8>,
    writing: bool,
    /// The last batch that was written: up to which change it goes, and when that was.
    written_up_to: u64,
    written_at: Option<Instant>,
    /// Threads that were let go with the last batch, and changes that came since.
    company: u64,
    came: u64,
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
        let mut reader = Reader::new(Ear { stream: stream.try_clone()?, shared: None, looks: false });
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
            waiters: AtomicU64::new(0),
            round_trip: AtomicU64::new(0),
            failure: OnceLock::new(),
            lease: Lease::new(),
            named: RwLock::new(named),
        });
        let connection = Self { shared };
        let shared = Arc::clone(&connection.shared);
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        reader.from.shared = Some(Arc::clone(&shared));
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
        outgoing.came += 1;
        let sequence = outgoing.submitted;
        if !self.is_under_way(&outgoing) || outgoing.unwritten.len() >= BATCH_BYTES {
            self.write(self.gather(outgoing));
        }
        Ok(sequence)
    }

    fn round_trip(&self) -> Duration {
        Duration::from_nanos(self.round_trip.load(Ordering::Relaxed))
    }

    /// A batch is not committed. Its end lets the next go.
    fn is_under_way(&self, outgoing: &Outgoing) -> bool {
        outgoing.written_up_to > self.committed.load(Ordering::Acquire)
    }

    /// Waits for those who were let go together, unless somebody does.
    fn gather<'a>(&'a self, mut outgoing: MutexGuard<'a, Outgoing>) -> MutexGuard<'a, Outgoing> {
        let (begun, patience) = (Instant::now(), self.round_trip() / 8);
        while !outgoing.writing && outgoing.came < outgoing.company && begun.elapsed() < patience {
            drop(outgoing);
            thread::yield_now();
            outgoing = self.outgoing();
        }
        outgoing.company = 0;
        outgoing
    }

    /// Writes what waits, unless somebody does. That the manager is gone is told by the one who reads.
    fn write<'a>(&'a self, mut outgoing: MutexGuard<'a, Outgoing>) {
        if outgoing.writing || outgoing.unwritten.is_empty() {
            return;
        }
        outgoing.writing = true;
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            std::mem::swap(&mut bytes, &mut outgoing.unwritten);
            outgoing.written_up_to = outgoing.submitted;
            outgoing.written_at = Some(Instant::now());
            drop(outgoing);
            let sent = write_all(&self.stream, &bytes);
            outgoing = self.outgoing();
            if sent.is_err() {
                outgoing.unwritten.clear();
            }
            self.written.notify_all();
            // Less than a batch goes when this one is committed; which it may be already, and its end found us here.
            let may_wait = self.is_under_way(&outgoing) && outgoing.unwritten.len() < BATCH_BYTES;
            if outgoing.unwritten.is_empty() || may_wait {
                break;
            }
        }
        // The next to write needs no new buffer, unless this was a long one.
        if outgoing.unwritten.is_empty() && bytes.capacity() <= UNWRITTEN_BYTES_MAX {
            bytes.clear();
            outgoing.unwritten = bytes;
        }
        outgoing.writing = false;
    }

    fn has_open(&self) -> bool {
        self.waiters.load(Ordering::Relaxed) > 0
    }

    fn is_done(&self, sequence: u64) -> bool {
        self.committed.load(Ordering::Acquire) >= sequence || self.failure.get().is_some()
    }

    fn wait(&self, sequence: u64) -> Result<()> {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        self.spin(sequence);
        if !self.is_done(sequence) {
            self.waiting().push((sequence, thread::current()));
            // Whoever commits looks at those who wait only afterwards.
            while !self.is_done(sequence) {
                thread::park();
            }
        }
        self.waiters.fetch_sub(1, Ordering::Relaxed);
        match self.failure.get() {
            Some(why) if self.committed.load(Ordering::Acquire) < sequence => Err(why.clone()),
            _ => Ok(()),
        }
    }

    /// Looks for the end of a round trip, if they are short.
    fn spin(&self, sequence: u64) {
        let begun = Instant::now();
        while self.round_trip() < SPIN_MAX && !self.is_done(sequence) && begun.elapsed() < SPIN_MAX {
            thread::yield_now();
        }
    }

    fn listen(&self, mut reader: Reader<Ear>) {
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
            let outgoing = &mut *outgoing;
            if let Some(at) = outgoing.written_at.take_if(|_| count >= outgoing.written_up_to) {
                let mean = (self.round_trip() * 7 + at.elapsed()) / 8;
                self.round_trip.store(mean.as_nanos() as u64, Ordering::Relaxed);
            }
            outgoing.came = 0;
            outgoing.company = self.waiters.load(Ordering::Relaxed).min(more as u64);
            outgoing.open.drain(..more).collect()
        };
        edits.into_iter().for_each(Edit::apply);
        self.committed.fetch_max(count, Ordering::AcqRel);
        self.wake(count);
        let outgoing = self.outgoing();
        if !outgoing.unwritten.is_empty() && !self.is_under_way(&outgoing) {
            self.write(self.gather(outgoing));
        }
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

/// Also while the socket does not block, because of an [`Ear`] that looks.
fn write_all(mut stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => bytes = &bytes[len..],
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(why) => return Err(why),
        }
    }
    Ok(())
}

/// The reading end: it looks for the end of a short round trip a while before it sleeps.
#[derive(Debug)]
struct Ear {
    stream: UnixStream,
    shared: Option<Arc<Shared>>,
    /// The socket does not block.
    looks: bool,
}

impl Ear {
    /// N.B. of the socket, and so for who writes, too.
    fn set_looks(&mut self, looks: bool) -> io::Result<()> {
        if self.looks != looks {
            self.stream.set_nonblocking(looks)?;
            self.looks = looks;
        }
        Ok(())
    }

    fn may_look(&self, begun: Instant) -> bool {
        const GRACE: Duration = Duration::from_micros(30);
        self.shared.as_ref().is_some_and(|shared| {
            let limit = if shared.has_open() { SPIN_MAX } else { GRACE };
            shared.round_trip() < SPIN_MAX && begun.elapsed() < limit
        })
    }
}

impl Read for Ear {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let begun = Instant::now();
        while self.may_look(begun) {
            self.set_looks(true)?;
            match self.stream.read(buffer) {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
                read => return read,
            }
        }
        self.set_looks(false)?;
        self.stream.read(buffer)
    }
}

fn check(what: &'static str, bytes: &[u8], max: usize) -> Result<()> {
    let len = bytes.len();
    if len <= max { Ok(()) } else { Err(StructureError::TooLong { what, len, max }) }
}
