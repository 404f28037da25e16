//! Asks the peers of connections what they have, before the connections are built again.
//!
//! One old byte, which the peer has long acknowledged, is answered at once with what it has acknowledged since,
//! in whatever state the connection is. (Kernels answer a bare acknowledgement that is as old no more than
//! twice a second.) The answer is read from the link: no socket is there to get it yet, and the kernel must
//! not see it, or it would answer with a RST.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use sys::sockets::set_number;

use super::cache::in_network_of;
use super::segments::{ACKNOWLEDGEMENT, Flow, RESET, Segment};

/// How often a peer is asked that does not answer.
const ATTEMPTS: u32 = 3;

/// The sockets to speak and listen below TCP, in a network namespace.
#[derive(Debug)]
pub(super) struct Prober {
    sniffer: Sniffer,
    pub raw: Raw,
}

/// Sockets that send packets as they are.
#[derive(Debug)]
pub(super) struct Raw {
    version4: OwnedFd,
    /// Without IPv6 in the kernel there is nobody to ask in it.
    version6: Option<OwnedFd>,
}

/// Whom to ask, and from what position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    pub flow: Flow,
    /// Of the first byte that the peer was not known to have.
    pub unacknowledged: u32,
    /// Of the byte that the peer sends next.
    pub expected: u32,
    pub patience: Duration,
}

/// What a peer said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has everything before this number.
    Has { acknowledged: u32, window: u16 },
    /// It knows of no such connection.
    Gone,
}

/// N.B. the kernel closes a packet socket only when no core looks at it any more, which takes up to some tens of
/// milliseconds: in a takeover nobody has the time.
#[derive(Debug)]
struct Sniffer(Option<OwnedFd>);

impl AsFd for Sniffer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().expect("open until it is dropped").as_fd()
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        let socket = self.0.take();
        // Without a thread it is closed here.
        let _ = std::thread::Builder::new().name("close".to_owned()).spawn(move || drop(socket));
    }
}

impl Prober {
    /// Sockets in the network namespace of a process.
    pub(super) fn beside(pidfd: BorrowedFd<'_>) -> io::Result<Self> {
        in_network_of(pidfd, Self::here)
    }

    fn here() -> io::Result<Self> {
        const SOL_PACKET: i32 = 263;
        const PACKET_IGNORE_OUTGOING: i32 = 23;
        /// Uploads that go on meanwhile must not push the answers out.
        const ROOM_BYTES: i32 = 16 << 20;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let everything = Some(rustix::net::eth::ALL);
        let sniffer = rustix::net::socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, everything)?;
        set_number(sniffer.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, ROOM_BYTES)?;
        set_number(sniffer.as_fd(), SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        Ok(Self { sniffer: Sniffer(Some(sniffer)), raw: Raw::here()? })
    }

    /// Asks all at once; what each said, `None` for who did not answer in its time.
    pub(super) fn ask(&self, questions: &[Question]) -> io::Result<Vec<Option<Answer>>> {
        let mut asked = Asked::new(questions);
        for attempt in 0..ATTEMPTS {
            let now = Instant::now();
            for index in asked.open() {
                let Question { flow, unacknowledged, expected, .. } = questions[index];
                self.raw.ask(flow, unacknowledged, expected);
            }
            while let Some(until) = asked.next_deadline(attempt, now) {
                self.listen(&mut asked, until)?;
            }
        }
        Ok(asked.answers)
    }

