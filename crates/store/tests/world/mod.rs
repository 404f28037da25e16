//! A made-up app whose memory and files are known, epochs of it as an engine sends them, and a receiver as a standby is one.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod faults;
pub mod files;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use futures_util::TryStreamExt;
use image::batch::{BatchWriter, LINE_BYTES, Pages};
use image::change::Slices;
use image::frame::{FrameOrder, FrameWriter};
use image::layout::{
    Advice, Backing, FileIdentity, Layout, LayoutPart, Mapping, ObjectKey, ObjectKind, Protection,
    SharedObject, surviving,
};
use image::state::{Clocks, State};
use image::{
    CheckpointId, FileChanges, Frame, FrameKind, Header, PAGE_BYTES, PageBatch, PageTarget, Range,
    StateChange, Sync,
};
use store::{Basis, Gathered, Life, Listed, Run, Store, StoreError};

use files::{Disk, Touched};

const PAGE: usize = PAGE_BYTES as usize;
pub const APP: &str = "made-up";
pub const SECOND_NS: u64 = 1_000_000_000;

/// Numbers from a seed.
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Memory and files as somebody has them. Pages that are zero are not in it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Memory {
    pub layout: Option<Layout>,
    pub pages: BTreeMap<(PageTarget, u64), Vec<u8>>,
    pub state: Option<State>,
    pub disk: Disk,
}

impl Memory {
    fn size(&self, key: ObjectKey) -> u64 {
        let objects = self.layout.iter().flat_map(|layout| &layout.objects);
        objects.filter(|object| object.key == key).map(|object| object.size_bytes).sum()
    }

    fn set_layout(&mut self, layout: Layout) {
        let old = self.layout.as_ref().map_or(&[][..], |old| &old.mappings);
        let survivors = surviving(old, &layout.mappings);
        self.layout = Some(layout);
        let sizes: BTreeMap<_, _> = self
            .layout
            .iter()
            .flat_map(|it| &it.objects)
            .map(|object| (object.key, object.size_bytes))
            .collect();
        self.pages.retain(|&(target, at), page| match target {
            PageTarget::File(_) => true,
            PageTarget::Space(_) => survivors.contains(at),
            PageTarget::Object(key) => {
                let room = sizes.get(&key).map_or(0, |size| size.saturating_sub(at)).min(PAGE_BYTES);
                page[room as usize..].fill(0);
                room > 0
            }
        });
    }

    fn write(&mut self, target: PageTarget, at: u64, offset: usize, bytes: &[u8]) {
        let room = match target {
            PageTarget::File(id) => self.disk.size(id).saturating_sub(at).min(PAGE_BYTES) as usize,
            PageTarget::Space(_) => PAGE,
            PageTarget::Object(key) => self.size(key).saturating_sub(at).min(PAGE_BYTES) as usize,
        };
        if room == 0 {
            return;
        }
        let page = self.pages.entry((target, at)).or_insert_with(|| vec![0; PAGE]);
        let end = (offset + bytes.len()).min(room);
        if offset < end {
            page[offset..end].copy_from_slice(&bytes[..end - offset]);
        }
    }

    fn apply_record(&mut self, target: PageTarget, record: &Pages) {
        match record {
            Pages::Whole { range, data } => {
                for (n, page) in data.chunks(PAGE).enumerate() {
                    self.write(target, range.start + (n * PAGE) as u64, 0, page);
                }
            }
            Pages::Gone { range } => {
                self.pages.retain(|&(of, at), _| of != target || !range.contains(at));
            }
            Pages::Lines { page, lines, data } => {
                let set = (0..PAGE / LINE_BYTES).filter(|line| lines & 1 << line != 0);
                for (line, bytes) in set.zip(data.chunks(LINE_BYTES)) {
                    self.write(target, *page, line * LINE_BYTES, bytes);
                }
            }
        }
    }

