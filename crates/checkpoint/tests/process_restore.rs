//! Threads are made, furnished and set going in a sleeping process, whose own thread becomes their leader;
//! what is captured from it then must be what was put in.
//!
//! The program that the threads run is a few instructions in a page that the test maps.

mod process_cell;

use std::time::{Duration, Instant};

use checkpoint::process::{CellNumbers, ProcessCache, RECHECK_EVERY, RestoreError, restore, save};
use image::process::{
    AlternateStack, IntervalTimer, Limit, MemoryMap, PosixTimer, Process, RobustList, Rseq, Seccomp,
    SeccompFilter, SignalAction, Thread, Timeout,
};
use process_cell::{Cell, PATIENCE, fresh_save, run_until};
use serde_bytes::ByteBuf;
use sys::ptrace;
use tracee::{Ending, Frozen, TraceError, Tree, TreeEvent};

/// Where the page of code lies, in the process, and behind it each thread's own memory.
const CODE: u64 = 0x6000_0000;
const OWN: u64 = CODE + 0x1000;
const OWN_BYTES: u64 = 0x10000;
const BYTES: u64 = 0x20_0000;

/// Counts at [rbx], for ever: lock inc qword [rbx]; mov eax, SYS_sched_yield; syscall; jmp.
const COUNT: [u8; 13] = [0xf0, 0x48, 0xff, 0x03, 0xb8, 0x18, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf3];
/// Makes the call in rax, stores the result at [rbx+8], and counts: syscall; mov [rbx+8], rax; jmp COUNT.
const CALL_AT: u64 = CODE + 0x40;
const CALL: [u8; 8] = [0x0f, 0x05, 0x48, 0x89, 0x43, 0x08, 0xeb, 0xb8];
/// A handler: stores the siginfo's value and the stack pointer, and returns.
const HANDLER_AT: u64 = CODE + 0x80;
const SAW_VALUE: u64 = OWN + BYTES - 0x2000;
const SAW_STACK: u64 = SAW_VALUE + 8;
const RESTORER_AT: u64 = CODE + 0xc0;
/// mov eax, SYS_rt_sigreturn; syscall
const RESTORER: [u8; 7] = [0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05];

const SA_RESTORER: u64 = 0x0400_0000;

const RSEQ_SIGNATURE: u32 = 0x5305_3053;
const FIRST_TID: i32 = 1000;

fn handler() -> Vec<u8> {
    let mut code = vec![0x48, 0x8b, 0x46, 0x18, 0x48, 0xa3]; // mov rax, [rsi+24]; mov [SAW_VALUE], rax
    code.extend_from_slice(&SAW_VALUE.to_le_bytes());
    code.extend_from_slice(&[0x48, 0x89, 0xe0, 0x48, 0xa3]); // mov rax, rsp; mov [SAW_STACK], rax
    code.extend_from_slice(&SAW_STACK.to_le_bytes());
    code.push(0xc3);
    code
}

fn own(index: usize) -> u64 {
    OWN + index as u64 * OWN_BYTES
}

/// Maps the page of code and the threads' memory.
fn map_program(frozen: &mut Frozen<'_>, pid: i32) {
    let mut remote = frozen.remote(pid).expect("remote");
    let all = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64;
    remote.call("mmap", libc::SYS_mmap, [CODE, BYTES + 0x1000, all, flags, u64::MAX, 0]).expect("mmap");
    for (at, code) in
        [(CODE, &COUNT[..]), (CALL_AT, &CALL), (HANDLER_AT, &handler()), (RESTORER_AT, &RESTORER)]
    {
        assert_eq!(sys::memory::scatter_each(pid, &[(at, code)]).expect("write"), code.len());
    }
}

/// The sleeper's own capture, with `count` threads that count in its stead.
fn program(frozen: &mut Frozen<'_>, pid: i32, count: usize) -> (Process, MemoryMap) {
    map_program(frozen, pid);
    let (mut process, memory) = fresh_save(frozen, pid);
    let model = process.threads[0].clone();
    process.threads = (0..count).map(|index| counting(&model, index)).collect();
    (process, memory)
}

