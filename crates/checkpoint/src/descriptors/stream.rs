//! Reading the state of a TCP connection whose app stands still, and its repair mode.
//!
//! In repair mode the kernel shows queues and sequence numbers. The network is live meanwhile: what the app
//! has written and read cannot change, but segments come in and are acknowledged between any two calls. So the
//! stream is described from where the app stopped reading, up to what one look into the queue found.
//!
//! N.B. while the send queue is looked at, the kernel takes whatever it would send for sent, *without sending it*: all
//! that is unsent, at once, and the peer waits for a retransmission. An acknowledgement makes it send, and so does a
//! segment that has left a queue below, or a pacing timer. So with something unsent the queue is read from the kernel's
//! own structures ([`super::orphans`]). Only where that cannot be done the mode looks at it; then segments are kept from
//! the socket for these microseconds ([`Deaf`]), the peer is asked to say it again if that met one, and what a timer
//! does costs the connection some of its throughput.
//!
//! N.B. an app that met its socket in repair mode would be refused (`EPERM`): [`Repair`] leaves it on every
//! path, without a packet, and gives back `SO_REUSEADDR`, which the mode destroys.

use std::io;
use std::os::fd::BorrowedFd;

use image::descriptor::{TcpState, TcpWindow};
use libc::{IPPROTO_TCP, SOL_SOCKET};
use rustix::net::RecvFlags;
use serde_bytes::ByteBuf;
use sys::sockets::{get_number, get_option, set_number};

use super::watch::Agreed;

pub(super) const ESTABLISHED: u8 = 1;
pub(super) const FIN_WAIT1: u8 = 4;
pub(super) const FIN_WAIT2: u8 = 5;
pub(super) const CLOSE_WAIT: u8 = 8;
pub(super) const LAST_ACK: u8 = 9;
pub(super) const CLOSING: u8 = 11;

pub(super) const RECEIVE_QUEUE: i32 = 1;
pub(super) const SEND_QUEUE: i32 = 2;
pub(super) const NO_QUEUE: i32 = 0;
/// `SO_BUF_LOCK`.
pub(super) const SO_BUF_LOCK: i32 = 72;
/// Leaves repair mode without a window probe.
const OFF_WITHOUT_PROBE: i32 = -1;

/// `TCPI_OPT_*`.
const HAS_TIMESTAMPS: u8 = 1;
const HAS_SELECTIVE_ACKNOWLEDGEMENTS: u8 = 2;
const HAS_WINDOW_SCALES: u8 = 4;

/// Whether the peer has said its last byte.
pub(super) fn peer_has_finished(state: u8) -> bool {
    matches!(state, CLOSE_WAIT | LAST_ACK | CLOSING)
}

/// Whether the app has shut its writing side.
pub(super) fn app_has_finished(state: u8) -> bool {
    matches!(state, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING)
}

/// A socket in repair mode; it leaves it when this goes.
#[derive(Debug)]
struct Repair<'a> {
    socket: BorrowedFd<'a>,
    reuse_address: i32,
}

impl<'a> Repair<'a> {
    fn enter(socket: BorrowedFd<'a>) -> io::Result<Self> {
        let reuse_address = get_number(socket, SOL_SOCKET, libc::SO_REUSEADDR)?;
        set_number(socket, IPPROTO_TCP, libc::TCP_REPAIR, 1)?;
        Ok(Self { socket, reuse_address })
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        if let Err(why) = leave_repair(self.socket, self.reuse_address) {
            tracing::error!("a connection of the app's cannot be given back: {why}");
        }
    }
}

/// Without a packet; the mode has destroyed `SO_REUSEADDR`, which gets its value.
pub(super) fn leave_repair(socket: BorrowedFd<'_>, reuse_address: i32) -> io::Result<()> {
    set_number(socket, IPPROTO_TCP, libc::TCP_REPAIR, OFF_WITHOUT_PROBE)?;
    if reuse_address == 0 {
        return Ok(());
    }
    set_number(socket, SOL_SOCKET, libc::SO_REUSEADDR, reuse_address)
}

