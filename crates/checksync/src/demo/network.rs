//! Network namespaces of the demo's own, and the cables between them.
//!
//! ```text
//!   host a  10.99.0.1 ──── 10.99.0.2  host b
//!      │ 10.99.1.2                      │ 10.99.2.2
//!      └────── 10.99.1.1 street 10.99.2.1 ──────┘
//! ```
//!
//! They go with the last descriptor and the last process in them, and the cables with them, whatever way the
//! demo ends.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;

use anyhow::Context;
use gate::Namespace;
use gate::netlink::Netlink;

const PREFIX: u8 = 24;
pub const A_FROM_B: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub const B_FROM_A: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
pub const A_FROM_STREET: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 2);
pub const B_FROM_STREET: Ipv4Addr = Ipv4Addr::new(10, 99, 2, 2);
const STREET_TO_A: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 1);
const STREET_TO_B: Ipv4Addr = Ipv4Addr::new(10, 99, 2, 1);

/// The processes that are inside a namespace.
pub fn processes(namespace: &Namespace) -> Vec<i32> {
    let inode = |path: String| fs::metadata(path).map(|link| link.ino()).ok();
    let wanted = inode(format!("/proc/self/fd/{}", namespace.as_fd().as_raw_fd()));
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| wanted.is_some() && inode(format!("/proc/{pid}/ns/net")) == wanted)
        .collect()
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
            for device in ["to-b", "street"] {
                netlink.set_down(netlink.link(device)?.index)?;
            }
            Ok(())
        })
    }
}

type End<'a> = (&'a Namespace, &'a str, Ipv4Addr);

fn cable(near: End<'_>, far: End<'_>) -> io::Result<()> {
    near.0.within(|| Netlink::open()?.add_veth(near.1, far.1, far.0.as_fd()))?;
    for (namespace, device, address) in [near, far] {
        namespace.within(|| {
            let netlink = Netlink::open()?;
            let index = netlink.link(device)?.index;
            netlink.add_address(index, address.into(), PREFIX)?;
            netlink.set_up(index)
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
        assert_eq!(processes(&namespace), [0; 0]);
        let mut child = namespace.within(|| std::process::Command::new("sleep").arg("60").spawn()).unwrap();
        assert_eq!(processes(&namespace), [child.id() as i32]);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
