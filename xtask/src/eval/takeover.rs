//! What clients notice of takeovers, judged: rounds of the tests in `crates/checksync/tests/strong`, many of them.
//!
//! Each round is a pair of its own, with six clients of a Go server or of redis whose connections stay open. A
//! manager, an app or a host dies, a manager hangs or a cable is pulled, at a random instant or in a phase of an
//! epoch that was aimed at; then Porcupine decides over the whole history. (A gate is a thread of its manager's, and
//! dies with it: the device goes with its last descriptor, and nothing leaves any more.) In strong mode nothing may have happened. In timeline mode the same clients and the same judge have
//! to *find* lost writes, or they would find none in strong mode either.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Row, more_rounds, quick};
use crate::workspace::{cargo, target_dir};

const ROUNDS: &str = "as_many_rounds_as_are_asked_for";
const DEATHS: [&str; 5] = ["manager", "app", "hang", "host", "cut"];
/// Of an epoch, on its way; the last on the standby, beside one of the others.
const PHASES: [&str; 7] =
    ["before-barrier", "freeze", "thaw", "barrier-to-commit", "commit-to-release", "between-epochs", "apply"];

/// A line of the rounds' report.
#[derive(Debug, Deserialize)]
struct Round {
    store: String,
    death: String,
    /// What was going on on the primary when the blow fell, and on the standby.
    #[serde(default)]
    phases: Vec<String>,
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
    /// None after a cut that the primary survived.
    restore_us: Option<f64>,
}

pub fn rows() -> Result<Vec<Row>> {
    let (strong, timeline) = match (more_rounds(), quick()) {
        (Some(rounds), _) => (rounds - rounds / 5, rounds / 5),
        (None, true) => (4, 3),
        (None, false) => (100, 24),
    };
    let strong = all_rounds("strong", strong)?;
    let timeline = all_rounds("timeline", timeline)?;
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

/// Plays rounds, and answers them together with those of before, if they are to be more. They are kept as they are
/// played: whoever is ended early has lost none.
fn all_rounds(mode: &str, rounds: usize) -> Result<Vec<Round>> {
    let dir = target_dir().join("eval");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let report = dir.join(format!("takeover-{mode}.jsonl"));
    if more_rounds().is_none() {
        // There may have been none.
        let _ = fs::remove_file(&report);
    }
    let before = if report.exists() { read(&report)?.len() } else { 0 };
    if rounds > 0 {
        play(mode, before, rounds, &report)?;
    }
    let all = read(&report)?;
    ensure!(all.len() == before + rounds, "{} of {rounds} rounds were played", all.len() - before);
    Ok(all)
}

fn play(mode: &str, first: usize, rounds: usize, report: &Path) -> Result<()> {
    let words =
        ["test", "--locked", "--release", "--quiet", "--package", "checksync", "--features", "stands"];
    let mut command = cargo(&words);
    command.args(["--test", "strong", "--", "--ignored", "--exact", ROUNDS, "--nocapture"]);
    command.env("CHECKSYNC_ROUNDS", rounds.to_string()).env("CHECKSYNC_ROUNDS_MODE", mode);
    command.env("CHECKSYNC_ROUNDS_FIRST", first.to_string()).env("CHECKSYNC_ROUNDS_TO", report);
    let done = command.status().context("cannot start cargo")?;
    ensure!(done.success(), "rounds in {mode} mode: {done}");
    Ok(())
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
    for phase in PHASES {
        let hit = |round: &&Round| round.phases.iter().any(|hit| hit == phase);
        rows.push(count(&format!("takeover.hit-{phase}"), rounds.iter().filter(hit).count() as u64));
    }
    for store in ["kv", "redis"] {
        let of_it = rounds.iter().filter(|round| round.store == store).count();
        rows.push(count(&format!("takeover.rounds-{store}"), of_it as u64));
    }
    let restores = rounds.iter().filter_map(|round| round.outcome.as_ref());
    let restores: Vec<f64> = restores.filter_map(|found| found.restore_us).map(|us| us / 1e3).collect();
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
        let failed: Round = serde_json::from_str(r#"{"store":"kv","death":"app","failed":true}"#).unwrap();
        assert!(failed.failed && failed.outcome.is_none());
        let line = r#"{"store":"redis","death":"host","phases":["freeze","apply"],"failed":false,"linearizable":true,"lost_writes":2,
            "lost_outside_window":false,"mangled":0,"broken_connections":1,"gap_ms":7.5,"restore_us":900}"#;
        let rounds = [failed, serde_json::from_str(line).unwrap()];
        let rows = strong_rows(&rounds);
        let of = |id: &str| rows.iter().find(|row| row.id == id).and_then(|row| row.median);
        assert_eq!(of("takeover.failed"), Some(1.0));
        assert_eq!(of("takeover.lost-writes"), Some(2.0));
        assert_eq!(of("takeover.gap-host.max"), Some(7.5));
        assert_eq!(of("takeover.gap-app"), None);
        assert_eq!((of("takeover.hit-apply"), of("takeover.hit-thaw")), (Some(1.0), Some(0.0)));
    }
}
