//! A set of pages, as bits: which pages of an app the standby holds.
//!
//! Kept per 2 MiB region, since pages come and go in clusters: 64 bytes for 512 pages.

use std::collections::BTreeMap;

use image::{PAGE_BYTES, Range};

const REGION_PAGES: u64 = 512;
const REGION_BYTES: u64 = REGION_PAGES * PAGE_BYTES;
const WORDS: usize = 8;

#[derive(Debug, Clone, Default)]
pub struct PageSet {
    regions: BTreeMap<u64, [u64; WORDS]>,
    len: u64,
}

impl PageSet {
    /// How many pages are in the set.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn insert(&mut self, range: Range) {
        for_each_word(range, |region, word, mask| {
            let bits = &mut self.regions.entry(region).or_default()[word];
            self.len += u64::from((mask & !*bits).count_ones());
            *bits |= mask;
        });
    }

    /// Removes the range; returns what of it was in the set.
    pub fn take(&mut self, range: Range) -> Vec<Range> {
        let taken = self.within(range);
        for &piece in &taken {
            for_each_word(piece, |region, word, mask| {
                if let Some(bits) = self.regions.get_mut(&region) {
                    self.len -= u64::from((mask & bits[word]).count_ones());
                    bits[word] &= !mask;
                    if bits.iter().all(|&word| word == 0) {
                        self.regions.remove(&region);
                    }
                }
            });
        }
        taken
    }

    /// The pages of the set that lie in `range`, as ranges.
    pub fn within(&self, range: Range) -> Vec<Range> {
        let mut found: Vec<Range> = Vec::new();
        let first = range.start / REGION_BYTES;
        let last = range.end.div_ceil(REGION_BYTES);
        for (&region, bits) in self.regions.range(first..last.max(first)) {
            for (word, &bits) in bits.iter().enumerate() {
                runs(bits, |from, to| {
                    let base = region * REGION_BYTES + (word as u64 * 64) * PAGE_BYTES;
                    let run = Range::new(base + from * PAGE_BYTES, base + to * PAGE_BYTES);
                    let Some(run) = run.intersect(range) else { return };
                    match found.last_mut() {
                        Some(last) if last.end == run.start => last.end = run.end,
                        _ => found.push(run),
                    }
                });
            }
        }
        found
    }
}

fn for_each_word(range: Range, mut each: impl FnMut(u64, usize, u64)) {
    let (mut page, end) = (range.start / PAGE_BYTES, range.end / PAGE_BYTES);
    while page < end {
        let bit = page % 64;
        let count = (64 - bit).min(end - page);
        let mask = if count == 64 { u64::MAX } else { ((1 << count) - 1) << bit };
        each(page / REGION_PAGES, (page % REGION_PAGES / 64) as usize, mask);
        page += count;
    }
}

/// Calls `each` with the bounds of every run of ones.
fn runs(mut bits: u64, mut each: impl FnMut(u64, u64)) {
    let mut base = 0;
    while bits != 0 {
        let zeros = u64::from(bits.trailing_zeros());
        let ones = u64::from((bits >> zeros).trailing_ones());
        each(base + zeros, base + zeros + ones);
        base += zeros + ones;
        bits = bits.checked_shr((zeros + ones) as u32).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn pages(start: u64, len: u64) -> Range {
        Range::new(start * PAGE_BYTES, (start + len) * PAGE_BYTES)
    }

    proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(ops in proptest::collection::vec((any::<bool>(), 0u64..1500, 0u64..700), 0..30)) {
            let (mut set, mut model) = (PageSet::default(), BTreeSet::new());
            for (add, start, len) in ops {
                let range = pages(start, len);
                if add {
                    set.insert(range);
                    model.extend(start..start + len);
                } else {
                    let taken: u64 = set.take(range).into_iter().map(Range::pages).sum();
                    prop_assert_eq!(taken, model.range(start..start + len).count() as u64);
                    model.retain(|page| !(start..start + len).contains(page));
                }
            }
            prop_assert_eq!(set.len(), model.len() as u64);
            let within = set.within(pages(100, 900));
            prop_assert!(within.windows(2).all(|pair| pair[0].end < pair[1].start));
            let listed: Vec<u64> = within.iter().flat_map(|r| r.start / PAGE_BYTES..r.end / PAGE_BYTES).collect();
            prop_assert_eq!(listed, model.range(100..1000).copied().collect::<Vec<_>>());
        }
    }
}
