//! The way out: frames go back to the cell's device, behind the filter that led them away.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, send, sendmmsg};

use super::queue::Chunk;
use crate::packet;

/// Frames of one call.
const TOGETHER_MAX: usize = 64;
/// How long a full device, or a permit that is over, is waited for before its frames are lost, as they are on any full
/// link. Counted from the last frame that it took: this is waited once, and not for every frame.
const FULL_PATIENCE: Duration = Duration::from_millis(20);
const BUFFER_BYTES: i32 = 32 << 20;

#[derive(Debug)]
pub struct Outlet {
    socket: OwnedFd,
    patience: Duration,
    /// Since when the device has taken nothing.
    full_since: Option<Instant>,
}

/// What became of frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    pub frames: u64,
    pub lost: u64,
    /// The device has no room for these now, or they may not be sent.
    pub left: usize,
}

impl Outlet {
    /// On a device of this thread's namespace, whose filters let pass what has this mark.
    pub fn open(device: u32, mark: u32) -> io::Result<Self> {
        let socket = packet::marked_sender(device, mark)?;
        packet::offload(&socket)?;
        packet::set_buffer(&socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, BUFFER_BYTES)?;
        Ok(Self { socket, patience: FULL_PATIENCE, full_since: None })
    }

    /// Sends a chunk's frames from `first` on, in order, while `may` allows it, which is asked again and again. A
    /// frame that the kernel refuses (its header makes no sense, the device is down) is lost, and stops no other.
    /// Never waits.
    pub fn send(&mut self, chunk: &Chunk, first: usize, may: &dyn Fn() -> bool) -> Sent {
        let frames: Vec<&[u8]> = chunk.frames().skip(first).collect();
        let mut sent = Sent::default();
        let mut left = &frames[..];
        while !left.is_empty() && may() {
            match self.send_some(left) {
                Ok(count) => {
                    sent.frames += count as u64;
                    left = &left[count.clamp(1, left.len())..];
                    self.full_since = None;
                }
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN | Errno::NOBUFS)
                    if self.full_since.get_or_insert_with(Instant::now).elapsed() < self.patience =>
                {
                    break;
                }
                Err(_) => {
                    sent.lost += 1;
                    left = &left[1..];
                }
            }
        }
        sent.left = left.len();
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
}

/// Frames that may leave, in order, and their way.
#[derive(Debug)]
pub struct WayOut {
    outlet: Outlet,
    leaving: VecDeque<Chunk>,
    /// How many frames of the first chunk have left.
    gone: usize,
}

impl WayOut {
    pub fn new(outlet: Outlet) -> Self {
        Self { outlet, leaving: VecDeque::new(), gone: 0 }
    }

    /// Nothing waits for room.
    pub fn is_clear(&self) -> bool {
        self.leaving.is_empty()
    }

    pub fn add(&mut self, chunks: impl IntoIterator<Item = Chunk>) {
        self.leaving.extend(chunks);
    }

    /// Sends until nothing is left or the device is full; `done` gets the chunks that have left. Never waits.
    pub fn send(&mut self, may: &dyn Fn() -> bool, mut done: impl FnMut(Chunk)) -> Sent {
        let mut all = Sent::default();
        while let Some(chunk) = self.leaving.pop_front() {
            let sent = self.outlet.send(&chunk, self.gone, may);
            all.frames += sent.frames;
            all.lost += sent.lost;
            if sent.left > 0 {
                self.gone = chunk.count() - sent.left;
                self.leaving.push_front(chunk);
                break;
            }
            self.gone = 0;
            done(chunk);
        }
        all.left = self.count();
        all
    }

    /// Sends a chunk behind all that waits. What is left of it does not wait here.
    pub fn send_last(&mut self, chunk: &Chunk, may: &dyn Fn() -> bool) -> Sent {
        if self.is_clear() {
            self.outlet.send(chunk, 0, may)
        } else {
            Sent { left: chunk.count(), ..Sent::default() }
        }
    }

    /// How many frames wait for room.
    pub fn count(&self) -> usize {
        self.leaving.iter().map(Chunk::count).sum::<usize>() - self.gone
    }

    /// How much memory they take.
    pub fn cost(&self) -> usize {
        self.leaving.iter().map(Chunk::cost).sum()
    }

    pub fn clear(&mut self) {
        self.leaving.clear();
        self.gone = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering;

    use crate::namespace::{LOOPBACK, Namespace};
    use crate::netlink::{Direction, Netlink};
    use crate::network::programs;
    use sys::bpf::WordArray;
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
        let mut outlet = namespace.within(|| Outlet::open(LOOPBACK, 0)).unwrap();
        assert_eq!(outlet.send(&chunk, 0, &|| true), Sent { frames: 2, lost: 4, left: 0 });
        assert_eq!(outlet.send(&chunk, 2, &|| false), Sent { frames: 0, lost: 0, left: 4 });
    }

    /// A cable with a shut door, and the way out at its near end.
    fn cable(patience: Duration) -> (Namespace, WordArray, WayOut) {
        let namespace = Namespace::new().unwrap();
        let doors = WordArray::create("checksync_doors", programs::DOORS).unwrap();
        let shut = programs::way_out(&doors).unwrap();
        let open = || {
            let netlink = Netlink::open()?;
            netlink.add_veth("near", "far", namespace.as_fd())?;
            let near = netlink.link("near")?.index;
            netlink.allow_filters(near)?;
            netlink.set_filter(near, Direction::Out, 1, shut.as_fd(), "shut")?;
            netlink.set_up(near)?;
            netlink.set_up(netlink.link("far")?.index)?;
            Ok(WayOut::new(Outlet { patience, ..Outlet::open(near, 0)? }))
        };
        let way = namespace.within(open).unwrap();
        (namespace, doors, way)
    }

    fn chunks() -> [Chunk; 2] {
        [1, 2].map(|_| {
            let mut chunk = Chunk::default();
            (0..100).for_each(|_| chunk.append(&frame([0; HEADER_BYTES], 60)));
            chunk
        })
    }

    #[test]
    fn frames_wait_for_a_door_that_opens() {
        testkit::needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF);
        let (_namespace, doors, mut way) = cable(Duration::MAX);
        way.add(chunks());
        let all = Sent { left: 200, ..Sent::default() };
        assert_eq!(way.send(&|| true, |_| panic!("nothing has left")), all);
        assert_eq!(way.send_last(&chunks()[0], &|| true), Sent { left: 100, ..Sent::default() });
        doors[programs::OUT].store(1, Ordering::SeqCst);
        let mut done = 0;
        assert_eq!(way.send(&|| true, |_| done += 1), Sent { frames: 200, ..Sent::default() });
        assert!(way.is_clear() && done == 2);
    }

    #[test]
    fn door_that_stays_shut_loses_everything_once_patience_is_over() {
        testkit::needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF);
        let (_namespace, _doors, mut way) = cable(Duration::ZERO);
        way.add(chunks());
        assert_eq!(way.send(&|| true, drop), Sent { lost: 200, ..Sent::default() });
    }
}
