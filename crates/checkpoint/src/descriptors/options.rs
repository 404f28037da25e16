//! The options of sockets: which there are, how they are read, and how a new socket gets them.
//!
//! All that the kernel gives are carried, defaults too, since the other host's defaults may differ. On the
//! new socket only those that differ are set, so an option that cannot be set does no harm until it matters.

use std::io;
use std::os::fd::BorrowedFd;

use image::descriptor::SocketOption;
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, SOL_SOCKET};
use serde_bytes::ByteBuf;
use sys::sockets::{get_number, get_option, set_number, set_option};

use super::cache::SocketIdentity;
use super::error::RebuildError;

/// Options of one level with the length of their value.
type Options = &'static [(i32, usize)];

/// Order matters where one option changes another: `IP_TOS` sets the priority, so this level comes last.
const SOCKET: Options = &[
    (libc::SO_REUSEADDR, 4),
    (libc::SO_REUSEPORT, 4),
    (libc::SO_KEEPALIVE, 4),
    (libc::SO_OOBINLINE, 4),
    (libc::SO_PRIORITY, 4),
    (libc::SO_LINGER, 8),
    (libc::SO_RCVLOWAT, 4),
    (libc::SO_RCVTIMEO, 16),
    (libc::SO_SNDTIMEO, 16),
    (libc::SO_BINDTODEVICE, libc::IFNAMSIZ),
    (libc::SO_TIMESTAMP, 4),
    (libc::SO_TIMESTAMPNS, 4),
    (libc::SO_TIMESTAMPING, 8),
    (libc::SO_MARK, 4),
    (libc::SO_BUSY_POLL, 4),
    (SO_PREFER_BUSY_POLL, 4),
    (libc::SO_MAX_PACING_RATE, 8),
    (libc::SO_ZEROCOPY, 4),
];

/// What has no effect on a stream.
const DATAGRAM: Options = &[
    (libc::SO_DONTROUTE, 4),
    (libc::SO_BROADCAST, 4),
    (libc::SO_NO_CHECK, 4),
    (libc::SO_RXQ_OVFL, 4),
    (libc::SO_SELECT_ERR_QUEUE, 4),
    (libc::SO_TXTIME, 8),
    (libc::SO_PEEK_OFF, 4),
];

/// What only unix sockets have.
const UNIX: Options =
    &[(libc::SO_PASSCRED, 4), (libc::SO_PASSSEC, 4), (SO_PASSPIDFD, 4), (libc::SO_PEEK_OFF, 4)];

const TCP: Options = &[
    (libc::TCP_NODELAY, 4),
    (libc::TCP_MAXSEG, 4),
    (libc::TCP_CORK, 4),
    (libc::TCP_KEEPIDLE, 4),
    (libc::TCP_KEEPINTVL, 4),
    (libc::TCP_KEEPCNT, 4),
    (libc::TCP_SYNCNT, 4),
    (libc::TCP_LINGER2, 4),
    (libc::TCP_DEFER_ACCEPT, 4),
    (libc::TCP_WINDOW_CLAMP, 4),
    (libc::TCP_CONGESTION, 16),
    (libc::TCP_THIN_LINEAR_TIMEOUTS, 4),
    (libc::TCP_USER_TIMEOUT, 4),
    (libc::TCP_FASTOPEN, 4),
    (libc::TCP_NOTSENT_LOWAT, 4),
    (libc::TCP_SAVE_SYN, 4),
    (libc::TCP_FASTOPEN_CONNECT, 4),
    (libc::TCP_FASTOPEN_NO_COOKIE, 4),
    (libc::TCP_INQ, 4),
    (TCP_TX_DELAY, 4),
    (TCP_RTO_MAX_MS, 4),
];

const IP: Options = &[
    (libc::IP_TOS, 4),
    (libc::IP_TTL, 4),
    (libc::IP_MTU_DISCOVER, 4),
    (libc::IP_RECVERR, 4),
    (libc::IP_FREEBIND, 4),
    (libc::IP_TRANSPARENT, 4),
    (libc::IP_MINTTL, 4),
    (libc::IP_BIND_ADDRESS_NO_PORT, 4),
    (IP_LOCAL_PORT_RANGE, 4),
];

