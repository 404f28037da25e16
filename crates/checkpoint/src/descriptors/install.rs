//! Gives a process that stands still everything that it shall have open.
//!
//! 1. Whatever the target has open is closed, but for the channel.
//! 2. Files that the manager made are handed over by `SCM_RIGHTS`, and go to their numbers ([`super::moves`]).
//! 3. Sockets and pidfds are made by the target itself, borrowed back, and set up with plain calls.
//! 4. What needs all numbers in place: close-on-exec, owners, locks, and epoll sets, which come last.
//!
//! A failure leaves the target half furnished: it must be thrown away.

use std::collections::{HashMap, HashSet};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use image::descriptor::{
    AsyncOwner, Descriptor, EpollTarget, FileKind, InternetSocket, Lock, Stray, StrayKind, UnixName,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::conversation::ManagerSocket;
use super::error::{Doing, RebuildError};
use super::moves::{Step, plan};
use super::prepare::Prepared;
use super::redeliver::Redelivery;
use super::revive::{CellNetwork, Ending, Kept, Revival};
use super::target::{Call, Target, all, put, with_bytes};
use super::unix_queue::Reach;
use super::{admit, anonymous, files, internet, options, pipes, revive, unix};

/// The kernel's `SCM_MAX_FD`.
const RIGHTS_MAX: usize = 253;
const EVENT_BYTES: usize = 12;

/// The process that is furnished.
#[derive(Debug, Clone, Copy)]
pub struct Skeleton<'a, 's> {
    /// Its number here.
    pub pid: i32,
    pub pidfd: BorrowedFd<'a>,
    /// The manager's end of a unix socket whose other end the target has open as `channel_number`.
    pub channel: BorrowedFd<'a>,
    pub channel_number: i32,
    /// How much the app's own clocks have gone on since the freeze.
    pub elapsed: Duration,
    /// Connections without descriptor: where the cell has a network of its own they go on, or their peers are told.
    pub strays: &'s [Stray],
    /// Who goes on with the app's conversations; without it they end.
    pub manager: Option<&'a dyn ManagerSocket>,
}

/// Opens everything in the target. Its file limit must allow two numbers more than the app had open. On
/// success the target has exactly the app's descriptors: the channel is closed. Connections that go on still
/// wait for [`Revival::finish`], which belongs after [`CellNetwork::let_in`].
pub fn install<'a>(
    prepared: Prepared<'a, '_>,
    target: &mut dyn Target,
    skeleton: &Skeleton<'_, 'a>,
    network: Option<&mut dyn CellNetwork>,
) -> Result<Revival<'a>, RebuildError> {
    let mut installer = Installer::new(prepared, target, skeleton);
    installer.clear()?;
    installer.finish_own_files()?;
    installer.send_own_files()?;
    installer.make_sockets()?;
    installer.make_pairs()?;
    installer.make_conversations()?;
    installer.make_process_descriptors()?;
    installer.run("close the channel", &[close(installer.channel)])?;
    let networked = network.is_some();
    let closed = if networked { installer.make_closed()? } else { Vec::new() };
    if let Some(network) = network {
        network.raise().doing(|| "bring up the cell's network".to_owned())?;
    }
    installer.set_up_sockets()?;
    installer.fill_unix_queues()?;
    let revival = installer.revive(closed, networked)?;
    installer.set_close_on_exec()?;
    installer.set_owners()?;
    installer.set_locks()?;
    installer.fill_epolls()?;
    Ok(revival)
}

pub(super) struct Installer<'a, 'i> {
    pub(super) prepared: Prepared<'i, 'a>,
    pub(super) target: &'a mut dyn Target,
    pub(super) skeleton: &'a Skeleton<'a, 'i>,
    /// Those of the app's unix sockets, by file, that have something in their queues.
    pub(super) reached: HashMap<usize, Reach>,
    /// For each file, the numbers that it has in the end.
    numbers: Vec<Vec<i32>>,
    /// Which file has a number in the end.
    file_at: HashMap<i32, u32>,
    channel: i32,
}

pub(super) fn close(number: i32) -> Call {
    (libc::SYS_close, [number as u64, 0, 0, 0, 0, 0])
}

