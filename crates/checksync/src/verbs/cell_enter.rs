//! `cell-enter`: a command among the processes, mounts and devices of a cell, as a health check of a drill.

use std::os::fd::AsFd;
use std::process::{Command, ExitCode};

use anyhow::Context;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::arguments::CellEnterArgs;

pub fn run(args: &CellEnterArgs) -> anyhow::Result<ExitCode> {
    const INTERRUPTED: u8 = 255;
    let pid = Pid::from_raw(args.pid).context("no process has this number")?;
    let cell = pidfd_open(pid, PidfdFlags::empty()).context("the process is gone")?;
    let spaces = ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::NETWORK | ThreadNameSpaceType::PROCESS_ID;
    move_into_thread_name_spaces(cell.as_fd(), spaces).context("cannot enter the cell")?;
    let mut shell = Command::new("sh");
    sys::spawn::with_open_signals(&mut shell);
    let status = shell.arg("-c").arg(&args.command).status().context("cannot start a shell")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.unwrap_or(INTERRUPTED).into())
}
