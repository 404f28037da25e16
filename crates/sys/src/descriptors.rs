//! Calls on descriptors that tell what they are, compare them across processes, and make the rare kinds.

use std::cmp::Ordering;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::check;

const KCMP_FILE: i32 = 0;
const KCMP_EPOLL_TFD: i32 = 7;
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_GETOWN_EX: i32 = 16;

fn ordering(answer: u64) -> io::Result<Ordering> {
    match answer {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

/// Whether two descriptors of process `pid` name one open file; otherwise which sorts first, in an order
/// that holds until the next boot.
pub fn compare_files(pid: i32, first: i32, second: i32) -> io::Result<Ordering> {
    // SAFETY: this form of the call takes numbers only.
    let ret = unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, first as u64, second as u64) };
    check(ret).and_then(ordering)
}

/// Whether descriptor `candidate` names the file that `epoll` watches under the number `target`. An epoll
/// may hold a number several times, for files that had it one after the other: `offset` says which.
pub fn epoll_watches(pid: i32, epoll: i32, target: i32, offset: u32, candidate: i32) -> io::Result<bool> {
    let slot = [epoll as u32, target as u32, offset];
    let pointer = (&raw const slot) as u64;
    // SAFETY: `slot` is a live `kcmp_epoll_slot` that the kernel only reads.
    let ret = unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, candidate as u64, pointer) };
    check(ret).map(|answer| answer == 0)
}

/// A signalfd for `mask`, one bit per signal from signal 1 on.
pub fn signal_descriptor(mask: u64, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: `mask` is live, of the 8 bytes that are told, and only read.
    let ret = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8_usize, flags) };
    let fd = check(ret)?;
    // SAFETY: the call made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sets how often a timerfd has fired unread.
pub fn set_timer_ticks(timer: BorrowedFd<'_>, ticks: u64) -> io::Result<()> {
    const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;
    // SAFETY: `ticks` is live and only read.
    let ret = unsafe { libc::ioctl(timer.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) };
    check(ret.into()).map(drop)
}

/// Sets the number that the next watch of an inotify gets.
pub fn set_next_watch(inotify: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    const INOTIFY_IOC_SETNEXTWD: libc::c_ulong = 0x4004_4900;
    // SAFETY: the call takes numbers only.
    let ret = unsafe { libc::ioctl(inotify.as_raw_fd(), INOTIFY_IOC_SETNEXTWD, number) };
    check(ret.into()).map(drop)
}

/// Opens a file by its handle, `O_PATH`, on the mount that `mount` lies on.
pub fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8]) -> io::Result<OwnedFd> {
    let mut bytes = Vec::with_capacity(8 + handle.len());
    bytes.extend_from_slice(&(handle.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(handle);
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: `bytes` is a whole `file_handle`, live and only read.
    let ret = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), bytes.as_ptr(), flags) };
    let fd = check(ret)?;
    // SAFETY: the call made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `F_GETOWN_EX`: kind and number.
pub fn async_owner(fd: BorrowedFd<'_>) -> io::Result<(i32, i32)> {
    let mut owner = [0_i32; 2];
    // SAFETY: `owner` is a live `f_owner_ex`.
    let ret = unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &raw mut owner) };
    check(ret.into()).map(|_| (owner[0], owner[1]))
}

/// `F_GETSIG`.
pub fn async_signal(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: the call takes numbers only.
    let ret = unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) };
    check(ret.into()).map(|signal| signal as i32)
}

/// `F_SETSIG`.
pub fn set_async_signal(fd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    let ret = unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, signal) };
    check(ret.into()).map(drop)
}

/// `F_OFD_SETLK`: a lock that belongs to the open file. Never waits.
pub fn lock_open_file(fd: BorrowedFd<'_>, exclusive: bool, start: i64, len: i64) -> io::Result<()> {
    let lock = lock_request(exclusive, start, len);
    // SAFETY: `lock` is a live `flock` that the kernel only reads.
    let ret = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, lock.as_ptr()) };
    check(ret.into()).map(drop)
}

/// The bytes of a `struct flock` that starts counting at the file's start; a `len` of zero means its end.
pub fn lock_request(exclusive: bool, start: i64, len: i64) -> [u64; 4] {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK } as u16;
    let kind_and_whence = u64::from(kind) | (libc::SEEK_SET as u64) << 16;
    [kind_and_whence, start as u64, len as u64, 0]
}
