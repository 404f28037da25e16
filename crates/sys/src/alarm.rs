//! A deadline for calls that block: past it, the thread's blocking calls return `EINTR`.
//!
//! The kernel has no `waitpid` with a time-out. The alarm signals the one thread that set it, again and
//! again once the deadline has passed, so that a signal between two calls is not the last.

use std::io;
use std::sync::Once;
use std::time::Duration;

use crate::{bell, check, task};

extern "C" fn nothing(_signal: i32) {}

/// A per-thread timer; made once, armed for each deadline.
#[derive(Debug)]
pub struct Alarm {
    timer: libc::timer_t,
}

impl Alarm {
    /// For the calling thread.
    pub fn new() -> io::Result<Self> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| bell::handle(signal(), nothing, 0));
        // SAFETY: all-zero is a valid `sigevent`.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_notify_thread_id = task::own_tid();
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: `event` and `timer` are live.
        check(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) }.into())?;
        Ok(Self { timer })
    }

    pub fn arm(&self, after: Duration) -> io::Result<()> {
        const AGAIN: Duration = Duration::from_millis(2);
        self.set(AGAIN, after)
    }

    pub fn disarm(&self) -> io::Result<()> {
        self.set(Duration::ZERO, Duration::ZERO)
    }

    fn set(&self, interval: Duration, value: Duration) -> io::Result<()> {
        let span =
            |d: Duration| libc::timespec { tv_sec: d.as_secs() as i64, tv_nsec: d.subsec_nanos().into() };
        let spec = libc::itimerspec { it_interval: span(interval), it_value: span(value) };
        // SAFETY: the timer is ours and live, `spec` is only read.
        let ret = unsafe { libc::timer_settime(self.timer, 0, &raw const spec, std::ptr::null_mut()) };
        check(ret.into()).map(drop)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and deleted once.
        unsafe { libc::timer_delete(self.timer) };
    }
}

fn signal() -> i32 {
    libc::SIGRTMIN() + 7
}
