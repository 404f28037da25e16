//! `checksync inspect`: what a checkpoint holds, as a tree or as JSON. Reads and verifies all of the file.

mod contents;
mod tree;

use std::process::ExitCode;

use anyhow::Context;

use super::one_shot;
use crate::arguments::{Format, InspectArgs};
use crate::exit::Exit;

pub fn run(args: InspectArgs) -> anyhow::Result<ExitCode> {
    let contents = contents::read(&one_shot::find(&args.dir)?)?;
    match args.output.format {
        Format::Text => print!("{}", tree::draw(&contents)),
        Format::Json => {
            println!("{}", serde_json::to_string(&contents).context("cannot write the report")?);
        }
    }
    Ok(Exit::Ok.into())
}
