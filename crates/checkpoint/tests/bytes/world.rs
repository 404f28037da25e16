//! A guest, its tracker and its skeleton in one process: epochs go from one to the other, and after each that
//! arrives all memory is compared.

use std::process::Command;
use std::time::Duration;

use checkpoint::memory::{Capture, CaptureError, Encoder, Ledger, Tracker, self_test, workers};
use checkpoint::process::{CellNumbers, ProcessCache, save};
use checkpoint::skeleton::{Collector, Skeleton, Trees};
use image::frame::{Frame, FrameKind, FrameWriter};
use image::state::{Clocks, State};
use image::{CheckpointId, Header, RangeSet, Sync};
use testkit::wait::Deadline;
use tracee::{Frozen, Tree};

use crate::app::{App, Guarded};
use crate::compare::{compare_layouts, compare_memory};

pub const PATIENCE: Duration = Duration::from_secs(20);
const EPOCH_BYTES_MAX: u64 = 4 << 30;

/// What becomes of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrives, and with it all that were late.
    Committed,
    /// Sent, and on its way when the next one is captured.
    Late,
    /// Captured and lost on the way, with all that were late.
    Lost,
    /// Captured, but not even encoded: its pages go with the next one.
    Merged,
}

/// What one epoch carried.
#[derive(Debug, Clone, Copy, Default)]
pub struct Carried {
    pub pages: u64,
    /// How many pages were compared, if it arrived.
    pub compared: u64,
}

// N.B. fields are dropped in this order: what stops a process goes before the process.
pub struct World {
    skeleton: Option<Skeleton<'static>>,
    hollow: Option<Frozen<'static>>,
    state: State,
    shell: Guarded,
    tracker: Tracker,
    ledger: Ledger,
    encoder: Encoder,
    late: Vec<Vec<Frame>>,
    /// Of the last layout that arrived; they are installed when the skeleton becomes the app.
    guards: RangeSet,
    id: CheckpointId,
    pub tree: Tree,
    pub app: App,
}

impl World {
    /// Starts following `app`; the first epoch is still to come.
    pub fn new(app: App) -> Self {
        let kernel = self_test::run().expect("this kernel is fit");
        let mut tree = Tree::seize(app.pid()).expect("the guest can be traced");
        tree.pump().expect("pump");
        let mut frozen = tree.freeze(PATIENCE).expect("the guest stops");
        let tracker =
            Tracker::new(&mut frozen, app.pid(), 0, kernel, workers()).expect("the guest is tracked");
        drop(frozen);
        let shell = Guarded::start(Command::new("sleep").arg("1000"));
        let hollow = Tree::seize(shell.pid()).expect("the shell can be traced");
        let mut hollow = hollow.freeze_for_good(PATIENCE).expect("the shell stops");
        let state = some_state(&mut hollow, shell.pid(), app.pid());
        Self {
            skeleton: None,
            hollow: Some(hollow),
            state,
            shell,
            tracker,
            ledger: Ledger::default(),
            encoder: Encoder::new(8 << 20),
            late: Vec::new(),
            guards: RangeSet::default(),
            id: CheckpointId::new(1, 0),
            tree,
            app,
        }
    }

    /// Lets the guest run until `done`, answering what it has to say to its tracer.
    pub fn run_until<T>(&mut self, what: &str, mut done: impl FnMut(&mut App) -> Option<T>) -> T {
        let deadline = Deadline::after(PATIENCE);
        loop {
            self.tree.pump().expect("pump");
            if let Some(answer) = done(&mut self.app) {
                return answer;
            }
            assert!(!deadline.passed(), "waited {PATIENCE:?} in vain for {what}");
            std::thread::park_timeout(Duration::from_micros(200));
        }
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = Deadline::after(time);
        self.run_until("the time to pass", |_| end.passed().then_some(()));
    }

    /// Lets the guest do its next operation.
    pub fn step(&mut self) {
        self.app.let_go();
        self.run_until("the guest's next step", App::is_ready);
    }

    /// Lets the guest check that it noticed nothing.
    #[track_caller]
    pub fn finish(&mut self) {
        self.app.let_check();
        let verdict = self.run_until("the guest's verdict", App::line);
        assert_eq!(verdict, "pass", "what the guest found of its own memory");
    }

