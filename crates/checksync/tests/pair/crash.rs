//! `--on-crash`: what follows when the app dies by a signal, and what its manager says of it.

use std::net::SocketAddr;

use rustix::process::{Pid, Signal, kill_process};
use testkit::needs;
use testkit::servers::{Client, Server, own_address};
use testkit::wait::wait_for;

use crate::world::{Fencing, Log, Primary, SOON, World, counter, foreign_pki, shell, wait_for_two_epochs};

/// As a shell says that a program was killed.
const KILLED: Option<i32> = Some(128 + 9);
const FENCED: Option<i32> = Some(5);

struct Crash {
    world: World,
    address: SocketAddr,
    primary: Primary,
    log: Log,
    /// Of the app that was killed.
    pid: i32,
}

/// A protected counter at 3 under this policy, killed.
fn crash(policy: &[&str]) -> Crash {
    let world = World::new(Fencing::Register);
    let address = own_address();
    let (primary, log) = world.start_logged(world.run_command_with("pki", policy, &counter(address)));
    let mut client = Server::Python.wait_ready(address, SOON);
    for sequence in 1..=3 {
        client.advance(0, sequence).unwrap();
    }
    drop(client);
    world.wait_until_protected();
    wait_for_two_epochs(&world);
    let pid = app_pid(&world);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    Crash { world, address, primary, log, pid }
}

fn app_pid(world: &World) -> i32 {
    let report = world.wait_for_app("primary", "a process", |app| app["app_pid"].is_i64());
    i32::try_from(report["app_pid"].as_i64().unwrap()).unwrap()
}

fn goes_on_at_the_standby(policy: &[&str]) {
    let Crash { world, address, mut primary, log, .. } = crash(policy);
    let taken = world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    assert_eq!((taken["role"].as_str(), taken["term"].as_u64()), (Some("primary"), Some(2)));
    let mut client = Server::Python.wait_ready(address, SOON);
    assert_eq!(client.read(0).unwrap(), Some(3), "what was committed is there");
    drop(client);
    assert_eq!(primary.wait(SOON).code(), FENCED);
    assert!(log.text().contains("b serves the app now"), "{}", log.text());
    world.end();
}

#[test]
fn app_that_is_killed_goes_on_at_the_standby() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    goes_on_at_the_standby(&[]);
    goes_on_at_the_standby(&["--on-crash", "failover"]);
}

/// With nobody to take over, it has died, and its manager says of what.
#[test]
fn app_that_is_killed_alone_ends_with_its_signal() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    foreign_pki(&world);
    let address = own_address();
    let (mut primary, log) = world.start_logged(world.run_command("foreign", &counter(address)));
    drop(Server::Python.wait_ready(address, SOON));
    kill_process(Pid::from_raw(app_pid(&world)).unwrap(), Signal::KILL).unwrap();
    assert_eq!(primary.wait(SOON).code(), KILLED);
    assert!(log.text().contains("the app died: signal 9"), "{}", log.text());
    world.end();
}

#[test]
fn app_that_is_killed_is_started_afresh_on_its_host() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    let Crash { world, address, mut primary, log, pid } = crash(&["--on-crash", "restart"]);
    let mut afresh = pid;
    for _ in 0..2 {
        let before = afresh;
        let report = world.wait_for_app("primary", "another process, protected", |app| {
            app["state"] == "protected" && app["app_pid"].as_i64().is_some_and(|now| now != i64::from(before))
        });
        afresh = i32::try_from(report["app_pid"].as_i64().unwrap()).unwrap();
        assert_eq!(report["term"].as_u64(), Some(1), "{report}");
        let mut client = Server::Python.wait_ready(address, SOON);
        assert_eq!(client.read(0).unwrap(), Some(0), "it remembers nothing");
        client.advance(0, 1).unwrap();
        kill_process(Pid::from_raw(afresh).unwrap(), Signal::KILL).unwrap();
    }
    // What died last is followed by one that can be taken over, too.
    world.wait_for_app("primary", "a third process, protected", |app| {
        app["state"] == "protected" && app["app_pid"].as_i64() != Some(i64::from(afresh))
    });
    Server::Python.wait_ready(address, SOON).advance(0, 1).unwrap();
    wait_for_two_epochs(&world);
    assert!(primary.is_running() && log.text().contains("starting the app afresh"), "{}", log.text());
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    assert_eq!(Server::Python.wait_ready(address, SOON).read(0).unwrap(), Some(1));
    world.end();
}

/// And its manager ends when it is asked to, also while it waits for the next attempt.
#[test]
fn app_that_dies_at_once_is_not_started_in_a_hurry() {
    needs!("root", "pagemap-scan");
    let world = World::new(Fencing::None);
    let policy = ["--on-crash", "restart"];
    let (mut primary, log) = world.start_logged(world.run_command_with("pki", &policy, &shell("kill -9 $$")));
    let paused = || log.text().split_once("starting it afresh in 400ms").map(|(before, _)| before.to_owned());
    let before = wait_for("a pause", SOON, paused);
    assert_eq!(before.matches("signal 9").count(), 4, "{before}");
    primary.signal(Signal::TERM);
    const DIED_BY_SIGTERM: i32 = 128 + 15;
    assert_eq!(primary.wait(SOON).code(), Some(DIED_BY_SIGTERM));
    world.end();
}

#[test]
fn app_that_is_killed_stays_dead_and_nobody_takes_over() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    let Crash { world, address, mut primary, log, .. } = crash(&["--on-crash", "stop"]);
    assert_eq!(primary.wait(SOON).code(), KILLED);
    assert!(log.text().contains("the app died: signal 9"), "{}", log.text());
    let copy = world.wait_for_app("standby", "discarded", |app| app["state"] == "discarded");
    assert!(copy["why_not"].as_str().unwrap().contains("the app ended"), "{copy}");
    assert!(world.hook_has_run().is_none(), "the standby served");
    assert!(Client::connect(&Server::Python, address).is_err(), "somebody serves");
    world.end();
}
