//! Work that takes a while, and whose machine dies in the middle: the thesis's word count and its matrix.
//!
//! Each job runs unprotected, protected, and with a death when half of it is done; what it prints at the end must be
//! what a plain run prints. Work that was lost is the time from the freeze that was restored to the death.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testkit::programs::go_app;

use super::namespace::{Owned, line_of};
use super::side::wall_ns;
use super::street::{Mode, Protected, SERVICE, Street};
use super::{Row, attempt, managers, quick};

/// Of the corpus; a power of two, so that its splits are alike.
const CORPUS_BYTES: usize = 4 << 20;
const MAPS: usize = 96;
const WORKERS: usize = 2;
/// A task takes at least so long, as one of a larger corpus would: or there would be no middle to die in.
const PACE: &str = "25ms";
const SIZE: usize = 512;
const STEPS: usize = 40;

/// What dies in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Host,
    App,
}

impl Death {
    fn name(self) -> &'static str {
        match self {
            Self::Host => "dead-host",
            Self::App => "killed-app",
        }
    }
}

/// A job, with what it needs.
#[derive(Debug)]
struct Job {
    name: &'static str,
    program: Vec<String>,
    /// Lines of its progress begin like this; the one in the middle ends it.
    progress: &'static str,
    middle: String,
    /// Whether it needs workers at its side.
    has_workers: bool,
    /// The last line of a run that nothing happened to.
    digest: String,
    _dir: TempDir,
}

/// One run to the end.
#[derive(Debug)]
struct Run {
    seconds: f64,
    is_right: bool,
    done_again: usize,
    lost_ms: f64,
}

pub fn rows() -> Result<Vec<Row>> {
    managers::build()?;
    let mut rows = Vec::new();
    for (name, job) in [("words", word_count as fn() -> Result<Job>), ("matrix", matrix)] {
        rows.extend(attempt(&format!("{name}."), || rows_of(&job()?)));
    }
    Ok(rows)
}

fn rows_of(job: &Job) -> Result<Vec<Row>> {
    let runs = if quick() { 2 } else { 10 };
    let modes: &[Mode] = if job.has_workers { &[Mode::Timeline, Mode::Strong] } else { &[Mode::Timeline] };
    let alone = (0..runs).map(|_| job.alone()).collect::<Result<Vec<_>>>()?;
    let mut rows = vec![Row::measured(format!("{}.unprotected.took", job.name), "s", &alone)];
    for mode in modes {
        for death in [None, Some(Death::Host), Some(Death::App)] {
            let name = format!("{}.{}", job.name, mode.name());
            rows.extend(attempt(&name, || job.rows_of(&name, *mode, death, runs)));
        }
    }
    Ok(rows)
}

fn word_count() -> Result<Job> {
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let corpus = dir.path().join("corpus");
    let program = go_app("mapreduce").display().to_string();
    let mut generate = Command::new(&program);
    generate.args(["generate", "--bytes", &CORPUS_BYTES.to_string()]);
    let done = generate.stdin(Stdio::null()).stdout(File::create(&corpus)?).status();
    ensure!(done.context("cannot start mapreduce")?.success(), "no corpus was made");
    // The job itself has no part in what it is measured by.
    let mut count = Command::new(&program);
    let digest = last_line(count.args(["count", "--corpus"]).arg(&corpus))?;
    let words = ["coordinate", "--listen", SERVICE, "--maps"].map(str::to_owned);
    let words = words.into_iter().chain([MAPS.to_string(), "--corpus".to_owned(), path(&corpus)?]);
    Ok(Job {
        name: "words",
        program: std::iter::once(program).chain(words).collect(),
        progress: "map ",
        middle: format!("map {} of {MAPS}", MAPS / 2),
        has_workers: true,
        digest,
        _dir: dir,
    })
}

fn matrix() -> Result<Job> {
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let program = go_app("matrix").display().to_string();
    let words = ["--size".to_owned(), SIZE.to_string(), "--power".to_owned(), STEPS.to_string()];
    let digest = last_line(Command::new(&program).args(&words))?;
    Ok(Job {
        name: "matrix",
        program: std::iter::once(program).chain(words).collect(),
        progress: "step ",
        middle: format!("step {} of {STEPS}", STEPS / 2),
        has_workers: false,
        digest,
        _dir: dir,
    })
}

