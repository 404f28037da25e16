//! A store in the background, while nobody protects the app.
//!
//! Otherwise it gets what the standbys have committed, since a takeover may go back behind anything else. When the
//! register is known to name nobody, no takeover can: what is captured then has happened, whatever comes after. Whoever
//! joins later is synced in full, after the last of these, so nobody ever goes on from before one.
//!
//! Standbys come first. Nothing is captured for the store while one is there, nor for a while after; and one that knocks
//! in the midst of a full checkpoint does not wait for its end.

use image::{CheckpointId, Sync};

use super::{Capture, Life, Primary, PrimaryAction};
use crate::Nanos;

#[derive(Debug)]
pub(super) struct Archive {
    /// What the next checkpoint builds on; without one it is a full one.
    base: Option<CheckpointId>,
    due: Nanos,
}

impl Archive {
    /// With a full one, at the earliest then.
    pub fn from(due: Nanos) -> Self {
        Self { base: None, due }
    }
}

impl Primary {
    /// The next one builds on nothing.
    pub(super) fn archive_anew(&mut self) {
        self.archive.base = None;
    }

    /// Who is there, or was a moment ago, comes first.
    pub(super) fn put_the_archive_off(&mut self, now: Nanos) {
        self.archive = Archive::from(now + self.config.archive_patience());
    }

    pub(super) fn capture_for_the_archive(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        if self.config.archive.is_none() || now < self.archive.due || !self.alone() {
            return;
        }
        match self.archive.base {
            None => {
                // Nobody who comes back goes on from what he held: it may be older than what is archived.
                self.sent.clear();
                let id = self.begin_capture(now, Sync::Full, Vec::new());
                actions.push(PrimaryAction::StartFullSync { id, to: Vec::new(), eligible: false });
            }
            Some(parent) => {
                let id = self.begin_capture(now, Sync::Since(parent), Vec::new());
                actions.push(PrimaryAction::CaptureNow { id, parent });
            }
        }
        if let Some(capture) = &mut self.capturing {
            capture.archived = true;
        }
    }

    pub(super) fn archived(&mut self, now: Nanos, id: CheckpointId, actions: &mut Vec<PrimaryAction>) {
        if self.life != Life::Serving {
            return;
        }
        self.archive = Archive { base: Some(id), due: now + self.config.archive.unwrap_or_default() };
        self.forgotten = Some(id);
        actions.extend([PrimaryAction::Archive(id), PrimaryAction::Forget(id)]);
    }

    pub(super) fn archive_failed(&mut self, now: Nanos) {
        self.archive = Archive::from(now + self.config.archive.unwrap_or_default());
    }

    /// Somebody is there to protect the app: a full checkpoint under way would keep him waiting.
    pub(super) fn give_way(&self, actions: &mut Vec<PrimaryAction>) {
        let full = |capture: &&Capture| capture.archived && capture.sync == Sync::Full;
        let given_up = self.capturing.as_ref().filter(full).map(|capture| capture.id);
        actions.extend(given_up.map(PrimaryAction::GiveUpFullSync));
    }
}
