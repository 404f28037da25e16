//! `--detach`: the same verb once more, as a manager in the background, in a session of its own. It says on a
//! pipe that the process runs; the process's output goes to `DIR/output.log`, its manager's to
//! `DIR/manager.log`.

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, bail};

use super::{Report, text};
use crate::arguments::{Format, RestoreArgs};
use crate::exit::Exit;

/// Set for the manager in the background.
const MARK: &str = "CHECKSYNC_DETACHED";

pub fn run(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    let log = args.dir.join("manager.log");
    let mut manager = start(args, &log)?;
    let mut line = String::new();
    let stdout = manager.stdout.take().context("the manager has no pipe")?;
    BufReader::new(stdout).read_line(&mut line).context("cannot hear the manager")?;
    if line.is_empty() {
        return failed(manager, &log);
    }
    match args.output.format {
        Format::Json => print!("{line}"),
        Format::Text => {
            let report: Report = serde_json::from_str(&line).context("the manager said something else")?;
            println!("{}", text(&report));
        }
    }
    Ok(Exit::Ok.into())
}

fn start(args: &RestoreArgs, log: &Path) -> anyhow::Result<Child> {
    let log_file = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("restore").arg(&args.dir).args(["--output", "json"]).env(MARK, "1");
    if let Some(pidfile) = &args.pidfile {
        command.arg("--pidfile").arg(pidfile);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file);
    command.spawn().context("cannot start the manager in the background")
}

/// The manager's own words and its exit code are ours.
fn failed(mut manager: Child, log: &Path) -> anyhow::Result<ExitCode> {
    let status = manager.wait().context("cannot wait for the manager")?;
    let Some(code) = status.code().and_then(|code| u8::try_from(code).ok()) else {
        bail!("the manager died: {status}; see {}", log.display());
    };
    eprint!("{}", std::fs::read_to_string(log).unwrap_or_default());
    Ok(code.into())
}

/// In the manager in the background: leaves its starter's terminal, and says where the process's output goes.
pub fn begin(dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    if env::var_os(MARK).is_none() {
        return Ok(None);
    }
    rustix::process::setsid().context("cannot leave the terminal")?;
    Ok(Some(dir.join("output.log")))
}
