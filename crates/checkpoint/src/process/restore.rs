//! Sets a skeleton going: the order in which its parts can be put back.
//!
//! 1. The leader alone, with every right: bounds of the memory, executable, root and working directory,
//!    session, signal actions, the filters that all threads share.
//! 2. The threads, all at once; from outside their scheduling; POSIX timers, not running, which name threads.
//! 3. Each thread for itself: what it registered with the kernel, and last its credentials.
//! 4. The process again: limits and dumpable, which what came before would have hit or changed.
//! 5. Pending signals, running timers, and what each thread goes on with.
//!
//! No thread runs anything of the app before the thaw, so signals and timers may come early.

use std::collections::HashMap;
use std::time::Duration;

use image::process::{Credentials, MemoryMap, Process, Rest, Thread};
use sys::{ptrace, task};
use tracee::{Batch, Frozen, Timeout};

use super::credentials::{self, Pool};
use super::error::RestoreError;
use super::pending::{self, For};
use super::status::Status;
use super::steps::Steps;
use super::{posix_timers, thread, whole};

/// Makes the stopped, single-threaded process `pid` (our number) go on as `process` at the next thaw. Its
/// memory and its descriptors are in place; its number in the cell is the captured one.
pub fn restore(
    frozen: &mut Frozen<'_>,
    pid: i32,
    process: &Process,
    memory: &MemoryMap,
) -> Result<(), RestoreError> {
    let present = present_credentials(pid, process)?;
    for thread in &process.threads {
        credentials::check(&present, &thread.credentials)?;
    }
    furnish_leader(frozen, pid, process, memory)?;
    let common = credentials::common_filters(process.threads.iter().map(|thread| &thread.credentials));
    install_common(frozen, pid, process, common)?;
    let tids = make_threads(frozen, pid, process)?;
    for (&tid, thread) in tids.iter().zip(&process.threads) {
        schedule(tid, thread)?;
    }
    make_timers(frozen, pid, process)?;
    set_limits(frozen, pid, process)?;
    furnish_threads(frozen, pid, process, &tids, (&present, common.len()))?;
    finish_process(frozen, pid, process)?;
    queue_pending(frozen, pid, process, &tids)?;
    arm_timers(frozen, pid, process)?;
    set_going(frozen, pid, process, &tids)?;
    wake_go(pid, process, &tids)
}

fn inconsistent(process: &Process, what: &str) -> RestoreError {
    RestoreError::Inconsistent { pid: process.pid, what: what.to_owned() }
}

fn present_credentials(pid: i32, process: &Process) -> Result<Credentials, RestoreError> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(RestoreError::kernel("look at the skeleton", process.pid))?;
    let status = Status(&status);
    if status.innermost_number() != Some(process.pid) {
        return Err(inconsistent(process, "another number than the skeleton that is to take its place"));
    }
    status.credentials().ok_or_else(|| inconsistent(process, "a skeleton whose credentials cannot be read"))
}

fn furnish_leader(
    frozen: &mut Frozen<'_>,
    pid: i32,
    process: &Process,
    memory: &MemoryMap,
) -> Result<(), RestoreError> {
    unregister_rseq(frozen, pid, process.pid)?;
    let executable = open_executable(frozen, pid, process)?;
    let mut remote = frozen.remote(pid)?;
    let group = remote.call("see its group", libc::SYS_getpgid, [0])? as i32;
    let session = remote.call("see its session", libc::SYS_getsid, [0])? as i32;
    let (mut batch, mut steps) = (Batch::default(), Steps::default());
    let buffer = remote.buffer().0;
    whole::furnish(process, memory, [group, session], executable, (buffer, &mut batch), &mut steps);
    if let Some(fd) = executable {
        steps.add(&mut batch, "close the executable", libc::SYS_close, [fd as u64]);
    }
    remote.put(0, &batch.bytes);
    steps.run(&mut remote, process.pid, &batch.calls)?;
    whole::set_from_outside(pid, process)
        .map_err(RestoreError::kernel("set its score or filter", process.pid))
}

