//! `cargo xtask eval NAME`: figures, as a table on the terminal and as target/eval/NAME.json. `cargo xtask eval all`
//! takes all of them, and makes one report.
//!
//! An evaluation is a row of [`EVALS`]: a name, and a function that measures and answers [`Row`]s. What the
//! thesis and CRIU reached stands in [`published`], each figure with its source. `--quick` takes fewer runs of fewer
//! sizes: rough figures, soon. The [`report`] is made from the files alone, chapter by chapter.
//!
//! - [`pause`], [`overhead`] and [`sweeps`] drive a pair of engines in this process ([`pair`], [`side`], [`cell`]).
//! - [`failover`] drives the program that people use, in two network namespaces ([`hosts`]).
//! - [`jobs`], [`intervals`], [`over_time`], [`drill`] and [`soak`] drive it beside a third namespace, its clients' ([`street`]).
//! - [`sizes`] takes one checkpoint at a time, and [`code`] counts lines.
//! - [`strong`] has the tests of that program measure, and makes rows of their samples.
//! - [`structure`] drives it without root, with programs on the SDK.
//! - [`faults`] and [`decision`] have them do the same on hosts with a real register.
//! - [`takeover`] has the tests of that program play rounds, and counts what their judge found.

mod all;
mod asked;
mod cell;
mod code;
mod collections;
mod conditions;
mod decision;
mod drill;
mod failover;
mod faults;
mod hosts;
mod intervals;
mod jobs;
mod kv;
mod managers;
mod namespace;
mod over_time;
mod overhead;
mod pair;
mod pause;
mod published;
mod report;
mod row;
mod samples;
mod side;
mod sizes;
mod soak;
mod spin;
mod street;
mod strong;
mod structure;
mod sweeps;
mod table;
mod taken;
mod takeover;

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

pub use cell::as_first_process;
use conditions::Begun;
pub use row::Row;
use row::attempt;
use taken::Taken;

use crate::workspace::cargo;

/// What is to be measured, and how.
#[derive(Debug, Default, Args)]
pub struct Wanted {
    /// Which figures; `all` for a report of all; without a name, the list.
    name: Option<String>,
    /// Of `all`: only these chapters or evaluations, a comma between them; the report has the others as they were.
    /// Of `strong`: only the rows whose ids begin like this (without `strong.`); the others stay as they were.
    /// Of `failover`: only the rows whose ids begin like this, as in failover-dead-host-10M.
    /// Of `faults`: only those whose names begin like this, as in "strong cut a-b".
    #[arg(long)]
    only: Option<String>,
    /// Fewer runs of fewer sizes: rough figures, soon.
    #[arg(long)]
    quick: bool,
    /// Of `all`: measure nothing, and make the report from what was measured before.
    #[arg(long)]
    render_only: bool,
    /// Of `takeover`: so many more, a fifth of them in timeline mode; the figures are of all so far.
    #[arg(long)]
    rounds: Option<usize>,
}

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
        name: "sweeps",
        what: "pause and work lost by the pages written between two checkpoints, and by the size of memory",
        measure: sweeps::rows,
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
        name: "faults",
        what: "cut links, dead and paused processes and full disks with an etcd of three: how long, and what is lost",
        measure: faults::rows,
    },
    Eval {
        name: "decision",
        what: "from suspicion to right beside a swap of the register, and a planned move beside a checkpoint",
        measure: decision::rows,
    },
    Eval {
        name: "drill",
        what: "throughput that drills cost the primary, beside what it varies by itself",
        measure: drill::rows,
    },
    Eval {
        name: "structure",
        what: "a replicated map in process and behind a server, beside the same map encoded whole with each write",
        measure: structure::rows,
    },
    Eval {
        name: "jobs",
        what: "a word count and a matrix whose machine dies in the middle: the same result, and the work that is lost",
        measure: jobs::rows,
    },
    Eval {
        name: "intervals",
        what: "throughput lost by the interval of checkpoints, beside programs that save themselves",
        measure: intervals::rows,
    },
    Eval {
        name: "over-time",
        what: "requests per second over time, with checkpoints and through the death of a host",
        measure: over_time::rows,
    },
    Eval {
        name: "soak",
        what: "half an hour under load: what both managers take, and whether any of it grows",
        measure: soak::rows,
    },
    Eval {
        name: "sizes",
        what: "bytes of a checkpoint on disk, as they are and compressed, by the server's size",
        measure: sizes::rows,
    },
    Eval {
        name: "code",
        what: "lines of code of each component, and those that change in a server that is made fault-tolerant",
        measure: code::rows,
    },
    Eval {
        name: "published",
        what: "measures nothing: the figures of the thesis and of CRIU that ours stand beside, and our aims",
        measure: published::rows,
    },
];

