//! Mounts of another process's namespace: how a file comes into its view of the file system, and into no other.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;

use crate::check;

const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOVE_MOUNT_T_SYMLINKS: libc::c_uint = 0x10;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const MOUNT_ATTR_NOEXEC: u64 = 8;

/// Does something in the mount namespace that `pid` is in, on a thread of its own: with its root, and where a path leads
/// to what the process would find there.
pub fn within<T: Send>(pid: i32, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
    let enter = move || {
        // SAFETY: the call takes flags only; this thread's root and directory are its own from here on.
        check(unsafe { libc::unshare(libc::CLONE_FS) }.into())?;
        // SAFETY: `namespace` is a live descriptor of a namespace.
        check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) }.into())?;
        work()
    };
    match thread::scope(|scope| scope.spawn(enter).join()) {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// What is at `path`, as a mount that is nowhere yet; of a directory with all that is mounted below it.
pub fn take(path: &Path) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint | libc::AT_SYMLINK_NOFOLLOW as libc::c_uint;
    open_tree(path, flags | libc::AT_RECURSIVE as libc::c_uint)
}

/// The mount that is at `path`, to be moved.
pub fn lift(path: &Path) -> io::Result<OwnedFd> {
    open_tree(path, libc::O_CLOEXEC as libc::c_uint)
}

fn open_tree(path: &Path, flags: libc::c_uint) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` ends with zero.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })?;
    // SAFETY: the kernel just made it, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Nobody writes to it, and no program gets rights or devices from it; programs may run from it.
pub fn make_harmless(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = [MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, 0, 0];
    let (fd, flags, len) = (mount.as_raw_fd(), libc::AT_EMPTY_PATH, size_of_val(&attributes));
    let attributes: *const [u64; 4] = &raw const attributes;
    // SAFETY: the string ends with zero; `attributes` is a live `struct mount_attr` of `len` bytes and only read.
    let ret = unsafe { libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, attributes, len) };
    check(ret).map(drop)
}

/// Puts a mount over what is at `path`.
pub fn put(mount: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let (fd, empty, at) = (mount.as_raw_fd(), c"".as_ptr(), libc::AT_FDCWD);
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS;
    // SAFETY: both strings end with zero.
    check(unsafe { libc::syscall(libc::SYS_move_mount, fd, empty, at, path.as_ptr(), flags) }).map(drop)
}

/// Puts an empty directory in memory over `path`.
pub fn put_empty(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let (kind, flags) = (c"tmpfs".as_ptr(), libc::MS_NOSUID | libc::MS_NODEV);
    let options = c"size=25%,mode=755".as_ptr();
    // SAFETY: all strings end with zero.
    check(unsafe { libc::mount(c"none".as_ptr(), path.as_ptr(), kind, flags, options.cast()) }.into())
        .map(drop)
}

/// Takes the mount at `path` away, and all below it.
pub fn remove(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the string ends with zero.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }.into()).map(drop)
}

/// Makes the mount at `root` the root of this namespace, for every process in it. Nothing of the old root is left but
/// what is in the new one, too.
pub fn make_root(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    // SAFETY: both strings end with zero.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    // SAFETY: the string ends with zero.
    check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }.into())?;
    std::env::set_current_dir("/")
}
