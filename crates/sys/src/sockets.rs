//! Socket calls by raw level, option and address bytes, which typed libraries do not offer.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::check;

/// The longest `sockaddr` of any family that we meet.
pub const ADDRESS_BYTES_MAX: usize = 128;

/// Reads one option into `value`; how many bytes the kernel wrote.
pub fn get_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut len = value.len() as libc::socklen_t;
    let pointer = value.as_mut_ptr().cast();
    // SAFETY: `value` is live and writable for `len` bytes.
    let ret = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, pointer, &raw mut len) };
    check(ret.into()).map(|_| len as usize)
}

/// Reads an option that is an `int`.
pub fn get_number(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = [0; 4];
    get_option(socket, level, name, &mut value).map(|_| i32::from_ne_bytes(value))
}

pub fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let (pointer, len) = (value.as_ptr().cast(), value.len() as libc::socklen_t);
    // SAFETY: `value` is live and only read.
    let ret = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, len) };
    check(ret.into()).map(drop)
}

pub fn set_number(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(socket, level, name, &value.to_ne_bytes())
}

/// The classic filter on a socket as raw `sock_filter`s; empty: none. `EACCES` for an eBPF program.
pub fn filter(socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut instructions = 0;
    let (fd, none) = (socket.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: with a length of zero the kernel writes only `instructions`.
    let ret =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_GET_FILTER, none, &raw mut instructions) };
    check(ret.into())?;
    let mut program = vec![0; instructions as usize * size_of::<libc::sock_filter>()];
    if program.is_empty() {
        return Ok(program);
    }
    let pointer = program.as_mut_ptr().cast();
    // SAFETY: `program` has room for the `instructions` that the kernel announced, the unit of this option.
    let ret = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_GET_FILTER, pointer, &raw mut instructions)
    };
    check(ret.into()).map(|_| program)
}

/// Puts a classic filter, raw `sock_filter`s, on a socket.
pub fn attach_filter(socket: BorrowedFd<'_>, program: &[u8]) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_FILTER, program)
}

/// Has a classic program, raw `sock_filter`s, choose who of a socket's `SO_REUSEPORT` group gets a packet: it answers
/// with the index, in the order in which they were bound. The next one takes its place; `SO_DETACH_REUSEPORT_BPF` takes
/// it away.
pub fn attach_choice(socket: BorrowedFd<'_>, program: &[u8]) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_REUSEPORT_CBPF, program)
}

fn attach(socket: BorrowedFd<'_>, option: i32, program: &[u8]) -> io::Result<()> {
    let mut aligned: Vec<u64> =
        program.chunks_exact(8).map(|raw| u64::from_ne_bytes(raw.try_into().unwrap_or_default())).collect();
    let fprog = libc::sock_fprog { len: aligned.len() as u16, filter: aligned.as_mut_ptr().cast() };
    let (pointer, len) = ((&raw const fprog).cast(), size_of::<libc::sock_fprog>() as libc::socklen_t);
    // SAFETY: `fprog` names `aligned`, which is live, of the said length, and only read.
    let ret = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, pointer, len) };
    check(ret.into()).map(drop)
}

/// `getsockname`, as the bytes of the `sockaddr`.
pub fn local_address(socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut address = [0_u8; ADDRESS_BYTES_MAX];
    let mut len = ADDRESS_BYTES_MAX as libc::socklen_t;
    // SAFETY: `address` is live and writable for `len` bytes.
    let ret = unsafe { libc::getsockname(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut len) };
    check(ret.into())?;
    Ok(address[..(len as usize).min(ADDRESS_BYTES_MAX)].to_vec())
}

/// `getpeername`, as the bytes of the `sockaddr`.
pub fn peer_address(socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut address = [0_u8; ADDRESS_BYTES_MAX];
    let mut len = ADDRESS_BYTES_MAX as libc::socklen_t;
    // SAFETY: `address` is live and writable for `len` bytes.
    let ret = unsafe { libc::getpeername(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut len) };
    check(ret.into())?;
    Ok(address[..(len as usize).min(ADDRESS_BYTES_MAX)].to_vec())
}

pub fn bind(socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let (pointer, len) = (address.as_ptr().cast(), address.len() as libc::socklen_t);
    // SAFETY: `address` is live and only read.
    let ret = unsafe { libc::bind(socket.as_raw_fd(), pointer, len) };
    check(ret.into()).map(drop)
}

pub fn connect(socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let (pointer, len) = (address.as_ptr().cast(), address.len() as libc::socklen_t);
    // SAFETY: `address` is live and only read.
    let ret = unsafe { libc::connect(socket.as_raw_fd(), pointer, len) };
    check(ret.into()).map(drop)
}

