//! ptrace requests on a seized, stopped thread. All of them must come from the thread that seized it: the
//! kernel answers ESRCH to any other, which reads like death.

use std::io;
use std::mem::size_of;

use libc::{c_long, c_uint, c_void, pid_t};

use crate::check;

/// The general registers, as `PTRACE_GETREGSET` of `NT_PRSTATUS` gives them.
pub type Registers = libc::user_regs_struct;

pub const REGISTER_WORDS: usize = size_of::<Registers>() / 8;
const _: () = assert!(REGISTER_WORDS == 27);

const NT_PRSTATUS: usize = 1;
const NT_X86_XSTATE: usize = 0x202;
const SIGSET_BYTES: usize = 8;
/// Larger than any XSAVE area known (11 KiB with AMX).
pub const XSTATE_BYTES_MAX: usize = 64 << 10;

fn request(what: c_uint, tid: pid_t, addr: usize, data: usize) -> io::Result<u64> {
    // SAFETY: the callers below pass requests whose pointers are live for the call and of the right size.
    check(unsafe { libc::ptrace(what, tid, addr as *mut c_void, data as *mut c_void) })
}

/// Attaches without stopping. `options` are `PTRACE_O_*`.
pub fn seize(tid: pid_t, options: i32) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, options as usize).map(drop)
}

pub fn interrupt(tid: pid_t) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets a stopped thread run, delivering `signal` (0: none).
pub fn resume(tid: pid_t, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// The same, until the beginning or the end of its next system call.
pub fn resume_to_call(tid: pid_t, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, signal as usize).map(drop)
}

/// Whether a thread that stopped for a system call stopped at its end.
pub fn at_end_of_call(tid: pid_t) -> io::Result<bool> {
    const PTRACE_EVENTMSG_SYSCALL_EXIT: u64 = 2;
    event_message(tid).map(|message| message == PTRACE_EVENTMSG_SYSCALL_EXIT)
}

pub fn single_step(tid: pid_t) -> io::Result<()> {
    request(libc::PTRACE_SINGLESTEP, tid, 0, 0).map(drop)
}

/// Leaves a thread in its group stop, but lets it report when that ends.
pub fn listen(tid: pid_t) -> io::Result<()> {
    request(libc::PTRACE_LISTEN, tid, 0, 0).map(drop)
}

pub fn detach(tid: pid_t, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, signal as usize).map(drop)
}

pub fn set_options(tid: pid_t, options: i32) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, options as usize).map(drop)
}

/// The new thread's number after a clone or fork event, as this PID namespace sees it.
pub fn event_message(tid: pid_t) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, (&raw mut message) as usize)?;
    Ok(message)
}

pub fn registers(tid: pid_t) -> io::Result<Registers> {
    // SAFETY: the structure is plain integers, for which zero is a value.
    let mut registers: Registers = unsafe { std::mem::zeroed() };
    let mut vector = libc::iovec { iov_base: (&raw mut registers).cast(), iov_len: size_of::<Registers>() };
    request(libc::PTRACE_GETREGSET, tid, NT_PRSTATUS, (&raw mut vector) as usize)?;
    Ok(registers)
}

pub fn set_registers(tid: pid_t, registers: &Registers) -> io::Result<()> {
    let mut vector =
        libc::iovec { iov_base: (&raw const *registers).cast_mut().cast(), iov_len: size_of::<Registers>() };
    request(libc::PTRACE_SETREGSET, tid, NT_PRSTATUS, (&raw mut vector) as usize).map(drop)
}

/// The registers as words, for carrying them without knowing them.
pub fn to_words(registers: &Registers) -> [u64; REGISTER_WORDS] {
    // SAFETY: both are 27 words of plain data, as the assertion above checks.
    unsafe { std::mem::transmute(*registers) }
}

pub fn from_words(words: [u64; REGISTER_WORDS]) -> Registers {
    // SAFETY: both are 27 words of plain data, as the assertion above checks.
    unsafe { std::mem::transmute(words) }
}

/// Floating point and vector state into `area`, which grows as needed.
pub fn xstate(tid: pid_t, area: &mut Vec<u8>) -> io::Result<()> {
    area.resize(XSTATE_BYTES_MAX, 0);
    let mut vector = libc::iovec { iov_base: area.as_mut_ptr().cast(), iov_len: area.len() };
    request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, (&raw mut vector) as usize)?;
    area.truncate(vector.iov_len);
    Ok(())
}

