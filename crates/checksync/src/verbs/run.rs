//! `run`: start a program and protect it.

use std::process::ExitCode;

use anyhow::Context;

use super::attach::protect;
use crate::arguments::RunArgs;
use crate::config::PrimarySettings;
use crate::manager::primary::Target;

pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let settings = PrimarySettings::resolve(args.primary)?;
    let (program, arguments) = args.command.split_first().context("no program is named")?;
    protect(settings, Target::Command { program: program.clone(), arguments: arguments.to_vec() })
}
