//! Connections that the app has closed while the kernel still has to send on them, and those that it has not accepted
//! yet: no descriptor leads to one, so the kernel's own structures are read ([`super::look`]), found by a BPF iterator
//! over sockets.
//!
//! What is written to a closed one was written before; what comes in, if it is no acknowledgement or end, resets
//! it. So all of it is what waits to be sent or acknowledged, the numbers, and the end. On one that was not accepted
//! nothing was said, and all of it is what waits to be read; of one whose handshake is half made ([`super::requests`])
//! there are the numbers.
//!
//! The app stands still, the network does not: a segment may come in between any two looks, and the kernel moves, splits
//! and frees what is queued. A look therefore counts for nothing by itself. The numbers are read before and after the
//! queue; the bytes are copied *between* two looks, and only those count whose place in the queue both describe in the
//! same words; and the queue must have every byte from its first number to its last. Otherwise there is
//! another attempt, and after some the connection is one that ends at a takeover.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use image::descriptor::{SocketOption, TcpState};
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};
use serde_bytes::ByteBuf;
use sys::bpf::{Instruction, Register};
use sys::tasks::{self, HELPER_READ_KERNEL, HELPER_SEQUENCE_WRITE, Iteration, VisitSockets};

use super::cache::in_network_of;
use super::look::{Buffer, Chosen, Look, Looker, Miss, Numbers, Places, Socket, is_unaccepted};
use super::requests::{self, Requests};
use super::stream::{self, Info, peer_has_finished};
use crate::process::layout::Filled;
use crate::process::types::Types;

/// What all of them may have to send: a standby takes no image without end, and to read it takes time.
const QUEUES_BYTES_MAX: usize = 64 << 20;
/// Who is asked for more connections than that is being flooded, and most of those who ask do not exist.
const REQUESTS_MAX: usize = 256;
/// With nothing that comes in two are enough.
const ATTEMPTS: usize = 16;

/// One process has one: it belongs to the kernel that runs.
#[derive(Debug)]
struct Reader {
    looker: Looker,
    requests: Requests,
    _program: OwnedFd,
    visit: VisitSockets,
}

/// What is kept from freeze to freeze, for one network namespace.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    warming: bool,
    /// Made in advance: it takes a thread to enter the namespace.
    iterations: Vec<Iteration>,
}

fn reader() -> Option<&'static Mutex<Reader>> {
    static READER: OnceLock<Option<Mutex<Reader>>> = OnceLock::new();
    let read = || match Reader::new() {
        Ok(reader) => Some(Mutex::new(reader)),
        Err(why) => {
            tracing::info!("connections without descriptor will be reset at a takeover: {why}");
            None
        }
    };
    READER.get_or_init(read).as_ref()
}

impl Orphans {
    /// Finds out about this kernel, beside the freeze: it takes some tens of milliseconds.
    pub(super) fn warm_up(&mut self) {
        if !self.warming {
            self.warming = true;
            // Without a thread it is found out when it is needed.
            let _ = std::thread::Builder::new().name("orphans".to_owned()).spawn(reader);
        }
    }

    /// The states of those with these cookies that can be read, which are in the network of a process. All of them
    /// together are not to have too much to send, with what others have.
    pub(super) fn read(
        &mut self,
        pidfd: BorrowedFd<'_>,
        wanted: &[(u64, Info)],
        others_bytes: usize,
    ) -> io::Result<HashMap<u64, Orphan>> {
        let Some(reader) = reader() else { return Ok(HashMap::new()) };
        let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        let addresses = reader.addresses(self.iteration(&reader.visit, pidfd)?)?;
        let wanted = wanted.iter().filter_map(|(cookie, info)| {
            let (address, cookie) = (*addresses.get(cookie)?, *cookie);
            Some(Wanted { socket: Socket { address, cookie }, info: *info })
        });
        let (requests, wanted): (Vec<Wanted>, Vec<Wanted>) = wanted.partition(|one| one.info.is_of_request());
        let mut room = QUEUES_BYTES_MAX.saturating_sub(others_bytes);
        let mut found = HashMap::with_capacity(wanted.len() + requests.len());
        let requests: Vec<Socket> = requests.into_iter().map(|one| one.socket).take(REQUESTS_MAX).collect();
        found.extend(reader.half_made(&requests).unwrap_or_default());
        if let Err(why) = reader.orphans(&wanted, &mut room, &mut found) {
            tracing::debug!("a connection without descriptor leads to what cannot be read: {why}");
            // Only that one is to suffer.
            let left = wanted.iter().filter(|one| !found.contains_key(&one.socket.cookie));
            for one in left.copied().collect::<Vec<_>>() {
                let _ = reader.orphans(&[one], &mut room, &mut found);
            }
        }
        Ok(found)
    }

