//! Recorded packets, given to the kernel of a cell as if they had come in just now. They go to the cell's own
//! address by its loopback device, past what [`shut_in`](crate::CellNetwork::shut_in) drops.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};

use crate::{frame, namespace, packet};

/// What became of the packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replayed {
    pub delivered: usize,
    /// Make no sense, or are for an address that the cell does not have.
    pub refused: usize,
}

/// Gives `packets` to the kernel of `namespace` in their order. The cell has its address by then. Fails only
/// before the first.
pub fn replay(namespace: BorrowedFd<'_>, packets: &[impl AsRef<[u8]>]) -> io::Result<Replayed> {
    let is_v6 = |packet: &[u8]| destination(packet).is_some_and(|to| to.is_ipv6());
    let with_v6 = packets.iter().any(|packet| is_v6(packet.as_ref()));
    let way_in = namespace::within(namespace, || WayIn::open(with_v6))?;
    let mut replayed = Replayed::default();
    for packet in packets {
        let sent = way_in.send(packet.as_ref());
        *(if sent { &mut replayed.delivered } else { &mut replayed.refused }) += 1;
    }
    Ok(replayed)
}

/// IPv4 packets go through a raw socket: on the loopback device itself they would be dropped where `rp_filter`
/// is set, as not having come from there. IPv6 packets go to the loopback device: the route that a raw socket
/// gives them stays in the socket that gets them, and keeps the cell's device from being removed while that
/// lives.
#[derive(Debug)]
struct WayIn {
    v4: OwnedFd,
    /// Only where it is wanted: to close it takes milliseconds.
    v6: Option<OwnedFd>,
}

impl WayIn {
    fn open(with_v6: bool) -> io::Result<Self> {
        let v4 = socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW))?;
        let v6 = with_v6.then(|| packet::sender(namespace::LOOPBACK, false)).transpose()?;
        Ok(Self { v4, v6 })
    }

    /// Whether the kernel took it.
    fn send(&self, packet: &[u8]) -> bool {
        match destination(packet) {
            Some(IpAddr::V4(to)) => {
                let to = SocketAddr::new(to.into(), 0);
                sendto(&self.v4, packet, SendFlags::empty(), &to).is_ok()
            }
            Some(IpAddr::V6(_)) => {
                let send = |v6| rustix::net::send(v6, &frame::ipv6_to_nobody(packet), SendFlags::empty());
                self.v6.as_ref().is_some_and(|v6| send(v6).is_ok())
            }
            None => false,
        }
    }
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?)),
        6 => Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_and_nonsense_is_not() {
        let mut v4 = [0; 20];
        v4[0] = 0x45;
        v4[16..].copy_from_slice(&[10, 0, 0, 9]);
        assert_eq!(destination(&v4), Some([10, 0, 0, 9].into()));
        assert_eq!(destination(&v4[..19]), None);
        assert_eq!(destination(&[]), None);
        assert_eq!(destination(&[0; 64]), None);
        assert_eq!(destination(&[0x60; 39]), None);
    }
}
