//! An app is captured by one engine, kept by another, killed, and goes on.
//!
//! This test is a program of its own, since it is also what starts as the first process of the cells.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::cell::{CellSpec, Init};
use engine::{AppStdio, CaptureReport, Command, Engine, Event, Launch, Promotion, RestoreReport, Settings};
use image::CheckpointId;

const PATIENCE: Duration = Duration::from_secs(30);
const FIRST: &str = "cell-first-process";

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|verb| verb == FIRST) {
        Init::enter(&arguments[1..]).expect("the cell is entered");
        loop {
            // Reaps whatever the app leaves behind.
            let _ = sys::wait::wait(sys::wait::Whom::Any);
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
    let tests: [(&str, fn()); 3] = [
        ("an_interpreter_goes_on_where_it_was", an_interpreter_goes_on_where_it_was),
        ("a_go_server_goes_on_where_it_was", a_go_server_goes_on_where_it_was),
        ("an_exit_code_is_reported", an_exit_code_is_reported),
    ];
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
    }
}

fn cell() -> CellSpec {
    let program = std::env::current_exe().expect("this program has a path");
    CellSpec { program, arguments: vec![FIRST.into()], inherited: vec![] }
}

/// Pipes for the app's output, and a thread that shows it.
fn stdio(name: &'static str) -> AppStdio {
    let (output, error) = (shown(name), shown(name));
    AppStdio { output, error }
}

fn shown(name: &'static str) -> OwnedFd {
    let (mut read, write) = std::io::pipe().expect("a pipe");
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = read.read(&mut buffer) {
            print!("[{name}] {}", String::from_utf8_lossy(&buffer[..n]));
        }
    });
    write.into()
}

struct Side {
    engine: Engine,
    events: Receiver<Event>,
}

impl Side {
    fn primary(program: &str, arguments: &[&str]) -> Self {
        let (sink, events) = channel();
        let launch = Launch {
            cell: cell(),
            program: program.into(),
            arguments: arguments.iter().map(OsString::from).collect(),
            directory: None,
            stdio: stdio("primary"),
            cgroup: None,
        };
        let engine = Engine::launch(settings(), launch, Box::new(move |event| drop(sink.send(event))));
        Self { engine: engine.expect("an engine starts"), events }
    }

    fn standby() -> Self {
        let (sink, events) = channel();
        let engine = Engine::stand_by(settings(), cell(), Box::new(move |event| drop(sink.send(event))));
        Self { engine: engine.expect("an engine starts"), events }
    }

    /// Waits for an event that `pick` wants; panics on failures and on silence.
    fn until<T>(&self, what: &str, mut pick: impl FnMut(&mut Event) -> Option<T>) -> T {
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

struct Pair {
    primary: Side,
    standby: Side,
    last: CheckpointId,
}

impl Pair {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let primary = Side::primary(program, arguments);
        primary.until("a ready app", |event| matches!(event, Event::Ready { .. }).then_some(()));
        primary.engine.send(Command::Start);
        Self { primary, standby: Side::standby(), last: CheckpointId::new(1, 0) }
    }

    fn full_sync(&mut self) -> CaptureReport {
        let id = self.last.next();
        let (frames, arriving) = channel::<Bytes>();
        let sink = Box::new(move |frame| frames.send(frame).is_ok());
        self.primary.engine.send(Command::FullSync { id, sink });
        let mut announced = false;
        loop {
            match arriving.recv_timeout(PATIENCE) {
                Ok(frame) => {
                    self.standby.engine.send(Command::Frame(frame));
                    if !announced {
                        self.receive(id, true);
                        announced = true;
                    }
                }
                Err(_) => break,
            }
        }
        let report = self.captured(id).1;
        self.commit(id);
        report
    }

    fn epoch(&mut self) -> CaptureReport {
        let (id, parent) = (self.last.next(), self.last);
        self.primary.engine.send(Command::Capture { id, parent });
        let (frames, report) = self.captured(id);
        let mut frames = frames.into_iter();
        self.standby.engine.send(Command::Frame(frames.next().expect("a header")));
        self.receive(id, false);
        frames.for_each(|frame| self.standby.engine.send(Command::Frame(frame)));
        self.commit(id);
        report
    }

    fn captured(&self, id: CheckpointId) -> (Vec<Bytes>, CaptureReport) {
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
    fn take_over(self) -> (Side, RestoreReport) {
        let Self { primary, standby, .. } = self;
        drop(primary);
        standby.engine.send(Command::Promote(Promotion { stdio: stdio("standby"), cgroup: None }));
        let report = standby.until("a restored app", |event| match event {
            Event::Restored(report) => Some(*report),
            _ => None,
        });
        (standby, report)
    }
}

fn an_interpreter_goes_on_where_it_was() {
    let address = testkit::servers::own_address();
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let source = testkit::programs::source_dir("python").join("counter.py");
    let mut pair = Pair::start("/usr/bin/python3", &[source.to_str().unwrap(), &host, &port]);
    wait_for_listener(address);
    for n in 1..=5 {
        assert_eq!(count(address, "POST"), n);
    }
    let full = pair.full_sync();
    println!("full sync: {full:?}");
    for n in 6..=30 {
        assert_eq!(count(address, "POST"), n);
        let report = pair.epoch();
        if n % 6 == 0 {
            println!("epoch: {report:?}");
        }
    }
    let (_standby, report) = pair.take_over();
    println!("restored: {report:?}");
    assert_eq!(count(address, "GET"), 30);
    assert_eq!(count(address, "POST"), 31);
}

fn a_go_server_goes_on_where_it_was() {
    let address = testkit::servers::own_address();
    let kv = testkit::programs::go_app("kv");
    let listen = address.to_string();
    let mut pair = Pair::start(kv.to_str().unwrap(), &["serve", "--listen", &listen, "--preload", "1000"]);
    wait_for_listener(address);
    pair.full_sync();
    for n in 0..50 {
        let mut line = TcpStream::connect(address).expect("the server answers");
        line.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(line, "PUT key{n} value{n}").unwrap();
        assert_eq!(answer(&mut line), "OK");
        let report = pair.epoch();
        if n % 10 == 9 {
            println!("epoch: {report:?}");
        }
    }
    let (_standby, report) = pair.take_over();
    println!("restored: {report:?}");
    let mut line = TcpStream::connect(address).expect("the copy answers");
    line.set_read_timeout(Some(PATIENCE)).unwrap();
    for n in 0..50 {
        writeln!(line, "GET key{n}").unwrap();
        assert_eq!(answer(&mut line), format!("VALUE value{n}"));
    }
}

fn an_exit_code_is_reported() {
    let side = Side::primary("/bin/sh", &["-c", "exit 7"]);
    side.until("a ready app", |event| matches!(event, Event::Ready { .. }).then_some(()));
    side.engine.send(Command::Start);
    let exit = side.until("the end", |event| match event {
        Event::Exited(exit) => Some(*exit),
        _ => None,
    });
    assert_eq!(exit, engine::AppExit::Code(7));
}

fn wait_for_listener(address: std::net::SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "nobody listens at {address}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn answer(line: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while line.read(&mut byte).expect("an answer") == 1 && byte != [b'\n'] {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

fn count(address: std::net::SocketAddr, method: &str) -> u64 {
    let mut line = TcpStream::connect(address).expect("the server answers");
    line.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(line, "{method} /n HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    line.read_to_string(&mut text).expect("an answer");
    text.rsplit("\r\n\r\n").next().unwrap().trim().parse().unwrap_or_else(|_| panic!("{text}"))
}
