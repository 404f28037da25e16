//! Writers that remember what they wrote, and compare their files with it when they are asked.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use testkit::needs;
use testkit::servers::own_address;
use testkit::wait::wait_for;

use crate::hosts::{Hosts, rounds};
use crate::world::{SOON, python};

pub fn writer(script: &str, path: &Path, mode: &str, address: SocketAddr) -> Vec<String> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/files").join(script);
    [python(), script.display().to_string(), path.join("db").display().to_string(), mode.to_owned()]
        .into_iter()
        .chain([address.ip().to_string(), address.port().to_string()])
        .collect()
}

/// What it finds when it compares its files with its memory, and how many records it has.
pub fn ask(address: SocketAddr) -> Option<(String, u64)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(SOON)).ok()?;
    stream.write_all(b"check\n").ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    let (count, verdict) = line.trim().split_once(' ')?;
    Some((verdict.to_owned(), count.parse().ok()?))
}

fn agrees(script: &str, mode: &str) {
    for round in 0..rounds() {
        let address = own_address();
        let mut hosts = Hosts::protecting(&[], |path| writer(script, path, mode, address));
        wait_for("the writer", SOON, || ask(address));
        hosts.wait_until_protected();
        hosts.fail_over();
        let (verdict, first) = wait_for("an answer after the takeover", SOON, || ask(address));
        assert_eq!(verdict, "ok", "{mode}, round {round}");
        let (verdict, later) =
            wait_for("more records", SOON, || ask(address).filter(|(_, count)| *count > first + 20));
        assert_eq!(verdict, "ok", "{mode}, round {round}, with {later} records");
        assert!(hosts.standby_tree.join("db").exists(), "its files are at their path");
        hosts.world.end();
    }
}

#[test]
fn sqlite_with_a_write_ahead_log_agrees_with_its_files() {
    needs!("root", "pagemap-scan", CAP_BPF);
    agrees("sqlite.py", "wal");
}

#[test]
fn sqlite_with_a_rollback_journal_agrees_with_its_files() {
    needs!("root", "pagemap-scan", CAP_BPF);
    agrees("sqlite.py", "delete");
}

#[test]
fn what_is_written_through_a_mapping_agrees_with_memory() {
    needs!("root", "pagemap-scan", CAP_BPF);
    agrees("mapped.py", "kept");
}

#[test]
fn what_is_written_through_short_mappings_agrees_with_memory() {
    needs!("root", "pagemap-scan", CAP_BPF);
    agrees("mapped.py", "anew");
}
