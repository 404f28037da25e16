//! Asks the peers of connections what they have, before the connections are built again.
//!
//! Some old bytes, which the peer has long acknowledged, are answered at once with what it has acknowledged since,
//! in whatever state the connection is. (Kernels answer a bare acknowledgement that is as old no more than
//! twice a second.) The answer is read from the link: no socket is there to get it yet, and the kernel must
//! not see it, or it would answer with a RST.
//!
//! Which segment is the answer? One that the peer sent before it heard the question may know of less than the
//! peer has by now: the old primary's last bytes may have come after it. Believed, it would have the copy send what
//! the peer has already, and the peer's true number, beyond all that the new socket has sent, would be ignored for
//! ever. But a peer with selective acknowledgements names the bytes that came twice (RFC 2883): who names the
//! question's has heard it, and with nobody else speaking for this side any more his number is the last. The
//! question's length is drawn by lot, so that it is not taken for something that the old primary sent twice. From
//! peers without selective acknowledgements, which name none, the highest number counts of all that come in the time of
//! one attempt. A peer that could name them and has not, in all its time, counts as silent: its kernel may be too busy.
//! But who has all that was ever sent cannot have more, whenever he says so. (One that has closed its end names nothing.)

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
/// How many old bytes a question is made of.
const OLD_BYTES: std::ops::Range<u32> = 24..120;

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
    /// The length of questions.
    old_bytes: u32,
}

/// Whom to ask, and from what position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    pub flow: Flow,
    /// Of the first byte that the peer was not known to have.
    pub unacknowledged: u32,
    /// After the last byte that was sent, or the end of the stream.
    pub sent: u32,
    /// Of the byte that the peer sends next.
    pub expected: u32,
    /// The peer says which bytes came twice.
    pub names_bytes: bool,
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
        let mut asked = Asked::new(questions, self.raw.old_bytes);
        let say = |question: &Question| {
            self.raw.ask(question.flow, question.unacknowledged, question.expected);
        };
        asked.ask_all(say, |asked, until| self.listen(asked, until))?;
        Ok(asked.answers())
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

    pub(super) fn here() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let raw = |family| {
            let with_header = NonZeroU32::new(libc::IPPROTO_RAW as u32).map(rustix::net::Protocol::from_raw);
            rustix::net::socket_with(family, SocketType::RAW, flags, with_header)
        };
        let (version4, version6) = (raw(AddressFamily::INET)?, raw(AddressFamily::INET6).ok());
        let old_bytes = OLD_BYTES.start + by_lot() % (OLD_BYTES.end - OLD_BYTES.start);
        Ok(Self { version4, version6, old_bytes })
    }

    /// Puts a packet on its way: to a peer through the link, to the host itself through `lo`.
    pub(super) fn send(&self, segment: &Segment, payload: &[u8]) -> io::Result<()> {
        self.send_packet(segment.to, &segment.packet(payload))
    }

    /// The same for what is a packet already.
    pub(super) fn send_packet(&self, to: SocketAddr, packet: &[u8]) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT;
        match to {
            SocketAddr::V4(mut to) => {
                to.set_port(0);
                rustix::net::sendto(&self.version4, packet, flags, &to)?;
            }
            SocketAddr::V6(mut to) => {
                to.set_port(0); // Here it would be a protocol.
                let socket = self.version6.as_ref().ok_or(io::ErrorKind::Unsupported)?;
                rustix::net::sendto(socket, packet, flags, &to)?;
            }
        }
        Ok(())
    }

    /// A packet that cannot be sent now is like one that gets lost.
    pub(super) fn ask(&self, flow: Flow, unacknowledged: u32, expected: u32) {
        const BYTES: [u8; OLD_BYTES.end as usize] = [0; OLD_BYTES.end as usize];
        let old = Segment {
            from: flow.local,
            to: flow.remote,
            sequence: unacknowledged.wrapping_sub(self.old_bytes),
            acknowledgement: expected,
            flags: ACKNOWLEDGEMENT,
            window: u16::MAX,
            selective: None,
        };
        if let Err(why) = self.send(&old, &BYTES[..self.old_bytes as usize]) {
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
    old_bytes: u32,
    index: HashMap<Ends, usize>,
    heard: Vec<Heard>,
    open: usize,
}

/// What came from a peer so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    /// It may have been said before the question was heard.
    Maybe(Answer),
    Sure(Answer),
}

impl<'a> Asked<'a> {
    fn new(questions: &'a [Question], old_bytes: u32) -> Self {
        let index = questions.iter().enumerate();
        let index = index.map(|(n, question)| (ends(question.flow.local, question.flow.remote), n)).collect();
        let heard = vec![Heard::Nothing; questions.len()];
        Self { questions, old_bytes, index, heard, open: questions.len() }
    }

