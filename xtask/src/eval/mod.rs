//! `cargo xtask eval NAME`: figures, as a table on the terminal and as target/eval/NAME.json.
//!
//! An evaluation is a row of [`EVALS`]: a name, and a function that measures and answers [`Row`]s. What the
//! thesis and CRIU reached stands in [`published`], each figure with its source.

mod published;
mod row;
mod table;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Serialize;

pub use row::Row;

use crate::workspace::target_dir;

/// One set of figures that can be taken.
struct Eval {
    name: &'static str,
    what: &'static str,
    measure: fn() -> Result<Vec<Row>>,
}

const EVALS: &[Eval] = &[Eval {
    name: "published",
    what: "measures nothing: the figures of the thesis and of CRIU that ours stand beside, and our aims",
    measure: published::rows,
}];

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
    let rows = (eval.measure)().with_context(|| format!("eval {name} took no figures"))?;
    print!("{}", table::render(&rows));
    let path = write(name, Report { rows })?;
    println!("written to {}", path.display());
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
