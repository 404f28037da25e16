//! Samples that a test takes: lines of JSON, by id.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::workspace::cargo;

/// A line of the samples.
#[derive(Debug, Deserialize)]
pub struct Sample {
    pub id: String,
    pub unit: String,
    pub value: f64,
}

/// Samples by id, in the order in which they came first.
#[derive(Debug, Default)]
pub struct Samples {
    order: Vec<(String, String)>,
    values: BTreeMap<String, Vec<f64>>,
}

impl Samples {
    /// Runs a test of `checksync` that is ignored otherwise. `ask` tells it what to take, and which file to write to.
    pub fn take(&mut self, target: &str, test: &str, ask: impl FnOnce(&mut Command, &Path)) -> Result<()> {
        let dir = tempfile::tempdir().context("cannot make a directory")?;
        let lines = dir.path().join("samples");
        let words =
            ["test", "--locked", "--release", "--quiet", "--package", "checksync", "--test", target, "--"];
        let mut command = cargo(&words);
        command.args(["--ignored", "--exact", test, "--nocapture"]);
        ask(&mut command, &lines);
        let done = command.status().context("cannot start cargo")?;
        ensure!(done.success(), "{test}: {done}");
        self.read(&lines)
    }

    fn read(&mut self, path: &Path) -> Result<()> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        for line in text.lines() {
            let sample: Sample =
                serde_json::from_str(line).with_context(|| format!("an odd sample: {line}"))?;
            self.add(sample);
        }
        Ok(())
    }

    pub fn add(&mut self, Sample { id, unit, value }: Sample) {
        let values = self.values.entry(id.clone()).or_default();
        if values.is_empty() {
            self.order.push((id, unit));
        }
        values.push(value);
    }

    pub fn of(&self, id: &str) -> Option<&[f64]> {
        self.values.get(id).map(Vec::as_slice)
    }

    /// Id, unit and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &[f64])> {
        self.order.iter().map(|(id, unit)| (id.as_str(), unit.as_str(), self.values[id].as_slice()))
    }
}
