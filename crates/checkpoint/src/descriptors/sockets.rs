//! What all sockets have in common: finding out what one is, and who is asked next.

use std::os::fd::{AsFd, OwnedFd};

use image::descriptor::{AsyncOwner, FileKind};
use serde_bytes::ByteBuf;
use sys::sockets::{get_number, local_address};

use super::cache::SocketIdentity;
use super::error::SaveError;
use super::fdinfo::Info;
use super::options;
use super::save::Saver;
use super::watch::Need;
use super::{internet, unix};

/// What a socket is, and whom it signals.
pub(super) type SavedSocket = (FileKind, Option<AsyncOwner>);

pub(super) fn save(
    saver: &mut Saver<'_, '_>,
    number: i32,
    info: &Info<'_>,
) -> Result<SavedSocket, SaveError> {
    let mut need = saver.cache.watch.need(info.inode);
    if let Need::Nothing(socket, owner) = need {
        return Ok((FileKind::Connection(socket), owner));
    }
    if let Some((socket, owner)) = internet::read_ahead(saver, number, info.inode, &mut need)? {
        return Ok((FileKind::Connection(socket), owner));
    }
    let stolen = saver.steal(number)?;
    let identity = identify(saver, number, info, &stolen)?;
    let kind = match identity.family {
        libc::AF_INET | libc::AF_INET6 => internet::save(saver, number, &stolen, &identity, &need)?,
        libc::AF_UNIX => unix::save(saver, number, info, &stolen, &identity)?,
        libc::AF_NETLINK => save_netlink(saver, number, &stolen, &identity)?,
        other => return Err(refuse_family(saver, number, other)),
    };
    let owner = match &kind {
        // A reset connection tells nobody any more.
        FileKind::Connection(socket) if socket.tcp.is_none() => None,
        FileKind::Connection(_) if let Need::State { known: Some(known), .. } = &need => known.owner,
        _ => saver.owner(number, &stolen)?,
    };
    if let FileKind::Connection(socket) = &kind
        && socket.tcp.is_some()
    {
        let whole = matches!(need, Need::State { known: None, .. });
        saver.cache.watch.note(info.inode, socket, owner, whole);
    }
    Ok((kind, owner))
}

/// Family, type and protocol never change while the inode lives.
fn identify(
    saver: &mut Saver<'_, '_>,
    number: i32,
    info: &Info<'_>,
    stolen: &OwnedFd,
) -> Result<SocketIdentity, SaveError> {
    if let Some(known) = saver.cache.sockets.get(&info.inode) {
        return Ok(*known);
    }
    let ask = |name| {
        get_number(stolen.as_fd(), libc::SOL_SOCKET, name)
            .map_err(|source| saver.kernel(number, "ask what kind the socket is", source))
    };
    let (family, socket_type) = (ask(libc::SO_DOMAIN)?, ask(libc::SO_TYPE)?);
    let identity = SocketIdentity { family, socket_type, protocol: ask(libc::SO_PROTOCOL)? };
    saver.cache.sockets.insert(info.inode, identity);
    Ok(identity)
}

fn refuse_family(saver: &Saver<'_, '_>, number: i32, family: i32) -> SaveError {
    let what = match family {
        libc::AF_PACKET => "is a packet socket".to_owned(),
        libc::AF_VSOCK => "is a vsock socket".to_owned(),
        libc::AF_ALG => "is a kernel crypto socket (AF_ALG)".to_owned(),
        libc::AF_XDP => "is an XDP socket".to_owned(),
        other => format!("is a socket of family {other}"),
    };
    saver.refuse(number, &what, "only TCP, UDP and unix sockets can be protected")
}

/// A route socket that waits for nothing, as name resolution opens them.
fn save_netlink(
    saver: &Saver<'_, '_>,
    number: i32,
    stolen: &OwnedFd,
    identity: &SocketIdentity,
) -> Result<FileKind, SaveError> {
    if identity.protocol != libc::NETLINK_ROUTE {
        let what = format!("is a netlink socket of protocol {}", identity.protocol);
        return Err(saver.refuse(number, &what, "have another process speak to the kernel for it"));
    }
    let waiting = sys::sockets::peek(stolen.as_fd(), &mut [0; 1], &mut []).is_ok();
    if waiting {
        return Err(saver.refuse(
            number,
            "is a netlink socket with unread messages",
            "let the app read them",
        ));
    }
    let address = local_address(stolen.as_fd())
        .map_err(|source| saver.kernel(number, "ask for the netlink address", source))?;
    let options = save_options(saver, number, stolen, identity)?;
    let SocketIdentity { family: _, socket_type, protocol } = *identity;
    Ok(FileKind::Netlink { protocol, socket_type, address: ByteBuf::from(address), options })
}

pub(super) fn save_options(
    saver: &Saver<'_, '_>,
    number: i32,
    stolen: &OwnedFd,
    identity: &SocketIdentity,
) -> Result<Vec<image::descriptor::SocketOption>, SaveError> {
    options::save(stolen.as_fd(), identity).map_err(|source| match source.raw_os_error() {
        Some(libc::EACCES) => {
            saver.refuse(number, "is a socket with an eBPF filter", "use a classic filter (SO_ATTACH_FILTER)")
        }
        _ => saver.kernel(number, "read the socket's filter", source),
    })
}
