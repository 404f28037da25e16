//! Epochs that wait for the store, as one: a full checkpoint, or what changed since the one that was stored last.
//!
//! While an upload takes its time, or the store is gone, epochs go on top of each other here: the newest page counts,
//! and nothing grows with the number of epochs. Whoever applies what comes out has the same memory as somebody who
//! applied each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use image::batch::Pages;
use image::change::Slices;
use image::frame::{FrameOrder, FrameWriter, encode};
use image::layout::{Layout, LayoutPart, Mapping, ObjectKey, surviving};
use image::state::State;
use image::{
    CheckpointId, FileId, Frame, FrameError, FrameKind, Header, PAGE_BYTES, PageBatch, PageTarget, Range,
    RangeSet, Sync,
};

use crate::StoreError;
use crate::contents::Waiting;
use crate::files::StateFiles;
use crate::manifest::SegmentKind;
use crate::pages::{Window, pieces};
use crate::segment::{self, Packed, PagesWriter, Raw};
use crate::spool::{Slot, Spool};
use crate::tree::Tree;

/// The address spaces as an epoch left them.
pub type Layouts = BTreeMap<u32, Layout>;

/// What an epoch left that the next one builds on, besides content.
#[derive(Debug, Clone, Default)]
pub struct Basis {
    layouts: Layouts,
    tree: Arc<Tree>,
    state: Option<Arc<State>>,
}

#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("what it says of files makes no sense: {0}")]
    Files(String),
    #[error("epoch {found} builds on {parent}, and {tip} is what is there")]
    Gap { found: CheckpointId, parent: CheckpointId, tip: CheckpointId },
}

#[derive(Debug)]
pub struct Gathered {
    header: Option<Header>,
    /// What it builds on as a whole.
    sync: Sync,
    frozen_at_ns: u64,
    /// Before the first epoch of it, and after the last.
    began: Layouts,
    layouts: Layouts,
    changed: bool,
    /// An object was cut in the middle of a page: what is behind the cut is zero on the other side only if this is the
    /// object's size there, so nothing may come on top.
    sealed: bool,
    /// What lives of the memory of the beginning, for spaces whose layout changed.
    alive: BTreeMap<u32, RangeSet>,
    /// Objects of the beginning that were gone for a while, with another of their name there now perhaps.
    lost: BTreeSet<ObjectKey>,
    memory: BTreeMap<PageTarget, Memory>,
    files: StateFiles,
    spool: Spool,
    /// Content of files, for whoever restores it.
    contents: Waiting,
    /// At what it builds on.
    before: Option<Arc<State>>,
    /// After its newest checkpoint.
    state: Option<Arc<State>>,
    incoming: Incoming,
}

/// What is known of the pages of one target: first the gone ones are gone, then the others are written.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) gone: RangeSet,
    pub(crate) pages: BTreeMap<u64, Slot>,
}

/// The epoch whose frames come now.
#[derive(Debug, Default)]
struct Incoming {
    order: FrameOrder,
    /// What it builds on.
    since: Option<CheckpointId>,
    parts: Vec<Mapping>,
    state: Slices,
}

impl Gathered {
    /// Waits for the frames of a full epoch. `dir`: where pages wait.
    pub fn full(dir: &Path) -> Result<Self, StoreError> {
        Self::new(Sync::Full, Layouts::new(), StateFiles::new(), None, dir)
    }

    /// Waits for the frames of an epoch that builds on `parent`, which left `basis`.
    pub fn since(parent: CheckpointId, basis: Basis, dir: &Path) -> Result<Self, StoreError> {
        let files = StateFiles::since(basis.tree);
        Self::new(Sync::Since(parent), basis.layouts, files, basis.state, dir)
    }

