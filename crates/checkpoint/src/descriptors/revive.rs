//! Connections that go on: built again in repair mode, and set free when the cell's network is.
//!
//! First the peers are asked what they have ([`super::probe`]): all of the queue, nothing of it, a part. Then
//! each socket is built as one that was acknowledged so far and has the rest still to send. (A queue restored
//! as *sent* would wait for the new socket's first retransmission, a second at least; one restored as unsent
//! while the peer has it already would never be believed the peer's acknowledgements.) A peer that says
//! nothing in its time gets the queue as it was captured, which is right in every case, and slow.
//!
//! One that the app had closed is closed again, by us, and is its kernel's from then on.
//!
//! Until [`Revival::finish`] every socket is in repair mode: closed then, it vanishes without a packet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use image::descriptor::{InternetSocket, SocketOption, Stray, StrayKind, TcpState};
use libc::{IPPROTO_TCP, SOL_SOCKET};
use rustix::net::{SendFlags, Shutdown};
use sys::sockets::{bind, connect, set_number, set_option};

use super::admit::{self, Fate, Waiting};
use super::error::{Doing, RebuildError};
use super::inside;
use super::internet::name;
use super::options;
use super::probe::{Answer, Prober, Question, Raw};
use super::segments::{ACKNOWLEDGEMENT, FIN, Flow, RESET, Segment, address};
use super::stream::{
    CLOSE_WAIT, ESTABLISHED, NO_QUEUE, RECEIVE_QUEUE, SEND_QUEUE, SO_BUF_LOCK, app_has_finished,
    leave_repair, peer_has_finished, queue_sequence, state_of, window_bytes,
};

/// The cell's network, as far as a takeover drives it. Whoever implements it owns the address, and takes it
/// away again when the takeover fails.
pub trait CellNetwork: std::fmt::Debug + Send {
    /// Brings the address up and announces it, with the way in still shut: what comes in is seen by packet
    /// sockets and by nobody else, since it would be answered with a RST. The way out is open.
    fn raise(&mut self) -> io::Result<()>;
    /// Opens the way in, and hands in what was recorded since the last barrier. All sockets are in place.
    fn let_in(&mut self) -> io::Result<()>;
}

/// What became of the connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connections {
    /// Go on where they were.
    pub kept: u32,
    /// Go on, but their peers did not answer in time: what they lack comes late.
    pub unanswered: u32,
    /// Are reset at both ends.
    pub reset: u32,
    /// The app had not accepted them, and its listener has them not: their peers are reset.
    pub unaccepted: u32,
    /// The app had closed them: the kernel goes on with what their peers lack.
    pub drained: u32,
    /// The app had closed them, and their peers may not have heard all of it: they are reset.
    pub closed: u32,
    /// How long it took to ask the peers.
    pub asking: Duration,
}

/// A connection to be built: a new socket of the app's making, what is known of the old one.
#[derive(Debug)]
pub(super) struct Kept<'a> {
    pub socket: OwnedFd,
    pub local: &'a [u8],
    pub remote: &'a [u8],
    pub options: &'a [SocketOption],
    pub tcp: &'a TcpState,
    /// The app has closed it: nobody else has the socket.
    pub closed: bool,
}

/// Sockets in repair mode that wait to go on.
#[derive(Debug)]
pub struct Revival<'a> {
    /// `None`: there is nobody to speak to.
    prober: Option<Prober>,
    built: Vec<Built<'a>>,
    /// Connections that have no socket any more; their peers do not know yet.
    ending: Vec<Flow>,
    connections: Connections,
}

/// Connections that do not go on.
#[derive(Debug)]
pub(super) struct Ending<'a> {
    /// Were captured as reset ones.
    pub forgotten: Vec<Flow>,
    /// Those among them that go on are not counted.
    pub strays: &'a [Stray],
}

