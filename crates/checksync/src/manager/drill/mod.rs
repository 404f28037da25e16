//! A drill: the newest checkpoint of a copy is restored beside it, asked whether it is well, and thrown away.
//!
//! The warm copy goes on taking epochs in, and is what a takeover uses: a drill works on a second one that is made from
//! it ([`engine::twin`]), on threads of its own that come after all others, and ends at once when a takeover begins. What
//! is restored lives in a sealed cell ([`super::sealed`]).

mod health;
mod record;

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use engine::twin::{Source, Twin, TwinError};
use engine::{Command, Engine, Event, Promotion, RestoreReport};
use image::CheckpointId;
use replica::primary::SyncCall;

use self::health::{Attempt, Subject};
pub use self::record::{Book, DrillReport, DrillStatus, Outcome, Record, Trigger};
use super::app_socket::{AppSocket, Restored};
use super::control::{Listener, News};
use super::output::Forwarding;
use super::primary::exit_text;
use super::{engine_settings, exit_of, sealed, wall_clock_ns};
use crate::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use crate::status::SCHEMA;

/// How often the inbox is left for a look at the command and at who asked.
const POLL: Duration = Duration::from_millis(5);
/// Between two attempts of the health command.
const AGAIN: Duration = Duration::from_millis(50);
/// Without a health command: who lives for so long is well.
const SETTLE: Duration = Duration::from_secs(1);
/// The engine's answers while memory is copied and restored.
const ENGINE_PATIENCE: Duration = Duration::from_secs(120);
const FREEZE_PATIENCE: Duration = Duration::from_secs(10);
/// What a host keeps free whatever a drill takes.
const SPARE_BYTES: u64 = 256 << 20;

/// What is asked for.
#[derive(Debug)]
pub struct Order {
    pub health: Option<String>,
    /// From the restored app's first instruction on.
    pub patience: Duration,
    pub trigger: Trigger,
    /// Who hangs up calls it off.
    pub listener: Option<Listener>,
}

/// Of which app, and where.
#[derive(Debug)]
pub struct Place {
    pub app: String,
    pub host: String,
    pub address: Option<gate::ServiceAddress>,
    pub state: Option<PathBuf>,
    pub shipped: Arc<engine::Cache>,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Twin(#[from] TwinError),
    #[error(
        "a second copy needs {needed_mib} MiB, and {free_mib} MiB of this host's memory are free; the drill is left out, \
         so that the copy itself has room"
    )]
    Memory { needed_mib: u64, free_mib: u64 },
    #[error("the second copy was refused: {0}")]
    Refused(String),
    #[error("it could not be restored: {0}")]
    NotRestored(String),
    #[error("it was restored, and ended: {0}")]
    Ended(String),
    #[error("no healthy answer within {patience:?}; the health command ended with {last}")]
    Sick { patience: Duration, last: String },
    #[error("the health command was still running after {patience:?}")]
    Hangs { patience: Duration },
    #[error("the drill's engine said nothing for {ENGINE_PATIENCE:?}")]
    Silent,
    #[error("{0}")]
    Host(String),
}

impl From<anyhow::Error> for Trouble {
    fn from(why: anyhow::Error) -> Self {
        Self::Host(format!("{why:#}"))
    }
}

impl Trouble {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Twin(TwinError::Gone | TwinError::CalledOff | TwinError::Nothing) => Outcome::Aborted,
            Self::Memory { .. } => Outcome::Refused,
            Self::Twin(TwinError::Refused | TwinError::Read(_))
            | Self::Refused(_)
            | Self::NotRestored(_)
            | Self::Ended(_)
            | Self::Sick { .. }
            | Self::Hangs { .. }
            | Self::Silent
            | Self::Host(_) => Outcome::Failed,
        }
    }
}

enum Input {
    Engine(Event),
    Sync(SyncCall),
    CalledOff,
}

/// A drill that is under way. Dropped, it is called off.
#[derive(Debug)]
pub struct Running {
    called_off: Arc<AtomicBool>,
    post: Sender<Input>,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Engine(event) => event.fmt(f),
            Self::Sync(_) => f.write_str("Sync"),
            Self::CalledOff => f.write_str("CalledOff"),
        }
    }
}

