//! Connections that the app has not accepted: the copy's listener gets them as its own.
//!
//! No call puts a connection into a listener's queue. But the kernel takes the last segment of a handshake that it has
//! kept nothing of, if that brings the right numbers (SYN cookies), and a program may say that they are right
//! ([`sys::admit`]). So each peer's last segment is said again in its name, through `lo`, and behind it what the peer
//! has sent since, and its end; with the numbers of old, the peer notices nothing. What came of it is looked up
//! in the socket diagnosis: bytes that the listener had no room for would be acknowledged and nowhere, so then the peer is
//! told that the connection has ended.
//!
//! Whoever was in the middle of the handshake is asked first. Who answers with a RST has not heard us yet, and goes on
//! connecting.
//!
//! N.B. MPTCP listeners take no such segment (`EINVAL`). One with connections to be taken is made a TCP listener: its
//! clients that speak MPTCP fall back to TCP, as with any server.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use image::descriptor::{FileKind, InternetSocket, Stray, StrayKind, TcpState};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use sys::admit::{Admission, Agreed, AtLoopback, Ends};
use sys::sockets::{bind, set_number};

use super::cache::{diagnosis_socket, in_network_of};
use super::diagnosis::{self, Report, SYN_RECV};
use super::probe::{Answer, Question};
use super::revive::{flow_between, later, question, scaled};
use super::segments::{ACKNOWLEDGEMENT, FIN, Flow, RESET, Segment, address};
use super::stream::peer_has_finished;
use crate::process::types::Types;

/// How long the kernel may take for what comes through `lo`.
const PATIENCE: Duration = Duration::from_millis(100);

/// One that the app is to find in its listener's queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting<'a> {
    pub flow: Flow,
    pub tcp: &'a TcpState,
}

/// Those among the strays.
pub(super) fn waiting(strays: &[Stray]) -> Vec<Waiting<'_>> {
    let unaccepted = strays.iter().filter(|stray| stray.kind == StrayKind::Unaccepted);
    let waiting = unaccepted.filter_map(|stray| {
        let flow = flow_between(&stray.local, &stray.remote).ok()?;
        Some(Waiting { flow, tcp: stray.tcp.as_deref()? })
    });
    waiting.collect()
}

/// Whether somebody is to be taken by this one, which only TCP can do.
pub(super) fn has_to_be_tcp(kind: &FileKind, strays: &[Stray]) -> bool {
    let FileKind::Listener(InternetSocket { protocol: libc::IPPROTO_MPTCP, local, .. }) = kind else {
        return false;
    };
    let port = address(local).map(|address| address.port());
    waiting(strays).iter().any(|one| Some(one.flow.local.port()) == port)
}

impl Waiting<'_> {
    /// For whom may not be connected. Out of order for one that is still connecting, who says so.
    pub(super) fn question(&self) -> Option<Question> {
        let asked = question(self.tcp, self.flow);
        let expected = asked.expected.wrapping_sub(1);
        (self.tcp.state == SYN_RECV).then_some(Question { expected, ..asked })
    }

    /// Its segments, the last one of the handshake first.
    fn segments(&self) -> impl Iterator<Item = (Segment, &[u8])> {
        /// No packet has more than 64 KiB.
        const PIECE_BYTES: usize = 16 << 10;
        let tcp = self.tcp;
        let begin = self.begin();
        let of_peer = move |skip: usize, flags: u8| Segment {
            from: self.flow.remote,
            to: self.flow.local,
            sequence: begin.wrapping_add(skip as u32),
            acknowledgement: tcp.write_sequence,
            flags: flags | ACKNOWLEDGEMENT,
            window: scaled(tcp.window.peer, tcp),
            selective: None,
        };
        let pieces = tcp.unread.chunks(PIECE_BYTES).enumerate();
        let pieces = pieces.map(move |(n, piece)| (of_peer(n * PIECE_BYTES, 0), piece));
        let end = peer_has_finished(tcp.state).then(|| (of_peer(tcp.unread.len(), FIN), &[][..]));
        std::iter::once((of_peer(0, 0), &[][..])).chain(pieces).chain(end)
    }

    fn agreed(&self, elapsed: Duration) -> Agreed {
        let tcp = self.tcp;
        Agreed {
            segment_max: u16::try_from(tcp.segment_max).unwrap_or(u16::MAX),
            selective_acknowledgements: tcp.selective_acknowledgements,
            window_scales: tcp.window_scales,
            timestamp: tcp.timestamp.map(|stamp| (later(stamp, elapsed), stamp & 1 != 0)),
        }
    }

    fn ends(&self) -> Ends {
        let Flow { local, remote } = self.flow;
        let ports = [remote.port().to_be_bytes(), local.port().to_be_bytes()].concat();
        let (mut v4, mut v6) = ([0; 12], [0; 36]);
        match (remote.ip(), local.ip()) {
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                v6.copy_from_slice(&[&from.octets()[..], &to.octets(), &ports].concat());
                Ends::V6(v6)
            }
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                v4.copy_from_slice(&[&from.octets()[..], &to.octets(), &ports].concat());
                Ends::V4(v4)
            }
            // No flow is between the two.
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Ends::V4(v4),
        }
    }

    /// Only a RST with the very next number is believed. Until it has come the kernel would answer its peer.
    fn reset(&self, report: &Report) -> Segment {
        Segment {
            from: self.flow.remote,
            to: self.flow.local,
            sequence: self.begin().wrapping_add(report.unread()),
            acknowledgement: self.tcp.write_sequence,
            flags: RESET,
            window: 0,
            selective: None,
        }
    }

    /// The number of what the peer said first.
    fn begin(&self) -> u32 {
        self.tcp.read_sequence.wrapping_sub(self.tcp.unread.len() as u32)
    }

    fn is_there(&self, report: &Report) -> bool {
        let state = if self.tcp.state == SYN_RECV { super::stream::ESTABLISHED } else { self.tcp.state };
        report.mark.state == state && report.unread() as usize == self.tcp.unread.len()
    }
}

