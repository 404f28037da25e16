//! Which connections have changed since the last freeze, so that only those are read again.
//!
//! One dump of the kernel's socket diagnosis tells for all of them: the lengths of their queues, what was sent
//! and received, what is shut. A connection of which all that is the same is the same. What no counter tells
//! of are options that the app sets in silence: those are read in turns, [`OPTIONS_PER_FREEZE`] connections
//! at each freeze, so with few connections they are always right.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use image::descriptor::{AsyncOwner, InternetSocket, SocketOption, Stray, TcpState};
use rustix::net::{AddressFamily, SocketType};
use serde_bytes::ByteBuf;

use super::cache::SocketIdentity;
use super::diagnosis::{self, Mark, Report};
use super::options;
use super::orphans::{Orphan, Orphans};
use super::strays::Strays;

const OPTIONS_PER_FREEZE: usize = 2;

/// What a freeze knows of connections from the ones before it.
#[derive(Debug, Default)]
pub(super) struct Watch {
    freeze: usize,
    known: HashMap<u64, Known>,
    /// This freeze's, by inode.
    reports: HashMap<u64, Report>,
    strays: Strays,
    orphans: Orphans,
    /// By cookie: what those have to say that have something unsent.
    outwards: HashMap<u64, TcpState>,
    /// The peers that were named for their urgent data.
    urgent: HashSet<Vec<u8>>,
    /// What a new socket has, by family: only what differs is carried.
    defaults: HashMap<i32, Arc<Vec<SocketOption>>>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Known {
    mark: Option<Mark>,
    /// The freeze that saw it last, and the one that read its options.
    seen: usize,
    options_read: usize,
    socket: InternetSocket,
    owner: Option<AsyncOwner>,
}

/// How much of a connection must be read.
#[derive(Debug)]
pub(super) enum Need {
    /// Nothing: this is it.
    Nothing(InternetSocket, Option<AsyncOwner>),
    /// Its state, and its options unless they are given. That much at least waits to be read.
    State { known: Option<Settled>, unread_min: u32 },
}

/// What of a connection never changes, and what its app chooses in silence.
#[derive(Debug, Clone)]
pub(super) struct Settled {
    pub local: ByteBuf,
    pub remote: ByteBuf,
    pub options: Vec<SocketOption>,
    pub agreed: Agreed,
    pub owner: Option<AsyncOwner>,
}

/// Of that, what is part of its state.
#[derive(Debug, Clone, Copy)]
pub(super) struct Agreed {
    pub segment_max: u32,
    pub buffers_locked: i32,
}

impl Known {
    fn settled(&self) -> Option<Settled> {
        let InternetSocket { local, remote, options, .. } = &self.socket;
        Some(Settled {
            local: local.clone(),
            remote: remote.clone(),
            options: options.clone(),
            agreed: self.agreed()?,
            owner: self.owner,
        })
    }

    fn agreed(&self) -> Option<Agreed> {
        let TcpState { segment_max, buffers_locked, .. } = **self.socket.tcp.as_ref()?;
        Some(Agreed { segment_max, buffers_locked })
    }
}

impl Watch {
    /// A freeze begins. `diagnosis` is a socket of the app's network namespace. N.B. output is marked before
    /// this: whoever knows of a connection that comes later than the dump has heard nothing that is covered.
    pub(super) fn begin(&mut self, diagnosis: &OwnedFd) -> io::Result<()> {
        let last = self.freeze;
        self.known.retain(|_, known| known.seen == last);
        self.freeze += 1;
        self.reports.clear();
        let (reports, strays) = (&mut self.reports, &mut self.strays);
        strays.begin();
        diagnosis::ask(diagnosis, &mut self.buffer, |report| {
            strays.see(&report);
            if report.inode != 0 {
                reports.insert(report.inode, report);
            }
        })?;
        strays.end();
        Ok(())
    }

    /// Reads the connections without descriptor, where it can be done: the others end at a takeover. N.B. before
    /// any descriptor, see [`super::inside`].
    pub(super) fn read_strays(&mut self, pidfd: BorrowedFd<'_>) {
        self.orphans.warm_up();
        let changed = self.strays.changed();
        if changed.is_empty() {
            return;
        }
        match self.orphans.read(pidfd, &changed, self.strays.bytes()) {
            Ok(orphans) => {
                for (cookie, Orphan { state, options }) in orphans {
                    let options = || options_of_closed(&self.known, cookie, options);
                    self.strays.note(cookie, state, options);
                }
            }
            Err(why) => tracing::debug!("connections without descriptor cannot be read: {why}"),
        }
    }

    /// Reads what the changed connections have to say that have something unsent, from the kernel's own structures and
    /// all at once.
    pub(super) fn read_outwards(&mut self, pidfd: BorrowedFd<'_>) {
        let is_new = |report: &&Report| {
            self.known.get(&report.inode).is_none_or(|known| known.mark != Some(report.mark))
        };
        let wanted = self.reports.values().filter(|report| report.unsent > 0).filter(is_new);
        let wanted: Vec<_> = wanted.map(|report| (report.cookie, report.info)).collect();
        self.outwards = self.orphans.outwards(pidfd, &wanted);
    }

