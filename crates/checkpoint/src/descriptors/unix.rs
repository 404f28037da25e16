//! Unix sockets: pairs inside the app with what waits in them, listeners, and loose ones.
//!
//! Which socket is whose peer is asked from the kernel's socket diagnosis; queues are looked at with
//! `MSG_PEEK`. A connection that the app has *accepted* from outside becomes one whose peer has gone, as a
//! TCP connection becomes a reset one; one that the app has *made* to something outside is refused, since
//! most programs never look whether their logger is still there. Only the manager itself is no stranger
//! ([`super::conversation`]).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use image::descriptor::{FileKind, UnixEnd, UnixFile, UnixName};
use rustix::net::{SendFlags, Shutdown};
use serde_bytes::ByteBuf;
use sys::sockets::{UnixReport, get_number, local_address, peer_address, set_number, unix_report};

use super::cache::SocketIdentity;
use super::conversation;
use super::error::{Doing, RebuildError, SaveError};
use super::fdinfo::Info;
use super::save::Saver;
use super::sockets::save_options;
use super::{datagrams, options};

pub(super) const BOTH_SHUT: u8 = 3;
/// `SCM_CREDENTIALS` alone: with descriptors along, the kernel reports that something did not fit.
const CREDENTIALS_BYTES: usize = 32;

pub(super) fn save(
    saver: &mut Saver<'_, '_>,
    number: i32,
    info: &Info<'_>,
    stolen: &OwnedFd,
    identity: &SocketIdentity,
) -> Result<FileKind, SaveError> {
    let report = saver
        .cache
        .diagnose(saver.subject.pidfd, |diagnosis| unix_report(diagnosis, info.inode))
        .map_err(|source| saver.kernel(number, "ask about the unix socket", source))?;
    if let Ok(peer) = peer_address(stolen.as_fd()) {
        return save_connected(saver, number, info, stolen, identity, &report, &peer);
    }
    let mut socket = save_name(saver, number, stolen, identity)?;
    if identity.socket_type == libc::SOCK_DGRAM {
        socket.queue = datagrams::save_unix(saver, number, info, stolen)?;
        return Ok(FileKind::UnixLoose(socket));
    }
    let listening = get_number(stolen.as_fd(), libc::SOL_SOCKET, libc::SO_ACCEPTCONN).unwrap_or(0);
    if listening != 0 {
        return Ok(FileKind::UnixListener { socket, backlog: report.backlog as i32 });
    }
    Ok(FileKind::UnixLoose(socket))
}

fn save_connected(
    saver: &mut Saver<'_, '_>,
    number: i32,
    info: &Info<'_>,
    stolen: &OwnedFd,
    identity: &SocketIdentity,
    report: &UnixReport,
    peer: &[u8],
) -> Result<FileKind, SaveError> {
    let packets = identity.socket_type == libc::SOCK_DGRAM;
    // A peer without inode has gone, or waits in a listener's queue to be accepted.
    let gone = report.peer == 0 && (packets || report.shut == BOTH_SHUT);
    let inside = gone || saver.table.has_socket(report.peer);
    let named = local_address(stolen.as_fd()).is_ok_and(|local| local.len() > 2);
    let accepted = named && !packets;
    if !inside && !accepted {
        if let Some(kind) = conversation::save(saver, number, info, stolen, identity)? {
            return Ok(kind);
        }
        let what = format!("is a unix socket connected to {}, outside the app", address_name(peer));
        let way_out = "have the app log to its standard error or over the network, or protect both";
        return Err(saver.refuse(number, &what, way_out));
    }
    if info.descriptors_in_flight() > 0 {
        let what = "is a unix socket with descriptors in its queue (SCM_RIGHTS)";
        return Err(saver.refuse(number, what, "let the app receive them"));
    }
    let mut end = UnixEnd {
        inode: info.inode,
        peer: if inside { report.peer } else { 0 },
        socket_type: identity.socket_type,
        queue: Vec::new(),
        read_shut: report.shut & 1 != 0,
        write_shut: report.shut & 2 != 0,
        options: save_options(saver, number, stolen, identity)?,
    };
    if inside && packets {
        let queue = datagrams::save_unix(saver, number, info, stolen)?;
        end.queue = queue.into_iter().map(|datagram| datagram.bytes).collect();
    } else if inside {
        end.queue = peek_queue(stolen.as_fd(), identity.socket_type)
            .map_err(|source| saver.kernel(number, "look into the queue", source))?;
    }
    Ok(FileKind::UnixPair(end))
}

