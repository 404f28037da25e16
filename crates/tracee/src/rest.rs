//! Calls that our stop cut short.
//!
//! A blocking write, and a read with `MSG_WAITALL`, that is stopped after it has moved some of its bytes
//! returns how many. Nobody sent a signal, so the app was promised all of them; programs that believe this
//! lose data. Such a thread makes the rest of its call, and the app sees the sum:
//!
//! ```text
//! stopped at the end of a call, n of m bytes ──cut──▶ about to make a piece of the rest ◀──┐ more
//!                                                        │ PTRACE_SYSCALL                  │
//!                                                        ▼                                 │
//!                                         at the end of the piece (Stop::Call) ──advance───┤
//!                                                                                          │ all, 0, error
//!                        the app's own registers, with the sum as the result ◀──────end────┘ time over
//! ```
//!
//! * A thread on its way through the rest stops at each signal before it is at the app's code again. If a
//!   handler is to run it is given the sum first, as without us ([`crate::tree::Tree`] does that). A signal
//!   without a handler changes nothing.
//! * The rest of an array of buffers begins in the middle of one, so it is made buffer by buffer. The array is
//!   read at the stop: who changes it during the call is not understood.
//! * A piece has no control messages: they went with the first bytes. On a socket it never raises SIGPIPE, as
//!   a call that has moved something does not.
//! * While it is under way, seccomp is suspended for the thread, which can do nothing but this one call.
//! * A timeout of the socket's runs on, and is looked at whenever a piece ends.
//!
//! Left short, as every caller of them must expect anyway: `splice`, `tee`, `vmsplice`, `sendmmsg`,
//! `recvmmsg`; terminals; `MSG_OOB` and `MSG_ZEROCOPY`; a `recvmsg` with `MSG_WAITALL` that asks for control
//! messages, which a piece would lose; pipes in packet mode. Not undone: an error that ends the rest is taken
//! from the socket by it, so that the app, which sees the sum, finds `EPIPE` or an end of file at its next
//! call and not the error's own name; a tracer that dies in the middle leaves a call that returns what its last
//! piece moved; and a program that closes the descriptor under a blocked call, and gets its number again for
//! another file, finds the rest there.

use std::time::{Duration, Instant};

use sys::ptrace::Registers;

use crate::frozen::SYSCALL;
use crate::restart::{
    Blocked, EINTR, ERESTARTNOHAND, ERESTARTNOINTR, ERESTARTSYS, LOWER_HALF, Settled, Surroundings, as_it_is,
};

/// The most that the kernel moves in one call.
const CALL_BYTES_MAX: u64 = 0x7fff_f000;
const BUFFERS_MAX: u64 = 1024;
const SYSCALL_BYTES: u64 = 2;

/// What is still to be done of a call that was cut short. The thread's registers make its first piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rest {
    /// How many bytes were moved.
    pub done: u64,
    /// What the app finds in the registers of the arguments in the end.
    pub arguments: [u64; 6],
    /// Address and length of what is still to be moved.
    pub pieces: Vec<(u64, u64)>,
    /// After which the call gives up.
    pub remaining: Option<Duration>,
}

/// What a call that moves a stream of bytes works on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    pub is_socket: bool,
    /// The time after which a call gives up, if it does.
    pub patience: Option<Duration>,
}

/// A rest that a thread is making.
#[derive(Debug)]
pub(crate) struct Unfinished {
    rest: Rest,
    /// When `remaining` was right.
    since: Instant,
}

impl Unfinished {
    pub fn new(rest: Rest, since: Instant) -> Self {
        Self { rest, since }
    }

    /// The rest as it is at `now`.
    pub fn at(&self, now: Instant) -> Rest {
        let passed = now.saturating_duration_since(self.since);
        let remaining = self.rest.remaining.map(|remaining| remaining.saturating_sub(passed));
        Rest { remaining, ..self.rest.clone() }
    }

    /// Takes note of the end of a piece. Returns the registers to go on with, and whether it is over.
    pub fn advance(&mut self, found: &Registers, now: Instant) -> (Registers, bool) {
        let pieces = &mut self.rest.pieces;
        match found.rax as i64 {
            EINTR | ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => (),
            ..=0 => pieces.clear(),
            moved => {
                self.rest.done = self.rest.done.saturating_add(moved as u64);
                skip(pieces, moved as u64);
            }
        }
        let is_late = self.at(now).remaining.is_some_and(|remaining| remaining.is_zero());
        match self.rest.pieces.first() {
            Some(&piece) if !is_late => (issue(found, found.orig_rax, piece), false),
            _ => (self.end(found, found.rip), true),
        }
    }

