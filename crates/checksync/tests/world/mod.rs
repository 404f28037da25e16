//! Two hosts' managers on loopback, as people start them, with the Python server of `apps/`.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;
use testkit::process::{Running, kill};
use testkit::servers::{Client, Server, own_address};
use testkit::wait::{Deadline, wait_for};

pub const SOON: Duration = Duration::from_secs(30);

/// Who decides, in a test.
#[derive(Clone, Copy)]
pub enum Fencing<'a> {
    None,
    Register,
    /// Neither flag.
    Absent,
    /// `--arbiter` as it is.
    Arbiter(&'a str),
}

/// Two hosts' files, a run directory of this test's own, and a standby.
pub struct World {
    /// Real-time threads of several pairs on few processors would measure each other.
    _alone: MutexGuard<'static, ()>,
    pub dir: TempDir,
    pub fencing: Vec<String>,
    pub standby: Running,
    pub standby_address: String,
}

impl World {
    pub fn new(fencing: Fencing<'_>) -> Self {
        Self::make(fencing, &[])
    }

    /// Where apps have addresses of their own, on this link.
    pub fn on_link(fencing: Fencing<'_>, link: &str) -> Self {
        Self::make(fencing, &["--link", link])
    }

    fn make(fencing: Fencing<'_>, options: &[&str]) -> Self {
        Self::with_standby(fencing, |dir, fencing| {
            let mut command = checksync(dir);
            command.args(["standby", "--listen", "127.0.0.1:0", "--host", "b", "--pki"]).arg(dir.join("pki"));
            command.args(options).args(fencing).arg("--promote-hook").arg(hook(dir));
            command
        })
    }

    /// `standby` gets the directory, with the certificates in `pki`, and the flags of the fencing.
    pub fn with_standby(fencing: Fencing<'_>, standby: impl FnOnce(&Path, &[String]) -> Command) -> Self {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let made =
            checksync(dir.path()).args(["pki", "init"]).arg(dir.path().join("pki")).args(["a", "b"]).output();
        assert!(made.unwrap().status.success());
        let fencing = match fencing {
            Fencing::None => vec!["--fencing".to_owned(), "none".to_owned()],
            Fencing::Arbiter(spec) => vec!["--arbiter".to_owned(), spec.to_owned()],
            Fencing::Register => {
                vec!["--arbiter".to_owned(), format!("file:{}", dir.path().join("reg").display())]
            }
            Fencing::Absent => vec![],
        };
        let mut standby = Running::start(standby(dir.path(), &fencing));
        let line = standby.line(SOON).expect("a standby says where it listens");
        let standby_address = line.rsplit(' ').next().unwrap().to_owned();
        Self { _alone: alone, dir, fencing, standby, standby_address }
    }

    /// A standby where this one was, which holds nothing.
    pub fn standby_again(&self) -> Running {
        let mut command = checksync(self.dir.path());
        command.args(["standby", "--listen", &self.standby_address, "--host", "b", "--pki"]);
        command.arg(self.dir.path().join("pki")).args(&self.fencing);
        let mut standby = Running::start(command);
        standby.line(SOON).expect("a standby says where it listens");
        standby
    }

    pub fn run(&self, program: &[String]) -> Primary {
        Primary(Running::start(self.run_command("pki", program)))
    }

    pub fn run_command(&self, pki: &str, program: &[String]) -> Command {
        self.run_command_with(pki, &[], program)
    }

    pub fn run_command_with(&self, pki: &str, options: &[&str], program: &[String]) -> Command {
        let mut command = self.primary_command("run", pki);
        command.args(options).arg("--").args(program);
        command
    }

    /// `checksync attach`.
    pub fn attach_command(&self, pid: u32, options: &[&str]) -> Command {
        self.attach_command_with("pki", pid, options)
    }

    pub fn attach_command_with(&self, pki: &str, pid: u32, options: &[&str]) -> Command {
        let mut command = self.primary_command("attach", pki);
        command.args(options).arg(pid.to_string());
        command
    }

    fn primary_command(&self, verb: &str, pki: &str) -> Command {
        let mut command = checksync(self.dir.path());
        command.args([verb, "--app", "kv", "--host", "a", "--standby", &self.standby_address, "--pki"]);
        command.arg(self.dir.path().join(pki)).args(&self.fencing);
        command
    }

    /// Starts a manager whose log is kept.
    pub fn start_logged(&self, mut command: Command) -> (Primary, Log) {
        let log = Log(self.dir.path().join("primary.log"));
        command.stderr(fs::File::create(&log.0).unwrap());
        (Primary(Running::start(command)), log)
    }

