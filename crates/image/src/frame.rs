//! Frames: what an epoch is made of on the wire, in a directory and in the store.
//!
//! ```text
//! 0        4     6        8           16        20        24
//! | "CSF1" | kind| version| sequence  | length  | crc32   | payload ...
//! ```
//!
//! All numbers are little-endian. The checksum covers the 20 bytes before it and the payload. `sequence`
//! counts the frames of an epoch from zero, so that a lost, repeated or reordered frame is seen; the end
//! frame repeats the count.

use std::io::{self, Read, Write};

use bytes::{BufMut, Bytes, BytesMut};
use cbor4ii::core::dec::Read as _;
use cbor4ii::core::utils::SliceReader;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub const MAGIC: [u8; 4] = *b"CSF1";
pub const VERSION: u16 = 1;
pub const HEADER_BYTES: usize = 24;
/// No frame is longer: a receiver never has to hold more than this before it has verified it.
pub const PAYLOAD_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum FrameKind {
    /// [`crate::Header`]; always first.
    Header = 1,
    /// [`crate::layout::LayoutPart`]: the mappings of one address space from here on.
    Layout = 2,
    /// [`crate::PageBatch`].
    Pages = 3,
    /// A slice of the encoded [`crate::state::State`]; slices join in order.
    State = 4,
    /// [`End`]; always last.
    End = 5,
    /// [`crate::FileChanges`], or a part of them.
    Files = 6,
    /// [`crate::Shipped`]: content of files that the receiver has asked for.
    Shipped = 7,
    /// A slice of an encoded [`crate::StateChange`], in the place of a state.
    StateChange = 8,
}

impl FrameKind {
    fn from_wire(kind: u16) -> Result<Self, FrameError> {
        Ok(match kind {
            1 => Self::Header,
            2 => Self::Layout,
            3 => Self::Pages,
            4 => Self::State,
            5 => Self::End,
            6 => Self::Files,
            7 => Self::Shipped,
            8 => Self::StateChange,
            kind => return Err(FrameError::Kind(kind)),
        })
    }
}

/// The last frame: an epoch without it was cut off and must not be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct End {
    /// Frames before this one.
    pub frames: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("not a checkpoint frame: it starts with {0:02x?} instead of \"CSF1\"")]
    Magic([u8; 4]),
    #[error("frame version {0} is not known here, only {VERSION}; run the same release on both sides")]
    Version(u16),
    #[error("frame kind {0} is not known")]
    Kind(u16),
    #[error("frame of {0} bytes is longer than the {PAYLOAD_BYTES_MAX} that any frame may have")]
    Length(u64),
    #[error("frame is cut off: {have} of {want} bytes")]
    CutOff { have: usize, want: usize },
    #[error("checksum of frame {sequence} is wrong: its content was damaged on the way")]
    Checksum { sequence: u64 },
    #[error("frame {found} came where frame {expected} was due: the stream is out of order")]
    Order { expected: u64, found: u64 },
    #[error("frame {0:?} does not belong at this place of an epoch")]
    Place(FrameKind),
    #[error("cannot decode a {what}: {why}")]
    Decode { what: &'static str, why: String },
    #[error("cannot read a frame")]
    Io(#[from] io::Error),
}

/// One verified frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: FrameKind,
    pub sequence: u64,
    pub payload: Bytes,
}

