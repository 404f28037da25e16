//! What a demo found out: figures for programs, a timeline for people.

use anyhow::{Context, bail};
use serde::Serialize;

use super::client::{Answered, Return};
use crate::status::{Pauses, TakeoverReport};

/// What was seen, each by who saw it.
#[derive(Debug)]
pub struct Seen<'a> {
    /// When host a died, nanoseconds since 1970.
    pub died_at_ns: u64,
    pub pauses: Pauses,
    pub takeover: &'a TakeoverReport,
    pub client: &'a Return,
}

/// One object on one line: the contract of `demo -o json`.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub schema: u32,
    /// Checkpoints that were committed until the host died.
    pub epochs: u64,
    pub pause_us: Pauses,
    pub failover_ms: Failover,
    /// From the last answer of host a to the first of host b.
    pub client_gap_ms: f64,
    /// Answered until the host died.
    pub acknowledged_writes: u64,
    pub lost_writes: u64,
    /// What may be lost: from the freeze of the checkpoint that was restored to the host's death.
    pub lost_window_ms: f64,
}

#[derive(Debug, Serialize)]
pub struct Failover {
    /// From the host's death until the standby had won the right to serve.
    pub detect: f64,
    /// From there until the app ran.
    pub restore: f64,
    pub total: f64,
}

impl Figures {
    /// Fails if a write is lost that the timeline promises.
    pub fn of(seen: &Seen<'_>) -> anyhow::Result<Self> {
        let Seen { died_at_ns, takeover, client, .. } = *seen;
        let lost = client.lost();
        if let Some((early, by_ns)) = too_early(lost, takeover.frozen_at_ns) {
            let number = client.held + early as u64 + 1;
            bail!("write {number} is lost, though it was answered {} ms before the freeze", millis(by_ns));
        }
        let since = |ns: u64| millis(ns.saturating_sub(died_at_ns));
        Ok(Self {
            schema: 1,
            epochs: takeover.epoch,
            pause_us: seen.pauses,
            failover_ms: Failover {
                detect: since(takeover.won_at_ns),
                restore: millis(takeover.serving_at_ns.saturating_sub(takeover.won_at_ns)),
                total: since(takeover.serving_at_ns),
            },
            client_gap_ms: millis(client.gap().as_nanos() as u64),
            acknowledged_writes: client.answered.len() as u64,
            lost_writes: lost.len() as u64,
            lost_window_ms: millis(died_at_ns.saturating_sub(takeover.frozen_at_ns)),
        })
    }

    pub fn line(&self) -> anyhow::Result<String> {
        serde_json::to_string(self).context("cannot write the figures")
    }
}

/// The first lost write that was answered before `frozen_at_ns`, and by how much.
fn too_early(lost: &[Answered], frozen_at_ns: u64) -> Option<(usize, u64)> {
    let early = |answered: &Answered| frozen_at_ns.checked_sub(answered.wall_ns).filter(|&by| by > 0);
    lost.iter().enumerate().find_map(|(n, answered)| early(answered).map(|by| (n, by)))
}

/// Milliseconds with the microseconds behind the point.
fn millis(ns: u64) -> f64 {
    (ns / 1000) as f64 / 1000.0
}

const BAR_CELLS: u64 = 44;

/// From the host's death to the client's first reply, to scale.
pub fn timeline(seen: &Seen<'_>) -> String {
    let takeover = seen.takeover;
    let steps = [
        (seen.died_at_ns, "host a is dead".to_owned()),
        (takeover.suspected_at_ns, "host b gives it up".to_owned()),
        (takeover.won_at_ns, format!("host b wins term {}", takeover.term)),
        (takeover.serving_at_ns, format!("the server runs again, from checkpoint {}", takeover.epoch)),
        (seen.client.first_reply_ns, "the client has its first reply".to_owned()),
    ];
    let since = |ns: u64| ns.saturating_sub(seen.died_at_ns);
    let span = steps.iter().map(|(at, _)| since(*at)).max().unwrap_or(0).max(1);
    let cell = |at: u64| (since(at) * BAR_CELLS / span) as usize;
    let mut text = String::new();
    let mut before = 0;
    for (at, what) in steps {
        let (from, to) = (before.min(cell(at)), cell(at));
        let bar = format!("{}{}", " ".repeat(from), "━".repeat(to - from));
        text +=
            &format!("  {:>8.1} ms  {bar:<width$}  {what}\n", millis(since(at)), width = BAR_CELLS as usize);
        before = to;
    }
    text
}

/// What became of the client's writes.
pub fn verdict(figures: &Figures, after: u64) -> String {
    let Figures { acknowledged_writes, lost_writes, lost_window_ms, .. } = figures;
    let lost = match lost_writes {
        0 => "none was lost".to_owned(),
        count => format!("{count} lost, all from the last {lost_window_ms:.1} ms"),
    };
    format!("{acknowledged_writes} writes answered before: {lost}, the rest as written; {after} more since\n")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const MS: u64 = 1_000_000;

    fn takeover() -> TakeoverReport {
        TakeoverReport {
            app: "demo".to_owned(),
            term: 2,
            epoch: 40,
            frozen_at_ns: 970 * MS,
            suspected_at_ns: 1100 * MS,
            won_at_ns: 1110 * MS,
            serving_at_ns: 1115 * MS,
            restore_us: 4000,
        }
    }

    /// One write every 10 ms, the last at 1000.
    fn client(held: u64) -> Return {
        let start = Instant::now();
        let at = |n: u64| Answered { at: start + Duration::from_millis(n), wall_ns: n * MS };
        let answered: Vec<_> = (1..=100).map(|n| at(n * 10)).collect();
        let first_reply = start + Duration::from_millis(1120);
        Return { answered, held, first_reply, first_reply_ns: 1120 * MS }
    }

    fn figures(held: u64) -> anyhow::Result<Figures> {
        let (takeover, client) = (takeover(), client(held));
        let pauses = Pauses { p50: 1, p99: 2, max: 3 };
        let seen = Seen { died_at_ns: 1000 * MS, pauses, takeover: &takeover, client: &client };
        assert_eq!(timeline(&seen).lines().count(), 5);
        Figures::of(&seen)
    }

    #[test]
    fn figures_are_those_of_the_contract() {
        let line = figures(97).unwrap().line().unwrap();
        assert_eq!(
            line,
            r#"{"schema":1,"epochs":40,"pause_us":{"p50":1,"p99":2,"max":3},"failover_ms":{"detect":110.0,"restore":5.0,"total":115.0},"client_gap_ms":120.0,"acknowledged_writes":100,"lost_writes":3,"lost_window_ms":30.0}"#
        );
    }

    #[test]
    fn write_that_the_checkpoint_must_hold_may_not_be_lost() {
        let why = figures(95).unwrap_err().to_string();
        assert!(why.starts_with("write 96 is lost"), "{why}");
    }
}