    fn iteration(&mut self, visit: &VisitSockets, pidfd: BorrowedFd<'_>) -> io::Result<Iteration> {
        const IN_ADVANCE: usize = 32;
        if self.iterations.is_empty() {
            let begin = || (0..IN_ADVANCE).map(|_| visit.begin()).collect::<io::Result<Vec<_>>>();
            self.iterations = in_network_of(pidfd, begin)?;
        }
        self.iterations.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// What was read of one.
#[derive(Debug)]
pub(super) struct Orphan {
    pub state: TcpState,
    /// Those of its options that others can tell. A new socket has 0 of each.
    pub options: Vec<SocketOption>,
}

/// `IP_TOS` sets the priority, which comes after it. Whether it leaves its port to others is `SO_REUSEADDR`.
fn options_of(reuse_address: bool, chosen: Chosen) -> Vec<SocketOption> {
    let Chosen { service, class, priority, mark, patience_ms } = chosen;
    let all = [
        Some((SOL_SOCKET, libc::SO_REUSEADDR, u32::from(reuse_address))),
        Some((IPPROTO_IP, libc::IP_TOS, service.into())),
        class.map(|class| (IPPROTO_IPV6, libc::IPV6_TCLASS, class.into())),
        Some((SOL_SOCKET, libc::SO_PRIORITY, priority)),
        Some((SOL_SOCKET, libc::SO_MARK, mark)),
        Some((IPPROTO_TCP, libc::TCP_USER_TIMEOUT, patience_ms)),
    ];
    let option = |(level, name, value): (i32, i32, u32)| SocketOption {
        level,
        name,
        value: ByteBuf::from(value.to_ne_bytes()),
    };
    all.into_iter().flatten().map(option).collect()
}

/// A connection that is to be read, with what the diagnosis said of it.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    socket: Socket,
    info: Info,
}

/// One that is not read yet.
#[derive(Debug)]
struct Open {
    wanted: Wanted,
    copies: HashMap<Buffer, Vec<u8>>,
    /// Of the room for all.
    reserved: bool,
}

impl Open {
    /// Keeps the copies of what is still there; whether that is all.
    fn has_all(&mut self, buffers: &[Buffer]) -> bool {
        let mut before = std::mem::take(&mut self.copies);
        let kept = buffers.iter().filter_map(|buffer| before.remove_entry(buffer));
        self.copies = kept.collect();
        self.copies.len() == buffers.len()
    }
}

impl Reader {
    fn new() -> io::Result<Self> {
        let types = Types::of_kernel()?;
        let missing = || io::Error::new(io::ErrorKind::NotFound, "this kernel has no iterator over sockets");
        let function = types.function("bpf_iter_tcp").ok_or_else(missing)?;
        let looker = Looker::new(&types)?;
        let requests = Requests::of(&types).ok_or_else(missing)?;
        let program = tasks::load_visitor("checksync_orphan", function, &visitor(looker.places()))
            .map_err(|why| io::Error::new(why.source.kind(), format!("{}: {}", why.source, why.log)))?;
        let visit = VisitSockets::new(program.as_fd())?;
        Ok(Self { looker, requests, _program: program, visit })
    }

    /// Where the sockets are, by their cookies.
    fn addresses(&self, iteration: Iteration) -> io::Result<HashMap<u64, u64>> {
        let mut records = Vec::new();
        iteration.read(&mut records)?;
        let record = |record: &[u8]| (Filled(record).u64(0), Filled(record).u64(8));
        Ok(records.chunks_exact(RECORD_BYTES).map(record).collect())
    }

    /// Those whose handshake is not over.
    fn half_made(&mut self, sockets: &[Socket]) -> io::Result<Vec<(u64, Orphan)>> {
        let requests = self.requests.read(self.looker.memory(), sockets)?;
        let clock_ns = self.looker.clock_ns();
        let each = sockets.iter().zip(requests).filter_map(|(socket, request)| {
            let state = request?.state(clock_ns);
            Some((socket.cookie, Orphan { state, options: Vec::new() }))
        });
        Ok(each.collect())
    }

