//! Two managers without root, a server that keeps its pairs in a replicated map, and writers that remember.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use testkit::process::Running;
use testkit::programs::sdk_example;
use testkit::wait::{wait_for, wait_until};

pub const SOON: Duration = Duration::from_secs(30);
/// Whom the managers and the program run as, if the tests run as root.
const NOBODY: u32 = 65534;

/// Who decides, in a test.
#[derive(Clone, Copy)]
pub enum Fencing {
    None,
    Register,
}

/// Two hosts' files, a run directory of this test's own, and a standby.
pub struct World {
    _alone: MutexGuard<'static, ()>,
    pub dir: TempDir,
    fencing: Vec<String>,
    pub standby: Running,
    pub standby_address: String,
}

impl World {
    pub fn new(fencing: Fencing) -> Self {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut init = checksync(dir.path());
        init.args(["pki", "init"]).arg(dir.path().join("pki")).args(["a", "b"]);
        let made = init.output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let fencing: Vec<String> = match fencing {
            Fencing::None => vec!["--fencing".into(), "none".into()],
            Fencing::Register => {
                vec!["--arbiter".into(), format!("file:{}", dir.path().join("register").display())]
            }
        };
        let (standby, standby_address) = start_standby(dir.path(), &fencing);
        Self { _alone: alone, dir, fencing, standby, standby_address }
    }

    /// A primary with the server on an address of its own.
    pub fn run(&self, options: &[&str]) -> Running {
        let mut command = checksync(self.dir.path());
        command.args(["run", "--replicate", "structures", "--app", "kv", "--host", "a"]);
        command.args(["--standby", &self.standby_address, "--pki"]).arg(self.dir.path().join("pki"));
        command.args(&self.fencing).args(options).arg("--").arg(server(self.dir.path())).arg("127.0.0.1:0");
        Running::start(command)
    }

    pub fn wait_until_protected(&self) {
        self.wait_for_app("primary", "protected", |app| app["state"] == "protected");
    }

    /// The report of the app by the manager of this role, once `wanted` says that it is the one.
    pub fn wait_for_app(&self, role: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("{role}: {what}"), SOON, || {
            let asked = checksync(self.dir.path()).args(["status", "-o", "json"]).output().unwrap();
            let status: Value = serde_json::from_slice(&asked.stdout).unwrap();
            let managers = status["managers"].as_array()?.clone();
            let manager = managers.into_iter().find(|manager| manager["role"] == role)?;
            manager["apps"].as_array()?.iter().find(|app| wanted(app)).cloned()
        })
    }

    /// Where the server is that this manager started.
    pub fn served_by(&self, manager: &mut Running) -> String {
        served_by(manager)
    }

    /// The address of the server once the standby has started it.
    pub fn taken_over(&mut self) -> String {
        served_by(&mut self.standby)
    }

    /// Kills the server of the primary.
    pub fn kill_program(&self) {
        let app = self.wait_for_app("primary", "its program", |app| app["app_pid"].is_i64());
        let pid = app["app_pid"].as_i64().unwrap();
        kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
    }
}

fn start_standby(dir: &Path, fencing: &[String]) -> (Running, String) {
    let mut command = checksync(dir);
    command.args(["standby", "--listen", "127.0.0.1:0", "--host", "b", "--pki"]).arg(dir.join("pki"));
    let mut standby = Running::start({
        command.args(fencing);
        command
    });
    let line = standby.line(SOON).expect("a standby says where it listens");
    let address = line.rsplit(' ').next().unwrap().to_owned();
    (standby, address)
}

