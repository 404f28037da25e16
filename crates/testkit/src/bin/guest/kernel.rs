//! The system calls that guests make and no safe library offers, each behind a safe function.
#![allow(unsafe_code, reason = "guests hold kernel state that rustix and std do not reach")]

use std::arch::asm;
use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::io;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

pub const SIGUSR1: i32 = libc::SIGUSR1;
pub const SIGUSR2: i32 = libc::SIGUSR2;
pub const SIGALRM: i32 = libc::SIGALRM;

/// The kernel's sigset has 64 bits, signal 1 in the lowest.
const SIGSET_BYTES: usize = 8;

/// The first signal that libc leaves to programs.
pub fn first_realtime_signal() -> i32 {
    libc::SIGRTMIN()
}

pub fn signal_bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

fn check(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn check_error_number(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

fn timespec(duration: Duration) -> libc::timespec {
    let seconds =
        libc::time_t::try_from(duration.as_secs()).expect("a guest waits for seconds, not for ages");
    libc::timespec { tv_sec: seconds, tv_nsec: duration.subsec_nanos().into() }
}

// ---- signals ----

/// Blocks more signals in this thread.
pub fn block_signals(signals: &[i32]) {
    change_mask(libc::SIG_BLOCK, signals.iter().fold(0, |set, &signal| set | signal_bit(signal)));
}

/// Sets this thread's whole mask.
pub fn set_signal_mask(set: u64) {
    change_mask(libc::SIG_SETMASK, set);
}

/// This thread's mask.
pub fn signal_mask() -> u64 {
    change_mask(libc::SIG_BLOCK, 0)
}

fn change_mask(how: c_int, set: u64) -> u64 {
    let mut old = 0_u64;
    // SAFETY: both sets are live and of the size that is given.
    let result =
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const set, &raw mut old, SIGSET_BYTES) };
    check(result).expect("a mask can always be changed");
    old
}

/// What came with a signal.
#[derive(Debug, PartialEq, Eq)]
pub struct SignalInfo {
    pub signal: i32,
    pub code: i32,
    pub value: usize,
}

/// Whether a signal waits for this thread or for the process.
pub fn is_pending(signal: i32) -> bool {
    let mut set = 0_u64;
    // SAFETY: a set of the kernel's size, that it writes to.
    let answer = unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut set, size_of_val(&set)) };
    assert_eq!(answer, 0, "rt_sigpending: {}", io::Error::last_os_error());
    set & signal_bit(signal) != 0
}

/// Takes one pending signal, or waits for it; `EAGAIN` after the timeout.
pub fn wait_for_signal(signal: i32, timeout: Option<Duration>) -> io::Result<SignalInfo> {
    let set = signal_bit(signal);
    let timeout = timeout.map(timespec);
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the set is of the size given, `info` has room for a siginfo, the timeout is live or null.
    let result = unsafe {
        libc::syscall(libc::SYS_rt_sigtimedwait, &raw const set, info.as_mut_ptr(), timeout, SIGSET_BYTES)
    };
    check(result)?;
    // SAFETY: all bytes were zeroed or written by the kernel; every field is an integer.
    let info = unsafe { info.assume_init() };
    // SAFETY: the kernel filled the union for a signal that carries a value, or left it zeroed.
    let value = unsafe { info.si_value() };
    Ok(SignalInfo { signal: info.si_signo, code: info.si_code, value: value.sival_ptr.addr() })
}

/// A siginfo as a sender fills it: three numbers, then the sender, then the value.
#[repr(C)]
struct QueuedSignal {
    signal: c_int,
    errno: c_int,
    code: c_int,
    pad: c_int,
    pid: libc::pid_t,
    uid: libc::uid_t,
    value: usize,
    rest: [u64; 12],
}

const _: () = assert!(size_of::<QueuedSignal>() == size_of::<libc::siginfo_t>());

impl QueuedSignal {
    fn new(signal: i32, value: usize) -> Self {
        let pid = process_id();
        Self { signal, errno: 0, code: libc::SI_QUEUE, pad: 0, pid, uid: 0, value, rest: [0; 12] }
    }
}