/// A socket that nothing gets through to; it hears again when this goes.
#[derive(Debug)]
struct Deaf<'a> {
    socket: BorrowedFd<'a>,
    dropped: i32,
}

impl<'a> Deaf<'a> {
    /// `None` for a socket that has a filter of the app's, or takes none (`SO_LOCK_FILTER`).
    fn make(socket: BorrowedFd<'a>) -> io::Result<Option<Self>> {
        /// `BPF_RET | BPF_K`, zero bytes.
        const NOTHING: [u8; 8] = [6, 0, 0, 0, 0, 0, 0, 0];
        let own = sys::sockets::filter(socket);
        if !own.is_ok_and(|own| own.is_empty()) {
            return Ok(None);
        }
        let dropped = Memory::read(socket)?.dropped();
        match sys::sockets::attach_filter(socket, &NOTHING) {
            Ok(()) => Ok(Some(Self { socket, dropped })),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// It hears again; whether something was kept away.
    fn missed(self) -> bool {
        let (socket, dropped) = (self.socket, self.dropped);
        drop(self);
        Memory::read(socket).is_ok_and(|memory| memory.dropped() != dropped)
    }
}

impl Drop for Deaf<'_> {
    fn drop(&mut self) {
        if let Err(why) = set_number(self.socket, SOL_SOCKET, libc::SO_DETACH_FILTER, 0) {
            tracing::error!("a connection of the app's stays deaf: {why}");
        }
    }
}

/// What was read of a connection.
#[derive(Debug)]
pub(super) struct Dump {
    pub state: TcpState,
    /// Something of the peer's was kept away, which it must be asked for.
    pub missed: bool,
}

/// The connection's state, `None` if it has ended meanwhile or has urgent data to be read. The app's
/// thread stands still. What is `known` is not asked again. `buffer` is room for the queues, kept from call to
/// call. On success and on failure the socket is what it was.
pub(super) fn dump(
    socket: BorrowedFd<'_>,
    known: Option<Agreed>,
    buffer: &mut Vec<u8>,
    queued: &mut dyn FnMut() -> Option<TcpState>,
) -> io::Result<Option<Dump>> {
    in_repair(socket, || dump_in_repair(socket, known, buffer, queued))
}

/// Whatever comes of `work`, the socket is what it was.
fn in_repair<T>(socket: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let repair = Repair::enter(socket)?;
    let done = work();
    drop(repair);
    done
}

fn dump_in_repair(
    socket: BorrowedFd<'_>,
    known: Option<Agreed>,
    buffer: &mut Vec<u8>,
    queued: &mut dyn FnMut() -> Option<TcpState>,
) -> io::Result<Option<Dump>> {
    let (mut inwards, info) = Inwards::read(socket)?;
    let state = info.state();
    if state != ESTABLISHED && !peer_has_finished(state) && !app_has_finished(state) {
        return Ok(None);
    }
    let Some(unread) = inwards.peek(socket, buffer)? else { return Ok(None) };
    let (outwards, missed) = Outwards::read(socket, state, buffer, queued)?;
    let number = |level, name| get_number(socket, level, name);
    // In repair mode the first is what was agreed on, elsewhere what fits the path.
    let (segment_max, buffers_locked) = match known {
        Some(known) => (known.segment_max, known.buffers_locked),
        None => (number(IPPROTO_TCP, libc::TCP_MAXSEG)? as u32, number(SOL_SOCKET, SO_BUF_LOCK)?),
    };
    let memory = Memory::read(socket)?;
    let timestamp = match info.has_timestamps() {
        true => Some(number(IPPROTO_TCP, libc::TCP_TIMESTAMP)? as u32),
        false => None,
    };
    let state = TcpState {
        state,
        write_sequence: outwards.write_sequence,
        read_sequence: inwards.read_sequence,
        unacknowledged: outwards.unacknowledged,
        unsent: outwards.unsent,
        unread,
        read_shut: false,
        segment_max,
        selective_acknowledgements: info.has_selective_acknowledgements(),
        window_scales: info.window_scales(),
        timestamp,
        window: window(socket, inwards.read_sequence)?,
        round_trip_us: info.round_trip_us(),
        send_buffer: memory.send_buffer(),
        receive_buffer: memory.receive_buffer(),
        buffers_locked,
    };
    Ok(Some(Dump { state, missed }))
}

/// The stream towards the app.
struct Inwards {
    /// Of what the app reads next.
    copied_sequence: u32,
    read_sequence: u32,
    waiting: usize,
}

impl Inwards {
    /// What is asked with several calls must be of one moment: nothing came in between.
    fn read(socket: BorrowedFd<'_>) -> io::Result<(Self, Info)> {
        const ATTEMPTS: usize = 1000;
        set_number(socket, IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, RECEIVE_QUEUE)?;
        let mut next = queue_sequence(socket)?;
        for _ in 0..ATTEMPTS {
            let waiting = rustix::io::ioctl_fionread(socket)? as u32;
            let info = Info::read(socket)?;
            let now = queue_sequence(socket)?;
            if now == next {
                // A FIN takes a number, and is not among what waits.
                let read_sequence = next.wrapping_sub(peer_has_finished(info.state()).into());
                let copied_sequence = read_sequence.wrapping_sub(waiting);
                let inwards = Self { copied_sequence, read_sequence, waiting: waiting as usize };
                return Ok((inwards, info));
            }
            next = now;
        }
        Err(io::Error::other("segments come in faster than they can be counted"))
    }

