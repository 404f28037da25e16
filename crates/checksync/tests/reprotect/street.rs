//! A street of the test's own: hosts with a standby daemon each, where an app goes from one to the next, and a host of
//! clients.
//!
//! ```text
//!   a: br0 10.79.0.1 ── eth0 ═══╗
//!   b: br0 10.79.0.2 ── eth0 ═══ switch ═══ eth0  clients 10.79.0.100
//!   …                           ╝
//! ```
//!
//! The app's address, 10.79.0.9, is on the bridge of whoever serves. Dropping a [`Group`] ends all that it started.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gate::netlink::Netlink;
use gate::{CellCgroup, Namespace};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use testkit::process::Running;
use testkit::wait::Deadline;

pub const SOON: Duration = Duration::from_secs(30);
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 9);
const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 100);
pub const NAMES: [&str; 3] = ["a", "b", "c"];
const PORT: u16 = 7400;
const PREFIX: u8 = 24;
const APP: &str = "kv";

#[derive(Debug)]
struct Host {
    name: &'static str,
    namespace: Namespace,
    daemon: Option<Running>,
    /// The manager that started the app, on the first of them.
    primary: Option<Running>,
    /// Every manager that ever ran here: what it left is swept up by its number.
    managers: Vec<u32>,
}

/// Hosts by number, from 0.
#[derive(Debug)]
pub struct Group {
    hosts: Vec<Host>,
    pub clients: Namespace,
    _switch: Namespace,
    pub dir: TempDir,
    /// Real-time threads of several groups on few processors would measure each other.
    _alone: MutexGuard<'static, ()>,
}

impl Group {
    /// `count` hosts that know each other, with a daemon each.
    pub fn of(count: usize) -> Self {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let switch = Namespace::new().unwrap();
        switch.within(|| switch_on(&Netlink::open()?)).unwrap();
        let hosts = NAMES[..count].iter().enumerate().map(|(number, name)| {
            let namespace = Namespace::new().unwrap();
            plug_in(&switch, &namespace, name).unwrap();
            namespace.within(|| bridge(address(number))).unwrap();
            Host { name, namespace, daemon: None, primary: None, managers: Vec::new() }
        });
        let hosts = hosts.collect();
        let clients = Namespace::new().unwrap();
        plug_in(&switch, &clients, "clients").unwrap();
        clients.within(|| add_address("eth0", CLIENTS)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let made = checksync().args(["pki", "init"]).arg(dir.path().join("pki")).args(NAMES).output();
        assert!(made.unwrap().status.success());
        let mut group = Self { hosts, clients, _switch: switch, dir, _alone: alone };
        (0..count).for_each(|host| group.start_daemon(host));
        group
    }

    /// The app runs on host 0, protected by all others.
    pub fn protecting(count: usize, options: &[&str], program: &[String]) -> Self {
        let mut group = Self::of(count);
        group.start_primary(options, program);
        group.wait_until_protected(0);
        group
    }

    pub fn start_daemon(&mut self, host: usize) {
        let listen = format!("{}:{PORT}", address(host));
        let mut command = self.command(host, "standby");
        command.args(["--listen", &listen]).args(self.standbys_of(host));
        let mut daemon = self.hosts[host].namespace.within(|| Ok(Running::start(command))).unwrap();
        daemon.line(SOON).expect("a standby says where it listens");
        self.hosts[host].managers.push(daemon.pid());
        self.hosts[host].daemon = Some(daemon);
    }

    /// All others, the next first.
    fn standbys_of(&self, host: usize) -> Vec<String> {
        let count = self.hosts.len();
        let others = (1..count).map(|step| (host + step) % count);
        others.flat_map(|other| ["--standby".to_owned(), format!("{}:{PORT}", address(other))]).collect()
    }

    fn start_primary(&mut self, options: &[&str], program: &[String]) {
        let mut command = self.command(0, "run");
        command.args(["--app", APP, "--link", "br0"]).args(self.standbys_of(0));
        command.args(["--address", &format!("{SERVICE}/{PREFIX}")]).args(options).arg("--").args(program);
        let primary = self.hosts[0].namespace.within(|| Ok(Running::start(command))).unwrap();
        self.hosts[0].managers.push(primary.pid());
        self.hosts[0].primary = Some(primary);
    }

    fn command(&self, host: usize, verb: &str) -> Command {
        let log = File::options().create(true).append(true).open(self.log(host)).unwrap();
        let mut command = checksync();
        command.env("CHECKSYNC_RUN_DIR", self.run_dir(host)).stderr(log);
        command.arg(verb).args(["--host", self.hosts[host].name, "--pki"]).arg(self.dir.path().join("pki"));
        command.arg("--arbiter").arg(format!("file:{}", self.dir.path().join("register").display()));
        command
    }

    fn run_dir(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("run-{}", self.hosts[host].name))
    }