/// Queues a signal with a value to this process.
pub fn queue_to_process(signal: i32, value: usize) -> io::Result<()> {
    let info = QueuedSignal::new(signal, value);
    // SAFETY: `info` is live and has the size of a siginfo; the kernel only reads it.
    check(unsafe { libc::syscall(libc::SYS_rt_sigqueueinfo, process_id(), signal, &raw const info) })
        .map(drop)
}

/// Queues a signal with a value to one thread of this process.
pub fn queue_to_thread(thread: i32, signal: i32, value: usize) -> io::Result<()> {
    let info = QueuedSignal::new(signal, value);
    let process = process_id();
    // SAFETY: `info` is live and has the size of a siginfo; the kernel only reads it.
    let result =
        unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, &raw const info) };
    check(result).map(drop)
}

/// Sends a signal to one thread of this process.
pub fn signal_thread(thread: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::syscall(libc::SYS_tgkill, process_id(), thread, signal) }).map(drop)
}

pub fn process_id() -> i32 {
    std::process::id().cast_signed()
}

/// This thread's id.
pub fn thread_id() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// How often the counting handler ran, by signal.
static HANDLED: [AtomicU32; 65] = [const { AtomicU32::new(0) }; 65];
/// An address on the stack that the counting handler last ran on.
static HANDLER_STACK: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_signal(signal: c_int) {
    let on_stack = 0_u8;
    HANDLER_STACK.store((&raw const on_stack).addr(), Ordering::Relaxed);
    if let Some(count) = usize::try_from(signal).ok().and_then(|signal| HANDLED.get(signal)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

pub fn times_handled(signal: i32) -> u32 {
    HANDLED[usize::try_from(signal).expect("signals are positive")].load(Ordering::Relaxed)
}

pub fn last_handler_stack() -> usize {
    HANDLER_STACK.load(Ordering::Relaxed)
}

/// Counts a signal from now on, in a handler with these flags and this mask.
pub fn count_handled(signal: i32, flags: i32, mask: u64) -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a zeroed sigaction is a valid one: the default action.
    let action = unsafe { action.assume_init_mut() };
    let handler: extern "C" fn(c_int) = count_signal;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = flags;
    for other in (1..=64).filter(|&other| mask & signal_bit(other) != 0) {
        // SAFETY: the set is live.
        unsafe { libc::sigaddset(&raw mut action.sa_mask, other) };
    }
    // SAFETY: the action is live; its handler only touches atomics.
    check(unsafe { libc::sigaction(signal, action, ptr::null_mut()) }.into()).map(drop)
}

/// Ignores a signal from now on.
pub fn ignore(signal: i32) -> io::Result<()> {
    // SAFETY: SIG_IGN runs no code.
    let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A signal's action as the kernel has it.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

pub fn action_of(signal: i32) -> io::Result<KernelAction> {
    let mut action = KernelAction::default();
    let new = ptr::null::<KernelAction>();
    // SAFETY: `action` has the kernel's layout and size, and no new action is given.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, &raw mut action, SIGSET_BYTES) };
    check(result).map(|_| action)
}

/// Makes `stack` this thread's alternate signal stack. It must not be unmapped while the thread runs.
pub fn set_alternate_stack(stack: Range<usize>) -> io::Result<()> {
    let stack = libc::stack_t {
        ss_sp: ptr::with_exposed_provenance_mut(stack.start),
        ss_flags: 0,
        ss_size: stack.len(),
    };
    // SAFETY: the struct is live, and the caller keeps the memory mapped.
    check(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) }.into()).map(drop)
}

/// This thread's alternate signal stack.
pub fn alternate_stack() -> io::Result<Range<usize>> {
    let mut stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: the struct is live; nothing is set.
    check(unsafe { libc::sigaltstack(ptr::null(), &raw mut stack) }.into())?;
    let start = stack.ss_sp.addr();
    Ok(start..start + stack.ss_size)
}

