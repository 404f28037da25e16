//! TCP, MPTCP and UDP sockets.
//!
//! A connection is carried whole ([`super::stream`], [`super::revive`]), or as its addresses only: it is then a
//! *reset* one after a failover. Such a socket is made without a peer and without the network: in repair mode it becomes established
//! with nobody, and is then disconnected, which leaves the same trace as a RST from outside: reading
//! answers ECONNRESET once and end-of-file after that, and `poll` and epoll report
//! `IN | OUT | RDHUP | ERR | HUP`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use image::descriptor::{AsyncOwner, FileKind, InternetSocket, SocketOption};
use rustix::event::PollFlags;
use rustix::net::Shutdown;
use serde_bytes::ByteBuf;
use sys::sockets::{bind, connect, get_number, get_option, local_address, peer_address, set_number};

use super::ahead::Read;
use super::cache::{Cache, SocketIdentity};
use super::error::{Doing, RebuildError, SaveError};
use super::pipes::polled;
use super::probe::Raw;
use super::save::{Connections, Saver};
use super::sockets::save_options;
use super::stream::Dump;
use super::watch::{Need, Settled};
use super::{datagrams, options, revive, stream};

const TCP_SYN_SENT: u8 = 2;
const TCPI_SACKED_AT: usize = 28;

pub(super) fn save(
    saver: &mut Saver<'_, '_>,
    number: i32,
    stolen: &OwnedFd,
    identity: &SocketIdentity,
    need: &Need,
) -> Result<FileKind, SaveError> {
    let fd = stolen.as_fd();
    match (identity.socket_type, identity.protocol) {
        (libc::SOCK_STREAM, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP) => {
            save_stream(saver, number, stolen, identity, need)
        }
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => {
            let remote = peer_address(fd).unwrap_or_default();
            let mut socket = describe(saver, number, stolen, identity, remote, true)?;
            socket.queue = datagrams::save_udp(saver, number, stolen)?;
            Ok(FileKind::Datagram(socket))
        }
        (libc::SOCK_RAW, _) => {
            Err(saver.refuse(number, "is a raw socket", "use UDP or TCP, or let another process hold it"))
        }
        (_, protocol) => {
            let what = format!("is an internet socket of protocol {protocol}");
            Err(saver.refuse(number, &what, "only TCP, MPTCP and UDP sockets can be protected"))
        }
    }
}

fn save_stream(
    saver: &mut Saver<'_, '_>,
    number: i32,
    stolen: &OwnedFd,
    identity: &SocketIdentity,
    need: &Need,
) -> Result<FileKind, SaveError> {
    let fd = stolen.as_fd();
    if let Need::State { known: Some(known), .. } = need {
        let mut socket = blank(identity, known.local.clone(), known.remote.clone());
        keep(saver, number, stolen, need, &mut socket)?;
        // Otherwise it may have ended, and has no peer any more.
        if socket.tcp.is_some() {
            return Ok(FileKind::Connection(socket));
        }
    }
    if let Ok(remote) = peer_address(fd) {
        let mut socket = describe(saver, number, stolen, identity, remote, false)?;
        if saver.subject.connections == Connections::Keep && identity.protocol == libc::IPPROTO_TCP {
            keep(saver, number, stolen, need, &mut socket)?;
        }
        return Ok(FileKind::Connection(socket));
    }
    let listening = get_number(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)
        .map_err(|source| saver.kernel(number, "ask whether the socket listens", source))?;
    if listening != 0 {
        let mut socket = describe(saver, number, stolen, identity, Vec::new(), true)?;
        socket.backlog = backlog(fd).map_err(|source| saver.kernel(number, "read the backlog", source))?;
        return Ok(FileKind::Listener(socket));
    }
    if was_connected(fd) {
        return describe(saver, number, stolen, identity, Vec::new(), false).map(FileKind::Connection);
    }
    describe(saver, number, stolen, identity, Vec::new(), true).map(FileKind::Unconnected)
}

/// The connection with this inode and whom it signals, if its state was read ahead and is all that has changed.
pub(super) fn read_ahead(
    saver: &mut Saver<'_, '_>,
    number: i32,
    inode: u64,
    need: &mut Need,
) -> Result<Option<(InternetSocket, Option<AsyncOwner>)>, SaveError> {
    let identity = saver.cache.sockets.get(&inode).copied();
    let (Some(read), Some(identity)) = (saver.cache.ahead.remove(&inode), identity) else { return Ok(None) };
    let Need::State { known, unread_min } = need else { return Ok(None) };
    let Some(Settled { local, remote, options, owner, .. }) = known.take() else { return Ok(None) };
    let missed = read.dump.missed;
    let mut socket = blank(&identity, local, remote);
    let Some(()) = add_state(saver, number, *unread_min, read, &mut socket) else { return Ok(None) };
    socket.options = options;
    if missed {
        ask_again(saver, number, &socket)?;
    }
    if let Some(tcp) = &socket.tcp {
        saver.cache.watch.note_state(inode, tcp);
    }
    Ok(Some((socket, owner)))
}