/// What the skeleton's own library had registered.
fn unregister_rseq(frozen: &mut Frozen<'_>, pid: i32, number: i32) -> Result<(), RestoreError> {
    const UNREGISTER: u64 = 1;
    let present =
        ptrace::rseq_configuration(pid).map_err(RestoreError::kernel("see the rseq registration", number))?;
    if present.address != 0 {
        let arguments = [present.address, present.size.into(), UNREGISTER, present.signature.into()];
        frozen.remote(pid)?.call("unregister the skeleton's rseq", libc::SYS_rseq, arguments)?;
    }
    Ok(())
}

/// Opens the executable in the skeleton, unless it is the skeleton's own already: then it is mapped, and the
/// kernel would refuse.
fn open_executable(
    frozen: &mut Frozen<'_>,
    pid: i32,
    process: &Process,
) -> Result<Option<i32>, RestoreError> {
    let path = process.attributes.executable.as_slice();
    let present = rustix::fs::readlink(format!("/proc/{pid}/exe"), Vec::new())
        .map_err(RestoreError::kernel("see the skeleton's executable", process.pid))?;
    if present.as_bytes() == path {
        return Ok(None);
    }
    let mut remote = frozen.remote(pid)?;
    let path = remote.put(0, &[path, &[0]].concat());
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    let arguments = [libc::AT_FDCWD as u64, path, flags];
    Ok(Some(remote.call("open the executable", libc::SYS_openat, arguments)? as i32))
}

fn install_common(
    frozen: &mut Frozen<'_>,
    pid: i32,
    process: &Process,
    common: &[image::process::SeccompFilter],
) -> Result<(), RestoreError> {
    let mut remote = frozen.remote(pid)?;
    for filter in common {
        let (mut batch, mut steps, mut pool) = (Batch::default(), Steps::default(), Pool::default());
        const DESCRIPTION_BYTES: u64 = 64;
        let buffer = remote.buffer().0;
        credentials::install(
            filter,
            (&mut pool, buffer + DESCRIPTION_BYTES),
            (&mut batch, buffer),
            &mut steps,
        );
        remote.put(0, &batch.bytes);
        remote.put(DESCRIPTION_BYTES, &pool.bytes);
        steps.run(&mut remote, process.pid, &batch.calls)?;
    }
    Ok(())
}

/// Our numbers of all threads, in the image's order.
fn make_threads(frozen: &mut Frozen<'_>, pid: i32, process: &Process) -> Result<Vec<i32>, RestoreError> {
    let Some((leader, others)) = process.threads.split_first() else {
        return Err(inconsistent(process, "no thread"));
    };
    if leader.tid != process.pid {
        return Err(inconsistent(process, "a first thread that is not its leader"));
    }
    let numbers: Vec<i32> = others.iter().map(|thread| thread.tid).collect();
    let mut tids = vec![pid];
    if !numbers.is_empty() {
        tids.extend(frozen.make_threads(pid, &numbers)?);
    }
    Ok(tids)
}

fn schedule(tid: i32, thread: &Thread) -> Result<(), RestoreError> {
    let wanted = &thread.attributes;
    let [runtime, deadline, period] = wanted.deadline;
    let present = task::scheduling(tid).map_err(RestoreError::kernel("see its scheduling", thread.tid))?;
    let attributes = task::SchedulingAttributes {
        size: present.size,
        policy: wanted.policy,
        flags: wanted.sched_flags,
        nice: wanted.nice,
        priority: wanted.priority,
        runtime,
        deadline,
        period,
    };
    if present != attributes {
        task::set_scheduling(tid, &attributes)
            .map_err(RestoreError::kernel("set its scheduling", thread.tid))?;
    }
    let present = task::nice(tid).map_err(RestoreError::kernel("see its nice value", thread.tid))?;
    if present != wanted.nice {
        task::set_nice(tid, wanted.nice).map_err(RestoreError::kernel("set its nice value", thread.tid))?;
    }
    let present = task::io_priority(tid).map_err(RestoreError::kernel("see its I/O priority", thread.tid))?;
    if present != wanted.io_priority {
        task::set_io_priority(tid, wanted.io_priority)
            .map_err(RestoreError::kernel("set its I/O priority", thread.tid))?;
    }
    pin(tid, thread)
}

