//! The process that somebody names on the command line: whether there is anything to protect.

use std::fs;
use std::io;

use anyhow::anyhow;

use crate::exit::{Coded, Exit};

/// The name of the program that process `pid` runs, if it may be one to trace.
pub fn look_at(pid: i32) -> Result<String, Coded> {
    let refuse = |exit, why: String| Err(Coded::new(exit, anyhow!(why)));
    let Ok(status) = Status::of(pid) else {
        return refuse(Exit::NotRunning, format!("there is no process {pid}"));
    };
    let name = status.field("Name").to_owned();
    if status.field("State").starts_with(['Z', 'X']) {
        return refuse(
            Exit::NotRunning,
            format!("process {pid} ({name}) has ended, and was not waited for yet"),
        );
    }
    if status.field("Kthread") == "1" {
        let why = format!("process {pid} ({name}) is the kernel's own; name the process of a program");
        return refuse(Exit::Unsupported, why);
    }
    if status.number("Tgid") != pid {
        let leader = status.number("Tgid");
        return refuse(Exit::Usage, format!("{pid} is a thread of process {leader}; name that"));
    }
    if pid == std::process::id().cast_signed() {
        return refuse(Exit::Usage, format!("process {pid} is this checksync itself; name another"));
    }
    match status.number("TracerPid") {
        0 => Ok(name),
        tracer => refuse(Exit::Unsupported, traced(pid, tracer)),
    }
}

/// The kernel says which thread traces it.
fn traced(pid: i32, tracer: i32) -> String {
    let (leader, way_out) = match Status::of(tracer).map(|thread| thread.number("Tgid")) {
        Ok(leader) => (leader, "end that first"),
        Err(_) => (tracer, "end that first, if it is still there"),
    };
    let name = Status::of(leader).map(|leader| format!(" ({})", leader.field("Name"))).unwrap_or_default();
    format!("process {leader}{name} traces process {pid} already; {way_out}")
}

/// `/proc/PID/status`.
struct Status(String);

impl Status {
    fn of(pid: i32) -> io::Result<Self> {
        fs::read_to_string(format!("/proc/{pid}/status")).map(Self)
    }

    /// Empty where this kernel has no such line.
    fn field(&self, name: &str) -> &str {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map_or("", str::trim)
    }

    fn number(&self, name: &str) -> i32 {
        self.field(name).parse().unwrap_or(0)
    }
}
