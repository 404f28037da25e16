//! Half-open ranges of addresses, and sets of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::PAGE_BYTES;

/// `start..end`, never empty once it is in a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

impl Range {
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end }
    }

    pub fn len_bytes(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub fn pages(self) -> u64 {
        self.len_bytes() / PAGE_BYTES
    }

    pub fn is_empty(self) -> bool {
        self.end <= self.start
    }

    pub fn contains(self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    pub fn intersect(self, other: Self) -> Option<Self> {
        let both = Self::new(self.start.max(other.start), self.end.min(other.end));
        (!both.is_empty()).then_some(both)
    }
}

/// A set of addresses, kept as the fewest ranges that cover it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    by_start: BTreeMap<u64, u64>,
}

impl RangeSet {
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = Range> + '_ {
        self.by_start.iter().map(|(&start, &end)| Range { start, end })
    }

    pub fn len_bytes(&self) -> u64 {
        self.iter().map(Range::len_bytes).sum()
    }

    pub fn insert(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        // Everything that touches the new range melts into it.
        while let Some((&s, &e)) = self.by_start.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.by_start.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.by_start.insert(start, end);
    }

    pub fn remove(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        for Range { start, end } in self.overlapping(range) {
            self.by_start.remove(&start);
            if start < range.start {
                self.by_start.insert(start, range.start);
            }
            if range.end < end {
                self.by_start.insert(range.end, end);
            }
        }
    }

    /// The members of the set inside `range`, cut to it.
    pub fn within(&self, range: Range) -> Vec<Range> {
        self.overlapping(range).into_iter().filter_map(|own| own.intersect(range)).collect()
    }

    pub fn contains(&self, address: u64) -> bool {
        self.by_start.range(..=address).next_back().is_some_and(|(_, &end)| address < end)
    }

    fn overlapping(&self, range: Range) -> Vec<Range> {
        let from = self
            .by_start
            .range(..range.start)
            .next_back()
            .map_or(range.start, |(&start, &end)| if end > range.start { start } else { range.start });
        self.by_start.range(from..range.end).map(|(&start, &end)| Range { start, end }).collect()
    }
}

impl Extend<Range> for RangeSet {
    fn extend<T: IntoIterator<Item = Range>>(&mut self, ranges: T) {
        ranges.into_iter().for_each(|range| self.insert(range));
    }
}

impl FromIterator<Range> for RangeSet {
    fn from_iter<T: IntoIterator<Item = Range>>(ranges: T) -> Self {
        let mut set = Self::default();
        set.extend(ranges);
        set
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(ops in proptest::collection::vec((any::<bool>(), 0u64..40, 0u64..12), 0..40)) {
            let mut set = RangeSet::default();
            let mut model = std::collections::BTreeSet::new();
            for (add, start, len) in ops {
                let range = Range::new(start, start + len);
                if add { set.insert(range) } else { set.remove(range) }
                for n in start..start + len {
                    if add { model.insert(n); } else { model.remove(&n); }
                }
            }
            for n in 0..64 {
                prop_assert_eq!(set.contains(n), model.contains(&n));
            }
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert!(ranges.iter().all(|range| !range.is_empty()));
            let inside: u64 = set.within(Range::new(10, 30)).into_iter().map(Range::len_bytes).sum();
            prop_assert_eq!(inside, model.range(10..30).count() as u64);
        }
    }
}
