//! The one door to the work on this tree: `cargo xtask ci`, `cargo xtask tidy`, `cargo xtask eval NAME`.
//!
//! Nothing of the product is in here, and nothing in here is part of the product.

mod ci;
mod eval;
mod failures;
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
    Eval(eval::Wanted),
}

fn main() -> ExitCode {
    if let Some(outcome) = eval::as_first_process() {
        return outcome;
    }
    let outcome = match Arguments::parse().task {
        Task::Ci => ci::run_all(),
        Task::Tidy => tidy::run(),
        // As the program does.
        Task::Eval(wanted) => sys::bell::mute().map_err(Into::into).and_then(|()| eval::run(wanted)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask: {why:#}");
            ExitCode::FAILURE
        }
    }
}
