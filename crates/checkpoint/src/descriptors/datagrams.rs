//! What waits in datagram sockets, UDP and unix: read in the freeze, and left where it is.
//!
//! `SO_PEEK_OFF` shows one datagram after the other, with its sender; the app's own value is put back. Two traps:
//!
//! - An error that waits for the app (an ICMP message, say) is taken away by whoever receives next, who only looks
//!   included. So a queue with an error before it is not looked at: of UDP, what is in it is not carried until the app
//!   has heard of the error; a unix socket, which hardly ever has one, is refused until then.
//! - An empty datagram takes no place among the offsets: once somebody has looked at it, such a look passes it by. Only
//!   a look without an offset shows it, when it is the first. So queues with empty ones are remembered until the
//!   next freeze ([`merged`]).
//!
//! The network goes on in a freeze. What comes while the queue is read is in the image or not; the app gets it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use image::descriptor::{Credentials, Datagram};
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_UDP, SOL_SOCKET};
use rustix::event::PollFlags;
use serde_bytes::ByteBuf;
use sys::sockets::{ADDRESS_BYTES_MAX, get_number, peek_from, set_number};

use super::error::SaveError;
use super::fdinfo::Info;
use super::pipes::polled;
use super::save::Saver;

/// Of UDP, in one freeze: what came last is left out, as a full buffer would.
const UDP_BYTES_MAX: usize = 4 << 20;
/// In one queue: each look walks past all that were seen before.
const UDP_COUNT_MAX: usize = 1024;
/// Of one unix socket. Nothing may be left out of it.
const UNIX_BYTES_MAX: usize = 16 << 20;
/// No UDP datagram is longer, several that were joined included.
const FIRST_ROOM_BYTES: usize = 1 << 16;
/// All that can come along with a UDP datagram.
const CONTROL_BYTES: usize = 512;
/// `SCM_CREDENTIALS` alone. N.B. with room for more we would be given descriptors.
const CREDENTIALS_BYTES: usize = 32;

/// What is kept from one freeze to the next.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// By inode, those with empty datagrams.
    before: HashMap<u64, Vec<Datagram>>,
    now: HashMap<u64, Vec<Datagram>>,
    udp_bytes: usize,
    room: Vec<u8>,
}

impl Queues {
    /// A freeze begins.
    pub(super) fn begin(&mut self) {
        self.before = std::mem::take(&mut self.now);
        self.udp_bytes = 0;
    }

    fn read(&mut self, socket: BorrowedFd<'_>, inode: u64, bounds: &Bounds) -> io::Result<Vec<Datagram>> {
        let before = self.before.remove(&inode).unwrap_or_default();
        let look = in_place(socket, || Look::at(socket, &mut self.room, bounds))?;
        let queue = merged(before, look);
        if queue.iter().any(|datagram| datagram.bytes.is_empty()) {
            self.now.insert(inode, queue.clone());
        }
        Ok(queue)
    }
}

/// What waits in a UDP socket.
pub(super) fn save_udp(
    saver: &mut Saver<'_, '_>,
    number: i32,
    stolen: &OwnedFd,
) -> Result<Vec<Datagram>, SaveError> {
    let socket = stolen.as_fd();
    if waiting(socket) != Waiting::Datagrams {
        return Ok(Vec::new());
    }
    let inode = saver.table.find(number).map_or(0, |(_, info)| info.inode);
    let queues = &mut saver.cache.queues;
    let bytes_max = UDP_BYTES_MAX.saturating_sub(queues.udp_bytes);
    let bounds = Bounds { control: CONTROL_BYTES, count_max: UDP_COUNT_MAX, bytes_max };
    let queue = with_destinations(socket, || queues.read(socket, inode, &bounds))
        .map_err(|source| saver.kernel(number, "look into the queue", source))?;
    saver.cache.queues.udp_bytes += size(&queue);
    Ok(queue)
}

