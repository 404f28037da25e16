//! Two hosts with a manager each, and a host of clients, at one switch; the app has an address of its own, which moves
//! with it. Dropping a [`Street`] ends all that it started.
//!
//! ```text
//!   a: br0 10.96.0.1 ── eth0 ══╗
//!   b: br0 10.96.0.2 ── eth0 ═══ clients: br0 10.96.0.3
//! ```

use std::process::Stdio;

use anyhow::{Context, Result};
use rustix::process::{Signal, kill_process};

use super::managers::{Managers, Takeover};
use super::namespace::{Namespace, Owned, Plug};

/// Where the app's clients find it, whichever host it runs on.
pub const SERVICE: &str = "10.96.0.9:7000";
const SERVICE_ADDRESS: &str = "10.96.0.9/24";
const STANDBY: &str = "10.96.0.2:7999";
const STRONG: &[&str] = &["--consistency", "strong"];

/// How the app is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Timeline,
    Strong,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeline => "timeline",
            Self::Strong => "strong",
        }
    }

    pub fn options(self) -> &'static [&'static str] {
        match self {
            Self::Timeline => &[],
            Self::Strong => STRONG,
        }
    }
}

/// The hosts. N.B. fields are dropped in their order.
#[derive(Debug)]
pub struct Street {
    plug: Plug,
    pub a: Namespace,
    b: Namespace,
    pub clients: Namespace,
}

/// A program on host a that is protected.
#[derive(Debug)]
pub struct Protected {
    pub managers: Managers,
    pub street: Street,
}

impl Street {
    pub fn build() -> Result<Self> {
        let (a, b, clients) = (Namespace::hold()?, Namespace::hold()?, Namespace::hold()?);
        clients.ip("link add br0 type bridge")?;
        for (host, name, address) in [(&a, "a", "10.96.0.1/24"), (&b, "b", "10.96.0.2/24")] {
            clients.ip(&format!("link add to-{name} type veth peer name eth0 netns {}", host.pid()))?;
            clients.ip(&format!("link set dev to-{name} master br0 up"))?;
            host.ip("link add br0 type bridge")?;
            host.ip("link set dev eth0 master br0 up")?;
            raise(host, address)?;
        }
        raise(&clients, "10.96.0.3/24")?;
        Ok(Self { plug: Plug::new(&a, "eth0")?, a, b, clients })
    }

    /// A program on host a, at the service's address, that nobody protects.
    pub fn unprotected(&self, program: &[String]) -> Result<Owned> {
        self.a.ip(&format!("address replace {SERVICE_ADDRESS} dev br0"))?;
        let mut command = self.a.command(&program[0]);
        command.args(&program[1..]).stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(Owned(command.spawn().with_context(|| format!("cannot start {}", program[0]))?))
    }
}

impl Protected {
    pub fn start(mode: Mode, options: &[&str], program: &[String]) -> Result<Self> {
        let address = ["--address", SERVICE_ADDRESS, "--link", "br0"];
        Self::start_with(&[&address, mode.options(), options].concat(), program)
    }

    /// The same without an address of its own, in timeline mode: it has its host's.
    pub fn start_at_its_host(options: &[&str], program: &[String]) -> Result<Self> {
        Self::start_with(options, program)
    }

    fn start_with(words: &[&str], program: &[String]) -> Result<Self> {
        let street = Street::build()?;
        let managers = Managers::start([&street.a, &street.b], STANDBY, words, program)?;
        managers.wait_until_protected()?;
        Ok(Self { managers, street })
    }

    /// The power of host a fails: nobody hears it any more, and then nothing runs there.
    pub fn kill_host_a(&mut self) -> Result<()> {
        let pids = self.managers.family_of_a()?;
        self.street.plug.pull()?;
        for pid in pids {
            // With its parent, another may have gone already.
            let _ = kill_process(pid, Signal::KILL);
        }
        Ok(())
    }

    pub fn takeover(&self) -> Result<Takeover> {
        self.managers.takeover()
    }
}

/// Its bridge, with an address.
fn raise(host: &Namespace, address: &str) -> Result<()> {
    host.ip(&format!("address add {address} dev br0"))?;
    host.ip("link set br0 up")
}
