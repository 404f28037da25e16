//! Go's garbage collections, as the runtime tells of them: `GODEBUG=gctrace=1` prints a line at the end of each,
//! with how long its phases took.

use super::side::Line;

/// When a collection ran, by the wall clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Collection {
    pub from_ns: u64,
    pub to_ns: u64,
}

/// Those that `lines` tell of; other lines are passed over.
pub fn all(lines: &[Line]) -> Vec<Collection> {
    lines.iter().filter_map(|line| collection(&line.text, line.wall_ns)).collect()
}

pub fn any_at(collections: &[Collection], from_ns: u64, to_ns: u64) -> bool {
    collections.iter().any(|collection| collection.from_ns <= to_ns && from_ns <= collection.to_ns)
}

/// `gc 1 @0.036s 1%: 0.016+0.78+0.004 ms clock, …`
fn collection(text: &str, to_ns: u64) -> Option<Collection> {
    let phases = text.strip_prefix("gc ")?.split_once(": ")?.1.split_once(" ms clock")?.0;
    let phases: Option<Vec<f64>> = phases.split('+').map(|phase| phase.parse().ok()).collect();
    let ms: f64 = phases?.iter().sum();
    Some(Collection { from_ns: to_ns.saturating_sub((ms * 1e6) as u64), to_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_is_read_from_its_line() {
        let text =
            "gc 7 @1.036s 1%: 0.5+1.25+0.25 ms clock, 0.03+0.2/0.5/0+0.008 ms cpu, 4->4->1 MB, 4 MB goal";
        let line = |text: &str| Line { text: text.to_owned(), wall_ns: 10_000_000 };
        let found = all(&[line("ready"), line("gc here"), line(text)]);
        assert_eq!(found, [Collection { from_ns: 8_000_000, to_ns: 10_000_000 }]);
        assert!(any_at(&found, 9_000_000, 9_500_000) && any_at(&found, 7_000_000, 8_000_000));
        assert!(!any_at(&found, 1, 7_999_999) && !any_at(&found, 10_000_001, 10_000_002));
    }
}
