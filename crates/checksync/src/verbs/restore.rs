//! `checksync restore`: sets a saved process going again, in a PID namespace of its own with the numbers that
//! it had, and stays with it until it ends.
//!
//! The file is verified to its last byte before anything is made. Whatever fails until the process runs ends
//! what was made of it: nothing is half restored. Once it runs, it outlives this verb.

mod detach;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use engine::{AppExit, AppStdio, Command, Engine, Event, Promotion, RestoreReport};
use image::change::Slices;
use image::{Frame, FrameKind, Header};
use serde::{Deserialize, Serialize};

use super::one_shot::{self, Reader};
use super::signals;
use super::stored::{self, Stored};
use crate::arguments::{Format, RestoreArgs};
use crate::exit::{Coded, Exit};
use crate::guard::Order;
use crate::manager;
use crate::manager::cell::CellKit;
use crate::manager::output::Forwarding;
use crate::manager::sealed;
use crate::mpsc::{self, Receiver};

/// Between the SIGTERM that is passed on and a SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Input {
    Engine(Event),
    Interrupted,
}

#[derive(Debug, Serialize, Deserialize)]
struct Report {
    schema: u32,
    app: String,
    /// As this host counts.
    pid: i32,
    term: u64,
    epoch: u64,
    restore_us: u64,
}

pub fn run(args: RestoreArgs) -> anyhow::Result<ExitCode> {
    if args.detach {
        return detach::run(&args);
    }
    let log = detach::begin(args.dir.as_deref())?;
    let source = Source::open(&args)?;
    let header = source.header()?;
    let (post, inputs) = mpsc::channel();
    let interrupts = post.clone();
    signals::listen(move || drop(interrupts.send(Input::Interrupted)))?;
    let CellKit { spec, mut guard, stdio, streams } = match args.sealed {
        true => sealed::cell(&source.addresses()?)?,
        false => CellKit::new(None).context("cannot make a cell")?,
    };
    // Nobody is left to tell once this verb is at its end.
    let events = Box::new(move |event| drop(post.send(Input::Engine(event))));
    let mut settings = one_shot::engine_settings(&header.app);
    settings.shipped = Some(manager::shipped_files(None)?);
    let engine = Engine::stand_by(settings, spec, events);
    let restoring = Restoring { engine: engine.context("cannot start the engine")?, inputs };
    restoring.fill(&source, &header)?;
    drop(source);
    let report = restoring.set_going(stdio)?;
    guard.send(&Order::Live);
    announce(&args, &header, report)?;
    let output = Forwarding::start(streams, log).context("cannot forward the output")?;
    let exit = restoring.stay()?;
    output.finish();
    if let Some(pidfile) = &args.pidfile {
        // It names a process that is gone; whoever removed it before us was faster.
        let _ = fs::remove_file(pidfile);
    }
    Ok(code(exit))
}

/// Where the checkpoint is; it was read to its last byte.
enum Source {
    File(PathBuf),
    Store(Box<Stored>),
}

impl Source {
    fn open(args: &RestoreArgs) -> anyhow::Result<Self> {
        if let Some(stored) = stored::fetch(&args.from)? {
            return Ok(Self::Store(Box::new(stored)));
        }
        let dir =
            args.dir.as_ref().context("name a directory that `checksync checkpoint` made, or --store")?;
        Ok(Self::File(one_shot::find(dir)?))
    }

    fn header(&self) -> anyhow::Result<Header> {
        match self {
            Self::File(path) => Ok(one_shot::verify(path)?),
            Self::Store(stored) => {
                tracing::info!(id = %stored.header.id, "fetched from {}", stored.name);
                Ok(stored.header.clone())
            }
        }
    }

    /// Where its sockets are: a sealed network has to have that.
    fn addresses(&self) -> anyhow::Result<Vec<IpAddr>> {
        let mut state = Slices::default();
        for frame in self.frames()? {
            let frame = Frame::parse(frame?)?;
            if frame.kind == FrameKind::State {
                state.take(&frame)?;
            }
        }
        let state = state.join(None)?;
        Ok(checkpoint::descriptors::addresses(&state).into_iter().collect())
    }

    /// The frames, from the header on.
    fn frames(&self) -> anyhow::Result<Box<dyn Iterator<Item = anyhow::Result<Bytes>> + '_>> {
        match self {
            Self::File(path) => {
                let mut reader = Reader::open(path)?;
                let (_, first) = reader.header()?;
                let rest = std::iter::from_fn(move || reader.next_frame().transpose());
                let rest = rest.map(|frame| Ok(one_shot::encoded(&frame?)));
                Ok(Box::new(std::iter::once(Ok(one_shot::encoded(&first))).chain(rest)))
            }
            Self::Store(stored) => Ok(Box::new(stored.gathered.frames().map(|frame| Ok(frame?)))),
        }
    }
}