    /// What was read of the connection with this inode.
    pub(super) fn outwards(&mut self, inode: u64) -> Option<TcpState> {
        self.outwards.remove(&self.reports.get(&inode)?.cookie)
    }

    /// Connections that no descriptor leads to.
    pub(super) fn strays(&self) -> Vec<Stray> {
        self.strays.list()
    }

    pub(super) fn forget(&mut self) {
        self.known.clear();
        self.strays = Strays::default();
        self.orphans = Orphans::default();
        self.urgent.clear();
    }

    /// Says once that a connection has urgent data in its queue, and will not go on.
    pub(super) fn name_urgent(&mut self, pid: i32, number: i32, remote: &[u8]) {
        let peer = super::internet::name(remote);
        if self.urgent.insert(remote.to_vec()) {
            tracing::warn!(
                "fd {number} of pid {pid} has urgent data (MSG_OOB) from {peer}, which cannot be carried: until \
                 the app has read it, the connection will be reset at a takeover"
            );
        }
    }

    /// What is known of the socket with this inode, if its state is what must be read of it.
    pub(super) fn changed(&self, inode: u64) -> Option<Agreed> {
        let known = self.known.get(&inode)?;
        let report = self.reports.get(&inode)?;
        let has_changed = known.mark != Some(report.mark);
        let only_state = self.freeze - known.options_read < self.turns();
        known.agreed().filter(|_| has_changed && only_state)
    }

    /// What must be read of the socket with this inode.
    pub(super) fn need(&mut self, inode: u64) -> Need {
        let turns = self.turns();
        let report = self.reports.get(&inode);
        let unread_min = report.map_or(0, Report::unread);
        let all = Need::State { known: None, unread_min };
        let Some(known) = self.known.get_mut(&inode) else { return all };
        known.seen = self.freeze;
        if self.freeze - known.options_read >= turns {
            return all;
        }
        if known.mark.is_some() && known.mark == report.map(|report| report.mark) {
            return Need::Nothing(known.socket.clone(), known.owner);
        }
        Need::State { known: known.settled(), unread_min }
    }

    /// After how many freezes a connection's options are read again.
    fn turns(&self) -> usize {
        self.known.len().div_ceil(OPTIONS_PER_FREEZE).max(1)
    }

    /// Remembers the state that was read of a connection of which all else is known.
    pub(super) fn note_state(&mut self, inode: u64, tcp: &TcpState) {
        let mark = self.reports.get(&inode).map(|report| report.mark);
        let Some(known) = self.known.get_mut(&inode) else { return };
        (known.mark, known.seen) = (mark, self.freeze);
        known.socket.tcp = Some(Box::new(tcp.clone()));
    }

    /// Remembers what was read.
    pub(super) fn note(
        &mut self,
        inode: u64,
        socket: &InternetSocket,
        owner: Option<AsyncOwner>,
        whole: bool,
    ) {
        let before = self.known.get(&inode).map(|known| known.options_read);
        let turns = self.turns();
        let options_read = match before {
            Some(before) if !whole => before,
            Some(_) => self.freeze,
            // Many that come at once are not to have their turn at once.
            None => self.freeze.saturating_sub(self.known.len() % turns),
        };
        let (seen, socket) = (self.freeze, socket.clone());
        let mark = self.reports.get(&inode).map(|report| report.mark);
        self.known.insert(inode, Known { mark, seen, options_read, socket, owner });
    }

    /// Takes out what any new socket of the kind has.
    pub(super) fn retain_chosen(
        &mut self,
        identity: &SocketIdentity,
        pidfd: BorrowedFd<'_>,
        chosen: &mut Vec<SocketOption>,
    ) -> io::Result<()> {
        let defaults = match self.defaults.get(&identity.family) {
            Some(defaults) => Arc::clone(defaults),
            None => {
                let family = AddressFamily::from_raw(identity.family as u16);
                let make = || rustix::net::socket(family, SocketType::STREAM, None);
                let fresh = super::cache::in_network_of(pidfd, make)?;
                let defaults = Arc::new(options::save(fresh.as_fd(), identity)?);
                self.defaults.insert(identity.family, Arc::clone(&defaults));
                defaults
            }
        };
        chosen.retain(|option| options::is_of_connection(option) && !defaults.contains(option));
        Ok(())
    }
}

/// As they were when the connection had a descriptor, but for what is `seen` by now. One that came and went between two
/// freezes has that alone: the rest is nothing that a closed connection needs, or that its peer can tell.
fn options_of_closed(known: &HashMap<u64, Known>, cookie: u64, seen: Vec<SocketOption>) -> Vec<SocketOption> {
    let same = |known: &&Known| known.mark.is_some_and(|mark| mark.cookie == cookie);
    let before = known.values().find(same).map(|known| known.socket.options.clone());
    let name = |option: &SocketOption| (option.level, option.name);
    let mut options = before.unwrap_or_default();
    options.retain(|option| seen.iter().all(|seen| name(seen) != name(option)));
    options.extend(seen.into_iter().filter(|option| option.value.iter().any(|byte| *byte != 0)));
    options
}
