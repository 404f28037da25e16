//! Letting go of a process whose threads are born, and which gets signals, at that very moment.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use testkit::guest::Guest;
use tracee::{TraceError, Tree};

const PATIENCE: Duration = Duration::from_secs(30);
const ROUNDS: usize = 100;
const SIGNALS: u32 = 20_000;

#[test]
fn release_loses_no_signal_and_leaves_no_thread_traced() {
    testkit::needs!(CAP_SYS_PTRACE);
    let count = SIGNALS.to_string();
    let mut guest = Guest::start("births-and-signals", &[&count]);
    let pid = guest.pid() as i32;
    let sent_all = Arc::new(AtomicBool::new(false));
    let sender = {
        let sent_all = Arc::clone(&sent_all);
        std::thread::spawn(move || {
            for _ in 0..SIGNALS {
                sys::task::kill(pid, libc::SIGRTMIN()).expect("the guest lives");
                // No faster than they can be queued.
                std::thread::park_timeout(Duration::from_micros(50));
            }
            sent_all.store(true, Ordering::Relaxed);
        })
    };
    as_tracer(|| {
        let mut rounds = 0;
        while rounds < ROUNDS || !sent_all.load(Ordering::Relaxed) {
            let mut tree = Tree::seize(pid).expect("seize");
            tree.pump().expect("pump");
            tree.freeze(PATIENCE).expect("freeze").remote(pid).expect("our memory in there");
            tree.pump().expect("pump");
            tree.release().expect("release");
            assert_eq!(traced(pid), Vec::<String>::new(), "threads that are still traced");
            rounds += 1;
        }
    });
    sender.join().expect("the sender lives");
    assert_eq!(guest.verdict(PATIENCE), ["pass"]);
}

/// Its timeout lies in memory of ours, once it was stopped.
#[test]
fn release_spoils_no_wait() {
    testkit::needs!(CAP_SYS_PTRACE);
    let mut guest = Guest::start("waits", &["100", "2000", "sigtimedwait"]);
    let pid = guest.pid() as i32;
    as_tracer(|| {
        for _ in 0..20 {
            let mut tree = Tree::seize(pid).expect("seize");
            for _ in 0..3 {
                tree.freeze(PATIENCE).expect("freeze").remote(pid).expect("our memory in there");
                tree.pump().expect("pump");
            }
            tree.release().expect("release");
        }
    });
    assert_eq!(guest.verdict(PATIENCE), ["pass"]);
}

/// Nobody is left to be let go of, and that has its own name.
#[test]
fn release_of_what_has_ended_says_so() {
    testkit::needs!(CAP_SYS_PTRACE);
    let guest = Guest::start("waits", &["100", "2000", "sigtimedwait"]);
    let pid = guest.pid() as i32;
    as_tracer(|| {
        let tree = Tree::seize(pid).expect("seize");
        sys::task::kill(pid, libc::SIGKILL).expect("the guest lives");
        assert!(matches!(tree.release(), Err(TraceError::Ended(_))));
    });
}

/// On a thread of its own: with that thread goes its hold on the guest, also when a test fails.
fn as_tracer(work: impl FnOnce() + Send) {
    let outcome = std::thread::scope(|scope| scope.spawn(work).join());
    outcome.expect("the tracer did what it should");
}

/// The threads that have a tracer.
fn traced(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the guest lives");
    let is_traced = |tid: &String| {
        fs::read_to_string(format!("/proc/{pid}/task/{tid}/status"))
            .is_ok_and(|status| !status.contains("\nTracerPid:\t0\n"))
    };
    let tids = tasks.flatten().filter_map(|task| task.file_name().into_string().ok());
    tids.filter(is_traced).collect()
}