/// What is to become of one, by what its peer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Admitted,
    /// It goes on connecting, or has given up.
    LeftAlone,
    Told,
}

pub(super) fn fate(one: &Waiting<'_>, answer: Option<Answer>) -> Fate {
    match answer {
        _ if one.tcp.state != SYN_RECV => Fate::Admitted,
        Some(Answer::Gone) => Fate::LeftAlone,
        Some(Answer::Has { acknowledged, .. }) if acknowledged == one.tcp.write_sequence => Fate::Admitted,
        Some(Answer::Has { .. }) | None => Fate::Told,
    }
}

/// One process has one: it belongs to the kernel that runs.
#[derive(Debug)]
struct Door {
    admission: Admission,
    mark: u32,
}

fn door() -> Option<&'static Mutex<Door>> {
    static DOOR: OnceLock<Option<Mutex<Door>>> = OnceLock::new();
    let open = || match Door::new() {
        Ok(door) => Some(Mutex::new(door)),
        Err(why) => {
            tracing::info!("connections that the app has not accepted are reset at a takeover: {why}");
            None
        }
    };
    DOOR.get_or_init(open).as_ref()
}

/// Finds out about this kernel, beside whatever goes on: it takes some tens of milliseconds.
pub(crate) fn warm_up(strays: &[Stray]) {
    static WARM: OnceLock<()> = OnceLock::new();
    if WARM.get().is_none() && !waiting(strays).is_empty() && WARM.set(()).is_ok() {
        // Without a thread it is found out when it is needed.
        let _ = std::thread::Builder::new().name("admit".to_owned()).spawn(door);
    }
}

impl Door {
    fn new() -> io::Result<Self> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "this kernel cannot (it is older than 6.9)");
        let function = Types::of_kernel()?.function("bpf_sk_assign_tcp_reqsk").ok_or_else(missing)?;
        let mark = RandomState::new().hash_one(0) as u32 | 1;
        let admission = Admission::load(function, mark)
            .map_err(|why| io::Error::new(why.source.kind(), format!("{}: {}", why.source, why.log)))?;
        Ok(Self { admission, mark })
    }

    /// Says again all that the peer has said.
    fn say(&self, through: &Through, one: &Waiting<'_>, elapsed: Duration) -> io::Result<()> {
        let mut segments = one.segments();
        let Some((last, nothing)) = segments.next() else { return Ok(()) };
        self.admission.expect(one.ends(), one.agreed(elapsed));
        through.send(&last, nothing, true)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.admission.answer() {
                Some(answer) => break answer?,
                None if Instant::now() > deadline => return Err(io::ErrorKind::TimedOut.into()),
                None => std::thread::yield_now(),
            }
        }
        segments.try_for_each(|(segment, piece)| through.send(&segment, piece, false))
    }
}

/// The way through `lo` of a network namespace. IPv4 packets that come from elsewhere get through it by a raw socket
/// only (`rp_filter`); for IPv6 packets, the route that such a socket gives them would hold on to the cell's device.
#[derive(Debug)]
struct Through {
    marked: [OwnedFd; 2],
    plain: [OwnedFd; 2],
    diagnosis: OwnedFd,
    _program: AtLoopback,
}

