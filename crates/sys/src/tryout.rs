//! Private memory to try the kernel's page tracking on.

use std::io;
use std::ptr::NonNull;

/// Anonymous memory, not touched yet.
#[derive(Debug)]
pub struct Tryout {
    start: NonNull<u8>,
    len: usize,
}

impl Tryout {
    pub fn new(len: usize) -> io::Result<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: NonNull::new(start.cast()).expect("mmap never returns zero"), len })
    }

    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Writes every byte.
    pub fn fill(&self, byte: u8) {
        // SAFETY: the mapping is ours alone, writable and of this length.
        unsafe { self.start.as_ptr().write_bytes(byte, self.len) };
    }

    /// Writes one byte.
    pub fn touch(&self, at: usize, byte: u8) {
        assert!(at < self.len, "{at} is outside");
        let to = self.start.as_ptr().wrapping_add(at);
        // SAFETY: the assertion keeps the byte inside the mapping, which is ours alone and writable.
        unsafe { to.write_volatile(byte) };
    }

    /// `MADV_DONTNEED`.
    pub fn drop_pages(&self, at: usize, len: usize) -> io::Result<()> {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "{at}+{len} is outside");
        let from = self.start.as_ptr().wrapping_add(at);
        // SAFETY: the range lies in the mapping, which holds nothing that anybody relies on.
        crate::check(unsafe { libc::madvise(from.cast(), len, libc::MADV_DONTNEED) }.into()).map(drop)
    }
}

impl Drop for Tryout {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, unmapped once.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