/// N.B. everything about the thread differs from thread to thread, so that none can be taken for another.
fn counting(model: &Thread, index: usize) -> Thread {
    let number = index as u64;
    let mut thread = model.clone();
    if index > 0 {
        thread.tid = FIRST_TID + 3 * index as i32;
    }
    let mut registers = ptrace::from_words(model.registers.0);
    registers.rip = CODE;
    registers.rbx = own(index);
    registers.rsp = own(index) + 0x800;
    registers.r15 = 0x1111 * number;
    registers.fs_base = own(index) + 0x100;
    registers.orig_rax = u64::MAX;
    thread.registers.0 = ptrace::to_words(&registers);
    thread.timeout = None;
    set_vector_register(&mut thread.xstate, 0xfeed_0000 + number);
    thread.signal_mask = 1 << 20 | 1 << (index % 8 + 40);
    thread.alternate_stack =
        AlternateStack { address: own(index) + 0x1000, flags: 0, size: 0x8000 + 16 * number };
    thread.robust_list = RobustList { head: own(index) + 0x200, len: 24 };
    thread.clear_child_tid = own(index) + 0x300;
    thread.rseq = Some(Rseq { address: own(index) + 0x400, size: 32, signature: RSEQ_SIGNATURE });
    thread.attributes.name = ByteBuf::from(format!("thread {index}"));
    thread.attributes.timer_slack_ns = 60_000 + number;
    thread.attributes.nice = index as i32 % 5;
    thread.attributes.io_priority = 2 << 13 | (number as u32 % 8);
    thread.attributes.parent_death_signal = if index % 2 == 1 { libc::SIGUSR1 } else { 0 };
    thread.attributes.affinity = if index % 2 == 1 { affinity_of_first_cpu() } else { ByteBuf::new() };
    thread
}

/// Written as the kernel gives it back.
fn affinity_of_first_cpu() -> ByteBuf {
    let mut mask = sys::task::affinity(0).expect("our affinity");
    mask.fill(0);
    mask[0] = 1;
    ByteBuf::from(mask)
}

fn set_vector_register(xstate: &mut [u8], value: u64) {
    const XMM0: usize = 160;
    const STATE_BITS: usize = 512;
    const SSE: u8 = 2;
    xstate[XMM0..XMM0 + 8].copy_from_slice(&value.to_ne_bytes());
    xstate[STATE_BITS] |= SSE;
}

/// Waits until each thread has counted.
fn expect_counting(tree: &mut Tree, cell: &Cell, count: usize) {
    for index in 0..count {
        let seen = cell.word(own(index));
        run_until(tree, "a thread to count", || (cell.word(own(index)) > seen).then_some(()));
    }
}

#[test]
fn what_is_restored_is_what_is_captured_then() {
    testkit::needs!(CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE);
    let cell = Cell::start();
    let mut tree = Tree::seize(cell.pid).expect("seize");
    let mut frozen = tree.freeze(PATIENCE).expect("freeze");
    let (mut process, memory) = program(&mut frozen, cell.pid, 20);
    decorate(&mut process);
    restore(&mut frozen, cell.pid, &process, &memory).expect("restore");
    let (mut found, found_memory) = fresh_save(&mut frozen, cell.pid);
    for (found, timer) in found.posix_timers.iter_mut().zip(&process.posix_timers) {
        assert!(found.remaining_ns <= timer.remaining_ns, "{found:?}");
        found.remaining_ns = timer.remaining_ns;
    }
    assert!(found.interval_timers[0].value_us <= process.interval_timers[0].value_us);
    found.interval_timers[0].value_us = process.interval_timers[0].value_us;
    // The kernel gives names of threads in the order of birth; the image's order is free.
    found.threads.sort_by_key(|thread| (thread.tid != process.pid, thread.tid));
    expect_same(&found, &process);
    assert_eq!(found_memory, memory);
    frozen.thaw();
    expect_counting(&mut tree, &cell, 20);
}