    /// As a standby does: frames in their order, and nothing is written where nothing is mapped.
    pub fn receive(&mut self, frames: &[Bytes], held: Option<CheckpointId>) -> CheckpointId {
        let mut order = FrameOrder::default();
        let (mut id, mut state, mut parts) = (None, Slices::default(), Vec::new());
        let mut said = FileChanges::default();
        for bytes in frames {
            let frame = Frame::parse(bytes.clone()).unwrap();
            order.accept(&frame).unwrap();
            if frame.kind != FrameKind::Files {
                self.apply_files(std::mem::take(&mut said));
            }
            match frame.kind {
                FrameKind::Header => {
                    let header: Header = frame.decode("header").unwrap();
                    assert_eq!(header.parent(), held, "{} does not build on what is held", header.id);
                    id = Some(header.id);
                }
                FrameKind::Layout => {
                    let LayoutPart { mut layout, more } = frame.decode("layout").unwrap();
                    parts.append(&mut layout.mappings);
                    if !more {
                        layout.mappings = std::mem::take(&mut parts);
                        self.set_layout(layout);
                    }
                }
                FrameKind::Pages => {
                    let batch = PageBatch::decode(frame.payload).unwrap();
                    for record in &batch.pages {
                        self.check_place(batch.target, record.range());
                        self.apply_record(batch.target, record);
                    }
                }
                FrameKind::Files => said.extend(frame.decode("changes of files").unwrap()),
                FrameKind::Shipped => {}
                FrameKind::State | FrameKind::StateChange => state.take(&frame).unwrap(),
                FrameKind::End => {}
            }
        }
        assert!(order.ended());
        self.state = Some(state.join(held.zip(self.state.as_ref())).unwrap());
        id.unwrap()
    }

    fn check_place(&self, target: PageTarget, range: Range) {
        if let PageTarget::File(_) = target {
            return; // What lies behind a file's end is not written.
        }
        let layout = self.layout.as_ref().unwrap();
        match target {
            PageTarget::File(_) => {}
            PageTarget::Space(_) => {
                for at in (range.start..range.end).step_by(PAGE) {
                    assert!(layout.mappings.iter().any(|m| m.range.contains(at)), "{at:#x} is not mapped");
                }
            }
            PageTarget::Object(key) => assert!(range.end <= self.size(key).next_multiple_of(PAGE_BYTES)),
        }
    }

    /// Without the pages that are zero, which may be there or not.
    pub fn content(&self) -> Self {
        let mut content = self.clone();
        content.pages.retain(|_, page| page.iter().any(|&byte| byte != 0));
        content
    }
}

/// The app, and what it has done since the last epoch.
#[derive(Debug, Clone)]
pub struct App {
    pub dice: Dice,
    pub memory: Memory,
    pub id: CheckpointId,
    pub now_ns: u64,
    records: Vec<(PageTarget, Pages)>,
    new_layout: bool,
    next_inode: u64,
    touched: Touched,
    next_file: u64,
}

/// Places that lie in windows of their own, and some that share one.
const AREAS: [u64; 4] = [0x10_000, 0x400_000, 0x7fe_000, 0x7f00_0000_0000];
const AREA_PAGES: u64 = 6;
const OBJECTS: u64 = 2;

impl App {
    pub fn new(seed: u64, term: u64) -> Self {
        let layout =
            Layout { space: 0, pid: 2, mappings: Vec::new(), guards: Vec::new(), objects: Vec::new() };
        let memory = Memory { layout: Some(layout), ..Memory::default() };
        let mut app = Self {
            dice: Dice(seed),
            memory,
            id: CheckpointId::new(term, 0),
            now_ns: 1_700_000_000 * SECOND_NS,
            records: Vec::new(),
            new_layout: true,
            next_inode: 1,
            touched: Touched::default(),
            next_file: 0,
        };
        app.make_root();
        (0..8).for_each(|_| app.live());
        app
    }

    /// Something that a program does between two epochs.
    pub fn live(&mut self) {
        match self.dice.below(16) {
            10.. => self.live_on_disk(),
            0 => self.map(),
            1 => self.unmap(),
            2 => self.change_object(),
            3 => self.drop_pages(),
            4..7 => self.write_lines(),
            _ => self.write_pages(),
        }
    }

