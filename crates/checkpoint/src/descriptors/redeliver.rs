//! Puts back what waited in UDP sockets: packets in their senders' names, which never leave the host.
//!
//! What a raw socket sends to an address of the host's own goes over `lo`, with its route, so that nobody asks whether its
//! sender could have come from there. To no other address is anything sent: the routing table is asked before.
//!
//! Each socket gets what was its own as soon as it is bound, before the next one is bound and before any is
//! connected. So nobody fits better: of two with one address the kernel takes the later one, and of a group
//! (`SO_REUSEPORT`) whom a program names. It is not sent to the destination of the time before where that is none of this
//! host's (a broadcast, or another host's address), but to the address that would be used to answer.
//!
//! What the app may ask besides, and is new: the time, the hops, the type of service. What cannot be put back is lost, as
//! datagrams may be, and the log says how many: those to a multicast address that the socket is bound to, those
//! of more than 65,488 bytes by IPv6 (they do not fit into a packet of `lo`'s).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use image::descriptor::{Datagram, FileKind, InternetSocket, OpenFile};
use libc::SOL_SOCKET;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use sys::sockets::{attach_choice, get_number, get_option, set_number};

use super::cache::in_network_of;
use super::internet::name;
use super::options::{Buffer, with_room};
use super::probe::Raw;
use super::segments::{address, datagram};

/// For all that does not arrive at once: the kernel may leave it to a thread of its own.
const PATIENCE: Duration = Duration::from_millis(100);

/// In the network of the app that is restored.
#[derive(Debug)]
pub(super) struct Redelivery {
    raw: Raw,
    routes: Routes,
    patience: Duration,
    /// The sockets that came before.
    bound: Vec<Group>,
}

/// Sockets of which any may get a packet.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    family: i32,
    local: Vec<u8>,
}

impl Redelivery {
    /// Where something waited in one of these. Without the rights it is lost, and no takeover fails for it.
    pub(super) fn if_needed(pidfd: BorrowedFd<'_>, files: &[OpenFile]) -> Option<Self> {
        let waits =
            |open: &OpenFile| matches!(&open.kind, FileKind::Datagram(socket) if !socket.queue.is_empty());
        if !files.iter().any(waits) {
            return None;
        }
        let made = in_network_of(pidfd, || {
            let (raw, routes) = (Raw::here()?, Routes::here()?);
            Ok::<_, io::Error>(Self { raw, routes, patience: PATIENCE, bound: Vec::new() })
        });
        made.inspect_err(|why| tracing::warn!("datagrams that waited to be read are lost: {why}")).ok()
    }

    /// `made` is bound, to what `socket` was bound to, and not connected. What cannot be put back is lost.
    pub(super) fn fill(&mut self, made: BorrowedFd<'_>, socket: &InternetSocket) {
        let before = self.enter(socket);
        if socket.queue.is_empty() {
            return;
        }
        let len = socket.queue.iter().map(|datagram| datagram.bytes.len()).sum();
        let filled = with_room(made, Buffer::Receive, len, || {
            chosen(made, before, || Ok::<_, io::Error>(self.send_all(made, socket)))
        });
        let (all, at) = (socket.queue.len(), name(&socket.local));
        match filled {
            Ok(0) => tracing::debug!("{all} datagrams wait at {at} again"),
            Ok(lost) => tracing::warn!("{lost} of {all} datagrams that waited at {at} are lost"),
            Err(why) => tracing::warn!("{all} datagrams that waited at {at} are lost: {why}"),
        }
    }

    /// How many sockets of its group are there already.
    fn enter(&mut self, socket: &InternetSocket) -> usize {
        let shares = socket.options.iter().any(|option| {
            (option.level, option.name) == (SOL_SOCKET, libc::SO_REUSEPORT) && option.value.contains(&1)
        });
        if !shares {
            return 0;
        }
        let group = Group { family: socket.family, local: socket.local.to_vec() };
        let before = self.bound.iter().filter(|other| **other == group).count();
        self.bound.push(group);
        before
    }

    /// How many are lost.
    fn send_all(&mut self, made: BorrowedFd<'_>, socket: &InternetSocket) -> usize {
        const SO_BINDTOIFINDEX: i32 = 62;
        let device = get_number(made, SOL_SOCKET, SO_BINDTOIFINDEX).unwrap_or(0) as u32;
        let lost = socket.queue.iter().filter(|one| {
            let sent = self.send(made, socket, device, one);
            sent.inspect_err(|why| tracing::debug!("a datagram is not put back: {why}")).is_err()
        });
        lost.count()
    }

    fn send(
        &mut self,
        made: BorrowedFd<'_>,
        socket: &InternetSocket,
        device: u32,
        waiting: &Datagram,
    ) -> io::Result<()> {
        let unreadable = || io::Error::from(io::ErrorKind::InvalidData);
        let from = address(&waiting.from).ok_or_else(unreadable)?;
        let local = address(&socket.local).ok_or_else(unreadable)?;
        let asked = address(&waiting.to);
        let to = self.routes.destination(from, local, asked, device)?;
        let piece_len = match waiting.segment as usize {
            0 => waiting.bytes.len().max(1),
            len => len,
        };
        let empty = waiting.bytes.is_empty().then_some(&[][..]);
        for piece in waiting.bytes.chunks(piece_len).chain(empty) {
            let packet = datagram(from, to, piece).ok_or(io::ErrorKind::FileTooLarge)?;
            let before = held_bytes(made)?;
            self.raw.send_packet(to, &packet)?;
            self.wait(|| Ok(held_bytes(made)? != before))?;
        }
        Ok(())
    }

