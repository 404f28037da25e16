//! The map of ARCHITECTURE.md: a table with one row per crate, the crate's name first and what it may use third.

use std::collections::{BTreeMap, BTreeSet};

/// Which crates each crate may use.
pub type Map = BTreeMap<String, Uses>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uses {
    All,
    Only(BTreeSet<String>),
}

impl Uses {
    pub fn allows(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
        }
    }
}

/// Reads the rows that begin with a crate's name in backticks.
pub fn parse(text: &str) -> Map {
    text.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<(String, Uses)> {
    let mut cells = line.strip_prefix("| `")?.split('|');
    let name = cells.next()?.trim().strip_suffix('`')?;
    let uses = cells.nth(1)?.trim();
    let uses = if uses == "all" { Uses::All } else { Uses::Only(quoted(uses)) };
    Some((name.to_owned(), uses))
}

fn quoted(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_give_the_crates_and_what_they_may_use() {
        let map = parse(
            "| crate | owns | may use |\n|---|---|---|\n| `low` | a | nothing | x |\n| `high` | b | `low`, `mid` | y |\n| `top` | c | all | z |\n",
        );
        assert_eq!(map.len(), 3);
        assert!(map["high"].allows("low") && map["high"].allows("mid") && map["top"].allows("high"));
        assert!(!map["low"].allows("high") && !map["high"].allows("top"));
    }
}
