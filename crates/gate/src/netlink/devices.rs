//! Devices, their addresses and routes.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::{CREATE, EXCLUSIVE, Message, Netlink, REPLACE, attribute, unintelligible};

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
const SET_NEIGHBOUR_TABLE: u16 = 67;

const LINK_HEADER_BYTES: usize = 16;
const LINK_MAC: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_LOWER: u16 = 5;
const LINK_MASTER: u16 = 10;
const LINK_QUEUE_LENGTH: u16 = 13;
const LINK_INFO: u16 = 18;
const LINK_ALIAS: u16 = 20;
const LINK_FAMILIES: u16 = 26;
const LINK_NAMESPACE: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
const MACVLAN_MODE: u16 = 1;
const MACVLAN_MODE_BRIDGE: u32 = 4;
const INET6_ADDRESS_GENERATION: u16 = 8;
const NO_ADDRESS_GENERATION: u8 = 1;

const ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
/// `IFA_F_NODAD`: usable at once, with no detection of duplicates.
const NO_DETECTION: u8 = 0x02;
const ROUTE_DESTINATION: u16 = 1;
const ROUTE_DEVICE: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;
const TABLE_NAME: u16 = 1;
const TABLE_PARAMETERS: u16 = 6;
const PARAMETERS_DEVICE: u16 = 1;
const PARAMETERS_PAUSE: u16 = 5;
const PARAMETERS_QUESTIONS: u16 = 11;

const UP: u32 = 1;
/// `IFF_NOARP`.
const NO_ARP: u32 = 1 << 7;

/// A device's hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What the kernel says of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    /// `bridge`, `veth`; empty for a physical device.
    pub kind: String,
    pub mtu: u32,
    pub mac: Mac,
    pub up: bool,
}

/// What a new device that serves a cell has in common, whatever its kind.
#[derive(Debug, Clone, Copy)]
pub struct CellDevice<'a> {
    pub name: &'a str,
    pub index: u32,
    pub mtu: u32,
    pub namespace: BorrowedFd<'a>,
}

impl CellDevice<'_> {
    fn describe(&self, request: &mut Message) {
        link_header(request, self.index, 0, 0);
        request.text(LINK_NAME, self.name);
        request.number(LINK_MTU, self.mtu);
        request.number(LINK_NAMESPACE, self.namespace.as_raw_fd() as u32);
    }
}

/// An address of nobody's that is higher than a network card's. A bridge takes the lowest of its ports': one that
/// a cell brought and took away again would leave the neighbours of the whole host with an address that nobody
/// has, for up to a minute.
///
/// Cards with an address of their own choice, as virtual ones have, may begin with the highest byte, too.
fn high_mac() -> Mac {
    const HIGHEST_OF_ONE_S_OWN: [u8; 3] = [0xfe, 0xff, 0xff];
    // The standard library's seeds are the kernel's randomness.
    let random = RandomState::new().build_hasher().finish().to_ne_bytes();
    let ([first, second, third], [a, b, c, ..]) = (HIGHEST_OF_ONE_S_OWN, random);
    Mac([first, second, third, a, b, c])
}

impl Netlink {
    /// `ENODEV` if there is no device of this name.
    pub fn link(&self, name: &str) -> io::Result<Link> {
        self.get_link(0, |request| request.text(LINK_NAME, name))
    }

    pub fn link_at(&self, index: u32) -> io::Result<Link> {
        self.get_link(index, |_| ())
    }

    fn get_link(&self, index: u32, name: impl FnOnce(&mut Message)) -> io::Result<Link> {
        let mut request = Message::new(GET_LINK, 0);
        link_header(&mut request, index, 0, 0);
        name(&mut request);
        parse_link(&self.fetch(request)?).ok_or_else(unintelligible)
    }

    /// Makes a pair of connected devices: `name` here, `peer` in the namespace `elsewhere`.
    pub fn add_veth(&self, name: &str, peer: &str, elsewhere: BorrowedFd<'_>) -> io::Result<()> {
        let mut request = Message::new(NEW_LINK, CREATE | EXCLUSIVE);
        link_header(&mut request, 0, 0, 0);
        request.text(LINK_NAME, name);
        veth_to(&mut request, |end| {
            link_header(end, 0, 0, 0);
            end.text(LINK_NAME, peer);
            end.number(LINK_NAMESPACE, elsewhere.as_raw_fd() as u32);
        });
        self.ask(request)
    }