    fn change_layout(&mut self, change: impl FnOnce(&mut Layout)) {
        let mut layout = self.memory.layout.clone().unwrap();
        change(&mut layout);
        layout.mappings.sort_by_key(|mapping| mapping.range.start);
        // What was done before was done to what may be no more.
        let kept = |target: PageTarget, layout: &Layout, range: Range| match target {
            PageTarget::File(_) => true,
            PageTarget::Space(_) => layout.mappings.iter().any(|m| m.range.intersect(range) == Some(range)),
            PageTarget::Object(key) => layout
                .objects
                .iter()
                .any(|o| o.key == key && range.end <= o.size_bytes.next_multiple_of(PAGE_BYTES)),
        };
        self.records.retain(|(target, record)| kept(*target, &layout, record.range()));
        self.memory.set_layout(layout);
        self.new_layout = true;
        // A freeze sees pages as they are, without what was behind the end of an object.
        for (target, record) in &mut self.records {
            let (PageTarget::Object(_), Range { start, .. }) = (*target, record.range()) else { continue };
            if let (Pages::Whole { .. } | Pages::Lines { .. }, Some(page)) =
                (&record, self.memory.pages.get(&(*target, start)))
            {
                let range = Range::new(start, start + PAGE_BYTES);
                *record = Pages::Whole { range, data: page.clone().into() };
            }
        }
    }

    fn map(&mut self) {
        let start = AREAS[self.dice.below(4) as usize] + self.dice.below(AREA_PAGES) * PAGE_BYTES;
        let range = Range::new(start, start + (1 + self.dice.below(3)) * PAGE_BYTES);
        let there = self.memory.layout.as_ref().unwrap().mappings.clone();
        // One change of the layout per epoch: more than one the layouts alone do not show, and an engine says "gone".
        if self.new_layout && self.id.epoch.0 > 0 || there.iter().any(|m| m.range.intersect(range).is_some())
        {
            return;
        }
        self.change_layout(|layout| layout.mappings.push(mapping(range)));
    }

    fn unmap(&mut self) {
        let count = self.memory.layout.as_ref().unwrap().mappings.len() as u64;
        if count < 3 || self.new_layout && self.id.epoch.0 > 0 {
            return;
        }
        let gone = self.dice.below(count) as usize;
        self.change_layout(|layout| drop(layout.mappings.remove(gone)));
    }

    fn change_object(&mut self) {
        if self.new_layout && self.id.epoch.0 > 0 {
            return;
        }
        let slot = 1 + self.dice.below(OBJECTS);
        let size_bytes = self.dice.below(5 * PAGE_BYTES);
        let away = self.dice.below(3) == 0;
        let key = ObjectKey { device: 1, inode: slot };
        self.set_object(key, (!away).then_some(size_bytes));
    }

    /// Maps a file, or what was one.
    pub fn map_file(&mut self, path: &str, start: u64) {
        let identity = FileIdentity { path: path.as_bytes().to_vec(), size: PAGE_BYTES, build_id: None };
        let mapping = mapping(Range::new(start, start + PAGE_BYTES));
        self.change_layout(|layout| {
            layout.mappings.push(Mapping { backing: Backing::File(identity), ..mapping })
        });
    }

    /// Gives a shared object this size, or takes it away; the layout is another then.
    pub fn set_object(&mut self, key: ObjectKey, size_bytes: Option<u64>) {
        self.change_layout(|layout| {
            layout.objects.retain(|object| object.key != key);
            let kind = ObjectKind::Anonymous;
            layout.objects.extend(size_bytes.map(|size_bytes| SharedObject { key, kind, size_bytes }));
        });
    }

    pub fn fill_page(&mut self, target: PageTarget, at: u64, byte: u8) {
        let data = vec![byte; PAGE].into();
        self.record(target, Pages::Whole { range: Range::new(at, at + PAGE_BYTES), data });
    }

    /// A page that may be written.
    fn page(&mut self) -> Option<(PageTarget, u64)> {
        let layout = self.memory.layout.as_ref().unwrap();
        let mut pages: Vec<_> = Vec::new();
        for mapping in &layout.mappings {
            let starts = (mapping.range.start..mapping.range.end).step_by(PAGE);
            pages.extend(starts.map(|at| (PageTarget::Space(0), at)));
        }
        for object in &layout.objects {
            let starts = (0..object.size_bytes).step_by(PAGE);
            pages.extend(starts.map(|at| (PageTarget::Object(object.key), at)));
        }
        let at = self.dice.below((pages.len() as u64).max(1)) as usize;
        pages.get(at).copied()
    }

    fn record(&mut self, target: PageTarget, record: Pages) {
        self.memory.apply_record(target, &record);
        self.records.push((target, record));
    }