impl Drop for Running {
    /// Returns at once; what was made is taken down in the background.
    fn drop(&mut self) {
        self.called_off.store(true, Ordering::SeqCst);
        // It may have ended.
        let _ = self.post.send(Input::CalledOff);
    }
}

/// What came out, and who is still to be told.
#[derive(Debug)]
pub struct Drilled {
    pub record: Record,
    listener: Option<Listener>,
}

impl Drilled {
    /// To be done when it has been noted: whoever asked may ask for the status next.
    pub fn tell(self) {
        if let Some(listener) = self.listener {
            listener.say(News::Drilled { record: Box::new(self.record) });
        }
    }
}

/// Begins a drill.
pub fn start(
    place: Place,
    order: Order,
    twin: Twin,
    done: impl FnOnce(Drilled) + Send + 'static,
) -> std::io::Result<Running> {
    let (post, inbox) = mpsc::channel();
    let called_off = Arc::<AtomicBool>::default();
    let running = Running { called_off: Arc::clone(&called_off), post: post.clone() };
    thread::Builder::new().name("drill".to_owned()).spawn(move || {
        if let Err(why) = sys::task::step_back() {
            tracing::warn!("a drill runs as if it were important: {why}");
        }
        let drill = Drill { place, order, post, inbox, called_off, notes: Notes::default() };
        done(drill.run(twin));
    })?;
    Ok(running)
}

/// What is known by now.
#[derive(Debug, Default)]
struct Notes {
    id: Option<CheckpointId>,
    bytes: Option<u64>,
    copy: Option<Duration>,
    restore: Option<Duration>,
    healthy: Option<Duration>,
}

struct Drill {
    place: Place,
    order: Order,
    post: Sender<Input>,
    inbox: Receiver<Input>,
    called_off: Arc<AtomicBool>,
    notes: Notes,
}

/// What a drilled app lives in. Dropped, nothing of it is left.
struct Stage {
    engine: Engine,
    socket: AppSocket,
    _guard: super::cell::GuardLine,
    stdio: Option<engine::AppStdio>,
    output: Option<Forwarding>,
}

impl Drill {
    fn run(mut self, twin: Twin) -> Drilled {
        let began_at_ns = wall_clock_ns();
        let tried = self.attempt(twin);
        let (outcome, why) = match &tried {
            Ok(()) => (Outcome::Passed, None),
            Err(Trouble::Twin(why @ TwinError::Read(source))) => {
                (Outcome::Failed, Some(format!("{why}: {source}")))
            }
            Err(why) => (why.outcome(), Some(why.to_string())),
        };
        let micros = |span: Option<Duration>| span.map(|span| span.as_micros() as u64);
        let record = Record {
            schema: SCHEMA,
            app: self.place.app.clone(),
            host: self.place.host.clone(),
            trigger: self.order.trigger,
            outcome,
            why,
            began_at_ns,
            term: self.notes.id.map(|id| id.term.0),
            epoch: self.notes.id.map(|id| id.epoch.0),
            bytes: self.notes.bytes,
            copy_us: micros(self.notes.copy),
            restore_us: micros(self.notes.restore),
            healthy_us: micros(self.notes.healthy),
            health: self.order.health.clone(),
        };
        Drilled { record, listener: self.order.listener.take() }
    }

    fn attempt(&mut self, twin: Twin) -> Result<(), Trouble> {
        let began = Instant::now();
        let source = twin.wait()?;
        check_memory(source.bytes().map_err(TwinError::from)?)?;
        let mut stage = self.set_up()?;
        self.fill(&stage, source)?;
        self.notes.copy = Some(began.elapsed());
        let report = self.set_going(&mut stage)?;
        self.notes.restore = Some(report.total);
        let pid = report.pid;
        let well = self.examine(&stage, pid);
        stage.engine.send(Command::Kill);
        let Stage { engine, socket, output, .. } = stage;
        // Its end ends the cell, and with it the last writers of its output.
        drop((engine, socket));
        output.map(Forwarding::finish).unwrap_or_default();
        well
    }

