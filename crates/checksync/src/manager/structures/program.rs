//! The program that has the structures: an ordinary child, which dies with its manager.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;

use anyhow::Context;
use replica::primary::AppExit;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::mpsc;

/// Where its library finds the manager.
pub const SOCKET_VARIABLE: &str = "CHECKSYNC_STRUCTURES";

#[derive(Debug)]
pub struct Program {
    pid: i32,
    handle: OwnedFd,
}

impl Program {
    /// Starts it, and calls `ended` when it has ended.
    pub fn start(
        command: &[OsString],
        socket: &Path,
        app: &str,
        ended: impl FnOnce(AppExit) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (name, arguments) = command.split_first().context("no program is named")?;
        let mut program = Command::new(name);
        sys::spawn::with_open_signals(&mut program);
        program.args(arguments).env(SOCKET_VARIABLE, socket).env("CHECKSYNC_APP", app);
        let (started, has_started) = mpsc::channel();
        // It dies with the thread that starts it, so that thread waits for it, too.
        thread::Builder::new().name("program".to_owned()).spawn(move || {
            sys::spawn::dying_with_this_thread(&mut program);
            let begun = begin(&mut program);
            let (told, child) = match begun {
                Ok((program, child)) => (Ok(program), Some(child)),
                Err(why) => (Err(why), None),
            };
            // Whoever started us waits for this.
            let _ = started.send(told);
            if let Some(mut child) = child {
                ended(exit_of(child.wait()));
            }
        })?;
        let told = has_started.recv().context("the thread of the program is gone")?;
        told.with_context(|| format!("cannot start {}", name.display()))
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn signal(&self, signal: Signal) {
        // One that has ended needs no signal.
        let _ = pidfd_send_signal(&self.handle, signal);
    }
}

fn begin(program: &mut Command) -> io::Result<(Program, Child)> {
    let mut child = program.spawn()?;
    let pid = child.id().cast_signed();
    let handle = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData.into());
    match handle.and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?)) {
        Ok(handle) => Ok((Program { pid, handle }, child)),
        Err(why) => {
            child.kill()?;
            child.wait()?;
            Err(why)
        }
    }
}

fn exit_of(status: io::Result<ExitStatus>) -> AppExit {
    let exit = |status: ExitStatus| match (status.code(), status.signal()) {
        (Some(code), _) => AppExit::Code(code),
        (None, signal) => AppExit::Signal(signal.unwrap_or(libc::SIGKILL)),
    };
    status.map_or(AppExit::Signal(libc::SIGKILL), exit)
}

/// As bytes, for the standby.
pub fn to_bytes(command: &[OsString]) -> Vec<bytes::Bytes> {
    use std::os::unix::ffi::OsStrExt;
    command.iter().map(|word| bytes::Bytes::copy_from_slice(word.as_bytes())).collect()
}

pub fn from_bytes(command: &[bytes::Bytes]) -> Vec<OsString> {
    use std::os::unix::ffi::OsStrExt;
    command.iter().map(|word| OsStr::from_bytes(word).to_owned()).collect()
}
