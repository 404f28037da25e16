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
//! same words; those count for good, since nobody writes others with the same numbers; and the queue must have every byte
//! from its first number to its last. Otherwise there is another attempt, and after some the connection is one that ends
//! at a takeover.
//!
//! What an open connection has to say is read the same way while some of it is unsent ([`super::stream`]).

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
use super::gathered::Gathered;
use super::look::{Buffer, Chosen, Look, Looker, Miss, Numbers, Places, Socket, is_draining};
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
    /// Where open ones were found, by their cookies.
    open: HashMap<u64, u64>,
}

static READER: OnceLock<Option<Mutex<Reader>>> = OnceLock::new();

fn reader() -> Option<&'static Mutex<Reader>> {
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
            Some(Wanted { socket: Socket { address, cookie, is_open: false }, info: *info })
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

    /// What these still have to say, which the app has open: without those of which it cannot be read, or not yet.
    pub(super) fn outwards(
        &mut self,
        pidfd: BorrowedFd<'_>,
        wanted: &[(u64, Info)],
    ) -> HashMap<u64, TcpState> {
        // To find out about this kernel takes longer than a freeze may.
        let (Some(Some(reader)), false) = (READER.get(), wanted.is_empty()) else { return HashMap::new() };
        let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted.iter().any(|(cookie, _)| !self.open.contains_key(cookie)) {
            let addresses = self.iteration(&reader.visit, pidfd).and_then(|all| reader.addresses(all));
            self.open = addresses.unwrap_or_default();
        }
        let open: Vec<Wanted> = wanted
            .iter()
            .filter_map(|&(cookie, info)| {
                let address = *self.open.get(&cookie)?;
                Some(Wanted { socket: Socket { address, cookie, is_open: true }, info })
            })
            .collect();
        let (mut found, mut room) = (HashMap::with_capacity(open.len()), QUEUES_BYTES_MAX);
        if let Err(why) = reader.orphans(&open, &mut room, &mut found) {
            tracing::debug!("what a connection has to say cannot be read: {why}");
        }
        if found.len() < wanted.len() {
            // One may be elsewhere by now.
            self.open.clear();
        }
        found.into_iter().map(|(cookie, orphan)| (cookie, orphan.state)).collect()
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
struct Unread {
    wanted: Wanted,
    copies: HashMap<Buffer, Vec<u8>>,
    /// Copies that counted. N.B. the queue's first number only grows.
    gathered: Option<Gathered>,
    /// Of the room for all.
    reserved: bool,
}

impl Unread {
    /// Takes in the copies of what is still there; the queue's bytes, if these are all.
    fn bytes(&mut self, look: &Look) -> Option<Vec<u8>> {
        let (from, _) = look.numbers.queue();
        let gathered = self.gathered.get_or_insert_with(|| Gathered::beginning_at(from));
        let mut copies = std::mem::take(&mut self.copies);
        for buffer in &look.buffers {
            if let Some(bytes) = copies.remove(buffer) {
                gathered.put(buffer.first, &bytes);
            }
        }
        gathered.take(from, look.numbers.queued_bytes())
    }

    fn lacks(&self, buffer: &Buffer) -> bool {
        self.gathered.as_ref().is_none_or(|gathered| !gathered.has(buffer.first, buffer.len as usize))
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
        let unread = |wanted: &Wanted| Unread {
            wanted: *wanted,
            copies: HashMap::new(),
            gathered: None,
            reserved: false,
        };
        let mut all: Vec<Unread> = wanted.iter().map(unread).collect();
        for _ in 0..ATTEMPTS {
            let sockets: Vec<Socket> = all.iter().map(|one| one.wanted.socket).collect();
            let looks = self.looker.look(&sockets)?;
            let mut left = Vec::new();
            for (mut one, look) in all.into_iter().zip(looks) {
                match look {
                    Ok(look) if !one.reserved && look.numbers.queued() > *room => (),
                    Ok(look) => match one.bytes(&look) {
                        Some(bytes) => {
                            let orphan = self.assemble(&look, &one.wanted.info, bytes);
                            found.insert(one.wanted.socket.cookie, orphan);
                        }
                        None => {
                            *room -= if one.reserved { 0 } else { look.numbers.queued() };
                            one.reserved = true;
                            left.push((one, Some(look)));
                        }
                    },
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
    fn copy(&mut self, all: &mut [(Unread, Option<Look>)]) -> io::Result<()> {
        fn new<'a>(one: &'a Unread, look: &'a Option<Look>) -> impl Iterator<Item = &'a Buffer> {
            look.iter().flat_map(|look| &look.buffers).filter(|buffer| one.lacks(buffer))
        }
        let lacking: Vec<&Buffer> = all.iter().flat_map(|(one, look)| new(one, look)).collect();
        let mut pieces = self.looker.copy(&lacking)?.into_iter();
        for (one, look) in all {
            // In the same order.
            let copies: Vec<_> = new(one, look).cloned().zip(&mut pieces).collect();
            one.copies.extend(copies);
        }
        Ok(())
    }

    fn assemble(&self, look: &Look, info: &Info, queue: Vec<u8>) -> Orphan {
        let numbers = &look.numbers;
        let (unread, unacknowledged) = match numbers.inwards {
            true => (queue, Vec::new()),
            false => (Vec::new(), queue),
        };
        // The end is the last number that was written.
        let ends = u32::from(is_draining(numbers.state));
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

/// Writes out where the sockets are that have something to say, or may have.
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
    let states = [
        stream::ESTABLISHED,
        stream::CLOSE_WAIT,
        stream::FIN_WAIT1,
        stream::LAST_ACK,
        stream::CLOSING,
        requests::BEGINNING,
    ];
    let to_the_end = |n: usize| (states.len() - n) as i16;
    let choice: Vec<Instruction> = states
        .iter()
        .enumerate()
        .map(|(n, state)| Instruction::skip_if_equal(Register::R1, (*state).into(), to_the_end(n)))
        .chain([Instruction::skip(emit.len() as i16)])
        .collect();
    let body = [
        &[
            Instruction::set(Register::R1, 0),
            Instruction::store_word(Register::Frame, (state / 8) as i16, Register::R1),
        ],
        &fetch(state, 1, places.state)[..],
        &[Instruction::load_word(Register::R1, Register::Frame, (state / 8) as i16)],
        &choice,
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
    use super::super::look::tests::numbers;
    use super::*;

    const FROM: u32 = u32::MAX - 4;

    fn buffer(skip: u32, len: u32, page: u64) -> Buffer {
        let first = FROM.wrapping_add(skip);
        let fragments = vec![(page, 0, len)];
        let (linear, shared, data, flags) = (0, Some(1), 0, 0);
        let address = first.into();
        Buffer { address, first, end: first.wrapping_add(len), flags, len, data, shared, linear, fragments }
    }

    fn look(buffers: &[Buffer]) -> Look {
        let queued = buffers.iter().map(|buffer| buffer.len).sum();
        let mut numbers = numbers(queued);
        numbers.state = stream::ESTABLISHED;
        Look { numbers, buffers: buffers.to_vec() }
    }

    #[test]
    fn only_copies_of_what_is_described_in_the_same_words_count_and_for_good() {
        let socket = Socket { address: 0, cookie: 0, is_open: true };
        let info = Info([0; Info::BYTES]);
        let copies = HashMap::from([(buffer(0, 10, 7), vec![1; 10]), (buffer(10, 10, 8), vec![2; 10])]);
        let wanted = Wanted { socket, info };
        let mut one = Unread { wanted, copies, gathered: None, reserved: true };
        assert_eq!(
            one.bytes(&look(&[buffer(0, 10, 7), buffer(10, 10, 9)])),
            None,
            "its bytes are elsewhere now"
        );
        assert!(!one.lacks(&buffer(0, 10, 7)) && one.lacks(&buffer(10, 10, 9)));
        // Cut in two, and the first one cut off: what is known of it stays known.
        one.copies = HashMap::from([(buffer(10, 4, 9), vec![3; 4]), (buffer(14, 6, 9), vec![4; 6])]);
        let cut = look(&[buffer(0, 3, 7), buffer(3, 7, 6), buffer(10, 4, 9), buffer(14, 6, 9)]);
        let whole = [&[1; 10][..], &[3; 4], &[4; 6]].concat();
        assert_eq!(one.bytes(&cut), Some(whole));
    }
}
