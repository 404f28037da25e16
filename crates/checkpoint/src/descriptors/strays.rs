//! Connections that have a peer and no descriptor, which a takeover cannot carry.
//!
//! - *Unaccepted*: the peer is connected, or soon is, and the app has not called `accept`.
//! - *Closed*: the app has called `close`, and the kernel still has something to say.
//! - *Gone* since one of the last freezes: what ended them, a RST mostly, may still be held back.
//!
//! No call gives a descriptor of any of them, and one that is duplicated *before* the app closes its own would
//! keep the file open: an epoll that watches it would go on reporting a number that the app has given up. So
//! their peers are told at the takeover; a silent one would wait for ever otherwise. To tell somebody too many
//! is harmless, a peer that knows of no connection ignores it.

use std::collections::HashMap;

use image::descriptor::{Stray, StrayKind};
use serde_bytes::ByteBuf;

use super::diagnosis::{Ends, Report, SYN_RECV};
use super::stream::{CLOSE_WAIT, ESTABLISHED, FIN_WAIT2};

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
    state: u8,
    has_descriptor: bool,
}

impl Strays {
    pub(super) fn begin(&mut self) {
        self.freeze += 1;
    }

    pub(super) fn see(&mut self, report: &Report) {
        let Report { ends, mark, inode, .. } = *report;
        let (last, state, has_descriptor) = (self.freeze, mark.state, inode != 0);
        self.seen.insert(report.cookie, Seen { last, ends, state, has_descriptor });
    }

    /// N.B. only a RST ends a connection out of these states between two freezes: a FIN is held back until the
    /// freeze after it, which finds the connection in another state.
    pub(super) fn end(&mut self) {
        let now = self.freeze;
        let is_named = |seen: &Seen| {
            matches!(seen.state, SYN_RECV | ESTABLISHED | CLOSE_WAIT) && now - seen.last < GONE_FREEZES
        };
        self.seen.retain(|_, seen| seen.last == now || is_named(seen));
    }

    pub(super) fn list(&self) -> Vec<Stray> {
        self.seen.values().filter_map(|seen| self.stray(seen)).collect()
    }

    fn stray(&self, seen: &Seen) -> Option<Stray> {
        let kind = match seen.state {
            _ if seen.last != self.freeze => StrayKind::Gone,
            _ if seen.has_descriptor => return None,
            // The peer has heard everything, the end included.
            FIN_WAIT2 => return None,
            SYN_RECV | ESTABLISHED | CLOSE_WAIT => StrayKind::Unaccepted,
            _ => StrayKind::Closed,
        };
        let (local, remote) = seen.ends.addresses();
        Some(Stray { kind, local: ByteBuf::from(local), remote: ByteBuf::from(remote) })
    }
}