/// CPUs are the host's, not the app's: where this host has none of those named, the thread runs anywhere.
fn pin(tid: i32, thread: &Thread) -> Result<(), RestoreError> {
    let mask = thread.attributes.affinity.as_slice();
    if mask.is_empty() {
        return Ok(());
    }
    match task::set_affinity(tid, mask) {
        Err(why) if why.raw_os_error() == Some(libc::EINVAL) => {
            tracing::warn!(tid = thread.tid, "this host has none of the CPUs that the thread was bound to");
            Ok(())
        }
        other => other.map_err(RestoreError::kernel("set its CPUs", thread.tid)),
    }
}

/// N.B. raising a hard limit takes CAP_SYS_RESOURCE, which containers seldom have: then the app lives with
/// the limit that this host gives it, and the log says so.
fn set_limits(frozen: &mut Frozen<'_>, pid: i32, process: &Process) -> Result<(), RestoreError> {
    let mut remote = frozen.remote(pid)?;
    let (mut batch, mut steps) = (Batch::default(), Steps::default());
    let buffer = remote.buffer().0;
    whole::set_limits(&process.limits, buffer, &mut batch, &mut steps);
    remote.put(0, &batch.bytes);
    let results = remote.calls(&batch.calls)?;
    for (limit, result) in process.limits.iter().zip(&results) {
        if *result == -i64::from(libc::EPERM) {
            tracing::warn!(resource = limit.resource, hard = limit.hard, "this host's limit is lower");
        }
    }
    let forgiven: Vec<i64> = results
        .into_iter()
        .map(|result| if result == -i64::from(libc::EPERM) { 0 } else { result })
        .collect();
    steps.check(process.pid, &forgiven)
}

fn furnish_threads(
    frozen: &mut Frozen<'_>,
    pid: i32,
    process: &Process,
    tids: &[i32],
    (present, common): (&Credentials, usize),
) -> Result<(), RestoreError> {
    let images: HashMap<i32, &Thread> = tids.iter().copied().zip(&process.threads).collect();
    let mut all_steps: HashMap<i32, Steps> = HashMap::new();
    let pool_at = fill_pool(frozen, pid, process, (present, common))?;
    let mut pool = Pool::default();
    let mut outcomes = Vec::new();
    let threads = frozen.threads(pid);
    frozen.in_threads(
        pid,
        &threads,
        |tid, buffer, batch| {
            let steps = all_steps.entry(tid).or_default();
            let thread = images[&tid];
            thread::furnish(thread, buffer, batch, steps);
            let change = (present, &thread.credentials);
            credentials::become_like(change, common, (&mut pool, pool_at), (&mut *batch, buffer), steps);
            thread::after_credentials(thread, batch, steps);
        },
        |tid, results, _| outcomes.push((tid, results.to_vec())),
    )?;
    outcomes.iter().try_for_each(|(tid, results)| all_steps[tid].check(images[tid].tid, results))
}

/// Puts what threads point to into memory that all of them see, laid out as they will lay it out.
fn fill_pool(
    frozen: &mut Frozen<'_>,
    pid: i32,
    process: &Process,
    (present, common): (&Credentials, usize),
) -> Result<u64, RestoreError> {
    let mut pool = Pool::default();
    for thread in &process.threads {
        let (mut batch, mut steps) = (Batch::default(), Steps::default());
        let change = (present, &thread.credentials);
        credentials::become_like(change, common, (&mut pool, 0), (&mut batch, 0), &mut steps);
    }
    let mut remote = frozen.remote(pid)?;
    if pool.bytes.len() as u64 > remote.buffer().1 {
        return Err(inconsistent(process, "more seccomp filters than a restore has room for"));
    }
    Ok(remote.put(0, &pool.bytes))
}

