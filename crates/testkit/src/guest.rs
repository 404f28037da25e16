//! Drives one guest program outside of any manager: start, ready, go, verdict.
//!
//! A guest sets one kernel resource up, prints `ready`, waits for its go file (or SIGUSR1), checks itself, and
//! prints `pass` or `fail: why`. Tests that let a manager start the guest take [`GoFile`] and
//! [`guest_path`](crate::programs::guest_path) and build the command line themselves:
//! `guest NAME --go PATH [ARGUMENT…]`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::Running;
use crate::programs::guest_path;

/// Setting up 20,000 mappings takes a second; a busy machine may take many.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file that does not exist until [`GoFile::go`]; guests wait for it.
#[derive(Debug)]
pub struct GoFile {
    dir: TempDir,
}

impl GoFile {
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory can be made") }
    }

    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("go")
    }

    /// A directory for what the guest needs beside it; gone with this value.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Lets the guest go on to its step after `ready N-1`; the first is 1.
    pub fn step(&self, number: u32) {
        File::create(self.dir.path().join(format!("go.{number}")))
            .expect("the temporary directory is writable");
    }

    /// Lets the guest go on to its check.
    pub fn go(&self) {
        File::create(self.path()).expect("the temporary directory is writable");
    }
}

/// A guest that runs without a manager.
#[derive(Debug)]
pub struct Guest {
    running: Running,
    go_file: GoFile,
}

impl Guest {
    /// Starts the guest and waits until it is ready.
    #[track_caller]
    #[must_use]
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        let go_file = GoFile::new();
        let mut command = Command::new(guest_path());
        command.arg(name).arg("--go").arg(go_file.path()).args(arguments);
        let mut running = Running::start(command);
        running.expect_line("ready", PATIENCE);
        Self { running, go_file }
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Stops all of the guest's threads for at least this long, as a freeze does.
    #[track_caller]
    pub fn stop_for(&self, pause: Duration) {
        self.running.signal(Signal::STOP);
        std::thread::sleep(pause);
        self.running.signal(Signal::CONT);
    }

    /// Lets the guest do its next operation, and waits until it has.
    #[track_caller]
    pub fn step(&mut self, number: u32) {
        self.go_file.step(number);
        self.running.expect_line(&format!("ready {number}"), PATIENCE);
    }

    /// Whether the guest has printed this line since it was last asked for one, without waiting.
    pub fn has_said(&mut self, wanted: &str) -> bool {
        std::iter::from_fn(|| self.running.line_now()).any(|line| line == wanted)
    }

    /// Lets the guest check itself, and returns all that it prints up to its verdict, which is the last line.
    #[track_caller]
    pub fn verdict(&mut self, limit: Duration) -> Vec<String> {
        self.go_file.go();
        let mut lines = Vec::new();
        while let Some(line) = self.running.line(limit) {
            lines.push(line);
        }
        lines
    }
}

/// Every guest program, with the number of steps between its first `ready` and its last.
#[must_use]
pub fn all() -> Vec<(String, u32)> {
    let listed = Command::new(guest_path()).arg("list").output().expect("the guest was just built");
    let listed = String::from_utf8(listed.stdout).expect("names of guests are ASCII");
    let entry = |line: &str| {
        let (name, steps) = line.split_once(' ')?;
        Some((name.to_owned(), steps.parse().ok()?))
    };
    listed.lines().map(|line| entry(line).unwrap_or_else(|| panic!("unexpected entry {line:?}"))).collect()
}
