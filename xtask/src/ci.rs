//! `cargo xtask ci`: everything that must hold, in the order in which it fails soonest.
//!
//! The first failing step ends the run. Each has a limit of its own, and the run has one: what hangs is killed
//! and named.

mod demo;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, io};

use anyhow::{Context, Result};

use crate::failures::Failures;
use crate::step::{run, run_clean, step};
use crate::workspace::{cargo, root};
use crate::{packages, processes, tidy};

/// All of it; whoever runs us allows 90 minutes.
const RUN_LIMIT: Duration = minutes(85);
const BUILD_LIMIT: Duration = minutes(30);
const TEST_LIMIT: Duration = minutes(40);
const SHORT_LIMIT: Duration = minutes(5);

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

pub fn run_all() -> Result<()> {
    processes::adopt_orphans().context("cannot become the parent of orphans")?;
    let ci = Run::begin()?;
    step("format", || ci.run(&mut cargo(&["fmt", "--all", "--check"]), SHORT_LIMIT))?;
    step("tidy", tidy::run)?;
    let clippy = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    step("lints", || ci.run(&mut cargo(&clippy), BUILD_LIMIT))?;
    let build = ["test", "--locked", "--workspace", "--no-run"];
    step("build of the tests", || ci.run(&mut cargo(&build), BUILD_LIMIT))?;
    step("tests", || ci.run_tests(&mut cargo(&["test", "--locked", "--workspace", "--no-fail-fast"])))?;
    step("Go programs", || ci.go_programs())?;
    step("build of the demo", || ci.run(&mut cargo(&["build", "--locked", "--release"]), BUILD_LIMIT))?;
    step("demo", || demo::run(ci.left(SHORT_LIMIT)))?;
    println!("all is well, after {:.0} s", ci.begun.elapsed().as_secs_f64());
    Ok(())
}

/// One run: when it began, and the PATH of its tests.
struct Run {
    begun: Instant,
    path: OsString,
}

impl Run {
    fn begin() -> Result<Self> {
        let begun = Instant::now();
        let mut path = OsString::new();
        step("packages", || packages::install().map(|found| path = found))?;
        Ok(Self { begun, path })
    }

    fn left(&self, limit: Duration) -> Duration {
        limit.min(RUN_LIMIT.saturating_sub(self.begun.elapsed()))
    }

    fn run(&self, command: &mut Command, limit: Duration) -> Result<()> {
        run(command.env("PATH", &self.path), self.left(limit))
    }

    /// No test may be skipped, and none may leave a process behind.
    fn run_tests(&self, command: &mut Command) -> Result<()> {
        let (output, writer) = io::pipe()?;
        let command = command.env("PATH", &self.path).env("CHECKSYNC_TESTS", "all").stdout(writer);
        let failures = Failures::of(output);
        let outcome = run_clean(command, self.left(TEST_LIMIT));
        command.stdout(Stdio::inherit()); // The other end of the pipe closes.
        let failed = failures.once_more();
        if !failed.is_empty() {
            println!("── what failed, once more\n{}", failed.join("\n"));
        }
        outcome
    }

    fn go_programs(&self) -> Result<()> {
        for module in go_modules()? {
            self.run(&mut self.go(&module, &["vet", "./..."]), SHORT_LIMIT)?;
            self.run_tests(&mut self.go(&module, &["test", "./..."]))?;
        }
        Ok(())
    }

    fn go(&self, module: &Path, arguments: &[&str]) -> Command {
        let go = env::split_paths(&self.path).map(|dir| dir.join("go")).find(|go| go.is_file());
        let mut go = Command::new(go.unwrap_or_else(|| "go".into()));
        go.args(arguments).current_dir(module).env("GOTOOLCHAIN", "local").env("GOWORK", "off");
        go
    }
}

fn go_modules() -> Result<Vec<PathBuf>> {
    let apps = fs::read_dir(root().join("apps")).context("cannot list apps/")?;
    let mut modules: Vec<_> = apps.flatten().map(|entry| entry.path()).filter(|path| is_go(path)).collect();
    modules.push(root().join("sdk/go"));
    modules.sort();
    Ok(modules)
}

fn is_go(path: &Path) -> bool {
    path.join(OsStr::new("go.mod")).is_file()
}
