//! Ethernet frames, byte by byte: what announces an address, what is recognised, and checksums.
//!
//! What is read here was written by others. Nothing trusts a length, and nothing panics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::Mac;

const BROADCAST: Mac = Mac([0xff; 6]);
const NOBODY: Mac = Mac([0; 6]);
const TYPE_ARP: [u8; 2] = [0x08, 0x06];
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// Ethernet, IPv4, lengths of their addresses.
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;

const ETHERNET_BYTES: usize = 14;
const IPV6_BYTES: usize = 40;
const IPV4_BYTES: usize = 20;
const DO_NOT_FRAGMENT: usize = 0x4000;
const TCP: u8 = 6;
const TCP_BYTES: usize = 20;
const HOP_BY_HOP: u8 = 0;
const ICMPV6: u8 = 58;
const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Membership of a group: a bridge that listens to these forwards solicitations to members only.
const LISTENER_REPORTS: [u8; 3] = [131, 132, 143];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Whether a frame only says who has which address: it must not wait for an epoch, or neighbours forget us.
pub fn is_about_neighbours(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some(kind) if kind == TYPE_ARP => true,
        Some(kind) if kind == TYPE_IPV6 => frame.get(ETHERNET_BYTES..).is_some_and(is_neighbour_discovery),
        _ => false,
    }
}

fn is_neighbour_discovery(packet: &[u8]) -> bool {
    let (next, mut at) = (packet.get(6).copied(), IPV6_BYTES);
    let next = match next {
        Some(HOP_BY_HOP) => {
            let header = packet.get(at..at + 2);
            at += header.map_or(0, |header| (usize::from(header[1]) + 1) * 8);
            header.map(|header| header[0])
        }
        other => other,
    };
    next == Some(ICMPV6)
        && packet.get(at).is_some_and(|kind| {
            matches!(*kind, ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT)
                || LISTENER_REPORTS.contains(kind)
        })
}

/// What tells a whole link that `mac` has `address`. For IPv4 in both forms that receivers look at.
pub fn announcements(address: IpAddr, mac: Mac) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => vec![
            arp(ARP_REQUEST, mac, address, NOBODY, address),
            arp(ARP_REPLY, mac, address, BROADCAST, address),
        ],
        IpAddr::V6(address) => vec![neighbour_advertisement(address, mac)],
    }
}

/// What asks a whole link who has `address`, and names no owner.
pub fn probe(address: IpAddr, mac: Mac) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(ARP_REQUEST, mac, Ipv4Addr::UNSPECIFIED, NOBODY, address),
        IpAddr::V6(address) => neighbour_solicitation(address, mac),
    }
}

/// Who else than `own` says in this frame that it has `address`.
pub fn rival(frame: &[u8], address: IpAddr, own: Mac) -> Option<Mac> {
    let claimant = match address {
        IpAddr::V4(address) => arp_claimant(frame, address),
        IpAddr::V6(address) => advertisement_claimant(frame, address),
    };
    claimant.filter(|claimant| *claimant != own)
}

fn arp_claimant(frame: &[u8], address: Ipv4Addr) -> Option<Mac> {
    let claims = frame.get(12..14)? == TYPE_ARP
        && frame.get(14..20)? == ARP_KIND
        && frame.get(28..32)? == address.octets();
    claims.then_some(Mac(frame.get(22..28)?.try_into().ok()?))
}

fn advertisement_claimant(frame: &[u8], address: Ipv6Addr) -> Option<Mac> {
    let packet = frame.get(ETHERNET_BYTES..)?;
    let claims = frame.get(12..14)? == TYPE_IPV6
        && packet.get(6..8)? == [ICMPV6, 255]
        && *packet.get(IPV6_BYTES)? == NEIGHBOUR_ADVERTISEMENT
        && packet.get(48..64)? == address.octets();
    claims.then_some(Mac(frame.get(6..12)?.try_into().ok()?))
}

fn ethernet(to: Mac, from: Mac, kind: [u8; 2]) -> Vec<u8> {
    [&to.0[..], &from.0, &kind].concat()
}

