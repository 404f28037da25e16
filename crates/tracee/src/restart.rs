//! System calls that our stop interrupted.
//!
//! At a stop inside a system call `orig_rax` is its number and `rax` what the kernel wants to do about it:
//! most calls restart by themselves once the thread goes on. Two kinds need help.
//!
//! * Calls that return `EINTR` at *any* stop (signal(7), "interruption by stop signals"): the app would see
//!   an error that nobody sent. Turned into `ERESTARTNOHAND` they restart unless a handler runs, which is
//!   just when `EINTR` is true. A relative timeout would start over at every epoch and might never end, so it
//!   is replaced by what is left of it. The replaced value is also how the next stop knows that it is still
//!   the same call. Where the timeout lies in memory, the argument is pointed to a copy of ours; where it is
//!   the socket's (`SO_RCVTIMEO`), the call is marked in the upper half of its descriptor, of which the
//!   kernel reads the lower, and ended by us when its time is over.
//! * `ERESTART_RESTARTBLOCK`: the deadline is in the kernel and can't be carried to another host. There the
//!   call is made again with the time that is left, as far as it is known: exact from the second stop on; a
//!   call that is met for the first time may wait longer by up to one interval.

use std::time::{Duration, Instant};

use sys::ptrace::Registers;

use crate::rest::Stream;

pub(crate) const EINTR: i64 = -4;
const EAGAIN: i64 = -11;
const EINPROGRESS: i64 = -115;
pub(crate) const ERESTARTSYS: i64 = -512;
pub(crate) const ERESTARTNOINTR: i64 = -513;
pub(crate) const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

const POLL: i64 = libc::SYS_poll;
const NANOSLEEP: i64 = libc::SYS_nanosleep;
const CLOCK_NANOSLEEP: i64 = libc::SYS_clock_nanosleep;
const FUTEX: i64 = libc::SYS_futex;
const RESTART_SYSCALL: i64 = libc::SYS_restart_syscall;

/// Calls that answer `EINTR` at a stop without any handler having run.
const INTERRUPTED_BY_STOPS: [i64; 20] = [
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
    libc::SYS_sendmmsg,
    libc::SYS_sendfile,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
];

/// In the upper half of the descriptor of a call that we make again.
const MARK: u64 = 0x5ca1_ab1e << 32;
pub(crate) const LOWER_HALF: u64 = 0xffff_ffff;

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
    /// The register that we rewrite, as we left it.
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
    /// What is to be written to [`Surroundings::slot`], to which `here` points now.
    pub slot_time: Option<Duration>,
}

/// What there is to know of a stopped thread beside its registers.
pub(crate) struct Surroundings<'a> {
    /// Reads the `timespec` that an argument points to.
    pub read_time: &'a dyn Fn(u64) -> Option<Duration>,
    /// Reads memory; false if that can't be read.
    pub read: &'a dyn Fn(u64, &mut [u8]) -> bool,
    /// What a descriptor is, if calls that write to it wait until all is written: see [`crate::rest`].
    pub stream: &'a dyn Fn(i32, bool) -> Option<Stream>,
    /// Whether a descriptor is a regular file's.
    pub is_file: &'a dyn Fn(i32) -> bool,
    /// The time after which a socket call on this descriptor gives up, if it does: of a send, or of any other.
    pub socket_time: &'a dyn Fn(i32, bool) -> Option<Duration>,
    /// Where a `timespec` of ours for this thread lies.
    pub slot: Option<u64>,
}

