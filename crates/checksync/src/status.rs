//! What a manager says of itself: one JSON line to whoever connects to its socket.
//!
//! Sockets lie in the run directory: `$CHECKSYNC_RUN_DIR`, or `/run/checksync`, which only root may enter, or
//! `$XDG_RUNTIME_DIR/checksync` for whoever is not root. A
//! socket whose manager is dead refuses connections, and the next manager of its name replaces it.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;

use crate::manager::drill::{DrillReport, DrillStatus};
use crate::manager::stages::Stages;
use crate::manager::store::{StoreReport, StoreStatus};

/// Grows with every change of meaning, not with a new field.
pub const SCHEMA: u32 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ManagerReport {
    pub schema: u32,
    pub role: Role,
    pub host: String,
    pub pid: u32,
    /// Where a standby listens.
    pub address: Option<String>,
    pub fencing: String,
    pub apps: Vec<AppReport>,
    /// The takeovers that this manager has done, the newest last.
    #[serde(default)]
    pub takeovers: Vec<TakeoverReport>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Primary,
    Standby,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AppReport {
    pub app: String,
    /// `primary`, also after a takeover; `standby` for a copy.
    pub role: Role,
    /// In one word: protected, catching-up, unprotected; following, receiving, …, serving, ended.
    pub state: String,
    /// Would survive the death of its host; of a copy: could take over now.
    pub protected: bool,
    pub why_not: Option<String>,
    pub term: Option<u64>,
    /// The newest committed checkpoint; of a copy: what it holds.
    pub epoch: Option<u64>,
    /// How old the newest committed state is.
    pub lag_ms: Option<u64>,
    pub pause_us: Option<Pauses>,
    /// What the last epochs were made of: see `manager::stages`.
    #[serde(default)]
    pub stages_us: BTreeMap<String, Pauses>,
    /// The durable store, of a primary that has one.
    #[serde(default)]
    pub store: Option<StoreReport>,
    /// The app has them open for writing, and they are neither in a state directory nor shared.
    #[serde(default)]
    pub unreplicated_files: Vec<String>,
    /// The drills of a copy.
    #[serde(default)]
    pub drill: Option<DrillReport>,
    /// The app's process on this host.
    pub app_pid: Option<i32>,
    pub peer: Option<String>,
    /// Of a primary with several standbys: how many of them have to hold an epoch.
    #[serde(default)]
    pub commit_on: Option<String>,
    /// Of a primary: every standby that was named.
    #[serde(default)]
    pub standbys: Vec<StandbyReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyReport {
    /// None if it never was there.
    pub host: Option<String>,
    pub address: String,
    pub connected: bool,
    /// The newest epoch that it holds, and how old that is.
    pub term: Option<u64>,
    pub epoch: Option<u64>,
    pub lag_ms: Option<u64>,
    /// Epochs on their way to it.
    pub in_flight: usize,
    /// The register names it, and it could take over with what it holds.
    pub eligible: bool,
    pub why_not: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pauses {
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

/// A takeover, by the wall clock: nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeoverReport {
    pub app: String,
    pub term: u64,
    /// The checkpoint that was restored, and its freeze: nothing that was answered before it is missing.
    pub epoch: u64,
    pub frozen_at_ns: u64,
    /// The primary was given up.
    pub suspected_at_ns: u64,
    /// The right to serve was won.
    pub won_at_ns: u64,
    /// The app ran.
    pub serving_at_ns: u64,
    pub restore_us: u64,
}

/// The reports of one manager's apps, which its actors write and its socket reads.
#[derive(Debug, Clone)]
pub struct Board {
    head: Arc<ManagerReport>,
    apps: Arc<Mutex<BTreeMap<String, AppReport>>>,
    takeovers: Arc<Mutex<Vec<TakeoverReport>>>,
    /// Read when somebody asks.
    stages: Arc<Mutex<BTreeMap<String, Stages>>>,
    stores: Arc<Mutex<BTreeMap<String, StoreStatus>>>,
    drills: Arc<Mutex<BTreeMap<String, DrillStatus>>>,
}

impl Board {
    pub fn new(role: Role, host: &str, fencing: &str, address: Option<String>) -> Self {
        let (host, fencing) = (host.to_owned(), fencing.to_owned());
        let pid = std::process::id();
        let head = ManagerReport {
            schema: SCHEMA,
            role,
            host,
            pid,
            address,
            fencing,
            apps: Vec::new(),
            takeovers: Vec::new(),
        };
        let (apps, takeovers) = (Arc::default(), Arc::default());
        let (stages, stores, drills) = (Arc::default(), Arc::default(), Arc::default());
        Self { head: Arc::new(head), apps, takeovers, stages, stores, drills }
    }

    pub fn address(&self) -> Option<&str> {
        self.head.address.as_deref()
    }

    pub fn set(&self, report: AppReport) {
        self.lock().insert(report.app.clone(), report);
    }

    /// Where an app's times are to be had.
    pub fn set_stages(&self, app: &str, stages: Stages) {
        self.stages().insert(app.to_owned(), stages);
    }

    /// Who knows how far an app's store is.
    pub fn set_store(&self, app: &str, store: StoreStatus) {
        self.stores().insert(app.to_owned(), store);
    }

    pub fn remove_store(&self, app: &str) {
        self.stores().remove(app);
    }

    /// Who knows of an app's drills.
    pub fn set_drills(&self, app: &str, drills: DrillStatus) {
        self.drills().insert(app.to_owned(), drills);
    }

    pub fn remove(&self, app: &str) {
        self.stages().remove(app);
        self.drills().remove(app);
        self.stores().remove(app);
        self.lock().remove(app);
    }

    pub fn add_takeover(&self, takeover: TakeoverReport) {
        self.takeovers.lock().unwrap_or_else(PoisonError::into_inner).push(takeover);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, AppReport>> {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stages(&self) -> MutexGuard<'_, BTreeMap<String, Stages>> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stores(&self) -> MutexGuard<'_, BTreeMap<String, StoreStatus>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drills(&self) -> MutexGuard<'_, BTreeMap<String, DrillStatus>> {
        self.drills.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self) -> Vec<u8> {
        let mut apps: Vec<_> = self.lock().values().cloned().collect();
        for app in &mut apps {
            app.stages_us = self.stages().get(&app.app).map(Stages::quantiles).unwrap_or_default();
            app.drill =
                self.drills().get(&app.app).filter(|_| app.role == Role::Standby).map(DrillStatus::report);
            app.store = self.stores().get(&app.app).map(StoreStatus::report);
        }
        let takeovers = self.takeovers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let report = ManagerReport { apps, takeovers, ..(*self.head).clone() };
        let mut line = serde_json::to_vec(&report).expect("a report is plain data");
        line.push(b'\n');
        line
    }

    /// Answers on `NAME.sock` until the returned value is dropped. Call it holding the manager's lock: a
    /// socket that is there already is then a dead one's.
    pub fn serve(&self, name: &str) -> anyhow::Result<Socket> {
        let path = run_dir()?.join(format!("{name}.sock"));
        match std::fs::remove_file(&path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => {
                return Err(why).with_context(|| format!("cannot replace {}", path.display()));
            }
            _ => (),
        }
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot bind {}", path.display()))?;
        tokio::spawn(answer(listener, self.clone()));
        Ok(Socket { path })
    }
}

async fn answer(listener: UnixListener, board: Board) {
    const PAUSE: Duration = Duration::from_millis(100);
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let line = board.line();
                // Whoever hangs up early did not want to know.
                tokio::spawn(async move { stream.write_all(&line).await });
            }
            // Out of descriptors, most likely: it passes.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

impl Socket {
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }
}

/// Removes the socket when dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A socket that stays refuses connections, and is replaced by the next.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The run directory, made if it is missing.
pub fn run_dir() -> anyhow::Result<PathBuf> {
    let ours = || std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !rustix::process::geteuid().is_root());
    let dir = match (std::env::var_os("CHECKSYNC_RUN_DIR"), ours()) {
        (Some(dir), _) => dir.into(),
        (None, Some(ours)) => PathBuf::from(ours).join("checksync"),
        (None, None) => PathBuf::from("/run/checksync"),
    };
    make_private(&dir).context("no directory for this host's managers; name one in CHECKSYNC_RUN_DIR")?;
    Ok(dir)
}

pub fn make_private(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))
}

