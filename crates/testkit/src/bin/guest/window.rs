//! A stretch of address space at a fixed place, in which anything may be mapped or nothing. An access that the
//! kernel refuses is skipped instead of ending the guest, so that chance may choose operations and addresses.
#![allow(unsafe_code, reason = "mapping at chosen addresses and touching them is what these guests are for")]

use std::arch::asm;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr;

use crate::mapping::PAGE;

pub const READ: i32 = libc::PROT_READ;
pub const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
pub const NOTHING: i32 = libc::PROT_NONE;
/// What `r15` holds while an access that may be skipped is made.
const MAY_FAIL: u64 = 0x5afe_acce_5500_ca11;

/// A range of addresses that belongs to the guest alone. Offsets are bytes from its start.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    start: usize,
    pages: usize,
}

impl Window {
    /// Claims a place far from where the kernel puts things by itself; nothing is mapped there yet.
    /// Each number is another place, of less than 256 GiB.
    pub fn claim(number: usize, pages: usize) -> Self {
        const FIRST: usize = 0x2000_0000_0000;
        const APART: usize = 1 << 40;
        catch_faults();
        Self { start: FIRST + number * APART, pages }
    }

    pub fn bytes(&self) -> usize {
        self.pages * PAGE
    }

    fn at(&self, range: &Range<usize>) -> (*mut c_void, usize) {
        assert!(range.start < range.end && range.end <= self.bytes(), "{range:?} lies outside of the window");
        (ptr::with_exposed_provenance_mut(self.start + range.start), range.len())
    }

    /// Maps anonymous private memory, in the place of what was there.
    pub fn map(&self, range: Range<usize>, protection: i32) -> io::Result<()> {
        self.map_with(range, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)
    }

