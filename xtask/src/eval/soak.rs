//! Half an hour of a protected server under load: what its managers take, and whether any of it grows.
//!
//! Both managers' memory, descriptors, threads and processors are read a hundred times, beside what the primary says of
//! its pauses and of the age of its last checkpoint. The drift of a gauge is the slope of a line through its readings,
//! the first fifth left out, in which caches fill.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testkit::programs::go_app;
use testkit::stat::name_and_seconds;

use super::asked::Asking;
use super::street::{Mode, Protected, SERVICE};
use super::{Row, attempt, managers, quick};

const READINGS: u32 = 100;
const HOSTS: [&str; 2] = ["a", "b"];

pub fn rows() -> Result<Vec<Row>> {
    managers::build()?;
    let of = |mode: Mode| attempt(&format!("soak.{}", mode.name()), || rows_of(mode));
    Ok([Mode::Timeline, Mode::Strong].into_iter().flat_map(of).collect())
}

fn length() -> Duration {
    Duration::from_secs(if quick() { 8 } else { 15 * 60 })
}

/// What is read, with its unit.
struct Gauge {
    name: String,
    unit: &'static str,
    readings: Vec<[f64; 2]>,
}

fn rows_of(mode: Mode) -> Result<Vec<Row>> {
    let server = [&go_app("kv").display().to_string(), "serve", "--listen", SERVICE].map(str::to_owned);
    let protected = Protected::start(mode, &[], &server)?;
    println!("{}: {} s of load", mode.name(), length().as_secs());
    // It ends a little later than the readings, so that all of them are under load.
    let seconds = length().as_secs_f64() + 5.0;
    let words =
        ["--keys", "10000", "--value-bytes", "64", "--fill", "--clients", "8", "--timeline-ms", "1000"];
    let asking = Asking::start(&protected.street.clients, SERVICE, "kv", seconds, &words)?;
    let mut gauges: Vec<Gauge> = Vec::new();
    let began = Instant::now();
    let mut before = processor_times(&protected)?;
    let mut read_at = began;
    for number in 1..=READINGS {
        thread::sleep((began + length() * number / READINGS).saturating_duration_since(Instant::now()));
        let at = began.elapsed().as_secs_f64();
        let now = processor_times(&protected)?;
        let passed = read_at.elapsed().as_secs_f64();
        for (place, host) in HOSTS.iter().enumerate() {
            let used = (now[place] - before[place]) / passed * 100.0;
            note(&mut gauges, &format!("{host}.processor"), "% of a core", [at, used]);
        }
        (before, read_at) = (now, Instant::now());
        for (name, unit, value) in readings(&protected)? {
            note(&mut gauges, &name, unit, [at, value]);
        }
    }
    let asked = asking.report()?.unbroken()?;
    let id = |name: &str| format!("soak.{}.{name}", mode.name());
    let rates = asked.over_time();
    let mut rows = vec![
        Row::rate(id("rate"), "/s", &rates.iter().map(|[_, rate]| *rate).collect::<Vec<_>>()).trace(rates),
    ];
    for Gauge { name, unit, readings } in gauges {
        let values: Vec<f64> = readings.iter().map(|[_, value]| *value).collect();
        let per_hour = drift(&readings).map(|slope| slope * 3600.0);
        rows.push(Row::measured(id(&name), unit, &values).trace(readings));
        rows.push(Row::measured(id(&format!("{name}.drift")), per_hour_of(unit), per_hour.as_slice()));
    }
    Ok(rows)
}

fn note(gauges: &mut Vec<Gauge>, name: &str, unit: &'static str, reading: [f64; 2]) {
    match gauges.iter_mut().find(|gauge| gauge.name == name) {
        Some(gauge) => gauge.readings.push(reading),
        None => gauges.push(Gauge { name: name.to_owned(), unit, readings: vec![reading] }),
    }
}

fn readings(protected: &Protected) -> Result<Vec<(String, &'static str, f64)>> {
    let mut all = Vec::new();
    for (host, pid) in HOSTS.iter().zip(protected.managers.pids()) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("a manager is gone")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace().next()?.parse::<f64>().ok()
        };
        let memory_kib = field("VmRSS:").context("no memory in a manager's status")?;
        let threads = field("Threads:").context("no threads in a manager's status")?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).context("a manager's descriptors")?.count();
        all.push((format!("{host}.memory"), "MiB", memory_kib / 1024.0));
        all.push((format!("{host}.threads"), "threads", threads));
        all.push((format!("{host}.descriptors"), "descriptors", descriptors as f64));
    }
    let app = protected.managers.app().context("the manager tells of no app")?;
    all.extend(app.lag_ms.map(|lag| ("lag".to_owned(), "ms", lag as f64)));
    all.extend(app.pause_us.map(|pause| ("pause-p50".to_owned(), "ms", pause.p50 as f64 / 1e3)));
    all.extend(app.pause_us.map(|pause| ("pause-p99".to_owned(), "ms", pause.p99 as f64 / 1e3)));
    Ok(all)
}

/// Seconds that each manager has run so far.
fn processor_times(protected: &Protected) -> Result<[f64; 2]> {
    let mut times = [0.0; 2];
    for (time, pid) in times.iter_mut().zip(protected.managers.pids()) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("a manager is gone")?;
        *time = name_and_seconds(&stat).context("no times in a manager's stat")?.1;
    }
    Ok(times)
}

/// By least squares, in units per second.
fn drift(readings: &[[f64; 2]]) -> Option<f64> {
    let counted = &readings[readings.len() / 5..];
    let count = counted.len() as f64;
    let mean = |of: usize| counted.iter().map(|point| point[of]).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(0), mean(1));
    let spread: f64 = counted.iter().map(|[x, _]| (x - mean_x).powi(2)).sum();
    let together: f64 = counted.iter().map(|[x, y]| (x - mean_x) * (y - mean_y)).sum();
    (spread > 0.0).then_some(together / spread)
}

fn per_hour_of(unit: &str) -> &'static str {
    match unit {
        "MiB" => "MiB/hour",
        "ms" => "ms/hour",
        "threads" => "threads/hour",
        "descriptors" => "descriptors/hour",
        _ => "%/hour",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_the_slope_without_the_beginning() {
        let steady: Vec<[f64; 2]> = (0..100).map(|n| [f64::from(n), 7.0]).collect();
        assert_eq!(drift(&steady), Some(0.0));
        let filling: Vec<[f64; 2]> =
            (0..100).map(|n| [f64::from(n), if n < 20 { 0.0 } else { 7.0 }]).collect();
        assert_eq!(drift(&filling), Some(0.0));
        let growing: Vec<[f64; 2]> = (0..100).map(|n| [f64::from(n), 2.0 * f64::from(n)]).collect();
        assert!((drift(&growing).expect("a slope") - 2.0).abs() < 1e-9);
        assert_eq!(drift(&[]), None);
    }
}
