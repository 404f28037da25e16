//! Has a listening socket take a connection whose handshake another kernel was at: a program on what comes in by the
//! loopback device, which answers for the numbers of a segment as a SYN cookie would
//! (`bpf_sk_assign_tcp_reqsk`, Linux 6.9).
//!
//! The segment, the last one of the handshake, is the caller's to send; it carries a mark by which the program knows it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use crate::bpf::{
    Instruction, Kind, LINK_CREATE, LinkCreate, LoadError, NO_GPL, PROG_TYPE_SCHED_CLS, Register, WordArray,
    call_for_descriptor, load,
};

const HELPER_SOCKET_RELEASE: i32 = 86;
const HELPER_SOCKET_LOOKUP_TCP: i32 = 99;
const HELPER_TO_TCP_SOCKET: i32 = 137;
/// `BPF_TCX_INGRESS`.
const DEVICE_INGRESS: u32 = 46;
const LOOPBACK: u32 = 1;

// The shared memory, in words.
const MARK: usize = 0;
const IS_V6: usize = 1;
const ANSWER: usize = 2;
const TUPLE: usize = 3;
const AGREED: usize = TUPLE + TUPLE_BYTES.div_ceil(8);
const WORDS: usize = AGREED + AGREED_BYTES.div_ceil(8);

/// `struct bpf_sock_tuple`, with IPv6 addresses.
const TUPLE_BYTES: usize = 36;
const TUPLE_V4_BYTES: i32 = 12;
/// `struct bpf_tcp_req_attrs`.
const AGREED_BYTES: usize = 20;
/// Of [`ANSWER`], before the program has seen anything.
const NOT_SEEN: u64 = 1;

/// What both ends agreed on in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    pub segment_max: u16,
    pub selective_acknowledgements: bool,
    /// The peer's and ours.
    pub window_scales: Option<(u8, u8)>,
    /// Where our clock is to go on, and whether it counts microseconds.
    pub timestamp: Option<(u32, bool)>,
}

impl Agreed {
    fn bytes(&self) -> [u8; AGREED_BYTES] {
        let mut bytes = [0; AGREED_BYTES];
        let (stamp, microseconds) = self.timestamp.unwrap_or_default();
        let (theirs, ours) = self.window_scales.unwrap_or_default();
        bytes[4..8].copy_from_slice(&stamp.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.segment_max.to_ne_bytes());
        bytes[10..12].copy_from_slice(&[ours, theirs]);
        bytes[13] = self.window_scales.is_some().into();
        bytes[14] = self.selective_acknowledgements.into();
        bytes[15] = self.timestamp.is_some().into();
        bytes[16] = microseconds.into();
        bytes
    }
}

/// Both ends as a segment of the peer's has them: addresses, then ports, in network order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    V4([u8; 12]),
    V6([u8; TUPLE_BYTES]),
}

/// The program, not yet where segments are.
#[derive(Debug)]
pub struct Admission {
    program: OwnedFd,
    words: WordArray,
}

/// The program sees what comes in until this goes.
#[derive(Debug)]
pub struct AtLoopback {
    _link: OwnedFd,
}

impl Admission {
    /// `function` is the number of `bpf_sk_assign_tcp_reqsk` in the kernel's type information. Segments with `mark`, which
    /// is not zero, are the ones.
    pub fn load(function: u32, mark: u32) -> Result<Self, LoadError> {
        let unloaded = |source| LoadError { source, log: String::new() };
        let words = WordArray::create("checksync_admit", WORDS).map_err(unloaded)?;
        words[MARK].store(mark.into(), Ordering::SeqCst);
        // The kernel's functions are for such programs; ours may be used under either.
        let kind = Kind { program_type: PROG_TYPE_SCHED_CLS, license: c"Dual MIT/GPL", ..NO_GPL };
        let program = load(kind, "checksync_admit", &program(&words, function))?;
        Ok(Self { program, words })
    }

