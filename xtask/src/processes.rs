//! The processes below us, found in /proc.
//!
//! We are their *subreaper*: what a test leaves behind becomes our child instead of vanishing to init, whatever
//! sessions or process groups it made for itself. So a hung step can be ended to the last process, and a test
//! that forgets one is found out.

use std::collections::HashMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions};

/// A process below us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descendant {
    pub pid: i32,
    pub command_line: String,
}

/// Makes orphans below us ours.
pub fn adopt_orphans() -> rustix::io::Result<()> {
    // Any process number means yes.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
}

/// All that run below us now, zombies not counted.
pub fn descendants() -> Vec<Descendant> {
    let mut children: HashMap<i32, Vec<(i32, bool)>> = HashMap::new();
    for (pid, (parent, lives)) in processes() {
        children.entry(parent).or_default().push((pid, lives));
    }
    let mut found = Vec::new();
    let mut next = vec![std::process::id() as i32];
    while let Some(parent) = next.pop() {
        for (pid, lives) in children.remove(&parent).unwrap_or_default() {
            // Also of one whose first thread is dead: its others may have children.
            next.push(pid);
            if lives {
                found.push(Descendant { pid, command_line: command_line(pid) });
            }
        }
    }
    found
}

/// Kills everything below us and waits until it is gone, or `limit` has passed; answers what is left.
pub fn kill_all(limit: Duration) -> Vec<Descendant> {
    let end = Instant::now() + limit;
    loop {
        let left = descendants();
        reap();
        if left.is_empty() || Instant::now() > end {
            return left;
        }
        for process in &left {
            // It may have ended by itself.
            let _ = Pid::from_raw(process.pid).map(|pid| rustix::process::kill_process(pid, Signal::KILL));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Takes the exit codes of adopted children. Call it when no child of our own is being waited for.
#[expect(clippy::disallowed_methods, reason = "every child is meant: whoever it was has gone")]
pub fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// Every process with its parent, and whether it lives.
fn processes() -> Vec<(i32, (i32, bool))> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, parent_and_life(&fs::read_to_string(entry.path().join("stat")).ok()?)?))
        })
        .collect()
}

/// The fourth field of /proc/PID/stat; the second may hold blanks and brackets. The third says who is dead.
fn parent_and_life(stat: &str) -> Option<(i32, bool)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let lives = !matches!(fields.next()?, "Z" | "X");
    Some((fields.next()?.parse().ok()?, lives))
}

/// N.B. empty for a moment in a process that has just been started.
fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

/// For tests that look at all that runs below the one process that they share.
#[cfg(test)]
pub fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_found_behind_any_name() {
        assert_eq!(parent_and_life("12 (a) b (c)) S 7 12 12 0"), Some((7, true)));
        assert_eq!(parent_and_life("12 (a) Z 7 12 12 0"), Some((7, false)));
        assert_eq!(parent_and_life("nonsense"), None);
    }

    #[test]
    fn a_child_is_a_descendant_until_it_ends() {
        let _alone = alone();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep is everywhere");
        let here = |pid: u32| descendants().iter().any(|process| process.pid == pid as i32);
        assert!(here(child.id()));
        child.kill().and_then(|()| child.wait()).expect("a child of ours");
        assert!(!here(child.id()));
    }
}
