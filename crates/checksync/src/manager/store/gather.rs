//! Puts epochs together until the store takes them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use image::{CheckpointId, Frame, Sync};
use store::{Basis, GatherError, Gathered};

use crate::mpsc::{Receiver, RecvTimeoutError};

use super::upload::Uploads;
use super::{Fed, Shared, StoreSettings, bytes_of};

/// Between two looks at whether the uploader is free.
const POLL: Duration = Duration::from_millis(20);

pub(super) struct Gatherer {
    fed: Receiver<Fed>,
    uploads: Uploads,
    settings: StoreSettings,
    shared: Arc<Shared>,
    /// A full sync that is not committed.
    full: Option<Gathered>,
    gathering: Option<Gathered>,
    /// Nothing may go on top of these.
    sealed: VecDeque<Gathered>,
    /// The checkpoint that the next epoch builds on if nothing is gathered, and what that left.
    tip: Option<(CheckpointId, Basis)>,
    due_at: Instant,
}

impl Gatherer {
    pub(super) fn new(
        fed: Receiver<Fed>,
        uploads: Uploads,
        settings: &StoreSettings,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            fed,
            uploads,
            settings: settings.clone(),
            shared,
            full: None,
            gathering: None,
            sealed: VecDeque::new(),
            tip: None,
            due_at: Instant::now(),
        }
    }

    pub(super) fn run(mut self) {
        loop {
            match self.fed.recv_timeout(self.wait()) {
                Ok(fed) => self.take(fed),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.hand_over();
        }
    }

    fn wait(&self) -> Duration {
        match self.gathering.is_some() || !self.sealed.is_empty() {
            true => self.due_at.saturating_duration_since(Instant::now()).max(POLL),
            false => Duration::from_secs(3600),
        }
    }

    fn take(&mut self, fed: Fed) {
        let bytes = bytes_of(&fed);
        let taken = match fed {
            Fed::Full => {
                Gathered::full(&self.settings.spool).map(|full| self.full = Some(full)).map_err(Into::into)
            }
            Fed::Frame(frame) => self.take_full(frame),
            Fed::FullCommitted => {
                self.replace();
                Ok(())
            }
            Fed::Epoch(frames) => self.take_epoch(&frames),
            Fed::Lost(why) => {
                self.lose(why);
                Ok(())
            }
        };
        self.shared.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
        if let Err(why) = taken {
            self.lose(&format!("{:#}", anyhow::Error::new(why)));
        }
    }

    fn take_full(&mut self, frame: Bytes) -> Result<(), GatherError> {
        let Some(full) = &mut self.full else { return Ok(()) };
        full.take(&Frame::parse(frame)?).map(drop)
    }

    /// The full sync takes the place of all that waits.
    fn replace(&mut self) {
        let Some(full) = self.full.take().filter(|full| full.id().is_some()) else { return };
        self.sealed.clear();
        self.tip = full.id().map(|id| (id, full.basis()));
        self.gathering = Some(full);
        self.due_at = Instant::now();
        self.shared.tell(|report| {
            if report.state == "waiting" {
                (report.state, report.why_not) = ("following".to_owned(), None);
            }
        });
    }

    fn take_epoch(&mut self, frames: &[Bytes]) -> Result<(), GatherError> {
        if self.gathering.as_ref().is_some_and(Gathered::is_sealed) {
            let sealed = self.put_away();
            self.sealed.extend(sealed);
        }
        let Some((tip, basis)) = &self.tip else { return Ok(()) }; // Of a chain that was lost.
        if self.gathering.is_none() {
            self.gathering = Some(Gathered::since(*tip, basis.clone(), &self.settings.spool)?);
        }
        let gathering = self.gathering.as_mut().expect("made above");
        for frame in frames {
            gathering.take(&Frame::parse(frame.clone())?)?;
        }
        Ok(())
    }

    /// What was gathered, on which the next builds.
    fn put_away(&mut self) -> Option<Gathered> {
        let gathered = self.gathering.take()?;
        self.tip = gathered.id().map(|id| (id, gathered.basis()));
        Some(gathered)
    }

    /// What was handed over before goes on; then the store waits for a full sync.
    fn lose(&mut self, why: &str) {
        tracing::warn!("the store waits for the next full sync: {why}");
        (self.full, self.gathering, self.tip) = (None, None, None);
        self.say_waiting(why);
    }

    fn say_waiting(&self, why: &str) {
        self.shared.losses.fetch_add(1, Ordering::AcqRel);
        self.shared.tell(|report| {
            if report.state != "stopped" {
                (report.state, report.why_not) = ("waiting".to_owned(), Some(why.to_owned()));
            }
        });
    }

    fn hand_over(&mut self) {
        if Instant::now() < self.due_at || !self.uploads.is_free() {
            return;
        }
        // One that waits and is full, with what is on top of it, needs nothing that is stored.
        let waiting = || self.sealed.iter().chain(&self.gathering);
        if let Some(why) = self.uploads.take_broken()
            && !waiting().any(|one| one.sync() == Sync::Full)
        {
            self.sealed.clear();
            (self.gathering, self.tip) = (None, None);
            self.say_waiting(&why);
        }
        if let Some(next) = self.sealed.pop_front().or_else(|| self.put_away()) {
            self.uploads.start(next);
            self.due_at = Instant::now() + self.settings.interval;
        }
    }
}
