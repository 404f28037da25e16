//! The way out: frames go back to the cell's device, behind the filter that led them away.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, send, sendmmsg};

use super::queue::Chunk;
use crate::packet;

/// Frames of one call.
const TOGETHER_MAX: usize = 64;
/// How long a full device is waited for before a frame is lost, as it is on any full link.
const FULL_PATIENCE: Duration = Duration::from_millis(20);
const BUFFER_BYTES: i32 = 32 << 20;

#[derive(Debug)]
pub struct Outlet {
    socket: OwnedFd,
}

/// What became of frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    pub frames: u64,
    pub lost: u64,
}

impl Outlet {
    /// On a device of this thread's namespace.
    pub fn open(device: u32) -> io::Result<Self> {
        let socket = packet::sender(device, true)?;
        packet::set_buffer(&socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, BUFFER_BYTES)?;
        Ok(Self { socket })
    }

    /// Sends a chunk's frames in order while `may` allows it, which is asked again and again. A frame that the
    /// kernel refuses (its header makes no sense, the device is down) is lost, and stops no other.
    pub fn send(&self, chunk: &Chunk, may: &dyn Fn() -> bool) -> Sent {
        let frames: Vec<&[u8]> = chunk.frames().collect();
        let mut sent = Sent::default();
        let mut left = &frames[..];
        let mut full_since = None;
        while !left.is_empty() && may() {
            match self.send_some(left) {
                Ok(count) => {
                    sent.frames += count as u64;
                    left = &left[count.clamp(1, left.len())..];
                    full_since = None;
                }
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN | Errno::NOBUFS)
                    if full_since.get_or_insert_with(Instant::now).elapsed() < FULL_PATIENCE =>
                {
                    self.wait_for_room();
                }
                Err(_) => {
                    sent.lost += 1;
                    left = &left[1..];
                    full_since = None;
                }
            }
        }
        sent.lost += left.len() as u64;
        sent
    }

    fn send_some(&self, frames: &[&[u8]]) -> Result<usize, Errno> {
        if let [frame] = frames {
            return send(&self.socket, frame, SendFlags::DONTWAIT).map(|_| 1);
        }
        let frames = &frames[..frames.len().min(TOGETHER_MAX)];
        let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
        let mut controls: Vec<_> = frames.iter().map(|_| SendAncillaryBuffer::default()).collect();
        let mut messages: Vec<_> =
            slices.iter().zip(&mut controls).map(|(slice, control)| MMsgHdr::new(slice, control)).collect();
        sendmmsg(&self.socket, &mut messages, SendFlags::DONTWAIT)
    }

    /// A full device does not say when it has room again.
    fn wait_for_room(&self) {
        const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000 };
        // A signal only makes the moment shorter.
        let _ = rustix::event::poll(&mut [], Some(&MOMENT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{LOOPBACK, Namespace};
    use sys::tun::HEADER_BYTES;

    fn frame(header: [u8; HEADER_BYTES], len: usize) -> Vec<u8> {
        let mut frame = header.to_vec();
        frame.resize(HEADER_BYTES + len, 0);
        frame
    }

    #[test]
    fn frame_that_makes_no_sense_is_lost_alone() {
        testkit::needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW);
        let plain = [0; HEADER_BYTES];
        let absurd_segments = [1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let unknown_kind = [0, 0x7f, 0, 0, 1, 0, 0, 0, 0, 0];
        let mut chunk = Chunk::default();
        for frame in [
            frame(plain, 60),
            frame(absurd_segments, 60),
            frame(plain, 3),
            frame(unknown_kind, 60),
            vec![0; 4],
            frame(plain, 60),
        ] {
            chunk.append(&frame);
        }
        let namespace = Namespace::new().unwrap();
        let outlet = namespace.within(|| Outlet::open(LOOPBACK)).unwrap();
        assert_eq!(outlet.send(&chunk, &|| true), Sent { frames: 2, lost: 4 });
        assert_eq!(outlet.send(&chunk, &|| false), Sent { frames: 0, lost: 6 });
    }
}
