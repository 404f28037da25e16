//! Sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use libc::{IPPROTO_TCP, SOL_SOCKET, c_int};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use crate::harness::{Context, Guest, Outcome, say};
use crate::kernel::{self, set_socket_option, socket_option};
use crate::{ensure, ensure_eq};

pub const GUESTS: &[Guest] = &[
    Guest::new("unix-pairs", unix_pairs),
    Guest::new("tcp-listener", tcp_listener),
    Guest::new("mptcp-listener", mptcp_listener),
    Guest::new("udp", udp),
    Guest::new("tcp-established", tcp_established),
];

const LIMIT: Duration = Duration::from_secs(5);

/// N.B. no empty datagrams: nothing but taking it shows that one waits, so nobody can carry it.
///
/// Stream, datagram and packet pairs, with data in both directions, a closed end and one that is half closed.
fn unix_pairs(context: &mut Context) -> Outcome {
    let (mut left, mut right) = UnixStream::pair()?;
    left.write_all(b"to the right")?;
    right.write_all(b"to the left")?;
    let (datagram_in, datagram_out) = UnixDatagram::pair()?;
    for datagram in [&b"a"[..], b"bb", b"ccc"] {
        datagram_in.send(datagram)?;
    }
    let (packet_in, packet_out) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    send(&packet_in, b"one", SendFlags::empty())?;
    send(&packet_in, b"two", SendFlags::empty())?;
    let (mut closing, mut survivor) = UnixStream::pair()?;
    closing.write_all(b"last words")?;
    drop(closing);
    let (mut half, other_half) = UnixStream::pair()?;
    half.shutdown(std::net::Shutdown::Read)?;
    context.ready();
    ensure_eq!("to the right", read_some(&mut right)?, b"to the right");
    ensure_eq!("to the left", read_some(&mut left)?, b"to the left");
    for datagram in [&b"a"[..], b"bb", b"ccc"] {
        let mut buffer = [0; 16];
        let count = datagram_out.recv(&mut buffer)?;
        ensure_eq!("datagram", &buffer[..count], datagram);
    }
    for packet in [b"one", b"two"] {
        let mut buffer = [0; 16];
        let (_, count) = recv(&packet_out, &mut buffer, RecvFlags::empty())?;
        ensure_eq!("packet", &buffer[..count], packet);
    }
    ensure_eq!("from a closed end", read_some(&mut survivor)?, b"last words");
    ensure_eq!("end of file", read_some(&mut survivor)?, b"");
    half.write_all(b"still open")?;
    ensure_eq!("half closed", read_some(&mut &other_half)?, b"still open");
    ensure_eq!(
        "the closed half",
        (&other_half).write(b"x").map_err(|error| error.kind()),
        Err(ErrorKind::BrokenPipe)
    );
    Ok(())
}

fn read_some(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut buffer = [0; 64];
    let count = stream.read(&mut buffer)?;
    Ok(buffer[..count].to_vec())
}

/// A socket option and the value it is set to. The kernel doubles buffer sizes; what counts is that they stay.
type SocketOption = (c_int, c_int, c_int);

const STREAM_OPTIONS: &[SocketOption] = &[
    (SOL_SOCKET, libc::SO_KEEPALIVE, 1),
    (SOL_SOCKET, libc::SO_RCVBUF, 100_000),
    (SOL_SOCKET, libc::SO_SNDBUF, 90_000),
    (SOL_SOCKET, libc::SO_PRIORITY, 3),
    (IPPROTO_TCP, libc::TCP_NODELAY, 1),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE, 33),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL, 7),
    (IPPROTO_TCP, libc::TCP_KEEPCNT, 4),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 12_345),
    (IPPROTO_TCP, libc::TCP_SYNCNT, 5),
];

const TCP_OPTIONS: &[SocketOption] = &[
    (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 9),
    (IPPROTO_TCP, libc::TCP_FASTOPEN, 16),
    (libc::IPPROTO_IP, libc::IP_TOS, 0x10),
    (libc::IPPROTO_IP, libc::IP_TTL, 44),
];

fn set_all(socket: BorrowedFd<'_>, options: &[SocketOption]) -> std::io::Result<()> {
    options.iter().try_for_each(|&(level, name, value)| set_socket_option(socket, level, name, value))
}

/// The values that the kernel has, for what was set and for what a socket is.
fn read_all(socket: BorrowedFd<'_>, options: &[SocketOption]) -> std::io::Result<Vec<(c_int, c_int, c_int)>> {
    let kinds = [libc::SO_TYPE, libc::SO_PROTOCOL, libc::SO_DOMAIN, libc::SO_REUSEADDR, libc::SO_REUSEPORT];
    let kinds = kinds.map(|name| (SOL_SOCKET, name, 0));
    let named = kinds.iter().chain(options);
    named.map(|&(level, name, _)| Ok((level, name, socket_option(socket, level, name)?))).collect()
}

