//! One engine in this process, and what its app prints.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use engine::{AppStdio, Command, Engine, Event, Launch, Settings};

use super::cell;

/// Ten million keys are put into a map in a minute, if the machine has other work too.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// An engine. Dropping it ends it, and its app with it.
#[derive(Debug)]
pub struct Side {
    pub engine: Engine,
    events: Receiver<Event>,
    lines: Receiver<Line>,
    /// Kept, so that the lines do not end between two apps.
    printed: Sender<Line>,
}

/// A line that the app printed, and when it came.
#[derive(Debug)]
pub struct Line {
    pub text: String,
    pub wall_ns: u64,
}

fn settings() -> Settings {
    Settings {
        app: "eval".to_owned(),
        shadow_bytes: 256 << 20,
        epoch_bytes_max: 1 << 30,
        freeze_patience: Duration::from_secs(2),
        connections: engine::Connections::Reset,
        barrier: None,
        manager: None,
        state_dirs: Vec::new(),
        shared_dirs: Vec::new(),
        shipped: None,
        in_background: false,
    }
}

impl Side {
    /// An app that has begun.
    pub fn primary(program: &str, arguments: &[&str]) -> Result<Self> {
        let (printed, lines) = channel();
        let launch = Launch {
            cell: cell::spec(),
            program: program.into(),
            arguments: arguments.iter().map(OsString::from).collect(),
            directory: None,
            stdio: stdio(&printed)?,
            cgroup: None,
        };
        let (sink, events) = channel();
        // Events that nobody waits for any more are as good as heard.
        let sink = Box::new(move |event| drop(sink.send(event)));
        let engine = Engine::launch(settings(), launch, sink).context("cannot start an engine")?;
        let side = Self { engine, events, lines, printed };
        side.until("an app", |event| matches!(event, Event::Ready { .. }).then_some(()))?;
        side.engine.send(Command::Start);
        Ok(side)
    }

    pub fn standby() -> Result<Self> {
        let (printed, lines) = channel();
        let (sink, events) = channel();
        let sink = Box::new(move |event| drop(sink.send(event)));
        let engine =
            Engine::stand_by(settings(), cell::spec(), sink).context("cannot start a standby's engine")?;
        Ok(Self { engine, events, lines, printed })
    }

    /// Pipes whose other ends are read into our lines.
    pub fn stdio(&self) -> Result<AppStdio> {
        stdio(&self.printed)
    }

    /// Waits for an event that `pick` wants; fails on failures and on silence.
    pub fn until<T>(&self, what: &str, mut pick: impl FnMut(&mut Event) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(mut event) = self.events.recv_timeout(left) else { bail!("waited in vain for {what}") };
            if let Some(found) = pick(&mut event) {
                return Ok(found);
            }
            if let Some(why) = failure(event) {
                bail!("waited for {what}: {why}");
            }
        }
    }

    /// Waits for the line `wanted`.
    pub fn wait_for_line(&self, wanted: &str) -> Result<()> {
        self.lines_until(wanted, &mut Vec::new())
    }

    /// The same, and those before it.
    pub fn lines_until(&self, wanted: &str, before: &mut Vec<Line>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.text == wanted => return Ok(()),
                Ok(line) => before.push(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    bail!("the app did not print {wanted:?}")
                }
            }
        }
    }

    /// The lines that came since.
    pub fn lines(&self) -> Vec<Line> {
        self.lines.try_iter().collect()
    }
}

fn failure(event: Event) -> Option<String> {
    match event {
        Event::Failed { why }
        | Event::RestoreFailed { why }
        | Event::CaptureFailed { why, .. }
        | Event::Refused { why, .. }
        | Event::ApplyFailed { why, .. } => Some(why),
        Event::Exited(exit) => Some(format!("the app ended: {exit:?}")),
        _ => None,
    }
}

fn stdio(printed: &Sender<Line>) -> Result<AppStdio> {
    Ok(AppStdio { output: pipe(printed)?, error: pipe(printed)? })
}

fn pipe(printed: &Sender<Line>) -> Result<OwnedFd> {
    let (read, write) = std::io::pipe().context("cannot make a pipe")?;
    let printed = printed.clone();
    thread::spawn(move || {
        for text in BufReader::new(read).lines().map_while(Result::ok) {
            if printed.send(Line { text, wall_ns: wall_ns() }).is_err() {
                return;
            }
        }
    });
    Ok(write.into())
}

/// Nanoseconds since 1970.
pub fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
