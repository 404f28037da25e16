//! Pauses from inside: a guest that looks at the clock all the time sees each freeze as a gap. Its largest gaps and
//! our pauses must agree; on a busy machine a gap may also be the scheduler's.

use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use engine::CaptureReport;
use testkit::guest::GoFile;
use testkit::programs::guest_path;

use super::Row;
use super::pair::Pair;
use super::pause::ms;
use super::side::{Line, Side};

/// Shorter ones are interrupts.
const THRESHOLD_US: &str = "50";

/// A gap that the guest saw.
struct Gap {
    from_ns: u64,
    length_ns: u64,
}

pub fn rows(epochs: usize) -> Result<Vec<Row>> {
    println!("a spinning guest: {epochs} epochs");
    let (reports, gaps) = measure(epochs)?;
    let pauses: Vec<f64> = reports.iter().map(|report| ms(report.pause)).collect();
    let seen: Vec<f64> = reports.iter().filter_map(|report| gap_at(&gaps, report)).collect();
    ensure!(!seen.is_empty(), "the guest saw none of {epochs} pauses");
    let largest = |samples: &[f64]| samples.iter().copied().fold(0.0, f64::max);
    let all: Vec<f64> = gaps.iter().map(|gap| gap.length_ns as f64 / 1e6).collect();
    Ok(vec![
        Row::measured("spin.pause", "ms", &pauses),
        Row::measured("spin.gap-at-pause", "ms", &seen),
        Row::measured("spin.pause-largest", "ms", &[largest(&pauses)]),
        Row::measured("spin.gap-at-pause-largest", "ms", &[largest(&seen)]),
        Row::measured("spin.gap-largest", "ms", &[largest(&all)]),
    ])
}

fn measure(epochs: usize) -> Result<(Vec<CaptureReport>, Vec<Gap>)> {
    let go_file = GoFile::new();
    let (guest, go) = (guest_path(), go_file.path());
    let words = ["spin", "--go", go.to_str().context("a path in UTF-8")?, THRESHOLD_US];
    let primary = Side::primary(guest.to_str().context("a path in UTF-8")?, &words)?;
    primary.wait_for_line("ready")?;
    let mut pair = Pair::new(primary)?;
    pair.full_sync()?;
    let reports = pair.epochs(epochs, &AtomicBool::new(false))?;
    go_file.go();
    let mut lines = Vec::new();
    pair.primary.lines_until("pass", &mut lines)?;
    Ok((reports, lines.iter().filter_map(gap).collect()))
}

/// `gap START_WALL_NS LENGTH_NS`
fn gap(line: &Line) -> Option<Gap> {
    let (from, length) = line.text.strip_prefix("gap ")?.split_once(' ')?;
    Some(Gap { from_ns: from.parse().ok()?, length_ns: length.parse().ok()? })
}

/// The longest gap that overlaps with a pause, in milliseconds.
fn gap_at(gaps: &[Gap], report: &CaptureReport) -> Option<f64> {
    let end = report.frozen_at_ns + report.pause.as_nanos() as u64;
    let overlaps = |gap: &&Gap| gap.from_ns <= end && report.frozen_at_ns <= gap.from_ns + gap.length_ns;
    gaps.iter().filter(overlaps).map(|gap| gap.length_ns as f64 / 1e6).max_by(f64::total_cmp)
}
