//! `cargo xtask tidy`: the rules that no compiler checks. Prints every breach, each with its place and rule.

mod arrows;
mod map;
mod sources;

use std::fmt;
use std::fs;

use anyhow::{Context, Result, bail};

use crate::workspace::root;

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// A path, with a line where there is one.
    pub place: String,
    pub rule: String,
}

impl Breach {
    fn new(place: impl Into<String>, rule: impl Into<String>) -> Self {
        Self { place: place.into(), rule: rule.into() }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.rule)
    }
}

pub fn run() -> Result<()> {
    let architecture = root().join("ARCHITECTURE.md");
    let text = fs::read_to_string(architecture).context("cannot read ARCHITECTURE.md")?;
    let mut breaches = arrows::check(&map::parse(&text), &arrows::packages()?);
    breaches.extend(sources::check_tree(root())?);
    for breach in &breaches {
        println!("{breach}");
    }
    match breaches.len() {
        0 => Ok(()),
        1 => bail!("one rule of the tree is broken"),
        count => bail!("{count} rules of the tree are broken"),
    }
}
