//! Frames: the length of what follows as 4 bytes, little-endian, then the kind as one, then the body.

use crate::change::{HEAD_BYTES, Malformed};
use crate::{KEY_BYTES_MAX, NAME_BYTES_MAX, VALUE_BYTES_MAX};

/// The longest frame, with its length: a change of the longest name, key and value.
pub const FRAME_BYTES_MAX: usize =
    LENGTH_BYTES + 1 + HEAD_BYTES + NAME_BYTES_MAX + KEY_BYTES_MAX + VALUE_BYTES_MAX;

const LENGTH_BYTES: usize = 4;

/// One frame of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: u8,
    pub body: &'a [u8],
}

/// The whole frames at the beginning of a buffer, one after the other.
#[derive(Debug)]
pub struct Frames<'a> {
    buffer: &'a [u8],
    taken: usize,
}

impl<'a> Frames<'a> {
    pub fn of(buffer: &'a [u8]) -> Self {
        Self { buffer, taken: 0 }
    }

    /// How many bytes the frames so far had. What follows is the beginning of another, or nothing.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Whether the buffer ends with the last frame that was taken.
    pub fn is_at_end(&self) -> bool {
        self.taken == self.buffer.len()
    }

    /// The next whole frame; `None` where more bytes are needed.
    pub fn take(&mut self) -> Result<Option<Frame<'a>>, Malformed> {
        let rest = &self.buffer[self.taken..];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || length > FRAME_BYTES_MAX - LENGTH_BYTES {
            return Err(Malformed::Length(length));
        }
        let Some((kind, body)) = rest.get(..length).and_then(<[u8]>::split_first) else { return Ok(None) };
        self.taken += LENGTH_BYTES + length;
        Ok(Some(Frame { kind: *kind, body }))
    }
}

/// Appends a frame whose body is these parts.
pub fn append(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    assert!(length <= FRAME_BYTES_MAX - LENGTH_BYTES, "a frame of {length} bytes");
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.push(kind);
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_and_half_a_frame_waits() {
        let mut buffer = Vec::new();
        append(&mut buffer, 7, &[b"ab", b"c"]);
        append(&mut buffer, 8, &[]);
        let whole = buffer.len();
        buffer.extend_from_slice(&[9, 0, 0, 0, 1]);
        let mut frames = Frames::of(&buffer);
        assert_eq!(frames.take(), Ok(Some(Frame { kind: 7, body: b"abc" })));
        assert_eq!(frames.take(), Ok(Some(Frame { kind: 8, body: b"" })));
        assert_eq!(frames.take(), Ok(None));
        assert_eq!((frames.taken(), frames.is_at_end()), (whole, false));
    }

    #[test]
    fn a_length_that_no_frame_has_is_refused_before_its_bytes_come() {
        for length in [0, FRAME_BYTES_MAX as u32, u32::MAX] {
            let buffer = length.to_le_bytes();
            assert_eq!(Frames::of(&buffer).take(), Err(Malformed::Length(length as usize)));
        }
    }
}
