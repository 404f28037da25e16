//! What a library and its manager say besides changes.

use crate::change::Malformed;
use crate::frame::{self, Frame};

/// Grows with every change that an older manager or library would misunderstand.
pub const PROTOCOL_VERSION: u16 = 1;

const MAGIC: &[u8; 8] = b"CKSTRUCT";

const HELLO: u8 = 1;
const ASK_LEASE: u8 = 2;

const WELCOME: u8 = 1;
const READY: u8 = 2;
const COMMITTED: u8 = 3;
const LEASE: u8 = 4;
const FENCED: u8 = 5;
const REFUSED: u8 = 6;

/// From a library, besides changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromLibrary {
    /// The first frame.
    Hello,
    /// How long may it go on answering reads? The number comes back with the answer.
    AskLease(u64),
}

/// To a library, besides the changes that make a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToLibrary<'a> {
    /// The snapshot follows.
    Welcome {
        term: u64,
    },
    /// The snapshot is over. A lease is to be asked for about this often.
    Ready {
        lease_every_ns: u64,
    },
    /// So many changes of this connection are committed, in the order in which they were sent.
    Committed {
        count: u64,
    },
    /// Reads may be answered until this span after the question was sent.
    Lease {
        number: u64,
        span_ns: u64,
    },
    /// Another serves in this term. Nothing that was not committed will be.
    Fenced {
        term: u64,
        by: &'a str,
    },
    Refused {
        why: &'a str,
    },
}

impl FromLibrary {
    pub fn parse(frame: Frame<'_>) -> Result<Self, Malformed> {
        let Frame { kind, body } = frame;
        match kind {
            HELLO => {
                let (magic, version) = body.split_first_chunk().ok_or(Malformed::Body(kind))?;
                let version = u16::from_le_bytes(version.try_into().map_err(|_| Malformed::Body(kind))?);
                match version {
                    _ if magic != MAGIC => Err(Malformed::Body(kind)),
                    PROTOCOL_VERSION => Ok(Self::Hello),
                    theirs => Err(Malformed::Version { theirs }),
                }
            }
            ASK_LEASE => {
                let number = body.try_into().map_err(|_| Malformed::Body(kind))?;
                Ok(Self::AskLease(u64::from_le_bytes(number)))
            }
            _ => Err(Malformed::Kind(kind)),
        }
    }

    pub fn append(self, out: &mut Vec<u8>) {
        match self {
            Self::Hello => frame::append(out, HELLO, &[MAGIC, &PROTOCOL_VERSION.to_le_bytes()]),
            Self::AskLease(number) => frame::append(out, ASK_LEASE, &[&number.to_le_bytes()]),
        }
    }
}

impl ToLibrary<'_> {
    pub fn append(self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome { term } => {
                frame::append(out, WELCOME, &[&PROTOCOL_VERSION.to_le_bytes(), &term.to_le_bytes()]);
            }
            Self::Ready { lease_every_ns } => frame::append(out, READY, &[&lease_every_ns.to_le_bytes()]),
            Self::Committed { count } => frame::append(out, COMMITTED, &[&count.to_le_bytes()]),
            Self::Lease { number, span_ns } => {
                frame::append(out, LEASE, &[&number.to_le_bytes(), &span_ns.to_le_bytes()]);
            }
            Self::Fenced { term, by } => frame::append(out, FENCED, &[&term.to_le_bytes(), by.as_bytes()]),
            Self::Refused { why } => frame::append(out, REFUSED, &[why.as_bytes()]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Frames;

    #[test]
    fn what_a_library_says_survives_its_encoding() {
        for said in [FromLibrary::Hello, FromLibrary::AskLease(7)] {
            let mut frame = Vec::new();
            said.append(&mut frame);
            assert_eq!(FromLibrary::parse(Frames::of(&frame).take().unwrap().unwrap()), Ok(said));
        }
    }

    #[test]
    fn a_stranger_and_another_version_are_told_apart() {
        let hello = |body: &[u8]| FromLibrary::parse(Frame { kind: HELLO, body });
        assert_eq!(hello(b"GET / HTTP"), Err(Malformed::Body(HELLO)));
        assert_eq!(hello(b"CKSTRUCT\x02\x00"), Err(Malformed::Version { theirs: 2 }));
        assert_eq!(hello(b"CKSTRUCT"), Err(Malformed::Body(HELLO)));
        assert_eq!(FromLibrary::parse(Frame { kind: 99, body: &[] }), Err(Malformed::Kind(99)));
    }
}
