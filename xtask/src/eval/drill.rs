//! What a drill costs the primary: throughput of a serial client in windows of three seconds, in turns without a drill,
//! with one, and without once more; and then with one drill after the other, as nobody would hold them.
//!
//! The two without say how much such windows differ by themselves, and the loss to a drill is to be no more than that.
//! The standby, and so the drill, has the same two cores here as the primary: on a host of its own it takes less. Idle
//! cores are kept awake, as for [`super::intervals`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use sys::idle::WakeLatency;
use testkit::programs::go_app;
use testkit::wait::Deadline;

use super::asked::{Asked, Asking};
use super::managers::{self, Drill};
use super::street::Protected;
use super::{Row, attempt, kv, quick};

const ON_ALL: &str = "0.0.0.0:7000";
const ON_HOST: &str = "127.0.0.1:7000";
const WINDOW_SECONDS: f64 = 3.0;
const WARM_UP_SECONDS: f64 = 0.5;
const ROUNDS: usize = 10;

/// Throughput in the windows of each round, in this order.
#[derive(Debug, Default)]
struct Windows {
    before: Vec<f64>,
    with: Vec<f64>,
    after: Vec<f64>,
    all_along: Vec<f64>,
}

pub fn rows() -> Result<Vec<Row>> {
    managers::build()?;
    let latency = WakeLatency::open().context("idle cores can't be kept awake")?;
    latency.keep_awake()?;
    let sizes: &[u64] = if quick() { &[1_000] } else { &[1_000, 100_000, 1_000_000] };
    let of = |&keys: &u64| {
        let id = format!("drill.{keys}");
        attempt(&id, || rows_of(keys, &id))
    };
    let rows = sizes.iter().flat_map(of).collect();
    latency.let_sleep()?;
    Ok(rows)
}

fn rows_of(keys: u64, id: &str) -> Result<Vec<Row>> {
    let mut program = vec![go_app("kv").display().to_string()];
    program.extend(kv::serve(ON_ALL, keys));
    let protected = Protected::start_at_its_host(&[], &program)?;
    let ready = Deadline::after(managers::PATIENCE).poll(|| ask(&protected, keys, WARM_UP_SECONDS).ok());
    ready.context("no server answers")?;
    let (mut windows, mut drills) = (Windows::default(), Vec::new());
    for round in 0..if quick() { 2 } else { ROUNDS } {
        windows.before.push(ask(&protected, keys, WINDOW_SECONDS)?);
        let (speed, held) = ask_beside_drills(&protected, keys, 1)?;
        ensure!(!held.is_empty(), "no drill of {keys} keys was held in {WINDOW_SECONDS} s");
        windows.with.push(speed);
        drills.extend(held);
        windows.after.push(ask(&protected, keys, WINDOW_SECONDS)?);
        let (speed, held) = ask_beside_drills(&protected, keys, usize::MAX)?;
        windows.all_along.push(speed);
        let (one, all) = (windows.lost(&windows.with)[round], windows.lost(&windows.all_along)[round]);
        println!("{id}, round {}: {one:.1} % lost to a drill, {all:.1} % to {}", round + 1, held.len());
    }
    let spans = |of: fn(&Drill) -> u64| drills.iter().map(|drill| of(drill) as f64 / 1e3).collect::<Vec<_>>();
    let noise = Row::measured(format!("{id}.noise"), "%", &windows.noise());
    Ok(vec![
        Row::measured(format!("{id}.lost"), "%", &windows.lost(&windows.with)).aim(noise.median),
        noise,
        Row::measured(format!("{id}.lost-all-along"), "%", &windows.lost(&windows.all_along)),
        Row::rate(format!("{id}.without"), "/s", &windows.before),
        Row::rate(format!("{id}.with"), "/s", &windows.with),
        Row::measured(format!("{id}.copy"), "ms", &spans(|drill| drill.copy_us)),
        Row::measured(format!("{id}.restore"), "ms", &spans(|drill| drill.restore_us)),
    ])
}

impl Windows {
    /// Percent of what the windows beside it have, in each round; a steady drift is on both sides of it.
    fn lost(&self, with: &[f64]) -> Vec<f64> {
        let without = self.before.iter().zip(&self.after).map(|(before, after)| (before + after) / 2.0);
        without.zip(with).map(|(without, with)| (1.0 - with / without) * 100.0).collect()
    }

    /// Percent by which two windows without a drill differ.
    fn noise(&self) -> Vec<f64> {
        let pairs = self.before.iter().zip(&self.after);
        pairs.map(|(before, after)| (1.0 - after / before).abs() * 100.0).collect()
    }
}

fn ask(protected: &Protected, keys: u64, seconds: f64) -> Result<f64> {
    let keys = keys.to_string();
    let words = ["--keys", &keys, "--value-bytes", "64", "--ratio", "90/10"];
    let asking = Asking::start(&protected.street.a, ON_HOST, "kv", seconds, &words)?;
    asking.report()?.unbroken().map(|asked: Asked| asked.requests_per_second)
}

/// Drills one after the other, as long as the client asks, but no more than `most`; those that passed.
fn ask_beside_drills(protected: &Protected, keys: u64, most: usize) -> Result<(f64, Vec<Drill>)> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let drilling = scope.spawn(|| -> Result<Vec<Drill>> {
            let mut held = Vec::new();
            while held.len() < most && !is_over.load(Ordering::Relaxed) {
                held.push(protected.managers.drill()?);
            }
            Ok(held)
        });
        let speed = ask(protected, keys, WINDOW_SECONDS);
        is_over.store(true, Ordering::Relaxed);
        let held = drilling.join().expect("a drill does not panic")?;
        Ok((speed?, held))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_drift_is_noise_and_no_loss() {
        let (before, after) = (vec![100.0, 80.0], vec![90.0, 80.0]);
        let drifting = Windows { before, after, ..Windows::default() };
        assert_eq!(drifting.lost(&[95.0, 60.0]), [0.0, 25.0]);
        assert!((drifting.noise()[0] - 10.0).abs() < 1e-9 && drifting.noise()[1] == 0.0);
    }
}
