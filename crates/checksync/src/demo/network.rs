//! Network namespaces of the demo's own, and the cables between them.
//!
//! ```text
//!   host a  10.99.0.1 ──── 10.99.0.2  host b
//!      │ 10.99.1.2                      │ 10.99.2.2
//!      └────── 10.99.1.1 street 10.99.2.1 ──────┘
//! ```
//!
//! The namespaces have no names and no files: they go with the last descriptor and the last process in them,
//! and the cables with them, whatever way the demo ends.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::thread;

use anyhow::Context;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::netlink::Netlink;

const PREFIX: u8 = 24;
pub const A_FROM_B: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub const B_FROM_A: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
pub const A_FROM_STREET: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 2);
pub const B_FROM_STREET: Ipv4Addr = Ipv4Addr::new(10, 99, 2, 2);
const STREET_TO_A: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 1);
const STREET_TO_B: Ipv4Addr = Ipv4Addr::new(10, 99, 2, 1);

/// A network namespace, held by a descriptor.
#[derive(Debug)]
pub struct Namespace {
    descriptor: OwnedFd,
    inode: u64,
}

impl Namespace {
    /// A new one, with nothing in it but its own loopback, which is up.
    pub fn new() -> io::Result<Self> {
        on_a_thread(|| {
            sys::netns::unshare_network()?;
            Netlink::open()?.set_up("lo")?;
            let file = File::open("/proc/thread-self/ns/net")?;
            let inode = file.metadata()?.ino();
            Ok(Self { descriptor: file.into(), inode })
        })
    }

    /// Does something inside. Sockets that are made and processes that are started there stay there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_a_thread(|| {
            self.enter()?;
            work()
        })
    }

    /// Moves this thread in, for good.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.descriptor.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// The processes that are inside.
    pub fn processes(&self) -> Vec<i32> {
        let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
        numbers
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link.ino() == self.inode)
            })
            .collect()
    }
}

/// A namespace is entered by a thread, and ours would not come back out.
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| scope.spawn(work).join().expect("the work of a namespace does not panic"))
}

/// Two hosts, and the street on which their clients live.
#[derive(Debug)]
pub struct Network {
    pub a: Namespace,
    pub b: Namespace,
    pub street: Namespace,
}

impl Network {
    pub fn new() -> anyhow::Result<Self> {
        let new = || Namespace::new().context("cannot make a network namespace");
        let network = Self { a: new()?, b: new()?, street: new()? };
        network.connect().context("cannot connect the network namespaces")?;
        Ok(network)
    }

    fn connect(&self) -> io::Result<()> {
        let Self { a, b, street } = self;
        cable((a, "to-b", A_FROM_B), (b, "to-a", B_FROM_A))?;
        cable((street, "to-a", STREET_TO_A), (a, "street", A_FROM_STREET))?;
        cable((street, "to-b", STREET_TO_B), (b, "street", B_FROM_STREET))
    }

    /// Pulls every cable out of host a.
    pub fn cut_a(&self) -> io::Result<()> {
        self.a.within(|| {
            let netlink = Netlink::open()?;
            netlink.set_down("to-b")?;
            netlink.set_down("street")
        })
    }
}

type End<'a> = (&'a Namespace, &'a str, Ipv4Addr);

fn cable(near: End<'_>, far: End<'_>) -> io::Result<()> {
    near.0.within(|| Netlink::open()?.add_veth(near.1, far.1, far.0.descriptor.as_fd()))?;
    for (namespace, device, address) in [near, far] {
        namespace.within(|| {
            let netlink = Netlink::open()?;
            netlink.add_address(device, address, PREFIX)?;
            netlink.set_up(device)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn talk(network: &Network, server: &Namespace, address: Ipv4Addr) -> io::Result<()> {
        let listener = server.within(|| TcpListener::bind((address, 0)))?;
        let port = listener.local_addr()?.port();
        let mut client =
            network.street.within(|| TcpStream::connect_timeout(&(address, port).into(), PATIENCE))?;
        let (mut served, _) = listener.accept()?;
        served.write_all(b"x")?;
        client.read_exact(&mut [0])
    }

    #[test]
    fn street_reaches_both_hosts_until_the_plug_of_one_is_pulled() {
        testkit::needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN);
        let network = Network::new().unwrap();
        talk(&network, &network.a, A_FROM_STREET).unwrap();
        talk(&network, &network.b, B_FROM_STREET).unwrap();
        network.cut_a().unwrap();
        let connected = network.street.within(|| {
            let limit = Duration::from_millis(200);
            TcpStream::connect_timeout(&(A_FROM_STREET, 1).into(), limit)
        });
        let why = connected.unwrap_err();
        assert_ne!(why.kind(), io::ErrorKind::ConnectionRefused, "something still answers");
        talk(&network, &network.b, B_FROM_STREET).unwrap();
    }

    #[test]
    fn processes_of_a_namespace_are_found() {
        testkit::needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN);
        let namespace = Namespace::new().unwrap();
        assert_eq!(namespace.processes(), [0; 0]);
        let mut child = namespace.within(|| std::process::Command::new("sleep").arg("60").spawn()).unwrap();
        assert_eq!(namespace.processes(), [child.id() as i32]);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
