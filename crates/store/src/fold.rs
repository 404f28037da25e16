//! Folding: a full checkpoint and what was stored on top of it, into one full checkpoint.
//!
//! Window by window, so that memory is bounded by one window and one segment of each epoch. A window that nothing has
//! touched keeps the segment that it has.

use std::collections::{BTreeMap, VecDeque};

use image::batch::Pages;
use image::layout::{Layout, LayoutPart, Mapping, surviving};
use image::{FileChanges, PAGE_BYTES, PageBatch, PageTarget, Range, RangeSet};

use crate::StoreError;
use crate::chain::{Chain, Link};
use crate::gathered::{Layouts, object_sizes};
use crate::manifest::{SegmentKind, SegmentRef};
use crate::objects::{Place, Store};
use crate::pages::{PAGE, Piece, Window, pieces};
use crate::run::{Run, Uploaded};
use crate::segment::{self, PagesWriter};
use crate::tree::{Effects, Tree};

/// The segments of the folded checkpoint, all of which are stored.
pub(crate) async fn fold(run: &Run, chain: &Chain) -> Result<(Vec<SegmentRef>, Uploaded), StoreError> {
    let reader = Reader { store: run.store(), place: Place { app: &chain.app, run: chain.run } };
    let (base, links) = chain.links.split_first().expect("a chain has a full checkpoint");
    let mut layouts = reader.layouts(base).await?;
    let mut tree = Tree::default();
    reader.apply_files(base, &mut tree).await?;
    let (mut steps, mut file_steps) = (Vec::new(), Vec::new());
    for link in links {
        let next = reader.layouts(link).await?;
        let dropped = reader.gone(link).await?;
        let mut file_step = Step::of(link, SegmentKind::Content, dropped.clone());
        file_step.change_files(reader.apply_files(link, &mut tree).await?);
        file_steps.push(file_step);
        let mut step = Step::of(link, SegmentKind::Pages, dropped);
        if !next.is_empty() {
            step.change_layouts(&mut layouts, next);
        }
        steps.push(step);
    }
    let mut folded = Folded { run, segments: Vec::new(), uploaded: Uploaded::default() };
    if let Some(ships) = chain.ships() {
        folded.keep(&of_kind(ships, SegmentKind::Shipped));
    }
    match links.iter().any(|link| !of_kind(link, SegmentKind::Files).is_empty()) {
        true => folded.store(segment::files(tree.since(&Tree::default()))).await?,
        false => folded.keep(&of_kind(base, SegmentKind::Files)),
    }
    fold_pages(&reader, base, SegmentKind::Content, file_steps, &mut folded).await?;
    match links.iter().any(|link| !of_kind(link, SegmentKind::Layout).is_empty()) {
        true => folded.store(segment::layouts(layouts.values())).await?,
        false => folded.keep(&of_kind(base, SegmentKind::Layout)),
    }
    fold_pages(&reader, base, SegmentKind::Pages, steps, &mut folded).await?;
    let newest = links.last().unwrap_or(base);
    folded.keep(&of_kind(newest, SegmentKind::State));
    Ok((folded.segments, folded.uploaded))
}

/// What one epoch does to memory, or to files: drops, then clears, then writes.
struct Step {
    dropped: BTreeMap<PageTarget, RangeSet>,
    /// Objects and files that were cut: their new sizes.
    tails: BTreeMap<PageTarget, u64>,
    pages: Ahead,
}

impl Step {
    fn of(link: &Link, kind: SegmentKind, dropped: BTreeMap<PageTarget, RangeSet>) -> Self {
        let pages = Ahead { segments: of_kind(link, kind).into(), pages: VecDeque::new() };
        Self { dropped, tails: BTreeMap::new(), pages }
    }

    fn cut(&mut self, target: PageTarget, size: u64) {
        let behind = Range::new(size.next_multiple_of(PAGE_BYTES), u64::MAX);
        self.dropped.entry(target).or_default().insert(behind);
        self.tails.insert(target, size);
    }

    fn change_files(&mut self, effects: Effects) {
        effects.cut.into_iter().for_each(|(id, _, size)| self.cut(PageTarget::File(id), size));
        for id in effects.gone {
            self.dropped.entry(PageTarget::File(id)).or_default().insert(Range::new(0, u64::MAX));
        }
    }

