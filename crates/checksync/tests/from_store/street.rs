//! Two hosts without standbys, and a folder that both reach: the store.

#[path = "../hosts/mod.rs"]
#[allow(dead_code, reason = "a group of hosts needs other things of them")]
mod hosts;

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use testkit::process::Running;

pub use hosts::{SERVICE, SOON, start_on, wires};
use hosts::{Street, cgroups_of, checksync, service};

/// How long nothing may be heard: longer than a client's first two retransmissions.
pub const SILENCE: Duration = Duration::from_millis(700);
/// The exit code of a manager whose term is over.
pub const FENCED: i32 = 5;

#[derive(Debug)]
pub struct Keeping(Street);

impl Keeping {
    /// A program on host 0 that the store protects.
    pub fn with(options: &[&str], program: &[String]) -> Self {
        let mut hosts = Self(Street::of(2));
        let kept = hosts.options(options);
        let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
        hosts.0.start_primary(&[], &service(), &kept, program);
        hosts.wait_until_protected(0);
        hosts
    }

    /// One that host 1 protects, and that a store follows.
    pub fn following(options: &[&str], program: &[String]) -> Self {
        let mut hosts = Self(Street::of(2));
        hosts.0.start_daemon(1, &[0]);
        let store = format!("file:{}", hosts.folder().display());
        let kept = [&["--store", &store, "--store-interval", "100ms"], options].concat();
        hosts.0.start_primary(&[1], &service(), &kept, program);
        hosts.wait_until_protected(0);
        hosts
    }

    pub fn folder(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn options(&self, options: &[&str]) -> Vec<String> {
        let store = format!("file:{}", self.folder().display());
        let kept = ["--commit-on", "store", "--store", &store, "--store-interval", "300ms"];
        kept.iter().chain(options).map(|word| (*word).to_owned()).collect()
    }

    fn command_from_store(&self, host: usize, options: &[&str]) -> Command {
        let mut command = self.0.command(host, "run");
        command.args(["--app", "kv", "--link", "br0", "--address", &service(), "--from-store"]);
        command.args(self.options(options));
        command
    }

    /// Has the app go on at this host, which takes a while.
    pub fn go_on(&mut self, host: usize, options: &[&str]) {
        let command = self.command_from_store(host, options);
        let manager = start_on(&self.hosts[host].namespace, command);
        self.0.add_primary(host, manager);
    }

    /// What somebody is told who may not.
    pub fn refused(&self, host: usize, options: &[&str]) -> String {
        let mut command = self.command_from_store(host, options);
        let said = self.dir.path().join("refused");
        command.stderr(fs::File::create(&said).unwrap());
        let mut manager = start_on(&self.hosts[host].namespace, command);
        let end = manager.wait(SOON);
        let complaint = fs::read_to_string(said).unwrap();
        assert!(!end.success(), "{complaint}");
        complaint
    }

    pub fn manager(&mut self, host: usize) -> &mut Running {
        self.0.hosts[host].primary.as_mut().expect("it was started, and not killed")
    }

    /// Its power fails.
    pub fn kill_all(&mut self, host: usize) {
        for cgroup in cgroups_of(self.manager(host).pid()) {
            cgroup.kill_all().unwrap();
        }
        self.0.kill(host);
    }

    /// Terms and epochs that are in the store.
    pub fn checkpoints(&self) -> Vec<(u64, u64)> {
        let store = format!("file:{}", self.folder().display());
        let mut command = checksync();
        command.args(["checkpoints", "list", "--app", "kv", "-o", "json", "--store", &store]);
        let listed: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        let list = listed["checkpoints"].as_array().unwrap();
        list.iter().map(|one| (one["term"].as_u64().unwrap(), one["epoch"].as_u64().unwrap())).collect()
    }
}

impl Deref for Keeping {
    type Target = Street;

    fn deref(&self) -> &Street {
        &self.0
    }
}

impl DerefMut for Keeping {
    fn deref_mut(&mut self) -> &mut Street {
        &mut self.0
    }
}