const IPV6: Options = &[
    (libc::IPV6_V6ONLY, 4),
    (libc::IPV6_UNICAST_HOPS, 4),
    (libc::IPV6_MTU_DISCOVER, 4),
    (libc::IPV6_RECVERR, 4),
    (libc::IPV6_TCLASS, 4),
    (libc::IPV6_TRANSPARENT, 4),
    (libc::IPV6_FREEBIND, 4),
];

const IP_DATAGRAM: Options = &[
    (libc::IP_PKTINFO, 4),
    (libc::IP_RECVTTL, 4),
    (libc::IP_RECVTOS, 4),
    (libc::IP_RECVORIGDSTADDR, 4),
    (libc::IP_MULTICAST_IF, 4),
    (libc::IP_MULTICAST_TTL, 4),
    (libc::IP_MULTICAST_LOOP, 4),
    (libc::IP_MULTICAST_ALL, 4),
    (libc::IP_UNICAST_IF, 4),
];

const IPV6_DATAGRAM: Options = &[
    (libc::IPV6_MULTICAST_IF, 4),
    (libc::IPV6_MULTICAST_HOPS, 4),
    (libc::IPV6_MULTICAST_LOOP, 4),
    (libc::IPV6_RECVPKTINFO, 4),
    (libc::IPV6_RECVHOPLIMIT, 4),
    (libc::IPV6_RECVTCLASS, 4),
    (libc::IPV6_DONTFRAG, 4),
    (libc::IPV6_RECVORIGDSTADDR, 4),
    (IPV6_MULTICAST_ALL, 4),
];

const UDP: Options = &[
    (libc::UDP_CORK, 4),
    (libc::UDP_ENCAP, 4),
    (libc::UDP_NO_CHECK6_TX, 4),
    (libc::UDP_NO_CHECK6_RX, 4),
    (libc::UDP_SEGMENT, 4),
    (libc::UDP_GRO, 4),
];

const SO_PREFER_BUSY_POLL: i32 = 69;
const SO_BUF_LOCK: i32 = 72;
const SO_PASSPIDFD: i32 = 76;
const TCP_TX_DELAY: i32 = 37;
const TCP_RTO_MAX_MS: i32 = 44;
const IP_LOCAL_PORT_RANGE: i32 = 51;
const IPV6_MULTICAST_ALL: i32 = 29;

/// `SO_BUF_LOCK`: which buffer sizes the app chose itself.
const BUFFERS: [(i32, i32, i32); 2] =
    [(1, libc::SO_SNDBUF, libc::SO_SNDBUFFORCE), (2, libc::SO_RCVBUF, libc::SO_RCVBUFFORCE)];

const OPTION_BYTES_MAX: usize = 16;

fn levels(identity: &SocketIdentity) -> Vec<(i32, Options)> {
    let datagram = identity.socket_type == libc::SOCK_DGRAM;
    let mut levels = Vec::with_capacity(8);
    match identity.family {
        libc::AF_INET6 if datagram => {
            levels.extend([(IPPROTO_IPV6, IPV6_DATAGRAM), (IPPROTO_IP, IP_DATAGRAM)]);
        }
        libc::AF_INET if datagram => levels.push((IPPROTO_IP, IP_DATAGRAM)),
        _ => (),
    }
    match identity.family {
        libc::AF_INET6 => levels.extend([(IPPROTO_IPV6, IPV6), (IPPROTO_IP, IP)]),
        libc::AF_INET => levels.push((IPPROTO_IP, IP)),
        _ => levels.push((SOL_SOCKET, UNIX)),
    }
    match identity.protocol {
        libc::IPPROTO_TCP | libc::IPPROTO_MPTCP => levels.push((IPPROTO_TCP, TCP)),
        libc::IPPROTO_UDP => levels.extend([(IPPROTO_UDP, UDP), (SOL_SOCKET, DATAGRAM)]),
        _ => (),
    }
    levels.push((SOL_SOCKET, SOCKET));
    levels
}

/// Every option that this socket has. `EACCES`: an eBPF filter is attached, which nobody can read back.
pub(super) fn save(socket: BorrowedFd<'_>, identity: &SocketIdentity) -> io::Result<Vec<SocketOption>> {
    let mut saved = Vec::with_capacity(80);
    for (level, options) in levels(identity) {
        for &(name, len) in options {
            let mut value = [0; OPTION_BYTES_MAX];
            // What the kernel does not give for this kind of socket, the app cannot have set on it.
            if let Ok(len) = get_option(socket, level, name, &mut value[..len]) {
                saved.push(SocketOption { level, name, value: ByteBuf::from(&value[..len]) });
            }
        }
    }
    save_buffers(socket, &mut saved);
    let program = sys::sockets::filter(socket)?;
    if !program.is_empty() {
        let (level, name) = (SOL_SOCKET, libc::SO_ATTACH_FILTER);
        saved.push(SocketOption { level, name, value: ByteBuf::from(program) });
    }
    Ok(saved)
}