/// Piece by piece, so that a failure can be read.
fn expect_same(found: &Process, wanted: &Process) {
    let tids = |process: &Process| process.threads.iter().map(|thread| thread.tid).collect::<Vec<_>>();
    assert_eq!(tids(found), tids(wanted));
    for (found, wanted) in found.threads.iter().zip(&wanted.threads) {
        assert!(found.xstate == wanted.xstate, "the vector registers of thread {}", wanted.tid);
        let rest = |thread: &Thread| Thread { xstate: ByteBuf::new(), ..thread.clone() };
        assert_eq!(rest(found), rest(wanted));
    }
    for (signal, (found, wanted)) in (1..).zip(found.actions.iter().zip(&wanted.actions)) {
        assert_eq!(found, wanted, "the action of signal {signal}");
    }
    let rest = |process: &Process| Process { threads: Vec::new(), actions: Vec::new(), ..process.clone() };
    assert_eq!(rest(found), rest(wanted));
}

/// Changes everything of the process that is not its threads'.
fn decorate(process: &mut Process) {
    process.session = process.pid;
    process.group = process.pid;
    let flags = (libc::SA_SIGINFO | libc::SA_ONSTACK) as u64 | SA_RESTORER;
    process.actions[libc::SIGUSR2 as usize - 1] =
        SignalAction { handler: HANDLER_AT, flags, restorer: RESTORER_AT, mask: 1 << 5 };
    process.actions[libc::SIGPIPE as usize - 1].handler = 1;
    let files = process.limits.iter_mut().find(|limit| limit.resource == libc::RLIMIT_NOFILE).expect("there");
    *files = Limit { soft: 77, hard: 99, ..*files };
    process.filesystem.umask = 0o137;
    process.filesystem.working_directory = ByteBuf::from(*b"/usr/bin");
    process.interval_timers[0] = IntervalTimer { value_us: 500_000_000, interval_us: 250_000 };
    let thread = process.threads[3].tid;
    process.posix_timers = vec![
        timer(5, libc::SIGEV_THREAD_ID, thread),
        PosixTimer { clock: libc::CLOCK_REALTIME, ..timer(900, libc::SIGEV_SIGNAL, 0) },
    ];
    process.attributes.child_subreaper = true;
    process.attributes.transparent_huge_pages_off = true;
    process.attributes.personality = libc::ADDR_NO_RANDOMIZE as u32;
    process.attributes.dumpable = 0;
    process.attributes.coredump_filter = 0x7f;
    process.attributes.oom_score_adj = 300;
    process.pending = vec![siginfo(libc::SIGINT, 11), siginfo(50, 12), siginfo(50, 13)];
    process.threads.iter_mut().for_each(|thread| thread.signal_mask |= 1 << 1 | 1 << 49);
    process.threads[3].pending = vec![siginfo(50, 99)];
}

fn timer(id: i32, notify: i32, thread: i32) -> PosixTimer {
    PosixTimer {
        id,
        clock: libc::CLOCK_MONOTONIC,
        signal: 40,
        value: 0x1234_5678_9abc,
        notify,
        thread,
        remaining_ns: 900_000_000_000,
        interval_ns: 7_000_000_001,
        overrun: 0,
    }
}

/// As `sigqueue` sends it.
fn siginfo(signal: i32, value: u64) -> ByteBuf {
    const SI_QUEUE: i32 = -1;
    let mut info = [0; ptrace::SIGINFO_BYTES];
    info[..4].copy_from_slice(&signal.to_ne_bytes());
    info[8..12].copy_from_slice(&SI_QUEUE.to_ne_bytes());
    info[16..20].copy_from_slice(&4321i32.to_ne_bytes());
    info[24..32].copy_from_slice(&value.to_ne_bytes());
    ByteBuf::from(info)
}

