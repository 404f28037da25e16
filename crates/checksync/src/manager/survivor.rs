//! An app that outlived its manager, as its guard lets it while nobody could take over: the next manager of its name
//! must not start a second one beside it.
//!
//! `primary-NAME.app` in the run directory has the number of the app's process and when it began, in the kernel's
//! ticks since the boot: a number that was given to somebody else meanwhile does not count. The file goes with an
//! orderly end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::status::run_dir;

/// Removes the file when dropped.
#[derive(Debug)]
pub struct Note(PathBuf);

fn path(dir: &Path, app: &str) -> PathBuf {
    dir.join(format!("primary-{app}.app"))
}

impl Note {
    /// Notes that `pid` is the app. Without a note it is protected all the same.
    pub fn leave(app: &str, pid: i32) -> Option<Self> {
        let noted = run_dir().and_then(|dir| Ok(Self::write(&dir, app, pid)?));
        noted
            .inspect_err(|why| tracing::warn!("if this manager dies, the next won't find the app: {why:#}"))
            .ok()
    }

    fn write(dir: &Path, app: &str, pid: i32) -> io::Result<Self> {
        let note = Self(path(dir, app));
        let begun = begun(pid).ok_or_else(|| io::Error::other("it has ended"))?;
        fs::write(&note.0, format!("{pid} {begun}\n"))?;
        Ok(note)
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        // One that stays names a process that is gone, or one that we let live.
        let _ = fs::remove_file(&self.0);
    }
}

/// The process that the app is still running as. Ask it holding the manager's lock.
pub fn find(dir: &Path, app: &str) -> Option<i32> {
    let text = fs::read_to_string(path(dir, app)).ok()?;
    let (pid, noted) = text.trim().split_once(' ')?;
    let pid = pid.parse().ok()?;
    (begun(pid)? == noted.parse::<u64>().ok()?).then_some(pid)
}

/// When a living process began.
fn begun(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // N.B. the name before it may have anything in it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    // The state is the third field, the beginning the twenty-second.
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_found_as_long_as_it_lives_and_no_other_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(dir.path(), "kv"), None);
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().cast_signed();
        let note = Note::write(dir.path(), "kv", pid).unwrap();
        assert_eq!((find(dir.path(), "kv"), find(dir.path(), "other")), (Some(pid), None));
        let earlier = format!("{pid} {}", begun(pid).unwrap() - 1);
        fs::write(path(dir.path(), "kv"), earlier).unwrap();
        assert_eq!(find(dir.path(), "kv"), None, "it began at another time");
        drop(note);
        let note = Note::write(dir.path(), "kv", pid).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(find(dir.path(), "kv"), None, "it has ended");
        drop(note);
        assert!(!path(dir.path(), "kv").exists());
    }
}
