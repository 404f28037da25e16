//! The verbs that need no pair, as people and scripts use them: what they say, and with which exit code.

#[path = "cli/configuration.rs"]
mod configuration;
mod one_shot;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::needs;
use testkit::process::Running;

const SOON: Duration = Duration::from_secs(30);

fn checksync() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_checksync"));
    command.stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    checksync().args(arguments).output().expect("checksync starts")
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn complained(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    let value: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(value["schema"], 1);
    value
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

#[test]
fn certificates_are_made_once_and_then_for_more_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    let made = run(&["pki", "init", text(&pki), "a", "b"]);
    assert_eq!(code(&made), Some(0));
    assert!(said(&made).contains("b: copy ca.crt, b.crt and b.key to it"), "{}", said(&made));
    let more = json(&run(&["pki", "init", text(&pki), "c", "-o", "json"]));
    assert_eq!(more["new_authority"], false);
    assert_eq!(more["files"].as_array().unwrap().len(), 2);
    let again = run(&["pki", "init", text(&pki), "a"]);
    assert_eq!(code(&again), Some(1));
    assert!(
        complained(&again).contains("a.crt exists already and is not overwritten"),
        "{}",
        complained(&again)
    );
}

#[test]
fn host_that_cannot_be_named_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    let refused = run(&["pki", "init", text(dir.path()), "a b"]);
    assert_eq!(code(&refused), Some(2));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it left something");
}

/// A key of another release's, and settings that would be without effect: nobody is to believe that they hold.
#[test]
fn settings_that_would_do_nothing_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config");
    std::fs::write(&file, "app = \"kv\"\nfrom_the_future = 7\n").unwrap();
    let config: &[&str] = &["--config", text(&file)];
    for (given, named) in [
        (config, "from_the_future"),
        (config, "is no configuration for release"),
        (&["--app", "kv", "--on-standby-loss", "stop"], "--on-standby-loss"),
        (&["--app", "kv", "--consistency", "timeline", "--gateway", "10.0.0.1"], "gateway 10.0.0.1"),
    ] {
        let refused = run(&[&["run"], given, &["--", "true"]].concat());
        assert!(!refused.status.success());
        assert!(complained(&refused).contains(named), "{}", complained(&refused));
    }
}

#[test]
fn check_tries_every_right_of_the_host() {
    needs!(CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_NET_ADMIN, "pagemap-scan", "root");
    let checked = run(&["check", "-o", "json"]);
    let report = json(&checked);
    assert_eq!(code(&checked), Some(0), "{report:#}");
    let what: Vec<_> = report["findings"].as_array().unwrap().iter().map(|line| &line["what"]).collect();
    for wanted in ["write tracking", "tracing", "chosen numbers", "namespaces", "permit"] {
        assert!(what.iter().any(|&what| what == wanted), "{wanted} is not in {what:?}");
    }
}

#[test]
fn program_that_cannot_be_protected_is_red_and_code_6() {
    let lost = run(&["check", "--", "/nowhere/at/all"]);
    assert_eq!(code(&lost), Some(6));
    assert!(said(&lost).contains("red     /nowhere/at/all"), "{}", said(&lost));
    assert!(said(&lost).contains("fix: name a program that exists"), "{}", said(&lost));
}

#[test]
fn check_names_the_standby_that_answers() {
    needs!(CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_NET_ADMIN, "pagemap-scan", "root");
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    assert_eq!(code(&run(&["pki", "init", text(&pki), "a", "b"])), Some(0));
    let mut command = checksync();
    command.env("CHECKSYNC_RUN_DIR", dir.path().join("run"));
    command
        .args(["standby", "--listen", "127.0.0.1:0", "--fencing", "none", "--host", "b", "--pki"])
        .arg(&pki);
    let mut standby = Running::start(command);
    let line = standby.line(SOON).expect("a standby says where it listens");
    let address = line.rsplit(' ').next().unwrap();
    let peer = ["check", "--standby", address, "--pki", text(&pki), "--host", "a"];
    let reached = run(&peer);
    assert_eq!(code(&reached), Some(0));
    assert!(said(&reached).contains("b answers as a"), "{}", said(&reached));
    drop(standby);
    let lost = run(&peer);
    assert_eq!(code(&lost), Some(7));
    assert!(said(&lost).contains("fix: start `checksync standby` there"), "{}", said(&lost));
}