    /// Adds to `found` what can be read, for which there is room.
    fn orphans(
        &mut self,
        wanted: &[Wanted],
        room: &mut usize,
        found: &mut HashMap<u64, Orphan>,
    ) -> io::Result<()> {
        let open = |wanted: &Wanted| Open { wanted: *wanted, copies: HashMap::new(), reserved: false };
        let mut all: Vec<Open> = wanted.iter().map(open).collect();
        for _ in 0..ATTEMPTS {
            let sockets: Vec<Socket> = all.iter().map(|one| one.wanted.socket).collect();
            let looks = self.looker.look(&sockets)?;
            let mut left = Vec::new();
            for (mut one, look) in all.into_iter().zip(looks) {
                match look {
                    Ok(look) if !one.reserved && look.numbers.queued() > *room => (),
                    Ok(look) if one.has_all(&look.buffers) => {
                        found.insert(one.wanted.socket.cookie, self.assemble(&look, &one));
                    }
                    Ok(look) => {
                        *room -= if one.reserved { 0 } else { look.numbers.queued() };
                        one.reserved = true;
                        left.push((one, Some(look)));
                    }
                    Err(Miss::Moving) => left.push((one, None)),
                    Err(Miss::Other) => (),
                }
            }
            if left.is_empty() {
                break;
            }
            self.copy(&mut left)?;
            all = left.into_iter().map(|(one, _)| one).collect();
        }
        Ok(())
    }

    /// What is new in the looks.
    fn copy(&mut self, all: &mut [(Open, Option<Look>)]) -> io::Result<()> {
        let new = all.iter().flat_map(|(one, look)| {
            let buffers = look.iter().flat_map(|look| &look.buffers);
            buffers.filter(|buffer| !one.copies.contains_key(*buffer))
        });
        let mut pieces = self.looker.copy(&new.collect::<Vec<_>>())?.into_iter();
        for (one, look) in all {
            for buffer in look.iter().flat_map(|look| &look.buffers) {
                // In the same order.
                if let (false, Some(piece)) = (one.copies.contains_key(buffer), pieces.next()) {
                    one.copies.insert(buffer.clone(), piece);
                }
            }
        }
        Ok(())
    }

    fn assemble(&self, look: &Look, one: &Open) -> Orphan {
        let info = &one.wanted.info;
        let numbers = &look.numbers;
        let mut queue = Vec::new();
        let (mut next, _) = numbers.queue();
        for buffer in &look.buffers {
            let skip = next.wrapping_sub(buffer.first) as i32;
            let bytes = one.copies.get(buffer).map_or(&[][..], Vec::as_slice);
            queue.extend(bytes.get(skip.max(0) as usize..).unwrap_or_default());
            next = buffer.end;
        }
        let (unread, unacknowledged, ends) = match is_unaccepted(numbers.state) {
            true => (queue, Vec::new(), 0),
            // The end is the last number that was written.
            false => (Vec::new(), queue, 1),
        };
        let write_sequence = numbers.written_until.wrapping_sub(ends);
        let unsent = write_sequence.wrapping_sub(numbers.sent_until) as i32;
        let read_sequence = numbers.received_until.wrapping_sub(peer_has_finished(numbers.state).into());
        let timestamp = info.has_timestamps().then(|| self.timestamp(numbers));
        let state = TcpState {
            state: numbers.state,
            write_sequence,
            read_sequence,
            unsent: (unsent.max(0) as u32).min(unacknowledged.len() as u32),
            unacknowledged: ByteBuf::from(unacknowledged),
            unread: ByteBuf::from(unread),
            read_shut: false,
            segment_max: numbers.segment_max.into(),
            selective_acknowledgements: info.has_selective_acknowledgements(),
            window_scales: info.window_scales(),
            timestamp,
            window: stream::windows(numbers.windows, read_sequence),
            round_trip_us: info.round_trip_us(),
            send_buffer: numbers.send_buffer,
            receive_buffer: numbers.receive_buffer,
            buffers_locked: 0,
        };
        Orphan { state, options: options_of(numbers.reuse != 0, numbers.chosen) }
    }

