//! One figure, with what it stands beside.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Lower is better, unless the row says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured, with its size: `pause-1k`.
    pub id: String,
    pub unit: Cow<'static, str>,
    /// None where nothing was measured.
    pub median: Option<f64>,
    pub p99: Option<f64>,
    /// The least and the most that was measured.
    #[serde(default)]
    pub min: Option<f64>,
    #[serde(default)]
    pub max: Option<f64>,
    /// How many measurements the median is of.
    pub runs: usize,
    #[serde(default)]
    pub more_is_better: bool,
    /// What the thesis reports: always quoted.
    pub thesis: Option<f64>,
    /// What the peer reached.
    pub peer: Option<f64>,
    pub peer_name: Option<Cow<'static, str>>,
    /// The peer ran on this machine, in the same session; otherwise its figure is quoted.
    #[serde(default)]
    pub peer_measured: bool,
    pub aim: Option<f64>,
    /// Whether the median is within the aim; none without either.
    pub met: Option<bool>,
    /// Why nothing was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// How it went over time, for a picture: seconds, and the figure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<[f64; 2]>,
}

impl Row {
    /// A row of measurements; without any it only says what others reached.
    pub fn measured(id: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            id: id.into(),
            unit: unit.into(),
            median: quantile(&sorted, 0.5),
            p99: quantile(&sorted, 0.99),
            min: sorted.first().copied(),
            max: sorted.last().copied(),
            runs: sorted.len(),
            more_is_better: false,
            thesis: None,
            peer: None,
            peer_name: None,
            peer_measured: false,
            aim: None,
            met: None,
            why_not: None,
            trace: Vec::new(),
        }
    }

    /// A row of rates, where more is better: `p99` is what all but one of a hundred reached.
    pub fn rate(id: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        Self { p99: quantile(&sorted, 0.99), more_is_better: true, ..Self::measured(id, unit, samples) }
    }

    /// One that could not be taken, and why.
    pub fn not_taken(id: impl Into<String>, why: impl Into<String>) -> Self {
        Self { why_not: Some(why.into()), ..Self::measured(id, "", &[]) }
    }

    pub fn thesis(self, thesis: impl Into<Option<f64>>) -> Self {
        Self { thesis: thesis.into(), ..self }
    }

    /// A peer's figure from elsewhere.
    pub fn peer(self, peer_name: &'static str, peer: impl Into<Option<f64>>) -> Self {
        let peer = peer.into();
        Self { peer_name: peer.map(|_| peer_name.into()), peer, peer_measured: false, ..self }
    }

    /// A peer's figure from the same session.
    pub fn peer_here(self, peer_name: &'static str, peer: impl Into<Option<f64>>) -> Self {
        Self { peer_measured: true, ..self.peer(peer_name, peer) }
    }

    pub fn trace(self, trace: Vec<[f64; 2]>) -> Self {
        Self { trace, ..self }
    }

    pub fn aim(self, aim: impl Into<Option<f64>>) -> Self {
        let aim = aim.into();
        Self { aim, met: self.median.zip(aim).map(|(median, aim)| median <= aim), ..self }
    }

    /// The same for rates.
    pub fn aim_at_least(self, aim: impl Into<Option<f64>>) -> Self {
        let aim = aim.into();
        Self { aim, met: self.median.zip(aim).map(|(median, aim)| median >= aim), ..self }
    }
}

impl Row {
    /// Whether `theirs` is the better figure; not without ours.
    pub fn loses_to(&self, theirs: Option<f64>) -> bool {
        let loses =
            |(ours, theirs): (f64, f64)| if self.more_is_better { theirs > ours } else { theirs < ours };
        self.median.zip(theirs).is_some_and(loses)
    }
}

/// Takes figures that belong together. If they can't be taken, one row says why, and whoever asked goes on.
pub fn attempt(id: &str, take: impl FnOnce() -> Result<Vec<Row>>) -> Vec<Row> {
    // What our helpers panic about is a failed measurement, too; what it held is dropped on the way.
    let why = match catch_unwind(AssertUnwindSafe(take)) {
        Ok(Ok(rows)) => return rows,
        Ok(Err(why)) => format!("{why:#}"),
        Err(panic) => said(panic.as_ref()),
    };
    println!("{id}: not taken: {why}");
    vec![Row::not_taken(id, why)]
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}

/// The nearest rank: a value that was measured.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_p99_are_measured_values() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let row = Row::measured("a", "ms", &samples);
        assert_eq!((row.median, row.p99, row.runs), (Some(50.0), Some(99.0), 100));
        assert_eq!(Row::measured("a", "ms", &[7.0]).median, Some(7.0));
        assert_eq!(Row::measured("a", "ms", &[]).median, None);
    }

    #[test]
    fn an_aim_is_met_by_a_median_within_it() {
        let row = || Row::measured("a", "ms", &[2.0]);
        assert_eq!(row().aim(2.0).met, Some(true));
        assert_eq!(row().aim(1.9).met, Some(false));
        assert_eq!(Row::measured("a", "ms", &[]).aim(1.0).met, None);
    }

    #[test]
    fn who_is_better_depends_on_the_figure() {
        let pause = Row::measured("a", "ms", &[2.0]);
        assert!(pause.loses_to(Some(1.0)) && !pause.loses_to(Some(3.0)) && !pause.loses_to(None));
        let rate = Row::rate("a", "/s", &[2.0]);
        assert!(rate.loses_to(Some(3.0)) && !rate.loses_to(Some(1.0)));
        assert!(!Row::measured("a", "ms", &[]).loses_to(Some(1.0)));
    }

    #[test]
    fn what_cannot_be_taken_says_why() {
        let rows = attempt("a", || anyhow::bail!("no such server"));
        assert_eq!(rows[0].why_not.as_deref(), Some("no such server"));
        let rows = attempt("a", || panic!("waited {} in vain", "10 s"));
        assert_eq!((rows[0].id.as_str(), rows[0].why_not.as_deref()), ("a", Some("waited 10 s in vain")));
    }

    #[test]
    fn a_row_reads_back_as_it_was_written() {
        let row = Row::rate("a", "/s", &[1.0, 2.0]).peer_here("redis", 3.0).trace(vec![[0.1, 5.0]]);
        let text = serde_json::to_string(&row).expect("a row is JSON");
        assert_eq!(serde_json::from_str::<Row>(&text).expect("JSON is a row"), row);
        let before = r#"{"id":"a","unit":"ms","median":1,"p99":1,"runs":1,"thesis":null,"peer":null,
            "peer_name":null,"aim":null,"met":null}"#;
        assert_eq!(serde_json::from_str::<Row>(before).expect("an old file").median, Some(1.0));
    }
}
