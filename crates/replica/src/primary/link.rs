//! A connected standby: what it holds, what is on its way to it, and when it last answered.

use std::collections::VecDeque;

use image::{CheckpointId, Member};

use crate::Nanos;

/// What an acknowledgement came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Acked {
    New,
    /// A late duplicate.
    Old,
    /// It names an epoch that never went to this standby.
    NeverSent,
}

#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) standby: Member,
    /// Counts the connections, so that what was captured for one is not sent on the next.
    pub(super) session: u64,
    /// The newest epoch of the running app that this standby is known to hold.
    pub(super) held: Option<CheckpointId>,
    pub(super) needs_full: bool,
    /// What it holds could be built on, were it not for another that has to be synced in full.
    pub(super) waits_for_others: bool,
    in_flight: VecDeque<CheckpointId>,
    /// The send time of the last heartbeat that it answered.
    pub(super) answered: Option<Nanos>,
    /// Why it refused the last epoch, until it takes one.
    pub(super) refused: Option<String>,
    /// Since when captures that were due went without it, because it has acknowledged too little.
    pub(super) crowded_since: Option<Nanos>,
    /// It was told that the register names it.
    pub(super) told: bool,
}

impl Link {
    pub(super) fn new(standby: Member, session: u64, held: Option<CheckpointId>) -> Self {
        Self {
            standby,
            session,
            held,
            needs_full: held.is_none(),
            waits_for_others: false,
            in_flight: VecDeque::new(),
            answered: None,
            refused: None,
            crowded_since: None,
            told: false,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub(super) fn holds(&self, id: CheckpointId) -> bool {
        self.held >= Some(id)
    }

    /// It has `id`, or is about to.
    pub(super) fn is_sent(&self, id: CheckpointId) -> bool {
        self.holds(id) || self.in_flight.contains(&id)
    }

    /// What the next epoch builds on.
    pub(super) fn parent(&self) -> Option<CheckpointId> {
        self.in_flight.back().copied().or(self.held)
    }

    pub(super) fn sent(&mut self, id: CheckpointId) {
        assert!(self.parent() < Some(id), "{id} after {:?}", self.parent());
        self.in_flight.push_back(id);
    }

    /// Takes `id` and all before it as held.
    pub(super) fn acked(&mut self, id: CheckpointId) -> Acked {
        if Some(id) <= self.held {
            return Acked::Old;
        }
        if !self.in_flight.contains(&id) {
            return Acked::NeverSent;
        }
        self.in_flight.retain(|&flying| flying > id);
        self.held = Some(id);
        self.refused = None;
        self.crowded_since = None;
        Acked::New
    }

    /// Gives up on what is on its way; the standby may still come to hold it.
    pub(super) fn take_in_flight(&mut self) -> Vec<CheckpointId> {
        self.in_flight.drain(..).collect()
    }

    pub(super) fn answered(&mut self, sent_at: Nanos) {
        self.answered = self.answered.max(Some(sent_at));
    }

    /// Whether it answered a heartbeat that is younger than `age_max`.
    pub(super) fn answers(&self, now: Nanos, age_max: Nanos) -> bool {
        self.answered.is_some_and(|sent_at| now < sent_at + age_max)
    }
}
