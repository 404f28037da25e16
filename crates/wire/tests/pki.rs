//! The files of a cluster: what is made, what is refused, and what the refusals say.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{init, made_pki};
use tempfile::TempDir;
use wire::pki::PkiError;
use wire::{TlsError, TlsFiles};

fn listing(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn each_host_gets_a_pair_and_keys_are_for_their_owner_only() {
    let dir = made_pki(&["a.example", "10.0.0.7", "fd00::7"]);
    let files = listing(dir.path());
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "10.0.0.7.crt",
            "10.0.0.7.key",
            "a.example.crt",
            "a.example.key",
            "ca.crt",
            "ca.key",
            "fd00::7.crt",
            "fd00::7.key"
        ]
    );
    for name in names.iter().filter(|name| name.ends_with(".key")) {
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    for host in ["a.example", "10.0.0.7", "fd00::7"] {
        assert_eq!(TlsFiles::load(dir.path(), Some(host)).unwrap().host(), host);
    }
}

#[test]
fn nothing_is_overwritten_and_a_refusal_leaves_the_directory_as_it_was() {
    let dir = made_pki(&["a", "b"]);
    let before = listing(dir.path());
    let why = init(dir.path(), &["c", "b"]).unwrap_err();
    assert!(matches!(why, PkiError::Exists { .. }), "{why:?}");
    let text = why.to_string();
    assert!(text.contains("b.crt") && text.contains("use another directory"), "{text}");
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn more_hosts_join_an_authority_that_is_there() {
    let dir = made_pki(&["a"]);
    let before = listing(dir.path());
    let made = init(dir.path(), &["b"]).unwrap();
    assert!(!made.new_authority);
    assert_eq!(made.files, [dir.path().join("b.crt"), dir.path().join("b.key")]);
    assert!(before.iter().all(|(name, bytes)| listing(dir.path())[name] == *bytes));
    TlsFiles::load(dir.path(), Some("b")).expect("the old ca.crt vouches for the new host");
}

#[test]
fn half_an_authority_is_refused() {
    let dir = made_pki(&["a"]);
    fs::remove_file(dir.path().join("ca.key")).unwrap();
    assert!(matches!(init(dir.path(), &["b"]), Err(PkiError::HalfAuthority { .. })));
}

#[test]
fn names_that_would_leave_the_directory_or_take_the_authoritys_place_are_refused() {
    let dir = TempDir::new().unwrap();
    for host in ["", "../x", "a/b", "ca", "checksync.peer", "a b", ".x", "-x", "ä", "a\n"] {
        let why = init(dir.path(), &["good", host]).unwrap_err();
        assert!(matches!(why, PkiError::Host { .. }), "{host:?}: {why:?}");
        assert!(listing(dir.path()).is_empty(), "{host:?} left something behind");
    }
    assert!(matches!(init(dir.path(), &[]), Err(PkiError::NoHosts)));
}

#[test]
fn the_only_pair_is_taken_and_of_several_the_choice_is_named() {
    let one = made_pki(&["a"]);
    assert_eq!(TlsFiles::load(one.path(), None).unwrap().host(), "a");
    let two = made_pki(&["b", "a"]);
    let why = TlsFiles::load(two.path(), None).unwrap_err();
    assert!(matches!(&why, TlsError::WhichHost { hosts, .. } if hosts == &["a", "b"]), "{why:?}");
    assert!(why.to_string().ends_with("say which one this is: a, b"), "{why}");
    let none = TempDir::new().unwrap();
    let why = TlsFiles::load(none.path(), None).unwrap_err();
    assert!(matches!(why, TlsError::NoHost { .. }), "{why:?}");
    assert!(why.to_string().contains("checksync pki init"), "{why}");
}

#[test]
fn file_that_is_missing_or_spoilt_is_named() {
    for name in ["ca.crt", "a.crt", "a.key"] {
        let dir = made_pki(&["a"]);
        let path = dir.path().join(name);
        fs::write(&path, "-----BEGIN NONSENSE-----").unwrap();
        let why = TlsFiles::load(dir.path(), Some("a")).unwrap_err();
        assert!(matches!(&why, TlsError::Bad { path: named, .. } if *named == path), "{why:?}");
        assert!(why.to_string().contains("copy it again"), "{why}");
        fs::remove_file(&path).unwrap();
        let why = TlsFiles::load(dir.path(), Some("a")).unwrap_err();
        assert!(matches!(&why, TlsError::Read { path: named, .. } if *named == path), "{why:?}");
        assert!(why.to_string().contains("checksync pki init"), "{why}");
    }
}

#[test]
fn files_of_two_authorities_in_one_directory_are_refused() {
    let (dir, other) = (made_pki(&["a"]), made_pki(&["a"]));
    fs::copy(other.path().join("ca.crt"), dir.path().join("ca.crt")).unwrap();
    let why = TlsFiles::load(dir.path(), Some("a")).unwrap_err();
    assert!(why.to_string().contains("ca.crt beside it does not vouch for it"), "{why}");
}

#[test]
fn key_of_another_host_is_refused() {
    let dir = made_pki(&["a", "b"]);
    fs::copy(dir.path().join("b.key"), dir.path().join("a.key")).unwrap();
    let why = TlsFiles::load(dir.path(), Some("a")).unwrap_err();
    assert!(matches!(&why, TlsError::Bad { path, .. } if path.ends_with("a.key")), "{why:?}");
}
