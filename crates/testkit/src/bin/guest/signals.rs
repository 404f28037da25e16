//! Signals: masks, actions, alternate stacks, and those that wait with what they carry.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Context, Guest, Outcome};
use crate::kernel::{self, KernelAction, SIGUSR2, SignalInfo, signal_bit};
use crate::mapping::Mapping;
use crate::{ensure, ensure_eq};

pub const GUESTS: &[Guest] = &[
    Guest::new("signal-masks", signal_masks),
    Guest::new("signal-actions", signal_actions),
    Guest::new("alternate-stacks", alternate_stacks),
    Guest::new("pending-signals", pending_signals),
    Guest::new("signal-storm", signal_storm),
    Guest::new("births-and-signals", births_and_signals),
];

/// Each thread blocks other signals. SIGKILL and SIGSTOP can't be blocked; 32 and 33 are libc's own.
fn signal_masks(context: &mut Context) -> Outcome {
    let meet = Arc::new(Barrier::new(5));
    let workers: Vec<_> = (0..4)
        .map(|number| {
            let meet = Arc::clone(&meet);
            thread::spawn(move || {
                let mask =
                    signal_bit(kernel::SIGUSR1) | signal_bit(SIGUSR2 + number) | signal_bit(40 + number);
                kernel::set_signal_mask(mask);
                meet.wait();
                meet.wait();
                (kernel::signal_mask(), mask)
            })
        })
        .collect();
    meet.wait();
    context.ready();
    meet.wait();
    for worker in workers {
        let (found, set_up) = worker.join().map_err(|_| "a thread panicked")?;
        ensure_eq!("signal mask", found, set_up);
    }
    Ok(())
}

/// Handlers, flags and masks of all 64 signals, those that this guest did not touch included.
fn signal_actions(context: &mut Context) -> Outcome {
    let flags = [0, libc::SA_RESTART, libc::SA_NODEFER | libc::SA_ONSTACK, libc::SA_RESETHAND];
    for (signal, flags) in (kernel::first_realtime_signal() + 1..).zip(flags) {
        kernel::count_handled(signal, flags, signal_bit(SIGUSR2) | signal_bit(signal + 5))?;
    }
    kernel::ignore(libc::SIGHUP)?;
    let set_up = all_actions()?;
    context.ready();
    let found = all_actions()?;
    for (signal, (found, set_up)) in (1..).zip(found.iter().zip(&set_up)) {
        ensure_eq!(format!("action of signal {signal}"), found, set_up);
    }
    let counted = kernel::first_realtime_signal() + 1;
    kernel::queue_to_process(counted, 0)?;
    ensure_eq!("handler runs", kernel::times_handled(counted), 1);
    Ok(())
}

fn all_actions() -> std::io::Result<Vec<KernelAction>> {
    (1..=64).map(kernel::action_of).collect()
}

