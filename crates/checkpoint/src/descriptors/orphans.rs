//! Connections that the app has closed while the kernel still has to send on them: no descriptor leads to one, so the
//! kernel's own structures are read ([`KernelMemory`]), found by a BPF iterator over sockets.
//!
//! What is written to such a connection was written before; what comes in, if it is no acknowledgement or end, resets
//! it. So all of it is what waits to be sent or acknowledged, the numbers, and the end.
//!
//! The app stands still, the network does not: a segment may come in between any two looks, and the kernel moves, splits
//! and frees what is queued. A look therefore counts for nothing by itself. The numbers are read before and after the
//! queue; the bytes are copied *between* two looks, and only those count whose place in the queue both describe in the
//! same words; and the queue must have every byte from the first that is not acknowledged to the end. Otherwise there is
//! another attempt, and after some the connection is one that ends at a takeover.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use image::descriptor::TcpState;
use serde_bytes::ByteBuf;
use sys::bpf::{Instruction, Register};
use sys::tasks::{self, HELPER_READ_KERNEL, HELPER_SEQUENCE_WRITE, Iteration, VisitSockets};

use super::cache::in_network_of;
use super::kernel_memory::KernelMemory;
use super::stream::{self, Info, peer_has_finished};
use crate::process::layout::Filled;
use crate::process::types::Types;

/// Queues that are longer are not followed.
const BUFFERS_MAX: usize = 1 << 14;
/// What all of them may have to send: a standby takes no image without end, and to read it takes time.
const QUEUES_BYTES_MAX: usize = 64 << 20;
/// With nothing that comes in two are enough.
const ATTEMPTS: usize = 32;

