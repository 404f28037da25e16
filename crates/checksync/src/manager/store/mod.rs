//! The durable store's place beside a primary: committed epochs go to it in the background.
//!
//! The actor hands frames over and never waits: what the store has not taken yet lies in a file, epochs on top of each
//! other, so that a slow store costs disk space up to the app's size and newer checkpoints at larger distances, and a
//! store that is gone costs the checkpoints of that time. Only a full sync's frames are waited for, and not for long:
//! it is read faster than a disk takes it.
//!
//! Two threads: [`gather`] puts epochs together, [`upload`] has the store take them.
//!
//! With `--commit-on store` none of this holds, and [`seat`] has the store's place among the standbys.

mod commit;
mod contents;
mod gather;
mod pulse;
mod seat;
mod upload;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use engine::FrameSink;
use image::CheckpointId;
use serde::{Deserialize, Serialize};
use store::{Life, Location, Retention, Store};

pub use seat::{StoreNews, StoreSeat, is_store, member};

use crate::mpsc;

/// Frames that nobody has looked at yet. Beyond it the chain is given up until the next full sync: memory is the app's.
const QUEUE_BYTES_MAX: u64 = 256 << 20;
/// How long one full sync may be held up in all.
const FULL_PATIENCE: Duration = Duration::from_secs(5);
const FULL_POLL: Duration = Duration::from_millis(2);

#[derive(Debug, Clone)]
pub struct StoreSettings {
    pub location: Location,
    /// From one upload to the next.
    pub interval: Duration,
    pub keep: Retention,
    /// Where epochs wait.
    pub spool: PathBuf,
    /// Who named it.
    pub named_by: NamedBy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamedBy {
    /// Whoever started this manager.
    #[default]
    Here,
    /// The app's primary, when this was a standby.
    Primary,
}

/// How far the store is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StoreReport {
    pub location: String,
    /// In one word: waiting (for a full checkpoint), following, behind (the store does not take what it is given),
    /// stopped; of a copy: idle (until a takeover).
    pub state: String,
    #[serde(default)]
    pub named_by: NamedBy,
    pub why_not: Option<String>,
    /// The newest checkpoint that can be restored from there, of this run of the manager.
    pub term: Option<u64>,
    pub epoch: Option<u64>,
    /// How old its state is.
    pub behind_ms: Option<u64>,
    pub checkpoints: u64,
    /// What it has been sent, and what the epochs in it had in pages.
    pub bytes_sent: u64,
    pub bytes_changed: u64,
}

#[derive(Debug)]
enum Fed {
    Full,
    Frame(Bytes),
    /// The full sync is what the standby has now.
    FullCommitted,
    Epoch(Vec<Bytes>),
    /// What came before can't be gone on with.
    Lost(&'static str),
}

/// What both threads and the actor know.
#[derive(Debug)]
struct Shared {
    queued_bytes: AtomicU64,
    /// How often what came before could not be gone on with.
    losses: AtomicU64,
    /// The app, whose files are read through it; zero before there is one.
    pid: AtomicI32,
    report: Mutex<(StoreReport, Option<u64>)>,
}

impl Shared {
    fn new(report: StoreReport) -> Self {
        Self {
            queued_bytes: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            pid: AtomicI32::new(0),
            report: Mutex::new((report, None)),
        }
    }

    fn tell(&self, change: impl FnOnce(&mut StoreReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner).0);
    }
}

/// What a reader of `status` asks.
#[derive(Debug, Clone)]
pub struct StoreStatus(Arc<Shared>);

impl StoreStatus {
    /// Of one that nothing goes to at present.
    pub fn at_rest(location: String, named_by: NamedBy, why_not: Option<String>) -> Self {
        let state = if why_not.is_some() { "stopped" } else { "idle" }.to_owned();
        Self(Arc::new(Shared::new(StoreReport {
            location,
            state,
            named_by,
            why_not,
            ..StoreReport::default()
        })))
    }

    pub fn report(&self) -> StoreReport {
        let (mut report, frozen_at_ns) = self.0.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        report.behind_ms = frozen_at_ns.map(|at| super::wall_clock_ns().saturating_sub(at) / 1_000_000);
        report
    }
}

/// The actor's half.
#[derive(Debug)]
pub struct StoreFeed {
    queue: mpsc::Sender<Fed>,
    shared: Arc<Shared>,
    /// Captured and not committed yet.
    captured: VecDeque<(CheckpointId, Vec<Bytes>)>,
    full: Option<CheckpointId>,
    losses_seen: u64,
}