    /// What the app sees if it ends now, before the next piece.
    pub fn end_before(&self, found: &Registers) -> Registers {
        self.end(found, found.rip.wrapping_add(SYSCALL_BYTES))
    }

    fn end(&self, found: &Registers, rip: u64) -> Registers {
        let [rdi, rsi, rdx, r10, r8, r9] = self.rest.arguments;
        Registers { rip, rax: self.rest.done, orig_rax: u64::MAX, rdi, rsi, rdx, r10, r8, r9, ..*found }
    }
}

/// Looks at a thread that was just stopped: if that cut its call short, what it goes on with.
pub(crate) fn cut(
    blocked: &Blocked,
    found: &Registers,
    now: Instant,
    around: &Surroundings<'_>,
) -> Option<(Unfinished, Settled)> {
    let moved = u64::try_from(found.rax as i64).ok().filter(|&moved| moved > 0)?;
    let call = Call::of(found)?;
    if !is_native(found, around) {
        return None;
    }
    let mut pieces = buffers(found, around)?;
    limit(&mut pieces);
    skip(&mut pieces, moved);
    let first = *pieces.first()?;
    let fd = found.rdi & LOWER_HALF;
    let stream = (around.stream)(fd as i32, call.sends())?;
    let remaining = stream.patience.map(|asked| blocked.left(found, found.rdi, asked, now));
    if remaining.is_some_and(|remaining| remaining.is_zero()) {
        return None;
    }
    let (number, flags) = match call {
        Call::File if (around.is_file)(found.rsi as i32) => (libc::SYS_sendfile, found.r10),
        Call::File => return None,
        Call::Send(_) if !stream.is_socket => (libc::SYS_write, found.r10),
        Call::Send(flags) => {
            (libc::SYS_sendto, (flags & !libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL) as u32 as u64)
        }
        Call::Receive(flags) => (libc::SYS_recvfrom, flags as u32 as u64),
    };
    let plain = match number {
        libc::SYS_sendto | libc::SYS_recvfrom => Registers { rdi: fd, r10: flags, r8: 0, r9: 0, ..*found },
        _ => Registers { rdi: fd, ..*found },
    };
    let next = issue(&plain, number as u64, first);
    let arguments = [fd, found.rsi, found.rdx, found.r10, found.r8, found.r9];
    let rest = Rest { done: moved, arguments, pieces, remaining };
    Some((Unfinished::new(rest, now), Settled { here: Some(next), ..as_it_is(&next) }))
}

/// A call that moves all it was asked to unless something happens, with its flags.
#[derive(Clone, Copy)]
enum Call {
    Send(i32),
    Receive(i32),
    File,
}

impl Call {
    fn of(found: &Registers) -> Option<Self> {
        const NEVER: i32 = libc::MSG_DONTWAIT | libc::MSG_OOB;
        const NO_SEND: i32 = NEVER | libc::MSG_ZEROCOPY;
        const NO_RECEIVE: i32 = NEVER | libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_ERRQUEUE;
        match found.orig_rax as i64 {
            libc::SYS_write | libc::SYS_writev => Some(Self::Send(0)),
            libc::SYS_sendto => Some(Self::Send(found.r10 as i32)),
            libc::SYS_sendmsg => Some(Self::Send(found.rdx as i32)),
            libc::SYS_recvfrom => Some(Self::Receive(found.r10 as i32)),
            libc::SYS_recvmsg => Some(Self::Receive(found.rdx as i32)),
            libc::SYS_sendfile => Some(Self::File),
            _ => None,
        }
        .filter(|call| match *call {
            Self::Send(flags) => flags & NO_SEND == 0,
            Self::Receive(flags) => flags & libc::MSG_WAITALL != 0 && flags & NO_RECEIVE == 0,
            Self::File => true,
        })
    }

    fn sends(self) -> bool {
        matches!(self, Self::Send(_) | Self::File)
    }
}