    fn set_up(&self) -> Result<Stage, Trouble> {
        let addresses = match &self.place.address {
            Some(address) => vec![address.ip()],
            None => sealed::addresses_of_this_host(),
        };
        let kit = sealed::cell(&addresses)?;
        let to = self.post.clone();
        let on_sync = Box::new(move |call, _patience| drop(to.send(Input::Sync(call))));
        let host = |what: &'static str| move |why: std::io::Error| anyhow::Error::new(why).context(what);
        let socket = AppSocket::new(&self.place.app, &self.place.host, on_sync);
        let socket = socket.map_err(host("cannot hear calls of the app"))?;
        let mut settings = engine_settings(&self.place.app, 0);
        (settings.manager, settings.in_background) = (Some(socket.for_engine()), true);
        settings.freeze_patience = FREEZE_PATIENCE;
        settings.shipped = Some(Arc::clone(&self.place.shipped));
        let to = self.post.clone();
        let events = Box::new(move |event| drop(to.send(Input::Engine(event))));
        let engine = Engine::stand_by(settings, kit.spec, events);
        let log = self.place.state.as_ref().map(|state| state.join(format!("{}.drill.log", self.place.app)));
        let output = Forwarding::quietly(kit.streams, log);
        Ok(Stage {
            engine: engine.map_err(host("cannot start an engine"))?,
            socket,
            _guard: kit.guard,
            stdio: Some(kit.stdio),
            output: Some(output.map_err(host("cannot open the drill's log"))?),
        })
    }

    /// Makes the second copy.
    fn fill(&mut self, stage: &Stage, source: Source) -> Result<(), Trouble> {
        let id = source.id();
        let called_off = Arc::clone(&self.called_off);
        let listener = self.order.listener.as_ref();
        let is_over = || called_off.load(Ordering::SeqCst) || listener.is_some_and(Listener::is_gone);
        let mut is_first = true;
        let twinned = source.copy(is_over, |frame| {
            stage.engine.send(Command::Frames(frame));
            if std::mem::take(&mut is_first) {
                stage.engine.send(Command::Receive { id, full: true, keep_old: false });
            }
            true
        })?;
        (self.notes.id, self.notes.bytes) = (Some(twinned.id), Some(twinned.bytes));
        self.until(stage, |event| matches!(event, Event::Prepared { .. }))?;
        stage.engine.send(Command::Apply(id));
        self.until(stage, |event| matches!(event, Event::Applied { .. }))?;
        Ok(())
    }

    fn set_going(&self, stage: &mut Stage) -> Result<RestoreReport, Trouble> {
        let id = self.notes.id.unwrap_or_default();
        stage.socket.tell(|role| {
            role.term = id.term.0;
            role.restored = Some(Restored { term: id.term.0, epoch: id.epoch.0 });
            (role.state, role.why_not) = ("drill".to_owned(), Some(IN_A_DRILL.to_owned()));
        });
        let Some(stdio) = stage.stdio.take() else { return Err(Trouble::Silent) };
        let promotion = Promotion { stdio, cgroup: None, network: None, alone: true };
        stage.engine.send(Command::Promote(promotion));
        match self.until(stage, |event| matches!(event, Event::Restored(_)))? {
            Event::Restored(report) => Ok(report),
            _ => Err(Trouble::Silent),
        }
    }

    /// Waits for an event, or for what makes it impossible.
    fn until(&self, stage: &Stage, awaited: impl Fn(&Event) -> bool) -> Result<Event, Trouble> {
        let deadline = Instant::now() + ENGINE_PATIENCE;
        loop {
            match self.next_event(stage)? {
                Some(event) if awaited(&event) => return Ok(event),
                Some(Event::Refused { why, .. } | Event::ApplyFailed { why, .. }) => {
                    return Err(Trouble::Refused(why));
                }
                Some(Event::RestoreFailed { why } | Event::Failed { why }) => {
                    return Err(Trouble::NotRestored(why));
                }
                Some(Event::Ended) => {
                    return Err(Trouble::NotRestored("the engine ended; see the log".to_owned()));
                }
                Some(other) => tracing::debug!(?other, "in a drill"),
                None if Instant::now() > deadline => return Err(Trouble::Silent),
                None => (),
            }
        }
    }

