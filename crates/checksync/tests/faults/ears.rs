//! Who is heard under the service's address, in the order in which the switch heard it.
//!
//! Every copy of the app speaks with a hardware address of its own. So who was silenced by somebody else's voice must
//! never be heard again: not an answer, not a retransmission, not a claim of the address.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use gate::Namespace;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with};
use sys::sockets::{attach_filter, set_number};

const IGNORE_OUTGOING: i32 = 23;
const ROOM_BYTES: i32 = 64 << 20;
/// So much of a frame says who speaks.
const KEPT_BYTES: u32 = 64;

/// A copy's time of being heard, until another was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    pub voice: [u8; 6],
    pub first: Instant,
    pub last: Instant,
    pub frames: u64,
    /// Of these, what says where the address is.
    pub claims: u64,
}

#[derive(Debug)]
pub struct Ears {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Turn>>>,
}

/// What was heard.
#[derive(Debug)]
pub struct Heard(pub Vec<Turn>);

impl Ears {
    /// At all ports of a switch.
    pub fn open(switch: &Namespace, service: Ipv4Addr) -> io::Result<Self> {
        let socket = switch.within(|| hear(service))?;
        let over = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&over);
        let thread = thread::Builder::new().name("ears".to_owned()).spawn(move || listen(&socket, &own))?;
        Ok(Self { over, thread: Some(thread) })
    }

    pub fn close(mut self) -> Heard {
        self.over.store(true, Ordering::SeqCst);
        let thread = self.thread.take().expect("it is closed once");
        Heard(thread.join().expect("it only listens"))
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // What it heard is not asked for.
            let _ = thread.join();
        }
    }
}

impl Heard {
    /// How often somebody was heard again who had been followed by somebody else.
    pub fn overlaps(&self) -> usize {
        let mut turns = BTreeMap::new();
        self.0.iter().for_each(|turn| *turns.entry(turn.voice).or_insert(0_usize) += 1);
        turns.values().map(|count| count - 1).sum()
    }

    pub fn voices(&self) -> usize {
        self.0.len() - self.overlaps()
    }
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(begin) = self.0.first().map(|turn| turn.first) else { return f.write_str("nobody") };
        for Turn { voice: [.., voice], first, last, frames, claims } in &self.0 {
            let at = |instant: &Instant| instant.duration_since(begin).as_secs_f64();
            write!(
                f,
                "[{voice:02x}: {:.4} to {:.4} s, {frames} frames, {claims} claims] ",
                at(first),
                at(last)
            )?;
        }
        Ok(())
    }
}

/// One socket for all ports: its queue is the order.
fn hear(service: Ipv4Addr) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // The filter is there before the first frame can be: a socket without a protocol hears nothing.
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    attach_filter(socket.as_fd(), &filter(service))?;
    set_number(socket.as_fd(), libc::SOL_PACKET, IGNORE_OUTGOING, 1)?;
    set_number(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, ROOM_BYTES)?;
    let mut everywhere = [0; 20];
    everywhere[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
    everywhere[2..4].copy_from_slice(&(libc::ETH_P_ALL as u16).to_be_bytes());
    sys::sockets::bind(socket.as_fd(), &everywhere)?;
    Ok(socket)
}

/// IPv4 from the service's address, and ARP that says where it is.
fn filter(service: Ipv4Addr) -> Vec<u8> {
    const TYPE: u32 = 12;
    const IP_SOURCE: u32 = 26;
    const ARP_SENDER: u32 = 28;
    let service = u32::from(service);
    let half = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    let word = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let program: [(u16, u8, u8, u32); 9] = [
        (half, 0, 0, TYPE),
        (equal, 0, 2, libc::ETH_P_IP as u32),
        (word, 0, 0, IP_SOURCE),
        (equal, 3, 4, service),
        (equal, 0, 3, libc::ETH_P_ARP as u32),
        (word, 0, 0, ARP_SENDER),
        (equal, 0, 1, service),
        (answer, 0, 0, KEPT_BYTES),
        (answer, 0, 0, 0),
    ];
    let raw = |(code, jump_true, jump_false, value): &(u16, u8, u8, u32)| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend([*jump_true, *jump_false]);
        bytes.extend(value.to_ne_bytes());
        bytes
    };
    program.iter().flat_map(raw).collect()
}

fn is_claim(frame: &[u8]) -> bool {
    frame[12..14] == (libc::ETH_P_ARP as u16).to_be_bytes()
}

fn listen(socket: &OwnedFd, over: &AtomicBool) -> Vec<Turn> {
    const A_MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
    let (mut turns, mut frame) = (Vec::<Turn>::new(), [0; KEPT_BYTES as usize]);
    loop {
        while let Ok((len, _)) = recv(socket, &mut frame[..], RecvFlags::empty()) {
            let Some(voice) = frame[..len].get(6..12).and_then(|source| source.try_into().ok()) else {
                continue;
            };
            let (now, claims) = (Instant::now(), u64::from(is_claim(&frame)));
            match turns.last_mut().filter(|turn| turn.voice == voice) {
                Some(turn) => {
                    (turn.last, turn.frames, turn.claims) = (now, turn.frames + 1, turn.claims + claims);
                }
                None => turns.push(Turn { voice, first: now, last: now, frames: 1, claims }),
            }
        }
        if over.load(Ordering::SeqCst) {
            return turns;
        }
        // Nothing to be heard is no failure.
        let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&A_MOMENT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(voices: &[u8]) -> Heard {
        let now = Instant::now();
        Heard(
            voices
                .iter()
                .map(|voice| Turn {
                    voice: [0, 0, 0, 0, 0, *voice],
                    first: now,
                    last: now,
                    frames: 1,
                    claims: 0,
                })
                .collect(),
        )
    }

    #[test]
    fn who_is_heard_after_his_successor_is_counted() {
        assert_eq!((heard(&[1, 2, 3]).overlaps(), heard(&[1, 2, 3]).voices()), (0, 3));
        assert_eq!((heard(&[1, 2, 1]).overlaps(), heard(&[1, 2, 1]).voices()), (1, 2));
    }
}
