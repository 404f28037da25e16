//! Where pages go while the app stands still: buffers that were touched before.
//!
//! A fresh page costs 1 to 7 µs at its first touch, as much as the copy itself or more; so buffers are kept
//! and filled up outside the freeze.

use image::{PAGE_BYTES, PageTarget, Range};

/// The size of one buffer.
pub const CHUNK_BYTES: usize = 1 << 20;

/// A buffer with pages in it: the ranges' bytes, one after the other.
#[derive(Debug)]
pub struct Chunk {
    pub target: PageTarget,
    pub ranges: Vec<Range>,
    pub bytes: Vec<u8>,
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
    spare: Vec<Vec<u8>>,
    /// Most buffers in use at once of late.
    wanted: usize,
    taken: usize,
}

impl Buffers {
    pub fn take(&mut self) -> Vec<u8> {
        self.taken += 1;
        self.wanted = self.wanted.max(self.taken);
        self.spare.pop().unwrap_or_else(touched)
    }

    pub fn give_back(&mut self, mut buffer: Vec<u8>) {
        self.taken = self.taken.saturating_sub(1);
        if self.spare.len() <= self.wanted {
            buffer.resize(CHUNK_BYTES, 0);
            self.spare.push(buffer);
        }
    }

    /// Makes as many spare buffers as were wanted at once of late, and lets go of more. Not in a freeze.
    pub fn refill(&mut self) {
        const LEAST: usize = 4;
        let target = self.wanted.max(LEAST);
        self.spare.truncate(target + LEAST);
        while self.spare.len() + self.taken < target {
            self.spare.push(touched());
        }
        self.wanted -= self.wanted / 16;
    }
}

fn touched() -> Vec<u8> {
    // Not `vec![0; n]`: the allocator would hand out pages that are zero because nobody touched them.
    let mut buffer = Vec::with_capacity(CHUNK_BYTES);
    buffer.resize_with(CHUNK_BYTES, || std::hint::black_box(0));
    buffer
}
