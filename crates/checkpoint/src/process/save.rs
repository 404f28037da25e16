//! Captures a frozen process: the order of the reads, and what is refused.

use std::fs::{self, File};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use image::process::{
    MemoryMap, Process, ProcessAttributes, Registers, Rest, RobustList, Rseq, Thread, ThreadAttributes,
    Timeout,
};
use serde_bytes::ByteBuf;
use sys::ptrace::{self, Queue};
use sys::task;
use tracee::{Frozen, LEADER_CALLS};
use tracing::debug;

use super::cache::{KnownProcess, KnownThread, ProcessCache};
use super::error::SaveError;
use super::numbers::CellNumbers;
use super::roll::Told;
use super::status::{self, Status, TimerText};
use super::thread::Answers;
use super::{credentials, elf, posix_timers, thread, whole};
use crate::Unsupported;

/// How many CPUs this host has online. They hardly ever change, and nothing hangs on it.
static CPUS: LazyLock<usize> = LazyLock::new(|| {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    count_listed(online.trim()).unwrap_or(usize::MAX)
});

/// Captures `pid` with all its threads; descriptors are left to their own module. Take memory after this: the
/// threads that answer write to their rseq areas, as at any system call.
pub fn save(
    frozen: &mut Frozen<'_>,
    pid: i32,
    numbers: &mut CellNumbers,
    cache: &mut ProcessCache,
) -> Result<(Process, MemoryMap), SaveError> {
    let threads = frozen.threads(pid);
    cache.begin(&threads);
    numbers.keep(&threads);
    let from_outside = threads
        .iter()
        .map(|&tid| read_from_outside(frozen, tid, &mut cache.area))
        .collect::<Result<Vec<_>, _>>()?;
    let timers = know_whole(frozen, pid, cache)?;
    let (answers, whole) = ask(frozen, pid, &threads, numbers, cache, &timers)?;
    let mut saved = Vec::with_capacity(threads.len());
    let both = from_outside.into_iter().zip(answers);
    for (index, (&tid, (outside, answers))) in threads.iter().zip(both).enumerate() {
        let due = cache.is_due(index);
        saved.push(join(frozen, tid, (numbers, cache, due), outside, answers)?);
    }
    save_whole(frozen, (pid, saved), (&whole, &timers), numbers, cache)
}

/// What ptrace and a thread's number tell.
struct FromOutside {
    registers: Registers,
    timeout: Option<Timeout>,
    rest: Option<Rest>,
    xstate: ByteBuf,
    signal_mask: u64,
    robust_list: RobustList,
    rseq: Option<Rseq>,
    pending: Vec<ByteBuf>,
}

fn read_from_outside(
    frozen: &mut Frozen<'_>,
    tid: i32,
    area: &mut Vec<u8>,
) -> Result<FromOutside, SaveError> {
    let (registers, timeout) = frozen.registers(tid)?;
    refuse_compatibility_mode(tid, registers.cs)?;
    area.resize(ptrace::XSTATE_BYTES_MAX, 0);
    let len = ptrace::xstate_into(tid, area).map_err(SaveError::kernel("the vector registers", tid))?;
    let (head, len_robust) = task::robust_list(tid).map_err(SaveError::kernel("the robust list", tid))?;
    let rseq = frozen.rseq(tid)?;
    Ok(FromOutside {
        registers: Registers(ptrace::to_words(&registers)),
        timeout: timeout.map(|timeout| Timeout {
            argument: timeout.argument,
            remaining_ns: nanoseconds(timeout.remaining),
        }),
        rest: frozen.rest(tid)?.map(|rest| {
            let tracee::Rest { done, arguments, pieces, remaining } = rest;
            Rest { done, arguments, pieces, remaining_ns: remaining.map(nanoseconds) }
        }),
        xstate: ByteBuf::from(&area[..len]),
        signal_mask: ptrace::signal_mask(tid).map_err(SaveError::kernel("the signal mask", tid))?,
        robust_list: RobustList { head, len: len_robust },
        rseq: (rseq.address != 0).then_some(Rseq {
            address: rseq.address,
            size: rseq.size,
            signature: rseq.signature,
        }),
        pending: pending(tid, Queue::Thread)?,
    })
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos().min(u64::MAX.into()) as u64
}

fn pending(tid: i32, queue: Queue) -> Result<Vec<ByteBuf>, SaveError> {
    let found = ptrace::pending_signals(tid, queue).map_err(SaveError::kernel("the pending signals", tid))?;
    Ok(found.into_iter().map(ByteBuf::from).collect())
}

