//! Two hosts on this machine: a network namespace each, a cable between them, and in each a manager as a person
//! would start it, with the key/value server and a client. Dropping a [`Hosts`] ends all of it.

use std::process::Stdio;

use anyhow::{Context, Result};
use rustix::process::{Signal, kill_process};
use testkit::programs::go_app;

use super::kv;
use super::managers::{Managers, Takeover};
use super::namespace::{Namespace, Owned, Plug};

const ON_ALL: &str = "0.0.0.0:7000";
/// The app, as its clients on either host see it.
pub const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 7000);
const STANDBY: &str = "10.97.0.2:7999";

/// N.B. fields are dropped in their order: what runs in a namespace before who holds it.
#[derive(Debug)]
pub struct Hosts {
    _client: Owned,
    managers: Managers,
    plug: Plug,
    b: Namespace,
    _a: Namespace,
}

impl Hosts {
    /// An app with so many keys on host a, protected, with a client that has been at it for some epochs.
    pub fn start(keys: u64) -> Result<Self> {
        let (a, b) = (Namespace::hold()?, Namespace::hold()?);
        connect(&a, &b)?;
        let plug = Plug::new(&a, "to-b")?;
        let mut server = vec![go_app("kv").display().to_string()];
        server.extend(kv::serve(ON_ALL, keys));
        // Putting millions of pairs in, on both cores of a machine that is both hosts, is not what is measured here.
        a.ip("link set to-b down")?;
        let managers = Managers::start([&a, &b], STANDBY, &[], &server)?;
        managers.wait_for_line("a", |line| line == "ready")?;
        a.ip("link set to-b up")?;
        managers.wait_until_protected()?;
        let client = client(&a, keys)?;
        const EPOCHS: u64 = 10;
        let first = managers.app().and_then(|app| app.epoch).unwrap_or(0);
        let later = |managers: &Managers| managers.app()?.epoch.filter(|epoch| *epoch >= first + EPOCHS);
        managers.wait("epochs under load", later)?;
        Ok(Self { _client: client, managers, plug, b, _a: a })
    }

    /// Pulls the cable, and then kills all that runs on host a.
    pub fn kill_host_a(&mut self) -> Result<()> {
        let pids = self.managers.family_of_a()?;
        self.plug.pull()?;
        for pid in pids {
            // With its parent, another may have gone already.
            let _ = kill_process(pid, Signal::KILL);
        }
        Ok(())
    }

    pub fn kill_app(&self) -> Result<()> {
        self.managers.kill_app()
    }

    /// Moves this thread to host b, for good.
    pub fn enter_b(&self) -> Result<()> {
        self.b.enter()
    }

    pub fn takeover(&self) -> Result<Takeover> {
        self.managers.takeover()
    }

    pub fn logs(&self) -> String {
        self.managers.logs()
    }
}

fn connect(a: &Namespace, b: &Namespace) -> Result<()> {
    a.ip(&format!("link add to-b type veth peer name to-a netns {}", b.pid()))?;
    for (host, device, address) in [(a, "to-b", "10.97.0.1/24"), (b, "to-a", "10.97.0.2/24")] {
        host.ip(&format!("address add {address} dev {device}"))?;
        host.ip(&format!("link set {device} up"))?;
    }
    Ok(())
}

fn client(place: &Namespace, keys: u64) -> Result<Owned> {
    let address = format!("{}:{}", std::net::Ipv4Addr::from(ADDRESS.0), ADDRESS.1);
    let mut command = place.command(go_app("kv"));
    command.args(["load", "--clients", "1", "--read-percent", "90", "--addr", &address]);
    command.args(["--keys", &keys.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Owned(command.spawn().context("cannot start a client")?))
}
