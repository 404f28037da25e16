//! What is wrong with a configuration is said by its file, its line and its key, with what would be right.

use std::fs;
use std::path::Path;

use super::{code, complained, run, text};

const USAGE: Option<i32> = Some(2);

/// Both managers refuse this configuration, and say all of this.
fn refused(file: &Path, said: &[&str]) {
    for verb in [&["run", "--config", text(file), "--", "true"][..], &["standby", "--config", text(file)]] {
        let refused = run(verb);
        let why = complained(&refused);
        assert_eq!(code(&refused), USAGE, "{verb:?}: {why}");
        assert!(why.contains(text(file)), "the file is not named: {why}");
        for said in said {
            assert!(why.contains(said), "{said:?} is not in: {why}");
        }
    }
}

#[test]
fn mistakes_in_a_file_are_named_by_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("checksync.toml");
    let cases: [(&str, &[&str]); 8] = [
        (
            "app = 'kv'\nintervall = '5ms'\n",
            &["line 2", "unknown field `intervall`", "`interval`", "`heartbeat`"],
        ),
        ("missed = 'five'\n", &["line 1", "missed = ", "string \"five\"", "expected u32"]),
        ("\n\nstandby = 7001\n", &["line 3", "standby = ", "integer `7001`", "expected a string"]),
        ("interval = '5'\n", &["line 1", "interval = ", "\"5\""]),
        ("on_crash = 'explode'\n", &["line 1", "`explode`", "`failover`, `restart`, `stop`"]),
        ("app = 'kv'\narbiter = 'zookeeper'\n", &["line 2", "arbiter = ", "zookeeper", "file:"]),
        ("listen = 'here'\n", &["line 1", "listen = "]),
        ("app kv\n", &["line 1"]),
    ];
    for (content, said) in cases {
        fs::write(&file, content).unwrap();
        refused(&file, said);
    }
}

#[test]
fn file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    refused(
        &dir.path().join("absent.toml"),
        &["cannot read", "No such file", "--config", "CHECKSYNC_CONFIG"],
    );
    refused(dir.path(), &["cannot read", "Is a directory"]);
    let binary = dir.path().join("binary");
    fs::write(&binary, b"app = '\xff'").unwrap();
    refused(&binary, &["cannot read", "UTF-8"]);
}

#[test]
fn what_is_missing_is_asked_for_by_its_flag() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("checksync.toml");
    let whole = ["app = 'kv'\n", "pki = '/nowhere/at/all'\n", "standby = 'b:7000'\n"];
    for (part, flag) in [(0, "--app NAME"), (1, "--pki DIR")] {
        let rest: String =
            whole.iter().enumerate().filter(|(n, _)| *n != part).map(|(_, line)| *line).collect();
        fs::write(&file, rest).unwrap();
        let refused = run(&["run", "--config", text(&file), "--", "true"]);
        assert_eq!(code(&refused), USAGE);
        assert!(complained(&refused).contains(flag), "{}", complained(&refused));
    }
    fs::write(&file, whole.concat()).unwrap();
    let refused = run(&["run", "--config", text(&file), "--", "true"]);
    assert!(complained(&refused).contains("cannot read /nowhere/at/all"), "{}", complained(&refused));
    let refused = run(&["standby", "--config", text(&file)]);
    assert_eq!(code(&refused), USAGE);
    assert!(complained(&refused).contains("--listen HOST:PORT"), "{}", complained(&refused));
}

#[test]
fn state_directories_are_refused_where_they_can_not_be() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let (outer, inner, absent) = (text(dir.path()), text(&inner), dir.path().join("absent"));
    let store = format!("file:{}", dir.path().join("store").display());
    for (options, named) in [
        (&["--state-dir", inner, "--replicate", "structures"][..], "leave --state-dir out"),
        (&["--state-dir", inner, "--state-dir", outer], "one is in the other"),
        (
            &["--state-dir", text(&absent), "--store", &store],
            "is not there; make it, or leave --state-dir out",
        ),
        (&["--state-dir", "/"], "name a directory below /"),
    ] {
        let fixed = ["run", "--app", "kv", "--pki", "/nowhere", "--standby", "b:7000"];
        let refused = run(&[&fixed, options, &["--", "true"]].concat());
        assert!(
            matches!(code(&refused), Some(1 | 2)) && complained(&refused).contains(named),
            "{}",
            complained(&refused)
        );
    }
}

#[test]
fn what_a_store_can_not_commit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    assert_eq!(code(&run(&["pki", "init", text(&pki), "a"])), Some(0));
    let store = format!("file:{}", dir.path().join("store").display());
    let register = format!("file:{}", dir.path().join("register").display());
    let whole = ["--store", &store, "--commit-on", "store", "--arbiter", &register];
    for (options, named) in [
        (&["--commit-on", "store", "--arbiter", &register, "--", "true"][..], "name it with --store"),
        (&[&whole[..4], &["--", "true"]].concat(), "without an arbiter nobody could say"),
        (
            &[&whole[..4], &["--fencing", "none", "--", "true"]].concat(),
            "without an arbiter nobody could say",
        ),
        (&[&whole[..], &["--standby", "b:7000", "--", "true"]].concat(), "leave --standby out"),
        (&[&whole[..], &["--replicate", "structures", "--", "true"]].concat(), "structures are none"),
        (
            &[&whole[..2], &["--standby", "b:7000", "--from-store"]].concat(),
            "what --commit-on store has kept",
        ),
        (&[&whole[..], &["--from-store"]].concat(), "holds no checkpoint of app \"kv\""),
        (&[&whole[..], &["--from-store", "--", "true"]].concat(), "cannot be used with"),
    ] {
        let fixed = ["run", "--app", "kv", "--pki", text(&pki)];
        let refused = run(&[&fixed, options].concat());
        let said = complained(&refused);
        assert!(matches!(code(&refused), Some(1 | 2)) && said.contains(named), "{options:?}: {said}");
    }
}
