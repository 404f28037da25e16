//! One freeze: registers, descriptors and memory of one instant, and the frames made of them after the thaw.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use checkpoint::Unsupported;
use checkpoint::descriptors::{self, Connections, ManagerSocket, Subject};
use checkpoint::memory::self_test::{Kernel, SelfTestError};
use checkpoint::memory::{Capture, CaptureError, Ledger, OpenObjects, Started, Tracker, Workers};
use checkpoint::process::{self, CellNumbers, ProcessCache};
use checkpoint::shipped::{Digests, Shipment};
use files::FilesError;
use image::descriptor::FileKind;
use image::frame::{FrameKind, FrameWriter};
use image::layout::{FileIdentity, Layout, Mapping, ObjectKey};
use image::process::{MemoryMap, Process};
use image::state::{Clocks, State};
use image::{CheckpointId, Header, Shipped, Sync};
use tracee::{Frozen, TraceError, Tree};

use crate::awake::{Awake, Cores};
use crate::clock::ClockShift;
use crate::command::{Barrier, Settings};
use crate::event::CaptureReport;
use crate::files::StateFiles;
use crate::told::Told;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Memory(CaptureError),
    #[error(transparent)]
    Process(process::SaveError),
    #[error(transparent)]
    Descriptors(descriptors::SaveError),
    #[error(transparent)]
    Kernel(#[from] SelfTestError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("what the app has said can't be told apart from what it will say: {0}")]
    Barrier(String),
    #[error("cannot {what}")]
    Host { what: &'static str, source: std::io::Error },
    #[error("the standby went away in the middle of a full sync")]
    PeerGone,
    #[error("process {pid} made process {child}, which still runs; protected again when it has ended")]
    Child { pid: i32, child: i32 },
    #[error("process {pid} has an ended child that it has not waited for; protected again once it has")]
    Zombie { pid: i32 },
    #[error("there is no full sync that this checkpoint could build on")]
    NoBase,
}

impl EngineError {
    /// Whether the app does something that can't be carried, rather than that something went wrong.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Unsupported(_) | Self::Child { .. } | Self::Zombie { .. } => true,
            Self::Files(why) => why.is_refusal(),
            Self::Trace(_)
            | Self::Memory(_)
            | Self::Process(_)
            | Self::Descriptors(_)
            | Self::Kernel(_)
            | Self::Barrier(_)
            | Self::Host { .. }
            | Self::PeerGone
            | Self::NoBase => false,
        }
    }
}

/// A refusal keeps its name through the layers.
impl From<CaptureError> for EngineError {
    fn from(why: CaptureError) -> Self {
        match why {
            CaptureError::Unsupported(unsupported) => Self::Unsupported(unsupported),
            CaptureError::Trace(why) => Self::Trace(why),
            why @ (CaptureError::Kernel { .. } | CaptureError::Maps(_) | CaptureError::OpenObjects(_)) => {
                Self::Memory(why)
            }
        }
    }
}

impl From<process::SaveError> for EngineError {
    fn from(why: process::SaveError) -> Self {
        match why {
            process::SaveError::Unsupported(unsupported) => Self::Unsupported(unsupported),
            process::SaveError::Trace(why) => Self::Trace(why),
            why @ (process::SaveError::Kernel { .. } | process::SaveError::Unreadable { .. }) => {
                Self::Process(why)
            }
        }
    }
}

impl From<descriptors::SaveError> for EngineError {
    fn from(why: descriptors::SaveError) -> Self {
        match why {
            descriptors::SaveError::Unsupported(unsupported) => Self::Unsupported(unsupported),
            why @ (descriptors::SaveError::Kernel { .. } | descriptors::SaveError::List { .. }) => {
                Self::Descriptors(why)
            }
        }
    }
}