impl Ending<'_> {
    /// Whom to tell. An address that cannot be read is nobody's.
    fn count(self, connections: &mut Connections) -> Vec<Flow> {
        let mut flows = self.forgotten;
        connections.reset = flows.len() as u32;
        for stray in self.strays.iter().filter(|stray| stray.tcp.is_none()) {
            let (Some(local), Some(remote)) = (address(&stray.local), address(&stray.remote)) else {
                continue;
            };
            if local.is_ipv4() != remote.is_ipv4() {
                continue;
            }
            flows.push(Flow { local, remote });
            match stray.kind {
                StrayKind::Unaccepted => connections.unaccepted += 1,
                StrayKind::Closed => connections.closed += 1,
                StrayKind::Gone => (),
            }
        }
        flows
    }
}

#[derive(Debug)]
struct Built<'a> {
    flow: Flow,
    kept: Kept<'a>,
    /// What is still to be sent.
    rest: &'a [u8],
    /// Of the first byte of it.
    acknowledged: u32,
    window: u16,
    answered: bool,
    /// The peer has another past, or none.
    reset: bool,
    /// The peer knows of no connection.
    gone: bool,
}

impl<'a> Revival<'a> {
    /// Asks all peers and builds all sockets. `elapsed` has gone by since the epoch came in.
    pub(super) fn build(
        pidfd: BorrowedFd<'_>,
        kept: Vec<Kept<'a>>,
        ending: Ending<'_>,
        elapsed: Duration,
    ) -> Result<Self, RebuildError> {
        let mut connections = Connections::default();
        let waiting = admit::waiting(ending.strays);
        let mut ending = ending.count(&mut connections);
        if kept.is_empty() && ending.is_empty() && waiting.is_empty() {
            return Ok(Self { prober: None, built: Vec::new(), ending, connections });
        }
        let prober = Prober::beside(pidfd).doing(|| "open raw sockets in the cell's network".to_owned())?;
        let flows = kept.iter().map(|kept| flow_between(kept.local, kept.remote));
        let flows = flows.collect::<Result<Vec<_>, _>>()?;
        let mut answers = inside::answers(&kept, &flows);
        // Who goes on without its other end would be told of the end by it.
        let gone_on = |flow: &Flow| {
            let other = flows.iter().position(|kept| *kept == inside::from_the_other_end(*flow));
            other.is_some_and(|other| matches!(answers[other], Some(Answer::Has { .. })))
        };
        ending.retain(|flow| !inside::is_inside(flow) || !gone_on(flow));
        let asked: Vec<usize> = (0..kept.len()).filter(|index| answers[*index].is_none()).collect();
        let mut questions: Vec<Question> =
            asked.iter().map(|&index| question(kept[index].tcp, flows[index])).collect();
        questions.extend(waiting.iter().filter_map(Waiting::question));
        let began = Instant::now();
        let said = prober.ask(&questions).doing(|| "ask the peers of the connections".to_owned())?;
        connections.asking = began.elapsed();
        let mut said = said.into_iter();
        asked.into_iter().zip(&mut said).for_each(|(index, said)| answers[index] = said);
        admit_all(pidfd, &waiting, said, elapsed, (&mut connections, &mut ending));
        let mut built = Vec::with_capacity(kept.len());
        for ((kept, flow), answer) in kept.into_iter().zip(flows).zip(answers) {
            let closed = kept.closed;
            match Built::new(kept, flow, answer, elapsed) {
                Ok(one) => built.push(one),
                // Nobody but its peer waits for it.
                Err(why) if closed => {
                    tracing::warn!("a connection that the app has closed is reset: {why}");
                    connections.closed += 1;
                    ending.push(flow);
                }
                Err(why) => return Err(why),
            }
        }
        Ok(Self { prober: Some(prober), built, ending, connections })
    }

