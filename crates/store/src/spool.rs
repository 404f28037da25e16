//! Pages that wait for the store, in a file without a name: it goes with us, and the kernel writes it back when memory
//! is short.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::StoreError;
use crate::pages::{PAGE, Piece, line_places};

#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    /// Slots of pages that were dropped.
    free: Vec<u32>,
    next: u32,
}

/// A page in the spool, and which of its lines count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    slot: u32,
    lines: u64,
}

impl Spool {
    pub(crate) fn new(dir: &Path) -> Result<Self, StoreError> {
        let file = tempfile::tempfile_in(dir).map_err(failed("make a file for"))?;
        Ok(Self { file, free: Vec::new(), next: 0 })
    }

    /// Writes a piece over what `old` has of the same page.
    pub(crate) fn put(&mut self, piece: &Piece, old: Option<Slot>) -> Result<Slot, StoreError> {
        let slot = match old {
            Some(old) => old.slot,
            None => self.take_slot()?,
        };
        let at = u64::from(slot) * PAGE as u64;
        match piece {
            Piece::Whole(page) => self.file.write_all_at(page, at).map_err(failed("write"))?,
            Piece::Lines { lines, page } => {
                for line in line_places(*lines) {
                    let line_at = at + line.start as u64;
                    self.file.write_all_at(&page[line], line_at).map_err(failed("write"))?;
                }
            }
        }
        Ok(Slot { slot, lines: piece.lines() | old.map_or(0, |old| old.lines) })
    }

    pub(crate) fn get(&self, Slot { slot, lines }: Slot) -> Result<Piece, StoreError> {
        let mut page = vec![0; PAGE];
        let at = u64::from(slot) * PAGE as u64;
        let mut have = 0;
        // The last page of the file may end after its last line that counts.
        while have < PAGE {
            match self.file.read_at(&mut page[have..], at + have as u64) {
                Ok(0) => break,
                Ok(read) => have += read,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => (),
                Err(why) => return Err(failed("read")(why)),
            }
        }
        Ok(if lines == u64::MAX { Piece::Whole(page) } else { Piece::Lines { lines, page } })
    }

    /// Clears a page from `from` on.
    pub(crate) fn zero(&self, Slot { slot, .. }: Slot, from: usize) -> Result<(), StoreError> {
        let at = u64::from(slot) * PAGE as u64 + from as u64;
        self.file.write_all_at(&[0; PAGE][from..], at).map_err(failed("write"))
    }

    pub(crate) fn drop_page(&mut self, slot: Slot) {
        self.free.push(slot.slot);
    }

    fn take_slot(&mut self) -> Result<u32, StoreError> {
        if let Some(slot) = self.free.pop() {
            return Ok(slot);
        }
        let slot = self.next;
        self.next = slot.checked_add(1).ok_or_else(|| failed("number")(io::ErrorKind::StorageFull.into()))?;
        Ok(slot)
    }
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Spool { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_got_and_lines_go_over_pages() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path()).unwrap();
        let first = spool.put(&Piece::Lines { lines: 1, page: vec![7; PAGE] }, None).unwrap();
        let whole = spool.put(&Piece::Whole(vec![1; PAGE]), None).unwrap();
        let over = spool.put(&Piece::Lines { lines: 2, page: vec![2; PAGE] }, Some(whole)).unwrap();
        let Piece::Whole(page) = spool.get(over).unwrap() else { panic!("a page stays one") };
        assert_eq!((page[0], page[64], page[128]), (1, 2, 1));
        let Piece::Lines { lines: 1, page } = spool.get(first).unwrap() else { panic!("lines stay lines") };
        assert_eq!(&page[..64], &[7; 64]);
        spool.drop_page(first);
        let again = spool.put(&Piece::Whole(vec![9; PAGE]), None).unwrap();
        assert_eq!(again.slot, first.slot, "a dropped page's place is used again");
    }
}