struct Restoring {
    engine: Engine,
    inputs: Receiver<Input>,
}

impl Restoring {
    /// Has the engine make a copy of what the source holds.
    fn fill(&self, source: &Source, header: &Header) -> anyhow::Result<()> {
        let mut frames = source.frames()?;
        let first = frames.next().context("a checkpoint without a header")??;
        self.engine.send(Command::Frames(first));
        self.until(|event| matches!(event, Event::EpochBegins { .. }))?;
        self.engine.send(Command::Receive { id: header.id, full: true, keep_old: false });
        for frame in frames {
            self.engine.send(Command::Frames(frame?));
        }
        self.until(|event| matches!(event, Event::Prepared { .. }))?;
        self.engine.send(Command::Apply(header.id));
        self.until(|event| matches!(event, Event::Applied { .. }))?;
        Ok(())
    }

    fn set_going(&self, stdio: AppStdio) -> anyhow::Result<RestoreReport> {
        // Whoever it was connected with has long gone.
        self.engine.send(Command::Promote(Promotion { stdio, cgroup: None, network: None, alone: true }));
        match self.until(|event| matches!(event, Event::Restored(_)))? {
            Event::Restored(report) => Ok(report),
            other => bail!("the engine said {other:?} instead of how it restored"),
        }
    }

    /// Waits for an event, or for what makes it impossible.
    fn until(&self, awaited: impl Fn(&Event) -> bool) -> anyhow::Result<Event> {
        let unfit = |why: String| Err(Coded::new(Exit::Unsupported, anyhow!(why)).into());
        loop {
            match self.inputs.recv().context("the engine is gone")? {
                Input::Interrupted => bail!("interrupted; nothing was restored"),
                Input::Engine(event) if awaited(&event) => return Ok(event),
                Input::Engine(Event::Refused { why, .. } | Event::RestoreFailed { why }) => {
                    return unfit(why);
                }
                Input::Engine(Event::ApplyFailed { why, .. } | Event::Failed { why }) => bail!(why),
                Input::Engine(Event::Ended) => bail!("the engine ended; see the log"),
                Input::Engine(other) => tracing::debug!(?other, "while the process is restored"),
            }
        }
    }

    /// Passes Ctrl-C on, as a SIGTERM and then as a SIGKILL, and waits for the process's end.
    fn stay(&self) -> anyhow::Result<AppExit> {
        let mut asked = false;
        loop {
            match self.inputs.recv().context("the engine is gone")? {
                Input::Interrupted if asked => self.engine.send(Command::Kill),
                Input::Interrupted => self.engine.send(Command::Stop { grace: GRACE }),
                Input::Engine(Event::Exited(exit)) => return Ok(exit),
                Input::Engine(Event::Ended) => bail!("the engine ended before the process; see the log"),
                Input::Engine(_) => continue,
            }
            asked = true;
        }
    }
}

/// Says that the process runs; on the standard output only for a program that asked for it, because what
/// follows there is the process's own.
fn announce(args: &RestoreArgs, header: &Header, restored: RestoreReport) -> anyhow::Result<()> {
    if let Some(pidfile) = &args.pidfile {
        write_pidfile(pidfile, restored.pid)?;
    }
    let report = Report {
        schema: 1,
        app: header.app.clone(),
        pid: restored.pid,
        term: restored.id.term.0,
        epoch: restored.id.epoch.0,
        restore_us: restored.total.as_micros() as u64,
    };
    match args.output.format {
        Format::Text => eprintln!("{}", text(&report)),
        Format::Json => println!("{}", serde_json::to_string(&report).context("cannot write the report")?),
    }
    Ok(())
}

fn text(report: &Report) -> String {
    let Report { app, pid, restore_us, .. } = report;
    format!("{app} runs again, as process {pid}, {:.1} ms after it was told to", *restore_us as f64 / 1e3)
}

/// Whoever waits for the file never sees half of it.
fn write_pidfile(path: &Path, pid: i32) -> anyhow::Result<()> {
    let half = PathBuf::from(format!("{}.incomplete", path.display()));
    let written = fs::write(&half, format!("{pid}\n")).and_then(|()| fs::rename(&half, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// As a shell shows it.
fn code(exit: AppExit) -> ExitCode {
    const SIGNAL_BASE: i32 = 128;
    let code = match exit {
        AppExit::Code(code) => code,
        AppExit::Signal(signal) => SIGNAL_BASE + signal,
    };
    u8::try_from(code).unwrap_or(Exit::Failure as u8).into()
}