    /// Connects `device` to `bridge`: the near end is called `checksync` and a number, and `alias`.
    pub(crate) fn add_bridge_port(&self, bridge: u32, alias: &str, device: CellDevice<'_>) -> io::Result<()> {
        let mut request = Message::new(NEW_LINK, CREATE | EXCLUSIVE);
        link_header(&mut request, 0, UP, UP);
        request.text(LINK_NAME, "checksync%d");
        request.text(LINK_ALIAS, alias);
        request.attribute(LINK_MAC, &high_mac().0);
        request.number(LINK_MTU, device.mtu);
        request.number(LINK_MASTER, bridge);
        veth_to(&mut request, |end| device.describe(end));
        self.ask(request)
    }

    /// Puts `device` on top of the device `lower`, beside which it has a hardware address of its own.
    pub(crate) fn add_macvlan(&self, lower: u32, device: CellDevice<'_>) -> io::Result<()> {
        let mut request = Message::new(NEW_LINK, CREATE | EXCLUSIVE);
        device.describe(&mut request);
        request.number(LINK_LOWER, lower);
        request.nest(LINK_INFO, |info| {
            info.text(INFO_KIND, "macvlan");
            info.nest(INFO_DATA, |data| data.number(MACVLAN_MODE, MACVLAN_MODE_BRIDGE));
        });
        self.ask(request)
    }

    pub fn add_bridge(&self, name: &str) -> io::Result<()> {
        let mut request = Message::new(NEW_LINK, CREATE | EXCLUSIVE);
        link_header(&mut request, 0, UP, UP);
        request.text(LINK_NAME, name);
        request.nest(LINK_INFO, |info| info.text(INFO_KIND, "bridge"));
        self.ask(request)
    }

    /// Makes a device a port of a bridge.
    pub fn set_master(&self, index: u32, bridge: u32) -> io::Result<()> {
        self.set_link(index, 0, 0, |request| request.number(LINK_MASTER, bridge))
    }

    pub fn delete_link(&self, index: u32) -> io::Result<()> {
        let mut request = Message::new(DELETE_LINK, 0);
        link_header(&mut request, index, 0, 0);
        self.ask(request)
    }

    pub fn set_up(&self, index: u32) -> io::Result<()> {
        self.set_link(index, UP, UP, |_| ())
    }

    /// As if the plug were pulled: nothing comes in or goes out any more, at either end.
    pub fn set_down(&self, index: u32) -> io::Result<()> {
        self.set_link(index, 0, UP, |_| ())
    }

    pub fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        self.set_link(index, 0, 0, |request| request.number(LINK_MTU, mtu))
    }

    /// The kernel gives the device no IPv6 address of its own accord, so it has nothing to say there either.
    pub(crate) fn keep_quiet(&self, index: u32) -> io::Result<()> {
        self.set_link(index, 0, 0, |request| {
            request.nest(LINK_FAMILIES, |families| {
                families.nest(libc::AF_INET6 as u16, |inet6| {
                    inet6.attribute(INET6_ADDRESS_GENERATION, &[NO_ADDRESS_GENERATION]);
                });
            });
        })
    }

    /// How often the kernel asks for a neighbour, of the family of `address`, before it drops what waits for the answer.
    pub(crate) fn ask_for_neighbours(
        &self,
        index: u32,
        address: IpAddr,
        questions: u32,
        pause: Duration,
    ) -> io::Result<()> {
        let mut request = Message::new(SET_NEIGHBOUR_TABLE, REPLACE);
        request.raw(&[family(address), 0, 0, 0]);
        request.text(TABLE_NAME, if address.is_ipv4() { "arp_cache" } else { "ndisc_cache" });
        request.nest(TABLE_PARAMETERS, |parameters| {
            parameters.number(PARAMETERS_DEVICE, index);
            parameters.number(PARAMETERS_QUESTIONS, questions);
            parameters.attribute(PARAMETERS_PAUSE, &(pause.as_millis() as u64).to_ne_bytes());
        });
        self.ask(request)
    }

    /// Switches on a device that is a mere queue: it resolves no neighbours.
    pub(crate) fn set_up_as_queue(&self, index: u32, length: u32) -> io::Result<()> {
        self.set_link(index, UP | NO_ARP, UP | NO_ARP, |request| request.number(LINK_QUEUE_LENGTH, length))
    }

    fn set_link(&self, index: u32, flags: u32, of: u32, fill: impl FnOnce(&mut Message)) -> io::Result<()> {
        let mut request = Message::new(NEW_LINK, 0);
        link_header(&mut request, index, flags, of);
        fill(&mut request);
        self.ask(request)
    }

    /// `EEXIST` if the device has it already. N.B. the kernel takes an IPv6 address into use on a thread of its own:
    /// until then what comes for it is lost, and nobody here can connect to it.
    pub fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        const PATIENCE: Duration = Duration::from_millis(500);
        const PAUSE: Duration = Duration::from_micros(100);
        self.ask(address_request(NEW_ADDRESS, CREATE | EXCLUSIVE, index, address, prefix))?;
        let end = Instant::now() + PATIENCE;
        // Whoever misses it for so long is better served late than not at all.
        while address.is_ipv6() && !self.is_local(address) && Instant::now() < end {
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Whether what is sent to `address` is for this namespace.
    fn is_local(&self, address: IpAddr) -> bool {
        const TYPE: usize = 7;
        const LOCAL: u8 = 2;
        let mut request = Message::new(GET_ROUTE, 0);
        let octets = octets(address);
        let to_bits = 8 * octets.len() as u8;
        request.raw(&[family(address), to_bits, 0, 0, 0, 0, 0, 0]);
        request.raw(&0_u32.to_ne_bytes());
        request.attribute(ROUTE_DESTINATION, &octets);
        self.fetch(request).is_ok_and(|route| route.get(TYPE) == Some(&LOCAL))
    }

    /// `EADDRNOTAVAIL` if the device does not have it.
    pub fn delete_address(&self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        self.ask(address_request(DELETE_ADDRESS, 0, index, address, prefix))
    }

    /// Sends what has no better route to `gateway`.
    pub fn set_default_route(&self, index: u32, gateway: IpAddr) -> io::Result<()> {
        const EVERYWHERE: u8 = 0;
        let mut request = default_route(gateway, EVERYWHERE);
        request.attribute(ROUTE_GATEWAY, &octets(gateway));
        request.number(ROUTE_DEVICE, index);
        self.ask(request)
    }

    /// What has no better route, and is of the family of `address`, is for neighbours on the device.
    pub(crate) fn make_everybody_a_neighbour(&self, index: u32, address: IpAddr) -> io::Result<()> {
        const ON_THE_LINK: u8 = 253;
        let mut request = default_route(address, ON_THE_LINK);
        request.number(ROUTE_DEVICE, index);
        self.ask(request)
    }
}

