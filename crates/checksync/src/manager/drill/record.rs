//! What is written down of drills, and what `status` says of them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// More are of no use to anybody; the oldest go.
const KEPT: usize = 200;
const FILE_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Passed,
    /// Had it been needed, it would not have served.
    Failed,
    /// Something more important came: a takeover, a full sync, whoever asked gave up.
    Aborted,
    /// It was not tried.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    Asked,
    Schedule,
}

/// One drill. Times are nanoseconds since 1970, spans are microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub schema: u32,
    pub app: String,
    pub host: String,
    pub trigger: Trigger,
    pub outcome: Outcome,
    pub why: Option<String>,
    pub began_at_ns: u64,
    /// What was restored.
    pub term: Option<u64>,
    pub epoch: Option<u64>,
    pub bytes: Option<u64>,
    /// Making a second copy beside the warm one, which a takeover does not have to do.
    pub copy_us: Option<u64>,
    /// From the command to the first instruction, as at a takeover.
    pub restore_us: Option<u64>,
    /// From there to the first healthy answer; nothing, if there is no health command.
    pub healthy_us: Option<u64>,
    pub health: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillReport {
    pub running: bool,
    pub last_success: Option<Record>,
    pub last_failure: Option<Record>,
    /// Whatever became of it.
    pub last: Option<Record>,
    /// Of a schedule; by the wall clock.
    pub next_at_ns: Option<u64>,
}

/// Shared by the actor and the board.
#[derive(Debug, Clone, Default)]
pub struct DrillStatus(Arc<Mutex<DrillReport>>);

impl DrillStatus {
    pub fn tell(&self, change: impl FnOnce(&mut DrillReport)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn report(&self) -> DrillReport {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl DrillReport {
    pub fn note(&mut self, record: Record) {
        match record.outcome {
            Outcome::Passed => self.last_success = Some(record.clone()),
            Outcome::Failed => self.last_failure = Some(record.clone()),
            Outcome::Aborted | Outcome::Refused => (),
        }
        self.last = Some(record);
    }
}

/// The file of one app's drills: a line of JSON each, the newest last.
#[derive(Debug)]
pub struct Book {
    path: Option<PathBuf>,
    lines: Vec<String>,
}

impl Book {
    /// What can't be read is left out, and that is logged: old drills keep no standby from starting.
    pub fn open(state: Option<&Path>, app: &str) -> (Self, DrillReport) {
        let path = state.map(|state| state.join(format!("{app}.drills")));
        let mut report = DrillReport::default();
        let mut lines = Vec::new();
        for line in path.as_deref().map(read).unwrap_or_default().lines() {
            match serde_json::from_str(line) {
                Ok(record) => {
                    report.note(record);
                    lines.push(line.to_owned());
                }
                Err(why) => tracing::warn!(app, "a record of a drill can't be read: {why}"),
            }
        }
        (Self { path, lines }, report)
    }

    pub fn write_down(&mut self, record: &Record) {
        self.lines.push(serde_json::to_string(record).expect("a record is plain data"));
        self.lines.drain(..self.lines.len().saturating_sub(KEPT));
        if let Some(path) = &self.path
            && let Err(why) = replace(path, &self.lines)
        {
            tracing::warn!("the drill is not written down in {}: {why}", path.display());
        }
    }
}

fn read(path: &Path) -> String {
    let len = fs::metadata(path).map_or(0, |metadata| metadata.len());
    let text = if len > FILE_BYTES_MAX {
        Err(std::io::ErrorKind::FileTooLarge.into())
    } else {
        fs::read_to_string(path)
    };
    text.unwrap_or_else(|why| {
        if why.kind() != std::io::ErrorKind::NotFound {
            tracing::warn!("the drills in {} are not known: {why}", path.display());
        }
        String::new()
    })
}

/// A crash leaves the old file or the new one.
fn replace(path: &Path, lines: &[String]) -> std::io::Result<()> {
    let half = PathBuf::from(format!("{}.incomplete", path.display()));
    let mut file = fs::File::create(&half)?;
    file.write_all(lines.join("\n").as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&half, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(outcome: Outcome, began_at_ns: u64) -> Record {
        Record {
            schema: 1,
            app: "kv".to_owned(),
            host: "b".to_owned(),
            trigger: Trigger::Asked,
            outcome,
            why: None,
            began_at_ns,
            term: Some(1),
            epoch: Some(2),
            bytes: None,
            copy_us: None,
            restore_us: None,
            healthy_us: None,
            health: None,
        }
    }

    #[test]
    fn what_was_written_down_is_known_to_the_next_daemon_and_does_not_grow() {
        let dir = tempfile::tempdir().unwrap();
        let (mut book, report) = Book::open(Some(dir.path()), "kv");
        assert_eq!(report, DrillReport::default());
        book.write_down(&record(Outcome::Failed, 1));
        for at in 2..=(KEPT as u64 + 10) {
            book.write_down(&record(Outcome::Passed, at));
        }
        book.write_down(&record(Outcome::Aborted, 1000));
        let (book, report) = Book::open(Some(dir.path()), "kv");
        assert_eq!(book.lines.len(), KEPT);
        assert_eq!(report.last_success, Some(record(Outcome::Passed, KEPT as u64 + 10)));
        assert_eq!(report.last_failure, None, "it is older than what is kept");
        assert_eq!(report.last.map(|last| last.outcome), Some(Outcome::Aborted));
    }

    #[test]
    fn a_damaged_line_costs_that_line_alone() {
        let dir = tempfile::tempdir().unwrap();
        let good = serde_json::to_string(&record(Outcome::Passed, 7)).unwrap();
        fs::write(dir.path().join("kv.drills"), format!("{{half\n{good}\n")).unwrap();
        let (_, report) = Book::open(Some(dir.path()), "kv");
        assert_eq!(report.last_success, Some(record(Outcome::Passed, 7)));
    }
}
