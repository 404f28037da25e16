//! One small program per kernel resource: it sets something up, is captured, killed, goes on from its copy, and
//! checks itself.

mod common;

use std::time::Duration;

use testkit::guest::GoFile;

use common::{PATIENCE, Pair};

/// Guests that fail, and why: what is not carried yet. One that passes is taken off the list.
const KNOWN_GAPS: &[(&str, &str)] = &[];

fn main() {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    if wanted.as_deref() == Some("cell-first-process") {
        return common::main(&[]);
    }
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, steps) in testkit::guest::all() {
        // These have a test of their own, which compares all memory after every epoch.
        if name == "churn" || name.starts_with("trap-") {
            continue;
        }
        if wanted.as_ref().is_some_and(|wanted| !name.contains(wanted.as_str())) {
            continue;
        }
        let survived = std::panic::catch_unwind(|| survives(&name, steps));
        let gap = KNOWN_GAPS.iter().find(|(gap, _)| *gap == name);
        match (survived.is_ok(), gap) {
            (true, None) => println!("test {name} ... ok"),
            (false, Some((_, why))) => println!("test {name} ... ok, fails as known: {why}"),
            (false, None) => println!("test {name} ... FAILED"),
            (true, Some(_)) => println!("test {name} ... FAILED: it passes, take it off the known gaps"),
        }
        if survived.is_ok() == gap.is_none() {
            passed += 1;
        } else {
            failed.push(name);
        }
    }
    println!("{passed} passed, {} failed", failed.len());
    if !failed.is_empty() {
        println!("failed: {}", failed.join(" "));
        std::process::exit(1);
    }
}

/// What a guest is told beside its name.
fn arguments(name: &str) -> &'static [&'static str] {
    match name {
        "tcp-established" => &["reset"],
        _ => &[],
    }
}

fn survives(name: &str, steps: u32) {
    let go_file = GoFile::new();
    let directory = go_file.dir().to_str().unwrap().to_owned();
    let mut line: Vec<&str> = arguments(name).to_vec();
    if matches!(name, "regular-files" | "deleted-file" | "shared-offsets" | "fifo" | "inotify") {
        line.push(&directory);
    }
    let mut pair = Pair::of_guest(name, &go_file, &line);
    pair.full_sync();
    let output = pair.primary.output.clone();
    let mut epochs = || {
        for _ in 0..5 {
            pair.epoch();
            std::thread::park_timeout(Duration::from_millis(5));
        }
    };
    epochs();
    for step in 1..=steps {
        go_file.step(step);
        output.wait_for(&format!("ready {step}"), PATIENCE);
        epochs();
    }
    let (standby, _) = pair.take_over();
    go_file.go();
    let verdict = standby.output.wait_for_any(&["pass", "fail"], PATIENCE);
    assert_eq!(verdict, "pass", "{name}");
    assert_eq!(standby.exit(), engine::AppExit::Code(0), "{name}");
}
