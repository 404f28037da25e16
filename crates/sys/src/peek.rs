//! Reading the kernel's own memory, at addresses that its structures name: a BPF program that copies what it is asked
//! for into shared memory, in the context of whoever asks.
//!
//! What lies there may change meanwhile, and an address that was good a moment ago may lead nowhere: then the answer is
//! an error, never a fault. What was read means only what the reader can show that it means.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use crate::bpf::{Instruction, Kind, LoadError, Register, WordArray, call, load};
use crate::tasks::HELPER_READ_KERNEL;

const PROG_TEST_RUN: u32 = 10;
const PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
const HELPER_KTIME_GET_NS: i32 = 5;
const HELPER_GET_CURRENT_TASK: i32 = 35;

/// How many pieces are read at once, and how long one may be.
pub const PIECES_MAX: usize = 64;
pub const PIECE_BYTES_MAX: usize = 4096;

// The shared memory, in words.
const TASK: usize = 0;
const CLOCK: usize = 1;
const REQUESTS: usize = 2;
/// Address, length, and what the kernel said.
const REQUEST_WORDS: usize = 3;
const BYTES: usize = REQUESTS + PIECES_MAX * REQUEST_WORDS;
const PIECE_WORDS: usize = PIECE_BYTES_MAX / 8;

/// A piece of the kernel's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub address: u64,
    pub len: usize,
}

/// The program, and the memory that it shares with us.
#[derive(Debug)]
pub struct Peek {
    program: OwnedFd,
    words: WordArray,
}

impl Peek {
    /// `EPERM` without CAP_BPF and CAP_PERFMON, or where the kernel is locked down.
    pub fn new() -> Result<Self, LoadError> {
        let unloaded = |source| LoadError { source, log: String::new() };
        let words =
            WordArray::create("checksync_peek", BYTES + PIECES_MAX * PIECE_WORDS).map_err(unloaded)?;
        // Helpers that read the kernel's memory are for such programs; ours may be used under either.
        let license = c"Dual MIT/GPL";
        let kind = Kind { program_type: PROG_TYPE_RAW_TRACEPOINT, attach_type: 0, function: 0, license };
        let program = load(kind, "checksync_peek", &program(&words))?;
        Ok(Self { program, words })
    }

    /// Appends the pieces to `into`, one after the other. `EFAULT` if one of them cannot be read.
    ///
    /// # Panics
    /// If a piece is longer than [`PIECE_BYTES_MAX`].
    pub fn read(&mut self, pieces: &[Piece], into: &mut Vec<u8>) -> io::Result<()> {
        pieces.chunks(PIECES_MAX).try_for_each(|some| self.read_some(some, into))
    }

    fn read_some(&mut self, pieces: &[Piece], into: &mut Vec<u8>) -> io::Result<()> {
        let word = |index: usize, part: usize| &self.words[REQUESTS + index * REQUEST_WORDS + part];
        for (index, piece) in pieces.iter().enumerate() {
            assert!((1..=PIECE_BYTES_MAX).contains(&piece.len), "a piece of {} bytes", piece.len);
            word(index, 0).store(piece.address, Ordering::Relaxed);
            word(index, 1).store(piece.len as u64, Ordering::Relaxed);
        }
        if pieces.len() < PIECES_MAX {
            word(pieces.len(), 1).store(0, Ordering::Relaxed);
        }
        self.run()?;
        for (index, piece) in pieces.iter().enumerate() {
            if word(index, 2).load(Ordering::Relaxed) != 0 {
                return Err(io::Error::from_raw_os_error(libc::EFAULT));
            }
            let (from, end) = (into.len(), into.len() + piece.len);
            let start = BYTES + index * PIECE_WORDS;
            into.resize(from + piece.len.next_multiple_of(8), 0);
            let words = &self.words[start..start + piece.len.div_ceil(8)];
            for (bytes, word) in into[from..].chunks_exact_mut(8).zip(words) {
                bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            }
            into.truncate(end);
        }
        Ok(())
    }