    /// At the loopback device of the calling thread's network namespace.
    pub fn attach(&self) -> io::Result<AtLoopback> {
        let mut create = LinkCreate {
            program: self.program.as_fd().as_raw_fd() as u32,
            target: LOOPBACK,
            attach_type: DEVICE_INGRESS,
            ..LinkCreate::default()
        };
        // SAFETY: `create` is what this command reads, and holds no address.
        let link = unsafe { call_for_descriptor(LINK_CREATE, &mut create) }?;
        Ok(AtLoopback { _link: link })
    }

    /// The next segment with the mark ends the handshake of these two.
    pub fn expect(&self, ends: Ends, agreed: Agreed) {
        let (bytes, is_v6) = match &ends {
            Ends::V4(bytes) => (&bytes[..], false),
            Ends::V6(bytes) => (&bytes[..], true),
        };
        self.put(TUPLE, bytes);
        self.put(AGREED, &agreed.bytes());
        self.words[IS_V6].store(is_v6.into(), Ordering::SeqCst);
        self.words[ANSWER].store(NOT_SEEN, Ordering::SeqCst);
    }

    /// What the kernel said to the segment, once it has seen it.
    pub fn answer(&self) -> Option<io::Result<()>> {
        match self.words[ANSWER].load(Ordering::SeqCst) as i64 {
            0 => Some(Ok(())),
            error @ ..0 => Some(Err(io::Error::from_raw_os_error(error.unsigned_abs() as i32))),
            _ => None,
        }
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        for (word, bytes) in self.words[at..].iter().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(whole), Ordering::SeqCst);
        }
    }
}

/// Whoever listens at these ends is to take it.
fn program(words: &WordArray, function: u32) -> Vec<Instruction> {
    use Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8};
    /// The next program decides.
    const UNDECIDED: i32 = -1;
    /// Where `struct __sk_buff` has the mark.
    const PACKET_MARK: i16 = 8;
    const OWN_NAMESPACE: i32 = -1;
    const NOBODY: i32 = -libc::ENOENT;
    let assign = [
        Instruction::copy(R2, R0),
        Instruction::copy(R1, R6),
        Instruction::copy(R3, R7),
        Instruction::add(R3, AGREED as i32 * 8),
        Instruction::set(R4, AGREED_BYTES as i32),
        Instruction::call_kernel(function),
        // A C `int`: its upper half means nothing.
        Instruction::shift_left(R0, 32),
        Instruction::shift_right_signed(R0, 32),
        Instruction::store_word(R7, ANSWER as i16, R0),
    ];
    let found = [
        &[
            Instruction::copy(R8, R0),
            Instruction::copy(R1, R0),
            Instruction::call(HELPER_TO_TCP_SOCKET),
            Instruction::skip_if_equal(R0, 0, assign.len() as i16),
        ][..],
        &assign,
        &[Instruction::copy(R1, R8), Instruction::call(HELPER_SOCKET_RELEASE)],
    ]
    .concat();
    let marked = [
        &[
            Instruction::set(R1, NOBODY),
            Instruction::store_word(R7, ANSWER as i16, R1),
            Instruction::copy(R1, R6),
            Instruction::copy(R2, R7),
            Instruction::add(R2, TUPLE as i32 * 8),
            Instruction::load_word(R8, R7, IS_V6 as i16),
            Instruction::set(R3, TUPLE_V4_BYTES),
            Instruction::skip_if_equal(R8, 0, 1),
            Instruction::set(R3, TUPLE_BYTES as i32),
            Instruction::set(R4, OWN_NAMESPACE),
            Instruction::set(R5, 0),
            Instruction::call(HELPER_SOCKET_LOOKUP_TCP),
            Instruction::skip_if_equal(R0, 0, found.len() as i16),
        ][..],
        &found,
    ]
    .concat();
    let begin = [
        &[Instruction::copy(R6, R1)][..],
        &Instruction::array_address(R7, words),
        &[
            Instruction::load_half(R1, R6, PACKET_MARK),
            Instruction::load_word(R2, R7, MARK as i16),
            Instruction::skip_if_different(R1, R2, marked.len() as i16),
        ],
    ]
    .concat();
    [&begin[..], &marked, &[Instruction::set(R0, UNDECIDED), Instruction::exit()]].concat()
}
