//! Where pages go while the app stands still: buffers that were touched before.
//!
//! A fresh page costs 1 to 7 µs at its first touch, as much as the copy itself or more; so buffers are kept
//! and filled up outside the freeze.

use std::ops::Deref;

use image::{PAGE_BYTES, PageTarget, Range};

/// The size of one buffer.
pub const CHUNK_BYTES: usize = 1 << 20;

/// A buffer with pages in it: the ranges' bytes, one after the other.
#[derive(Debug)]
pub struct Chunk {
    pub target: PageTarget,
    pub ranges: Vec<Range>,
    pub bytes: Staged,
}

/// A buffer that is filled from its start; the rest of it stays as it was, and touched.
#[derive(Debug, Default)]
pub struct Staged {
    buffer: Vec<u8>,
    filled: usize,
}

impl Staged {
    /// All of it, to be filled.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Says how much of it was.
    pub fn cut(&mut self, filled: usize) {
        self.filled = filled.min(self.buffer.len());
    }
}

impl From<Vec<u8>> for Staged {
    fn from(buffer: Vec<u8>) -> Self {
        Self { filled: buffer.len(), buffer }
    }
}

impl Deref for Staged {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }
}

impl Chunk {
    /// Each page with its address.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let addresses =
            self.ranges.iter().flat_map(|range| (range.start..range.end).step_by(PAGE_BYTES as usize));
        addresses.zip(self.bytes.chunks_exact(PAGE_BYTES as usize))
    }
}

/// Spare buffers, all of [`CHUNK_BYTES`] and touched.
#[derive(Debug, Default)]
pub struct Buffers {
    spare: Vec<Staged>,
    /// Most buffers taken between two refills of late.
    wanted: usize,
    /// Since the last refill.
    taken: usize,
}

impl Buffers {
    pub fn take(&mut self) -> Staged {
        self.taken += 1;
        self.spare.pop().unwrap_or_else(touched)
    }

    /// Keeps it if it is one of ours.
    pub fn give_back(&mut self, bytes: Staged) {
        if bytes.buffer.len() == CHUNK_BYTES {
            self.spare.push(bytes);
        }
    }

    /// Makes as many spare buffers as were wanted of late, and lets go of more. Not in a freeze, and when all
    /// that can come back has.
    pub fn refill(&mut self) {
        const LEAST: usize = 4;
        // A few more are kept for good: to make one anew costs as much as dozens of copies.
        let decayed = self.wanted - self.wanted / 16;
        self.wanted = decayed.max(std::mem::take(&mut self.taken));
        let target = self.wanted + LEAST;
        self.spare.truncate(target);
        self.spare.resize_with(target, touched);
    }
}

fn touched() -> Staged {
    // Not zeroes: the allocator would hand out pages that are zero because nobody touched them.
    Staged { buffer: vec![u8::MAX; CHUNK_BYTES], filled: 0 }
}