/// How many sequence numbers of a TCP socket the peer has not acknowledged; a FIN counts as one.
pub fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<u32> {
    queue_length(socket, libc::TIOCOUTQ)
}

/// How many sequence numbers of a TCP socket were never sent; a FIN counts as one.
pub fn unsent(socket: BorrowedFd<'_>) -> io::Result<u32> {
    const SIOCOUTQNSD: libc::c_ulong = 0x894b;
    queue_length(socket, SIOCOUTQNSD)
}

fn queue_length(socket: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<u32> {
    let mut len: libc::c_int = 0;
    // SAFETY: both requests write one `int`, and `len` is live.
    let ret = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut len) };
    check(ret.into()).map(|_| len as u32)
}

/// What a look into a receive queue found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peeked {
    /// The message's own length for packets, also where `buffer` was too short.
    pub len: usize,
    /// `MSG_*`, with `MSG_CTRUNC` where more came along than there was room for.
    pub flags: i32,
    /// How much there is of the sender's address, and of other data.
    pub from_len: usize,
    pub control_len: usize,
}

/// Looks at what would be received next, without taking it; never waits. Descriptors that travel along are
/// not taken over: there is room for `control` bytes of other ancillary data only.
pub fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8], control: &mut [u8]) -> io::Result<Peeked> {
    peek_from(socket, buffer, &mut [], control)
}

/// The same, with the sender's address in `from`.
pub fn peek_from(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    from: &mut [u8],
    control: &mut [u8],
) -> io::Result<Peeked> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = from.as_mut_ptr().cast();
    message.msg_namelen = from.len() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = control.len();
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `message` names live buffers of the lengths that it says.
    let ret = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    check(ret as libc::c_long).map(|len| Peeked {
        len: len as usize,
        flags: message.msg_flags,
        from_len: (message.msg_namelen as usize).min(from.len()),
        control_len: message.msg_controllen.min(control.len()),
    })
}

/// What the kernel's socket diagnosis says of one unix socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnixReport {
    /// Zero: not connected, or the peer is gone.
    pub peer: u64,
    /// `RCV_SHUTDOWN` (1) and `SEND_SHUTDOWN` (2).
    pub shut: u8,
    /// Of a listener.
    pub backlog: u32,
    /// The device and inode of the bound path.
    pub bound: Option<(u32, u32)>,
}

/// Asks `diag`, a `NETLINK_SOCK_DIAG` socket of the right network namespace, for the unix socket `inode`.
pub fn unix_report(diag: &OwnedFd, inode: u64) -> io::Result<UnixReport> {
    use rustix::net::{RecvFlags, SendFlags};
    rustix::net::send(diag, &unix_request(inode), SendFlags::empty())?;
    let mut answer = [0_u8; 1024];
    let (len, _) = rustix::net::recv(diag, &mut answer, RecvFlags::empty())?;
    parse_unix_answer(&answer[..len])
}

/// `nlmsghdr` and `unix_diag_req`.
fn unix_request(inode: u64) -> [u8; 40] {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const SHOW_VFS_PEER_AND_QUEUE: u32 = 2 | 4 | 0x10;
    let mut request = [0_u8; 40];
    request[0..4].copy_from_slice(&40_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request[16] = libc::AF_UNIX as u8;
    request[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
    request[24..28].copy_from_slice(&(inode as u32).to_ne_bytes());
    request[28..32].copy_from_slice(&SHOW_VFS_PEER_AND_QUEUE.to_ne_bytes());
    request[32..40].copy_from_slice(&u64::MAX.to_ne_bytes()); // Any cookie.
    request
}

fn parse_unix_answer(answer: &[u8]) -> io::Result<UnixReport> {
    let word = |at: usize| {
        let bytes = answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    };
    if word(4)? & 0xffff == libc::NLMSG_ERROR as u32 {
        return Err(io::Error::from_raw_os_error((word(16)? as i32).wrapping_neg()));
    }
    let (mut at, end) = (32, (word(0)? as usize).min(answer.len()));
    let mut report = UnixReport::default();
    while at + 4 <= end {
        let header = word(at)?;
        let (len, kind) = ((header & 0xffff) as usize, header >> 16);
        match kind {
            1 => report.bound = Some((word(at + 8)?, word(at + 4)?)),
            2 => report.peer = word(at + 4)?.into(),
            4 => report.backlog = word(at + 8)?,
            6 => report.shut = (word(at + 4)? & 0xff) as u8,
            _ => (),
        }
        at += len.max(4).next_multiple_of(4);
    }
    Ok(report)
}
