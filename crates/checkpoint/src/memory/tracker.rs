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
//!    read and compared in every epoch; there are a few hundred at most.
//! 4. Empty pages are never protected: in a sparse reservation that would allocate page tables by the
//!    gigabyte. Hence the general form of the scan, for pages that are present or swapped.
//!
//! The ledger is outside; a capture that fails half-way keeps what it had found in `pending`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::layout::{
    Advice, Backing, Layout, Mapping, ObjectKey, ObjectKind, Protection, SharedObject, surviving,
};
use image::{PAGE_BYTES, PageTarget, Range, RangeSet};
use sys::memory::Piece;
use sys::pagemap::{Query, Region, category, scan};
use sys::userfault::Userfault;
use tracee::{Frozen, TraceError};

use super::classify::{Class, classify};
use super::ledger::{self, Pages};
use super::maps::{self, MapLine};
use super::objects::Objects;
use super::pages::PageSet;
use super::self_test::Kernel;
use super::staging::{Buffers, CHUNK_BYTES, Chunk};
use super::workers::Workers;
use crate::unsupported::Unsupported;

const HIGHEST: u64 = 0x7fff_ffff_f000;
/// Above 512 regions of room a scan costs half a microsecond more.
const ROOM: usize = 512;
const COPY_PRIORITY: i32 = 10;

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
}