/// The same into memory that the caller keeps, for many threads in a row; returns how many bytes it is.
pub fn xstate_into(tid: pid_t, area: &mut [u8]) -> io::Result<usize> {
    let mut vector = libc::iovec { iov_base: area.as_mut_ptr().cast(), iov_len: area.len() };
    request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, (&raw mut vector) as usize)?;
    Ok(vector.iov_len)
}

pub fn set_xstate(tid: pid_t, area: &[u8]) -> io::Result<()> {
    let mut vector = libc::iovec { iov_base: area.as_ptr().cast_mut().cast(), iov_len: area.len() };
    request(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, (&raw mut vector) as usize).map(drop)
}

pub fn signal_mask(tid: pid_t) -> io::Result<u64> {
    let mut mask = 0u64;
    request(libc::PTRACE_GETSIGMASK, tid, SIGSET_BYTES, (&raw mut mask) as usize)?;
    Ok(mask)
}

pub fn set_signal_mask(tid: pid_t, mask: u64) -> io::Result<()> {
    request(libc::PTRACE_SETSIGMASK, tid, SIGSET_BYTES, (&raw const mask) as usize).map(drop)
}

pub const SIGINFO_BYTES: usize = 128;
pub type SignalInfo = [u8; SIGINFO_BYTES];

/// Whose pending signals to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    Thread,
    Process,
}

/// The pending signals, in order, without taking them.
pub fn pending_signals(tid: pid_t, queue: Queue) -> io::Result<Vec<SignalInfo>> {
    const BATCH: usize = 32;
    let mut found = Vec::new();
    loop {
        let mut batch = [[0u8; SIGINFO_BYTES]; BATCH];
        let arguments = libc::ptrace_peeksiginfo_args {
            off: found.len() as u64,
            flags: u32::from(queue == Queue::Process),
            nr: BATCH as i32,
        };
        let count = request(
            libc::PTRACE_PEEKSIGINFO,
            tid,
            (&raw const arguments) as usize,
            (&raw mut batch) as usize,
        )? as usize;
        found.extend_from_slice(&batch[..count]);
        if count < BATCH {
            return Ok(found);
        }
    }
}

/// `struct ptrace_rseq_configuration`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RseqConfiguration {
    pub address: u64,
    pub size: u32,
    pub signature: u32,
    pub flags: u32,
    pub pad: u32,
}

/// Where the thread registered its restartable sequences; address zero: nowhere.
pub fn rseq_configuration(tid: pid_t) -> io::Result<RseqConfiguration> {
    const PTRACE_GET_RSEQ_CONFIGURATION: c_uint = 0x420f;
    let mut configuration = RseqConfiguration::default();
    request(
        PTRACE_GET_RSEQ_CONFIGURATION,
        tid,
        size_of::<RseqConfiguration>(),
        (&raw mut configuration) as usize,
    )?;
    Ok(configuration)
}

/// One installed seccomp filter, counted from the newest. `Ok(None)`: there is no such filter.
pub fn seccomp_filter(tid: pid_t, index: u64) -> io::Result<Option<Vec<u8>>> {
    const PTRACE_SECCOMP_GET_FILTER: c_uint = 0x420c;
    const INSTRUCTION_BYTES: usize = 8;
    let mut program = Vec::new();
    let length = match request(PTRACE_SECCOMP_GET_FILTER, tid, index as usize, 0) {
        Ok(length) => length as usize,
        Err(why) if matches!(why.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => return Ok(None),
        Err(why) => return Err(why),
    };
    program.resize(length * INSTRUCTION_BYTES, 0);
    request(PTRACE_SECCOMP_GET_FILTER, tid, index as usize, program.as_mut_ptr() as usize)?;
    Ok(Some(program))
}

/// The flags a filter was installed with.
pub fn seccomp_flags(tid: pid_t, index: u64) -> io::Result<u64> {
    const PTRACE_SECCOMP_GET_METADATA: c_uint = 0x420d;
    let mut metadata = [index, 0];
    request(PTRACE_SECCOMP_GET_METADATA, tid, size_of_val(&metadata), (&raw mut metadata) as usize)?;
    Ok(metadata[1])
}

/// One of the thread's own segments (`struct user_desc`), as `set_thread_area` made it.
pub fn thread_area(tid: pid_t, entry: u32) -> io::Result<[u32; 4]> {
    const PTRACE_GET_THREAD_AREA: c_uint = 25;
    let mut description = [0u32; 4];
    request(PTRACE_GET_THREAD_AREA, tid, entry as usize, (&raw mut description) as usize)?;
    Ok(description)
}

/// Makes calls in the tracee's own right possible again under seccomp, while it is traced.
pub const O_SUSPEND_SECCOMP: i32 = 1 << 21;

const _: () = assert!(size_of::<c_long>() == 8);
