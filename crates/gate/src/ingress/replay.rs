//! Recorded packets, given to the kernel of a cell as if they had come in just now. They go to the cell's own
//! address by its loopback device, past what [`shut_in`](crate::CellNetwork::shut_in) drops.
//!
//! The packets come from strangers by way of the primary, and the kernel would route one wherever it says. So
//! only TCP to the service's address is given to it, and none that claims to come from the cell itself: at the
//! device the kernel would have dropped that, and here it does not look.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};

use crate::{frame, namespace, packet};

/// What became of the packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replayed {
    pub delivered: usize,
    /// Are no whole TCP packet from elsewhere to the service's address, or were refused by the kernel.
    pub refused: usize,
}

/// Gives `packets` to the kernel of `namespace` in their order. The cell has `address` by then. Fails only
/// before the first.
pub fn replay(
    namespace: BorrowedFd<'_>,
    address: IpAddr,
    packets: &[impl AsRef<[u8]>],
) -> io::Result<Replayed> {
    if packets.is_empty() {
        // Closing the way in for IPv6 takes milliseconds.
        return Ok(Replayed::default());
    }
    let way_in = namespace::within(namespace, || WayIn::open(address))?;
    let mut replayed = Replayed::default();
    for packet in packets.iter().map(AsRef::as_ref) {
        let sent = is_for(address, packet) && way_in.send(packet);
        *(if sent { &mut replayed.delivered } else { &mut replayed.refused }) += 1;
    }
    Ok(replayed)
}

fn is_for(address: IpAddr, packet: &[u8]) -> bool {
    let is_elsewhere = |from: IpAddr| from != address && !from.is_loopback() && !from.is_multicast();
    frame::tcp_ends(packet).is_some_and(|(from, to)| to == address && is_elsewhere(from))
}

/// IPv4 packets go through a raw socket: on the loopback device itself they would be dropped where `rp_filter`
/// is set, as not having come from there. IPv6 packets go to the loopback device: the route that a raw socket
/// gives them stays in the socket that gets them, and keeps the cell's device from being removed while that
/// lives.
#[derive(Debug)]
enum WayIn {
    V4(OwnedFd, SocketAddr),
    V6(OwnedFd),
}

impl WayIn {
    fn open(address: IpAddr) -> io::Result<Self> {
        if address.is_ipv6() {
            return Ok(Self::V6(packet::sender(namespace::LOOPBACK)?));
        }
        let socket =
            socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW))?;
        Ok(Self::V4(socket, SocketAddr::new(address, 0)))
    }

    /// Whether the kernel took it.
    fn send(&self, packet: &[u8]) -> bool {
        match self {
            Self::V4(socket, to) => sendto(socket, packet, SendFlags::empty(), to).is_ok(),
            Self::V6(socket) => {
                rustix::net::send(socket, &frame::ipv6_to_nobody(packet), SendFlags::empty()).is_ok()
            }
        }
    }
}
