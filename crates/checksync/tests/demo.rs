//! The main job, as the demo does it: a host dies, and nothing is lost but the window that was announced.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use testkit::needs;
use testkit::process::Running;

const LIMIT: Duration = Duration::from_secs(60);

/// A demo whose temporary files go where we can look.
fn demo(arguments: &[&str]) -> (TempDir, Command) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_checksync"));
    command.arg("demo").args(arguments).env("TMPDIR", dir.path()).stdin(Stdio::null());
    (dir, command)
}

fn nothing_is_left(dir: &TempDir) {
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?} is left");
}

/// The demo itself fails if a write is missing that was answered before the freeze, or any value is wrong.
#[test]
fn host_dies_and_the_client_loses_nothing_but_the_announced_window() {
    needs!(CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_NET_ADMIN, "pagemap-scan", "root");
    let (dir, mut command) = demo(&["-o", "json"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let mut names: Vec<_> = figures.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    let contract = [
        "acknowledged_writes",
        "client_gap_ms",
        "epochs",
        "failover_ms",
        "lost_window_ms",
        "lost_writes",
        "pause_us",
        "schema",
    ];
    assert_eq!(names, contract);
    let number = |name: &str| figures.pointer(name).and_then(Value::as_f64).expect(name);
    assert!(number("/epochs") >= 2.0 && number("/acknowledged_writes") > 10.0, "{figures}");
    assert!(number("/lost_writes") < number("/acknowledged_writes"), "{figures}");
    assert!(number("/lost_writes") == 0.0 || number("/lost_window_ms") > 0.0, "{figures}");
    assert!(number("/pause_us/p50") <= number("/pause_us/max"), "{figures}");
    let parts = number("/failover_ms/detect") + number("/failover_ms/restore");
    assert!((number("/failover_ms/total") - parts).abs() < 0.1, "{figures}");
    nothing_is_left(&dir);
}

#[test]
fn interrupted_demo_leaves_nothing() {
    needs!(CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_NET_ADMIN, "pagemap-scan", "root");
    let (dir, command) = demo(&[]);
    let mut running = Running::start(command);
    loop {
        let line = running.line(LIMIT).expect("the demo says when the server is protected");
        if line.contains("protected after") {
            break;
        }
    }
    running.signal(rustix::process::Signal::INT);
    assert_eq!(running.wait(LIMIT).code(), Some(1));
    nothing_is_left(&dir);
}
