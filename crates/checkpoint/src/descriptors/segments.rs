//! TCP segments made and read by hand, with their IP header; and UDP datagrams, made only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

pub(super) const FIN: u8 = 1;
pub(super) const RESET: u8 = 4;
pub(super) const ACKNOWLEDGEMENT: u8 = 0x10;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const TCP_HEADER_BYTES: usize = 20;
const HOPS: u8 = 64;

/// What a connection is known by. Addresses that are IPv4 in IPv6 clothes are IPv4 here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// A segment; it is made without options, and of those that are read one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub window: u16,
    /// The first block of the selective acknowledgements: where bytes came twice, these (RFC 2883).
    pub selective: Option<(u32, u32)>,
}

/// Reads a `sockaddr` of either family.
pub(super) fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
    match bytes.len() {
        16 => {
            let ip: [u8; 4] = bytes[4..8].try_into().ok()?;
            Some(SocketAddrV4::new(ip.into(), port).into())
        }
        28 => {
            let ip: [u8; 16] = bytes[8..24].try_into().ok()?;
            let ip = Ipv6Addr::from(ip);
            let scope = u32::from_ne_bytes(bytes[24..28].try_into().ok()?);
            Some(match ip.to_ipv4_mapped() {
                Some(ip) => SocketAddrV4::new(ip, port).into(),
                None => SocketAddrV6::new(ip, port, 0, scope).into(),
            })
        }
        _ => None,
    }
}

impl Segment {
    /// The packet, from the IP header on.
    pub(super) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let len = TCP_HEADER_BYTES + payload.len();
        let mut tcp = Vec::with_capacity(len);
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        tcp.extend([(TCP_HEADER_BYTES as u8 / 4) << 4, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(payload);
        let sum = checksum(self.from.ip(), self.to.ip(), PROTOCOL_TCP, &tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let mut packet = header(self.from.ip(), self.to.ip(), PROTOCOL_TCP, len as u16);
        packet.extend(tcp);
        packet
    }

    /// What a packet says; `None` if it is no TCP, or has headers in between.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let (from, to, tcp): (IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
            4 if *packet.get(9)? == PROTOCOL_TCP => {
                let header = usize::from(packet[0] & 0xf) * 4;
                let ip = |at: usize| {
                    let bytes: Option<[u8; 4]> = packet.get(at..at + 4)?.try_into().ok();
                    bytes.map(|bytes| Ipv4Addr::from(bytes).into())
                };
                (ip(12)?, ip(16)?, packet.get(header..)?)
            }
            6 if *packet.get(6)? == PROTOCOL_TCP => {
                let ip = |at: usize| {
                    let bytes: Option<[u8; 16]> = packet.get(at..at + 16)?.try_into().ok();
                    bytes.map(|bytes| Ipv6Addr::from(bytes).into())
                };
                (ip(8)?, ip(24)?, packet.get(40..)?)
            }
            _ => return None,
        };
        let selective = selective(tcp);
        let tcp: &[u8; TCP_HEADER_BYTES] = tcp.first_chunk()?;
        let short = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|n| tcp[at + n]));
        Some(Self {
            from: SocketAddr::new(from, short(0)),
            to: SocketAddr::new(to, short(2)),
            sequence: word(4),
            acknowledgement: word(8),
            flags: tcp[13],
            window: short(14),
            selective,
        })
    }
}

/// A UDP datagram, from the IP header on; `None` if no packet holds that much.
pub(super) fn datagram(from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    const UDP_HEADER_BYTES: usize = 8;
    const IPV4_HEADER_BYTES: u16 = 20;
    let len = u16::try_from(UDP_HEADER_BYTES + bytes.len()).ok()?;
    if from.is_ipv4() {
        len.checked_add(IPV4_HEADER_BYTES)?;
    }
    let mut udp = Vec::with_capacity(len.into());
    udp.extend([from.port(), to.port(), len, 0].into_iter().flat_map(u16::to_be_bytes));
    udp.extend(bytes);
    let sum = match checksum(from.ip(), to.ip(), PROTOCOL_UDP, &udp) {
        // Zero would say that there is none.
        0 => u16::MAX,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut packet = header(from.ip(), to.ip(), PROTOCOL_UDP, len);
    packet.extend(udp);
    Some(packet)
}

fn header(from: IpAddr, to: IpAddr, protocol: u8, len: u16) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(_), _) | (_, IpAddr::V4(_)) => {
            let total = (len + 20).to_be_bytes();
            // Not to be fragmented; the kernel fills in the checksum.
            let mut header = vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, HOPS, protocol, 0, 0];
            header.extend(addresses(from, to));
            header
        }
        (IpAddr::V6(_), IpAddr::V6(_)) => {
            let len = len.to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, len[0], len[1], protocol, HOPS];
            header.extend(addresses(from, to));
            header
        }
    }
}

fn checksum(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    fold(sum(&addresses(from, to)) + sum(payload) + u32::from(protocol) + payload.len() as u32)
}

