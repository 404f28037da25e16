//! Two hosts with a manager each: one that runs the app, and its standby.

#[path = "../hosts/mod.rs"]
#[allow(dead_code, reason = "a group of hosts needs other things of them")]
mod hosts;

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::time::Duration;

use gate::Namespace;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use testkit::process::Running;

pub use hosts::wires::add_address;
pub use hosts::{SERVICE, SOON, start_on};
use hosts::{Street, cgroups_of, service, wires};

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    A,
    B,
}

/// Two hosts, their managers, and the clients' host.
#[derive(Debug)]
pub struct Pair(Street);

impl Pair {
    /// The hosts, without any manager yet.
    pub fn build() -> Self {
        Self(Street::of(2))
    }

    /// A standby, and a protected program.
    pub fn protecting(options: &[&str], program: &[String]) -> Self {
        Self::build().protect(options, program)
    }

    /// The same, on hosts that are there.
    pub fn protect(self, options: &[&str], program: &[String]) -> Self {
        let mut pair = self;
        pair.start_standby();
        pair.start_primary(options, program);
        pair.wait_until_protected();
        pair
    }

    pub fn start_standby(&mut self) {
        self.0.start_daemon(Side::B as usize, &[]);
    }

    pub fn start_primary(&mut self, options: &[&str], program: &[String]) {
        self.start_primary_at(&service(), options, program);
    }

    pub fn start_primary_at(&mut self, address: &str, options: &[&str], program: &[String]) {
        self.0.start_primary(&[Side::B as usize], address, options, program);
    }

    pub fn namespace(&self, side: Side) -> &Namespace {
        &self.hosts[side as usize].namespace
    }

    pub fn log(&self, side: Side) -> PathBuf {
        self.0.log(side as usize)
    }

    pub fn log_of(&self, side: Side) -> String {
        self.0.log_of(side as usize)
    }

    pub fn manager(&mut self, side: Side) -> &mut Running {
        match side {
            Side::A => self.0.first_primary(),
            Side::B => self.0.daemon(Side::B as usize),
        }
    }

    pub fn manager_pid(&self, side: Side) -> Option<u32> {
        let host = &self.hosts[side as usize];
        host.primary.as_ref().or(host.daemon.as_ref()).map(Running::pid)
    }

    pub fn signal(&mut self, side: Side, signal: Signal) {
        self.manager(side).signal(signal);
    }

    /// Kills a manager, and waits until it is gone.
    pub fn kill_manager(&mut self, side: Side) {
        self.signal(side, Signal::KILL);
        self.manager(side).wait(SOON);
    }

    /// The app's process on host a.
    pub fn app_pid(&self) -> Pid {
        let pid = self.app(Side::A).and_then(|app| app["app_pid"].as_i64()).expect("the app runs on a");
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }

    /// Waits until the app has taken these connections, so that a blow falls on streams that are under way.
    #[track_caller]
    pub fn wait_until_accepted(&self, connections: usize) {
        let fds = PathBuf::from(format!("/proc/{}/fd", self.app_pid().as_raw_nonzero()));
        let is_socket = |fd: &fs::DirEntry| {
            fs::read_link(fd.path()).is_ok_and(|what| what.to_string_lossy().starts_with("socket:"))
        };
        self.wait("accepted connections", || {
            let sockets = fs::read_dir(&fds).ok()?.flatten().filter(is_socket).count();
            // One listens.
            (sockets > connections).then_some(())
        });
    }

    /// The power of host a fails: nobody hears it any more, and then nothing runs there.
    pub fn power_off_a(&mut self) {
        self.cut(Side::A);
        // Stopped first: a manager that sees its app die, or a guard its manager, would say so.
        self.signal(Side::A, Signal::STOP);
        for cgroup in cgroups_of(self.manager(Side::A).pid()) {
            cgroup.kill_all().unwrap();
        }
        self.kill_manager(Side::A);
    }

    /// Pulls a host's cable.
    pub fn cut(&self, side: Side) {
        wires::pull(self.namespace(side));
    }

    pub fn heal(&self, side: Side) {
        wires::put_in(self.namespace(side));
    }

    /// Moves the app to b as an operator does; how long nobody was answered.
    pub fn switch_over(&self) -> Duration {
        self.0.switch_over(Side::A as usize)
    }

    pub fn app(&self, side: Side) -> Option<Value> {
        self.reported(side as usize, "apps").into_iter().next()
    }

    #[track_caller]
    pub fn wait_for_app(&self, side: Side, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait(what, || self.app(side).filter(&wanted))
    }

    #[track_caller]
    pub fn wait_until_protected(&self) {
        self.wait_for_app(Side::A, "a protected app", |app| app["state"] == "protected");
    }

    /// What the standby says of its takeover, once it serves.
    #[track_caller]
    pub fn takeover(&self) -> Value {
        self.wait("a takeover", || self.last_takeover())
    }

    pub fn last_takeover(&self) -> Option<Value> {
        self.reported(Side::B as usize, "takeovers").pop()
    }
}

impl Deref for Pair {
    type Target = Street;

    fn deref(&self) -> &Street {
        &self.0
    }
}

impl DerefMut for Pair {
    fn deref_mut(&mut self) -> &mut Street {
        &mut self.0
    }
}
