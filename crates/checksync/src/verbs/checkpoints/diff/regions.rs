//! Mappings of two checkpoints side by side: which one became which.
//!
//! The kernel splits and joins mappings as it likes; neighbours that are alike count as one here. Mappings have no
//! names: one that begins where another one began, or ends where it ended, is that one.

use std::collections::{BTreeMap, BTreeSet};

use image::layout::{Backing, Layout, Mapping, ObjectKey};
use image::process::MemoryMap;
use image::state::State;
use image::{PAGE_BYTES, PageTarget, Range};
use store::Layouts;

use crate::verbs::describe;

/// A mapping, or the content of a shared object, whose offsets are its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    pub target: PageTarget,
    pub range: Range,
    pub what: String,
    /// Empty for an object.
    pub protection: String,
    /// Where a page that is not there is another than an empty one: it is the file's.
    pub over_file: bool,
}

impl Region {
    /// A reservation: nothing can be in it.
    pub fn is_reservation(&self) -> bool {
        !self.over_file && self.protection.starts_with("---")
    }
}

/// Before and after: none before is a new one, none after is gone.
pub type Pair = (Option<Region>, Option<Region>);

pub fn of(layouts: &Layouts, state: &State) -> Vec<Region> {
    let mut regions: Vec<Region> = Vec::new();
    for layout in layouts.values() {
        let map = state.spaces.get(layout.space as usize);
        for region in layout.mappings.iter().map(|mapping| region(mapping, layout, map)) {
            match regions.last_mut() {
                Some(last) if continues(last, &region) => last.range.end = region.range.end,
                _ => regions.push(region),
            }
        }
    }
    let objects: BTreeMap<ObjectKey, _> = layouts
        .values()
        .flat_map(|layout| layout.objects.iter().map(|object| (object.key, object)))
        .collect();
    regions.extend(objects.values().map(|object| Region {
        target: PageTarget::Object(object.key),
        range: Range::new(0, object.size_bytes.next_multiple_of(PAGE_BYTES)),
        what: describe::object(&object.kind),
        protection: String::new(),
        over_file: false,
    }));
    regions
}

fn region(mapping: &Mapping, layout: &Layout, map: Option<&MemoryMap>) -> Region {
    let what = match (&mapping.backing, &mapping.name) {
        (Backing::Anonymous, Some(name)) => format!("[anon:{}]", describe::text(name.as_bytes())),
        (Backing::Anonymous, None) => {
            map.and_then(|map| special(mapping.range, map)).unwrap_or("[anon]").to_owned()
        }
        (_, _) => describe::mapping(mapping, layout),
    };
    Region {
        target: PageTarget::Space(layout.space),
        range: mapping.range,
        what,
        protection: describe::protection(mapping),
        over_file: matches!(mapping.backing, Backing::File(_)),
    }
}

/// As `/proc/PID/maps` calls it.
fn special(range: Range, map: &MemoryMap) -> Option<&'static str> {
    if range.intersect(Range::new(map.start_brk, map.brk)).is_some() {
        Some("[heap]")
    } else {
        range.contains(map.start_stack).then_some("[stack]")
    }
}

fn continues(last: &Region, next: &Region) -> bool {
    last.target == next.target
        && last.range.end == next.range.start
        && (&last.what, &last.protection) == (&next.what, &next.protection)
}

type Key = fn(&Region) -> (u64, &str);

/// Every region of both, in the order of their places.
pub fn pair(before: Vec<Region>, after: Vec<Region>) -> Vec<Pair> {
    let keys: [Key; 3] = [
        |region| (region.range.start, &region.protection),
        |region| (region.range.end, &region.protection),
        // What is called alike and begins alike has another protection now.
        |region| (region.range.start, ""),
    ];
    let (mut before, mut after) = (before, after);
    let mut pairs = Vec::new();
    for key in keys {
        let full = |region: &Region| {
            let (at, protection) = key(region);
            (region.target, at, region.what.clone(), protection.to_owned())
        };
        let mut known: BTreeMap<_, Region> = after.drain(..).map(|region| (full(&region), region)).collect();
        before.retain(|old| match known.remove(&full(old)) {
            Some(new) => {
                pairs.push((Some(old.clone()), Some(new)));
                false
            }
            None => true,
        });
        after.extend(known.into_values());
    }
    pairs.extend(before.into_iter().map(|old| (Some(old), None)));
    pairs.extend(after.into_iter().map(|new| (None, Some(new))));
    pairs.sort_by_key(|(old, new)| new.as_ref().or(old.as_ref()).map(|it| (it.target, it.range)));
    pairs
}

/// The pages of a region among those that changed.
pub fn changed_in(region: &Region, changed: &BTreeSet<(PageTarget, u64)>) -> u64 {
    changed.range((region.target, region.range.start)..(region.target, region.range.end)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: u64, end: u64, what: &str, protection: &str) -> Region {
        let (what, protection) = (what.to_owned(), protection.to_owned());
        let target = PageTarget::Space(0);
        Region { target, range: Range::new(start, end), what, protection, over_file: false }
    }

    #[test]
    fn what_grew_at_either_end_is_the_same_and_what_is_called_otherwise_is_not() {
        let before = vec![
            region(10, 20, "[heap]", "rw-p"),
            region(30, 40, "[stack]", "rw-p"),
            region(50, 60, "/a", "r--p"),
            region(70, 80, "[anon]", "rw-p"),
        ];
        let after = vec![
            region(10, 25, "[heap]", "rw-p"),
            region(28, 40, "[stack]", "rw-p"),
            region(50, 60, "/b", "r--p"),
            region(70, 80, "[anon]", "r--p"),
        ];
        let both = |n: usize| (Some(before[n].clone()), Some(after[n].clone()));
        let mut expected =
            vec![both(0), both(1), (Some(before[2].clone()), None), (None, Some(after[2].clone()))];
        expected.push(both(3));
        assert_eq!(pair(before.clone(), after.clone()), expected);
    }

    #[test]
    fn pages_count_where_they_lie() {
        let at = |page: u64| (PageTarget::Space(0), page * PAGE_BYTES);
        let changed: BTreeSet<_> = [at(1), at(2), at(4), (PageTarget::Space(1), PAGE_BYTES)].into();
        let one = region(PAGE_BYTES, 4 * PAGE_BYTES, "[anon]", "rw-p");
        assert_eq!(changed_in(&one, &changed), 2);
    }
}
