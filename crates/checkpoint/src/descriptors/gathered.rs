//! What is known of a stream of bytes, by their numbers: it comes in pieces, while the kernel cuts and joins the buffers
//! that hold it. Which byte has which number never changes.

use image::{Range, RangeSet};

#[derive(Debug)]
pub(super) struct Gathered {
    /// The number of the first byte that can be known.
    base: u32,
    bytes: Vec<u8>,
    known: RangeSet,
}

impl Gathered {
    pub(super) fn beginning_at(base: u32) -> Self {
        Self { base, bytes: Vec::new(), known: RangeSet::default() }
    }

    /// The bytes from number `first` on. What lies before the beginning is of no use.
    pub(super) fn put(&mut self, first: u32, bytes: &[u8]) {
        let skip = (self.base.wrapping_sub(first) as i32).max(0) as usize;
        let bytes = bytes.get(skip..).unwrap_or_default();
        let start = self.place(first.wrapping_add(skip as u32));
        let end = start + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[start..end].copy_from_slice(bytes);
        self.known.insert(Range::new(start as u64, end as u64));
    }

    /// Whether nothing of it has to be asked for.
    pub(super) fn has(&self, first: u32, len: usize) -> bool {
        let skip = (self.base.wrapping_sub(first) as i32).max(0) as usize;
        self.read(first.wrapping_add(skip as u32), len.saturating_sub(skip)).is_some()
    }

    /// The `len` bytes from number `first` on, if all are known.
    pub(super) fn read(&self, first: u32, len: usize) -> Option<&[u8]> {
        let start = self.place(first);
        let wanted = Range::new(start as u64, (start + len) as u64);
        let known = len == 0 || self.known.within(wanted) == [wanted];
        self.bytes.get(start..start + len).filter(|_| known)
    }

    fn place(&self, number: u32) -> usize {
        number.wrapping_sub(self.base) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_together_around_where_numbers_begin_again() {
        const BASE: u32 = u32::MAX - 2;
        let at = |skip: i32| BASE.wrapping_add_signed(skip);
        let mut gathered = Gathered::beginning_at(BASE);
        gathered.put(at(-3), b"...abc");
        gathered.put(at(5), b"fgh");
        assert_eq!(gathered.read(at(0), 3), Some(&b"abc"[..]));
        assert_eq!(gathered.read(at(0), 8), None, "the middle lacks");
        assert!(gathered.has(at(-2), 5) && gathered.has(at(6), 2));
        assert!(!gathered.has(at(2), 2) && !gathered.has(at(7), 2));
        gathered.put(at(2), b"cdef");
        assert_eq!(gathered.read(at(1), 7), Some(&b"bcdefgh"[..]));
        assert_eq!(gathered.read(at(8), 0), Some(&b""[..]));
        assert_eq!(gathered.read(at(8), 1), None);
    }
}