    /// Everything goes on: call it when the way in is open. A connection that cannot go on is reset, and
    /// does not keep the others from it. What the app had closed is closed when this returns.
    pub fn finish(mut self) -> Connections {
        let Some(prober) = self.prober.take() else { return self.connections };
        // Who may have to wait keeps nobody waiting.
        self.built.sort_by_key(|one| peer_has_finished(one.kept.tcp.state));
        for one in &self.built {
            let gone_on = if one.reset { Ok(false) } else { one.go_on(&prober.raw).map(|()| true) };
            match gone_on {
                // Who knows of no connection any more has heard what it wanted to hear.
                _ if one.kept.closed && one.gone => self.connections.drained += 1,
                Ok(true) if one.kept.closed => self.connections.drained += 1,
                Ok(true) if one.answered => self.connections.kept += 1,
                Ok(true) => self.connections.unanswered += 1,
                Ok(false) | Err(_) => {
                    match one.kept.closed {
                        true => self.connections.closed += 1,
                        false => self.connections.reset += 1,
                    }
                    self.ending.push(one.flow);
                    one.end(&prober.raw);
                }
            }
            if let Err(why) = gone_on {
                tracing::warn!(peer = %one.flow.remote, "a connection cannot go on and is reset: {why}");
            }
        }
        farewell(prober.raw, self.ending);
        self.connections
    }
}

