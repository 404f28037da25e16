//! The hosts, a register of three, clients at work, and everybody who watches.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate::Namespace;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use testkit::servers::{Etcd, EtcdPlace};

use super::caller::Caller;
use super::clients::{Load, Seen, Store, forgiven, judge};
use super::disks::Disk;
use super::ears::{Ears, Heard};
use super::fault::Victim;
use super::street::links::Links;
use super::street::{SERVICE, Street, service, wires};

pub const A: usize = 0;
pub const B: usize = 1;
pub const MEMBERS: [&str; 3] = ["e0", "e1", "e2"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Strong,
    Timeline,
}

impl Mode {
    pub const ALL: [Self; 2] = [Self::Strong, Self::Timeline];

    pub fn name(self) -> &'static str {
        match self {
            Self::Strong => "strong",
            Self::Timeline => "timeline",
        }
    }

    pub fn options(self) -> &'static [&'static str] {
        match self {
            Self::Strong => &["--consistency", "strong"],
            Self::Timeline => &[],
        }
    }

    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Strong => &["--clients", "4", "--keys", "12"],
            Self::Timeline => &["--clients", "4", "--keys", "12", "--reconnect"],
        }
    }
}

/// A fault and what it did.
#[derive(Debug)]
pub struct Told {
    pub mode: Mode,
    pub seen: Seen,
    pub heard: Heard,
    /// How long a caller with a new connection was not answered.
    pub unavailable: Duration,
    /// From the end of the fault to the first answer thereafter, on a connection of long before.
    pub answered_again: Duration,
    /// From the end of the fault to the next time that the app is protected.
    pub protected_again: Duration,
    pub takeovers: Vec<Value>,
    forgiven: Option<Value>,
}

/// Dropped from the top: disks go before what is on them.
pub struct Scene {
    pub mode: Mode,
    pub disks: Vec<Disk>,
    pub street: Street,
    pub etcd: Etcd,
    pub links: Links,
    pub app: Pid,
    pub guard: Pid,
    load: Load,
    caller: Caller,
    ears: Ears,
}

impl Scene {
    /// `count` hosts with a daemon each, the app on the first, protected by the second.
    pub fn set(mode: Mode, count: usize, small_disks: bool) -> Self {
        let mut street = Street::of(count);
        let places = MEMBERS.map(|_| Arc::new(Namespace::new().unwrap()));
        for (number, (place, name)) in places.iter().zip(MEMBERS).enumerate() {
            wires::plug_in(&street.switch, place, name).unwrap();
            place.within(|| wires::add_address("eth0", member_address(number))).unwrap();
        }
        let disks = if small_disks { Disk::all_of(&street) } else { Vec::new() };
        let ports: Vec<String> =
            street.names().chain(["clients"]).chain(MEMBERS).map(str::to_owned).collect();
        let links = Links::between(&street.switch, &ports).unwrap();
        let directory = street.dir.path().join("etcd");
        fs::create_dir_all(&directory).unwrap();
        let etcd = Etcd::start_on(places.iter().enumerate().map(etcd_place).collect(), &directory);
        street.register = format!("etcd://{}/checksync", etcd.endpoints());
        let ears = Ears::open(&street.switch, SERVICE).unwrap();
        (0..count).for_each(|host| start_daemon(&mut street, host));
        let others: Vec<usize> = (1..count).collect();
        street.start_primary(&others, &service(), mode.options(), &Store::Kv.command_line());
        let app = street.wait_until_protected(A);
        let app = Pid::from_raw(i32::try_from(app["app_pid"].as_i64().unwrap()).unwrap()).unwrap();
        let load = Load::start(&street.clients, street.dir.path(), Store::Kv, mode.words());
        let caller = Caller::start(&street.clients, SERVICE);
        load.wait_for_answers();
        street.wait_until_protected(A);
        let guard = parent(app);
        Self { mode, disks, street, etcd, links, app, guard, load, caller, ears }
    }

