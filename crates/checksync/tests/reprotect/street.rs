//! Hosts with a standby daemon each, where an app goes from one to the next.

#[path = "../hosts/mod.rs"]
#[allow(dead_code, reason = "a pair of hosts needs other things of them")]
mod hosts;

use std::ops::{Deref, DerefMut};

use rustix::process::Signal;
use serde_json::Value;

pub use hosts::{NAMES, SERVICE, SOON, start_on};
use hosts::{Street, service};

/// Hosts by number, from 0.
#[derive(Debug)]
pub struct Group(Street);

impl Group {
    /// `count` hosts that know each other, with a daemon each.
    pub fn of(count: usize) -> Self {
        let mut group = Self(Street::of(count));
        (0..count).for_each(|host| group.start_daemon(host));
        group
    }

    /// The app runs on host 0, protected by all others.
    pub fn protecting(count: usize, options: &[&str], program: &[String]) -> Self {
        let mut group = Self::of(count);
        let others = group.others(0);
        group.0.start_primary(&others, &service(), options, program);
        group.wait_until_protected(0);
        group
    }

    pub fn start_daemon(&mut self, host: usize) {
        let others = self.others(host);
        self.0.start_daemon(host, &others);
    }

    /// The next first.
    fn others(&self, host: usize) -> Vec<usize> {
        let count = self.hosts.len();
        (1..count).map(|step| (host + step) % count).collect()
    }

    /// The daemon of a host stands still, and what it serves falls silent in time.
    pub fn stop_daemon(&mut self, host: usize) {
        self.hosts[host].daemon.as_mut().expect("a daemon was started, and not killed").signal(Signal::STOP);
    }

    /// Kills the daemon of a host, and leaves the first primary alone.
    pub fn kill_daemon(&mut self, host: usize) {
        let mut daemon = self.hosts[host].daemon.take().expect("a daemon was started, and not killed");
        daemon.signal(Signal::KILL);
        daemon.wait(SOON);
    }

    /// The host that serves in `term`, and what it says of its takeover.
    #[track_caller]
    pub fn takeover(&self, term: u64) -> (usize, Value) {
        self.wait(&format!("a takeover in term {term}"), || self.takeover_in(term))
    }
}

impl Deref for Group {
    type Target = Street;

    fn deref(&self) -> &Street {
        &self.0
    }
}

impl DerefMut for Group {
    fn deref_mut(&mut self) -> &mut Street {
        &mut self.0
    }
}