/// What the app has not accepted gets to its listener; who is to be told is added to those who are. `said`: what who was
/// asked answered.
fn admit_all(
    pidfd: BorrowedFd<'_>,
    waiting: &[Waiting<'_>],
    mut said: impl Iterator<Item = Option<Answer>>,
    elapsed: Duration,
    (connections, ending): (&mut Connections, &mut Vec<Flow>),
) {
    let fates = waiting.iter().map(|one| {
        let answer = one.question().and_then(|_| said.next().flatten());
        (one, admit::fate(one, answer))
    });
    let (admitted, others): (Vec<_>, Vec<_>) = fates.partition(|(_, fate)| *fate == Fate::Admitted);
    let mut told: Vec<Flow> =
        others.iter().filter(|(_, fate)| *fate == Fate::Told).map(|(one, _)| one.flow).collect();
    let admitted: Vec<Waiting<'_>> = admitted.into_iter().map(|(one, _)| *one).collect();
    if !admitted.is_empty() {
        let there = admit::admit(pidfd, &admitted, elapsed);
        connections.kept += there.iter().filter(|there| **there).count() as u32;
        told.extend(admitted.iter().zip(there).filter(|(_, there)| !there).map(|(one, _)| one.flow));
    }
    connections.unaccepted += told.len() as u32;
    ending.extend(told);
}

/// Tells peers that their connections are no more: at once, and then again, for who missed it or, having been
/// spoken to wrongly just before, did not answer.
fn farewell(raw: Raw, flows: Vec<Flow>) {
    /// Kernels answer no more than twice a second.
    const AGAIN: [Duration; 2] = [Duration::from_millis(600), Duration::from_secs(2)];
    if flows.is_empty() {
        return;
    }
    flows.iter().for_each(|flow| provoke(&raw, *flow));
    let repeat = move || {
        for pause in AGAIN {
            std::thread::sleep(pause);
            flows.iter().for_each(|flow| provoke(&raw, *flow));
        }
    };
    if let Err(why) = std::thread::Builder::new().name("farewell".to_owned()).spawn(repeat) {
        tracing::warn!("peers of connections that end are told only once: {why}");
    }
}

pub(super) fn flow(image: &InternetSocket) -> Result<Flow, RebuildError> {
    flow_between(&image.local, &image.remote)
}

pub(super) fn flow_between(local: &[u8], remote: &[u8]) -> Result<Flow, RebuildError> {
    let inconsistent = || RebuildError::Inconsistent { what: "the address of a connection".to_owned() };
    let local = address(local).ok_or_else(inconsistent)?;
    let remote = address(remote).ok_or_else(inconsistent)?;
    if local.is_ipv4() != remote.is_ipv4() {
        return Err(inconsistent());
    }
    Ok(Flow { local, remote })
}

pub(super) fn question(tcp: &TcpState, flow: Flow) -> Question {
    const PATIENCE_MIN: Duration = Duration::from_millis(60);
    const PATIENCE_MAX: Duration = Duration::from_millis(400);
    let round_trip = Duration::from_micros(tcp.round_trip_us.into());
    let patience = (4 * round_trip + PATIENCE_MIN).min(PATIENCE_MAX);
    // The end of the stream goes out with the last byte, and counts as one.
    let finished = u32::from(app_has_finished(tcp.state) && tcp.unsent == 0);
    Question {
        flow,
        unacknowledged: first_unacknowledged(tcp),
        sent: tcp.write_sequence.wrapping_sub(tcp.unsent).wrapping_add(finished),
        expected: expected(tcp),
        names_bytes: tcp.selective_acknowledgements,
        patience,
    }
}

pub(super) fn first_unacknowledged(tcp: &TcpState) -> u32 {
    tcp.write_sequence.wrapping_sub(tcp.unacknowledged.len() as u32)
}

/// As the peer counts: with its FIN.
pub(super) fn expected(tcp: &TcpState) -> u32 {
    tcp.read_sequence.wrapping_add(peer_has_finished(tcp.state).into())
}

impl<'a> Built<'a> {
    fn new(
        kept: Kept<'a>,
        flow: Flow,
        answer: Option<Answer>,
        elapsed: Duration,
    ) -> Result<Self, RebuildError> {
        let tcp = kept.tcp;
        let unsent = (tcp.unsent as usize).min(tcp.unacknowledged.len());
        let sent = tcp.unacknowledged.len() - unsent;
        let first = first_unacknowledged(tcp);
        let window = scaled(tcp.window.peer, tcp);
        let mut one = Self {
            flow,
            kept,
            rest: &tcp.unacknowledged[sent..],
            acknowledged: first,
            window,
            answered: answer.is_some(),
            reset: false,
            gone: answer == Some(Answer::Gone),
        };
        let mut queued = &tcp.unacknowledged[..sent];
        let mut peer_window = tcp.window.peer;
        match answer {
            None => (),
            Some(Answer::Gone) => one.reset = true,
            Some(Answer::Has { acknowledged, window }) => {
                let had = acknowledged.wrapping_sub(first) as usize;
                // Its end of the stream counts as one, and is sent again in any case.
                let most = tcp.unacknowledged.len() + usize::from(app_has_finished(tcp.state));
                one.reset = had > most;
                let had = had.min(tcp.unacknowledged.len());
                if !one.reset {
                    one.acknowledged = first.wrapping_add(had as u32);
                    (one.rest, one.window) = (&tcp.unacknowledged[had..], window);
                    peer_window = u32::from(window) << send_scale(tcp);
                    queued = &[];
                }
            }
        }
        if one.reset && !(one.gone && one.kept.closed) {
            tracing::warn!(peer = %flow.remote, ?answer, first, next = tcp.write_sequence,
                "a peer does not know the connection as it was captured, which is reset");
        }
        let what = || format!("build the connection with {}", name(one.kept.remote));
        one.build(queued, peer_window, elapsed).doing(what)?;
        options::restore(one.kept.socket.as_fd(), one.kept.options)?;
        if one.kept.closed {
            one.close_without_waiting().doing(what)?;
        }
        Ok(one)
    }

    /// A socket in repair mode, established with the peer.
    fn build(&self, queued: &[u8], peer_window: u32, elapsed: Duration) -> io::Result<()> {
        let (socket, tcp) = (self.kept.socket.as_fd(), self.kept.tcp);
        let set = |name, value: i32| set_number(socket, IPPROTO_TCP, name, value);
        let read_from = tcp.read_sequence.wrapping_sub(tcp.unread.len() as u32);
        set(libc::TCP_REPAIR, 1)?;
        self.make_room(queued.len())?;
        set(libc::TCP_REPAIR_QUEUE, SEND_QUEUE)?;
        set(libc::TCP_QUEUE_SEQ, self.acknowledged as i32)?;
        set(libc::TCP_REPAIR_QUEUE, RECEIVE_QUEUE)?;
        set(libc::TCP_QUEUE_SEQ, read_from as i32)?;
        self.connect()?;
        set_option(socket, IPPROTO_TCP, libc::TCP_REPAIR_OPTIONS, &agreed_options(tcp))?;
        if let Some(timestamp) = tcp.timestamp {
            set(libc::TCP_TIMESTAMP, later(timestamp, elapsed) as i32)?;
        }
        send_all(socket, &tcp.unread)?;
        set(libc::TCP_REPAIR_QUEUE, SEND_QUEUE)?;
        send_all(socket, queued)?;
        let mut window = tcp.window;
        window.peer = peer_window;
        window.peer_max = window.peer_max.max(peer_window);
        set_option(socket, IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, &window_bytes(&window))?;
        set(libc::TCP_REPAIR_QUEUE, NO_QUEUE)
    }

    /// It is we who close it: not with a RST, and not for longer than a moment, whatever the app wanted.
    fn close_without_waiting(&self) -> io::Result<()> {
        set_option(self.kept.socket.as_fd(), SOL_SOCKET, libc::SO_LINGER, &[0; 8])
    }

    /// Buffers as they had grown, and room for what is put into them now. The kernel doubles what it is given.
    fn make_room(&self, queued: usize) -> io::Result<()> {
        let socket = self.kept.socket.as_fd();
        let room = |bytes: usize| i32::try_from(bytes).unwrap_or(i32::MAX / 2);
        let send = room(queued + self.rest.len()).max(self.kept.tcp.send_buffer / 2);
        let receive = room(self.kept.tcp.unread.len()).max(self.kept.tcp.receive_buffer / 2);
        set_number(socket, SOL_SOCKET, libc::SO_SNDBUFFORCE, send)?;
        set_number(socket, SOL_SOCKET, libc::SO_RCVBUFFORCE, receive)
    }

    /// Sends nothing in repair mode; the address may not be this host's yet.
    fn connect(&self) -> io::Result<()> {
        /// Of a `sockaddr_in6`.
        const IPV6_BYTES: usize = 28;
        let socket = self.kept.socket.as_fd();
        if self.kept.local.len() == IPV6_BYTES {
            set_number(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
            set_number(socket, libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, 1)?;
        } else {
            set_number(socket, libc::IPPROTO_IP, libc::IP_FREEBIND, 1)?;
        }
        bind(socket, self.kept.local)?;
        connect(socket, self.kept.remote)
    }

    /// The app's side of a connection that ends: what was read is read, then there is an error. The peer is
    /// told by [`farewell`].
    fn end(&self, raw: &Raw) {
        if let Err(why) = self.reset_socket(raw) {
            tracing::error!(peer = %self.flow.remote, "a connection that ends cannot be reset: {why}");
        }
    }

    fn reset_socket(&self, raw: &Raw) -> io::Result<()> {
        let socket = self.kept.socket.as_fd();
        // Only a RST with this very number is believed, and only repair mode tells it.
        set_number(socket, IPPROTO_TCP, libc::TCP_REPAIR, 1)?;
        set_number(socket, IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, RECEIVE_QUEUE)?;
        let next = queue_sequence(socket)?;
        leave_repair(socket, self.reuse_address())?;
        raw.send(&self.of_peer(next, RESET), &[])
    }

    fn go_on(&self, raw: &Raw) -> io::Result<()> {
        let socket = self.kept.socket.as_fd();
        leave_repair(socket, self.reuse_address())?;
        set_number(socket, SOL_SOCKET, SO_BUF_LOCK, self.kept.tcp.buffers_locked)?;
        // N.B. before anything is sent: a segment is refused as too old once the peer has acknowledged more than
        // a window beyond what it names.
        if peer_has_finished(self.kept.tcp.state) {
            self.take_in_end(raw)?;
        }
        send_all(socket, self.rest)?;
        if app_has_finished(self.kept.tcp.state) {
            rustix::net::shutdown(socket, Shutdown::Write)?;
        }
        if self.kept.tcp.read_shut {
            rustix::net::shutdown(socket, Shutdown::Read)?;
        }
        Ok(())
    }

    /// A segment of the peer's that it has sent before. N.B. without a timestamp: the peer's own was read by
    /// nobody, and one that is too high would have its real segments refused.
    fn of_peer(&self, sequence: u32, flags: u8) -> Segment {
        Segment {
            from: self.flow.remote,
            to: self.flow.local,
            sequence,
            acknowledgement: self.acknowledged,
            flags,
            window: self.window,
            selective: None,
        }
    }

    /// Has the kernel take in the peer's FIN, which comes through `lo` and may be lost there like any packet.
    fn take_in_end(&self, raw: &Raw) -> io::Result<()> {
        const TRIES: u32 = 20;
        const PATIENCE: Duration = Duration::from_millis(50);
        let end = self.of_peer(self.kept.tcp.read_sequence, FIN | ACKNOWLEDGEMENT);
        for _ in 0..TRIES {
            raw.send(&end, &[])?;
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline {
                match state_of(self.kept.socket.as_fd())? {
                    ESTABLISHED => std::thread::yield_now(),
                    CLOSE_WAIT => return Ok(()),
                    state => return Err(io::Error::other(format!("the connection is in state {state}"))),
                }
            }
        }
        Err(io::Error::other("the end of the peer's stream did not get through `lo`"))
    }

    /// Repair mode destroys it, so it is set once more.
    fn reuse_address(&self) -> i32 {
        let reuse = |option: &&image::descriptor::SocketOption| {
            (option.level, option.name) == (SOL_SOCKET, libc::SO_REUSEADDR)
        };
        let value = self.kept.options.iter().find(reuse).map(|option| option.value.as_slice());
        value.and_then(|value| value.try_into().ok()).map_or(0, i32::from_ne_bytes)
    }
}

/// Has the peer send a segment for which there is no connection here: the kernel answers it with a RST at the
/// very number that the peer expects, the only one that it believes. Any number out of its window will do, and
/// two that are so far apart are never both in it. One that is still connecting answers that it knows of no
/// such connection, and goes on connecting.
fn provoke(raw: &Raw, flow: Flow) {
    for sequence in [0, 1 << 31] {
        let stray = Segment {
            from: flow.local,
            to: flow.remote,
            sequence,
            acknowledgement: 0,
            flags: ACKNOWLEDGEMENT,
            window: 0,
            selective: None,
        };
        if let Err(why) = raw.send(&stray, &[]) {
            tracing::debug!(peer = %flow.remote, "cannot tell a peer of the end of its connection: {why}");
        }
    }
}

fn send_scale(tcp: &TcpState) -> u32 {
    const SCALE_MAX: u8 = 14;
    tcp.window_scales.map_or(0, |(send, _)| send.min(SCALE_MAX).into())
}

/// A window as a segment of the peer's would have it.
pub(super) fn scaled(window: u32, tcp: &TcpState) -> u16 {
    u16::try_from(window >> send_scale(tcp)).unwrap_or(u16::MAX)
}

/// `struct tcp_repair_opt` for all that was agreed on at the beginning.
fn agreed_options(tcp: &TcpState) -> Vec<u8> {
    const SEGMENT_MAX: u32 = 2;
    const WINDOW: u32 = 3;
    const SELECTIVE_ACKNOWLEDGEMENTS: u32 = 4;
    const TIMESTAMP: u32 = 8;
    let mut options = vec![[SEGMENT_MAX, tcp.segment_max]];
    options.extend(
        tcp.window_scales.map(|(send, receive)| [WINDOW, u32::from(send) | u32::from(receive) << 16]),
    );
    options.extend(tcp.selective_acknowledgements.then_some([SELECTIVE_ACKNOWLEDGEMENTS, 0]));
    options.extend(tcp.timestamp.map(|_| [TIMESTAMP, 0]));
    options.concat().into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// Time has gone by since the capture, and before that on its way here: a peer drops a segment that is stamped
/// earlier than one that it has seen, without a word. The lowest bit says that it counts microseconds.
pub(super) fn later(timestamp: u32, elapsed: Duration) -> u32 {
    const MARGIN: Duration = Duration::from_millis(200);
    let gone = elapsed + MARGIN;
    let units = if timestamp & 1 != 0 { gone.as_micros() } else { gone.as_millis() };
    timestamp.wrapping_add(units as u32 & !1)
}

/// There is room for all of it.
fn send_all(socket: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        bytes = &bytes[sent..];
    }
    Ok(())
}
