//! Whether the kernel lets us, tried on something that is gone right afterwards.

use std::io;

use libc::pid_t;

use crate::check;
use crate::wait::{Whom, wait};

/// Makes a new namespace of the kind of this `CLONE_NEW*` flag for this thread, which should end then.
pub fn new_namespace(flag: i32) -> io::Result<()> {
    // SAFETY: the call takes flags only; the callers' flags change which resources this thread names.
    check(unsafe { libc::unshare(flag) }.into()).map(drop)
}

/// Makes a process with a number that we chose, and has it end. `EPERM` without CAP_CHECKPOINT_RESTORE.
pub fn chosen_number() -> io::Result<()> {
    const ATTEMPTS: i32 = 64;
    let limit = std::fs::read_to_string("/proc/sys/kernel/pid_max")?;
    let limit: pid_t = limit.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
    for number in (limit - ATTEMPTS..limit).rev() {
        match be_born_as(number) {
            Err(why) if why.raw_os_error() == Some(libc::EEXIST) => (),
            other => return other,
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn be_born_as(number: pid_t) -> io::Result<()> {
    let set_tid = [number];
    // SAFETY: all-zero is a valid `clone_args`.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.set_tid = set_tid.as_ptr() as u64;
    arguments.set_tid_size = set_tid.len() as u64;
    let size = size_of::<libc::clone_args>();
    // SAFETY: `arguments` is live and of `size` bytes; without CLONE_VM the child has memory of its own, and
    // it does nothing but end.
    let ret = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) })?;
    if ret == 0 {
        // SAFETY: this ends the child, with nothing of the parent's run or flushed.
        unsafe { libc::_exit(0) };
    }
    wait(Whom::Only(number)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_that_is_taken_is_not_given_twice() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let why = be_born_as(own).unwrap_err();
        assert!(matches!(why.raw_os_error(), Some(libc::EEXIST | libc::EPERM)), "{why}");
    }
}