    fn change_layouts(&mut self, layouts: &mut Layouts, next: Layouts) {
        let before = object_sizes(layouts);
        for (space, layout) in next {
            let old = layouts.get(&space).map_or(&[][..], |old| &old.mappings);
            let dropped = self.dropped.entry(PageTarget::Space(space)).or_default();
            let mut unmapped: RangeSet = old.iter().map(|mapping| mapping.range).collect();
            surviving(old, &layout.mappings).iter().for_each(|range| unmapped.remove(range));
            dropped.extend(unmapped.iter());
            layouts.insert(space, layout);
        }
        let sizes = object_sizes(layouts);
        for (key, size_before) in before {
            let size = sizes.get(&key).copied().unwrap_or(0);
            if size < size_before {
                self.cut(PageTarget::Object(key), size);
            }
        }
    }

    fn touches(&self, window: Window) -> bool {
        let mut dropped = self.dropped.range(window.targets());
        dropped.any(|(_, set)| !set.within(window.range()).is_empty())
            || self.tails_in(window).next().is_some()
            || self.pages.next_in(window)
    }

    fn tails_in(&self, window: Window) -> impl Iterator<Item = (PageTarget, u64)> + '_ {
        let tails = self.tails.range(window.targets()).map(|(&target, &size)| (target, size));
        tails.filter(move |(_, size)| window.range().contains(*size))
    }
}

/// The pages of an epoch, in order, one segment in memory.
struct Ahead {
    segments: VecDeque<SegmentRef>,
    pages: VecDeque<(PageTarget, u64, Piece)>,
}

impl Ahead {
    /// Sees to it that the next page is there, if there is one.
    async fn fill(&mut self, reader: &Reader<'_>) -> Result<(), StoreError> {
        while self.pages.is_empty()
            && let Some(about) = self.segments.pop_front()
        {
            self.pages = reader.pages(&about).await?.into();
        }
        Ok(())
    }

    fn next_window(&self) -> Option<Window> {
        self.pages.front().map(|(target, at, _)| Window::of(*target, *at))
    }

    fn next_in(&self, window: Window) -> bool {
        self.next_window() == Some(window)
    }

    fn take_in(&mut self, window: Window) -> Option<(PageTarget, u64, Piece)> {
        self.pages.pop_front_if(|(target, at, _)| Window::of(*target, *at) == window)
    }
}

async fn fold_pages(
    reader: &Reader<'_>,
    base: &Link,
    kind: SegmentKind,
    mut steps: Vec<Step>,
    folded: &mut Folded<'_>,
) -> Result<(), StoreError> {
    let mut old: VecDeque<(Window, SegmentRef)> = VecDeque::new();
    for about in of_kind(base, kind) {
        let target = about.target.ok_or_else(|| reader.damaged(&about, "it says not whose pages it has"))?;
        old.push_back((Window::of(target.into(), about.first), about));
    }
    loop {
        for step in &mut steps {
            step.pages.fill(reader).await?;
        }
        let next = steps.iter().filter_map(|step| step.pages.next_window()).min();
        let Some(window) = next.into_iter().chain(old.front().map(|(window, _)| *window)).min() else {
            return Ok(());
        };
        let before = old.pop_front_if(|(at, _)| *at == window).map(|(_, about)| about);
        match before {
            Some(about) if !steps.iter().any(|step| step.touches(window)) => folded.keep(&[about]),
            before => {
                let pages = fold_window(reader, window, before, &mut steps).await?;
                let Some((&(first, _), _)) = pages.first_key_value() else { continue };
                let mut writer = PagesWriter::new(kind, first);
                pages.iter().for_each(|(&(target, at), piece)| writer.add(target, at, piece));
                folded.store(writer.finish().into_iter().collect()).await?;
            }
        }
    }
}

async fn fold_window(
    reader: &Reader<'_>,
    window: Window,
    before: Option<SegmentRef>,
    steps: &mut [Step],
) -> Result<BTreeMap<(PageTarget, u64), Piece>, StoreError> {
    let mut pages = BTreeMap::new();
    if let Some(about) = before {
        let there = reader.pages(&about).await?;
        pages.extend(there.into_iter().map(|(target, at, piece)| ((target, at), piece)));
    }
    for step in steps {
        pages.retain(|(target, at), _| step.dropped.get(target).is_none_or(|dropped| !dropped.contains(*at)));
        for (target, size) in step.tails_in(window) {
            clear_tail(&mut pages, target, size);
        }
        // A window's pages may go on in the next segment.
        while let Some((target, at, piece)) = step.pages.take_in(window) {
            let old = pages.remove(&(target, at));
            pages.insert((target, at), piece.over(old));
            step.pages.fill(reader).await?;
        }
    }
    Ok(pages)
}

