//! `checksync demo`.

mod app;
mod client;
mod netlink;
mod network;
mod relay;

use std::process::ExitCode;

use crate::arguments::{DemoAppArgs, DemoArgs};
use crate::exit::Exit;

pub fn run(_args: DemoArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("the demo is not built yet")
}

/// The verb behind which the demo's program is.
pub fn serve_app(args: &DemoAppArgs) -> anyhow::Result<ExitCode> {
    app::run(args.listen)?;
    Ok(Exit::Ok.into())
}
