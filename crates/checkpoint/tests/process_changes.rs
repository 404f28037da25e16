//! What a capture keeps from the one before is noticed to change: a program is captured, changes one thing, and is
//! captured again with the same memory of it. Each case fails when its word is left out of the roll's signs.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use checkpoint::process::{CellNumbers, ProcessCache, save};
use image::process::Process;
use testkit::needs;
use tracee::Tree;

const PATIENCE: Duration = Duration::from_secs(20);

/// Obeys lines from its input.
const OBEY: &str = "
import ctypes, os, resource, signal, sys, threading
prctl = ctypes.CDLL(None, use_errno=True).prctl
syscall = ctypes.CDLL(None, use_errno=True).syscall
print('ready', flush=True)
for line in sys.stdin:
    exec(line)
    print('done', flush=True)
";

/// What the program is told, and what of it that changes.
type Case = (&'static str, fn(&Process) -> String);

const CASES: &[Case] = &[
    ("signal.signal(signal.SIGUSR1, signal.SIG_IGN)", |p| format!("{:?}", p.actions)),
    ("signal.signal(signal.SIGRTMAX, signal.SIG_IGN)", |p| format!("{:?}", p.actions)),
    ("resource.setrlimit(resource.RLIMIT_CORE, (0, 4096))", |p| format!("{:?}", p.limits)),
    ("os.umask(0o71)", |p| format!("{:?}", p.filesystem)),
    ("os.chdir('/')", |p| format!("{:?}", p.filesystem)),
    ("os.setpgid(0, 0)", |p| format!("{}", p.group)),
    ("prctl(36, 1)", |p| format!("{}", p.attributes.child_subreaper)),
    ("prctl(4, 0)", |p| format!("{}", p.attributes.dumpable)),
    ("prctl(41, 1, 0, 0, 0)", |p| format!("{}", p.attributes.transparent_huge_pages_off)),
    ("syscall(135, 0x0040000)", |p| format!("{:#x}", p.attributes.personality)),
    ("prctl(15, b'another')", |p| format!("{:?}", p.threads[0].attributes.name)),
    ("prctl(1, 10)", |p| format!("{}", p.threads[0].attributes.parent_death_signal)),
    ("prctl(29, 77000)", |p| format!("{}", p.threads[0].attributes.timer_slack_ns)),
    ("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})", |p| {
        format!("{:?}", p.threads[0].attributes.affinity)
    }),
    ("os.nice(3)", |p| format!("{}", p.threads[0].attributes.nice)),
    ("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))", |p| {
        format!("{}", p.threads[0].attributes.policy)
    }),
    ("syscall(251, 1, 0, 2 << 13 | 5)", |p| format!("{}", p.threads[0].attributes.io_priority)),
    ("signal.setitimer(signal.ITIMER_REAL, 1000, 500)", |p| format!("{}", p.interval_timers[0].interval_us)),
    ("signal.setitimer(signal.ITIMER_REAL, 0)", |p| format!("{}", p.interval_timers[0].interval_us)),
    ("signal.setitimer(signal.ITIMER_PROF, 1000, 500)", |p| format!("{}", p.interval_timers[2].interval_us)),
    ("signal.setitimer(signal.ITIMER_PROF, 0)", |p| format!("{}", p.interval_timers[2].interval_us)),
    ("os.setgroups([7, 8])", |p| format!("{:?}", p.threads[0].credentials)),
    ("prctl(28, 0x10)", |p| format!("{:?}", p.threads[0].credentials)),
    ("prctl(38, 1, 0, 0, 0)", |p| format!("{:?}", p.threads[0].credentials)),
    // More than the roll has room for: from here on every thread is asked.
    ("os.setgroups(range(100, 180))", |p| format!("{:?}", p.threads[0].credentials)),
    ("os.setgroups([9])", |p| format!("{:?}", p.threads[0].credentials)),
    ("os.setresgid(5, 6, 7)", |p| format!("{:?}", p.threads[0].credentials)),
    ("os.setresuid(0, 0, 7)", |p| format!("{:?}", p.threads[0].credentials)),
];

#[test]
fn each_change_is_noticed() {
    needs!("root", "debian:python3");
    let mut child = Command::new("python3")
        .args(["-u", "-c", OBEY])
        .current_dir("/tmp")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut await_line = |wanted: &str| {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), wanted);
    };
    await_line("ready");
    let pid = child.id() as i32;
    let mut tree = Tree::seize(pid).unwrap();
    let (mut numbers, mut cache) = (CellNumbers::new(), ProcessCache::new());
    let mut capture = || {
        let mut frozen = tree.freeze(PATIENCE).unwrap();
        save(&mut frozen, pid, &mut numbers, &mut cache).unwrap().0
    };
    for (line, what) in CASES {
        let before = what(&capture());
        assert_eq!(what(&capture()), before, "{line}: it changes without a change");
        writeln!(input, "{line}").unwrap();
        await_line("done");
        let after = what(&capture());
        assert_ne!(after, before, "{line}: not noticed");
        assert_eq!(what(&capture()), after, "{line}: it changes without a change");
    }
    drop(input);
    child.kill().unwrap();
    child.wait().unwrap();
}
