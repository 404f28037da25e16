//! Many threads and many processes ask for each next term at once: exactly one wins each.
//!
//! Fails when the `flock` in `FileArbiter::swap` is taken out.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use arbiter::{Arbiter, FileArbiter, Member, Register, Swap};

const TERMS: u64 = 40;
const THREADS: u64 = 4;
const PROCESSES: u64 = 3;
/// Set for a child: the directory of the registers, and the child's number.
const DIRECTORY: &str = "CHECKSYNC_RACE_DIRECTORY";
const NUMBER: &str = "CHECKSYNC_RACE_NUMBER";

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Asks for every term up to `TERMS`; the terms that it won.
fn race(directory: &Path, name: &str) -> Vec<u64> {
    let (mut arbiter, mut won) = (FileArbiter::new(directory), Vec::new());
    let me = Member::new(name, 1);
    let mut seen = arbiter.read("app", soon()).unwrap();
    while seen.as_ref().is_none_or(|register| register.term.0 < TERMS) {
        let new = seen.as_ref().map_or_else(|| Register::first(me.clone()), |old| old.taken_by(me.clone()));
        match arbiter.swap("app", seen.as_ref(), new.clone(), soon()).unwrap() {
            Swap::Won => {
                won.push(new.term.0);
                seen = Some(new);
            }
            Swap::Lost(current) => seen = current,
        }
    }
    won
}

fn race_in_threads(directory: &Path, process: &str) -> Vec<u64> {
    thread::scope(|scope| {
        let name = |n| format!("process {process} thread {n}");
        let racers: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || race(directory, &name(n)))).collect();
        racers.into_iter().flat_map(|racer| racer.join().unwrap()).collect()
    })
}

/// One process of the race; without its environment it has nothing to do.
#[test]
fn child() {
    if let (Ok(directory), Ok(number)) = (std::env::var(DIRECTORY), std::env::var(NUMBER)) {
        let won = race_in_threads(Path::new(&directory), &number);
        std::fs::write(Path::new(&directory).join(number), serde_json::to_vec(&won).unwrap()).unwrap();
    }
}

#[test]
fn each_term_has_exactly_one_winner_among_threads_and_processes() {
    let directory = tempfile::tempdir().unwrap();
    let spawn = |number: u64| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child"]).env(DIRECTORY, directory.path()).env(NUMBER, number.to_string());
        command.stdout(Stdio::null()).spawn().unwrap()
    };
    let children: Vec<_> = (0..PROCESSES).map(spawn).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let mut winners = BTreeMap::<u64, u64>::new();
    for number in 0..PROCESSES {
        let won = std::fs::read(directory.path().join(number.to_string())).unwrap();
        for term in serde_json::from_slice::<Vec<u64>>(&won).unwrap() {
            *winners.entry(term).or_default() += 1;
        }
    }
    assert_eq!(winners, (1..=TERMS).map(|term| (term, 1)).collect());
}
