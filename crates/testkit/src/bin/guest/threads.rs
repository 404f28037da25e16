//! What the kernel keeps for each thread.

use std::cell::Cell;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity, set_name};

use crate::harness::{Context, Guest, Outcome, say};
use crate::kernel::{self, RobustMutex};
use crate::{ensure, ensure_eq};

pub const GUESTS: &[Guest] = &[
    Guest::new("thread-local", thread_local),
    Guest::new("robust-mutex", robust_mutex),
    Guest::new("join", join),
    Guest::new("rseq", rseq),
    Guest::new("rseq-critical-section", rseq_critical_section),
    Guest::new("thread-names", thread_names),
    Guest::new("thread-ids", thread_ids),
    Guest::new("scheduling", scheduling),
    Guest::new("thread-churn", thread_churn),
    Guest::new("spin", spin),
];

/// Runs one thread per item: `set_up`, all meet, `ready`, the go, then `check`, in the same thread.
fn in_threads<T: Send + 'static>(
    context: &mut Context,
    items: impl IntoIterator<Item = T>,
    set_up: fn(&T) -> Outcome,
    check: fn(&T) -> Outcome,
) -> Outcome {
    let items: Vec<T> = items.into_iter().collect();
    let meet = Arc::new(Barrier::new(items.len() + 1));
    let workers: Vec<JoinHandle<Outcome>> = items
        .into_iter()
        .map(|item| {
            let meet = Arc::clone(&meet);
            thread::spawn(move || {
                let set_up = set_up(&item);
                meet.wait();
                meet.wait();
                set_up.and_then(|()| check(&item))
            })
        })
        .collect();
    meet.wait();
    context.ready();
    meet.wait();
    for worker in workers {
        worker.join().map_err(|_| "a thread panicked")??;
    }
    Ok(())
}

thread_local! {
    static OWN_NUMBER: Cell<u32> = const { Cell::new(0) };
}

fn thread_local(context: &mut Context) -> Outcome {
    in_threads(
        context,
        1..=8_u32,
        |&number| {
            OWN_NUMBER.set(number);
            Ok(())
        },
        |&number| {
            ensure_eq!("thread-local value", OWN_NUMBER.get(), number);
            Ok(())
        },
    )
}

/// A thread that dies with a robust mutex: the kernel walks its robust list and marks the mutex.
fn robust_mutex(context: &mut Context) -> Outcome {
    let mutex = Arc::new(RobustMutex::new()?);
    let locked = Arc::new(Barrier::new(2));
    let owner = {
        let (mutex, locked) = (Arc::clone(&mutex), Arc::clone(&locked));
        thread::spawn(move || {
            let outcome = mutex.lock();
            locked.wait();
            locked.wait();
            outcome
        })
    };
    locked.wait();
    ensure_eq!(
        "mutex before",
        mutex.try_lock().map_err(|error| error.raw_os_error()),
        Err(Some(libc::EBUSY))
    );
    context.ready();
    ensure_eq!("mutex held", mutex.try_lock().map_err(|error| error.raw_os_error()), Err(Some(libc::EBUSY)));
    locked.wait();
    owner.join().map_err(|_| "the owner panicked")??;
    let orphaned = mutex.try_lock().map_err(|error| error.raw_os_error());
    ensure_eq!("mutex of a dead thread", orphaned, Err(Some(libc::EOWNERDEAD)));
    Ok(())
}

/// A join returns when the kernel clears the thread's id and wakes the futex there.
fn join(context: &mut Context) -> Outcome {
    let over = Arc::new(Barrier::new(5));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let over = Arc::clone(&over);
            thread::spawn(move || over.wait().is_leader())
        })
        .collect();
    context.ready();
    over.wait();
    // The joins are made on a thread of their own, so that one that hangs is an answer too.
    let joiner = thread::spawn(move || workers.into_iter().filter_map(|worker| worker.join().ok()).count());
    let deadline = Instant::now() + Duration::from_secs(10);
    while !joiner.is_finished() {
        ensure!(Instant::now() < deadline, "threads ended, but joining them hangs");
        thread::yield_now();
    }
    ensure_eq!("joined threads", joiner.join().unwrap_or(0), 4);
    Ok(())
}

