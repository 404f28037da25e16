//! Drills of apps with state directories: memory and files of the second copy agree, and the first copy stays as it is.

use std::fs;
use std::net::SocketAddr;

use serde_json::Value;
use testkit::needs;
use testkit::servers::own_address;
use testkit::wait::{wait_for, wait_until};

use crate::hosts::{Hosts, rounds};
use crate::world::{SOON, checksync, python};
use crate::writers::{ask, writer};

/// A command that is well if the writer finds its files to be as it remembers them, and writes on.
fn agrees_in_there(address: SocketAddr) -> String {
    let (host, port) = (address.ip(), address.port());
    let script = format!(
        "import socket
def ask():
    s = socket.create_connection((\"{host}\", {port})); s.sendall(b\"check\")
    count, verdict = s.makefile().readline().strip().split(\" \", 1)
    assert verdict == \"ok\", verdict
    return int(count)
first = ask()
while ask() < first + 20: pass"
    );
    format!("{} -c '{script}'", python())
}

fn trees_of_drills(hosts: &Hosts) -> Vec<String> {
    let there = fs::read_dir(&hosts.room).unwrap();
    let names = there.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("checksync-sealed-")).collect()
}

fn drilled(script: &str, mode: &str) {
    let address = own_address();
    let mut hosts = Hosts::protecting(&[], |path| writer(script, path, mode, address));
    wait_for("the writer", SOON, || ask(address));
    hosts.wait_until_protected();
    for round in 0..rounds() {
        let mut drill = checksync(hosts.world.dir.path());
        drill.args(["drill", "-o", "json", "--health", &agrees_in_there(address)]);
        let drilled = drill.output().unwrap();
        let complaint = String::from_utf8_lossy(&drilled.stderr);
        let record: Value =
            serde_json::from_slice(&drilled.stdout).unwrap_or_else(|why| panic!("{why}: {complaint}"));
        assert_eq!(record["outcome"], "passed", "{mode}, round {round}: {record}");
        wait_until("the end of its files", SOON, || trees_of_drills(&hosts).is_empty());
    }
    hosts.fail_over();
    let (verdict, _) = wait_for("an answer after the takeover", SOON, || ask(address));
    assert_eq!(verdict, "ok", "{mode}, after the drills");
    hosts.world.end();
}

#[test]
fn a_drill_of_sqlite_has_its_files_beside_those_that_a_takeover_uses() {
    needs!("root", "pagemap-scan", CAP_BPF);
    drilled("sqlite.py", "wal");
}

#[test]
fn a_drill_has_what_is_written_through_a_mapping() {
    needs!("root", "pagemap-scan", CAP_BPF);
    drilled("mapped.py", "kept");
}

#[test]
fn a_drill_has_what_is_written_through_short_mappings() {
    needs!("root", "pagemap-scan", CAP_BPF);
    drilled("mapped.py", "anew");
}
