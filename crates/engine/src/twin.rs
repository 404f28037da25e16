//! A second copy of an app, made from the first while that one goes on taking epochs in.
//!
//! The pages are read as they stand, each at some moment, and every epoch that is applied to the first copy meanwhile
//! goes to the second as well. An epoch says what is there afterwards and nothing of what was there before, so it does
//! no harm to a page that was read after it. It is shown *before* it is applied, so that whatever may have been read of it
//! is covered; and it is passed on *after* that, so that nothing from before it is read once it was. What comes out is one
//! full epoch: what the first copy was at the end.
//!
//! The same goes for the files in state directories: what is read of one stands for some moment, and what the epochs say
//! that are passed on later is laid over it. Names change, so a file is asked for by its number, of the engine that keeps
//! the tree ([`Lender`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use checkpoint::skeleton::{EpochBytes, Look};
use image::batch::{BatchWriter, Pages};
use image::files::FileKind;
use image::frame::{FrameKind, FrameWriter};
use image::layout::{Backing, Layout, Mapping, ObjectKey};
use image::state::State;
use image::{CheckpointId, FileChanges, FileId, Header, PAGE_BYTES, PageBatch, PageTarget, Range, Sync};
use rustix::fs::SeekFrom;
use sys::pagemap::{self, category};

use crate::thread::Lender;

/// Epochs that wait to be taken up. Who is slower than the app writes for so long never catches up.
const WAITING_BYTES_MAX: u64 = 512 << 20;
/// How much is read at once.
const STEP_BYTES: u64 = 512 << 10;
/// How long the first copy's engine may take to say what it has: it may be applying an epoch.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum TwinError {
    #[error("no checkpoint is whole here yet")]
    Nothing,
    #[error("the copy was replaced, given up or taken over meanwhile")]
    Gone,
    #[error("it was called off")]
    CalledOff,
    #[error("the engine of the second copy takes nothing more")]
    Refused,
    #[error("cannot read the copy")]
    Read(#[from] io::Error),
}

#[derive(Debug)]
pub(crate) struct Original {
    pub app: String,
    pub id: CheckpointId,
    pub look: Look,
    pub state: State,
    /// All that is in state directories.
    pub files: FileChanges,
}

#[derive(Debug)]
enum Sight {
    Copy(Box<Original>),
    Epoch(Box<EpochBytes>),
    /// The last epoch is.
    Applied,
    Nothing,
}

/// What the engine of the first copy shows it to. Dropped, it says that the copy is no more.
#[derive(Debug)]
pub struct Showing {
    to: Sender<Sight>,
    waiting: Arc<AtomicU64>,
}

/// Who makes the second one.
#[derive(Debug)]
pub struct Twin {
    from: Receiver<Sight>,
    waiting: Arc<AtomicU64>,
    lender: Lender,
}

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Twinned {
    /// The checkpoint that it is.
    pub id: CheckpointId,
    /// Page data that was read.
    pub bytes: u64,
    /// So many epochs came meanwhile.
    pub epochs: u64,
}

/// Of the copy that this engine has, which is told to show it.
pub fn twin(lender: Lender) -> (Showing, Twin) {
    let ((to, from), waiting) = (mpsc::channel(), Arc::<AtomicU64>::default());
    (Showing { to, waiting: Arc::clone(&waiting) }, Twin { from, waiting, lender })
}

impl Showing {
    /// Says what there is. False if nobody looks.
    pub(crate) fn begin(&self, copy: Option<Original>) -> bool {
        let sight = copy.map_or(Sight::Nothing, |copy| Sight::Copy(Box::new(copy)));
        self.to.send(sight).is_ok()
    }

    /// The epoch that was shown is applied.
    pub(crate) fn applied(&self) {
        // Nobody may look any more.
        drop(self.to.send(Sight::Applied));
    }

    /// Before the epoch is applied. False if nobody looks any more, or nobody follows.
    pub(crate) fn show(&self, epoch: &EpochBytes) -> bool {
        let waiting = self.waiting.fetch_add(bytes_of(epoch), Ordering::SeqCst);
        waiting < WAITING_BYTES_MAX && self.to.send(Sight::Epoch(Box::new(epoch.clone()))).is_ok()
    }
}

fn bytes_of(epoch: &EpochBytes) -> u64 {
    let data = |pages: &Pages| match pages {
        Pages::Whole { data, .. } | Pages::Lines { data, .. } => data.len() as u64,
        Pages::Gone { .. } => 0,
    };
    epoch.batches.iter().chain(&epoch.content).flat_map(|batch| &batch.pages).map(data).sum()
}

