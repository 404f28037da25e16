//! What comes in for a cell, recorded for whoever may have to take over: packets that reached the primary after
//! the last barrier, and that the standby's copy of the app has not seen. Replayed there, they spare the client
//! the wait for its own retransmission timer.
//!
//! Recording is best effort: it never delays a packet, and when nobody takes the packets away the oldest are
//! forgotten, which costs their senders a retransmission. Each packet is whole and has its checksum computed, so
//! that it can go anywhere.
//!
//! *Only TCP is recorded.* A packet is labelled when our thread reads it, and may have waited for that: the copy
//! may have seen it before the barrier that it is said to come after. TCP tells a repetition from news by its
//! sequence numbers; a datagram would ask the app the same thing twice. Datagrams that came since the barrier
//! are lost in a takeover, as they are on any network.

mod replay;
mod whole;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use image::CheckpointId;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::RecvFlags;

use crate::namespace;
use crate::network::CellNetwork;
use crate::packet::{self, await_readable, step};
use sys::tun::HEADER_BYTES;

pub use replay::{Replayed, replay};

const FRAME_BYTES_MAX: usize = 66 << 10;
/// What the kernel keeps for us while our thread does not run.
const SOCKET_BYTES: i32 = 16 << 20;
/// What a packet takes beyond its bytes.
const OVERHEAD_BYTES: usize = size_of::<Recorded>();

/// A packet that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The last barrier before it was read. It may have come in a moment earlier, never later: repeating what
    /// the app has seen already is harmless, as it is TCP.
    pub since: Option<CheckpointId>,
    /// From the IP header on.
    pub packet: Vec<u8>,
}

/// Called with packets in the order in which they came, by a thread of the recorder's own.
pub type OnPackets = Box<dyn FnMut(Batch) + Send>;

/// Packets in the order in which they came. They count as waiting until this is dropped, wherever it lies by
/// then: a receiver that does not keep up makes the recorder forget, and no queue grow.
#[derive(Debug)]
pub struct Batch {
    packets: Vec<Recorded>,
    bytes: usize,
    shared: Arc<Shared>,
}

impl std::ops::Deref for Batch {
    type Target = [Recorded];

    fn deref(&self) -> &[Recorded] {
        &self.packets
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.shared.lock().bytes_out -= self.bytes;
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecorderCounters {
    pub recorded: u64,
    /// Were forgotten because nobody took them in time.
    pub forgotten: u64,
    /// Were no TCP, or of a kind that can't be repeated as one packet.
    pub skipped: u64,
}

/// Records what comes in until it is dropped.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    wake: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    bytes_max: usize,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    since: Option<CheckpointId>,
    waiting: VecDeque<Recorded>,
    bytes_waiting: usize,
    /// In batches that are not dropped yet.
    bytes_out: usize,
    counters: RecorderCounters,
    over: bool,
}

impl Recorder {
    /// Records on the cell's device; at most `bytes_max` bytes wait, for `on_packets` or in its batches.
    pub fn start(network: &CellNetwork, bytes_max: usize, on_packets: OnPackets) -> io::Result<Self> {
        let socket = namespace::within(network.namespace(), || open(network.device()))?;
        let shared = Arc::new(Shared { bytes_max, state: Mutex::default(), arrived: Condvar::new() });
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut recorder = Self { shared: Arc::clone(&shared), wake: Arc::clone(&wake), threads: Vec::new() };
        let listener = Arc::clone(&shared);
        recorder.spawn("recorder", move || listener.listen(&socket, &wake))?;
        recorder.spawn("recorded", move || shared.deliver(on_packets))?;
        Ok(recorder)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name.to_owned()).spawn(work)?);
        Ok(())
    }

    /// What is read from now on came after the barrier of `epoch`. Call it right at the gate's barrier.
    pub fn mark(&self, epoch: CheckpointId) {
        self.shared.lock().since = Some(epoch);
    }

    pub fn counters(&self) -> RecorderCounters {
        self.shared.lock().counters
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.arrived.notify_all();
        // A full counter is as loud as a ring.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            // The callback's panic is the caller's.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self, socket: &OwnedFd, wake: &OwnedFd) {
        let mut frame = Vec::with_capacity(FRAME_BYTES_MAX);
        while let Ok([_, false]) = await_readable([socket, wake], None) {
            frame.clear();
            while rustix::net::recv(socket, spare_capacity(&mut frame), RecvFlags::empty()).is_ok() {
                self.record(&frame);
                frame.clear();
            }
        }
    }

    fn record(&self, led: &[u8]) {
        let packet = whole::packet(led);
        let mut state = self.lock();
        let Some(packet) = packet else {
            state.counters.skipped += 1;
            return;
        };
        state.counters.recorded += 1;
        state.bytes_waiting += packet.len() + OVERHEAD_BYTES;
        let since = state.since;
        state.waiting.push_back(Recorded { since, packet });
        while state.bytes_waiting + state.bytes_out > self.bytes_max
            && let Some(oldest) = state.waiting.pop_front()
        {
            state.bytes_waiting -= oldest.packet.len() + OVERHEAD_BYTES;
            state.counters.forgotten += 1;
        }
        drop(state);
        self.arrived.notify_one();
    }

    fn deliver(self: Arc<Self>, mut on_packets: OnPackets) {
        loop {
            let idle = |state: &mut State| state.waiting.is_empty() && !state.over;
            let state = self.arrived.wait_while(self.lock(), idle);
            let mut state = state.unwrap_or_else(PoisonError::into_inner);
            if state.over {
                return;
            }
            let packets = std::mem::take(&mut state.waiting).into();
            let bytes = std::mem::take(&mut state.bytes_waiting);
            state.bytes_out += bytes;
            drop(state);
            on_packets(Batch { packets, bytes, shared: Arc::clone(&self) });
        }
    }
}

/// Hears every IP packet for us, also those that a filter is about to drop: only a receiver of every protocol
/// comes before the filters.
fn open(device: u32) -> io::Result<OwnedFd> {
    let socket = packet::receiver(device, libc::ETH_P_ALL, &ip_for_us())?;
    sys::sockets::set_number(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    packet::set_buffer(&socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, SOCKET_BYTES)?;
    Ok(socket)
}

fn ip_for_us() -> [libc::sock_filter; 7] {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    let ancillary = |which: i32| (libc::SKF_AD_OFF + which) as u32;
    [
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0, ancillary(libc::SKF_AD_PKTTYPE)),
        step(BPF_JMP | BPF_JEQ | BPF_K, 4, 0, u32::from(libc::PACKET_OTHERHOST)),
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0, ancillary(libc::SKF_AD_PROTOCOL)),
        step(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, libc::ETH_P_IP as u32),
        step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, libc::ETH_P_IPV6 as u32),
        step(BPF_RET | BPF_K, 0, 0, (FRAME_BYTES_MAX - HEADER_BYTES) as u32),
        step(BPF_RET | BPF_K, 0, 0, 0),
    ]
}