/// One process has one: it belongs to the kernel that runs.
#[derive(Debug)]
struct Reader {
    memory: KernelMemory,
    places: Places,
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
            tracing::info!("connections that the app has closed will be reset at a takeover: {why}");
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
        let mut room = QUEUES_BYTES_MAX.saturating_sub(others_bytes);
        let mut found = HashMap::new();
        for (cookie, info) in wanted {
            let Some(&address) = addresses.get(cookie) else { continue };
            match reader.orphan(address, *cookie, info, room) {
                Ok(orphan) => {
                    room = room.saturating_sub(orphan.state.unacknowledged.len());
                    found.insert(*cookie, orphan);
                }
                Err(why) => tracing::debug!("a connection that the app has closed cannot be read: {why}"),
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
    /// Whether it leaves its port to others, as `SO_REUSEADDR` has it.
    pub reuse_address: bool,
}

/// Declares a structure of places that are found by name.
macro_rules! places {
    ($($name:ident: $structure:literal $(. $member:literal)+,)*) => {
        /// Where the kernel that runs keeps what, in bytes from the beginning of a structure.
        #[derive(Debug, Clone, Copy)]
        struct Places {
            socket_bytes: usize,
            buffer_bytes: usize,
            shared_bytes: usize,
            fragment_bytes: usize,
            fragment_len: usize,
            fragment_skip: usize,
            /// In bits.
            counts_microseconds: usize,
            $($name: usize,)*
        }

        impl Places {
            fn of(types: &Types) -> Option<Self> {
                let at = |structure: &str, member: &str| Some(types.offset(structure, member)? as usize);
                let size = |structure| Some(types.size(structure)? as usize);
                // The older name is another one's, of the same form.
                let (fragment, [len, skip]) = match size("skb_frag") {
                    Some(_) => ("skb_frag", ["len", "offset"]),
                    None => ("bio_vec", ["bv_len", "bv_offset"]),
                };
                Some(Self {
                    socket_bytes: size("tcp_sock")?,
                    buffer_bytes: size("sk_buff")?,
                    shared_bytes: size("skb_shared_info")?,
                    fragment_bytes: size(fragment)?,
                    fragment_len: at(fragment, len)?,
                    fragment_skip: at(fragment, skip)?,
                    counts_microseconds: types.bits("tcp_sock", "tcp_usec_ts")? as usize,
                    $($name: places!(@sum at, $structure $(. $member)+),)*
                })
            }
        }
    };
    (@sum $at:ident, $structure:literal . $member:literal) => { $at($structure, $member)? };
    (@sum $at:ident, $structure:literal . $member:literal . $inner:literal . $last:literal) => {
        $at($structure, $member)? + $at($inner, $last)?
    };
}

places! {
    state: "sock_common"."skc_state",
    cookie: "sock_common"."skc_cookie",
    // The first four bits of it.
    reuse: "sock_common"."skc_reuse",
    descriptor: "sock"."sk_socket",
    unsent: "sock"."sk_write_queue",
    sent: "sock"."tcp_rtx_queue",
    send_buffer: "sock"."sk_sndbuf",
    receive_buffer: "sock"."sk_rcvbuf",
    protocol_above: "inet_connection_sock"."icsk_ulp_ops",
    fast_open: "tcp_sock"."fastopen_rsk",
    unacknowledged: "tcp_sock"."snd_una",
    sent_until: "tcp_sock"."snd_nxt",
    written_until: "tcp_sock"."write_seq",
    received_until: "tcp_sock"."rcv_nxt",
    update_sequence: "tcp_sock"."snd_wl1",
    peer_window: "tcp_sock"."snd_wnd",
    peer_window_max: "tcp_sock"."max_window",
    own_window: "tcp_sock"."rcv_wnd",
    own_window_from: "tcp_sock"."rcv_wup",
    clock_skip: "tcp_sock"."tsoffset",
    segment_max: "tcp_sock"."rx_opt"."tcp_options_received"."mss_clamp",
    next: "sk_buff"."next",
    left: "sk_buff"."rbnode"."rb_node"."rb_left",
    right: "sk_buff"."rbnode"."rb_node"."rb_right",
    first: "sk_buff"."cb"."tcp_skb_cb"."seq",
    end: "sk_buff"."cb"."tcp_skb_cb"."end_seq",
    flags: "sk_buff"."cb"."tcp_skb_cb"."tcp_flags",
    len: "sk_buff"."len",
    fragments_len: "sk_buff"."data_len",
    data: "sk_buff"."data",
    head: "sk_buff"."head",
    shared: "sk_buff"."end",
    fragments_count: "skb_shared_info"."nr_frags",
    more: "skb_shared_info"."frag_list",
    fragments: "skb_shared_info"."frags",
}

/// What the kernel notes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbers {
    state: u8,
    reuse: u8,
    unsent: u64,
    sent: u64,
    send_buffer: i32,
    receive_buffer: i32,
    unacknowledged: u32,
    sent_until: u32,
    written_until: u32,
    received_until: u32,
    windows: [u32; 5],
    clock_skip: u32,
    counts_microseconds: bool,
    segment_max: u16,
}

impl Numbers {
    fn queued(&self) -> usize {
        self.written_until.wrapping_sub(self.unacknowledged) as usize
    }
}

/// A piece of the queue as it is described, wherever in the queue it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Buffer {
    address: u64,
    first: u32,
    end: u32,
    flags: u8,
    len: u32,
    data: u64,
    shared: Option<u64>,
    linear: usize,
    /// Numbers of pages, how far into them, and how much.
    fragments: Vec<(u64, u32, u32)>,
}

const FIN: u8 = 1;
const SYN: u8 = 2;

impl Buffer {
    /// How many numbers it takes.
    fn span(&self) -> u32 {
        self.end.wrapping_sub(self.first)
    }

    fn is_sound(&self) -> bool {
        let fragments: u64 = self.fragments.iter().map(|(_, _, len)| u64::from(*len)).sum();
        let whole = self.linear as u64 + fragments == u64::from(self.len);
        whole && self.flags & SYN == 0 && self.span() == self.len + u32::from(self.flags & FIN)
    }
}

/// One look.
#[derive(Debug)]
struct Look {
    numbers: Numbers,
    buffers: Vec<Buffer>,
}

fn torn(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is not what it should be"))
}

