//! `checksync pki init`: the certificates of a cluster, and who gets which.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;
use wire::pki::{self, Made, PkiError};

use crate::arguments::{Format, PkiInitArgs};
use crate::exit::{Coded, Exit};

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    dir: &'a Path,
    new_authority: bool,
    files: &'a [std::path::PathBuf],
}

pub fn run(args: PkiInitArgs) -> anyhow::Result<ExitCode> {
    let made = pki::init(&args.dir, &args.hosts).map_err(coded)?;
    match args.output.format {
        Format::Text => print!("{}", tell(&args, &made)),
        Format::Json => {
            let Made { new_authority, files } = &made;
            let report = Report { schema: 1, dir: &args.dir, new_authority: *new_authority, files };
            println!("{}", serde_json::to_string(&report).context("cannot write the report")?);
        }
    }
    Ok(Exit::Ok.into())
}

fn coded(error: PkiError) -> anyhow::Error {
    match error {
        PkiError::Host { .. } | PkiError::NoHosts => Coded::new(Exit::Usage, error).into(),
        PkiError::Exists { .. }
        | PkiError::HalfAuthority { .. }
        | PkiError::Key { .. }
        | PkiError::File { .. } => error.into(),
    }
}

fn tell(args: &PkiInitArgs, made: &Made) -> String {
    let dir = args.dir.display();
    let authority = if made.new_authority { "made the authority" } else { "used the authority" };
    let mut text = format!("{authority} in {dir}\n");
    for host in &args.hosts {
        text += &format!("  {host}: copy ca.crt, {host}.crt and {host}.key to it\n");
    }
    text += "whoever has a pair of these can run code as root on every host of the cluster;\n";
    text += "keep ca.key here: it is what makes pairs for more hosts\n";
    text
}
