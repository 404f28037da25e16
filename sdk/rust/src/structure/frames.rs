//! What is said to the manager and by it: `docs/structures.md`.

use std::io::{self, Read};

use super::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

const VERSION: u16 = 1;
/// The longest frame behind its length, with room for the longest name.
const FRAME_BYTES_MAX: usize = 1 + 5 + 255 + KEY_BYTES_MAX + VALUE_BYTES_MAX;

const PUT: u8 = 16;
const DELETE: u8 = 17;
const STORE: u8 = 18;

/// A change on its way to the manager.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change<'a> {
    Put { name: &'a str, key: &'a [u8], value: &'a [u8] },
    Delete { name: &'a str, key: &'a [u8] },
    Store { name: &'a str, value: &'a [u8] },
}

/// What the manager says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said<'a> {
    Welcome { term: u64 },
    Put { name: &'a str, key: &'a [u8], value: &'a [u8] },
    Store { name: &'a str, value: &'a [u8] },
    Ready { lease_every_ns: u64 },
    Committed { count: u64 },
    Lease { number: u64, span_ns: u64 },
    Fenced { term: u64, by: &'a str },
    Refused { why: &'a str },
}

fn append(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.push(kind);
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

pub(super) fn append_hello(out: &mut Vec<u8>) {
    append(out, 1, &[b"CKSTRUCT", &VERSION.to_le_bytes()]);
}

pub(super) fn append_question(out: &mut Vec<u8>, number: u64) {
    append(out, 2, &[&number.to_le_bytes()]);
}

impl Change<'_> {
    /// Its name, key and value, none longer than it may be.
    pub(super) fn append(&self, out: &mut Vec<u8>) {
        let (kind, name, key, value): (_, _, &[u8], &[u8]) = match *self {
            Self::Put { name, key, value } => (PUT, name, key, value),
            Self::Delete { name, key } => (DELETE, name, key, b""),
            Self::Store { name, value } => (STORE, name, b"", value),
        };
        append(
            out,
            kind,
            &[&[name.len() as u8], &(key.len() as u32).to_le_bytes(), name.as_bytes(), key, value],
        );
    }
}

/// Frames from the manager, out of a buffer that keeps what came of the next.
#[derive(Debug)]
pub(super) struct Reader<R> {
    pub(super) from: R,
    buffer: Vec<u8>,
    /// What is taken, and what is filled.
    begin: usize,
    end: usize,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, buffer: vec![0; 64 << 10], begin: 0, end: 0 }
    }

    /// The next frame. An error is the end of the connection.
    pub(super) fn next(&mut self) -> io::Result<Said<'_>> {
        self.fill(4)?;
        let length =
            self.buffer[self.begin..self.begin + 4].try_into().map_or(0, u32::from_le_bytes) as usize;
        if length == 0 || length > FRAME_BYTES_MAX {
            return Err(malformed("a frame of a length that none has"));
        }
        self.fill(4 + length)?;
        let frame = &self.buffer[self.begin + 4..self.begin + 4 + length];
        self.begin += 4 + length;
        parse(frame[0], &frame[1..])
    }

    /// Reads until `len` bytes are there.
    fn fill(&mut self, len: usize) -> io::Result<()> {
        if self.end - self.begin >= len {
            return Ok(());
        }
        self.buffer.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        while self.end < len {
            match self.from.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.end += read,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the manager sent {what}"))
}

fn parse(kind: u8, body: &[u8]) -> io::Result<Said<'_>> {
    let cut = || malformed("a frame that is cut or too long");
    let number = |at: usize| {
        let bytes = body.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_le_bytes).ok_or_else(cut)
    };
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| malformed("a text that is none"));
    match kind {
        1 => Ok(Said::Welcome { term: number(2)? }),
        2 => Ok(Said::Ready { lease_every_ns: number(0)? }),
        3 => Ok(Said::Committed { count: number(0)? }),
        4 => Ok(Said::Lease { number: number(0)?, span_ns: number(8)? }),
        5 => Ok(Said::Fenced { term: number(0)?, by: text(&body[8..])? }),
        6 => Ok(Said::Refused { why: text(body)? }),
        PUT | STORE => {
            let ([name_len, key_len @ ..], rest) = body.split_first_chunk::<5>().ok_or_else(cut)?;
            let (name, rest) = rest.split_at_checked((*name_len).into()).ok_or_else(cut)?;
            let key_len = u32::from_le_bytes(*key_len) as usize;
            let (key, value) = rest.split_at_checked(key_len).ok_or_else(cut)?;
            let name = text(name)?;
            Ok(if kind == PUT { Said::Put { name, key, value } } else { Said::Store { name, value } })
        }
        _ => Err(malformed("a frame of a kind that is not known here")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.0.len().min(buffer.len()).min(1);
            let (now, later) = self.0.split_at(len);
            buffer[..len].copy_from_slice(now);
            self.0 = later;
            Ok(len)
        }
    }

    #[test]
    fn frames_are_read_whatever_the_pieces_they_come_in() {
        let mut bytes = Vec::new();
        append(&mut bytes, 3, &[&7_u64.to_le_bytes()]);
        Change::Put { name: "m", key: b"k", value: &[9; 100_000] }.append(&mut bytes);
        append(&mut bytes, 5, &[&2_u64.to_le_bytes(), b"b"]);
        fn check<R: Read>(mut reader: Reader<R>) {
            assert_eq!(reader.next().unwrap(), Said::Committed { count: 7 });
            assert_eq!(reader.next().unwrap(), Said::Put { name: "m", key: b"k", value: &[9; 100_000] });
            assert_eq!(reader.next().unwrap(), Said::Fenced { term: 2, by: "b" });
            assert_eq!(reader.next().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
        check(Reader::new(Slow(&bytes)));
        check(Reader::new(bytes.as_slice()));
    }

    #[test]
    fn a_manager_that_speaks_nonsense_is_an_error_and_no_panic() {
        for bytes in [&[0, 0, 0, 0][..], &[255; 8], &[1, 0, 0, 0, 3], &[2, 0, 0, 0, 16, 1], &[1, 0, 0, 0, 99]]
        {
            let why = Reader::new(bytes).next().unwrap_err();
            assert_eq!(why.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
