//! Two hosts on this machine: a network namespace each, a cable between them, and in each a manager as a person
//! would start it. Dropping a [`Hosts`] ends all of it.
//!
//! A namespace is held by a sleeping process; whoever starts something in there goes through `nsenter`. The
//! cable's end at host a is in the hands of an `ip` that waits for orders: pulling it costs no new process.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gate::CellCgroup;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Deserialize;
use tempfile::TempDir;
use testkit::programs::go_app;
use testkit::wait::Deadline;

use super::kv;
use crate::workspace::target_dir;

pub const APP: &str = "eval";
const ON_ALL: &str = "0.0.0.0:7000";
/// The app, as its clients on either host see it.
pub const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 7000);
const STANDBY: &str = "10.97.0.2:7999";
const PATIENCE: Duration = Duration::from_secs(60);
const LOG_LINES: usize = 12;

/// A process of ours. Dropping it kills it.
#[derive(Debug)]
pub struct Owned(pub Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // It fails only if it ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What we read of an app in a manager's report.
#[derive(Debug, Deserialize)]
pub struct AppReport {
    app: String,
    state: String,
    epoch: Option<u64>,
    app_pid: Option<i32>,
}

/// When a standby did what, by the wall clock.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Takeover {
    pub suspected_at_ns: u64,
    pub won_at_ns: u64,
    pub serving_at_ns: u64,
    pub restore_us: u64,
}

#[derive(Debug, Deserialize)]
struct ManagerReport {
    apps: Vec<AppReport>,
    #[serde(default)]
    takeovers: Vec<Takeover>,
}

/// N.B. fields are dropped in their order: what runs in a namespace before who holds it.
#[derive(Debug)]
pub struct Hosts {
    client: Option<Owned>,
    primary: Owned,
    standby: Owned,
    plug: Plug,
    b: Owned,
    a: Owned,
    dir: TempDir,
}

impl Hosts {
    /// An app with so many keys on host a, protected, with a client that has been at it for some epochs.
    pub fn start(keys: u64) -> Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a directory")?;
        let (a, b) = (hold_namespace()?, hold_namespace()?);
        connect(&a, &b)?;
        let plug = Plug::new(&a)?;
        run(Command::new(program()).args(["pki", "init"]).arg(dir.path().join("pki")).args(["a", "b"]))?;
        let standby = manager(dir.path(), "b", &b, "standby", &["--listen", STANDBY])?;
        let address = format!("{}:{}", std::net::Ipv4Addr::from(ADDRESS.0), ADDRESS.1);
        let server = go_app("kv").display().to_string();
        let mut words = ["--app", APP, "--standby", STANDBY, "--", &server].map(str::to_owned).to_vec();
        words.extend(kv::serve(ON_ALL, keys));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let primary = manager(dir.path(), "a", &a, "run", &words)?;
        let mut hosts = Self { client: None, primary, standby, plug, b, a, dir };
        hosts.wait("a protected app", |hosts| hosts.app().filter(|app| app.state == "protected"))?;
        // Protected it may be before it has put its pairs in.
        hosts.wait("a server that has its pairs", |hosts| {
            let text = fs::read_to_string(log(hosts.dir.path(), "a")).ok()?;
            text.lines().any(|line| line == "ready").then_some(())
        })?;
        hosts.client = Some(client(&hosts.a, &address, keys)?);
        const EPOCHS: u64 = 10;
        let first = hosts.app().and_then(|app| app.epoch).unwrap_or(0);
        let later = |hosts: &Self| hosts.app()?.epoch.filter(|epoch| *epoch >= first + EPOCHS);
        hosts.wait("epochs under load", later)?;
        Ok(hosts)
    }

    /// The app's process.
    pub fn app_pid(&self) -> Result<Pid> {
        let pid = self.app().and_then(|app| app.app_pid).and_then(Pid::from_raw);
        pid.context("the manager tells of no process")
    }

    /// Pulls the cable, and then kills all that runs on host a.
    pub fn kill_host_a(&mut self) -> Result<()> {
        let pids = family(self.primary.0.id() as i32);
        ensure!(
            pids.len() >= 3,
            "a manager, a guard and an app were to be killed, but there is only {pids:?}"
        );
        self.plug.pull()?;
        for pid in pids {
            // With its parent, another may have gone already.
            let _ = kill_process(pid, Signal::KILL);
        }
        Ok(())
    }

    pub fn kill_app(&self) -> Result<()> {
        kill_process(self.app_pid()?, Signal::KILL).context("cannot kill the app")
    }

    /// Moves this thread to host b, for good.
    pub fn enter_b(&self) -> Result<()> {
        let namespace = File::open(namespace_of(&self.b)).context("cannot open a namespace")?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter a namespace")
    }

    /// What the standby says of its takeover.
    pub fn takeover(&self) -> Result<Takeover> {
        self.wait("a takeover in the standby's report", |hosts| hosts.ask("b")?.takeovers.pop())
    }

    fn app(&self) -> Option<AppReport> {
        self.ask("a")?.apps.into_iter().find(|app| app.app == APP)
    }

    fn ask(&self, host: &str) -> Option<ManagerReport> {
        let mut sockets = fs::read_dir(run_dir(self.dir.path(), host)).ok()?.flatten();
        let socket = sockets.find(|entry| entry.path().extension().is_some_and(|ending| ending == "sock"))?;
        let mut stream = UnixStream::connect(socket.path()).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut line = String::new();
        stream.read_to_string(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    fn wait<T>(&self, what: &str, probe: impl Fn(&Self) -> Option<T>) -> Result<T> {
        let found = Deadline::after(PATIENCE).poll(|| probe(self));
        found.with_context(|| format!("waited in vain for {what}\n{}", self.logs()))
    }

    /// The last that each manager said.
    pub fn logs(&self) -> String {
        let tail = |host: &str| {
            let text = fs::read_to_string(log(self.dir.path(), host)).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            format!("log of host {host}:\n{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
        };
        [tail("a"), tail("b")].join("\n")
    }
}

impl Drop for Hosts {
    /// What a manager started would outlive it.
    fn drop(&mut self) {
        self.client = None;
        let managers = [self.primary.0.id() as i32, self.standby.0.id() as i32];
        for pid in managers.into_iter().flat_map(family) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
        for manager in [&mut self.primary, &mut self.standby] {
            let _ = manager.0.wait();
            remove_cgroups(manager.0.id());
        }
    }
}

/// A killed manager leaves its app's cgroup, which is empty once the app is gone.
fn remove_cgroups(manager: u32) {
    for cgroup in CellCgroup::left_by(manager, "checksync", APP).unwrap_or_default() {
        let _ = cgroup.kill_all();
        // One that stays is swept up by the next manager.
        let _ = cgroup.remove(Duration::from_secs(5));
    }
}

fn program() -> PathBuf {
    target_dir().join("release").join("checksync")
}

fn run_dir(dir: &Path, host: &str) -> PathBuf {
    dir.join(format!("run-{host}"))
}

fn log(dir: &Path, host: &str) -> PathBuf {
    dir.join(format!("{host}.log"))
}

/// A namespace of its own, with its loopback up, and a process that holds it.
fn hold_namespace() -> Result<Owned> {
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "sleep", "infinity"]);
    let holder = Owned(command.stdin(Stdio::null()).spawn().context("cannot start unshare")?);
    let inode = |path: &str| fs::metadata(path).map(|file| file.ino()).ok();
    let own = inode("/proc/self/ns/net");
    let is_another = || inode(&namespace_of(&holder)).is_some_and(|other| Some(other) != own).then_some(());
    Deadline::after(PATIENCE).poll(is_another).context("unshare made no namespace")?;
    run(inside(&holder, "ip").args(["link", "set", "lo", "up"]))?;
    Ok(holder)
}