    fn wait(&mut self, arrived: impl Fn() -> io::Result<bool>) -> io::Result<()> {
        let began = Instant::now();
        loop {
            if arrived()? {
                self.patience = self.patience.saturating_sub(began.elapsed());
                return Ok(());
            }
            if began.elapsed() >= self.patience {
                self.patience = Duration::ZERO;
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::yield_now();
        }
    }
}

/// How much memory what waits in a socket takes.
fn held_bytes(socket: BorrowedFd<'_>) -> io::Result<u32> {
    const SO_MEMINFO: i32 = 55;
    let mut numbers = [0; 36];
    get_option(socket, SOL_SOCKET, SO_MEMINFO, &mut numbers)?;
    Ok(u32::from_ne_bytes([0, 1, 2, 3].map(|n| numbers[n])))
}

/// Does something while the last socket of its group gets all packets, of which `before` others are there.
fn chosen<T>(socket: BorrowedFd<'_>, before: usize, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    const SO_DETACH_REUSEPORT_BPF: i32 = 68;
    const RETURN: [u8; 4] = [6, 0, 0, 0];
    if before == 0 {
        return work();
    }
    attach_choice(socket, &[RETURN, (before as u32).to_ne_bytes()].concat())?;
    let done = work();
    set_number(socket, SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)?;
    done
}

/// The routing table of a network.
#[derive(Debug)]
struct Routes {
    netlink: OwnedFd,
    known: HashMap<(IpAddr, u32), Route>,
}

/// What it says of an address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Route {
    /// It is the host's own.
    is_local: bool,
    /// Whom it would be spoken to from.
    source: Option<IpAddr>,
}

impl Routes {
    fn here() -> io::Result<Self> {
        let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
        let netlink = rustix::net::socket_with(family, SocketType::RAW, flags, None)?;
        Ok(Self { netlink, known: HashMap::new() })
    }

    /// An address of this host's at which a socket hears that is bound to `local`, and to a device if that is not zero:
    /// what is sent to an address seems to come by the device that has it.
    fn destination(
        &mut self,
        from: SocketAddr,
        local: SocketAddr,
        asked: Option<SocketAddr>,
        device: u32,
    ) -> io::Result<SocketAddr> {
        let at_port = |mut to: SocketAddr| {
            to.set_port(local.port());
            to
        };
        let wanted = if local.ip().is_unspecified() { asked } else { Some(local) };
        let wanted = wanted.filter(|to| to.is_ipv4() == from.is_ipv4()).map(at_port);
        if let Some(to) = wanted
            && self.ask(to, device)?.is_local
        {
            return Ok(to);
        }
        if local.ip().is_unspecified() {
            let source = self.ask(from, device)?.source;
            let loopback: IpAddr = match from {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            for ip in source.into_iter().chain([loopback]) {
                let to = SocketAddr::new(ip, local.port());
                if self.ask(to, device)?.is_local {
                    return Ok(to);
                }
            }
        }
        Err(io::ErrorKind::AddrNotAvailable.into())
    }

    /// By a device, if it is not zero.
    fn ask(&mut self, whom: SocketAddr, device: u32) -> io::Result<Route> {
        let scope = match whom {
            SocketAddr::V6(whom) => whom.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        let question = (whom.ip(), if device != 0 { device } else { scope });
        if let Some(route) = self.known.get(&question) {
            return Ok(*route);
        }
        rustix::net::send(&self.netlink, &request(question), SendFlags::empty())?;
        let mut answer = [0; 1024];
        let (len, _) = rustix::net::recv(&self.netlink, &mut answer, RecvFlags::empty())?;
        let route = read_route(&answer[..len]);
        self.known.insert(question, route);
        Ok(route)
    }
}

const HEADERS_BYTES: usize = 16 + 12;

/// `nlmsghdr`, `rtmsg` and what is asked.
fn request((ip, device): (IpAddr, u32)) -> Vec<u8> {
    const RTM_GETROUTE: u16 = 26;
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    let (family, ip) = match ip {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    let attribute = |kind: u16, value: &[u8]| {
        [&(4 + value.len() as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
    };
    let mut request = vec![0; HEADERS_BYTES];
    request[4..6].copy_from_slice(&RTM_GETROUTE.to_ne_bytes());
    request[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request[16..18].copy_from_slice(&[family as u8, ip.len() as u8 * 8]);
    request.extend(attribute(RTA_DST, &ip));
    if device != 0 {
        request.extend(attribute(RTA_OIF, &device.to_ne_bytes()));
    }
    let len = (request.len() as u32).to_ne_bytes();
    request[..4].copy_from_slice(&len);
    request
}

/// Without a route, or where the answer cannot be read, it is nobody's.
fn read_route(answer: &[u8]) -> Route {
    const RTM_NEWROUTE: u16 = 24;
    const RTN_LOCAL: u8 = 2;
    const RTA_PREFSRC: u16 = 7;
    let short = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    if short(4) != Some(RTM_NEWROUTE) || answer.len() < HEADERS_BYTES {
        return Route::default();
    }
    let mut route = Route { is_local: answer[23] == RTN_LOCAL, source: None };
    let mut at = HEADERS_BYTES;
    while let (Some(len), Some(kind)) = (short(at), short(at + 2)) {
        let value = answer.get(at + 4..at + usize::from(len)).unwrap_or_default();
        if kind == RTA_PREFSRC {
            let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
            route.source = v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok();
        }
        at += usize::from(len).max(4).next_multiple_of(4);
    }
    route
}
