//! Figures on disk: target/eval/NAME.json, what one evaluation took and under what conditions.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Row;
use super::conditions::Conditions;
use crate::workspace::target_dir;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Taken {
    /// Of the newest run. None in files from before they were noted.
    #[serde(default)]
    pub conditions: Option<Conditions>,
    pub rows: Vec<Row>,
}

/// Where figures go; made if missing.
pub fn directory() -> Result<PathBuf> {
    let dir = target_dir().join("eval");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

impl Taken {
    /// Of an earlier run, if there was one.
    pub fn earlier(dir: &Path, name: &str) -> Option<Self> {
        let text = fs::read_to_string(path(dir, name)).ok()?;
        serde_json::from_str(&text).ok()
    }

    pub fn write(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        let path = path(dir, name);
        let text = serde_json::to_string_pretty(self).context("figures that are no JSON")?;
        fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The rows of before, new ones in their places, and those that were not there behind.
    pub fn over(self, before: Option<Self>) -> Self {
        let mut rows = before.map(|before| before.rows).unwrap_or_default();
        for row in self.rows {
            match rows.iter_mut().find(|before| before.id == row.id) {
                Some(before) => *before = row,
                None => rows.push(row),
            }
        }
        Self { rows, ..self }
    }
}

fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_were_not_asked_for_stay() {
        let row = |id: &str, median: f64| Row::measured(id, "ms", &[median]);
        let taken = |rows: &[Row]| Taken { conditions: None, rows: rows.to_vec() };
        let before = taken(&[row("a", 1.0), row("b", 1.0)]);
        let now = taken(&[row("c", 2.0), row("b", 2.0)]).over(Some(before));
        assert_eq!(now.rows, [row("a", 1.0), row("b", 2.0), row("c", 2.0)]);
    }

    #[test]
    fn what_was_written_is_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let taken = Taken { conditions: Some(Conditions::default()), rows: vec![Row::not_taken("a", "no")] };
        taken.write(dir.path(), "pause").expect("a writable directory");
        assert_eq!(Taken::earlier(dir.path(), "pause"), Some(taken));
        assert_eq!(Taken::earlier(dir.path(), "other"), None);
    }
}
