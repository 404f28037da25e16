//! Bytes of a checkpoint on disk (thesis, table 5.2): `checksync checkpoint` of the key/value server at rest, as it is
//! and as gzip makes it, beside the pairs that the server holds. What epochs put on the wire is in [`super::pause`].

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use testkit::programs::go_app;
use testkit::servers::own_address;

use super::managers::{self, checksync};
use super::namespace::{Owned, line_of};
use super::published::{SIZES, Size};
use super::{Row, attempt, kv, quick};

const PAIR_BYTES: f64 = 72.0;
const MEGA: f64 = 1e6;

/// What we read of a checkpoint's report.
#[derive(Debug, Deserialize)]
struct Saved {
    file: PathBuf,
    bytes: u64,
    pause_us: u64,
}

/// One checkpoint, in megabytes and seconds.
#[derive(Debug, Clone, Copy)]
struct Measured {
    bytes: f64,
    gzipped: f64,
    pause_ms: f64,
    seconds: f64,
}

pub fn rows() -> Result<Vec<Row>> {
    managers::build()?;
    let sizes = SIZES.iter().filter(|size| !quick() || size.keys <= 1_000_000);
    Ok(sizes.flat_map(|size| attempt(&format!("disk-{}", size.short_name()), || rows_of(size))).collect())
}

fn rows_of(size: &Size) -> Result<Vec<Row>> {
    let runs = if quick() { 2 } else { 5 };
    let mut measured = Vec::new();
    for number in 1..=runs {
        let one = measure(size.keys)?;
        println!("{}, {number} of {runs}: {:.1} MB, {:.1} MB gzipped", size.name(), one.bytes, one.gzipped);
        measured.push(one);
    }
    let row = |part: &str, unit, of: fn(&Measured) -> f64| {
        let samples: Vec<f64> = measured.iter().map(of).collect();
        Row::measured(format!("disk-{}{part}", size.short_name()), unit, &samples)
    };
    let pairs = size.keys as f64 * PAIR_BYTES / MEGA;
    let times: Vec<f64> = measured.iter().map(|one| one.bytes / pairs).collect();
    Ok(vec![
        size.beside_disk(row("", "MB", |one| one.bytes)),
        row(".gzipped", "MB", |one| one.gzipped),
        Row::measured(format!("disk-{}.times-the-pairs", size.short_name()), "×", &times),
        row(".pause", "ms", |one| one.pause_ms),
        row(".took", "s", |one| one.seconds),
    ])
}

fn measure(keys: u64) -> Result<Measured> {
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let mut command = Command::new(go_app("kv"));
    command.args(kv::serve(&own_address().to_string(), keys)).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = Owned(command.spawn().context("cannot start the server")?);
    line_of(&mut server, "ready")?;
    let began = Instant::now();
    let saved = save(server.0.id(), &dir.path().join("saved"))?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Measured {
        bytes: saved.bytes as f64 / MEGA,
        gzipped: gzipped(&saved.file)? as f64 / MEGA,
        pause_ms: saved.pause_us as f64 / 1e3,
        seconds,
    })
}

fn save(pid: u32, to: &Path) -> Result<Saved> {
    let mut command = Command::new(checksync());
    command.args(["checkpoint", &pid.to_string(), "--leave-running", "-o", "json", "--to"]).arg(to);
    let done = command.stdin(Stdio::null()).output().context("cannot start checksync")?;
    ensure!(done.status.success(), "no checkpoint: {}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).context("checksync's report")
}

/// The fastest that gzip has: what a compression on the way could come to.
fn gzipped(path: &Path) -> Result<u64> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut command = Command::new("gzip");
    let mut gzip =
        command.args(["-1", "-c"]).stdin(file).stdout(Stdio::piped()).spawn().context("no gzip")?;
    let mut output = gzip.stdout.take().context("stdout is piped")?;
    let bytes = io::copy(&mut output, &mut io::sink())?;
    ensure!(gzip.wait()?.success(), "gzip failed");
    Ok(bytes)
}
