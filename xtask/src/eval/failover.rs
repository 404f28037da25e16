//! From the death of a host, or of the app alone, to the first answer of the copy (thesis, table 5.7).
//!
//! The real programs in two network namespaces, with a register and the default heartbeat: 20 ms, five missed. A
//! host dies when its cable is pulled; what ran on it is killed thereafter. The client that measures asks on host b,
//! each millisecond on a connection of its own: how clients find a new address is not in these figures.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::hosts::{ADDRESS, Hosts};
use super::managers::{self, Takeover};
use super::pause::ms;
use super::published::{self, SIZES, Size};
use super::side::wall_ns;
use super::{Row, kv, only, quick};

/// How many keys there are in a quick run.
const QUICK: [u64; 2] = [1_000, 1_000_000];
/// Beyond, the keys take longer to put in than all the rest.
const MANY_RUNS_UP_TO: u64 = 1_000_000;

/// What dies.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Death {
    Host,
    App,
}

/// One takeover: when the death was, and when the first answer came.
#[derive(Debug)]
struct Run {
    died_at_ns: u64,
    total: Duration,
    takeover: Takeover,
}

pub fn rows() -> Result<Vec<Row>> {
    managers::build()?;
    let mut rows = Vec::new();
    for size in SIZES.iter().filter(|size| !quick() || QUICK.contains(&size.keys)) {
        for death in [Death::Host, Death::App] {
            if row_name(size, death).starts_with(only()) {
                rows.extend(rows_of(size, death).with_context(|| format!("{}, {death:?}", size.name()))?);
            }
        }
    }
    ensure!(!rows.is_empty(), "no row begins with {:?}; they are failover-dead-host-1k and so on", only());
    Ok(rows)
}

fn row_name(size: &Size, death: Death) -> String {
    let name = match death {
        Death::Host => "failover-dead-host",
        Death::App => "failover-killed-app",
    };
    format!("{name}-{}", size.short_name())
}

fn rows_of(size: &Size, death: Death) -> Result<Vec<Row>> {
    let count = if quick() || size.keys > MANY_RUNS_UP_TO { 3 } else { 10 };
    let mut runs = Vec::new();
    for number in 1..=count {
        let run = measure(size.keys, death)?;
        println!("{}, {death:?}, {number} of {count}: {:.1} ms", size.name(), ms(run.total));
        runs.push(run);
    }
    Ok(rows_about(size, death, &runs))
}

fn rows_about(size: &Size, death: Death, runs: &[Run]) -> Vec<Row> {
    let name = row_name(size, death);
    let row = |part: &str, of: fn(&Run) -> f64| {
        let samples: Vec<f64> = runs.iter().map(of).collect();
        Row::measured(format!("{name}{part}"), "ms", &samples)
    };
    let total = row("", |run| ms(run.total));
    let total = match death {
        Death::Host => size.beside_failover(total),
        Death::App => published::beside_killed_app(total),
    };
    vec![
        total,
        row(".detect", |run| between(run.died_at_ns, run.takeover.suspected_at_ns)),
        row(".win", |run| between(run.takeover.suspected_at_ns, run.takeover.won_at_ns)),
        row(".restore", |run| between(run.takeover.won_at_ns, run.takeover.serving_at_ns)),
        row(".restore-engine", |run| run.takeover.restore_us as f64 / 1e3),
        row(".first-answer", |run| ms(run.total) - between(run.died_at_ns, run.takeover.serving_at_ns)),
    ]
}

fn between(from_ns: u64, to_ns: u64) -> f64 {
    (to_ns as f64 - from_ns as f64) / 1e6
}

fn measure(keys: u64, death: Death) -> Result<Run> {
    let mut hosts = Hosts::start(keys)?;
    let (died_at_ns, died) = (wall_ns(), Instant::now());
    match death {
        Death::Host => hosts.kill_host_a()?,
        Death::App => hosts.kill_app()?,
    }
    // A thread of its own: it moves to host b, and would not come back.
    let answered = thread::scope(|scope| scope.spawn(|| first_answer(&hosts)).join());
    let answered = answered.expect("a client does not panic").with_context(|| hosts.logs())?;
    Ok(Run { died_at_ns, total: answered - died, takeover: hosts.takeover()? })
}

fn first_answer(hosts: &Hosts) -> Result<Instant> {
    const POLL: Duration = Duration::from_millis(1);
    /// A packet that was dropped is not waited for: the next request is another connection.
    const ANSWER_PATIENCE: Duration = Duration::from_millis(5);
    const PATIENCE: Duration = Duration::from_secs(20);
    hosts.enter_b()?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if kv::answers(SocketAddr::from(ADDRESS), ANSWER_PATIENCE) {
            return Ok(Instant::now());
        }
        thread::sleep(POLL);
    }
    bail!("nobody answered for {PATIENCE:?}")
}
