//! The app's connections to its manager's own socket: the one peer outside the app that is captured with it.
//!
//! Nothing is ever on its way on a unix socket: what one end has written lies in the other's queue. So while the app
//! stands still and the manager's ends are held, a conversation is three things: the answers that the app has not
//! read, what it has said that was not answered (read by the manager or not), and its own socket. After a takeover
//! the app has the same in a new socket, whose other end the new manager holds, and the answers go on from there.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use image::descriptor::{Conversation, FileKind, UnixEnd};
use serde_bytes::ByteBuf;
use sys::sockets::unix_report;

use super::cache::SocketIdentity;
use super::error::SaveError;
use super::fdinfo::Info;
use super::save::Saver;
use super::sockets::save_options;
use super::unix::{BOTH_SHUT, peek_queue};

/// Of the conversation whose end at the manager has an inode: what was said there and not answered.
pub type Unanswered<'a> = dyn Fn(u64) -> Option<Vec<u8>> + 'a;

/// The manager's own socket.
pub trait ManagerSocket: Debug + Send + Sync {
    /// Has the socket in the cell whose root directory this is.
    fn listen(&self, root: &Path) -> io::Result<()>;
    /// Lets in whoever waits for it, and calls `look` while nothing is read or written on the manager's ends.
    fn hold(&self, look: &mut dyn FnMut(&Unanswered<'_>));
    /// Goes on with a captured conversation: `ours` is the end of a new socket whose other end the app has.
    fn take_up(&self, ours: OwnedFd, unanswered: &[u8]);
}

/// The app's end, and what is unanswered: nothing, and no conversation, where the manager has ended it.
type Found = (UnixEnd, Option<ByteBuf>);

/// `None`: the peer of this socket is somebody else.
pub(super) fn save(
    saver: &mut Saver<'_, '_>,
    number: i32,
    info: &Info<'_>,
    stolen: &OwnedFd,
    identity: &SocketIdentity,
) -> Result<Option<FileKind>, SaveError> {
    let manager = saver.subject.manager.filter(|_| identity.socket_type == libc::SOCK_STREAM);
    let Some(manager) = manager else { return Ok(None) };
    let mut found = Ok(None);
    manager.hold(&mut |unanswered| found = look(saver, number, info, stolen, unanswered));
    let Some((mut end, unanswered)) = found? else { return Ok(None) };
    end.options = save_options(saver, number, stolen, identity)?;
    Ok(Some(match unanswered {
        Some(unanswered) => FileKind::Conversation(Conversation { end, unanswered }),
        None => FileKind::UnixPair(end),
    }))
}

/// N.B. a connection gets its number at the manager only when it is let in there.
fn look(
    saver: &mut Saver<'_, '_>,
    number: i32,
    info: &Info<'_>,
    stolen: &OwnedFd,
    unanswered: &Unanswered<'_>,
) -> Result<Option<Found>, SaveError> {
    let report = saver
        .cache
        .diagnose(saver.subject.pidfd, |diagnosis| unix_report(diagnosis, info.inode))
        .map_err(|source| saver.kernel(number, "ask about the unix socket", source))?;
    let unanswered = unanswered(report.peer).map(ByteBuf::from);
    // The manager may have ended it since the app stands still, or when it let it in.
    let gone = report.peer == 0 && report.shut == BOTH_SHUT;
    if unanswered.is_none() && !gone {
        return Ok(None);
    }
    let queue = peek_queue(stolen.as_fd(), libc::SOCK_STREAM)
        .map_err(|source| saver.kernel(number, "look into the queue", source))?;
    let end = UnixEnd {
        inode: info.inode,
        peer: 0,
        socket_type: libc::SOCK_STREAM,
        queue,
        read_shut: report.shut & 1 != 0,
        write_shut: report.shut & 2 != 0,
        options: Vec::new(),
    };
    Ok(Some((end, unanswered)))
}
