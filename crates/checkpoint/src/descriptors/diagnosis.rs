//! What the kernel's socket diagnosis says of all TCP sockets of a network namespace, in one go.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{RecvFlags, SendFlags};

use super::stream::{
    CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, Info, LAST_ACK, peer_has_finished,
};

pub(super) const SYN_RECV: u8 = 3;

const ANSWER_BYTES: usize = 256 << 10;
const HEADER_BYTES: usize = 16;
/// `struct inet_diag_msg`.
pub(super) const REPORT_BYTES: usize = 72;

/// One socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    /// Zero for one that has no descriptor: not accepted yet, or closed.
    pub inode: u64,
    /// Of this socket and never of another one; a request keeps it when it becomes a connection.
    pub cookie: u64,
    pub ends: Ends,
    pub mark: Mark,
    /// All zero for a request.
    pub info: Info,
    /// What the app has not read; counts a FIN.
    waiting: u32,
    /// What the app has written and the kernel has not sent.
    pub unsent: u32,
}

impl Report {
    /// How many bytes the app has not read, whatever stands between them.
    pub(super) fn unread(&self) -> u32 {
        self.waiting.saturating_sub(peer_has_finished(self.mark.state).into())
    }
}

/// Both addresses as the kernel says them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    family: u8,
    /// `struct inet_diag_sockid` without the cookie.
    raw: [u8; 40],
}

/// It changes when the connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub state: u8,
    pub cookie: u64,
    shut: u8,
    /// Both queues.
    waiting: [u8; 8],
    /// Bytes acknowledged and received, segments out and in; a request has none.
    counts: [u8; 24],
}

impl Ends {
    /// Local and remote, as `sockaddr`s.
    pub(super) fn addresses(&self) -> (Vec<u8>, Vec<u8>) {
        (self.address(0, 4), self.address(2, 20))
    }

    fn address(&self, port_at: usize, ip_at: usize) -> Vec<u8> {
        let (port, family) = (&self.raw[port_at..port_at + 2], u16::from(self.family).to_ne_bytes());
        if i32::from(self.family) == libc::AF_INET6 {
            let (ip, link) = (&self.raw[ip_at..ip_at + 16], &self.raw[36..40]);
            return [&family, port, &[0; 4], ip, link].concat();
        }
        [&family, port, &self.raw[ip_at..ip_at + 4], &[0; 8]].concat()
    }
}

/// Hands every socket that is or was connected to `take`; not those that only wait for old segments to die.
pub(super) fn ask(diagnosis: &OwnedFd, buffer: &mut Vec<u8>, mut take: impl FnMut(Report)) -> io::Result<()> {
    buffer.resize(ANSWER_BYTES, 0);
    rustix::net::send(diagnosis, &request(), SendFlags::empty())?;
    loop {
        let (len, _) = rustix::net::recv(diagnosis, &mut buffer[..], RecvFlags::empty())?;
        if read_answer(&buffer[..len], &mut take)? {
            return Ok(());
        }
    }
}

/// Both families in one go: the older request has no family to choose.
fn request() -> Vec<u8> {
    const TCPDIAG_GETSOCK: u16 = 18;
    const REQUEST_BYTES: usize = HEADER_BYTES + 60;
    const WITH_INFO: u8 = 1 << 1;
    const STATES_AT: usize = HEADER_BYTES + 52;
    let states = [ESTABLISHED, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING];
    let states = states.into_iter().fold(0, |states, state| states | 1_u32 << state);
    let mut request = vec![0; REQUEST_BYTES];
    request[0..4].copy_from_slice(&(REQUEST_BYTES as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&TCPDIAG_GETSOCK.to_ne_bytes());
    request[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    request[HEADER_BYTES + 3] = WITH_INFO;
    request[STATES_AT..STATES_AT + 4].copy_from_slice(&states.to_ne_bytes());
    request
}

/// True at the end of the answer.
fn read_answer(mut answer: &[u8], take: &mut impl FnMut(Report)) -> io::Result<bool> {
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
        let report = answer.get(HEADER_BYTES..len).and_then(read).ok_or_else(cut)?;
        take(report);
        answer = answer.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// One `struct inet_diag_msg` with what follows it.
pub(super) fn read(report: &[u8]) -> Option<Report> {
    const INFO: u16 = 2;
    const SHUTDOWN: u16 = 8;
    let word = |at: usize| Some(u32::from_ne_bytes(report.get(at..at + 4)?.try_into().ok()?));
    let cookie = u64::from_ne_bytes(report.get(44..52)?.try_into().ok()?);
    let ends = Ends { family: *report.first()?, raw: report.get(4..44)?.try_into().ok()? };
    let mut mark = Mark {
        state: *report.get(1)?,
        cookie,
        shut: 0,
        waiting: report.get(56..64)?.try_into().ok()?,
        counts: [0; 24],
    };
    let (mut info, mut unsent) = (Info([0; Info::BYTES]), 0);
    let mut at = REPORT_BYTES;
    while let Some(header) = word(at) {
        let (len, kind) = ((header & 0xffff) as usize, (header >> 16) as u16);
        let value = report.get(at + 4..at + len.max(4))?;
        match kind {
            INFO => {
                mark.counts = value.get(120..144)?.try_into().ok()?;
                info = Info(value.get(..Info::BYTES)?.try_into().ok()?);
                unsent = u32::from_ne_bytes(value.get(144..148)?.try_into().ok()?);
            }
            SHUTDOWN => mark.shut = *value.first()?,
            _ => (),
        }
        at += len.max(4).next_multiple_of(4);
    }
    Some(Report { inode: word(68)?.into(), cookie, ends, mark, info, waiting: word(56)?, unsent })
}
