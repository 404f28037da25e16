//! A process and its threads as they stood at the freeze. Numbers of processes and threads are those inside
//! the cell; kernel structures whose bytes are only carried, never read, stay bytes.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::descriptor::Descriptor;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub group: i32,
    pub session: i32,
    /// Index into [`crate::state::State::spaces`].
    pub space: u32,
    /// The leader first.
    pub threads: Vec<Thread>,
    pub descriptors: Vec<Descriptor>,
    /// One per signal, from signal 1 on.
    pub actions: Vec<SignalAction>,
    /// Pending for the whole process, in order: `siginfo_t` as the kernel gave them.
    pub pending: Vec<ByteBuf>,
    pub limits: Vec<Limit>,
    pub filesystem: Filesystem,
    /// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`.
    pub interval_timers: [IntervalTimer; 3],
    pub posix_timers: Vec<PosixTimer>,
    pub attributes: ProcessAttributes,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    pub tid: i32,
    pub registers: Registers,
    /// Of the system call that the registers are about to make.
    pub timeout: Option<Timeout>,
    /// Of a system call that the stop cut short, of which the registers are about to make a piece.
    pub rest: Option<Rest>,
    /// The XSAVE area in the standard format, as `NT_X86_XSTATE` gives it.
    pub xstate: ByteBuf,
    pub signal_mask: u64,
    pub alternate_stack: AlternateStack,
    pub robust_list: RobustList,
    pub clear_child_tid: u64,
    pub rseq: Option<Rseq>,
    /// Pending for this thread alone, in order.
    pub pending: Vec<ByteBuf>,
    pub credentials: Credentials,
    pub attributes: ThreadAttributes,
}

/// `user_regs_struct` in its order, adjusted so that a thread that starts with them goes on where it was:
/// a system call that was interrupted is made again with what is left of its timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers(pub [u64; 27]);

/// What is left of a timeout that the kernel kept: this argument, counted from zero, is to point to a
/// `timespec` of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeout {
    pub argument: u8,
    pub remaining_ns: u64,
}

/// What is still to be done of a system call that had moved some of its bytes. The app sees the sum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    pub done: u64,
    /// What the app finds in the registers of the arguments in the end.
    pub arguments: [u64; 6],
    /// Address and length of what is still to be moved.
    pub pieces: Vec<(u64, u64)>,
    /// After which the call gives up.
    pub remaining_ns: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AlternateStack {
    pub address: u64,
    pub flags: i32,
    pub size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RobustList {
    pub head: u64,
    pub len: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rseq {
    pub address: u64,
    pub size: u32,
    pub signature: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved, filesystem.
    pub users: [u32; 4],
    pub groups: [u32; 4],
    pub supplementary: Vec<u32>,
    /// Inheritable, permitted, effective, bounding, ambient.
    pub capabilities: [u64; 5],
    pub secure_bits: u32,
    pub no_new_privs: bool,
    /// Raw `sock_filter` programs, in the order in which they were installed.
    pub seccomp: Seccomp,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    Off,
    Strict,
    Filters(Vec<SeccompFilter>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompFilter {
    pub program: ByteBuf,
    pub flags: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ThreadAttributes {
    pub name: ByteBuf,
    pub policy: u32,
    pub nice: i32,
    pub priority: u32,
    pub sched_flags: u64,
    pub deadline: [u64; 3],
    /// Bit mask of CPUs, eight to a byte; empty: any of them.
    pub affinity: ByteBuf,
    pub io_priority: u32,
    pub timer_slack_ns: u64,
    pub parent_death_signal: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessAttributes {
    pub executable: ByteBuf,
    pub personality: u32,
    pub dumpable: u32,
    pub child_subreaper: bool,
    pub oom_score_adj: i32,
    pub coredump_filter: u32,
    pub transparent_huge_pages_off: bool,
    /// Whether the executable carries Go's runtime, which must be sent its preemption signals again.
    pub go: bool,
}

/// `prctl(PR_SET_MM_MAP)`, without the executable's descriptor. Belongs to the address space.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryMap {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    pub auxv: ByteBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SignalAction {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Filesystem {
    pub working_directory: ByteBuf,
    pub root: ByteBuf,
    pub umask: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IntervalTimer {
    pub value_us: u64,
    pub interval_us: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    pub id: i32,
    pub clock: i32,
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// `SIGEV_*`, with `SIGEV_THREAD_ID` and its thread.
    pub notify: i32,
    pub thread: i32,
    pub remaining_ns: u64,
    pub interval_ns: u64,
    pub overrun: i32,
}
