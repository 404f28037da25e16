//! One change of one structure.
//!
//! ```text
//! kind 16 Put, 17 Delete, 18 Store │ name_len u8 │ key_len u32 │ name │ key │ value
//! ```
//!
//! `Delete` has no value and `Store` no key.

use crate::frame::{self, Frame};
use crate::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// What stands before the name in a change's body.
pub(crate) const HEAD_BYTES: usize = 5;

const PUT: u8 = 16;
const DELETE: u8 = 17;
const STORE: u8 = 18;

/// What is there afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// The map `name` has `value` at `key`.
    Put { name: &'a [u8], key: &'a [u8], value: &'a [u8] },
    /// The map `name` has nothing at `key`.
    Delete { name: &'a [u8], key: &'a [u8] },
    /// The value `name` is `value`.
    Store { name: &'a [u8], value: &'a [u8] },
}

/// What can't be understood, whoever sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("a frame of {0} bytes, which none has")]
    Length(usize),
    #[error("a frame of kind {0}, which is not known here")]
    Kind(u8),
    #[error("a frame of kind {0} whose body is cut or too long")]
    Body(u8),
    #[error("a key of {0} bytes; at most {KEY_BYTES_MAX} are taken")]
    Key(usize),
    #[error("a value of {0} bytes; at most {VALUE_BYTES_MAX} are taken")]
    Value(usize),
    #[error("protocol version {theirs}; this manager speaks {}", crate::PROTOCOL_VERSION)]
    Version { theirs: u16 },
    #[error("a frame that was cut off by the end of its epoch")]
    CutOff,
}

impl<'a> Change<'a> {
    pub fn is_kind(kind: u8) -> bool {
        (PUT..=STORE).contains(&kind)
    }

    pub fn parse(frame: Frame<'a>) -> Result<Self, Malformed> {
        let Frame { kind, body } = frame;
        if !Self::is_kind(kind) {
            return Err(Malformed::Kind(kind));
        }
        let (head, rest) = body.split_first_chunk::<HEAD_BYTES>().ok_or(Malformed::Body(kind))?;
        let [name_len, key_len @ ..] = *head;
        let key_len = u32::from_le_bytes(key_len) as usize;
        if key_len > KEY_BYTES_MAX {
            return Err(Malformed::Key(key_len));
        }
        let (name, rest) = rest.split_at_checked(name_len.into()).ok_or(Malformed::Body(kind))?;
        let (key, value) = rest.split_at_checked(key_len).ok_or(Malformed::Body(kind))?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(Malformed::Value(value.len()));
        }
        match kind {
            PUT => Ok(Self::Put { name, key, value }),
            DELETE if value.is_empty() => Ok(Self::Delete { name, key }),
            STORE if key.is_empty() => Ok(Self::Store { name, value }),
            _ => Err(Malformed::Body(kind)),
        }
    }

    /// Appends its frame.
    ///
    /// # Panics
    /// If a name, key or value is longer than any that [`Change::parse`] takes.
    pub fn append(&self, out: &mut Vec<u8>) {
        let (kind, name, key, value): (_, _, &[u8], &[u8]) = match *self {
            Self::Put { name, key, value } => (PUT, name, key, value),
            Self::Delete { name, key } => (DELETE, name, key, b""),
            Self::Store { name, value } => (STORE, name, b"", value),
        };
        let name_len = u8::try_from(name.len()).expect("a name's length has one byte");
        assert!(
            key.len() <= KEY_BYTES_MAX && value.len() <= VALUE_BYTES_MAX,
            "a change that none would take"
        );
        frame::append(out, kind, &[&[name_len], &(key.len() as u32).to_le_bytes(), name, key, value]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Frames;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..40)
    }

    proptest! {
        #[test]
        fn a_change_survives_its_encoding(kind in 0..3_u8, name in bytes(), key in bytes(), value in bytes()) {
            let change = match kind {
                0 => Change::Put { name: &name, key: &key, value: &value },
                1 => Change::Delete { name: &name, key: &key },
                _ => Change::Store { name: &name, value: &value },
            };
            let mut frame = Vec::new();
            change.append(&mut frame);
            let taken = Frames::of(&frame).take().unwrap().unwrap();
            prop_assert_eq!(Change::parse(taken), Ok(change));
        }

        #[test]
        fn no_bytes_make_it_panic(kind in any::<u8>(), body in bytes()) {
            let _ = Change::parse(Frame { kind, body: &body });
        }
    }

    #[test]
    fn a_key_that_is_too_long_is_refused_by_its_length() {
        let mut body = vec![0];
        body.extend_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Change::parse(Frame { kind: PUT, body: &body }), Err(Malformed::Key(u32::MAX as usize)));
    }
}
