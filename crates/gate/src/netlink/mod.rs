//! Requests to the kernel about devices, addresses and traffic filters, as `rtnetlink(7)` has them: nothing
//! needs to be installed, not even `ip`.
//!
//! A [`Netlink`] speaks about the namespace that its thread was in when it was opened, from whatever thread it
//! is used later. Every request waits for the kernel's answer; one that failed has changed nothing.

pub(crate) mod devices;
mod traffic;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

pub use devices::{Link, Mac};
pub use traffic::Direction;

const REQUEST: u16 = 0x1;
const ANSWER: u16 = 0x4;
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

const ERROR: u16 = 2;
const NESTED: u16 = 1 << 15;
const HEADER_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;
/// A device with many virtual functions has a long description.
const ANSWER_BYTES: usize = 64 << 10;

/// A conversation with the kernel about one network namespace.
#[derive(Debug)]
pub struct Netlink {
    /// One request at a time: answers carry no name here.
    socket: Mutex<OwnedFd>,
}

impl Netlink {
    /// About the namespace of this thread.
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket: Mutex::new(socket) })
    }

    /// Asks for a change.
    fn ask(&self, mut request: Message) -> io::Result<()> {
        request.add_flags(ANSWER);
        let answer = self.exchange(request)?;
        if kind(&answer) == Some(ERROR) { Ok(()) } else { Err(unintelligible()) }
    }

    /// Asks for a description: what follows the header of the answer.
    fn fetch(&self, request: Message) -> io::Result<Vec<u8>> {
        let mut answer = self.exchange(request)?;
        if kind(&answer) == Some(ERROR) || answer.len() < HEADER_BYTES {
            return Err(unintelligible());
        }
        Ok(answer.split_off(HEADER_BYTES))
    }

    fn exchange(&self, request: Message) -> io::Result<Vec<u8>> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        send(&*socket, &request.finish()?, SendFlags::empty())?;
        let mut answer = vec![0; ANSWER_BYTES];
        let (_, len) = recv(&*socket, &mut answer, RecvFlags::empty())?;
        answer.truncate(len);
        match error_in(&answer) {
            Some(number) if number != 0 => Err(io::Error::from_raw_os_error(number.wrapping_neg())),
            _ => Ok(answer),
        }
    }
}

fn unintelligible() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is of another kind than the question")
}

fn kind(answer: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?))
}

/// The error number in an answer that is about one; zero is success.
fn error_in(answer: &[u8]) -> Option<i32> {
    let number = i32::from_ne_bytes(answer.get(HEADER_BYTES..HEADER_BYTES + 4)?.try_into().ok()?);
    (kind(answer)? == ERROR).then_some(number)
}

/// A request as it grows: `struct nlmsghdr`, the family's own header, attributes.
struct Message {
    bytes: Vec<u8>,
    /// Something in it can't be said: a length has 16 bits, and a text ends at a zero.
    unspeakable: bool,
}

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let mut message = Self { bytes, unspeakable: false };
        message.add_flags(REQUEST | flags);
        message
    }

    fn add_flags(&mut self, flags: u16) {
        let before = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[6..8].copy_from_slice(&(before | flags).to_ne_bytes());
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = self.len_of(value.len() + ATTRIBUTE_BYTES);
        self.raw(&len.to_ne_bytes());
        self.raw(&kind.to_ne_bytes());
        self.raw(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn len_of(&mut self, len: usize) -> u16 {
        u16::try_from(len).unwrap_or_else(|_| {
            self.unspeakable = true;
            0
        })
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.unspeakable |= value.contains('\0');
        self.attribute(kind, &[value.as_bytes(), b"\0"].concat());
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.attribute(kind | NESTED, &[]);
        fill(self);
        let len = self.len_of(self.bytes.len() - start);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// `EINVAL` if something in it can't be said.
    fn finish(mut self) -> io::Result<Vec<u8>> {
        if self.unspeakable {
            return Err(rustix::io::Errno::INVAL.into());
        }
        let len = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        Ok(self.bytes)
    }
}

/// The attributes in `bytes`, each with its kind; ends at the first that is cut short.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & !NESTED;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_the_round_trip() {
        let mut message = Message::new(1, 0);
        message.text(3, "eth0");
        message.nest(18, |inner| inner.number(1, 7));
        let bytes = message.finish().unwrap();
        let body = &bytes[HEADER_BYTES..];
        assert_eq!(attribute(body, 3), Some(&b"eth0\0"[..]));
        let inner = attribute(body, 18).unwrap();
        assert_eq!(attribute(inner, 1), Some(&7_u32.to_ne_bytes()[..]));
    }

    #[test]
    fn what_can_not_be_said_is_not_said_wrongly() {
        let finish = |fill: &dyn Fn(&mut Message)| {
            let mut message = Message::new(1, 0);
            fill(&mut message);
            message.finish().map(drop).map_err(|why| why.kind())
        };
        let longest = vec![0; usize::from(u16::MAX) - ATTRIBUTE_BYTES];
        assert!(finish(&|message| message.attribute(1, &longest)).is_ok());
        let too_long = Err(io::ErrorKind::InvalidInput);
        assert_eq!(finish(&|message| message.attribute(1, &[&longest[..], &[0]].concat())), too_long);
        assert_eq!(finish(&|message| message.nest(1, |inner| inner.attribute(1, &longest))), too_long);
        assert_eq!(finish(&|message| message.text(3, "br0\0x")), too_long);
    }

    #[test]
    fn cut_attributes_end_the_list() {
        for bytes in [&[0; 0][..], &[4], &[4, 0, 1], &[0, 0, 1, 0], &[3, 0, 1, 0], &[9, 0, 1, 0, 5]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}