impl Twin {
    /// What the first copy has. The frames of the second are made by [`Source::copy`].
    pub fn wait(self) -> Result<Source, TwinError> {
        match self.from.recv_timeout(PATIENCE) {
            Ok(Sight::Copy(original)) => Ok(Source { original: *original, twin: self }),
            Ok(Sight::Nothing | Sight::Epoch(_) | Sight::Applied) => Err(TwinError::Nothing),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(TwinError::Gone),
        }
    }
}

/// A copy that is there to be copied.
#[derive(Debug)]
pub struct Source {
    original: Original,
    twin: Twin,
}

impl Source {
    /// The name that the frames of the second copy have; what it is in the end may be later.
    pub fn id(&self) -> CheckpointId {
        self.original.id
    }

    pub fn state(&self) -> &State {
        &self.original.state
    }

    /// How much memory a second copy takes, about.
    pub fn bytes(&self) -> io::Result<u64> {
        let look = &self.original.look;
        let mut bytes = 0;
        for mapping in look.layout.mappings.iter().filter(|mapping| holds_pages(mapping)) {
            scan(&look.pagemap, mapping.range, |range| bytes += range.len_bytes())?;
        }
        for (_, file) in &look.objects {
            bytes +=
                file.metadata().map(|metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512)?;
        }
        Ok(bytes)
    }

    /// Gives all of it to `out`, which says whether it takes more, until `called_off` says so.
    pub fn copy(
        self,
        called_off: impl Fn() -> bool,
        out: impl FnMut(Bytes) -> bool,
    ) -> Result<Twinned, TwinError> {
        let Self { original: Original { app, id, look, state, files }, twin } = self;
        let Look { layout, memory, pagemap, objects } = look;
        let twinned = Twinned { id, bytes: 0, epochs: 0 };
        let objects = objects.into_iter().collect();
        let frames = FrameWriter::default();
        let is_mapped = false;
        let mut copying =
            Copying { twin, layout, is_mapped, state, objects, frames, out, called_off, twinned };
        let header =
            copying.frames.cbor(FrameKind::Header, &Header { app, id, sync: Sync::Full, frozen_at_ns: 0 });
        copying.give(header)?;
        copying.copy_files(files)?;
        copying.is_mapped = true;
        copying.give_layout()?;
        copying.copy_memory(&memory, &pagemap)?;
        copying.copy_objects()?;
        copying.finish()
    }
}

struct Copying<O, C> {
    twin: Twin,
    /// As of the epoch that was passed on last, like the state.
    layout: Layout,
    /// The layout was given: memory is read from here on, and not before.
    is_mapped: bool,
    state: State,
    /// Those that are still what they were when it began.
    objects: BTreeMap<ObjectKey, File>,
    frames: FrameWriter,
    out: O,
    called_off: C,
    twinned: Twinned,
}

impl<O: FnMut(Bytes) -> bool, C: Fn() -> bool> Copying<O, C> {
    fn give(&mut self, frame: Bytes) -> Result<(), TwinError> {
        if (self.called_off)() {
            return Err(TwinError::CalledOff);
        }
        if (self.out)(frame) { Ok(()) } else { Err(TwinError::Refused) }
    }

    fn give_pages(&mut self, batch: &mut BatchWriter) -> Result<(), TwinError> {
        let payload = batch.finish();
        let frame = self.frames.frame(FrameKind::Pages, &payload);
        self.give(frame)
    }

    fn give_layout(&mut self) -> Result<(), TwinError> {
        let frames = self.frames.layout(&self.layout);
        frames.into_iter().try_for_each(|frame| self.give(frame))
    }

    /// Passes on the epochs that came meanwhile.
    fn catch_up(&mut self) -> Result<(), TwinError> {
        loop {
            match self.twin.from.try_recv() {
                Ok(Sight::Epoch(epoch)) => {
                    self.await_applied()?;
                    self.pass_on(*epoch)?;
                }
                Ok(_) | Err(TryRecvError::Disconnected) => return Err(TwinError::Gone),
                Err(TryRecvError::Empty) => return Ok(()),
            }
        }
    }

    /// A page that is read meanwhile may be from before the epoch.
    fn await_applied(&self) -> Result<(), TwinError> {
        match self.twin.from.recv_timeout(PATIENCE) {
            Ok(Sight::Applied) => Ok(()),
            Ok(_) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(TwinError::Gone),
        }
    }

    fn pass_on(&mut self, epoch: EpochBytes) -> Result<(), TwinError> {
        self.twin.waiting.fetch_sub(bytes_of(&epoch), Ordering::SeqCst);
        let EpochBytes { header, layout, batches, state, files, content } = epoch;
        self.give_changes(files)?;
        self.give_again(&content)?;
        if let Some(layout) = layout {
            self.objects.retain(|key, _| layout.objects.iter().any(|object| object.key == *key));
            self.layout = layout;
            if self.is_mapped {
                self.give_layout()?;
            }
        }
        if self.is_mapped {
            self.give_again(&batches)?;
        }
        (self.state, self.twinned.id) = (state, header.id);
        self.twinned.epochs += 1;
        Ok(())
    }

