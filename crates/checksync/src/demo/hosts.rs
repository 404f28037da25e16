//! The two hosts: in each a manager as a user would start it, and what it starts in turn.
//!
//! A host is its network namespace: whatever is in there belongs to it, and dies with it. Dropping a [`Stage`]
//! ends both hosts, and removes every file and cgroup that they made.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use gate::{CellCgroup, Namespace};

use super::network::{A_FROM_STREET, B_FROM_A, B_FROM_STREET, Network, processes};
use crate::status::{self, AppReport, ManagerReport, TakeoverReport};

pub const APP: &str = "demo";
const APP_PORT: u16 = 7000;
const STANDBY_PORT: u16 = 7999;
/// What a host that is asked to stop may take, before it is killed.
const GRACE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(2);
const LOG_LINES: usize = 15;

/// Where clients find the app while host a, or host b, serves it.
pub const ON_A: SocketAddr = address(A_FROM_STREET);
const ON_B: SocketAddr = address(B_FROM_STREET);

const fn address(host: Ipv4Addr) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(host), APP_PORT)
}

/// A directory, a network, and what runs in it.
#[derive(Debug)]
pub struct Stage {
    pub network: Arc<Network>,
    dir: Scratch,
    hosts: Vec<Host>,
}

#[derive(Debug)]
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // It lies where temporary files do; the system cleans up there.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Debug)]
struct Host {
    name: &'static str,
    manager: Child,
}

