//! With a standby.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use testkit::needs;
use testkit::wait::wait_for;

use crate::hosts::{Hosts, Place, digest};
use crate::world::checksync;

macro_rules! needs_all {
    () => {
        needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    };
}

/// The app finds its executable and its library, as it had them.
fn is_whole(hosts: &Hosts, before: &str) {
    assert_eq!(hosts.ask("exe"), before);
    assert!(hosts.ask("again").starts_with("1."), "the library is opened a second time");
    assert_eq!(hosts.ask("run"), "42", "the executable is run a second time");
}

#[test]
fn goes_on_where_neither_binary_nor_library_is() {
    needs_all!();
    let mut hosts = Hosts::protecting(Place::new(), &[], "");
    assert_eq!((hosts.ask("count"), hosts.ask("count")), ("1".to_owned(), "2".to_owned()));
    let before = hosts.ask("exe");
    assert!(before.starts_with(&format!("{}/bin/kv ", hosts.place.path.display())), "{before}");
    hosts.world.wait_until_protected();
    hosts.fail_over();
    assert_eq!(hosts.ask("count"), "3");
    is_whole(&hosts, &before);
    assert_eq!(hosts.place.tree_of_b(), [], "the host's own tree is what it was");
}

#[test]
fn other_files_at_the_same_paths_stay_the_hosts() {
    needs_all!();
    let place = Place::new();
    fs::create_dir(place.of_b.join("bin")).unwrap();
    fs::create_dir(place.of_b.join("lib")).unwrap();
    fs::copy("/bin/true", place.of_b.join("bin/kv")).unwrap();
    fs::write(place.of_b.join("lib/libkv.so.1.2"), b"no library").unwrap();
    let theirs = place.tree_of_b();
    let mut hosts = Hosts::protecting(place, &[], "");
    let before = hosts.ask("exe");
    hosts.ask("count");
    hosts.world.wait_until_protected();
    hosts.fail_over();
    assert_eq!(hosts.ask("count"), "2");
    is_whole(&hosts, &before);
    assert_eq!(hosts.place.tree_of_b(), theirs);
}

/// It is opened before the standby knows of it, in the middle of the app's life.
#[test]
fn a_plugin_that_is_loaded_later_comes_too() {
    needs_all!();
    let mut hosts = Hosts::protecting(Place::new(), &[], "");
    hosts.world.wait_until_protected();
    let plugin = format!("{}/lib/plugin.so", hosts.place.path.display());
    assert_eq!(hosts.ask(&format!("plugin {plugin}")), "1");
    wait_for("the plugin to be asked for", crate::world::SOON, || {
        hosts.log_of("primary").contains("plugin.so").then_some(())
    });
    hosts.world.wait_until_protected();
    hosts.fail_over();
    assert_eq!(hosts.ask(&format!("plugin {plugin}")), "2");
    assert_eq!(hosts.ask(&format!("file {plugin}")), digest(&hosts.place.of_a.join("lib/plugin.so")));
}

/// A file that is read, the directory that the app is in, and both in places that the host has not got.
#[test]
fn a_file_that_is_open_and_the_apps_directory_are_there() {
    needs_all!();
    let mut hosts = Hosts::in_its_directory(Place::new(), "deep/empty", "deep/data/table");
    hosts.world.wait_until_protected();
    let table = digest(&hosts.place.of_a.join("deep/data/table"));
    assert_eq!(hosts.ask("opened"), table);
    hosts.fail_over();
    assert_eq!(hosts.ask("opened"), table);
    let data = hosts.place.path.join("deep/data");
    assert_eq!(hosts.ask(&format!("file {}/table", data.display())), table);
    let empty = hosts.place.path.join("deep/empty");
    assert_eq!(hosts.ask("where"), empty.display().to_string());
    assert_eq!(hosts.place.tree_of_b(), []);
}

