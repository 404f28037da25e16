//! Throughput that protection costs the serial client (thesis, table 5.4).
//!
//! Pairs of runs, one with an epoch each 50 ms and one with the engine attached and idle, each with a server of
//! its own, in turns. The figure is the median of the pairs' ratios: these machines drift by more than it. The
//! standby's engine works on the same two cores, so this is no less than what a primary loses that has its own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};

use super::kv::{self, Load};
use super::pair::Pair;
use super::published::{self, SIZES, Size};
use super::{Row, quick};

/// How long each run warms up, and how long it counts.
const WARM_UP_SECONDS: f64 = 0.5;
const COUNTED_SECONDS: f64 = 3.0;

pub fn rows() -> Result<Vec<Row>> {
    let sizes = SIZES.iter().filter(|size| [1_000, 1_000_000].contains(&size.keys));
    Ok(sizes.map(rows_of).collect::<Result<Vec<_>>>()?.concat())
}

fn rows_of(size: &Size) -> Result<Vec<Row>> {
    let pairs = if quick() { 3 } else { 12 };
    let (mut bare, mut protected) = (Vec::new(), Vec::new());
    for number in 0..pairs {
        // Who goes first changes, so that a drift favours neither.
        let order = if number % 2 == 0 { [false, true] } else { [true, false] };
        for is_protected in order {
            let speed = throughput(size.keys, is_protected).with_context(|| size.name())?;
            if is_protected { protected.push(speed) } else { bare.push(speed) }
        }
        let lost = lost_percent(bare[number], protected[number]);
        let (without, with) = (bare[number], protected[number]);
        println!(
            "{}, pair {}: {without:.0}/s without, {with:.0}/s with, {lost:.1} % lost",
            size.name(),
            number + 1
        );
    }
    let lost: Vec<f64> = bare.iter().zip(&protected).map(|(&bare, &with)| lost_percent(bare, with)).collect();
    let id = |part: &str| format!("overhead-{}{part}", size.short_name());
    Ok(vec![
        published::beside_overhead(Row::measured(id(""), "%", &lost)),
        Row::rate(id(".without"), "/s", &bare),
        Row::rate(id(".with"), "/s", &protected),
    ])
}

fn lost_percent(bare: f64, protected: f64) -> f64 {
    (1.0 - protected / bare) * 100.0
}

fn throughput(keys: u64, is_protected: bool) -> Result<f64> {
    let (address, primary) = kv::start(keys)?;
    if !is_protected {
        return measured(address, keys);
    }
    let mut pair = Pair::new(primary)?;
    pair.full_sync()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let epochs = scope.spawn(|| pair.epochs(usize::MAX, &stop));
        let speed = measured(address, keys);
        stop.store(true, Ordering::Relaxed);
        epochs.join().expect("an epoch does not panic")?;
        speed
    })
}

fn measured(address: SocketAddr, keys: u64) -> Result<f64> {
    Load::start(address, keys, Some(WARM_UP_SECONDS))?.throughput()?;
    Load::start(address, keys, Some(COUNTED_SECONDS))?.throughput()
}
