//! What clients notice of takeovers, judged: rounds of the tests in `crates/checksync/tests/strong`, many of them.
//!
//! Each round is a pair of its own, with six clients of a Go server or of redis whose connections stay open. A
//! manager, an app or a host dies at a random instant, or a manager hangs; then Porcupine decides over the whole
//! history. In strong mode nothing may have happened. In timeline mode the same clients and the same judge have
//! to *find* lost writes, or they would find none in strong mode either.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Row, quick};
use crate::workspace::cargo;

const ROUNDS: &str = "as_many_rounds_as_are_asked_for";
const DEATHS: [&str; 4] = ["manager", "app", "hang", "host"];

/// A line of the rounds' report.
#[derive(Debug, Deserialize)]
struct Round {
    death: String,
    /// It did not come to a judgement: nobody took over, or clients were not answered for very long.
    failed: bool,
    #[serde(flatten)]
    outcome: Option<Outcome>,
}

#[derive(Debug, Deserialize)]
struct Outcome {
    linearizable: bool,
    lost_writes: u64,
    lost_outside_window: bool,
    mangled: u64,
    broken_connections: u64,
    gap_ms: f64,
    restore_us: f64,
}

pub fn rows() -> Result<Vec<Row>> {
    let (strong, timeline) = if quick() { (6, 4) } else { (100, 24) };
    let strong = play("strong", strong)?;
    let timeline = play("timeline", timeline)?;
    let lost: u64 =
        timeline.iter().filter_map(|round| round.outcome.as_ref()).map(|found| found.lost_writes).sum();
    ensure!(
        lost > 0,
        "no write was lost in timeline mode, so the judge would have seen none in strong mode either"
    );
    let mut rows = strong_rows(&strong);
    rows.extend(timeline_rows(&timeline));
    Ok(rows)
}

fn play(mode: &str, rounds: usize) -> Result<Vec<Round>> {
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let report = dir.path().join("rounds");
    let words =
        ["test", "--locked", "--release", "--quiet", "--package", "checksync", "--test", "strong", "--"];
    let mut command = cargo(&words);
    command.args(["--ignored", "--exact", ROUNDS, "--nocapture"]);
    command.env("CHECKSYNC_ROUNDS", rounds.to_string()).env("CHECKSYNC_ROUNDS_MODE", mode);
    let done = command.env("CHECKSYNC_ROUNDS_TO", &report).status().context("cannot start cargo")?;
    ensure!(done.success(), "rounds in {mode} mode: {done}");
    let played = read(&report)?;
    ensure!(played.len() == rounds, "{} of {rounds} rounds were played", played.len());
    Ok(played)
}

fn read(report: &Path) -> Result<Vec<Round>> {
    let text = fs::read_to_string(report).with_context(|| format!("cannot read {}", report.display()))?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("an odd round: {line}")))
        .collect()
}

fn strong_rows(rounds: &[Round]) -> Vec<Row> {
    let violated = |found: &Outcome| u64::from(!found.linearizable) + found.mangled;
    let mut rows = vec![
        count("takeover.rounds", rounds.len() as u64),
        none("takeover.failed", failed(rounds)),
        none("takeover.violations", sum(rounds, violated)),
        none("takeover.lost-writes", sum(rounds, |found| found.lost_writes)),
        none("takeover.broken-connections", sum(rounds, |found| found.broken_connections)),
    ];
    for death in DEATHS {
        let of_it = rounds.iter().filter(|round| round.death == death);
        let gaps: Vec<f64> =
            of_it.filter_map(|round| round.outcome.as_ref()).map(|found| found.gap_ms).collect();
        rows.push(Row::measured(format!("takeover.gap-{death}"), "ms", &gaps));
        let longest = gaps.iter().copied().reduce(f64::max);
        rows.push(Row::measured(format!("takeover.gap-{death}.max"), "ms", longest.as_slice()));
    }
    let restores = rounds.iter().filter_map(|round| round.outcome.as_ref());
    let restores: Vec<f64> = restores.map(|found| found.restore_us / 1e3).collect();
    rows.push(Row::measured("takeover.restore", "ms", &restores));
    rows
}

fn timeline_rows(rounds: &[Round]) -> Vec<Row> {
    vec![
        count("takeover-timeline.rounds", rounds.len() as u64),
        none("takeover-timeline.failed", failed(rounds)),
        count("takeover-timeline.lost-writes", sum(rounds, |found| found.lost_writes)),
        none("takeover-timeline.outside-window", sum(rounds, |found| u64::from(found.lost_outside_window))),
        none("takeover-timeline.mangled-values", sum(rounds, |found| found.mangled)),
    ]
}

fn failed(rounds: &[Round]) -> u64 {
    rounds.iter().filter(|round| round.failed).count() as u64
}

fn sum(rounds: &[Round], of: impl Fn(&Outcome) -> u64) -> u64 {
    rounds.iter().filter_map(|round| round.outcome.as_ref()).map(of).sum()
}

fn count(id: &str, count: u64) -> Row {
    Row::measured(id, "", &[count as f64])
}

/// What must not be.
fn none(id: &str, number: u64) -> Row {
    count(id, number).aim(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_failed_is_a_round() {
        let failed: Round = serde_json::from_str(r#"{"death":"app","failed":true}"#).unwrap();
        assert!(failed.failed && failed.outcome.is_none());
        let line = r#"{"death":"host","failed":false,"linearizable":true,"lost_writes":2,
            "lost_outside_window":false,"mangled":0,"broken_connections":1,"gap_ms":7.5,"restore_us":900}"#;
        let rounds = [failed, serde_json::from_str(line).unwrap()];
        let rows = strong_rows(&rounds);
        let of = |id: &str| rows.iter().find(|row| row.id == id).and_then(|row| row.median);
        assert_eq!(of("takeover.failed"), Some(1.0));
        assert_eq!(of("takeover.lost-writes"), Some(2.0));
        assert_eq!(of("takeover.gap-host.max"), Some(7.5));
        assert_eq!(of("takeover.gap-app"), None);
    }
}
