//! How long nobody was answered around each death, as the clients' history has it.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use serde_json::{Value, json};

pub fn wall_clock_ns() -> u64 {
    u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos()).unwrap()
}

/// In the order of the deaths, in milliseconds; one line of JSON.
#[derive(Debug)]
pub struct Gaps(Vec<f64>);

impl Gaps {
    /// The longest time between two answers, of those that ended after each death and before the next.
    pub fn around(deaths: &[u64], history: &Path) -> Self {
        let text = fs::read_to_string(history).unwrap();
        let answered = |line: &str| serde_json::from_str::<Value>(line).unwrap()["return_ns"].as_u64();
        let mut answers: Vec<u64> = text.lines().filter_map(answered).collect();
        answers.sort_unstable();
        let around = |(number, death): (usize, &u64)| {
            let next = deaths.get(number + 1).copied().unwrap_or(u64::MAX);
            let between = |pair: &&[u64]| pair[1] >= *death && pair[1] < next;
            let longest = answers.windows(2).filter(between).map(|pair| pair[1] - pair[0]).max();
            longest.map_or(f64::INFINITY, |ns| ns as f64 / 1e6)
        };
        Self(deaths.iter().enumerate().map(around).collect())
    }
}

impl fmt::Display for Gaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gaps = self.0.clone();
        gaps.sort_by(f64::total_cmp);
        let (p50, max) = (gaps.get(gaps.len() / 2), gaps.last());
        let all = &self.0;
        write!(f, "{}", json!({ "deaths": gaps.len(), "gap_ms_p50": p50, "gap_ms_max": max, "gap_ms": all }))
    }
}
