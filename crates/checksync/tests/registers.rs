//! The pair with each register that outlives a host: it goes away under the pair and comes back.

mod world;

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use testkit::needs;
use testkit::process::Running;
use testkit::servers::{Client, Etcd, Server, own_address};
use testkit::wait::{Deadline, wait_until};
use world::{Fencing, SOON, World, checksync, protected_counter, wait_for_two_epochs};

/// A register that a test takes away and brings back.
trait Outage {
    fn spec(&self) -> String;
    fn begin(&mut self);
    fn end(&mut self);
}

struct EtcdOutage(Etcd);

impl Outage for EtcdOutage {
    fn spec(&self) -> String {
        format!("etcd://{}/checksync", self.0.endpoints())
    }

    fn begin(&mut self) {
        self.0.kill(0);
    }

    fn end(&mut self) {
        self.0.restart(0);
    }
}

struct WitnessOutage {
    dir: tempfile::TempDir,
    address: SocketAddr,
    running: Option<Running>,
}

impl WitnessOutage {
    /// Of the cluster whose files are in `pki`, which the pair makes: so it begins away.
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), address: own_address(), running: None }
    }

    fn start(&mut self, pki: &std::path::Path) {
        let made = checksync(self.dir.path()).args(["pki", "init"]).arg(pki).arg("w").output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::os::unix::fs::symlink(pki, self.dir.path().join("pki")).unwrap();
        self.end();
    }

    fn command(&self) -> Command {
        let mut command = checksync(self.dir.path());
        command.args(["witness", "--listen", &self.address.to_string(), "--host", "w", "--pki"]);
        command.arg(self.dir.path().join("pki")).arg("--state").arg(self.dir.path().join("registers"));
        command
    }
}

impl Outage for WitnessOutage {
    fn spec(&self) -> String {
        format!("witness:{}", self.address)
    }

    fn begin(&mut self) {
        self.running = None;
    }

    fn end(&mut self) {
        let mut running = Running::start(self.command());
        running.line(SOON).expect("a witness says where it listens");
        self.running = Some(running);
    }
}

/// Runs on without its register, says so on both sides, and takes over with it once it is back.
fn runs_on_without_its_register(world: World, register: &mut dyn Outage) {
    let (address, mut primary, mut client) = protected_counter(&world);
    world.wait_for_app("standby", "following", |app| app["state"] == "following");
    register.begin();
    let says = |app: &Value, what: &str| app["why_not"].as_str().is_some_and(|why| why.contains(what));
    let alarm = world.wait_for_app("primary", "the alarm", |app| says(app, "cannot fail over"));
    assert_eq!(alarm["protected"], false, "{alarm}");
    world.wait_for_app("standby", "the alarm", |app| {
        app["state"] == "cut-off" && says(app, "cannot take over")
    });
    // Many times T1: the standby's answers alone keep the app audible.
    let until = Instant::now() + Duration::from_secs(1);
    let mut sequence = 3;
    while Instant::now() < until {
        sequence += 1;
        client.advance(0, sequence).unwrap();
    }
    register.end();
    world.wait_until_protected();
    world.wait_for_app("standby", "following", |app| app["state"] == "following");
    wait_for_two_epochs(&world);
    drop(client);
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    let taken = world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    assert_eq!(taken["term"].as_u64(), Some(2));
    let mut client = Server::Python.wait_ready(address, SOON);
    assert_eq!(client.read(0).unwrap(), Some(sequence));
    world.end();
}

/// With the standby gone as well, nothing is heard of the app until the register says that it is alone.
fn stays_shut_without_register_and_standby(mut world: World, register: &mut dyn Outage) {
    let (address, primary, client) = protected_counter(&world);
    drop(client);
    register.begin();
    world.standby.signal(Signal::KILL);
    world.standby.wait(SOON);
    let ask = || {
        let mut client = Client::connect(&Server::Python, address).ok()?;
        client.read(0).ok()
    };
    // An answer takes a millisecond; whoever is shut gives none, however often it is asked.
    let silent_since = Deadline::after(SOON)
        .poll(|| ask_within(address, Duration::from_millis(300)).is_none().then(Instant::now));
    assert!(silent_since.is_some(), "it is heard although somebody may have taken over");
    for _ in 0..5 {
        assert_eq!(ask_within(address, Duration::from_millis(200)), None, "it is heard again");
    }
    register.end();
    wait_until("an answer of the one who is alone", SOON, || ask() == Some(Some(3)));
    drop(primary);
}

/// What the counter says, if it says anything in this time.
fn ask_within(address: SocketAddr, limit: Duration) -> Option<Option<u64>> {
    let (told, answer) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let asked = Client::connect(&Server::Python, address).and_then(|mut client| client.read(0));
        // The test may have given up.
        let _ = told.send(asked.ok());
    });
    answer.recv_timeout(limit).ok().flatten()
}

fn with_etcd() -> (tempfile::TempDir, EtcdOutage) {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(1, dir.path());
    (dir, EtcdOutage(etcd))
}

fn with_witness() -> (World, WitnessOutage) {
    let mut witness = WitnessOutage::new();
    let world = World::new(Fencing::Arbiter(&witness.spec()));
    witness.start(&world.dir.path().join("pki"));
    (world, witness)
}

#[test]
fn a_pair_runs_on_while_etcd_is_away_and_takes_over_when_it_is_back() {
    needs!("root", "pagemap-scan", "debian:python3", "debian:etcd-server", CAP_BPF);
    let (_dir, mut etcd) = with_etcd();
    runs_on_without_its_register(World::new(Fencing::Arbiter(&etcd.spec())), &mut etcd);
}

#[test]
fn a_pair_runs_on_while_its_witness_is_away_and_takes_over_when_it_is_back() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    let (world, mut witness) = with_witness();
    runs_on_without_its_register(world, &mut witness);
}

#[test]
fn without_etcd_and_standby_a_primary_is_shut_until_etcd_says_that_it_is_alone() {
    needs!("root", "pagemap-scan", "debian:python3", "debian:etcd-server", CAP_BPF);
    let (_dir, mut etcd) = with_etcd();
    stays_shut_without_register_and_standby(World::new(Fencing::Arbiter(&etcd.spec())), &mut etcd);
}

#[test]
fn without_witness_and_standby_a_primary_is_shut_until_the_witness_says_that_it_is_alone() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    let (world, mut witness) = with_witness();
    stays_shut_without_register_and_standby(world, &mut witness);
}
