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
        let (skipped, start) = self.clip(first);
        let bytes = bytes.get(skipped..).unwrap_or_default();
        let end = start + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[start..end].copy_from_slice(bytes);
        self.known.insert(Range::new(start as u64, end as u64));
    }

    /// Whether nothing of it has to be asked for.
    pub(super) fn has(&self, first: u32, len: usize) -> bool {
        let (skipped, start) = self.clip(first);
        self.knows(start, len.saturating_sub(skipped))
    }

    /// Takes the `len` bytes from number `first` on out of it, if all are known: nothing is known after that.
    pub(super) fn take(&mut self, first: u32, len: usize) -> Option<Vec<u8>> {
        let (skipped, start) = self.clip(first);
        if skipped > 0 || !self.knows(start, len) {
            return None;
        }
        self.known = RangeSet::default();
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.truncate(start + len);
        bytes.drain(..start.min(bytes.len()));
        Some(bytes)
    }

    fn knows(&self, start: usize, len: usize) -> bool {
        let wanted = Range::new(start as u64, (start + len) as u64);
        len == 0 || self.known.within(wanted) == [wanted]
    }

    /// How many bytes from number `first` on lie before the beginning, and where the others begin.
    fn clip(&self, first: u32) -> (usize, usize) {
        let skipped = (self.base.wrapping_sub(first) as i32).max(0) as u32;
        (skipped as usize, first.wrapping_add(skipped).wrapping_sub(self.base) as usize)
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
        assert_eq!(gathered.take(at(0), 8), None, "the middle lacks");
        assert_eq!(gathered.take(at(-1), 4), None, "it is from before the beginning");
        assert_eq!(gathered.take(at(6), 3), None, "the end lacks");
        assert!(gathered.has(at(-2), 5) && gathered.has(at(6), 2));
        assert!(!gathered.has(at(2), 2) && !gathered.has(at(7), 2));
        gathered.put(at(2), b"cdef");
        assert_eq!(gathered.take(at(8), 1), None);
        assert_eq!(gathered.take(at(1), 6).as_deref(), Some(&b"bcdefg"[..]));
        assert_eq!(gathered.take(at(1), 1), None, "it was taken");
        assert_eq!(gathered.take(at(8), 0).as_deref(), Some(&b""[..]));
    }
}
