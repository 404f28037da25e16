//! One look at what the kernel has of connections that no descriptor leads to: their numbers, and where in its memory
//! the bytes lie that are to be sent or acknowledged, or, where the app has not accepted it yet, to be read.
//!
//! ```text
//! socket ─┬─ numbers: acknowledged, sent and written so far, windows, …
//!         ├─ tree of what was sent     ─┐
//!         ├─ list of what was not sent ─┼─ buffer: first and last number, flags
//!         └─ list of what came in      ─┘  ├─ bytes
//!                                          └─ fragments: a page, where in it, how many bytes
//! ```
//!
//! All of them are looked at together, a level at a time: a call of the kernel takes as long as many readings. What the
//! kernel changes meanwhile shows as a look that does not fit together, or as one that differs from the next
//! ([`super::orphans`]).

use std::io;

use super::kernel_memory::KernelMemory;
use super::stream;
use crate::process::layout::Filled;
use crate::process::types::Types;

/// Queues that are longer are not followed.
const BUFFERS_MAX: usize = 1 << 14;

/// Where a socket is, and its cookie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Socket {
    pub address: u64,
    pub cookie: u64,
    /// The app has a descriptor of it: what is followed is what it has to say.
    pub is_open: bool,
}

/// Why there is nothing to be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Miss {
    /// It has ended, or is none of those that are all in what is read here.
    Other,
    /// Something came in meanwhile.
    Moving,
}

/// Declares a structure of places that are found by name.
macro_rules! places {
    ($($name:ident: $structure:literal $(. $member:literal)+,)*) => {
        /// Where the kernel that runs keeps what, in bytes from the beginning of a structure.
        #[derive(Debug, Clone, Copy)]
        pub(super) struct Places {
            socket_bytes: usize,
            buffer_bytes: usize,
            shared_bytes: usize,
            fragment_bytes: usize,
            fragment_len: usize,
            fragment_skip: usize,
            /// In bits.
            counts_microseconds: usize,
            /// Where a socket says where its part of IPv6 is, and what is chosen there; `None` in a kernel without.
            class: Option<(usize, usize)>,
            $(pub $name: usize,)*
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
                    class: at("inet_sock", "pinet6").zip(at("ipv6_pinfo", "tclass")),
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
    arrived: "sock"."sk_receive_queue",
    send_buffer: "sock"."sk_sndbuf",
    receive_buffer: "sock"."sk_rcvbuf",
    protocol_above: "inet_connection_sock"."icsk_ulp_ops",
    fast_open: "tcp_sock"."fastopen_rsk",
    unacknowledged: "tcp_sock"."snd_una",
    sent_until: "tcp_sock"."snd_nxt",
    written_until: "tcp_sock"."write_seq",
    received_until: "tcp_sock"."rcv_nxt",
    read_until: "tcp_sock"."copied_seq",
    urgent: "tcp_sock"."urg_data",
    update_sequence: "tcp_sock"."snd_wl1",
    peer_window: "tcp_sock"."snd_wnd",
    peer_window_max: "tcp_sock"."max_window",
    own_window: "tcp_sock"."rcv_wnd",
    own_window_from: "tcp_sock"."rcv_wup",
    clock_skip: "tcp_sock"."tsoffset",
    // Chosen by the app, and seen on the wire.
    service: "inet_sock"."tos",
    priority: "sock"."sk_priority",
    mark: "sock"."sk_mark",
    patience_ms: "inet_connection_sock"."icsk_user_timeout",
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
pub(super) struct Numbers {
    pub state: u8,
    /// The queue that is followed is the one of what came in.
    pub inwards: bool,
    pub reuse: u8,
    pub unsent: u64,
    pub sent: u64,
    pub arrived: u64,
    pub send_buffer: i32,
    pub receive_buffer: i32,
    pub unacknowledged: u32,
    pub sent_until: u32,
    pub written_until: u32,
    pub received_until: u32,
    pub read_until: u32,
    pub windows: [u32; 5],
    pub clock_skip: u32,
    pub counts_microseconds: bool,
    pub segment_max: u16,
    pub chosen: Chosen,
    /// Where the class is, which is chosen, too.
    class: Option<u64>,
}

/// What an app may have chosen that its peer can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Chosen {
    /// `IP_TOS`.
    pub service: u8,
    /// `IPV6_TCLASS`, if it has one.
    pub class: Option<u8>,
    pub priority: u32,
    pub mark: u32,
    /// `TCP_USER_TIMEOUT`.
    pub patience_ms: u32,
}

impl Numbers {
    /// Of the queue that is followed: its first number, and the one behind it.
    pub(super) fn queue(&self) -> (u32, u32) {
        match self.inwards {
            true => (self.read_until, self.received_until),
            false => (self.unacknowledged, self.written_until),
        }
    }

    pub(super) fn queued(&self) -> usize {
        let (from, until) = self.queue();
        until.wrapping_sub(from) as usize
    }

    /// Without the end, which takes a number.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued() - usize::from(self.has_end() && self.queued() > 0)
    }

    /// Whether the queue ends with the stream.
    fn has_end(&self) -> bool {
        match self.inwards {
            true => self.state != stream::ESTABLISHED,
            false => is_draining(self.state),
        }
    }
}

/// A piece of the queue as it is described, wherever in the queue it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Buffer {
    pub address: u64,
    pub first: u32,
    pub end: u32,
    pub flags: u8,
    pub len: u32,
    pub data: u64,
    pub shared: Option<u64>,
    pub linear: usize,
    /// Numbers of pages, how far into them, and how much.
    pub fragments: Vec<(u64, u32, u32)>,
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
        whole && self.flags & SYN == 0 && self.span() == self.len.wrapping_add(u32::from(self.flags & FIN))
    }
}