/// What waits in a unix datagram socket.
pub(super) fn save_unix(
    saver: &mut Saver<'_, '_>,
    number: i32,
    info: &Info<'_>,
    stolen: &OwnedFd,
) -> Result<Vec<Datagram>, SaveError> {
    let socket = stolen.as_fd();
    let receive = "let the app receive them";
    match waiting(socket) {
        Waiting::Nothing => return Ok(Vec::new()),
        Waiting::Datagrams => (),
        Waiting::Error => {
            let what = "is a unix socket with datagrams behind an error";
            return Err(saver.refuse(number, what, receive));
        }
    }
    if info.descriptors_in_flight() > 0 {
        let what = "is a unix socket with descriptors in its queue (SCM_RIGHTS)";
        return Err(saver.refuse(number, what, receive));
    }
    let asks_who = get_number(socket, SOL_SOCKET, libc::SO_PASSCRED).unwrap_or(0) != 0;
    let control = if asks_who { CREDENTIALS_BYTES } else { 0 };
    let bounds = Bounds { control, count_max: usize::MAX, bytes_max: UNIX_BYTES_MAX };
    let mut queue = match saver.cache.queues.read(socket, info.inode, &bounds) {
        Ok(queue) => queue,
        Err(why) if why.kind() == io::ErrorKind::Unsupported => {
            let what = "is a unix socket with more than bytes and credentials in its queue";
            return Err(saver.refuse(number, what, receive));
        }
        Err(source) => return Err(saver.kernel(number, "look into the queue", source)),
    };
    if size(&queue) >= UNIX_BYTES_MAX {
        let what = format!("is a unix socket with {} bytes in its queue", size(&queue));
        return Err(saver.refuse(number, &what, receive));
    }
    for credentials in queue.iter_mut().filter_map(|datagram| datagram.credentials.as_mut()) {
        credentials.pid = saver.subject.pids.get(&credentials.pid).copied().unwrap_or(0);
    }
    Ok(queue)
}

fn size(queue: &[Datagram]) -> usize {
    queue.iter().map(|datagram| datagram.bytes.len()).sum()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Nothing,
    Datagrams,
    /// And maybe datagrams behind it.
    Error,
}

fn waiting(socket: BorrowedFd<'_>) -> Waiting {
    let events = polled(socket);
    match events.contains(PollFlags::IN) {
        false => Waiting::Nothing,
        true if events.contains(PollFlags::ERR) => Waiting::Error,
        true => Waiting::Datagrams,
    }
}

/// Puts the app's own `SO_PEEK_OFF` back.
fn in_place<T>(socket: BorrowedFd<'_>, look: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = get_number(socket, SOL_SOCKET, libc::SO_PEEK_OFF)?;
    let seen = look();
    set_number(socket, SOL_SOCKET, libc::SO_PEEK_OFF, before)?;
    seen
}

/// Has the kernel say where each datagram was sent to, of those that are there already, too.
fn with_destinations<T>(socket: BorrowedFd<'_>, look: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let asked = [(IPPROTO_IP, libc::IP_RECVORIGDSTADDR), (IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR)];
    let mut changed = Vec::with_capacity(asked.len());
    for (level, name) in asked {
        // A socket of IPv4 has only the one.
        if get_number(socket, level, name).is_ok_and(|on| on == 0) {
            set_number(socket, level, name, 1)?;
            changed.push((level, name));
        }
    }
    let seen = look();
    for (level, name) in changed {
        set_number(socket, level, name, 0)?;
    }
    seen
}

/// How much to look at.
#[derive(Debug)]
struct Bounds {
    /// Room for what comes along.
    control: usize,
    count_max: usize,
    bytes_max: usize,
}

/// What one look shows.
#[derive(Debug, PartialEq)]
struct Look {
    /// The first datagram, if it is empty.
    empty: Option<Datagram>,
    /// The others, but for empty ones that were looked at before.
    rest: Vec<Datagram>,
}