/// Takes checkpoints of one process.
#[derive(Debug)]
pub struct Capturer {
    pid: i32,
    app: String,
    patience: Duration,
    kernel: Kernel,
    workers: Arc<Workers>,
    tracker: Option<Tracker>,
    ledger: Ledger,
    told: Told,
    files: StateFiles,
    /// What the next full sync brings, since somebody lacks it.
    lacking: Vec<FileIdentity>,
    digests: Digests,
    numbers: CellNumbers,
    process_cache: ProcessCache,
    /// Lent to the thread that reads the descriptors.
    descriptor_cache: Option<descriptors::Cache>,
    /// The last reading of them failed.
    descriptors_refused: bool,
    /// The pipes of the app's that are the manager's, by inode, and which stream each is.
    stdio: Vec<(u64, u8)>,
    cgroup_mount: PathBuf,
    connections: Connections,
    barrier: Option<Barrier>,
    manager: Option<Arc<dyn ManagerSocket>>,
    last: Option<CheckpointId>,
    /// The app made processes since it was last seen to have none.
    had_children: bool,
    cores: Arc<Cores>,
    shift: ClockShift,
}

/// What the reading of descriptors gives back.
type Described = (Result<descriptors::Saved, descriptors::SaveError>, descriptors::Cache);

/// What one freeze brought, before it is encoded.
struct Taken {
    state: State,
    memory: Capture,
    files: files::Taken,
    report: CaptureReport,
}

/// A full sync under way: it copies while the app runs.
pub struct FullSync {
    pub id: CheckpointId,
    frames: FrameWriter,
    /// Waits for the files that it maps: the standby is to have them first.
    layout: Option<Layout>,
    shipment: Shipment,
    files_left: bool,
    from: u64,
    round: u32,
    pages_in_round: u64,
    pub bytes: u64,
}

impl Capturer {
    pub fn new(pid: i32, settings: &Settings, stdio: Vec<(u64, u8)>) -> Result<Self, EngineError> {
        Ok(Self {
            pid,
            app: settings.app.clone(),
            patience: settings.freeze_patience,
            kernel: checkpoint::memory::self_test::run()?,
            workers: checkpoint::memory::workers(),
            tracker: None,
            ledger: Ledger::default(),
            told: Told::new(settings.shadow_bytes),
            files: StateFiles::new(settings.state_dirs.clone(), settings.shared_dirs.clone()),
            lacking: Vec::new(),
            digests: Digests::default(),
            numbers: CellNumbers::new(),
            process_cache: ProcessCache::new(),
            descriptor_cache: None,
            descriptors_refused: false,
            stdio,
            cgroup_mount: PathBuf::from("/sys/fs/cgroup"),
            connections: settings.connections,
            barrier: settings.barrier.clone(),
            manager: settings.manager.clone(),
            last: None,
            had_children: false,
            cores: Arc::new(Cores::new()),
            shift: ClockShift::of(pid),
        })
    }

    /// The app made a process.
    pub fn note_child(&mut self) {
        self.had_children = true;
    }

    /// The address space is another one: nothing of what was known holds.
    pub fn start_over(&mut self) {
        self.tracker = None;
        self.process_cache = ProcessCache::new();
        self.shift = ClockShift::of(self.pid);
        self.ledger.clear();
        self.told.forget();
        self.files.start_over();
        self.last = None;
    }

    pub fn committed(&mut self, id: CheckpointId) {
        self.told.tidy_up();
        self.ledger.committed(id);
        self.files.committed(id);
    }

    /// What the app writes to without being replicated, if that is news.
    pub fn uncovered(&mut self) -> Option<Vec<String>> {
        self.files.uncovered()
    }

    pub fn ship(&mut self, files: Vec<FileIdentity>) {
        self.lacking = files;
    }

    /// What was not committed goes into the next checkpoint.
    pub fn return_to_ledger(&mut self) {
        self.ledger.fail();
        self.told.forget();
        self.files.fail();
    }

