//! Recorded packets, given to the kernel of a cell as if they had come in just now. They go to the cell's own
//! address by its loopback device, past what [`shut_in`](crate::CellNetwork::shut_in) drops.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};

use crate::namespace;

/// What became of the packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replayed {
    pub delivered: usize,
    /// Make no sense, or are for an address that the cell does not have.
    pub refused: usize,
}

/// Gives `packets` to the kernel of `namespace` in their order. The cell has its address by then. Fails only
/// before the first.
pub fn replay(namespace: BorrowedFd<'_>, packets: &[impl AsRef<[u8]> + Sync]) -> io::Result<Replayed> {
    let (v4, v6) = namespace::within(namespace, || {
        Ok::<_, io::Error>((open(AddressFamily::INET)?, open(AddressFamily::INET6)))
    })?;
    let mut replayed = Replayed::default();
    for packet in packets {
        let packet = packet.as_ref();
        let sent = match (destination(packet), &v6) {
            (Some(to @ IpAddr::V4(_)), _) => send(&v4, packet, to),
            (Some(to @ IpAddr::V6(_)), Ok(v6)) => send(v6, packet, to),
            (Some(IpAddr::V6(_)), Err(_)) | (None, _) => false,
        };
        *(if sent { &mut replayed.delivered } else { &mut replayed.refused }) += 1;
    }
    Ok(replayed)
}

/// A socket that takes packets with their headers.
fn open(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW))?)
}

fn send(socket: &OwnedFd, packet: &[u8], to: IpAddr) -> bool {
    sendto(socket, packet, SendFlags::empty(), &SocketAddr::new(to, 0)).is_ok()
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