fn duplicate(from: i32, to: i32) -> Call {
    (libc::SYS_dup3, [from as u64, to as u64, 0, 0, 0, 0])
}

fn control(number: i32, command: i32, argument: u64) -> Call {
    (libc::SYS_fcntl, [number as u64, command as u64, argument, 0, 0, 0])
}

impl<'a, 'i> Installer<'a, 'i> {
    fn new(prepared: Prepared<'i, 'a>, target: &'a mut dyn Target, skeleton: &'a Skeleton<'a, 'i>) -> Self {
        let mut numbers = vec![Vec::new(); prepared.files.len()];
        let mut file_at = HashMap::with_capacity(prepared.descriptors.len());
        for descriptor in prepared.descriptors {
            numbers[descriptor.file as usize].push(descriptor.number);
            file_at.insert(descriptor.number, descriptor.file);
        }
        let (channel, reached) = (skeleton.channel_number, HashMap::new());
        Self { prepared, target, skeleton, reached, numbers, file_at, channel }
    }

    pub(super) fn run(&mut self, what: &str, calls: &[Call]) -> Result<Vec<u64>, RebuildError> {
        all(self.target, what, calls)
    }

    /// The lowest number that is nobody's in the end, nor the channel's, nor in `taken`.
    fn spare(&self, taken: &HashSet<i32>) -> i32 {
        let used = |number: &i32| {
            self.file_at.contains_key(number) || *number == self.channel || taken.contains(number)
        };
        (0..).find(|number| !used(number)).unwrap_or(i32::MAX)
    }

    /// Closes what the target has open, and moves the channel where no descriptor must go.
    fn clear(&mut self) -> Result<(), RebuildError> {
        let listing = format!("/proc/{}/fd", self.skeleton.pid);
        let entries = std::fs::read_dir(listing).doing(|| "list the skeleton's descriptors".to_owned())?;
        let open = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut calls: Vec<Call> = open.filter(|number| *number != self.channel).map(close).collect();
        if self.file_at.contains_key(&self.channel) {
            let aside = self.spare(&HashSet::new());
            calls.extend([duplicate(self.channel, aside), close(self.channel)]);
            self.channel = aside;
        }
        self.run("make room for descriptors", &calls).map(drop)
    }

    /// What only the takeover may do to files of the manager's: timers start, FIFOs are opened.
    fn finish_own_files(&mut self) -> Result<(), RebuildError> {
        let mut filled = HashSet::new();
        for (file, made) in self.prepared.files.iter().zip(&mut self.prepared.made) {
            match (&file.kind, &made) {
                (FileKind::Timer(timer), Some(fd)) => {
                    anonymous::arm_timer(fd.as_fd(), timer, self.skeleton.elapsed)?;
                }
                (FileKind::Inotify { watches: _ }, Some(fd)) => {
                    anonymous::drain_inotify(fd.as_fd(), file.flags)?;
                }
                (FileKind::Fifo { path, pipe }, None) => {
                    let content = filled.insert(*pipe).then(|| &self.prepared.pipes[*pipe as usize]);
                    // The anchor keeps the content until the app's own end is open.
                    let (_anchor, end) = pipes::open_fifo(self.prepared.root, path, content, file)?;
                    *made = Some(end);
                }
                _ => (),
            }
        }
        Ok(())
    }

    fn send_own_files(&mut self) -> Result<(), RebuildError> {
        let mut own: Vec<usize> =
            (0..self.numbers.len()).filter(|file| self.prepared.made[*file].is_some()).collect();
        own.sort_by_key(|file| self.numbers[*file].first().copied());
        for files in own.chunks(RIGHTS_MAX) {
            self.send(files)?;
            let arrived = self.receive(files.len())?;
            let placed: Vec<(i32, usize)> = arrived.into_iter().zip(files.iter().copied()).collect();
            self.place(&placed)?;
        }
        Ok(())
    }