/// What lies behind the end of an object or of a file is zero.
fn clear_tail(pages: &mut BTreeMap<(PageTarget, u64), Piece>, target: PageTarget, size: u64) {
    let (page, from) = (size - size % PAGE_BYTES, (size % PAGE_BYTES) as usize);
    if let Some(piece) = pages.get_mut(&(target, page)) {
        let bytes = match piece {
            Piece::Whole(bytes) | Piece::Lines { page: bytes, .. } => bytes,
        };
        bytes[from..PAGE].fill(0);
    }
}

fn of_kind(link: &Link, kind: SegmentKind) -> Vec<SegmentRef> {
    link.manifest.segments.iter().filter(|about| about.kind == kind).cloned().collect()
}

struct Folded<'a> {
    run: &'a Run,
    segments: Vec<SegmentRef>,
    uploaded: Uploaded,
}

impl Folded<'_> {
    fn keep(&mut self, segments: &[SegmentRef]) {
        for about in segments {
            self.uploaded.count(about, false);
            self.segments.push(about.clone());
        }
    }

    async fn store(&mut self, segments: Vec<segment::Raw>) -> Result<(), StoreError> {
        for packed in segments.iter().map(segment::Raw::pack) {
            let sent = self.run.put(&packed).await?;
            self.uploaded.count(&packed.about, sent);
            self.segments.push(packed.about);
        }
        Ok(())
    }
}

struct Reader<'a> {
    store: &'a Store,
    place: Place<'a>,
}

impl Reader<'_> {
    fn damaged(&self, about: &SegmentRef, why: &str) -> StoreError {
        let object = self.store.say(&self.store.segment_path(self.place, about.digest));
        StoreError::Damaged { object, why: why.to_owned() }
    }

    async fn batches(&self, about: &SegmentRef) -> Result<Vec<PageBatch>, StoreError> {
        let frames = self.store.segment(self.place, about).await?;
        let decode = |frame: image::Frame| PageBatch::decode(frame.payload);
        let batches: Result<Vec<_>, _> = frames.into_iter().map(decode).collect();
        batches.map_err(|why| self.damaged(about, &why.to_string()))
    }

    async fn pages(&self, about: &SegmentRef) -> Result<Vec<(PageTarget, u64, Piece)>, StoreError> {
        let mut found = Vec::new();
        for batch in self.batches(about).await? {
            let of_record = |record: &Pages| pieces(record);
            let pages = batch.pages.iter().flat_map(of_record);
            found.extend(pages.map(|(at, piece)| (batch.target, at, piece)));
        }
        Ok(found)
    }

    async fn gone(&self, link: &Link) -> Result<BTreeMap<PageTarget, RangeSet>, StoreError> {
        let mut gone: BTreeMap<PageTarget, RangeSet> = BTreeMap::new();
        for about in of_kind(link, SegmentKind::Gone) {
            for batch in self.batches(&about).await? {
                gone.entry(batch.target).or_default().extend(batch.pages.iter().map(Pages::range));
            }
        }
        Ok(gone)
    }

    /// Takes in what a link says of files.
    async fn apply_files(&self, link: &Link, tree: &mut Tree) -> Result<Effects, StoreError> {
        let of_files = of_kind(link, SegmentKind::Files);
        let Some(first) = of_files.first() else { return Ok(Effects::default()) };
        let mut changes = FileChanges::default();
        for about in &of_files {
            for frame in self.store.segment(self.place, about).await? {
                let part = frame.decode("changes of files");
                changes.extend(part.map_err(|why| self.damaged(about, &why.to_string()))?);
            }
        }
        tree.apply(changes).map_err(|why| self.damaged(first, &why))
    }

    async fn layouts(&self, link: &Link) -> Result<Layouts, StoreError> {
        let mut layouts = Layouts::new();
        let mut parts: Vec<Mapping> = Vec::new();
        for about in of_kind(link, SegmentKind::Layout) {
            for frame in self.store.segment(self.place, &about).await? {
                let part = frame.decode("layout");
                let LayoutPart { mut layout, more } =
                    part.map_err(|why| self.damaged(&about, &why.to_string()))?;
                parts.append(&mut layout.mappings);
                if !more {
                    let mappings = std::mem::take(&mut parts);
                    layouts.insert(layout.space, Layout { mappings, ..layout });
                }
            }
        }
        Ok(layouts)
    }
}
