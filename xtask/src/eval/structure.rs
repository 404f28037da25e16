//! What a replicated structure costs: in process, and behind a server with a serial client (thesis, table 5.5).
//!
//! Beside it stands the thesis's own way, which encodes the whole structure with each write. All of it runs on this
//! machine, with the standby on the same cores and the link on loopback: the figures are what the protocol costs in
//! processor time and wake-ups, and a network adds its round trip to each write.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tempfile::TempDir;
use testkit::programs::go_app;
use testkit::servers::own_address;

use super::kv::{self, Load};
use super::namespace::Owned;
use super::{Row, quick};
use crate::workspace::{cargo, target_dir};

const SIZES: [(u64, &str); 2] = [(1_000, "1k"), (1_000_000, "1M")];
const SECONDS: f64 = 3.0;
const PATIENCE: Duration = Duration::from_secs(120);
/// Requests per second of the thesis's server with one changed structure, the fewest keys.
const THESIS_PER_SECOND: f64 = 2_500.0;
const IN_PROCESS_AIM_PER_SECOND: f64 = 200_000.0;
const SERIAL_AIM_LOST_PERCENT: f64 = 20.0;

pub fn rows() -> Result<Vec<Row>> {
    for what in [["checksync", "--bins"], ["checksync-sdk", "--examples"]] {
        let mut build = cargo(&["build", "--locked", "--release", "--quiet", "--package", what[0], what[1]]);
        let built = build.arg("--target-dir").arg(target_dir()).status().context("cannot start cargo")?;
        ensure!(built.success(), "cannot build {}: {built}", what[0]);
    }
    let mut rows = Vec::new();
    for (keys, name) in SIZES {
        rows.extend(in_process(keys, name).with_context(|| format!("in process, {name} keys"))?);
        rows.extend(behind_a_server(keys, name).with_context(|| format!("behind a server, {name} keys"))?);
    }
    Ok(rows)
}

fn runs() -> usize {
    if quick() { 1 } else { 5 }
}

/// What the bench prints of itself.
#[derive(Debug, Deserialize)]
struct Benched {
    per_second: f64,
    write_us_p50: f64,
}

fn in_process(keys: u64, name: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (mode, what) in
        [("map", "blocking-writes"), ("window", "64-writes-on-their-way"), ("whole", "whole-each-write")]
    {
        let (mut per_request, mut per_write) = (Vec::new(), Vec::new());
        for _ in 0..runs() {
            let benched = bench(mode, keys)?;
            println!(
                "{name} keys, {mode}: {:.0}/s, a write {:.1} µs",
                benched.per_second, benched.write_us_p50
            );
            per_request.push(1e6 / benched.per_second);
            per_write.push(benched.write_us_p50);
        }
        let row = Row::measured(format!("structure-{name}.2-threads.{what}"), "µs/request", &per_request);
        let aim = (mode == "map").then_some(1e6 / IN_PROCESS_AIM_PER_SECOND);
        rows.push(row.aim(aim));
        rows.push(Row::measured(format!("structure-{name}.2-threads.{what}.write"), "µs", &per_write));
    }
    Ok(rows)
}

fn bench(mode: &str, keys: u64) -> Result<Benched> {
    let program = target_dir().join("release/examples/structure_bench");
    let seconds = SECONDS.to_string();
    let arguments = [mode, &keys.to_string(), "2", &seconds].map(str::to_owned);
    let mut pair = Pair::start(&program, &arguments)?;
    pair.line("ready")?;
    pair.wait_until_protected()?;
    writeln!(pair.input, "go").context("the bench is gone")?;
    serde_json::from_str(&pair.line("{")?).context("the bench's report")
}