    fn send(&self, files: &[usize]) -> Result<(), RebuildError> {
        let fds: Vec<BorrowedFd<'_>> =
            files.iter().filter_map(|file| self.prepared.made[*file].as_ref()).map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RIGHTS_MAX))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        assert!(
            rights.push(SendAncillaryMessage::ScmRights(&fds)),
            "a message holds {RIGHTS_MAX} descriptors"
        );
        let sent = sendmsg(self.skeleton.channel, &[IoSlice::new(b"+")], &mut rights, SendFlags::NOSIGNAL);
        sent.map(drop).doing(|| "hand descriptors over".to_owned())
    }

    /// Has the target receive `count` descriptors; the numbers that they got.
    fn receive(&mut self, count: usize) -> Result<Vec<i32>, RebuildError> {
        const CONTROL_AT: u64 = 80;
        const CONTROL_HEADER_BYTES: usize = 16;
        let control_len = CONTROL_HEADER_BYTES + (count * 4).next_multiple_of(8);
        let address = self.target.scratch().address;
        // msghdr {name, name_len, iov, iov_len, control, control_len, flags}, iovec {base, len}, one byte.
        let message =
            [0, 0, address + 56, 1, address + CONTROL_AT, control_len as u64, 0, address + 72, 1, 0];
        put(self.target, &message.map(u64::to_ne_bytes).concat())?;
        let arguments = [self.channel as u64, address, 0, 0, 0, 0];
        self.run("receive descriptors", &[(libc::SYS_recvmsg, arguments)])?;
        let mut control = vec![0; control_len];
        self.target.read(address + CONTROL_AT, &mut control).map_err(RebuildError::Target)?;
        let numbers = control[CONTROL_HEADER_BYTES..][..count * 4].chunks_exact(4);
        Ok(numbers.map(|bytes| i32::from_ne_bytes(bytes.try_into().unwrap_or_default())).collect())
    }

    /// Moves what arrived to all the numbers that it has in the end.
    fn place(&mut self, arrived: &[(i32, usize)]) -> Result<(), RebuildError> {
        let moves: Vec<(i32, i32)> =
            arrived.iter().map(|&(number, file)| (number, self.numbers[file][0])).collect();
        let taken = arrived.iter().map(|(number, _)| *number).collect();
        let mut calls: Vec<Call> = plan(&moves, self.spare(&taken))
            .into_iter()
            .map(|step| match step {
                Step::Duplicate { from, to } => duplicate(from, to),
                Step::Close(number) => close(number),
            })
            .collect();
        for &(_, file) in arrived {
            let numbers = &self.numbers[file];
            calls.extend(numbers[1..].iter().map(|&number| duplicate(numbers[0], number)));
        }
        self.run("move descriptors to their numbers", &calls).map(drop)
    }

    /// Borrows what the target has open under `number`.
    pub(super) fn borrow(&self, number: i32) -> Result<OwnedFd, RebuildError> {
        pidfd_getfd(self.skeleton.pidfd, number, PidfdGetfdFlags::empty())
            .doing(|| format!("borrow fd {number} of the skeleton"))
    }

    /// One new socket for each file that is one, made by the target: it is who the kernel takes for the
    /// creator (control group, network namespace, user).
    fn make_sockets(&mut self) -> Result<(), RebuildError> {
        let sockets: Vec<(usize, Call)> = (0..self.numbers.len())
            .filter_map(|file| {
                socket_call(&self.prepared.files[file].kind, self.skeleton.strays).map(|call| (file, call))
            })
            .collect();
        let calls: Vec<Call> = sockets.iter().map(|(_, call)| *call).collect();
        let made = self.run("make sockets", &calls)?;
        let arrived: Vec<(i32, usize)> =
            made.iter().zip(&sockets).map(|(number, (file, _))| (*number as i32, *file)).collect();
        for &(number, file) in &arrived {
            self.prepared.made[file] = Some(self.borrow(number)?);
        }
        self.place(&arrived)
    }

    /// Connected pairs, with what waited in them. An end whose peer is gone gets one that goes again.
    fn make_pairs(&mut self) -> Result<(), RebuildError> {
        for (first, second) in self.pairs() {
            let FileKind::UnixPair(end) = &self.prepared.files[first].kind else { continue };
            let (a, b) = self.make_pair(end.socket_type)?;
            self.fill_pair((a, first), (b, second))?;
        }
        Ok(())
    }

    /// Two new sockets in the target that are connected with each other; their numbers there.
    fn make_pair(&mut self, socket_type: i32) -> Result<(i32, i32), RebuildError> {
        let (kind, address) = (socket_type as u64, self.target.scratch().address);
        let family = libc::AF_UNIX as u64;
        self.run("make a socket pair", &[(libc::SYS_socketpair, [family, kind, 0, address, 0, 0])])?;
        let mut numbers = [0; 8];
        self.target.read(address, &mut numbers).map_err(RebuildError::Target)?;
        let [a, b] = [0, 4].map(|at| i32::from_ne_bytes([0, 1, 2, 3].map(|index| numbers[at + index])));
        Ok((a, b))
    }

    /// Which files are each other's ends.
    fn pairs(&self) -> Vec<(usize, Option<usize>)> {
        let ends = self.prepared.files.iter().enumerate().filter_map(|(file, open)| match &open.kind {
            FileKind::UnixPair(end) => Some((file, end)),
            _ => None,
        });
        let ends: Vec<_> = ends.collect();
        let by_inode: HashMap<u64, usize> = ends.iter().map(|(file, end)| (end.inode, *file)).collect();
        let peer = |peer: u64| by_inode.get(&peer).copied();
        let once = ends.into_iter().map(|(file, end)| (file, peer(end.peer)));
        once.filter(|(file, peer)| peer.is_none_or(|peer| *file < peer)).collect()
    }

    fn fill_pair(
        &mut self,
        (a, first): (i32, usize),
        (b, second): (i32, Option<usize>),
    ) -> Result<(), RebuildError> {
        let (own_a, own_b) = (self.borrow(a)?, self.borrow(b)?);
        restore_end(&own_a, &own_b, &self.prepared.files[first])?;
        let Some(second) = second else {
            self.run("close the end of a pair", &[close(b)])?;
            drop(own_b);
            self.shut(first, &own_a)?;
            self.prepared.made[first] = Some(own_a);
            return self.place(&[(a, first)]);
        };
        restore_end(&own_b, &own_a, &self.prepared.files[second])?;
        self.shut(first, &own_a)?;
        self.shut(second, &own_b)?;
        self.prepared.made[first] = Some(own_a);
        self.prepared.made[second] = Some(own_b);
        self.place(&[(a, first), (b, second)])
    }

    fn shut(&self, file: usize, own: &OwnedFd) -> Result<(), RebuildError> {
        match &self.prepared.files[file].kind {
            FileKind::UnixPair(end) => unix::shut_end(own.as_fd(), end),
            _ => Ok(()),
        }
    }

    /// Like a pair, of which the other end is the manager's.
    fn make_conversations(&mut self) -> Result<(), RebuildError> {
        for (file, open) in self.prepared.files.iter().enumerate() {
            let FileKind::Conversation(conversation) = &open.kind else { continue };
            let (a, b) = self.make_pair(libc::SOCK_STREAM)?;
            let (own, ours) = (self.borrow(a)?, self.borrow(b)?);
            self.run("close the manager's end of a pair", &[close(b)])?;
            unix::restore_end(own.as_fd(), ours.as_fd(), &conversation.end)?;
            unix::shut_end(own.as_fd(), &conversation.end)?;
            self.prepared.made[file] = Some(own);
            self.place(&[(a, file)])?;
            if let Some(manager) = self.skeleton.manager {
                manager.take_up(ours, &conversation.unanswered);
            }
        }
        Ok(())
    }

    fn make_process_descriptors(&mut self) -> Result<(), RebuildError> {
        let processes = self.prepared.files.iter().enumerate().filter_map(|(file, open)| match open.kind {
            FileKind::Process { pid } => {
                let flags = open.flags & (libc::O_NONBLOCK | libc::O_EXCL) as u32;
                Some((file, (libc::SYS_pidfd_open, [pid as u64, flags.into(), 0, 0, 0, 0])))
            }
            _ => None,
        });
        let (files, calls): (Vec<usize>, Vec<Call>) = processes.unzip();
        let made = self.run("open pidfds", &calls)?;
        let arrived: Vec<(i32, usize)> =
            made.iter().zip(&files).map(|(number, file)| (*number as i32, *file)).collect();
        self.place(&arrived)
    }

    fn set_up_sockets(&mut self) -> Result<(), RebuildError> {
        let mut redelivery = Redelivery::if_needed(self.skeleton.pidfd, self.prepared.files);
        for file in 0..self.numbers.len() {
            let open = &self.prepared.files[file];
            let Some(own) = &self.prepared.made[file] else { continue };
            match &open.kind {
                kind @ (FileKind::Listener(_)
                | FileKind::Datagram(_)
                | FileKind::Connection(_)
                | FileKind::Unconnected(_)) => internet::restore(own.as_fd(), kind)?,
                FileKind::Netlink { address, options, .. } => restore_netlink(own, address, options)?,
                FileKind::UnixLoose(name) => self.bind_unix(file, name, None)?,
                FileKind::UnixListener { socket, backlog } => self.bind_unix(file, socket, Some(*backlog))?,
                FileKind::UnixPair(_) | FileKind::Conversation(_) => (),
                _ => continue,
            }
            let Some(own) = &self.prepared.made[file] else { continue };
            files::set_flags(own.as_fd(), open.flags).doing(|| "set the flags of a socket".to_owned())?;
            if let (FileKind::Datagram(socket), Some(redelivery)) = (&open.kind, &mut redelivery) {
                redelivery.fill(own.as_fd(), socket);
            }
        }
        self.restore_peers()
    }

    fn restore_peers(&self) -> Result<(), RebuildError> {
        for (open, own) in self.prepared.files.iter().zip(&self.prepared.made) {
            if let (FileKind::Datagram(socket), Some(own)) = (&open.kind, own) {
                internet::restore_peer(own.as_fd(), socket)?;
            }
        }
        Ok(())
    }

    /// Sockets for connections that the app has closed, made by the target like the others. It keeps none, and has
    /// one more open at a time.
    fn make_closed(&mut self) -> Result<Vec<(OwnedFd, &'i Stray)>, RebuildError> {
        let mut made = Vec::new();
        let mut last = None;
        let closed = |stray: &&Stray| stray.kind == StrayKind::Closed && stray.tcp.is_some();
        for stray in self.skeleton.strays.iter().filter(closed) {
            let family = stray.local.first_chunk().map_or(0, |family| u16::from_ne_bytes(*family));
            let (kind, protocol) = (libc::SOCK_STREAM as u64, libc::IPPROTO_TCP as u64);
            let socket = (libc::SYS_socket, [family.into(), kind, protocol, 0, 0, 0]);
            let calls: Vec<Call> = last.map(close).into_iter().chain([socket]).collect();
            let results = self.run("make the socket of a connection that was closed", &calls)?;
            let number = results.last().map_or(-1, |number| *number as i32);
            made.push((self.borrow(number)?, stray));
            last = Some(number);
        }
        if let Some(number) = last {
            self.run("give up a socket", &[close(number)])?;
        }
        Ok(made)
    }

    /// Connections that go on are built, and wait. With a network of the cell's own, the peers of the others
    /// are to hear of their end.
    fn revive(
        &self,
        closed: Vec<(OwnedFd, &'i Stray)>,
        networked: bool,
    ) -> Result<Revival<'i>, RebuildError> {
        let files = self.prepared.files;
        let mut kept = Vec::new();
        let mut forgotten = Vec::new();
        for (open, made) in files.iter().zip(&self.prepared.made) {
            let (FileKind::Connection(image), Some(made)) = (&open.kind, made) else { continue };
            match &image.tcp {
                Some(tcp) => {
                    let socket = made.try_clone().doing(|| "duplicate a socket".to_owned())?;
                    let InternetSocket { local, remote, options, .. } = image;
                    kept.push(Kept { socket, local, remote, options, tcp, closed: false });
                }
                // Without addresses it was reset before the capture.
                None if networked => forgotten.extend(revive::flow(image).ok()),
                None => (),
            }
        }
        kept.extend(closed.into_iter().filter_map(|(socket, stray)| {
            let Stray { kind: _, local, remote, tcp, options } = stray;
            Some(Kept { socket, local, remote, options, tcp: tcp.as_deref()?, closed: true })
        }));
        let strays = if networked { self.skeleton.strays } else { &[] };
        Revival::build(self.skeleton.pidfd, kept, Ending { forgotten, strays }, self.skeleton.elapsed)
    }

    /// In the target, for which the path means what it meant to the app.
    fn bind_unix(
        &mut self,
        file: usize,
        name: &'i UnixName,
        backlog: Option<i32>,
    ) -> Result<(), RebuildError> {
        let number = self.numbers[file][0] as u64;
        if let Some(own) = &self.prepared.made[file] {
            options::restore(own.as_fd(), &name.options)?;
        }
        if let Some(bind) = unix::bind_of(name) {
            self.bind_unix_address(file, &bind, !name.queue.is_empty())?;
        }
        let Some(backlog) = backlog else { return Ok(()) };
        let listen = (libc::SYS_listen, [number, backlog as u64, 0, 0, 0, 0]);
        self.run("listen on a unix socket", &[listen]).map(drop)
    }

    fn bind_unix_address(
        &mut self,
        file: usize,
        bind: &unix::Bind<'_>,
        is_to_be_filled: bool,
    ) -> Result<(), RebuildError> {
        let number = self.numbers[file][0] as u64;
        if let Some(path) = &bind.path
            && unix::left_behind(self.skeleton.pid, path)
        {
            self.on_path("remove an old unix socket", path, |at| (libc::SYS_unlink, [at, 0, 0, 0, 0, 0]))?;
        }
        let len = bind.address.len() as u64;
        with_bytes(self.target, "bind a unix socket", bind.address, |at| {
            (libc::SYS_bind, [number, at, len, 0, 0, 0])
        })?;
        if is_to_be_filled {
            let reach = Reach::of(bind.address, self.prepared.root, self.skeleton.pid);
            self.reached.extend(reach.ok().map(|reach| (file, reach)));
        }
        let Some(path) = &bind.path else { return Ok(()) };
        let Some(owner) = bind.file else {
            return self.on_path("remove a unix socket", path, |at| (libc::SYS_unlink, [at, 0, 0, 0, 0, 0]));
        };
        let (user, group) = (owner.user.into(), owner.group.into());
        self.on_path("chown a unix socket", path, |at| (libc::SYS_chown, [at, user, group, 0, 0, 0]))?;
        self.on_path("chmod a unix socket", path, |at| (libc::SYS_chmod, [at, owner.mode.into(), 0, 0, 0, 0]))
    }

    fn on_path(
        &mut self,
        what: &str,
        path: &[u8],
        call: impl FnOnce(u64) -> Call,
    ) -> Result<(), RebuildError> {
        with_bytes(self.target, what, path, call).map(drop)
    }

    /// A pidfd is born with it, so it may have to be taken away.
    fn set_close_on_exec(&mut self) -> Result<(), RebuildError> {
        let files = self.prepared.files;
        let needed = |descriptor: &&Descriptor| {
            let process = matches!(files[descriptor.file as usize].kind, FileKind::Process { .. });
            descriptor.close_on_exec || process
        };
        let set = |descriptor: &Descriptor| {
            control(descriptor.number, libc::F_SETFD, descriptor.close_on_exec.into())
        };
        let calls: Vec<Call> = self.prepared.descriptors.iter().filter(needed).map(set).collect();
        self.run("set close-on-exec", &calls).map(drop)
    }

    /// In the target, where the numbers of processes are the app's.
    fn set_owners(&mut self) -> Result<(), RebuildError> {
        const F_SETSIG: i32 = 10;
        const F_SETOWN_EX: i32 = 15;
        for (file, open) in self.prepared.files.iter().enumerate() {
            let Some(AsyncOwner { kind, id, signal }) = open.owner else { continue };
            let number = self.numbers[file][0];
            let owner = [kind.to_ne_bytes(), id.to_ne_bytes()].concat();
            with_bytes(self.target, "set the owner of a file", &owner, |at| {
                control(number, F_SETOWN_EX, at)
            })?;
            let set_signal = control(number, F_SETSIG, signal as u64);
            let set_flags = control(number, libc::F_SETFL, open.flags.into());
            all(self.target, "set the signal of a file", &[set_signal, set_flags])?;
        }
        Ok(())
    }

    fn set_locks(&mut self) -> Result<(), RebuildError> {
        for (file, open) in self.prepared.files.iter().enumerate() {
            for lock in &open.locks {
                let own = self.prepared.made[file].as_ref();
                set_lock(self.target, self.numbers[file][0], own, *lock)?;
            }
        }
        Ok(())
    }

    /// Entries that have fired and wait to be armed again (`EPOLLONESHOT`) come first, and what they report
    /// on their way in is taken out: else two threads could meet at one descriptor.
    fn fill_epolls(&mut self) -> Result<(), RebuildError> {
        for (file, open) in self.prepared.files.iter().enumerate() {
            let FileKind::Epoll { targets } = &open.kind else { continue };
            let number = self.numbers[file][0];
            let (fired, live): (Vec<&EpollTarget>, Vec<&EpollTarget>) =
                targets.iter().partition(|target| has_fired(target));
            self.add_to_epoll(number, &fired)?;
            if let (false, Some(own)) = (fired.is_empty(), &self.prepared.made[file]) {
                take_events(own, fired.len())?;
            }
            self.add_to_epoll(number, &live)?;
        }
        Ok(())
    }

    fn add_to_epoll(&mut self, epoll: i32, targets: &[&EpollTarget]) -> Result<(), RebuildError> {
        let in_place = |target: &&EpollTarget| self.file_at.get(&target.descriptor) == Some(&target.file);
        let (plain, moved): (Vec<&EpollTarget>, Vec<&EpollTarget>) =
            targets.iter().copied().partition(in_place);
        for chunk in plain.chunks(self.target.scratch().len / EVENT_BYTES) {
            let events: Vec<u8> = chunk.iter().flat_map(|target| event(target)).collect();
            let address = put(self.target, &events)?;
            let addresses = (address..).step_by(EVENT_BYTES);
            let calls: Vec<Call> =
                chunk.iter().zip(addresses).map(|(target, at)| add(epoll, target.descriptor, at)).collect();
            self.run("fill an epoll", &calls)?;
        }
        moved.into_iter().try_for_each(|target| self.add_moved(epoll, target))
    }

    /// The number belongs to nobody any more, or to another file: the watched one gets it for a moment.
    fn add_moved(&mut self, epoll: i32, target: &EpollTarget) -> Result<(), RebuildError> {
        let number = target.descriptor;
        let aside = self.spare(&HashSet::from([number]));
        let address = put(self.target, &event(target))?;
        let watched = self.numbers[target.file as usize][0];
        let mut calls = vec![duplicate(watched, number), add(epoll, number, address)];
        if let Some(&holder) = self.file_at.get(&number) {
            // Its own number may be the only one that the holder has.
            calls.insert(0, duplicate(number, aside));
            calls.extend([duplicate(aside, number), close(aside)]);
            calls.extend(self.close_on_exec_again(number, holder));
        } else {
            calls.push(close(number));
        }
        self.run("fill an epoll", &calls).map(drop)
    }

    fn close_on_exec_again(&self, number: i32, file: u32) -> Option<Call> {
        let same = |descriptor: &&Descriptor| {
            (descriptor.number, descriptor.file) == (number, file) && descriptor.close_on_exec
        };
        let set = || control(number, libc::F_SETFD, libc::FD_CLOEXEC as u64);
        self.prepared.descriptors.iter().find(same).map(|_| set())
    }
}

