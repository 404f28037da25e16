//! What clients of apps/load saw.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use testkit::programs::go_app;

use super::namespace::{Namespace, Owned};

/// What we read of a load's report.
#[derive(Debug, Deserialize)]
pub struct Asked {
    pub requests_per_second: f64,
    pub gap_ms_max: f64,
    pub start_wall_ns: u64,
    #[serde(rename = "broken_connections")]
    broken: u64,
    #[serde(rename = "corrupt_values")]
    corrupt: u64,
    #[serde(default)]
    timeline_ms: u64,
    #[serde(default)]
    timeline: Vec<f64>,
}

/// Clients that run. Dropping them ends them.
#[derive(Debug)]
pub struct Asking {
    load: Owned,
}

impl Asking {
    /// On a host of ours; `target` is what the server at `address` speaks.
    pub fn start(
        place: &Namespace,
        address: &str,
        target: &str,
        seconds: f64,
        words: &[&str],
    ) -> Result<Self> {
        let mut command: Command = place.command(go_app("load"));
        command.args(["--target", target, "--address", address, "--seconds", &seconds.to_string()]);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Self { load: Owned(command.spawn().context("cannot start clients")?) })
    }

    /// Waits for their end, which comes by itself.
    pub fn report(mut self) -> Result<Asked> {
        let output = self.load.0.stdout.take().context("stdout is piped")?;
        let text = std::io::read_to_string(output)?;
        let asked: Asked = serde_json::from_str(&text).with_context(|| format!("clients report {text:?}"))?;
        ensure!(asked.corrupt == 0, "clients were given corrupt values: {text}");
        Ok(asked)
    }
}

impl Asked {
    pub fn unbroken(self) -> Result<Self> {
        ensure!(self.broken == 0, "{} connections broke", self.broken);
        Ok(self)
    }

    /// Requests per second in each interval, by seconds since the beginning. The last interval is not whole.
    pub fn over_time(&self) -> Vec<[f64; 2]> {
        let seconds = self.timeline_ms as f64 / 1e3;
        let whole = self.timeline.len().saturating_sub(1);
        let counted = self.timeline.iter().take(whole).enumerate();
        counted.map(|(number, count)| [number as f64 * seconds, count / seconds]).collect()
    }
}
