//! Instants of an epoch: which one a blow hits, and how one is aimed at. What was hit is read in what the managers write
//! of each epoch with `RUST_LOG=epochs=trace`; aimed at is a step at which a manager of a test's build stands still.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use testkit::wait::Deadline;

pub const LOG_FILTER: &str = "info,epochs=trace";

/// A step of an epoch, as the log names it, and the phase that begins with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Asked,
    Marked,
    Taken,
    Thawed,
    Covered,
    Released,
    /// On the standby.
    Applying,
}

impl Moment {
    /// In the order in which an epoch comes by them.
    const OF_A_PRIMARY: [Self; 6] =
        [Self::Asked, Self::Marked, Self::Taken, Self::Thawed, Self::Covered, Self::Released];
    /// What a blow may be aimed at.
    pub const ALL: [Self; 6] =
        [Self::Asked, Self::Marked, Self::Taken, Self::Thawed, Self::Covered, Self::Applying];
    /// With none it falls at random.
    pub const AIMS: [Option<Self>; 8] = [
        None,
        None,
        Some(Self::Asked),
        Some(Self::Marked),
        Some(Self::Taken),
        Some(Self::Thawed),
        Some(Self::Covered),
        Some(Self::Applying),
    ];

    fn words(self) -> &'static str {
        match self {
            Self::Asked => "epoch asked for",
            Self::Marked => "epoch marked",
            Self::Taken => "epoch taken",
            Self::Thawed => "epoch thawed",
            Self::Covered => "epoch covered",
            Self::Released => "epoch released",
            Self::Applying => "epoch applying",
        }
    }

    /// What goes on from here to the next step.
    pub fn phase(self) -> &'static str {
        match self {
            Self::Asked => "before-barrier",
            Self::Marked => "freeze",
            Self::Taken => "thaw",
            Self::Thawed => "barrier-to-commit",
            Self::Covered => "commit-to-release",
            Self::Released => "between-epochs",
            Self::Applying => "apply",
        }
    }

    /// A step in the middle of its phase: the first thread runs and others don't, a part of the pages is in.
    fn place(self) -> &'static str {
        match self {
            Self::Asked => "epoch-asked-for",
            Self::Marked => "epoch-marked",
            Self::Taken => "thread-goes-on",
            Self::Thawed => "epoch-thawed",
            Self::Covered => "epoch-covered",
            Self::Released => "epoch-released",
            Self::Applying => "pages-applied",
        }
    }

    pub fn is_the_standbys(self) -> bool {
        self == Self::Applying
    }

    /// Waits until the manager with this run directory stands in the next phase of this kind; `None` if there was none
    /// for long.
    pub fn await_next(self, run_dir: &Path) -> Option<Standing> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let dir = run_dir.join("stand");
        fs::create_dir_all(&dir).unwrap();
        let place = dir.join(self.place());
        let listener = UnixListener::bind(&place).unwrap();
        listener.set_nonblocking(true).unwrap();
        // Dropped, whoever stands goes on, and nobody else will stand.
        let mut standing = Standing { place, listener, manager: None };
        standing.manager =
            Deadline::after(PATIENCE).poll(|| standing.listener.accept().ok()).map(|(one, _)| one);
        standing.manager.is_some().then_some(standing)
    }
}

/// A manager that stands still as long as this is there.
#[derive(Debug)]
pub struct Standing {
    place: PathBuf,
    listener: UnixListener,
    manager: Option<UnixStream>,
}

impl Drop for Standing {
    fn drop(&mut self) {
        // It may be gone with all the rest.
        let _ = fs::remove_file(&self.place);
    }
}

/// How far the managers' logs were at a blow.
#[derive(Debug, Clone, Copy)]
pub struct Hit {
    primary: u64,
    standby: u64,
}

impl Hit {
    pub fn now(primary: &Path, standby: &Path) -> Self {
        let len = |log: &Path| log.metadata().map_or(0, |file| file.len());
        Self { primary: len(primary), standby: len(standby) }
    }

    /// What was going on on the primary, and whether the standby was just applying an epoch.
    pub fn phases(self, primary: &Path, standby: &Path) -> Vec<&'static str> {
        let mut phases = vec![last_step(&head(primary, self.primary)).phase()];
        let steps = head(standby, self.standby);
        let at = |words: &str| steps.rfind(words);
        if at(Moment::Applying.words()) > at("epoch applied") {
            phases.push(Moment::Applying.phase());
        }
        phases
    }
}

fn head(log: &Path, len: u64) -> String {
    let mut text = Vec::new();
    File::open(log).unwrap().take(len).read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

fn last_step(log: &str) -> Moment {
    let steps = Moment::OF_A_PRIMARY.into_iter();
    steps.max_by_key(|step| log.rfind(step.words())).expect("there are steps")
}
