//! System calls that our stop interrupted.
//!
//! At a stop inside a system call `orig_rax` is its number and `rax` what the kernel wants to do about it:
//! most calls restart by themselves once the thread goes on. Two kinds need help.
//!
//! * Calls that return `EINTR` at *any* stop (signal(7), "interruption by stop signals"): the app would see
//!   an error that nobody sent. Turned into `ERESTARTNOHAND` they restart unless a handler runs, which is
//!   just when `EINTR` is true. A relative timeout would start over at every epoch and might never end, so it
//!   is replaced by what is left of it. The replaced value is also how the next stop knows that it is still
//!   the same call.
//! * `ERESTART_RESTARTBLOCK`: the deadline is in the kernel and can't be carried to another host. There the
//!   call is made again with the time that is left, as far as it is known: exact from the second stop on; a
//!   call that is met for the first time may wait longer by up to one interval.

use std::time::{Duration, Instant};

use sys::ptrace::Registers;

const EINTR: i64 = -4;
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

const POLL: i64 = libc::SYS_poll;
const NANOSLEEP: i64 = libc::SYS_nanosleep;
const CLOCK_NANOSLEEP: i64 = libc::SYS_clock_nanosleep;
const FUTEX: i64 = libc::SYS_futex;
const RESTART_SYSCALL: i64 = libc::SYS_restart_syscall;

/// Calls that answer `EINTR` at a stop without any handler having run.
const INTERRUPTED_BY_STOPS: [i64; 17] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    // With SO_RCVTIMEO or SO_SNDTIMEO set on the socket.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
];

/// Where a timeout that must be made anew goes: the address of a `timespec` in this argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeout {
    /// Counted from zero.
    pub argument: u8,
    pub remaining: Duration,
}

/// What is known of the call that a thread was last seen in.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Blocked {
    call: Option<Pending>,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    number: i64,
    instruction: u64,
    stack: u64,
    /// The timeout register as we left it, for calls whose register we rewrite.
    rewritten: u64,
    remaining: Duration,
    at: Instant,
}

/// How a stopped thread is to go on: here, and on another host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settled {
    /// The registers to resume with here, if they are not those found.
    pub here: Option<Registers>,
    /// The registers for another host, where the kernel knows nothing of the call.
    pub elsewhere: Registers,
    pub timeout: Option<Timeout>,
}

/// Reads the `timespec` that an argument points to.
pub(crate) type ReadTime<'a> = &'a dyn Fn(u64) -> Option<Duration>;

