//! Two managers, as a person would start them on two hosts, and what they say. Dropping them ends them, with all that
//! they started.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gate::CellCgroup;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;
use testkit::wait::Deadline;

use super::namespace::{Namespace, Owned, run};
use crate::workspace::{cargo, target_dir};

pub const APP: &str = "eval";
pub const PATIENCE: Duration = Duration::from_secs(60);
const LOG_LINES: usize = 12;

/// What we read of an app in a manager's report.
#[derive(Debug, Deserialize)]
pub struct AppReport {
    app: String,
    pub state: String,
    pub epoch: Option<u64>,
    pub lag_ms: Option<u64>,
    pub pause_us: Option<Pauses>,
    app_pid: Option<i32>,
}

/// Of the last epochs.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Pauses {
    pub p50: u64,
    pub p99: u64,
}

/// When a standby did what, by the wall clock.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Takeover {
    /// Of the checkpoint that was restored.
    pub frozen_at_ns: u64,
    pub suspected_at_ns: u64,
    pub won_at_ns: u64,
    pub serving_at_ns: u64,
    pub restore_us: u64,
}

/// What we read of a drill's record.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Drill {
    pub copy_us: u64,
    pub restore_us: u64,
}

#[derive(Debug, Deserialize)]
struct ManagerReport {
    apps: Vec<AppReport>,
    #[serde(default)]
    takeovers: Vec<Takeover>,
}

#[derive(Debug)]
pub struct Managers {
    primary: Owned,
    standby: Owned,
    dir: TempDir,
}

/// Builds the program that [`Managers::start`] starts.
pub fn build() -> Result<()> {
    let words = ["build", "--locked", "--release", "--quiet", "--package", "checksync", "--target-dir"];
    let built = cargo(&words).arg(target_dir()).status().context("cannot start cargo")?;
    ensure!(built.success(), "cannot build checksync: {built}");
    Ok(())
}

impl Managers {
    /// A standby that listens on `standby`, and a primary with `options` and a program; not protected yet.
    pub fn start(
        [a, b]: [&Namespace; 2],
        standby: &str,
        options: &[&str],
        program: &[String],
    ) -> Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a directory")?;
        run(Command::new(checksync()).args(["pki", "init"]).arg(dir.path().join("pki")).args(["a", "b"]))?;
        let listening = manager(dir.path(), "b", b, "standby", &["--listen", standby])?;
        let mut words = vec!["--app", APP, "--standby", standby];
        words.extend(options);
        words.push("--");
        words.extend(program.iter().map(String::as_str));
        let primary = manager(dir.path(), "a", a, "run", &words)?;
        Ok(Self { primary, standby: listening, dir })
    }

    pub fn wait_until_protected(&self) -> Result<()> {
        self.wait("a protected app", |managers| managers.app().filter(|app| app.state == "protected"))?;
        Ok(())
    }

    /// Of the primary's and of the standby's process.
    pub fn pids(&self) -> [u32; 2] {
        [self.primary.0.id(), self.standby.0.id()]
    }

    /// The app's process on host a.
    pub fn app_pid(&self) -> Result<Pid> {
        let pid = self.app().and_then(|app| app.app_pid).and_then(Pid::from_raw);
        pid.context("the manager tells of no process")
    }

    pub fn kill_app(&self) -> Result<()> {
        kill_process(self.app_pid()?, Signal::KILL).context("cannot kill the app")
    }

    /// Everything that runs on host a: the primary's manager first.
    pub fn family_of_a(&self) -> Result<Vec<Pid>> {
        let pids = family(self.primary.0.id() as i32);
        ensure!(
            pids.len() >= 3,
            "a manager, a guard and an app were to be killed, but there is only {pids:?}"
        );
        Ok(pids)
    }

    /// What the standby says of its takeover.
    pub fn takeover(&self) -> Result<Takeover> {
        self.wait("a takeover in the standby's report", |managers| managers.ask("b")?.takeovers.pop())
    }

    /// Holds a drill on host b, which must pass.
    pub fn drill(&self) -> Result<Drill> {
        let mut command = Command::new(checksync());
        command.args(["drill", "--app", APP, "--health", "true", "-o", "json"]);
        command.env("CHECKSYNC_RUN_DIR", run_dir(self.dir.path(), "b")).stdin(Stdio::null());
        // Who asked for the one before was answered first, and then it is cleared away.
        let is_over = |held: &std::io::Result<Output>| {
            held.as_ref().map_or(true, |held| !String::from_utf8_lossy(&held.stderr).contains("under way"))
        };
        let held = Deadline::after(PATIENCE).poll(|| Some(command.output()).filter(is_over));
        let held = held.context("a drill does not end")?.context("cannot start a drill")?;
        ensure!(held.status.success(), "a drill failed: {}", String::from_utf8_lossy(&held.stderr));
        serde_json::from_slice(&held.stdout).context("a drill's record says something else")
    }

    /// The app, as its primary sees it.
    pub fn app(&self) -> Option<AppReport> {
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

    /// What a host's manager and its app have said so far.
    pub fn log(&self, host: &str) -> String {
        fs::read_to_string(log(self.dir.path(), host)).unwrap_or_default()
    }

    /// Waits for a line of the app's on a host.
    pub fn wait_for_line(&self, host: &str, is_wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.wait(&format!("a line of the app's on host {host}"), |managers| {
            managers.log(host).lines().find(|line| is_wanted(line)).map(str::to_owned)
        })
    }

    pub fn wait<T>(&self, what: &str, probe: impl Fn(&Self) -> Option<T>) -> Result<T> {
        let found = Deadline::after(PATIENCE).poll(|| probe(self));
        found.with_context(|| format!("waited in vain for {what}\n{}", self.logs()))
    }

    /// The last that each manager said.
    pub fn logs(&self) -> String {
        let tail = |host: &str| {
            let text = self.log(host);
            let lines: Vec<_> = text.lines().collect();
            format!("log of host {host}:\n{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
        };
        [tail("a"), tail("b")].join("\n")
    }
}

impl Drop for Managers {
    /// What a manager started would outlive it.
    fn drop(&mut self) {
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

pub fn checksync() -> PathBuf {
    target_dir().join("release").join("checksync")
}

fn run_dir(dir: &Path, host: &str) -> PathBuf {
    dir.join(format!("run-{host}"))
}

fn log(dir: &Path, host: &str) -> PathBuf {
    dir.join(format!("{host}.log"))
}

fn manager(dir: &Path, host: &str, place: &Namespace, verb: &str, words: &[&str]) -> Result<Owned> {
    let log = File::create(log(dir, host)).context("cannot make a log")?;
    let mut command = place.command(checksync());
    command.arg(verb).arg("--pki").arg(dir.join("pki")).args(["--host", host]);
    command.arg("--arbiter").arg(format!("file:{}", dir.join("register").display()));
    command.arg("--state").arg(dir.join(host)).args(words);
    command.env("CHECKSYNC_RUN_DIR", run_dir(dir, host));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(Owned(command.spawn().context("cannot start a manager")?))
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