    /// Stops the app for a moment to follow its memory from here on; the first frames go to `out`.
    pub fn begin_full_sync(
        &mut self,
        tree: &mut Tree,
        id: CheckpointId,
        out: &mut dyn FnMut(Bytes) -> bool,
    ) -> Result<FullSync, EngineError> {
        self.refuse_children(tree)?;
        self.ledger.clear();
        self.told.forget();
        self.last = None;
        let mut frozen = tree.freeze(self.patience)?;
        let mut tracker = match self.tracker.take() {
            Some(mut tracker) => {
                tracker.start_over();
                tracker
            }
            None => Tracker::new(&mut frozen, self.pid, 0, self.kernel, Arc::clone(&self.workers))?,
        };
        let layout = tracker.begin(&mut frozen)?;
        drop(frozen);
        // What it says goes out with the layout of the last freeze.
        let advised = tracker.refresh_advice();
        self.tracker = Some(tracker);
        advised?;
        let files_left = self.files.begin(self.pid)?;
        let mapped = layout.iter().flat_map(|layout| layout.mappings.iter().filter_map(Mapping::file));
        self.digests.begin(self.pid, mapped);
        let shipment = Shipment::of(self.pid, std::mem::take(&mut self.lacking));
        let mut frames = FrameWriter::default();
        let header = Header { app: self.app.clone(), id, sync: Sync::Full, frozen_at_ns: 0 };
        let alive = out(frames.cbor(FrameKind::Header, &header));
        let (from, round, pages_in_round, bytes) = (0, 0, 0, 0);
        let sync = FullSync { id, frames, layout, shipment, files_left, from, round, pages_in_round, bytes };
        if alive { Ok(sync) } else { Err(EngineError::PeerGone) }
    }

    /// What the layout needs to be there goes first.
    fn advance_to_layout(
        &mut self,
        sync: &mut FullSync,
        out: &mut dyn FnMut(Bytes) -> bool,
    ) -> Result<(), EngineError> {
        if let Some(shipped) = sync.shipment.step() {
            if let Shipped::Cannot { file, why } = &shipped {
                tracing::warn!("cannot ship {}: {why}", String::from_utf8_lossy(&file.path));
            }
            let frame = sync.frames.cbor(FrameKind::Shipped, &shipped);
            sync.bytes += frame.len() as u64;
            return if out(frame) { Ok(()) } else { Err(EngineError::PeerGone) };
        }
        let mut known = Vec::new();
        let done = self.digests.step(|file, digest| known.push(Shipped::Known { file, digest }));
        let frames: Vec<Bytes> =
            known.iter().map(|known| sync.frames.cbor(FrameKind::Shipped, known)).collect();
        if !frames.into_iter().all(&mut *out) {
            return Err(EngineError::PeerGone);
        }
        if !done {
            return Ok(());
        }
        if !sync.files_left {
            return if sync.send_layout(out) { Ok(()) } else { Err(EngineError::PeerGone) };
        }
        let mut alive = true;
        sync.files_left = self.files.read_on(&mut sync.frames, &mut |frame| {
            sync.bytes += frame.len() as u64;
            alive &= alive && out(frame);
        })?;
        alive &= sync.files_left || sync.send_layout(out);
        if alive { Ok(()) } else { Err(EngineError::PeerGone) }
    }

    /// Copies the next piece while the app runs; true once it pays no longer.
    pub fn advance_full_sync(
        &mut self,
        sync: &mut FullSync,
        out: &mut dyn FnMut(Bytes) -> bool,
    ) -> Result<bool, EngineError> {
        const WINDOW_BYTES: u64 = 16 << 20;
        const ROUNDS_MAX: u32 = 5;
        const WORTH_ANOTHER_ROUND_PAGES: u64 = 1000;
        if sync.layout.is_some() {
            return self.advance_to_layout(sync, out).map(|()| false);
        }
        let tracker = self.tracker.as_mut().ok_or(EngineError::NoBase)?;
        let copied = tracker.precopy(sync.from, WINDOW_BYTES)?;
        let capture = Capture::of_chunks(copied.chunks);
        sync.pages_in_round += capture.pages();
        let mut alive = true;
        self.told.memory(&capture, &mut sync.frames, |frame| {
            sync.bytes += frame.len() as u64;
            alive &= alive && out(frame);
        });
        tracker.recycle(capture);
        if !alive {
            return Err(EngineError::PeerGone);
        }
        match copied.next {
            Some(next) => sync.from = next,
            None => {
                let enough = sync.round >= ROUNDS_MAX || sync.pages_in_round < WORTH_ANOTHER_ROUND_PAGES;
                if enough {
                    return Ok(true);
                }
                (sync.from, sync.pages_in_round) = (0, 0);
                sync.round += 1;
            }
        }
        Ok(false)
    }