/// A connection without its state and its options.
fn blank(identity: &SocketIdentity, local: ByteBuf, remote: ByteBuf) -> InternetSocket {
    let SocketIdentity { family, socket_type, protocol } = *identity;
    let (backlog, options, tcp, queue) = (0, Vec::new(), None, Vec::new());
    InternetSocket { family, socket_type, protocol, local, remote, backlog, options, tcp, queue }
}

/// Adds what was read of a connection. Not one with an urgent byte in what the app has not read.
fn add_state(
    saver: &mut Saver<'_, '_>,
    number: i32,
    unread_min: u32,
    read: Read,
    socket: &mut InternetSocket,
) -> Option<()> {
    let Read { dump: Dump { mut state, .. }, events } = read;
    if events.contains(PollFlags::PRI) || (state.unread.len() as u32) < unread_min {
        saver.cache.watch.name_urgent(saver.subject.pid, number, &socket.remote);
        return None;
    }
    state.read_shut = events.contains(PollFlags::RDHUP) && !stream::peer_has_finished(state.state);
    socket.tcp = Some(Box::new(state));
    Some(())
}

/// Adds what a connection needs to go on. One that ends at this moment stays a reset one, and so does one with
/// an urgent byte (`MSG_OOB`) in what the app has not read: none can be put into another socket, and what the
/// kernel says of the queue ends at it. (To refuse the app would let any client end its protection.)
pub(super) fn keep(
    saver: &mut Saver<'_, '_>,
    number: i32,
    stolen: &OwnedFd,
    need: &Need,
    socket: &mut InternetSocket,
) -> Result<(), SaveError> {
    let (known, unread_min) = match need {
        Need::State { known, unread_min } => (known.as_ref(), *unread_min),
        Need::Nothing(..) => return Ok(()),
    };
    let inode = saver.table.find(number).map_or(0, |(_, info)| info.inode);
    let Cache { watch, queue, .. } = &mut *saver.cache;
    let agreed = known.map(|known| known.agreed);
    let dump = stream::dump(stolen.as_fd(), agreed, queue, &mut || watch.outwards(inode))
        .map_err(|source| saver.kernel(number, "read the connection", source))?;
    let Some(dump) = dump else { return Ok(()) };
    let missed = dump.missed;
    let read = Read { dump, events: polled(stolen.as_fd()) };
    let Some(()) = add_state(saver, number, unread_min, read, socket) else { return Ok(()) };
    socket.options = match known {
        Some(known) => known.options.clone(),
        None => chosen_options(saver, number, stolen, socket)?,
    };
    if missed {
        ask_again(saver, number, socket)?;
    }
    Ok(())
}

/// An acknowledgement may have been kept from the app's socket: the peer says it again.
fn ask_again(saver: &mut Saver<'_, '_>, number: i32, socket: &InternetSocket) -> Result<(), SaveError> {
    let (Ok(flow), Some(state)) = (revive::flow(socket), &socket.tcp) else { return Ok(()) };
    let pidfd = saver.subject.pidfd;
    let raw = match saver.cache.raw.take() {
        Some(raw) => raw,
        None => Raw::beside(pidfd).map_err(|source| saver.kernel(number, "ask the peer", source))?,
    };
    raw.ask(flow, revive::first_unacknowledged(state), revive::expected(state));
    saver.cache.raw = Some(raw);
    Ok(())
}

/// Those that a new socket has not by itself.
fn chosen_options(
    saver: &mut Saver<'_, '_>,
    number: i32,
    stolen: &OwnedFd,
    socket: &InternetSocket,
) -> Result<Vec<SocketOption>, SaveError> {
    let InternetSocket { family, socket_type, protocol, .. } = *socket;
    let identity = SocketIdentity { family, socket_type, protocol };
    let mut options = save_options(saver, number, stolen, &identity)?;
    let pidfd = saver.subject.pidfd;
    let chosen = saver.cache.watch.retain_chosen(&identity, pidfd, &mut options);
    chosen.map_err(|source| saver.kernel(number, "compare the options", source))?;
    Ok(options)
}

/// A connection that is being made, or one that has been reset and that the app has not closed yet.
fn was_connected(fd: BorrowedFd<'_>) -> bool {
    let mut state = [0];
    let asked = get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state);
    asked.is_ok() && state[0] == TCP_SYN_SENT || polled(fd).contains(PollFlags::RDHUP)
}

fn backlog(fd: BorrowedFd<'_>) -> io::Result<i32> {
    let mut info = [0; TCPI_SACKED_AT + 4];
    get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    let mut backlog = [0; 4];
    backlog.copy_from_slice(&info[TCPI_SACKED_AT..]);
    Ok(i32::from_ne_bytes(backlog))
}

fn describe(
    saver: &Saver<'_, '_>,
    number: i32,
    stolen: &OwnedFd,
    identity: &SocketIdentity,
    remote: Vec<u8>,
    with_options: bool,
) -> Result<InternetSocket, SaveError> {
    let local = local_address(stolen.as_fd())
        .map_err(|source| saver.kernel(number, "ask for the socket's address", source))?;
    let options = if with_options { save_options(saver, number, stolen, identity)? } else { Vec::new() };
    let SocketIdentity { family, socket_type, protocol } = *identity;
    let (local, remote) = (ByteBuf::from(local), ByteBuf::from(remote));
    let (backlog, tcp, queue) = (0, None, Vec::new());
    Ok(InternetSocket { family, socket_type, protocol, local, remote, backlog, options, tcp, queue })
}

