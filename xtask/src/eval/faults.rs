//! Real faults: links that are cut, processes that are killed or stand still, disks that are full, on hosts that are
//! network namespaces with a register of three members of etcd. `crates/checksync/tests/faults` brings them about, each in
//! both modes, under clients, their judge, and ears at the switch; here each becomes a row.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Row, only, quick};
use crate::workspace::{cargo, target_dir};

const TEST: &str = "as_many_faults_as_are_asked_for";
/// How long each lasts. Quick ones are longer than any deadline of ours, and shorter than those of TCP.
const LASTING_MS: u32 = 10_000;
const QUICK_MS: u32 = 2_000;
const QUICK: [&str; 5] = ["cut a-b", "cut a-b a-etcd", "pause manager", "kill host", "full disk etcd"];

/// A line of the test's report.
#[derive(Debug, Deserialize)]
struct Told {
    fault: String,
    mode: String,
    /// It did not come to a judgement: nobody was answered or protected again.
    failed: bool,
    #[serde(flatten)]
    outcome: Option<Outcome>,
}

#[derive(Debug, Deserialize)]
struct Outcome {
    unavailable_ms: f64,
    answered_again_ms: f64,
    protected_again_ms: f64,
    overlaps: u64,
    lost: bool,
    mangled: u64,
    broken_connections: u64,
}

pub fn rows() -> Result<Vec<Row>> {
    let report = target_dir().join("eval").join("faults.jsonl");
    fs::create_dir_all(target_dir().join("eval")).context("cannot make a directory for the figures")?;
    // There may have been none.
    let _ = fs::remove_file(&report);
    let all: Vec<String> = match quick() {
        true => QUICK.iter().map(|name| (*name).to_owned()).collect(),
        false => names()?,
    };
    let modes = ["strong", "timeline"].into_iter();
    let asked: Vec<String> = modes
        .flat_map(|mode| all.iter().map(move |name| format!("{mode} {name}")))
        .filter(|asked| asked.starts_with(only()))
        .collect();
    ensure!(!asked.is_empty(), "no fault begins with {:?}; they are MODE NAME", only());
    run(&asked, &report)?;
    let told = read(&report)?;
    ensure!(told.len() == asked.len(), "{} of {} faults were brought about", told.len(), asked.len());
    Ok(rows_of(&told))
}

/// All that the test knows.
fn names() -> Result<Vec<String>> {
    let listed = command().env("CHECKSYNC_FAULTS_LIST", "1").output().context("cannot start cargo")?;
    ensure!(listed.status.success(), "{TEST}: {}", listed.status);
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.strip_prefix("fault: ")).map(str::to_owned).collect())
}

fn run(asked: &[String], report: &Path) -> Result<()> {
    let lasting = if quick() { QUICK_MS } else { LASTING_MS };
    let mut command = command();
    command.env("CHECKSYNC_FAULT_MS", lasting.to_string()).env("CHECKSYNC_FAULTS", asked.join(";"));
    let done = command.env("CHECKSYNC_FAULTS_TO", report).status().context("cannot start cargo")?;
    ensure!(done.success(), "{TEST}: {done}");
    Ok(())
}

fn command() -> std::process::Command {
    let words =
        ["test", "--locked", "--release", "--quiet", "--package", "checksync", "--test", "faults", "--"];
    let mut command = cargo(&words);
    command.args(["--ignored", "--exact", TEST, "--nocapture"]);
    command
}

fn read(report: &Path) -> Result<Vec<Told>> {
    let text = fs::read_to_string(report).with_context(|| format!("cannot read {}", report.display()))?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("an odd fault: {line}")))
        .collect()
}

fn rows_of(told: &[Told]) -> Vec<Row> {
    let outcomes = || told.iter().filter_map(|told| Some((told, told.outcome.as_ref()?)));
    let sum =
        |of: fn(&Told, &Outcome) -> u64| outcomes().map(|(told, outcome)| of(told, outcome)).sum::<u64>();
    let none = |id: &str, count: u64| Row::measured(id, "", &[count as f64]).aim(0.0);
    let mut rows = vec![
        Row::measured("faults.count", "", &[told.len() as f64]),
        none("faults.failed", told.iter().filter(|told| told.failed).count() as u64),
        none("faults.two-audible", sum(|_, outcome| outcome.overlaps)),
        none("faults.lost", sum(|_, outcome| u64::from(outcome.lost) + outcome.mangled)),
        none(
            "faults.broken-in-strong",
            sum(|told, outcome| match told.mode.as_str() {
                "strong" => outcome.broken_connections,
                _ => 0,
            }),
        ),
    ];
    for told in told {
        let id = format!("faults.{}.{}", told.mode, told.fault.replace(", ", "+").replace(' ', "_"));
        let Some(outcome) = &told.outcome else {
            rows.push(Row::not_taken(id, "nobody was answered, or protected again"));
            continue;
        };
        let figures = [
            ("unavailable", outcome.unavailable_ms),
            ("answered-again", outcome.answered_again_ms),
            ("protected-again", outcome.protected_again_ms),
        ];
        rows.extend(figures.map(|(figure, value)| Row::measured(format!("{id}.{figure}"), "ms", &[value])));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_is_counted() {
        let failed = r#"{"fault":"kill app","mode":"strong","failed":true}"#;
        let bad = r#"{"fault":"cut a-b a-etcd","mode":"timeline","failed":false,"unavailable_ms":82.5,"answered_again_ms":5,
            "protected_again_ms":9,"overlaps":2,"lost":true,"mangled":1,"broken_connections":4}"#;
        let told: Vec<Told> = [failed, bad].map(|line| serde_json::from_str(line).unwrap()).into();
        let rows = rows_of(&told);
        let of = |id: &str| rows.iter().find(|row| row.id == id).and_then(|row| row.median);
        assert_eq!(
            (of("faults.failed"), of("faults.two-audible"), of("faults.lost")),
            (Some(1.0), Some(2.0), Some(2.0))
        );
        // In timeline connections may break.
        assert_eq!(of("faults.broken-in-strong"), Some(0.0));
        assert_eq!(of("faults.timeline.cut_a-b_a-etcd.unavailable"), Some(82.5));
        assert!(rows.iter().any(|row| row.id == "faults.strong.kill_app" && row.why_not.is_some()));
    }
}
