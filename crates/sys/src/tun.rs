//! TAP devices: what the kernel sends through one is read from a descriptor.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::check;

/// In front of each frame: `struct virtio_net_hdr`.
pub const HEADER_BYTES: usize = 10;

const DEVICE: &str = "/dev/net/tun";
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETIFINDEX: libc::c_ulong = 0x4004_54da;

/// Makes the device `name` with this number in the namespace of this thread; it is gone with the descriptor.
/// Reads do not wait. Frames come with [`HEADER_BYTES`] in front, unsegmented and with checksums left to be
/// computed where the sender left them so. `ENOENT` or `ENODEV` where the host has no such devices.
pub fn open_tap(name: &str, index: u32) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
    let tap: OwnedFd = file.into();
    let number = index as libc::c_int;
    // SAFETY: `number` is live and only read.
    let ret = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFINDEX, &raw const number) };
    check(ret.into())?;
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: `request` is live; the kernel reads it and writes the name.
    let ret = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request) };
    check(ret.into())?;
    let header = HEADER_BYTES as libc::c_int;
    // SAFETY: `header` is live and only read.
    let ret = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const header) };
    check(ret.into())?;
    let offloads = libc::c_ulong::from(libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6);
    // SAFETY: the call takes numbers only.
    let ret = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETOFFLOAD, offloads) };
    check(ret.into())?;
    Ok(tap)
}
