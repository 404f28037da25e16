//! Real faults: hosts that are network namespaces, a register of three members of etcd, and faults of links, processes
//! and disks, one at a time. Clients are at work throughout, judged over their whole history; whoever is heard under the
//! service's address is noted at the switch; and a caller says for how long nobody answered.
//!
//! What is not here: the wall clock is the whole machine's and cannot be stepped for a host; the boot clock, which
//! everything goes by, can be set by nobody. A gate dies with its manager, whose threads it is made of.

#[path = "../strong/asker.rs"]
#[allow(dead_code, reason = "only one of its clients is used here")]
mod asker;
mod caller;
#[path = "../strong/clients.rs"]
#[allow(dead_code, reason = "only one of its clients is used here")]
mod clients;
mod decisions;
mod disks;
mod ears;
mod fault;
mod scene;
#[path = "../hosts/mod.rs"]
#[allow(dead_code, reason = "other tests need other things of them")]
mod street;

use std::fs::File;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::needs;
use testkit::wait::Deadline;

use decisions::{Kind, Samples, decide, move_about};
use fault::Fault;
use scene::{Mode, Scene, Told};

fn play(fault: &Fault, mode: Mode, lasting: Duration) -> Told {
    let mut scene = Scene::set(mode, 2, fault.needs_small_disks());
    let struck_at = Instant::now();
    fault.strike(&mut scene);
    assert_eq!(Deadline::after(lasting).poll(|| None::<()>), None);
    fault.end(&mut scene);
    scene.end(struck_at, Instant::now())
}

fn row(fault: &Fault, mode: Mode, told: &Told) -> Value {
    let ms = |time: Duration| time.as_micros() as f64 / 1e3;
    json!({
        "fault": fault.name(),
        "mode": mode.name(),
        "failed": false,
        "unavailable_ms": ms(told.unavailable),
        "answered_again_ms": ms(told.answered_again),
        "protected_again_ms": ms(told.protected_again),
        "gap_ms": told.seen.report["gap_ms_max"],
        "takeovers": told.takeovers.len(),
        "voices": told.heard.voices(),
        "overlaps": told.heard.overlaps(),
        "lost": told.lost(),
        "lost_writes": told.seen.lost_writes(),
        "mangled": told.seen.mangled(),
        "broken_connections": told.broken(),
        "requests": told.seen.report["requests"],
    })
}

/// Everything that a mode promises, of each of these.
fn keeps_its_promises(mode: Mode, faults: &[&str]) {
    const LASTING: Duration = Duration::from_millis(900);
    for name in faults {
        println!("{} {name}", mode.name());
        play(&Fault::named(name), mode, LASTING).assert_promises_kept();
    }
}

#[test]
fn clients_notice_no_cut() {
    needs!("root", "pagemap-scan", "go", "debian:etcd-server", CAP_NET_ADMIN, CAP_BPF);
    keeps_its_promises(Mode::Strong, &["cut a-b", "cut a-b a-etcd", "cut b>a", "cut a-etcd b-etcd"]);
}

#[test]
fn clients_notice_nothing_of_whom_stands_still_or_dies() {
    needs!("root", "pagemap-scan", "go", "debian:etcd-server", CAP_NET_ADMIN, CAP_BPF);
    keeps_its_promises(
        Mode::Strong,
        &["pause app", "pause manager", "pause guard, kill manager", "kill host"],
    );
}

#[test]
fn clients_notice_nothing_of_the_registers_trouble() {
    needs!("root", "pagemap-scan", "go", "debian:etcd-server", CAP_NET_ADMIN, CAP_BPF);
    let faults = ["full disk etcd", "restart etcd", "pause etcd, kill manager"];
    keeps_its_promises(Mode::Strong, &faults);
}

#[test]
fn in_timeline_only_the_announced_window_is_lost_and_nobody_contradicts_the_winner() {
    needs!("root", "pagemap-scan", "go", "debian:etcd-server", CAP_NET_ADMIN, CAP_BPF);
    keeps_its_promises(Mode::Timeline, &["cut a-b a-etcd", "pause manager", "pause host"]);
}

/// `cargo xtask eval decision` asks for this one, and reads a line of JSON for each sample.
#[test]
#[ignore = "it takes minutes"]
fn as_many_decisions_as_are_asked_for() {
    needs!("root", "pagemap-scan", "go", "debian:etcd-server", CAP_NET_ADMIN, CAP_BPF);
    let asked = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let times: u64 = asked("CHECKSYNC_DECISIONS").parse().expect("a number");
    let lines = File::options().create(true).append(true).open(asked("CHECKSYNC_DECISIONS_TO")).unwrap();
    let mut samples = Samples(lines);
    Kind::ALL.into_iter().for_each(|kind| decide(kind, times, &mut samples));
    for keys in asked("CHECKSYNC_DECISIONS_KEYS").split(',').map(|keys| keys.parse().expect("a number")) {
        Mode::ALL.into_iter().for_each(|mode| move_about(mode, keys, times as usize, &mut samples));
    }
}

/// `cargo xtask eval faults` asks for this one, and reads a line of JSON for each. A fault that cost more than it may is
/// a line, too. Or it only says which there are.
#[test]
#[ignore = "it takes minutes"]
fn as_many_faults_as_are_asked_for() {
    if std::env::var_os("CHECKSYNC_FAULTS_LIST").is_some() {
        return Fault::all().iter().for_each(|fault| println!("fault: {}", fault.name()));
    }
    needs!("root", "pagemap-scan", "go", "debian:etcd-server", CAP_NET_ADMIN, CAP_BPF);
    let asked = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let lasting = Duration::from_millis(asked("CHECKSYNC_FAULT_MS").parse().expect("a number"));
    let mut lines = File::options().create(true).append(true).open(asked("CHECKSYNC_FAULTS_TO")).unwrap();
    // MODE FAULT, a semicolon between.
    for one in asked("CHECKSYNC_FAULTS").split(';') {
        let (mode, name) = one.split_once(' ').expect("a mode and a fault");
        let mode = Mode::ALL.into_iter().find(|known| known.name() == mode).expect("a known mode");
        let fault = Fault::named(name);
        let played = catch_unwind(AssertUnwindSafe(|| play(&fault, mode, lasting)));
        let line = match &played {
            Ok(told) => row(&fault, mode, told),
            Err(_) => json!({ "fault": name, "mode": mode.name(), "failed": true }),
        };
        if let Ok(told) = &played {
            println!("{line}\n{}", told.heard);
        }
        writeln!(lines, "{line}").unwrap();
    }
}
