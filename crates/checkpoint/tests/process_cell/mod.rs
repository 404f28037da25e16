//! What the tests of processes share: a sleeping process in a PID namespace of its own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use checkpoint::process::{CellNumbers, ProcessCache, save};
use image::process::{MemoryMap, Process};
use tracee::{Frozen, Tree};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// A process that sleeps, with a number of its own counting. All of it ends with this value.
#[derive(Debug)]
pub struct Cell {
    unshare: Child,
    /// As we count.
    pub pid: i32,
}

impl Cell {
    pub fn start() -> Self {
        let mut unshare = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child=SIGKILL", "sh", "-c", "sleep 600 & echo; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is there");
        let mut line = String::new();
        let stdout = unshare.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("the shell speaks");
        let shell = wait_for("the shell", || only_child(unshare.id() as i32));
        let pid = wait_for("the sleeper", || {
            let pid = only_child(shell)?;
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            let asleep = std::fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
            (name == "sleep\n" && asleep.starts_with(&libc::SYS_clock_nanosleep.to_string())).then_some(pid)
        });
        Self { unshare, pid }
    }

    pub fn word(&self, address: u64) -> u64 {
        sys::memory::read_word(self.pid, address).expect("mapped memory")
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

fn only_child(pid: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Asks again until there is an answer.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::yield_now();
    }
}

/// Lets the app run until `done`, passing on what it has to be told.
pub fn run_until<T>(tree: &mut Tree, what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    wait_for(what, || {
        tree.pump().expect("pump");
        done()
    })
}

/// A capture that knows nothing from before.
pub fn fresh_save(frozen: &mut Frozen<'_>, pid: i32) -> (Process, MemoryMap) {
    save(frozen, pid, &mut CellNumbers::new(), &mut ProcessCache::new()).expect("save")
}