#[test]
fn a_pending_signal_arrives_on_its_alternate_stack_with_its_value() {
    testkit::needs!(CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE);
    let cell = Cell::start();
    let mut tree = Tree::seize(cell.pid).expect("seize");
    let mut frozen = tree.freeze(PATIENCE).expect("freeze");
    let (mut process, memory) = program(&mut frozen, cell.pid, 4);
    decorate(&mut process);
    process.threads[2].pending = vec![siginfo(libc::SIGUSR2, 0xabcd_ef01_2345)];
    let stack = process.threads[2].alternate_stack;
    restore(&mut frozen, cell.pid, &process, &memory).expect("restore");
    frozen.thaw();
    let value = run_until(&mut tree, "the handler", || match cell.word(SAW_VALUE) {
        0 => None,
        value => Some(value),
    });
    assert_eq!(value, 0xabcd_ef01_2345);
    let sp = run_until(&mut tree, "the stack", || Some(cell.word(SAW_STACK)).filter(|&sp| sp != 0));
    assert!((stack.address..stack.address + stack.size).contains(&sp), "{sp:#x} is not on {stack:x?}");
    expect_counting(&mut tree, &cell, 4);
}

#[test]
fn a_sleep_goes_on_with_what_was_left_of_it() {
    testkit::needs!(CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE);
    const LEFT: Duration = Duration::from_millis(400);
    let cell = Cell::start();
    let mut tree = Tree::seize(cell.pid).expect("seize");
    let mut frozen = tree.freeze(PATIENCE).expect("freeze");
    let (mut process, memory) = program(&mut frozen, cell.pid, 3);
    let thread = &mut process.threads[1];
    let mut registers = ptrace::from_words(thread.registers.0);
    registers.rip = CALL_AT;
    registers.rax = libc::SYS_nanosleep as u64;
    registers.rsi = 0;
    thread.registers.0 = ptrace::to_words(&registers);
    thread.timeout = Some(Timeout { argument: 0, remaining_ns: LEFT.as_nanos() as u64 });
    restore(&mut frozen, cell.pid, &process, &memory).expect("restore");
    // Before it has run at all, the thread is captured with the same timeout.
    let (found, _) = fresh_save(&mut frozen, cell.pid);
    assert_eq!(found.threads[1].timeout, process.threads[1].timeout);
    let began = Instant::now();
    frozen.thaw();
    let (mut numbers, mut cache) = (CellNumbers::new(), ProcessCache::new());
    run_until(&mut tree, "the sleep's end", || (cell.word(own(1)) > 0).then_some(()));
    assert!(began.elapsed() >= LEFT, "woke after {:?}", began.elapsed());
    assert_eq!(cell.word(own(1) + 8), 0, "the sleep reported an error");
    let mut frozen = tree.freeze(PATIENCE).expect("freeze");
    save(&mut frozen, cell.pid, &mut numbers, &mut cache).expect("save");
}

/// One thread as another user with one capability, one with groups and a smaller bounding set.
fn diversify(process: &mut Process) {
    const NET_BIND_SERVICE: u64 = 1 << 10;
    let credentials = &mut process.threads[1].credentials;
    credentials.users = [1000, 1001, 1002, 1001];
    credentials.groups = [2000, 2001, 2002, 2003];
    credentials.supplementary = vec![5, 6, 70_000];
    credentials.capabilities[0] = NET_BIND_SERVICE;
    credentials.capabilities[1] = NET_BIND_SERVICE;
    credentials.capabilities[2] = NET_BIND_SERVICE;
    credentials.capabilities[3] = 0xff00 | NET_BIND_SERVICE;
    credentials.capabilities[4] = NET_BIND_SERVICE;
    credentials.secure_bits = 1 << 4;
    let credentials = &mut process.threads[2].credentials;
    credentials.supplementary = (1..500).collect();
    credentials.no_new_privs = true;
    let credentials = &mut process.threads[3].credentials;
    credentials.users = [65534; 4];
    credentials.capabilities[1] = 0;
    credentials.capabilities[2] = 0;
}

