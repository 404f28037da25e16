//! `cargo xtask eval NAME`: figures, as a table on the terminal and as target/eval/NAME.json.
//!
//! An evaluation is a row of [`EVALS`]: a name, and a function that measures and answers [`Row`]s. What the
//! thesis and CRIU reached stands in [`published`], each figure with its source. `CHECKSYNC_EVAL_QUICK=1` takes
//! fewer runs of fewer sizes: rough figures, soon.
//!
//! - [`pause`] and [`overhead`] drive a pair of engines in this process ([`pair`], [`side`], [`cell`]).
//! - [`failover`] drives the program that people use, in two network namespaces ([`hosts`]).
//! - [`strong`] has the tests of that program measure, and makes rows of their samples.
//! - [`structure`] drives it without root, with programs on the SDK.
//! - [`takeover`] has the tests of that program play rounds, and counts what their judge found.

mod cell;
mod collections;
mod failover;
mod hosts;
mod kv;
mod overhead;
mod pair;
mod pause;
mod published;
mod row;
mod side;
mod spin;
mod strong;
mod structure;
mod table;
mod takeover;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

pub use cell::as_first_process;
pub use row::Row;

use crate::workspace::{cargo, target_dir};

/// One set of figures that can be taken.
struct Eval {
    name: &'static str,
    what: &'static str,
    measure: fn() -> Result<Vec<Row>>,
}

const EVALS: &[Eval] = &[
    Eval {
        name: "pause",
        what: "how long a checkpoint stops a Go key/value server, and how fast its copy takes over, by its size",
        measure: pause::rows,
    },
    Eval {
        name: "overhead",
        what: "throughput that the server loses to checkpoints at an interval of 50 ms",
        measure: overhead::rows,
    },
    Eval {
        name: "failover",
        what: "from the death of a host or of the app to the first answer of the copy, with the real programs",
        measure: failover::rows,
    },
    Eval {
        name: "strong",
        what: "what strong consistency costs clients, beside timeline, a synced log and Raft; who used the processors",
        measure: strong::rows,
    },
    Eval {
        name: "takeover",
        what: "what concurrent clients notice of deaths at random instants, judged over their whole history",
        measure: takeover::rows,
    },
    Eval {
        name: "structure",
        what: "a replicated map in process and behind a server, beside the same map encoded whole with each write",
        measure: structure::rows,
    },
    Eval {
        name: "published",
        what: "measures nothing: the figures of the thesis and of CRIU that ours stand beside, and our aims",
        measure: published::rows,
    },
];

/// Fewer runs and sizes, to try the evaluations themselves out.
fn quick() -> bool {
    std::env::var_os("CHECKSYNC_EVAL_QUICK").is_some_and(|wanted| wanted == "1")
}

/// What rows are asked for.
static ONLY: OnceLock<String> = OnceLock::new();

/// Only rows whose ids begin like this are wanted; empty for all.
fn only() -> &'static str {
    ONLY.get().map_or("", String::as_str)
}

/// How many rounds are to be played beside those of before.
static ROUNDS: OnceLock<Option<usize>> = OnceLock::new();

fn more_rounds() -> Option<usize> {
    ROUNDS.get().copied().flatten()
}

/// With `only`, rows that were taken before and are not asked for stay in the file.
pub fn run(name: Option<&str>, only: Option<&str>, rounds: Option<usize>) -> Result<()> {
    ONLY.get_or_init(|| only.unwrap_or_default().to_owned());
    ROUNDS.get_or_init(|| rounds);
    let Some(name) = name else {
        println!("{}", known());
        return Ok(());
    };
    let eval = find(name)?;
    if cfg!(debug_assertions) {
        return run_optimised(name, only, rounds);
    }
    let rows = (eval.measure)().with_context(|| format!("eval {name} took no figures"))?;
    print!("{}", table::render(&rows));
    let path = write(name, &rows)?;
    println!("written to {}", path.display());
    Ok(())
}

/// Engines run in this very program: figures of one that is not optimised say nothing.
fn run_optimised(name: &str, only: Option<&str>, rounds: Option<usize>) -> Result<()> {
    let words = ["run", "--locked", "--release", "--quiet", "--package", "xtask", "--", "eval", name];
    let only = only.map(|only| ["--only", only]).into_iter().flatten();
    let rounds = rounds.map(|rounds| ["--rounds".to_owned(), rounds.to_string()]).into_iter().flatten();
    let done = cargo(&words).args(only).args(rounds).status().context("cannot start cargo")?;
    ensure!(done.success(), "eval {name}: {done}");
    Ok(())
}

fn find(name: &str) -> Result<&'static Eval> {
    match EVALS.iter().find(|eval| eval.name == name) {
        Some(eval) => Ok(eval),
        None => bail!("no figures are called {name:?}; these are known:\n{}", known()),
    }
}

fn known() -> String {
    let lines: Vec<_> = EVALS.iter().map(|eval| format!("  {:<12} {}", eval.name, eval.what)).collect();
    lines.join("\n")
}

fn write(name: &str, rows: &[Row]) -> Result<PathBuf> {
    let dir = target_dir().join("eval");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let path = dir.join(format!("{name}.json"));
    let rows = rows.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>();
    let rows = rows.context("figures that are no JSON")?;
    let before = if only().is_empty() { Vec::new() } else { rows_in(&path) };
    let report = json!({ "rows": merged(before, rows) });
    let text = serde_json::to_string_pretty(&report).context("figures that are no JSON")?;
    fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Of an earlier run, if there was one.
fn rows_in(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let report: Value = serde_json::from_str(&text).unwrap_or_default();
    report["rows"].as_array().cloned().unwrap_or_default()
}

/// The rows of before, new ones in their places, and those that were not there behind.
fn merged(mut rows: Vec<Value>, new: Vec<Value>) -> Vec<Value> {
    for row in new {
        match rows.iter_mut().find(|before| before["id"] == row["id"]) {
            Some(before) => *before = row,
            None => rows.push(row),
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_were_not_asked_for_stay() {
        let row = |id: &str, median: u64| json!({ "id": id, "median": median });
        let rows = merged(vec![row("a", 1), row("b", 1)], vec![row("c", 2), row("b", 2)]);
        assert_eq!(rows, [row("a", 1), row("b", 2), row("c", 2)]);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let why = find("speed").err().expect("no such figures").to_string();
        assert!(EVALS.iter().all(|eval| why.contains(eval.name)), "{why}");
    }
}
