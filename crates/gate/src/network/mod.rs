//! The network of a cell: a namespace with the service's address, connected to the host's bridge or device.
//!
//! ```text
//!   host                        │ cell
//!   bridge ── checksyncN ═══════╪══ eth0      a cable, if `link` is a bridge
//!   device ─────────────────────┼── eth0      a macvlan, if it is any other device
//! ```
//!
//! A new network is *shut both by default and in depth*: without an address, so that it neither claims nor
//! answers for one, and with a filter that drops all that leaves. [`raise`](CellNetwork::raise) is for whoever
//! holds the term; a [`TapGate`](crate::TapGate), or [`let_out`](CellNetwork::let_out) where nothing is held
//! back, opens the way out. What comes in is let in, unless [`shut_in`](CellNetwork::shut_in) says otherwise.
//!
//! N.B. Two things pass every filter here, and the gate: frames that a process of the cell with CAP_NET_RAW sends
//! by a packet socket with `PACKET_QDISC_BYPASS`, and the announcements of an address that was
//! [`raise`](CellNetwork::raise)d. The first has to be refused to the app, whose packet sockets can't be captured
//! either; whoever loses the term ends the second with [`lower`](CellNetwork::lower), beside discarding the gate.
//!
//! The namespace has no name. Dropping a [`CellNetwork`] removes the device at once, and the namespace goes
//! with the last process in it; a killed owner's goes with the processes alone.

mod herald;
mod programs;
mod sealed;
mod spec;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use sys::bpf::{LoadError, WordArray};

use crate::PermitHandle;
use crate::namespace::{self, Namespace};
use crate::netlink::devices::CellDevice;
use crate::netlink::{Direction, Link, Mac, Netlink};
use herald::Herald;

pub use sealed::sealed_network;
pub use spec::{NetworkSpec, ServiceAddress, SpecError};