fn last_line(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(text.lines().last().context("a program that prints nothing")?.to_owned())
}

fn path(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
}

impl Job {
    /// Seconds that it takes when nobody protects it.
    fn alone(&self) -> Result<f64> {
        let street = Street::build()?;
        let began = Instant::now();
        let mut server = street.unprotected(&self.program)?;
        let workers = self.workers(&street)?;
        // A coordinator stays for its workers' sake after that.
        let digest = line_of(&mut server, "digest ")?;
        let took = began.elapsed();
        drop(workers);
        ensure!(digest == self.digest, "{} alone has another result", self.name);
        Ok(took.as_secs_f64())
    }

    fn workers(&self, street: &Street) -> Result<Vec<Owned>> {
        let worker = || {
            let mut command = street.clients.command(go_app("mapreduce"));
            command.args(["work", "--coordinator", SERVICE, "--pace", PACE]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Ok(Owned(command.spawn().context("cannot start a worker")?))
        };
        (0..if self.has_workers { WORKERS } else { 0 }).map(|_| worker()).collect()
    }

    fn rows_of(&self, name: &str, mode: Mode, death: Option<Death>, runs: usize) -> Result<Vec<Row>> {
        let mut done = Vec::new();
        for number in 1..=runs {
            let run = self.run(mode, death)?;
            let what = death.map_or("undisturbed", Death::name);
            let right = if run.is_right { "the right result" } else { "A WRONG RESULT" };
            println!("{name}, {what}, {number} of {runs}: {:.2} s, {right}", run.seconds);
            done.push(run);
        }
        let id = |part: &str| format!("{name}.{}.{part}", death.map_or("undisturbed", Death::name));
        let figures = |of: fn(&Run) -> f64| done.iter().map(of).collect::<Vec<_>>();
        let wrong = done.iter().filter(|run| !run.is_right).count();
        let mut rows = vec![
            // Of all runs together: a median would hide one.
            Row { runs, ..Row::measured(id("wrong-results"), "", &[wrong as f64]).aim(0.0) },
            Row::measured(id("took"), "s", &figures(|run| run.seconds)),
        ];
        if death.is_some() {
            rows.push(Row::measured(id("work-lost"), "ms", &figures(|run| run.lost_ms)));
            rows.push(Row::measured(id("steps-done-again"), "", &figures(|run| run.done_again as f64)));
        }
        Ok(rows)
    }

    fn run(&self, mode: Mode, death: Option<Death>) -> Result<Run> {
        let started = Instant::now();
        let mut protected = Protected::start(mode, &[], &self.program)?;
        // Without workers nothing waits for protection: what is counted then begins with the managers.
        let began = if self.has_workers { Instant::now() } else { started };
        let workers = self.workers(&protected.street)?;
        let mut lost_ms = 0.0;
        if let Some(death) = death {
            protected.managers.wait_for_line("a", |line| line == self.middle)?;
            let died_at_ns = wall_ns();
            match death {
                Death::Host => protected.kill_host_a()?,
                Death::App => protected.managers.kill_app()?,
            }
            let frozen_at_ns = protected.takeover()?.frozen_at_ns;
            lost_ms = (died_at_ns as f64 - frozen_at_ns as f64) / 1e6;
        }
        let host = if death.is_some() { "b" } else { "a" };
        let digest = protected.managers.wait_for_line(host, |line| line.starts_with("digest "))?;
        let seconds = began.elapsed().as_secs_f64();
        drop(workers);
        let steps = |host| protected.managers.log(host).matches(self.progress).count();
        let done_again = (steps("a") + steps("b")).saturating_sub(self.steps());
        Ok(Run { seconds, is_right: digest == self.digest, done_again, lost_ms })
    }

    fn steps(&self) -> usize {
        if self.has_workers { MAPS } else { STEPS }
    }
}
