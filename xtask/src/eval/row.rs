//! One figure, with what it stands beside.

use serde::Serialize;

/// Lower is better, unless the unit is a rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured, with its size: `pause/1k keys`.
    pub id: String,
    pub unit: &'static str,
    /// None where nothing was measured.
    pub median: Option<f64>,
    pub p99: Option<f64>,
    /// How many measurements the median is of.
    pub runs: usize,
    /// What the thesis reports.
    pub thesis: Option<f64>,
    /// What the peer reached: in the same run, or on record.
    pub peer: Option<f64>,
    /// Who the peer is, and whether it ran beside us.
    pub peer_name: Option<&'static str>,
    pub aim: Option<f64>,
    /// Whether the median is within the aim; none without either.
    pub met: Option<bool>,
}

impl Row {
    /// A row of measurements; without any it only says what others reached.
    pub fn measured(id: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            id: id.into(),
            unit,
            median: quantile(&sorted, 0.5),
            p99: quantile(&sorted, 0.99),
            runs: sorted.len(),
            thesis: None,
            peer: None,
            peer_name: None,
            aim: None,
            met: None,
        }
    }

    /// A row of rates, where more is better: `p99` is what all but one of a hundred reached.
    pub fn rate(id: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        Self { p99: quantile(&sorted, 0.99), ..Self::measured(id, unit, samples) }
    }

    pub fn thesis(self, thesis: impl Into<Option<f64>>) -> Self {
        Self { thesis: thesis.into(), ..self }
    }

    pub fn peer(self, peer_name: &'static str, peer: impl Into<Option<f64>>) -> Self {
        let peer = peer.into();
        Self { peer_name: peer.map(|_| peer_name), peer, ..self }
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
}
