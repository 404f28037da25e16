//! A pair of engines in this process, without managers, network or encryption between them: what the engines
//! themselves take, on both sides, out of the same two cores.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use engine::{CaptureReport, Command, Event, Promotion, RestoreReport};
use image::CheckpointId;

use super::side::{PATIENCE, Side};

pub const INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Pair {
    pub primary: Side,
    pub standby: Side,
    last: CheckpointId,
}

/// What a full sync took, from the first word to a copy that could take over.
#[derive(Debug, Clone, Copy)]
pub struct FullSync {
    pub took: Duration,
    pub bytes: u64,
}

/// A takeover in figures.
#[derive(Debug, Clone, Copy)]
pub struct Takeover {
    /// From the word to take over until the app runs, an epoch that had yet to be applied included.
    pub took: Duration,
    pub report: RestoreReport,
}

impl Pair {
    pub fn new(primary: Side) -> Result<Self> {
        Ok(Self { primary, standby: Side::standby()?, last: CheckpointId::new(1, 0) })
    }

    pub fn full_sync(&mut self) -> Result<FullSync> {
        /// Frames have up to a megabyte.
        const FRAMES_WAITING_MAX: usize = 32;
        let began = Instant::now();
        let id = self.last.next();
        let (frames, arriving) = sync_channel::<Bytes>(FRAMES_WAITING_MAX);
        let sink = Box::new(move |frame| frames.send(frame).is_ok());
        self.primary.engine.send(Command::FullSync { id, sink });
        let mut bytes = 0;
        loop {
            match arriving.recv_timeout(PATIENCE) {
                Ok(frame) => {
                    let first = bytes == 0;
                    bytes += frame.len() as u64;
                    self.standby.engine.send(Command::Frames(frame));
                    if first {
                        self.receive(id, true)?;
                    }
                }
                // The sink is dropped at the end of the sync, and with it the sender.
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => bail!("a full sync stands still"),
            }
        }
        self.captured(id)?;
        self.await_prepared(id)?;
        self.commit(id)?;
        Ok(FullSync { took: began.elapsed(), bytes })
    }

    /// One checkpoint, kept and applied by the standby.
    pub fn epoch(&mut self) -> Result<CaptureReport> {
        let (id, report) = self.prepared_epoch()?;
        self.commit(id)?;
        Ok(report)
    }

    /// One checkpoint at each interval, `count` in all or until `stop`; a late one moves the later ones.
    pub fn epochs(&mut self, count: usize, stop: &AtomicBool) -> Result<Vec<CaptureReport>> {
        let mut reports = Vec::new();
        while reports.len() < count && !stop.load(Ordering::Relaxed) {
            let next = Instant::now() + INTERVAL;
            reports.push(self.epoch()?);
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(reports)
    }

    /// The app dies while an epoch waits to be applied, and its copy goes on.
    pub fn take_over(mut self) -> Result<(Side, Takeover)> {
        let (id, _) = self.prepared_epoch()?;
        let Self { primary, standby, .. } = self;
        drop(primary);
        let stdio = standby.stdio()?;
        let began = Instant::now();
        standby.engine.send(Command::Apply(id));
        standby.engine.send(Command::Promote(Promotion { stdio, cgroup: None, network: None, alone: false }));
        let report = standby.until("a restored app", |event| match event {
            Event::Restored(report) => Some(*report),
            _ => None,
        })?;
        Ok((standby, Takeover { took: began.elapsed(), report }))
    }

    /// A checkpoint that the standby has in full, and has not applied.
    fn prepared_epoch(&mut self) -> Result<(CheckpointId, CaptureReport)> {
        let (id, parent) = (self.last.next(), self.last);
        self.primary.engine.send(Command::Capture { id, parent });
        let (frames, report) = self.captured(id)?;
        let mut frames = frames.into_iter();
        let header = frames.next().context("an epoch without a header")?;
        self.standby.engine.send(Command::Frames(header));
        self.receive(id, false)?;
        frames.for_each(|frame| self.standby.engine.send(Command::Frames(frame)));
        self.await_prepared(id)?;
        Ok((id, report))
    }

    fn captured(&self, id: CheckpointId) -> Result<(Vec<Bytes>, CaptureReport)> {
        self.primary.until("a checkpoint", |event| match event {
            Event::Captured { id: found, frames, report } if *found == id => {
                Some((std::mem::take(frames), *report))
            }
            _ => None,
        })
    }

    fn receive(&self, id: CheckpointId, full: bool) -> Result<()> {
        self.standby.until("an epoch's beginning", |event| {
            matches!(event, Event::EpochBegins { id: found, .. } if *found == id).then_some(())
        })?;
        self.standby.engine.send(Command::Receive { id, full, keep_old: false });
        Ok(())
    }

    fn await_prepared(&self, id: CheckpointId) -> Result<()> {
        self.standby.until("a prepared epoch", |event| {
            matches!(event, Event::Prepared { id: found } if *found == id).then_some(())
        })
    }

    fn commit(&mut self, id: CheckpointId) -> Result<()> {
        self.primary.engine.send(Command::Committed(id));
        self.standby.engine.send(Command::Apply(id));
        self.last = id;
        self.standby.until("an applied epoch", |event| {
            matches!(event, Event::Applied { id: found } if *found == id).then_some(())
        })
    }
}
