//! The manager, as a program sees it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::connection::{Answer, Connection};
use crate::json::{self, Value};

/// Where `checksync run` says that its socket is.
const SOCKET_VARIABLE: &str = "CHECKSYNC_SOCKET";
/// Connections that are kept for the next call.
const IDLE_MAX: usize = 16;

/// A checkpoint's name. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checkpoint {
    pub term: u64,
    pub epoch: u64,
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.term, self.epoch)
    }
}

/// Where this process runs, and how well it is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    pub app: String,
    pub host: String,
    /// Always `primary` for a process that runs.
    pub role: String,
    /// Grows with every takeover: a fencing token, if what is written elsewhere carries it.
    pub term: u64,
    pub protected: bool,
    /// Why it is not protected.
    pub reason: Option<String>,
    /// The checkpoint that this process was restored from, if it was.
    pub restored: Option<Checkpoint>,
}

#[derive(Debug)]
pub enum Error {
    /// This process is not run by `checksync run`.
    NotProtected,
    /// The manager is not there.
    NoManager { socket: PathBuf, source: io::Error },
    /// Nobody would go on if this host died now.
    Unprotected { reason: String },
    /// The manager refuses, or says what we don't understand.
    Refused { status: u16, reason: String },
    /// The connection broke, twice.
    Broken(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotProtected => {
                write!(f, "{SOCKET_VARIABLE} is not set; start the program with `checksync run`")
            }
            Self::NoManager { socket, .. } => write!(f, "no manager listens on {}", socket.display()),
            Self::Unprotected { reason } => write!(f, "the app is not protected: {reason}"),
            Self::Refused { status, reason } => write!(f, "the manager answers {status}: {reason}"),
            Self::Broken(_) => write!(f, "the connection to the manager broke"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoManager { source, .. } | Self::Broken(source) => Some(source),
            Self::NotProtected | Self::Unprotected { .. } | Self::Refused { .. } => None,
        }
    }
}

/// A manager's socket, with connections that calls share one after the other.
#[derive(Debug, Clone)]
pub struct Manager {
    socket: PathBuf,
    patience: Option<Duration>,
    idle: Arc<Mutex<Vec<Connection>>>,
}

impl Manager {
    pub fn from_environment() -> Result<Self, Error> {
        std::env::var_os(SOCKET_VARIABLE).map(Self::new).ok_or(Error::NotProtected)
    }

    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), patience: None, idle: Arc::default() }
    }

    /// How long [`Manager::sync`] waits for protection where there is none. Without one it is refused once the app has
    /// been unprotected for a second, and at once when that is longer ago.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// See [`crate::sync`].
    pub fn sync(&self) -> Result<Checkpoint, Error> {
        let told = match self.patience {
            None => self.ask("POST", "/v1/sync"),
            Some(patience) => self.ask("POST", &format!("/v1/sync?patience={}us", patience.as_micros())),
        };
        told.and_then(|told| checkpoint(&told).ok_or_else(|| incomplete("a checkpoint")))
    }

    /// See [`crate::epoch`].
    pub fn epoch(&self) -> Result<Option<Checkpoint>, Error> {
        self.ask("GET", "/v1/epoch").map(|told| checkpoint(&told))
    }

    /// See [`crate::role`].
    pub fn role(&self) -> Result<Role, Error> {
        self.ask("GET", "/v1/role").and_then(|told| role(&told))
    }

    /// See [`crate::on_promote`].
    pub fn on_promote(&self, mut promoted: impl FnMut(&Role) + Send + 'static) -> Result<(), Error> {
        const AGAIN: Duration = Duration::from_secs(1);
        let mut term = self.role()?.term;
        let manager = self.clone();
        let watch = move || loop {
            // It waits in the manager, and is answered by the next one.
            let told = manager.ask("GET", &format!("/v1/role?after={term}")).and_then(|told| role(&told));
            match told {
                Ok(role) => {
                    term = role.term;
                    promoted(&role);
                }
                // A manager that has died may be followed by one that finds us.
                Err(_) => thread::sleep(AGAIN),
            }
        };
        thread::Builder::new().name("on-promote".to_owned()).spawn(watch).map(drop).map_err(Error::Broken)
    }

    fn ask(&self, method: &str, target: &str) -> Result<Value, Error> {
        let answer = self.exchange(method, target)?;
        let told = json::parse(&answer.body);
        let reason = |told: &Value| told.text("reason").map(str::to_owned);
        let reason = told.as_ref().and_then(reason).unwrap_or_else(|| "no reason".to_owned());
        match answer.status {
            200 => told.ok_or_else(|| incomplete("an object")),
            503 => Err(Error::Unprotected { reason }),
            status => Err(Error::Refused { status, reason }),
        }
    }

    /// Every question may be asked twice: so a connection that broke is no failure yet.
    fn exchange(&self, method: &str, target: &str) -> Result<Answer, Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(mut connection) = idle
            && let Ok(answer) = connection.ask(method, target)
        {
            self.keep(connection, &answer);
            return Ok(answer);
        }
        const TRIES: u32 = 2;
        let mut broken = None;
        for _ in 0..TRIES {
            let opened = Connection::open(&self.socket);
            let mut connection =
                opened.map_err(|source| Error::NoManager { socket: self.socket.clone(), source })?;
            match connection.ask(method, target) {
                Ok(answer) => {
                    self.keep(connection, &answer);
                    return Ok(answer);
                }
                Err(why) => broken = Some(why),
            }
        }
        Err(Error::Broken(broken.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())))
    }

    fn keep(&self, connection: Connection, answer: &Answer) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !answer.last && idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }
}

fn checkpoint(told: &Value) -> Option<Checkpoint> {
    Some(Checkpoint { term: told.number("term")?, epoch: told.number("epoch")? })
}

fn role(told: &Value) -> Result<Role, Error> {
    let text = |name| told.text(name).unwrap_or_default().to_owned();
    Ok(Role {
        app: text("app"),
        host: text("host"),
        role: text("role"),
        term: told.number("term").ok_or_else(|| incomplete("a term"))?,
        protected: told.truth("protected").unwrap_or(false),
        reason: told.text("reason").map(str::to_owned),
        restored: told.get("restored").and_then(checkpoint),
    })
}

fn incomplete(what: &str) -> Error {
    Error::Refused { status: 200, reason: format!("its answer has not {what}") }
}
