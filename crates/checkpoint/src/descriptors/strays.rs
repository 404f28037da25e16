//! Connections that have a peer and no descriptor.
//!
//! - *Unaccepted*: the peer is connected, or soon is, and the app has not called `accept`.
//! - *Closed*: the app has called `close`, and the kernel still has something to say.
//! - *Gone* since one of the last freezes: what ended them, a RST mostly, may still be held back.
//!
//! No call gives a descriptor of any of them, and one that is duplicated *before* the app closes its own would
//! keep the file open: an epoll that watches it would go on reporting a number that the app has given up. What the
//! kernel still has to say on a closed one is read from its own structures ([`super::orphans`]), and the copy's kernel
//! says it; so is what an unaccepted one is made of, and the copy's listener gets it ([`super::admit`]). The peers of
//! the others are told at the takeover; a silent one would wait for ever otherwise. To tell
//! somebody too many is harmless, a peer that knows of no connection ignores it.

use std::collections::HashMap;
use std::time::Instant;

use image::descriptor::{SocketOption, Stray, StrayKind, TcpState};
use serde_bytes::ByteBuf;

use super::diagnosis::{Ends, Mark, Report, SYN_RECV};
use super::error::RebuildError;
use super::inside;
use super::look::{is_draining, is_unaccepted};
use super::revive::{flow_between, later};
use super::stream::{CLOSE_WAIT, ESTABLISHED, FIN_WAIT2, Info};

/// For how many freezes one that is gone is named: more than can be on their way to the standby at once.
const GONE_FREEZES: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Strays {
    freeze: usize,
    /// By cookie, with the freeze that saw them last.
    seen: HashMap<u64, Seen>,
}

#[derive(Debug)]
struct Seen {
    last: usize,
    ends: Ends,
    mark: Mark,
    info: Info,
    has_descriptor: bool,
    rest: Option<Rest>,
}

/// What is still to be said on a closed connection, or to be heard on one that was not accepted.
#[derive(Debug, Clone)]
struct Rest {
    /// As it was read.
    mark: Mark,
    read: Instant,
    tcp: Box<TcpState>,
    options: Vec<SocketOption>,
}

impl Seen {
    /// If it is still what it was when it was read.
    fn rest(&self) -> Option<&Rest> {
        self.rest.as_ref().filter(|rest| rest.mark == self.mark)
    }

    /// The same for one that could not be read this time, for all that comes and goes on it: nobody writes to it any more,
    /// so what it had to say when it was read holds all that it has to say now, and its peer is asked how much of
    /// that it has heard. What may have gone out since is not to look newer to it than what the copy says.
    fn rest_before(&self) -> Option<Rest> {
        let mut rest = self.rest.clone().filter(|rest| is_draining(rest.tcp.state))?;
        rest.tcp.timestamp = rest.tcp.timestamp.map(|then| later(then, rest.read.elapsed()));
        Some(rest)
    }

    /// The other end is the app's, too, and knows what it has ([`super::inside`]) of those alone that it accepted.
    fn is_inside(&self) -> bool {
        let (local, remote) = self.ends.addresses();
        flow_between(&local, &remote).is_ok_and(|flow| inside::is_inside(&flow))
    }
}

impl Strays {
    pub(super) fn begin(&mut self) {
        self.freeze += 1;
    }

    pub(super) fn see(&mut self, report: &Report) {
        let Report { ends, mark, info, inode, .. } = *report;
        let (last, has_descriptor) = (self.freeze, inode != 0);
        let rest = self.seen.remove(&report.cookie).and_then(|seen| seen.rest);
        // N.B. of a request it is not said that it was answered once more, with a later time.
        let rest = rest.filter(|_| mark.state != SYN_RECV);
        self.seen.insert(report.cookie, Seen { last, ends, mark, info, has_descriptor, rest });
    }

    /// N.B. only a RST ends a connection out of these states between two freezes: a FIN is held back until the
    /// freeze after it, which finds the connection in another state.
    pub(super) fn end(&mut self) {
        let now = self.freeze;
        let is_named = |seen: &Seen| {
            matches!(seen.mark.state, SYN_RECV | ESTABLISHED | CLOSE_WAIT) && now - seen.last < GONE_FREEZES
        };
        self.seen.retain(|_, seen| seen.last == now || is_named(seen));
    }