    fn new(
        sync: Sync,
        layouts: Layouts,
        files: StateFiles,
        before: Option<Arc<State>>,
        dir: &Path,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            header: None,
            sync,
            frozen_at_ns: 0,
            began: layouts.clone(),
            layouts,
            changed: false,
            sealed: false,
            alive: BTreeMap::new(),
            lost: BTreeSet::new(),
            memory: BTreeMap::new(),
            files,
            spool: Spool::new(dir)?,
            contents: Waiting::new(dir)?,
            before,
            state: None,
            incoming: Incoming::default(),
        })
    }

    /// The newest checkpoint in it; none before the first epoch is whole.
    pub fn id(&self) -> Option<CheckpointId> {
        self.header.as_ref().filter(|_| self.state.is_some()).map(|header| header.id)
    }

    pub fn app(&self) -> &str {
        self.header.as_ref().map_or("", |header| &header.app)
    }

    pub fn sync(&self) -> Sync {
        self.sync
    }

    /// Whether no further epoch may go on top: it must be the first of another.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    pub fn layouts(&self) -> &Layouts {
        &self.layouts
    }

    /// The state directories after its newest checkpoint.
    pub fn tree(&self) -> &Tree {
        self.files.tree()
    }

    /// What the next epoch builds on.
    pub fn basis(&self) -> Basis {
        let (layouts, tree) = (self.layouts.clone(), Arc::clone(self.files.tree()));
        Basis { layouts, tree, state: self.state.clone() }
    }

    /// When its newest checkpoint was frozen, by the wall clock.
    pub fn frozen_at_ns(&self) -> u64 {
        self.frozen_at_ns
    }

    /// What its newest checkpoint has besides memory; none before the first epoch is whole.
    pub fn state(&self) -> Option<&State> {
        self.state.as_deref()
    }

    /// The memory of a full checkpoint: its pages, each once, by target and place.
    pub fn each_page(&self) -> impl Iterator<Item = Result<(PageTarget, u64, Vec<u8>), StoreError>> + '_ {
        let pages = self
            .memory
            .iter()
            .flat_map(|(&target, memory)| memory.pages.iter().map(move |(&at, &slot)| (target, at, slot)));
        pages.map(|(target, at, slot)| Ok((target, at, self.spool.get(slot)?.into_page())))
    }

    /// The content of a file in a state directory of a full checkpoint, in order. Pages that are not there are empty.
    pub fn each_page_of(
        &self,
        file: FileId,
    ) -> impl Iterator<Item = Result<(u64, Vec<u8>), StoreError>> + '_ {
        self.files.slots(file).map(|(at, slot)| Ok((at, self.spool.get(slot)?.into_page())))
    }

    /// Page data that waits.
    pub fn pages(&self) -> u64 {
        self.memory.values().map(|memory| memory.pages.len() as u64).sum::<u64>() + self.files.pages()
    }

    /// Takes the next frame. True when it was the last of its epoch. After an error nothing of this can be used: half
    /// of an epoch is in it.
    pub fn take(&mut self, frame: &Frame) -> Result<bool, GatherError> {
        self.incoming.order.accept(frame)?;
        if self.files.awaits_more() && frame.kind != FrameKind::Files {
            return Err(FrameError::Place(frame.kind).into());
        }
        match frame.kind {
            FrameKind::Header => self.begin(frame.decode("header")?)?,
            FrameKind::Layout => {
                let LayoutPart { mut layout, more } = frame.decode("layout")?;
                self.incoming.parts.append(&mut layout.mappings);
                if !more {
                    layout.mappings = std::mem::take(&mut self.incoming.parts);
                    self.take_layout(layout)?;
                }
            }
            FrameKind::Pages => {
                let batch = PageBatch::decode(frame.payload.clone())?;
                match batch.target {
                    PageTarget::Space(_) | PageTarget::Object(_) => self.take_pages(&batch)?,
                    PageTarget::File(_) => self.files.write(&batch, &mut self.spool)?,
                }
            }
            FrameKind::Files => self.files.say(frame.decode("changes of files")?, &mut self.spool)?,
            FrameKind::Shipped => self.contents.put(&frame.payload)?,
            FrameKind::State | FrameKind::StateChange => self.incoming.state.take(frame)?,
            FrameKind::End => {
                let Incoming { since, state, .. } = std::mem::take(&mut self.incoming);
                let before = self.state.as_deref().or(self.before.as_deref());
                let state = state.join(since.zip(before))?;
                self.frozen_at_ns = state.clocks.realtime_ns;
                self.state = Some(Arc::new(state));
                self.sealed |= self.files.is_torn();
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn begin(&mut self, header: Header) -> Result<(), GatherError> {
        let tip = match (&self.header, self.sync) {
            (Some(before), _) => Some(before.id),
            (None, Sync::Since(parent)) => Some(parent),
            (None, Sync::Full) => None,
        };
        if header.parent() != tip {
            let (found, none) = (header.id, CheckpointId::default());
            let (parent, tip) = (header.parent().unwrap_or(none), tip.unwrap_or(none));
            return Err(GatherError::Gap { found, parent, tip });
        }
        self.header = Some(header);
        self.incoming.since = tip;
        Ok(())
    }

    fn take_layout(&mut self, layout: Layout) -> Result<(), GatherError> {
        let (space, before) = (layout.space, object_sizes(&self.layouts));
        let old = self.layouts.get(&space).map_or(&[][..], |old| &old.mappings);
        let survivors = surviving(old, &layout.mappings);
        let mut unmapped: RangeSet = old.iter().map(|mapping| mapping.range).collect();
        survivors.iter().for_each(|range| unmapped.remove(range));
        let memory = self.memory.entry(PageTarget::Space(space)).or_default();
        unmapped.iter().for_each(|range| memory.forget(range, &mut self.spool));
        let alive = match self.alive.remove(&space) {
            Some(mut alive) => {
                unmapped.iter().for_each(|range| alive.remove(range));
                alive
            }
            None => survivors,
        };
        self.alive.insert(space, alive);
        self.layouts.insert(space, layout);
        self.changed = true;
        self.sort_out_objects(&before)
    }

    /// Objects that are no more, or shorter than they were.
    fn sort_out_objects(&mut self, before: &BTreeMap<ObjectKey, u64>) -> Result<(), GatherError> {
        let sizes = object_sizes(&self.layouts);
        for (&key, &size_before) in before {
            let size = sizes.get(&key).copied().unwrap_or(0);
            if size >= size_before && sizes.contains_key(&key) {
                continue;
            }
            let memory = self.memory.entry(PageTarget::Object(key)).or_default();
            let end = size.next_multiple_of(PAGE_BYTES);
            // N.B. what is gone behind it stays so: it may have been longer still.
            memory.drop_pages(Range::new(end, u64::MAX), &mut self.spool);
            if !sizes.contains_key(&key) {
                self.lost.insert(key);
            } else if self.sync != Sync::Full {
                // Should it grow again, what comes is empty.
                memory.gone.insert(Range::new(end, size_before.next_multiple_of(PAGE_BYTES)));
            }
            if size < end {
                memory.zero_tail(size, &mut self.spool)?;
                self.sealed |= self.sync != Sync::Full;
            }
        }
        Ok(())
    }

    fn take_pages(&mut self, batch: &PageBatch) -> Result<(), GatherError> {
        let full = self.sync == Sync::Full;
        let memory = self.memory.entry(batch.target).or_default();
        for record in &batch.pages {
            if let Pages::Gone { range } = record {
                memory.drop_pages(*range, &mut self.spool);
                if !full {
                    memory.gone.insert(*range);
                }
            }
            for (at, piece) in pieces(record) {
                let old = memory.pages.get(&at).copied();
                memory.pages.insert(at, self.spool.put(&piece, old)?);
            }
        }
        Ok(())
    }

    /// The segments, one after the other. Nothing is changed: a failed upload is made again.
    pub(crate) fn segments(&self) -> impl Iterator<Item = Result<Packed, StoreError>> + '_ {
        self.raw().map(|raw| Ok(raw?.pack()))
    }

    /// All of it as the frames of one epoch. Of a checkpoint with what it builds on, that is a full one.
    pub fn frames(&self) -> impl Iterator<Item = Result<Bytes, StoreError>> + '_ {
        let mut writer = FrameWriter::default();
        let header = self.header.as_ref().map(|header| {
            let header = Header { sync: self.sync, frozen_at_ns: self.frozen_at_ns, ..header.clone() };
            writer.cbor(FrameKind::Header, &header)
        });
        let mut writer = Some(writer);
        let mut contents = self.contents.each();
        let mut segments = self.raw();
        let mut next = move |writer: &mut Option<FrameWriter>| match contents.next() {
            Some(payload) => {
                let writer = writer.as_mut()?;
                Some(vec![payload.map(|payload| writer.frame(FrameKind::Shipped, &payload))])
            }
            None => next_of(&mut segments, writer),
        };
        let rest = std::iter::from_fn(move || next(&mut writer));
        header.into_iter().map(Ok).chain(rest.flatten())
    }

    fn raw(&self) -> impl Iterator<Item = Result<Raw, StoreError>> + '_ {
        let full = self.sync == Sync::Full;
        let mut files = segment::files(self.files.changes());
        files.extend(segment::gone(self.files.gone()));
        // Before the layout, which may map them.
        let content = self.cut(SegmentKind::Content, self.files.in_order(), full);
        let layouts = if full || self.changed { segment::layouts(self.layouts.values()) } else { Vec::new() };
        let gone = if full { Vec::new() } else { self.gone() };
        let pages = self.memory.iter().flat_map(move |(&target, memory)| {
            let pages = memory.pages.iter().map(move |(&at, &slot)| (target, at, slot));
            self.cut(SegmentKind::Pages, pages, full)
        });
        let state = self.state.as_deref().map(encode).map_or_else(Vec::new, |state| segment::state(&state));
        let files = files.into_iter().map(Ok).chain(content);
        files.chain(layouts.into_iter().chain(gone).map(Ok)).chain(pages).chain(state.into_iter().map(Ok))
    }

    fn gone(&self) -> Vec<Raw> {
        let mut gone: BTreeMap<PageTarget, RangeSet> = BTreeMap::new();
        for (&target, memory) in &self.memory {
            gone.entry(target).or_default().extend(memory.gone.iter());
        }
        for (&space, alive) in &self.alive {
            // What a receiver would keep, going from the first layout to the last at once, and must not.
            let mappings =
                |layouts: &Layouts| layouts.get(&space).map_or(Vec::new(), |it| it.mappings.clone());
            let mut stale = surviving(&mappings(&self.began), &mappings(&self.layouts));
            alive.iter().for_each(|range| stale.remove(range));
            gone.entry(PageTarget::Space(space)).or_default().extend(stale.iter());
        }
        let (sizes, began) = (object_sizes(&self.layouts), object_sizes(&self.began));
        for key in &self.lost {
            let size = began.get(key).copied().unwrap_or(0).next_multiple_of(PAGE_BYTES);
            gone.entry(PageTarget::Object(*key)).or_default().insert(Range::new(0, size));
        }
        for (target, ranges) in &mut gone {
            if let PageTarget::Object(key) = target {
                let end = sizes.get(key).map_or(0, |size| size.next_multiple_of(PAGE_BYTES));
                ranges.remove(Range::new(end, u64::MAX));
            }
        }
        segment::gone(gone)
    }

    /// Pages in the order of their windows: a full checkpoint's by windows, another's as they fit.
    fn cut<'a>(
        &'a self,
        kind: SegmentKind,
        pages: impl Iterator<Item = (PageTarget, u64, Slot)> + 'a,
        full: bool,
    ) -> impl Iterator<Item = Result<Raw, StoreError>> + 'a {
        let mut pages = pages.peekable();
        std::iter::from_fn(move || {
            let &(first, at, _) = pages.peek()?;
            let window = Window::of(first, at);
            let mut writer = PagesWriter::new(kind, first);
            while let Some((target, at, slot)) = pages.next_if(|&(target, at, _)| match full {
                true => Window::of(target, at) == window,
                false => !writer.is_full(),
            }) {
                match self.spool.get(slot) {
                    Ok(piece) => writer.add(target, at, &piece),
                    Err(why) => return Some(Err(why)),
                }
            }
            writer.finish().map(Ok)
        })
    }
}