/// The CPUs that the main thread may use; guests pin other threads only.
fn cpus() -> io::Result<Vec<usize>> {
    cpus_of(rustix::process::getpid())
}

fn cpus_of(thread: rustix::thread::Pid) -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Some(thread))?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

fn pin_to(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// glibc's rseq area stays registered: the kernel keeps the CPU number in it up to date.
fn rseq(context: &mut Context) -> Outcome {
    in_threads(context, 0..4, |_: &i32| check_rseq(), |_| check_rseq())
}

fn check_rseq() -> Outcome {
    for cpu in cpus()? {
        pin_to(cpu)?;
        let (found, expected) = (kernel::rseq_area().cpu(), u32::try_from(cpu)?);
        ensure_eq!("CPU in the rseq area", found, expected);
    }
    Ok(())
}

/// Two threads on one CPU, each nearly always between load and store of a critical section. Whoever is stopped
/// there must be aborted: if both go on from where they were, one increment is lost.
fn rseq_critical_section(context: &mut Context) -> Outcome {
    let counter = Arc::new(AtomicUsize::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let cpu = cpus()?[0];
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let (counter, over) = (Arc::clone(&counter), Arc::clone(&over));
            thread::spawn(move || increment_until(&over, &counter, cpu))
        })
        .collect();
    context.ready();
    over.store(true, Ordering::Relaxed);
    let mut incremented = 0;
    for worker in workers {
        incremented += worker.join().map_err(|_| "a worker panicked")??;
    }
    ensure!(incremented > 0, "no critical section was ever finished");
    ensure_eq!("counter after all increments", counter.load(Ordering::Relaxed), incremented);
    Ok(())
}

fn increment_until(over: &AtomicBool, counter: &AtomicUsize, cpu: usize) -> io::Result<usize> {
    const SPINS: usize = 20_000;
    pin_to(cpu)?;
    let area = kernel::rseq_area();
    let mut incremented = 0;
    while !over.load(Ordering::Relaxed) {
        incremented += usize::from(area.increment(counter, SPINS));
    }
    Ok(incremented)
}

fn thread_names(context: &mut Context) -> Outcome {
    in_threads(
        context,
        0..6,
        |number: &i32| Ok(set_name(&std::ffi::CString::new(format!("guest \u{e9} {number}"))?)?),
        |number| {
            let found = fs::read_to_string("/proc/thread-self/comm")?;
            ensure_eq!("thread name", found.trim_end(), format!("guest \u{e9} {number}"));
            Ok(())
        },
    )
}

/// The kernel, libc and the program agree about each thread's number.
fn thread_ids(context: &mut Context) -> Outcome {
    let process = kernel::process_id();
    let workers: Vec<_> = (0..6).map(|_| thread::spawn(hold_thread_id)).collect();
    context.ready();
    ensure_eq!("process id", kernel::process_id(), process);
    for worker in workers {
        worker.thread().unpark();
        let (before, after) = worker.join().map_err(|_| "a thread panicked")?;
        ensure_eq!("thread id", after, before);
    }
    Ok(())
}

fn hold_thread_id() -> (i32, i32) {
    let before = kernel::thread_id();
    thread::park();
    (before, kernel::thread_id())
}

/// Policy, priority, nice value and affinity differ from thread to thread.
fn scheduling(context: &mut Context) -> Outcome {
    in_threads(context, [0, 1, 2], set_scheduling, check_scheduling)
}

const POLICIES: [libc::c_int; 3] = [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE];

