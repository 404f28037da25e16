//! `PAGEMAP_SCAN`: which pages of another process were written, are there, are zero or are a file's.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::check;

/// Page categories of `PAGEMAP_SCAN`.
pub mod category {
    /// The page may be write-protected: its mapping is registered with a userfaultfd.
    pub const TRACKABLE: u64 = 1 << 0;
    pub const WRITTEN: u64 = 1 << 1;
    pub const FILE: u64 = 1 << 2;
    pub const PRESENT: u64 = 1 << 3;
    /// Swapped out, or a write-protection marker of an empty page.
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
