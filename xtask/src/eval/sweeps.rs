//! Pause and overhead, by the pages that are written between two checkpoints and by the size of memory; a model beside
//! them in the pictures.
//!
//! The app is a guest that does arithmetic on one core and writes pages at a steady rate. What it loses is what it gets
//! done in seconds with a checkpoint each 50 ms, beside seconds without any, of the same run, in turns; both engines
//! work on the other core, as far as the machine has one.

use std::sync::atomic::AtomicBool;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use engine::CaptureReport;
use testkit::programs::guest_path;

use super::pair::{INTERVAL, Pair};
use super::pause::ms;
use super::side::{Side, wall_ns};
use super::{Row, attempt, quick};

/// Written between two checkpoints, with [`MEMORY_MIB`].
const DIRTY_PAGES: [u64; 6] = [0, 100, 300, 1_000, 3_000, 10_000];
const QUICK_PAGES: [u64; 3] = [0, 1_000, 10_000];
const MEMORY_MIB: u64 = 256;
/// With [`PAGES`] written.
const SIZES_MIB: [u64; 5] = [16, 64, 256, 1024, 4096];
const PAGES: u64 = 1_000;
/// Of each turn.
const EPOCHS: usize = 40;
/// Of the arithmetic and of the waiting.
const THREADS: f64 = 2.0;

pub fn rows() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for pages in DIRTY_PAGES.into_iter().filter(|pages| !quick() || QUICK_PAGES.contains(pages)) {
        let id = format!("sweep.written-{pages}");
        rows.extend(attempt(&id, || rows_of(&id, MEMORY_MIB, pages)));
    }
    for mib in SIZES_MIB.into_iter().filter(|mib| !quick() || *mib <= 1024) {
        let id = format!("sweep.memory-{mib}MiB");
        rows.extend(attempt(&id, || rows_of(&id, mib, PAGES)));
    }
    Ok(rows)
}

/// What a pause should take, in milliseconds, by what the single steps were measured to take on a machine like those
/// that the figures come from.
pub fn model_pause_ms(memory_mib: f64, pages: f64) -> f64 {
    const PER_THREAD_US: f64 = 7.0 + 2.7 + 1.4 + 2.0;
    const MAPPINGS_US: f64 = 20.0;
    const SCAN_US_PER_MIB: f64 = 0.6;
    const COPY_US_PER_PAGE: f64 = 1.3;
    const CORES: f64 = 2.0;
    let memory_us = (SCAN_US_PER_MIB * memory_mib + COPY_US_PER_PAGE * pages) / CORES;
    (PER_THREAD_US * THREADS + MAPPINGS_US + memory_us) / 1e3
}

/// What the app should lose, in percent: the pauses, and a fault for each page's first write.
pub fn model_lost_percent(memory_mib: f64, pages: f64) -> f64 {
    const FAULT_US: f64 = 1.0;
    let lost_ms = model_pause_ms(memory_mib, pages) + FAULT_US * pages / 1e3;
    lost_ms / ms(INTERVAL) * 100.0
}

/// The memory and the pages that a row's id speaks of.
pub fn point_of(id: &str) -> Option<(f64, f64)> {
    let point = id.strip_prefix("sweep.")?.split('.').next()?;
    if let Some(pages) = point.strip_prefix("written-") {
        return Some((MEMORY_MIB as f64, pages.parse().ok()?));
    }
    let mib = point.strip_prefix("memory-")?.strip_suffix("MiB")?;
    Some((mib.parse().ok()?, PAGES as f64))
}

fn rows_of(id: &str, memory_mib: u64, pages: u64) -> Result<Vec<Row>> {
    let turns = if quick() { 1 } else { 5 };
    let per_second = pages * 1000 / INTERVAL.as_millis() as u64;
    let guest = guest_path();
    let guest = guest.to_str().context("a path in UTF-8")?;
    let primary = Side::primary(guest, &["pace", &memory_mib.to_string(), &per_second.to_string()])?;
    primary.wait_for_line("ready")?;
    let mut pair = Pair::new(primary)?;
    pair.full_sync()?;
    let (mut reports, mut lost) = (Vec::new(), Vec::new());
    let never = AtomicBool::new(false);
    for turn in 0..turns {
        // Who goes first changes, so that a drift favours neither.
        let order = if turn % 2 == 0 { [false, true] } else { [true, false] };
        let [mut bare, mut protected] = [0.0; 2];
        for is_protected in order {
            if is_protected {
                // The first ones carry what was written before.
                pair.epochs(3, &never)?;
                protected = work_during(&mut pair, |pair| {
                    reports.extend(pair.epochs(EPOCHS, &never)?);
                    Ok(())
                })?;
            } else {
                bare = work_during(&mut pair, |_| {
                    thread::sleep(INTERVAL * EPOCHS as u32);
                    Ok(())
                })?;
            }
        }
        lost.push((1.0 - protected / bare) * 100.0);
    }
    let row = |part: &str, unit, of: fn(&CaptureReport) -> f64| {
        Row::measured(format!("{id}.{part}"), unit, &reports.iter().map(of).collect::<Vec<_>>())
    };
    let rows = vec![
        row("pause", "ms", |report| ms(report.pause)),
        Row::measured(format!("{id}.lost"), "%", &lost),
        row("pause.scan", "ms", |report| ms(report.scan)),
        row("pause.copy", "ms", |report| ms(report.copy)),
        row("pages", "pages", |report| report.pages as f64),
        row("bytes-per-written-byte", "%", |report| {
            report.bytes as f64 / (report.pages.max(1) * image::PAGE_BYTES) as f64 * 100.0
        }),
    ];
    let median = |row: &Row| row.median.unwrap_or_default();
    println!("{id}: pause {:.2} ms, {:.1} % lost", median(&rows[0]), median(&rows[1]));
    Ok(rows)
}

/// Pieces of work in a second, while `meanwhile` lasts.
fn work_during(pair: &mut Pair, meanwhile: impl FnOnce(&mut Pair) -> Result<()>) -> Result<f64> {
    let began = wall_ns();
    meanwhile(pair)?;
    let ended = wall_ns();
    let lines = pair.primary.lines();
    let told = lines.iter().filter(|line| (began..=ended).contains(&line.wall_ns));
    let told: Vec<(u64, f64)> = told
        .filter_map(|line| Some((line.wall_ns, line.text.strip_prefix("work ")?.parse().ok()?)))
        .collect();
    // The first one tells of a time that began before.
    let (Some((first, _)), Some((last, _))) = (told.first(), told.last()) else {
        bail!("the guest tells of no work")
    };
    ensure!(first < last, "the guest tells too seldom of its work");
    Ok(told[1..].iter().map(|(_, count)| count).sum::<f64>() / ((last - first) as f64 / 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_a_point_of_the_model() {
        assert_eq!(point_of("sweep.written-300.pause"), Some((256.0, 300.0)));
        assert_eq!(point_of("sweep.memory-64MiB.lost"), Some((64.0, 1000.0)));
        assert_eq!(point_of("pause-1k"), None);
    }

    #[test]
    fn the_model_grows_with_memory_and_with_pages() {
        assert!(model_pause_ms(1024.0, 1000.0) > model_pause_ms(64.0, 1000.0));
        assert!(model_lost_percent(256.0, 10_000.0) > model_lost_percent(256.0, 100.0));
        // A gigabyte and a thousand pages were measured to take about this.
        assert!((0.8..1.6).contains(&model_pause_ms(1024.0, 1000.0)));
    }
}
