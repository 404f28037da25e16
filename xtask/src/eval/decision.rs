//! What a decision takes, from the suspicion to the right to serve, beside a swap of the same register by a client of its
//! own in the same run; and what a planned move takes, beside a checkpoint that a program asks for just before.
//!
//! The hosts, the managers and the registers are those of `crates/checksync/tests/faults`, whose test prints samples.

use super::samples::Samples;
use super::{Row, quick};

const TEST: &str = "as_many_decisions_as_are_asked_for";
const AIM_ABOVE_SWAP_MS: f64 = 3.0;
const AIM_ABOVE_EPOCH_MS: f64 = 10.0;

pub fn rows() -> anyhow::Result<Vec<Row>> {
    let (times, keys) = if quick() { ("3", "1000") } else { ("10", "1000,10000,100000,1000000") };
    let mut samples = Samples::default();
    samples.take("faults", TEST, |command, lines| {
        command.env("CHECKSYNC_DECISIONS", times).env("CHECKSYNC_DECISIONS_KEYS", keys);
        command.env("CHECKSYNC_DECISIONS_TO", lines);
    })?;
    let row = |id: &str, values: &[f64]| Row::measured(id, "ms", values).aim(aim(id));
    Ok(samples.iter().map(|(id, _, values)| row(id, values)).collect())
}

fn aim(id: &str) -> Option<f64> {
    match id.rsplit_once('.') {
        Some((_, "above-swap")) => Some(AIM_ABOVE_SWAP_MS),
        Some((_, "above-epoch")) => Some(AIM_ABOVE_EPOCH_MS),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_above_something_has_an_aim() {
        assert_eq!(aim("decision.etcd-3.above-swap"), Some(AIM_ABOVE_SWAP_MS));
        assert_eq!(aim("move.strong.1000.above-epoch"), Some(AIM_ABOVE_EPOCH_MS));
        assert_eq!(aim("decision.etcd-3.swap"), None);
    }
}
