//! Following the memory of one address space.
//!
//! Every mapping that can be is registered with an asynchronous userfaultfd; a scan (`PAGEMAP_SCAN`) finds
//! the pages that were written since the last one and protects them again in the same step. What makes it
//! right, each found by a test that compared all of memory:
//!
//! 1. A range that is not registered is new (mapped, moved or grown): what the standby has there is dropped,
//!    and everything populated is sent. **After registering, the protection is taken off the range**: an
//!    mremap that merges a moved mapping into a registered neighbour resets the registration of the whole
//!    but leaves protection bits behind, and a page with such a bit is never reported again.
//! 2. A page that was dropped (`MADV_DONTNEED`) is simply not there. The kernel's count of anonymous pages
//!    against our count of what the standby has tells whether to look for any. The look never asks for
//!    "written": some kernels do not report it for pages that are not there.
//! 3. A private mapping of a file keeps its protection marker over `MADV_DONTNEED`: the page is the file's
//!    again, and nobody says so. So the private pages of writable file mappings (a program's `.data`) are all
//!    read and compared in every epoch; there are a few hundred at most. To a scan the marker looks like a page
//!    that was swapped out, which is the app's own: the page table's own words tell (`own_pages`).
//! 4. Empty pages are never protected: in a sparse reservation that would allocate page tables by the
//!    gigabyte. Hence the general form of the scan, for pages that are present or swapped.
//!
//! `layout.rs` follows the mappings, `changes.rs` finds what changed, `copying.rs` copies it.
//!
//! The ledger is outside; a capture that fails half-way keeps what it had found in `pending`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::layout::{Advice, Backing, Layout, Mapping, ObjectKey, SharedObject};
use image::{PAGE_BYTES, PageTarget, Range, RangeSet};
use sys::userfault::Userfault;
use tracee::{Frozen, TraceError};

use crate::memory::classify::Class;
use crate::memory::ledger::{self, Pages};
use crate::memory::maps;
use crate::memory::objects::Objects;
use crate::memory::pages::PageSet;
use crate::memory::self_test::Kernel;
use crate::memory::sign::{Changes, LayoutSign};
use crate::memory::staging::{Buffers, Chunk};
use crate::memory::workers::Workers;
use crate::unsupported::Unsupported;

mod changes;
mod copying;
mod layout;

use self::changes::Data;
use self::layout::{advice, kind_of_open, object_of};

const HIGHEST: u64 = 0x7fff_ffff_f000;
/// Above 512 regions of room a scan costs half a microsecond more.
const ROOM: usize = 512;
/// After how many captures the mappings are read though nothing tells that they changed.
const BELIEVED_MAX: u32 = 15;

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("cannot {what} of pid {pid}")]
    Kernel { what: &'static str, pid: i32, source: io::Error },
    #[error(transparent)]
    Maps(#[from] maps::BadLine),
    #[error("what shared objects pid {0} has open is not known")]
    OpenObjects(i32),
}

/// Shared objects, with a descriptor of each.
pub type OpenObjects = Vec<(ObjectKey, OwnedFd)>;

/// What one freeze found of the memory.
#[derive(Debug, Default)]
pub struct Capture {
    /// The mappings, if they are not what they were.
    pub layout: Option<Layout>,
    /// Pages that the standby has and the app no longer.
    pub gone: Vec<(PageTarget, Range)>,
    /// Pages of which the standby may have another version than the last that was sent, or none: they went with
    /// their mapping or object, or an epoch failed that carried them.
    pub(in crate::memory) unmapped: Vec<(PageTarget, Range)>,
    pub chunks: Vec<Chunk>,
    pub times: ScanTimes,
}

/// Where the time of a capture went.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScanTimes {
    pub maps: Duration,
    pub scan: Duration,
    pub copy: Duration,
}

impl Capture {
    /// Pages that were copied while the app ran.
    pub fn of_chunks(chunks: Vec<Chunk>) -> Self {
        Self { chunks, ..Self::default() }
    }

    pub fn pages(&self) -> u64 {
        self.chunks.iter().flat_map(|chunk| &chunk.ranges).map(|range| range.pages()).sum()
    }

    /// For the ledger: all that this capture carries.
    pub fn carried(&self) -> Pages {
        let mut pages = Pages::new();
        let dropped = self.gone.iter().chain(&self.unmapped);
        dropped.for_each(|&(target, range)| ledger::add(&mut pages, target, range));
        for chunk in &self.chunks {
            chunk.ranges.iter().for_each(|&range| ledger::add(&mut pages, chunk.target, range));
        }
        pages
    }
}

