//! An epoch as it comes in: frames in, a whole and verified epoch out.

use std::sync::Arc;

use image::change::Slices;
use image::frame::{Frame, FrameError, FrameKind, FrameOrder};
use image::layout::{Layout, LayoutPart, Mapping};
use image::state::State;
use image::{CheckpointId, FileChanges, Header, PageBatch, PageTarget, Shipped};

/// An incremental epoch, whole and decoded.
#[derive(Debug, Clone)]
pub struct EpochBytes {
    pub header: Header,
    pub layout: Option<Layout>,
    pub batches: Vec<PageBatch>,
    /// What changed in state directories; these are not the skeleton's.
    pub files: FileChanges,
    pub content: Vec<PageBatch>,
    pub state: State,
}

/// What a frame brought.
#[derive(Debug)]
pub enum Piece {
    Header(Header),
    Layout(Layout),
    Pages(PageBatch),
    /// Changes of files in state directories, or a part of them.
    Files(FileChanges),
    /// Pages of such files.
    Content(PageBatch),
    /// Content of a file that the app has and this host lacks.
    Shipped(Shipped),
    /// A slice of the state, or a part of a layout: more of it follows.
    Part,
    End(Box<State>),
}

/// Takes the frames of one epoch in their order. Bounded: an epoch that is longer is refused.
#[derive(Debug)]
pub struct Incoming {
    order: FrameOrder,
    /// What it goes on from.
    before: Option<(CheckpointId, Arc<State>)>,
    state: Slices,
    layout: Vec<Mapping>,
    /// A part of changes to files came, and not the last.
    more_files: bool,
    bytes: u64,
    bytes_max: u64,
}

/// Far above any `vm.max_map_count`.
const MAPPINGS_MAX: usize = 4 << 20;

impl Incoming {
    /// `bytes_max` bounds what is held of pages until the epoch is whole; a full sync that is applied as it
    /// comes needs no bound.
    pub fn new(bytes_max: u64) -> Self {
        let (order, state, layout) = (FrameOrder::default(), Slices::default(), Vec::new());
        Self { order, before: None, state, layout, more_files: false, bytes: 0, bytes_max }
    }

    pub fn accept(&mut self, frame: &Frame) -> Result<Piece, FrameError> {
        self.order.accept(frame)?;
        self.bytes += frame.payload.len() as u64;
        if self.bytes > self.bytes_max {
            return Err(FrameError::Length(self.bytes));
        }
        if self.more_files && frame.kind != FrameKind::Files {
            return Err(FrameError::Place(frame.kind));
        }
        Ok(match frame.kind {
            FrameKind::Header => Piece::Header(frame.decode("header")?),
            FrameKind::Layout => self.join(frame.decode("layout")?)?,
            FrameKind::Pages => {
                let batch = PageBatch::decode(frame.payload.clone())?;
                match batch.target {
                    PageTarget::Space(_) | PageTarget::Object(_) => Piece::Pages(batch),
                    PageTarget::File(_) => Piece::Content(batch),
                }
            }
            FrameKind::Files => {
                let changes: FileChanges = frame.decode("changes of files")?;
                self.more_files = changes.more;
                Piece::Files(changes)
            }
            FrameKind::Shipped => Piece::Shipped(frame.decode("content of a file")?),
            FrameKind::State | FrameKind::StateChange => {
                self.state.take(frame)?;
                Piece::Part
            }
            FrameKind::End => {
                let before = self.before.as_ref().map(|(id, state)| (*id, &**state));
                Piece::End(Box::new(self.state.join(before)?))
            }
        })
    }

    fn join(&mut self, part: LayoutPart) -> Result<Piece, FrameError> {
        let LayoutPart { mut layout, more } = part;
        self.layout.append(&mut layout.mappings);
        if self.layout.len() > MAPPINGS_MAX {
            return Err(FrameError::Length(self.layout.len() as u64));
        }
        if more {
            return Ok(Piece::Part);
        }
        layout.mappings = std::mem::take(&mut self.layout);
        Ok(Piece::Layout(layout))
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Collects an incremental epoch.
#[derive(Debug)]
pub struct Collector {
    incoming: Incoming,
    header: Option<Header>,
    layout: Option<Layout>,
    batches: Vec<PageBatch>,
    files: FileChanges,
    content: Vec<PageBatch>,
}

impl Collector {
    /// `before`: what it goes on from, which the state that comes may be a change of.
    pub fn new(bytes_max: u64, before: Option<(CheckpointId, Arc<State>)>) -> Self {
        Self {
            incoming: Incoming { before, ..Incoming::new(bytes_max) },
            header: None,
            layout: None,
            batches: Vec::new(),
            files: FileChanges::default(),
            content: Vec::new(),
        }
    }

    /// `Some` once the epoch is whole.
    pub fn accept(&mut self, frame: &Frame) -> Result<Option<EpochBytes>, FrameError> {
        match self.incoming.accept(frame)? {
            Piece::Header(header) => self.header = Some(header),
            // One freeze, one layout: pages before it would be meant for another one.
            Piece::Layout(_) if self.layout.is_some() || !self.batches.is_empty() => {
                return Err(FrameError::Place(FrameKind::Layout));
            }
            Piece::Layout(layout) => self.layout = Some(layout),
            Piece::Pages(batch) => self.batches.push(batch),
            Piece::Files(changes) => self.files.extend(changes),
            Piece::Content(batch) => self.content.push(batch),
            // Whoever asks for files begins anew with them.
            Piece::Shipped(_) => return Err(FrameError::Place(FrameKind::Shipped)),
            Piece::Part => (),
            Piece::End(state) => {
                let header = self.header.take().ok_or(FrameError::Place(FrameKind::End))?;
                return Ok(Some(EpochBytes {
                    header,
                    layout: self.layout.take(),
                    batches: std::mem::take(&mut self.batches),
                    files: std::mem::take(&mut self.files),
                    content: std::mem::take(&mut self.content),
                    state: *state,
                }));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use image::frame::FrameWriter;
    use image::{CheckpointId, FileId, Sync};

    use super::*;

    /// Else what the last part would have said is missing, and nobody knows.
    #[test]
    fn changes_of_files_whose_last_part_is_missing_are_refused() {
        let mut frames = FrameWriter::default();
        let header =
            Header { app: "kv".to_owned(), id: CheckpointId::new(1, 1), sync: Sync::Full, frozen_at_ns: 0 };
        let part = |more| FileChanges { gone: vec![FileId(1)], more, ..FileChanges::default() };
        let stream = [
            frames.cbor(FrameKind::Header, &header),
            frames.cbor(FrameKind::Files, &part(true)),
            frames.cbor(FrameKind::State, &0),
        ];
        let mut incoming = Incoming::new(u64::MAX);
        let mut accept = |bytes| incoming.accept(&Frame::parse(bytes).expect("a frame")).map(drop);
        let told: Vec<_> = stream.into_iter().map(&mut accept).collect();
        assert!(matches!(told[..], [Ok(()), Ok(()), Err(FrameError::Place(FrameKind::State))]), "{told:?}");
        let mut whole = FrameWriter::default();
        let stream = [
            whole.cbor(FrameKind::Header, &header),
            whole.cbor(FrameKind::Files, &part(true)),
            whole.cbor(FrameKind::Files, &part(false)),
            whole.cbor(FrameKind::State, &0),
        ];
        let mut incoming = Incoming::new(u64::MAX);
        for bytes in stream {
            incoming.accept(&Frame::parse(bytes).expect("a frame")).expect("its place");
        }
    }
}
