//! The bell: wakes a tracer thread when a tracee has something to say, or when somebody has a command.
//!
//! ptrace stops are announced to the process by SIGCHLD and to nothing that can be polled. A handler rings
//! every registered bell (an eventfd); each tracer then asks for its own tracees. A handler, not a blocked
//! signal with a signalfd: it works whatever the masks of the other threads are, and none of several
//! pollers can take the wake-up from another.
//!
//! A freeze is full of stops that nobody must be told of, and each handler costs as much as the stop itself. So a
//! program that calls [`mute`] first hears of them only where a tracer waits for its bell.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::check;

const BELLS_MAX: usize = 256;
const FREE: i32 = -1;
static BELLS: [AtomicI32; BELLS_MAX] = [const { AtomicI32::new(FREE) }; BELLS_MAX];

#[derive(Debug)]
struct Registered {
    eventfd: OwnedFd,
    slot: usize,
}

impl Drop for Registered {
    fn drop(&mut self) {
        BELLS[self.slot].store(FREE, Ordering::SeqCst);
    }
}

/// Keeps the announcements of stops away from this thread and those that it starts; a bell hears them still. Children
/// inherit it: [`crate::spawn::with_open_signals`].
pub fn mute() -> io::Result<()> {
    change_mask(libc::SIG_BLOCK)
}

/// For a child that is about to become another program.
pub(crate) fn unmute() -> io::Result<()> {
    change_mask(libc::SIG_UNBLOCK)
}

fn change_mask(how: libc::c_int) -> io::Result<()> {
    // SAFETY: all-zero is a valid set; `set` is live and filled by the next call.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: see above; a set's own functions only write to it.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: see above.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    // SAFETY: see above; the old set is not asked for.
    match unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// This thread's mask, without [`mute`].
fn listening_mask() -> libc::sigset_t {
    // SAFETY: all-zero is a valid set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is changed, and `set` is live.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set) };
    // SAFETY: a set's own function only writes to it.
    unsafe { libc::sigdelset(&raw mut set, libc::SIGCHLD) };
    set
}

/// A bell of one tracer. Clones ring the same bell.
#[derive(Debug, Clone)]
pub struct Bell(Arc<Registered>);

impl Bell {
    /// Installs the SIGCHLD handler at the first call. `ENOSPC` past 256 bells.
    pub fn new() -> io::Result<Self> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| handle(libc::SIGCHLD, ring_all, libc::SA_RESTART));
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let slot = BELLS
            .iter()
            .position(|bell| {
                let taken =
                    bell.compare_exchange(FREE, eventfd.as_raw_fd(), Ordering::SeqCst, Ordering::SeqCst);
                taken.is_ok()
            })
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        Ok(Self(Arc::new(Registered { eventfd, slot })))
    }

    pub fn ring(&self) {
        // A full counter is as loud as a ring.
        let _ = rustix::io::write(&self.0.eventfd, &1u64.to_ne_bytes());
    }

    /// Sleeps until the bell rang since the last call, or until `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout =
            timeout.map(|t| libc::timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos().into() });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let mut fd = libc::pollfd { fd: self.0.eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mask = listening_mask();
        // SAFETY: all of them are live; the timeout may be null.
        let polled = check(unsafe { libc::ppoll(&raw mut fd, 1, timeout, &raw const mask) }.into());
        if let Err(why) = polled
            && why.raw_os_error() != Some(libc::EINTR)
        {
            return Err(why);
        }
        let _ = rustix::io::read(&self.0.eventfd, &mut [0u8; 8]);
        Ok(())
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.eventfd.as_fd()
    }
}

extern "C" fn ring_all(_signal: i32) {
    // SAFETY: the location of errno of this thread is live as long as the thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: see above; a handler must leave errno as it was.
    let saved = unsafe { errno.read() };
    for bell in &BELLS {
        let fd = bell.load(Ordering::SeqCst);
        if fd != FREE {
            // SAFETY: the eight bytes are live; `write` may be called in a handler.
            unsafe { libc::write(fd, (&raw const ONE).cast(), size_of_val(&ONE)) };
        }
    }
    // SAFETY: see above.
    unsafe { errno.write(saved) };
}

static ONE: u64 = 1;

/// Installs `handler`, which must only do what is allowed in a signal handler.
pub(crate) fn handle(signal: i32, handler: extern "C" fn(i32), flags: i32) {
    // SAFETY: all-zero is a valid `sigaction` (default action, empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = flags;
    // SAFETY: `action` is live and its handler is async-signal-safe by contract.
    let ret = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    assert_eq!(ret, 0, "cannot install a handler for signal {signal}");
}
