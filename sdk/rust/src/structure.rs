//! Replicated structures: maps and values whose changes are on the standby before a write returns.
//!
//! ```no_run
//! let structures = checksync_sdk::Structures::open()?;
//! let users = structures.map("users")?;
//! users.put("ada", "1815")?; // The standby has it now.
//! assert_eq!(users.get("ada")?.as_deref(), Some(b"1815".as_slice()));
//! # Ok::<(), checksync_sdk::StructureError>(())
//! ```
//!
//! Run the program with `checksync run --replicate structures …`. After a failure the standby starts it, and
//! [`Structures::open`] gives back every structure as it was.
//!
//! What may be relied on:
//! - A write that returned `Ok` is on the standby, or there is none that could take over. One that returned an error
//!   may have happened or not; it happens as a whole or not at all.
//! - A read returns what is committed, and nothing that a takeover could lose. A write is seen once it is committed: by
//!   its own writer when it returns, by others at about that time.
//! - Writes of all threads have one order, and what is lost in a failure is a suffix of it that nobody was told of.
//! - Reads are local and wait for no other reader. A side that may no longer be the one to serve answers none: a read
//!   waits until that is settled, or fails with [`StructureError::Fenced`].
//!
//! One process at a time has the structures open. The clock of the reads is the host's monotonic one: a host that is
//! suspended, or a virtual machine that stands still with its clock, may answer reads for the rest of a lease, which is
//! 80 ms by default, after it goes on.

mod connection;
mod error;
mod frames;
mod lease;
mod local;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use connection::{Connection, Edit};
pub use error::StructureError;
use local::{Cell, Table};

/// The longest key; names have at most 255 bytes.
pub const KEY_BYTES_MAX: usize = 64 << 10;
pub const VALUE_BYTES_MAX: usize = 256 << 20;

type Result<T> = std::result::Result<T, StructureError>;

/// All structures of this program. Clones are the same.
#[derive(Debug, Clone)]
pub struct Structures {
    connection: Arc<Connection>,
}

impl Structures {
    /// Opens the structures of the manager that started this program, as they are: after a takeover, as they were.
    pub fn open() -> Result<Self> {
        let path = std::env::var_os("CHECKSYNC_STRUCTURES").ok_or(StructureError::NoManager)?;
        Self::connect(Path::new(&path))
    }

    /// As [`Structures::open`], at the manager's socket.
    pub fn connect(path: &Path) -> Result<Self> {
        Ok(Self { connection: Arc::new(Connection::open(path)?) })
    }

    /// The map with this name, which is empty if it is new.
    pub fn map(&self, name: &str) -> Result<Map> {
        let (name, table) = self.connection.table(name)?;
        Ok(Map { connection: Arc::clone(&self.connection), name, table })
    }

    /// The value with this name.
    pub fn value(&self, name: &str) -> Result<Value> {
        let (name, cell) = self.connection.cell(name)?;
        Ok(Value { connection: Arc::clone(&self.connection), name, cell })
    }

    /// The term in which this program serves.
    pub fn term(&self) -> u64 {
        self.connection.term()
    }
}

/// A change that is on its way.
#[derive(Debug)]
#[must_use = "a change is safe only once it has been waited for"]
pub struct Commit {
    connection: Arc<Connection>,
    sequence: u64,
}

impl Commit {
    /// Returns when the standby has it.
    pub fn wait(self) -> Result<()> {
        self.connection.wait(self.sequence)
    }

    /// Whether [`Commit::wait`] would return at once.
    pub fn is_done(&self) -> bool {
        self.connection.is_done(self.sequence)
    }
}

/// A replicated map from bytes to bytes. Clones are the same map.
#[derive(Clone)]
pub struct Map {
    connection: Arc<Connection>,
    name: Arc<str>,
    table: Arc<Table>,
}

impl Map {
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Arc<[u8]>>> {
        self.connection.may_read()?;
        Ok(self.table.get(key.as_ref()))
    }

    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.connection.may_read()?;
        Ok(self.table.contains(key.as_ref()))
    }

    pub fn len(&self) -> Result<usize> {
        self.connection.may_read()?;
        Ok(self.table.len())
    }

    pub fn is_empty(&self) -> Result<bool> {
        self.len().map(|len| len == 0)
    }

    /// Calls `each` for every key and its value, in no order. Of changes meanwhile some may be seen.
    pub fn for_each(&self, mut each: impl FnMut(&[u8], &[u8])) -> Result<()> {
        self.connection.may_read()?;
        self.table.for_each(&mut each);
        Ok(())
    }

    /// Returns when the standby has it.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.start_put(key, value)?.wait()
    }

    /// Puts without waiting. Nobody reads it before it is committed; puts are committed in their order.
    pub fn start_put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<Commit> {
        let (key, value) = (key.as_ref(), value.as_ref());
        self.submit(frames::Change::Put { name: &self.name, key, value }, || Edit::Put {
            table: Arc::clone(&self.table),
            key: key.into(),
            value: value.into(),
        })
    }

    /// Returns when the standby has forgotten the key.
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.start_delete(key)?.wait()
    }

    /// Deletes without waiting.
    pub fn start_delete(&self, key: impl AsRef<[u8]>) -> Result<Commit> {
        let key = key.as_ref();
        self.submit(frames::Change::Delete { name: &self.name, key }, || Edit::Delete {
            table: Arc::clone(&self.table),
            key: key.into(),
        })
    }

    fn submit(&self, change: frames::Change<'_>, edit: impl FnOnce() -> Edit) -> Result<Commit> {
        let sequence = self.connection.submit(change, edit)?;
        Ok(Commit { connection: Arc::clone(&self.connection), sequence })
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Map({:?})", self.name)
    }
}

/// A replicated value, whole with each store. Clones are the same value.
#[derive(Clone)]
pub struct Value {
    connection: Arc<Connection>,
    name: Arc<str>,
    cell: Arc<Cell>,
}

impl Value {
    /// What was stored last; `None` before the first.
    pub fn load(&self) -> Result<Option<Arc<[u8]>>> {
        self.connection.may_read()?;
        Ok(self.cell.load())
    }

    /// Returns when the standby has it. Its cost is that of all bytes: what changes in small parts is a [`Map`].
    pub fn store(&self, value: impl AsRef<[u8]>) -> Result<()> {
        self.start_store(value)?.wait()
    }

    /// Stores without waiting.
    pub fn start_store(&self, value: impl AsRef<[u8]>) -> Result<Commit> {
        let value = value.as_ref();
        let change = frames::Change::Store { name: &self.name, value };
        let edit = || Edit::Store { cell: Arc::clone(&self.cell), value: value.into() };
        let sequence = self.connection.submit(change, edit)?;
        Ok(Commit { connection: Arc::clone(&self.connection), sequence })
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({:?})", self.name)
    }
}
