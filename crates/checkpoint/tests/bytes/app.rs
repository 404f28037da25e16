//! The guest of a test: a process that does not outlive it, and that goes on step by step.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use sys::wait::{Stop, Whom};
use testkit::guest::GoFile;
use testkit::programs::guest_path;
use testkit::wait::Deadline;

/// A child that does not outlive the test.
pub struct Guarded(Child);

impl Guarded {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().expect("the guest starts"))
    }

    pub fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        // N.B. the leader of a traced process is not reaped before its tracer, this thread, has reaped the
        // other threads.
        let deadline = Deadline::after(Duration::from_secs(10));
        while !deadline.passed() {
            match sys::wait::poll(Whom::Any) {
                Ok(Some(waited))
                    if waited.tid == self.pid()
                        && matches!(waited.stop, Stop::Exited(_) | Stop::Killed(_)) =>
                {
                    break;
                }
                Ok(Some(_)) => (),
                // Its end was reported before, to who traced it.
                Ok(None) if !Path::new(&format!("/proc/{}", self.pid())).exists() => break,
                Ok(None) => thread::park_timeout(Duration::from_millis(1)),
                Err(_) => break,
            }
        }
    }
}

/// A guest program and what it says.
pub struct App {
    process: Guarded,
    lines: Option<Receiver<String>>,
    go: GoFile,
    steps: u32,
}

impl App {
    /// Starts a guest of the testkit and waits until it is ready.
    pub fn guest(name: &str, arguments: &[&str]) -> Self {
        let go = GoFile::new();
        let mut command = Command::new(guest_path());
        command.arg(name).arg("--go").arg(go.path()).args(arguments).stdout(Stdio::piped());
        let mut process = Guarded::start(&mut command);
        let lines = Some(read_lines(process.0.stdout.take().expect("stdout is piped")));
        let mut app = Self { process, lines, go, steps: 0 };
        let deadline = Deadline::after(super::world::PATIENCE);
        deadline.poll(|| app.is_ready()).expect("the guest gets ready");
        app
    }

    /// Starts any program. It is ready at once.
    pub fn program(command: &mut Command) -> Self {
        Self { process: Guarded::start(command), lines: None, go: GoFile::new(), steps: 0 }
    }

    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Lets the guest do its next operation.
    pub fn let_go(&mut self) {
        self.steps += 1;
        self.go.step(self.steps);
    }

    /// Whether the guest has said that its last operation is done.
    pub fn is_ready(&mut self) -> Option<()> {
        let line = self.lines.as_ref()?.try_recv().ok()?;
        let ready = match self.steps {
            0 => "ready".to_owned(),
            step => format!("ready {step}"),
        };
        assert_eq!(line, ready, "what the guest says");
        Some(())
    }

    /// Lets the guest check itself; its verdict comes as a line.
    pub fn let_check(&mut self) {
        self.go.go();
    }

    pub fn line(&mut self) -> Option<String> {
        self.lines.as_ref()?.try_recv().ok()
    }
}

/// Reads lines on a thread of its own, which ends with the pipe.
fn read_lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}
