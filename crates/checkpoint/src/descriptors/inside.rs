//! Connections that have both ends in the app: through `lo`, whatever their addresses.
//!
//! At a takeover nobody is asked. Each end's image says what the other end lacks, and what was on its way between
//! them is still in its sender's queue, and is sent again. An end whose other one the app has closed goes on if it
//! had heard of that, or if what the closed one has still to say was read ([`super::orphans`], before all descriptors);
//! else the bytes that it lacks are nowhere, and it is reset.
//!
//! N.B. at a freeze the app stands still, and `lo` need not: a segment may get through between the looks at two ends.
//! If the receiver was looked at before and the sender after it, neither has the bytes. Then the receiver is looked
//! at again ([`mend`]).

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use image::descriptor::{FileKind, InternetSocket, OpenFile, TcpState};
use image::state::State;

use super::error::SaveError;
use super::internet;
use super::probe::Answer;
use super::revive::{Kept, expected, first_unacknowledged, flow, scaled};
use super::save::{Connections, Saver};
use super::segments::{Flow, address};
use super::stream::{app_has_finished, peer_has_finished};
use super::watch::Need;

/// The same connection, as its other end has it.
pub(super) fn from_the_other_end(flow: Flow) -> Flow {
    Flow { local: flow.remote, remote: flow.local }
}

/// Whether the peer of a connection must be on this host, that is in the cell.
pub(super) fn is_inside(flow: &Flow) -> bool {
    let is_loopback = match flow.remote.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    is_loopback || flow.remote.ip() == flow.local.ip()
}

/// Nobody is there whom the app was connected with: connections to others than itself have ended when it wakes up.
pub fn forget_others(state: &mut State) {
    state.strays.clear();
    for open in &mut state.files {
        if let FileKind::Connection(image) = &mut open.kind
            && !flow(image).is_ok_and(|flow| is_inside(&flow))
        {
            image.tcp = None;
        }
    }
}

/// The addresses of this host's that the app's sockets are bound to, but for its loopback's.
pub fn addresses(state: &State) -> BTreeSet<IpAddr> {
    let local = |open: &OpenFile| match &open.kind {
        FileKind::Listener(socket)
        | FileKind::Datagram(socket)
        | FileKind::Unconnected(socket)
        | FileKind::Connection(socket) => address(&socket.local).map(|local| local.ip().to_canonical()),
        _ => None,
    };
    let own = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast();
    state.files.iter().filter_map(local).filter(own).collect()
}

/// What the peer of each connection would say, where it is known without asking.
pub(super) fn answers(kept: &[Kept<'_>], flows: &[Flow]) -> Vec<Option<Answer>> {
    let index: HashMap<Flow, usize> = flows.iter().enumerate().map(|(n, flow)| (*flow, n)).collect();
    let answer = |(one, flow): (&Kept<'_>, &Flow)| match index.get(&from_the_other_end(*flow)) {
        Some(&other) => Some(of_a_pair(one.tcp, kept[other].tcp)),
        None => is_inside(flow).then(|| of_nobody(one.tcp)),
    };
    kept.iter().zip(flows).map(answer).collect()
}

fn of_a_pair(tcp: &TcpState, other: &TcpState) -> Answer {
    if !lacks_nothing(tcp, other) || !lacks_nothing(other, tcp) {
        return Answer::Gone;
    }
    let acknowledged = expected(other);
    let promised = other.window.own_from.wrapping_add(other.window.own).wrapping_sub(acknowledged);
    Answer::Has { acknowledged, window: scaled(u32::try_from(promised as i32).unwrap_or(0), tcp) }
}

/// Whether the sender still has all that the receiver has not.
fn lacks_nothing(sender: &TcpState, receiver: &TcpState) -> bool {
    let had = expected(receiver).wrapping_sub(first_unacknowledged(sender));
    had as usize <= sender.unacknowledged.len() + usize::from(app_has_finished(sender.state))
}

/// The app has closed the other end, or not accepted it: what comes there is answered with a RST, as before.
fn of_nobody(tcp: &TcpState) -> Answer {
    match peer_has_finished(tcp.state) {
        true => Answer::Has { acknowledged: first_unacknowledged(tcp), window: scaled(tcp.window.peer, tcp) },
        false => Answer::Gone,
    }
}

/// Looks once more at ends that were looked at too early.
pub(super) fn mend(saver: &mut Saver<'_, '_>) -> Result<(), SaveError> {
    const ATTEMPTS: usize = 5;
    if saver.subject.connections != Connections::Keep {
        return Ok(());
    }
    for _ in 0..ATTEMPTS {
        let early = looked_at_too_early(&saver.saved.files);
        if early.is_empty() {
            break;
        }
        for file in early {
            look_again(saver, file)?;
        }
    }
    Ok(())
}

fn connection(file: &OpenFile) -> Option<(&InternetSocket, &TcpState)> {
    match &file.kind {
        FileKind::Connection(socket) => Some((socket, socket.tcp.as_deref()?)),
        _ => None,
    }
}

fn looked_at_too_early(files: &[OpenFile]) -> Vec<usize> {
    let ends = files.iter().enumerate().filter_map(|(n, file)| {
        let (socket, tcp) = connection(file)?;
        let flow = flow(socket).ok().filter(is_inside)?;
        Some((flow, (n, tcp)))
    });
    let ends: HashMap<Flow, (usize, &TcpState)> = ends.collect();
    let early = ends.iter().filter_map(|(flow, (_, sender))| {
        let (n, receiver) = ends.get(&from_the_other_end(*flow))?;
        (!lacks_nothing(sender, receiver)).then_some(*n)
    });
    early.collect()
}

fn look_again(saver: &mut Saver<'_, '_>, file: usize) -> Result<(), SaveError> {
    let number = saver.table.files().nth(file).map(|(_, number, _)| number);
    let (Some(number), FileKind::Connection(before)) = (number, &saver.saved.files[file].kind) else {
        return Ok(());
    };
    let mut socket = InternetSocket { tcp: None, ..before.clone() };
    let stolen = saver.steal(number)?;
    internet::keep(saver, number, &stolen, &Need::State { known: None, unread_min: 0 }, &mut socket)?;
    saver.saved.files[file].kind = FileKind::Connection(socket);
    Ok(())
}
