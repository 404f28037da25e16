//! Starting a guard, which may be the first process of a cell: descriptors at numbers of our choice.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use crate::check;

/// Starts `command` as the first process of a new PID namespace, with each descriptor at its number. The
/// calling thread's own namespace is what it was afterwards, on success and on failure.
pub fn spawn_first_process(command: &mut Command, descriptors: Vec<(OwnedFd, RawFd)>) -> io::Result<Child> {
    pass_descriptors(command, descriptors);
    let own = File::open("/proc/self/ns/pid")?;
    // SAFETY: the call takes flags only; it changes where this thread's children go.
    check(unsafe { libc::unshare(libc::CLONE_NEWPID) }.into())?;
    let child = command.spawn();
    // SAFETY: `own` is a live descriptor of a namespace.
    check(unsafe { libc::setns(own.as_raw_fd(), libc::CLONE_NEWPID) }.into())?;
    child
}

/// Starts `command` with each descriptor at its number.
pub fn spawn_with_descriptors(
    command: &mut Command,
    descriptors: Vec<(OwnedFd, RawFd)>,
) -> io::Result<Child> {
    pass_descriptors(command, descriptors);
    command.spawn()
}

/// The child hears of its own children's ends, whether or not [`crate::bell::mute`] was called here.
pub fn with_open_signals(command: &mut Command) -> &mut Command {
    // SAFETY: the closure makes one system call; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(crate::bell::unmute) }
}

/// Moves the descriptors to their numbers between fork and exec.
fn pass_descriptors(command: &mut Command, descriptors: Vec<(OwnedFd, RawFd)>) {
    with_open_signals(command);
    let place = move || {
        // Out of the way first: one's number may be another's place.
        const OUT_OF_THE_WAY: RawFd = 500;
        let mut moved = [(0, 0); 32];
        for (n, (descriptor, number)) in descriptors.iter().enumerate() {
            let from = descriptor.as_raw_fd();
            // SAFETY: duplicating a live descriptor to a free number.
            let copy = check(unsafe { libc::fcntl(from, libc::F_DUPFD_CLOEXEC, OUT_OF_THE_WAY) }.into())?;
            moved[n] = (copy as RawFd, *number);
        }
        for &(copy, number) in &moved[..descriptors.len()] {
            // SAFETY: both are numbers of this process, which is about to become another program.
            check(unsafe { libc::dup2(copy, number) }.into())?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(place) };
}

/// Gives this single-threaded process mounts of its own, with a `/proc` that shows its PID namespace.
pub fn enter_mount_namespace() -> io::Result<()> {
    // SAFETY: the call takes flags only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }.into())?;
    mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE, c"")?;
    mount(c"proc", c"/proc", Some(c"proc"), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, c"")
}

/// Puts an empty directory in memory over `place`, which everybody may enter and its owner alone may fill.
pub fn mount_own_directory(place: &Path) -> io::Result<()> {
    let place = CString::new(place.as_os_str().as_bytes())?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(c"none", &place, Some(c"tmpfs"), flags, c"size=64k,mode=755")
}

fn mount(
    source: &std::ffi::CStr,
    target: &std::ffi::CStr,
    kind: Option<&std::ffi::CStr>,
    flags: libc::c_ulong,
    data: &std::ffi::CStr,
) -> io::Result<()> {
    let kind = kind.map_or(std::ptr::null(), std::ffi::CStr::as_ptr);
    // SAFETY: all strings are live and end with zero; `kind` may be null.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, data.as_ptr().cast()) }.into())
        .map(drop)
}

/// Nothing that is open now, but the standard streams, survives an exec.
pub fn close_all_on_exec() -> io::Result<()> {
    const FIRST: u32 = 3;
    // SAFETY: the call takes numbers only; flags change, no descriptor is closed.
    check(unsafe { libc::syscall(libc::SYS_close_range, FIRST, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// A session of its own, away from the manager's terminal.
pub fn new_session() -> io::Result<()> {
    rustix::process::setsid().map(drop).map_err(Into::into)
}

/// Replaces this process by a program. Returns only if that failed.
pub fn exec(program: &std::ffi::OsStr, arguments: &[std::ffi::OsString]) -> io::Error {
    Command::new(program).args(arguments).exec()
}

/// Takes hold of a descriptor that this process was started with.
///
/// # Panics
/// If nothing is open there.
pub fn adopt_descriptor(number: RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the call takes numbers only.
    let open = check(unsafe { libc::fcntl(number, libc::F_GETFD) }.into());
    assert!(open.is_ok(), "descriptor {number} was to be inherited, and is not open");
    // SAFETY: it is open, and by contract of its number nobody else in this process owns it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// The child is killed when the calling thread ends, for whatever reason. Call it on the thread that spawns.
pub fn dying_with_this_thread(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    let arm = move || {
        // SAFETY: the call takes numbers only.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }.into())?;
        // The parent may have died before that was in force.
        match std::os::unix::process::parent_id() == parent {
            true => Ok(()),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    };
    // SAFETY: the closure makes system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(arm) }
}
