//! How the objects are called.

use std::fmt;
use std::str::FromStr;

use image::CheckpointId;
use serde::{Deserialize, Serialize};

/// One life of a primary, as the store numbers them: a later one has a greater name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct RunName {
    pub number: u32,
    /// Of two that took the same number at once, the later term's is the later one.
    pub term: u64,
    /// The manager's, so that they write apart whatever their terms are.
    pub incarnation: u64,
}

impl fmt::Display for RunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}-{:010}-{:016x}", self.number, self.term, self.incarnation)
    }
}

impl From<RunName> for String {
    fn from(name: RunName) -> Self {
        name.to_string()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not the name of a run")]
pub struct NotARun(String);

impl TryFrom<String> for RunName {
    type Error = NotARun;

    fn try_from(text: String) -> Result<Self, NotARun> {
        text.parse()
    }
}

impl FromStr for RunName {
    type Err = NotARun;

    fn from_str(text: &str) -> Result<Self, NotARun> {
        let parse = || {
            let (number, rest) = text.split_once('-')?;
            let (term, incarnation) = rest.split_once('-')?;
            let name = Self {
                number: number.parse().ok()?,
                term: term.parse().ok()?,
                incarnation: u64::from_str_radix(incarnation, 16).ok()?,
            };
            (name.to_string() == text).then_some(name)
        };
        parse().ok_or_else(|| NotARun(text.to_owned()))
    }
}

/// `TERM-EPOCH`, with as many digits as it takes to sort them as text.
pub(crate) fn checkpoint(id: CheckpointId) -> String {
    format!("{:010}-{:015}", id.term.0, id.epoch.0)
}

pub(crate) fn parse_checkpoint(text: &str) -> Option<CheckpointId> {
    let (term, epoch) = text.split_once('-')?;
    let id = CheckpointId::new(term.parse().ok()?, epoch.parse().ok()?);
    (checkpoint(id) == text).then_some(id)
}

/// Whether an app of this name can have a place in a store.
pub(crate) fn is_app(name: &str) -> bool {
    const LEN_MAX: usize = 100;
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.len() <= LEN_MAX && name.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_printing_and_parsing_and_sort_as_text() {
        let runs = [(1, 1, u64::MAX), (1, 2, 1), (2, 1, 1), (10, 1, 0)];
        let runs = runs.map(|(number, term, incarnation)| RunName { number, term, incarnation });
        for run in runs {
            assert_eq!(run.to_string().parse::<RunName>().unwrap(), run);
        }
        assert!(runs.is_sorted() && runs.map(|run| run.to_string()).is_sorted());
        let ids = [(1, 9), (1, 10), (2, 1), (10, 1)].map(|(term, epoch)| CheckpointId::new(term, epoch));
        assert!(ids.map(checkpoint).is_sorted());
        for id in ids {
            assert_eq!(parse_checkpoint(&checkpoint(id)), Some(id));
        }
    }

    #[test]
    fn other_objects_are_no_checkpoints_and_no_runs() {
        for text in ["", "1-1", "x", "000001-1", "000001-0000000001-1", ".tmp", "0000000001-00000000000000x"]
        {
            assert!(text.parse::<RunName>().is_err() && parse_checkpoint(text).is_none(), "{text:?}");
        }
    }
}