// ---- timers ----

pub fn set_interval_timer(which: c_int, interval: Duration) -> io::Result<()> {
    let micros = libc::suseconds_t::from(interval.subsec_micros().cast_signed());
    let seconds = libc::time_t::try_from(interval.as_secs()).expect("a short interval");
    let time = libc::timeval { tv_sec: seconds, tv_usec: micros };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the value is live; the old one is not asked for.
    check(unsafe { libc::setitimer(which, &raw const timer, ptr::null_mut()) }.into()).map(drop)
}

/// The interval and the remaining time of an interval timer.
pub fn interval_timer(which: c_int) -> io::Result<(Duration, Duration)> {
    let mut timer = MaybeUninit::<libc::itimerval>::zeroed();
    // SAFETY: `timer` has room for the value.
    check(unsafe { libc::getitimer(which, timer.as_mut_ptr()) }.into())?;
    // SAFETY: the kernel wrote it, over zeroes.
    let timer = unsafe { timer.assume_init() };
    Ok((from_timeval(timer.it_interval), from_timeval(timer.it_value)))
}

fn from_timeval(time: libc::timeval) -> Duration {
    Duration::from_secs(time.tv_sec.cast_unsigned()) + Duration::from_micros(time.tv_usec.cast_unsigned())
}

/// A POSIX timer of this process, by the kernel's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PosixTimer(c_int);

impl PosixTimer {
    /// A timer that queues `signal` with `value` to `thread`, or to the process if it is `None`.
    pub fn new(clock: libc::clockid_t, signal: i32, value: usize, thread: Option<i32>) -> io::Result<Self> {
        let mut event = MaybeUninit::<libc::sigevent>::zeroed();
        // SAFETY: a zeroed sigevent is a valid one.
        let event = unsafe { event.assume_init_mut() };
        event.sigev_signo = signal;
        event.sigev_value.sival_ptr = ptr::without_provenance_mut(value);
        event.sigev_notify = if thread.is_some() { libc::SIGEV_THREAD_ID } else { libc::SIGEV_SIGNAL };
        event.sigev_notify_thread_id = thread.unwrap_or(0);
        let mut id: c_int = 0;
        // SAFETY: event and id are live, and have the kernel's layouts.
        let result =
            unsafe { libc::syscall(libc::SYS_timer_create, clock, ptr::from_mut(event), &raw mut id) };
        check(result).map(|_| Self(id))
    }

    /// Starts the timer; absolute if `first` is a time of the timer's clock.
    pub fn start(self, first: Duration, interval: Duration, absolute: bool) -> io::Result<()> {
        let flags = if absolute { libc::TIMER_ABSTIME } else { 0 };
        let value = libc::itimerspec { it_interval: timespec(interval), it_value: timespec(first) };
        let old = ptr::null_mut::<libc::itimerspec>();
        // SAFETY: the value is live; the old one is not asked for.
        check(unsafe { libc::syscall(libc::SYS_timer_settime, self.0, flags, &raw const value, old) })
            .map(drop)
    }

    /// The timer's interval; an error if the kernel knows no timer of this id.
    pub fn interval(self) -> io::Result<Duration> {
        let zero = timespec(Duration::ZERO);
        let mut value = libc::itimerspec { it_interval: zero, it_value: zero };
        // SAFETY: `value` is live and has the kernel's layout.
        check(unsafe { libc::syscall(libc::SYS_timer_gettime, self.0, &raw mut value) })?;
        let interval = value.it_interval;
        let nanos = u32::try_from(interval.tv_nsec).expect("the kernel's nanoseconds are below a second");
        Ok(Duration::new(interval.tv_sec.cast_unsigned(), nanos))
    }
}

// ---- waits that libraries restart or hide ----

pub fn sleep(duration: Duration) -> io::Result<()> {
    let request = timespec(duration);
    // SAFETY: the request is live; the rest is not asked for.
    check(unsafe { libc::syscall(libc::SYS_nanosleep, &raw const request, ptr::null_mut::<u8>()) }).map(drop)
}

