//! Words in buffers that the kernel filled or is to read: always bounds-checked, never a cast.

/// Bytes that the kernel filled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filled<'a>(pub &'a [u8]);

impl Filled<'_> {
    fn take<const N: usize>(self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().expect("as many bytes as were asked for")
    }

    pub fn u16(self, at: usize) -> u16 {
        u16::from_ne_bytes(self.take(at))
    }

    pub fn u32(self, at: usize) -> u32 {
        u32::from_ne_bytes(self.take(at))
    }

    pub fn i32(self, at: usize) -> i32 {
        i32::from_ne_bytes(self.take(at))
    }

    pub fn u64(self, at: usize) -> u64 {
        u64::from_ne_bytes(self.take(at))
    }

    /// Up to the first zero, at most `len` bytes.
    pub fn string(self, at: usize, len: usize) -> Vec<u8> {
        let bytes = &self.0[at..at + len];
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(len);
        bytes[..end].to_vec()
    }
}

/// The bytes of a structure that is nothing but 64-bit words.
pub(super) fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A `timespec` or `timeval` pair of words as one number of its smaller unit.
pub(super) fn joined(seconds: u64, rest: u64, per_second: u64) -> u64 {
    seconds.saturating_mul(per_second).saturating_add(rest)
}
