//! What all guests share: the waiting between set-up and check, and failures with a reason.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use crate::kernel::{self, SIGUSR1};

/// The outcome of a check; the error says what was not carried over.
pub type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// One guest program.
#[derive(Clone, Copy)]
pub struct Guest {
    pub name: &'static str,
    /// How many times it waits before the last time.
    pub steps: u32,
    pub check: fn(&mut Context) -> Outcome,
}

impl Guest {
    pub const fn new(name: &'static str, check: fn(&mut Context) -> Outcome) -> Self {
        Self { name, steps: 0, check }
    }

    pub const fn stepped(name: &'static str, steps: u32, check: fn(&mut Context) -> Outcome) -> Self {
        Self { name, steps, check }
    }
}

/// Fails the check with a reason unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return Err(format!($($reason)+).into());
        }
    };
}

/// Fails the check unless what is found is what was set up.
#[macro_export]
macro_rules! ensure_eq {
    ($what:expr, $found:expr, $set_up:expr) => {
        // A match, and no let: what either side borrows from must live until the message is made.
        match (&$found, &$set_up) {
            (found, set_up) if found == set_up => (),
            (found, set_up) => {
                return Err(format!("{}: found {found:?}, set up {set_up:?}", $what).into());
            }
        }
    };
}

/// The command line of a guest, and how far it has come.
pub struct Context {
    go: Option<PathBuf>,
    arguments: Vec<String>,
    steps_done: u32,
}

impl Context {
    /// Blocks SIGUSR1 before any thread is made, so that every thread inherits that.
    pub fn new(mut arguments: Vec<String>) -> Self {
        kernel::block_signals(&[SIGUSR1]);
        let go = arguments.iter().position(|argument| argument == "--go").map(|at| {
            let path = arguments[at + 1].clone();
            arguments.drain(at..at + 2);
            PathBuf::from(path)
        });
        Self { go, arguments, steps_done: 0 }
    }

    /// The argument at `position`, or the default if it was not given.
    pub fn number(&self, position: usize, default: u64) -> u64 {
        self.arguments.get(position).map_or(default, |argument| argument.parse().expect("a number"))
    }

    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Says that one more operation is done, and waits for the next step.
    pub fn step(&mut self) {
        self.say_ready();
        self.steps_done += 1;
        let next = self.go.as_ref().map(|go| PathBuf::from(format!("{}.{}", go.display(), self.steps_done)));
        wait(next);
    }

    /// Says that everything is set up, and waits for the check.
    pub fn ready(&mut self) {
        self.say_ready();
        wait(self.go.clone());
    }

    fn say_ready(&self) {
        match self.steps_done {
            0 => say("ready"),
            step => say(&format!("ready {step}")),
        }
    }
}

/// Prints one line. A reader that has gone away is no failure of what is checked.
pub fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

fn wait(path: Option<PathBuf>) {
    let poll = Duration::from_millis(5);
    loop {
        let signalled = kernel::wait_for_signal(SIGUSR1, Some(poll)).is_ok();
        if signalled || path.as_ref().is_some_and(|path| path.exists()) {
            return;
        }
    }
}