/// One look.
#[derive(Debug)]
pub(super) struct Look {
    pub numbers: Numbers,
    pub buffers: Vec<Buffer>,
}

#[derive(Debug)]
pub(super) struct Looker {
    memory: KernelMemory,
    places: Places,
}

/// A queue that is being followed: the next buffer, and, in a list, where it ends.
#[derive(Debug, Clone, Copy)]
struct Step {
    owner: usize,
    address: u64,
    head: Option<u64>,
}

impl Looker {
    /// Fails where the kernel is not as it is known here.
    pub(super) fn new(types: &Types) -> io::Result<Self> {
        const ATTEMPTS: usize = 3;
        let missing = || io::Error::new(io::ErrorKind::NotFound, "this kernel's types are others");
        let places = Places::of(types).ok_or_else(missing)?;
        // A page may be moved while it is looked for.
        let mut memory = KernelMemory::new(types);
        for _ in 1..ATTEMPTS {
            memory = memory.or_else(|_| KernelMemory::new(types));
        }
        Ok(Self { memory: memory?, places })
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    pub(super) fn memory(&mut self) -> &mut KernelMemory {
        &mut self.memory
    }

    /// The host's monotonic clock at the last reading.
    pub(super) fn clock_ns(&self) -> u64 {
        self.memory.clock_ns()
    }

    /// An error if one of them led to what cannot be read.
    pub(super) fn look(&mut self, sockets: &[Socket]) -> io::Result<Vec<Result<Look, Miss>>> {
        let before = self.numbers(sockets)?;
        let queues = self.queues(sockets, &before)?;
        let after = self.numbers(sockets)?;
        let each = before.into_iter().zip(queues).zip(after);
        let look = each.map(|((before, queue), after)| {
            let numbers = before?;
            let buffers = queue.filter(|_| after == Ok(numbers)).ok_or(Miss::Moving)?;
            in_order(numbers, buffers).ok_or(Miss::Moving)
        });
        Ok(look.collect())
    }

    /// What buffers hold, if they are still what they were.
    pub(super) fn copy(&mut self, buffers: &[&Buffer]) -> io::Result<Vec<Vec<u8>>> {
        let mut all = Vec::with_capacity(buffers.len());
        for buffer in buffers {
            if buffer.linear > 0 {
                all.push((buffer.data, buffer.linear));
            }
            for &(page, skip, len) in &buffer.fragments {
                all.push((self.memory.page(page)?.wrapping_add(skip.into()), len as usize));
            }
        }
        let mut bytes = Vec::with_capacity(all.iter().map(|(_, len)| len).sum());
        self.memory.read(&all, &mut bytes)?;
        let mut rest = &bytes[..];
        let pieces = buffers.iter().map(|buffer| {
            let (piece, more) = rest.split_at(buffer.len as usize);
            rest = more;
            piece.to_vec()
        });
        Ok(pieces.collect())
    }

    fn numbers(&mut self, sockets: &[Socket]) -> io::Result<Vec<Result<Numbers, Miss>>> {
        let len = self.places.socket_bytes;
        let all: Vec<_> = sockets.iter().map(|socket| (socket.address, len)).collect();
        let mut bytes = Vec::with_capacity(all.len() * len);
        self.memory.read(&all, &mut bytes)?;
        let each = sockets.iter().zip(bytes.chunks_exact(len));
        let numbers = each.map(|(socket, bytes)| self.places.numbers(bytes, *socket).ok_or(Miss::Other));
        self.with_classes(numbers.collect())
    }

    fn with_classes(
        &mut self,
        mut all: Vec<Result<Numbers, Miss>>,
    ) -> io::Result<Vec<Result<Numbers, Miss>>> {
        let classes: Vec<_> = all.iter().flatten().filter_map(|one| Some((one.class?, 1))).collect();
        if classes.is_empty() {
            return Ok(all);
        }
        let mut bytes = Vec::with_capacity(classes.len());
        self.memory.read(&classes, &mut bytes)?;
        let of_version_6 = all.iter_mut().flatten().filter(|one| one.class.is_some());
        of_version_6.zip(bytes).for_each(|(one, class)| one.chosen.class = Some(class));
        Ok(all)
    }

    /// `None` for those that lead in circles, or elsewhere.
    fn queues(
        &mut self,
        sockets: &[Socket],
        numbers: &[Result<Numbers, Miss>],
    ) -> io::Result<Vec<Option<Vec<Buffer>>>> {
        let len = self.places.buffer_bytes;
        let mut queues: Vec<Option<Vec<Buffer>>> =
            numbers.iter().map(|numbers| numbers.is_ok().then(Vec::new)).collect();
        let mut level = Vec::new();
        for (owner, (socket, numbers)) in sockets.iter().zip(numbers).enumerate() {
            let Ok(numbers) = numbers else { continue };
            if numbers.inwards {
                let head = Some(socket.address + self.places.arrived as u64);
                level.push(Step { owner, address: numbers.arrived, head });
                continue;
            }
            let head = Some(socket.address + self.places.unsent as u64);
            level.push(Step { owner, address: numbers.sent, head: None });
            level.push(Step { owner, address: numbers.unsent, head });
        }
        loop {
            level.retain(|step| {
                let is_over = step.address == 0 || Some(step.address) == step.head;
                !is_over && queues[step.owner].is_some()
            });
            if level.is_empty() {
                return self.with_fragments(queues);
            }
            let all: Vec<_> = level.iter().map(|step| (step.address, len)).collect();
            let mut bytes = Vec::with_capacity(all.len() * len);
            self.memory.read(&all, &mut bytes)?;
            let mut next = Vec::with_capacity(level.len());
            for (step, bytes) in level.iter().zip(bytes.chunks_exact(len)) {
                self.follow(*step, Filled(bytes), &mut queues[step.owner], &mut next);
            }
            level = next;
        }
    }

    fn follow(&self, step: Step, bytes: Filled<'_>, queue: &mut Option<Vec<Buffer>>, next: &mut Vec<Step>) {
        let Places { left, right, next: after, .. } = self.places;
        let room = queue.as_mut().filter(|queue| queue.len() < BUFFERS_MAX);
        let (Some(buffers), Some(buffer)) = (room, self.places.buffer(step.address, bytes)) else {
            *queue = None;
            return;
        };
        buffers.push(buffer);
        let places = if step.head.is_some() { &[after][..] } else { &[left, right] };
        next.extend(places.iter().map(|place| Step { address: bytes.u64(*place), ..step }));
    }

    fn with_fragments(
        &mut self,
        mut queues: Vec<Option<Vec<Buffer>>>,
    ) -> io::Result<Vec<Option<Vec<Buffer>>>> {
        let len = self.places.shared_bytes;
        let buffers = queues.iter().flatten().flatten();
        let all: Vec<_> = buffers.filter_map(|buffer| Some((buffer.shared?, len))).collect();
        let mut bytes = Vec::with_capacity(all.len() * len);
        self.memory.read(&all, &mut bytes)?;
        let mut shared = bytes.chunks_exact(len);
        for queue in &mut queues {
            let Some(buffers) = queue else { continue };
            let mut all_read = true;
            for buffer in buffers.iter_mut().filter(|buffer| buffer.shared.is_some()) {
                let fragments = shared.next().and_then(|shared| self.places.fragments(shared));
                all_read &= fragments.is_some();
                buffer.fragments = fragments.unwrap_or_default();
            }
            if !all_read {
                *queue = None;
            }
        }
        Ok(queues)
    }
}

impl Places {
    /// `None` if it is another socket by now, or has more to it than what is read here.
    fn numbers(&self, bytes: &[u8], wanted: Socket) -> Option<Numbers> {
        let places = self;
        let socket = Filled(bytes);
        let state = bytes[places.state];
        let is_plain =
            [places.protocol_above, places.fast_open].into_iter().all(|place| socket.u64(place) == 0);
        let is_open = socket.u64(places.descriptor) != 0;
        let inwards = is_unaccepted(state) && !is_open;
        let is_one =
            is_draining(state) || is_unaccepted(state) && (is_open || socket.u16(places.urgent) == 0);
        let is_it = socket.u64(places.cookie) == wanted.cookie && is_open == wanted.is_open;
        if !is_plain || !is_one || !is_it {
            return None;
        }
        let windows = [
            places.update_sequence,
            places.peer_window,
            places.peer_window_max,
            places.own_window,
            places.own_window_from,
        ];
        let counts = places.counts_microseconds;
        Some(Numbers {
            state,
            inwards,
            reuse: bytes[places.reuse] & 0xf,
            unsent: socket.u64(places.unsent),
            sent: socket.u64(places.sent),
            arrived: socket.u64(places.arrived),
            send_buffer: socket.i32(places.send_buffer),
            receive_buffer: socket.i32(places.receive_buffer),
            unacknowledged: socket.u32(places.unacknowledged),
            sent_until: socket.u32(places.sent_until),
            written_until: socket.u32(places.written_until),
            received_until: socket.u32(places.received_until),
            read_until: socket.u32(places.read_until),
            windows: windows.map(|place| socket.u32(place)),
            clock_skip: socket.u32(places.clock_skip),
            counts_microseconds: bytes[counts / 8] >> (counts % 8) & 1 != 0,
            segment_max: socket.u16(places.segment_max),
            class: places.class.and_then(|(part, class)| match socket.u64(part) {
                0 => None,
                part => Some(part.wrapping_add(class as u64)),
            }),
            chosen: Chosen {
                service: bytes[places.service],
                class: None,
                priority: socket.u32(places.priority),
                mark: socket.u32(places.mark),
                patience_ms: socket.u32(places.patience_ms),
            },
        })
    }