/// Whether the number is one of x86-64's: a 32-bit call has others.
fn is_native(found: &Registers, around: &Surroundings<'_>) -> bool {
    const CODE_64_BIT: u64 = 0x33;
    let mut instruction = [0; 2];
    let was_read = (around.read)(found.rip.wrapping_sub(SYSCALL_BYTES), &mut instruction);
    found.cs == CODE_64_BIT && was_read && instruction == SYSCALL
}

/// Where the bytes of a call lie: address and length.
fn buffers(found: &Registers, around: &Surroundings<'_>) -> Option<Vec<(u64, u64)>> {
    match found.orig_rax as i64 {
        libc::SYS_writev => read_array(found.rsi, found.rdx, around),
        libc::SYS_sendmsg | libc::SYS_recvmsg => {
            // struct msghdr { name, namelen, iov, iovlen, control, controllen, flags }
            let mut header = [0; 56];
            if !(around.read)(found.rsi, &mut header) {
                return None;
            }
            // N.B. the length of it does not tell any more: the kernel has written there how many bytes came.
            // Some libraries point to nothing for an empty buffer.
            let control = word(&header, 32);
            let wants_control = || control != 0 && (around.read)(control, &mut [0]);
            if found.orig_rax as i64 == libc::SYS_recvmsg && wants_control() {
                return None;
            }
            read_array(word(&header, 16), word(&header, 24), around)
        }
        libc::SYS_sendfile => Some(vec![(0, found.r10)]),
        _ => Some(vec![(found.rsi, found.rdx)]),
    }
}

