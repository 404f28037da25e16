//! The README's first command, and a look at what it says: no acknowledged write that it promised is lost.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::step::run_clean;
use crate::workspace::{cargo, target_dir};

/// What `demo -o json` must say, beside others.
const FIELDS: [&str; 8] = [
    "schema",
    "epochs",
    "pause_us",
    "failover_ms",
    "client_gap_ms",
    "acknowledged_writes",
    "lost_writes",
    "lost_window_ms",
];

pub fn run(limit: Duration) -> Result<()> {
    if !exists()? {
        println!("this build has no demo yet");
        return Ok(());
    }
    let output = target_dir().join("ci").join("demo.json");
    fs::create_dir_all(target_dir().join("ci")).context("cannot make target/ci")?;
    let file = File::create(&output).context("cannot write target/ci/demo.json")?;
    run_clean(cargo(&["run", "--locked", "--release", "--", "demo", "-o", "json"]).stdout(file), limit)?;
    let text = fs::read_to_string(&output).context("cannot read what the demo printed")?;
    check(&text).with_context(|| format!("the demo printed: {text}"))?;
    println!("{}", text.trim_end());
    Ok(())
}

fn exists() -> Result<bool> {
    let program = target_dir().join("release").join("checksync");
    let help = Command::new(&program).args(["demo", "--help"]).output().context("cannot start checksync")?;
    Ok(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("demo"))
}

fn check(text: &str) -> Result<()> {
    let told: Value = serde_json::from_str(text).context("not one JSON object")?;
    let missing: Vec<_> = FIELDS.iter().filter(|field| told.get(field).is_none()).collect();
    ensure!(missing.is_empty(), "it lacks {missing:?}");
    match told["acknowledged_writes"].as_u64() {
        Some(writes) if writes > 0 => Ok(()),
        _ => bail!("its client wrote nothing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_that_says_too_little_is_no_demo() {
        let whole = r#"{"schema": 1, "epochs": 9, "pause_us": {}, "failover_ms": {}, "client_gap_ms": 3,
            "acknowledged_writes": 7, "lost_writes": 0, "lost_window_ms": 0}"#;
        assert!(check(whole).is_ok());
        assert!(check(&whole.replace("lost_writes", "writes")).is_err());
        assert!(check(&whole.replace("\"acknowledged_writes\": 7", "\"acknowledged_writes\": 0")).is_err());
        assert!(check("a table").is_err());
    }
}