impl Reader {
    fn new() -> io::Result<Self> {
        const ATTEMPTS: usize = 3;
        let types = Types::of_kernel()?;
        let missing = || io::Error::new(io::ErrorKind::NotFound, "this kernel's types are others");
        let places = Places::of(&types).ok_or_else(missing)?;
        let function = types.function("bpf_iter_tcp").ok_or_else(missing)?;
        let program = tasks::load_visitor("checksync_orphan", function, &visitor(&places))
            .map_err(|why| io::Error::new(why.source.kind(), format!("{}: {}", why.source, why.log)))?;
        let visit = VisitSockets::new(program.as_fd())?;
        // A page may be moved while it is looked for.
        let mut memory = KernelMemory::new(&types);
        for _ in 1..ATTEMPTS {
            memory = memory.or_else(|_| KernelMemory::new(&types));
        }
        Ok(Self { memory: memory?, places, _program: program, visit })
    }

    /// Where the sockets are, by their cookies.
    fn addresses(&self, iteration: Iteration) -> io::Result<HashMap<u64, u64>> {
        let mut records = Vec::new();
        iteration.read(&mut records)?;
        let record = |record: &[u8]| (Filled(record).u64(0), Filled(record).u64(8));
        Ok(records.chunks_exact(RECORD_BYTES).map(record).collect())
    }