fn served_by(manager: &mut Running) -> String {
    let line = manager.line(SOON).expect("a server says where it listens");
    let address = line.strip_prefix("listening ").unwrap_or_else(|| panic!("{line:?} is no address"));
    address.split(' ').next().unwrap().to_owned()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The server, where whoever runs the managers can reach it.
fn server(dir: &Path) -> PathBuf {
    let copy = dir.join("kv");
    if !copy.exists() {
        fs::copy(sdk_example("kv"), &copy).unwrap();
    }
    copy
}

fn checksync(dir: &Path) -> Command {
    let copy = dir.join("checksync");
    if !copy.exists() {
        fs::copy(env!("CARGO_BIN_EXE_checksync"), &copy).unwrap();
    }
    let mut command = Command::new(copy);
    command.env("CHECKSYNC_RUN_DIR", dir.join("run")).current_dir(dir);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// One connection to the server.
pub struct Client {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(address: &str) -> Self {
        let stream = wait_for("the server", SOON, || TcpStream::connect(address).ok());
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_nodelay(true).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        Self { stream, lines }
    }

    /// The answer, or nothing from a server that is gone.
    pub fn ask(&mut self, request: &str) -> Option<String> {
        self.stream.write_all(format!("{request}\n").as_bytes()).ok()?;
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(len) if len > 0 => Some(line.trim_end().to_owned()),
            _ => None,
        }
    }
}

/// Threads that write until the server fails, each to keys of its own.
pub struct Writers {
    threads: Vec<JoinHandle<Written>>,
    acknowledged: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

/// What is known of the server's pairs: for each key the newest number that was acknowledged, and that was sent.
#[derive(Default)]
pub struct Written {
    keys: HashMap<String, (u64, u64)>,
    pub acknowledged: u64,
    pub last_answer: Option<String>,
}

const KEYS_EACH: u64 = 50;

impl Writers {
    pub fn start(address: String, count: usize) -> Self {
        let (acknowledged, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let threads = (0..count).map(|writer| {
            let (address, acknowledged, stop) =
                (address.clone(), Arc::clone(&acknowledged), Arc::clone(&stop));
            std::thread::spawn(move || write(writer, &address, &acknowledged, &stop))
        });
        Self { threads: threads.collect(), acknowledged, stop }
    }

    pub fn wait_for(&self, count: usize) {
        wait_until("acknowledged writes", SOON, || self.acknowledged.load(Ordering::Relaxed) >= count);
    }

    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until the server has failed them all, or they were stopped.
    pub fn finish(self) -> Written {
        let mut all = Written::default();
        for thread in self.threads {
            let one = thread.join().unwrap();
            all.keys.extend(one.keys);
            all.acknowledged += one.acknowledged;
            all.last_answer = all.last_answer.or(one.last_answer);
        }
        all
    }
}

fn write(writer: usize, address: &str, acknowledged: &AtomicUsize, stop: &AtomicBool) -> Written {
    let (mut client, mut written) = (Client::connect(address), Written::default());
    for number in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("{writer}-{}", number % KEYS_EACH);
        let known = written.keys.entry(key.clone()).or_default();
        known.1 = number;
        match client.ask(&format!("PUT {key} {}", value(&key, number))) {
            Some(answer) if answer == "OK" => known.0 = number,
            last => {
                written.last_answer = last;
                break;
            }
        }
        written.acknowledged += 1;
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    written
}

/// A value that proves itself: half of one, or a mixture of two, is none.
fn value(key: &str, number: u64) -> String {
    format!("{number}:{}", format!("{key}/{number};").repeat(10))
}

impl Written {
    /// Every key has the newest value that was acknowledged, or the one that was being written.
    pub fn check(&self, client: &mut Client) {
        assert!(!self.keys.is_empty());
        for (key, (acknowledged, sent)) in &self.keys {
            let answer = client.ask(&format!("GET {key}")).expect("the server answers");
            let held = answer.strip_prefix("VALUE ");
            let number = held.map_or(0, |held| held.split(':').next().unwrap().parse().unwrap());
            assert!(
                (*acknowledged..=*sent).contains(&number),
                "{key} has write {number}; {acknowledged} was acknowledged, and {sent} sent"
            );
            assert!(held.is_none_or(|held| held == value(key, number)), "{key} has half a value: {answer}");
        }
    }
}
