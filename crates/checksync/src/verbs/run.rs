//! `run`: start a program and protect it; or go on with one out of the store that has kept it.

mod from_store;

use std::process::ExitCode;

use anyhow::Context;

use super::attach::protect;
use crate::arguments::RunArgs;
use crate::config::{Beginning, PrimarySettings};
use crate::manager::primary::Target;
use crate::manager::structures;

pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let beginning = if args.from_store { Beginning::Store } else { Beginning::Program };
    let settings = PrimarySettings::resolve(args.primary, beginning)?;
    if args.from_store {
        return from_store::run(settings, args.from_living);
    }
    if settings.structures {
        return structures::protect(settings, args.command);
    }
    let (program, arguments) = args.command.split_first().context("no program is named")?;
    protect(settings, Target::Command { program: program.clone(), arguments: arguments.to_vec() })
}
