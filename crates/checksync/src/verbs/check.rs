//! `checksync check`: whether this host, a process or program, a standby and a register are fit, found out by trying and
//! not by versions. Every line that is not green says why, and what to do. Nothing is left behind.

mod finding;
mod go;
mod host;
mod peer;
mod process;
mod program;
mod register;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::arguments::{CheckArgs, Format};
use crate::exit::Exit;
use finding::{Area, Finding, Level, Report};

pub fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let mut findings = host::look();
    if let Some(pid) = args.pid {
        findings.extend(process::look(pid, &covered(&args)));
    }
    if let Some((command, _)) = args.command.split_first() {
        findings.extend(program::look(command));
    }
    if let (Some(standby), Some(pki)) = (&args.standby, &args.pki) {
        findings.push(peer::look(standby, pki, args.host.as_deref())?);
    }
    if let (Some(arbiter), Some(pki)) = (&args.arbiter, &args.pki) {
        findings.push(register::look(arbiter, &wire::TlsFiles::load(pki, args.host.as_deref())?));
    }
    let report = Report::new(findings);
    match args.output.format {
        Format::Text => print!("{}", report.text()),
        Format::Json => println!("{}", serde_json::to_string(&report).context("cannot write the report")?),
    }
    Ok(exit(&report.findings).into())
}

/// Where the process may write: as the kernel calls the directories, if they are there.
fn covered(args: &CheckArgs) -> Vec<PathBuf> {
    let given = args.state_dir.iter().chain(&args.shared_dir);
    given.map(|path| fs::canonicalize(path).unwrap_or_else(|_| path.clone())).collect()
}

/// What a script has to act on first: a host that can't, before a peer that does not answer.
fn exit(findings: &[Finding]) -> Exit {
    let red = |area| findings.iter().any(|finding| finding.area == area && finding.level == Level::Red);
    match () {
        () if red(Area::Host) || red(Area::Process) => Exit::Unsupported,
        () if red(Area::Register) || red(Area::Peer) => Exit::Unreachable,
        () => Exit::Ok,
    }
}
