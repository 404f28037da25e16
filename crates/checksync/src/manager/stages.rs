//! What the time of an epoch is made of: from the first output that waits to its release, stage by stage.
//!
//! | stage | on | from | to |
//! |---|---|---|---|
//! | `notice` | primary | output begins to wait | the capture is asked for |
//! | `hops` | primary | the capture is asked for, and the frames are there: | less `pause` and `encode` |
//! | `pause` | primary | the first thread's stop | the last one's thaw |
//! | `encode` | primary | the thaw | the frames are made |
//! | `travel` | primary | the frames are given to the link | the acknowledgement is heard |
//! | `release` | primary | the acknowledgement is heard | the output has left |
//! | `whole` | primary | output begins to wait | it has left |
//! | `receive` | standby | the header comes | the epoch is prepared |
//! | `answer` | standby | the epoch is prepared | the acknowledgement is given to the link |
//!
//! What of `travel` is neither `receive` nor `answer` is the link itself, both ways.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::CaptureReport;
use image::CheckpointId;

use crate::status::{PauseRing, Pauses};

/// The last thousand times of each stage. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Stages(Arc<Mutex<BTreeMap<&'static str, PauseRing>>>);

impl Stages {
    pub fn note(&self, stage: &'static str, time: Duration) {
        self.lock().entry(stage).or_default().push(time);
    }

    /// In microseconds.
    pub fn quantiles(&self) -> BTreeMap<String, Pauses> {
        let stages = self.lock();
        stages.iter().filter_map(|(stage, ring)| Some((stage.to_string(), ring.pauses()?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, PauseRing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The epochs of a primary that are under way.
#[derive(Debug, Default)]
pub struct Passage {
    stages: Stages,
    /// Since when output has waited that no capture asked for so far covers.
    waiting_since: Option<Instant>,
    under_way: VecDeque<Epoch>,
}

#[derive(Debug)]
struct Epoch {
    id: CheckpointId,
    waiting_since: Option<Instant>,
    asked_at: Instant,
    sent_at: Option<Instant>,
}

impl Passage {
    pub fn stages(&self) -> Stages {
        self.stages.clone()
    }

    pub fn output_waits(&mut self, since: Instant) {
        self.waiting_since.get_or_insert(since);
    }

    pub fn asked(&mut self, id: CheckpointId) {
        let (waiting_since, asked_at) = (self.waiting_since.take(), Instant::now());
        if let Some(since) = waiting_since {
            self.stages.note("notice", asked_at.saturating_duration_since(since));
        }
        self.under_way.push_back(Epoch { id, waiting_since, asked_at, sent_at: None });
    }

    pub fn captured(&mut self, id: CheckpointId, report: &CaptureReport) {
        let now = Instant::now();
        let Some(epoch) = self.under_way.iter_mut().find(|epoch| epoch.id == id) else { return };
        let in_engine = report.pause + report.encode;
        // What began to wait after the question and before the freeze is in this epoch, too.
        let frozen_at = now.checked_sub(in_engine).unwrap_or(now);
        if epoch.waiting_since.is_none() {
            epoch.waiting_since = self.waiting_since.take_if(|since| *since < frozen_at);
        }
        let asked_at = epoch.asked_at;
        self.stages.note("pause", report.pause);
        if !report.files.is_zero() {
            self.stages.note("files", report.files);
        }
        self.stages.note("encode", report.encode);
        self.stages.note("hops", now.saturating_duration_since(asked_at).saturating_sub(in_engine));
    }

    pub fn sent(&mut self, id: CheckpointId) {
        if let Some(epoch) = self.under_way.iter_mut().find(|epoch| epoch.id == id) {
            epoch.sent_at = Some(Instant::now());
        }
    }

    /// `heard_at`: when the acknowledgement was there, before its output was let out.
    pub fn released(&mut self, id: CheckpointId, heard_at: Instant) {
        let now = Instant::now();
        while let Some(epoch) = self.under_way.pop_front_if(|epoch| epoch.id <= id) {
            let Some(sent_at) = epoch.sent_at else { continue };
            self.stages.note("travel", heard_at.saturating_duration_since(sent_at));
            self.stages.note("release", now.saturating_duration_since(heard_at));
            if let Some(since) = epoch.waiting_since {
                self.stages.note("whole", now.saturating_duration_since(since));
            }
        }
    }

    /// Nothing of what is under way will be acknowledged.
    pub fn given_up(&mut self) {
        self.under_way.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_the_sum_of_its_stages() {
        let mut passage = Passage::default();
        let id = CheckpointId::new(1, 1);
        passage.output_waits(Instant::now());
        passage.asked(id);
        passage.captured(id, &CaptureReport { pause: Duration::from_micros(1), ..CaptureReport::default() });
        passage.sent(id);
        passage.released(id, Instant::now());
        let stages = passage.stages().quantiles();
        let named: Vec<_> = stages.keys().map(String::as_str).collect();
        assert_eq!(named, ["encode", "hops", "notice", "pause", "release", "travel", "whole"]);
        let of = |stage: &str| stages[stage].max;
        assert!(of("whole") >= of("notice") + of("travel") + of("release"), "{stages:?}");
        assert_eq!(of("pause"), 1);
    }

    #[test]
    fn an_epoch_that_nobody_waited_for_is_no_wait() {
        let mut passage = Passage::default();
        let id = CheckpointId::new(1, 1);
        passage.asked(id);
        passage.captured(id, &CaptureReport::default());
        passage.output_waits(Instant::now());
        passage.sent(id);
        passage.released(id, Instant::now());
        assert!(!passage.stages().quantiles().contains_key("whole"));
        assert!(passage.waiting_since.is_some(), "it waits for the next one");
    }
}
