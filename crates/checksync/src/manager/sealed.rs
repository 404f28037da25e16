//! A cell whose app is heard by nobody and changes nothing: with a network that leads nowhere and files of its own.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;

use anyhow::Context;
use gate::{Namespace, sealed_network};

use super::cell::CellKit;

/// `addresses` are the cell's; the namespace lives as long as the cell does.
pub fn cell(addresses: &[IpAddr]) -> anyhow::Result<CellKit> {
    let mut kit = CellKit::new(None).context("cannot prepare a cell")?;
    let network: Namespace = sealed_network(addresses).context("cannot make a network that leads nowhere")?;
    kit.spec.network = Some(network.as_fd().try_clone_to_owned().context("cannot hold the network")?);
    kit.spec.sealed = true;
    Ok(kit)
}

/// What an app without an address of its own can listen on here.
pub fn addresses_of_this_host() -> Vec<IpAddr> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let version_4 = version_4(&read("/proc/net/fib_trie"));
    let mut all: Vec<IpAddr> = version_4.into_iter().chain(version_6(&read("/proc/net/if_inet6"))).collect();
    all.sort();
    all.dedup();
    all.retain(|ip| !ip.is_loopback());
    all
}

/// Each is a leaf, whose next line says that it is local.
fn version_4(text: &str) -> Vec<IpAddr> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let local = |pair: &[&str]| {
        let address = pair[0].strip_prefix("|-- ")?.parse().ok()?;
        pair[1].starts_with("/32 host LOCAL").then_some(address)
    };
    lines.windows(2).filter_map(local).collect()
}

fn version_6(text: &str) -> Vec<IpAddr> {
    // It means nothing on another device.
    const LINK_LOCAL: u16 = 0xfe80;
    let digits = text.lines().filter_map(|line| line.split(' ').next());
    let parsed = digits.filter_map(|digits| u128::from_str_radix(digits, 16).ok()).map(Ipv6Addr::from);
    parsed.filter(|ip| ip.segments()[0] != LINK_LOCAL).map(IpAddr::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_s_addresses_are_read_from_the_kernel_s_tables() {
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.0\n        /24 link UNICAST\n     \
                    |-- 10.0.0.7\n        /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\n";
        assert_eq!(version_4(trie), ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fe80000000000000dc39e0fffe8a0a8d 02 40 20 80     eth0\n\
                     20010db8000000000000000000000005 02 40 20 80     eth0\n";
        let wanted = ["::1", "2001:db8::5"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(version_6(table), wanted);
    }
}
