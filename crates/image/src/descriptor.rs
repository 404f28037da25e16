//! Descriptors and the open files behind them. Several descriptors may name one open file (`dup`), which is
//! why files are a table of their own.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::layout::{FileIdentity, ObjectKey};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    pub number: i32,
    pub close_on_exec: bool,
    /// Index into [`crate::state::State::files`].
    pub file: u32,
}

/// A file that the app reads, and that is the same on the other host or comes there by content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFile {
    pub size: u64,
    /// It has not changed for long. Of others it is not asked that they have the same size.
    pub settled: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenFile {
    /// `F_GETFL`, without `O_CLOEXEC`.
    pub flags: u32,
    pub position: i64,
    pub kind: FileKind,
    pub locks: Vec<Lock>,
    pub owner: Option<AsyncOwner>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FileKind {
    /// A file, directory or harmless device that the standby opens by its path; `file_type` are the `S_IFMT`
    /// bits that it must find there.
    Path {
        path: ByteBuf,
        file_type: u32,
        /// Of a regular file that is open for reading alone.
        #[serde(default)]
        reads: Option<ReadFile>,
    },
    /// A regular file without a name, and its bytes. Where several open files share it, the first has them.
    Deleted {
        key: ObjectKey,
        path: ByteBuf,
        mode: u32,
        content: ByteBuf,
    },
    /// One of the three streams that the manager owns: 0, 1 or 2.
    Stdio {
        stream: u8,
    },
    /// An end of the pipe with this index in [`crate::state::State::pipes`].
    Pipe {
        pipe: u32,
    },
    /// An end of a FIFO that has a path; its content is the pipe's.
    Fifo {
        path: ByteBuf,
        pipe: u32,
    },
    Event {
        count: u64,
        semaphore: bool,
    },
    Timer(TimerDescriptor),
    Signal {
        mask: u64,
    },
    Epoll {
        targets: Vec<EpollTarget>,
    },
    Inotify {
        watches: Vec<InotifyWatch>,
    },
    /// A memfd or another shared object.
    Object {
        key: ObjectKey,
    },
    Process {
        pid: i32,
    },
    /// The cgroup's own `cpu.max`, `cpu.cfs_quota_us` or `cpu.cfs_period_us`, as its base name.
    CgroupFile {
        name: String,
    },
    /// `/proc/…` of the app itself, as the path below `/proc`.
    OwnProc {
        path: ByteBuf,
    },
    UnixPair(UnixEnd),
    /// A connection to the manager's own socket, which the new manager goes on with.
    Conversation(Conversation),
    UnixListener {
        socket: UnixName,
        backlog: i32,
    },
    /// A unix socket that is neither listening nor connected.
    UnixLoose(UnixName),
    Listener(InternetSocket),
    Datagram(InternetSocket),
    /// A connection; without its TCP state the restored descriptor reports a reset.
    Connection(InternetSocket),
    /// A socket that is neither connected nor listening.
    Unconnected(InternetSocket),
    Netlink {
        protocol: i32,
        socket_type: i32,
        address: ByteBuf,
        options: Vec<SocketOption>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    pub capacity: u32,
    pub content: ByteBuf,
    /// `O_DIRECT`: each write is a packet; `content` then is one packet per entry of `packets`.
    pub packets: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerDescriptor {
    pub clock: i32,
    pub ticks: u64,
    /// Until it fires next; zero: disarmed.
    pub remaining_ns: u64,
    pub interval_ns: u64,
    /// `TFD_TIMER_*` as given to `timerfd_settime`.
    pub flags: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpollTarget {
    /// The number under which the file was added. It may have gone to another file since.
    pub descriptor: i32,
    /// Index into [`crate::state::State::files`].
    pub file: u32,
    pub events: u32,
    pub data: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InotifyWatch {
    pub number: i32,
    pub path: ByteBuf,
    pub mask: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixEnd {
    /// The socket's inode on the primary, and its peer's; no peer: zero.
    pub inode: u64,
    pub peer: u64,
    pub socket_type: i32,
    /// What waits to be read here, one entry per message for a datagram socket.
    pub queue: Vec<ByteBuf>,
    pub read_shut: bool,
    pub write_shut: bool,
    pub options: Vec<SocketOption>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// Its peer is nobody of the app; its queue is what was answered and not read yet.
    pub end: UnixEnd,
    /// What the app has said, and no answer was begun for.
    pub unanswered: ByteBuf,
}

/// A unix socket that may have an address of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixName {
    pub socket_type: i32,
    /// `sockaddr` bytes; just the family where it is not bound.
    pub address: ByteBuf,
    /// The socket's file, where the address is a path that exists.
    pub file: Option<UnixFile>,
    pub options: Vec<SocketOption>,
    /// What waits to be read by a datagram socket.
    #[serde(default)]
    pub queue: Vec<Datagram>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixFile {
    pub mode: u32,
    pub user: u32,
    pub group: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InternetSocket {
    /// `AF_INET` or `AF_INET6`.
    pub family: i32,
    pub socket_type: i32,
    /// `IPPROTO_TCP`, `IPPROTO_MPTCP`, `IPPROTO_UDP`, …
    pub protocol: i32,
    /// `sockaddr` bytes; empty where there is none.
    pub local: ByteBuf,
    pub remote: ByteBuf,
    pub backlog: i32,
    pub options: Vec<SocketOption>,
    /// Of a connection that is to go on.
    #[serde(default)]
    pub tcp: Option<Box<TcpState>>,
    /// What waits to be read by a datagram socket.
    #[serde(default)]
    pub queue: Vec<Datagram>,
}

/// A datagram that waits to be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// Its sender's `sockaddr` bytes; empty for a unix socket without a name.
    pub from: ByteBuf,
    /// Where it was sent to, as `sockaddr` bytes; empty for a unix socket.
    pub to: ByteBuf,
    pub bytes: ByteBuf,
    /// Not zero: these are several datagrams, each of this length but for the last (`UDP_GRO`).
    pub segment: u32,
    /// Who sent it, where the app asks for that (`SO_PASSCRED`).
    pub credentials: Option<Credentials>,
}

/// `struct ucred`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// In the cell; zero for who is outside the app.
    pub pid: i32,
    pub user: u32,
    pub group: u32,
}

/// A TCP connection in the middle of its life. Sequence numbers count bytes only: the one that a FIN takes is
/// left out, `state` tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpState {
    /// As the kernel counts: 1 is established.
    pub state: u8,
    /// Of the byte that the app writes next.
    pub write_sequence: u32,
    /// Of the byte that the peer sends next.
    pub read_sequence: u32,
    /// What the app has written and the peer was not known to have.
    pub unacknowledged: ByteBuf,
    /// How many bytes at the end of it were never sent.
    pub unsent: u32,
    /// What the peer has sent and the app has not read.
    pub unread: ByteBuf,
    /// The app shut its reading side itself.
    pub read_shut: bool,
    pub segment_max: u32,
    pub selective_acknowledgements: bool,
    /// How far window sizes are shifted: ours of the peer, and the peer's of us.
    pub window_scales: Option<(u8, u8)>,
    /// What we would have stamped a segment with.
    pub timestamp: Option<u32>,
    pub window: TcpWindow,
    pub round_trip_us: u32,
    pub send_buffer: i32,
    pub receive_buffer: i32,
    /// `SO_BUF_LOCK`: which of the two sizes the app chose itself.
    pub buffers_locked: i32,
}

/// `struct tcp_repair_window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpWindow {
    pub update_sequence: u32,
    pub peer: u32,
    pub peer_max: u32,
    pub own: u32,
    pub own_from: u32,
}

/// A TCP connection that no descriptor leads to. Without its TCP state it ends at a takeover, and its peer must be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stray {
    pub kind: StrayKind,
    /// `sockaddr` bytes.
    pub local: ByteBuf,
    pub remote: ByteBuf,
    /// Of a closed one whose peer is to get the rest.
    #[serde(default)]
    pub tcp: Option<Box<TcpState>>,
    #[serde(default)]
    pub options: Vec<SocketOption>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StrayKind {
    /// The app has not accepted it yet.
    Unaccepted,
    /// The app has closed it, and the kernel has still something to say.
    Closed,
    /// It has ended lately; what tells the peer so may not have left.
    Gone,
}

/// One `setsockopt` that makes a new socket like the old one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    pub level: i32,
    pub name: i32,
    pub value: ByteBuf,
}

impl OpenFile {
    /// What to ask for where the file that is open for reading is not there.
    pub fn identity(&self) -> Option<FileIdentity> {
        let FileKind::Path { path, reads: Some(reads), .. } = &self.kind else { return None };
        let size = if reads.settled { reads.size } else { FileIdentity::ANY_SIZE };
        Some(FileIdentity { path: path.to_vec(), size, build_id: None })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lock {
    /// `flock(2)`.
    Whole { exclusive: bool },
    /// `F_OFD_SETLK`: belongs to the open file.
    OpenFile { exclusive: bool, start: i64, len: i64 },
    /// `F_SETLK`: belongs to the process.
    Process { exclusive: bool, start: i64, len: i64 },
}

/// `F_SETOWN_EX` and `F_SETSIG`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsyncOwner {
    pub kind: i32,
    pub id: i32,
    pub signal: i32,
}
