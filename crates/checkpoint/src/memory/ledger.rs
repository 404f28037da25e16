//! The ledger: what the standby is owed.
//!
//! The scan that finds a dirty page takes its mark away, and nobody else remembers. So every page of an
//! epoch stays here until an epoch that carries it is committed; what a failed epoch carried is owed and
//! goes into the next one.

use std::collections::{BTreeMap, VecDeque};

use image::{CheckpointId, PageTarget, Range, RangeSet};

/// Pages by whose they are.
pub type Pages = BTreeMap<PageTarget, RangeSet>;

#[derive(Debug)]
struct InFlight {
    id: CheckpointId,
    pages: Pages,
    /// The epoch carried a new layout.
    layout: bool,
}

#[derive(Debug, Default)]
pub struct Ledger {
    in_flight: VecDeque<InFlight>,
    owed: Pages,
    layout_owed: bool,
}

impl Ledger {
    /// Enters an epoch that was captured.
    pub fn enter(&mut self, id: CheckpointId, pages: Pages, layout: bool) {
        assert!(self.in_flight.back().is_none_or(|last| last.id < id), "epoch {id} entered out of order");
        self.in_flight.push_back(InFlight { id, pages, layout });
    }

    /// The standby holds `id` and everything before it.
    pub fn committed(&mut self, id: CheckpointId) {
        while self.in_flight.front().is_some_and(|first| first.id <= id) {
            self.in_flight.pop_front();
        }
    }

    /// Every epoch that is not committed has failed: what they carried is owed.
    pub fn fail(&mut self) {
        for epoch in self.in_flight.drain(..) {
            self.layout_owed |= epoch.layout;
            for (target, ranges) in epoch.pages {
                self.owed.entry(target).or_default().extend(ranges.iter());
            }
        }
    }

    /// What the next epoch must carry besides what is dirty. It is entered with that epoch again.
    pub fn settle(&mut self) -> (Pages, bool) {
        (std::mem::take(&mut self.owed), std::mem::take(&mut self.layout_owed))
    }

    /// A capture that failed half-way gives back what it took.
    pub fn owe(&mut self, pages: Pages, layout: bool) {
        self.layout_owed |= layout;
        for (target, ranges) in pages {
            self.owed.entry(target).or_default().extend(ranges.iter());
        }
    }

    /// A full sync carries everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

/// Adds a range to pages.
pub fn add(pages: &mut Pages, target: PageTarget, range: Range) {
    pages.entry(target).or_default().insert(range);
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: PageTarget = PageTarget::Space(0);

    fn pages(start: u64, end: u64) -> Pages {
        let mut pages = Pages::new();
        add(&mut pages, TARGET, Range::new(start, end));
        pages
    }

    #[test]
    fn a_failed_epoch_loses_no_page() {
        let mut ledger = Ledger::default();
        ledger.enter(CheckpointId::new(1, 1), pages(0, 10), false);
        ledger.enter(CheckpointId::new(1, 2), pages(20, 30), true);
        ledger.enter(CheckpointId::new(1, 3), pages(30, 40), false);
        ledger.committed(CheckpointId::new(1, 1));
        ledger.fail();
        assert_eq!(ledger.settle(), (pages(20, 40), true));
        assert_eq!(ledger.settle(), (Pages::new(), false));
    }

    #[test]
    fn a_committed_epoch_is_forgotten() {
        let mut ledger = Ledger::default();
        ledger.enter(CheckpointId::new(1, 1), pages(0, 10), true);
        ledger.committed(CheckpointId::new(1, 1));
        ledger.fail();
        assert_eq!(ledger.settle(), (Pages::new(), false));
    }
}