/// What one freeze found of the memory.
#[derive(Debug, Default)]
pub struct Capture {
    /// The mappings, if they are not what they were.
    pub layout: Option<Layout>,
    /// Pages that the standby has and the app no longer.
    pub gone: Vec<(PageTarget, Range)>,
    /// Pages that went with their mapping: the layout says so, but only to a standby that gets this epoch.
    pub(super) unmapped: Vec<(PageTarget, Range)>,
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
            text: Vec::new(),
            classes: HashMap::new(),
            tracked: Vec::new(),
            present: PageSet::default(),
            data: BTreeMap::new(),
            objects: Objects::default(),
            objects_sent: Vec::new(),
            open_objects: HashSet::new(),
            guards: RangeSet::default(),
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
        self.layout_pending = true;
    }

    /// Registers everything and hands out the layout, so that the pages can be copied while the app runs.
    pub fn begin(&mut self, frozen: &mut Frozen<'_>) -> Result<Option<Layout>, CaptureError> {
        let mut gone = RangeSet::default();
        self.refresh_layout(frozen, &mut gone)?;
        self.register_new(&mut gone)?;
        Ok(Some(self.hand_out_layout()))
    }

    /// Copies what was written in the next `bytes` of address space after `from` while the app runs. A page
    /// that is written meanwhile is dirty again.
    pub fn precopy(&mut self, from: u64, bytes: u64) -> Result<Precopied, CaptureError> {
        let Some(window) = self.next_window(from, bytes) else { return Ok(Precopied::default()) };
        let regions = self.scan_dirty(&[window])?;
        let found = self.sort(&regions);
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
    /// still. If it fails, the next capture carries what this one found.
    pub fn capture(
        &mut self,
        frozen: &mut Frozen<'_>,
        owed: Pages,
        layout_owed: bool,
    ) -> Result<Capture, CaptureError> {
        self.layout_pending |= layout_owed;
        for (target, ranges) in owed {
            self.pending.entry(target).or_default().extend(ranges.iter());
        }
        let started = Instant::now();
        let mut gone = RangeSet::default();
        let changed = self.refresh_layout(frozen, &mut gone)?;
        self.layout_pending |= changed;
        self.register_new(&mut gone)?;
        let mapped = Instant::now();
        let mut found = self.find(gone)?;
        let scanned = Instant::now();
        let mut chunks = self.copy(found.copy.iter(), true)?;
        self.compare_data(&mut found, &mut chunks)?;
        self.find_drops(&mut found)?;
        let mapped_objects: HashSet<ObjectKey> =
            self.tracked.iter().filter_map(|t| object_of(&t.mapping)).collect();
        self.objects.retain(|key| mapped_objects.contains(&key) || self.open_objects.contains(&key));
        self.capture_objects(&found, &mut chunks)?;
        let mut capture = Capture { chunks, ..Capture::default() };
        let space = PageTarget::Space(self.space);
        capture.unmapped = std::mem::take(&mut self.unmapped).iter().map(|range| (space, range)).collect();
        capture.gone = self.private(&found.gone).map(|range| (space, range)).collect();
        self.find_guards(&found)?;
        if self.layout_pending || self.objects.list() != self.objects_sent {
            capture.layout = Some(self.hand_out_layout());
        }
        capture.times = ScanTimes { maps: mapped - started, scan: scanned - mapped, copy: scanned.elapsed() };
        self.pending.clear();
        Ok(capture)
    }

    /// Wakes the helpers: a freeze begins.
    pub fn arm(&self) {
        self.workers.arm();
    }

    pub fn disarm(&self) {
        self.workers.disarm();
    }

    /// Takes back the buffers of an encoded capture.
    pub fn recycle(&mut self, capture: Capture) {
        self.recycle_chunks(capture.chunks);
    }

    pub fn recycle_chunks(&mut self, chunks: Vec<Chunk>) {
        for chunk in chunks {
            if matches!(chunk.target, PageTarget::Space(_)) && chunk.bytes.capacity() >= CHUNK_BYTES {
                self.buffers.give_back(chunk.bytes);
            }
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

    /// Shared objects that the app has open: carried whether they are mapped or not. Whatever was held so
    /// before and is not in the list is let go of.
    pub fn hold_open_objects(&mut self, open: Vec<(ObjectKey, OwnedFd)>) -> io::Result<()> {
        self.open_objects = open.iter().map(|(key, _)| *key).collect();
        for (key, descriptor) in open {
            let file = File::from(descriptor);
            self.objects.add(key, &kind_of_open(&file)?, || file.try_clone())?;
        }
        Ok(())
    }

    // ---- the layout

    /// Reads the mappings; true if they are not what they were. Pages of memory that is no more are
    /// forgotten: the standby drops them by the layout.
    fn refresh_layout(&mut self, frozen: &Frozen<'_>, gone: &mut RangeSet) -> Result<bool, CaptureError> {
        let text = read_all(&self.maps).map_err(self.failed("read the mappings"))?;
        if text == self.text {
            return Ok(false);
        }
        let lines = maps::parse(&text)?;
        let mut tracked = Vec::with_capacity(lines.len());
        let mut classes = HashMap::with_capacity(lines.len());
        for line in &lines {
            let (key, class) = self.class_of(line, frozen.scratch_inode(self.pid))?;
            if let Some(mapping) = self.mapping_of(line, &class)? {
                let registered = false;
                tracked.push(Tracked { mapping, registered });
            }
            classes.insert(key, class);
        }
        let old: Vec<Mapping> = self.tracked.iter().map(|tracked| tracked.mapping.clone()).collect();
        let new: Vec<Mapping> = tracked.iter().map(|tracked| tracked.mapping.clone()).collect();
        self.forget_all_but(&surviving(&old, &new), gone);
        self.settle_data(&new);
        // A mapping that stayed registered is not in the scan for unregistered ranges.
        for tracked in &mut tracked {
            tracked.registered = true;
        }
        (self.tracked, self.classes, self.text) = (tracked, classes, text);
        Ok(true)
    }

    fn class_of(&self, line: &MapLine<'_>, ours: Option<u64>) -> Result<(Vec<u8>, Class), CaptureError> {
        let mut key = line.name.to_vec();
        for number in
            [line.range.start, line.range.end, line.offset, line.inode, line.device, line.shared.into()]
        {
            key.extend_from_slice(&number.to_ne_bytes());
        }
        let class = match self.classes.get(&key) {
            Some(class) => class.clone(),
            None => classify(self.pid, line, ours)?,
        };
        Ok((key, class))
    }

    fn mapping_of(&mut self, line: &MapLine<'_>, class: &Class) -> Result<Option<Mapping>, CaptureError> {
        let backing = match class {
            Class::Ignored => return Ok(None),
            Class::Carried(backing) => backing.clone(),
            Class::Object(key, kind) => {
                let path =
                    format!("/proc/{}/map_files/{:x}-{:x}", self.pid, line.range.start, line.range.end);
                let failed = self.failed("open a shared object");
                self.objects.add(*key, kind, || File::open(path)).map_err(failed)?;
                Backing::Object(*key)
            }
        };
        let anonymous = backing == Backing::Anonymous;
        let known = self.advice.get(&line.range.start).filter(|(range, ..)| *range == line.range);
        let mut advice = known.map_or_else(Advice::default, |(_, advice, _)| *advice);
        advice.grows_down |= line.name == b"[stack]";
        Ok(Some(Mapping {
            range: line.range,
            protection: line.protection,
            shared: line.shared,
            backing,
            offset: if anonymous { 0 } else { line.offset },
            advice,
            name: anonymous_name(line.name),
        }))
    }

    fn forget_all_but(&mut self, survivors: &RangeSet, gone: &mut RangeSet) {
        let mut at = 0;
        for survivor in survivors.iter().chain([Range::new(HIGHEST, HIGHEST)]) {
            let hole = Range::new(at, survivor.start);
            if !hole.is_empty() {
                self.unmapped.extend(self.present.take(hole));
                self.unmapped.extend(self.data.range(hole.start..hole.end).map(|(&page, _)| page_at(page)));
                self.forget_data(hole);
                gone.remove(hole);
            }
            at = survivor.end;
        }
    }

    /// Pages of file mappings that are not writable any more are followed like all others.
    fn settle_data(&mut self, mappings: &[Mapping]) {
        for mapping in mappings.iter().filter(|mapping| !mapping.protection.write) {
            let range = mapping.range;
            for page in self.data.range(range.start..range.end).map(|(&page, _)| page) {
                self.present.insert(page_at(page));
            }
            self.forget_data(range);
        }
    }

    fn hand_out_layout(&mut self) -> Layout {
        self.layout_pending = false;
        self.objects_sent = self.objects.list();
        Layout {
            space: self.space,
            pid: self.cell_pid,
            mappings: self.tracked.iter().map(|tracked| self.with_advice(&tracked.mapping)).collect(),
            guards: self.guards.iter().collect(),
            objects: self.objects_sent.clone(),
        }
    }

    fn with_advice(&self, mapping: &Mapping) -> Mapping {
        let mut mapping = mapping.clone();
        if let Some((range, advice, _)) = self.advice.get(&mapping.range.start)
            && *range == mapping.range
        {
            let grows_down = mapping.advice.grows_down;
            mapping.advice = Advice { grows_down: advice.grows_down || grows_down, ..*advice };
        }
        mapping
    }

    /// Registers what is not registered yet; what the standby has there is something else's.
    fn register_new(&mut self, gone: &mut RangeSet) -> Result<(), CaptureError> {
        let query = Query { inverted: category::TRACKABLE, all: category::TRACKABLE, ..Query::default() };
        let mut new = RangeSet::default();
        let mut room = [Region::default(); 64];
        scan(
            &*self.pagemap,
            0,
            HIGHEST,
            Query { report: category::TRACKABLE, ..query },
            &mut room,
            |region| {
                new.insert(Range::new(region.start, region.end));
            },
        )
        .map_err(self.failed("look for new mappings"))?;
        for n in 0..self.tracked.len() {
            let Range { start, end } = self.tracked[n].mapping.range;
            let pieces = new.within(Range::new(start, end));
            if pieces.is_empty() || !can_be_tracked(&self.tracked[n].mapping) {
                continue;
            }
            pieces.iter().for_each(|&piece| gone.extend(self.present.take(piece)));
            match self.fault.register(start, end) {
                Ok(()) => {
                    self.fault.unprotect(start, end).map_err(self.failed("take off stale protection"))?;
                    self.tracked[n].registered = true;
                }
                Err(why) => self.not_registrable(n, why)?,
            }
        }
        Ok(())
    }

    /// A mapping that the kernel won't track: carried in another way, or refused by name.
    fn not_registrable(&mut self, n: usize, why: io::Error) -> Result<(), CaptureError> {
        let range = self.tracked[n].mapping.range;
        self.tracked[n].registered = false;
        if matches!(self.tracked[n].mapping.backing, Backing::File(_)) && self.tracked[n].mapping.shared {
            return Ok(()); // Shared and never writable by the app: the file is what it is.
        }
        let flags = self.flags_of(range)?;
        if flags.iter().any(|flag| flag == "dp") {
            self.tracked[n].mapping.backing = Backing::Droppable;
            return Ok(());
        }
        Err(Unsupported {
            pid: self.pid,
            what: format!(
                "writes to the mapping at {:#x} ({}) can't be followed: {why}",
                range.start,
                flags.join(" ")
            ),
            way_out: "start the app without it; if it uses userfaultfd itself, switch that off".to_owned(),
        }
        .into())
    }

    fn flags_of(&self, range: Range) -> Result<Vec<String>, CaptureError> {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps", self.pid))
            .map_err(self.failed("read the flags of a mapping"))?;
        let flags = maps::parse_smaps_flags(&text).into_iter().find(|(r, _)| *r == range);
        Ok(flags.map(|(_, flags)| flags.into_iter().map(str::to_owned).collect()).unwrap_or_default())
    }

    // ---- what changed

    fn find(&mut self, gone: RangeSet) -> Result<Found, CaptureError> {
        let spans = self.spans();
        let regions = self.scan_dirty(&spans)?;
        let mut found = self.sort(&regions);
        // Noted before anything can fail: the scan has taken the marks away.
        let target = PageTarget::Space(self.space);
        let owed = self.pending.clone();
        for range in found.copy.iter().chain(found.gone.iter()).chain(gone.iter()) {
            ledger::add(&mut self.pending, target, range);
        }
        for (&key, ranges) in &found.objects {
            ranges.iter().for_each(|range| ledger::add(&mut self.pending, PageTarget::Object(key), range));
        }
        found.gone.extend(gone.iter());
        self.add_owed(owed, &mut found)?;
        for range in found.gone.iter() {
            self.present.take(range);
        }
        for range in found.copy.iter() {
            found.gone.remove(range);
            self.present.insert(range);
            self.forget_data(range);
        }
        Ok(found)
    }

    fn forget_data(&mut self, range: Range) {
        let pages: Vec<u64> = self.data.range(range.start..range.end).map(|(&page, _)| page).collect();
        for page in pages {
            self.data.remove(&page);
        }
    }

    /// What of `ranges` is private memory of the app now.
    fn private<'a>(&'a self, ranges: &'a RangeSet) -> impl Iterator<Item = Range> + 'a {
        let private =
            self.tracked.iter().map(|tracked| &tracked.mapping).filter(|m| !m.shared && can_be_tracked(m));
        private.flat_map(|mapping| ranges.within(mapping.range))
    }

    /// The registered address space, cut into about equal parts for the workers.
    fn spans(&self) -> Vec<Range> {
        const WORTH_CUTTING_BYTES: u64 = 64 << 20;
        let ranges: Vec<Range> =
            self.tracked.iter().filter(|t| t.registered).map(|tracked| tracked.mapping.range).collect();
        let total: u64 = ranges.iter().map(|range| range.len_bytes()).sum();
        let parts = if total < WORTH_CUTTING_BYTES { 1 } else { self.workers.width() as u64 };
        cut(&ranges, total.div_ceil(parts).next_multiple_of(2 << 20))
    }

    fn scan_dirty(&self, spans: &[Range]) -> Result<Vec<Region>, CaptureError> {
        let query = Query {
            inverted: 0,
            all: category::WRITTEN,
            any: category::PRESENT | category::SWAPPED,
            report: category::PRESENT
                | category::SWAPPED
                | category::ZERO_PAGE
                | category::FILE
                | self.kernel.guard(),
            protect: true,
        };
        self.scan_spans(spans, query)
    }

    fn scan_spans(&self, spans: &[Range], query: Query) -> Result<Vec<Region>, CaptureError> {
        let jobs = spans.iter().map(|&span| {
            let pagemap = Arc::clone(&self.pagemap);
            move || {
                let mut regions = Vec::new();
                let mut room = [Region::default(); ROOM];
                scan(&*pagemap, span.start, span.end, query, &mut room, |region| regions.push(region))
                    .map(|()| regions)
            }
        });
        let mut all = Vec::new();
        for regions in self.workers.run(jobs.collect::<Vec<_>>()) {
            all.extend(regions.map_err(self.failed("scan the page tables"))?);
        }
        all.sort_unstable_by_key(|region| region.start);
        Ok(all)
    }

    /// What to do with each region that a scan reported.
    fn sort(&self, regions: &[Region]) -> Found {
        let mut found = Found::default();
        let mut mappings = self.tracked.iter().map(|tracked| &tracked.mapping).peekable();
        for region in regions {
            let mut start = region.start;
            while start < region.end {
                while mappings.next_if(|mapping| mapping.range.end <= start).is_some() {}
                let Some(mapping) = mappings.peek() else { return found };
                let piece = Range::new(start, region.end);
                let Some(piece) = piece.intersect(mapping.range) else { break };
                self.sort_piece(mapping, piece, region.categories, &mut found);
                start = piece.end;
            }
        }
        found
    }

    fn sort_piece(&self, mapping: &Mapping, piece: Range, categories: u64, found: &mut Found) {
        if categories & self.kernel.guard() != 0 {
            found.guards.insert(piece);
        }
        let empty = categories & (category::ZERO_PAGE | category::GUARD) != 0
            || categories & (category::PRESENT | category::SWAPPED) == 0;
        match &mapping.backing {
            Backing::Object(key) if mapping.shared => {
                let offset = mapping.offset + (piece.start - mapping.range.start);
                let written = Range::new(offset, offset + piece.len_bytes());
                found.objects.entry(*key).or_default().insert(written);
            }
            Backing::Anonymous | Backing::Object(_) if empty => found.gone.extend(self.present.within(piece)),
            Backing::Anonymous => found.copy.insert(piece),
            Backing::File(_) | Backing::Object(_) if empty || categories & category::FILE != 0 => {
                found.gone.extend(self.present.within(piece));
            }
            Backing::File(_) | Backing::Object(_) if mapping.shared => (),
            // Writable ones are compared as a whole, see `compare_data`.
            Backing::File(_) | Backing::Object(_) if mapping.protection.write => (),
            Backing::File(_) | Backing::Object(_) => found.copy.insert(piece),
            Backing::Droppable | Backing::Vvar | Backing::VvarClock | Backing::Vdso | Backing::Vsyscall => (),
        }
    }

    /// What a failed epoch carried is looked at as it is now.
    fn add_owed(&mut self, owed: Pages, found: &mut Found) -> Result<(), CaptureError> {
        for (target, ranges) in owed {
            match target {
                PageTarget::Object(key) => self.objects.send_all(key),
                PageTarget::Space(_) => {
                    let everything = Query {
                        report: category::PRESENT
                            | category::SWAPPED
                            | category::ZERO_PAGE
                            | category::FILE
                            | self.kernel.guard(),
                        ..Query::default()
                    };
                    let spans: Vec<Range> = ranges.iter().collect();
                    let now = self.sort(&self.scan_spans(&spans, everything)?);
                    // Whatever the standby holds there, it was never told: both lists are in its terms.
                    let kept: RangeSet = now.copy;
                    for range in ranges.iter() {
                        self.data.retain(|&page, _| !range.contains(page));
                        found.gone.insert(range);
                    }
                    kept.iter().for_each(|range| {
                        found.gone.remove(range);
                        found.copy.insert(range);
                    });
                }
            }
        }
        Ok(())
    }

    /// Pages that were dropped are just not there. Looked for only if the kernel counts fewer than we do.
    fn find_drops(&mut self, found: &mut Found) -> Result<(), CaptureError> {
        let held = self.present.len() + self.data.len() as u64;
        if self.kernel.counts_anonymous_pages && self.anonymous_pages()? == held {
            return Ok(());
        }
        let none = category::PRESENT | category::SWAPPED;
        let query = Query { inverted: none, all: none, any: 0, report: category::PRESENT, protect: false };
        for region in self.scan_spans(&self.spans(), query)? {
            found.gone.extend(self.present.take(Range::new(region.start, region.end)));
        }
        // N.B. a dropped page of a private file mapping shows its marker, so it counts as swapped.
        for range in self.file_mappings(|protection| !protection.write) {
            let now = self.own_pages(range)?;
            for held in self.present.within(range) {
                let mut reverted = RangeSet::from_iter([held]);
                now.iter().for_each(|own| reverted.remove(own));
                reverted.iter().for_each(|range| found.gone.extend(self.present.take(range)));
            }
        }
        Ok(())
    }

    /// The private mappings of files with a protection of this kind.
    fn file_mappings(&self, protection: impl Fn(Protection) -> bool) -> Vec<Range> {
        let of_file = |mapping: &&Mapping| {
            let file = matches!(mapping.backing, Backing::File(_) | Backing::Object(_));
            file && !mapping.shared && protection(mapping.protection)
        };
        self.tracked
            .iter()
            .map(|tracked| &tracked.mapping)
            .filter(of_file)
            .map(|mapping| mapping.range)
            .collect()
    }

    /// The pages of a private file mapping that are the app's own and not the file's.
    fn own_pages(&self, range: Range) -> Result<RangeSet, CaptureError> {
        let query = Query {
            inverted: category::FILE,
            all: category::FILE | category::PRESENT,
            report: category::PRESENT,
            ..Query::default()
        };
        let regions = self.scan_spans(&[range], query)?;
        Ok(regions.into_iter().map(|region| Range::new(region.start, region.end)).collect())
    }

    fn anonymous_pages(&self) -> Result<u64, CaptureError> {
        let mut text = [0; 128];
        let len = self.statm.read_at(&mut text, 0).map_err(self.failed("read the counts"))?;
        let mut numbers = std::str::from_utf8(&text[..len]).unwrap_or("").split_ascii_whitespace();
        let mut number = || numbers.next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        let (_size, resident, shared) = (number(), number(), number());
        Ok(resident.saturating_sub(shared))
    }

    /// The private pages of writable file mappings: all are read, and sent if they are not what they were.
    fn compare_data(&mut self, found: &mut Found, chunks: &mut Vec<Chunk>) -> Result<(), CaptureError> {
        let mut now = RangeSet::default();
        for range in self.file_mappings(|protection| protection.write) {
            now.extend(self.own_pages(range)?.iter());
            self.drop_data(range, &now, found);
        }
        for chunk in self.copy(now.iter(), true)? {
            chunks.extend(self.changed_data(chunk));
        }
        Ok(())
    }

    fn drop_data(&mut self, range: Range, now: &RangeSet, found: &mut Found) {
        let reverted: Vec<u64> = self
            .data
            .range(range.start..range.end)
            .map(|(&page, _)| page)
            .filter(|&page| !now.contains(page))
            .collect();
        for page in reverted {
            self.data.remove(&page);
            found.gone.insert(page_at(page));
        }
        for range in self.present.take(range) {
            // It was read-only when it was sent, and its pages are followed here from now on.
            for page in (range.start..range.end).step_by(PAGE_BYTES as usize) {
                if !now.contains(page) {
                    found.gone.insert(page_at(page));
                }
            }
        }
    }

    fn changed_data(&mut self, chunk: Chunk) -> Option<Chunk> {
        let mut changed = Chunk { target: chunk.target, ranges: Vec::new(), bytes: Vec::new() };
        for (address, page) in chunk.pages() {
            if self.data.get(&address).is_some_and(|old| **old == *page) {
                continue;
            }
            self.data.insert(address, page.into());
            changed.ranges.push(Range::new(address, address + PAGE_BYTES));
            changed.bytes.extend_from_slice(page);
        }
        self.buffers.give_back(chunk.bytes);
        (!changed.ranges.is_empty()).then_some(changed)
    }

    fn capture_objects(&mut self, found: &Found, chunks: &mut Vec<Chunk>) -> Result<(), CaptureError> {
        let failed = self.failed("read a shared object");
        self.objects.capture(&found.objects, chunks).map_err(failed)
    }

    /// Guard regions: a new one is reported as written, like any change; that one was removed is not. So where
    /// there are some, they are all looked at again.
    fn find_guards(&mut self, found: &Found) -> Result<(), CaptureError> {
        if self.guards.is_empty() && found.guards.is_empty() {
            return Ok(());
        }
        let guard = category::GUARD;
        let query = Query { all: guard, report: guard, ..Query::default() };
        let regions = self.scan_spans(&self.spans(), query)?;
        let now: RangeSet = regions.into_iter().map(|region| Range::new(region.start, region.end)).collect();
        if now != self.guards {
            self.guards = now;
            self.layout_pending = true;
        }
        Ok(())
    }

    // ---- copying

    /// Copies pages into chunks on all workers. `strict`: every page must be there, since nothing runs.
    fn copy(
        &mut self,
        ranges: impl Iterator<Item = Range>,
        strict: bool,
    ) -> Result<Vec<Chunk>, CaptureError> {
        let ranges: Vec<Range> = ranges.collect();
        let total: u64 = ranges.iter().map(|range| range.pages()).sum();
        let most = (CHUNK_BYTES as u64) / PAGE_BYTES;
        let share = (total / (2 * self.workers.width() as u64)).clamp(32, most);
        let target = PageTarget::Space(self.space);
        let mut jobs = Vec::new();
        for ranges in portions(ranges, share) {
            let (pid, memory, mut bytes) = (self.pid, Arc::clone(&self.memory), self.buffers.take());
            jobs.push(move || {
                let copied = gather(pid, &memory, &ranges, &mut bytes, strict);
                copied.map(|ranges| Chunk { target, ranges, bytes })
            });
        }
        let results = self.workers.run(jobs);
        let chunks: Result<Vec<Chunk>, io::Error> = results.into_iter().collect();
        let chunks = chunks.map_err(self.failed("copy pages"))?;
        Ok(chunks.into_iter().filter(|chunk| !chunk.ranges.is_empty()).collect())
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> CaptureError + use<> {
        let pid = self.pid;
        move |source| CaptureError::Kernel { what, pid, source }
    }
}

/// Copies the ranges into `bytes`, which is cut to what came. What `process_vm_readv` can't read (no
/// protection to read) goes through `/proc/PID/mem`. Without `strict`, what is gone is left out.
fn gather(
    pid: i32,
    memory: &File,
    ranges: &[Range],
    bytes: &mut Vec<u8>,
    strict: bool,
) -> io::Result<Vec<Range>> {
    let mut done = Vec::with_capacity(ranges.len());
    let mut filled = 0;
    let mut rest = ranges;
    while !rest.is_empty() {
        let pieces: Vec<Piece> = rest
            .iter()
            .take(sys::memory::VECTORS_MAX)
            .map(|range| Piece { address: range.start, len: range.len_bytes() as usize })
            .collect();
        let wanted: usize = pieces.iter().map(|piece| piece.len).sum();
        let room = &mut bytes[filled..filled + wanted];
        let mut got = match sys::memory::gather(pid, &pieces, room) {
            Ok(got) => got,
            Err(why) if why.raw_os_error() == Some(libc::EFAULT) => 0,
            Err(why) => return Err(why),
        };
        let mut whole = 0;
        for range in rest.iter().take(pieces.len()) {
            let len = range.len_bytes() as usize;
            if got < len {
                break;
            }
            got -= len;
            filled += len;
            whole += 1;
            done.push(*range);
        }
        rest = &rest[whole..];
        if whole < pieces.len() {
            let range = rest[0];
            let len = range.len_bytes() as usize;
            match memory.read_exact_at(&mut bytes[filled..filled + len], range.start) {
                Ok(()) => {
                    filled += len;
                    done.push(range);
                }
                Err(why) if strict => return Err(why),
                Err(_) => (), // Unmapped while the app runs; the freeze will see it.
            }
            rest = &rest[1..];
        }
    }
    bytes.truncate(filled);
    Ok(done)
}

/// Cuts ranges into portions of at most `pages` pages, and of no more pieces than one call takes.
fn portions(ranges: Vec<Range>, pages: u64) -> Vec<Vec<Range>> {
    let mut all = Vec::new();
    let (mut portion, mut filled) = (Vec::new(), 0);
    for mut range in ranges {
        while !range.is_empty() {
            let take = range.pages().min(pages - filled);
            let middle = range.start + take * PAGE_BYTES;
            portion.push(Range::new(range.start, middle));
            range.start = middle;
            filled += take;
            if filled == pages {
                all.push(std::mem::take(&mut portion));
                filled = 0;
            }
        }
    }
    if !portion.is_empty() {
        all.push(portion);
    }
    all
}

/// Cuts a list of ranges into spans that cover about `bytes` of them each.
fn cut(ranges: &[Range], bytes: u64) -> Vec<Range> {
    let mut spans: Vec<Range> = Vec::new();
    let mut left = 0;
    for &range in ranges {
        let mut start = range.start;
        while start < range.end {
            if left == 0 {
                spans.push(Range::new(start, start));
                left = bytes;
            }
            let take = left.min(range.end - start);
            start += take;
            left -= take;
            spans.last_mut().expect("pushed above").end = start;
        }
    }
    spans
}

fn page_at(address: u64) -> Range {
    Range::new(address, address + PAGE_BYTES)
}

/// What an open shared object is, by the name that the kernel gives it.
fn kind_of_open(file: &File) -> io::Result<ObjectKind> {
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let name = link.as_os_str().as_bytes();
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    Ok(match name.strip_prefix(b"/memfd:") {
        Some(name) => ObjectKind::Memfd { name: name.to_vec(), seals: 0 },
        None => ObjectKind::File { path: name.to_vec(), deleted: true, mode: 0o600 },
    })
}

fn object_of(mapping: &Mapping) -> Option<ObjectKey> {
    match mapping.backing {
        Backing::Object(key) => Some(key),
        Backing::Anonymous
        | Backing::File(_)
        | Backing::Droppable
        | Backing::Vvar
        | Backing::VvarClock
        | Backing::Vdso
        | Backing::Vsyscall => None,
    }
}

fn can_be_tracked(mapping: &Mapping) -> bool {
    match mapping.backing {
        Backing::Anonymous | Backing::File(_) | Backing::Object(_) => true,
        Backing::Droppable | Backing::Vvar | Backing::VvarClock | Backing::Vdso | Backing::Vsyscall => false,
    }
}

fn anonymous_name(name: &[u8]) -> Option<String> {
    let name = name.strip_prefix(b"[anon:")?.strip_suffix(b"]")?;
    Some(String::from_utf8_lossy(name).into_owned())
}

fn advice(flags: &[&str]) -> Advice {
    let has = |flag| flags.contains(&flag);
    Advice {
        dont_fork: has("dc"),
        dont_dump: has("dd"),
        wipe_on_fork: has("wf"),
        huge_page: has("hg"),
        no_huge_page: has("nh"),
        mergeable: has("mg"),
        sequential: has("sr"),
        random: has("rr"),
        locked: has("lo"),
        locked_on_fault: has("lf"),
        no_reserve: has("nr"),
        grows_down: has("gd"),
    }
}

/// What the process is called in its own PID namespace.
fn innermost_number(pid: i32) -> io::Result<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let number = line.and_then(|line| line.split_ascii_whitespace().last()?.parse().ok());
    number.ok_or_else(|| io::Error::other("no NSpid in /proc/PID/status"))
}

/// Reads a file of `/proc` from its start in big steps.
fn read_all(file: &File) -> io::Result<Vec<u8>> {
    const STEP_BYTES: usize = 64 << 10;
    let mut text = Vec::new();
    loop {
        let have = text.len();
        text.resize(have + STEP_BYTES, 0);
        let got = file.read_at(&mut text[have..], have as u64)?;
        text.truncate(have + got);
        if got == 0 {
            return Ok(text);
        }
    }
}

/// Helpers for this machine, at the priority of the tracer.
pub fn workers() -> Arc<Workers> {
    Arc::new(Workers::for_this_machine(Some(COPY_PRIORITY)))
}