#[test]
fn every_thread_gets_its_own_credentials_back() {
    testkit::needs!(CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE, "root");
    let cell = Cell::start();
    let mut tree = Tree::seize(cell.pid).expect("seize");
    let mut frozen = tree.freeze(PATIENCE).expect("freeze");
    let (mut process, memory) = program(&mut frozen, cell.pid, 5);
    diversify(&mut process);
    restore(&mut frozen, cell.pid, &process, &memory).expect("restore");
    let (found, _) = fresh_save(&mut frozen, cell.pid);
    for (found, wanted) in found.threads.iter().zip(&process.threads) {
        assert_eq!((found.tid, &found.credentials), (wanted.tid, &wanted.credentials));
        assert_eq!(found.attributes, wanted.attributes);
    }
    frozen.thaw();
    expect_counting(&mut tree, &cell, 5);
}

/// Lets the calls of a counting thread through and kills the process for any other.
fn filter() -> SeccompFilter {
    let allowed = [libc::SYS_sched_yield, libc::SYS_rt_sigreturn, libc::SYS_restart_syscall];
    let mut program: Vec<(u16, u8, u8, u32)> = vec![(0x20, 0, 0, 0)]; // ld [nr]
    for (index, number) in allowed.iter().enumerate() {
        program.push((0x15, (allowed.len() - index) as u8, 0, *number as u32)); // jeq: to the end
    }
    program.push((0x06, 0, 0, libc::SECCOMP_RET_KILL_PROCESS));
    program.push((0x06, 0, 0, libc::SECCOMP_RET_ALLOW));
    let mut bytes = Vec::new();
    for (code, yes, no, k) in program {
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&[yes, no]);
        bytes.extend_from_slice(&k.to_ne_bytes());
    }
    SeccompFilter { program: ByteBuf::from(bytes), flags: 0 }
}

#[test]
fn a_filter_that_kills_is_restored_and_outlives_two_hundred_captures() {
    testkit::needs!(CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE, "root");
    let cell = Cell::start();
    let mut tree = Tree::seize(cell.pid).expect("seize");
    let mut frozen = tree.freeze(PATIENCE).expect("freeze");
    let (mut process, memory) = program(&mut frozen, cell.pid, 4);
    let second = SeccompFilter { flags: libc::SECCOMP_FILTER_FLAG_LOG as u32, ..filter() };
    for thread in &mut process.threads {
        thread.credentials.seccomp = Seccomp::Filters(vec![filter()]);
        thread.credentials.no_new_privs = true;
    }
    process.threads[2].credentials.seccomp = Seccomp::Filters(vec![filter(), second]);
    restore(&mut frozen, cell.pid, &process, &memory).expect("restore");
    frozen.thaw();
    expect_counting(&mut tree, &cell, 4);
    let (mut numbers, mut cache) = (CellNumbers::new(), ProcessCache::new());
    for _ in 0..200 {
        tree.pump().expect("pump");
        let mut frozen = tree.freeze(PATIENCE).expect("freeze");
        let (found, _) = save(&mut frozen, cell.pid, &mut numbers, &mut cache).expect("save");
        for (found, wanted) in found.threads.iter().zip(&process.threads) {
            assert_eq!(found.credentials, wanted.credentials);
        }
    }
    expect_counting(&mut tree, &cell, 4);
    // The canary: without its filters suspended a call of ours would have killed it.
    let mut frozen = tree.freeze(PATIENCE).expect("freeze");
    let mut registers = ptrace::from_words(process.threads[0].registers.0);
    (registers.rip, registers.rax) = (CALL_AT, libc::SYS_getpid as u64);
    frozen.set_registers(cell.pid, cell.pid, registers, None).expect("a call of the app's");
    frozen.thaw();
    run_until(&mut tree, "the filter to strike", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", cell.pid)).unwrap_or_default();
        let dead = status.is_empty() || status.contains("State:\tZ") || status.contains("State:\tX");
        dead.then_some(())
    });
}

