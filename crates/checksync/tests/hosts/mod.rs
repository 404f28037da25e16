//! Hosts of a test's own at one switch, with their managers, and a host of clients.
//!
//! ```text
//!   a: br0 10.78.0.1 ── eth0 ═══╗
//!   b: br0 10.78.0.2 ── eth0 ═══ switch ═══ eth0  clients 10.78.0.100
//!   …                           ╝
//! ```
//!
//! The app's address, 10.78.0.9, is on the bridge of whoever serves. Dropping a [`Street`] ends all that it started.

pub mod links;
pub mod wires;

use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gate::{CellCgroup, Namespace};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use testkit::process::Running;
use testkit::wait::Deadline;

use wires::PREFIX;

pub const SOON: Duration = Duration::from_secs(30);
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 9);
const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 100);
pub const NAMES: [&str; 3] = ["a", "b", "c"];
const PORT: u16 = 7400;
const APP: &str = "kv";

#[derive(Debug)]
pub struct Host {
    name: &'static str,
    pub namespace: Namespace,
    pub daemon: Option<Running>,
    /// The manager that started the app, on the first of them.
    pub primary: Option<Running>,
    /// Every manager that ever ran here: what it left is swept up by its number.
    managers: Vec<u32>,
}

/// Hosts by number, from 0.
#[derive(Debug)]
pub struct Street {
    pub hosts: Vec<Host>,
    pub clients: Namespace,
    pub switch: Namespace,
    pub dir: TempDir,
    /// What every manager gets as `--arbiter`.
    pub register: String,
    /// What every manager gets as `RUST_LOG`.
    pub log_filter: Option<&'static str>,
    /// Real-time threads of several streets on few processors would measure each other.
    _alone: MutexGuard<'static, ()>,
}

impl Street {
    /// `count` hosts, without any manager yet.
    pub fn of(count: usize) -> Self {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let switch = wires::switch().unwrap();
        let hosts = NAMES[..count].iter().enumerate().map(|(number, name)| {
            let namespace = Namespace::new().unwrap();
            wires::plug_in(&switch, &namespace, name).unwrap();
            namespace.within(|| wires::bridge(address(number))).unwrap();
            Host { name, namespace, daemon: None, primary: None, managers: Vec::new() }
        });
        let hosts = hosts.collect();
        let clients = Namespace::new().unwrap();
        wires::plug_in(&switch, &clients, "clients").unwrap();
        clients.within(|| wires::add_address("eth0", CLIENTS)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let made =
            checksync().args(["pki", "init"]).arg(dir.path().join("pki")).args(&NAMES[..count]).output();
        assert!(made.unwrap().status.success());
        let register = format!("file:{}", dir.path().join("register").display());
        Self { hosts, clients, switch, dir, register, log_filter: None, _alone: alone }
    }

    /// Starts a standby daemon, which looks for standbys of its own on `others` once it serves.
    pub fn start_daemon(&mut self, host: usize, others: &[usize]) {
        let listen = format!("{}:{PORT}", address(host));
        let mut command = self.command(host, "standby");
        command.args(["--listen", &listen]).args(standbys(others));
        let mut daemon = start_on(&self.hosts[host].namespace, command);
        daemon.line(SOON).expect("a standby says where it listens");
        self.hosts[host].managers.push(daemon.pid());
        self.hosts[host].daemon = Some(daemon);
    }

    /// Starts the program on host 0, protected by all of `others`.
    pub fn start_primary(&mut self, others: &[usize], address: &str, options: &[&str], program: &[String]) {
        let mut command = self.command(0, "run");
        command.args(["--app", APP, "--link", "br0", "--address", address]).args(standbys(others));
        command.args(options).arg("--").args(program);
        let primary = start_on(&self.hosts[0].namespace, command);
        self.hosts[0].managers.push(primary.pid());
        self.hosts[0].primary = Some(primary);
    }

    /// A manager that goes on with the app on this host.
    pub fn add_primary(&mut self, host: usize, manager: Running) {
        self.hosts[host].managers.push(manager.pid());
        self.hosts[host].primary = Some(manager);
    }

    pub fn command(&self, host: usize, verb: &str) -> Command {
        let log = File::options().create(true).append(true).open(self.log(host)).unwrap();
        let mut command = checksync();
        command.env("CHECKSYNC_RUN_DIR", self.run_dir(host)).stderr(log);
        command.envs(self.log_filter.map(|filter| ("RUST_LOG", filter)));
        command.arg(verb).args(["--host", self.hosts[host].name, "--pki"]).arg(self.dir.path().join("pki"));
        command.args(["--arbiter", &self.register]);
        command
    }

    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.hosts.iter().map(|host| host.name)
    }

