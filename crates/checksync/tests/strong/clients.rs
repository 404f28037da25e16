//! The clients of `apps/`, and the judge of what they saw.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use gate::Namespace;
use rustix::process::Signal;
use serde_json::Value;
use testkit::process::Running;
use testkit::programs::go_app;
use testkit::servers::Server;
use testkit::wait::wait_until;

use super::street::{SERVICE, SOON, start_on};

/// A store that is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Kv,
    Redis,
}

impl Store {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kv => "kv",
            Self::Redis => "redis",
        }
    }

    pub fn address(self) -> String {
        format!("{SERVICE}:7000")
    }

    pub fn command_line(self) -> Vec<String> {
        match self {
            Self::Kv => {
                vec![go_app("kv").display().to_string(), "serve".into(), "--listen".into(), self.address()]
            }
            Self::Redis => Server::Redis.command_line(self.address().parse().unwrap()),
        }
    }
}

/// Concurrent clients whose connections stay open, and who write down what they see.
#[derive(Debug)]
pub struct Load {
    running: Running,
    history: PathBuf,
}

/// What the clients saw, and what the judge says of it.
#[derive(Debug)]
pub struct Seen {
    pub report: Value,
    pub verdict: Value,
    pub history: PathBuf,
}

impl Seen {
    fn count(&self, value: &Value, name: &str) -> u64 {
        value[name].as_u64().unwrap_or_else(|| panic!("no {name} in {value}"))
    }

    /// Acknowledged, and gone.
    pub fn lost_writes(&self) -> u64 {
        self.count(&self.verdict, "lost_writes")
    }

    /// When the first of them was acknowledged.
    pub fn first_lost_at_ns(&self) -> Option<u64> {
        (self.lost_writes() > 0).then(|| self.count(&self.verdict, "lost_first_ns"))
    }

    pub fn broken_connections(&self) -> u64 {
        self.count(&self.report, "broken_connections")
    }

    pub fn is_linearizable(&self) -> bool {
        self.verdict["linearizable"] == "yes"
    }

    /// Values that nobody wrote, or half of one.
    pub fn mangled(&self) -> u64 {
        self.count(&self.verdict, "never_written_count") + self.count(&self.report, "corrupt_values")
    }

    /// What strong consistency promises.
    #[track_caller]
    pub fn assert_nothing_happened(&self) {
        assert!(self.is_linearizable(), "{self:#?}");
        let unknown = self.count(&self.verdict, "unknown");
        let counts = [self.lost_writes(), self.broken_connections(), self.mangled(), unknown];
        assert_eq!(counts, [0; 4], "{self:#?}");
    }
}

impl Load {
    /// Returns once a first request was answered.
    pub fn start(host: &Namespace, dir: &Path, store: Store, words: &[&str]) -> Self {
        let (history, errors) = (dir.join("history"), dir.join("load.err"));
        let mut command = Command::new(go_app("load"));
        command.args(["--target", store.name(), "--address", &store.address(), "--seconds", "0"]);
        command.args(["--ratio", "60/25/15", "--timeout", "20s", "--history"]).arg(&history).args(words);
        command.stderr(File::create(&errors).unwrap());
        let mut running = start_on(host, command);
        let said = || fs::read_to_string(&errors).unwrap_or_default();
        wait_until("a first answer to a client", SOON, || {
            assert!(running.is_running(), "the clients have ended: {}", said());
            said().contains("ready")
        });
        Self { running, history }
    }

    pub fn has_ended(&mut self) -> bool {
        !self.running.is_running()
    }

    /// Waits for answers to requests that are made from now on.
    pub fn wait_for_answers(&self) {
        const A_FEW: u64 = 20_000;
        let len = || fs::metadata(&self.history).map_or(0, |file| file.len());
        let before = len();
        wait_until("answers to clients", SOON, || len() > before + A_FEW);
    }

    /// Ends it; whoever waits for an answer waits for it still.
    pub fn finish(mut self) -> Seen {
        self.running.signal(Signal::INT);
        let report = self.running.line(SOON).expect("a load reports at its end");
        self.running.wait(SOON);
        let report = serde_json::from_str(&report).unwrap();
        Seen { report, verdict: judge(&self.history), history: self.history }
    }
}

/// The verdict of `apps/judge`.
pub fn judge(history: &Path) -> Value {
    let judged = Command::new(go_app("judge")).arg(history).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&judged.stdout).into_owned();
    serde_json::from_str(&text)
        .unwrap_or_else(|why| panic!("{why}: {}", String::from_utf8_lossy(&judged.stderr)))
}

/// The history without what was answered in the window that a takeover announced as lost: its writes may have
/// happened or not, and its reads may have met them.
pub fn forgiven(history: &Path, window: std::ops::RangeInclusive<u64>) -> PathBuf {
    let mut lines = String::new();
    for line in fs::read_to_string(history).unwrap().lines() {
        let mut operation: Value = serde_json::from_str(line).unwrap();
        if operation["return_ns"].as_u64().is_some_and(|at| window.contains(&at)) {
            if operation["op"] == "get" || operation["result"] != "ok" {
                continue;
            }
            let operation = operation.as_object_mut().unwrap();
            operation.insert("result".to_owned(), "unknown".into());
            operation.retain(|name, _| name != "return_ns" && name != "found");
        }
        lines += &format!("{operation}\n");
    }
    let path = history.with_extension("forgiven");
    fs::write(&path, lines).unwrap();
    path
}

/// Streams of bytes over many connections, each byte checked.
#[derive(Debug)]
pub struct Streams(Running);

impl Streams {
    pub fn serve() -> Vec<String> {
        vec![
            go_app("stream").display().to_string(),
            "serve".into(),
            "--listen".into(),
            format!("{SERVICE}:7000"),
        ]
    }

    /// Returns once all connections are open.
    pub fn start(host: &Namespace, dir: &Path, words: &[&str]) -> Self {
        let errors = dir.join("stream.err");
        let mut command = Command::new(go_app("stream"));
        command.args(["run", "--address", &format!("{SERVICE}:7000")]).args(words);
        command.stderr(File::create(&errors).unwrap());
        let running = start_on(host, command);
        let said = || fs::read_to_string(&errors).unwrap_or_default();
        wait_until("open streams", SOON, || said().contains("ready"));
        Self(running)
    }

    pub fn is_running(&mut self) -> bool {
        self.0.is_running()
    }

    pub fn finish(mut self, limit: Duration) -> Value {
        let report = self.0.line(limit).expect("streams report at their end");
        self.0.wait(SOON);
        serde_json::from_str(&report).unwrap()
    }
}
