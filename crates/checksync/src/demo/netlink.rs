//! The four requests to the kernel that connect two network namespaces, as `rtnetlink(7)` has them: nothing
//! needs to be installed for a demo, not even `ip`.
//!
//! A [`Netlink`] speaks about the namespace that its thread was in when it was opened. Every request waits for
//! the kernel's answer; one that failed has changed nothing.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;

const REQUEST: u16 = 0x1;
const ANSWER: u16 = 0x4;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

const ERROR: u16 = 2;
const NESTED: u16 = 1 << 15;

const LINK_NAME: u16 = 3;
const LINK_INFO: u16 = 18;
const LINK_NAMESPACE: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
const ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;

const UP: u32 = 1;
const HEADER_BYTES: usize = 16;

/// A conversation with the kernel about one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    /// `ioctl`s about devices need a socket of a family that has devices.
    devices: OwnedFd,
}

impl Netlink {
    /// About the namespace of this thread.
    pub fn open() -> io::Result<Self> {
        let new = |family, kind, protocol| socket_with(family, kind, SocketFlags::CLOEXEC, protocol);
        Ok(Self {
            socket: new(AddressFamily::NETLINK, SocketType::RAW, None)?,
            devices: new(AddressFamily::INET, SocketType::DGRAM, None)?,
        })
    }

    /// Makes a pair of connected devices: `name` here, `peer` in the namespace `elsewhere`.
    pub fn add_veth(&self, name: &str, peer: &str, elsewhere: BorrowedFd<'_>) -> io::Result<()> {
        let number = elsewhere.as_raw_fd() as u32;
        let mut request = Message::new(NEW_LINK, CREATE | EXCLUSIVE);
        request.link(0);
        request.text(LINK_NAME, name);
        request.nest(LINK_INFO, |info| {
            info.text(INFO_KIND, "veth");
            info.nest(INFO_DATA, |data| {
                data.nest(VETH_PEER, |end| {
                    end.link(0);
                    end.text(LINK_NAME, peer);
                    end.attribute(LINK_NAMESPACE, &number.to_ne_bytes());
                });
            });
        });
        self.ask(request)
    }

    pub fn add_address(&self, name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let index = name_to_index(&self.devices, name)?;
        let mut request = Message::new(NEW_ADDRESS, CREATE | EXCLUSIVE);
        let (flags, scope) = (0, 0);
        request.bytes.extend([AddressFamily::INET.as_raw() as u8, prefix, flags, scope]);
        request.bytes.extend(index.to_ne_bytes());
        request.attribute(ADDRESS_LOCAL, &address.octets());
        request.attribute(ADDRESS, &address.octets());
        self.ask(request)
    }

    pub fn set_up(&self, name: &str) -> io::Result<()> {
        self.switch(name, UP)
    }

    /// As if the plug were pulled: nothing comes in or goes out any more, at either end.
    pub fn set_down(&self, name: &str) -> io::Result<()> {
        self.switch(name, 0)
    }

    fn switch(&self, name: &str, up: u32) -> io::Result<()> {
        let mut request = Message::new(NEW_LINK, 0);
        request.link(up);
        request.text(LINK_NAME, name);
        self.ask(request)
    }

    fn ask(&self, request: Message) -> io::Result<()> {
        send(&self.socket, &request.finish(), SendFlags::empty())?;
        let mut answer = [0; 1024];
        let (_, len) = recv(&self.socket, &mut answer, RecvFlags::empty())?;
        match error_in(&answer[..len]) {
            Some(0) => Ok(()),
            Some(number) => Err(io::Error::from_raw_os_error(-number)),
            None => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is no acknowledgement"))
            }
        }
    }
}

/// The error number in an answer; zero is success.
fn error_in(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let number = i32::from_ne_bytes(answer.get(HEADER_BYTES..HEADER_BYTES + 4)?.try_into().ok()?);
    (kind == ERROR).then_some(number)
}

/// A request as it grows: `struct nlmsghdr`, the family's own header, attributes.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | ANSWER | flags).to_ne_bytes());
        Self { bytes }
    }

    /// `struct ifinfomsg` of a device that is known by its name.
    fn link(&mut self, up: u32) {
        let (family_and_type, index) = ([0; 4], [0; 4]);
        self.bytes.extend(family_and_type);
        self.bytes.extend(index);
        self.bytes.extend(up.to_ne_bytes());
        self.bytes.extend(UP.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend((value.len() as u16 + 4).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), b"\0"].concat());
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.attribute(kind | NESTED, &[]);
        fill(self);
        let len = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes
    }
}