impl Through {
    fn here(door: &Door) -> io::Result<Self> {
        let program = door.admission.attach()?;
        let (marked, plain) = (pair(Some(door.mark))?, pair(None)?);
        Ok(Self { marked, plain, diagnosis: diagnosis_socket()?, _program: program })
    }

    fn send(&self, segment: &Segment, payload: &[u8], marked: bool) -> io::Result<()> {
        const NOBODY_TO_NOBODY: [u8; 12] = [0; 12];
        let [raw, device] = if marked { &self.marked } else { &self.plain };
        let packet = segment.packet(payload);
        match segment.to {
            SocketAddr::V4(mut to) => {
                to.set_port(0);
                rustix::net::sendto(raw, &packet, SendFlags::empty(), &to)?;
            }
            SocketAddr::V6(_) => {
                let kind = (libc::ETH_P_IPV6 as u16).to_be_bytes();
                let frame = [&NOBODY_TO_NOBODY[..], &kind, &packet].concat();
                rustix::net::send(device, &frame, SendFlags::empty())?;
            }
        }
        Ok(())
    }

    /// What the kernel has of each, by its ends.
    fn reports(&self) -> io::Result<HashMap<Flow, Report>> {
        let mut reports = HashMap::new();
        diagnosis::ask(&self.diagnosis, &mut Vec::new(), |report| {
            let (local, remote) = report.ends.addresses();
            if let Ok(flow) = flow_between(&local, &remote) {
                reports.insert(flow, report);
            }
        })?;
        Ok(reports)
    }
}

/// A raw socket for IPv4, and one at the loopback device.
fn pair(mark: Option<u32>) -> io::Result<[OwnedFd; 2]> {
    const LOOPBACK: u32 = 1;
    let flags = SocketFlags::CLOEXEC;
    let with_header = NonZeroU32::new(libc::IPPROTO_RAW as u32).map(rustix::net::Protocol::from_raw);
    let raw = rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, flags, with_header)?;
    let device = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    // `struct sockaddr_ll`.
    let mut at = [0; 20];
    at[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
    at[4..8].copy_from_slice(&LOOPBACK.to_ne_bytes());
    bind(device.as_fd(), &at)?;
    for socket in [&raw, &device] {
        if let Some(mark) = mark {
            set_number(socket.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, mark as i32)?;
        }
    }
    Ok([raw, device])
}

/// Gives them to the listeners in the network of a process, whose way in is shut; whether each is there.
pub(super) fn admit(pidfd: BorrowedFd<'_>, all: &[Waiting<'_>], elapsed: Duration) -> Vec<bool> {
    let began = Instant::now();
    let done = door().ok_or_else(|| io::ErrorKind::Unsupported.into()).and_then(|door| {
        let door = door.lock().unwrap_or_else(PoisonError::into_inner);
        let through = in_network_of(pidfd, || Through::here(&door))?;
        let attached = began.elapsed();
        let said = all.iter().map(|one| door.say(&through, one, elapsed));
        let said: Vec<bool> = said.zip(all).map(|(said, one)| is_done(said, one)).collect();
        let there = look(&through, all, &said)?;
        tracing::debug!(?attached, took = ?began.elapsed(), "listeners have their connections");
        // To take the program away waits for every core.
        let _ = std::thread::Builder::new().name("close".to_owned()).spawn(move || drop(through));
        Ok(there)
    });
    done.unwrap_or_else(|why: io::Error| {
        tracing::warn!("connections that the app has not accepted are reset: {why}");
        vec![false; all.len()]
    })
}

fn is_done(said: io::Result<()>, one: &Waiting<'_>) -> bool {
    if let Err(why) = &said {
        tracing::warn!(peer = %one.flow.remote, "a connection is not taken by its listener: {why}");
    }
    said.is_ok()
}

/// Waits until each that was said is there, or will not be. What is there in part is ended.
fn look(through: &Through, all: &[Waiting<'_>], said: &[bool]) -> io::Result<Vec<bool>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reports = through.reports()?;
        let is_there = |one: &Waiting<'_>| reports.get(&one.flow).is_some_and(|report| one.is_there(report));
        let there: Vec<bool> = all.iter().zip(said).map(|(one, said)| *said && is_there(one)).collect();
        if there == said || Instant::now() > deadline {
            for (one, _) in all.iter().zip(&there).filter(|(_, there)| !**there) {
                let reset = reports.get(&one.flow).map(|report| one.reset(report));
                reset.map_or(Ok(()), |reset| through.send(&reset, &[], false))?;
            }
            return Ok(there);
        }
        std::thread::yield_now();
    }
}
