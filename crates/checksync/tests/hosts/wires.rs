//! The wires between hosts that are network namespaces: one switch, and a device called eth0 on each.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;

use gate::Namespace;
use gate::netlink::Netlink;

pub const PREFIX: u8 = 24;

pub fn switch() -> io::Result<Namespace> {
    let switch = Namespace::new()?;
    switch.within(|| switch_on(&Netlink::open()?))?;
    Ok(switch)
}

fn switch_on(netlink: &Netlink) -> io::Result<()> {
    netlink.add_bridge("br0")?;
    netlink.set_up(netlink.link("br0")?.index)
}

/// Connects a host to the switch, by a device called eth0.
pub fn plug_in(switch: &Namespace, host: &Namespace, name: &str) -> io::Result<()> {
    switch.within(|| {
        let netlink = Netlink::open()?;
        let near = format!("to-{name}");
        netlink.add_veth(&near, "eth0", host.as_fd())?;
        let index = netlink.link(&near)?.index;
        netlink.set_master(index, netlink.link("br0")?.index)?;
        netlink.set_up(index)
    })
}

/// A bridge that eth0 is a port of, with the host's address.
pub fn bridge(address: Ipv4Addr) -> io::Result<()> {
    let netlink = Netlink::open()?;
    switch_on(&netlink)?;
    let port = netlink.link("eth0")?.index;
    netlink.set_master(port, netlink.link("br0")?.index)?;
    netlink.set_up(port)?;
    add_address("br0", address)
}

pub fn add_address(device: &str, address: Ipv4Addr) -> io::Result<()> {
    let netlink = Netlink::open()?;
    let index = netlink.link(device)?.index;
    netlink.add_address(index, IpAddr::V4(address), PREFIX)?;
    netlink.set_up(index)
}

/// Pulls a host's cable.
pub fn pull(host: &Namespace) {
    set_cable(host, Netlink::set_down);
}

/// Puts it in again.
pub fn put_in(host: &Namespace) {
    set_cable(host, Netlink::set_up);
}

fn set_cable(host: &Namespace, set: fn(&Netlink, u32) -> io::Result<()>) {
    let work = || {
        let netlink = Netlink::open()?;
        set(&netlink, netlink.link("eth0")?.index)
    };
    host.within(work).unwrap();
}
