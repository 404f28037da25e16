//! Two managers without root, and a server that keeps its pairs in a replicated map.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use testkit::process::Running;
use testkit::programs::sdk_example;
use testkit::servers::own_address;
use testkit::wait::wait_for;

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
    /// What the standby is started with.
    options: Vec<String>,
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
        let (standby, standby_address) = start_daemon(dir.path(), "b", &fencing, "127.0.0.1:0");
        Self { _alone: alone, dir, options: fencing.clone(), fencing, standby, standby_address }
    }

    /// A primary with the server on an address of its own.
    pub fn run(&self, options: &[&str]) -> Running {
        self.run_with(options, &[])
    }

    /// As `run`, with more arguments for the server.
    pub fn run_with(&self, options: &[&str], arguments: &[&str]) -> Running {
        let mut command = checksync(self.dir.path());
        command.args(["run", "--replicate", "structures", "--app", "kv", "--host", "a"]);
        command.args(["--standby", &self.standby_address, "--pki"]).arg(self.dir.path().join("pki"));
        command.args(&self.fencing).args(options).arg("--").arg(server(self.dir.path()));
        command.arg("127.0.0.1:0").args(arguments);
        Running::start(command)
    }

    pub fn wait_until_protected(&self) {
        self.wait_for_app("primary", "protected", |app| app["state"] == "protected");
    }

    /// The report of the app by the manager of this role, once `wanted` says that it is the one.
    pub fn wait_for_app(&self, role: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("{role}: {what}"), SOON, || {
            let manager = self.managers().into_iter().find(|manager| manager["role"] == role)?;
            manager["apps"].as_array()?.iter().find(|app| wanted(app)).cloned()
        })
    }

    /// The host of the copy dies.
    pub fn stop_standby(&mut self) {
        self.standby.signal(Signal::KILL);
        self.standby.wait(SOON);
    }

    /// It is there again, at its address, and knows nothing.
    pub fn start_standby_again(&mut self) {
        (self.standby, _) = start_daemon(self.dir.path(), "b", &self.options, &self.standby_address);
    }

    /// A daemon on the primary's host, too, each with the other for a standby of what it serves.
    pub fn form_a_group(&mut self) -> Running {
        let address = own_address().to_string();
        let knowing = |other: &str| [&self.fencing[..], &["--standby".to_owned(), other.to_owned()]].concat();
        let (options, others) = (knowing(&address), knowing(&self.standby_address));
        self.options = options;
        self.stop_standby();
        self.start_standby_again();
        start_daemon(self.dir.path(), "a", &others, &address).0
    }

    /// The host that serves in `term`, once the program is protected there.
    pub fn wait_until_protected_in(&self, term: u64) -> String {
        wait_for(&format!("protection in term {term}"), SOON, || {
            let managers = self.managers();
            let serves =
                |app: &Value| app["role"] == "primary" && app["term"] == term && app["state"] == "protected";
            let manager = managers
                .iter()
                .find(|manager| manager["apps"].as_array().is_some_and(|apps| apps.iter().any(serves)))?;
            Some(manager["host"].as_str()?.to_owned())
        })
    }

    fn managers(&self) -> Vec<Value> {
        let asked = checksync(self.dir.path()).args(["status", "-o", "json"]).output().unwrap();
        let status: Value = serde_json::from_slice(&asked.stdout).unwrap();
        status["managers"].as_array().cloned().unwrap_or_default()
    }

    /// Both hosts begin anew.
    pub fn renew(&mut self) {
        self.standby.signal(Signal::TERM);
        self.standby.wait(SOON);
        fs::remove_dir_all(self.dir.path().join("register")).unwrap();
        self.start_standby_again();
    }

    /// Where the primary's manager and its program meet.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("run/primary-kv.structures")
    }

    /// The address of the server once the standby has started it.
    pub fn taken_over(&mut self) -> String {
        served_by(&mut self.standby)
    }

    /// The server of the primary.
    pub fn program(&self) -> Pid {
        let app = self.wait_for_app("primary", "its program", |app| app["app_pid"].is_i64());
        app["app_pid"].as_i64().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)).unwrap()
    }

    pub fn kill_program(&self) {
        kill_process(self.program(), Signal::KILL).unwrap();
    }
}

fn start_daemon(dir: &Path, host: &str, options: &[String], address: &str) -> (Running, String) {
    let mut command = checksync(dir);
    command.args(["standby", "--listen", address, "--host", host, "--pki"]).arg(dir.join("pki"));
    let mut standby = Running::start({
        command.args(options);
        command
    });
    let line = standby.line(SOON).expect("a standby says where it listens");
    let address = line.rsplit(' ').next().unwrap().to_owned();
    (standby, address)
}

/// Where the server is that this manager started.
pub fn served_by(manager: &mut Running) -> String {
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