/// The answers of all threads, and of the leader for the process. Nobody is run for them as long as the kernel's own
/// words say that the leader would answer as before; else only the leader, as long as these words say the same as it.
fn ask(
    frozen: &mut Frozen<'_>,
    pid: i32,
    threads: &[i32],
    numbers: &mut CellNumbers,
    cache: &mut ProcessCache,
    timers: &[TimerText],
) -> Result<(Vec<Answers>, Arc<whole::Answers>), SaveError> {
    let due = cache.is_due(0);
    let Some(Told { threads: mut told, signs }) = cache.roll(pid).and_then(|roll| roll.call().ok()) else {
        return ask_threads(frozen, pid, threads, cache, timers);
    };
    // Who is just dying has no places any more: asked, he is known to have ended.
    let Ok(places) = whole::places(pid) else {
        return ask_threads(frozen, pid, threads, cache, timers);
    };
    let signs = [signs, &places].concat();
    let mut all = Vec::with_capacity(threads.len());
    for &tid in threads {
        all.extend(told.remove(&numbers.of(frozen, tid)?));
    }
    let complete = all.len() == threads.len();
    if let Some(whole) = cache.answered(&signs).filter(|_| complete && !due && timers.is_empty()) {
        return Ok((all, whole));
    }
    let (leader, whole) = ask_threads(frozen, pid, &[pid], cache, timers)?;
    if !complete {
        return ask_threads(frozen, pid, threads, cache, timers);
    }
    let foreseen = cache.answered(&signs).is_none_or(|before| before.says_the_same_as(&whole));
    if foreseen && all.first() == leader.first() {
        cache.keep_answer(signs, &whole);
        return Ok((all, whole));
    }
    debug!(pid, foreseen, "the leader says {:?}, and the kernel of it {:?}", leader.first(), all.first());
    cache.distrust_roll();
    ask_threads(frozen, pid, threads, cache, timers)
}

/// Has these threads answer, the leader among them for the process as well.
fn ask_threads(
    frozen: &mut Frozen<'_>,
    pid: i32,
    threads: &[i32],
    cache: &ProcessCache,
    timers: &[TimerText],
) -> Result<(Vec<Answers>, Arc<whole::Answers>), SaveError> {
    let umask = cache.known().umask;
    let buffer = frozen.remote(pid)?.buffer().0;
    let (mut answers, mut of_whole) = (Vec::new(), Vec::new());
    frozen.in_threads(
        pid,
        threads,
        |tid, own, batch| {
            thread::ask(own, batch);
            if tid == pid {
                whole::ask(buffer, umask, timers, batch);
            }
        },
        |tid, results, bytes| {
            answers.push(thread::answers(results, bytes));
            if tid == pid {
                of_whole.extend_from_slice(&results[thread::CALLS..]);
            }
        },
    )?;
    Ok((answers, Arc::new(whole::answers(frozen, pid, umask, &of_whole)?)))
}

fn join(
    frozen: &Frozen<'_>,
    tid: i32,
    (numbers, cache, due): (&mut CellNumbers, &mut ProcessCache, bool),
    outside: FromOutside,
    answers: Answers,
) -> Result<Thread, SaveError> {
    let birth = frozen.birth(tid).ok_or(tracee::TraceError::Ended(tid))?;
    let Answers { alternate_stack, clear_child_tid, parent_death_signal, name, timer_slack_ns, fingerprint } =
        answers;
    let FromOutside { registers, timeout, rest, xstate, signal_mask, robust_list, rseq, pending } = outside;
    match cache.threads.get_mut(&tid) {
        Some(known) if known.birth == birth && !due && known.fingerprint.vouches_for(&fingerprint) => {
            credentials::read_new_filters(tid, &mut known.credentials.seccomp)?;
        }
        _ => {
            cache.threads.insert(tid, look_again(tid, birth, fingerprint)?);
        }
    }
    let known = &cache.threads[&tid];
    let Scheduling { attributes, affinity, io_priority } = scheduling(tid)?;
    Ok(Thread {
        tid: numbers.of(frozen, tid)?,
        registers,
        timeout,
        rest,
        xstate,
        signal_mask,
        alternate_stack,
        robust_list,
        clear_child_tid,
        rseq,
        pending,
        credentials: known.credentials.clone(),
        attributes: ThreadAttributes {
            name,
            policy: attributes.policy,
            nice: attributes.nice,
            priority: attributes.priority,
            sched_flags: attributes.flags,
            deadline: [attributes.runtime, attributes.deadline, attributes.period],
            affinity: ByteBuf::from(affinity),
            io_priority,
            timer_slack_ns,
            parent_death_signal,
        },
    })
}

