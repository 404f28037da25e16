//! Frames that wait, in the order in which they came.
//!
//! Frames lie one after the other in *chunks*. A chunk belongs to one epoch, so that whoever sends it needs no
//! lock on it; an epoch of a few small frames gets a chunk of just their size, since there may be many such
//! epochs. Chunks that were sent are used again: their pages are there already.

use std::collections::VecDeque;

use image::CheckpointId;

/// The longest frame that the kernel hands over: a header, and 64 KiB of packets not yet cut up.
pub const FRAME_BYTES_MAX: usize = 66 << 10;
const CHUNK_BYTES: usize = 512 << 10;
/// A chunk with less in it is copied instead of given away.
const SMALL_BYTES: usize = 32 << 10;
const SPARES_MAX: usize = 32;

/// Frames in one piece of memory.
#[derive(Debug, Default)]
pub struct Chunk {
    pub bytes: Vec<u8>,
    /// Where each frame ends; the next starts there.
    ends: Vec<usize>,
}

impl Chunk {
    /// What a frame takes beyond its bytes.
    pub const OVERHEAD_BYTES: usize = size_of::<usize>();

    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[*start..*end])
    }

    pub fn count(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// What it really takes of our memory.
    pub fn cost(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * Self::OVERHEAD_BYTES
    }

    /// What its frames take.
    pub fn load(&self) -> usize {
        self.bytes.len() + self.ends.len() * Self::OVERHEAD_BYTES
    }

    /// The bytes that were added behind the last frame are a frame.
    pub fn accept(&mut self) {
        self.ends.push(self.bytes.len());
    }

    /// The bytes that were added behind the last frame are none.
    pub fn reject(&mut self) {
        self.bytes.truncate(self.start_of_next());
    }

    pub fn start_of_next(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    pub fn has_room(&self) -> bool {
        self.bytes.capacity() - self.bytes.len() >= FRAME_BYTES_MAX
    }

    pub fn append(&mut self, frame: &[u8]) {
        self.bytes.extend(frame);
        self.accept();
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

/// Chunks to write to.
#[derive(Debug, Default)]
pub struct Spares(Vec<Chunk>);

impl Spares {
    pub fn take(&mut self) -> Chunk {
        self.0.pop().unwrap_or_else(|| Chunk { bytes: Vec::with_capacity(CHUNK_BYTES), ends: Vec::new() })
    }

    pub fn give(&mut self, mut chunk: Chunk) {
        if self.0.len() < SPARES_MAX && chunk.bytes.capacity() >= CHUNK_BYTES {
            chunk.clear();
            self.0.push(chunk);
        }
    }
}

/// What came since the last barrier.
#[derive(Debug)]
pub struct Unmarked {
    pub full: Vec<Chunk>,
    /// What is written to.
    pub last: Chunk,
}

impl Unmarked {
    pub fn new(spares: &mut Spares) -> Self {
        Self { full: Vec::new(), last: spares.take() }
    }

    pub fn is_empty(&self) -> bool {
        self.full.is_empty() && self.last.is_empty()
    }

    /// Everything in it, with little copied; it is empty afterwards.
    pub fn seal(&mut self, spares: &mut Spares) -> Vec<Chunk> {
        let mut sealed = std::mem::take(&mut self.full);
        if self.last.is_empty() {
            return sealed;
        }
        if self.last.bytes.len() < SMALL_BYTES {
            sealed.push(Chunk { bytes: self.last.bytes.clone(), ends: self.last.ends.clone() });
            self.last.clear();
        } else {
            sealed.push(std::mem::replace(&mut self.last, spares.take()));
        }
        sealed
    }
}

/// What waits for an epoch to be committed.
#[derive(Debug, Default)]
pub struct Marked {
    epochs: VecDeque<(CheckpointId, Vec<Chunk>)>,
}

impl Marked {
    pub fn push(&mut self, epoch: CheckpointId, chunks: Vec<Chunk>) {
        if chunks.is_empty() {
            return;
        }
        match self.epochs.back_mut() {
            // A mark that was made again, or late.
            Some((last, waiting)) if *last >= epoch => waiting.extend(chunks),
            _ => self.epochs.push_back((epoch, chunks)),
        }
    }

    /// The oldest epoch's chunks, if `epoch` covers them.
    pub fn pop(&mut self, epoch: CheckpointId) -> Option<Vec<Chunk>> {
        self.epochs.pop_front_if(|(oldest, _)| *oldest <= epoch).map(|(_, chunks)| chunks)
    }

    pub fn clear(&mut self) {
        self.epochs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(frames: &[&[u8]]) -> Vec<Chunk> {
        let mut spares = Spares::default();
        let mut unmarked = Unmarked::new(&mut spares);
        frames.iter().for_each(|frame| unmarked.last.append(frame));
        unmarked.seal(&mut spares)
    }

    fn frames(chunks: &[Chunk]) -> Vec<Vec<u8>> {
        chunks.iter().flat_map(|chunk| chunk.frames().map(<[u8]>::to_vec)).collect()
    }

    #[test]
    fn epochs_come_out_in_order_and_no_further_than_asked() {
        let mut marked = Marked::default();
        marked.push(CheckpointId::new(1, 1), sealed(&[b"a", b"bc"]));
        marked.push(CheckpointId::new(1, 2), sealed(&[b"d"]));
        marked.push(CheckpointId::new(1, 3), sealed(&[b"e"]));
        assert!(marked.pop(CheckpointId::new(1, 0)).is_none());
        let upto = CheckpointId::new(1, 2);
        assert_eq!(frames(&marked.pop(upto).unwrap()), [b"a".to_vec(), b"bc".to_vec()]);
        assert_eq!(frames(&marked.pop(upto).unwrap()), [b"d".to_vec()]);
        assert!(marked.pop(upto).is_none());
    }

    #[test]
    fn a_few_small_frames_cost_a_few_bytes() {
        let chunks = sealed(&[&[7; 60], &[8; 60]]);
        assert!(chunks.iter().map(Chunk::cost).sum::<usize>() < 1024);
        assert_eq!(chunks.iter().map(Chunk::count).sum::<usize>(), 2);
    }

    #[test]
    fn rejected_frame_leaves_those_before_it() {
        let mut chunk = Spares::default().take();
        chunk.append(b"one");
        chunk.bytes.extend(b"two");
        chunk.reject();
        chunk.append(b"three");
        assert_eq!(frames(&[chunk]), [b"one".to_vec(), b"three".to_vec()]);
    }

    #[test]
    fn sent_chunks_are_used_again() {
        let mut spares = Spares::default();
        let mut chunk = spares.take();
        chunk.append(&vec![1; SMALL_BYTES]);
        let address = chunk.bytes.as_ptr();
        spares.give(chunk);
        let again = spares.take();
        assert_eq!(again.bytes.as_ptr(), address);
        assert!(again.is_empty() && again.bytes.is_empty());
    }
}