    pub fn run_dir(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("run-{}", self.hosts[host].name))
    }

    pub fn log(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("{}.log", self.hosts[host].name))
    }

    pub fn log_of(&self, host: usize) -> String {
        fs::read_to_string(self.log(host)).unwrap_or_default()
    }

    /// All that the managers said, for whoever looks for a cause.
    pub fn logs(&self) -> String {
        let log = |host: usize| format!("log of {}:\n{}\n", self.hosts[host].name, self.log_of(host));
        (0..self.hosts.len()).map(log).collect()
    }

    /// The manager that started the app.
    pub fn first_primary(&mut self) -> &mut Running {
        self.hosts[0].primary.as_mut().expect("the first primary was started, and not killed")
    }

    pub fn daemon(&mut self, host: usize) -> &mut Running {
        self.hosts[host].daemon.as_mut().expect("a daemon was started, and not killed")
    }

    /// Kills all managers of a host, and waits until they are gone.
    pub fn kill(&mut self, host: usize) {
        let host = &mut self.hosts[host];
        for mut manager in [host.primary.take(), host.daemon.take()].into_iter().flatten() {
            manager.signal(Signal::KILL);
            manager.wait(SOON);
        }
    }

    /// Moves the app as an operator does, and answers how long nobody was answered.
    pub fn switch_over(&self, host: usize) -> Duration {
        self.insist_on_switching_over(host, None)
    }

    pub fn switch_over_to(&self, host: usize, to: &str) -> Duration {
        self.insist_on_switching_over(host, Some(to))
    }

    /// A machine that stands still for some 50 ms is a standby that does not answer: then the move is called off, the app
    /// goes on where it is, and the operator asks again.
    fn insist_on_switching_over(&self, host: usize, to: Option<&str>) -> Duration {
        let deadline = Deadline::after(SOON);
        loop {
            match self.try_to_switch_over(host, to) {
                Ok(pause) => return pause,
                Err(news) if news.contains("does not answer heartbeats") && !deadline.left().is_zero() => {
                    println!("asked again: {news}");
                    self.wait_until_movable(host);
                }
                Err(news) => panic!("{news}\n{}", self.logs()),
            }
        }
    }

    /// An error is what was said instead.
    pub fn try_to_switch_over(&self, host: usize, to: Option<&str>) -> Result<Duration, String> {
        let mut command = checksync();
        command.env("CHECKSYNC_RUN_DIR", self.run_dir(host)).args(["switchover", "-o", "json"]);
        command.args(to.into_iter().flat_map(|to| ["--to", to]));
        let done = command.output().unwrap();
        let news = String::from_utf8(done.stdout).unwrap();
        if !done.status.success() {
            return Err(news);
        }
        let moved: Value = serde_json::from_str(news.lines().last().unwrap()).unwrap();
        Ok(Duration::from_micros(moved["pause_us"].as_u64().unwrap()))
    }

    /// What all managers of a host say.
    pub fn reports(&self, host: usize) -> Vec<Value> {
        // One that stands still answers nothing.
        const PATIENCE: Duration = Duration::from_millis(500);
        let entries = fs::read_dir(self.run_dir(host)).into_iter().flatten().flatten();
        let sockets = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|end| end == "sock"));
        let ask = |socket: PathBuf| -> Option<Value> {
            let mut stream = UnixStream::connect(socket).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            serde_json::from_str(&text).ok()
        };
        sockets.filter_map(ask).collect()
    }

    /// What the managers of a host say of apps, or of takeovers.
    pub fn reported(&self, host: usize, what: &str) -> Vec<Value> {
        let reports = self.reports(host);
        let found = reports.iter().flat_map(|report| report[what].as_array().into_iter().flatten());
        found.cloned().collect()
    }

    /// The app's report of whoever serves it on this host.
    pub fn served_app(&self, host: usize) -> Option<Value> {
        self.reported(host, "apps").into_iter().find(|app| app["role"] == "primary")
    }

    #[track_caller]
    pub fn wait_until_protected(&self, host: usize) -> Value {
        let protected = || self.served_app(host).filter(|app| app["state"] == "protected");
        self.wait(&format!("protection of the app on {}", self.hosts[host].name), protected)
    }

    /// An app is protected from its birth on, and one that has much to make first is not heard yet.
    #[track_caller]
    pub fn wait_until_it_listens(&self) {
        let open = || Ok(TcpStream::connect((SERVICE, 7000)).is_ok());
        self.wait("an app that listens", || self.clients.within(open).unwrap().then_some(()));
    }

    /// Protected, and an operator is heard.
    #[track_caller]
    pub fn wait_until_movable(&self, host: usize) {
        self.wait_until_protected(host);
        let socket = self.run_dir(host).join(format!("primary-{APP}.ctl"));
        self.wait("somebody who takes orders", || UnixStream::connect(&socket).ok());
    }

    /// The host that took over in `term`, and what it says of it.
    pub fn takeover_in(&self, term: u64) -> Option<(usize, Value)> {
        (0..self.hosts.len()).find_map(|host| {
            let takeovers = self.reported(host, "takeovers");
            Some((host, takeovers.into_iter().find(|takeover| takeover["term"] == term)?))
        })
    }

    #[track_caller]
    pub fn wait<T>(&self, what: &str, probe: impl FnMut() -> Option<T>) -> T {
        match Deadline::after(SOON).poll(probe) {
            Some(found) => found,
            None => panic!("waited {SOON:?} in vain for {what}\n{}", self.logs()),
        }
    }
}

impl Drop for Street {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for host in &mut self.hosts {
            // Dropping them kills them.
            (host.primary, host.daemon) = (None, None);
        }
        for cgroup in self.hosts.iter().flat_map(|host| &host.managers).flat_map(|pid| cgroups_of(*pid)) {
            // It may go with its last process. One that stays is swept up by the next manager.
            let _ = cgroup.kill_all();
            let _ = cgroup.remove(SOON);
        }
    }
}

/// What a manager gave to its apps.
pub fn cgroups_of(manager: u32) -> Vec<CellCgroup> {
    CellCgroup::left_by(manager, "checksync", APP).unwrap()
}

/// The service's address, as an option has it.
pub fn service() -> String {
    format!("{SERVICE}/{PREFIX}")
}

fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, 1 + u8::try_from(host).unwrap())
}

fn standbys(hosts: &[usize]) -> Vec<String> {
    hosts.iter().flat_map(|host| ["--standby".to_owned(), format!("{}:{PORT}", address(*host))]).collect()
}

pub fn checksync() -> Command {
    Command::new(env!("CARGO_BIN_EXE_checksync"))
}

/// A process on a host, its output read by us.
pub fn start_on(host: &Namespace, command: Command) -> Running {
    host.within(|| Ok(Running::start(command))).unwrap()
}