fn arp(operation: u8, from: Mac, sender: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, from, TYPE_ARP);
    frame.extend(ARP_KIND);
    frame.extend([0, operation]);
    frame.extend(from.0);
    frame.extend(sender.octets());
    frame.extend(target_mac.0);
    frame.extend(target.octets());
    frame
}

fn neighbour_advertisement(address: Ipv6Addr, mac: Mac) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    const TARGET_MAC: u8 = 2;
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    message.extend([TARGET_MAC, 1]);
    message.extend(mac.0);
    discovery(mac, address, ALL_NODES, message)
}

/// As one who has no address yet sends it (RFC 4862, 5.4.2).
fn neighbour_solicitation(address: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let [.., a, b, c] = address.octets();
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
    let mut message = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(address.octets());
    discovery(mac, Ipv6Addr::UNSPECIFIED, group.into(), message)
}

fn discovery(mac: Mac, from: Ipv6Addr, group: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    const VERSION: [u8; 4] = [0x60, 0, 0, 0];
    const HOPS: u8 = 255;
    let [.., a, b, c, d] = group.octets();
    let len = (message.len() as u16).to_be_bytes();
    let pseudo = [&from.octets()[..], &group.octets(), &[0, 0], &len, &[0, 0, 0, ICMPV6]].concat();
    let sum = checksum(&[&pseudo, &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(Mac([0x33, 0x33, a, b, c, d]), mac, TYPE_IPV6);
    frame.extend(VERSION);
    frame.extend(len);
    frame.extend([ICMPV6, HOPS]);
    frame.extend(from.octets());
    frame.extend(group.octets());
    frame.extend(message);
    frame
}

/// A frame around an IPv6 packet, for a device that has no addresses.
pub fn ipv6_to_nobody(packet: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(NOBODY, NOBODY, TYPE_IPV6);
    frame.extend(packet);
    frame
}

/// The IP packet in a frame, without what pads the frame. `None` if it is no whole IP packet.
pub fn ip_packet(frame: &[u8]) -> Option<&[u8]> {
    let packet = frame.get(ETHERNET_BYTES..)?;
    let field = |at: usize| Some(usize::from(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?)));
    let len = match frame.get(12..14)? {
        kind if kind == TYPE_IPV4 => field(2).filter(|len| *len >= IPV4_BYTES),
        kind if kind == TYPE_IPV6 => field(4).map(|payload| payload + IPV6_BYTES),
        _ => None,
    }?;
    packet.get(..len)
}

/// Who sent an IP packet, and to whom, if it is one whole TCP segment and nothing else: no fragment, and no
/// options or further headers of IP, which could lead it elsewhere.
pub fn tcp_ends(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let field = |at: usize| Some(usize::from(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?)));
    let (len, header, protocol) = match packet.first()? {
        0x45 if field(6)? & !DO_NOT_FRAGMENT == 0 => (field(2)?, IPV4_BYTES, *packet.get(9)?),
        version if version >> 4 == 6 => (field(4)? + IPV6_BYTES, IPV6_BYTES, *packet.get(6)?),
        _ => return None,
    };
    let segment = packet.get(header..).filter(|_| protocol == TCP && packet.len() == len)?;
    let tcp_header = usize::from(*segment.get(12)? >> 4) * 4;
    if tcp_header < TCP_BYTES || tcp_header > segment.len() {
        return None;
    }
    if header == IPV4_BYTES { ends::<4>(packet, 12) } else { ends::<16>(packet, 8) }
}

fn ends<const N: usize>(packet: &[u8], at: usize) -> Option<(IpAddr, IpAddr)>
where
    IpAddr: From<[u8; N]>,
{
    let address = |at: usize| Some(IpAddr::from(<[u8; N]>::try_from(packet.get(at..at + N)?).ok()?));
    Some((address(at)?, address(at + N)?))
}