    /// The report of the app by the manager of this role, once `wanted` says that it is the one.
    pub fn wait_for_app(&self, role: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("{role}: {what}"), SOON, || {
            let (_, status) = self.status();
            let managers = status["managers"].as_array()?.clone();
            let manager = managers.into_iter().find(|manager| manager["role"] == role)?;
            manager["apps"].as_array()?.iter().find(|app| wanted(app)).cloned()
        })
    }

    pub fn wait_until_protected(&self) {
        self.wait_for_app("primary", "protected", |app| app["state"] == "protected");
    }

    /// The store's report, once the newest in it was frozen after now. Epochs may be on their way that were frozen before.
    pub fn wait_until_stored(&self) -> Value {
        let now = Instant::now();
        wait_for("a later checkpoint in the store", SOON, || {
            let since_ms = now.elapsed().as_millis();
            let newer = |app: &Value| {
                app["store"]["behind_ms"]
                    .as_u64()
                    .is_some_and(|behind_ms| u128::from(behind_ms) + 1 < since_ms)
            };
            self.apps().into_iter().find(newer).map(|app| app["store"].clone())
        })
    }

    /// Of the app, wherever it runs.
    pub fn app_pid(&self) -> Pid {
        wait_for("the app's process", SOON, || self.apps().iter().find_map(|app| pid(&app["app_pid"])))
    }

    /// Nothing of the pair lives on.
    pub fn kill_everything(&mut self, primary: &mut Primary) {
        let app = self.app_pid();
        self.standby.signal(Signal::KILL);
        self.standby.wait(SOON);
        primary.kill();
        kill(app, SOON);
    }

    /// Its manager, and the app.
    pub fn kill_primary(&self, primary: &mut Primary) {
        let app = self.app_pid();
        primary.kill();
        kill(app, SOON);
    }

    /// What all managers say of it.
    fn apps(&self) -> Vec<Value> {
        let (_, status) = self.status();
        let managers = status["managers"].as_array().into_iter().flatten();
        managers.filter_map(|manager| manager["apps"].as_array().cloned()).flatten().collect()
    }

    pub fn status(&self) -> (i32, Value) {
        let asked = checksync(self.dir.path()).args(["status", "-o", "json"]).output().unwrap();
        (asked.status.code().unwrap(), serde_json::from_slice(&asked.stdout).unwrap())
    }

    pub fn hook_has_run(&self) -> Option<String> {
        let text = fs::read_to_string(hook_file(self.dir.path())).ok()?;
        text.ends_with('\n').then_some(text)
    }

    pub fn end(mut self) {
        self.standby.signal(Signal::TERM);
        assert!(self.standby.wait(SOON).success());
    }
}

/// What a manager wrote to its standard error.
pub struct Log(PathBuf);

impl Log {
    pub fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap()
    }
}

/// A primary manager. One that is dropped while it runs is asked to end: killed, it would leave its app behind.
pub struct Primary(pub Running);

impl Primary {
    /// Unless it has ended.
    pub fn kill(&mut self) {
        if self.0.is_running() {
            self.0.signal(Signal::KILL);
            self.0.wait(SOON);
        }
    }
}

impl Deref for Primary {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.0
    }
}

impl DerefMut for Primary {
    fn deref_mut(&mut self) -> &mut Running {
        &mut self.0
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        if self.0.is_running() {
            self.0.signal(Signal::TERM);
            // One that hangs is killed by the inner guard.
            let _ = Deadline::after(SOON).poll(|| (!self.0.is_running()).then_some(()));
        }
    }
}

/// As JSON has it.
pub fn pid(number: &Value) -> Option<Pid> {
    number.as_i64().and_then(|number| Pid::from_raw(number.try_into().ok()?))
}

pub fn checksync(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_checksync"));
    command.env("CHECKSYNC_RUN_DIR", dir.join("run"));
    command
}

pub fn hook_file(dir: &Path) -> PathBuf {
    dir.join("hook")
}

pub fn hook(dir: &Path) -> String {
    let file = hook_file(dir);
    format!("echo $CHECKSYNC_APP $CHECKSYNC_TERM $CHECKSYNC_ROLE > {}", file.display())
}

pub fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

/// By the interpreter itself: what is found on the PATH may be a script that ends in it.
pub fn python() -> String {
    let asked = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    String::from_utf8(asked.stdout).unwrap().trim().to_owned()
}

/// Certificates of an authority that the standby does not know.
pub fn foreign_pki(world: &World) {
    let foreign = world.dir.path().join("foreign");
    let made = checksync(world.dir.path()).args(["pki", "init"]).arg(&foreign).arg("a").output().unwrap();
    assert!(made.status.success());
}

pub fn counter(address: SocketAddr) -> Vec<String> {
    let mut line = Server::Python.command_line(address);
    line[0] = python();
    line
}

/// A protected counter at 3, its manager and a client.
pub fn protected_counter(world: &World) -> (SocketAddr, Primary, Client) {
    let address = own_address();
    let primary = world.run(&counter(address));
    let mut client = Server::Python.wait_ready(address, SOON);
    for sequence in 1..=3 {
        client.advance(0, sequence).unwrap();
    }
    world.wait_until_protected();
    (address, primary, client)
}

/// Waits for a checkpoint that began after now.
pub fn wait_for_two_epochs(world: &World) {
    let epoch = |app: &Value| app["epoch"].as_u64();
    let first = epoch(&world.wait_for_app("primary", "an epoch", |app| epoch(app).is_some()));
    world.wait_for_app("primary", "two epochs more", |app| epoch(app) >= first.map(|first| first + 2));
}
