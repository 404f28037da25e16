//! What the kernel knows of the threads of a process, or of the TCP sockets of a network namespace, read at once: BPF
//! iterators.
//!
//! The program runs once per thread or socket in the reader's own context, and what it writes is what a read of the
//! iterator returns. No thread is woken or stopped for it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use crate::bpf::{Instruction, Kind, LINK_CREATE, LinkCreate, LoadError, call_for_descriptor, load};

const ITER_CREATE: u32 = 33;
const PROG_TYPE_TRACING: u32 = 26;
const TRACE_ITER: u32 = 28;

/// `bpf_probe_read_kernel(to, bytes, from)`: what cannot be read is zero.
pub const HELPER_READ_KERNEL: i32 = 113;
/// `bpf_seq_write(file, from, bytes)`.
pub const HELPER_SEQUENCE_WRITE: i32 = 127;

/// Loads a program for an iterator over tasks or TCP sockets: it gets `struct bpf_iter__task` (or `bpf_iter__tcp`) in
/// `r1` and returns 0. `function` is the number of `bpf_iter_task` (`bpf_iter_tcp`) in the kernel's type information.
pub fn load_visitor(name: &str, function: u32, instructions: &[Instruction]) -> Result<OwnedFd, LoadError> {
    // Helpers that read the kernel's memory are for such programs; ours may be used under either.
    let license = c"Dual MIT/GPL";
    let kind = Kind { program_type: PROG_TYPE_TRACING, attach_type: TRACE_ITER, function, license };
    load(kind, name, instructions)
}

/// A program that is bound to the threads of one process, or to one of them.
#[derive(Debug)]
pub struct Visit {
    link: OwnedFd,
}

impl Visit {
    /// `pid` as this process sees it. `ESRCH` if it is gone.
    pub fn of(program: BorrowedFd<'_>, pid: i32) -> io::Result<Self> {
        Self::bind(program, &Whom { tid: 0, pid: pid as u32, pidfd: 0 })
    }

    /// Of one thread alone.
    pub fn of_thread(program: BorrowedFd<'_>, tid: i32) -> io::Result<Self> {
        Self::bind(program, &Whom { tid: tid as u32, pid: 0, pidfd: 0 })
    }

    fn bind(program: BorrowedFd<'_>, whom: &Whom) -> io::Result<Self> {
        let mut create = LinkCreate {
            program: program.as_raw_fd() as u32,
            attach_type: TRACE_ITER,
            whom: ptr::from_ref(whom) as u64,
            whom_bytes: size_of::<Whom>() as u32,
            ..LinkCreate::default()
        };
        // SAFETY: `create` is what this command reads, and `whom` is live and as long as the field says.
        let link = unsafe { call_for_descriptor(LINK_CREATE, &mut create) }?;
        Ok(Self { link })
    }

    /// Runs the program for each thread; `into` is what it wrote.
    pub fn read(&self, into: &mut Vec<u8>) -> io::Result<()> {
        iterator(self.link.as_fd())?.read(into)
    }
}

/// A program that is bound to TCP sockets.
#[derive(Debug)]
pub struct VisitSockets {
    link: OwnedFd,
}

impl VisitSockets {
    pub fn new(program: BorrowedFd<'_>) -> io::Result<Self> {
        let mut create = LinkCreate {
            program: program.as_raw_fd() as u32,
            attach_type: TRACE_ITER,
            ..LinkCreate::default()
        };
        // SAFETY: `create` is what this command reads, and holds no address.
        let link = unsafe { call_for_descriptor(LINK_CREATE, &mut create) }?;
        Ok(Self { link })
    }

    /// Of the network namespace that the calling thread is in.
    pub fn begin(&self) -> io::Result<Iteration> {
        iterator(self.link.as_fd())
    }
}

/// It may begin long before it is read; then it tells of what is there when it is read.
#[derive(Debug)]
pub struct Iteration(File);

fn iterator(link: BorrowedFd<'_>) -> io::Result<Iteration> {
    let mut create = IteratorCreate { link: link.as_raw_fd() as u32, flags: 0 };
    // SAFETY: `create` is what this command reads, and holds no address.
    let iterator = unsafe { call_for_descriptor(ITER_CREATE, &mut create) }?;
    Ok(Iteration(File::from(iterator)))
}

impl Iteration {
    /// Runs the program for each; `into` is what it wrote.
    pub fn read(mut self, into: &mut Vec<u8>) -> io::Result<()> {
        /// As much as one read returns.
        const STEP_BYTES: usize = 32 << 10;
        let mut filled = 0;
        loop {
            into.resize(into.len().max(filled + STEP_BYTES), 0);
            match self.0.read(&mut into[filled..])? {
                0 => break,
                more => filled += more,
            }
        }
        into.truncate(filled);
        Ok(())
    }
}

/// `union bpf_iter_link_info`, for tasks.
#[repr(C)]
struct Whom {
    tid: u32,
    pid: u32,
    pidfd: u32,
}

#[derive(Debug, Default)]
#[repr(C)]
struct IteratorCreate {
    link: u32,
    flags: u32,
}