/// Makes `made`, a new socket of the app, what the old one was.
pub(super) fn restore(made: BorrowedFd<'_>, kind: &FileKind) -> Result<(), RebuildError> {
    match kind {
        FileKind::Listener(socket) => restore_listener(made, socket),
        // Built by the revival, once its peer was asked.
        FileKind::Connection(socket) if socket.tcp.is_some() => Ok(()),
        FileKind::Connection(socket) => {
            make_reset(made, socket.family).doing(|| "make a reset connection".to_owned())
        }
        FileKind::Datagram(socket) | FileKind::Unconnected(socket) => restore_bound(made, socket),
        _ => Ok(()),
    }
}

/// A socket for datagrams gets its peer when it has what waited in it, which may be from others.
pub(super) fn restore_peer(made: BorrowedFd<'_>, socket: &InternetSocket) -> Result<(), RebuildError> {
    if socket.remote.is_empty() {
        return Ok(());
    }
    connect(made, &socket.remote).doing(|| format!("connect a socket to {}", name(&socket.remote)))
}

/// N.B. what lingers of the app's own connections stands in the way only where the app would not have
/// been able to start again either, that is without `SO_REUSEADDR`.
fn restore_listener(made: BorrowedFd<'_>, socket: &InternetSocket) -> Result<(), RebuildError> {
    let what = || format!("listen on {}", name(&socket.local));
    options::restore(made, &socket.options)?;
    bind_wherever(made, socket).doing(what)?;
    rustix::net::listen(made, socket.backlog).doing(what)
}

fn restore_bound(made: BorrowedFd<'_>, socket: &InternetSocket) -> Result<(), RebuildError> {
    options::restore(made, &socket.options)?;
    let port = socket.local.get(2..4).unwrap_or(&[0, 0]);
    if port == [0, 0] {
        return Ok(());
    }
    bind_wherever(made, socket).doing(|| format!("bind {}", name(&socket.local)))
}

/// The address may come to this host only later: then the socket is bound to it all the same.
/// N.B. on one host (a test, a demo) the old copy's socket may still be there: a killed process takes a moment
/// to let go of what it had. Its successor waits for that, a little.
fn bind_once_free(made: BorrowedFd<'_>, socket: &InternetSocket) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(3);
    const AGAIN: Duration = Duration::from_millis(1);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match bind(made, &socket.local) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) && Instant::now() < deadline => {
                std::thread::sleep(AGAIN);
            }
            done => return done,
        }
    }
}

fn bind_wherever(made: BorrowedFd<'_>, socket: &InternetSocket) -> io::Result<()> {
    let refused = match bind_once_free(made, socket) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => error,
        done => return done,
    };
    let (level, free) = match socket.family {
        libc::AF_INET6 => (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
        _ => (libc::IPPROTO_IP, libc::IP_FREEBIND),
    };
    set_number(made, level, free, 1).map_err(|_| refused)?;
    bind(made, &socket.local)?;
    set_number(made, level, free, 0)
}

fn make_reset(made: BorrowedFd<'_>, family: i32) -> io::Result<()> {
    const REPAIR_OFF_WITHOUT_PROBE: i32 = -1;
    let (nowhere, unspecified) = addresses_of_nobody(family);
    set_number(made, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1)?;
    connect(made, &nowhere)?;
    set_number(made, libc::IPPROTO_TCP, libc::TCP_REPAIR, REPAIR_OFF_WITHOUT_PROBE)?;
    connect(made, &unspecified)?;
    // Answers ENOTCONN, and marks both directions as shut all the same, as a RST does.
    match rustix::net::shutdown(made, Shutdown::Both) {
        Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Port 1 of this host, which answers no stray RST, and `AF_UNSPEC`, which disconnects.
fn addresses_of_nobody(family: i32) -> (Vec<u8>, Vec<u8>) {
    let loopback = match family {
        libc::AF_INET6 => {
            let mut address = vec![0; 28];
            address[18..20].copy_from_slice(&[0xff, 0xff]);
            address[20..24].copy_from_slice(&[127, 0, 0, 1]);
            address
        }
        _ => vec![0, 0, 0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    };
    let mut nowhere = loopback;
    nowhere[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    nowhere[3] = 1;
    let unspecified = vec![0; nowhere.len()];
    (nowhere, unspecified)
}

/// An address for messages.
pub(super) fn name(address: &[u8]) -> String {
    let port = address.get(2..4).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]));
    match address.len() {
        16 => {
            let ip: [u8; 4] = address[4..8].try_into().unwrap_or_default();
            format!("{}:{port}", std::net::Ipv4Addr::from(ip))
        }
        28 => {
            let ip: [u8; 16] = address[8..24].try_into().unwrap_or_default();
            format!("[{}]:{port}", std::net::Ipv6Addr::from(ip))
        }
        _ => "an address that cannot be read".to_owned(),
    }
}