impl Frame {
    /// Encodes `payload` as frame number `sequence`.
    ///
    /// # Panics
    /// If the payload is longer than [`PAYLOAD_BYTES_MAX`]: the sender cuts its batches, so that is our bug.
    pub fn encode(kind: FrameKind, sequence: u64, payload: &[u8]) -> Bytes {
        assert!(payload.len() <= PAYLOAD_BYTES_MAX, "frame of {} bytes", payload.len());
        let mut out = BytesMut::with_capacity(HEADER_BYTES + payload.len());
        out.put_slice(&MAGIC);
        out.put_u16_le(kind as u16);
        out.put_u16_le(VERSION);
        out.put_u64_le(sequence);
        out.put_u32_le(payload.len() as u32);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&out);
        crc.update(payload);
        out.put_u32_le(crc.finalize());
        out.put_slice(payload);
        out.freeze()
    }

    /// Parses exactly one frame; the checksum is verified before the payload is handed out.
    pub fn parse(bytes: Bytes) -> Result<Self, FrameError> {
        let prefix = Prefix::parse(&bytes)?;
        let want = HEADER_BYTES + prefix.length;
        if bytes.len() != want {
            return Err(FrameError::CutOff { have: bytes.len(), want });
        }
        let payload = bytes.slice(HEADER_BYTES..);
        prefix.verify(&bytes[..HEADER_BYTES - 4], &payload)?;
        Ok(Self { kind: prefix.kind, sequence: prefix.sequence, payload })
    }

    /// Reads one frame from a file. `Ok(None)` at a clean end.
    pub fn read(from: &mut impl Read) -> Result<Option<Self>, FrameError> {
        let mut head = [0; HEADER_BYTES];
        let have = read_up_to(from, &mut head)?;
        if have == 0 {
            return Ok(None);
        }
        let prefix = Prefix::parse(&head[..have])?;
        let mut payload = vec![0; prefix.length];
        let have = read_up_to(from, &mut payload)?;
        if have != prefix.length {
            return Err(FrameError::CutOff { have, want: prefix.length });
        }
        prefix.verify(&head[..HEADER_BYTES - 4], &payload)?;
        Ok(Some(Self { kind: prefix.kind, sequence: prefix.sequence, payload: payload.into() }))
    }

    /// Decodes the payload of a frame that carries CBOR.
    pub fn decode<T: DeserializeOwned>(&self, what: &'static str) -> Result<T, FrameError> {
        decode(&self.payload, what)
    }
}

struct Prefix {
    kind: FrameKind,
    sequence: u64,
    length: usize,
    crc: u32,
}

impl Prefix {
    fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() < HEADER_BYTES {
            return Err(FrameError::CutOff { have: bytes.len(), want: HEADER_BYTES });
        }
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"));
        if bytes[..4] != MAGIC {
            return Err(FrameError::Magic(bytes[..4].try_into().expect("four bytes")));
        }
        if half(6) != VERSION {
            return Err(FrameError::Version(half(6)));
        }
        let length = word(16) as usize;
        if length > PAYLOAD_BYTES_MAX {
            return Err(FrameError::Length(length as u64));
        }
        let sequence = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
        Ok(Self { kind: FrameKind::from_wire(half(4))?, sequence, length, crc: word(20) })
    }

    fn verify(&self, head: &[u8], payload: &[u8]) -> Result<(), FrameError> {
        let mut crc = crc32fast::Hasher::new();
        crc.update(head);
        crc.update(payload);
        if crc.finalize() == self.crc {
            Ok(())
        } else {
            Err(FrameError::Checksum { sequence: self.sequence })
        }
    }
}

/// Encodes `value` as CBOR. Our own types always encode.
pub fn encode(value: &impl Serialize) -> Vec<u8> {
    cbor4ii::serde::to_vec(Vec::new(), value).expect("encoding into memory cannot fail")
}

/// Decodes one CBOR value that fills `bytes` whole; the reader bounds its nesting.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, FrameError> {
    let mut from = cbor4ii::serde::Deserializer::new(SliceReader::new(bytes));
    let value = T::deserialize(&mut from).map_err(|why| FrameError::Decode { what, why: why.to_string() })?;
    let mut rest = from.into_inner();
    let Ok(after) = rest.fill(1);
    if after.as_ref().is_empty() {
        Ok(value)
    } else {
        Err(FrameError::Decode { what, why: "something is left over after it".to_owned() })
    }
}

/// Numbers frames as they are made: the sending half of one epoch.
#[derive(Debug, Default)]
pub struct FrameWriter {
    next: u64,
}

impl FrameWriter {
    pub fn frame(&mut self, kind: FrameKind, payload: &[u8]) -> Bytes {
        let sequence = self.next;
        self.next += 1;
        Frame::encode(kind, sequence, payload)
    }

    pub fn cbor(&mut self, kind: FrameKind, value: &impl Serialize) -> Bytes {
        self.frame(kind, &encode(value))
    }

    /// Cuts an encoded state into frames: 10,000 descriptors or 20,000 mappings do not fit into one.
    pub fn state(&mut self, state: &crate::state::State) -> Vec<Bytes> {
        self.slices(FrameKind::State, &encode(state))
    }

