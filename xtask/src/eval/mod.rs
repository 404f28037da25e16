//! `cargo xtask eval NAME`: figures, as a table on the terminal and as target/eval/NAME.json.
//!
//! An evaluation is a row of [`EVALS`]: a name, and a function that measures and answers [`Row`]s. What the
//! thesis and CRIU reached stands in [`published`], each figure with its source. `CHECKSYNC_EVAL_QUICK=1` takes
//! fewer runs of fewer sizes: rough figures, soon.
//!
//! - [`pause`] and [`overhead`] drive a pair of engines in this process ([`pair`], [`side`], [`cell`]).
//! - [`failover`] drives the program that people use, in two network namespaces ([`hosts`]).
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
mod structure;
mod table;
mod takeover;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

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

/// What is written to target/eval/NAME.json.
#[derive(Debug, Serialize)]
struct Report {
    rows: Vec<Row>,
}

pub fn run(name: Option<&str>) -> Result<()> {
    let Some(name) = name else {
        println!("{}", known());
        return Ok(());
    };
    let eval = find(name)?;
    if cfg!(debug_assertions) {
        return run_optimised(name);
    }
    let rows = (eval.measure)().with_context(|| format!("eval {name} took no figures"))?;
    print!("{}", table::render(&rows));
    let path = write(name, Report { rows })?;
    println!("written to {}", path.display());
    Ok(())
}

/// Engines run in this very program: figures of one that is not optimised say nothing.
fn run_optimised(name: &str) -> Result<()> {
    let words = ["run", "--locked", "--release", "--quiet", "--package", "xtask", "--", "eval", name];
    let done = cargo(&words).status().context("cannot start cargo")?;
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

fn write(name: &str, report: Report) -> Result<PathBuf> {
    let dir = target_dir().join("eval");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let path = dir.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(&report).context("figures that are no JSON")?;
    fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let why = find("speed").err().expect("no such figures").to_string();
        assert!(EVALS.iter().all(|eval| why.contains(eval.name)), "{why}");
    }
}