/// The internet checksum of the parts together; each but the last has an even length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u64 = parts.iter().flat_map(|part| part.chunks(2)).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9));

    #[test]
    fn announcement_of_another_is_a_rival_and_our_own_is_not() {
        for address in [V4, V6] {
            for frame in announcements(address, THEIRS) {
                assert_eq!(rival(&frame, address, OURS), Some(THEIRS));
                assert_eq!(rival(&frame, address, THEIRS), None);
                assert!(is_about_neighbours(&frame));
            }
            assert_eq!(rival(&probe(address, THEIRS), address, OURS), None);
        }
        assert_eq!(rival(&announcements(V4, THEIRS)[0], IpAddr::from([10, 0, 0, 8]), OURS), None);
    }

    #[test]
    fn data_are_not_about_neighbours() {
        let mut echo = announcements(V6, OURS).remove(0);
        echo[ETHERNET_BYTES + IPV6_BYTES] = 128;
        assert!(!is_about_neighbours(&echo));
        let mut tcp = announcements(V6, OURS).remove(0);
        tcp[ETHERNET_BYTES + 6] = 6;
        assert!(!is_about_neighbours(&tcp));
        assert!(!is_about_neighbours(&ethernet(OURS, THEIRS, TYPE_IPV4)));
    }

    #[test]
    fn membership_behind_a_hop_by_hop_header_is_about_neighbours() {
        let mut frame = ethernet(OURS, THEIRS, TYPE_IPV6);
        frame.extend([0; IPV6_BYTES]);
        frame.extend([ICMPV6, 0, 5, 2, 0, 0, 1, 0, 143, 0]);
        assert!(is_about_neighbours(&frame));
        frame[ETHERNET_BYTES + IPV6_BYTES + 1] = 255;
        assert!(!is_about_neighbours(&frame));
    }

    #[test]
    fn no_cut_of_any_frame_panics() {
        for address in [V4, V6] {
            let mut frames = announcements(address, THEIRS);
            frames.push(probe(address, THEIRS));
            for frame in frames {
                for len in 0..=frame.len() {
                    let cut = &frame[..len];
                    let _ = (is_about_neighbours(cut), rival(cut, address, OURS), ip_packet(cut));
                }
            }
        }
    }

    fn segment_v4() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 41, 0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 9];
        packet.extend([0; 12]);
        packet.extend([0x50, 0, 0, 0, 0, 0, 0, 0, b'x']);
        packet
    }

    fn segment_v6() -> Vec<u8> {
        let IpAddr::V6(to) = V6 else { unreachable!() };
        let mut packet = vec![0x60, 0, 0, 0, 0, 20, TCP, 64];
        packet.extend(Ipv6Addr::LOCALHOST.octets());
        packet.extend(to.octets());
        packet.extend([0; 12]);
        packet.extend([0x50, 0, 0, 0, 0, 0, 0, 0]);
        packet
    }

    #[test]
    fn ends_of_a_tcp_segment_are_read() {
        assert_eq!(tcp_ends(&segment_v4()), Some((IpAddr::from([10, 0, 0, 1]), V4)));
        assert_eq!(tcp_ends(&segment_v6()), Some((Ipv6Addr::LOCALHOST.into(), V6)));
    }

    #[test]
    fn what_is_no_whole_tcp_segment_has_no_ends() {
        for whole in [segment_v4(), segment_v6()] {
            for len in 0..whole.len() {
                assert_eq!(tcp_ends(&whole[..len]), None, "{len}");
            }
            assert_eq!(tcp_ends(&[&whole[..], &[0]].concat()), None, "padded");
        }
        let (udp, more_fragments, offset, options, hop_by_hop) = (17, 0x20, 1, 0x46, 0);
        for (at, value) in [(9, udp), (6, more_fragments), (7, offset), (0, options), (32, 0x40), (32, 0x60)]
        {
            let mut packet = segment_v4();
            packet[at] = value;
            assert_eq!(tcp_ends(&packet), None, "byte {at}");
        }
        for (at, value) in [(6, udp), (6, hop_by_hop), (0, 0x50)] {
            let mut packet = segment_v6();
            packet[at] = value;
            assert_eq!(tcp_ends(&packet), None, "byte {at}");
        }
    }

    #[test]
    fn checksum_over_itself_is_zero() {
        let header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(checksum(&[&header]), 0xb861);
        let mut whole = header;
        whole[10..12].copy_from_slice(&0xb861_u16.to_be_bytes());
        assert_eq!(checksum(&[&whole]), 0);
        assert_eq!(checksum(&[&[1, 2], &[3]]), checksum(&[&[1, 2, 3, 0]]));
    }
}
