//! Copying pages out of the app, on all cores.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use image::{PAGE_BYTES, PageTarget, Range};
use sys::memory::Piece;

use super::{CaptureError, Tracker};
use crate::memory::staging::{CHUNK_BYTES, Chunk};

impl Tracker {
    /// Copies pages into chunks. `strict`: every page must be there, since nothing runs; all workers copy then.
    pub(super) fn copy(
        &mut self,
        ranges: impl Iterator<Item = Range>,
        strict: bool,
    ) -> Result<Vec<Chunk>, CaptureError> {
        /// Written pages lie in no cache: to copy so many takes longer than to wake a worker.
        const PORTION_PAGES_MIN: u64 = 24;
        let ranges: Vec<Range> = ranges.collect();
        let total: u64 = ranges.iter().map(|range| range.pages()).sum();
        let most = (CHUNK_BYTES as u64) / PAGE_BYTES;
        let share = (total / (2 * self.workers.width() as u64)).clamp(PORTION_PAGES_MIN, most);
        let target = PageTarget::Space(self.space);
        let mut jobs = Vec::new();
        for ranges in portions(ranges, share) {
            let (pid, memory, mut bytes) = (self.pid, Arc::clone(&self.memory), self.buffers.take());
            jobs.push(move || {
                let (ranges, filled) = gather(pid, &memory, &ranges, bytes.room(), strict)?;
                bytes.cut(filled);
                Ok(Chunk { target, ranges, bytes })
            });
        }
        let results = match strict {
            true => self.workers.run(jobs),
            // The app runs, and needs the other cores.
            false => jobs.into_iter().map(|job| job()).collect(),
        };
        let chunks: Result<Vec<Chunk>, io::Error> = results.into_iter().collect();
        let chunks = chunks.map_err(self.failed("copy pages"))?;
        Ok(chunks.into_iter().filter(|chunk| !chunk.ranges.is_empty()).collect())
    }
}

/// Copies the ranges into `bytes`, and says which came, and how many bytes. What `process_vm_readv` can't read (no
/// protection to read) goes through `/proc/PID/mem`. Without `strict`, what is gone is left out.
fn gather(
    pid: i32,
    memory: &File,
    ranges: &[Range],
    bytes: &mut [u8],
    strict: bool,
) -> io::Result<(Vec<Range>, usize)> {
    let mut done = Vec::with_capacity(ranges.len());
    let mut filled = 0;
    let mut rest = ranges;
    while !rest.is_empty() {
        let pieces: Vec<Piece> = rest
            .iter()
            .take(sys::memory::VECTORS_MAX)
            .map(|range| Piece { address: range.start, len: range.len_bytes() as usize })
            .collect();
        let wanted: usize = pieces.iter().map(|piece| piece.len).sum();
        let room = &mut bytes[filled..filled + wanted];
        let mut got = match sys::memory::gather(pid, &pieces, room) {
            Ok(got) => got,
            Err(why) if why.raw_os_error() == Some(libc::EFAULT) => 0,
            Err(why) => return Err(why),
        };
        let mut whole = 0;
        for range in rest.iter().take(pieces.len()) {
            let len = range.len_bytes() as usize;
            if got < len {
                break;
            }
            got -= len;
            filled += len;
            whole += 1;
            done.push(*range);
        }
        rest = &rest[whole..];
        if whole < pieces.len() {
            let range = rest[0];
            let len = range.len_bytes() as usize;
            match memory.read_exact_at(&mut bytes[filled..filled + len], range.start) {
                Ok(()) => {
                    filled += len;
                    done.push(range);
                }
                Err(why) if strict => return Err(why),
                Err(_) => (), // Unmapped while the app runs; the freeze will see it.
            }
            rest = &rest[1..];
        }
    }
    Ok((done, filled))
}

/// Cuts ranges into portions of at most `pages` pages, and of no more pieces than one call takes.
fn portions(ranges: Vec<Range>, pages: u64) -> Vec<Vec<Range>> {
    let mut all = Vec::new();
    let (mut portion, mut filled) = (Vec::new(), 0);
    for mut range in ranges {
        while !range.is_empty() {
            let take = range.pages().min(pages - filled);
            let middle = range.start + take * PAGE_BYTES;
            portion.push(Range::new(range.start, middle));
            range.start = middle;
            filled += take;
            if filled == pages {
                all.push(std::mem::take(&mut portion));
                filled = 0;
            }
        }
    }
    if !portion.is_empty() {
        all.push(portion);
    }
    all
}