    /// Maps with these flags; a file from the offset that its place in the window has.
    pub fn map_with(
        &self,
        range: Range<usize>,
        protection: i32,
        flags: i32,
        file: Option<(BorrowedFd<'_>, usize)>,
    ) -> io::Result<()> {
        let (start, len) = self.at(&range);
        let (fd, offset) = file.map_or((-1, 0), |(file, offset)| (file.as_raw_fd(), offset));
        let offset = libc::off_t::try_from(offset).expect("offsets are small");
        // SAFETY: the range is the window's, which holds nothing but what guests map there.
        let at = unsafe { libc::mmap(start, len, protection, flags | libc::MAP_FIXED, fd, offset) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub fn unmap(&self, range: Range<usize>) -> io::Result<()> {
        let (start, len) = self.at(&range);
        // SAFETY: as for `map_with`.
        check(unsafe { libc::munmap(start, len) })
    }

    pub fn protect(&self, range: Range<usize>, protection: i32) -> io::Result<()> {
        let (start, len) = self.at(&range);
        // SAFETY: as for `map_with`.
        check(unsafe { libc::mprotect(start, len, protection) })
    }

    pub fn advise(&self, range: Range<usize>, advice: i32) -> io::Result<()> {
        let (start, len) = self.at(&range);
        // SAFETY: as for `map_with`.
        check(unsafe { libc::madvise(start, len, advice) })
    }

    /// Whether all pages of the range are swapped out.
    pub fn are_swapped(&self, range: Range<usize>) -> io::Result<bool> {
        const SWAPPED: u64 = 1 << 62;
        let mut words = vec![0; range.len() / PAGE * 8];
        let first = (self.start + range.start) / PAGE * 8;
        File::open("/proc/self/pagemap")?.read_exact_at(&mut words, first as u64)?;
        let (words, _) = words.as_chunks();
        Ok(words.iter().all(|&word| u64::from_ne_bytes(word) & SWAPPED != 0))
    }

    /// Moves the range to `to`; with `keep` the source stays mapped, and is empty.
    pub fn move_to(&self, from: Range<usize>, to: usize, keep: bool) -> io::Result<()> {
        let (start, len) = self.at(&from);
        let (destination, _) = self.at(&(to..to + len));
        let keep = if keep { libc::MREMAP_DONTUNMAP } else { 0 };
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | keep;
        // SAFETY: as for `map_with`; both ranges are the window's.
        moved(unsafe { libc::mremap(start, len, len, flags, destination) })
    }

    /// Makes the mapping at `range` longer or shorter where it stands.
    pub fn resize(&self, range: Range<usize>, bytes: usize) -> io::Result<()> {
        let (start, len) = self.at(&range);
        let _inside = self.at(&(range.start..range.start + bytes));
        // SAFETY: as for `map_with`; without MREMAP_MAYMOVE it grows inside the window or not at all.
        moved(unsafe { libc::mremap(start, len, bytes, 0) })
    }

    /// Takes faults of the range into the guest's own hands, as a garbage collector does; until the answer is
    /// dropped nobody else can track its writes.
    pub fn take_faults(&self, range: Range<usize>) -> io::Result<OwnedFd> {
        const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
        const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
        const MISSING: u64 = 1;
        let (start, len) = self.at(&range);
        // SAFETY: the call takes flags only.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        let fd = c_int::try_from(fd).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel just made it, and nobody else has it.
        let own = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut api = [0xaa_u64, 0, 0];
        // SAFETY: the argument is live and of three words, as the call has it.
        check(unsafe { libc::ioctl(fd, UFFDIO_API, &raw mut api) })?;
        let mut register = [start.expose_provenance() as u64, len as u64, MISSING, 0];
        // SAFETY: the argument is live and of four words, as the call has it.
        check(unsafe { libc::ioctl(fd, UFFDIO_REGISTER, &raw mut register) })?;
        Ok(own)
    }

    /// Stores a word; false if the kernel does not allow it.
    pub fn store(&self, offset: usize, value: u64) -> bool {
        assert!(offset + 8 <= self.bytes(), "{offset:#x} lies outside of the window");
        let address = self.start + offset;
        let failed: u64;
        // SAFETY: the store goes to memory that only guests' volatile accesses touch; if it faults,
        // `skip_access` goes on behind it with rax set.
        unsafe {
            asm!("lea r14, [rip + 2f]", "xor eax, eax", "mov [{address}], {value}", "2:",
                address = in(reg) address, value = in(reg) value,
                out("rax") failed, out("r14") _, inout("r15") MAY_FAIL => _, options(nostack));
        }
        failed == 0
    }

    /// Loads a word, or nothing if the kernel does not allow it.
    pub fn load(&self, offset: usize) -> Option<u64> {
        assert!(offset + 8 <= self.bytes(), "{offset:#x} lies outside of the window");
        let address = self.start + offset;
        let (failed, value): (u64, u64);
        // SAFETY: as for `store`, and the load only reads.
        unsafe {
            asm!("lea r14, [rip + 2f]", "xor eax, eax", "xor {value:e}, {value:e}", "mov {value}, [{address}]", "2:",
                address = in(reg) address, value = out(reg) value,
                out("rax") failed, out("r14") _, inout("r15") MAY_FAIL => _, options(nostack, readonly));
        }
        (failed == 0).then_some(value)
    }

    /// Stores a word into each page of `pages`, never zero.
    pub fn fill(&self, pages: Range<usize>, seed: u64) {
        for page in pages {
            let stored = self.store(page * PAGE + 8, seed << 32 | page as u64 | 1 << 63);
            assert!(stored, "page {page} of the window can't be written");
        }
    }

    /// Has the kernel write into the range, as for another process.
    pub fn store_by_kernel(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let (start, len) = self.at(&(offset..offset + bytes.len()));
        let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: len };
        let remote = libc::iovec { iov_base: start, iov_len: len };
        let own = std::process::id().cast_signed();
        // SAFETY: the local bytes are live and only read; the kernel checks the others.
        let result = unsafe { libc::process_vm_writev(own, &raw const local, 1, &raw const remote, 1, 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// read(2) from the start of a file into the range.
    pub fn read_into(&self, file: BorrowedFd<'_>, range: Range<usize>) -> io::Result<()> {
        let (start, len) = self.at(&range);
        // SAFETY: the kernel checks the address, and the range is the window's.
        let result = unsafe { libc::pread(file.as_raw_fd(), start, len, 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn moved(at: *mut c_void) -> io::Result<()> {
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Drops the private copies of `len` bytes at `address`: a program's own data, which is then the file's again.
/// Nothing may borrow from it.
pub fn revert_to_file(address: usize, len: usize) -> io::Result<()> {
    let start = ptr::with_exposed_provenance_mut(address);
    // SAFETY: the caller's data is whole pages of atomics, for which any value is as good.
    check(unsafe { libc::madvise(start, len, libc::MADV_DONTNEED) })
}

/// Makes the heap of the process longer, away from what the allocator has of it.
pub fn grow_heap(bytes: usize) -> io::Result<usize> {
    let bytes = libc::intptr_t::try_from(bytes).expect("heaps are small");
    // SAFETY: the break only moves up; the allocator bears with others who move it.
    let old = unsafe { libc::sbrk(bytes) };
    if old.addr() == usize::MAX { Err(io::Error::last_os_error()) } else { Ok(old.expose_provenance()) }
}

/// A word of the heap that `grow_heap` made.
pub fn store_in_heap(address: usize, value: u64) {
    let at = ptr::with_exposed_provenance_mut::<u64>(address);
    // SAFETY: the caller got the address from `grow_heap`, and nobody else uses it.
    unsafe { at.write_volatile(value) };
}

/// An access that may fail is skipped. Any other fault is a bug of the guest, and ends it.
fn catch_faults() {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a zeroed sigaction is a valid one: the default action.
    let action = unsafe { action.assume_init_mut() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = skip_access;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: the action is live; its handler only changes the registers that it is handed.
        let result = unsafe { libc::sigaction(signal, action, ptr::null_mut()) };
        check(result).expect("faults can be handled");
    }
}

extern "C" fn skip_access(signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel hands a live ucontext to a handler with SA_SIGINFO.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let register = |name: c_int| usize::try_from(name).unwrap_or(0);
    if registers[register(libc::REG_R15)].cast_unsigned() == MAY_FAIL {
        registers[register(libc::REG_RIP)] = registers[register(libc::REG_R14)];
        registers[register(libc::REG_RAX)] = 1;
    } else {
        // SAFETY: the default action runs no code; the fault comes again and ends the guest.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
