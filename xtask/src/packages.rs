//! What the tests need beside Rust, installed if it is missing: servers from Debian; Go, and a simulator of S3, from
//! the Python index; one of Azure from npm.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::{env, iter};

use anyhow::{Context, Result, anyhow, ensure};

use crate::step::run;

const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Installs what is missing, and says so. Answers the PATH for the tests.
pub fn install() -> Result<OsString> {
    install_from_debian()?;
    testkit::servers::moto().map_err(|why| anyhow!(why))?;
    testkit::servers::azurite().map_err(|why| anyhow!(why))?;
    let go = testkit::programs::newest_go().map_err(|why| anyhow!(why))?;
    if testkit::rights::on_path("go") {
        return Ok(env::var_os("PATH").unwrap_or_default());
    }
    println!("go is not on the PATH: the tests use {}", go.display());
    path_with(go)
}

fn install_from_debian() -> Result<()> {
    let mut missing: Vec<_> = testkit::servers::packages_missing().collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        println!("all Debian packages that the tests need are here");
        return Ok(());
    }
    let advice = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    ensure!(
        testkit::rights::on_path("apt-get"),
        "not a Debian: install what these have: {}",
        missing.join(" ")
    );
    ensure!(rustix::process::geteuid().is_root(), "not root: run this first: {advice}");
    println!("missing, will be installed from Debian: {}", missing.join(" "));
    run(&mut apt(&["update"]), LIMIT).context("the list of packages can't be had")?;
    let install = ["install", "-y", "--no-install-recommends"];
    run(apt(&install).args(&missing), LIMIT).with_context(|| format!("install by hand: {advice}"))
}

fn apt(arguments: &[&str]) -> Command {
    let mut apt = Command::new("apt-get");
    // In this run level no package starts its server: the tests start their own.
    apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    apt
}

fn path_with(program: PathBuf) -> Result<OsString> {
    let dir = program.parent().context("a program lies in a directory")?.to_owned();
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(iter::once(dir).chain(env::split_paths(&path)))?)
}
