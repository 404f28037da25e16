//! With a store alone.

use std::process::Command;

use testkit::needs;
use testkit::process::Running;

use crate::hosts::{Hosts, Place};
use crate::world::{Primary, checksync};

macro_rules! needs_all {
    () => {
        needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    };
}

fn on_b(hosts: &Hosts, command: &Command) -> Primary {
    Primary(Running::start(hosts.place.on(&hosts.place.of_b, command)))
}

fn is_whole(hosts: &Hosts, before: &str) {
    assert_eq!(hosts.ask("exe"), before);
    assert!(hosts.ask("again").starts_with("1."), "the library is opened a second time");
    assert_eq!(hosts.ask("run"), "42", "the executable is run a second time");
    assert_eq!(hosts.place.tree_of_b(), []);
}

#[test]
fn a_checkpoint_is_restored_where_neither_binary_nor_library_is() {
    needs_all!();
    let place = Place::new();
    let spec = format!("file:{}", place.dir.path().join("store").display());
    let options = ["--store", &spec, "--store-interval", "100ms"];
    let mut hosts = Hosts::protecting(place, &options, "deep/data/table");
    let before = hosts.ask("exe");
    hosts.ask("count");
    hosts.world.wait_until_protected();
    let table = hosts.ask("opened");
    hosts.world.wait_until_stored();
    hosts.world.kill_everything(&mut hosts.primary);
    let mut command = checksync(hosts.world.dir.path());
    command.args(["restore", "--store", &spec, "--app", "kv", "--latest"]);
    let _restored = on_b(&hosts, &command);
    assert_eq!(hosts.ask("count"), "2");
    assert_eq!(hosts.ask("opened"), table);
    is_whole(&hosts, &before);
}

#[test]
fn the_app_goes_on_from_the_store_where_neither_binary_nor_library_is() {
    needs_all!();
    let place = Place::new();
    let spec = format!("file:{}", place.dir.path().join("store").display());
    let options = ["--store", &spec, "--store-interval", "200ms", "--commit-on", "store"];
    let mut hosts = Hosts::storing(place, &options);
    let before = hosts.ask("exe");
    hosts.ask("count");
    hosts.world.wait_until_protected();
    hosts.world.wait_until_stored();
    hosts.world.kill_everything(&mut hosts.primary);
    let mut command = checksync(hosts.world.dir.path());
    command.args(["run", "--app", "kv", "--host", "b", "--from-store", "--pki"]);
    command.arg(hosts.world.dir.path().join("pki")).args(&hosts.world.fencing).args(options);
    let _primary = on_b(&hosts, &command);
    assert_eq!(hosts.ask("count"), "2");
    is_whole(&hosts, &before);
}
