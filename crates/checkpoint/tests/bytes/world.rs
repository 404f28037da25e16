//! A guest, its tracker and its skeleton in one process: epochs go from one to the other, and after each all
//! memory is compared.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use checkpoint::memory::{Capture, Encoder, Ledger, Tracker, self_test, workers};
use checkpoint::skeleton::{Collector, Skeleton};
use image::frame::{Frame, FrameKind, FrameWriter};
use image::layout::{Backing, Mapping};
use image::state::{Clocks, State};
use image::{CheckpointId, Header, PAGE_BYTES, Range, Sync};
use sys::pagemap::{Query, Region, category, scan};
use sys::wait::Stop;
use tracee::{Frozen, Tree};

pub const PATIENCE: Duration = Duration::from_secs(20);
const EPOCH_BYTES_MAX: u64 = 4 << 30;

/// A child that does not outlive the test.
pub struct Guarded(pub Child);

impl Guarded {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().expect("the guest starts"))
    }

    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        // N.B. the leader of a traced process is not reaped before its tracer, this thread, has reaped the
        // other threads.
        while let Ok(waited) = sys::wait::wait(sys::wait::Whom::Any) {
            if waited.tid == self.pid() && matches!(waited.stop, Stop::Exited(_) | Stop::Killed(_)) {
                break;
            }
        }
    }
}

/// What `run` is told to do with an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Committed,
    /// Captured and lost on the way.
    Lost,
}

pub struct World {
    pub guest: Guarded,
    pub tree: Tree,
    pub tracker: Tracker,
    ledger: Ledger,
    encoder: Encoder,
    id: CheckpointId,
}

impl World {
    /// Starts following `guest`.
    pub fn new(guest: Guarded) -> Self {
        let kernel = self_test::run().expect("this kernel is fit");
        let mut tree = Tree::seize(guest.pid()).expect("the guest can be traced");
        tree.pump().expect("pump");
        let mut frozen = tree.freeze(PATIENCE).expect("the guest stops");
        let tracker =
            Tracker::new(&mut frozen, guest.pid(), 0, kernel, workers()).expect("the guest is tracked");
        drop(frozen);
        let ledger = Ledger::default();
        Self { guest, tree, tracker, ledger, encoder: Encoder::new(256 << 20), id: CheckpointId::new(1, 0) }
    }

    /// Takes epoch after epoch, asks `fate` about each, and compares everything after those that arrive.
    /// Between two of them the guest runs until `pause` returns.
    pub fn run(&mut self, epochs: u32, mut pause: impl FnMut(u32), mut fate: impl FnMut(u32) -> Fate) {
        let shell = Guarded::start(Command::new("sleep").arg("1000"));
        let mut shell_tree = Tree::seize(shell.pid()).expect("the shell can be traced");
        shell_tree.pump().expect("pump");
        let mut shell_frozen = Some(shell_tree.freeze(PATIENCE).expect("the shell stops"));
        let mut skeleton: Option<Skeleton<'_>> = None;
        for epoch in 0..epochs {
            pause(epoch);
            self.tree.pump().expect("pump");
            let mut frozen = self.tree.freeze(PATIENCE).expect("the guest stops");
            let (owed, layout_owed) = self.ledger.settle();
            let capture = self.tracker.capture(&mut frozen, owed, layout_owed).expect("capture");
            self.id = self.id.next();
            self.ledger.enter(self.id, capture.carried(), capture.layout.is_some());
            let frames = encode(&mut self.encoder, &capture, self.id);
            let skeleton = skeleton.get_or_insert_with(|| {
                let layout = capture.layout.as_ref().expect("the first epoch has a layout");
                let frozen = shell_frozen.take().expect("made once");
                Skeleton::hollow_out(frozen, shell.pid(), layout).expect("the shell is hollowed out")
            });
            if epoch == 0 || fate(epoch) == Fate::Committed {
                apply(skeleton, &frames);
                self.ledger.committed(self.id);
                compare(epoch, &frozen, self.guest.pid(), skeleton);
            } else {
                self.ledger.fail();
                self.encoder.forget();
            }
            self.tracker.recycle(capture);
            drop(frozen);
        }
    }
}

fn encode(encoder: &mut Encoder, capture: &Capture, id: CheckpointId) -> Vec<Frame> {
    let mut frames = FrameWriter::default();
    let header = Header { app: "guest".into(), id, sync: Sync::Full, frozen_at_ns: 0 };
    let mut out = vec![frames.cbor(FrameKind::Header, &header)];
    encoder.encode(capture, &mut frames, |frame| out.push(frame));
    let clocks = Clocks { realtime_ns: 0, monotonic_ns: 0, boottime_ns: 0 };
    let state = State { clocks, processes: vec![], spaces: vec![], files: vec![], pipes: vec![] };
    out.extend(frames.state(&state));
    out.push(frames.end());
    out.into_iter().map(|bytes| Frame::parse(bytes).expect("our own frame")).collect()
}

fn apply(skeleton: &mut Skeleton<'_>, frames: &[Frame]) {
    let mut collector = Collector::new(EPOCH_BYTES_MAX);
    let epoch =
        frames.iter().find_map(|frame| collector.accept(frame).expect("a good frame")).expect("an end");
    skeleton.prepare(&epoch).expect("the epoch can be applied");
    skeleton.apply(&epoch).expect("the epoch is applied");
}

/// Panics with the first pages that differ.
fn compare(epoch: u32, frozen: &Frozen<'_>, guest: i32, skeleton: &mut Skeleton<'_>) {
    let shell = skeleton.pid();
    let (ours, theirs) = (memory(guest), memory(shell));
    let mut wrong = BTreeMap::new();
    let mut pages = 0u64;
    for mapping in skeleton.mappings().to_vec().iter().filter(|mapping| has_content(mapping)) {
        for range in populated(guest, shell, mapping.range) {
            for page in (range.start..range.end).step_by(PAGE_BYTES as usize) {
                pages += 1;
                let (a, b) = (read(&ours, page), read(&theirs, page));
                if a != b {
                    wrong.insert(page, mapping.clone());
                }
            }
        }
    }
    assert!(pages > 0, "epoch {epoch}: nothing was compared");
    if let Some((page, mapping)) = wrong.first_key_value() {
        panic!(
            "epoch {epoch}: {} of {pages} pages differ, the first at {page:#x} in {mapping:?}; {} threads",
            wrong.len(),
            frozen.threads(guest).len(),
        );
    }
}

fn has_content(mapping: &Mapping) -> bool {
    !matches!(
        mapping.backing,
        Backing::Vdso | Backing::Vvar | Backing::VvarClock | Backing::Vsyscall | Backing::Droppable
    )
}

fn memory(pid: i32) -> File {
    File::open(format!("/proc/{pid}/mem")).expect("the memory can be read")
}

fn read(memory: &File, page: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; PAGE_BYTES as usize];
    memory.read_exact_at(&mut bytes, page).ok().map(|()| bytes)
}

/// Pages that are there in one of the two. N.B. what is in neither is equal: zero, or the same file's.
fn populated(a: i32, b: i32, range: Range) -> Vec<Range> {
    let mut set = image::RangeSet::default();
    for pid in [a, b] {
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).expect("the page table can be read");
        let there = category::PRESENT | category::SWAPPED;
        let query = Query { any: there, report: category::PRESENT, ..Query::default() };
        let mut room = [Region::default(); 512];
        scan(pagemap, range.start, range.end, query, &mut room, |r| set.insert(Range::new(r.start, r.end)))
            .expect("the page table can be scanned");
    }
    set.within(range)
}
