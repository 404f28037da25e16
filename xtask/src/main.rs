//! The one door to the work on this tree: `cargo xtask ci`, `cargo xtask tidy`, `cargo xtask eval NAME`.
//!
//! Nothing of the product is in here, and nothing in here is part of the product.

mod ci;
mod eval;
mod packages;
mod processes;
mod step;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Checks, tests and measures CheckSync")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// All that must hold: installs what the tests need, then format, lints, tidiness, tests, demo.
    Ci,
    /// The rules that no compiler checks: arrows between crates, where `unsafe` may be, the length of files.
    Tidy,
    /// Takes figures: prints a table and writes target/eval/NAME.json.
    Eval {
        /// Which figures; without a name, the list.
        name: Option<String>,
        /// Of `strong`: only the rows whose ids begin like this (without `strong.`); the others stay as they were.
        #[arg(long)]
        only: Option<String>,
        /// Of `takeover`: so many more, a fifth of them in timeline mode; the figures are of all so far.
        #[arg(long)]
        rounds: Option<usize>,
    },
}

fn main() -> ExitCode {
    if let Some(outcome) = eval::as_first_process() {
        return outcome;
    }
    let outcome = match Arguments::parse().task {
        Task::Ci => ci::run_all(),
        Task::Tidy => tidy::run(),
        // As the program does.
        Task::Eval { name, only, rounds } => sys::bell::mute()
            .map_err(Into::into)
            .and_then(|()| eval::run(name.as_deref(), only.as_deref(), rounds)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask: {why:#}");
            ExitCode::FAILURE
        }
    }
}