fn set_scheduling(number: &usize) -> Outcome {
    kernel::set_scheduler(POLICIES[*number], 0)?;
    rustix::process::setpriority_process(Some(rustix::thread::gettid()), nice_of(*number))?;
    let cpus = cpus()?;
    Ok(pin_to(cpus[number % cpus.len()])?)
}

fn check_scheduling(number: &usize) -> Outcome {
    ensure_eq!("policy", kernel::scheduler()?.0, usize::try_from(POLICIES[*number])?);
    let nice = rustix::process::getpriority_process(Some(rustix::thread::gettid()))?;
    ensure_eq!("nice value", nice, nice_of(*number));
    let cpus = cpus()?;
    ensure_eq!("CPUs allowed", cpus_of(rustix::thread::gettid())?, [cpus[number % cpus.len()]]);
    Ok(())
}

fn nice_of(number: usize) -> i32 {
    [3, 5, 7][number]
}

/// Threads that are born, compute and end, all the time.
fn thread_churn(context: &mut Context) -> Outcome {
    let over = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let over = Arc::clone(&over);
            thread::spawn(move || churn_until(&over))
        })
        .collect();
    context.ready();
    over.store(true, Ordering::Relaxed);
    let mut born = 0;
    for worker in workers {
        born += worker.join().map_err(|_| "a worker panicked")??;
    }
    ensure!(born > 0, "no thread was ever born");
    Ok(())
}

fn churn_until(over: &AtomicBool) -> Result<usize, String> {
    let mut born = 0;
    while !over.load(Ordering::Relaxed) {
        let children: Vec<_> = (0..4).map(|seed| thread::spawn(move || sum_to(1000 + seed))).collect();
        for (seed, child) in (0..).zip(children) {
            let sum = child.join().map_err(|_| "a child panicked")?;
            let last = 1000 + seed;
            if sum != last * (last + 1) / 2 {
                return Err(format!("a short-lived thread summed up to {sum}"));
            }
            born += 1;
        }
    }
    Ok(born)
}

fn sum_to(last: u64) -> u64 {
    (1..=last).fold(0, |sum, number| std::hint::black_box(sum + number))
}

/// Spins and notes every gap between two looks at the clock: what the pauses are, seen from inside. Prints, after
/// the go, `gap START_WALL_NS LENGTH_NS` for each one above the threshold (first argument, in microseconds).
fn spin(context: &mut Context) -> Outcome {
    const GAPS_MAX: usize = 1 << 16;
    let threshold = Duration::from_micros(context.number(0, 50));
    let over = Arc::new(AtomicBool::new(false));
    let spinning = Arc::new(AtomicBool::new(false));
    let spinner = {
        let (over, spinning) = (Arc::clone(&over), Arc::clone(&spinning));
        thread::spawn(move || gaps_until(&over, &spinning, threshold, GAPS_MAX))
    };
    while !spinning.load(Ordering::Relaxed) {
        thread::yield_now();
    }
    context.ready();
    over.store(true, Ordering::Relaxed);
    for (start, length) in spinner.join().map_err(|_| "the spinner panicked")? {
        let start = start.duration_since(SystemTime::UNIX_EPOCH)?;
        say(&format!("gap {} {}", start.as_nanos(), length.as_nanos()));
    }
    Ok(())
}

fn gaps_until(
    over: &AtomicBool,
    spinning: &AtomicBool,
    threshold: Duration,
    count_max: usize,
) -> Vec<(SystemTime, Duration)> {
    let mut gaps = Vec::with_capacity(count_max);
    let mut last = Instant::now();
    spinning.store(true, Ordering::Relaxed);
    loop {
        // Before the look at the clock, so that a pause just before the end counts.
        let ends = over.load(Ordering::Relaxed);
        let now = Instant::now();
        let length = now - last;
        if length > threshold && gaps.len() < count_max {
            gaps.push((SystemTime::now() - length, length));
        }
        last = now;
        if ends {
            return gaps;
        }
    }
}
