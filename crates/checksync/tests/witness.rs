//! The real `checksync witness`, asked as managers ask it.

#[path = "../../arbiter/tests/contract/mod.rs"]
mod contract;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use arbiter::{Arbiter, ArbiterError, ArbiterSpec, Member, Register, Swap};
use contract::soon;
use testkit::process::Running;
use wire::TlsFiles;

const SOON: Duration = Duration::from_secs(30);

fn checksync(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_checksync"));
    command.env("CHECKSYNC_RUN_DIR", dir.join("run"));
    command
}

fn pki(dir: &Path, name: &str) {
    let made =
        checksync(dir).args(["pki", "init"]).arg(dir.join(name)).args(["a", "b", "w"]).output().unwrap();
    assert!(made.status.success());
}

/// A witness with its registers below `dir`, and where it listens.
fn witness(dir: &Path, listen: &str) -> (Running, String) {
    let mut command = checksync(dir);
    command.args(["witness", "--listen", listen, "--host", "w", "--pki"]).arg(dir.join("pki"));
    command.arg("--state").arg(dir.join("registers"));
    let mut running = Running::start(command);
    let line = running.line(SOON).expect("a witness says where it listens");
    (running, line.rsplit(' ').next().unwrap().to_owned())
}

fn open(dir: &Path, pki: &str, host: &str, address: &str) -> Box<dyn Arbiter> {
    let tls = TlsFiles::load(&dir.join(pki), Some(host)).unwrap();
    format!("witness:{address}").parse::<ArbiterSpec>().unwrap().open(&tls).unwrap()
}

#[test]
fn a_witness_keeps_registers_through_its_own_death() {
    let dir = tempfile::tempdir().unwrap();
    pki(dir.path(), "pki");
    let (mut running, address) = witness(dir.path(), "127.0.0.1:0");
    let mut arbiter = open(dir.path(), "pki", "a", &address);
    contract::swaps_win_only_against_the_expected_value(&mut *arbiter, "app");
    contract::a_repeated_swap_has_won(&mut *arbiter, "again");
    contract::each_term_has_one_winner(|| open(dir.path(), "pki", "a", &address), "race", 30);
    let kept = arbiter.read("app", soon()).unwrap().unwrap();

    running.signal(rustix::process::Signal::KILL);
    running.wait(SOON);
    let down = arbiter.read("app", Instant::now() + Duration::from_millis(500)).unwrap_err();
    assert!(
        matches!(&down, ArbiterError::Unreachable { register, .. } if register.contains(&address)),
        "{down}"
    );
    let (_running, _) = witness(dir.path(), &address);
    let taken = kept.taken_by(Member::new("a", 9));
    assert_eq!(arbiter.swap("app", Some(&kept), taken.clone(), soon()).unwrap(), Swap::Won);
    assert_eq!(arbiter.read("app", soon()).unwrap(), Some(taken));
}

#[test]
fn a_host_makes_nobody_but_itself_the_owner() {
    let dir = tempfile::tempdir().unwrap();
    pki(dir.path(), "pki");
    let (_running, address) = witness(dir.path(), "127.0.0.1:0");
    let first = Register::first(Member::new("a", 1));
    let mut other = open(dir.path(), "pki", "b", &address);
    let refused = other.swap("app", None, first.clone(), soon()).unwrap_err().to_string();
    assert!(refused.contains("would make a#1 the owner"), "{refused}");
    assert_eq!(other.read("app", soon()).unwrap(), None);
    let mut own = open(dir.path(), "pki", "a", &address);
    assert_eq!(own.swap("app", None, first, soon()).unwrap(), Swap::Won);
}

#[test]
fn a_stranger_learns_nothing() {
    let dir = tempfile::tempdir().unwrap();
    pki(dir.path(), "pki");
    pki(dir.path(), "foreign");
    let (_running, address) = witness(dir.path(), "127.0.0.1:0");
    let error = open(dir.path(), "foreign", "a", &address).read("app", soon()).unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
}

#[test]
fn a_second_witness_of_a_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    pki(dir.path(), "pki");
    let (_running, _) = witness(dir.path(), "127.0.0.1:0");
    let mut command = checksync(dir.path());
    command.args(["witness", "--listen", "127.0.0.1:0", "--host", "w", "--pki"]).arg(dir.path().join("pki"));
    let second = command.arg("--state").arg(dir.path().join("registers")).output().unwrap();
    let why = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && why.contains("registers"), "{why}");
}

/// What `check` says of the register.
fn checked(dir: &Path, spec: &str) -> serde_json::Value {
    let mut command = checksync(dir);
    command.args(["check", "-o", "json", "--arbiter", spec, "--host", "a", "--pki"]).arg(dir.join("pki"));
    let report: serde_json::Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["area"] == "register").cloned().expect("a line about the register")
}

#[test]
fn check_tries_the_register_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    pki(dir.path(), "pki");
    let (running, address) = witness(dir.path(), "127.0.0.1:0");
    let spec = format!("witness:{address}");
    for _ in 0..2 {
        let finding = checked(dir.path(), &spec);
        assert!(finding["level"] != "red" && finding["found"].as_str().unwrap().contains("ms"), "{finding}");
    }
    drop(running);
    let finding = checked(dir.path(), &spec);
    assert!(finding["level"] == "red" && finding["fix"].as_str().unwrap().contains("witness"), "{finding}");
    let finding = checked(dir.path(), &format!("file:{}", dir.path().display()));
    assert!(finding["level"] == "yellow" && finding["fix"].as_str().unwrap().contains("etcd"), "{finding}");
}
