//! Connections whose handshake is half made: who asked for one may have heard the answer already, and believe to be
//! connected. What was agreed on is in the kernel's own structure alone.

use std::io;

use image::descriptor::{TcpState, TcpWindow};
use serde_bytes::ByteBuf;

use super::diagnosis::SYN_RECV;
use super::kernel_memory::KernelMemory;
use super::look::Socket;
use crate::process::layout::Filled;
use crate::process::types::Types;

/// `TCP_NEW_SYN_RECV`: what the kernel calls the state among its own.
pub(super) const BEGINNING: u8 = 12;

/// Where a `struct tcp_request_sock` has what, in bytes; of bits, in bits.
#[derive(Debug)]
pub(super) struct Requests {
    bytes: usize,
    state: usize,
    cookie: usize,
    segment_max: usize,
    own_first: usize,
    peers_first: usize,
    clock_skip: usize,
    counts_microseconds: usize,
    peers_scale: usize,
    own_scale: usize,
    has_timestamps: usize,
    has_selective: usize,
    has_scales: usize,
}

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    own_first: u32,
    peers_first: u32,
    segment_max: u16,
    selective: bool,
    scales: Option<(u8, u8)>,
    /// How far our clock is ahead of the host's, and whether it counts microseconds.
    stamps: Option<(u32, bool)>,
}

impl Requests {
    pub(super) fn of(types: &Types) -> Option<Self> {
        let at = |structure: &str, member: &str| Some(types.offset(structure, member)? as usize);
        let bits = |structure: &str, member: &str| Some(types.bits(structure, member)? as usize);
        Some(Self {
            bytes: types.size("tcp_request_sock")? as usize,
            state: at("sock_common", "skc_state")?,
            cookie: at("sock_common", "skc_cookie")?,
            segment_max: at("request_sock", "mss")?,
            own_first: at("tcp_request_sock", "snt_isn")?,
            peers_first: at("tcp_request_sock", "rcv_isn")?,
            clock_skip: at("tcp_request_sock", "ts_off")?,
            counts_microseconds: at("tcp_request_sock", "req_usec_ts")?,
            peers_scale: bits("inet_request_sock", "snd_wscale")?,
            own_scale: bits("inet_request_sock", "rcv_wscale")?,
            has_timestamps: bits("inet_request_sock", "tstamp_ok")?,
            has_selective: bits("inet_request_sock", "sack_ok")?,
            has_scales: bits("inet_request_sock", "wscale_ok")?,
        })
    }

    /// `None` for who is none any more. What is read here does not change while it is one.
    pub(super) fn read(
        &self,
        memory: &mut KernelMemory,
        sockets: &[Socket],
    ) -> io::Result<Vec<Option<Request>>> {
        let all: Vec<_> = sockets.iter().map(|socket| (socket.address, self.bytes)).collect();
        let mut looks = [(); 2].map(|()| Vec::with_capacity(sockets.len() * self.bytes));
        for look in &mut looks {
            memory.read(&all, look)?;
        }
        let [before, after] = looks;
        let each = before.chunks_exact(self.bytes).zip(after.chunks_exact(self.bytes)).zip(sockets);
        Ok(each
            .map(|((before, after), socket)| {
                let request = self.request(before, socket.cookie);
                request.filter(|_| request == self.request(after, socket.cookie))
            })
            .collect())
    }

    fn request(&self, bytes: &[u8], cookie: u64) -> Option<Request> {
        let filled = Filled(bytes);
        if bytes[self.state] != BEGINNING || filled.u64(self.cookie) != cookie {
            return None;
        }
        let bits = |at: usize, count: u32| bytes[at / 8] >> (at % 8) & (((1_u16 << count) - 1) as u8);
        let is_set = |at| bits(at, 1) != 0;
        let scales = (bits(self.peers_scale, 4), bits(self.own_scale, 4));
        let stamps = (filled.u32(self.clock_skip), bytes[self.counts_microseconds] != 0);
        Some(Request {
            own_first: filled.u32(self.own_first),
            peers_first: filled.u32(self.peers_first),
            segment_max: filled.u16(self.segment_max),
            selective: is_set(self.has_selective),
            scales: is_set(self.has_scales).then_some(scales),
            stamps: is_set(self.has_timestamps).then_some(stamps),
        })
    }
}

impl Request {
    /// As if it were connected, with nothing said yet: each beginning takes a number.
    pub(super) fn state(&self, clock_ns: u64) -> TcpState {
        TcpState {
            state: SYN_RECV,
            write_sequence: self.own_first.wrapping_add(1),
            read_sequence: self.peers_first.wrapping_add(1),
            unacknowledged: ByteBuf::new(),
            unsent: 0,
            unread: ByteBuf::new(),
            read_shut: false,
            segment_max: self.segment_max.into(),
            selective_acknowledgements: self.selective,
            window_scales: self.scales,
            timestamp: self.stamps.map(|(skip, microseconds)| stamp(clock_ns, skip, microseconds)),
            window: TcpWindow { update_sequence: 0, peer: 0, peer_max: 0, own: 0, own_from: 0 },
            round_trip_us: 0,
            send_buffer: 0,
            receive_buffer: 0,
            buffers_locked: 0,
        }
    }
}

/// As `TCP_TIMESTAMP` says it: the lowest bit tells the unit.
pub(super) fn stamp(clock_ns: u64, skip: u32, counts_microseconds: bool) -> u32 {
    match counts_microseconds {
        true => ((clock_ns / 1_000) as u32).wrapping_add(skip) | 1,
        false => ((clock_ns / 1_000_000) as u32).wrapping_add(skip) & !1,
    }
}
