//! POSIX timers: known by `/proc/PID/timers`, asked by calls, made again with the same numbers.

use std::fs::File;
use std::os::unix::fs::FileExt;

use image::process::PosixTimer;
use tracee::{Batch, Frozen};

use super::error::SaveError;
use super::layout::{Filled, joined, words};
use super::numbers::CellNumbers;
use super::status::{self, TimerText};
use super::steps::Steps;

/// `struct itimerspec`.
pub(super) const SETTING_BYTES: usize = 32;
/// What the table of calls has per timer.
pub(super) const CALLS_EACH: usize = 2;
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
const NANOSECONDS: u64 = 1_000_000_000;

/// The timers that there are, by their numbers. `file` is `/proc/PID/timers`, open for good: reading it from its beginning
/// makes the text anew.
pub(super) fn list(pid: i32, file: &File) -> Result<Vec<TimerText>, SaveError> {
    const TEXT_BYTES: usize = 4096;
    let mut text = Vec::new();
    let mut piece = [0; TEXT_BYTES];
    loop {
        match file.read_at(&mut piece, text.len() as u64) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(&piece[..count]),
            Err(why) => return Err(SaveError::kernel("the timers", pid)(why)),
        }
    }
    let text = String::from_utf8_lossy(&text);
    let mut timers = status::timers(&text).ok_or(SaveError::Unreadable { what: "the timers", tid: pid })?;
    timers.sort_unstable_by_key(|timer| timer.id);
    Ok(timers)
}

/// The calls that ask about timer number `index` of the list, with its setting at `at`.
pub(super) fn ask(timer: &TimerText, at: u64, batch: &mut Batch) {
    batch.call(libc::SYS_timer_gettime, [timer.id as u64, at]);
    batch.call(libc::SYS_timer_getoverrun, [timer.id as u64]);
}

/// From the text, and the results of [`ask`].
pub(super) fn answer(
    frozen: &Frozen<'_>,
    numbers: &mut CellNumbers,
    timer: &TimerText,
    (results, setting): (&[i64], &[u8]),
) -> Result<PosixTimer, SaveError> {
    let setting = Filled(setting);
    let TimerText { id, signal, value, notify, target, clock } = *timer;
    let thread = if notify & libc::SIGEV_THREAD_ID == 0 { 0 } else { numbers.of(frozen, target)? };
    Ok(PosixTimer {
        id,
        clock,
        signal,
        value,
        notify,
        thread,
        interval_ns: joined(setting.u64(0), setting.u64(8), NANOSECONDS),
        remaining_ns: joined(setting.u64(16), setting.u64(24), NANOSECONDS),
        overrun: i32::try_from(results[1]).unwrap_or(0).max(0),
    })
}

/// The calls that make the timers, not running yet.
pub(super) fn make(timers: &[PosixTimer], buffer: u64, batch: &mut Batch, steps: &mut Steps) {
    const SIGEVENT_BYTES: usize = 64;
    if timers.is_empty() {
        return;
    }
    let choose = |batch: &mut Batch, steps: &mut Steps, on| {
        let arguments = [PR_TIMER_CREATE_RESTORE_IDS, on, 0, 0, 0];
        steps.add(batch, "choose the numbers of timers", libc::SYS_prctl, arguments);
    };
    choose(batch, steps, 1);
    for timer in timers {
        // struct sigevent { sigval_t value; int signo, notify; pid_t tid; … }
        let mut event = Vec::with_capacity(SIGEVENT_BYTES);
        event.extend_from_slice(&timer.value.to_ne_bytes());
        for word in [timer.signal, timer.notify, timer.thread] {
            event.extend_from_slice(&word.to_ne_bytes());
        }
        event.resize(SIGEVENT_BYTES, 0);
        let event = buffer + batch.put(&event);
        let id = buffer + batch.put(&timer.id.to_ne_bytes());
        let arguments = [timer.clock as u64, event, id];
        steps.add(batch, "make a timer", libc::SYS_timer_create, arguments);
    }
    choose(batch, steps, 0);
}

/// The calls that set the timers going.
pub(super) fn arm(timers: &[PosixTimer], buffer: u64, batch: &mut Batch, steps: &mut Steps) {
    for timer in timers.iter().filter(|timer| timer.remaining_ns != 0) {
        let parts = |time: u64| [time / NANOSECONDS, time % NANOSECONDS];
        let setting = [parts(timer.interval_ns), parts(timer.remaining_ns)].concat();
        let setting = buffer + batch.put(&words(&setting));
        steps.add(batch, "start a timer", libc::SYS_timer_settime, [timer.id as u64, 0, setting, 0]);
    }
}