    fn answers(&self) -> Vec<Option<Answer>> {
        let answer = |(heard, question): (&Heard, &Question)| match heard {
            Heard::Maybe(answer) if !question.names_bytes => Some(*answer),
            Heard::Nothing | Heard::Maybe(_) => None,
            Heard::Sure(answer) => Some(*answer),
        };
        self.heard.iter().zip(self.questions).map(answer).collect()
    }

    fn open(&self) -> impl Iterator<Item = usize> {
        (0..self.heard.len()).filter(|index| !matches!(self.heard[*index], Heard::Sure(_)))
    }

    /// An attempt is over: there was time enough for what is true to come after what may be. What a peer had
    /// acknowledged even before the capture cannot be it.
    fn settle(&mut self) {
        for (heard, question) in self.heard.iter_mut().zip(self.questions) {
            let Heard::Maybe(answer @ Answer::Has { acknowledged, .. }) = *heard else { continue };
            if !question.names_bytes && !is_before(acknowledged, question.unacknowledged) {
                *heard = Heard::Sure(answer);
                self.open -= 1;
            }
        }
    }

    /// Says each question, and listens until all are answered or their time is over. The time begins when all have been
    /// said: on a busy machine that takes longer than an answer does.
    fn ask_all(
        &mut self,
        say: impl Fn(&Question),
        mut listen: impl FnMut(&mut Self, Instant) -> io::Result<()>,
    ) -> io::Result<()> {
        for attempt in 0..ATTEMPTS {
            self.settle();
            self.open().for_each(|index| say(&self.questions[index]));
            let said = Instant::now();
            while let Some(until) = self.deadline(attempt, said) {
                // What has come by then counts, however late it is looked at.
                let is_over = Instant::now() >= until;
                listen(self, until)?;
                if is_over {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Until when an attempt waits for somebody; each is given as long as the one before.
    fn deadline(&self, attempt: u32, said: Instant) -> Option<Instant> {
        if self.open == 0 {
            return None;
        }
        let longest = self.open().map(|index| self.questions[index].patience).max()?;
        Some(said + longest / 2_u32.pow(ATTEMPTS - 1 - attempt.min(ATTEMPTS - 1)))
    }

    fn take(&mut self, packet: &[u8]) {
        let Some(segment) = Segment::parse(packet) else { return };
        let Some(&index) = self.index.get(&ends(segment.to, segment.from)) else { return };
        let before = self.heard[index];
        if let Heard::Sure(_) = before {
            return;
        }
        let now = self.judge(&segment, &self.questions[index]);
        let is_older = match (before, now) {
            (
                Heard::Maybe(Answer::Has { acknowledged: before, .. }),
                Heard::Maybe(Answer::Has { acknowledged, .. }),
            ) => is_before(acknowledged, before),
            (_, Heard::Nothing) => true,
            (_, Heard::Maybe(_) | Heard::Sure(_)) => false,
        };
        if !is_older {
            self.heard[index] = now;
        }
        self.open -= usize::from(matches!(now, Heard::Sure(_)));
    }

    fn judge(&self, segment: &Segment, question: &Question) -> Heard {
        let Question { unacknowledged, sent, .. } = *question;
        let asked = (unacknowledged.wrapping_sub(self.old_bytes), unacknowledged);
        let said = Answer::Has { acknowledged: segment.acknowledgement, window: segment.window };
        match segment.flags {
            // Whatever it said before.
            flags if flags & RESET != 0 => Heard::Sure(Answer::Gone),
            flags if flags & ACKNOWLEDGEMENT == 0 => Heard::Nothing,
            _ if segment.selective == Some(asked) => Heard::Sure(said),
            // A window that was shut may be open by now.
            _ if segment.acknowledgement == sent && segment.window > 0 => Heard::Sure(said),
            _ => Heard::Maybe(said),
        }
    }
}

fn is_before(sequence: u32, other: u32) -> bool {
    (sequence.wrapping_sub(other) as i32) < 0
}

/// No two takeovers in a row ask with the same length.
fn by_lot() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: u32 = 40;
    const FIRST: u32 = 10;

    fn question(names_bytes: bool) -> Question {
        let (local, remote) = ("10.0.0.9:80".parse().unwrap(), "10.0.0.1:4000".parse().unwrap());
        let patience = Duration::from_secs(1);
        let (unacknowledged, sent, expected) = (FIRST, FIRST + 20, 77);
        Question { flow: Flow { local, remote }, unacknowledged, sent, expected, names_bytes, patience }
    }

    /// A bare acknowledgement of the peer's, with a block of bytes that came twice.
    fn segment(acknowledgement: u32, flags: u8, twice: Option<(u32, u32)>) -> Vec<u8> {
        const IP_HEADER_BYTES: usize = 20;
        let Flow { local, remote } = question(true).flow;
        let (sequence, window) = (77, 500);
        let made =
            Segment { from: remote, to: local, sequence, acknowledgement, flags, window, selective: None };
        let mut packet = made.packet(&[]);
        if let Some((begin, end)) = twice {
            packet[IP_HEADER_BYTES + 12] = 8 << 4;
            packet.extend([1, 1, 5, 10]);
            packet.extend([begin, end].into_iter().flat_map(u32::to_be_bytes));
        }
        packet
    }

    fn has(acknowledged: u32) -> Option<Answer> {
        Some(Answer::Has { acknowledged, window: 500 })
    }

    #[test]
    fn what_was_said_before_the_question_was_heard_does_not_end_the_wait() {
        let questions = [question(true)];
        let mut asked = Asked::new(&questions, OLD);
        let now = Instant::now();
        for stray in [FIRST + 5, FIRST, FIRST.wrapping_sub(20), FIRST + 3] {
            asked.take(&segment(stray, ACKNOWLEDGEMENT, None));
        }
        // Of something else that came twice.
        asked.take(&segment(FIRST + 4, ACKNOWLEDGEMENT, Some((FIRST.wrapping_sub(1), FIRST))));
        assert!(asked.deadline(0, now).is_some(), "it goes on waiting");
        assert_eq!(asked.answers(), [None]);
        let ours = Some((FIRST.wrapping_sub(OLD), FIRST));
        asked.take(&segment(FIRST + 9, ACKNOWLEDGEMENT, ours));
        assert_eq!(asked.deadline(0, now), None);
        asked.take(&segment(FIRST + 50, ACKNOWLEDGEMENT, None));
        assert_eq!(asked.answers(), [has(FIRST + 9)], "what comes later is older");
    }

    #[test]
    fn a_peer_that_names_no_bytes_has_one_attempt_for_its_highest_number() {
        let questions = [question(false)];
        let mut asked = Asked::new(&questions, OLD);
        asked.take(&segment(FIRST + 2, ACKNOWLEDGEMENT, None));
        asked.take(&segment(FIRST + 7, ACKNOWLEDGEMENT, None));
        asked.take(&segment(FIRST + 6, ACKNOWLEDGEMENT, None));
        assert_eq!(asked.open().count(), 1);
        asked.settle();
        assert_eq!((asked.open().count(), asked.answers()), (0, vec![has(FIRST + 7)]));
    }

    /// Its highest number may be what it had before the old primary's last bytes came.
    #[test]
    fn a_peer_that_could_name_the_bytes_and_does_not_is_not_believed() {
        let questions = [question(true)];
        let mut asked = Asked::new(&questions, OLD);
        asked.take(&segment(FIRST + 2, ACKNOWLEDGEMENT, None));
        (0..ATTEMPTS).for_each(|_| asked.settle());
        assert_eq!((asked.open().count(), asked.answers()), (1, vec![None]));
        asked.take(&segment(FIRST + 9, ACKNOWLEDGEMENT, Some((FIRST.wrapping_sub(OLD), FIRST))));
        assert_eq!((asked.open().count(), asked.answers()), (0, vec![has(FIRST + 9)]));
    }

    #[test]
    fn who_has_all_that_was_sent_is_believed_at_once() {
        let questions = [question(true)];
        let mut asked = Asked::new(&questions, OLD);
        asked.take(&segment(FIRST + 20, ACKNOWLEDGEMENT, None));
        assert_eq!((asked.open().count(), asked.answers()), (0, vec![has(FIRST + 20)]));
    }

    #[test]
    fn a_number_from_before_the_capture_is_asked_again() {
        let questions = [question(false)];
        let mut asked = Asked::new(&questions, OLD);
        asked.take(&segment(FIRST.wrapping_sub(1), ACKNOWLEDGEMENT, None));
        asked.settle();
        assert_eq!(asked.open().count(), 1);
    }

    /// As on a machine on which everybody is late.
    #[test]
    fn an_answer_that_came_in_time_counts_when_it_is_looked_at_late() {
        let questions = [Question { patience: Duration::ZERO, ..question(true) }];
        let mut asked = Asked::new(&questions, OLD);
        let listen = |asked: &mut Asked<'_>, _| {
            asked.take(&segment(FIRST + 20, ACKNOWLEDGEMENT, None));
            Ok(())
        };
        asked.ask_all(|_| (), listen).unwrap();
        assert_eq!(asked.answers(), [has(FIRST + 20)]);
    }

    #[test]
    fn a_reset_ends_it() {
        let questions = [question(true)];
        let mut asked = Asked::new(&questions, OLD);
        asked.take(&segment(FIRST + 5, ACKNOWLEDGEMENT, None));
        asked.take(&segment(0, RESET, None));
        asked.take(&segment(FIRST + 9, ACKNOWLEDGEMENT, Some((FIRST.wrapping_sub(OLD), FIRST))));
        assert_eq!((asked.open().count(), asked.answers()), (0, vec![Some(Answer::Gone)]));
    }
}
