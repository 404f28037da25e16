//! `cell-init`, what the engine starts as the first process of a cell; and `guard`, what a manager starts beside a
//! process that it attached to.

use std::process::ExitCode;

use crate::arguments::{CellInitArgs, GuardArgs};
use crate::guard;

pub fn run(args: CellInitArgs) -> anyhow::Result<ExitCode> {
    guard::run(&args.words).map(|()| ExitCode::SUCCESS)
}

pub fn guard(args: &GuardArgs) -> anyhow::Result<ExitCode> {
    guard::run_beside(&args.word).map(|()| ExitCode::SUCCESS)
}