/// Sleeps until the monotonic clock shows `until`.
pub fn sleep_until(until: Duration) -> io::Result<()> {
    let request = timespec(until);
    let (clock, flags, rest) = (libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, ptr::null_mut::<u8>());
    // SAFETY: the request is live; the rest is not asked for.
    let result = unsafe { libc::syscall(libc::SYS_clock_nanosleep, clock, flags, &raw const request, rest) };
    check(result).map(drop)
}

/// Waits on a futex that nobody wakes, relative, or absolute by the bitset form.
pub fn futex_wait(word: &AtomicU32, expected: u32, timeout: Duration, absolute: bool) -> io::Result<()> {
    let operation = if absolute { libc::FUTEX_WAIT_BITSET } else { libc::FUTEX_WAIT };
    let timeout = timespec(timeout);
    let (word, unused, any) = (word.as_ptr(), ptr::null::<u32>(), libc::FUTEX_BITSET_MATCH_ANY);
    // SAFETY: word and timeout are live for the whole call.
    let result =
        unsafe { libc::syscall(libc::SYS_futex, word, operation, expected, &raw const timeout, unused, any) };
    check(result).map(drop)
}

/// Waits on a futex until it is woken.
pub fn futex_wait_forever(word: &AtomicU32, expected: u32) -> io::Result<()> {
    let (word, forever) = (word.as_ptr(), ptr::null::<libc::timespec>());
    // SAFETY: the word is live for the whole call.
    check(unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, expected, forever) }).map(drop)
}

pub fn futex_wake_all(word: &AtomicU32) -> io::Result<usize> {
    let word = word.as_ptr();
    // SAFETY: the word is live; waking reads no memory.
    check(unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, i32::MAX) })
}

pub fn epoll_wait(epoll: BorrowedFd<'_>, timeout: Duration) -> io::Result<usize> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let milliseconds = c_int::try_from(timeout.as_millis()).expect("a short timeout");
    // SAFETY: there is room for the one event that is asked for.
    check(unsafe { libc::epoll_wait(epoll.as_raw_fd(), &raw mut event, 1, milliseconds) }.into())
}

pub fn select_nothing(timeout: Duration) -> io::Result<usize> {
    let mut timeout = libc::timeval {
        tv_sec: timeout.as_secs().cast_signed(),
        tv_usec: timeout.subsec_micros().cast_signed().into(),
    };
    let none = ptr::null_mut();
    // SAFETY: no set is given, and the timeout is live.
    check(unsafe { libc::select(0, none, none, none, &raw mut timeout) }.into())
}

// ---- threads ----

/// A robust mutex whose owner may die.
pub struct RobustMutex(Box<UnsafeCell<libc::pthread_mutex_t>>);

// SAFETY: a pthread mutex is made for being shared between threads, and the box keeps it in its place.
unsafe impl Send for RobustMutex {}
// SAFETY: as above.
unsafe impl Sync for RobustMutex {}

impl RobustMutex {
    pub fn new() -> io::Result<Self> {
        let mutex = Self(Box::new(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER)));
        let mut attributes = MaybeUninit::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: there is room for the attributes.
        check_error_number(unsafe { libc::pthread_mutexattr_init(attributes) })?;
        // SAFETY: the attributes are initialised.
        check_error_number(unsafe {
            libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST)
        })?;
        // SAFETY: the mutex is not in use yet, and the attributes are initialised.
        check_error_number(unsafe { libc::pthread_mutex_init(mutex.0.get(), attributes) })?;
        Ok(mutex)
    }

    /// Locks it, and leaves it locked.
    pub fn lock(&self) -> io::Result<()> {
        // SAFETY: the mutex is initialised and stays in its place.
        check_error_number(unsafe { libc::pthread_mutex_lock(self.0.get()) })
    }

    /// Locks it if it is free; `EOWNERDEAD` if its owner has died.
    pub fn try_lock(&self) -> io::Result<()> {
        // SAFETY: the mutex is initialised and stays in its place.
        check_error_number(unsafe { libc::pthread_mutex_trylock(self.0.get()) })
    }
}

