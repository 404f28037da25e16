//! A piece of memory that a guest maps and changes as it likes. Its bytes are only ever read and written as
//! volatile ones, and no reference to them is made, so whatever happens to the mapping is no business of Rust's.
#![allow(unsafe_code, reason = "mapping memory and touching it is what these guests are for")]

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::mm::{self, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

pub const PAGE: usize = 4096;

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// A mapping of our own; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: *mut c_void,
    bytes: usize,
}

// SAFETY: the memory belongs to this value, and all accesses are volatile ones through `&self` or `&mut self`.
unsafe impl Send for Mapping {}
// SAFETY: as above; guests that share one access each byte from one thread at a time.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub fn anonymous(bytes: usize) -> io::Result<Self> {
        Self::anonymous_with(bytes, READ_WRITE, MapFlags::PRIVATE)
    }

    pub fn shared(bytes: usize) -> io::Result<Self> {
        Self::anonymous_with(bytes, READ_WRITE, MapFlags::SHARED)
    }

    /// Address space without memory: nothing in it may be touched.
    pub fn reserved(bytes: usize) -> io::Result<Self> {
        Self::anonymous_with(bytes, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)
    }

    pub fn anonymous_with(bytes: usize, protection: ProtFlags, flags: MapFlags) -> io::Result<Self> {
        // SAFETY: the kernel chooses a free place.
        let start = unsafe { mm::mmap_anonymous(ptr::null_mut(), bytes, protection, flags) }?;
        Ok(Self { start, bytes })
    }

    /// Anonymous memory in the place of what was in `range`, which must lie inside a mapping of our own.
    pub fn replace(&mut self, range: Range<usize>) -> io::Result<()> {
        let start = self.at(range.start);
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: the range lies inside of this mapping, as `at` has checked.
        unsafe { mm::mmap_anonymous(start, range.len(), READ_WRITE, flags) }?;
        Ok(())
    }

    /// Memory of a file, shared with it or private.
    pub fn of_file(file: BorrowedFd<'_>, bytes: usize, flags: MapFlags) -> io::Result<Self> {
        // SAFETY: the kernel chooses a free place.
        let start = unsafe { mm::mmap(ptr::null_mut(), bytes, READ_WRITE, flags, file, 0) }?;
        Ok(Self { start, bytes })
    }

    pub fn range(&self) -> Range<usize> {
        let start = self.start.expose_provenance();
        start..start + self.bytes
    }

    fn at(&self, offset: usize) -> *mut c_void {
        assert!(offset < self.bytes, "offset {offset} lies outside of a mapping of {} bytes", self.bytes);
        self.start.wrapping_byte_add(offset)
    }

    pub fn byte(&self, offset: usize) -> u8 {
        let at = self.at(offset).cast::<u8>();
        // SAFETY: the byte lies inside the mapping, and its guest made it readable.
        unsafe { at.read_volatile() }
    }

    pub fn set(&self, offset: usize, byte: u8) {
        let at = self.at(offset).cast::<u8>();
        // SAFETY: the byte lies inside the mapping, and its guest made it writable.
        unsafe { at.write_volatile(byte) }
    }

    /// Writes a byte of its own at the start of each page, and of its neighbour at the end.
    pub fn fill(&self, seed: u8) {
        self.fill_pages(0..self.bytes / PAGE, seed);
    }

    pub fn fill_pages(&self, pages: Range<usize>, seed: u8) {
        for page in pages {
            self.set(page * PAGE, page_byte(page, seed));
            self.set(page * PAGE + PAGE - 1, page_byte(page + 1, seed));
        }
    }

    /// The first page of `pages` that does not hold what `fill` with this seed wrote.
    pub fn first_wrong(&self, pages: Range<usize>, seed: u8) -> Option<usize> {
        pages.into_iter().find(|&page| {
            self.byte(page * PAGE) != page_byte(page, seed)
                || self.byte(page * PAGE + PAGE - 1) != page_byte(page + 1, seed)
        })
    }

    /// The first page of `pages` that has a byte other than zero at its ends.
    pub fn first_nonzero(&self, pages: Range<usize>) -> Option<usize> {
        pages.into_iter().find(|&page| self.byte(page * PAGE) != 0 || self.byte(page * PAGE + PAGE - 1) != 0)
    }

    /// `madvise` by number, for advice that libraries do not name.
    pub fn advise(&self, range: Range<usize>, advice: i32) -> io::Result<()> {
        let start = self.at(range.start);
        // SAFETY: the range lies inside of this mapping, whose content is the guest's to throw away.
        let result = unsafe { libc::madvise(start, range.len(), advice) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub fn protect(&self, range: Range<usize>, protection: MprotectFlags) -> io::Result<()> {
        let start = self.at(range.start);
        // SAFETY: the range lies inside of this mapping; the guest knows what it may touch.
        Ok(unsafe { mm::mprotect(start, range.len(), protection) }?)
    }

    pub fn unmap(&self, range: Range<usize>) -> io::Result<()> {
        let start = self.at(range.start);
        // SAFETY: the range lies inside of this mapping; the guest touches it no more.
        Ok(unsafe { mm::munmap(start, range.len()) }?)
    }

    /// Makes the mapping longer or shorter where it stands.
    pub fn resize(&mut self, bytes: usize) -> io::Result<()> {
        // SAFETY: the mapping is ours, and nobody holds a reference into it.
        self.start = unsafe { mm::mremap(self.start, self.bytes, bytes, MremapFlags::empty()) }?;
        self.bytes = bytes;
        Ok(())
    }

    /// Moves the pages of `from` to the place of the equally long range at `to`, in this mapping; a hole stays.
    pub fn move_pages(&self, from: Range<usize>, to: usize) -> io::Result<()> {
        assert!(to + from.len() <= self.bytes, "the destination lies outside of the mapping");
        let (start, destination) = (self.at(from.start), self.at(to));
        // SAFETY: both ranges lie inside of this mapping.
        unsafe { mm::mremap_fixed(start, from.len(), from.len(), MremapFlags::MAYMOVE, destination) }?;
        Ok(())
    }

    pub fn lock(&self) -> io::Result<()> {
        // SAFETY: the mapping is ours.
        Ok(unsafe { mm::mlock(self.start, self.bytes) }?)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody uses it any more; holes in it do no harm.
        let _ = unsafe { mm::munmap(self.start, self.bytes) };
    }
}

/// Never zero, and different for neighbouring pages.
fn page_byte(page: usize, seed: u8) -> u8 {
    u8::try_from((page * 7 + usize::from(seed)) % 251).unwrap_or(0) + 1
}