/// Of the family of `address`.
fn default_route(address: IpAddr, scope: u8) -> Message {
    const TABLE_MAIN: u8 = 254;
    const SET_BY_ADMINISTRATOR: u8 = 4;
    const UNICAST: u8 = 1;
    let mut request = Message::new(NEW_ROUTE, CREATE | REPLACE);
    let (to_bits, from_bits, service) = (0, 0, 0);
    request.raw(&[family(address), to_bits, from_bits, service, TABLE_MAIN]);
    request.raw(&[SET_BY_ADMINISTRATOR, scope, UNICAST]);
    request.raw(&0_u32.to_ne_bytes());
    request
}

fn veth_to(request: &mut Message, describe: impl FnOnce(&mut Message)) {
    request.nest(LINK_INFO, |info| {
        info.text(INFO_KIND, "veth");
        info.nest(INFO_DATA, |data| data.nest(VETH_PEER, describe));
    });
}

/// `struct ifinfomsg`; a device that is known by its name has the index 0.
fn link_header(request: &mut Message, index: u32, flags: u32, changed: u32) {
    let family_and_type = [0; 4];
    request.raw(&family_and_type);
    request.raw(&index.to_ne_bytes());
    request.raw(&flags.to_ne_bytes());
    request.raw(&changed.to_ne_bytes());
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let number = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.try_into().ok()?));
    let (header, rest) = body.split_at_checked(LINK_HEADER_BYTES)?;
    let info = attribute(rest, LINK_INFO).unwrap_or_default();
    let kind = attribute(info, INFO_KIND).unwrap_or_default();
    let kind = kind.strip_suffix(b"\0").unwrap_or(kind);
    // The loopback device has one, too; other kinds than Ethernet have longer or none.
    let mac = attribute(rest, LINK_MAC).and_then(|mac| mac.try_into().ok()).unwrap_or_default();
    Some(Link {
        index: number(&header[4..8])?,
        kind: String::from_utf8_lossy(kind).into_owned(),
        mtu: number(attribute(rest, LINK_MTU)?)?,
        mac: Mac(mac),
        up: number(&header[8..12])? & UP != 0,
    })
}

fn address_request(kind: u16, flags: u16, index: u32, address: IpAddr, prefix: u8) -> Message {
    let mut request = Message::new(kind, flags);
    let scope = 0;
    request.raw(&[family(address), prefix, NO_DETECTION, scope]);
    request.raw(&index.to_ne_bytes());
    request.attribute(ADDRESS_LOCAL, &octets(address));
    request.attribute(ADDRESS, &octets(address));
    request
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    family as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