    /// What waits to be read, `None` if urgent data came into it. More of it may have come; a FIN may have,
    /// which counts as not come.
    fn peek(&mut self, socket: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> io::Result<Option<ByteBuf>> {
        if self.waiting == 0 {
            return Ok(Some(ByteBuf::new()));
        }
        grow(buffer, self.waiting);
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let (len, _) = rustix::net::recv(socket, &mut buffer[..], flags)?;
        if len < self.waiting {
            return Ok(None);
        }
        self.read_sequence = self.copied_sequence.wrapping_add(len as u32);
        Ok(Some(ByteBuf::from(&buffer[..len])))
    }
}

/// The stream from the app.
struct Outwards {
    write_sequence: u32,
    unacknowledged: ByteBuf,
    unsent: u32,
}

impl Outwards {
    /// Also says whether something was kept away meanwhile.
    fn read(
        socket: BorrowedFd<'_>,
        state: u8,
        buffer: &mut Vec<u8>,
        queued: &mut dyn FnMut() -> Option<TcpState>,
    ) -> io::Result<(Self, bool)> {
        let waiting = sys::sockets::unacknowledged(socket)?;
        let unsent = if waiting == 0 { 0 } else { sys::sockets::unsent(socket)? };
        let same = |queued: &TcpState| app_has_finished(queued.state) == app_has_finished(state);
        if unsent > 0
            && let Some(TcpState { write_sequence, unacknowledged, unsent, .. }) = queued().filter(same)
        {
            return Ok((Self { write_sequence, unacknowledged, unsent }, false));
        }
        let deaf = if unsent == 0 { None } else { Deaf::make(socket)? };
        let read = Self::look(socket, state, waiting, unsent, buffer);
        if unsent > 0 {
            // Before it hears again.
            set_number(socket, IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, NO_QUEUE)?;
        }
        let missed = deaf.is_some_and(Deaf::missed);
        Ok((read?, missed))
    }

