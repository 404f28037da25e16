//! Calls about another task, by its number.

use std::io;

use libc::pid_t;

use crate::check;
use crate::ptrace::SignalInfo;

/// The robust futex list of a task: its head and length.
pub fn robust_list(tid: pid_t) -> io::Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: both words are live and filled by the kernel.
    check(unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) })?;
    Ok((head, len))
}

const SCHED_FIFO: u32 = 1;

/// `struct sched_attr`, without the utilisation clamps.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulingAttributes {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

pub fn scheduling(tid: pid_t) -> io::Result<SchedulingAttributes> {
    let mut attributes = SchedulingAttributes::default();
    let size = size_of::<SchedulingAttributes>();
    // SAFETY: `attributes` is live and of `size` bytes.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attributes, size, 0) })?;
    Ok(attributes)
}

pub fn set_scheduling(tid: pid_t, attributes: &SchedulingAttributes) -> io::Result<()> {
    let mut attributes = *attributes;
    attributes.size = size_of::<SchedulingAttributes>() as u32;
    // SAFETY: `attributes` is live and says its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attributes, 0) }).map(drop)
}

/// The nice value, which a real-time task keeps for later while its scheduling attributes do not show it.
pub fn nice(tid: pid_t) -> io::Result<i32> {
    let pid = rustix::process::Pid::from_raw(tid);
    rustix::process::getpriority_process(pid).map_err(Into::into)
}

pub fn set_nice(tid: pid_t, nice: i32) -> io::Result<()> {
    let pid = rustix::process::Pid::from_raw(tid);
    rustix::process::setpriority_process(pid, nice).map_err(Into::into)
}

/// Which CPUs a task may run on, eight to a byte.
pub fn affinity(tid: pid_t) -> io::Result<Vec<u8>> {
    let mut mask = vec![0u8; 1024];
    // SAFETY: `mask` is live and of the length given.
    let ret = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, mask.len(), mask.as_mut_ptr()) };
    mask.truncate(check(ret)? as usize);
    Ok(mask)
}

pub fn set_affinity(tid: pid_t, mask: &[u8]) -> io::Result<()> {
    // SAFETY: `mask` is live and only read.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, mask.len(), mask.as_ptr()) }).map(drop)
}

pub fn io_priority(tid: pid_t) -> io::Result<u32> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) }).map(|p| p as u32)
}

pub fn set_io_priority(tid: pid_t, priority: u32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, priority) }).map(drop)
}

pub fn kill_thread(pid: pid_t, tid: pid_t, signal: i32) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) }).map(drop)
}

pub fn kill(pid: pid_t, signal: i32) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Whether two descriptors of two processes are one open file.
pub fn same_open_file(a: (pid_t, i32), b: (pid_t, i32)) -> io::Result<bool> {
    const KCMP_FILE: i32 = 0;
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, KCMP_FILE, a.1, b.1) }).map(|order| order == 0)
}

/// The signal that `info` describes.
pub fn signal_of(info: &SignalInfo) -> i32 {
    i32::from_ne_bytes(info[..4].try_into().expect("four bytes"))
}

/// This thread's number.
pub fn own_tid() -> pid_t {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// The real-time priority of this thread, if it has one of the kind that [`become_real_time`] gives.
pub fn real_time_priority() -> Option<i32> {
    let own = scheduling(0).ok()?;
    (own.policy == SCHED_FIFO).then_some(own.priority as i32)
}

/// Real-time priority for this thread: it stops and copies other people's threads, which wait for it. Not for
/// what it forks: an app that spins at real-time priority would take the machine away from everybody.
pub fn become_real_time(priority: i32) -> io::Result<()> {
    const RESET_ON_FORK: u64 = 1;
    let attributes = SchedulingAttributes {
        policy: SCHED_FIFO,
        priority: priority as u32,
        flags: RESET_ON_FORK,
        ..Default::default()
    };
    set_scheduling(0, &attributes)
}

/// This thread, and what it forks, runs when the others leave something over.
pub fn step_back() -> io::Result<()> {
    const SCHED_BATCH: u32 = 3;
    const LOWEST: i32 = 19;
    set_scheduling(0, &SchedulingAttributes { policy: SCHED_BATCH, nice: LOWEST, ..Default::default() })
}