    /// An error if it has ended, or is none that can be told from what is read here.
    fn orphan(&mut self, address: u64, cookie: u64, info: &Info, room: usize) -> io::Result<Orphan> {
        let mut copies: HashMap<Buffer, Vec<u8>> = HashMap::new();
        let mut why = torn("a queue that does not stand still");
        for _ in 0..ATTEMPTS {
            match self.attempt((address, cookie), room, &mut copies) {
                Ok(Some(look)) => return Ok(self.assemble(&look, &copies, info)),
                Ok(None) => (),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// A look, if all that it sees was there when it was copied. Otherwise what is new is copied now.
    fn attempt(
        &mut self,
        (address, cookie): (u64, u64),
        room: usize,
        copies: &mut HashMap<Buffer, Vec<u8>>,
    ) -> io::Result<Option<Look>> {
        let look = self.look(address, cookie)?;
        if look.numbers.queued() > room {
            return Err(torn("the length of all queues"));
        }
        let there: HashSet<&Buffer> = look.buffers.iter().collect();
        copies.retain(|buffer, _| there.contains(buffer));
        let mut all = true;
        for buffer in &look.buffers {
            if !copies.contains_key(buffer) {
                all = false;
                copies.insert(buffer.clone(), self.copy(buffer)?);
            }
        }
        Ok(all.then_some(look))
    }

    fn look(&mut self, address: u64, cookie: u64) -> io::Result<Look> {
        let numbers = self.numbers(address, cookie)?;
        let mut buffers = self.tree(numbers.sent)?;
        buffers.extend(self.list(numbers.unsent, address + self.places.unsent as u64)?);
        let buffers = self.with_fragments(buffers)?;
        if self.numbers(address, cookie)? != numbers {
            return Err(torn("a connection that changes"));
        }
        in_order(numbers, buffers)
    }

    fn numbers(&mut self, address: u64, cookie: u64) -> io::Result<Numbers> {
        let places = self.places;
        let mut bytes = Vec::with_capacity(places.socket_bytes);
        self.memory.read(&[(address, places.socket_bytes)], &mut bytes)?;
        let socket = Filled(&bytes);
        let state = bytes[places.state];
        let is_plain = [places.descriptor, places.protocol_above, places.fast_open]
            .into_iter()
            .all(|place| socket.u64(place) == 0);
        if !is_plain || !is_draining(state) || socket.u64(places.cookie) != cookie {
            return Err(torn("a connection that was closed"));
        }
        let windows = [
            places.update_sequence,
            places.peer_window,
            places.peer_window_max,
            places.own_window,
            places.own_window_from,
        ];
        let counts = places.counts_microseconds;
        Ok(Numbers {
            state,
            reuse: bytes[places.reuse] & 0xf,
            unsent: socket.u64(places.unsent),
            sent: socket.u64(places.sent),
            send_buffer: socket.i32(places.send_buffer),
            receive_buffer: socket.i32(places.receive_buffer),
            unacknowledged: socket.u32(places.unacknowledged),
            sent_until: socket.u32(places.sent_until),
            written_until: socket.u32(places.written_until),
            received_until: socket.u32(places.received_until),
            windows: windows.map(|place| socket.u32(place)),
            clock_skip: socket.u32(places.clock_skip),
            counts_microseconds: bytes[counts / 8] >> (counts % 8) & 1 != 0,
            segment_max: socket.u16(places.segment_max),
        })
    }

    /// What was sent, from the root of the tree.
    fn tree(&mut self, root: u64) -> io::Result<Vec<Buffer>> {
        let Places { buffer_bytes, left, right, .. } = self.places;
        let mut buffers = Vec::new();
        let mut level = vec![root];
        while !level.is_empty() {
            level.retain(|address| *address != 0);
            if buffers.len() + level.len() > BUFFERS_MAX {
                return Err(torn("a queue"));
            }
            let all: Vec<_> = level.iter().map(|address| (*address, buffer_bytes)).collect();
            let mut bytes = Vec::with_capacity(all.len() * buffer_bytes);
            self.memory.read(&all, &mut bytes)?;
            let mut next = Vec::new();
            for (address, buffer) in level.into_iter().zip(bytes.chunks_exact(buffer_bytes)) {
                let buffer = Filled(buffer);
                next.extend([buffer.u64(left), buffer.u64(right)]);
                buffers.push(self.buffer(address, buffer)?);
            }
            level = next;
        }
        Ok(buffers)
    }

    /// What was not, up to the list's own head.
    fn list(&mut self, first: u64, head: u64) -> io::Result<Vec<Buffer>> {
        let Places { buffer_bytes, next, .. } = self.places;
        let mut buffers = Vec::new();
        let mut address = first;
        while address != head {
            if buffers.len() > BUFFERS_MAX {
                return Err(torn("a queue"));
            }
            let mut bytes = Vec::with_capacity(buffer_bytes);
            self.memory.read(&[(address, buffer_bytes)], &mut bytes)?;
            buffers.push(self.buffer(address, Filled(&bytes))?);
            address = Filled(&bytes).u64(next);
        }
        Ok(buffers)
    }

    /// Without its fragments.
    fn buffer(&self, address: u64, buffer: Filled<'_>) -> io::Result<Buffer> {
        let places = &self.places;
        let (len, fragments) = (buffer.u32(places.len), buffer.u32(places.fragments_len));
        let shared = buffer.u64(places.head).wrapping_add(buffer.u32(places.shared).into());
        Ok(Buffer {
            address,
            first: buffer.u32(places.first),
            end: buffer.u32(places.end),
            flags: buffer.0[places.flags],
            len,
            data: buffer.u64(places.data),
            shared: (fragments > 0).then_some(shared),
            linear: len.checked_sub(fragments).ok_or_else(|| torn("a buffer"))? as usize,
            fragments: Vec::new(),
        })
    }

    fn with_fragments(&mut self, mut buffers: Vec<Buffer>) -> io::Result<Vec<Buffer>> {
        let bytes_each = self.places.shared_bytes;
        let all: Vec<_> = buffers.iter().filter_map(|buffer| Some((buffer.shared?, bytes_each))).collect();
        let mut bytes = Vec::with_capacity(all.len() * bytes_each);
        self.memory.read(&all, &mut bytes)?;
        let with = buffers.iter_mut().filter(|buffer| buffer.shared.is_some());
        for (buffer, shared) in with.zip(bytes.chunks_exact(bytes_each)) {
            buffer.fragments = self.fragments(shared)?;
        }
        Ok(buffers)
    }

    fn fragments(&self, shared: &[u8]) -> io::Result<Vec<(u64, u32, u32)>> {
        /// It is on a device.
        const UNREADABLE: u64 = 1;
        let places = &self.places;
        let count = usize::from(shared[places.fragments_count]);
        let end = places.fragments + count * places.fragment_bytes;
        if end > shared.len() || Filled(shared).u64(places.more) != 0 {
            return Err(torn("a buffer"));
        }
        let fragments = shared[places.fragments..end].chunks_exact(places.fragment_bytes).map(|fragment| {
            let fragment = Filled(fragment);
            (fragment.u64(0), fragment.u32(places.fragment_skip), fragment.u32(places.fragment_len))
        });
        let fragments: Vec<_> = fragments.collect();
        match fragments.iter().any(|(page, ..)| page & UNREADABLE != 0) {
            true => Err(torn("a buffer")),
            false => Ok(fragments),
        }
    }

    fn copy(&mut self, buffer: &Buffer) -> io::Result<Vec<u8>> {
        let mut all = Vec::with_capacity(1 + buffer.fragments.len());
        if buffer.linear > 0 {
            all.push((buffer.data, buffer.linear));
        }
        for &(page, skip, len) in &buffer.fragments {
            all.push((self.memory.page(page)?.wrapping_add(skip.into()), len as usize));
        }
        let mut bytes = Vec::with_capacity(buffer.len as usize + 8);
        self.memory.read(&all, &mut bytes)?;
        Ok(bytes)
    }

    fn assemble(&self, look: &Look, copies: &HashMap<Buffer, Vec<u8>>, info: &Info) -> Orphan {
        let numbers = &look.numbers;
        let mut unacknowledged = Vec::new();
        for buffer in &look.buffers {
            let skip = numbers.unacknowledged.wrapping_sub(buffer.first) as i32;
            let bytes = copies.get(buffer).map_or(&[][..], Vec::as_slice);
            unacknowledged.extend(bytes.get(skip.max(0) as usize..).unwrap_or_default());
        }
        // The end is the last number that was written.
        let write_sequence = numbers.written_until.wrapping_sub(1);
        let unsent = write_sequence.wrapping_sub(numbers.sent_until) as i32;
        let read_sequence = numbers.received_until.wrapping_sub(peer_has_finished(numbers.state).into());
        let timestamp = info.has_timestamps().then(|| self.timestamp(numbers));
        let state = TcpState {
            state: numbers.state,
            write_sequence,
            read_sequence,
            unsent: (unsent.max(0) as u32).min(unacknowledged.len() as u32),
            unacknowledged: ByteBuf::from(unacknowledged),
            unread: ByteBuf::new(),
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
        Orphan { state, reuse_address: numbers.reuse != 0 }
    }

    /// As `TCP_TIMESTAMP` says it: the lowest bit tells the unit.
    fn timestamp(&self, numbers: &Numbers) -> u32 {
        let clock_ns = self.memory.clock_ns();
        match numbers.counts_microseconds {
            true => ((clock_ns / 1_000) as u32).wrapping_add(numbers.clock_skip) | 1,
            false => ((clock_ns / 1_000_000) as u32).wrapping_add(numbers.clock_skip) & !1,
        }
    }
}

pub(super) fn is_draining(state: u8) -> bool {
    matches!(state, stream::FIN_WAIT1 | stream::LAST_ACK | stream::CLOSING)
}

/// Every byte that is not acknowledged, once, and the end behind it.
fn in_order(numbers: Numbers, mut buffers: Vec<Buffer>) -> io::Result<Look> {
    let from = numbers.unacknowledged;
    buffers.retain(|buffer| buffer.end.wrapping_sub(from) as i32 > 0);
    buffers.sort_by_key(|buffer| buffer.first.wrapping_sub(from) as i32);
    let mut next = from;
    for (index, buffer) in buffers.iter().enumerate() {
        let gap = buffer.first.wrapping_sub(next) as i32;
        let is_last = index + 1 == buffers.len();
        let ends = buffer.flags & FIN != 0;
        if gap > 0 || gap < 0 && index > 0 || ends != is_last || !buffer.is_sound() {
            return Err(torn("the order of a queue"));
        }
        next = buffer.end;
    }
    match next == numbers.written_until && !buffers.is_empty() {
        true => Ok(Look { numbers, buffers }),
        false => Err(torn("the end of a queue")),
    }
}

/// A cookie and an address.
const RECORD_BYTES: usize = 16;

/// Writes out which sockets are such ones, and where they are.
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
    let body = [
        &[
            Instruction::set(Register::R1, 0),
            Instruction::store_word(Register::Frame, (state / 8) as i16, Register::R1),
        ],
        &fetch(state, 1, places.state)[..],
        &[
            Instruction::load_word(Register::R1, Register::Frame, (state / 8) as i16),
            Instruction::skip_if_equal(Register::R1, stream::FIN_WAIT1.into(), 3),
            Instruction::skip_if_equal(Register::R1, stream::LAST_ACK.into(), 2),
            Instruction::set(Register::R2, stream::CLOSING.into()),
            Instruction::skip_if_different(Register::R1, Register::R2, emit.len() as i16),
        ],
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