    /// Takes all that has come in; waits for something until then.
    fn listen(&self, asked: &mut Asked<'_>, until: Instant) -> io::Result<()> {
        const HEADERS_BYTES: usize = 128;
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.sniffer, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(error) => return Err(error.into()),
        }
        let mut packet = [0; HEADERS_BYTES];
        loop {
            match rustix::net::recv(&self.sniffer, &mut packet[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => asked.take(&packet[..len]),
                Err(Errno::AGAIN) => return Ok(()),
                // The link went down and up, or packets were lost for want of room.
                Err(Errno::NETDOWN | Errno::NOBUFS | Errno::INTR) => (),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Raw {
    /// In the network namespace of a process.
    pub(super) fn beside(pidfd: BorrowedFd<'_>) -> io::Result<Self> {
        in_network_of(pidfd, Self::here)
    }

    fn here() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let raw = |family| {
            let with_header = NonZeroU32::new(libc::IPPROTO_RAW as u32).map(rustix::net::Protocol::from_raw);
            rustix::net::socket_with(family, SocketType::RAW, flags, with_header)
        };
        let (version4, version6) = (raw(AddressFamily::INET)?, raw(AddressFamily::INET6).ok());
        Ok(Self { version4, version6 })
    }

    /// Puts a packet on its way: to a peer through the link, to the host itself through `lo`.
    pub(super) fn send(&self, segment: &Segment, payload: &[u8]) -> io::Result<()> {
        let packet = segment.packet(payload);
        let flags = SendFlags::DONTWAIT;
        match segment.to {
            SocketAddr::V4(mut to) => {
                to.set_port(0);
                rustix::net::sendto(&self.version4, &packet, flags, &to)?;
            }
            SocketAddr::V6(mut to) => {
                to.set_port(0); // Here it would be a protocol.
                let socket = self.version6.as_ref().ok_or(io::ErrorKind::Unsupported)?;
                rustix::net::sendto(socket, &packet, flags, &to)?;
            }
        }
        Ok(())
    }

    /// A packet that cannot be sent now is like one that gets lost.
    pub(super) fn ask(&self, flow: Flow, unacknowledged: u32, expected: u32) {
        const OLD_BYTE: &[u8] = &[0];
        let old = Segment {
            from: flow.local,
            to: flow.remote,
            sequence: unacknowledged.wrapping_sub(1),
            acknowledgement: expected,
            flags: ACKNOWLEDGEMENT,
            window: u16::MAX,
        };
        if let Err(why) = self.send(&old, OLD_BYTE) {
            tracing::debug!(peer = %flow.remote, "cannot ask a peer: {why}");
        }
    }
}

/// Both ends, as a packet names them.
type Ends = (IpAddr, u16, IpAddr, u16);

fn ends(local: SocketAddr, remote: SocketAddr) -> Ends {
    (local.ip(), local.port(), remote.ip(), remote.port())
}

struct Asked<'a> {
    questions: &'a [Question],
    index: HashMap<Ends, usize>,
    answers: Vec<Option<Answer>>,
    unanswered: usize,
}

impl<'a> Asked<'a> {
    fn new(questions: &'a [Question]) -> Self {
        let index = questions.iter().enumerate();
        let index = index.map(|(n, question)| (ends(question.flow.local, question.flow.remote), n)).collect();
        Self { questions, index, answers: vec![None; questions.len()], unanswered: questions.len() }
    }

    fn open(&self) -> impl Iterator<Item = usize> {
        (0..self.answers.len()).filter(|index| self.answers[*index].is_none())
    }

    /// Until when an attempt waits for somebody; each is given as long as the one before.
    fn next_deadline(&self, attempt: u32, began: Instant) -> Option<Instant> {
        if self.unanswered == 0 {
            return None;
        }
        let longest = self.open().map(|index| self.questions[index].patience).max()?;
        let until = began + longest / 2_u32.pow(ATTEMPTS - 1 - attempt.min(ATTEMPTS - 1));
        (until > Instant::now()).then_some(until)
    }

    /// N.B. segments that were on their way before the question may say less than the peer has; so the
    /// highest number counts, as long as anybody is waited for.
    fn take(&mut self, packet: &[u8]) {
        let Some(segment) = Segment::parse(packet) else { return };
        let Some(&index) = self.index.get(&ends(segment.to, segment.from)) else { return };
        let said = if segment.flags & RESET != 0 {
            Answer::Gone
        } else if segment.flags & ACKNOWLEDGEMENT != 0 {
            Answer::Has { acknowledged: segment.acknowledgement, window: segment.window }
        } else {
            return;
        };
        let place = &mut self.answers[index];
        match (*place, said) {
            (None, _) => self.unanswered -= 1,
            (Some(Answer::Has { acknowledged: before, .. }), Answer::Has { acknowledged, .. })
                if (acknowledged.wrapping_sub(before) as i32) < 0 =>
            {
                return;
            }
            (Some(_), _) => (),
        }
        *place = Some(said);
    }
}
