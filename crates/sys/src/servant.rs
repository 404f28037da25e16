//! For tests: a process without a single descriptor that makes the system calls it is told to, and is
//! stopped in between. It stands in for an app that is frozen, and for a skeleton that is being furnished.
//!
//! It stops itself (`SIGSTOP`), is given a batch through its memory, is continued, and stops again.

use std::io;

use crate::check;

/// How many calls fit into one batch.
pub const CALLS_MAX: usize = 512;
/// How many bytes of scratch memory there are.
pub const SCRATCH_BYTES: usize = 1 << 17;

/// What the two sides share; the same address in both, reached through `/proc/PID/mem`.
#[repr(C)]
#[derive(Debug)]
pub struct Mailbox {
    pub count: u64,
    pub calls: [[u64; 7]; CALLS_MAX],
    pub results: [i64; CALLS_MAX],
    pub scratch: [u8; SCRATCH_BYTES],
}

/// Starts a servant; its process id and the address of its [`Mailbox`]. It dies with the calling thread.
pub fn spawn() -> io::Result<(i32, u64)> {
    let len = size_of::<Mailbox>();
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new anonymous mapping takes no memory from anybody.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
    check(if mapped == libc::MAP_FAILED { -1 } else { 0 })?;
    // SAFETY: the child runs `serve`, which makes system calls only: no lock of another thread is touched.
    let pid = check(unsafe { libc::fork() }.into())? as i32;
    if pid == 0 {
        serve(mapped.cast());
    }
    Ok((pid, mapped as u64))
}

fn serve(mailbox: *mut Mailbox) -> ! {
    call([libc::SYS_prctl as u64, libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0, 0]);
    call([libc::SYS_close_range as u64, 0, u64::from(u32::MAX), 0, 0, 0, 0]);
    let own_pid = call([libc::SYS_getpid as u64, 0, 0, 0, 0, 0, 0]) as u64;
    loop {
        call([libc::SYS_kill as u64, own_pid, libc::SIGSTOP as u64, 0, 0, 0, 0]);
        // SAFETY: the mailbox stays mapped for ever; the other side writes only while this one is stopped.
        let mailbox = unsafe { &mut *mailbox };
        let count = (std::hint::black_box(mailbox.count) as usize).min(CALLS_MAX);
        for index in 0..count {
            mailbox.results[index] = call(mailbox.calls[index]);
        }
        std::hint::black_box(mailbox);
    }
}

/// One raw system call: its result, or minus the error number.
fn call([number, a, b, c, d, e, f]: [u64; 7]) -> i64 {
    // SAFETY: the test that drives this process answers for what it asks of it; nothing else lives in it.
    let ret = unsafe { libc::syscall(number as i64, a, b, c, d, e, f) };
    if ret >= 0 {
        return ret;
    }
    -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}