    /// The freeze at the end of a full sync.
    pub fn finish_full_sync(
        &mut self,
        tree: &mut Tree,
        mut sync: FullSync,
        out: &mut dyn FnMut(Bytes) -> bool,
    ) -> Result<CaptureReport, EngineError> {
        self.files.look_ahead()?;
        let taken = self.take(tree, sync.id)?;
        let mut alive = true;
        let report = self.encode(sync.id, taken, &mut sync.frames, &mut |frame| alive &= alive && out(frame));
        alive &= alive && out(sync.frames.end());
        if !alive {
            return Err(EngineError::PeerGone);
        }
        self.last = Some(sync.id);
        Ok(report)
    }

    /// Captures what changed since `parent`.
    pub fn capture(
        &mut self,
        tree: &mut Tree,
        id: CheckpointId,
        parent: CheckpointId,
    ) -> Result<(Vec<Bytes>, CaptureReport), EngineError> {
        self.follow(parent)?;
        self.files.look_ahead()?;
        let taken = self.take(tree, id)?;
        Ok(self.epoch(id, parent, taken))
    }

    /// As [`Self::capture`], but the app stands still until `stand_still`, which gets the epoch, has returned. With
    /// `barrier` its connections travel along. On failure the app runs again.
    pub fn capture_last(
        &mut self,
        tree: &mut Tree,
        id: CheckpointId,
        parent: CheckpointId,
        barrier: Option<Barrier>,
        stand_still: &mut dyn FnMut(Vec<Bytes>, CaptureReport),
    ) -> Result<(), EngineError> {
        self.follow(parent)?;
        self.files.look_ahead()?;
        let usual = (self.connections, self.barrier.clone());
        if barrier.is_some() {
            (self.connections, self.barrier) = (Connections::Keep, barrier);
            // What it knows of the sockets is too little.
            self.descriptor_cache.iter_mut().for_each(descriptors::Cache::forget_sockets);
        }
        let stood = self.take_and(tree, id, |capturer, frozen, taken, awake| {
            drop(awake);
            let (frames, report) = capturer.epoch(id, parent, taken);
            stand_still(frames, report);
            frozen.thaw();
        });
        if self.connections != usual.0 {
            self.descriptor_cache.iter_mut().for_each(descriptors::Cache::forget_sockets);
        }
        (self.connections, self.barrier) = usual;
        stood
    }

    fn follow(&mut self, parent: CheckpointId) -> Result<(), EngineError> {
        let last = self.last.ok_or(EngineError::NoBase)?;
        if parent != last {
            self.return_to_ledger();
        }
        Ok(())
    }

    /// All frames of what was taken.
    fn epoch(&mut self, id: CheckpointId, parent: CheckpointId, taken: Taken) -> (Vec<Bytes>, CaptureReport) {
        self.ledger.enter(id, taken.memory.carried(), taken.memory.layout.is_some());
        self.last = Some(id);
        let mut frames = FrameWriter::default();
        let frozen_at_ns = taken.report.frozen_at_ns;
        let header = Header { app: self.app.clone(), id, sync: Sync::Since(parent), frozen_at_ns };
        let mut out = vec![frames.cbor(FrameKind::Header, &header)];
        let report = self.encode(id, taken, &mut frames, &mut |frame| out.push(frame));
        out.push(frames.end());
        (out, report)
    }

    /// After the thaw: frames of everything that was taken.
    fn encode(
        &mut self,
        id: CheckpointId,
        taken: Taken,
        frames: &mut FrameWriter,
        out: &mut dyn FnMut(Bytes),
    ) -> CaptureReport {
        let Taken { state, memory, mut files, mut report } = taken;
        let began = Instant::now();
        let mut bytes = 0;
        let mut count = |frame: Bytes| {
            bytes += frame.len() as u64;
            out(frame);
        };
        // Before the layout, which may map them.
        let (changes, content) = (std::mem::take(&mut files.changes), std::mem::take(&mut files.content));
        files::frames(changes, &content, frames, &mut count);
        self.files.enter(id, files);
        self.told.memory(&memory, frames, &mut count);
        self.told.state(id, state, frames).into_iter().for_each(count);
        report.pages = memory.pages();
        let new_layout = memory.layout.is_some();
        if let Some(tracker) = &mut self.tracker {
            tracker.recycle(memory);
            if new_layout && let Err(why) = tracker.refresh_advice() {
                tracing::debug!("cannot read the advice of the mappings: {why}");
            }
        }
        report.encode = began.elapsed();
        report.bytes = bytes;
        report
    }