#[test]
fn a_restartable_sequence_is_captured_as_aborted() {
    testkit::needs!(CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE);
    const SPIN_AT: u64 = CODE + 0x200;
    const DESCRIPTOR: u64 = CODE + 0x300;
    let cell = Cell::start();
    let mut tree = Tree::seize(cell.pid).expect("seize");
    let mut frozen = tree.freeze(PATIENCE).expect("freeze");
    let (mut process, memory) = program(&mut frozen, cell.pid, 2);
    let area = process.threads[1].rseq.expect("registered").address;
    // The signature; abort: mov rax, DESCRIPTOR; mov [rbx], rax (rseq_cs); start: inc rcx; jmp start
    let mut code = RSEQ_SIGNATURE.to_le_bytes().to_vec();
    code.extend_from_slice(&[0x48, 0xb8]);
    code.extend_from_slice(&DESCRIPTOR.to_le_bytes());
    code.extend_from_slice(&[0x48, 0x89, 0x03, 0x48, 0xff, 0xc1, 0xeb, 0xfb]);
    let (abort, start) = (SPIN_AT + 4, SPIN_AT + 4 + 13);
    let mut descriptor = vec![0; 8];
    [start, 5, abort].iter().for_each(|word| descriptor.extend_from_slice(&word.to_le_bytes()));
    for (at, bytes) in [(SPIN_AT, &code), (DESCRIPTOR, &descriptor)] {
        sys::memory::scatter_each(cell.pid, &[(at, bytes)]).expect("write");
    }
    let mut registers = ptrace::from_words(process.threads[1].registers.0);
    (registers.rip, registers.rbx) = (abort, area + 8);
    process.threads[1].registers.0 = ptrace::to_words(&registers);
    restore(&mut frozen, cell.pid, &process, &memory).expect("restore");
    frozen.thaw();
    let (mut numbers, mut cache) = (CellNumbers::new(), ProcessCache::new());
    let mut spinning = 0;
    for _ in 0..50 {
        expect_counting(&mut tree, &cell, 1);
        let mut frozen = tree.freeze(PATIENCE).expect("freeze");
        let (found, _) = save(&mut frozen, cell.pid, &mut numbers, &mut cache).expect("save");
        let rip = ptrace::from_words(found.threads[1].registers.0).rip;
        assert!(!(start..start + 5).contains(&rip), "captured inside of the sequence");
        spinning += usize::from(rip == abort);
    }
    assert!(spinning > 0, "the thread was never met inside of its sequence");
}

#[test]
fn a_changed_identity_is_seen_at_once_and_the_rest_in_time() {
    testkit::needs!(CAP_SYS_PTRACE, "root");
    let cell = Cell::start();
    let mut tree = Tree::seize(cell.pid).expect("seize");
    let (mut numbers, mut cache) = (CellNumbers::new(), ProcessCache::new());
    let mut frozen = tree.freeze(PATIENCE).expect("freeze");
    save(&mut frozen, cell.pid, &mut numbers, &mut cache).expect("save");
    let mut remote = frozen.remote(cell.pid).expect("remote");
    let drop_bound = [libc::PR_CAPBSET_DROP as u64, 0];
    remote.call("drop", libc::SYS_prctl, drop_bound).expect("drop CAP_CHOWN from the bounding set");
    let mut seen = 0;
    for _ in 0..RECHECK_EVERY {
        let (found, _) = save(&mut frozen, cell.pid, &mut numbers, &mut cache).expect("save");
        seen += u64::from(found.threads[0].credentials.capabilities[3] & 1 == 0);
    }
    assert!(seen >= 1, "the bounding set was not looked at in {RECHECK_EVERY} freezes");
    let mut remote = frozen.remote(cell.pid).expect("remote");
    remote.call("setfsuid", libc::SYS_setfsuid, [77]).expect("another filesystem user");
    remote.call("umask", libc::SYS_umask, [0o111]).expect("another umask");
    for _ in 0..2 {
        let (found, _) = save(&mut frozen, cell.pid, &mut numbers, &mut cache).expect("save");
        assert_eq!(found.threads[0].credentials.users[3], 77);
        assert_eq!(found.filesystem.umask, 0o111);
    }
}

