//! Hosts on this machine: network namespaces, each held by a sleeping process. Whoever starts something in one goes
//! through `nsenter`. Dropping one ends its holder, and with it the namespace.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use testkit::wait::Deadline;

const PATIENCE: Duration = Duration::from_secs(60);

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

#[derive(Debug)]
pub struct Namespace(Owned);

impl Namespace {
    /// One of its own, with its loopback up.
    pub fn hold() -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sleep", "infinity"]);
        let holder = Self(Owned(command.stdin(Stdio::null()).spawn().context("cannot start unshare")?));
        let inode = |path: &str| fs::metadata(path).map(|file| file.ino()).ok();
        let own = inode("/proc/self/ns/net");
        let is_another = || inode(&holder.path()).is_some_and(|other| Some(other) != own).then_some(());
        Deadline::after(PATIENCE).poll(is_another).context("unshare made no namespace")?;
        holder.ip("link set lo up")?;
        Ok(holder)
    }

    /// Of its holder.
    pub fn pid(&self) -> u32 {
        self.0.0.id()
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    /// Has `ip` do something in there: words, with blanks between them.
    pub fn ip(&self, words: &str) -> Result<()> {
        run(self.command("ip").args(words.split_ascii_whitespace()))
    }

    /// Moves this thread in there, for good.
    pub fn enter(&self) -> Result<()> {
        let namespace = File::open(self.path()).context("cannot open a namespace")?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter a namespace")
    }
}

/// Reads what a program of ours prints, until a line begins like this.
pub fn line_of(program: &mut Owned, beginning: &str) -> Result<String> {
    let output = program.0.stdout.take().context("stdout is piped, and read once")?;
    let mut lines = BufReader::new(output).lines().map_while(Result::ok);
    lines
        .find(|line| line.starts_with(beginning))
        .with_context(|| format!("it ended before it said {beginning:?}"))
}

pub fn run(command: &mut Command) -> Result<()> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// The end of a cable, in the hands of an `ip` that waits for orders: pulling it costs no new process.
#[derive(Debug)]
pub struct Plug {
    ip: Owned,
    device: &'static str,
}

impl Plug {
    pub fn new(host: &Namespace, device: &'static str) -> Result<Self> {
        let mut command = host.command("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(Self { ip: Owned(command.spawn().context("cannot start ip")?), device })
    }

    /// Returns once no packet passes any more.
    pub fn pull(&mut self) -> Result<()> {
        let began = Instant::now();
        let Child { stdin, stdout, .. } = &mut self.ip.0;
        let (Some(orders), Some(answers)) = (stdin.take(), stdout.take()) else {
            bail!("it was pulled before")
        };
        let (mut orders, device) = (orders, self.device);
        let order = format!("link set {device} down\nlink show {device}\n");
        orders.write_all(order.as_bytes()).context("ip takes no orders")?;
        drop(orders);
        let mut line = String::new();
        BufReader::new(answers).read_line(&mut line)?;
        let is_down = line.contains(device) && !line.contains("UP");
        ensure!(is_down, "after {:?} ip says: {line}", began.elapsed());
        Ok(())
    }
}
