use std::process::ExitCode;

use crate::arguments::CheckpointArgs;

pub fn run(_args: CheckpointArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("checkpoint is not built yet")
}
