//! Making processes: with numbers of our choice, and in namespaces of their own.

use std::io;

use libc::pid_t;

use crate::check;

/// What a fork returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    Child,
    Parent(pid_t),
}

/// `clone3` without a new stack: a fork whose child gets the number `pid` in this PID namespace.
///
/// # Panics
/// In a process with other threads, where the child would hold their locks for ever.
pub fn fork_as(pid: pid_t) -> io::Result<Forked> {
    let set_tid = [pid];
    clone3(&set_tid)
}

/// A plain fork, under the same condition.
pub fn fork() -> io::Result<Forked> {
    clone3(&[])
}

fn clone3(set_tid: &[pid_t]) -> io::Result<Forked> {
    assert_eq!(threads_of_this_process(), 1, "forking with other threads around");
    // SAFETY: all-zero is a valid `clone_args`.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    if !set_tid.is_empty() {
        arguments.set_tid = set_tid.as_ptr() as u64;
        arguments.set_tid_size = set_tid.len() as u64;
    }
    let size = size_of::<libc::clone_args>();
    // SAFETY: `arguments` is live and of `size` bytes; without CLONE_VM the child has memory of its own, and
    // with one thread nothing in it is held by a thread that isn't there.
    let ret = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) })?;
    Ok(if ret == 0 { Forked::Child } else { Forked::Parent(ret as pid_t) })
}

fn threads_of_this_process() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Has this process killed when the *thread* that made it ends.
pub fn die_with_parent(signal: i32) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) }.into()).map(drop)
}

/// Sleeps until a signal ends the process.
pub fn sleep_for_ever() -> ! {
    loop {
        // SAFETY: the call takes nothing.
        unsafe { libc::pause() };
    }
}