/// One round of copying while the app runs.
#[derive(Debug, Default)]
pub struct Precopied {
    pub chunks: Vec<Chunk>,
    /// Where the next call goes on; `None` at the end of the round.
    pub next: Option<u64>,
}

#[derive(Debug, Clone)]
struct Tracked {
    mapping: Mapping,
    registered: bool,
}

/// Pages to copy or to drop, by whose they are.
#[derive(Debug, Default)]
struct Found {
    copy: RangeSet,
    gone: RangeSet,
    objects: BTreeMap<ObjectKey, RangeSet>,
    guards: RangeSet,
    object_gone: Vec<(PageTarget, Range)>,
}

/// Follows one address space from the first freeze to its end.
#[derive(Debug)]
pub struct Tracker {
    pid: i32,
    /// As the cell counts.
    cell_pid: i32,
    space: u32,
    kernel: Kernel,
    fault: Userfault,
    pagemap: Arc<File>,
    memory: Arc<File>,
    maps: File,
    statm: File,
    sign: LayoutSign,
    /// When `text` was read and all of it was registered, and how many captures have believed it since.
    read_at: Option<(Changes, u32)>,
    text: Vec<u8>,
    classes: HashMap<Vec<u8>, Class>,
    tracked: Vec<Tracked>,
    /// The private pages that the standby has, or is about to.
    present: PageSet,
    /// The private pages of writable file mappings as they were last sent.
    data: BTreeMap<u64, Box<[u8]>>,
    objects: Objects,
    objects_sent: Vec<SharedObject>,
    open_objects: HashSet<ObjectKey>,
    /// Guard regions (`MADV_GUARD_INSTALL`), as they were last sent.
    guards: RangeSet,
    /// Where a guard may be whose mark says nothing: registered or scanned since the last capture.
    unsearched: RangeSet,
    advice: BTreeMap<u64, (Range, Advice, Option<String>)>,
    /// Found, but not handed out since a later step failed.
    pending: Pages,
    layout_pending: bool,
    unmapped: RangeSet,
    workers: Arc<Workers>,
    buffers: Buffers,
}

