//! A street of the test's own: two hosts with a manager each and a host of clients, at one switch.
//!
//! ```text
//!   a: br0 10.78.0.1 ── eth0 ═══╗
//!   b: br0 10.78.0.2 ── eth0 ═══ switch ═══ eth0  clients 10.78.0.3
//! ```
//!
//! The app's address, 10.78.0.9, is on the bridge of whoever serves. Dropping a [`Pair`] ends all that it started.

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
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;
use testkit::process::Running;
use testkit::wait::Deadline;

use super::moments::LOG_FILTER;

pub const SOON: Duration = Duration::from_secs(30);
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 9);
pub const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 3);
const HOSTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 78, 0, 1), Ipv4Addr::new(10, 78, 0, 2)];
const STANDBY_PORT: u16 = 7400;
const PREFIX: u8 = 24;
const APP: &str = "kv";

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    A,
    B,
}

#[derive(Debug)]
struct Host {
    name: &'static str,
    namespace: Namespace,
    manager: Option<Running>,
    /// Every manager that ever ran here: what it left is swept up by its number.
    managers: Vec<u32>,
}

/// Two hosts, their managers, and the clients' host.
#[derive(Debug)]
pub struct Pair {
    hosts: [Host; 2],
    pub clients: Namespace,
    _switch: Namespace,
    pub dir: TempDir,
    /// Each step of each epoch is in the logs.
    pub epochs_logged: bool,
    /// Real-time threads of several pairs on few processors would measure each other.
    _alone: MutexGuard<'static, ()>,
}