impl Blocked {
    /// Decides about a thread that was just stopped with `registers`.
    pub fn settle(&mut self, registers: &Registers, now: Instant, around: &Surroundings<'_>) -> Settled {
        let (number, result) = (registers.orig_rax as i64, registers.rax as i64);
        if number < 0 {
            self.call = None;
            return as_it_is(registers);
        }
        match result {
            EINTR if is_epoll(number) => self.settle_epoll(registers, now, around),
            EINTR if number == libc::SYS_rt_sigtimedwait => self.settle_timed(registers, 2, now, around),
            EINTR if number == libc::SYS_semtimedop => self.settle_timed(registers, 3, now, around),
            EINTR if INTERRUPTED_BY_STOPS.contains(&number) => self.settle_socket(registers, now, around),
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
                self.call = None;
                Settled { elsewhere: again(registers), ..as_it_is(registers) }
            }
            ERESTART_RESTARTBLOCK => self.settle_restart_block(registers, now, around),
            _ => {
                self.call = None;
                as_it_is(registers)
            }
        }
    }

    fn settle_epoll(&mut self, found: &Registers, now: Instant, around: &Surroundings<'_>) -> Settled {
        let asked = match found.orig_rax as i64 {
            libc::SYS_epoll_pwait2 if found.r10 == 0 => None,
            libc::SYS_epoll_pwait2 => (around.read_time)(found.r10),
            _ => u64::try_from(found.r10 as i32).ok().map(Duration::from_millis),
        };
        let mut here = Registers { rax: ERESTARTNOHAND as u64, ..*found };
        if let Some(asked) = asked {
            let left = self.left(found, found.r10, asked, now);
            if left.is_zero() {
                return self.timed_out(found, 0);
            }
            // N.B. epoll_pwait2 has its timeout in memory that is the app's. epoll_pwait takes the same
            // arguments otherwise, with milliseconds in the register.
            if found.orig_rax as i64 == libc::SYS_epoll_pwait2 {
                here.orig_rax = libc::SYS_epoll_pwait as u64;
            }
            here.r10 = left.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as u64;
            self.remember(&here, here.orig_rax as i64, here.r10, left, now);
        } else {
            self.call = None;
        }
        Settled { here: Some(here), elsewhere: again(&here), ..as_it_is(found) }
    }

    /// A call whose timeout lies in memory, to which argument `number` points.
    fn settle_timed(
        &mut self,
        found: &Registers,
        number: u8,
        now: Instant,
        around: &Surroundings<'_>,
    ) -> Settled {
        let mut here = Registers { rax: ERESTARTNOHAND as u64, ..*found };
        let pointer = *argument(&mut here, number);
        let asked = (pointer != 0).then(|| (around.read_time)(pointer)).flatten();
        let (Some(asked), Some(slot)) = (asked, around.slot) else {
            self.call = None;
            return Settled { here: Some(here), elsewhere: again(found), ..as_it_is(found) };
        };
        let left = self.left(found, pointer, asked, now);
        if left.is_zero() {
            return self.timed_out(found, EAGAIN);
        }
        *argument(&mut here, number) = slot;
        self.remember(&here, found.orig_rax as i64, slot, left, now);
        let timeout = Some(Timeout { argument: number, remaining: left });
        Settled { here: Some(here), elsewhere: again(found), timeout, slot_time: Some(left) }
    }

    fn settle_socket(&mut self, found: &Registers, now: Instant, around: &Surroundings<'_>) -> Settled {
        let mut here = Registers { rax: ERESTARTNOHAND as u64, ..*found };
        let plain = Registers { rdi: found.rdi & LOWER_HALF, ..*found };
        let again_elsewhere = again(&plain);
        let Some(asked) = (around.socket_time)(plain.rdi as i32, sends(found.orig_rax as i64)) else {
            self.call = None;
            return Settled { here: Some(here), elsewhere: again_elsewhere, ..as_it_is(found) };
        };
        let left = self.left(found, found.rdi, asked, now);
        if left.is_zero() {
            let result = if found.orig_rax as i64 == libc::SYS_connect { EINPROGRESS } else { EAGAIN };
            return self.timed_out(&plain, result);
        }
        here.rdi = plain.rdi | MARK;
        self.remember(&here, found.orig_rax as i64, here.rdi, left, now);
        Settled { here: Some(here), elsewhere: again_elsewhere, ..as_it_is(found) }
    }

    /// What is left of a timeout of which `asked` was asked for, if `value` does not say that the call is one
    /// that we know.
    pub fn left(&self, found: &Registers, value: u64, asked: Duration, now: Instant) -> Duration {
        match self.call {
            Some(call) if call.is(found) && call.rewritten == value => {
                call.remaining.saturating_sub(now.saturating_duration_since(call.at))
            }
            _ => asked,
        }
    }

    fn timed_out(&mut self, found: &Registers, result: i64) -> Settled {
        self.call = None;
        let over = returning(found, result);
        Settled { here: Some(over), elsewhere: over, ..as_it_is(found) }
    }

    fn settle_restart_block(
        &mut self,
        found: &Registers,
        now: Instant,
        around: &Surroundings<'_>,
    ) -> Settled {
        let continued = self.call.filter(|call| found.orig_rax as i64 == RESTART_SYSCALL && call.is(found));
        let number = continued.map_or(found.orig_rax as i64, |call| call.number);
        let left = match continued {
            Some(call) => Some(call.remaining.saturating_sub(now.saturating_duration_since(call.at))),
            None => requested(number, found, around.read_time),
        };
        let Some(left) = left else {
            // A call that we do not know, or met in the middle of its restart: it reports the interruption.
            self.call = None;
            return Settled { elsewhere: returning(found, EINTR), ..as_it_is(found) };
        };
        self.remember(found, number, found.r10, left, now);
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
        Settled { elsewhere, timeout, ..as_it_is(found) }
    }

    fn remember(
        &mut self,
        registers: &Registers,
        number: i64,
        rewritten: u64,
        remaining: Duration,
        at: Instant,
    ) {
        let (instruction, stack) = (registers.rip, registers.rsp);
        self.call = Some(Pending { number, instruction, stack, rewritten, remaining, at });
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

fn sends(number: i64) -> bool {
    matches!(
        number,
        libc::SYS_write
            | libc::SYS_writev
            | libc::SYS_sendto
            | libc::SYS_sendmsg
            | libc::SYS_sendmmsg
            | libc::SYS_sendfile
            | libc::SYS_connect
    )
}

/// The register of a system call's argument, counted from zero.
pub(crate) fn argument(registers: &mut Registers, number: u8) -> &mut u64 {
    match number {
        0 => &mut registers.rdi,
        1 => &mut registers.rsi,
        2 => &mut registers.rdx,
        3 => &mut registers.r10,
        4 => &mut registers.r8,
        _ => &mut registers.r9,
    }
}

fn futex_timeout_is_relative(registers: &Registers) -> bool {
    registers.rsi as i32 & 0x7f == libc::FUTEX_WAIT
}

/// The timeout of a call that was met for the first time. An interrupted sleep has already written what is
/// left, where the app asked for it.
fn requested(
    number: i64,
    found: &Registers,
    read_time: &dyn Fn(u64) -> Option<Duration>,
) -> Option<Duration> {
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

pub(crate) fn as_it_is(registers: &Registers) -> Settled {
    let elsewhere = Registers { orig_rax: u64::MAX, ..*registers };
    Settled { here: None, elsewhere, timeout: None, slot_time: None }
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

    const SLOT: u64 = 0x9000;
    const NOTHING: Surroundings<'static> = Surroundings {
        read_time: &|_| None,
        read: &|_, _| false,
        stream: &|_, _| None,
        is_file: &|_| false,
        socket_time: &|_, _| None,
        slot: None,
    };

    #[test]
    fn a_thread_outside_a_call_is_left_alone() {
        let registers = stopped(-1, 7);
        let settled = Blocked::default().settle(&registers, Instant::now(), &NOTHING);
        assert_eq!(sys::ptrace::to_words(&settled.elsewhere), sys::ptrace::to_words(&registers));
    }

    #[test]
    fn a_restarting_call_is_made_again_elsewhere_and_left_to_the_kernel_here() {
        let settled =
            Blocked::default().settle(&stopped(libc::SYS_read, ERESTARTSYS), Instant::now(), &NOTHING);
        assert!(settled.here.is_none());
        assert_eq!((settled.elsewhere.rip, settled.elsewhere.rax as i64), (0x1000, libc::SYS_read));
    }

    #[test]
    fn epoll_wait_without_a_timeout_never_reports_our_stop() {
        let mut registers = stopped(libc::SYS_epoll_wait, EINTR);
        registers.r10 = -1i64 as u64;
        let settled = Blocked::default().settle(&registers, Instant::now(), &NOTHING);
        assert_eq!(settled.here.unwrap().rax as i64, ERESTARTNOHAND);
        assert_eq!(settled.here.unwrap().r10, registers.r10);
    }

    #[test]
    fn epoll_timeout_runs_on_through_stops_and_ends() {
        let (mut blocked, start) = (Blocked::default(), Instant::now());
        let mut registers = stopped(libc::SYS_epoll_wait, EINTR);
        registers.r10 = 100;
        for (elapsed, left) in [(0, 100), (50, 50), (99, 1)] {
            let here = blocked.settle(&registers, start + elapsed * MS, &NOTHING).here.unwrap();
            assert_eq!(here.r10, left);
            registers.r10 = left;
        }
        let here = blocked.settle(&registers, start + 100 * MS, &NOTHING).here.unwrap();
        assert_eq!((here.rax, here.orig_rax as i64), (0, -1));
    }

    #[test]
    fn a_new_epoll_wait_at_the_same_place_gets_its_whole_timeout() {
        let (mut blocked, start) = (Blocked::default(), Instant::now());
        let mut registers = stopped(libc::SYS_epoll_wait, EINTR);
        registers.r10 = 100;
        blocked.settle(&registers, start, &NOTHING);
        blocked.settle(&registers, start + 50 * MS, &NOTHING);
        registers.r10 = 100;
        assert_eq!(blocked.settle(&registers, start + 90 * MS, &NOTHING).here.unwrap().r10, 100);
    }

    #[test]
    fn a_sleep_is_made_again_elsewhere_with_what_is_left() {
        let (mut blocked, start) = (Blocked::default(), Instant::now());
        let around = Surroundings { read_time: &|_| Some(300 * MS), ..NOTHING };
        let first = blocked.settle(&stopped(NANOSLEEP, ERESTART_RESTARTBLOCK), start, &around);
        assert_eq!(first.timeout, Some(Timeout { argument: 0, remaining: 300 * MS }));
        let second = stopped(RESTART_SYSCALL, ERESTART_RESTARTBLOCK);
        let second = blocked.settle(&second, start + 120 * MS, &around);
        assert_eq!(second.timeout, Some(Timeout { argument: 0, remaining: 180 * MS }));
        assert_eq!(second.elsewhere.rax as i64, NANOSLEEP);
        assert!(second.here.is_none());
    }
    #[test]
    fn a_timeout_in_memory_runs_on_through_stops_and_ends() {
        let (mut blocked, start) = (Blocked::default(), Instant::now());
        let around = Surroundings { read_time: &|_| Some(100 * MS), slot: Some(SLOT), ..NOTHING };
        let mut registers = stopped(libc::SYS_rt_sigtimedwait, EINTR);
        registers.rdx = 0x7000;
        for (elapsed, left) in [(0, 100), (60, 40)] {
            let settled = blocked.settle(&registers, start + elapsed * MS, &around);
            assert_eq!(settled.slot_time, Some(left * MS));
            assert_eq!(settled.timeout, Some(Timeout { argument: 2, remaining: left * MS }));
            registers.rdx = settled.here.unwrap().rdx;
            assert_eq!(registers.rdx, SLOT);
        }
        let over = blocked.settle(&registers, start + 100 * MS, &around).here.unwrap();
        assert_eq!((over.rax as i64, over.orig_rax as i64), (EAGAIN, -1));
    }

    #[test]
    fn a_sockets_timeout_runs_on_through_stops_and_ends() {
        let (mut blocked, start) = (Blocked::default(), Instant::now());
        let around =
            Surroundings { socket_time: &|fd, sends| (fd == 7 && !sends).then_some(100 * MS), ..NOTHING };
        let mut registers = stopped(libc::SYS_recvfrom, EINTR);
        registers.rdi = 7;
        let first = blocked.settle(&registers, start, &around);
        assert_eq!(first.elsewhere.rdi, 7);
        let marked = first.here.unwrap();
        assert_eq!((marked.rdi as i32, marked.rax as i64), (7, ERESTARTNOHAND));
        let mut next = stopped(libc::SYS_recvfrom, EINTR);
        next.rdi = marked.rdi;
        let over = blocked.settle(&next, start + 100 * MS, &around).here.unwrap();
        assert_eq!((over.rax as i64, over.rdi), (EAGAIN, 7));
        // Another call, at the same place, has all of its time.
        let fresh = blocked.settle(&registers, start + 150 * MS, &around).here.unwrap();
        assert_eq!(fresh.rax as i64, ERESTARTNOHAND);
    }

    #[test]
    fn a_socket_without_a_timeout_is_not_marked() {
        let mut registers = stopped(libc::SYS_recvfrom, EINTR);
        registers.rdi = 7;
        let here = Blocked::default().settle(&registers, Instant::now(), &NOTHING).here.unwrap();
        assert_eq!((here.rdi, here.rax as i64), (7, ERESTARTNOHAND));
    }
}