/// Each thread has an alternate stack of its own, and a handler runs on it.
fn alternate_stacks(context: &mut Context) -> Outcome {
    kernel::count_handled(SIGUSR2, libc::SA_ONSTACK, 0)?;
    let meet = Arc::new(Barrier::new(4));
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let meet = Arc::clone(&meet);
            thread::spawn(move || hold_alternate_stack(&meet))
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

fn hold_alternate_stack(meet: &Barrier) -> Outcome {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let stack = Mapping::anonymous(64 << 10)?;
    let set_up = stack.range();
    kernel::set_alternate_stack(set_up.clone())?;
    meet.wait();
    meet.wait();
    ensure_eq!("alternate stack", kernel::alternate_stack()?, set_up);
    let _turn = ONE_AT_A_TIME.lock();
    kernel::signal_thread(kernel::thread_id(), SIGUSR2)?;
    let ran_on = kernel::last_handler_stack();
    ensure!(set_up.contains(&ran_on), "the handler ran at {ran_on:#x}, outside of {set_up:x?}");
    // Rust's own alternate stack went away with ours; the thread ends without it.
    std::mem::forget(stack);
    Ok(())
}

/// Signals that wait, for the process and for one thread, keep their order, their code and their value.
fn pending_signals(context: &mut Context) -> Outcome {
    let (to_process, to_thread) = (kernel::first_realtime_signal() + 3, kernel::first_realtime_signal() + 4);
    kernel::block_signals(&[to_process, to_thread, SIGUSR2]);
    let meet = Arc::new(Barrier::new(2));
    let worker = {
        let meet = Arc::clone(&meet);
        thread::spawn(move || {
            let queued =
                [7, 8].map(|value| kernel::queue_to_thread(kernel::thread_id(), to_thread, value).is_ok());
            meet.wait();
            meet.wait();
            (queued, take_pending(to_thread))
        })
    };
    for value in [42, 43, 44] {
        kernel::queue_to_process(to_process, value)?;
    }
    kernel::queue_to_process(SIGUSR2, 1)?;
    meet.wait();
    context.ready();
    let expected = |signal, values: &[usize]| -> Vec<_> {
        values.iter().map(|&value| SignalInfo { signal, code: libc::SI_QUEUE, value }).collect()
    };
    ensure_eq!("signals of the process", take_pending(to_process), expected(to_process, &[42, 43, 44]));
    ensure_eq!("plain signal", take_pending(SIGUSR2), expected(SIGUSR2, &[1]));
    ensure_eq!("the thread's signals in the main thread", take_pending(to_thread), []);
    meet.wait();
    let (queued, found) = worker.join().map_err(|_| "the thread panicked")?;
    ensure_eq!("queued to the thread", queued, [true, true]);
    ensure_eq!("signals of the thread", found, expected(to_thread, &[7, 8]));
    Ok(())
}

fn take_pending(signal: i32) -> Vec<SignalInfo> {
    std::iter::from_fn(|| kernel::wait_for_signal(signal, Some(Duration::ZERO)).ok()).collect()
}

/// One thread sends signals to another all the time; none may get lost, for the sender waits for each.
fn signal_storm(context: &mut Context) -> Outcome {
    kernel::count_handled(SIGUSR2, libc::SA_RESTART, 0)?;
    let (stop, stopped) = mpsc::channel::<()>();
    let target = thread::spawn(move || stopped.recv().is_err());
    let target_id = first_other_thread()?;
    let (over, is_over) = mpsc::channel::<()>();
    let sender = thread::spawn(move || storm_until(&is_over, target_id));
    context.ready();
    drop(over);
    let outcome = sender.join().map_err(|_| "the sender panicked")?;
    drop(stop);
    ensure!(target.join().unwrap_or(false), "the target ended early");
    outcome
}

fn storm_until(is_over: &mpsc::Receiver<()>, target: i32) -> Outcome {
    let mut sent = 0;
    while is_over.try_recv() == Err(mpsc::TryRecvError::Empty) {
        kernel::signal_thread(target, SIGUSR2)?;
        sent += 1;
        let deadline = Instant::now() + Duration::from_secs(10);
        while kernel::times_handled(SIGUSR2) < sent {
            ensure!(Instant::now() < deadline, "signal {sent} never arrived");
            thread::yield_now();
        }
    }
    Ok(())
}

fn first_other_thread() -> std::io::Result<i32> {
    let own = kernel::thread_id();
    let mut threads = std::fs::read_dir("/proc/self/task")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    threads.find(|&thread| thread != own).ok_or_else(|| std::io::Error::other("there is no other thread"))
}

/// Threads are born all the time while signals come; none of them may get lost. Argument: how many are sent.
fn births_and_signals(context: &mut Context) -> Outcome {
    const PATIENCE: Duration = Duration::from_secs(20);
    let signal = kernel::first_realtime_signal();
    kernel::count_handled(signal, 0, 0)?;
    let over = Arc::new(AtomicBool::new(false));
    let parents: Vec<_> = (0..2)
        .map(|_| {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let child = thread::spawn(thread::yield_now);
                    drop(child.join());
                }
            })
        })
        .collect();
    context.ready();
    let sent = u32::try_from(context.number(0, 0))?;
    let deadline = Instant::now() + PATIENCE;
    while kernel::times_handled(signal) < sent && Instant::now() < deadline {
        thread::yield_now();
    }
    over.store(true, Ordering::Relaxed);
    for parent in parents {
        parent.join().map_err(|_| "a parent of threads panicked")?;
    }
    ensure_eq!("signals handled", kernel::times_handled(signal), sent);
    Ok(())
}
