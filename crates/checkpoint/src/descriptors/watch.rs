//! Which connections have changed since the last freeze, so that only those are read again.
//!
//! One dump of the kernel's socket diagnosis tells for all of them: the lengths of their queues, what was sent
//! and received, what is shut. A connection of which all that is the same is the same. What no counter tells
//! of are options that the app sets in silence: those are read in turns, [`OPTIONS_PER_FREEZE`] connections
//! at each freeze, so with few connections they are always right.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use image::descriptor::{AsyncOwner, InternetSocket, SocketOption};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType};

use super::cache::SocketIdentity;
use super::options;

const OPTIONS_PER_FREEZE: usize = 2;
/// Reading so many costs no more than asking which of them have changed.
const FEW: usize = 4;

/// What a freeze knows of connections from the ones before it.
#[derive(Debug, Default)]
pub(super) struct Watch {
    freeze: usize,
    known: HashMap<u64, Known>,
    marks: HashMap<u64, Mark>,
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

/// What the diagnosis says; it changes when the connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    cookie: [u8; 8],
    state: u8,
    shut: u8,
    /// Both queues.
    waiting: [u8; 8],
    /// Bytes acknowledged and received, segments out and in.
    counts: [u8; 24],
}

/// How much of a connection must be read.
#[derive(Debug)]
pub(super) enum Need {
    /// Nothing: this is it.
    Nothing(InternetSocket, Option<AsyncOwner>),
    /// Its state, and its options unless they are given.
    State(Option<(Vec<SocketOption>, Option<AsyncOwner>)>),
}

impl Watch {
    /// A freeze begins. `diagnosis` is a socket of the app's network namespace.
    pub(super) fn begin(&mut self, diagnosis: io::Result<&OwnedFd>) -> io::Result<()> {
        let last = self.freeze;
        self.known.retain(|_, known| known.seen == last);
        self.freeze += 1;
        self.marks.clear();
        if self.known.len() > FEW {
            self.buffer.resize(ANSWER_BYTES, 0);
            ask(diagnosis?, &mut self.buffer, &mut self.marks)?;
        }
        Ok(())
    }

    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// What must be read of the socket with this inode.
    pub(super) fn need(&mut self, inode: u64) -> Need {
        let turns = self.turns();
        let Some(known) = self.known.get_mut(&inode) else { return Need::State(None) };
        known.seen = self.freeze;
        if self.freeze - known.options_read >= turns {
            return Need::State(None);
        }
        if known.mark.is_some() && known.mark == self.marks.get(&inode).copied() {
            return Need::Nothing(known.socket.clone(), known.owner);
        }
        Need::State(Some((known.socket.options.clone(), known.owner)))
    }

    /// After how many freezes a connection's options are read again.
    fn turns(&self) -> usize {
        self.known.len().div_ceil(OPTIONS_PER_FREEZE).max(1)
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
        let (mark, seen, socket) = (self.marks.get(&inode).copied(), self.freeze, socket.clone());
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

const ANSWER_BYTES: usize = 256 << 10;
const HEADER_BYTES: usize = 16;
/// `struct inet_diag_msg`.
const REPORT_BYTES: usize = 72;

/// Both families in one go: the older request has no family to choose.
fn request() -> Vec<u8> {
    const TCPDIAG_GETSOCK: u16 = 18;
    const REQUEST_BYTES: usize = HEADER_BYTES + 60;
    const WITH_INFO: u8 = 1 << 1;
    const STATES_AT: usize = HEADER_BYTES + 52;
    /// Established, both waits for a FIN, close-wait, last-ack, closing.
    const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
    let mut request = vec![0; REQUEST_BYTES];
    request[0..4].copy_from_slice(&(REQUEST_BYTES as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&TCPDIAG_GETSOCK.to_ne_bytes());
    request[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    request[HEADER_BYTES + 3] = WITH_INFO;
    request[STATES_AT..STATES_AT + 4].copy_from_slice(&STATES.to_ne_bytes());
    request
}

fn ask(diagnosis: &OwnedFd, buffer: &mut [u8], marks: &mut HashMap<u64, Mark>) -> io::Result<()> {
    rustix::net::send(diagnosis, &request(), SendFlags::empty())?;
    loop {
        let (len, _) = rustix::net::recv(diagnosis, &mut buffer[..], RecvFlags::empty())?;
        if take(&buffer[..len], marks)? {
            return Ok(());
        }
    }
}

/// True at the end of the answer.
fn take(mut answer: &[u8], marks: &mut HashMap<u64, Mark>) -> io::Result<bool> {
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    while answer.len() >= HEADER_BYTES {
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|n| answer[at + n]));
        let (len, kind) = (word(0) as usize, i32::from(word(4) as u16));
        match kind {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR if answer.len() >= HEADER_BYTES + 4 => {
                return Err(io::Error::from_raw_os_error((word(HEADER_BYTES) as i32).wrapping_neg()));
            }
            _ => (),
        }
        let report = answer.get(HEADER_BYTES..len).ok_or_else(cut)?;
        if let Some((inode, mark)) = read(report) {
            marks.insert(inode, mark);
        }
        answer = answer.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// One `struct inet_diag_msg` with what follows it. Sockets without descriptor have no inode.
fn read(report: &[u8]) -> Option<(u64, Mark)> {
    const INFO: u16 = 2;
    const SHUTDOWN: u16 = 8;
    let word = |at: usize| Some(u32::from_ne_bytes(report.get(at..at + 4)?.try_into().ok()?));
    let inode = u64::from(word(68)?);
    let mut mark = Mark {
        cookie: report.get(44..52)?.try_into().ok()?,
        state: *report.get(1)?,
        shut: 0,
        waiting: report.get(56..64)?.try_into().ok()?,
        counts: [0; 24],
    };
    let mut told = false;
    let mut at = REPORT_BYTES;
    while let Some(header) = word(at) {
        let (len, kind) = ((header & 0xffff) as usize, (header >> 16) as u16);
        let value = report.get(at + 4..at + len.max(4))?;
        match kind {
            INFO => {
                mark.counts = value.get(120..144)?.try_into().ok()?;
                told = true;
            }
            SHUTDOWN => mark.shut = *value.first()?,
            _ => (),
        }
        at += len.max(4).next_multiple_of(4);
    }
    (told && inode != 0).then_some((inode, mark))
}