    /// The frames of what became of a state.
    pub fn state_change(&mut self, change: &crate::StateChange) -> Vec<Bytes> {
        self.slices(FrameKind::StateChange, &encode(change))
    }

    fn slices(&mut self, kind: FrameKind, encoded: &[u8]) -> Vec<Bytes> {
        encoded.chunks(PAYLOAD_BYTES_MAX).map(|slice| self.frame(kind, slice)).collect()
    }

    /// The frames of changes of files.
    pub fn files(&mut self, changes: crate::FileChanges) -> Vec<Bytes> {
        changes.parts().iter().map(|part| self.cbor(FrameKind::Files, part)).collect()
    }

    /// The frames of a layout.
    pub fn layout(&mut self, layout: &crate::layout::Layout) -> Vec<Bytes> {
        layout.parts().iter().map(|part| self.cbor(FrameKind::Layout, part)).collect()
    }

    pub fn end(mut self) -> Bytes {
        let frames = self.next;
        self.cbor(FrameKind::End, &End { frames })
    }
}

/// Frames joined to as few pieces as there can be without one longer than `bytes_max`, but for a frame that is longer by
/// itself: what is small is sent at once, and wakes everybody on its way once.
pub fn join(frames: impl IntoIterator<Item = Bytes>, bytes_max: usize) -> Vec<Bytes> {
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut piece: Vec<Bytes> = Vec::new();
    let mut bytes = 0;
    for frame in frames {
        if !piece.is_empty() && bytes + frame.len() > bytes_max {
            pieces.push(concat(std::mem::take(&mut piece), bytes));
            bytes = 0;
        }
        bytes += frame.len();
        piece.push(frame);
    }
    if !piece.is_empty() {
        pieces.push(concat(piece, bytes));
    }
    pieces
}

fn concat(mut frames: Vec<Bytes>, bytes: usize) -> Bytes {
    if frames.len() == 1 {
        return frames.remove(0);
    }
    let mut out = BytesMut::with_capacity(bytes);
    frames.iter().for_each(|frame| out.put_slice(frame));
    out.freeze()
}

/// The frames that were joined. What is none is the last, nothing at all too, and [`Frame::parse`] will say what is wrong
/// with it.
pub fn split(joined: Bytes) -> impl Iterator<Item = Bytes> {
    let mut rest = Some(joined);
    std::iter::from_fn(move || {
        let mut first = rest.take()?;
        let len = Prefix::parse(&first).map_or(first.len(), |prefix| HEADER_BYTES + prefix.length);
        let after = first.split_off(len.min(first.len()));
        rest = Some(after).filter(|after| !after.is_empty());
        Some(first)
    })
}

/// Checks that frames come in order and whole: the receiving half of one epoch.
#[derive(Debug, Default)]
pub struct FrameOrder {
    next: u64,
    ended: bool,
}

impl FrameOrder {
    /// Accepts the next frame or names what is wrong with its place.
    pub fn accept(&mut self, frame: &Frame) -> Result<(), FrameError> {
        let header_due = self.next == 0;
        if self.ended || header_due != (frame.kind == FrameKind::Header) {
            return Err(FrameError::Place(frame.kind));
        }
        if frame.sequence != self.next {
            return Err(FrameError::Order { expected: self.next, found: frame.sequence });
        }
        if frame.kind == FrameKind::End {
            let End { frames } = frame.decode("end of an epoch")?;
            if frames != self.next {
                return Err(FrameError::Order { expected: self.next, found: frames });
            }
            self.ended = true;
        }
        self.next += 1;
        Ok(())
    }

    pub fn ended(&self) -> bool {
        self.ended
    }
}

/// Writes ready frames to a file.
pub fn write_all(to: &mut impl Write, frames: impl IntoIterator<Item = Bytes>) -> io::Result<()> {
    frames.into_iter().try_for_each(|frame| to.write_all(&frame))
}