    fn write_pages(&mut self) {
        let Some((target, at)) = self.page() else { return };
        let byte = 1 + self.dice.below(255) as u8;
        let mut data = vec![byte; PAGE];
        let room = match target {
            PageTarget::File(_) => unreachable!("a page of memory"),
            PageTarget::Space(_) => PAGE_BYTES,
            PageTarget::Object(key) => (self.memory.size(key) - at).min(PAGE_BYTES),
        };
        data[room as usize..].fill(0);
        self.record(target, Pages::Whole { range: Range::new(at, at + PAGE_BYTES), data: data.into() });
    }

    fn write_lines(&mut self) {
        let Some((target, at)) = self.page() else { return };
        if !self.memory.pages.contains_key(&(target, at)) {
            return;
        }
        let lines = 1 << self.dice.below(64) | 1 << self.dice.below(64);
        let byte = 1 + self.dice.below(255) as u8;
        let mut page = self.memory.pages[&(target, at)].clone();
        let room = match target {
            PageTarget::File(_) => unreachable!("a page of memory"),
            PageTarget::Space(_) => PAGE_BYTES,
            PageTarget::Object(key) => (self.memory.size(key) - at).min(PAGE_BYTES),
        };
        for line in (0..64_usize).filter(|line| lines & 1 << line != 0) {
            page[line * LINE_BYTES..(line + 1) * LINE_BYTES].fill(byte);
        }
        page[room as usize..].fill(0);
        let mut batch = BatchWriter::new(target);
        batch.lines(at, lines, &page);
        let record = PageBatch::decode(batch.finish()).unwrap().pages.remove(0);
        self.record(target, record);
    }

    fn drop_pages(&mut self) {
        let Some((target, at)) = self.page() else { return };
        self.record(target, Pages::Gone { range: Range::new(at, at + PAGE_BYTES) });
    }

    /// The frames of the next epoch: of all, or of what was done since the last.
    pub fn epoch(&mut self, full: bool) -> Vec<Bytes> {
        let parent = self.id;
        self.id = self.id.next();
        self.now_ns += SECOND_NS;
        let sync = if full { Sync::Full } else { Sync::Since(parent) };
        let header = Header { app: APP.to_owned(), id: self.id, sync, frozen_at_ns: self.now_ns };
        let mut writer = FrameWriter::default();
        let mut frames = vec![writer.cbor(FrameKind::Header, &header)];
        let changes = self.file_changes(full);
        let is_file = |target: &PageTarget| matches!(target, PageTarget::File(_));
        let (of_files, of_memory): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.records).into_iter().partition(|(target, _)| is_file(target));
        frames.extend(writer.files(changes.clone()));
        let whole = |target: PageTarget, at: u64, page: &[u8]| {
            let mut batch = BatchWriter::new(target);
            batch.whole(at, page);
            batch.finish()
        };
        if full {
            for (&(target, at), page) in self.memory.pages.iter().filter(|((target, _), _)| is_file(target)) {
                frames.push(writer.frame(FrameKind::Pages, &whole(target, at, page)));
            }
        }
        for (target, record) in of_files.iter().filter(|_| !full) {
            frames.push(writer.frame(FrameKind::Pages, &encode(*target, record)));
        }
        if full || self.new_layout {
            frames.extend(writer.layout(self.memory.layout.as_ref().unwrap()));
        }
        if full {
            for (&(target, at), page) in self.memory.pages.iter().filter(|((target, _), _)| !is_file(target))
            {
                frames.push(writer.frame(FrameKind::Pages, &whole(target, at, page)));
            }
            // The freeze at the end finds some files once more.
            let again = FileChanges { directories: Vec::new(), ..changes };
            frames.extend(writer.files(again));
        } else {
            for (target, record) in &of_memory {
                frames.push(writer.frame(FrameKind::Pages, &encode(*target, record)));
            }
        }
        self.new_layout = false;
        let state = self.state();
        let mut before = self.memory.state.replace(state.clone()).filter(|_| !full);
        frames.extend(
            match before.as_mut().and_then(|before| StateChange::between(parent, before, &state)) {
                Some(change) => writer.state_change(&change),
                None => writer.state(&state),
            },
        );
        frames.push(writer.end());
        frames
    }

    fn state(&self) -> State {
        let clocks = Clocks { realtime_ns: self.now_ns, ..Clocks::default() };
        State {
            clocks,
            processes: Vec::new(),
            spaces: Vec::new(),
            files: Vec::new(),
            pipes: Vec::new(),
            strays: Vec::new(),
        }
    }
}

