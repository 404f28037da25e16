//! Puts back what waited in unix datagram sockets, each datagram from a socket of its sender's name: the app's own, or
//! one that is there for the time. Where the name cannot be given (a path that is taken, or whose directory is not
//! there) the datagram is lost, and the log says so: an answer to it would go to somebody else.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use image::descriptor::{Credentials, Datagram, FileKind, UnixName};
use rustix::fs::OFlags;
use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, UCred, sendmsg_addr,
};
use rustix::process::{Gid, Pid, Uid};
use sys::sockets::ADDRESS_BYTES_MAX;

use super::error::{Doing, RebuildError};
use super::files::open_below;
use super::install::{Installer, close};
use super::options::{Buffer, with_room};
use super::target::put;
use super::unix::{address_name, path_of};

/// How we reach a socket of the app's, for whom paths may mean something else.
#[derive(Debug)]
pub(super) enum Reach {
    Abstract(Vec<u8>),
    /// Its file, which may have no path any more.
    File(OwnedFd),
}

impl Reach {
    /// Of a socket that is bound, as a process sees it.
    pub(super) fn of(address: &[u8], root: BorrowedFd<'_>, pid: i32) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        match path_of(address) {
            None => Ok(Self::Abstract(address.get(3..).unwrap_or_default().to_vec())),
            Some(path) if path.starts_with(b"/") => Ok(Self::File(open_below(root, path, flags)?)),
            Some(path) => {
                let directory = std::fs::File::open(format!("/proc/{pid}/cwd"))?;
                let mode = rustix::fs::Mode::empty();
                Ok(Self::File(rustix::fs::openat(directory, path, flags, mode)?))
            }
        }
    }

    fn address(&self) -> io::Result<SocketAddrUnix> {
        Ok(match self {
            Self::Abstract(name) => SocketAddrUnix::new_abstract_name(name)?,
            Self::File(file) => SocketAddrUnix::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?,
        })
    }
}

impl Installer<'_, '_> {
    /// When all of the app's sockets are bound.
    pub(super) fn fill_unix_queues(&mut self) -> Result<(), RebuildError> {
        let files = self.prepared.files;
        let mut senders = HashMap::new();
        for (file, open) in files.iter().enumerate() {
            let FileKind::UnixLoose(name) = &open.kind else { continue };
            if name.queue.is_empty() {
                continue;
            }
            let (all, at) = (name.queue.len(), address_name(&name.address));
            match self.fill_unix_queue(file, name, &mut senders)? {
                0 => tracing::debug!("{all} datagrams wait at {at} again"),
                lost => tracing::warn!("{lost} of {all} datagrams that waited at {at} are lost"),
            }
        }
        Ok(())
    }

    /// How many are lost.
    fn fill_unix_queue(
        &mut self,
        file: usize,
        name: &UnixName,
        senders: &mut HashMap<Vec<u8>, Option<OwnedFd>>,
    ) -> Result<usize, RebuildError> {
        let Some(to) = self.reached.remove(&file) else { return Ok(name.queue.len()) };
        let mut lost = 0;
        for datagram in &name.queue {
            if !senders.contains_key(&datagram.from[..]) {
                let sender = self.sender(&datagram.from)?;
                senders.insert(datagram.from.to_vec(), sender);
            }
            let sender = senders.get(&datagram.from[..]).and_then(Option::as_ref);
            let sent = match sender {
                Some(sender) => send(sender.as_fd(), &to, datagram, self.skeleton.pid),
                None => Err(io::ErrorKind::AddrInUse.into()),
            };
            if let Err(why) = sent {
                let from = address_name(&datagram.from);
                tracing::warn!("a datagram of {from} is lost: it cannot be sent again: {why}");
                lost += 1;
            }
        }
        Ok(lost)
    }

    /// A socket of that name. `None`: nobody can have it.
    fn sender(&mut self, address: &[u8]) -> Result<Option<OwnedFd>, RebuildError> {
        let is_it = |kind: &FileKind| match kind {
            FileKind::UnixLoose(name) => {
                name.socket_type == libc::SOCK_DGRAM && name.address.as_slice() == address
            }
            _ => false,
        };
        let own = self.prepared.files.iter().position(|open| is_it(&open.kind));
        match own.and_then(|own| self.prepared.made[own].as_ref()).filter(|_| !address.is_empty()) {
            Some(own) => own.try_clone().map(Some).doing(|| "duplicate a socket".to_owned()),
            None => self.stand_in(address),
        }
    }

    /// Made and bound by the target, which then has it no more.
    fn stand_in(&mut self, address: &[u8]) -> Result<Option<OwnedFd>, RebuildError> {
        if address.len() > ADDRESS_BYTES_MAX {
            return Ok(None); // No kernel has said that.
        }
        let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
        let made = (libc::SYS_socket, [libc::AF_UNIX as u64, kind, 0, 0, 0, 0]);
        let number = self.run("make a socket for a time", &[made])?[0];
        let socket = self.borrow(number as i32)?;
        let mut has_name = true;
        if !address.is_empty() {
            let at = put(self.target, address)?;
            let bind = (libc::SYS_bind, [number, at, address.len() as u64, 0, 0, 0]);
            has_name = self.target.calls(&[bind]).map_err(RebuildError::Target)? == [0];
        }
        if let (true, Some(path)) = (has_name, path_of(address)) {
            let at = put(self.target, &[path, b"\0"].concat())?;
            self.run("remove a unix socket", &[(libc::SYS_unlink, [at, 0, 0, 0, 0, 0])])?;
        }
        self.run("give up a socket", &[close(number as i32)])?;
        Ok(has_name.then_some(socket))
    }
}

/// Whoever asks for credentials gets the sender's; an outsider's number is nobody's in the cell, like ours.
fn send(from: BorrowedFd<'_>, to: &Reach, datagram: &Datagram, app: i32) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut along = SendAncillaryBuffer::new(&mut space);
    if let Some(Credentials { pid, user, group }) = datagram.credentials {
        let pid = if pid == 0 { None } else { Pid::from_raw(app) };
        let pid = pid.unwrap_or_else(rustix::process::getpid);
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(group));
        let fits = along.push(SendAncillaryMessage::ScmCredentials(UCred { pid, uid, gid }));
        assert!(fits, "there is room for one");
    }
    let (to, bytes) = (to.address()?, IoSlice::new(&datagram.bytes));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    with_room(from, Buffer::Send, datagram.bytes.len(), || {
        Ok(sendmsg_addr(from, &to, &[bytes], &mut along, flags).map(drop)?)
    })
}