fn selective(tcp: &[u8]) -> Option<(u32, u32)> {
    const END: u8 = 0;
    const PADDING: u8 = 1;
    const SELECTIVE_ACKNOWLEDGEMENTS: u8 = 5;
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    let mut options = tcp.get(TCP_HEADER_BYTES..header)?;
    loop {
        let (kind, len) = match *options.first()? {
            END => return None,
            kind @ PADDING => (kind, 1),
            kind => (kind, usize::from(*options.get(1)?).max(2)),
        };
        if kind == SELECTIVE_ACKNOWLEDGEMENTS {
            let block: &[u8; 8] = options.get(2..len)?.first_chunk()?;
            let (begin, end) = block.split_at(4);
            let word = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_be_bytes);
            return Some((word(begin)?, word(end)?));
        }
        options = options.get(len..)?;
    }
}

/// Both addresses' bytes, one after the other.
fn addresses(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let bytes = |ip| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    [bytes(from), bytes(to)].concat()
}

fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    bytes.chunks(2).map(word).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(from: &str, to: &str) -> Segment {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        let flags = FIN | ACKNOWLEDGEMENT;
        Segment { from, to, sequence: 0xfeed_beef, acknowledgement: 77, flags, window: 500, selective: None }
    }

    /// The segment with these options instead of none.
    fn with_options(options: &[u8]) -> Vec<u8> {
        const IP_HEADER_BYTES: usize = 20;
        let mut packet = segment("10.1.2.3:80", "10.4.5.6:40000").packet(b"");
        packet.extend(options);
        packet[IP_HEADER_BYTES + 12] = ((TCP_HEADER_BYTES + options.len()) as u8 / 4) << 4;
        packet
    }

    #[test]
    fn the_first_selective_block_is_found_behind_other_options() {
        let stamp = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
        let blocks = [1, 1, 5, 18, 0, 0, 1, 0, 0, 0, 1, 44, 9, 9, 9, 9, 9, 9, 9, 9];
        let read = Segment::parse(&with_options(&[&stamp[..], &blocks].concat())).unwrap();
        assert_eq!(read.selective, Some((0x100, 0x12c)));
    }

    #[test]
    fn options_that_lie_about_their_length_are_none() {
        for options in [[5, 0, 0, 0], [5, 200, 1, 1], [8, 3, 5, 4], [0, 5, 10, 1], [1, 1, 1, 5]] {
            let read = Segment::parse(&with_options(&options)).unwrap();
            assert_eq!(read.selective, None, "{options:?}");
        }
    }

    #[test]
    fn a_segment_is_read_as_it_was_made() {
        for (from, to) in [("10.1.2.3:80", "10.4.5.6:40000"), ("[fd00::1]:80", "[fd00::2]:40000")] {
            let made = segment(from, to);
            for payload in [&b""[..], b"x", b"four"] {
                assert_eq!(Segment::parse(&made.packet(payload)), Some(made));
            }
        }
    }

    #[test]
    fn the_checksum_of_a_whole_packet_comes_out_as_zero() {
        let packet = segment("10.1.2.3:80", "10.4.5.6:40000").packet(b"odd");
        let (header, tcp) = packet.split_at(20);
        let pseudo = sum(&header[12..20]) + u32::from(PROTOCOL_TCP) + tcp.len() as u32;
        assert_eq!(fold(pseudo + sum(tcp)), 0);
    }

    #[test]
    fn the_checksum_of_a_datagram_comes_out_as_zero_and_none_is_too_long() {
        for (from, to, len_max) in
            [("10.1.2.3:80", "10.4.5.6:40000", 65_507), ("[fd00::1]:80", "[fd00::2]:40000", 65_527)]
        {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            for bytes in [&b""[..], b"odd", &vec![0xff; len_max]] {
                let packet = datagram(from, to, bytes).expect("it fits");
                let udp = &packet[if from.is_ipv4() { 20 } else { 40 }..];
                let pseudo = sum(&addresses(from.ip(), to.ip())) + u32::from(PROTOCOL_UDP) + udp.len() as u32;
                assert_eq!(fold(pseudo + sum(udp)), 0, "{} bytes", bytes.len());
            }
            assert_eq!(datagram(from, to, &vec![0; len_max + 1]), None);
        }
    }

    #[test]
    fn no_packet_that_is_cut_short_is_read() {
        for (from, to) in [("10.1.2.3:80", "10.4.5.6:40000"), ("[fd00::1]:80", "[fd00::2]:40000")] {
            let packet = segment(from, to).packet(b"");
            for len in 0..packet.len() {
                assert_eq!(Segment::parse(&packet[..len]), None);
            }
        }
    }

    #[test]
    fn an_ipv4_address_in_ipv6_clothes_is_ipv4() {
        let mut bytes = vec![0; 28];
        bytes[2..4].copy_from_slice(&80_u16.to_be_bytes());
        bytes[18..24].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 9]);
        assert_eq!(address(&bytes), Some("10.0.0.9:80".parse().unwrap()));
    }
}