enum Next {
    Seen(Datagram),
    /// It has this length.
    TooLong(usize),
    End,
}

impl Look {
    fn at(socket: BorrowedFd<'_>, room: &mut Vec<u8>, bounds: &Bounds) -> io::Result<Self> {
        const NO_OFFSET: i32 = -1;
        room.resize(room.len().max(FIRST_ROOM_BYTES), 0);
        set_number(socket, SOL_SOCKET, libc::SO_PEEK_OFF, NO_OFFSET)?;
        let empty = match next(socket, room, bounds.control)? {
            Next::End => return Ok(Self { empty: None, rest: Vec::new() }),
            Next::Seen(first) if first.bytes.is_empty() => Some(first),
            Next::Seen(_) | Next::TooLong(_) => None,
        };
        loop {
            set_number(socket, SOL_SOCKET, libc::SO_PEEK_OFF, 0)?;
            match walk(socket, room, bounds)? {
                Ok(rest) => return Ok(Self { empty, rest }),
                Err(len) => room.resize(len, 0),
            }
        }
    }
}

/// Each look goes on behind the last one. `Err`: one is longer than there is room for.
fn walk(
    socket: BorrowedFd<'_>,
    room: &mut [u8],
    bounds: &Bounds,
) -> io::Result<Result<Vec<Datagram>, usize>> {
    let (mut queue, mut bytes) = (Vec::new(), 0);
    while queue.len() < bounds.count_max && bytes < bounds.bytes_max {
        match next(socket, room, bounds.control)? {
            Next::Seen(datagram) => {
                bytes += datagram.bytes.len();
                queue.push(datagram);
            }
            Next::TooLong(len) => return Ok(Err(len)),
            Next::End => break,
        }
    }
    Ok(Ok(queue))
}

fn next(socket: BorrowedFd<'_>, room: &mut [u8], control: usize) -> io::Result<Next> {
    let (mut from, mut along) = ([0; ADDRESS_BYTES_MAX], [0; CONTROL_BYTES]);
    let peeked = match peek_from(socket, room, &mut from, &mut along[..control]) {
        Ok(peeked) => peeked,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Next::End),
        Err(error) => return Err(error),
    };
    if peeked.flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "something travels with it that does not fit",
        ));
    }
    if peeked.len > room.len() {
        return Ok(Next::TooLong(peeked.len));
    }
    // A unix socket without a name says just its family, or nothing.
    let from = if peeked.from_len > 2 { &from[..peeked.from_len] } else { &[] };
    let mut datagram = Datagram {
        from: ByteBuf::from(from),
        to: ByteBuf::new(),
        bytes: ByteBuf::from(&room[..peeked.len]),
        segment: 0,
        credentials: None,
    };
    read_along(&along[..peeked.control_len], &mut datagram);
    Ok(Next::Seen(datagram))
}