    /// Those that can be read, and are not what they were when they were read: their cookies, and what the diagnosis
    /// said.
    pub(super) fn changed(&self) -> Vec<(u64, Info)> {
        let can_be_read = |seen: &Seen| match self.kind(seen) {
            Some(StrayKind::Closed) => true,
            Some(StrayKind::Unaccepted) => !seen.is_inside(),
            Some(StrayKind::Gone) | None => false,
        };
        let changed = self.seen.iter().filter(|(_, seen)| can_be_read(seen) && seen.rest().is_none());
        changed.map(|(cookie, seen)| (*cookie, seen.info)).collect()
    }

    /// How many bytes are in the queues of those that have not changed.
    pub(super) fn bytes(&self) -> usize {
        let rests = self.seen.values().filter_map(Seen::rest);
        rests.map(|rest| rest.tcp.unacknowledged.len() + rest.tcp.unread.len()).sum()
    }

    /// What was read of one; its options, if this is the first time.
    pub(super) fn note(&mut self, cookie: u64, tcp: TcpState, options: impl FnOnce() -> Vec<SocketOption>) {
        if let Some(seen) = self.seen.get_mut(&cookie) {
            let before = seen.rest.take().filter(|rest| is_draining(rest.tcp.state));
            let options = before.map_or_else(options, |rest| rest.options);
            seen.rest = Some(Rest { mark: seen.mark, read: Instant::now(), tcp: Box::new(tcp), options });
        }
    }

    pub(super) fn list(&self) -> Vec<Stray> {
        self.seen.values().filter_map(|seen| self.stray(seen)).collect()
    }

    fn kind(&self, seen: &Seen) -> Option<StrayKind> {
        match seen.mark.state {
            _ if seen.last != self.freeze => Some(StrayKind::Gone),
            _ if seen.has_descriptor => None,
            // The peer has heard everything, the end included.
            FIN_WAIT2 => None,
            SYN_RECV | ESTABLISHED | CLOSE_WAIT => Some(StrayKind::Unaccepted),
            _ => Some(StrayKind::Closed),
        }
    }

    fn stray(&self, seen: &Seen) -> Option<Stray> {
        let kind = self.kind(seen)?;
        let (local, remote) = seen.ends.addresses();
        let (local, remote) = (ByteBuf::from(local), ByteBuf::from(remote));
        let fits = |rest: &&Rest| match kind {
            StrayKind::Closed => is_draining(rest.tcp.state),
            StrayKind::Unaccepted => is_waiting(rest.tcp.state),
            StrayKind::Gone => false,
        };
        let rest = seen.rest().filter(fits).cloned();
        let rest = rest.or_else(|| seen.rest_before().filter(|_| kind == StrayKind::Closed));
        let (tcp, options) = rest.map_or_else(Default::default, |rest| (Some(rest.tcp), rest.options));
        Some(Stray { kind, local, remote, tcp, options })
    }
}

/// What one is that the app has not accepted.
fn is_waiting(state: u8) -> bool {
    state == SYN_RECV || is_unaccepted(state)
}