fn socket_call(kind: &FileKind, strays: &[Stray]) -> Option<Call> {
    let (family, socket_type, protocol) = match kind {
        FileKind::Listener(socket) if admit::has_to_be_tcp(kind, strays) => {
            (socket.family, socket.socket_type, libc::IPPROTO_TCP)
        }
        FileKind::Listener(socket) | FileKind::Datagram(socket) | FileKind::Unconnected(socket) => {
            (socket.family, socket.socket_type, socket.protocol)
        }
        // Only plain TCP has a repair mode; a connection that is reset is the same in both.
        FileKind::Connection(socket) => (socket.family, socket.socket_type, libc::IPPROTO_TCP),
        FileKind::UnixLoose(name) | FileKind::UnixListener { socket: name, .. } => {
            (libc::AF_UNIX, name.socket_type, 0)
        }
        FileKind::Netlink { protocol, socket_type, .. } => (libc::AF_NETLINK, *socket_type, *protocol),
        _ => return None,
    };
    Some((libc::SYS_socket, [family as u64, socket_type as u64, protocol as u64, 0, 0, 0]))
}

fn restore_end(
    own: &OwnedFd,
    peer: &OwnedFd,
    open: &image::descriptor::OpenFile,
) -> Result<(), RebuildError> {
    match &open.kind {
        FileKind::UnixPair(end) => unix::restore_end(own.as_fd(), peer.as_fd(), end),
        _ => Ok(()),
    }
}

