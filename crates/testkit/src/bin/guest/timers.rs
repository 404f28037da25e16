//! Timers that send signals, and the descriptor that counts.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::harness::{Context, Guest, Outcome};
use crate::kernel::{self, PosixTimer, SIGALRM};
use crate::{ensure, ensure_eq};

pub const GUESTS: &[Guest] = &[
    Guest::new("interval-timers", interval_timers),
    Guest::new("interval-timer-rung", interval_timer_rung),
    Guest::new("posix-timers", posix_timers),
    Guest::new("timerfd", timerfd),
];

const INTERVAL: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_secs(5);

/// Fails unless the condition comes true soon.
fn soon(what: &str, mut condition: impl FnMut() -> bool) -> Outcome {
    let deadline = Instant::now() + SOON;
    while !condition() {
        ensure!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        std::thread::yield_now();
    }
    Ok(())
}

/// A periodic timer goes on ticking, and a far one keeps most of its time.
fn interval_timers(context: &mut Context) -> Outcome {
    kernel::count_handled(SIGALRM, libc::SA_RESTART, 0)?;
    kernel::set_interval_timer(libc::ITIMER_REAL, INTERVAL)?;
    kernel::set_interval_timer(libc::ITIMER_VIRTUAL, Duration::from_secs(100_000))?;
    context.ready();
    let ticks = kernel::times_handled(SIGALRM);
    soon("three more ticks", || kernel::times_handled(SIGALRM) >= ticks + 3)?;
    ensure_eq!("interval", kernel::interval_timer(libc::ITIMER_REAL)?.0, INTERVAL);
    let (interval, left) = kernel::interval_timer(libc::ITIMER_VIRTUAL)?;
    ensure_eq!("interval of the far timer", interval, Duration::from_secs(100_000));
    ensure!(left > Duration::from_secs(90_000), "the far timer has only {left:?} left");
    Ok(())
}

/// A periodic timer that has rung, and whose signal is still blocked, goes on when it is taken.
fn interval_timer_rung(context: &mut Context) -> Outcome {
    kernel::count_handled(SIGALRM, libc::SA_RESTART, 0)?;
    kernel::block_signals(&[SIGALRM]);
    kernel::set_interval_timer(libc::ITIMER_REAL, INTERVAL)?;
    soon("the first tick", || kernel::is_pending(SIGALRM))?;
    context.ready();
    ensure!(kernel::is_pending(SIGALRM), "the tick that waited is gone");
    kernel::set_signal_mask(0);
    soon("three more ticks", || kernel::times_handled(SIGALRM) >= 4)
}

/// Timers keep their ids (with a gap in them), clocks, signals and values, and go on.
fn posix_timers(context: &mut Context) -> Outcome {
    let signal = kernel::first_realtime_signal() + 6;
    kernel::block_signals(&[signal, signal + 1, signal + 2]);
    let periodic = PosixTimer::new(libc::CLOCK_MONOTONIC, signal, 11, None)?;
    let _gap = PosixTimer::new(libc::CLOCK_MONOTONIC, signal + 2, 0, None)?;
    let own = PosixTimer::new(libc::CLOCK_MONOTONIC, signal + 1, 22, Some(kernel::thread_id()))?;
    periodic.start(INTERVAL, INTERVAL, false)?;
    let far = monotonic() + Duration::from_secs(3600);
    own.start(far, Duration::from_secs(7), true)?;
    context.ready();
    for tick in 0..3 {
        let info = kernel::wait_for_signal(signal, Some(SOON))?;
        ensure_eq!(format!("code and value of tick {tick}"), (info.code, info.value), (libc::SI_TIMER, 11));
    }
    ensure_eq!("interval", periodic.interval()?, INTERVAL);
    ensure_eq!("interval of the thread's timer", own.interval()?, Duration::from_secs(7));
    let early = kernel::wait_for_signal(signal + 1, Some(Duration::ZERO));
    ensure!(early.is_err(), "a timer for in an hour has fired");
    own.start(Duration::from_millis(1), Duration::ZERO, false)?;
    ensure_eq!("value of the thread's timer", kernel::wait_for_signal(signal + 1, Some(SOON))?.value, 22);
    Ok(())
}

fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).expect("the monotonic clock is positive")
}

/// Ticks that nobody has read stay, a periodic one goes on, and one for in an hour does not fire.
fn timerfd(context: &mut Context) -> Outcome {
    let make = || timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC);
    let (expired, periodic, far) = (make()?, make()?, make()?);
    arm(expired.as_fd(), Duration::from_millis(1), Duration::ZERO)?;
    arm(periodic.as_fd(), INTERVAL, INTERVAL)?;
    arm(far.as_fd(), Duration::from_secs(3600), Duration::ZERO)?;
    kernel::sleep(Duration::from_millis(5))?;
    context.ready();
    ensure_eq!("ticks of an expired timer", ticks(expired.as_fd())?, Some(1));
    for tick in 1..=3 {
        soon(&format!("tick {tick}"), || ticks(periodic.as_fd()).is_ok_and(|ticks| ticks.is_some()))?;
    }
    ensure_eq!("ticks of a timer for in an hour", ticks(far.as_fd())?, None);
    Ok(())
}

fn arm(timer: BorrowedFd<'_>, first: Duration, interval: Duration) -> Outcome {
    let value =
        Itimerspec { it_interval: Timespec::try_from(interval)?, it_value: Timespec::try_from(first)? };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &value)?;
    Ok(())
}

/// The ticks since the last read; `None` if there was none.
fn ticks(timer: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    let mut count = [0; 8];
    match rustix::io::read(timer, &mut count) {
        Ok(_) => Ok(Some(u64::from_ne_bytes(count))),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