/// The state comes from another machine: what goes on must be what only a connection of its kind is.
pub fn check_strays(strays: &[Stray]) -> Result<(), RebuildError> {
    let is_sound = |stray: &Stray| {
        let Some(tcp) = &stray.tcp else { return true };
        let ends = flow_between(&stray.local, &stray.remote).is_ok();
        let unsent = tcp.unsent as usize <= tcp.unacknowledged.len();
        ends && unsent
            && match stray.kind {
                StrayKind::Closed => is_draining(tcp.state) && tcp.unread.is_empty(),
                StrayKind::Unaccepted => {
                    let heard = tcp.unread.is_empty() || tcp.state != SYN_RECV;
                    is_waiting(tcp.state) && tcp.unacknowledged.is_empty() && heard
                }
                StrayKind::Gone => false,
            }
    };
    match strays.iter().all(is_sound) {
        true => Ok(()),
        false => Err(RebuildError::Inconsistent { what: "a connection without descriptor".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use image::descriptor::TcpWindow;

    use super::*;
    use crate::descriptors::diagnosis;
    use crate::descriptors::stream::LAST_ACK;

    fn stray() -> Stray {
        let address = ByteBuf::from([&[2, 0, 0, 80, 10, 0, 0, 1][..], &[0; 8]].concat());
        Stray {
            kind: StrayKind::Closed,
            local: address.clone(),
            remote: address,
            tcp: Some(Box::new(tcp())),
            options: Vec::new(),
        }
    }

    fn tcp() -> TcpState {
        let window = TcpWindow { update_sequence: 0, peer: 0, peer_max: 0, own: 0, own_from: 0 };
        TcpState {
            state: LAST_ACK,
            write_sequence: 10,
            read_sequence: 20,
            unacknowledged: ByteBuf::from(b"rest"),
            unsent: 4,
            unread: ByteBuf::new(),
            read_shut: false,
            segment_max: 1460,
            selective_acknowledgements: true,
            window_scales: None,
            timestamp: None,
            window,
            round_trip_us: 0,
            send_buffer: 0,
            receive_buffer: 0,
            buffers_locked: 0,
        }
    }

    /// What the diagnosis says of one without descriptor.
    fn report(state: u8, to_send: u8) -> Report {
        const FAMILY: usize = 0;
        const STATE: usize = 1;
        const TO_SEND: usize = 60;
        let mut bytes = [0; diagnosis::REPORT_BYTES];
        (bytes[FAMILY], bytes[STATE], bytes[TO_SEND]) = (libc::AF_INET as u8, state, to_send);
        diagnosis::read(&bytes).expect("a report")
    }

    /// Its peer reads while it is looked at, and may do so each time.
    #[test]
    fn a_closed_one_that_could_not_be_read_again_is_what_it_was() {
        let closed = report(LAST_ACK, 4);
        let mut strays = Strays::default();
        strays.begin();
        strays.see(&closed);
        strays.end();
        assert_eq!(strays.list()[0].tcp, None, "it was never read");
        strays.note(closed.cookie, TcpState { timestamp: Some(1000), ..tcp() }, Vec::new);
        strays.begin();
        strays.see(&report(LAST_ACK, 3));
        strays.end();
        assert_eq!(strays.changed().len(), 1, "it is to be read again");
        let stray = strays.list().remove(0);
        let before = stray.tcp.expect("what it was");
        assert!(before.timestamp > Some(1000), "what was sent since is newer");
        assert_eq!(*before, TcpState { timestamp: before.timestamp, ..tcp() });
    }

    /// What its peer has said since, and was told to have arrived, would be lost.
    #[test]
    fn an_unaccepted_one_that_could_not_be_read_again_is_nothing() {
        let waiting = report(ESTABLISHED, 0);
        let mut strays = Strays::default();
        strays.begin();
        strays.see(&waiting);
        strays.note(waiting.cookie, TcpState { state: ESTABLISHED, ..tcp() }, Vec::new);
        assert!(strays.list()[0].tcp.is_some());
        strays.begin();
        strays.see(&report(ESTABLISHED, 1));
        assert_eq!(strays.list()[0].tcp, None);
    }

    #[test]
    fn what_no_closed_connection_is_does_not_go_on() {
        check_strays(&[stray()]).unwrap();
        let changes: [fn(&mut Stray, &mut TcpState); 6] = [
            |stray, _| stray.kind = StrayKind::Unaccepted,
            |stray, _| stray.local = ByteBuf::from(b"short"),
            |stray, _| stray.remote = ByteBuf::from([0; 28]),
            |_, tcp| tcp.state = ESTABLISHED,
            |_, tcp| tcp.unsent = 5,
            |_, tcp| tcp.unread = ByteBuf::from(b"by nobody"),
        ];
        for change in changes {
            let mut changed = stray();
            let mut tcp = changed.tcp.take().expect("a state");
            change(&mut changed, &mut tcp);
            check_strays(&[stray(), changed.clone()]).unwrap();
            changed.tcp = Some(tcp);
            check_strays(&[stray(), changed]).unwrap_err();
        }
    }

    #[test]
    fn who_was_not_accepted_has_said_nothing_and_was_told_nothing() {
        let waiting = |change: fn(&mut TcpState)| {
            let mut stray = Stray { kind: StrayKind::Unaccepted, ..stray() };
            let tcp = stray.tcp.as_mut().expect("a state");
            (tcp.state, tcp.unacknowledged, tcp.unsent) = (ESTABLISHED, ByteBuf::new(), 0);
            change(tcp);
            check_strays(&[stray])
        };
        waiting(|_| ()).unwrap();
        waiting(|tcp| tcp.state = SYN_RECV).unwrap();
        waiting(|tcp| tcp.unread = ByteBuf::from(b"a question")).unwrap();
        waiting(|tcp| tcp.unacknowledged = ByteBuf::from(b"by nobody")).unwrap_err();
        waiting(|tcp| (tcp.state, tcp.unread) = (SYN_RECV, ByteBuf::from(b"too early"))).unwrap_err();
        waiting(|tcp| tcp.state = FIN_WAIT2).unwrap_err();
    }
}
