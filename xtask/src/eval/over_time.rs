//! Requests per second over time: with checkpoints each 100 ms and without (thesis, figure 5-3), and through the death
//! of a host (figure 5-4).

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::programs::go_app;

use super::asked::{Asked, Asking};
use super::side::wall_ns;
use super::street::{Mode, Protected, SERVICE, Street};
use super::{Row, attempt, managers, quick};

const BUCKET_MS: &str = "20";
/// A connection that the dead host had is given up after this; in strong mode none is.
const TIMEOUT: &str = "2s";

pub fn rows() -> Result<Vec<Row>> {
    managers::build()?;
    let mut rows = attempt("over-time.unprotected", unprotected);
    for mode in [Mode::Timeline, Mode::Strong] {
        rows.extend(attempt(&format!("over-time.{}", mode.name()), || undisturbed(mode)));
    }
    for mode in [Mode::Timeline, Mode::Strong] {
        rows.extend(attempt(&format!("through-failover.{}", mode.name()), || through_failover(mode)));
    }
    Ok(rows)
}

fn seconds() -> f64 {
    if quick() { 3.0 } else { 6.0 }
}

fn server() -> Vec<String> {
    [&go_app("kv").display().to_string(), "serve", "--listen", SERVICE].map(str::to_owned).to_vec()
}

fn ask(street: &Street) -> Result<Asking> {
    // The server may not listen yet: its first client is patient.
    let words = ["--keys", "1000", "--value-bytes", "64", "--fill", "--timeline-ms", BUCKET_MS];
    Asking::start(
        &street.clients,
        SERVICE,
        "kv",
        seconds(),
        &[&words[..], &["--reconnect", "--timeout", TIMEOUT]].concat(),
    )
}

fn row(id: &str, asked: &Asked) -> Row {
    let trace = asked.over_time();
    let rates: Vec<f64> = trace.iter().map(|[_, rate]| *rate).collect();
    Row::rate(id, "/s", &rates).trace(trace)
}

fn unprotected() -> Result<Vec<Row>> {
    let street = Street::build()?;
    let mut server = street.unprotected(&server())?;
    super::namespace::line_of(&mut server, "ready")?;
    Ok(vec![row("over-time.unprotected", &ask(&street)?.report()?.unbroken()?)])
}

fn undisturbed(mode: Mode) -> Result<Vec<Row>> {
    let protected = Protected::start(mode, &["--interval", "100ms"], &server())?;
    let asked = ask(&protected.street)?.report()?.unbroken()?;
    Ok(vec![row(&format!("over-time.{}", mode.name()), &asked)])
}

fn through_failover(mode: Mode) -> Result<Vec<Row>> {
    let mut protected = Protected::start(mode, &[], &server())?;
    let asking = ask(&protected.street)?;
    thread::sleep(Duration::from_secs_f64(seconds() / 3.0));
    let died_at_ns = wall_ns();
    protected.kill_host_a()?;
    let asked = asking.report()?;
    let id = format!("through-failover.{}", mode.name());
    let died = (died_at_ns as f64 - asked.start_wall_ns as f64) / 1e9;
    ensure!(died > 0.0 && died < seconds(), "the host died when nobody asked");
    println!("{id}: nobody was answered for {:.0} ms", asked.gap_ms_max);
    Ok(vec![
        Row::measured(format!("{id}.gap"), "ms", &[asked.gap_ms_max]),
        row(&id, &asked),
        Row::measured(format!("{id}.died-at"), "s", &[died]),
    ])
}