/// Asks every manager of the run directory. Dead ones are passed over.
pub fn ask_all() -> anyhow::Result<Vec<ManagerReport>> {
    ask_in(&run_dir()?)
}

/// As [`ask_all`], in another run directory.
pub fn ask_in(dir: &Path) -> anyhow::Result<Vec<ManagerReport>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "sock"));
    paths.sort();
    Ok(paths.iter().filter_map(|path| ask(path).ok()).collect())
}

fn ask(path: &Path) -> anyhow::Result<ManagerReport> {
    const PATIENCE: Duration = Duration::from_secs(2);
    const LEN_MAX: u64 = 1 << 20;
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.take(LEN_MAX).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

/// The pauses of the last thousand checkpoints.
#[derive(Debug, Default)]
pub struct PauseRing {
    micros: Vec<u64>,
    next: usize,
}

impl PauseRing {
    const LEN: usize = 1000;

    pub fn push(&mut self, pause: Duration) {
        let micros = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        if self.micros.len() < Self::LEN {
            self.micros.push(micros);
        } else {
            self.micros[self.next] = micros;
        }
        self.next = (self.next + 1) % Self::LEN;
    }

    pub fn pauses(&self) -> Option<Pauses> {
        let mut sorted = self.micros.clone();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        Some(Pauses { p50: sorted[last / 2], p99: sorted[last * 99 / 100], max: sorted[last] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_thousand_pauses_count() {
        let mut ring = PauseRing::default();
        assert_eq!(ring.pauses(), None);
        (0..1000).for_each(|_| ring.push(Duration::from_secs(1)));
        (0..1000).for_each(|micros| ring.push(Duration::from_micros(micros)));
        assert_eq!(ring.pauses(), Some(Pauses { p50: 499, p99: 989, max: 999 }));
    }
}