    fn look(
        socket: BorrowedFd<'_>,
        state: u8,
        waiting: u32,
        unsent: u32,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Self> {
        /// The first segment may begin before what is acknowledged.
        const SLACK_BYTES: usize = 64 << 10;
        let finished = u32::from(app_has_finished(state));
        set_number(socket, IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, SEND_QUEUE)?;
        let write_sequence = queue_sequence(socket)?.wrapping_sub(finished);
        if waiting == 0 {
            return Ok(Self { write_sequence, unacknowledged: ByteBuf::new(), unsent: 0 });
        }
        grow(buffer, waiting as usize + SLACK_BYTES);
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let (len, _) = rustix::net::recv(socket, &mut buffer[..], flags)?;
        let unsent = unsent.saturating_sub(finished).min(len as u32);
        Ok(Self { write_sequence, unacknowledged: ByteBuf::from(&buffer[..len]), unsent })
    }
}

/// `SO_MEMINFO`.
struct Memory([u8; 36]);

impl Memory {
    fn read(socket: BorrowedFd<'_>) -> io::Result<Self> {
        const SO_MEMINFO: i32 = 55;
        let mut words = [0; 36];
        get_option(socket, SOL_SOCKET, SO_MEMINFO, &mut words)?;
        Ok(Self(words))
    }

    fn word(&self, index: usize) -> i32 {
        i32::from_ne_bytes([0, 1, 2, 3].map(|n| self.0[index * 4 + n]))
    }

    fn receive_buffer(&self) -> i32 {
        self.word(1)
    }

    fn send_buffer(&self) -> i32 {
        self.word(3)
    }

    fn dropped(&self) -> i32 {
        self.word(8)
    }
}

fn grow(buffer: &mut Vec<u8>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
}

pub(super) fn queue_sequence(socket: BorrowedFd<'_>) -> io::Result<u32> {
    get_number(socket, IPPROTO_TCP, libc::TCP_QUEUE_SEQ).map(|number| number as u32)
}

/// The windows, as of the byte `read_sequence`: what came later counts as not come, but room once promised to
/// the peer stays promised.
fn window(socket: BorrowedFd<'_>, read_sequence: u32) -> io::Result<TcpWindow> {
    let mut bytes = [0; 20];
    get_option(socket, IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, &mut bytes)?;
    let word = |index: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|n| bytes[index * 4 + n]));
    Ok(windows([0, 1, 2, 3, 4].map(word), read_sequence))
}

/// The same of the words of a `struct tcp_repair_window`.
pub(super) fn windows(words: [u32; 5], read_sequence: u32) -> TcpWindow {
    let [update_sequence, peer, peer_max, own, own_from] = words;
    let not_after = |sequence: u32| match read_sequence.wrapping_sub(sequence) as i32 {
        ..0 => read_sequence,
        _ => sequence,
    };
    let (promised, own_from) = (own.wrapping_add(own_from), not_after(own_from));
    let update_sequence = not_after(update_sequence);
    TcpWindow { update_sequence, peer, peer_max, own: promised.wrapping_sub(own_from), own_from }
}

pub(super) fn window_bytes(window: &TcpWindow) -> Vec<u8> {
    let TcpWindow { update_sequence, peer, peer_max, own, own_from } = *window;
    [update_sequence, peer, peer_max, own, own_from].map(u32::to_ne_bytes).concat()
}

/// The beginning of `struct tcp_info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Info(pub [u8; Info::BYTES]);

impl Info {
    pub(super) const BYTES: usize = 72;

    fn read(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let mut bytes = [0; Self::BYTES];
        get_option(socket, IPPROTO_TCP, libc::TCP_INFO, &mut bytes)?;
        Ok(Self(bytes))
    }

    fn state(&self) -> u8 {
        self.0[0]
    }

    /// The diagnosis has nothing to say of one whose handshake is not over.
    pub(super) fn is_of_request(&self) -> bool {
        self.state() == 0
    }

    fn has(&self, option: u8) -> bool {
        self.0[5] & option != 0
    }

    pub(super) fn has_timestamps(&self) -> bool {
        self.has(HAS_TIMESTAMPS)
    }

    pub(super) fn has_selective_acknowledgements(&self) -> bool {
        self.has(HAS_SELECTIVE_ACKNOWLEDGEMENTS)
    }

    pub(super) fn window_scales(&self) -> Option<(u8, u8)> {
        self.has(HAS_WINDOW_SCALES).then_some((self.0[6] & 0xf, self.0[6] >> 4))
    }