    /// The next one, if it comes soon.
    fn next_event(&self, stage: &Stage) -> Result<Option<Event>, Trouble> {
        let gone = self.order.listener.as_ref().is_some_and(Listener::is_gone);
        match self.inbox.recv_timeout(POLL) {
            _ if gone => Err(TwinError::CalledOff.into()),
            Ok(Input::CalledOff) => Err(TwinError::CalledOff.into()),
            Ok(Input::Sync(call)) => {
                stage.socket.refuse(call, IN_A_DRILL.to_owned());
                Ok(None)
            }
            Ok(Input::Engine(event)) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(None),
        }
    }

    /// Asks until it is well, or for as long as it has.
    fn examine(&mut self, stage: &Stage, pid: i32) -> Result<(), Trouble> {
        let began = Instant::now();
        let Some(command) = self.order.health.clone() else { return self.watch(stage, began + SETTLE) };
        let (patience, deadline) = (self.order.patience, began + self.order.patience);
        let place = Place {
            app: self.place.app.clone(),
            host: String::new(),
            address: self.place.address,
            state: None,
            shipped: Arc::clone(&self.place.shipped),
        };
        let address = place.address.map(|address| address.ip().to_string());
        let subject = Subject { app: &place.app, pid, address };
        let mut last = None;
        loop {
            let start = Attempt::start(&command, &subject);
            let mut attempt =
                start.map_err(|why| anyhow::Error::new(why).context("cannot run the health command"))?;
            let status = self.await_attempt(stage, &mut attempt, deadline)?;
            match status {
                Some(status) if status.success() => {
                    self.notes.healthy = Some(began.elapsed());
                    return Ok(());
                }
                Some(status) => {
                    let why = format!("{status}: {}", attempt.last_words());
                    if Instant::now() + AGAIN >= deadline {
                        return Err(Trouble::Sick { patience, last: why });
                    }
                    last = Some(why);
                    self.watch(stage, Instant::now() + AGAIN)?;
                }
                // What an attempt said that did end says more.
                None => {
                    return Err(
                        last.map_or(Trouble::Hangs { patience }, |last| Trouble::Sick { patience, last })
                    );
                }
            }
        }
    }

    /// None: it is still running at the deadline.
    fn await_attempt(
        &self,
        stage: &Stage,
        attempt: &mut Attempt,
        deadline: Instant,
    ) -> Result<Option<ExitStatus>, Trouble> {
        loop {
            let ended = attempt.ended();
            let ended =
                ended.map_err(|why| anyhow::Error::new(why).context("cannot wait for the health command"))?;
            if ended.is_some() || Instant::now() >= deadline {
                return Ok(ended);
            }
            self.watch(stage, Instant::now() + POLL)?;
        }
    }

    /// The app lives on until then.
    fn watch(&self, stage: &Stage, until: Instant) -> Result<(), Trouble> {
        loop {
            match self.next_event(stage)? {
                Some(Event::Exited(exit)) => return Err(Trouble::Ended(exit_text(exit_of(exit)))),
                Some(Event::Ended) => return Err(Trouble::Ended("its engine ended; see the log".to_owned())),
                _ if Instant::now() >= until => return Ok(()),
                _ => (),
            }
        }
    }
}

const IN_A_DRILL: &str = "this is a drill: nobody sees what is done here";

/// A second copy must not take away what the first one needs.
fn check_memory(needed: u64) -> Result<(), Trouble> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(free) = available(&text) else { return Ok(()) };
    if needed.saturating_add(SPARE_BYTES) <= free {
        return Ok(());
    }
    Err(Trouble::Memory { needed_mib: (needed + SPARE_BYTES) >> 20, free_mib: free >> 20 })
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_copy_that_has_no_room_is_refused_with_the_figures() {
        assert_eq!(available("MemTotal:  9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(available("nonsense"), None);
        assert!(check_memory(0).is_ok(), "this test runs somewhere");
        let why = check_memory(1 << 60).unwrap_err();
        assert_eq!(why.outcome(), Outcome::Refused);
        assert!(why.to_string().contains(&format!("{} MiB", (1_u64 << 40) + 256)), "{why}");
    }
}
