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
use crate::arguments::{Format, FromStoreArgs, RestoreArgs};
use crate::exit::Exit;
use crate::moment;

/// Set for the manager in the background.
const MARK: &str = "CHECKSYNC_DETACHED";

pub fn run(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    let dir = args.dir.as_ref().context("where do its logs go? Name a directory: restore DIR --detach …")?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let log = dir.join("manager.log");
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
    command.arg("restore").args(&args.dir).args(["--output", "json"]).env(MARK, "1");
    command.args(from_store(&args.from));
    command.args(args.sealed.then_some("--sealed"));
    if let Some(pidfile) = &args.pidfile {
        command.arg("--pidfile").arg(pidfile);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file);
    command.spawn().context("cannot start the manager in the background")
}

fn from_store(from: &FromStoreArgs) -> Vec<String> {
    let mut words = Vec::new();
    let mut say =
        |flag: &str, value: Option<String>| words.extend(value.map(|value| format!("--{flag}={value}")));
    say("store", from.store.as_ref().map(ToString::to_string));
    say("app", from.app.clone());
    say("epoch", from.epoch.map(|id| id.to_string()));
    say("at", from.at.map(|at| moment::text(at.nanoseconds(moment::now_ns()))));
    words
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
pub fn begin(dir: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    if env::var_os(MARK).is_none() {
        return Ok(None);
    }
    rustix::process::setsid().context("cannot leave the terminal")?;
    Ok(dir.map(|dir| dir.join("output.log")))
}
