//! Real programs are captured two hundred times while they run, and notice nothing: each guest checks itself
//! to the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use checkpoint::process::{CellNumbers, ProcessCache, SaveError, save};
use image::process::Process;
use testkit::guest::Guest;
use testkit::wait::wait_until;
use tracee::{TraceError, Tree};

const LIMIT: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(20);
const CAPTURES: u32 = 200;
/// Between two captures the guest gets some work done.
const INTERVAL: Duration = Duration::from_millis(2);

/// Captures `pid` again and again, on this thread, until it has ended; returns the last capture.
fn capture_until_the_end(pid: i32, captures: &AtomicU32, stop: &AtomicBool) -> Option<Process> {
    let mut tree = Tree::seize(pid).expect("seize");
    let (mut numbers, mut cache) = (CellNumbers::new(), ProcessCache::new());
    let mut last = None;
    loop {
        tree.pump().expect("pump");
        if tree.threads(pid) == 0 {
            return last;
        }
        if !stop.load(Ordering::Relaxed) {
            match capture(&mut tree, pid, &mut numbers, &mut cache) {
                Ok(process) => last = Some(process),
                Err(SaveError::Trace(TraceError::Ended(_))) => (),
                Err(why) => panic!("capture {}: {why}", captures.load(Ordering::Relaxed)),
            }
            captures.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(INTERVAL);
    }
}

fn capture(
    tree: &mut Tree,
    pid: i32,
    numbers: &mut CellNumbers,
    cache: &mut ProcessCache,
) -> Result<Process, SaveError> {
    let mut frozen = tree.freeze(PATIENCE)?;
    Ok(save(&mut frozen, pid, numbers, cache)?.0)
}

/// Runs a guest under capture to its end, which must be good; returns its last capture.
fn outlive(name: &str, arguments: &[&str]) -> Option<Process> {
    let mut guest = Guest::start(name, arguments);
    let pid = guest.pid() as i32;
    let (captures, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let tracer = {
        let (captures, stop) = (Arc::clone(&captures), Arc::clone(&stop));
        thread::spawn(move || capture_until_the_end(pid, &captures, &stop))
    };
    wait_until("two hundred captures", LIMIT, || {
        captures.load(Ordering::Relaxed) >= CAPTURES || tracer.is_finished()
    });
    let lines = guest.verdict(LIMIT);
    assert_eq!(lines.last().map(String::as_str), Some("pass"), "{name} said {lines:?}");
    tracer.join().expect("the tracer")
}

macro_rules! outlive {
    ($($test:ident: $guest:literal $(, $argument:literal)*;)*) => {$(
        #[test]
        fn $test() {
            testkit::needs!(CAP_SYS_PTRACE, "root");
            outlive($guest, &[$($argument),*]);
        }
    )*};
}

outlive! {
    no_nanosleep_ends_early_late_or_with_an_error: "waits", "300", "2000", "nanosleep";
    no_clock_nanosleep_ends_early_late_or_with_an_error: "waits", "300", "2000", "clock_nanosleep";
    no_poll_ends_early_late_or_with_an_error: "waits", "300", "2000", "poll";
    no_select_ends_early_late_or_with_an_error: "waits", "300", "2000", "select";
    no_epoll_wait_ends_early_late_or_with_an_error: "waits", "300", "2000", "epoll_wait";
    no_futex_ends_early_late_or_with_an_error: "waits", "300", "2000", "futex";
    no_futex_bitset_ends_early_late_or_with_an_error: "waits", "300", "2000", "futex_bitset";
    no_sigtimedwait_ends_early_late_or_with_an_error: "waits", "300", "2000", "sigtimedwait";
    no_recv_ends_early_late_or_with_an_error: "waits", "300", "2000", "recv";
    no_eventfd_poll_ends_early_late_or_with_an_error: "waits", "300", "2000", "eventfd_poll";
    no_recv_of_all_ends_early_late_or_with_an_error: "waits", "300", "2000", "recv_all";
    no_send_ends_early_late_or_with_another_error: "waits", "300", "2000", "send";
    a_blocked_read_of_all_goes_on: "blocked-reads";
    a_blocked_write_goes_on: "blocked-writes";
    a_filtered_write_goes_on: "blocked-filtered";
    streams_move_whole: "blocked-streams", "tcp";
    a_blocked_accept_goes_on: "blocked-accept";
    a_blocked_futex_goes_on: "blocked-futex";
    masks_and_actions_stay: "signal-actions";
    alternate_stacks_stay: "alternate-stacks";
    pending_signals_stay: "pending-signals";
    no_signal_of_a_storm_is_lost: "signal-storm";
    thread_local_storage_stays: "thread-local";
    a_robust_mutex_is_still_robust: "robust-mutex";
    threads_are_still_joined: "join";
    restartable_sequences_stay_registered: "rseq";
    restartable_sequences_stay_atomic: "rseq-critical-section";
    threads_come_and_go: "thread-churn";
    credentials_stay: "credentials";
    capabilities_stay: "capabilities";
    a_sandboxed_program_survives_our_calls: "seccomp";
    limits_stay: "limits";
    directory_and_umask_stay: "directory-and-umask";
    settings_stay: "process-settings";
    interval_timers_run_on: "interval-timers";
    posix_timers_run_on: "posix-timers";
    registers_stay: "registers";
    rounding_and_exceptions_of_floats_stay: "float-control";
}

#[test]
fn a_running_programs_state_is_read_whole() {
    testkit::needs!(CAP_SYS_PTRACE, "root");
    let process = outlive("thread-names", &[]).expect("captured");
    assert!(process.threads.len() > 1);
    let leader = &process.threads[0];
    assert_eq!(leader.tid, process.pid);
    assert!(process.threads.iter().all(|thread| thread.rseq.is_some() && thread.robust_list.head != 0));
    assert!(process.threads[1..].iter().all(|thread| thread.clear_child_tid != 0));
    assert!(process.threads.iter().any(|thread| thread.attributes.name != leader.attributes.name));
    assert!(!process.attributes.go);
}