/// Reads what is not read in every freeze, and refuses what can only be seen there.
fn look_again(tid: i32, birth: u64, fingerprint: credentials::Fingerprint) -> Result<KnownThread, SaveError> {
    let status = text(tid, "status")?;
    if Status(&status).shadow_stack() {
        return Err(refused(
            tid,
            "it has a shadow stack",
            "start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
        ));
    }
    refuse_segments(tid)?;
    let credentials = credentials::read(tid, &fingerprint, &status)?;
    Ok(KnownThread { birth, fingerprint, credentials })
}

struct Scheduling {
    attributes: task::SchedulingAttributes,
    affinity: Vec<u8>,
    io_priority: u32,
}

/// Never kept: threads that share a CPU may count on it that they do not run at once.
fn scheduling(tid: i32) -> Result<Scheduling, SaveError> {
    let affinity = task::affinity(tid).map_err(SaveError::kernel("the affinity", tid))?;
    Ok(Scheduling {
        attributes: task::SchedulingAttributes {
            nice: task::nice(tid).map_err(SaveError::kernel("the nice value", tid))?,
            ..task::scheduling(tid).map_err(SaveError::kernel("the scheduling", tid))?
        },
        affinity: if is_everywhere(&affinity) { Vec::new() } else { affinity },
        io_priority: task::io_priority(tid).map_err(SaveError::kernel("the I/O priority", tid))?,
    })
}

/// Whether a thread may run on as many CPUs as there are.
fn is_everywhere(affinity: &[u8]) -> bool {
    let allowed: u32 = affinity.iter().map(|byte| byte.count_ones()).sum();
    allowed as usize >= *CPUS
}

/// How many numbers a list like `0-3,8` has.
fn count_listed(list: &str) -> Option<usize> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?).map(|more| more + 1)
    };
    list.split(',').map(range).sum()
}

/// Sees to it that the cache knows the process, and lists its timers.
fn know_whole(frozen: &Frozen<'_>, pid: i32, cache: &mut ProcessCache) -> Result<Vec<TimerText>, SaveError> {
    let birth = frozen.birth(pid).ok_or(tracee::TraceError::Ended(pid))?;
    let due = cache.is_due(0);
    let known = match cache.process.take() {
        Some(known) if known.birth == birth && !due => known,
        Some(known) if known.birth == birth => look_again_at_whole(pid, birth, Some(known))?,
        _ => look_again_at_whole(pid, birth, None)?,
    };
    let known = cache.process.insert(known);
    let timers = posix_timers::list(pid, &known.timers)?;
    if thread::CALLS + whole::calls(timers.len()) > LEADER_CALLS {
        return Err(refused(pid, &format!("it has {} POSIX timers", timers.len()), "let it have fewer"));
    }
    Ok(timers)
}

fn save_whole(
    frozen: &Frozen<'_>,
    (pid, threads): (i32, Vec<Thread>),
    (answers, timers): (&whole::Answers, &[TimerText]),
    numbers: &mut CellNumbers,
    cache: &mut ProcessCache,
) -> Result<(Process, MemoryMap), SaveError> {
    if answers.has_segments() {
        return Err(refused(
            pid,
            "it has segments of its own (modify_ldt)",
            "run it without 16- or 32-bit code",
        ));
    }
    cache.process.as_mut().expect("known by now").umask = answers.umask();
    let known = cache.known();
    let [parent, group, session] = answers.family();
    let process = Process {
        pid: numbers.of(frozen, pid)?,
        parent,
        group,
        session,
        space: 0,
        threads,
        descriptors: Vec::new(),
        actions: answers.actions(),
        pending: pending(pid, Queue::Process)?,
        limits: answers.limits(),
        filesystem: answers.filesystem(pid)?,
        interval_timers: answers.interval_timers(),
        posix_timers: answers.posix_timers(frozen, numbers, timers)?,
        attributes: ProcessAttributes {
            personality: answers.personality(),
            dumpable: answers.dumpable(),
            child_subreaper: answers.subreaper(),
            transparent_huge_pages_off: answers.huge_pages_off(),
            ..known.attributes.clone()
        },
    };
    Ok((process, MemoryMap { brk: answers.brk(), ..known.memory.clone() }))
}

