//! System calls that wait with a timeout. A checkpoint may stop them, but the program must not see it: no EINTR,
//! never too early, and not much too late.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::net::{RecvFlags, recv};
use rustix::time::{ClockId, clock_gettime};

use crate::harness::{Context, Guest, Outcome};
use crate::{ensure, kernel};

pub const GUESTS: &[Guest] = &[Guest::new("waits", waits)];

/// Every kind of wait that is checked, by name; each returns the error that a timeout gives, or none.
type Wait = fn(Duration) -> io::Result<()>;
const WAITS: &[(&str, Wait, Option<i32>)] = &[
    ("nanosleep", kernel::sleep, None),
    ("clock_nanosleep", sleep_absolute, None),
    ("poll", poll_nothing, None),
    ("select", |timeout| kernel::select_nothing(timeout).map(drop), None),
    ("epoll_wait", epoll_nothing, None),
    ("futex", |timeout| futex(timeout, false), Some(libc::ETIMEDOUT)),
    ("futex_bitset", |timeout| futex(timeout, true), Some(libc::ETIMEDOUT)),
    ("sigtimedwait", sigtimedwait, Some(libc::EAGAIN)),
    ("recv", receive, Some(libc::EAGAIN)),
    ("recv_all", receive_all, None),
    ("send", send, Some(libc::EAGAIN)),
    ("eventfd_poll", poll_eventfd, None),
];

/// Waits of each kind, one thread each, over and over until the go. Arguments: the timeout in ms (400), how much
/// later a wait may end (2000), and the kinds to check, all if there is none.
fn waits(context: &mut Context) -> Outcome {
    let timeout = Duration::from_millis(context.number(0, 400));
    let late_max = Duration::from_millis(context.number(1, 2000));
    let wanted: Vec<_> = context.arguments().iter().skip(2).cloned().collect();
    let over = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = WAITS
        .iter()
        .filter(|(name, ..)| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name))
        .map(|&(name, wait, timed_out)| {
            let over = Arc::clone(&over);
            thread::spawn(move || wait_until(&over, name, wait, timed_out, timeout, late_max))
        })
        .collect();
    ensure!(!workers.is_empty(), "no wait has any of the names {wanted:?}");
    context.ready();
    over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().map_err(|_| "a waiter panicked")??;
    }
    Ok(())
}

fn wait_until(
    over: &AtomicBool,
    name: &str,
    wait: Wait,
    timed_out: Option<i32>,
    timeout: Duration,
    late_max: Duration,
) -> Outcome {
    loop {
        let last = over.load(Ordering::Relaxed);
        let start = Instant::now();
        let found = wait(timeout).err().map(|error| error.raw_os_error().unwrap_or(0));
        let elapsed = start.elapsed();
        ensure!(
            found == timed_out,
            "{name} ended with error {found:?}, not {timed_out:?}, after {elapsed:?}"
        );
        ensure!(elapsed >= timeout, "{name} ended after {elapsed:?}, too early for {timeout:?}");
        ensure!(elapsed <= timeout + late_max, "{name} ended after {elapsed:?}, too late for {timeout:?}");
        if last {
            return Ok(());
        }
    }
}

fn monotonic() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).expect("the monotonic clock is positive")
}

fn sleep_absolute(timeout: Duration) -> io::Result<()> {
    kernel::sleep_until(monotonic() + timeout)
}

fn futex(timeout: Duration, absolute: bool) -> io::Result<()> {
    let word = AtomicU32::new(7);
    let timeout = if absolute { monotonic() + timeout } else { timeout };
    kernel::futex_wait(&word, 7, timeout, absolute)
}

fn quiet_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe()?)
}

fn poll_one(fd: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
    let ready = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout))?;
    if ready == 0 { Ok(()) } else { Err(io::Error::other("nothing was written, but poll says so")) }
}

fn poll_nothing(timeout: Duration) -> io::Result<()> {
    let (read, _write) = quiet_pipe()?;
    poll_one(&read, timeout)
}

fn poll_eventfd(timeout: Duration) -> io::Result<()> {
    poll_one(&rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?, timeout)
}

fn epoll_nothing(timeout: Duration) -> io::Result<()> {
    let (read, _write) = quiet_pipe()?;
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&set, &read, epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
    match kernel::epoll_wait(set.as_fd(), timeout)? {
        0 => Ok(()),
        _ => Err(io::Error::other("nothing was written, but epoll_wait says so")),
    }
}

fn sigtimedwait(timeout: Duration) -> io::Result<()> {
    let signal = kernel::first_realtime_signal() + 9;
    kernel::block_signals(&[signal]);
    kernel::wait_for_signal(signal, Some(timeout)).map(drop)
}

fn receive(timeout: Duration) -> io::Result<()> {
    let (ours, _theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(timeout))?;
    rustix::io::read(&ours, &mut [0; 8])?;
    Ok(())
}

/// Half of what is asked for is there, and the rest never comes.
fn receive_all(timeout: Duration) -> io::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(timeout))?;
    rustix::io::write(&theirs, &[1; 4])?;
    match recv(&ours, &mut [0; 8], RecvFlags::WAITALL)? {
        (_, 4) => Ok(()),
        (_, count) => Err(io::Error::other(format!("{count} bytes of 4 came"))),
    }
}

/// Nobody makes room, but for what a copy packs more densely.
fn send(timeout: Duration) -> io::Result<()> {
    const MORE_THAN_FITS: usize = 1 << 20;
    let (ours, _theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    while rustix::io::write(&ours, &[1; 4096]).is_ok() {}
    ours.set_nonblocking(false)?;
    ours.set_write_timeout(Some(timeout))?;
    match rustix::io::write(&ours, &vec![1; MORE_THAN_FITS])? {
        MORE_THAN_FITS => Err(io::Error::other("all was written, but nobody reads")),
        _ => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
    }
}