impl Blocked {
    /// Decides about a thread that was just stopped with `registers`.
    pub fn settle(&mut self, registers: &Registers, now: Instant, read_time: ReadTime<'_>) -> Settled {
        let (number, result) = (registers.orig_rax as i64, registers.rax as i64);
        if number < 0 {
            self.call = None;
            return as_it_is(registers);
        }
        match result {
            EINTR if is_epoll(number) => self.settle_epoll(registers, now, read_time),
            EINTR if INTERRUPTED_BY_STOPS.contains(&number) => {
                self.call = None;
                let mut here = *registers;
                here.rax = ERESTARTNOHAND as u64;
                Settled { here: Some(here), elsewhere: again(registers), timeout: None }
            }
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
                self.call = None;
                Settled { here: None, elsewhere: again(registers), timeout: None }
            }
            ERESTART_RESTARTBLOCK => self.settle_restart_block(registers, now, read_time),
            _ => {
                self.call = None;
                as_it_is(registers)
            }
        }
    }

    fn settle_epoll(&mut self, found: &Registers, now: Instant, read_time: ReadTime<'_>) -> Settled {
        let asked = match found.orig_rax as i64 {
            libc::SYS_epoll_pwait2 if found.r10 == 0 => None,
            libc::SYS_epoll_pwait2 => read_time(found.r10),
            _ => u64::try_from(found.r10 as i32).ok().map(Duration::from_millis),
        };
        let mut here = *found;
        here.rax = ERESTARTNOHAND as u64;
        if let Some(asked) = asked {
            let left = match self.call {
                Some(call) if call.is(found) && call.rewritten == found.r10 => {
                    call.remaining.saturating_sub(now.saturating_duration_since(call.at))
                }
                _ => asked,
            };
            if left.is_zero() {
                self.call = None;
                let timed_out = returning(found, 0);
                return Settled { here: Some(timed_out), elsewhere: timed_out, timeout: None };
            }
            // N.B. epoll_pwait2 has its timeout in memory that is the app's. epoll_pwait takes the same
            // arguments otherwise, with milliseconds in the register.
            if found.orig_rax as i64 == libc::SYS_epoll_pwait2 {
                here.orig_rax = libc::SYS_epoll_pwait as u64;
            }
            here.r10 = left.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as u64;
            self.remember(&here, here.orig_rax as i64, left, now);
        } else {
            self.call = None;
        }
        Settled { here: Some(here), elsewhere: again(&here), timeout: None }
    }

    fn settle_restart_block(&mut self, found: &Registers, now: Instant, read_time: ReadTime<'_>) -> Settled {
        let continued = self.call.filter(|call| found.orig_rax as i64 == RESTART_SYSCALL && call.is(found));
        let number = continued.map_or(found.orig_rax as i64, |call| call.number);
        let left = match continued {
            Some(call) => Some(call.remaining.saturating_sub(now.saturating_duration_since(call.at))),
            None => requested(number, found, read_time),
        };
        let Some(left) = left else {
            // A call that we do not know, or met in the middle of its restart: it reports the interruption.
            self.call = None;
            return Settled { here: None, elsewhere: returning(found, EINTR), timeout: None };
        };
        self.remember(found, number, left, now);
        let mut elsewhere = again(&Registers { orig_rax: number as u64, ..*found });
        let timeout = |argument| Some(Timeout { argument, remaining: left });
        let timeout = match number {
            POLL => {
                elsewhere.rdx = left.as_millis().min(i32::MAX as u128) as u64;
                None
            }
            NANOSLEEP => timeout(0),
            CLOCK_NANOSLEEP => timeout(2),
            FUTEX if futex_timeout_is_relative(found) => timeout(3),
            _ => None,
        };
        Settled { here: None, elsewhere, timeout }
    }

    fn remember(&mut self, registers: &Registers, number: i64, remaining: Duration, at: Instant) {
        self.call = Some(Pending {
            number,
            instruction: registers.rip,
            stack: registers.rsp,
            rewritten: registers.r10,
            remaining,
            at,
        });
    }
}

impl Pending {
    fn is(&self, found: &Registers) -> bool {
        self.instruction == found.rip && self.stack == found.rsp
    }
}

fn is_epoll(number: i64) -> bool {
    matches!(number, libc::SYS_epoll_wait | libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2)
}

fn futex_timeout_is_relative(registers: &Registers) -> bool {
    registers.rsi as i32 & 0x7f == libc::FUTEX_WAIT
}

/// The timeout of a call that was met for the first time. An interrupted sleep has already written what is
/// left, where the app asked for it.
fn requested(number: i64, found: &Registers, read_time: ReadTime<'_>) -> Option<Duration> {
    match number {
        POLL => u64::try_from(found.rdx as i32).ok().map(Duration::from_millis),
        NANOSLEEP => read_time(if found.rsi == 0 { found.rdi } else { found.rsi }),
        CLOCK_NANOSLEEP => read_time(if found.r10 == 0 { found.rdx } else { found.r10 }),
        FUTEX => read_time(found.r10),
        _ => None,
    }
}

/// The registers with the call undone: the thread makes it again.
fn again(registers: &Registers) -> Registers {
    const SYSCALL_BYTES: u64 = 2;
    Registers {
        rip: registers.rip - SYSCALL_BYTES,
        rax: registers.orig_rax,
        orig_rax: u64::MAX,
        ..*registers
    }
}