    /// Takes one epoch.
    #[track_caller]
    pub fn epoch(&mut self, fate: Fate) -> Carried {
        self.try_epoch(fate).expect("capture")
    }

    /// Takes one epoch, which may be refused.
    #[track_caller]
    pub fn try_epoch(&mut self, fate: Fate) -> Result<Carried, CaptureError> {
        self.tree.pump().expect("pump");
        let frozen = self.tree.freeze(PATIENCE).expect("the guest stops");
        let (owed, layout_owed) = self.ledger.settle();
        let capture = self.tracker.capture(&frozen, owed, layout_owed, |_| Ok(Vec::new()))?;
        self.id = self.id.next();
        let mut carried = Carried { pages: capture.pages(), compared: 0 };
        if self.skeleton.is_none() {
            let layout = capture.layout.as_ref().expect("the first epoch has a layout");
            let hollow = self.hollow.take().expect("made once");
            let made = Skeleton::hollow_out(hollow, self.shell.pid(), layout, Trees::default());
            self.skeleton = Some(made.expect("the shell is hollowed out"));
        }
        if fate == Fate::Merged {
            self.ledger.owe(capture.carried(), capture.layout.is_some());
        } else {
            self.ledger.enter(self.id, capture.carried(), capture.layout.is_some());
            self.late.push(encode(&mut self.encoder, &capture, self.id, &self.state));
        }
        self.tracker.recycle(capture);
        let skeleton = self.skeleton.as_mut().expect("made above");
        match fate {
            Fate::Committed => {
                for guards in self.late.drain(..).filter_map(|frames| apply(skeleton, &frames)) {
                    self.guards = guards;
                }
                self.ledger.committed(self.id);
                carried.compared = compare_memory(self.id.epoch.0, self.app.pid(), skeleton, &self.guards);
                compare_layouts(self.id.epoch.0, self.app.pid(), skeleton.pid());
            }
            Fate::Lost => {
                self.late.clear();
                self.ledger.fail();
                self.encoder.forget();
            }
            Fate::Late | Fate::Merged => (),
        }
        Ok(carried)
    }

    pub fn skeleton(&mut self) -> &mut Skeleton<'static> {
        self.skeleton.as_mut().expect("an epoch was taken")
    }
}

/// A state that passes for the app's: what is in it is for other tests to look at.
fn some_state(shell: &mut Frozen<'_>, pid: i32, app: i32) -> State {
    let (mut process, space) =
        save(shell, pid, &mut CellNumbers::new(), &mut ProcessCache::new()).expect("the shell is saved");
    process.pid = app;
    process.threads[0].tid = app;
    let clocks = Clocks { realtime_ns: 0, monotonic_ns: 0, boottime_ns: 0 };
    State {
        clocks,
        processes: vec![process],
        spaces: vec![space],
        files: vec![],
        pipes: vec![],
        strays: vec![],
    }
}

fn encode(encoder: &mut Encoder, capture: &Capture, id: CheckpointId, state: &State) -> Vec<Frame> {
    let mut frames = FrameWriter::default();
    let header = Header { app: "guest".into(), id, sync: Sync::Full, frozen_at_ns: 0 };
    let mut out = vec![frames.cbor(FrameKind::Header, &header)];
    encoder.encode(capture, &mut frames, |frame| out.push(frame));
    out.extend(frames.state(state));
    out.push(frames.end());
    out.into_iter().map(|bytes| Frame::parse(bytes).expect("our own frame")).collect()
}

/// Applies an epoch; returns the guards of its layout.
fn apply(skeleton: &mut Skeleton<'_>, frames: &[Frame]) -> Option<RangeSet> {
    let mut collector = Collector::new(EPOCH_BYTES_MAX, None);
    let epoch =
        frames.iter().find_map(|frame| collector.accept(frame).expect("a good frame")).expect("an end");
    skeleton.prepare(&epoch).expect("the epoch can be applied");
    skeleton.apply(&epoch).expect("the epoch is applied");
    epoch.layout.map(|layout| layout.guards.into_iter().collect())
}