unsafe extern "C" {
    /// Where glibc has this thread's rseq area, counted from the thread pointer.
    static __rseq_offset: isize;
}

/// The start of the kernel's `struct rseq`.
#[repr(C)]
pub struct RseqArea {
    cpu_id_start: AtomicU32,
    cpu_id: AtomicU32,
    critical_section: AtomicUsize,
}

const CRITICAL_SECTION_OFFSET: usize = offset_of!(RseqArea, critical_section);

/// This thread's rseq area, which glibc has registered.
pub fn rseq_area() -> &'static RseqArea {
    let thread_pointer: usize;
    // SAFETY: fs:0 holds the thread pointer itself, by the x86-64 ABI.
    unsafe { asm!("mov {}, fs:[0]", out(reg) thread_pointer, options(readonly, nostack, preserves_flags)) };
    // SAFETY: glibc sets this once, before main.
    let offset = unsafe { __rseq_offset };
    let area = ptr::with_exposed_provenance(thread_pointer.wrapping_add_signed(offset));
    // SAFETY: the area lives as long as the thread, and all fields are atomics. The caller keeps to its thread.
    unsafe { &*area }
}

impl RseqArea {
    /// The CPU that the kernel says this thread runs on.
    pub fn cpu(&self) -> u32 {
        self.cpu_id.load(Ordering::Relaxed)
    }

    /// Adds one to `counter` in a critical section that spins between load and store. Returns false, with nothing
    /// added, if the kernel aborted it: whoever is interrupted in between must not store.
    pub fn increment(&self, counter: &AtomicUsize, spins: usize) -> bool {
        let done: usize;
        // SAFETY: the descriptor is in .data.rel.ro of this program, with the signature that glibc registered
        // before its abort address; the section stores only to `counter` and clears its descriptor on both ways.
        unsafe {
            asm!(
                ".pushsection .data.rel.ro.rseq, \"aw\"",
                ".balign 32",
                "66:",
                ".long 0, 0",
                ".quad 77f, 88f - 77f, 99f",
                ".popsection",
                "lea {scratch}, [rip + 66b]",
                "mov [{area} + {section}], {scratch}",
                "77:",
                "mov {scratch}, [{counter}]",
                "55:",
                "dec {spins}",
                "jnz 55b",
                "inc {scratch}",
                "mov [{counter}], {scratch}",
                "88:",
                "mov {done:e}, 1",
                "jmp 44f",
                // The signature, as the operand of an undefined instruction.
                ".byte 0x0f, 0xb9, 0x3d",
                ".long 0x53053053",
                "99:",
                "xor {done:e}, {done:e}",
                "44:",
                "mov qword ptr [{area} + {section}], 0",
                area = in(reg) ptr::from_ref(self),
                section = const CRITICAL_SECTION_OFFSET,
                counter = in(reg) counter.as_ptr(),
                spins = inout(reg) spins => _,
                scratch = out(reg) _,
                done = out(reg) done,
            );
        }
        done == 1
    }
}

// ---- identity ----

/// Installs a seccomp filter that answers `syscall` with `errno` and allows all else. Needs `no_new_privs` or root.
pub fn refuse_syscall(syscall: libc::c_long, errno: u16) -> io::Result<()> {
    let syscall = u32::try_from(syscall).expect("system call numbers are small");
    let statement =
        |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k };
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, syscall),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | u32::from(errno)),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    let (operation, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
    // SAFETY: the program is live and as long as is said; the kernel copies it.
    check(unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const filter) }).map(drop)
}

/// A system call without arguments or effects, for its answer.
pub fn plain_syscall(number: libc::c_long) -> io::Result<usize> {
    // SAFETY: only calls without arguments are passed: getppid, getpgrp, sched_yield.
    check(unsafe { libc::syscall(number) })
}

