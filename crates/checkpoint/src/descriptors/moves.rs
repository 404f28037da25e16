//! How descriptors that arrived at numbers of the kernel's choice get to the numbers where they belong,
//! though each may stand where another one must go. Pure.

use std::collections::{BTreeMap, HashSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// `dup3`: `to` is free.
    Duplicate {
        from: i32,
        to: i32,
    },
    Close(i32),
}

/// Moves each `from` to its `to`. All `from` differ, all `to` differ, and a `to` is either free or one of
/// the `from`. `spare` is a number that is neither: it is used where descriptors stand in a ring.
pub(super) fn plan(moves: &[(i32, i32)], spare: i32) -> Vec<Step> {
    let mut pending: BTreeMap<i32, i32> =
        moves.iter().filter(|(from, to)| from != to).map(|&(from, to)| (to, from)).collect();
    let sources: HashSet<i32> = pending.values().copied().collect();
    let mut free: Vec<i32> = pending.keys().copied().filter(|to| !sources.contains(to)).collect();
    let mut steps = Vec::with_capacity(pending.len() * 2);
    loop {
        while let Some(to) = free.pop() {
            let Some(from) = pending.remove(&to) else { continue };
            steps.extend([Step::Duplicate { from, to }, Step::Close(from)]);
            free.push(from);
        }
        // What is left stands in rings: one descriptor steps aside, and its number is free.
        let Some((&to, &from)) = pending.first_key_value() else { return steps };
        steps.extend([Step::Duplicate { from, to: spare }, Step::Close(from)]);
        pending.insert(to, spare);
        free.push(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries the steps out on a table of numbers; panics where a step hits what it must not.
    fn carry_out(moves: &[(i32, i32)]) -> BTreeMap<i32, i32> {
        let mut table: BTreeMap<i32, i32> = moves.iter().map(|&(from, _)| (from, from)).collect();
        for step in plan(moves, 99) {
            match step {
                Step::Duplicate { from, to } => {
                    assert!(!table.contains_key(&to), "overwrote {to}");
                    table.insert(to, table[&from]);
                }
                Step::Close(number) => {
                    table.remove(&number).expect("closed what is open");
                }
            }
        }
        table
    }

    fn arrives(moves: &[(i32, i32)]) {
        let expected: BTreeMap<i32, i32> = moves.iter().map(|&(from, to)| (to, from)).collect();
        assert_eq!(carry_out(moves), expected, "{moves:?}");
    }

    #[test]
    fn every_descriptor_arrives_whatever_stands_in_the_way() {
        arrives(&[(0, 0), (1, 1)]);
        arrives(&[(0, 7), (1, 9)]);
        arrives(&[(0, 1), (1, 2), (2, 3)]);
        arrives(&[(3, 2), (2, 1), (1, 0)]);
    }

    #[test]
    fn rings_are_opened_with_the_spare_number() {
        arrives(&[(0, 1), (1, 0)]);
        arrives(&[(0, 1), (1, 2), (2, 0), (5, 6), (6, 5), (7, 8)]);
    }
}