    /// As `TCP_TIMESTAMP` says it: the lowest bit tells the unit.
    fn timestamp(&self, numbers: &Numbers) -> u32 {
        requests::stamp(self.looker.clock_ns(), numbers.clock_skip, numbers.counts_microseconds)
    }
}

/// A cookie and an address.
const RECORD_BYTES: usize = 16;

/// Writes out which sockets are such ones, and where they are. Of those whose state others have, too, only who has no
/// descriptor.
fn visitor(places: &Places) -> Vec<Instruction> {
    const STATE_BYTES: i32 = 8;
    let (record, state) = (-(RECORD_BYTES as i32), -(RECORD_BYTES as i32) - STATE_BYTES);
    let fetch = |to: i32, bytes: i32, place: usize| {
        [
            Instruction::copy(Register::R3, Register::R6),
            Instruction::add(Register::R3, place as i32),
            Instruction::copy(Register::R1, Register::Frame),
            Instruction::add(Register::R1, to),
            Instruction::set(Register::R2, bytes),
            Instruction::call(HELPER_READ_KERNEL),
        ]
    };
    let emit = [
        &fetch(record, 8, places.cookie)[..],
        &[
            Instruction::store_word(Register::Frame, -1, Register::R6),
            Instruction::load_word(Register::R1, Register::R7, 0),
            Instruction::copy(Register::R2, Register::Frame),
            Instruction::add(Register::R2, record),
            Instruction::set(Register::R3, RECORD_BYTES as i32),
            Instruction::call(HELPER_SEQUENCE_WRITE),
        ],
    ]
    .concat();
    let of_app = &[
        &fetch(state, 8, places.descriptor)[..],
        &[
            Instruction::load_word(Register::R1, Register::Frame, (state / 8) as i16),
            Instruction::skip_if_equal(Register::R1, 0, 1),
            Instruction::skip(emit.len() as i16),
        ],
    ]
    .concat();
    let states = [stream::FIN_WAIT1, stream::LAST_ACK, stream::CLOSING, requests::BEGINNING];
    let shared = [stream::ESTABLISHED, stream::CLOSE_WAIT];
    let slots = states.len() + shared.len() + 1;
    let skip_all = |n: usize, of: usize| (slots - n - 1 + of) as i16;
    let choice: Vec<Instruction> = states
        .iter()
        .map(|state| (state, of_app.len()))
        .chain(shared.iter().map(|state| (state, 0)))
        .enumerate()
        .map(|(n, (state, to))| Instruction::skip_if_equal(Register::R1, (*state).into(), skip_all(n, to)))
        .chain([Instruction::skip((of_app.len() + emit.len()) as i16)])
        .collect();
    let body = [
        &[
            Instruction::set(Register::R1, 0),
            Instruction::store_word(Register::Frame, (state / 8) as i16, Register::R1),
        ],
        &fetch(state, 1, places.state)[..],
        &[Instruction::load_word(Register::R1, Register::Frame, (state / 8) as i16)],
        &choice,
        of_app,
        &emit,
    ]
    .concat();
    let begin = [
        Instruction::load_word(Register::R7, Register::R1, 0), // The iteration,
        Instruction::load_word(Register::R6, Register::R1, 1), // and the socket: none at the end.
        Instruction::skip_if_equal(Register::R6, 0, body.len() as i16),
    ];
    let end = [Instruction::set(Register::R0, 0), Instruction::exit()];
    [&begin[..], &body, &end].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(address: u64, page: u64) -> Buffer {
        let fragments = vec![(page, 0, 10)];
        let (len, linear, shared, data) = (10, 0, Some(address + 1), 0);
        Buffer { address, first: 0, end: len, flags: 0, len, data, shared, linear, fragments }
    }

    #[test]
    fn only_copies_of_what_is_described_in_the_same_words_count() {
        let socket = Socket { address: 0, cookie: 0 };
        let info = Info([0; Info::BYTES]);
        let copied = HashMap::from([(buffer(1, 7), vec![1; 10]), (buffer(2, 8), vec![2; 10])]);
        let mut one = Open { wanted: Wanted { socket, info }, copies: copied, reserved: true };
        assert!(one.has_all(&[buffer(2, 8), buffer(1, 7)]));
        assert!(!one.has_all(&[buffer(2, 9), buffer(1, 7)]), "its bytes are elsewhere now");
        assert_eq!(one.copies.into_keys().collect::<Vec<_>>(), [buffer(1, 7)]);
    }
}
