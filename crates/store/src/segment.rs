//! Segments: frames of `image`, joined and compressed, in objects that are called by their own digest.
//!
//! The frames of a segment count from zero; a reader numbers them anew for the epoch that they go into.

use bytes::Bytes;
use image::batch::BatchWriter;
use image::frame::{FrameWriter, HEADER_BYTES};
use image::layout::Layout;
use image::{FileChanges, Frame, FrameKind, PAGE_BYTES, PageTarget, RangeSet};

use crate::manifest::{Digest, SegmentKind, SegmentRef};
use crate::pages::{PAGE, Piece};

/// As much as a window of pages is.
pub(crate) const SEGMENT_BYTES: usize = 4 << 20;
/// Nothing that we write is longer when it is unpacked; what says so is damaged.
pub(crate) const RAW_BYTES_MAX: u64 = 16 << 20;
/// The fastest: what is sent once has to be packed once.
const LEVEL: i32 = 1;

/// A segment before it is packed.
#[derive(Debug)]
pub(crate) struct Raw {
    kind: SegmentKind,
    target: Option<PageTarget>,
    span: (u64, u64),
    bytes: Vec<u8>,
}

/// A segment, ready to be stored.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) about: SegmentRef,
    pub(crate) stored: Bytes,
}

impl Raw {
    pub(crate) fn pack(&self) -> Packed {
        let stored = zstd::bulk::compress(&self.bytes, LEVEL).expect("packing in memory cannot fail");
        let about = SegmentRef {
            digest: Digest::of(&stored),
            kind: self.kind,
            bytes: self.bytes.len() as u64,
            stored_bytes: stored.len() as u64,
            target: self.target.map(Into::into),
            first: self.span.0,
            last: self.span.1,
        };
        Packed { about, stored: stored.into() }
    }

    pub(crate) fn frames(self) -> Vec<Frame> {
        parse(self.kind, self.bytes).expect("frames that were just made")
    }
}

/// The frames of a stored segment; an error says what is wrong with it.
pub(crate) fn unpack(about: &SegmentRef, stored: &[u8]) -> Result<Vec<Frame>, String> {
    if stored.len() as u64 != about.stored_bytes {
        return Err(format!("it has {} bytes instead of {}", stored.len(), about.stored_bytes));
    }
    if Digest::of(stored) != about.digest {
        return Err("its content is not what its name says".to_owned());
    }
    if about.bytes > RAW_BYTES_MAX {
        return Err(format!("unpacked it would have {} bytes", about.bytes));
    }
    let raw = zstd::bulk::decompress(stored, about.bytes as usize).map_err(|why| why.to_string())?;
    parse(about.kind, raw)
}

fn parse(kind: SegmentKind, raw: Vec<u8>) -> Result<Vec<Frame>, String> {
    let mut rest = Bytes::from(raw);
    let mut frames: Vec<Frame> = Vec::new();
    while !rest.is_empty() {
        let mut from: &[u8] = &rest;
        let frame = Frame::read(&mut from).map_err(|why| why.to_string())?.ok_or("a frame is missing")?;
        if frame.sequence != frames.len() as u64 || frame.kind != kind_of(kind) {
            return Err("its frames are not those of such a segment".to_owned());
        }
        // The same bytes once more, which share the segment's memory.
        let payload = rest.slice(HEADER_BYTES..HEADER_BYTES + frame.payload.len());
        rest = rest.slice(HEADER_BYTES + frame.payload.len()..);
        frames.push(Frame { payload, ..frame });
    }
    Ok(frames)
}

fn kind_of(kind: SegmentKind) -> FrameKind {
    match kind {
        SegmentKind::Shipped => FrameKind::Shipped,
        SegmentKind::Files => FrameKind::Files,
        SegmentKind::Layout => FrameKind::Layout,
        SegmentKind::Content | SegmentKind::Gone | SegmentKind::Pages => FrameKind::Pages,
        SegmentKind::State => FrameKind::State,
    }
}

pub(crate) fn layouts<'a>(layouts: impl Iterator<Item = &'a Layout>) -> Vec<Raw> {
    let mut joiner = Joiner::new(SegmentKind::Layout);
    for layout in layouts {
        for part in layout.parts() {
            joiner.add(&image::frame::encode(&part));
        }
    }
    joiner.finish()
}

pub(crate) fn files(changes: FileChanges) -> Vec<Raw> {
    let mut joiner = Joiner::new(SegmentKind::Files);
    for part in changes.parts() {
        joiner.add(&image::frame::encode(&part));
    }
    joiner.finish()
}

pub(crate) fn state(state: &[u8]) -> Vec<Raw> {
    let mut joiner = Joiner::new(SegmentKind::State);
    for slice in state.chunks(SEGMENT_BYTES) {
        joiner.add(slice);
    }
    joiner.finish()
}

/// For the content of one file.
pub(crate) fn shipping() -> Joiner {
    Joiner::new(SegmentKind::Shipped)
}

/// Frames that need no order by place.
pub(crate) struct Joiner {
    kind: SegmentKind,
    writer: FrameWriter,
    raw: Vec<u8>,
    done: Vec<Raw>,
}

impl Joiner {
    fn new(kind: SegmentKind) -> Self {
        Self { kind, writer: FrameWriter::default(), raw: Vec::new(), done: Vec::new() }
    }

