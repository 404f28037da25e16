//! A pair of engines in one process, with epochs going from one to the other.
//!
//! A test that uses this is a program of its own, since it is also what starts as the first process of the
//! cells: its `main` is [`main`].

#![allow(dead_code, reason = "each of the programs that share this uses a part of it")]

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::cell::{CellSpec, Init};
use engine::{
    AppExit, AppStdio, CaptureReport, Command, Engine, Event, Launch, Promotion, RestoreReport, Settings,
};
use image::CheckpointId;
use testkit::guest::GoFile;

pub const PATIENCE: Duration = Duration::from_secs(30);
const FIRST: &str = "cell-first-process";

/// Runs the tests whose name has the first argument in it; or is the first process of a cell.
pub fn main(tests: &[(&str, fn())]) {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|verb| verb == FIRST) {
        Init::enter(&arguments[1..]).expect("the cell is entered");
        loop {
            // Reaps whatever the app leaves behind.
            let _ = sys::wait::wait(sys::wait::Whom::Any);
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
    let wanted = arguments.iter().find_map(|argument| argument.to_str().filter(|a| !a.starts_with('-')));
    let mut passed = 0;
    for (name, test) in tests {
        if wanted.is_none_or(|wanted| name.contains(wanted)) {
            test();
            println!("test {name} ... ok");
            passed += 1;
        }
    }
    println!("{passed} passed, 0 failed");
}

fn settings() -> Settings {
    Settings {
        app: "test".to_owned(),
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

fn cell() -> CellSpec {
    let program = std::env::current_exe().expect("this program has a path");
    CellSpec {
        program,
        arguments: vec![FIRST.into()],
        inherited: vec![],
        network: None,
        socket: false,
        sealed: false,
        cgroup: None,
    }
}

/// What an app has printed so far.
#[derive(Clone, Default)]
pub struct Output(Arc<(Mutex<String>, Condvar)>);

impl Output {
    /// Waits for a line that is `wanted`, or begins with it and a colon.
    pub fn wait_for(&self, wanted: &str, patience: Duration) {
        self.wait_for_any(&[wanted], patience);
    }

    /// Waits for one of these lines; returns the whole line.
    pub fn wait_for_any(&self, wanted: &[&str], patience: Duration) -> String {
        let is_wanted = |line: &&str| {
            wanted.iter().any(|wanted| {
                line == wanted || line.strip_prefix(wanted).is_some_and(|rest| rest.starts_with(':'))
            })
        };
        let find = |text: &str| text.lines().find(is_wanted).map(str::to_owned);
        let text = self.0.0.lock().unwrap();
        let (text, _) = self.0.1.wait_timeout_while(text, patience, |text| find(text).is_none()).unwrap();
        find(&text).unwrap_or_else(|| panic!("none of {wanted:?} was printed, but {text:?}"))
    }

    /// A pipe whose other end is read into this.
    fn pipe(&self) -> OwnedFd {
        let (mut read, write) = std::io::pipe().expect("a pipe");
        let output = self.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = read.read(&mut buffer) {
                output.0.0.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
                output.0.1.notify_all();
            }
        });
        write.into()
    }

    fn stdio(&self) -> AppStdio {
        AppStdio { output: self.pipe(), error: self.pipe() }
    }
}

pub struct Side {
    pub engine: Engine,
    pub output: Output,
    events: Receiver<Event>,
}

impl Side {
    pub fn primary(program: &str, arguments: &[&str]) -> Self {
        let (sink, events) = channel();
        let output = Output::default();
        let launch = Launch {
            cell: cell(),
            program: program.into(),
            arguments: arguments.iter().map(OsString::from).collect(),
            directory: None,
            stdio: output.stdio(),
            cgroup: None,
        };
        let engine = Engine::launch(settings(), launch, Box::new(move |event| drop(sink.send(event))));
        Self { engine: engine.expect("an engine starts"), output, events }
    }

    /// Waits for the app's end.
    pub fn exit(&self) -> AppExit {
        self.until("the end", |event| match event {
            Event::Exited(exit) => Some(*exit),
            _ => None,
        })
    }

    pub fn standby() -> Self {
        let (sink, events) = channel();
        let engine = Engine::stand_by(settings(), cell(), Box::new(move |event| drop(sink.send(event))));
        Self { engine: engine.expect("an engine starts"), output: Output::default(), events }
    }

    /// The next event, whatever it is.
    pub fn next_event(&self, what: &str) -> Event {
        self.events.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {what} came"))
    }

    /// Makes the copy the app; the reason if that fails.
    pub fn promote(&self) -> Result<RestoreReport, String> {
        let promotion = Promotion { stdio: self.output.stdio(), cgroup: None, network: None, alone: false };
        self.engine.send(Command::Promote(promotion));
        loop {
            match self.next_event("end of a takeover") {
                Event::Restored(report) => return Ok(report),
                Event::RestoreFailed { why } => return Err(why),
                Event::Failed { why } => panic!("the engine failed: {why}"),
                _ => (),
            }
        }
    }

    /// Waits for an event that `pick` wants; panics on failures and on silence.
    pub fn until<T>(&self, what: &str, mut pick: impl FnMut(&mut Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut event = self.events.recv_timeout(left).unwrap_or_else(|_| panic!("no {what} came"));
            if let Some(found) = pick(&mut event) {
                return found;
            }
            match event {
                Event::Failed { why } | Event::RestoreFailed { why } => panic!("waiting for {what}: {why}"),
                Event::CaptureFailed { why, .. }
                | Event::Refused { why, .. }
                | Event::ApplyFailed { why, .. } => {
                    panic!("waiting for {what}: {why}")
                }
                _ => (),
            }
        }
    }
}

pub struct Pair {
    pub primary: Side,
    pub standby: Side,
    pub last: CheckpointId,
}

impl Pair {
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        let primary = Side::primary(program, arguments);
        primary.until("a ready app", |event| matches!(event, Event::Ready { .. }).then_some(()));
        primary.engine.send(Command::Start);
        Self { primary, standby: Side::standby(), last: CheckpointId::new(1, 0) }
    }

    /// With a guest that is set up, and waits for this file.
    pub fn of_guest(name: &str, go_file: &GoFile, arguments: &[&str]) -> Self {
        let (guest, go) = (testkit::programs::guest_path(), go_file.path());
        let line = [&[name, "--go", go.to_str().unwrap()][..], arguments].concat();
        let pair = Self::start(guest.to_str().unwrap(), &line);
        pair.primary.output.wait_for("ready", PATIENCE);
        pair
    }

    pub fn full_sync(&mut self) -> CaptureReport {
        let id = self.last.next();
        let (frames, arriving) = channel::<Bytes>();
        let sink = Box::new(move |frame| frames.send(frame).is_ok());
        self.primary.engine.send(Command::FullSync { id, sink });
        let mut announced = false;
        while let Ok(frame) = arriving.recv_timeout(PATIENCE) {
            self.standby.engine.send(Command::Frames(frame));
            if !announced {
                self.receive(id, true);
                announced = true;
            }
        }
        let report = self.captured(id).1;
        self.commit(id);
        report
    }

    pub fn epoch(&mut self) -> CaptureReport {
        let (id, parent) = (self.last.next(), self.last);
        self.primary.engine.send(Command::Capture { id, parent });
        let (frames, report) = self.captured(id);
        self.deliver(id, frames);
        report
    }

    fn deliver(&mut self, id: CheckpointId, frames: Vec<Bytes>) {
        let mut frames = frames.into_iter();
        self.standby.engine.send(Command::Frames(frames.next().expect("a header")));
        self.receive(id, false);
        frames.for_each(|frame| self.standby.engine.send(Command::Frames(frame)));
        self.commit(id);
    }

    /// An epoch that may be refused for what the app is doing: the reason.
    pub fn try_epoch(&mut self) -> Result<CaptureReport, String> {
        let (id, parent) = (self.last.next(), self.last);
        self.primary.engine.send(Command::Capture { id, parent });
        let captured = self.primary.until("a capture or a refusal", |event| match event {
            Event::Captured { frames, report, .. } => Some(Ok((std::mem::take(frames), *report))),
            Event::CaptureFailed { why, refused: true, .. } => Some(Err(std::mem::take(why))),
            _ => None,
        });
        let (frames, report) = captured?;
        self.deliver(id, frames);
        Ok(report)
    }

    /// Captures everything, or what changed since the last epoch, for nobody: the frames.
    pub fn capture_aside(&mut self, full: bool) -> Vec<Bytes> {
        let id = CheckpointId::new(self.last.term.0, self.last.epoch.0 + 100);
        if !full {
            self.primary.engine.send(Command::Capture { id, parent: self.last });
            return self.captured(id).0;
        }
        let (frames, arriving) = channel::<Bytes>();
        let sink = Box::new(move |frame| frames.send(frame).is_ok());
        self.primary.engine.send(Command::FullSync { id, sink });
        self.captured(id);
        arriving.into_iter().collect()
    }

    pub fn captured(&self, id: CheckpointId) -> (Vec<Bytes>, CaptureReport) {
        self.primary.until("a capture", |event| match event {
            Event::Captured { id: found, frames, report } if *found == id => {
                Some((std::mem::take(frames), *report))
            }
            _ => None,
        })
    }

    fn receive(&self, id: CheckpointId, full: bool) {
        self.standby.until("the epoch's beginning", |event| {
            matches!(event, Event::EpochBegins { id: found, .. } if *found == id).then_some(())
        });
        self.standby.engine.send(Command::Receive { id, full, keep_old: true });
    }

    fn commit(&mut self, id: CheckpointId) {
        self.standby.until("a prepared epoch", |event| {
            matches!(event, Event::Prepared { id: found } if *found == id).then_some(())
        });
        self.primary.engine.send(Command::Committed(id));
        self.standby.engine.send(Command::Apply(id));
        self.standby.until("an applied epoch", |event| {
            matches!(event, Event::Applied { id: found } if *found == id).then_some(())
        });
        self.last = id;
    }

    /// Kills the app and its cell, and lets the copy go on.
    pub fn take_over(self) -> (Side, RestoreReport) {
        let Self { primary, standby, .. } = self;
        drop(primary);
        let promotion =
            Promotion { stdio: standby.output.stdio(), cgroup: None, network: None, alone: false };
        standby.engine.send(Command::Promote(promotion));
        let report = standby.until("a restored app", |event| match event {
            Event::Restored(report) => Some(*report),
            _ => None,
        });
        (standby, report)
    }
}

/// The most memory that this process ever had resident.
pub fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("our own status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it has the peak");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") << 10
}
