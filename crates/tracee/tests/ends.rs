//! How a process ends, seen by its tracer.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::wait::Deadline;
use tracee::{Ending, Tree, TreeEvent};

const PATIENCE: Duration = Duration::from_secs(20);

/// The end of a process with a large memory comes long after its death: a signal that kills it is told of before.
#[test]
fn a_program_that_a_signal_kills_is_dying_before_it_has_ended() {
    testkit::needs!("debian:python3");
    let script = "import threading, time\n\
                  for _ in range(3): threading.Thread(target=time.sleep, args=(100,), daemon=True).start()\n\
                  print('ready', flush=True)\ntime.sleep(100)";
    let mut command = Command::new("python3");
    let mut guest = command.args(["-c", script]).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut said = BufReader::new(guest.stdout.take().unwrap());
    said.read_line(&mut String::new()).unwrap();
    let pid = guest.id() as i32;
    let mut tree = Tree::seize(pid).expect("seize");
    sys::task::kill(pid, libc::SIGTERM).unwrap();
    let mut seen = Vec::new();
    let ended = Deadline::after(PATIENCE).poll(|| {
        seen.extend(tree.pump().expect("pump"));
        seen.iter().any(|event| matches!(event, TreeEvent::Ended { .. })).then_some(())
    });
    // Its end was the tracer's to take in, unless it never came.
    drop((guest.kill(), guest.wait()));
    assert_eq!(ended, Some(()), "{seen:?}");
    let dying = TreeEvent::Dying { pid, signal: libc::SIGTERM };
    assert_eq!(seen, [dying, TreeEvent::Ended { pid, ending: Ending::Killed(libc::SIGTERM) }]);
}