    fn give_again(&mut self, batches: &[PageBatch]) -> Result<(), TwinError> {
        for batch in batches {
            let mut again = BatchWriter::new(batch.target);
            batch.pages.iter().for_each(|pages| again.again(pages));
            self.give_pages(&mut again)?;
        }
        Ok(())
    }

    fn give_changes(&mut self, changes: FileChanges) -> Result<(), TwinError> {
        let frames = self.frames.files(changes);
        frames.into_iter().try_for_each(|frame| self.give(frame))
    }

    /// The names in state directories, and what the files hold.
    fn copy_files(&mut self, census: FileChanges) -> Result<(), TwinError> {
        let has_content = |kind: &FileKind| kind.size_bytes().is_some_and(|bytes| bytes > 0);
        let full: Vec<FileId> =
            census.files.iter().filter(|record| has_content(&record.kind)).map(|record| record.id).collect();
        self.give_changes(census)?;
        for id in full {
            // Without one it is gone, as an epoch says that follows.
            let Some(file) = self.borrow(id)? else { continue };
            let mut at = 0;
            loop {
                self.catch_up()?;
                let Some(range) = next_data(&file, at)? else { break };
                self.copy_ranges(PageTarget::File(id), &file, &[range])?;
                at = range.end;
            }
        }
        Ok(())
    }

    fn borrow(&self, id: FileId) -> Result<Option<File>, TwinError> {
        const GLANCE: Duration = Duration::from_millis(10);
        let (lent, deadline) = (self.twin.lender.file(id), Instant::now() + PATIENCE);
        loop {
            match lent.recv_timeout(GLANCE) {
                Ok(file) => return Ok(file),
                Err(RecvTimeoutError::Timeout) if (self.called_off)() => return Err(TwinError::CalledOff),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => (),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(TwinError::Gone);
                }
            }
        }
    }

    /// From the lowest address to the highest. What is newly mapped behind us comes with its epoch.
    fn copy_memory(&mut self, memory: &File, pagemap: &File) -> Result<(), TwinError> {
        let mut at = 0;
        loop {
            self.catch_up()?;
            let Some(window) = self.next_window(at) else { return Ok(()) };
            at = window.end;
            let mut found = Vec::new();
            scan(pagemap, window, |range| found.push(range))?;
            self.copy_ranges(PageTarget::Space(0), memory, &found)?;
        }
    }

    /// The next piece of private memory from `at` on.
    fn next_window(&self, at: u64) -> Option<Range> {
        let mappings = &self.layout.mappings;
        let first = mappings.partition_point(|mapping| mapping.range.end <= at);
        let mapping = mappings[first..].iter().find(|mapping| holds_pages(mapping))?;
        let start = mapping.range.start.max(at);
        Some(Range::new(start, mapping.range.end.min(start + STEP_BYTES)))
    }

    fn copy_objects(&mut self) -> Result<(), TwinError> {
        let keys: Vec<ObjectKey> = self.objects.keys().copied().collect();
        for key in keys {
            let mut at = 0;
            loop {
                self.catch_up()?;
                let Some(file) = self.objects.get(&key) else { break };
                let size = self.layout.objects.iter().find(|object| object.key == key);
                let size = size.map_or(0, |object| object.size_bytes).next_multiple_of(PAGE_BYTES);
                let Some(range) = next_data(file, at)?.filter(|range| range.start < size) else { break };
                let range = Range::new(range.start, range.end.min(size));
                let file = file.try_clone()?;
                self.copy_ranges(PageTarget::Object(key), &file, &[range])?;
                at = range.end;
            }
        }
        Ok(())
    }

    fn copy_ranges(&mut self, target: PageTarget, from: &File, ranges: &[Range]) -> Result<(), TwinError> {
        let mut batch = BatchWriter::new(target);
        for range in ranges {
            for (start, data) in read(from, *range) {
                if batch.room_bytes() < data.len() {
                    self.give_pages(&mut batch)?;
                }
                self.twinned.bytes += data.len() as u64;
                batch.whole(start, &data);
            }
        }
        if batch.is_empty() { Ok(()) } else { self.give_pages(&mut batch) }
    }

    /// Epochs that were shown by now are all that can have been seen in part.
    fn finish(mut self) -> Result<Twinned, TwinError> {
        self.catch_up()?;
        let state = self.frames.state(&self.state);
        state.into_iter().try_for_each(|frame| self.give(frame))?;
        let end = std::mem::take(&mut self.frames).end();
        self.give(end)?;
        Ok(self.twinned)
    }
}