    /// Where the kernel keeps the calling thread.
    pub fn own_task(&mut self) -> io::Result<u64> {
        self.read_some(&[], &mut Vec::new())?;
        Ok(self.words[TASK].load(Ordering::Relaxed))
    }

    /// The host's monotonic clock at the last reading, whatever time namespace anybody is in.
    pub fn clock_ns(&self) -> u64 {
        self.words[CLOCK].load(Ordering::Relaxed)
    }

    fn run(&self) -> io::Result<()> {
        let mut run = TestRun { program: self.program.as_raw_fd() as u32, ..TestRun::default() };
        // SAFETY: `run` is what this command reads and writes, and holds no address.
        unsafe { call(PROG_TEST_RUN, &mut run) }.map(drop)
    }
}

/// No loop: what the verifier is to follow goes straight on.
fn program(words: &WordArray) -> Vec<Instruction> {
    const REQUEST_SLOTS: usize = 9;
    let mut code = Vec::new();
    code.extend(Instruction::array_address(Register::R6, words));
    code.push(Instruction::set(Register::R7, PIECE_BYTES_MAX as i32));
    for (helper, to) in [(HELPER_GET_CURRENT_TASK, TASK), (HELPER_KTIME_GET_NS, CLOCK)] {
        code.push(Instruction::call(helper));
        code.push(Instruction::store_word(Register::R6, to as i16, Register::R0));
    }
    for index in 0..PIECES_MAX {
        let request = (REQUESTS + index * REQUEST_WORDS) as i16;
        let bytes = (BYTES + index * PIECE_WORDS) * 8;
        let to_the_end = (PIECES_MAX - index) * REQUEST_SLOTS - 2;
        let piece = [
            Instruction::load_word(Register::R2, Register::R6, request + 1),
            Instruction::skip_if_equal(Register::R2, 0, to_the_end as i16),
            Instruction::skip_if_greater(Register::R2, Register::R7, to_the_end as i16 - 1),
            Instruction::copy(Register::R1, Register::R6),
            Instruction::add(Register::R1, bytes as i32),
            Instruction::load_word(Register::R3, Register::R6, request),
            Instruction::call(HELPER_READ_KERNEL),
            Instruction::store_word(Register::R6, request + 2, Register::R0),
            Instruction::set(Register::R0, 0),
        ];
        debug_assert_eq!(piece.len(), REQUEST_SLOTS);
        code.extend(piece);
    }
    code.extend([Instruction::set(Register::R0, 0), Instruction::exit()]);
    code
}

/// Of `union bpf_attr`, cut after the last field that we use.
#[derive(Debug, Default)]
#[repr(C)]
struct TestRun {
    program: u32,
    answer: u32,
    data_bytes: [u32; 2],
    data: [u64; 2],
    repeat: u32,
    duration: u32,
    context_bytes: [u32; 2],
    context: [u64; 2],
    flags: u32,
    cpu: u32,
}

const _: () = assert!(std::mem::offset_of!(TestRun, flags) == 64);

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root, as the manager does.
    #[test]
    fn what_the_kernel_has_is_read_and_what_it_has_not_is_an_error() {
        let mut peek = Peek::new().unwrap();
        let task = peek.own_task().unwrap();
        let pieces: Vec<Piece> =
            (0..200).map(|n| Piece { address: task, len: 1 + n * 7 % PIECE_BYTES_MAX }).collect();
        let mut bytes = Vec::new();
        peek.read(&pieces, &mut bytes).unwrap();
        assert_eq!(bytes.len(), pieces.iter().map(|piece| piece.len).sum::<usize>());
        let nowhere = [pieces[0], Piece { address: 0, len: 1 }];
        assert_eq!(peek.read(&nowhere, &mut bytes).unwrap_err().raw_os_error(), Some(libc::EFAULT));
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        assert!((now.tv_sec as u64).abs_diff(peek.clock_ns() / 1_000_000_000) < 60);
    }
}
