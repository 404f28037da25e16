//! Many of everything, much at once, and what an app does only for a while: the app runs on through all of it,
//! and its copy misses nothing.

mod common;

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use engine::{Command, Event};
use tempfile::TempDir;
use testkit::guest::GoFile;

use common::{Output, PATIENCE, Pair, peak_bytes};

fn main() {
    common::main(&[
        ("a_thousand_threads", || survives("many-threads", |threads| threads >= 1000)),
        ("ten_thousand_descriptors", || survives("many-descriptors", |threads| threads >= 1)),
        ("twenty_thousand_mappings", || survives("many-mappings", |threads| threads >= 1)),
        ("a_slow_link_merges_epochs", a_slow_link_merges_epochs),
        ("a_pseudoterminal_is_refused_while_it_is_open", || {
            refused_for_a_while("held = os.openpty()", "[os.close(fd) for fd in held]", "fd ");
        }),
        ("an_io_uring_is_refused_while_it_is_open", || {
            refused_for_a_while("held = call(425, 4, bytes(120))", "os.close(held)", "io_uring");
        }),
        ("a_userfaultfd_is_refused_while_it_is_open", || {
            refused_for_a_while("held = call(323, 1)", "os.close(held)", "userfaultfd");
        }),
        ("a_child_is_refused_while_it_lives", || {
            refused_for_a_while(
                "held = subprocess.Popen(['sleep', '0.3'])",
                "held.wait()",
                "which still runs",
            );
        }),
        ("a_program_that_is_replaced_is_synced_anew", a_program_that_is_replaced_is_synced_anew),
        ("an_app_without_rights_keeps_to_them", an_app_without_rights_keeps_to_them),
    ]);
}

fn survives(name: &str, is_enough: fn(usize) -> bool) {
    const PAUSE_MAX: Duration = Duration::from_secs(1);
    let go_file = GoFile::new();
    let mut pair = Pair::of_guest(name, &go_file, &[]);
    let full = pair.full_sync();
    let mut pauses: Vec<Duration> = (0..20).map(|_| pair.epoch().pause).collect();
    pauses.sort_unstable();
    let (standby, restored) = pair.take_over();
    let median = pauses[pauses.len() / 2];
    println!(
        "{name}: {} threads, full sync's pause {:?}, epochs' pauses p50 {median:?} max {:?}, restored in {:?}",
        full.threads,
        full.pause,
        pauses[pauses.len() - 1],
        restored.total
    );
    go_file.go();
    assert_eq!(standby.output.wait_for_any(&["pass", "fail"], PATIENCE), "pass", "{name}");
    assert!(is_enough(full.threads), "{name}: only {} threads were there", full.threads);
    assert!(median < PAUSE_MAX, "{name}: the app stood still for {median:?}");
}

/// A Python program that does what it is told, line by line.
struct Told {
    dir: TempDir,
    said: Cell<u32>,
}

const SCRIPT: &str = r#"#!/usr/bin/env python3
import ctypes, os, struct, subprocess, sys, time

libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

kept = {}
count = int(sys.argv[1]) if len(sys.argv) > 1 else 0
print(f"up {count}", flush=True)
while True:
    count += 1
    path = f"{os.path.dirname(os.path.abspath(__file__))}/say.{count}"
    while not os.path.exists(path):
        time.sleep(0.002)
    try:
        exec(open(path).read())
        print(f"done {count}", flush=True)
    except Exception as why:
        print(f"failed {count}: {why}", flush=True)
"#;

impl Told {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir.path(), everybody.clone()).expect("our own directory");
        let told = Self { dir, said: Cell::new(0) };
        fs::write(told.program(), SCRIPT).expect("room for a script");
        fs::set_permissions(told.program(), everybody).expect("our own script");
        told
    }

    fn program(&self) -> std::path::PathBuf {
        self.dir.path().join("told")
    }

    fn start(&self) -> Pair {
        let pair = Pair::start(self.program().to_str().unwrap(), &[]);
        pair.primary.output.wait_for("up 0", PATIENCE);
        pair
    }

    /// The number of what is said now.
    fn say(&self, what: &str) -> u32 {
        let number = self.said.get() + 1;
        self.said.set(number);
        let (draft, place) = (self.dir.path().join("draft"), self.dir.path().join(format!("say.{number}")));
        fs::write(&draft, what).and_then(|()| fs::rename(draft, place)).expect("room for a line");
        number
    }

    /// Has the program do something, and waits for it; the reason if that fails.
    fn try_tell(&self, output: &Output, what: &str) -> Result<(), String> {
        let number = self.say(what);
        let (done, failed) = (format!("done {number}"), format!("failed {number}"));
        let answer = output.wait_for_any(&[&done, &failed], PATIENCE);
        if answer == done { Ok(()) } else { Err(answer) }
    }

    fn tell(&self, output: &Output, what: &str) {
        self.try_tell(output, what).unwrap_or_else(|why| panic!("{what}: {why}"));
    }
}