impl Tracker {
    /// Takes hold of a frozen process. Nothing is tracked yet: the first capture or pre-copy sends all.
    pub fn new(
        frozen: &mut Frozen<'_>,
        pid: i32,
        space: u32,
        kernel: Kernel,
        workers: Arc<Workers>,
    ) -> Result<Self, CaptureError> {
        let failed = |what| move |source| CaptureError::Kernel { what, pid, source };
        let open = |name: &str| File::open(format!("/proc/{pid}/{name}")).map_err(failed("open the memory"));
        // An app without CAP_SYS_PTRACE may make no other kind. The asynchronous form never reaches a handler,
        // so that faults of the kernel's are none of its business either way.
        const USER_MODE_ONLY: i32 = 1;
        let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY) as u64;
        let mut remote = frozen.remote(pid)?;
        let fd = remote.call("make a userfaultfd", libc::SYS_userfaultfd, [flags])?;
        let stolen = remote.steal(fd as i32);
        remote.call("close the userfaultfd", libc::SYS_close, [fd])?;
        let fault = Userfault::enable(stolen?).map_err(failed("enable the write tracking"))?;
        Ok(Self {
            pid,
            cell_pid: innermost_number(pid).map_err(failed("read the number"))?,
            space,
            kernel,
            fault,
            pagemap: Arc::new(open("pagemap")?),
            memory: Arc::new(open("mem")?),
            maps: open("maps")?,
            statm: open("statm")?,
            sign: LayoutSign::of(pid),
            read_at: None,
            text: Vec::new(),
            classes: HashMap::new(),
            tracked: Vec::new(),
            present: PageSet::default(),
            data: BTreeMap::new(),
            objects: Objects::default(),
            objects_sent: Vec::new(),
            open_objects: HashSet::new(),
            guards: RangeSet::default(),
            unsearched: RangeSet::default(),
            advice: BTreeMap::new(),
            pending: Pages::new(),
            layout_pending: true,
            unmapped: RangeSet::default(),
            workers,
            buffers: Buffers::default(),
        })
    }

    /// The standby starts anew and has nothing.
    pub fn start_over(&mut self) {
        self.read_at = None;
        for tracked in &mut self.tracked {
            let Range { start, end } = tracked.mapping.range;
            // Everything counts as written again. What can't be unprotected is gone, and will be seen so.
            if tracked.registered && self.fault.unprotect(start, end).is_err() {
                tracked.registered = false;
            }
        }
        self.present.clear();
        self.data.clear();
        self.objects.start_over();
        self.pending.clear();
        // Where one was there may be nothing by now: they are looked for again before they are told of.
        let guards = std::mem::take(&mut self.guards);
        self.unsearched.extend(guards.iter());
        self.layout_pending = true;
    }

    /// Registers everything and hands out the layout, so that the pages can be copied while the app runs.
    pub fn begin(&mut self, frozen: &mut Frozen<'_>) -> Result<Option<Layout>, CaptureError> {
        let mut gone = RangeSet::default();
        self.read_at = None;
        self.refresh_layout(frozen, &mut gone)?;
        self.register_new(&mut gone)?;
        Ok(Some(self.hand_out_layout()))
    }

    /// Copies what was written in the next `bytes` of address space after `from` while the app runs. A page
    /// that is written meanwhile is dirty again.
    pub fn precopy(&mut self, from: u64, bytes: u64) -> Result<Precopied, CaptureError> {
        let Some(window) = self.next_window(from, bytes) else { return Ok(Precopied::default()) };
        let regions = self.tell_files(self.scan_written(&[window])?)?;
        let mut found = self.sort(&regions, Data::Copied);
        self.unsearched.extend(found.guards.iter());
        // An object may have another size by now than the standby was told of: these wait for the freeze.
        let of_objects: Vec<Range> = self.private_of_objects(&found.copy).collect();
        of_objects.iter().for_each(|&range| found.copy.remove(range));
        self.remember(of_objects.into_iter());
        let chunks = self.copy(found.copy.iter(), false)?;
        chunks.iter().flat_map(|chunk| &chunk.ranges).for_each(|&range| self.present.insert(range));
        Ok(Precopied { chunks, next: Some(window.end) })
    }

    /// The next piece of address space with something in it.
    fn next_window(&self, from: u64, bytes: u64) -> Option<Range> {
        let registered = self.tracked.iter().filter(|tracked| tracked.registered).map(|t| t.mapping.range);
        let first = registered.clone().find(|range| range.end > from)?;
        let start = first.start.max(from);
        let end = (start + bytes).min(HIGHEST);
        // Cut at the end of the last mapping in it, so that the next call does not start in a hole.
        let end = registered.filter(|range| range.start < end).map(|range| range.end.min(end)).max()?;
        Some(Range::new(start, end.max(start + PAGE_BYTES)))
    }

    /// Finds and copies everything that changed since the last capture, and what is `owed`. The app stands
    /// still. If it fails, the next capture carries what this one found. `open_objects` is asked as late as can be for
    /// the shared objects that the app has open: they are carried whether they are mapped or not.
    pub fn capture(
        &mut self,
        frozen: &Frozen<'_>,
        owed: Pages,
        layout_owed: bool,
        open_objects: impl FnOnce(&Frozen<'_>) -> Result<OpenObjects, CaptureError>,
    ) -> Result<Capture, CaptureError> {
        self.layout_pending |= layout_owed;
        for (target, ranges) in owed {
            self.pending.entry(target).or_default().extend(ranges.iter());
        }
        let started = Instant::now();
        let mut gone = RangeSet::default();
        if !self.is_as_it_was_read() {
            let changed = self.refresh_layout(frozen, &mut gone)?;
            self.layout_pending |= changed;
            self.register_new(&mut gone).inspect_err(|_| self.remember(gone.iter()))?;
            // N.B. after what was registered now, which counts.
            self.read_at = self.sign.read().map(|changes| (changes, 0));
        }
        let mapped = Instant::now();
        let mut found = self.find(gone)?;
        let scanned = Instant::now();
        let mut chunks = Vec::new();
        if let Err(why) = self.gather_found(&mut found, &mut chunks, || open_objects(frozen)) {
            self.remember(found.gone.iter());
            chunks.iter().for_each(|chunk| self.remember_chunk(chunk));
            self.recycle_chunks(chunks);
            return Err(why);
        }
        let mut capture = Capture { chunks, ..Capture::default() };
        let space = PageTarget::Space(self.space);
        // N.B. the whole of it: what is owed at a place where nothing is mapped now stays owed if this epoch fails.
        let unmapped = std::mem::take(&mut self.unmapped);
        capture.unmapped = unmapped.iter().chain(found.gone.iter()).map(|range| (space, range)).collect();
        capture.unmapped.append(&mut found.object_gone);
        capture.gone = self.private(&found.gone).map(|range| (space, range)).collect();
        if self.layout_pending || self.objects.list() != self.objects_sent {
            capture.layout = Some(self.hand_out_layout());
        }
        capture.times = ScanTimes { maps: mapped - started, scan: scanned - mapped, copy: scanned.elapsed() };
        self.pending.clear();
        self.unsearched = RangeSet::default();
        Ok(capture)
    }

    /// Whether the mappings are certainly what they were when they were last read. They are read now and then all the
    /// same: the name of a file in the text may change by itself.
    fn is_as_it_was_read(&mut self) -> bool {
        let Some((changes, believed)) = self.read_at.take() else { return false };
        if believed >= BELIEVED_MAX || self.sign.read() != Some(changes) {
            return false;
        }
        self.read_at = Some((changes, believed + 1));
        true
    }

    /// Copies what was found, and looks for what the scan does not show.
    fn gather_found(
        &mut self,
        found: &mut Found,
        chunks: &mut Vec<Chunk>,
        open_objects: impl FnOnce() -> Result<OpenObjects, CaptureError>,
    ) -> Result<(), CaptureError> {
        chunks.extend(self.copy(found.copy.iter(), true)?);
        self.compare_data(found, chunks)?;
        self.find_drops(found)?;
        self.find_guards(found)?;
        self.hold_open_objects(open_objects()?).map_err(self.failed("hold a memfd"))?;
        let mapped_objects: HashSet<ObjectKey> =
            self.tracked.iter().filter_map(|t| object_of(&t.mapping)).collect();
        self.objects.retain(|key| mapped_objects.contains(&key) || self.open_objects.contains(&key));
        self.capture_objects(found, chunks)
    }

    /// The next capture looks at these pages again.
    fn remember(&mut self, ranges: impl Iterator<Item = Range>) {
        let target = PageTarget::Space(self.space);
        ranges.for_each(|range| ledger::add(&mut self.pending, target, range));
    }

    fn remember_chunk(&mut self, chunk: &Chunk) {
        chunk.ranges.iter().for_each(|&range| ledger::add(&mut self.pending, chunk.target, range));
    }

    /// Takes back the buffers of an encoded capture.
    pub fn recycle(&mut self, capture: Capture) {
        self.recycle_chunks(capture.chunks);
    }

    pub fn recycle_chunks(&mut self, chunks: Vec<Chunk>) {
        for chunk in chunks {
            self.buffers.give_back(chunk.bytes);
        }
        self.buffers.refill();
    }

    /// Reads the advice of all mappings; costs a walk over all page tables, so not in a freeze. What it says
    /// goes out with the next layout.
    pub fn refresh_advice(&mut self) -> Result<(), CaptureError> {
        let failed = |source| CaptureError::Kernel { what: "read the advice", pid: self.pid, source };
        let text = std::fs::read_to_string(format!("/proc/{}/smaps", self.pid)).map_err(failed)?;
        let entry = |(range, flags): (Range, Vec<&str>)| (range.start, (range, advice(&flags), None));
        let advice: BTreeMap<_, _> = maps::parse_smaps_flags(&text).into_iter().map(entry).collect();
        if advice != self.advice {
            self.advice = advice;
            self.layout_pending = true;
        }
        Ok(())
    }

    pub fn space(&self) -> u32 {
        self.space
    }

    /// The shared objects that are carried already.
    pub fn object_keys(&self) -> HashSet<ObjectKey> {
        self.objects.keys().collect()
    }

    /// The files among them, and how they were called when they were mapped.
    pub fn mapped_files(&self) -> Vec<(ObjectKey, Vec<u8>)> {
        self.objects.files().collect()
    }

    /// Whatever was held so before and is not in the list is let go of.
    fn hold_open_objects(&mut self, open: OpenObjects) -> io::Result<()> {
        self.open_objects = open.iter().map(|(key, _)| *key).collect();
        for (key, descriptor) in open {
            let file = File::from(descriptor);
            self.objects.add(key, &kind_of_open(&file)?, || file.try_clone())?;
        }
        Ok(())
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> CaptureError + use<> {
        let pid = self.pid;
        move |source| CaptureError::Kernel { what, pid, source }
    }
}

fn page_at(address: u64) -> Range {
    Range::new(address, address + PAGE_BYTES)
}

fn can_be_tracked(mapping: &Mapping) -> bool {
    match mapping.backing {
        Backing::Anonymous | Backing::File(_) | Backing::Object(_) => true,
        Backing::Droppable | Backing::Vvar | Backing::VvarClock | Backing::Vdso | Backing::Vsyscall => false,
    }
}

/// What the process is called in its own PID namespace.
fn innermost_number(pid: i32) -> io::Result<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let number = line.and_then(|line| line.split_ascii_whitespace().last()?.parse().ok());
    number.ok_or_else(|| io::Error::other("no NSpid in /proc/PID/status"))
}

/// Helpers for this machine.
pub fn workers() -> Arc<Workers> {
    Arc::new(Workers::for_this_machine())
}
