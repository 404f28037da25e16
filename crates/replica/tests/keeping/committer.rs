//! What `manager::store::commit` does: one checkpoint after the other goes to the store, and counts only when a look after
//! it was written finds no later run. Its requests have numbers: what was asked before counts for nothing.

use std::collections::VecDeque;

use image::CheckpointId;
use replica::Nanos;

use super::store::{Beginning, Begun, Reply, Request, RunName, later};

const PATIENCE: Nanos = Nanos::from_millis(2_000);

#[derive(Debug, Clone)]
enum Step {
    /// The term is not ours yet.
    Asleep,
    Beginning(Beginning),
    /// It has a run, and looks whether it is still the last.
    Looking(RunName),
    Ready(RunName),
    Uploading {
        run: RunName,
        id: CheckpointId,
        part: Part,
        since: Nanos,
    },
    /// Until it is woken.
    Resting(Option<RunName>),
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Before,
    Manifest,
    After,
}

/// What the manager hears, and does.
#[derive(Debug, PartialEq, Eq)]
pub enum Act {
    Ask(Request),
    Ready,
    Stored(CheckpointId),
    Lost,
    /// To be woken after a pause.
    Rest,
}

#[derive(Debug)]
pub struct Committer {
    term: u64,
    incarnation: u64,
    step: Step,
    waiting: VecDeque<(CheckpointId, bool)>,
    /// Whether the manager has a session.
    pub open: bool,
    /// A flaw: what is written counts.
    pub trusts_itself: bool,
}

impl Committer {
    pub fn new(incarnation: u64) -> Self {
        let (step, waiting) = (Step::Asleep, VecDeque::new());
        Self { term: 0, incarnation, step, waiting, open: false, trusts_itself: false }
    }

    pub fn run(&self) -> Option<RunName> {
        match &self.step {
            Step::Looking(run) | Step::Ready(run) | Step::Uploading { run, .. } => Some(*run),
            Step::Resting(run) => *run,
            Step::Asleep | Step::Beginning(_) | Step::Stopped => None,
        }
    }

    pub fn begin(&mut self, term: u64) -> Vec<Act> {
        self.term = term;
        self.wake()
    }

    pub fn wake(&mut self) -> Vec<Act> {
        match self.step {
            Step::Asleep | Step::Resting(None) => {
                let (beginning, request) = Beginning::new(self.term, self.incarnation);
                self.step = Step::Beginning(beginning);
                vec![Act::Ask(request)]
            }
            Step::Resting(Some(run)) => {
                self.step = Step::Looking(run);
                vec![Act::Ask(Request::Runs)]
            }
            _ => Vec::new(),
        }
    }

    /// What waits is merged, and one that is full takes the place of all before it.
    pub fn give(&mut self, now: Nanos, id: CheckpointId, full: bool) -> Vec<Act> {
        if !self.open {
            return Vec::new();
        }
        if full {
            self.waiting.clear();
        }
        match self.waiting.back_mut() {
            Some((last, false)) if !full => *last = id,
            _ => self.waiting.push_back((id, full)),
        }
        self.next(now)
    }

    fn next(&mut self, now: Nanos) -> Vec<Act> {
        let Step::Ready(run) = self.step else { return Vec::new() };
        let Some((id, _)) = self.waiting.pop_front() else { return Vec::new() };
        self.step = Step::Uploading { run, id, part: Part::Before, since: now };
        vec![Act::Ask(Request::Runs)]
    }

    /// The session is over, as the manager knows.
    pub fn let_go(&mut self) -> Vec<Act> {
        if !std::mem::take(&mut self.open) {
            return Vec::new();
        }
        self.rest(false)
    }

    /// A look of the pulse found a later run.
    pub fn overtaken(&mut self) -> Vec<Act> {
        self.stop()
    }

    fn rest(&mut self, say: bool) -> Vec<Act> {
        self.waiting.clear();
        self.step = Step::Resting(self.run());
        let said = (say && std::mem::take(&mut self.open)).then_some(Act::Lost);
        said.into_iter().chain([Act::Rest]).collect()
    }

    fn stop(&mut self) -> Vec<Act> {
        self.step = Step::Stopped;
        self.waiting.clear();
        std::mem::take(&mut self.open).then_some(Act::Lost).into_iter().collect()
    }

    pub fn take(&mut self, now: Nanos, reply: Reply) -> Vec<Act> {
        match self.step.clone() {
            Step::Beginning(mut beginning) => match beginning.take(reply) {
                Begun::Next(request) => {
                    self.step = Step::Beginning(beginning);
                    vec![Act::Ask(request)]
                }
                Begun::There(run) => self.serve(run),
                Begun::Failed => self.rest(true),
            },
            Step::Looking(run) => match later(&reply, run) {
                Some(false) => self.serve(run),
                Some(true) => self.stop(),
                None => self.rest(true),
            },
            Step::Uploading { run, id, part, since } => {
                let part = match (part, later(&reply, run), &reply) {
                    (Part::Before | Part::After, Some(true), _) => return self.stop(),
                    (Part::Before, Some(false), _) => Part::Manifest,
                    (Part::Manifest, _, Reply::Done) if self.trusts_itself => {
                        return self.stored(now, run, id);
                    }
                    (Part::Manifest, _, Reply::Done) => Part::After,
                    (Part::After, Some(false), _) => return self.stored(now, run, id),
                    _ if now < since + PATIENCE => Part::Before,
                    _ => return self.rest(true),
                };
                self.step = Step::Uploading { run, id, part, since };
                vec![Act::Ask(if part == Part::Manifest { Request::Put(run, id) } else { Request::Runs })]
            }
            Step::Asleep | Step::Ready(_) | Step::Resting(_) | Step::Stopped => Vec::new(),
        }
    }

    fn serve(&mut self, run: RunName) -> Vec<Act> {
        (self.step, self.open) = (Step::Ready(run), true);
        vec![Act::Ready]
    }

    fn stored(&mut self, now: Nanos, run: RunName, id: CheckpointId) -> Vec<Act> {
        self.step = Step::Ready(run);
        let mut acts = vec![Act::Stored(id)];
        acts.extend(self.next(now));
        acts
    }
}