/// Sizes that the kernel chose it may choose again.
fn save_buffers(socket: BorrowedFd<'_>, saved: &mut Vec<SocketOption>) {
    let locked = get_number(socket, SOL_SOCKET, SO_BUF_LOCK).unwrap_or(0);
    for (bit, name, _) in BUFFERS {
        if locked & bit != 0
            && let Ok(size) = get_number(socket, SOL_SOCKET, name)
        {
            saved.push(SocketOption { level: SOL_SOCKET, name, value: ByteBuf::from(size.to_ne_bytes()) });
        }
    }
}

/// Which of a socket's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Buffer {
    Send,
    Receive,
}

/// Does something while a buffer has room for `bytes` more. What was in one before fits again, but how it was cut into
/// packets, and by which device they came, decides how much room it takes.
pub(super) fn with_room<T, E: From<io::Error>>(
    socket: BorrowedFd<'_>,
    buffer: Buffer,
    bytes: usize,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let (_, name, force) = BUFFERS[buffer as usize];
    let locked = get_number(socket, SOL_SOCKET, SO_BUF_LOCK)?;
    let size = get_number(socket, SOL_SOCKET, name)?;
    let room = (bytes.saturating_mul(2).saturating_add(1 << 20)).min(i32::MAX as usize / 4);
    set_number(socket, SOL_SOCKET, force, (room as i32).saturating_add(size / 2).min(i32::MAX / 4))?;
    let done = work();
    set_number(socket, SOL_SOCKET, force, size / 2)?;
    set_number(socket, SOL_SOCKET, SO_BUF_LOCK, locked)?;
    done
}

/// Whether an option makes sense on a connection that goes on: these are agreed on with the peer, follow
/// from the path, or belong to the connection's beginning.
pub(super) fn is_of_connection(option: &SocketOption) -> bool {
    const NOT: [(i32, i32); 8] = [
        (IPPROTO_IPV6, libc::IPV6_V6ONLY),
        (IPPROTO_TCP, libc::TCP_MAXSEG),
        (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
        (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
        (IPPROTO_TCP, libc::TCP_FASTOPEN),
        (IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT),
        (IPPROTO_TCP, libc::TCP_SAVE_SYN),
        (IPPROTO_TCP, libc::TCP_SYNCNT),
    ];
    let name = (option.level, option.name);
    !NOT.contains(&name) && !BUFFERS.iter().any(|(_, buffer, _)| name == (SOL_SOCKET, *buffer))
}

/// Gives a new socket the old one's options.
pub(super) fn restore(socket: BorrowedFd<'_>, options: &[SocketOption]) -> Result<(), RebuildError> {
    options.iter().try_for_each(|option| {
        restore_one(socket, option).map_err(|source| RebuildError::Kernel {
            what: format!("set socket option {} of level {}", option.name, option.level),
            source,
        })
    })
}

fn restore_one(socket: BorrowedFd<'_>, option: &SocketOption) -> io::Result<()> {
    let SocketOption { level, name, value } = option;
    if (*level, *name) == (SOL_SOCKET, libc::SO_ATTACH_FILTER) {
        return sys::sockets::attach_filter(socket, value);
    }
    if let Some((_, _, force)) =
        BUFFERS.iter().find(|(_, buffer, _)| (SOL_SOCKET, *buffer) == (*level, *name))
    {
        // The kernel doubles what it is given.
        let size: [u8; 4] = value.as_slice().try_into().map_err(io::Error::other)?;
        return set_number(socket, SOL_SOCKET, *force, i32::from_ne_bytes(size) / 2);
    }
    let mut current = vec![0; value.len().max(OPTION_BYTES_MAX)];
    let len = current.len();
    match get_option(socket, *level, *name, &mut current[..value.len().max(1).min(len)]) {
        Ok(len) if current[..len] == **value => Ok(()),
        _ => set_option(socket, *level, *name, value),
    }
}