/// Dumpable falls with every change of credentials, so it comes after them.
fn finish_process(frozen: &mut Frozen<'_>, pid: i32, process: &Process) -> Result<(), RestoreError> {
    const FOR_ROOT_ONLY: u32 = 2;
    let dumpable = process.attributes.dumpable;
    // Only the kernel can give this value; what it stands for is "no".
    let dumpable = if dumpable == FOR_ROOT_ONLY { 0 } else { dumpable };
    let arguments = [libc::PR_SET_DUMPABLE as u64, dumpable.into()];
    frozen.remote(pid)?.call("set whether it may be dumped", libc::SYS_prctl, arguments)?;
    Ok(())
}

fn queue_pending(
    frozen: &mut Frozen<'_>,
    pid: i32,
    process: &Process,
    tids: &[i32],
) -> Result<(), RestoreError> {
    pending::queue(frozen, (pid, pid, process.pid), For::Process, &process.pending)?;
    for (&tid, thread) in tids.iter().zip(&process.threads) {
        let whom = For::Thread { leader: process.pid };
        pending::queue(frozen, (pid, tid, thread.tid), whom, &thread.pending)?;
    }
    Ok(())
}

fn make_timers(frozen: &mut Frozen<'_>, pid: i32, process: &Process) -> Result<(), RestoreError> {
    in_leader(frozen, pid, process, |buffer, batch, steps| {
        posix_timers::make(&process.posix_timers, buffer, batch, steps);
    })
}

/// Has the leader make the calls that `fill` says, if any.
fn in_leader(
    frozen: &mut Frozen<'_>,
    pid: i32,
    process: &Process,
    fill: impl FnOnce(u64, &mut Batch, &mut Steps),
) -> Result<(), RestoreError> {
    let mut remote = frozen.remote(pid)?;
    let (mut batch, mut steps) = (Batch::default(), Steps::default());
    fill(remote.buffer().0, &mut batch, &mut steps);
    if batch.calls.is_empty() {
        return Ok(());
    }
    remote.put(0, &batch.bytes);
    steps.run(&mut remote, process.pid, &batch.calls)
}

fn arm_timers(frozen: &mut Frozen<'_>, pid: i32, process: &Process) -> Result<(), RestoreError> {
    in_leader(frozen, pid, process, |buffer, batch, steps| {
        whole::arm(&process.interval_timers, buffer, batch, steps);
        posix_timers::arm(&process.posix_timers, buffer, batch, steps);
    })
}

fn set_going(frozen: &mut Frozen<'_>, pid: i32, process: &Process, tids: &[i32]) -> Result<(), RestoreError> {
    for (index, (&tid, thread)) in tids.iter().zip(&process.threads).enumerate() {
        let failed = |what| RestoreError::kernel(what, thread.tid);
        ptrace::set_xstate(tid, &thread.xstate).map_err(failed("set the vector registers"))?;
        ptrace::set_signal_mask(tid, thread.signal_mask).map_err(failed("set the signal mask"))?;
        let timeout = thread.timeout.map(|timeout| {
            let remaining = Duration::from_nanos(timeout.remaining_ns);
            (index, Timeout { argument: timeout.argument, remaining })
        });
        frozen.set_registers(pid, tid, ptrace::from_words(thread.registers.0), timeout)?;
        if let Some(Rest { done, arguments, ref pieces, remaining_ns }) = thread.rest {
            let remaining = remaining_ns.map(Duration::from_nanos);
            let rest = tracee::Rest { done, arguments, pieces: pieces.clone(), remaining };
            frozen.set_rest(tid, rest)?;
        }
    }
    Ok(())
}

/// A preemption signal that was on its way when the app was stopped may be lost, and Go's collector waits for
/// its effect for ever. One too many does nothing.
fn wake_go(pid: i32, process: &Process, tids: &[i32]) -> Result<(), RestoreError> {
    if !process.attributes.go {
        return Ok(());
    }
    for (&tid, thread) in tids.iter().zip(&process.threads) {
        task::kill_thread(pid, tid, libc::SIGURG).map_err(RestoreError::kernel("wake Go", thread.tid))?;
    }
    Ok(())
}