    /// The freeze itself. On success and on failure the app runs again afterwards.
    fn take(&mut self, tree: &mut Tree, id: CheckpointId) -> Result<Taken, EngineError> {
        self.take_and(tree, id, |_, frozen, mut taken, _awake| {
            let before_thaw = Instant::now();
            tracing::trace!(target: "epochs", %id, "epoch taken");
            taken.report.pause = frozen.thaw();
            tracing::trace!(target: "epochs", %id, "epoch thawed");
            taken.report.thaw = before_thaw.elapsed();
            taken
        })
    }

    /// The app runs again when `then` has thawed it, or the reading has failed.
    fn take_and<T>(
        &mut self,
        tree: &mut Tree,
        id: CheckpointId,
        then: impl FnOnce(&mut Self, Frozen<'_>, Taken, Awake<'_>) -> T,
    ) -> Result<T, EngineError> {
        self.refuse_children(tree)?;
        let mut tracker = self.tracker.take().ok_or(EngineError::NoBase)?;
        let cores = Arc::clone(&self.cores);
        let awake = cores.keep_awake();
        let taken = self.take_with(tree, &mut tracker, id);
        self.tracker = Some(tracker);
        let (frozen, taken) = taken?;
        Ok(then(self, frozen, taken, awake))
    }

    fn take_with<'tree>(
        &mut self,
        tree: &'tree mut Tree,
        tracker: &mut Tracker,
        id: CheckpointId,
    ) -> Result<(Frozen<'tree>, Taken), EngineError> {
        let mut frozen = tree.freeze(self.patience)?;
        if let Some(Barrier(barrier)) = &self.barrier {
            barrier(id).map_err(EngineError::Barrier)?;
        }
        let clocks = self.shift.now();
        let stop = frozen.stop_time();
        let began = Instant::now();
        // Other threads read the descriptors meanwhile: nothing about them needs the tracer.
        let mut descriptors = Some(self.start_descriptors(&frozen, tracker)?);
        let process = process::save(&mut frozen, self.pid, &mut self.numbers, &mut self.process_cache);
        let state_time = began.elapsed();
        // What was refused is likely to be refused again: then the memory is left alone.
        let mut saved = match descriptors.take_if(|_| self.descriptors_refused) {
            Some(started) => Some(Ok(self.finish_descriptors(started)?)),
            None => None,
        };
        let memory = process.map_err(EngineError::from).and_then(|process| {
            let (owed, layout_owed) = self.ledger.settle();
            let open_objects = |frozen: &Frozen<'_>| {
                let unknown = CaptureError::OpenObjects(self.pid);
                if let Some(started) = descriptors.take() {
                    saved = Some(self.finish_descriptors(started));
                }
                let Some(saved) = &saved else { return Err(unknown) };
                saved.as_ref().map_or(Err(unknown), |saved| open_objects(frozen, self.pid, saved))
            };
            match tracker.capture(&frozen, owed.clone(), layout_owed, open_objects) {
                // Nothing is owed to anybody by an app that is dead.
                Ok(memory) => frozen.assert_alive(self.pid).map(|()| (process, memory)).map_err(Into::into),
                Err(why) => {
                    self.ledger.owe(owed, layout_owed);
                    Err(why.into())
                }
            }
        });
        // N.B. nobody may look at them any more once the app runs again.
        if let Some(descriptors) = descriptors {
            drop(self.finish_descriptors(descriptors));
        }
        let ((process, memory), saved) = match (memory, saved) {
            (_, Some(Err(why))) => return Err(why.into()),
            (Err(why), _) => return Err(why),
            (Ok(memory), Some(Ok(saved))) => (memory, saved),
            (Ok(_), None) => unreachable!("a capture asks for the open objects"),
        };
        let looked = Instant::now();
        let files = match self.files.take(tracker, &saved) {
            Ok(files) => files,
            Err(why) => {
                self.ledger.owe(memory.carried(), memory.layout.is_some());
                return Err(why.into());
            }
        };
        let looked = looked.elapsed();
        let state = state_of(process, saved, clocks);
        let threads = frozen.threads(self.pid).len();
        let times = memory.times;
        let report = CaptureReport {
            stop,
            scan: times.maps + times.scan,
            copy: times.copy,
            state: state_time,
            files: looked,
            threads,
            frozen_at_ns: clocks.realtime_ns,
            ..CaptureReport::default()
        };
        Ok((frozen, Taken { state, memory, files, report }))
    }

    fn start_descriptors(
        &mut self,
        frozen: &Frozen<'_>,
        tracker: &Tracker,
    ) -> Result<Started<Described>, EngineError> {
        let host = |what| move |source| EngineError::Host { what, source };
        let mut pids = HashMap::new();
        for tid in frozen.threads(self.pid) {
            pids.insert(tid, self.numbers.of(frozen, tid)?);
        }
        let pidfd = frozen.pidfd(self.pid).try_clone_to_owned().map_err(host("duplicate a pidfd"))?;
        let mut cache = match self.descriptor_cache.take() {
            Some(cache) => cache,
            None => {
                let cache = descriptors::Cache::new().map_err(host("prepare for descriptors"))?;
                cache.helped_by(Arc::clone(&self.workers))
            }
        };
        let (pid, stdio, connections) = (self.pid, self.stdio.clone(), self.connections);
        let manager = self.manager.clone();
        let (cgroup_mount, objects) = (self.cgroup_mount.clone(), tracker.object_keys());
        Ok(self.workers.start(move || {
            let subject = Subject {
                pid,
                pidfd: pidfd.as_fd(),
                cell_pid: pids.get(&pid).copied().unwrap_or(pid),
                pids: &pids,
                stdio: &stdio,
                cgroup_mount: &cgroup_mount,
                objects: &objects,
                connections,
                manager: manager.as_deref(),
            };
            let saved = descriptors::save(&subject, &mut cache);
            (saved, cache)
        }))
    }

    fn finish_descriptors(
        &mut self,
        started: Started<Described>,
    ) -> Result<descriptors::Saved, descriptors::SaveError> {
        let (saved, cache) = started.join();
        self.descriptor_cache = Some(cache);
        self.descriptors_refused = saved.is_err();
        saved
    }

    /// N.B. an ended child that was not waited for is no tracee any more, but still a part of the state.
    fn refuse_children(&mut self, tree: &Tree) -> Result<(), EngineError> {
        if let Some(child) = tree.pids().find(|&pid| pid != self.pid) {
            return Err(EngineError::Child { pid: self.pid, child });
        }
        if self.had_children && has_children(self.pid) {
            return Err(EngineError::Zombie { pid: self.pid });
        }
        self.had_children = false;
        Ok(())
    }

    /// Memory that the app has resident, for showing how far a full sync is.
    pub fn resident_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.pid)).unwrap_or_default();
        let pages = text.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
        pages.unwrap_or(0) * image::PAGE_BYTES
    }
}