/// Both ends of a pair must name each other; a datagram socket may be connected one way only.
pub(super) fn check_pairs(saver: &Saver<'_, '_>) -> Result<(), SaveError> {
    let ends = saver.saved.files.iter().filter_map(|file| match &file.kind {
        FileKind::UnixPair(end) => Some((end.inode, end.peer)),
        _ => None,
    });
    let peers: HashMap<u64, u64> = ends.collect();
    let one_way = |&(_, _, info): &(u32, i32, &Info<'_>)| {
        peers.get(&info.inode).is_some_and(|peer| *peer != 0 && peers.get(peer) != Some(&info.inode))
    };
    match saver.table.files().find(one_way) {
        Some((_, number, _)) if !peers.is_empty() => {
            let what = "is a datagram socket connected one way inside the app";
            Err(saver.refuse(number, what, "connect both ends to each other, or neither"))
        }
        _ => Ok(()),
    }
}

/// Everything that waits at a stream or a sequence of packets, left in place. A stream's bytes come as one piece.
pub(super) fn peek_queue(socket: BorrowedFd<'_>, socket_type: i32) -> io::Result<Vec<ByteBuf>> {
    let waiting = rustix::io::ioctl_fionread(socket)? as usize;
    if waiting == 0 {
        return Ok(Vec::new());
    }
    let before = get_number(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
    set_number(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)?;
    let queue = peek_messages(socket, waiting, socket_type == libc::SOCK_STREAM);
    set_number(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, before)?;
    queue
}

/// With `SO_PEEK_OFF` each look goes on behind the last one.
fn peek_messages(socket: BorrowedFd<'_>, first: usize, stream: bool) -> io::Result<Vec<ByteBuf>> {
    let mut queue: Vec<ByteBuf> = Vec::new();
    let mut buffer = vec![0; first];
    while let Some(len) = peek_message(socket, &mut buffer)? {
        if len > buffer.len() {
            // Longer than we have room for: look again from the start.
            set_number(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)?;
            return peek_messages(socket, len, stream);
        }
        match queue.last_mut() {
            Some(last) if stream => last.extend_from_slice(&buffer[..len]),
            _ => queue.push(ByteBuf::from(&buffer[..len])),
        }
    }
    Ok(queue)
}

/// The next message's length; `None` at the end of the queue.
fn peek_message(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match sys::sockets::peek(socket, buffer, &mut [0; CREDENTIALS_BYTES]) {
        Ok(peeked) if peeked.flags & libc::MSG_CTRUNC != 0 => {
            Err(io::Error::other("something travels with a message that cannot be captured"))
        }
        Ok(peeked) if peeked.len == 0 => Ok(None),
        Ok(peeked) => Ok(Some(peeked.len)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn save_name(
    saver: &Saver<'_, '_>,
    number: i32,
    stolen: &OwnedFd,
    identity: &SocketIdentity,
) -> Result<UnixName, SaveError> {
    let address = local_address(stolen.as_fd())
        .map_err(|source| saver.kernel(number, "ask for the unix address", source))?;
    Ok(UnixName {
        socket_type: identity.socket_type,
        file: path_of(&address).and_then(|path| socket_file(saver.subject.pid, path)),
        address: ByteBuf::from(address),
        options: save_options(saver, number, stolen, identity)?,
        queue: Vec::new(),
    })
}

/// The path that an address names; none where it is unbound or abstract.
pub(super) fn path_of(address: &[u8]) -> Option<&[u8]> {
    let path = address.get(2..).filter(|path| path.first().is_some_and(|first| *first != 0))?;
    Some(path.split(|byte| *byte == 0).next().unwrap_or(path))
}

fn socket_file(pid: i32, path: &[u8]) -> Option<UnixFile> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let whole = match path.strip_prefix("/") {
        Ok(below) => Path::new(&format!("/proc/{pid}/root")).join(below),
        Err(_) => Path::new(&format!("/proc/{pid}/cwd")).join(path),
    };
    let found = std::fs::symlink_metadata(whole).ok()?;
    let socket = found.mode() & libc::S_IFMT == libc::S_IFSOCK;
    socket.then(|| UnixFile { mode: found.mode() & 0o7777, user: found.uid(), group: found.gid() })
}

/// An address for messages.
pub(super) fn address_name(address: &[u8]) -> String {
    match (path_of(address), address.get(3..)) {
        (Some(path), _) => String::from_utf8_lossy(path).into_owned(),
        (None, Some(name)) => format!("@{}", String::from_utf8_lossy(name)),
        (None, None) => "a socket without a name".to_owned(),
    }
}

/// What the target must do to bind this address itself, since a path means what *it* sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bind<'a> {
    pub address: &'a [u8],
    /// A socket's file of the time before is in the way; without `file` the new one goes again.
    pub path: Option<Vec<u8>>,
    pub file: Option<UnixFile>,
}

pub(super) fn bind_of(name: &UnixName) -> Option<Bind<'_>> {
    let path = path_of(&name.address).map(|path| [path, b"\0"].concat());
    (name.address.len() > 2).then(|| Bind { address: &name.address, path, file: name.file })
}

/// Makes one end of a new pair what the old one was; `peer` is where its queue is filled from.
pub(super) fn restore_end(
    made: BorrowedFd<'_>,
    peer: BorrowedFd<'_>,
    end: &UnixEnd,
) -> Result<(), RebuildError> {
    let what = || "fill the queue of a unix socket".to_owned();
    send_all(peer, end).doing(what)?;
    options::restore(made, &end.options)
}

fn send_all(peer: BorrowedFd<'_>, end: &UnixEnd) -> io::Result<()> {
    if end.queue.is_empty() {
        return Ok(());
    }
    let len = end.queue.iter().map(|message| message.len()).sum();
    options::with_room(peer, options::Buffer::Send, len, || {
        end.queue.iter().try_for_each(|message| send_message(peer, message, end.socket_type))
    })
}

/// An empty datagram is one, too.
fn send_message(peer: BorrowedFd<'_>, message: &[u8], socket_type: i32) -> io::Result<()> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if socket_type == libc::SOCK_DGRAM {
        return Ok(rustix::net::send(peer, message, flags).map(drop)?);
    }
    let mut rest = message;
    while !rest.is_empty() {
        let sent = rustix::net::send(peer, rest, flags)?;
        rest = &rest[sent..];
    }
    Ok(())
}

/// Last of all, since what is shut can be neither filled nor read any more.
pub(super) fn shut_end(made: BorrowedFd<'_>, end: &UnixEnd) -> Result<(), RebuildError> {
    let how = match (end.read_shut, end.write_shut) {
        (true, true) => Shutdown::Both,
        (true, false) => Shutdown::Read,
        (false, true) => Shutdown::Write,
        (false, false) => return Ok(()),
    };
    rustix::net::shutdown(made, how).doing(|| "shut down a unix socket".to_owned())
}

/// Whether a socket's file lies at this path (with its final zero), as the process sees it.
pub(super) fn left_behind(pid: i32, path: &[u8]) -> bool {
    socket_file(pid, path.strip_suffix(b"\0").unwrap_or(path)).is_some()
}