/// What came along with a datagram: `struct cmsghdr`s with their data.
fn read_along(mut along: &[u8], datagram: &mut Datagram) {
    const HEADER_BYTES: usize = 16;
    while let Some(header) = along.first_chunk::<HEADER_BYTES>() {
        let len = u64::from_ne_bytes(std::array::from_fn(|n| header[n])) as usize;
        let word = |at: usize| i32::from_ne_bytes([0, 1, 2, 3].map(|n| header[at + n]));
        let Some(data) = along.get(HEADER_BYTES..len) else { return };
        let number = |at: usize| {
            let bytes = data.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        match (word(8), word(12)) {
            (IPPROTO_IP, libc::IP_ORIGDSTADDR) | (IPPROTO_IPV6, libc::IPV6_ORIGDSTADDR) => {
                datagram.to = ByteBuf::from(data);
            }
            (IPPROTO_UDP, libc::UDP_GRO) => datagram.segment = number(0),
            (SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                let (pid, user, group) = (number(0) as i32, number(4), number(8));
                datagram.credentials = Some(Credentials { pid, user, group });
            }
            _ => (),
        }
        along = along.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
}

/// The whole queue, by what it was at the freeze before (if it had empty datagrams then), and by what one look
/// shows. The app takes from the front only: what is left is an end of the old queue, and new ones after it. If several
/// ends fit, because datagrams are alike, the longest is taken: one that was read already may be there twice, as on
/// any network.
fn merged(before: Vec<Datagram>, look: Look) -> Vec<Datagram> {
    let Look { empty, rest } = look;
    let is_left = |from: &usize| {
        let left = &before[*from..];
        let begins_alike = left[0].bytes.is_empty() == empty.is_some();
        let shown = left.iter().filter(|datagram| !datagram.bytes.is_empty());
        begins_alike && shown.clone().count() <= rest.len() && shown.zip(&rest).all(|(old, new)| old == new)
    };
    let Some(from) = (0..before.len()).find(is_left) else {
        return empty.into_iter().chain(rest).collect();
    };
    let left = &before[from..];
    let shown = left.iter().filter(|datagram| !datagram.bytes.is_empty()).count();
    left.iter().cloned().chain(rest.into_iter().skip(shown)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words that are sent, each by the sender of its name; `_` is empty.
    fn queue(words: &str) -> Vec<Datagram> {
        let datagram = |word: &str| Datagram {
            from: ByteBuf::from("somebody"),
            to: ByteBuf::new(),
            bytes: ByteBuf::from(word.trim_matches('_')),
            segment: 0,
            credentials: None,
        };
        words.split_whitespace().map(datagram).collect()
    }

    #[test]
    fn empty_datagrams_that_a_look_passes_by_are_remembered() {
        // Before, and what the app has taken, what has come, and what a look without offset begins with.
        let cases = [
            ("a _ b", "a b", false, "a _ b"),
            ("a _ b", "b", true, "_ b"),
            ("a _ b", "b c _", false, "b c _"),
            ("a _ b", "a b c _ d", false, "a _ b c _ d"),
            ("_ _", "", true, "_ _"),
            ("_ a", "x y", false, "x y"),
            ("_ a", "x", true, "_ x"),
            ("", "a", true, "_ a"),
            ("a _", "", false, ""),
        ];
        for (before, rest, begins_empty, whole) in cases {
            let empty = begins_empty.then(|| queue("_").remove(0));
            let all = merged(queue(before), Look { empty, rest: queue(rest) });
            assert_eq!(all, queue(whole), "{before} | {rest} | {begins_empty}");
        }
    }

    #[test]
    fn what_came_along_is_read_and_nothing_behind_its_end() {
        let record = |level: i32, kind: i32, data: &[u8]| {
            let len = (16 + data.len() as u64).to_ne_bytes();
            let mut bytes = [&len[..], &level.to_ne_bytes(), &kind.to_ne_bytes(), data].concat();
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes
        };
        let along = [
            record(SOL_SOCKET, libc::SCM_TIMESTAMP, &[1; 16]),
            record(IPPROTO_IP, libc::IP_ORIGDSTADDR, &[2; 16]),
            record(IPPROTO_UDP, libc::UDP_GRO, &700_i32.to_ne_bytes()),
            record(SOL_SOCKET, libc::SCM_CREDENTIALS, &[5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0]),
        ]
        .concat();
        let mut all = queue("_").remove(0);
        read_along(&along, &mut all);
        assert_eq!((all.segment, &all.to[..]), (700, &[2; 16][..]));
        assert_eq!(all.credentials, Some(Credentials { pid: 5, user: 6, group: 7 }));
        for len in 0..along.len() {
            let mut part = queue("_").remove(0);
            read_along(&along[..len], &mut part);
            assert!(part.to.is_empty() || len >= 64, "{len}");
        }
        let mut none = queue("_").remove(0);
        read_along(&[0; 64], &mut none);
        assert_eq!(none, queue("_").remove(0));
    }
}
