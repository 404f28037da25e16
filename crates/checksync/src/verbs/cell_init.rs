//! `cell-init`: what the engine starts as the first process of a cell.

use std::process::ExitCode;

use crate::arguments::CellInitArgs;
use crate::guard;

pub fn run(args: CellInitArgs) -> anyhow::Result<ExitCode> {
    guard::run(&args.words).map(|()| ExitCode::SUCCESS)
}