/// Whether pages of it are private, and the copy's own.
fn holds_pages(mapping: &Mapping) -> bool {
    !mapping.shared && matches!(mapping.backing, Backing::Anonymous | Backing::File(_) | Backing::Object(_))
}

/// The pages in there that are the process's own: neither absent, nor zero, nor of a file.
fn scan(pagemap: &File, within: Range, mut found: impl FnMut(Range)) -> io::Result<()> {
    const ROOM: usize = 256;
    let query = pagemap::Query {
        inverted: category::FILE | category::ZERO_PAGE,
        all: category::FILE | category::ZERO_PAGE,
        any: category::PRESENT | category::SWAPPED,
        ..pagemap::Query::default()
    };
    let mut room = [pagemap::Region::default(); ROOM];
    pagemap::scan(pagemap, within.start, within.end, query, &mut room, |region| {
        found(Range::new(region.start, region.end));
    })
}

/// What is there, by its place. What was unmapped meanwhile is passed over: the epoch that says so follows.
fn read(from: &File, range: Range) -> Vec<(u64, Vec<u8>)> {
    let mut whole = vec![0; range.len_bytes() as usize];
    if read_at(from, &mut whole, range.start) {
        return vec![(range.start, whole)];
    }
    let pages = (range.start..range.end).step_by(PAGE_BYTES as usize);
    let page = |at| {
        let mut page = vec![0; PAGE_BYTES as usize];
        read_at(from, &mut page, at).then_some((at, page))
    };
    pages.filter_map(page).collect()
}

/// The end of an object may lie within a page, whose rest is zero.
fn read_at(from: &File, into: &mut [u8], at: u64) -> bool {
    let mut have = 0;
    while have < into.len() {
        match from.read_at(&mut into[have..], at + have as u64) {
            Ok(0) => return have > 0,
            Ok(len) => have += len,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => (),
            Err(_) => return false,
        }
    }
    true
}

/// The next piece of an object that is no hole, in whole pages.
fn next_data(file: &File, at: u64) -> io::Result<Option<Range>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start / PAGE_BYTES * PAGE_BYTES,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(why) => return Err(why.into()),
    };
    let end = match rustix::fs::seek(file, SeekFrom::Hole(start.max(at))) {
        Ok(end) => end.next_multiple_of(PAGE_BYTES),
        // It was cut meanwhile.
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(why) => return Err(why.into()),
    };
    Ok(Some(Range::new(start, end.min(start + STEP_BYTES))))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use image::batch::PageBatch;

    use super::*;

    fn state() -> State {
        let (processes, spaces, files) = (Vec::new(), Vec::new(), Vec::new());
        State { clocks: Default::default(), processes, spaces, files, pipes: Vec::new(), strays: Vec::new() }
    }

    /// One page.
    fn epoch() -> EpochBytes {
        let page =
            Pages::Whole { range: Range::new(0, PAGE_BYTES), data: vec![1; PAGE_BYTES as usize].into() };
        EpochBytes {
            header: Header {
                app: "kv".to_owned(),
                id: CheckpointId::new(1, 2),
                sync: Sync::Full,
                frozen_at_ns: 0,
            },
            layout: None,
            batches: vec![PageBatch { target: PageTarget::Space(0), pages: vec![page] }],
            files: Default::default(),
            content: Vec::new(),
            state: state(),
        }
    }

    /// Whoever reads a page of the first copy after it was passed on reads none from before the epoch.
    #[test]
    fn an_epoch_is_passed_on_once_the_first_copy_has_it() {
        const A_WHILE: Duration = Duration::from_millis(50);
        let (showing, twin) = twin(Lender::of_nobody().expect("a bell"));
        let is_applied = Arc::<AtomicBool>::default();
        let seen = Arc::clone(&is_applied);
        let (passed, frames) = mpsc::channel();
        let out = move |_| passed.send(seen.load(Ordering::SeqCst)).is_ok();
        let layout =
            Layout { space: 0, pid: 1, mappings: Vec::new(), guards: Vec::new(), objects: Vec::new() };
        let twinned = Twinned { id: CheckpointId::new(1, 1), bytes: 0, epochs: 0 };
        let mut copying = Copying {
            twin,
            layout,
            is_mapped: true,
            state: state(),
            objects: BTreeMap::new(),
            frames: FrameWriter::default(),
            out,
            called_off: || false,
            twinned,
        };
        assert!(showing.show(&epoch()));
        let copier = std::thread::spawn(move || copying.catch_up());
        assert!(frames.recv_timeout(A_WHILE).is_err(), "it was passed on before it was applied");
        is_applied.store(true, Ordering::SeqCst);
        showing.applied();
        assert_eq!(frames.recv_timeout(PATIENCE), Ok(true));
        copier.join().expect("no panic").expect("it goes on");
    }
}