/// Reads what is not read in every freeze, of the process; `before` is what was known of it.
fn look_again_at_whole(
    pid: i32,
    birth: u64,
    before: Option<KnownProcess>,
) -> Result<KnownProcess, SaveError> {
    const FIRST_GUESS: u32 = 0o022;
    refuse_other_users(pid)?;
    let stat = text(pid, "stat")?;
    let memory = status::memory_map(&stat).ok_or(SaveError::Unreadable { what: "its memory", tid: pid })?;
    let auxv =
        fs::read(format!("/proc/{pid}/auxv")).map_err(SaveError::kernel("the auxiliary vector", pid))?;
    let (timers, umask) = match before {
        Some(known) => (known.timers, known.umask),
        None => (open(pid, "timers")?, FIRST_GUESS),
    };
    Ok(KnownProcess {
        birth,
        timers,
        umask,
        memory: MemoryMap { auxv: ByteBuf::from(auxv), ..memory },
        attributes: read_attributes(pid)?,
    })
}

fn read_attributes(pid: i32) -> Result<ProcessAttributes, SaveError> {
    let executable = rustix::fs::readlink(format!("/proc/{pid}/exe"), Vec::new())
        .map_err(SaveError::kernel("the executable", pid))?
        .into_bytes();
    let executable = without_mark(pid, executable);
    let go = elf::is_go(&open(pid, "exe")?).map_err(SaveError::kernel("the executable", pid))?;
    let score = text(pid, "oom_score_adj")?;
    let filter = text(pid, "coredump_filter")?;
    let unreadable = |what| move || SaveError::Unreadable { what, tid: pid };
    Ok(ProcessAttributes {
        executable: ByteBuf::from(executable),
        oom_score_adj: score.trim().parse().ok().ok_or_else(unreadable("its out-of-memory score"))?,
        coredump_filter: u32::from_str_radix(filter.trim(), 16)
            .ok()
            .ok_or_else(unreadable("its core dump filter"))?,
        go,
        ..ProcessAttributes::default()
    })
}

/// An executable that was replaced since is shipped under the name that it had.
fn without_mark(pid: i32, link: Vec<u8>) -> Vec<u8> {
    use std::os::unix::fs::MetadataExt;
    let gone = fs::metadata(format!("/proc/{pid}/exe")).is_ok_and(|metadata| metadata.nlink() == 0);
    match link.strip_suffix(b" (deleted)") {
        Some(name) if gone => name.to_vec(),
        Some(_) | None => link,
    }
}

fn text(tid: i32, name: &'static str) -> Result<String, SaveError> {
    let bytes = fs::read(format!("/proc/{tid}/{name}")).map_err(SaveError::kernel(name, tid))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn open(pid: i32, name: &'static str) -> Result<File, SaveError> {
    File::open(format!("/proc/{pid}/{name}")).map_err(SaveError::kernel(name, pid))
}

fn refused(pid: i32, what: &str, way_out: &str) -> SaveError {
    Unsupported { pid, what: what.to_owned(), way_out: way_out.to_owned() }.into()
}

fn refuse_compatibility_mode(tid: i32, code_segment: u64) -> Result<(), SaveError> {
    const CODE_64: u64 = 0x33;
    match code_segment {
        CODE_64 => Ok(()),
        _ => Err(refused(tid, "it runs 32-bit code", "run the 64-bit build of the program")),
    }
}

/// The three entries that `set_thread_area` may fill must be empty, as they are in every 64-bit program.
fn refuse_segments(tid: i32) -> Result<(), SaveError> {
    const ENTRIES: [u32; 3] = [12, 13, 14];
    for entry in ENTRIES {
        let [_, base, limit, _] =
            ptrace::thread_area(tid, entry).map_err(SaveError::kernel("a thread's segment", tid))?;
        if (base, limit) != (0, 0) {
            let what = "it has segments of its own (set_thread_area)";
            return Err(refused(tid, what, "run it without 32-bit code"));
        }
    }
    Ok(())
}

/// User and group numbers must mean here what they mean to the app.
fn refuse_other_users(pid: i32) -> Result<(), SaveError> {
    let link = |pid: &str| rustix::fs::readlink(format!("/proc/{pid}/ns/user"), Vec::new());
    let theirs = link(&pid.to_string()).map_err(SaveError::kernel("the user namespace", pid))?;
    let ours = link("self").map_err(SaveError::kernel("our user namespace", pid))?;
    if theirs == ours {
        return Ok(());
    }
    let what = "it lives in a user namespace of its own";
    Err(refused(pid, what, "run checksync inside of it, or the app outside of it"))
}