    pub(super) fn round_trip_us(&self) -> u32 {
        u32::from_ne_bytes([68, 69, 70, 71].map(|at| self.0[at]))
    }
}

pub(super) fn state_of(socket: BorrowedFd<'_>) -> io::Result<u8> {
    Info::read(socket).map(|info| info.state())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::super::orphans::Orphans;
    use super::*;

    /// Its timer sends on while it is looked at. What was taken for sent and was not, would be sent again a fifth of a
    /// second later. Needs root, as the manager does.
    #[test]
    fn who_has_more_to_say_is_looked_at_and_goes_on_saying_it() {
        const BYTES: usize = 1 << 20;
        const BYTES_PER_SECOND: i32 = 2 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        set_number(sender.as_fd(), SOL_SOCKET, libc::SO_SNDBUF, 4 * BYTES as i32).unwrap();
        set_number(sender.as_fd(), SOL_SOCKET, libc::SO_MAX_PACING_RATE, BYTES_PER_SECOND).unwrap();
        let content: Vec<u8> = (0..BYTES).map(|n| (n % 251) as u8).collect();
        sender.set_nonblocking(true).unwrap();
        let said = sender.write(&content).unwrap();
        sender.set_nonblocking(false).unwrap();
        let heard = std::thread::spawn(move || {
            let mut heard = vec![0; said];
            receiver.read_exact(&mut heard).map(|()| heard)
        });

        let fd = sender.as_fd();
        let pidfd =
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
        let (pidfd, mut orphans, mut buffer) = (pidfd.unwrap(), Orphans::default(), Vec::new());
        // It finds out about the kernel.
        orphans.read(pidfd.as_fd(), &[], 0).unwrap();
        let mut cookie = [0; 8];
        get_option(fd, SOL_SOCKET, libc::SO_COOKIE, &mut cookie).unwrap();
        let (cookie, info) = (u64::from_ne_bytes(cookie), Info::read(fd).unwrap());
        let (mut looks, mut read) = (0, 0);
        while sys::sockets::unsent(fd).unwrap() > 0 && !heard.is_finished() {
            let mut queued = || {
                looks += 1;
                let read_now = orphans.outwards(pidfd.as_fd(), &[(cookie, info)]).remove(&cookie);
                read_now.inspect(|_| read += 1)
            };
            let TcpState { unacknowledged, .. } =
                dump(fd, None, &mut buffer, &mut queued).unwrap().expect("it goes on").state;
            assert!(content[..said].ends_with(&unacknowledged), "the queue is another");
        }
        assert_eq!(heard.join().unwrap().unwrap(), content[..said]);
        // In the last one there may be nothing left.
        assert!(looks > 0 && looks - read <= 1 + looks / 100, "{read} of {looks} looks were of use");
        let mut info = [0; 104];
        get_option(fd, IPPROTO_TCP, libc::TCP_INFO, &mut info).unwrap();
        let sent_again = u32::from_ne_bytes(*info.last_chunk().unwrap());
        // On a busy machine a probe or two.
        assert!(sent_again < 5, "{sent_again} segments were sent again, after {looks} looks");
    }

    /// Needs root, as the manager does.
    #[test]
    fn a_reading_that_fails_gives_the_socket_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let number = |level, name| get_number(client.as_fd(), level, name).unwrap();
        for reuse in [0, 1] {
            set_number(client.as_fd(), SOL_SOCKET, libc::SO_REUSEADDR, reuse).unwrap();
            let failed: io::Result<()> = in_repair(client.as_fd(), || {
                assert_eq!(number(IPPROTO_TCP, libc::TCP_REPAIR), 1);
                Err(io::ErrorKind::Other.into())
            });
            failed.unwrap_err();
            assert_eq!(number(IPPROTO_TCP, libc::TCP_REPAIR), 0);
            assert_eq!(number(SOL_SOCKET, libc::SO_REUSEADDR), reuse);
        }
    }
}