fn behind_a_server(keys: u64, name: &str) -> Result<Vec<Row>> {
    let (mut native, mut changes, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs() {
        native.push(unprotected(keys)?);
        changes.push(protected(keys, &[])?);
        whole.push(protected(keys, &["--whole"])?);
        let last = |rates: &[f64]| rates.last().copied().unwrap_or_default();
        println!(
            "{name} keys, serial: {:.0}/s unprotected, {:.0}/s with its changes replicated, {:.0}/s with all of it",
            last(&native),
            last(&changes),
            last(&whole)
        );
    }
    let lost = |rates: &[f64]| -> Vec<f64> {
        native.iter().zip(rates).map(|(without, with)| (1.0 - with / without) * 100.0).collect()
    };
    let micros = |rates: &[f64]| -> Vec<f64> { rates.iter().map(|rate| 1e6 / rate).collect() };
    let id = |part: &str| format!("structure-{name}.serial-client.{part}");
    Ok(vec![
        Row::measured(id("lost"), "%", &lost(&changes)).aim(SERIAL_AIM_LOST_PERCENT),
        Row::measured(id("unprotected"), "µs/request", &micros(&native)),
        Row::measured(id("changes"), "µs/request", &micros(&changes)).thesis(1e6 / THESIS_PER_SECOND),
        Row::measured(id("whole-each-write"), "µs/request", &micros(&whole)).thesis(1e6 / THESIS_PER_SECOND),
    ])
}

fn unprotected(keys: u64) -> Result<f64> {
    let address = own_address();
    let mut command = Command::new(go_app("kv"));
    command.args(kv::serve(&address.to_string(), keys)).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = Owned(command.spawn().context("cannot start the server")?);
    let output = server.0.stdout.take().context("stdout is piped")?;
    wait_for_line(&lines_of(output), "ready")?;
    throughput(address, keys)
}

fn protected(keys: u64, options: &[&str]) -> Result<f64> {
    let address = own_address();
    let mut arguments: Vec<String> =
        ["--listen", &address.to_string(), "--preload", &keys.to_string()].map(str::to_owned).into();
    arguments.extend(options.iter().map(ToString::to_string));
    let mut pair = Pair::start(&go_app("structkv"), &arguments)?;
    pair.line("ready")?;
    pair.wait_until_protected()?;
    throughput(address, keys)
}

fn throughput(address: SocketAddr, keys: u64) -> Result<f64> {
    Load::start(address, keys, Some(SECONDS))?.throughput()
}

/// A primary with a program of ours, and a standby. N.B. the primary goes first: its program dies with it.
struct Pair {
    primary: Owned,
    _standby: Owned,
    input: ChildStdin,
    lines: Receiver<String>,
    dir: TempDir,
}

impl Pair {
    fn start(program: &Path, arguments: &[String]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let pki = dir.path().join("pki");
        let made = checksync(&dir).args(["pki", "init"]).arg(&pki).args(["a", "b"]).output()?;
        ensure!(made.status.success(), "no certificates: {made:?}");
        let register = format!("file:{}", dir.path().join("register").display());
        let mut standby = checksync(&dir);
        standby.args(["standby", "--listen", "127.0.0.1:0", "--host", "b", "--arbiter", &register]);
        standby.args(["--network-threads", "1", "--pki"]).arg(&pki);
        let mut standby = Owned(standby.spawn().context("cannot start a standby")?);
        let said = lines_of(standby.0.stdout.take().context("stdout is piped")?);
        let line = wait_for_line(&said, "listening")?;
        let address = line.rsplit(' ').next().unwrap_or_default();
        let mut primary = checksync(&dir);
        primary.args(["run", "--replicate", "structures", "--app", "eval", "--host", "a"]);
        primary.args(["--standby", address, "--arbiter", &register, "--pki"]).arg(&pki).arg("--");
        primary.arg(program).args(arguments);
        let mut primary = Owned(primary.spawn().context("cannot start a primary")?);
        let Child { stdin, stdout, .. } = &mut primary.0;
        let input = stdin.take().context("stdin is piped")?;
        let lines = lines_of(stdout.take().context("stdout is piped")?);
        Ok(Self { primary, _standby: standby, input, lines, dir })
    }

    fn line(&mut self, beginning: &str) -> Result<String> {
        wait_for_line(&self.lines, beginning)
    }

    fn wait_until_protected(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asked = checksync(&self.dir).args(["status", "-o", "json"]).output()?;
            let status: serde_json::Value = serde_json::from_slice(&asked.stdout)?;
            if status["protected"] == true {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not protected after {PATIENCE:?}: {status}");
            ensure!(self.primary.0.try_wait()?.is_none(), "the primary has ended");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn checksync(dir: &TempDir) -> Command {
    let program: PathBuf = target_dir().join("release/checksync");
    let mut command = Command::new(program);
    command.env("CHECKSYNC_RUN_DIR", dir.path().join("run"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn lines_of(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (said, lines) = mpsc::channel();
    // It ends with the pipe, or with whoever listens.
    thread::spawn(move || {
        BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| said.send(line))
    });
    lines
}

fn wait_for_line(lines: &Receiver<String>, beginning: &str) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = lines.recv_timeout(left).with_context(|| format!("nobody said {beginning:?}"))?;
        if line.starts_with(beginning) {
            return Ok(line);
        }
    }
}
