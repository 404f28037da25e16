//! `AF_PACKET` sockets: frames in and out of one device, past the kernel's own network stack.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Protocol, RawProtocol, SocketFlags, SocketType, socket_with};
use sys::sockets::{attach_filter, bind, set_number};

const PACKET_IGNORE_OUTGOING: i32 = 23;

/// Sends frames only. They meet no filter and no queue of the device: whoever holds this is stopped by nothing.
pub fn sender(device: u32) -> io::Result<OwnedFd> {
    let socket = open(None)?;
    set_number(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
    bind_to(&socket, device, 0)?;
    Ok(socket)
}

/// Sends frames only, with a mark that the device's filters know.
pub fn marked_sender(device: u32, mark: u32) -> io::Result<OwnedFd> {
    let socket = open(None)?;
    set_number(socket.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, mark as i32)?;
    bind_to(&socket, device, 0)?;
    Ok(socket)
}

/// Each frame that this sends is led by a `virtio_net_hdr`.
pub fn offload(socket: &OwnedFd) -> io::Result<()> {
    set_number(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)
}

/// Hears what comes in that `program`, a classic filter, lets through; before any traffic filter sees it if
/// `protocol` is `ETH_P_ALL`, after that otherwise.
pub fn receiver(device: u32, protocol: i32, program: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    // Nothing is heard before the filter is there: the protocol comes with the binding.
    let socket = open(None)?;
    let raw: Vec<u8> = program.iter().flat_map(raw_instruction).collect();
    attach_filter(socket.as_fd(), &raw)?;
    set_number(socket.as_fd(), libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
    bind_to(&socket, device, protocol as u16)?;
    Ok(socket)
}

/// As much room as the administrator allows, and more if we may.
pub fn set_buffer(socket: &OwnedFd, forced: i32, plain: i32, bytes: i32) -> io::Result<()> {
    set_number(socket.as_fd(), libc::SOL_SOCKET, forced, bytes)
        .or_else(|_| set_number(socket.as_fd(), libc::SOL_SOCKET, plain, bytes))
}

fn open(protocol: Option<RawProtocol>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol.map(Protocol::from_raw))?)
}

/// `struct sockaddr_ll`.
fn bind_to(socket: &OwnedFd, device: u32, protocol: u16) -> io::Result<()> {
    let mut address = [0; 20];
    address[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
    address[2..4].copy_from_slice(&protocol.to_be_bytes());
    address[4..8].copy_from_slice(&device.to_ne_bytes());
    bind(socket.as_fd(), &address)
}

/// One instruction of a classic filter.
pub const fn step(code: u32, jump_true: u8, jump_false: u8, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: jump_true, jf: jump_false, k: value }
}

fn raw_instruction(step: &libc::sock_filter) -> [u8; 8] {
    let mut raw = [0; 8];
    raw[..2].copy_from_slice(&step.code.to_ne_bytes());
    (raw[2], raw[3]) = (step.jt, step.jf);
    raw[4..].copy_from_slice(&step.k.to_ne_bytes());
    raw
}

/// Waits until one of these can be read, for so long at most; which can.
pub fn await_readable<const N: usize>(
    descriptors: [&OwnedFd; N],
    patience: Option<Duration>,
) -> io::Result<[bool; N]> {
    let timeout =
        patience.map(|span| Timespec { tv_sec: span.as_secs() as i64, tv_nsec: span.subsec_nanos().into() });
    let mut all = descriptors.map(|descriptor| PollFd::new(descriptor, PollFlags::IN));
    match poll(&mut all, timeout.as_ref()) {
        Ok(_) => Ok(std::array::from_fn(|index| !all[index].revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok([false; N]),
        Err(why) => Err(why.into()),
    }
}
