//! What a decision takes, from the suspicion to the right, beside a swap of the same register in the same run; and what a
//! planned move takes, beside a checkpoint. A sample's id is `decision.REGISTER.FIGURE` or `move.MODE.KEYS.FIGURE`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbiter::{Arbiter, ArbiterSpec, Member, Register, Swap};
use gate::Namespace;
use serde_json::{Value, json};
use testkit::process::Running;
use testkit::servers::Etcd;
use wire::TlsFiles;

use super::clients::{Load, Store};
use super::scene::{A, MEMBERS, Mode, etcd_place, member_address};
use super::street::{SOON, Street, checksync, service, start_on, wires};

const SWAPS: usize = 5;
const SYNCS: usize = 9;

/// Where samples go, a line each.
pub struct Samples(pub File);

impl Samples {
    fn add(&mut self, id: &str, milliseconds: f64) {
        writeln!(self.0, "{}", json!({ "id": id, "unit": "ms", "value": milliseconds })).unwrap();
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    File,
    Witness,
    Etcd(usize),
}

/// What keeps the register, and lives as long.
enum Keeper {
    File,
    Witness { _process: Running },
    Etcd { _members: Etcd },
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::File, Self::Witness, Self::Etcd(1), Self::Etcd(3)];

    fn name(self) -> String {
        match self {
            Self::File => "file".to_owned(),
            Self::Witness => "witness".to_owned(),
            Self::Etcd(members) => format!("etcd-{members}"),
        }
    }

    fn keep(self, street: &mut Street) -> Keeper {
        let place = |number: usize| {
            let place = Arc::new(Namespace::new().unwrap());
            wires::plug_in(&street.switch, &place, MEMBERS[number]).unwrap();
            place.within(|| wires::add_address("eth0", member_address(number))).unwrap();
            place
        };
        match self {
            Self::File => Keeper::File,
            Self::Witness => {
                let process = witness(street, &place(0));
                street.register = format!("witness:{}:7401", member_address(0));
                Keeper::Witness { _process: process }
            }
            Self::Etcd(count) => {
                let places: Vec<_> = (0..count).map(place).collect();
                let places = places.iter().enumerate().map(etcd_place).collect();
                let members = Etcd::start_on(places, street.dir.path());
                street.register = format!("etcd://{}/checksync", members.endpoints());
                Keeper::Etcd { _members: members }
            }
        }
    }
}

fn witness(street: &Street, place: &Namespace) -> Running {
    let pki = street.dir.path().join("pki");
    let made = checksync().args(["pki", "init"]).arg(&pki).arg("w").output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut command: Command = checksync();
    command.args(["witness", "--host", "w", "--listen"]).arg(format!("{}:7401", member_address(0)));
    command.arg("--pki").arg(pki).arg("--state").arg(street.dir.path().join("registers"));
    let mut running = start_on(place, command);
    running.line(SOON).expect("a witness says where it listens");
    running
}

/// The manager of whoever serves is killed, again and again. Its guard's word is the suspicion.
pub fn decide(kind: Kind, times: u64, samples: &mut Samples) {
    let mut street = Street::of(2);
    let _keeper = kind.keep(&mut street);
    (0..2).for_each(|host| street.start_daemon(host, &[1 - host]));
    street.start_primary(&[1], &service(), &[], &Store::Kv.command_line());
    let mut serving = A;
    for term in 2..2 + times {
        street.wait_until_protected(serving);
        let mut swaps = swaps(&street, 1 - serving, term);
        swaps.sort_by(f64::total_cmp);
        street.kill(serving);
        let (winner, takeover) = street.wait("a takeover", || street.takeover_in(term));
        let at = |name: &str| takeover[name].as_u64().unwrap() as f64 / 1e6;
        let decision = at("won_at_ns") - at("suspected_at_ns");
        let id = |figure: &str| format!("decision.{}.{figure}", kind.name());
        swaps.iter().for_each(|swap| samples.add(&id("swap"), *swap));
        samples.add(&id("to-right"), decision);
        samples.add(&id("above-swap"), decision - swaps[swaps.len() / 2]);
        street.start_daemon(serving, &[winner]);
        serving = winner;
    }
}

/// In milliseconds, by a client of its own on this host, whose connection is there.
fn swaps(street: &Street, host: usize, term: u64) -> Vec<f64> {
    let spec: ArbiterSpec = street.register.parse().unwrap();
    let names: Vec<&str> = street.names().collect();
    let tls = TlsFiles::load(&street.dir.path().join("pki"), Some(names[host])).unwrap();
    let app = format!("beside-{term}");
    let work = || {
        let mut register = spec.open(&tls).unwrap();
        let mut value = Register::first(Member::new(names[host], 1));
        swap(&mut *register, &app, None, &value);
        let times = (0..SWAPS).map(|_| {
            let next = value.with_members(Vec::new());
            let took = swap(&mut *register, &app, Some(&value), &next);
            value = next;
            took
        });
        Ok(times.collect())
    };
    street.hosts[host].namespace.within(work).unwrap()
}

fn swap(register: &mut dyn Arbiter, app: &str, expected: Option<&Register>, new: &Register) -> f64 {
    let asked = Instant::now();
    let answer = register.swap(app, expected, new.clone(), asked + SOON).unwrap();
    assert_eq!(answer, Swap::Won);
    asked.elapsed().as_secs_f64() * 1e3
}

/// The app goes there and back under clients, with so many pairs of 72 bytes.
pub fn move_about(mode: Mode, keys: u64, times: usize, samples: &mut Samples) {
    let mut street = Street::of(2);
    (0..2).for_each(|host| street.start_daemon(host, &[1 - host]));
    let mut program = Store::Kv.command_line();
    program.extend(
        ["--preload", &keys.to_string(), "--key-bytes", "8", "--value-bytes", "64"].map(str::to_owned),
    );
    street.start_primary(&[1], &service(), mode.options(), &program);
    street.wait_until_protected(A);
    street.wait_until_it_listens();
    let load =
        Load::start(&street.clients, street.dir.path(), Store::Kv, &["--clients", "2", "--keys", "12"]);
    for serving in [0, 1].into_iter().cycle().take(times) {
        street.wait_until_movable(serving);
        load.wait_for_answers();
        let mut epochs: Vec<f64> = (0..SYNCS).map(|_| sync(&street, serving)).collect();
        epochs.sort_by(f64::total_cmp);
        let (epoch, pause) = (epochs[SYNCS / 2], street.switch_over(serving).as_secs_f64() * 1e3);
        let id = |figure: &str| format!("move.{}.{keys}.{figure}", mode.name());
        samples.add(&id("epoch"), epoch);
        samples.add(&id("pause"), pause);
        samples.add(&id("above-epoch"), pause - epoch);
    }
    load.finish().assert_nothing_happened();
}

/// How long a checkpoint takes, frozen, sent and committed, for a program that asks for one.
fn sync(street: &Street, host: usize) -> f64 {
    let app =
        street.wait("the app", || street.served_app(host).filter(|app: &Value| app["app_pid"].is_u64()));
    let socket = format!("/proc/{}/root/run/checksync-app/socket", app["app_pid"]);
    let mut call = UnixStream::connect(socket).unwrap();
    call.set_read_timeout(Some(SOON)).unwrap();
    let asked = Instant::now();
    call.write_all(b"POST /v1/sync?patience=9s HTTP/1.1\r\nhost: checksync\r\n\r\n").unwrap();
    let mut answer = [0; 4096];
    let len = call.read(&mut answer).unwrap();
    let took: Duration = asked.elapsed();
    assert!(answer[..len].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..len]));
    took.as_secs_f64() * 1e3
}
