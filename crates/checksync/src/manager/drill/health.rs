//! The health command: run again and again inside a drill's cell, until it ends well.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

/// What the drill's command is told of where it runs.
#[derive(Debug)]
pub struct Subject<'a> {
    pub app: &'a str,
    /// The restored process, as this host counts.
    pub pid: i32,
    /// Where the app is, if it has an address of its own.
    pub address: Option<String>,
}

/// One attempt. Dropped, it is killed with all that it started.
#[derive(Debug)]
pub struct Attempt {
    child: Child,
    said: std::fs::File,
}

impl Attempt {
    pub fn start(command: &str, subject: &Subject<'_>) -> std::io::Result<Self> {
        let said = rustix::fs::memfd_create("health", rustix::fs::MemfdFlags::CLOEXEC)?;
        let copy = |fd: &OwnedFd| fd.try_clone().map(Stdio::from);
        let mut inside = Command::new("/proc/self/exe");
        inside.arg("cell-enter").arg(subject.pid.to_string()).arg(command);
        inside.stdin(Stdio::null()).stdout(copy(&said)?).stderr(copy(&said)?).process_group(0);
        inside.env("CHECKSYNC_APP", subject.app).env("CHECKSYNC_ROLE", "drill");
        inside.envs(subject.address.as_ref().map(|address| ("CHECKSYNC_ADDRESS", address)));
        sys::spawn::with_open_signals(&mut inside);
        Ok(Self { child: inside.spawn()?, said: said.into() })
    }

    pub fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// The last line of what it said.
    pub fn last_words(&mut self) -> String {
        const LEN_MAX: u64 = 64 << 10;
        const SHOWN_MAX: usize = 200;
        let mut text = Vec::new();
        let rewound = std::io::Seek::rewind(&mut self.said);
        // What it said is a help only.
        let _ = rewound.and_then(|()| (&self.said).take(LEN_MAX).read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        last.trim().chars().take(SHOWN_MAX).collect()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.child.id() as i32) {
            // It is not reaped yet, or has left nobody behind.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
