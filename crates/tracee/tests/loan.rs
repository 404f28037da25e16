//! A process is stopped, made to do things for us, and given back as if nothing had been.

use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use testkit::wait::Deadline;
use tracee::{Call, Ending, TraceError, Tree, TreeEvent};

const PATIENCE: Duration = Duration::from_secs(5);

struct Guest(Child);

impl Guest {
    /// It is this program, and no more its starter, once this has returned.
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().expect("it starts"))
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn remote_calls_are_made_by_the_tracee() {
    let guest = Guest::start("sleep", &["60"]);
    let mut tree = Tree::seize(guest.pid()).expect("seize");
    for _ in 0..50 {
        tree.pump().expect("pump");
        let mut frozen = tree.freeze(PATIENCE).expect("freeze");
        let mut remote = frozen.remote(guest.pid()).expect("remote");
        let calls = [Call::new(libc::SYS_getpid, []), Call::new(libc::SYS_close, [999])];
        assert_eq!(remote.calls(&calls).expect("calls"), [i64::from(guest.pid()), -9]);
        let name = remote.put(0, b"/proc/self/status\0");
        let fd = remote.call("open", libc::SYS_open, [name, 0]).expect("open");
        remote.call("close", libc::SYS_close, [fd]).expect("close");
    }
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", guest.pid())).unwrap();
    assert!(maps.contains("linux-vdso.so.1"), "our memory is mapped while we trace:\n{maps}");
    tree.release().expect("release");
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", guest.pid())).unwrap();
    assert!(!maps.contains("linux-vdso.so.1"), "nothing of ours is left:\n{maps}");
}

/// The loans of a process that job control has stopped end in its group stop, which the next SIGCONT ends.
#[test]
fn a_process_that_was_stopped_stands_through_freezes_and_goes_on_when_it_is_continued() {
    let mut guest = Guest::start("sh", &["-c", "while read line; do echo $line; done"]);
    let pid = Pid::from_raw(guest.pid()).unwrap();
    let (mut words, mut said) = (guest.0.stdin.take().unwrap(), guest.0.stdout.take().unwrap());
    let mut tree = Tree::seize(guest.pid()).expect("seize");
    let make_a_call = |tree: &mut Tree| {
        let mut frozen = tree.freeze(PATIENCE).expect("freeze");
        let mut remote = frozen.remote(guest.pid()).expect("remote");
        assert_eq!(remote.call("ask", libc::SYS_getpid, []).expect("a call"), guest.pid() as u64);
    };
    for _ in 0..3 {
        kill_process(pid, Signal::STOP).unwrap();
        (0..3).for_each(|_| make_a_call(&mut tree));
        words.write_all(b"word\n").unwrap();
        assert!(!speaks(&mut tree, &said, Duration::from_millis(100)), "it runs although it was stopped");
        kill_process(pid, Signal::CONT).unwrap();
        assert!(speaks(&mut tree, &said, PATIENCE), "it was continued, and does not run");
        let mut word = [0; 5];
        said.read_exact(&mut word).unwrap();
        make_a_call(&mut tree);
    }
}

/// Whether it says something in this time, while its tracer answers.
fn speaks(tree: &mut Tree, said: &ChildStdout, limit: Duration) -> bool {
    let readable = || {
        tree.pump().expect("pump");
        let mut ready = [PollFd::new(said, PollFlags::IN)];
        (poll(&mut ready, Some(&Timespec::default())) == Ok(1)).then_some(())
    };
    Deadline::after(limit).poll(readable).is_some()
}

#[test]
fn an_interrupted_sleep_is_not_noticed() {
    let mut guest = Guest::start("sh", &["-c", "sleep 0.4; echo slept $?"]);
    let mut tree = Tree::seize(guest.pid()).expect("seize");
    let began = std::time::Instant::now();
    let ending = loop {
        assert!(began.elapsed() < Duration::from_secs(20), "the guest never ended");
        let ended = tree.pump().expect("pump").into_iter().find_map(|event| match event {
            TreeEvent::Ended { pid, ending } if pid == guest.pid() => Some(ending),
            TreeEvent::Ended { .. } | TreeEvent::Forked { .. } | TreeEvent::Executed { .. } => None,
        });
        if let Some(ending) = ended {
            break ending;
        }
        // The shell makes its child by vfork: it can't stop until the child, which can, has its program.
        match tree.freeze(Duration::from_millis(100)) {
            Ok(mut frozen) => {
                for pid in frozen.pids() {
                    let threads = frozen.threads(pid);
                    frozen
                        .in_threads(
                            pid,
                            &threads,
                            |_, _, batch| batch.call(libc::SYS_gettid, []),
                            |tid, results, _| {
                                assert_eq!(results, [i64::from(tid)]);
                            },
                        )
                        .expect("calls in every thread");
                }
            }
            Err(TraceError::Ended(_) | TraceError::Forked(_) | TraceError::NotStopping { .. }) => (),
            Err(why) => panic!("{why}"),
        }
    };
    assert_eq!(ending, Ending::Exited(0));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut guest.0.stdout.take().unwrap(), &mut said).unwrap();
    assert_eq!(said, "slept 0\n");
}
