//! Instants of an epoch: which one a blow hits, and how one is aimed at. Both are read in what the managers write of
//! each epoch with `RUST_LOG=epochs=trace`.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::rounds::Seed;

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
    /// What a blow may be aimed at; with none it falls at random. The shortest are aimed at most.
    pub const AIMS: [Option<Self>; 10] = [
        None,
        None,
        None,
        Some(Self::Asked),
        Some(Self::Marked),
        Some(Self::Taken),
        Some(Self::Thawed),
        Some(Self::Covered),
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

    /// How long its phase may take: a blow falls somewhere in it.
    fn longest(self) -> Duration {
        Duration::from_micros(match self {
            Self::Covered => 10,
            Self::Asked | Self::Taken => 30,
            Self::Applying => 100,
            Self::Marked | Self::Thawed => 300,
            Self::Released => 1000,
        })
    }

    pub fn is_the_standbys(self) -> bool {
        self == Self::Applying
    }

    /// Returns in the middle of the next phase of this kind, or when there was none for long. It keeps a processor
    /// busy: whoever sleeps comes too late.
    pub fn await_next(self, log: &Path, seed: &mut Seed) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let delay = seed.up_to(self.longest());
        let file = File::open(log).unwrap();
        let (mut from, mut buffer) = (file.metadata().unwrap().len(), [0; 4096]);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let len = file.read_at(&mut buffer, from).unwrap();
            // Lines are written whole.
            if String::from_utf8_lossy(&buffer[..len]).contains(self.words()) {
                break;
            }
            from += len as u64;
        }
        let until = Instant::now() + delay;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
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
