//! `checksync checkpoint`: a running process into a directory, once.
//!
//! Until the file is whole and on the disk the process runs on, whatever happens; only then, and only without
//! `--leave-running`, it is killed. What it does after its freeze is then lost.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use engine::{Attach, CaptureReport, Command, Engine, Event};
use image::CheckpointId;
use serde::Serialize;

use super::describe::bytes;
use super::one_shot::{self, OneShotError, Writer};
use super::{signals, subject};
use crate::arguments::{CheckpointArgs, Format};
use crate::exit::{Coded, Exit};
use crate::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use crate::progress::Progress;

/// To give a process back, or to see it die.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Input {
    Engine(Event),
    Interrupted,
}

#[derive(Serialize)]
struct Report {
    schema: u32,
    app: String,
    pid: i32,
    term: u64,
    epoch: u64,
    file: PathBuf,
    bytes: u64,
    pause_us: u64,
    left_running: bool,
}

pub fn run(args: CheckpointArgs) -> anyhow::Result<ExitCode> {
    let app = subject::look_at(args.pid)?;
    let id = CheckpointId::new(1, 1);
    let file = Arc::new(Mutex::new(Sink::Open(Writer::create(&args.to, id)?)));
    let (post, inputs) = mpsc::channel();
    let interrupts = post.clone();
    signals::listen(move || drop(interrupts.send(Input::Interrupted)))?;
    let engine = attach(&app, args.pid, post)?;
    let captured = capture(&engine, &inputs, id, &file);
    let finished = captured.and_then(|capture| Ok((capture, Sink::finish(&file)?)));
    let kill = finished.is_ok() && !args.leave_running;
    give_back(&engine, &inputs, kill)?;
    let (capture, (path, len)) = finished?;
    let report = Report {
        schema: 1,
        app,
        pid: args.pid,
        term: id.term.0,
        epoch: id.epoch.0,
        file: path,
        bytes: len,
        pause_us: capture.pause.as_micros() as u64,
        left_running: !kill,
    };
    tell(&report, args.output.format)?;
    Ok(Exit::Ok.into())
}

fn attach(app: &str, pid: i32, post: Sender<Input>) -> anyhow::Result<Engine> {
    // Nobody is left to tell once this verb is at its end.
    let events = Box::new(move |event| drop(post.send(Input::Engine(event))));
    Engine::attach(one_shot::engine_settings(app), Attach { pid }, events).context("cannot start the engine")
}

/// Where the frames go: a file, or the first thing that went wrong with it.
enum Sink {
    Open(Writer),
    Failed(OneShotError),
    Done,
}

impl Sink {
    fn write(&mut self, frame: &Bytes) -> bool {
        let Self::Open(writer) = self else { return false };
        match writer.write(frame) {
            Ok(()) => true,
            Err(error) => {
                // This drops the half of the file.
                *self = Self::Failed(error);
                false
            }
        }
    }

    fn finish(shared: &Mutex<Self>) -> Result<(PathBuf, u64), OneShotError> {
        match std::mem::replace(&mut *shared.lock().unwrap_or_else(PoisonError::into_inner), Self::Done) {
            Self::Open(writer) => writer.finish(),
            Self::Failed(error) => Err(error),
            Self::Done => unreachable!("a checkpoint is finished once"),
        }
    }
}

fn capture(
    engine: &Engine,
    inputs: &Receiver<Input>,
    id: CheckpointId,
    file: &Arc<Mutex<Sink>>,
) -> anyhow::Result<CaptureReport> {
    let progress = Progress::start("saving");
    let writing = Arc::clone(file);
    let sink =
        Box::new(move |frame: Bytes| writing.lock().unwrap_or_else(PoisonError::into_inner).write(&frame));
    engine.send(Command::FullSync { id, sink });
    loop {
        match inputs.recv().context("the engine is gone")? {
            Input::Interrupted => bail!("interrupted; the process runs on, and no checkpoint was taken"),
            Input::Engine(Event::Captured { report, .. }) => return Ok(report),
            Input::Engine(Event::Progress(now)) => progress.show(now),
            Input::Engine(Event::Uncovered { paths }) if !paths.is_empty() => tracing::warn!(
                "not in the checkpoint, though the process has them open for writing: {}; keep them as they are until it \
                 is restored",
                paths.join(", ")
            ),
            Input::Engine(Event::CaptureFailed { why, refused, .. }) => {
                return Err(failure(file, why, refused));
            }
            Input::Engine(Event::Failed { why }) => {
                return Err(Coded::new(Exit::Unsupported, anyhow!(why)).into());
            }
            Input::Engine(Event::Exited(_) | Event::Ended) => bail!("the process ended before it was saved"),
            Input::Engine(other) => tracing::debug!(?other, "while the process is saved"),
        }
    }
}

/// A file that could not be written is what went wrong, and not that the engine was told to stop.
fn failure(file: &Mutex<Sink>, why: String, refused: bool) -> anyhow::Error {
    match &*file.lock().unwrap_or_else(PoisonError::into_inner) {
        Sink::Failed(_) => (),
        _ if refused => return Coded::new(Exit::Unsupported, anyhow!(why)).into(),
        _ => return anyhow!(why),
    }
    match Sink::finish(file) {
        Err(error) => error.into(),
        Ok(_) => anyhow!(why),
    }
}

/// Lets the process go, or has it die. It is untraced or dead when this returns.
fn give_back(engine: &Engine, inputs: &Receiver<Input>, kill: bool) -> anyhow::Result<()> {
    engine.send(if kill { Command::Kill } else { Command::Release });
    let deadline = Instant::now() + PATIENCE;
    loop {
        match inputs.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Input::Engine(Event::Exited(_) | Event::Ended)) | Err(RecvTimeoutError::Disconnected) => {
                return Ok(());
            }
            Ok(_) => (),
            Err(RecvTimeoutError::Timeout) => bail!("the process did not answer within {PATIENCE:?}"),
        }
    }
}

fn tell(report: &Report, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Text => {
            let Report { app, pid, file, .. } = report;
            let pause = report.pause_us as f64 / 1e3;
            let fate = if report.left_running { "runs on" } else { "has ended" };
            println!("saved {app} ({pid}) as {}, {}", file.display(), bytes(report.bytes));
            println!("it stood still for {pause:.1} ms, and {fate}");
        }
        Format::Json => println!("{}", serde_json::to_string(report).context("cannot write the report")?),
    }
    Ok(())
}
