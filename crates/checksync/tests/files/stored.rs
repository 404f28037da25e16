//! Out of a store, when everything else is gone, on a host where the state directory is empty.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;
use testkit::needs;
use testkit::process::{Running, kill};
use testkit::servers::own_address;
use testkit::wait::{wait_for, wait_until};

use crate::hosts::{Hosts, rounds};
use crate::world::{Primary, SOON, checksync, pid, python};
use crate::writers::{ask, writer};

macro_rules! needs_all {
    () => {
        needs!("root", "pagemap-scan", CAP_BPF);
    };
}

/// A folder that all hosts reach.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn spec(&self) -> String {
        format!("file:{}", self.0.path().join("store").display())
    }

    /// How many objects of this kind are there, of all runs.
    fn count(&self, kind: &str) -> usize {
        let runs = fs::read_dir(self.0.path().join("store/kv")).into_iter().flatten().flatten();
        runs.map(|run| fs::read_dir(run.path().join(kind)).map_or(0, Iterator::count)).sum()
    }

    /// `checksync VERB` of the app in it.
    fn ask(&self, hosts: &Hosts, verb: &[&str], more: &[&str]) -> Output {
        let mut command = checksync(hosts.world.dir.path());
        command.args(verb).args(["--store", &self.spec(), "--app", "kv"]).args(more);
        hosts.on_third(&command).output().unwrap()
    }

    fn json(&self, hosts: &Hosts, verb: &[&str], more: &[&str]) -> Value {
        let output = self.ask(hosts, verb, &[more, &["-o", "json"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// All files below a directory, which may be about to go.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let (mut found, mut left) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { left.push(path) } else { found.push(path) }
        }
    }
    found
}

/// What it has in memory is in its files, by itself, and goes on to be. Answers how many records there were at first.
fn assert_agrees(address: SocketAddr) -> u64 {
    let (verdict, first) = wait_for("an answer out of the store", SOON, || ask(address));
    assert_eq!(verdict, "ok");
    let (verdict, _) =
        wait_for("more records", SOON, || ask(address).filter(|(_, count)| *count > first + 20));
    assert_eq!(verdict, "ok");
    first
}

/// By what another program says of the database, which knows nothing of the app's memory.
fn assert_sound(tree: &Path, records: u64) {
    const SCRIPT: &str = "import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
[verdict] = database.execute('PRAGMA integrity_check').fetchone()
[count] = database.execute('SELECT count(*) FROM rows').fetchone()
print(verdict, count)";
    let said = Command::new(python()).args(["-c", SCRIPT]).arg(tree.join("db")).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    let count = text.strip_prefix("ok ").and_then(|count| count.parse::<u64>().ok());
    assert!(count >= Some(records), "{records} records were there: {said:?}");
}

fn restore_and_agree(hosts: &Hosts, folder: &Folder, address: SocketAddr) -> u64 {
    let mut command = checksync(hosts.world.dir.path());
    command.args(["restore", "--store", &folder.spec(), "--app", "kv", "--latest"]);
    let mut restored = Primary(Running::start(hosts.on_third(&command)));
    let records = assert_agrees(address);
    restored.signal(Signal::TERM);
    restored.wait(SOON);
    assert_sound(&hosts.empty_tree, records);
    records
}

/// A database that a pair protects and a store follows.
fn followed(folder: &Folder, mode: &str, script: &str) -> (Hosts, SocketAddr) {
    let address = own_address();
    let options = ["--store", &folder.spec(), "--store-interval", "100ms"];
    let hosts = Hosts::protecting(&options, |path| writer(script, path, mode, address));
    wait_for("the writer", SOON, || ask(address));
    hosts.wait_until_protected();
    (hosts, address)
}

#[test]
fn sqlite_agrees_with_its_files_out_of_a_store() {
    needs_all!();
    for mode in ["wal", "delete"].into_iter().cycle().take(rounds()) {
        let folder = Folder::new();
        let (mut hosts, address) = followed(&folder, mode, "sqlite.py");
        hosts.world.wait_until_stored();
        let (verdict, before) = ask(address).unwrap();
        assert_eq!(verdict, "ok");
        hosts.world.wait_until_stored();
        hosts.world.kill_everything(&mut hosts.primary);
        let records = restore_and_agree(&hosts, &folder, address);
        assert!(records >= before, "{mode}: {records} of {before} records that were stored");
    }
}

/// A file that is written through mappings.
#[test]
fn what_is_written_through_a_mapping_agrees_out_of_a_store() {
    needs_all!();
    for mode in ["kept", "anew"] {
        let folder = Folder::new();
        let (mut hosts, address) = followed(&folder, mode, "mapped.py");
        hosts.world.wait_until_stored();
        hosts.world.kill_everything(&mut hosts.primary);
        let mut command = checksync(hosts.world.dir.path());
        command.args(["restore", "--store", &folder.spec(), "--app", "kv", "--latest"]);
        let mut restored = Primary(Running::start(hosts.on_third(&command)));
        assert_agrees(address);
        restored.signal(Signal::TERM);
        restored.wait(SOON);
    }
}

/// A base says what the files are, and nothing of how they came to be; what is there is shown, checked and compared.
#[test]
fn a_base_has_the_files_of_its_checkpoint() {
    needs_all!();
    let folder = Folder::new();
    let (mut hosts, address) = followed(&folder, "wal", "sqlite.py");
    wait_until("two bases", SOON, || folder.count("bases") >= 2);
    hosts.world.wait_until_stored();
    hosts.world.kill_everything(&mut hosts.primary);
    let verified = folder.json(&hosts, &["checkpoints", "verify"], &[]);
    assert_eq!(verified["whole"], true, "{verified}");
    let shown = folder.json(&hosts, &["inspect"], &[]);
    let directory = &shown["state_directories"][0];
    assert_eq!(directory["path"], hosts.path.display().to_string().as_str(), "{directory}");
    assert!(directory["bytes"].as_u64().unwrap() > 8192, "{directory}");
    let listed = folder.json(&hosts, &["checkpoints", "list"], &[]);
    let name = |one: &Value| format!("{}.{}", one["term"], one["epoch"]);
    let [first, last] =
        [listed["checkpoints"].as_array().unwrap().first(), listed["checkpoints"].as_array().unwrap().last()]
            .map(|one| name(one.unwrap()));
    let changed = folder.json(&hosts, &["checkpoints", "diff"], &[&first, &last]);
    let database = hosts.path.join("db").display().to_string();
    let of_database =
        changed["files"].as_array().unwrap().iter().find(|one| one["path"] == database.as_str());
    assert!(of_database.is_some_and(|one| one["pages_changed"].as_u64() > Some(0)), "{}", changed["files"]);
    let same = folder.json(&hosts, &["checkpoints", "diff"], &[&last, "latest"]);
    assert_eq!(same["same"], true, "{same}");
    restore_and_agree(&hosts, &folder, address);
}

/// Its files are its own: nothing is put at their path outside, and nothing is left when it ends.
#[test]
fn a_sealed_restore_has_its_files_where_nobody_sees_them() {
    needs_all!();
    let folder = Folder::new();
    let (mut hosts, address) = followed(&folder, "wal", "sqlite.py");
    hosts.world.wait_until_stored();
    hosts.world.kill_everything(&mut hosts.primary);
    fs::write(hosts.empty_tree.join("mine"), "untouched").unwrap();
    let (log, room) = (hosts.world.dir.path().join("sealed"), hosts.world.dir.path().join("room"));
    fs::create_dir(&room).unwrap();
    let mut command = checksync(hosts.world.dir.path());
    command.args(["restore", "--store", &folder.spec(), "--app", "kv", "--sealed", "--detach", "-o", "json"]);
    let restored = hosts.on_third(command.arg(&log).env("TMPDIR", &room)).output().unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let restored: Value = serde_json::from_slice(&restored.stdout).unwrap();
    let app = pid(&restored["pid"]).unwrap();
    let (host, port) = (address.ip(), address.port());
    let script = format!(
        "import socket; s = socket.create_connection((\"{host}\", {port})); s.sendall(b\"check\"); \
         print(s.recv(99).decode())"
    );
    wait_until("more records inside", SOON, || {
        let inside = format!("{} -c '{script}'; ls {}", python(), hosts.path.display());
        let said = checksync(hosts.world.dir.path())
            .args(["cell-enter", &app.to_string(), &inside])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(!said.contains("mine"), "the tree is in the place of the host's: {said}");
        said.contains(" ok\n") && said.contains("db-wal")
    });
    assert_eq!(files_below(&hosts.empty_tree), [hosts.empty_tree.join("mine")]);
    kill(app, SOON);
    wait_until("the end of its files", SOON, || files_below(&room).is_empty());
    assert_eq!(files_below(&hosts.empty_tree), [hosts.empty_tree.join("mine")]);
}

/// Who takes over stores the files that he has taken over.
#[test]
fn the_files_are_stored_on_after_a_takeover() {
    needs_all!();
    let folder = Folder::new();
    let (mut hosts, address) = followed(&folder, "wal", "sqlite.py");
    hosts.world.wait_until_stored();
    hosts.primary.kill();
    hosts.world.wait_for_app("standby", "the winner", |app| app["role"] == "primary");
    let (_, taken_over) = wait_for("an answer after the takeover", SOON, || ask(address));
    hosts.world.wait_for_app("standby", "a checkpoint of its own", |app| app["store"]["term"] == 2);
    hosts.world.wait_until_stored();
    hosts.world.kill_everything(&mut hosts.primary);
    let records = restore_and_agree(&hosts, &folder, address);
    assert!(records >= taken_over, "{records} of {taken_over}");
}

/// The store alone keeps it, and the next host, which has not even the directory, goes on: with all that was committed.
#[test]
fn sqlite_goes_on_from_the_store_that_committed_it() {
    needs_all!();
    let folder = Folder::new();
    let address = own_address();
    let spec = folder.spec();
    let kept = ["--store", &spec, "--store-interval", "300ms", "--commit-on", "store"];
    let mut hosts = Hosts::storing(&kept, |path| writer("sqlite.py", path, "wal", address));
    wait_for("the writer", SOON, || ask(address));
    hosts.world.wait_until_protected();
    wait_until("a base", SOON, || folder.count("bases") >= 1);
    let (verdict, before) = ask(address).unwrap();
    assert_eq!(verdict, "ok");
    hosts.world.wait_until_stored();
    hosts.world.kill_everything(&mut hosts.primary);
    let state_dir = hosts.path.display().to_string();
    let from_store = |options: &[&str]| {
        let mut command = checksync(hosts.world.dir.path());
        command.args(["run", "--app", "kv", "--host", "b", "--interval", "10ms", "--from-store", "--pki"]);
        command.arg(hosts.world.dir.path().join("pki")).args(&hosts.world.fencing).args(kept).args(options);
        hosts.on_third(&command)
    };
    // It would not be kept any more.
    let refused = from_store(&[]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains(&format!("give --state-dir {state_dir}")), "{said}");
    let mut heir = Primary(Running::start(from_store(&["--state-dir", &state_dir])));
    let records = assert_agrees(address);
    assert!(records >= before, "{records} of {before}, which were committed");
    let app = hosts.world.wait_for_app("primary", "protected", |app| app["state"] == "protected");
    assert_eq!(app["term"].as_u64(), Some(3), "{app}");
    hosts.world.wait_until_stored();
    heir.signal(Signal::TERM);
    heir.wait(SOON);
    assert_sound(&hosts.empty_tree, records);
}