/// Reads an array of `struct iovec`.
fn read_array(address: u64, count: u64, around: &Surroundings<'_>) -> Option<Vec<(u64, u64)>> {
    const ENTRY_BYTES: usize = 16;
    let mut bytes = vec![0; count.min(BUFFERS_MAX) as usize * ENTRY_BYTES];
    let was_read = (around.read)(address, &mut bytes);
    was_read.then(|| bytes.chunks(ENTRY_BYTES).map(|entry| (word(entry, 0), word(entry, 8))).collect())
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Leaves out what the kernel would, and what is empty.
fn limit(pieces: &mut Vec<(u64, u64)>) {
    let mut left = CALL_BYTES_MAX;
    for (_, len) in pieces.iter_mut() {
        *len = (*len).min(left);
        left -= *len;
    }
    pieces.retain(|&(_, len)| len > 0);
}

/// Takes `bytes` away from the beginning.
fn skip(pieces: &mut Vec<(u64, u64)>, mut bytes: u64) {
    let whole = pieces.iter().take_while(|&&(_, len)| match bytes.checked_sub(len) {
        Some(left) => {
            bytes = left;
            true
        }
        None => false,
    });
    let whole = whole.count();
    pieces.drain(..whole);
    if let Some((address, len)) = pieces.first_mut() {
        *address = address.wrapping_add(bytes);
        *len -= bytes;
    }
}

/// The registers that make one piece; those `found` are at the end of a call.
fn issue(found: &Registers, number: u64, (address, len): (u64, u64)) -> Registers {
    let rip = found.rip.wrapping_sub(SYSCALL_BYTES);
    let next = Registers { rip, rax: number, orig_rax: u64::MAX, ..*found };
    match number as i64 {
        // The kernel has moved the offset on.
        libc::SYS_sendfile => Registers { r10: len, ..next },
        _ => Registers { rsi: address, rdx: len, ..next },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: u64 = 0x7000;
    const ARRAY: u64 = 0x100;
    const HEADER: u64 = 0x200;
    const CONTROL: u64 = 0x300;

    fn at_end_of(number: i64, result: i64, arguments: [u64; 4]) -> Registers {
        let mut registers = sys::ptrace::from_words([0; sys::ptrace::REGISTER_WORDS]);
        [registers.rdi, registers.rsi, registers.rdx, registers.r10] = arguments;
        registers.orig_rax = number as u64;
        registers.rax = result as u64;
        (registers.rip, registers.cs) = (0x1002, 0x33);
        registers
    }

    /// Memory with an array of three buffers, of 10, 0 and 90 bytes, and a message header for it.
    fn read(address: u64, into: &mut [u8], control: u64) -> bool {
        if (address, into.len()) == (0x1000, 2) {
            into.copy_from_slice(&SYSCALL);
            return true;
        }
        let mut memory = vec![0; 0x400];
        let mut put = |at: u64, word: u64| {
            memory[at as usize..at as usize + 8].copy_from_slice(&word.to_ne_bytes());
        };
        let array = [FROM, 10, FROM + 0x100, 0, FROM + 0x200, 90];
        array.iter().zip(0..).for_each(|(&word, at)| put(ARRAY + at * 8, word));
        [(16, ARRAY), (24, 3), (32, control)].into_iter().for_each(|(at, word)| put(HEADER + at, word));
        let found = memory.get(address as usize..address as usize + into.len());
        found.inspect(|found| into.copy_from_slice(found)).is_some()
    }

    fn cut_with(found: &Registers, stream: Option<Stream>, control: u64) -> Option<(Unfinished, Registers)> {
        let around = Surroundings {
            read_time: &|_| None,
            read: &|address, into| read(address, into, control),
            stream: &|fd, _| stream.filter(|_| fd == 3),
            is_file: &|fd| fd == 4,
            socket_time: &|_, _| None,
            slot: None,
        };
        let (unfinished, settled) = cut(&Blocked::default(), found, Instant::now(), &around)?;
        Some((unfinished, settled.here.expect("a rest has registers")))
    }

    fn on_pipe(found: &Registers) -> Option<(Unfinished, Registers)> {
        cut_with(found, Some(Stream { is_socket: false, patience: None }), 0)
    }

    fn on_socket(found: &Registers) -> Option<(Unfinished, Registers)> {
        cut_with(found, Some(Stream { is_socket: true, patience: None }), 0)
    }

    /// The call that registers make.
    fn made(next: &Registers) -> (i64, [u64; 4]) {
        assert_eq!(next.rip, 0x1000, "the thread is not at its system call");
        assert_eq!(next.orig_rax, u64::MAX, "the kernel may restart something by itself");
        (next.rax as i64, [next.rdi, next.rsi, next.rdx, next.r10])
    }

    /// The same thread at the end of that call.
    fn ended(next: &Registers, result: i64) -> Registers {
        Registers { rip: 0x1002, orig_rax: next.rax, rax: result as u64, ..*next }
    }

    #[test]
    fn the_rest_of_a_write_is_written_and_the_sum_returned() {
        let start = at_end_of(libc::SYS_write, 40, [3, FROM, 100, 5]);
        let (mut unfinished, next) = on_pipe(&start).expect("it is cut short");
        assert_eq!(made(&next), (libc::SYS_write, [3, FROM + 40, 60, 5]));
        let now = Instant::now();
        let (next, is_over) = unfinished.advance(&ended(&next, 50), now);
        assert_eq!((made(&next), is_over), ((libc::SYS_write, [3, FROM + 90, 10, 5]), false));
        let (next, is_over) = unfinished.advance(&ended(&next, ERESTARTSYS), now);
        assert_eq!((made(&next), is_over), ((libc::SYS_write, [3, FROM + 90, 10, 5]), false));
        let (last, is_over) = unfinished.advance(&ended(&next, 10), now);
        assert!(is_over);
        assert_eq!((last.rip, last.rax, last.rdi, last.rsi, last.rdx), (0x1002, 100, 3, FROM, 100));
    }

    #[test]
    fn an_error_and_an_end_of_file_end_it_with_what_was_moved() {
        for result in [-32, -11, 0] {
            let start = at_end_of(libc::SYS_write, 40, [3, FROM, 100, 0]);
            let (mut unfinished, next) = on_pipe(&start).expect("it is cut short");
            let (last, is_over) = unfinished.advance(&ended(&next, result), Instant::now());
            assert!(is_over && last.rax == 40 && last.rip == 0x1002, "after {result}");
        }
    }

    #[test]
    fn a_signal_before_the_next_piece_shows_what_was_moved() {
        let start = at_end_of(libc::SYS_write, 40, [3, FROM, 100, 0]);
        let (unfinished, next) = on_pipe(&start).expect("it is cut short");
        let last = unfinished.end_before(&next);
        assert_eq!((last.rip, last.rax, last.rsi, last.rdx), (0x1002, 40, FROM, 100));
    }

    #[test]
    fn an_array_goes_on_in_the_middle_of_a_buffer_and_with_the_next() {
        let start = at_end_of(libc::SYS_writev, 4, [3, ARRAY, 3, 0]);
        let (mut unfinished, next) = on_socket(&start).expect("it is cut short");
        let quiet = libc::MSG_NOSIGNAL as u64;
        assert_eq!(made(&next), (libc::SYS_sendto, [3, FROM + 4, 6, quiet]));
        let (next, _) = unfinished.advance(&ended(&next, 6), Instant::now());
        assert_eq!(made(&next), (libc::SYS_sendto, [3, FROM + 0x200, 90, quiet]));
        let (last, is_over) = unfinished.advance(&ended(&next, 90), Instant::now());
        assert_eq!((is_over, last.rax, last.rsi, last.rdx, last.r10), (true, 100, ARRAY, 3, 0));
    }

    #[test]
    fn a_message_that_wants_all_is_read_in_pieces_unless_it_asks_for_control() {
        let all = libc::MSG_WAITALL as u64;
        let start = at_end_of(libc::SYS_recvmsg, 10, [3, HEADER, all, 0]);
        let (_, next) = on_socket(&start).expect("it is cut short");
        assert_eq!(made(&next), (libc::SYS_recvfrom, [3, FROM + 0x200, 90, all]));
        let stream = Some(Stream { is_socket: true, patience: None });
        assert!(cut_with(&start, stream, CONTROL).is_none(), "descriptors that come would be lost");
        assert!(cut_with(&start, stream, u64::MAX - 8).is_some(), "an empty buffer lies nowhere");
    }

    #[test]
    fn the_rest_of_a_file_is_sent_from_where_it_is() {
        let start = at_end_of(libc::SYS_sendfile, 40, [3, 4, 0, 100]);
        let (_, next) = on_socket(&start).expect("it is cut short");
        assert_eq!(made(&next), (libc::SYS_sendfile, [3, 4, 0, 60]));
        let from_other = at_end_of(libc::SYS_sendfile, 40, [3, 5, 0, 100]);
        assert!(on_socket(&from_other).is_none());
    }

    #[test]
    fn what_is_short_or_whole_by_itself_is_left_alone() {
        let dont_wait = libc::MSG_DONTWAIT as u64;
        let all_peek = (libc::MSG_WAITALL | libc::MSG_PEEK) as u64;
        for (number, result, arguments) in [
            (libc::SYS_write, 100, [3, FROM, 100, 0]),
            (libc::SYS_write, -4, [3, FROM, 100, 0]),
            (libc::SYS_write, 0, [3, FROM, 100, 0]),
            (libc::SYS_writev, 100, [3, ARRAY, 3, 0]),
            (libc::SYS_read, 40, [3, FROM, 100, 0]),
            (libc::SYS_recvfrom, 40, [3, FROM, 100, 0]),
            (libc::SYS_recvfrom, 40, [3, FROM, 100, all_peek]),
            (libc::SYS_sendto, 40, [3, FROM, 100, dont_wait]),
            (libc::SYS_write, CALL_BYTES_MAX as i64, [3, FROM, CALL_BYTES_MAX + 5, 0]),
            (libc::SYS_writev, 40, [3, 0x3f8, 3, 0]),
            (-1, 40, [3, FROM, 100, 0]),
        ] {
            let found = at_end_of(number, result, arguments);
            assert!(on_socket(&found).is_none(), "call {number} that returned {result}");
        }
        let written = at_end_of(libc::SYS_write, 40, [3, FROM, 100, 0]);
        assert!(cut_with(&written, None, 0).is_none(), "a descriptor that does not wait");
        assert!(on_pipe(&written).is_some());
        assert!(on_pipe(&Registers { cs: 0x23, ..written }).is_none(), "a 32-bit program");
        assert!(on_pipe(&Registers { rip: 0x1102, ..written }).is_none(), "a 32-bit call");
    }

    #[test]
    fn a_timeout_runs_on_and_ends_it() {
        const PATIENCE: Duration = Duration::from_secs(1);
        let start = at_end_of(libc::SYS_write, 40, [3, FROM, 100, 0]);
        let stream = Some(Stream { is_socket: true, patience: Some(PATIENCE) });
        let (mut unfinished, next) = cut_with(&start, stream, 0).expect("it is cut short");
        let later = Instant::now() + PATIENCE * 3 / 4;
        assert!(unfinished.at(later).remaining.is_some_and(|left| left <= PATIENCE / 4));
        let (next, is_over) = unfinished.advance(&ended(&next, 10), later);
        assert!(!is_over);
        let (last, is_over) = unfinished.advance(&ended(&next, EINTR), later + PATIENCE);
        assert_eq!((is_over, last.rax), (true, 50));
    }
}
