//! From what was captured to frames. After the thaw: nothing here makes the app wait.

use bytes::Bytes;
use image::batch::BatchWriter;
use image::frame::{FrameKind, FrameWriter};
use image::{PAGE_BYTES, PageTarget, Range};

use super::shadow::{Change, Shadow};
use super::tracker::Capture;

/// Below this, a batch's room is used up and the next one is begun.
const ROOM_LEAST_BYTES: usize = PAGE_BYTES as usize;

#[derive(Debug)]
pub struct Encoder {
    shadow: Shadow,
}

impl Encoder {
    /// `shadow_bytes` bounds the memory for the last versions of pages; zero sends pages whole.
    pub fn new(shadow_bytes: u64) -> Self {
        Self { shadow: Shadow::new(shadow_bytes) }
    }

    /// What the standby has is not known any more.
    pub fn forget(&mut self) {
        self.shadow.clear();
    }

    /// Encodes a capture; the frames go to `out` as they fill up.
    pub fn encode(&mut self, capture: &Capture, frames: &mut FrameWriter, mut out: impl FnMut(Bytes)) {
        // The layout takes these away from the standby without a further word.
        for &(target, range) in &capture.unmapped {
            self.shadow.forget(target, range);
        }
        if let Some(layout) = &capture.layout {
            frames.layout(layout).into_iter().for_each(&mut out);
        }
        let mut batches = Batches { frames, out: &mut out, current: None };
        for &(target, range) in &capture.gone {
            self.shadow.forget(target, range);
            batches.of(target).gone(range);
        }
        for chunk in &capture.chunks {
            self.encode_chunk(chunk, &mut batches);
        }
        batches.flush();
    }

    fn encode_chunk(&mut self, chunk: &super::staging::Chunk, batches: &mut Batches<'_>) {
        let mut run: Option<Range> = None;
        let mut offset = 0;
        let flush = |run: &mut Option<Range>, offset: usize, batches: &mut Batches<'_>| {
            if let Some(run) = run.take() {
                let len = run.len_bytes() as usize;
                batches.of(chunk.target).whole(run.start, &chunk.bytes[offset - len..offset]);
            }
        };
        for (address, page) in chunk.pages() {
            match self.shadow.update(chunk.target, address, page) {
                Change::Whole => match &mut run {
                    Some(run)
                        if run.end == address
                            && run.len_bytes() + PAGE_BYTES <= ROOM_LEAST_BYTES as u64 * 64 =>
                    {
                        run.end += PAGE_BYTES;
                    }
                    _ => {
                        flush(&mut run, offset, batches);
                        run = Some(Range::new(address, address + PAGE_BYTES));
                    }
                },
                Change::Lines(lines) => {
                    flush(&mut run, offset, batches);
                    batches.of(chunk.target).lines(address, lines, page);
                }
                Change::None => flush(&mut run, offset, batches),
            }
            offset += PAGE_BYTES as usize;
        }
        flush(&mut run, offset, batches);
    }
}

/// The batch that is being filled, and where it goes.
struct Batches<'a> {
    frames: &'a mut FrameWriter,
    out: &'a mut dyn FnMut(Bytes),
    current: Option<(PageTarget, BatchWriter)>,
}

impl Batches<'_> {
    /// A batch of this target with room for something.
    fn of(&mut self, target: PageTarget) -> &mut BatchWriter {
        let fits =
            |(t, batch): &(PageTarget, BatchWriter)| *t == target && batch.room_bytes() >= ROOM_LEAST_BYTES;
        if !self.current.as_ref().is_some_and(fits) {
            self.flush();
        }
        &mut self.current.get_or_insert_with(|| (target, BatchWriter::new(target))).1
    }

    fn flush(&mut self) {
        if let Some((_, mut batch)) = self.current.take()
            && !batch.is_empty()
        {
            (self.out)(self.frames.frame(FrameKind::Pages, &batch.finish()));
        }
    }
}