fn namespace_of(holder: &Owned) -> String {
    format!("/proc/{}/ns/net", holder.0.id())
}

fn inside(holder: &Owned, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace_of(holder))).arg("--").arg(program);
    command
}

fn connect(a: &Owned, b: &Owned) -> Result<()> {
    let peer = b.0.id().to_string();
    run(
        inside(a, "ip").args(["link", "add", "to-b", "type", "veth", "peer", "name", "to-a", "netns", &peer])
    )?;
    for (host, device, address) in [(a, "to-b", "10.97.0.1/24"), (b, "to-a", "10.97.0.2/24")] {
        run(inside(host, "ip").args(["address", "add", address, "dev", device]))?;
        run(inside(host, "ip").args(["link", "set", device, "up"]))?;
    }
    Ok(())
}

fn manager(dir: &Path, host: &str, place: &Owned, verb: &str, words: &[&str]) -> Result<Owned> {
    let log = File::create(log(dir, host)).context("cannot make a log")?;
    let mut command = inside(place, program());
    command.arg(verb).arg("--pki").arg(dir.join("pki")).args(["--host", host]);
    command.arg("--arbiter").arg(format!("file:{}", dir.join("register").display()));
    command.arg("--state").arg(dir.join(host)).args(words);
    command.env("CHECKSYNC_RUN_DIR", run_dir(dir, host));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(Owned(command.spawn().context("cannot start a manager")?))
}

fn client(place: &Owned, address: &str, keys: u64) -> Result<Owned> {
    let mut command = inside(place, go_app("kv"));
    command.args(["load", "--clients", "1", "--read-percent", "90", "--addr", address]);
    command.args(["--keys", &keys.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Owned(command.spawn().context("cannot start a client")?))
}

fn run(command: &mut Command) -> Result<()> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// A process and all below it, it first.
fn family(pid: i32) -> Vec<Pid> {
    let mut found: Vec<Pid> = Pid::from_raw(pid).into_iter().collect();
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        let tasks =
            fs::read_dir(format!("/proc/{}/task", parent.as_raw_nonzero())).into_iter().flatten().flatten();
        let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        for text in children.collect::<Vec<_>>() {
            found.extend(text.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)));
        }
        next += 1;
    }
    found
}

/// The end of the cable at host a.
#[derive(Debug)]
struct Plug(Owned);

impl Plug {
    fn new(a: &Owned) -> Result<Self> {
        let mut command = inside(a, "ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(Self(Owned(command.spawn().context("cannot start ip")?)))
    }

    /// Returns once no packet passes any more.
    fn pull(&mut self) -> Result<()> {
        let began = Instant::now();
        let Child { stdin, stdout, .. } = &mut self.0.0;
        let (Some(orders), Some(answers)) = (stdin.take(), stdout.take()) else {
            bail!("it was pulled before")
        };
        let mut orders = orders;
        orders.write_all(b"link set to-b down\nlink show to-b\n").context("ip takes no orders")?;
        drop(orders);
        let mut line = String::new();
        BufReader::new(answers).read_line(&mut line)?;
        ensure!(line.contains("to-b") && !line.contains("UP"), "after {:?} ip says: {line}", began.elapsed());
        Ok(())
    }
}
