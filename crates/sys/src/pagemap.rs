//! `PAGEMAP_SCAN`: which pages of another process were written, are there, are zero or are a file's.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use crate::check;

/// Page categories of `PAGEMAP_SCAN`.
pub mod category {
    /// The page may be write-protected: its mapping is registered with a userfaultfd.
    pub const TRACKABLE: u64 = 1 << 0;
    pub const WRITTEN: u64 = 1 << 1;
    pub const FILE: u64 = 1 << 2;
    pub const PRESENT: u64 = 1 << 3;
    /// Swapped out, on its way to another place in memory, or a write-protection marker of an empty page: a scan
    /// does not tell which, [`entries`](super::entries) do.
    pub const SWAPPED: u64 = 1 << 4;
    pub const ZERO_PAGE: u64 = 1 << 5;
    pub const HUGE: u64 = 1 << 6;
    pub const GUARD: u64 = 1 << 8;
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Region {
    pub start: u64,
    pub end: u64,
    pub categories: u64,
}

/// What a scan looks for: pages for which `categories ^ inverted` has all of `all` and, if it is not
/// empty, some of `any`. `report` picks what comes back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Query {
    pub inverted: u64,
    pub all: u64,
    pub any: u64,
    pub report: u64,
    /// Write-protects what was found, in the same step.
    pub protect: bool,
}

#[repr(C)]
struct Argument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vector: u64,
    vector_len: u64,
    max_pages: u64,
    inverted: u64,
    all: u64,
    any: u64,
    report: u64,
}

const PAGEMAP_SCAN: u64 = 0xc060_6610;
const WRITE_PROTECT_MATCHING: u64 = 1;
const _: () = assert!(size_of::<Argument>() == 0x60);

/// Scans `start..end` and hands every region found to `found`, in order. `room` is where the kernel puts
/// them; a scan that fills it goes on with another call. N.B. a large `room` costs: 0.5 µs per call above
/// 512 regions.
pub fn scan(
    pagemap: impl AsFd,
    mut start: u64,
    end: u64,
    query: Query,
    room: &mut [Region],
    mut found: impl FnMut(Region),
) -> io::Result<()> {
    while start < end {
        let mut argument = Argument {
            size: size_of::<Argument>() as u64,
            flags: if query.protect { WRITE_PROTECT_MATCHING } else { 0 },
            start,
            end,
            walk_end: 0,
            vector: room.as_mut_ptr() as u64,
            vector_len: room.len() as u64,
            max_pages: 0,
            inverted: query.inverted,
            all: query.all,
            any: query.any,
            report: query.report,
        };
        let fd = pagemap.as_fd().as_raw_fd();
        // SAFETY: `argument` is live and of the size it says; `vector` is `room`, of `vector_len` regions.
        let count = check(unsafe { libc::ioctl(fd, PAGEMAP_SCAN, &raw mut argument) }.into())? as usize;
        room[..count].iter().copied().for_each(&mut found);
        if argument.walk_end <= start {
            return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
        }
        start = argument.walk_end;
    }
    Ok(())
}

/// One word of `/proc/PID/pagemap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// Whether it is a marker: nothing is there but what the kernel is to remember of the place. N.B. false for all
    /// that is not there where the kernel does not tell who reads this (it takes `CAP_SYS_ADMIN`).
    pub fn is_marker(self) -> bool {
        const SWAPPED: u64 = 1 << 62;
        /// The kernel's kinds of entries share five bits with the numbers of swap devices; this is the last of them,
        /// however it was built.
        const MARKER: u64 = 31;
        self.0 & SWAPPED != 0 && self.0 & 31 == MARKER
    }
}

/// The entries of the pages in `start..end`.
pub fn entries(pagemap: &File, start: u64, end: u64) -> io::Result<Vec<Entry>> {
    const WORD_BYTES: u64 = 8;
    const PAGE_BYTES: u64 = 4096;
    let mut bytes = vec![0; ((end - start) / PAGE_BYTES * WORD_BYTES) as usize];
    pagemap.read_exact_at(&mut bytes, start / PAGE_BYTES * WORD_BYTES)?;
    let (words, _) = bytes.as_chunks();
    Ok(words.iter().map(|&word| Entry(u64::from_ne_bytes(word))).collect())
}