/// What the app sees; the same number on every host, since programs remember it.
const DEVICE: &str = "eth0";
const DEVICE_INDEX: u32 = 2;
/// How much a dump of the cell's connections walks through.
const ESTABLISHED_ENTRIES: u32 = 4096;
/// Filters, in the order in which they are asked.
const RANK_GATE: u16 = 1;
const RANK_SHUT: u16 = 2;
const RANK_PERMIT: u16 = 3;
/// What RFC 5227 grants a host to defend its address, shortened to what a local network needs.
const PROBE_PATIENCE: Duration = Duration::from_millis(450);

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(
        "there is no network device {link:?} here; name a bridge, or the device that leads to the clients \
         (`ip link` lists them), with --link"
    )]
    NoLink { link: String },
    #[error(
        "device {link} belongs to a bridge or bond, which takes all that comes in; name that with --link"
    )]
    Enslaved { link: String },
    #[error("device {link} is down, so the cell would not be heard; switch it on (`ip link set {link} up`)")]
    LinkDown { link: String },
    #[error(
        "this process may not {what}: run as root (CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN and CAP_BPF), \
         or without --address"
    )]
    Forbidden {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "address {address} is in use already on {link}, by {by}; choose one that is free, or stop who has \
         it"
    )]
    InUse { address: IpAddr, link: String, by: Mac },
    #[error("gateway {gateway} is in none of the networks of {address}; name one that is with --gateway")]
    Gateway { gateway: IpAddr, address: ServiceAddress },
    #[error(
        "the kernel does not know how to {what}: load its modules (veth, macvlan, sch_ingress, cls_bpf), or \
         run without --address"
    )]
    Unsupported {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the kernel does not accept the program that shuts the cell's network; report this: {log}")]
    Program {
        log: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot {what}")]
    Kernel {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

impl From<io::Error> for NetworkError {
    fn from(source: io::Error) -> Self {
        to("enter the cell's network namespace")(source)
    }
}

/// On what ground an address is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Nobody has served here yet: whoever answers for the address now is somebody else.
    Fresh,
    /// The last owner has lost the term, and may still answer for the address.
    Takeover,
}

/// A namespace for one cell, and its connection to the world.
#[derive(Debug)]
pub struct CellNetwork {
    spec: NetworkSpec,
    namespace: Namespace,
    inside: Netlink,
    herald: Herald,
    doors: WordArray,
    device: Link,
    // The last field: whatever fails before, the device goes.
    _cable: Cable,
}

/// Removes the device, and with it the other end.
#[derive(Debug)]
struct Cable(Netlink);

impl Drop for Cable {
    fn drop(&mut self) {
        // It may have gone with its link.
        let _ = self.0.delete_link(DEVICE_INDEX);
    }
}

impl CellNetwork {
    /// Connects a new namespace to `spec.link` of this thread's, without the address yet. On failure nothing
    /// is left.
    pub fn create(spec: NetworkSpec, app: &str) -> Result<Self, NetworkError> {
        let outside = Netlink::open().map_err(to("speak with the kernel about devices"))?;
        let link = find_link(&outside, &spec.link)?;
        let doors = WordArray::create("checksync_doors", programs::DOORS)
            .map_err(to("make memory for packet filters"))?;
        doors[programs::IN].store(1, Ordering::SeqCst);
        let way_out = programs::way_out(&doors).map_err(program)?;
        let way_in = programs::way_in(&doors).map_err(program)?;
        let namespace =
            Namespace::with_small_tables(ESTABLISHED_ENTRIES).map_err(to("make a network namespace"))?;
        let cable = connect(&outside, &spec.link, &link, &namespace, app)?;
        let (device, herald) = namespace::within(namespace.as_fd(), || {
            let device = switch_on(&cable.0, &way_out, &way_in)?;
            let herald = Herald::start(device.index, spec.address.ip(), device.mac);
            Ok::<_, NetworkError>((device, herald.map_err(to("listen to the cell's link"))?))
        })?;
        let inside = namespace::within(namespace.as_fd(), Netlink::open)?;
        Ok(Self { spec, namespace, inside, herald, doors, device, _cable: cable })
    }

    pub fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    /// What the cell's processes have to be in. Give it to `setns`, from a thread that may stay inside.
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// The number of the cell's device, the same in every cell.
    pub fn device(&self) -> u32 {
        self.device.index
    }

    pub fn mac(&self) -> Mac {
        self.device.mac
    }

    /// Takes the address and tells the link. Only for whoever holds the term. A fresh claim asks the link
    /// first, which takes half a second; a takeover takes well under a millisecond. Repeating it announces
    /// again. On failure the cell does not have the address.
    pub fn raise(&self, claim: Claim) -> Result<(), NetworkError> {
        let address = self.spec.address;
        if claim == Claim::Fresh {
            self.ask_for_owner()?;
        }
        match self.inside.add_address(self.device(), address.ip(), address.prefix()) {
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => (),
            added => added.map_err(to("give the cell its address"))?,
        }
        let done = self.route().and_then(|()| self.herald.begin().map_err(to("announce the cell's address")));
        if done.is_err() {
            // The first failure is the one to tell.
            let _ = self.lower();
        }
        done
    }

    fn ask_for_owner(&self) -> Result<(), NetworkError> {
        self.herald.end();
        let owner = self.herald.ask_for_owner(PROBE_PATIENCE).map_err(to("ask who has the address"))?;
        match owner {
            Some(by) => {
                let (address, link) = (self.spec.address.ip(), self.spec.link.clone());
                Err(NetworkError::InUse { address, link, by })
            }
            None => Ok(()),
        }
    }

    fn route(&self) -> Result<(), NetworkError> {
        let Some(gateway) = self.spec.gateway else { return Ok(()) };
        self.inside.set_default_route(self.device(), gateway).map_err(|why| match why.raw_os_error() {
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL) => {
                NetworkError::Gateway { gateway, address: self.spec.address }
            }
            _ => to("set the cell's gateway")(why),
        })
    }

    /// Gives the address up: when this returns, the cell neither announces it nor answers for it. Its sockets
    /// keep it.
    pub fn lower(&self) -> Result<(), NetworkError> {
        self.herald.end();
        let address = self.spec.address;
        match self.inside.delete_address(self.device(), address.ip(), address.prefix()) {
            Err(why) if why.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            deleted => deleted.map_err(to("take the cell's address away")),
        }
    }

    /// Has the kernel drop the IP packets that come in, so that it answers none with a reset while the sockets
    /// are not there yet. Neighbours are resolved all the same, and a [`Recorder`](crate::Recorder) hears what
    /// is dropped.
    pub fn shut_in(&self) {
        self.set_door(programs::IN, false);
    }

    pub fn let_in(&self) {
        self.set_door(programs::IN, true);
    }

    /// Lets out whatever the cell says, at once: for a cell whose output nothing holds back.
    pub fn let_out(&self) {
        self.set_door(programs::OUT, true);
    }

    /// Drops whatever the cell says, as in the beginning.
    pub fn shut_out(&self) {
        self.set_door(programs::OUT, false);
    }

    fn set_door(&self, door: usize, open: bool) {
        self.doors[door].store(open.into(), Ordering::SeqCst);
    }

    /// From now on nothing leaves without this permit, whoever says it: the kernel, too, which answers for the
    /// address and resets what nobody listens to even when the app is gone. It holds without us, as the permit does.
    pub fn obey(&self, permit: &PermitHandle) -> Result<(), NetworkError> {
        let program = programs::while_permitted(permit.words()).map_err(program)?;
        let filter = (Direction::Out, program.as_fd());
        self.set_filter(RANK_PERMIT, filter, "checksync_until")
            .map_err(to("bind the cell's output to its permit"))?;
        self.herald.obey(permit);
        Ok(())
    }

    /// What leaves goes through another device of the namespace instead, and nowhere once that is gone.
    pub(crate) fn divert_to(&self, device: u32) -> Result<(), NetworkError> {
        let divert = programs::divert_to(device).map_err(program)?;
        let filter = (Direction::Out, divert.as_fd());
        self.set_filter(RANK_GATE, filter, "checksync_gate").map_err(to("lead the cell's output to the gate"))
    }

    pub(crate) fn inside(&self) -> &Netlink {
        &self.inside
    }

    fn set_filter(&self, rank: u16, filter: (Direction, BorrowedFd<'_>), name: &str) -> io::Result<()> {
        self.inside.set_filter(self.device(), filter.0, rank, filter.1, name)
    }
}

fn find_link(outside: &Netlink, name: &str) -> Result<Link, NetworkError> {
    let link = outside.link(name).map_err(|why| match why.raw_os_error() {
        // A name that no device can have is told apart from one that none has.
        Some(libc::ENODEV | libc::EINVAL | libc::ERANGE) => NetworkError::NoLink { link: name.to_owned() },
        _ => to("look for the link")(why),
    })?;
    if link.up { Ok(link) } else { Err(NetworkError::LinkDown { link: name.to_owned() }) }
}

fn connect(
    outside: &Netlink,
    name: &str,
    link: &Link,
    namespace: &Namespace,
    app: &str,
) -> Result<Cable, NetworkError> {
    let device =
        CellDevice { name: DEVICE, index: DEVICE_INDEX, mtu: link.mtu, namespace: namespace.as_fd() };
    let cable = Cable(namespace::within(namespace.as_fd(), Netlink::open)?);
    let made = if link.kind == "bridge" {
        outside.add_bridge_port(link.index, &format!("app {app}"), device)
    } else {
        outside.add_macvlan(link.index, device)
    };
    made.map_err(|why| match why.raw_os_error() {
        Some(libc::EBUSY) => NetworkError::Enslaved { link: name.to_owned() },
        _ => to("connect the cell to its link")(why),
    })?;
    Ok(cable)
}

/// Shuts the way out before anything can go there, then switches the device on.
fn switch_on(inside: &Netlink, way_out: &OwnedFd, way_in: &OwnedFd) -> Result<Link, NetworkError> {
    let filter = |direction, program: &OwnedFd, name| {
        let set = inside.set_filter(DEVICE_INDEX, direction, RANK_SHUT, program.as_fd(), name);
        set.map_err(to("filter the cell's packets"))
    };
    inside.allow_filters(DEVICE_INDEX).map_err(to("filter the cell's packets"))?;
    filter(Direction::Out, way_out, "checksync_shut")?;
    filter(Direction::In, way_in, "checksync_no_ip")?;
    inside.keep_quiet(DEVICE_INDEX).map_err(to("keep the cell's device quiet"))?;
    // A router's word gives the cell no addresses; where /proc/sys is read-only, `keep_quiet` has to do.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{DEVICE}/accept_ra"), "0");
    inside.set_up(DEVICE_INDEX).map_err(to("switch the cell's device on"))?;
    inside.link_at(DEVICE_INDEX).map_err(to("look at the cell's device"))
}

/// Whose fault a failed call is.
fn to(what: &'static str) -> impl Fn(io::Error) -> NetworkError {
    move |source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => NetworkError::Forbidden { what, source },
        Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EAFNOSUPPORT) => {
            NetworkError::Unsupported { what, source }
        }
        _ => NetworkError::Kernel { what, source },
    }
}

fn program(error: LoadError) -> NetworkError {
    let LoadError { source, log } = error;
    match to("load packet filters")(source) {
        NetworkError::Kernel { source, .. } => NetworkError::Program { log, source },
        other => other,
    }
}
