//! How long a checkpoint stops the app (thesis, table 5.3), and how fast its copy takes over (table 5.6).
//!
//! Per size of the map: a server in a cell, a full sync under load, an epoch each 50 ms, and at the end the
//! server's death while an epoch has yet to be applied. Pauses are by the engine's own clock; what a guest saw of
//! them stands beside it, see [`spin`].

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use engine::CaptureReport;

use super::collections::{self, Collection};
use super::kv::{self, Load};
use super::pair::{FullSync, Pair, Takeover};
use super::published::{SIZES, Size};
use super::{Row, quick, spin};

pub fn rows() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in SIZES.iter().filter(|size| !quick() || size.keys <= 1_000_000) {
        rows.extend(rows_of(size).with_context(|| size.name())?);
    }
    for size in SIZES.iter().filter(|size| [1_000, 1_000_000].contains(&size.keys)) {
        rows.extend(rows_with_threads(size).with_context(|| size.name())?);
    }
    for size in SIZES.iter().filter(|size| [1_000, 1_000_000].contains(&size.keys)) {
        rows.extend(rows_while_collecting(size).with_context(|| size.name())?);
    }
    rows.extend(spin::rows(epochs_of(SIZES[0].keys))?);
    Ok(rows)
}

/// As many threads as a busy Go server has.
fn rows_with_threads(size: &Size) -> Result<Vec<Row>> {
    const MORE_THREADS: u32 = 16;
    const EPOCHS: usize = 40;
    println!("{} and {MORE_THREADS} threads more: {EPOCHS} epochs", size.name());
    let Measured { reports, takeover, .. } = measure(size.keys, &[kv::TRACED], MORE_THREADS, EPOCHS)?;
    let id = |what: &str| format!("{what}-{}.many-threads", size.short_name());
    let threads: Vec<f64> = reports.iter().map(|report| report.threads as f64).collect();
    Ok(vec![
        Row::measured(id("threads"), "threads", &threads),
        Row::measured(id("pause"), "ms", &times(&reports, |report| report.pause)),
        Row::measured(id("restore"), "ms", &[ms(takeover.took)]),
    ])
}

/// Go collects when its heap has doubled, which leaves hardly a pause inside a collection: here it does so when a few
/// parts in a hundred were added.
fn rows_while_collecting(size: &Size) -> Result<Vec<Row>> {
    const EPOCHS: usize = 400;
    let often = if size.keys < 1_000_000 { "GOGC=1" } else { "GOGC=3" };
    println!("{} with {often}: {EPOCHS} epochs", size.name());
    let measured = measure(size.keys, &[kv::TRACED, often], 0, EPOCHS)?;
    let id = |part: &str| format!("pause-{}.often-collecting{part}", size.short_name());
    let rows = in_and_out(&measured).map(|(part, times)| Row::measured(id(part), "ms", &times));
    Ok(rows.into())
}

/// Pauses in and out of collections.
fn in_and_out(measured: &Measured) -> [(&'static str, Vec<f64>); 2] {
    let Measured { reports, collections, .. } = measured;
    let (inside, outside): (Vec<CaptureReport>, Vec<_>) =
        reports.iter().partition(|report| is_inside(report, collections));
    let pause = |report: &CaptureReport| report.pause;
    [(".in-collection", times(&inside, pause)), (".out-of-collection", times(&outside, pause))]
}

fn epochs_of(keys: u64) -> usize {
    match keys {
        _ if quick() => 40,
        10_000_000.. => 100,
        _ => 200,
    }
}

/// All that was measured at one size.
struct Measured {
    sync: FullSync,
    reports: Vec<CaptureReport>,
    collections: Vec<Collection>,
    takeover: Takeover,
}

fn rows_of(size: &Size) -> Result<Vec<Row>> {
    println!("{}: {} epochs", size.name(), epochs_of(size.keys));
    let measured = measure(size.keys, &[kv::TRACED], 0, epochs_of(size.keys))?;
    let rows = [pauses(size, &measured), traffic(size, &measured), restores(size, &measured.takeover)];
    Ok(rows.concat())
}

fn measure(keys: u64, variables: &[&str], more_threads: u32, epochs: usize) -> Result<Measured> {
    let (address, primary) = kv::start_with(keys, variables, more_threads)?;
    let mut pair = Pair::new(primary)?;
    let load = Load::start(address, keys, None)?;
    let sync = pair.full_sync()?;
    // The first ones still carry what was written during the full sync, and warm caches up.
    const NOT_COUNTED: usize = 5;
    let never = AtomicBool::new(false);
    pair.epochs(NOT_COUNTED, &never)?;
    let reports = pair.epochs(epochs, &never)?;
    let collections = collections::all(&pair.primary.lines());
    drop(load);
    let (copy, takeover) = pair.take_over()?;
    ensure!(kv::answers(address, Duration::from_secs(10)), "the copy does not answer");
    drop(copy);
    Ok(Measured { sync, reports, collections, takeover })
}

fn pauses(size: &Size, measured: &Measured) -> Vec<Row> {
    let reports = &measured.reports;
    let id = |part: &str| format!("pause-{}{part}", size.short_name());
    let row = |part, of: fn(&CaptureReport) -> Duration| Row::measured(id(part), "ms", &times(reports, of));
    let [inside, outside] = in_and_out(measured);
    vec![
        size.beside_pause(row("", |report| report.pause)),
        row(".stop", |report| report.stop),
        row(".scan", |report| report.scan),
        row(".copy", |report| report.copy),
        row(".state", |report| report.state),
        row(".thaw", |report| report.thaw),
        Row::measured(id(inside.0), "ms", &inside.1),
        Row::measured(id(outside.0), "ms", &outside.1),
        row(".encode-after-thaw", |report| report.encode),
    ]
}

fn is_inside(report: &CaptureReport, collections: &[Collection]) -> bool {
    let end = report.frozen_at_ns + report.pause.as_nanos() as u64;
    collections::any_at(collections, report.frozen_at_ns, end)
}

fn traffic(size: &Size, measured: &Measured) -> Vec<Row> {
    let Measured { sync, reports, .. } = measured;
    let counts =
        |of: fn(&CaptureReport) -> u64| reports.iter().map(|report| of(report) as f64).collect::<Vec<_>>();
    let id = |what: &str| format!("{what}-{}", size.short_name());
    vec![
        Row::measured(id("pages"), "pages", &counts(|report| report.pages)),
        Row::measured(id("bytes"), "KiB", &counts(|report| report.bytes >> 10)),
        Row::measured(id("threads"), "threads", &counts(|report| report.threads as u64)),
        Row::measured(id("full-sync"), "ms", &[ms(sync.took)]),
        Row::measured(id("full-sync.bytes"), "MiB", &[(sync.bytes >> 20) as f64]),
    ]
}

fn restores(size: &Size, takeover: &Takeover) -> Vec<Row> {
    let report = &takeover.report;
    let id = |part: &str| format!("restore-{}{part}", size.short_name());
    let row = |part, time: Duration| Row::measured(id(part), "ms", &[ms(time)]);
    vec![
        size.beside_restore(row("", takeover.took)),
        row(".apply", takeover.took.saturating_sub(report.total)),
        row(".clocks", report.clocks),
        row(".objects", report.objects),
        row(".descriptors", report.descriptors),
        row(".threads", report.threads),
    ]
}

fn times(reports: &[CaptureReport], of: fn(&CaptureReport) -> Duration) -> Vec<f64> {
    reports.iter().map(|report| ms(of(report))).collect()
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