impl Stage {
    pub fn build(network: Network) -> anyhow::Result<Self> {
        let dir = env::temp_dir().join(format!("checksync-demo-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        let stage = Self { network: Arc::new(network), dir: Scratch(dir), hosts: Vec::new() };
        wire::pki::init(&stage.path("pki"), &["a".to_owned(), "b".to_owned()])?;
        Ok(stage)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.0.join(name)
    }

    /// The FIFO through which the standby's hook tells the relay who serves.
    pub fn serving(&self) -> PathBuf {
        self.path("serving")
    }

    pub fn start_standby(&mut self) -> anyhow::Result<()> {
        let mut command = self.command("b", "standby")?;
        command.arg("--listen").arg(SocketAddr::from((B_FROM_A, STANDBY_PORT)).to_string());
        let mut hook = OsString::from(format!("echo {ON_B} > "));
        hook.push(self.serving());
        command.arg("--promote-hook").arg(hook);
        let network = Arc::clone(&self.network);
        self.start("b", &network.b, command)
    }

    pub fn start_primary(&mut self) -> anyhow::Result<()> {
        let mut command = self.command("a", "run")?;
        command.args(["--app", APP, "--standby", &format!("{B_FROM_A}:{STANDBY_PORT}"), "--"]);
        command.arg(program()?).arg("demo-app").arg(format!("0.0.0.0:{APP_PORT}"));
        let network = Arc::clone(&self.network);
        self.start("a", &network.a, command)
    }

    /// What both managers are told.
    fn command(&self, host: &str, verb: &str) -> anyhow::Result<Command> {
        let run_dir = self.run_dir(host);
        DirBuilder::new().mode(0o700).create(&run_dir).context("cannot make a run directory")?;
        let mut arbiter = OsString::from("file:");
        arbiter.push(self.path("register"));
        let log = File::create(self.log(host)).context("cannot make a log")?;
        let mut command = Command::new(program()?);
        command.arg(verb).arg("--pki").arg(self.path("pki")).args(["--host", host]);
        command.arg("--arbiter").arg(arbiter).arg("--state").arg(self.path(host));
        command.env("CHECKSYNC_RUN_DIR", run_dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // A Ctrl-C is ours to answer, for both.
        command.process_group(0);
        Ok(command)
    }

    fn run_dir(&self, host: &str) -> PathBuf {
        self.path(&format!("run-{host}"))
    }

    fn log(&self, host: &str) -> PathBuf {
        self.path(&format!("{host}.log"))
    }

    fn start(&mut self, name: &'static str, place: &Namespace, mut command: Command) -> anyhow::Result<()> {
        let manager = place.within(|| command.spawn());
        let manager = manager.with_context(|| format!("cannot start the manager of host {name}"))?;
        self.hosts.push(Host { name, manager });
        Ok(())
    }

    /// Fails if a manager that should run does not.
    pub fn look_after(&mut self) -> anyhow::Result<()> {
        for host in &mut self.hosts {
            if let Some(status) = host.manager.try_wait().context("cannot look after a manager")? {
                let log = self.dir.0.join(format!("{}.log", host.name));
                bail!("the manager of host {} ended too early ({status}):\n{}", host.name, tail(&log));
            }
        }
        Ok(())
    }

    /// The last that each manager said, for whoever looks for a cause.
    pub fn logs(&self) -> String {
        ["a", "b"].map(|host| format!("log of host {host}:\n{}", tail(&self.log(host)))).join("\n")
    }

    pub fn standby_listens(&self) -> bool {
        self.ask("b").is_some()
    }

    /// What host a says of the app.
    pub fn primary(&self) -> Option<AppReport> {
        self.ask("a")?.apps.into_iter().find(|report| report.app == APP)
    }

    /// What host b says of its takeover, once there was one.
    pub fn takeover(&self) -> Option<TakeoverReport> {
        self.ask("b")?.takeovers.into_iter().find(|report| report.app == APP)
    }

    fn ask(&self, host: &str) -> Option<ManagerReport> {
        status::ask_in(&self.run_dir(host)).ok()?.pop()
    }

    /// The death of host a: its cables are pulled, and everything on it is killed. Returns how much that was.
    pub fn kill_a(&mut self) -> anyhow::Result<usize> {
        self.network.cut_a().context("cannot cut host a off")?;
        let killed = kill_all(&self.network.a);
        if let Some(at) = self.hosts.iter().position(|host| host.name == "a") {
            let mut host = self.hosts.swap_remove(at);
            host.manager.wait().context("cannot wait for the manager of host a")?;
            clean_up_after(&host);
        }
        Ok(killed)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            // A manager that is gone is as good as one that was asked.
            let _ = sys::task::kill(host.manager.id() as i32, libc::SIGTERM);
        }
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline && self.hosts.iter_mut().any(|host| is_running(&mut host.manager)) {
            thread::sleep(POLL);
        }
        for place in [&self.network.a, &self.network.b] {
            kill_all(place);
        }
        for host in &mut self.hosts {
            let _reaped = host.manager.wait();
            clean_up_after(host);
        }
    }
}

fn is_running(manager: &mut Child) -> bool {
    matches!(manager.try_wait(), Ok(None))
}

fn program() -> io::Result<PathBuf> {
    env::current_exe()
}

/// Kills what is in a namespace until nothing is: what was being born while we looked is found the next time.
fn kill_all(place: &Namespace) -> usize {
    let deadline = Instant::now() + GRACE;
    let mut killed = 0;
    loop {
        let alive: Vec<i32> = processes(place).into_iter().filter(|&pid| !is_zombie(pid)).collect();
        if alive.is_empty() || Instant::now() > deadline {
            return killed;
        }
        killed = killed.max(alive.len());
        for pid in alive {
            // One that is gone already is what we want.
            let _ = sys::task::kill(pid, libc::SIGKILL);
        }
        thread::sleep(POLL);
    }
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// A manager that was killed leaves its app's cgroup, which is empty by now.
fn clean_up_after(host: &Host) {
    for cgroup in CellCgroup::left_by(host.manager.id(), "checksync", APP).unwrap_or_default() {
        let name = cgroup.name().to_owned();
        if let Err(why) = cgroup.remove(GRACE) {
            tracing::warn!("cgroup {name} of host {} stays: {why}", host.name);
        }
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
