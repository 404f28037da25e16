//! A child process that cannot outlive its test.
//!
//! [`Running`] owns one child: its standard output is read line by line by a thread, and when the guard is
//! dropped the child is killed by its own pid and reaped, on every path.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use crate::wait::{Deadline, wait_for, wait_until};

/// A running child. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    /// Starts `command` with its standard input closed and its standard output read by us.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let stdout = child.stdout.take().expect("stdout is piped");
        Self { name, child, lines: read_lines(stdout) }
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of output, or `None` at its end. Panics after `limit`.
    #[track_caller]
    pub fn line(&mut self, limit: Duration) -> Option<String> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{} printed nothing for {limit:?}", self.name),
        }
    }

    /// Reads lines until one is `wanted`, and returns those before it.
    #[track_caller]
    pub fn expect_line(&mut self, wanted: &str, limit: Duration) -> Vec<String> {
        let deadline = Deadline::after(limit);
        let mut before = Vec::new();
        loop {
            match self.line(deadline.left()) {
                Some(line) if line == wanted => return before,
                Some(line) => before.push(line),
                None => panic!("{} ended before it printed {wanted:?}; it printed {before:?}", self.name),
            }
        }
    }

    /// The next line if one has come, without waiting.
    pub fn line_now(&mut self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// Sends a signal to the child.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        // The child is not reaped before `wait` or `drop`, so its pid is still its own.
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a child's pid is positive");
        kill_process(pid, signal).unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
    }

    /// Waits for the child's end.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let Self { name, child, .. } = self;
        wait_for(&format!("the end of {name}"), limit, || {
            child.try_wait().expect("our own child can be waited for")
        })
    }

    /// Whether the child still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our own child can be waited for").is_none()
    }
}

/// A process that is somebody else's child. Its end is asked for, and not the end of its entry in /proc: nobody may be
/// there to reap an orphan.
#[derive(Debug)]
pub struct Watched(OwnedFd);

impl Watched {
    /// # Panics
    /// If it is gone.
    #[must_use]
    pub fn of(pid: Pid) -> Self {
        Self(pidfd_open(pid, PidfdFlags::empty()).expect("it lives"))
    }

    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut ended = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut ended, Some(&Timespec::default())).expect("a pidfd can be polled") == 1
    }
}

/// Kills a process that is somebody else's child, unless it has ended by itself, and waits for its end.
#[track_caller]
pub fn kill(pid: Pid, limit: Duration) {
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let _ended_by_itself = pidfd_send_signal(&pidfd, Signal::KILL);
    let watched = Watched(pidfd);
    wait_until(&format!("the end of {pid}"), limit, || watched.has_ended());
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if the child was reaped already, and then there is nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads lines on a thread of its own, which ends with the pipe.
fn read_lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Running::start(command)
    }

    #[test]
    fn lines_before_the_wanted_one_are_returned() {
        let mut child = shell("echo one; echo two; echo ready; exit 3");
        assert_eq!(child.expect_line("ready", SOON), ["one", "two"]);
        assert_eq!(child.line(SOON), None);
        assert_eq!(child.wait(SOON).code(), Some(3));
    }

    #[test]
    fn dropping_the_guard_kills_the_child() {
        let mut child = shell("echo ready; exec sleep 1000");
        child.expect_line("ready", SOON);
        let path = format!("/proc/{}", child.pid());
        assert!(std::path::Path::new(&path).exists());
        drop(child);
        assert!(!std::path::Path::new(&path).exists());
    }
}
