//! `checksync inspect`: what a checkpoint holds, as a tree or as JSON. Reads and verifies all of the file.

mod contents;
mod tree;

use std::process::ExitCode;

use anyhow::{Context, bail};

use super::{one_shot, stored};
use crate::arguments::{Format, InspectArgs};
use crate::exit::Exit;

pub fn run(args: InspectArgs) -> anyhow::Result<ExitCode> {
    let contents = match (stored::fetch(&args.from)?, &args.dir) {
        (Some(stored), _) => contents::of_stored(&stored)?,
        (None, Some(dir)) => contents::read(&one_shot::find(dir)?)?,
        (None, None) => bail!("name a directory that `checksync checkpoint` made, or --store"),
    };
    match args.output.format {
        Format::Text => print!("{}", tree::draw(&contents)),
        Format::Json => {
            println!("{}", serde_json::to_string(&contents).context("cannot write the report")?);
        }
    }
    Ok(Exit::Ok.into())
}