impl FullSync {
    fn send_layout(&mut self, out: &mut dyn FnMut(Bytes) -> bool) -> bool {
        let frames = self.layout.take().map(|layout| self.frames.layout(&layout));
        frames.into_iter().flatten().all(out)
    }
}

/// Memfds that are open and not mapped travel with the mapped ones.
fn open_objects(
    frozen: &Frozen<'_>,
    pid: i32,
    saved: &descriptors::Saved,
) -> Result<OpenObjects, CaptureError> {
    let number_of = |key: ObjectKey| {
        saved.descriptors.iter().find(|descriptor| {
            let kind = saved.files.get(descriptor.file as usize).map(|file| &file.kind);
            matches!(kind, Some(FileKind::Object { key: found, .. }) if *found == key)
        })
    };
    let open = saved.objects.iter().filter_map(|&key| Some((key, number_of(key)?.number)));
    open.map(|(key, number)| Ok((key, frozen.steal(pid, number)?))).collect()
}

fn state_of((mut process, space): (Process, MemoryMap), saved: descriptors::Saved, clocks: Clocks) -> State {
    process.descriptors = saved.descriptors;
    State {
        clocks,
        processes: vec![process],
        spaces: vec![space],
        files: saved.files,
        pipes: saved.pipes,
        strays: saved.strays,
    }
}

fn has_children(pid: i32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .map(|task| task.path().join("children"))
        .any(|path| std::fs::metadata(&path).is_ok() && !std::fs::read(path).unwrap_or_default().is_empty())
}