impl Memory {
    fn forget(&mut self, range: Range, spool: &mut Spool) {
        self.drop_pages(range, spool);
        self.gone.remove(range);
    }

    pub(crate) fn drop_pages(&mut self, range: Range, spool: &mut Spool) {
        let dropped: Vec<u64> = self.pages.range(range.start..range.end).map(|(&at, _)| at).collect();
        for at in dropped {
            self.pages.remove(&at).into_iter().for_each(|slot| spool.drop_page(slot));
        }
    }

    /// What lies behind the end of an object is zero, also when it grows again.
    pub(crate) fn zero_tail(&mut self, size: u64, spool: &mut Spool) -> Result<(), StoreError> {
        let page = size - size % PAGE_BYTES;
        match self.pages.get(&page) {
            Some(&slot) => spool.zero(slot, (size - page) as usize),
            None => Ok(()),
        }
    }
}

/// The frames of the next segment, or the last.
fn next_of(
    segments: &mut impl Iterator<Item = Result<Raw, StoreError>>,
    writer: &mut Option<FrameWriter>,
) -> Option<Vec<Result<Bytes, StoreError>>> {
    match segments.next() {
        Some(Ok(raw)) => {
            let writer = writer.as_mut()?;
            let number = |frame: Frame| Ok(writer.frame(frame.kind, &frame.payload));
            Some(raw.frames().into_iter().map(number).collect())
        }
        Some(Err(why)) => Some(vec![Err(why)]),
        None => Some(vec![Ok(writer.take()?.end())]),
    }
}

pub(crate) fn object_sizes(layouts: &Layouts) -> BTreeMap<ObjectKey, u64> {
    let objects = layouts.values().flat_map(|layout| &layout.objects);
    objects.map(|object| (object.key, object.size_bytes)).collect()
}