fn read_up_to(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < into.len() {
        match from.read(&mut into[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => (),
            Err(why) => return Err(why),
        }
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Bytes {
        Frame::encode(FrameKind::Pages, 7, b"some pages")
    }

    #[test]
    fn frame_survives_encoding_and_parsing() {
        let frame = Frame::parse(sample()).unwrap();
        assert_eq!(frame, Frame { kind: FrameKind::Pages, sequence: 7, payload: "some pages".into() });
        assert_eq!(Frame::read(&mut &sample()[..]).unwrap(), Some(frame));
    }

    #[test]
    fn every_flipped_bit_is_an_error() {
        let good = sample();
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::parse(bad.into()).is_err(), "bit {bit} flipped unseen");
        }
    }

    #[test]
    fn every_cut_is_an_error() {
        let good = sample();
        for len in 0..good.len() {
            assert!(Frame::parse(good.slice(..len)).is_err(), "cut at {len} unseen");
        }
    }

    #[test]
    fn lost_repeated_and_reordered_frames_are_seen() {
        let mut writer = FrameWriter::default();
        let frames: Vec<_> = [FrameKind::Header, FrameKind::Pages, FrameKind::State]
            .map(|kind| writer.frame(kind, b""))
            .into_iter()
            .chain([writer.end()])
            .map(|bytes| Frame::parse(bytes).unwrap())
            .collect();
        let play = |picks: &[usize]| {
            let mut order = FrameOrder::default();
            picks.iter().all(|&pick| order.accept(&frames[pick]).is_ok()) && order.ended()
        };
        assert!(play(&[0, 1, 2, 3]));
        for bad in [&[0, 1, 2][..], &[0, 2, 3], &[0, 1, 1, 2, 3], &[0, 2, 1, 3], &[1, 2, 3], &[0, 0, 1, 2, 3]]
        {
            assert!(!play(bad), "{bad:?} was accepted");
        }
    }

    #[test]
    fn joined_frames_come_apart_as_they_were() {
        let frames: Vec<Bytes> =
            [3, 0, 500, 90, 7].map(|len| Frame::encode(FrameKind::Pages, len, &vec![1; len as usize])).into();
        for bytes_max in [0, 60, 200, 1 << 20] {
            let joined = join(frames.clone(), bytes_max);
            let apart: Vec<Bytes> = joined.iter().cloned().flat_map(split).collect();
            assert_eq!(apart, frames, "joined to at most {bytes_max}");
            assert!(joined.iter().all(|piece| piece.len() <= bytes_max || split(piece.clone()).count() == 1));
        }
        assert_eq!(join(frames, 1 << 20).len(), 1);
    }

    #[test]
    fn what_is_joined_and_damaged_ends_in_an_error() {
        let joined = join([sample(), sample()], 1 << 20).remove(0);
        for len in 0..joined.len() {
            let apart: Vec<_> = split(joined.slice(..len)).map(Frame::parse).collect();
            assert!(apart.iter().filter(|frame| frame.is_ok()).count() <= len / sample().len());
            let whole = len == sample().len();
            assert_eq!(apart.iter().all(Result::is_ok), whole, "cut at {len}");
        }
        assert!(
            split(Bytes::from_static(b"no frame at all, but longer than a header"))
                .map(Frame::parse)
                .all(|it| it.is_err())
        );
    }

    #[test]
    fn what_follows_a_value_is_an_error() {
        let mut bytes = encode(&End { frames: 3 });
        assert!(decode::<End>(&bytes, "end").is_ok());
        bytes.push(0);
        assert!(decode::<End>(&bytes, "end").is_err(), "a byte too many was taken");
    }

    #[test]
    fn endless_nesting_is_an_error() {
        const ARRAY_OF_ONE: u8 = 0x81;
        let unknown_field = [&[0xa2, 0x61, b'x'][..], &[ARRAY_OF_ONE; 1 << 20]].concat();
        assert!(decode::<End>(&unknown_field, "end").is_err());
        assert!(decode::<Vec<crate::state::State>>(&[ARRAY_OF_ONE; 1 << 20], "states").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_error_and_no_panic(bytes: Vec<u8>) {
            let _ = Frame::parse(bytes.clone().into());
            let _ = decode::<crate::state::State>(&bytes, "state");
            let _ = decode::<crate::layout::LayoutPart>(&bytes, "layout");
            let _ = decode::<crate::FileChanges>(&bytes, "changes of files");
            let _ = decode::<crate::Shipped>(&bytes, "content of a file");
        }
    }
}