    fn log(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("{}.log", self.hosts[host].name))
    }

    pub fn log_of(&self, host: usize) -> String {
        fs::read_to_string(self.log(host)).unwrap_or_default()
    }

    /// All that the managers said, for whoever looks for a cause.
    pub fn logs(&self) -> String {
        (0..self.hosts.len())
            .map(|host| format!("log of {}:\n{}\n", NAMES[host], self.log_of(host)))
            .collect()
    }

    /// Kills all managers of a host, and waits until they are gone.
    pub fn kill(&mut self, host: usize) {
        let host = &mut self.hosts[host];
        for mut manager in [host.primary.take(), host.daemon.take()].into_iter().flatten() {
            manager.signal(Signal::KILL);
            manager.wait(SOON);
        }
    }

    /// The manager that started the app.
    pub fn first_primary(&mut self) -> &mut Running {
        self.hosts[0].primary.as_mut().expect("the first primary was started, and not killed")
    }

    /// The daemon of a host stands still, and what it serves falls silent in time.
    pub fn stop_daemon(&mut self, host: usize) {
        self.hosts[host].daemon.as_mut().expect("a daemon was started, and not killed").signal(Signal::STOP);
    }

    /// Kills the daemon of a host, and leaves the first primary alone.
    pub fn kill_daemon(&mut self, host: usize) {
        let mut daemon = self.hosts[host].daemon.take().expect("a daemon was started, and not killed");
        daemon.signal(Signal::KILL);
        daemon.wait(SOON);
    }

    /// Moves the app as an operator does, and answers how long nobody was answered.
    pub fn switch_over(&self, host: usize) -> Duration {
        self.try_to_switch_over(host, None).unwrap_or_else(|news| panic!("{news}\n{}", self.logs()))
    }

    pub fn switch_over_to(&self, host: usize, to: &str) -> Duration {
        self.try_to_switch_over(host, Some(to)).unwrap_or_else(|news| panic!("{news}\n{}", self.logs()))
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
    fn reports(&self, host: usize) -> Vec<Value> {
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

    /// What is said of the app on this host, by whoever runs it or keeps a copy.
    pub fn apps_of(&self, host: usize) -> Vec<Value> {
        let reports = self.reports(host);
        reports.iter().flat_map(|report| report["apps"].as_array().into_iter().flatten()).cloned().collect()
    }

    /// The app's report of whoever serves it on this host.
    pub fn served_app(&self, host: usize) -> Option<Value> {
        self.apps_of(host).into_iter().find(|app| app["role"] == "primary")
    }

    #[track_caller]
    pub fn wait_until_protected(&self, host: usize) -> Value {
        let protected = || self.served_app(host).filter(|app| app["state"] == "protected");
        self.wait(&format!("protection of the app on {}", NAMES[host]), protected)
    }

    /// Protected, and an operator is heard.
    #[track_caller]
    pub fn wait_until_movable(&self, host: usize) {
        self.wait_until_protected(host);
        let socket = self.run_dir(host).join(format!("primary-{APP}.ctl"));
        self.wait("somebody who takes orders", || UnixStream::connect(&socket).ok());
    }

    /// The host that serves in `term`, and what it says of its takeover.
    #[track_caller]
    pub fn takeover(&self, term: u64) -> (usize, Value) {
        self.wait(&format!("a takeover in term {term}"), || {
            (0..self.hosts.len()).find_map(|host| {
                let reports = self.reports(host);
                let takeovers =
                    reports.iter().flat_map(|report| report["takeovers"].as_array().into_iter().flatten());
                let found = takeovers.into_iter().find(|takeover| takeover["term"] == term)?;
                Some((host, found.clone()))
            })
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

impl Drop for Group {
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
fn cgroups_of(manager: u32) -> Vec<CellCgroup> {
    CellCgroup::left_by(manager, "checksync", APP).unwrap()
}

fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 79, 0, 1 + u8::try_from(host).unwrap())
}

fn checksync() -> Command {
    Command::new(env!("CARGO_BIN_EXE_checksync"))
}

/// A process on a host, its output read by us.
pub fn start_on(host: &Namespace, command: Command) -> Running {
    host.within(|| Ok(Running::start(command))).unwrap()
}

fn add_address(device: &str, address: Ipv4Addr) -> io::Result<()> {
    let netlink = Netlink::open()?;
    let index = netlink.link(device)?.index;
    netlink.add_address(index, IpAddr::V4(address), PREFIX)?;
    netlink.set_up(index)
}

fn switch_on(netlink: &Netlink) -> io::Result<()> {
    netlink.add_bridge("br0")?;
    netlink.set_up(netlink.link("br0")?.index)
}

/// Connects a host to the switch, by a device called eth0.
fn plug_in(switch: &Namespace, host: &Namespace, name: &str) -> io::Result<()> {
    switch.within(|| {
        let netlink = Netlink::open()?;
        let near = format!("to-{name}");
        netlink.add_veth(&near, "eth0", host.as_fd())?;
        let index = netlink.link(&near)?.index;
        netlink.set_master(index, netlink.link("br0")?.index)?;
        netlink.set_up(index)
    })
}

/// A bridge that eth0 is a port of, with the host's address.
fn bridge(address: Ipv4Addr) -> io::Result<()> {
    let netlink = Netlink::open()?;
    switch_on(&netlink)?;
    let port = netlink.link("eth0")?.index;
    netlink.set_master(port, netlink.link("br0")?.index)?;
    netlink.set_up(port)?;
    add_address("br0", address)
}