/// Becomes another user in all threads, without any other group.
pub fn become_user(user: u32, group: u32) -> io::Result<()> {
    // SAFETY: an empty list is not read.
    check(unsafe { libc::setgroups(0, ptr::null()) }.into())?;
    // SAFETY: no memory is involved.
    check(unsafe { libc::setresgid(group, group, group) }.into())?;
    // SAFETY: no memory is involved.
    check(unsafe { libc::setresuid(user, user, user) }.into()).map(drop)
}

/// `prctl` with one number.
pub fn prctl(option: c_int, argument: u64) -> io::Result<usize> {
    // SAFETY: the options that guests pass take a number, not a pointer.
    check(unsafe { libc::prctl(option, argument, 0_u64, 0_u64, 0_u64) }.into())
}

/// Sets this thread's scheduling policy.
pub fn set_scheduler(policy: c_int, priority: c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameters are live.
    check(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) }.into()).map(drop)
}

/// This thread's scheduling policy and priority.
pub fn scheduler() -> io::Result<(usize, c_int)> {
    let mut parameters = libc::sched_param { sched_priority: -1 };
    // SAFETY: no memory is involved.
    let policy = check(unsafe { libc::sched_getscheduler(0) }.into())?;
    // SAFETY: there is room for the parameters.
    check(unsafe { libc::sched_getparam(0, &raw mut parameters) }.into())?;
    Ok((policy, parameters.sched_priority))
}

// ---- descriptors ----

/// A signalfd for one signal.
pub fn signalfd(signal: i32) -> io::Result<OwnedFd> {
    let (set, flags) = (signal_bit(signal), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
    // SAFETY: the set is live and of the size given.
    let fd = check(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const set, SIGSET_BYTES, flags) })?;
    let fd = c_int::try_from(fd).expect("a descriptor is an int");
    // SAFETY: the kernel just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An integer socket option.
pub fn socket_option(socket: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut length: libc::socklen_t = 4;
    let (fd, value_out) = (socket.as_raw_fd(), (&raw mut value).cast());
    // SAFETY: value and length are live, and the length is the value's.
    check(unsafe { libc::getsockopt(fd, level, name, value_out, &raw mut length) }.into()).map(|_| value)
}

pub fn set_socket_option(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let (fd, value_in) = (socket.as_raw_fd(), (&raw const value).cast());
    // SAFETY: the value is live and has four bytes.
    check(unsafe { libc::setsockopt(fd, level, name, value_in, 4) }.into()).map(drop)
}

/// A stream listener for loopback that speaks MPTCP.
pub fn mptcp_socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd =
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_MPTCP) };
    check(fd.into())?;
    // SAFETY: the kernel just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

// ---- floating point control ----

/// The SSE control register and the x87 control word.
pub fn float_control() -> (u32, u16) {
    let (mut sse, mut x87) = (0_u32, 0_u16);
    // SAFETY: both stores go to live variables of the size stored.
    unsafe {
        asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &raw mut sse, in(reg) &raw mut x87,
            options(nostack, preserves_flags));
    }
    (sse, x87)
}

/// Sets the rounding of both units. The caller computes nothing that depends on rounding while it is changed.
pub fn set_float_control(sse: u32, x87: u16) {
    // SAFETY: both loads come from live variables; only rounding bits differ from the values that were read.
    unsafe {
        asm!("ldmxcsr [{}]", "fldcw [{}]", in(reg) &raw const sse, in(reg) &raw const x87,
            options(nostack, preserves_flags));
    }
}

/// Writes the one byte at an address, which may be anything: the kernel answers EFAULT where a load would kill.
pub fn write_from(fd: BorrowedFd<'_>, address: usize) -> io::Result<()> {
    let (fd, byte) = (fd.as_raw_fd(), ptr::with_exposed_provenance(address));
    // SAFETY: the kernel checks the address; the byte is only read.
    let result = unsafe { libc::write(fd, byte, 1) };
    check(libc::c_long::try_from(result).unwrap_or(-1)).map(drop)
}