impl Pair {
    /// The hosts, without any manager yet.
    pub fn build() -> Self {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let switch = Namespace::new().unwrap();
        switch.within(|| switch_on(&Netlink::open()?)).unwrap();
        let hosts = ["a", "b"].map(|name| {
            let namespace = Namespace::new().unwrap();
            Host { name, namespace, manager: None, managers: Vec::new() }
        });
        for (host, address) in hosts.iter().zip(HOSTS) {
            plug_in(&switch, &host.namespace, host.name).unwrap();
            host.namespace.within(|| bridge(address)).unwrap();
        }
        let clients = Namespace::new().unwrap();
        plug_in(&switch, &clients, "clients").unwrap();
        clients.within(|| add_address("eth0", CLIENTS)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let made = checksync().args(["pki", "init"]).arg(dir.path().join("pki")).args(["a", "b"]).output();
        assert!(made.unwrap().status.success());
        Self { hosts, clients, _switch: switch, dir, epochs_logged: false, _alone: alone }
    }

    /// A standby, and a protected program.
    pub fn protecting(options: &[&str], program: &[String]) -> Self {
        Self::build().protect(options, program)
    }

    /// The same, on hosts that are there.
    pub fn protect(self, options: &[&str], program: &[String]) -> Self {
        let mut pair = self;
        pair.start_standby();
        pair.start_primary(options, program);
        pair.wait_until_protected();
        pair
    }

    pub fn start_standby(&mut self) {
        let listen = format!("{}:{STANDBY_PORT}", HOSTS[1]);
        let mut command = self.manager_command(Side::B, "standby");
        command.args(["--listen", &listen]);
        let manager = self.start_manager(Side::B, command);
        manager.line(SOON).expect("a standby says where it listens");
    }

    pub fn start_primary(&mut self, options: &[&str], program: &[String]) {
        self.start_primary_at(&format!("{SERVICE}/{PREFIX}"), options, program);
    }

    pub fn start_primary_at(&mut self, address: &str, options: &[&str], program: &[String]) {
        let standby = format!("{}:{STANDBY_PORT}", HOSTS[1]);
        let mut command = self.manager_command(Side::A, "run");
        command.args(["--app", APP, "--standby", &standby, "--link", "br0"]);
        command.args(["--address", address]).args(options).arg("--").args(program);
        self.start_manager(Side::A, command);
    }

    fn manager_command(&self, side: Side, verb: &str) -> Command {
        let name = self.host(side).name;
        let log = File::options().create(true).append(true).open(self.log(side)).unwrap();
        let mut command = checksync();
        command.env("CHECKSYNC_RUN_DIR", self.run_dir(side)).stderr(log);
        if self.epochs_logged {
            command.env("RUST_LOG", LOG_FILTER);
        }
        command.arg(verb).args(["--host", name, "--pki"]).arg(self.dir.path().join("pki"));
        command.arg("--arbiter").arg(format!("file:{}", self.dir.path().join("register").display()));
        command
    }

    fn start_manager(&mut self, side: Side, command: Command) -> &mut Running {
        let host = &mut self.hosts[side as usize];
        let manager = host.namespace.within(|| Ok(Running::start(command))).unwrap();
        host.managers.push(manager.pid());
        host.manager.insert(manager)
    }

    fn host(&self, side: Side) -> &Host {
        &self.hosts[side as usize]
    }

    pub fn namespace(&self, side: Side) -> &Namespace {
        &self.host(side).namespace
    }

    fn run_dir(&self, side: Side) -> PathBuf {
        self.dir.path().join(format!("run-{}", self.host(side).name))
    }

    pub fn log(&self, side: Side) -> PathBuf {
        self.dir.path().join(format!("{}.log", self.host(side).name))
    }

    /// All that the managers said, for whoever looks for a cause.
    pub fn logs(&self) -> String {
        let log = |side| fs::read_to_string(self.log(side)).unwrap_or_default();
        format!("log of a:\n{}\nlog of b:\n{}", log(Side::A), log(Side::B))
    }

    pub fn log_of(&self, side: Side) -> String {
        fs::read_to_string(self.log(side)).unwrap_or_default()
    }

    pub fn manager(&mut self, side: Side) -> &mut Running {
        self.hosts[side as usize].manager.as_mut().expect("a manager was started")
    }

    pub fn manager_pid(&self, side: Side) -> Option<u32> {
        self.host(side).manager.as_ref().map(Running::pid)
    }

    pub fn signal(&mut self, side: Side, signal: Signal) {
        self.manager(side).signal(signal);
    }

    /// Kills a manager, and waits until it is gone.
    pub fn kill_manager(&mut self, side: Side) {
        self.signal(side, Signal::KILL);
        self.manager(side).wait(SOON);
    }

    /// The app's process on host a.
    pub fn app_pid(&self) -> Pid {
        let pid = self.app(Side::A).and_then(|app| app["app_pid"].as_i64()).expect("the app runs on a");
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }

    /// Waits until the app has taken these connections: a takeover ends those that wait for it.
    #[track_caller]
    pub fn wait_until_accepted(&self, connections: usize) {
        let fds = PathBuf::from(format!("/proc/{}/fd", self.app_pid().as_raw_nonzero()));
        let is_socket = |fd: &fs::DirEntry| {
            fs::read_link(fd.path()).is_ok_and(|what| what.to_string_lossy().starts_with("socket:"))
        };
        self.wait("accepted connections", || {
            let sockets = fs::read_dir(&fds).ok()?.flatten().filter(is_socket).count();
            // One listens.
            (sockets > connections).then_some(())
        });
    }

    /// The power of host a fails: nobody hears it any more, and then nothing runs there.
    pub fn power_off_a(&mut self) {
        self.cut(Side::A);
        // Stopped first: a manager that sees its app die, or a guard its manager, would say so.
        self.signal(Side::A, Signal::STOP);
        for cgroup in cgroups_of(self.manager(Side::A).pid()) {
            cgroup.kill_all().unwrap();
        }
        self.kill_manager(Side::A);
    }

    /// Pulls a host's cable.
    pub fn cut(&self, side: Side) {
        self.set_cable(side, Netlink::set_down);
    }

    pub fn heal(&self, side: Side) {
        self.set_cable(side, Netlink::set_up);
    }

    fn set_cable(&self, side: Side, set: fn(&Netlink, u32) -> io::Result<()>) {
        let work = || {
            let netlink = Netlink::open()?;
            set(&netlink, netlink.link("eth0")?.index)
        };
        self.namespace(side).within(work).unwrap();
    }

    /// Moves the app to b as an operator does; how long nobody was answered.
    pub fn switch_over(&self) -> Duration {
        let mut command = checksync();
        command.env("CHECKSYNC_RUN_DIR", self.run_dir(Side::A)).args(["switchover", "-o", "json"]);
        let done = command.output().unwrap();
        let news = String::from_utf8(done.stdout).unwrap();
        assert!(done.status.success(), "{news}\n{}", self.logs());
        let moved: Value = serde_json::from_str(news.lines().last().unwrap()).unwrap();
        Duration::from_micros(moved["pause_us"].as_u64().unwrap())
    }

    /// The manager's report, if one answers.
    fn report(&self, side: Side) -> Option<Value> {
        let entries = fs::read_dir(self.run_dir(side)).ok()?.flatten().map(|entry| entry.path());
        let mut sockets = entries.filter(|path| path.extension().is_some_and(|ending| ending == "sock"));
        sockets.find_map(|socket| {
            let mut stream = UnixStream::connect(socket).ok()?;
            stream.set_read_timeout(Some(SOON)).ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            serde_json::from_str(&text).ok()
        })
    }

    pub fn app(&self, side: Side) -> Option<Value> {
        self.report(side)?["apps"].as_array()?.first().cloned()
    }

    #[track_caller]
    pub fn wait_for_app(&self, side: Side, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait(what, || self.app(side).filter(&wanted))
    }

    #[track_caller]
    pub fn wait_until_protected(&self) {
        self.wait_for_app(Side::A, "a protected app", |app| app["state"] == "protected");
    }

    /// What the standby says of its takeover, once it serves.
    #[track_caller]
    pub fn takeover(&self) -> Value {
        self.wait("a takeover", || self.last_takeover())
    }

    pub fn last_takeover(&self) -> Option<Value> {
        self.report(Side::B)?["takeovers"].as_array()?.last().cloned()
    }

    #[track_caller]
    pub fn wait<T>(&self, what: &str, probe: impl FnMut() -> Option<T>) -> T {
        match Deadline::after(SOON).poll(probe) {
            Some(found) => found,
            None => panic!("waited {SOON:?} in vain for {what}\n{}", self.logs()),
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for host in &mut self.hosts {
            // Dropping it kills it.
            host.manager = None;
            for cgroup in host.managers.iter().flat_map(|manager| cgroups_of(*manager)) {
                // It may go with its last process. One that stays is swept up by the next manager.
                let _ = cgroup.kill_all();
                let _ = cgroup.remove(SOON);
            }
        }
    }
}

/// What a manager gave to its apps.
fn cgroups_of(manager: u32) -> Vec<CellCgroup> {
    CellCgroup::left_by(manager, "checksync", APP).unwrap()
}

pub fn checksync() -> Command {
    Command::new(env!("CARGO_BIN_EXE_checksync"))
}

/// A process on a host, its output read by us.
pub fn start_on(host: &Namespace, command: Command) -> Running {
    host.within(|| Ok(Running::start(command))).unwrap()
}

pub fn add_address(device: &str, address: Ipv4Addr) -> io::Result<()> {
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