/// What this run was asked for; set once, before anything is measured.
static WANTED: OnceLock<Wanted> = OnceLock::new();

fn wanted(of: impl Fn(&Wanted) -> bool) -> bool {
    WANTED.get().is_some_and(of)
}

/// Fewer runs and sizes, to try the evaluations themselves out.
fn quick() -> bool {
    wanted(|wanted| wanted.quick)
        || std::env::var_os("CHECKSYNC_EVAL_QUICK").is_some_and(|asked| asked == "1")
}

/// Only rows whose ids begin like this are wanted; empty for all.
fn only() -> &'static str {
    let of_one = WANTED.get().filter(|wanted| wanted.name.as_deref() != Some(all::NAME));
    of_one.and_then(|wanted| wanted.only.as_deref()).unwrap_or_default()
}

/// How many rounds are to be played beside those of before.
fn more_rounds() -> Option<usize> {
    WANTED.get().and_then(|wanted| wanted.rounds)
}

pub fn run(wanted: Wanted) -> Result<()> {
    let wanted = WANTED.get_or_init(|| wanted);
    let Some(name) = &wanted.name else {
        println!("{}", known());
        return Ok(());
    };
    if wanted.render_only && name == all::NAME {
        return all::render();
    }
    if name != all::NAME {
        find(name)?;
    }
    if cfg!(debug_assertions) {
        return run_optimised(name);
    }
    if name == all::NAME { all::run(wanted.only.as_deref()) } else { run_one(find(name)?) }
}

fn run_one(eval: &Eval) -> Result<()> {
    let (taken, path) = take(eval)?;
    print!("{}", table::render(&taken.rows));
    println!("written to {}", path.display());
    let missing = taken.rows.iter().filter(|row| row.why_not.is_some()).count();
    ensure!(missing == 0, "{missing} rows were not taken");
    Ok(())
}

/// Measures and writes down. What can't be measured is a row that says why. With `only`, rows that were taken before
/// and are not asked for stay in the file.
fn take(eval: &Eval) -> Result<(Taken, PathBuf)> {
    let begun = Begun::now();
    let rows = attempt(eval.name, eval.measure);
    let partly = !only().is_empty();
    let taken = Taken { conditions: Some(begun.conditions(partly)), rows };
    let dir = taken::directory()?;
    let before = if partly { Taken::earlier(&dir, eval.name) } else { None };
    let path = taken.clone().over(before).write(&dir, eval.name)?;
    Ok((taken, path))
}

/// Engines run in this very program: figures of one that is not optimised say nothing.
fn run_optimised(name: &str) -> Result<()> {
    let words = ["run", "--locked", "--release", "--quiet", "--package", "xtask", "--"];
    let done = cargo(&words).args(std::env::args_os().skip(1)).status().context("cannot start cargo")?;
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
    let all = (all::NAME, "all of them, and a report; `--only` takes these names and those of chapters:");
    let evals = std::iter::once(all).chain(EVALS.iter().map(|eval| (eval.name, eval.what)));
    let lines: Vec<_> = evals.map(|(name, what)| format!("  {name:<12} {what}")).collect();
    let chapters = report::CHAPTERS.iter().map(|chapter| format!("    {:<18} {}", chapter.id, chapter.title));
    lines.into_iter().chain(chapters).collect::<Vec<_>>().join("\n")
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
