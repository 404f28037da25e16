//! Under what conditions figures were taken: the machine, its load, the versions, and when.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::quick;
use crate::workspace::root;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// UTC.
    pub taken_at: String,
    pub took_seconds: f64,
    /// Fewer runs of fewer sizes.
    pub quick: bool,
    /// Only some of the rows were taken then; the others are older.
    pub partly: bool,
    pub processor: String,
    pub processors: usize,
    pub memory_gib: f64,
    pub kernel: String,
    /// Of the last minute, before and after.
    pub load: [String; 2],
    /// Program and what it says of itself.
    pub versions: Vec<(String, String)>,
}

/// A measurement that has begun.
#[derive(Debug)]
pub struct Begun {
    at: Instant,
    load: String,
}

impl Begun {
    pub fn now() -> Self {
        Self { at: Instant::now(), load: load() }
    }

    pub fn conditions(&self, partly: bool) -> Conditions {
        Conditions {
            taken_at: said("date", &["-u", "+%F %H:%M:%S UTC"]),
            took_seconds: self.at.elapsed().as_secs_f64().round(),
            quick: quick(),
            partly,
            processor: line_of("/proc/cpuinfo", "model name"),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: memory_gib(),
            kernel: said("uname", &["-srm"]),
            load: [self.load.clone(), load()],
            versions: versions(),
        }
    }
}

fn versions() -> Vec<(String, String)> {
    let commit = said("git", &["describe", "--always", "--dirty", "--abbrev=12"]);
    let programs: [(&str, &[&str]); 4] = [
        ("rustc", &["--version"]),
        ("go", &["version"]),
        ("redis-server", &["--version"]),
        ("criu", &["--version"]),
    ];
    let found = programs.map(|(name, words)| (name.to_owned(), said(name, words)));
    std::iter::once(("checksync".to_owned(), commit)).chain(found).collect()
}

/// The first line that a program prints, or that it is not there.
fn said(program: &str, words: &[&str]) -> String {
    let done = Command::new(program).args(words).current_dir(root()).stdin(Stdio::null()).output();
    let text = done.map(|done| String::from_utf8_lossy(&done.stdout).into_owned()).unwrap_or_default();
    let line = text.lines().next().unwrap_or_default().trim().to_owned();
    if line.is_empty() { "not on the PATH".to_owned() } else { line }
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().next().unwrap_or("?").to_owned()
}

fn line_of(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map_or("?", |rest| rest.trim_start_matches([' ', '\t', ':'])).to_owned()
}

fn memory_gib() -> f64 {
    let text = line_of("/proc/meminfo", "MemTotal");
    let kib: f64 = text.trim_end_matches(" kB").parse().unwrap_or_default();
    (kib / 1024.0 / 1024.0 * 10.0).round() / 10.0
}
