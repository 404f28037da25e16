//! A process is stopped, made to do things for us, and given back as if nothing had been.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tracee::{Call, Ending, TraceError, Tree, TreeEvent};

const PATIENCE: Duration = Duration::from_secs(5);

struct Guest(Child);

impl Guest {
    fn start(script: &str) -> Self {
        let child =
            Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().expect("sh starts");
        Self(child)
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
    let guest = Guest::start("exec sleep 60");
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

#[test]
fn an_interrupted_sleep_is_not_noticed() {
    let mut guest = Guest::start("sleep 0.4; echo slept $?");
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
