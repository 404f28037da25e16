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

/// The IP packet in a frame that is led by a `virtio_net_hdr`. TCP segments that the kernel has put together
/// stay together, as one packet of up to 64 KiB. `None` for datagrams that were put together, which would be
/// one datagram then, and for what is no whole packet.
pub fn packet(led: &[u8]) -> Option<Vec<u8>> {
    let (header, frame) = led.split_at_checked(HEADER_BYTES)?;
    let segmented = header[1] & !CONGESTION_SEEN;
    if ![NOT_SEGMENTED, SEGMENTED_TCP_V4, SEGMENTED_TCP_V6].contains(&segmented) {
        return None;
    }
    let mut packet = frame::ip_packet(frame)?.to_vec();
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
    // A UDP datagram with the sum zero would say that it has none.
    let udp = 6;
    let sum = if sum == 0 && offset == udp { 0xffff } else { sum };
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

    /// An IPv4 packet with 8 bytes of payload, and 4 of padding behind it.
    fn padded() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 28]);
        frame.extend([0; 16]);
        frame.extend([1, 2, 3, 4, 5, 6, 0, 7]);
        frame.extend([9; 4]);
        frame
    }

    #[test]
    fn padding_is_left_behind_and_the_checksum_is_computed() {
        let whole = packet(&led(NEEDS_CHECKSUM, 0, 34, 6, &padded())).unwrap();
        assert_eq!(whole.len(), 28);
        assert_eq!(checksum(&[&whole[20..26], &[0, 7], &[]]), u16::from_be_bytes([whole[26], whole[27]]));
        let untouched = packet(&led(0, 0, 34, 6, &padded())).unwrap();
        assert_eq!(untouched[26..], [0, 7]);
    }

    #[test]
    fn datagrams_put_together_are_skipped() {
        let datagrams = 5;
        assert_eq!(packet(&led(0, datagrams, 0, 0, &padded())), None);
    }

    #[test]
    fn no_header_panics() {
        for start in [0, 13, 14, 34, 46, 200, u16::MAX] {
            for offset in [0, 6, 27, u16::MAX] {
                for len in 0..padded().len() {
                    let _ = packet(&led(NEEDS_CHECKSUM, SEGMENTED_TCP_V4, start, offset, &padded()[..len]));
                }
            }
        }
        for len in 0..HEADER_BYTES {
            assert_eq!(packet(&vec![0; len]), None);
        }
    }
}
