//! A frame as the kernel hands it over, made into an IP packet that says everything itself: senders on the same
//! host leave checksums to a device that is never there.

use crate::frame::{self, checksum};
use sys::tun::HEADER_BYTES;

/// `struct virtio_net_hdr`: flags, kind of segments, …, where the checksum starts, and where in there it is.
const NEEDS_CHECKSUM: u8 = 1;
const SEGMENTED_TCP_V4: u8 = 1;
const SEGMENTED_TCP_V6: u8 = 4;
const NOT_SEGMENTED: u8 = 0;
const CONGESTION_SEEN: u8 = 0x80;
const ETHERNET_BYTES: usize = 14;

/// The TCP packet in a frame that is led by a `virtio_net_hdr`. Segments that the kernel has put together stay
/// together, as one packet of up to 64 KiB. `None` for what is no whole packet of TCP.
pub fn packet(led: &[u8]) -> Option<Vec<u8>> {
    let (header, frame) = led.split_at_checked(HEADER_BYTES)?;
    let segmented = header[1] & !CONGESTION_SEEN;
    if ![NOT_SEGMENTED, SEGMENTED_TCP_V4, SEGMENTED_TCP_V6].contains(&segmented) {
        return None;
    }
    let mut packet = frame::ip_packet(frame).filter(|packet| frame::tcp_ends(packet).is_some())?.to_vec();
    if header[0] & NEEDS_CHECKSUM != 0 {
        let start = usize::from(u16::from_ne_bytes([header[6], header[7]]));
        let offset = usize::from(u16::from_ne_bytes([header[8], header[9]]));
        complete(&mut packet, start.checked_sub(ETHERNET_BYTES)?, offset)?;
    }
    Some(packet)
}

/// The field holds the sum of the addresses already, as RFC 1071 lets it be added up in any order.
fn complete(packet: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let at = start.checked_add(offset)?;
    let sum = checksum(&[packet.get(start..)?]);
    packet.get_mut(at..at + 2)?.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led(flags: u8, kind: u8, start: u16, offset: u16, frame: &[u8]) -> Vec<u8> {
        let mut led = vec![flags, kind, 0, 0, 0, 0];
        led.extend(start.to_ne_bytes());
        led.extend(offset.to_ne_bytes());
        led.extend(frame);
        led
    }

    /// Where the checksum is in a TCP header.
    const CHECKSUM: u16 = 16;

    /// An IPv4 packet of TCP with no payload, and 4 bytes of padding behind it.
    fn padded(protocol: u8) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol]);
        frame.extend([0; 10]);
        frame.extend([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x50, 0, 0, 0, 0, 7, 0, 0]);
        frame.extend([9; 4]);
        frame
    }

    #[test]
    fn padding_is_left_behind_and_the_checksum_is_computed() {
        let whole = packet(&led(NEEDS_CHECKSUM, 0, 34, CHECKSUM, &padded(6))).unwrap();
        assert_eq!(whole.len(), 40);
        assert_eq!(checksum(&[&whole[20..36], &[0, 7], &whole[38..]]).to_be_bytes(), whole[36..38]);
        let untouched = packet(&led(0, 0, 34, CHECKSUM, &padded(6))).unwrap();
        assert_eq!(untouched[36..38], [0, 7]);
    }

    #[test]
    fn datagrams_are_skipped() {
        let (udp, put_together) = (17, 5);
        for kind in [NOT_SEGMENTED, put_together] {
            assert_eq!(packet(&led(0, kind, 0, 0, &padded(udp))), None);
        }
        assert_eq!(packet(&led(0, put_together, 0, 0, &padded(6))), None);
    }

    #[test]
    fn no_header_panics() {
        for start in [0, 13, 14, 34, 53, 54, 200, u16::MAX] {
            for offset in [0, 6, 16, 27, 39, u16::MAX] {
                for len in 0..padded(6).len() {
                    let _ = packet(&led(NEEDS_CHECKSUM, SEGMENTED_TCP_V4, start, offset, &padded(6)[..len]));
                }
            }
        }
        for len in 0..HEADER_BYTES {
            assert_eq!(packet(&vec![0; len]), None);
        }
    }
}