/// The port may be taken here, and is then another one: nobody speaks first to a client of the kernel's.
fn restore_netlink(
    own: &OwnedFd,
    address: &[u8],
    saved: &[image::descriptor::SocketOption],
) -> Result<(), RebuildError> {
    options::restore(own.as_fd(), saved)?;
    let mut any_port = address.to_vec();
    any_port.iter_mut().skip(4).take(4).for_each(|byte| *byte = 0);
    sys::sockets::bind(own.as_fd(), address)
        .or_else(|_| sys::sockets::bind(own.as_fd(), &any_port))
        .doing(|| "bind a netlink socket".to_owned())
}

fn set_lock(
    target: &mut dyn Target,
    number: i32,
    own: Option<&OwnedFd>,
    lock: Lock,
) -> Result<(), RebuildError> {
    use rustix::fs::{FlockOperation, flock};
    let what = || format!("lock the file of fd {number}");
    let own = own.ok_or_else(|| RebuildError::Inconsistent { what: format!("the file of fd {number}") })?;
    match lock {
        Lock::Whole { exclusive: true } => flock(own, FlockOperation::NonBlockingLockExclusive).doing(what),
        Lock::Whole { exclusive: false } => flock(own, FlockOperation::NonBlockingLockShared).doing(what),
        Lock::OpenFile { exclusive, start, len } => {
            sys::descriptors::lock_open_file(own.as_fd(), exclusive, start, len).doing(what)
        }
        Lock::Process { exclusive, start, len } => {
            let request =
                sys::descriptors::lock_request(exclusive, start, len).map(u64::to_ne_bytes).concat();
            let set = |at| control(number, libc::F_SETLK, at);
            with_bytes(target, "lock a file", &request, set).map(drop)
        }
    }
}

/// A one-shot entry that has fired keeps only its private bits.
fn has_fired(target: &EpollTarget) -> bool {
    const PRIVATE: u32 =
        (libc::EPOLLET | libc::EPOLLONESHOT | libc::EPOLLWAKEUP | libc::EPOLLEXCLUSIVE) as u32;
    target.events & libc::EPOLLONESHOT as u32 != 0 && target.events & !PRIVATE == 0
}

fn take_events(epoll: &OwnedFd, count: usize) -> Result<(), RebuildError> {
    let mut events = Vec::with_capacity(count);
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    let room = rustix::buffer::spare_capacity(&mut events);
    rustix::event::epoll::wait(epoll, room, Some(&now)).doing(|| "empty an epoll".to_owned()).map(drop)
}

/// `struct epoll_event`, which is packed.
fn event(target: &EpollTarget) -> Vec<u8> {
    [target.events.to_ne_bytes().as_slice(), &target.data.to_ne_bytes()].concat()
}

fn add(epoll: i32, number: i32, event_at: u64) -> Call {
    let add = libc::EPOLL_CTL_ADD as u64;
    (libc::SYS_epoll_ctl, [epoll as u64, add, number as u64, event_at, 0, 0])
}