    /// Without its fragments.
    fn buffer(&self, address: u64, buffer: Filled<'_>) -> Option<Buffer> {
        let places = self;
        let (len, fragments) = (buffer.u32(places.len), buffer.u32(places.fragments_len));
        let shared = buffer.u64(places.head).wrapping_add(buffer.u32(places.shared).into());
        Some(Buffer {
            address,
            first: buffer.u32(places.first),
            end: buffer.u32(places.end),
            flags: buffer.0[places.flags],
            len,
            data: buffer.u64(places.data),
            shared: (fragments > 0).then_some(shared),
            linear: len.checked_sub(fragments)? as usize,
            fragments: Vec::new(),
        })
    }

    fn fragments(&self, shared: &[u8]) -> Option<Vec<(u64, u32, u32)>> {
        /// It is on a device.
        const UNREADABLE: u64 = 1;
        let places = self;
        let count = usize::from(shared[places.fragments_count]);
        let end = places.fragments + count * places.fragment_bytes;
        if end > shared.len() || Filled(shared).u64(places.more) != 0 {
            return None;
        }
        let fragments = shared[places.fragments..end].chunks_exact(places.fragment_bytes).map(|fragment| {
            let fragment = Filled(fragment);
            (fragment.u64(0), fragment.u32(places.fragment_skip), fragment.u32(places.fragment_len))
        });
        let fragments: Vec<_> = fragments.collect();
        let is_readable = fragments.iter().all(|(page, ..)| page & UNREADABLE == 0);
        is_readable.then_some(fragments)
    }
}

/// What only a closed connection is that has something to say.
pub(super) fn is_draining(state: u8) -> bool {
    matches!(state, stream::FIN_WAIT1 | stream::LAST_ACK | stream::CLOSING)
}

/// What one without a descriptor is whose app has not accepted it.
pub(super) fn is_unaccepted(state: u8) -> bool {
    matches!(state, stream::ESTABLISHED | stream::CLOSE_WAIT)
}

/// Every byte of the queue, once, and the end behind it. What came in may have come twice in part.
fn in_order(numbers: Numbers, mut buffers: Vec<Buffer>) -> Option<Look> {
    let (from, until) = numbers.queue();
    let (arrived, finished) = (numbers.inwards, numbers.has_end());
    buffers.retain(|buffer| buffer.end.wrapping_sub(from) as i32 > 0);
    buffers.sort_by_key(|buffer| buffer.first.wrapping_sub(from) as i32);
    let mut next = from;
    for (index, buffer) in buffers.iter().enumerate() {
        let gap = buffer.first.wrapping_sub(next) as i32;
        let is_last = finished && index + 1 == buffers.len();
        let ends = buffer.flags & FIN != 0;
        let is_twice = gap < 0 && index > 0 && !arrived || buffer.end.wrapping_sub(next) as i32 <= 0;
        if gap > 0 || is_twice || ends != is_last || !buffer.is_sound() {
            return None;
        }
        next = buffer.end;
    }
    // One that was not accepted has said nothing.
    let is_silent = !arrived || numbers.written_until == numbers.unacknowledged;
    let is_whole = next == until && is_silent && (arrived && !finished || !buffers.is_empty());
    is_whole.then_some(Look { numbers, buffers })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Around where numbers begin again.
    const FROM: u32 = u32::MAX - 4;

    pub(in super::super) fn numbers(queued: u32) -> Numbers {
        Numbers {
            state: stream::FIN_WAIT1,
            inwards: false,
            reuse: 0,
            unsent: 0,
            sent: 0,
            arrived: 0,
            send_buffer: 0,
            receive_buffer: 0,
            unacknowledged: FROM,
            sent_until: FROM,
            written_until: FROM.wrapping_add(queued),
            received_until: 0,
            read_until: 0,
            windows: [0; 5],
            clock_skip: 0,
            counts_microseconds: false,
            segment_max: 0,
            chosen: Chosen::default(),
            class: None,
        }
    }

    fn buffer(skip: i32, len: u32, flags: u8) -> Buffer {
        let first = FROM.wrapping_add_signed(skip);
        Buffer {
            address: 0,
            first,
            end: first.wrapping_add(len + u32::from(flags & FIN)),
            flags,
            len,
            data: 0,
            shared: None,
            linear: len as usize,
            fragments: Vec::new(),
        }
    }

    #[test]
    fn a_queue_is_whole_from_what_is_not_acknowledged_to_the_end() {
        let order = |queued, buffers: &[Buffer]| in_order(numbers(queued), buffers.to_vec());
        let whole = [buffer(8, 5, FIN), buffer(-2, 4, 0), buffer(2, 6, 0), buffer(-7, 5, 0)];
        let look = order(14, &whole).expect("it is whole");
        assert_eq!(look.buffers.iter().map(|buffer| buffer.len).collect::<Vec<_>>(), [4, 6, 5]);
        assert!(order(15, &whole).is_none(), "more was written");
        assert!(order(14, &[&whole[..1], &whole[2..]].concat()).is_none(), "the first bytes lack");
        assert!(order(14, &[&whole[..2], &whole[3..]].concat()).is_none(), "bytes in the middle lack");
        assert!(order(8, &whole[1..]).is_none(), "the end lacks");
        assert!(order(14, &[&whole[..], &[buffer(3, 1, 0)]].concat()).is_none(), "bytes are there twice");
        assert!(order(0, &[]).is_none(), "there is nothing to be said");
        let mut torn = whole.clone();
        torn[2].linear -= 1;
        assert!(order(14, &torn).is_none(), "a buffer has less than it says");
    }

    #[test]
    fn what_an_open_one_has_to_say_has_no_end() {
        let order = |state, buffers: &[Buffer]| {
            in_order(Numbers { state, ..numbers(9) }, buffers.to_vec()).map(|look| look.buffers.len())
        };
        let open = [buffer(0, 5, 0), buffer(5, 4, 0)];
        for state in [stream::ESTABLISHED, stream::CLOSE_WAIT] {
            assert_eq!(order(state, &open), Some(2));
            assert_eq!(order(state, &open[..1]), None, "more was written");
            assert_eq!(order(state, &[buffer(0, 8, FIN)]), None, "it has ended");
        }
        assert_eq!(order(stream::FIN_WAIT1, &open), None, "the end lacks");
    }

    #[test]
    fn what_came_in_is_whole_from_what_was_not_read_on() {
        let order = |state, queued, buffers: &[Buffer]| {
            let arrived = Numbers {
                state,
                inwards: true,
                read_until: FROM,
                received_until: FROM.wrapping_add(queued),
                ..numbers(0)
            };
            in_order(arrived, buffers.to_vec()).map(|look| look.buffers.len())
        };
        let twice = [buffer(0, 5, 0), buffer(3, 6, 0)];
        assert_eq!(order(stream::ESTABLISHED, 9, &twice), Some(2));
        assert_eq!(order(stream::ESTABLISHED, 0, &[]), Some(0));
        assert_eq!(order(stream::CLOSE_WAIT, 10, &[buffer(0, 5, 0), buffer(3, 6, FIN)]), Some(2));
        assert_eq!(order(stream::ESTABLISHED, 10, &twice), None, "more came");
        assert_eq!(order(stream::ESTABLISHED, 9, &twice[1..]), None, "the first bytes lack");
        assert_eq!(order(stream::CLOSE_WAIT, 9, &twice), None, "the end lacks");
        assert_eq!(order(stream::ESTABLISHED, 6, &[buffer(0, 5, FIN)]), None, "it has ended");
        let spoken = Numbers {
            state: stream::ESTABLISHED,
            inwards: true,
            read_until: FROM,
            received_until: FROM,
            ..numbers(3)
        };
        assert!(in_order(spoken, Vec::new()).is_none(), "nobody was there who could say something");
    }
}
