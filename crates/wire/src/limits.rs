//! What a peer may make us hold or wait for. The same numbers stand on both sides of a connection.

use std::time::Duration;

use image::frame::{HEADER_BYTES, PAYLOAD_BYTES_MAX};

/// The longest message of a primary: one frame and its envelope.
pub const FROM_PRIMARY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + HEADER_BYTES + 64;
/// The longest message of a standby on the replication stream: host facts and refusals are the long ones.
pub const FROM_STANDBY_BYTES_MAX: usize = 256 << 10;
/// The longest heartbeat, guard's word, or answer to one of them.
pub const SMALL_BYTES_MAX: usize = 4 << 10;
/// The longest question to a witness, or answer: a register with hundreds of members.
pub const REGISTER_BYTES_MAX: usize = 128 << 10;

/// Messages that wait in front of a connection. With frames of 1 MiB this and the window keep the link busy.
pub(crate) const QUEUE_MESSAGES: usize = 4;
/// HTTP/2's windows; the defaults of 64 KiB cost a third of the throughput on a LAN.
pub(crate) const WINDOW_BYTES: u32 = 8 << 20;
pub(crate) const HTTP2_FRAME_BYTES: u32 = 1 << 20;
pub(crate) const SEND_BUFFER_BYTES: usize = 1 << 20;
pub(crate) const REQUEST_HEAD_BYTES_MAX: u32 = 16 << 10;
/// Calls at one time on one connection; we make one.
pub(crate) const CALLS_MAX: u32 = 16;
/// A connection whose peer's machine is gone ends after the sum of these. Failover does not wait for it: that
/// is what heartbeats are for.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a send may wait in the queue of a peer that takes nothing, unless its user says otherwise.
pub(crate) const SEND_DEADLINE: Duration = Duration::from_secs(10);

/// What a server bears from strangers.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Peers that have shown their certificate.
    pub connections: usize,
    /// Connections that have not shown it yet. They never take a place from the ones above.
    pub handshakes: usize,
    /// From the connection to the end of the TLS handshake and HTTP/2's preface.
    pub handshake: Duration,
    /// From the opening of a stream to its first message.
    pub opening: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let (handshake, opening) = (Duration::from_secs(5), Duration::from_secs(5));
        Self { connections: 256, handshakes: 64, handshake, opening }
    }
}
