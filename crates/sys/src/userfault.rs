//! userfaultfd in its asynchronous write-protection form, on a descriptor that belongs to another process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::check;

const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;
const UFFDIO_WRITEPROTECT: u64 = 0xc018_aa06;
const API: u64 = 0xaa;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;

/// Tracks the writes of the address space in which the descriptor was made.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

impl Userfault {
    /// Enables asynchronous write protection. `EINVAL` on a kernel without it.
    pub fn enable(fd: OwnedFd) -> io::Result<Self> {
        let mut api = [API, FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM, 0];
        // SAFETY: `api` is a live `struct uffdio_api`, three words.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) }.into())?;
        Ok(Self(fd))
    }

    /// Registers every mapping in the range. Fails as a whole if one of them can't be.
    pub fn register(&self, start: u64, end: u64) -> io::Result<()> {
        let mut register = [start, end - start, REGISTER_MODE_WP, 0];
        // SAFETY: `register` is a live `struct uffdio_register`, four words.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) }.into()).map(drop)
    }

    pub fn unregister(&self, start: u64, end: u64) -> io::Result<()> {
        let range = [start, end - start];
        // SAFETY: `range` is a live `struct uffdio_range`, two words, only read.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_UNREGISTER, &raw const range) }.into())
            .map(drop)
    }

    /// Takes the write protection off: everything in the range counts as written again.
    pub fn unprotect(&self, start: u64, end: u64) -> io::Result<()> {
        let mut argument = [start, end - start, 0];
        // SAFETY: `argument` is a live `struct uffdio_writeprotect`, three words.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WRITEPROTECT, &raw mut argument) }.into())
            .map(drop)
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `userfaultfd(2)` in this process, for the self-test. In another process the call is injected.
pub fn own() -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the call takes flags only.
    let fd = check(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