#[test]
fn capabilities_that_this_host_lacks_are_named() {
    testkit::needs!(CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE);
    let cell = Cell::start();
    let mut tree = Tree::seize(cell.pid).expect("seize");
    let mut frozen = tree.freeze(PATIENCE).expect("freeze");
    let (mut process, memory) = program(&mut frozen, cell.pid, 2);
    process.threads[1].credentials.capabilities[1] |= 1 << 50;
    let refused = restore(&mut frozen, cell.pid, &process, &memory).expect_err("nobody has capability 50");
    assert!(matches!(refused, RestoreError::Capabilities { missing } if missing == 1 << 50), "{refused}");
}

/// Its collector waits for ever for the effect of a preemption signal that the stop has swallowed.
#[test]
fn gos_preemption_signal_is_sent_again() {
    testkit::needs!(CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE);
    let cell = Cell::start();
    let mut tree = Tree::seize(cell.pid).expect("seize");
    let mut frozen = tree.freeze(PATIENCE).expect("freeze");
    let (mut process, memory) = program(&mut frozen, cell.pid, 4);
    let flags = (libc::SA_SIGINFO | libc::SA_ONSTACK) as u64 | SA_RESTORER;
    process.actions[libc::SIGURG as usize - 1] =
        SignalAction { handler: HANDLER_AT, flags, restorer: RESTORER_AT, mask: 0 };
    process.attributes.go = true;
    restore(&mut frozen, cell.pid, &process, &memory).expect("restore");
    let (found, _) = fresh_save(&mut frozen, cell.pid);
    assert!(found.threads.iter().all(|thread| thread.pending.len() == 1), "one signal for each thread");
    frozen.thaw();
    run_until(&mut tree, "the handler", || Some(cell.word(SAW_STACK)).filter(|&sp| sp != 0));
    expect_counting(&mut tree, &cell, 4);
}

/// N.B. the kernel reports the leader's end only after the other threads are reaped, which is the tracer's to do.
#[test]
fn an_app_that_is_killed_while_it_works_for_us_is_reported_as_ended() {
    testkit::needs!(CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE);
    let cell = Cell::start();
    let mut tree = Tree::seize(cell.pid).expect("seize");
    let mut frozen = tree.freeze(PATIENCE).expect("freeze");
    let (process, memory) = program(&mut frozen, cell.pid, 8);
    restore(&mut frozen, cell.pid, &process, &memory).expect("restore");
    let pid = cell.pid;
    let killer = std::thread::spawn(move || {
        process_cell::wait_for("the leader to wait", || {
            let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
            call.starts_with(&format!("{} ", libc::SYS_pause)).then_some(())
        });
        sys::task::kill(pid, libc::SIGKILL).expect("kill");
    });
    let died = frozen.remote(pid).and_then(|mut remote| remote.call("pause", libc::SYS_pause, []));
    assert!(matches!(died, Err(TraceError::Ended(_))), "{died:?}");
    killer.join().expect("the killer");
    frozen.thaw();
    process_cell::wait_for("the end to be told", || {
        let events = tree.pump().expect("pump");
        let ended = TreeEvent::Ended { pid, ending: Ending::Killed(libc::SIGKILL) };
        events.contains(&ended).then_some(())
    });
}