/// An app that does something unsupported is told so by name, runs on, and is protected again afterwards.
fn refused_for_a_while(begin: &str, end: &str, named: &str) {
    let told = Told::new();
    let mut pair = told.start();
    let output = pair.primary.output.clone();
    told.tell(&output, "kept['before'] = list(range(1000))");
    pair.full_sync();
    pair.epoch();
    if let Err(why) = told.try_tell(&output, begin) {
        return println!("SKIPPED: this host does not let the app do it: {why}");
    }
    let refusal = pair.try_epoch().expect_err("it can't be captured, but was");
    assert!(refusal.contains(named), "{refusal:?} does not name {named:?}");
    told.tell(&output, "kept['during'] = bytearray(b'd' * (8 << 20))");
    // It may have ended by itself, as a child does; if it has not, it is refused again.
    let _again = pair.try_epoch();
    told.tell(&output, end);
    told.tell(&output, "kept['after'] = bytearray(b'a' * (8 << 20))");
    let deadline = Instant::now() + PATIENCE;
    while let Err(why) = pair.try_epoch() {
        assert!(Instant::now() < deadline, "it is still refused: {why}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
    pair.epoch();
    let (standby, _) = pair.take_over();
    told.tell(
        &standby.output,
        "assert kept['before'] == list(range(1000))\n\
         assert kept['during'] == b'd' * (8 << 20)\n\
         assert kept['after'] == b'a' * (8 << 20)",
    );
}

/// Epochs that nobody takes are merged into the next one: what is kept for them stays what the app has.
fn a_slow_link_merges_epochs() {
    const ROUNDS: u32 = 12;
    const SETTLED: u32 = 4;
    const GROWTH_BYTES_MAX: u64 = 100 << 20;
    let told = Told::new();
    let mut pair = told.start();
    let output = pair.primary.output.clone();
    told.tell(&output, "kept['much'] = bytearray(200 << 20)");
    pair.full_sync();
    let mut settled = 0;
    for round in 1..=ROUNDS {
        told.tell(&output, &format!("for at in range(0, 200 << 20, 4096): kept['much'][at] = {round}"));
        drop(pair.capture_aside(false));
        pair.primary.engine.send(Command::ReturnToLedger);
        if round == SETTLED {
            settled = peak_bytes();
        }
    }
    // The kernel's counters of memory are apart by some pages from one reading to the next, downwards too.
    let grown = peak_bytes().saturating_sub(settled);
    println!(
        "a slow link: peak {} MiB, of which {} MiB after round {SETTLED}",
        peak_bytes() >> 20,
        grown >> 20
    );
    assert!(grown < GROWTH_BYTES_MAX, "lost epochs made us grow by {} MiB", grown >> 20);
    // Nothing is written any more: what comes is what the lost epochs had carried.
    let report = pair.epoch();
    assert!(report.pages >= 200 << 8, "only {} pages came of those that were lost", report.pages);
    let (standby, _) = pair.take_over();
    let check = format!("assert all(kept['much'][at] == {ROUNDS} for at in range(0, 200 << 20, 4096))");
    told.tell(&standby.output, &check);
}

fn a_program_that_is_replaced_is_synced_anew() {
    let told = Told::new();
    let mut pair = told.start();
    let output = pair.primary.output.clone();
    told.tell(&output, "kept['old'] = 1");
    pair.full_sync();
    pair.epoch();
    told.say("os.execv(sys.executable, [sys.executable, os.path.abspath(__file__), str(count)])");
    pair.primary.until("another program", |event| matches!(event, Event::Executed).then_some(()));
    output.wait_for(&format!("up {}", told.said.get()), PATIENCE);
    told.tell(&output, "kept['new'] = 2");
    pair.full_sync();
    told.tell(&output, "kept['newer'] = 3");
    pair.epoch();
    let (standby, _) = pair.take_over();
    told.tell(&standby.output, "assert kept == {'new': 2, 'newer': 3}, kept");
}

/// Another user, no capability, and a filter: on the other side too, even though the copy was made by root.
fn an_app_without_rights_keeps_to_them() {
    const DROP: &str = r"
os.setgroups([4242])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
# Everything but sethostname, which answers with 77.
rules = struct.pack('=HBBIHBBIHBBIHBBI',
    0x20, 0, 0, 0, 0x15, 0, 1, 170, 0x06, 0, 0, 0x50000 | 77, 0x06, 0, 0, 0x7fff0000)
kept['rules'] = ctypes.create_string_buffer(rules)
program = ctypes.create_string_buffer(struct.pack('=HxxxxxxQ', 4, ctypes.addressof(kept['rules'])))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
";
    const CHECK: &str = r"
status = open('/proc/self/status').read()
fields = dict(line.split(':\t', 1) for line in status.splitlines() if ':\t' in line)
assert os.getresuid() == os.getresgid() == (65534, 65534, 65534) and os.getgroups() == [4242]
assert int(fields['CapPrm'], 16) == int(fields['CapEff'], 16) == 0, fields
assert fields['Seccomp'].strip() == '2' and fields['NoNewPrivs'].strip() == '1', fields
try:
    call(170, b'name', 4)
    raise AssertionError('the filter is gone')
except OSError as why:
    assert why.errno == 77, why
";
    let told = Told::new();
    let mut pair = told.start();
    let output = pair.primary.output.clone();
    told.tell(&output, DROP);
    told.tell(&output, CHECK);
    pair.full_sync();
    told.tell(&output, "kept['after'] = 1");
    pair.epoch();
    let (standby, _) = pair.take_over();
    told.tell(&standby.output, CHECK);
    told.tell(&standby.output, "assert kept['after'] == 1");
}