    pub(crate) fn add(&mut self, payload: &[u8]) {
        self.raw.extend_from_slice(&self.writer.frame(kind_of(self.kind), payload));
        if self.raw.len() >= SEGMENT_BYTES {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let bytes = std::mem::take(&mut self.raw);
        self.done.push(Raw { kind: self.kind, target: None, span: (0, 0), bytes });
        self.writer = FrameWriter::default();
    }

    /// What is as long as a segment is to be.
    pub(crate) fn take(&mut self) -> Vec<Raw> {
        std::mem::take(&mut self.done)
    }

    pub(crate) fn finish(mut self) -> Vec<Raw> {
        if !self.raw.is_empty() {
            self.cut();
        }
        self.done
    }
}

/// The ranges that read as empty.
pub(crate) fn gone(gone: impl IntoIterator<Item = (PageTarget, RangeSet)>) -> Vec<Raw> {
    let mut joiner = Joiner::new(SegmentKind::Gone);
    for (target, ranges) in gone {
        let mut batch = BatchWriter::new(target);
        for range in ranges.iter() {
            batch.gone(range);
            if batch.room_bytes() == 0 {
                joiner.add(&batch.finish());
            }
        }
        if !batch.is_empty() {
            joiner.add(&batch.finish());
        }
    }
    joiner.finish()
}

/// Pages in the order of their windows, up to the size of a segment.
#[derive(Debug)]
pub(crate) struct PagesWriter {
    kind: SegmentKind,
    /// Whose the first page is.
    first: PageTarget,
    target: PageTarget,
    frames: FrameWriter,
    batch: BatchWriter,
    run: Vec<u8>,
    run_start: u64,
    raw: Vec<u8>,
    span: Option<(u64, u64)>,
}

impl PagesWriter {
    /// For pages of memory or for those of files; the first is one of `target`'s.
    pub(crate) fn new(kind: SegmentKind, target: PageTarget) -> Self {
        Self {
            kind,
            first: target,
            target,
            frames: FrameWriter::default(),
            batch: BatchWriter::new(target),
            run: Vec::new(),
            run_start: 0,
            raw: Vec::new(),
            span: None,
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.raw.len() + self.batch.len_bytes() + self.run.len() >= SEGMENT_BYTES
    }

    pub(crate) fn add(&mut self, target: PageTarget, at: u64, piece: &Piece) {
        if target != self.target {
            self.end_frame();
            (self.target, self.batch) = (target, BatchWriter::new(target));
        }
        if self.batch.room_bytes() < self.run.len() + 2 * PAGE {
            self.end_frame();
        }
        let (first, _) = self.span.unwrap_or((at, at));
        self.span = Some((first, at));
        match piece {
            Piece::Whole(page) => {
                if self.run_start + self.run.len() as u64 != at {
                    self.end_run();
                }
                if self.run.is_empty() {
                    self.run_start = at;
                }
                self.run.extend_from_slice(page);
            }
            Piece::Lines { lines, page } => {
                self.end_run();
                self.batch.lines(at, *lines, page);
            }
        }
    }

    fn end_run(&mut self) {
        if !self.run.is_empty() {
            self.batch.whole(self.run_start, &self.run);
            self.run.clear();
        }
    }

    fn end_frame(&mut self) {
        self.end_run();
        if !self.batch.is_empty() {
            let payload = self.batch.finish();
            self.raw.extend_from_slice(&self.frames.frame(FrameKind::Pages, &payload));
        }
    }

    /// None, if nothing was added.
    pub(crate) fn finish(mut self) -> Option<Raw> {
        self.end_frame();
        let span = self.span?;
        Some(Raw { kind: self.kind, target: Some(self.first), span, bytes: self.raw })
    }
}

const _: () = assert!(PAGE_BYTES as usize == PAGE);

#[cfg(test)]
mod tests {
    use image::PageBatch;
    use image::batch::Pages;

    use super::*;

    fn sample() -> Packed {
        const TARGET: PageTarget = PageTarget::Space(0);
        let mut writer = PagesWriter::new(SegmentKind::Pages, TARGET);
        for page in 0..300_u64 {
            writer.add(TARGET, page * PAGE_BYTES, &Piece::Whole(vec![page as u8; PAGE]));
        }
        writer.add(TARGET, 400 * PAGE_BYTES, &Piece::Lines { lines: 0b1001, page: vec![5; PAGE] });
        writer.finish().unwrap().pack()
    }

    #[test]
    fn pages_survive_packing_and_unpacking() {
        let packed = sample();
        assert_eq!((packed.about.first, packed.about.last), (0, 400 * PAGE_BYTES));
        let frames = unpack(&packed.about, &packed.stored).unwrap();
        assert!(frames.len() > 1, "a frame has a limit");
        let mut seen = 0;
        for frame in frames {
            for pages in PageBatch::decode(frame.payload).unwrap().pages {
                for (at, piece) in crate::pages::pieces(&pages) {
                    let page = at / PAGE_BYTES;
                    let expected = if page == 400 { 5 } else { page as u8 };
                    assert!(matches!(pages, Pages::Lines { .. }) == (page == 400));
                    assert_eq!(piece.bytes()[0], expected);
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, 301);
    }

    #[test]
    fn the_same_pages_are_the_same_segment() {
        assert_eq!(sample().about, sample().about);
    }

    #[test]
    fn every_flipped_bit_and_a_lie_about_its_size_is_an_error() {
        let Packed { about, stored } = state(b"some state").remove(0).pack();
        assert!(unpack(&about, &stored).is_ok());
        for bit in 0..stored.len() * 8 {
            let mut bad = stored.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(unpack(&about, &bad).is_err(), "bit {bit} flipped unseen");
        }
        assert!(unpack(&about, &stored[1..]).is_err());
        assert!(unpack(&SegmentRef { bytes: u64::MAX, ..about }, &stored).is_err());
    }
}