fn kept(hosts: &Hosts) -> Vec<PathBuf> {
    let entries = fs::read_dir(hosts.place.state().join("shipped/files")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// What is there is not asked for again, and a standby's next life makes nothing of what was damaged meanwhile.
#[test]
fn what_came_once_stays_and_what_was_damaged_comes_again() {
    needs_all!();
    let mut hosts = Hosts::keeping(Place::new());
    let before = hosts.ask("exe");
    hosts.world.wait_until_protected();
    assert!(hosts.log_of("primary").contains("asked for"), "{}", hosts.log_of("primary"));
    let asked = hosts.log_of("primary").matches("asked for").count();
    hosts.restart_standby();
    hosts.world.wait_until_protected();
    assert_eq!(hosts.log_of("primary").matches("asked for").count(), asked);
    assert!(kept(&hosts).len() >= 2, "the executable and the library");
    for path in kept(&hosts) {
        let mut content = fs::read(&path).unwrap();
        content[4096] ^= 1;
        fs::write(&path, content).unwrap();
    }
    hosts.restart_standby();
    hosts.world.wait_until_protected();
    assert!(hosts.log_of("primary").matches("asked for").count() > asked);
    hosts.fail_over();
    is_whole(&hosts, &before);
}

/// A table of the same size, and without a build-id: its digest tells.
#[test]
fn another_content_of_the_same_size_is_told_from_the_apps() {
    needs_all!();
    let place = Place::new();
    let table = place.of_a.join("lib/libkv.so.1.2");
    // Without a build-id to go by.
    let mut content = fs::read(&table).unwrap();
    let at = content.windows(4).position(|bytes| bytes == b"GNU\0").unwrap();
    content[at] = b'X';
    fs::write(&table, &content).unwrap();
    fs::create_dir(place.of_b.join("lib")).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::write(place.of_b.join("lib/libkv.so.1.2"), &content).unwrap();
    let theirs = place.tree_of_b();
    let mut hosts = Hosts::protecting(place, &[], "");
    let mapped = format!("file {}/lib/libkv.so.1.2", hosts.place.path.display());
    let before = hosts.ask(&mapped);
    hosts.world.wait_until_protected();
    hosts.fail_over();
    assert_eq!(hosts.ask(&mapped), before);
    assert_eq!(hosts.place.tree_of_b(), theirs);
}

/// As a package's upgrade does it: the app goes on with what is nowhere else any more.
#[test]
fn what_was_replaced_since_is_shipped_as_the_app_has_it() {
    needs_all!();
    let mut hosts = Hosts::protecting(Place::new(), &[], "");
    let before = hosts.ask("exe");
    hosts.world.wait_until_protected();
    for (below, with) in [("bin/kv", "/bin/true"), ("lib/libkv.so.1.2", "/bin/false")] {
        let new = hosts.place.of_a.join("new");
        fs::copy(with, &new).unwrap();
        fs::rename(&new, hosts.place.of_a.join(below)).unwrap();
    }
    hosts.restart_standby();
    hosts.world.wait_until_protected();
    hosts.fail_over();
    is_whole(&hosts, &before);
}

#[test]
fn a_drill_goes_well_where_nothing_of_the_app_is() {
    needs_all!();
    let hosts = Hosts::protecting(Place::new(), &[], "");
    hosts.ask("count");
    hosts.world.wait_until_protected();
    let SocketAddr::V4(address) = hosts.address else { panic!("an address of version 4") };
    let (ip, port) = (address.ip(), address.port());
    let ask = format!("exec 3<>/dev/tcp/{ip}/{port}; echo again >&3; read -t 5 said <&3; [[ $said = 1.* ]]");
    let mut drilled = checksync(hosts.world.dir.path());
    drilled.args(["drill", "--app", "kv", "--health", &format!("bash -c '{ask}'")]);
    let done = drilled.output().unwrap();
    assert!(
        done.status.success(),
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
}
