//! What strong consistency costs, beside no protection, timeline consistency, a synced log, and the same store on
//! Raft: requests per second, latencies, and who used the processors. And what an epoch's time is made of.
//!
//! The servers, the managers and the clients of `crates/checksync/tests/strong`, all on this machine; its test
//! `as_many_figures_as_are_asked_for` takes the samples, and here they become rows, with aims and peers.
//!
//! *More figures*: a test that prints samples of the same form, a line in [`TESTS`], and its aims in [`aim`].

use anyhow::Result;

use super::samples::Samples;
use super::{Row, only, quick};

/// Tests that take samples.
const TESTS: [&str; 1] = ["as_many_figures_as_are_asked_for"];
/// What a quick run takes, of all: samples whose ids begin like these.
const QUICK: [&str; 9] = [
    "kv.native.1.",
    "kv.strong.1.",
    "kv.strong.64.",
    "kv.sync.1.",
    "kv.raft.1.",
    "kv.raft.64.",
    "redis.strong.1.",
    "redis.strong.64.",
    "redis.synced-log.64.",
];
const RUNS: usize = 5;
const SECONDS: u32 = 2;
const THESIS: &str = "the same server on etcd's Raft library, three nodes, synced log, in the same run";
const LOGGED: &str = "redis with appendfsync always, in the same run";

pub fn rows() -> Result<Vec<Row>> {
    let asked_for = if quick() && only().is_empty() { &QUICK[..] } else { &[only()] };
    let mut samples = Samples::default();
    for test in TESTS {
        for only in asked_for {
            samples.take("strong", test, |command, lines| {
                let (runs, seconds) = if quick() { (2, 1) } else { (RUNS, SECONDS) };
                command.env("CHECKSYNC_FIGURES_RUNS", runs.to_string());
                command.env("CHECKSYNC_FIGURES_SECONDS", seconds.to_string());
                command.env("CHECKSYNC_FIGURES_ONLY", only).env("CHECKSYNC_FIGURES_TO", lines);
            })?;
        }
    }
    Ok(rows_of(&samples))
}

fn rows_of(samples: &Samples) -> Vec<Row> {
    samples.iter().map(|(id, unit, values)| row(samples, id, unit, values)).collect()
}

fn row(samples: &Samples, id: &str, unit: &str, values: &[f64]) -> Row {
    let unit = known(unit);
    let row = match is_rate(unit) {
        true => Row::rate(format!("strong.{id}"), unit, values),
        false => Row::measured(format!("strong.{id}"), unit, values),
    };
    let row = match (aim(id), is_rate(unit)) {
        (Some(aim), true) => row.aim_at_least(aim),
        (aim, _) => row.aim(aim),
    };
    beside(samples, id, row)
}

/// The Go server at 64 clients is to be twice as fast as its port to Raft.
fn beside(samples: &Samples, id: &str, row: Row) -> Row {
    let median = |id: &str| Row::measured("", "", samples.of(id)?).median;
    if let Some(rest) = id.strip_prefix("kv.strong.").filter(|rest| rest.ends_with(".rate")) {
        let raft = median(&format!("kv.raft.{rest}"));
        let aim = raft.filter(|_| rest == "64.rate").map(|raft| 2.0 * raft);
        return row.peer_here(THESIS, raft).aim_at_least(aim.or_else(|| self::aim(id)));
    }
    match id.strip_prefix("redis.strong.").filter(|rest| rest.ends_with(".rate")) {
        Some(rest) => row.peer_here(LOGGED, median(&format!("redis.synced-log.{rest}"))),
        None => row,
    }
}

/// Units are few, and rows keep them for ever.
fn known(unit: &str) -> &'static str {
    ["/s", "us", "%", "Gb/s", "ms", "B"].into_iter().find(|known| *known == unit).unwrap_or("")
}

fn is_rate(unit: &str) -> bool {
    unit.ends_with("/s")
}

fn aim(id: &str) -> Option<f64> {
    match id {
        "kv.strong.1.rate" | "redis.strong.1.rate" => Some(1_500.0),
        "kv.strong.1.p50" | "redis.strong.1.p50" => Some(650.0),
        "kv.sync.1.rate" => Some(5_000.0),
        "redis.strong.64.rate" => Some(10_000.0),
        "redis.strong.64x16.rate" => Some(100_000.0),
        "bulk.gate.down.rate" | "bulk.gate.up.rate" => Some(3.0),
        "bulk.strong.down.rate" | "bulk.strong.up.rate" => Some(1.0),
        id if id.ends_with(".failed") => Some(0.0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Sample;
    use super::*;

    fn samples(of: &[(&str, &str, f64)]) -> Samples {
        let mut samples = Samples::default();
        for &(id, unit, value) in of {
            samples.add(Sample { id: id.to_owned(), unit: unit.to_owned(), value });
        }
        samples
    }

    #[test]
    fn the_go_server_is_measured_against_its_port_to_raft() {
        let samples = samples(&[
            ("kv.strong.64.rate", "/s", 7_000.0),
            ("kv.strong.64.rate", "/s", 9_000.0),
            ("kv.strong.64.rate", "/s", 8_000.0),
            ("kv.raft.64.rate", "/s", 3_000.0),
        ]);
        let rows = rows_of(&samples);
        assert_eq!((rows[0].median, rows[0].p99, rows[0].runs), (Some(8_000.0), Some(7_000.0), 3));
        assert_eq!((rows[0].peer, rows[0].aim, rows[0].met), (Some(3_000.0), Some(6_000.0), Some(true)));
    }

    #[test]
    fn more_requests_and_less_time_meet_an_aim() {
        let samples = samples(&[("redis.strong.1.rate", "/s", 1_499.0), ("redis.strong.1.p50", "us", 640.0)]);
        let met: Vec<_> = rows_of(&samples).iter().map(|row| row.met).collect();
        assert_eq!(met, [Some(false), Some(true)]);
    }
}