fn encode(target: PageTarget, record: &Pages) -> Bytes {
    let mut batch = BatchWriter::new(target);
    match record {
        Pages::Whole { range, data } => batch.whole(range.start, data),
        Pages::Gone { range } => batch.gone(*range),
        Pages::Lines { page, lines, data } => {
            let mut whole = vec![0; PAGE];
            let set = (0..PAGE / LINE_BYTES).filter(|line| lines & 1 << line != 0);
            for (line, bytes) in set.zip(data.chunks(LINE_BYTES)) {
                whole[line * LINE_BYTES..(line + 1) * LINE_BYTES].copy_from_slice(bytes);
            }
            batch.lines(*page, *lines, &whole);
        }
    }
    batch.finish()
}

pub fn mapping(range: Range) -> Mapping {
    Mapping {
        range,
        protection: Protection { read: true, write: true, execute: false },
        shared: false,
        backing: Backing::Anonymous,
        offset: 0,
        advice: Advice::default(),
        name: None,
    }
}

pub fn take(gathered: &mut Gathered, frames: &[Bytes]) {
    let mut ended = false;
    for frame in frames {
        ended = gathered.take(&Frame::parse(frame.clone()).unwrap()).unwrap();
    }
    assert!(ended);
}

/// What every checkpoint must be, by its name.
pub type Truth = BTreeMap<CheckpointId, Memory>;

/// Lives, gathers and uploads, and writes down what each uploaded checkpoint must restore to. A failed upload may have
/// stored its checkpoint or not.
pub struct Uploader<'a> {
    pub app: &'a mut App,
    pub truth: &'a mut Truth,
    pub dir: &'a Path,
}

impl Uploader<'_> {
    /// Gathers up to `epochs` epochs on top of what the run has, and uploads them.
    pub async fn upload(&mut self, run: &mut Run, basis: &mut Basis, epochs: u64) -> Result<(), StoreError> {
        let mut gathered = match run.tip() {
            None => Gathered::full(self.dir)?,
            Some(tip) => Gathered::since(tip, basis.clone(), self.dir)?,
        };
        let mut full = run.tip().is_none();
        for _ in 0..epochs {
            for _ in 0..self.app.dice.below(12) {
                self.app.live();
            }
            take(&mut gathered, &self.app.epoch(std::mem::take(&mut full)));
            if gathered.is_sealed() {
                break;
            }
        }
        self.truth.insert(self.app.id, self.app.memory.content());
        run.upload(&gathered).await?;
        *basis = gathered.basis();
        Ok(())
    }
}

/// A run of the manager that has this term.
pub async fn begin(store: Store, term: u64) -> Result<Run, StoreError> {
    let (register, host) = (Some("etcd".to_owned()), "a".to_owned());
    let life = Life { register, host, incarnation: 100 - term, begun_at_ns: 0 };
    Run::begin(store, APP, image::Term(term), &life).await
}

/// What a checkpoint restores to, link by link as a standby would take it.
pub async fn restore(store: &Store, listed: &Listed) -> Result<Memory, StoreError> {
    let chain = store.chain(APP, listed).await?;
    let (mut memory, mut held) = (Memory::default(), None);
    for link in &chain.links {
        let frames: Vec<Vec<Bytes>> = store.frames(&chain, link).try_collect().await?;
        held = Some(memory.receive(&frames.concat(), held));
    }
    assert_eq!(held, Some(listed.id()));
    Ok(memory)
}

/// Every listed checkpoint is what it was. Answers how many there are.
pub async fn check_all(store: &Store, truth: &Truth, what: &str) -> usize {
    let listed = store.list(APP).await.unwrap();
    for one in &listed {
        let restored = restore(store, one).await;
        let restored = restored.unwrap_or_else(|why| panic!("{what}: {}: {why}", one.id()));
        assert!(restored.content() == truth[&one.id()], "{what}: {} is another", one.id());
        let dir = std::env::temp_dir();
        let fetched =
            store.fetch(APP, one, &dir).await.unwrap_or_else(|why| panic!("{what}: {}: {why}", one.id()));
        let frames: Vec<Bytes> = fetched.frames().collect::<Result<_, _>>().unwrap();
        let mut memory = Memory::default();
        memory.receive(&frames, None);
        assert!(memory.content() == truth[&one.id()], "{what}: {} is another as one", one.id());
    }
    listed.len()
}