fn returning(registers: &Registers, result: i64) -> Registers {
    Registers { rax: result as u64, orig_rax: u64::MAX, ..*registers }
}

fn as_it_is(registers: &Registers) -> Settled {
    Settled { here: None, elsewhere: Registers { orig_rax: u64::MAX, ..*registers }, timeout: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn stopped(number: i64, result: i64) -> Registers {
        let mut registers = sys::ptrace::from_words([0; sys::ptrace::REGISTER_WORDS]);
        registers.orig_rax = number as u64;
        registers.rax = result as u64;
        registers.rip = 0x1002;
        registers.rsp = 0x8000;
        registers
    }

    fn no_time(_: u64) -> Option<Duration> {
        None
    }

    #[test]
    fn a_thread_outside_a_call_is_left_alone() {
        let registers = stopped(-1, 7);
        let settled = Blocked::default().settle(&registers, Instant::now(), &no_time);
        assert_eq!(sys::ptrace::to_words(&settled.elsewhere), sys::ptrace::to_words(&registers));
    }

    #[test]
    fn a_restarting_call_is_made_again_elsewhere_and_left_to_the_kernel_here() {
        let settled =
            Blocked::default().settle(&stopped(libc::SYS_read, ERESTARTSYS), Instant::now(), &no_time);
        assert!(settled.here.is_none());
        assert_eq!((settled.elsewhere.rip, settled.elsewhere.rax as i64), (0x1000, libc::SYS_read));
    }

    #[test]
    fn epoll_wait_without_a_timeout_never_reports_our_stop() {
        let mut registers = stopped(libc::SYS_epoll_wait, EINTR);
        registers.r10 = -1i64 as u64;
        let settled = Blocked::default().settle(&registers, Instant::now(), &no_time);
        assert_eq!(settled.here.unwrap().rax as i64, ERESTARTNOHAND);
        assert_eq!(settled.here.unwrap().r10, registers.r10);
    }

    #[test]
    fn epoll_timeout_runs_on_through_stops_and_ends() {
        let (mut blocked, start) = (Blocked::default(), Instant::now());
        let mut registers = stopped(libc::SYS_epoll_wait, EINTR);
        registers.r10 = 100;
        for (elapsed, left) in [(0, 100), (50, 50), (99, 1)] {
            let here = blocked.settle(&registers, start + elapsed * MS, &no_time).here.unwrap();
            assert_eq!(here.r10, left);
            registers.r10 = left;
        }
        let here = blocked.settle(&registers, start + 100 * MS, &no_time).here.unwrap();
        assert_eq!((here.rax, here.orig_rax as i64), (0, -1));
    }

    #[test]
    fn a_new_epoll_wait_at_the_same_place_gets_its_whole_timeout() {
        let (mut blocked, start) = (Blocked::default(), Instant::now());
        let mut registers = stopped(libc::SYS_epoll_wait, EINTR);
        registers.r10 = 100;
        blocked.settle(&registers, start, &no_time);
        blocked.settle(&registers, start + 50 * MS, &no_time);
        registers.r10 = 100;
        assert_eq!(blocked.settle(&registers, start + 90 * MS, &no_time).here.unwrap().r10, 100);
    }

    #[test]
    fn a_sleep_is_made_again_elsewhere_with_what_is_left() {
        let (mut blocked, start) = (Blocked::default(), Instant::now());
        let read_time = |_: u64| Some(300 * MS);
        let first = blocked.settle(&stopped(NANOSLEEP, ERESTART_RESTARTBLOCK), start, &read_time);
        assert_eq!(first.timeout, Some(Timeout { argument: 0, remaining: 300 * MS }));
        let second = stopped(RESTART_SYSCALL, ERESTART_RESTARTBLOCK);
        let second = blocked.settle(&second, start + 120 * MS, &read_time);
        assert_eq!(second.timeout, Some(Timeout { argument: 0, remaining: 180 * MS }));
        assert_eq!(second.elsewhere.rax as i64, NANOSLEEP);
        assert!(second.here.is_none());
    }
}