    pub fn start_daemon(&mut self, host: usize) {
        start_daemon(&mut self.street, host);
    }

    pub fn signal_members(&self, whom: Victim, signal: Signal) {
        let members = match whom {
            Victim::Member(number) => number..number + 1,
            _ => 0..MEMBERS.len(),
        };
        for number in members {
            if signal == Signal::STOP { self.etcd.pause(number) } else { self.etcd.resume(number) }
        }
    }

    /// Whoever serves; nobody for a while after a fault.
    pub fn serving(&self) -> Option<(usize, Value)> {
        (0..self.street.hosts.len()).find_map(|host| Some((host, self.street.served_app(host)?)))
    }

    /// What is left to happen once the fault is over, and the verdict.
    pub fn end(self, struck_at: Instant, over_at: Instant) -> Told {
        self.load.wait_for_answers();
        let answered_again = over_at.elapsed();
        let protected = || self.serving().filter(|(_, app)| app["state"] == "protected");
        self.street.wait("protection after the fault", protected);
        let protected_again = over_at.elapsed();
        // The winner's own answers, and not what was under way.
        self.load.wait_for_answers();
        let takeovers: Vec<Value> =
            (0..self.street.hosts.len()).flat_map(|host| self.street.reported(host, "takeovers")).collect();
        let unavailable = self.caller.longest_silence(struck_at);
        let seen = self.load.finish();
        let heard = self.ears.close();
        let forgiven = (self.mode == Mode::Timeline && !takeovers.is_empty()).then(|| {
            let mut history = seen.history.clone();
            for takeover in &takeovers {
                let at = |name: &str| takeover[name].as_u64().unwrap();
                history = forgiven(&history, at("frozen_at_ns")..=at("serving_at_ns"));
            }
            judge(&history)
        });
        Told {
            mode: self.mode,
            seen,
            heard,
            unavailable,
            answered_again,
            protected_again,
            takeovers,
            forgiven,
        }
    }
}

impl Told {
    /// What the mode does not allow to be lost, was.
    pub fn lost(&self) -> bool {
        match &self.forgiven {
            Some(forgiven) => {
                let frozen_at =
                    self.takeovers.iter().filter_map(|takeover| takeover["frozen_at_ns"].as_u64()).min();
                forgiven["linearizable"] != "yes"
                    || self.seen.first_lost_at_ns().is_some_and(|first| Some(first) < frozen_at)
            }
            None => self.seen.lost_writes() > 0 || !self.seen.is_linearizable(),
        }
    }

    pub fn broken(&self) -> u64 {
        self.seen.broken_connections()
    }

    /// What each mode promises of every fault.
    #[track_caller]
    pub fn assert_promises_kept(&self) {
        assert_eq!(self.heard.overlaps(), 0, "two were audible: {}\n{self:#?}", self.heard);
        assert!(!self.lost() && self.seen.mangled() == 0, "{self:#?}");
        if self.mode == Mode::Strong {
            assert_eq!(self.broken(), 0, "{self:#?}");
        }
    }
}

fn start_daemon(street: &mut Street, host: usize) {
    let count = street.hosts.len();
    let others: Vec<usize> = (1..count).map(|step| (host + step) % count).collect();
    street.start_daemon(host, &others);
}

pub fn member_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, 21 + u8::try_from(number).unwrap())
}

pub fn etcd_place((number, namespace): (usize, &Arc<Namespace>)) -> EtcdPlace {
    let own = Arc::clone(namespace);
    let enter = move |work: &mut (dyn FnMut() + Send)| {
        own.within(|| {
            work();
            Ok(())
        })
        .unwrap();
    };
    EtcdPlace { address: IpAddr::V4(member_address(number)), enter: Box::new(enter) }
}

/// The first process of a cell is the parent of its app.
fn parent(pid: Pid) -> Pid {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let parent = after_name.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    Pid::from_raw(parent).unwrap()
}