impl StoreFeed {
    /// Opens the store; what is wrong with its name or its folder is found here, and a store that does not answer later.
    pub fn start(settings: &StoreSettings, app: &str, life: Life) -> anyhow::Result<Self> {
        let (store, shared) = prepare(settings)?;
        let (queue, fed) = mpsc::channel();
        let uploads = upload::start(store, app.to_owned(), life, settings, Arc::clone(&shared))?;
        let gatherer = gather::Gatherer::new(fed, uploads, settings, Arc::clone(&shared));
        let spawned = thread::Builder::new().name("store-gather".to_owned()).spawn(move || gatherer.run());
        spawned.context("cannot start a thread for the store")?;
        Ok(Self { queue, shared, captured: VecDeque::new(), full: None, losses_seen: 0 })
    }

    pub fn status(&self) -> StoreStatus {
        StoreStatus(Arc::clone(&self.shared))
    }

    /// The app's process.
    pub fn app_is(&self, pid: i32) {
        self.shared.pid.store(pid, Ordering::Release);
    }

    /// A full sync begins: its frames go to `sink`, and to the store.
    pub fn full(&mut self, id: CheckpointId, mut sink: FrameSink) -> FrameSink {
        self.captured.clear();
        self.full = Some(id);
        self.send(Fed::Full);
        let (queue, shared) = (self.queue.clone(), Arc::clone(&self.shared));
        let mut patience = FULL_PATIENCE;
        Box::new(move |frame| {
            let asked_at = Instant::now();
            while shared.queued_bytes.load(Ordering::Acquire) > QUEUE_BYTES_MAX
                && asked_at.elapsed() < patience
            {
                thread::sleep(FULL_POLL);
            }
            patience = patience.saturating_sub(asked_at.elapsed());
            give(&queue, &shared, Fed::Frame(frame.clone()));
            sink(frame)
        })
    }

    /// Whether it can't go on from what it was given, since the last question.
    pub fn has_lost(&mut self) -> bool {
        let losses = self.shared.losses.load(Ordering::Acquire);
        std::mem::replace(&mut self.losses_seen, losses) < losses
    }

    pub fn captured(&mut self, id: CheckpointId, frames: &[Bytes]) {
        if !frames.is_empty() {
            self.captured.push_back((id, frames.to_vec()));
        }
    }

    pub fn committed(&mut self, id: CheckpointId) {
        if self.full.take_if(|full| *full <= id).is_some() {
            self.send(Fed::FullCommitted);
        }
        while let Some((_, frames)) = self.captured.pop_front_if(|(captured, _)| *captured <= id) {
            self.send(Fed::Epoch(frames));
        }
    }

    /// What was not committed comes again, in later epochs.
    pub fn given_up(&mut self) {
        self.captured.clear();
    }

    fn send(&self, fed: Fed) {
        give(&self.queue, &self.shared, fed);
    }
}

fn prepare(settings: &StoreSettings) -> anyhow::Result<(Store, Arc<Shared>)> {
    let store = Store::open(&settings.location)?;
    // Epochs wait here: better to know now.
    drop(store::Gathered::full(&settings.spool).with_context(|| {
        format!("epochs cannot wait for the store in {}; name another --state", settings.spool.display())
    })?);
    let report = StoreReport {
        location: settings.location.to_string(),
        state: "waiting".to_owned(),
        named_by: settings.named_by,
        ..StoreReport::default()
    };
    Ok((store, Arc::new(Shared::new(report))))
}

/// Never waits. What there is no room for is lost to the store, and said to be.
fn give(queue: &mpsc::Sender<Fed>, shared: &Shared, fed: Fed) {
    let bytes = bytes_of(&fed);
    let queued = shared.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
    let fed = if queued > QUEUE_BYTES_MAX && bytes > 0 {
        shared.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
        Fed::Lost("epochs came faster than they could be written down")
    } else {
        fed
    };
    // A gatherer that has ended has said why.
    let _ = queue.send(fed);
}

fn bytes_of(fed: &Fed) -> u64 {
    match fed {
        Fed::Frame(frame) => frame.len() as u64,
        Fed::Epoch(frames) => frames.iter().map(|frame| frame.len() as u64).sum(),
        Fed::Full | Fed::FullCommitted | Fed::Lost(_) => 0,
    }
}