/// The listener keeps its address and options, and accepts. Prints `listening ADDR` before `ready`.
fn tcp_listener(context: &mut Context) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    set_all(listener.as_fd(), STREAM_OPTIONS)?;
    set_all(listener.as_fd(), TCP_OPTIONS)?;
    let options = [STREAM_OPTIONS, TCP_OPTIONS].concat();
    let before = (listener.local_addr()?, read_all(listener.as_fd(), &options)?);
    say(&format!("listening {}", before.0));
    context.ready();
    ensure_eq!("address", listener.local_addr()?, before.0);
    ensure_eq!("options (level, name, value)", read_all(listener.as_fd(), &options)?, before.1);
    accepts(&listener)
}

/// Go listens with MPTCP. Prints `listening ADDR` before `ready`.
fn mptcp_listener(context: &mut Context) -> Outcome {
    const OPTIONS: &[SocketOption] = &[
        (SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (SOL_SOCKET, libc::SO_RCVBUF, 100_000),
        (IPPROTO_TCP, libc::TCP_NODELAY, 1),
    ];
    let socket = kernel::mptcp_socket()?;
    set_all(socket.as_fd(), OPTIONS)?;
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0)))?;
    rustix::net::listen(&socket, 77)?;
    let listener = TcpListener::from(socket);
    let before = (listener.local_addr()?, read_all(listener.as_fd(), OPTIONS)?);
    ensure!(
        before.1.contains(&(SOL_SOCKET, libc::SO_PROTOCOL, libc::IPPROTO_MPTCP)),
        "no MPTCP socket was made"
    );
    say(&format!("listening {}", before.0));
    context.ready();
    ensure_eq!("address", listener.local_addr()?, before.0);
    ensure_eq!("options (level, name, value)", read_all(listener.as_fd(), OPTIONS)?, before.1);
    accepts(&listener)
}

fn accepts(listener: &TcpListener) -> Outcome {
    let mut client = TcpStream::connect_timeout(&listener.local_addr()?, LIMIT)?;
    client.write_all(b"hello")?;
    let (mut accepted, _) = listener.accept()?;
    accepted.set_read_timeout(Some(LIMIT))?;
    ensure_eq!("what a client said", read_some(&mut accepted)?, b"hello");
    Ok(())
}

/// Bound, connected, with options.
fn udp(context: &mut Context) -> Outcome {
    const OPTIONS: &[SocketOption] = &[
        (SOL_SOCKET, libc::SO_BROADCAST, 1),
        (SOL_SOCKET, libc::SO_RCVBUF, 77_000),
        (libc::IPPROTO_IP, libc::IP_TTL, 55),
        (libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
        (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL, 6),
        (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, 0),
    ];
    let (bound, connected) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    set_all(bound.as_fd(), OPTIONS)?;
    bound.set_read_timeout(Some(LIMIT))?;
    connected.connect(bound.local_addr()?)?;
    let facts = || -> std::io::Result<_> {
        let addresses = (bound.local_addr()?, connected.local_addr()?, connected.peer_addr()?);
        Ok((addresses, read_all(bound.as_fd(), OPTIONS)?, bound.read_timeout()?))
    };
    let before = facts()?;
    context.ready();
    ensure_eq!("addresses, options, timeout", facts()?, before);
    connected.send(b"datagram")?;
    let mut buffer = [0; 64];
    let (count, from) = bound.recv_from(&mut buffer)?;
    ensure_eq!("datagram", (&buffer[..count], from), (&b"datagram"[..], connected.local_addr()?));
    Ok(())
}

/// Established connections. Arguments: `reset`, if a takeover has lain in between: both ends of a connection to
/// ourselves report a reset and not silence, and their descriptors can be closed.
fn tcp_established(context: &mut Context) -> Outcome {
    let expect_reset = context.arguments().iter().any(|argument| argument == "reset");
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    client.write_all(b"before")?;
    for end in [&client, &server] {
        end.set_read_timeout(Some(LIMIT))?;
    }
    context.ready();
    for (name, end) in [("server", &mut server), ("client", &mut client)] {
        let found = end.read(&mut [0; 64]).map_err(|error| error.kind());
        if expect_reset {
            ensure_eq!(format!("read by the {name}"), found, Err(ErrorKind::ConnectionReset));
        } else {
            ensure_eq!(format!("read by the {name}"), found, Ok(6));
            end.write_all(b"answer")?;
        }
    }
    drop((client, server));
    accepts(&listener)
}
