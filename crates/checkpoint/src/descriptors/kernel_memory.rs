//! The kernel's memory, and which part of it a page is.
//!
//! The kernel speaks of pages by their number (`struct page`), and sees all of them in a row from an address that it
//! draws at boot; so do the numbers begin at one, and it tells neither. Both are found with pages of our own, whose
//! content, frame and `struct page` are known, and are right for these pages or not used at all.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::MemfdFlags;
use sys::mapping::SharedMapping;
use sys::peek::{PIECE_BYTES_MAX, Peek, Piece};

use crate::process::layout::Filled;
use crate::process::types::Types;

const PAGE_BYTES: u64 = 4096;
/// Both addresses are multiples of this.
const STEP_BYTES: u64 = 1 << 30;

#[derive(Debug)]
pub(super) struct KernelMemory {
    peek: Peek,
    /// Where the first page of the machine lies.
    pages_start: u64,
    /// Where the first page's `struct page` lies, and how long each is.
    numbers_start: u64,
    number_bytes: u64,
    pieces: Vec<Piece>,
}

fn unknown(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("this kernel's {what} cannot be found"))
}

impl KernelMemory {
    pub(super) fn new(types: &Types) -> io::Result<Self> {
        let peek = Peek::new()
            .map_err(|why| io::Error::new(why.source.kind(), format!("{}: {}", why.source, why.log)))?;
        let number_bytes = types.size("page").ok_or_else(|| unknown("page"))?.into();
        let (pages_start, numbers_start) = (0, 0);
        let mut memory = Self { peek, pages_start, numbers_start, number_bytes, pieces: Vec::new() };
        let (one, other) = (Known::make()?, Known::make()?);
        memory.pages_start = memory.find_pages(&one)?;
        let places = OfFiles::of(types).ok_or_else(|| unknown("table of files"))?;
        let [first, second] = [&one, &other].map(|known| memory.number_of(known, &places));
        memory.numbers_start = first?.wrapping_sub(one.frame * memory.number_bytes);
        let proof = [memory.page(second?)?, memory.pages_start + other.frame * PAGE_BYTES];
        match proof[0] == proof[1] && memory.has(proof[0], &other.content)? {
            true => Ok(memory),
            false => Err(unknown("numbers of pages")),
        }
    }

    /// The bytes there, appended to `into`. An error if one of them cannot be read.
    pub(super) fn read(&mut self, all: &[(u64, usize)], into: &mut Vec<u8>) -> io::Result<()> {
        self.pieces.clear();
        for &(address, len) in all {
            self.pieces.extend((0..len).step_by(PIECE_BYTES_MAX).map(|skip| Piece {
                address: address.wrapping_add(skip as u64),
                len: (len - skip).min(PIECE_BYTES_MAX),
            }));
        }
        self.peek.read(&self.pieces, into)
    }

    /// Where the page with this `struct page` lies.
    pub(super) fn page(&self, number: u64) -> io::Result<u64> {
        let skip = number.wrapping_sub(self.numbers_start);
        match skip % self.number_bytes {
            0 => Ok(self.pages_start.wrapping_add(skip / self.number_bytes * PAGE_BYTES)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no page of this machine")),
        }
    }

    /// The host's monotonic clock at the last reading.
    pub(super) fn clock_ns(&self) -> u64 {
        self.peek.clock_ns()
    }

    fn word(&mut self, address: u64) -> io::Result<u64> {
        let mut bytes = Vec::new();
        self.read(&[(address, 8)], &mut bytes)?;
        Ok(Filled(&bytes).u64(0))
    }

    fn has(&mut self, address: u64, content: &[u8]) -> io::Result<bool> {
        let mut bytes = Vec::new();
        self.read(&[(address, content.len())], &mut bytes)?;
        Ok(bytes == content)
    }

    /// Our own thread lies somewhere in the row of pages: it begins some steps below.
    fn find_pages(&mut self, known: &Known) -> io::Result<u64> {
        const STEPS_MAX: u64 = 1 << 12;
        let own = self.peek.own_task()?;
        let below = |step: u64| (own & !(STEP_BYTES - 1)).wrapping_sub(step * STEP_BYTES);
        let mut candidates = (0..STEPS_MAX).map(below);
        let is_it = |start: &u64| {
            self.has(start.wrapping_add(known.frame * PAGE_BYTES), &known.content).unwrap_or(false)
        };
        candidates.find(is_it).ok_or_else(|| unknown("memory"))
    }

    /// The `struct page` of a file that has one page.
    fn number_of(&mut self, known: &Known, places: &OfFiles) -> io::Result<u64> {
        let own = self.peek.own_task()?;
        let table = self.word(own + places.task_files)?;
        let table = self.word(table + places.files_table)?;
        let files = self.word(table + places.table_files)?;
        let file = self.word(files + 8 * known.file.as_raw_fd() as u64)?;
        let pages = self.word(file + places.file_mapping)?;
        self.word(pages + places.mapping_pages)
    }
}

/// A file of one page, with its frame.
#[derive(Debug)]
struct Known {
    file: OwnedFd,
    _mapping: SharedMapping,
    frame: u64,
    content: Vec<u8>,
}

impl Known {
    fn make() -> io::Result<Self> {
        const FRAME: u64 = (1 << 55) - 1;
        let file = rustix::fs::memfd_create("checksync-known", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, PAGE_BYTES)?;
        let lots = RandomState::new();
        let content: Vec<u8> = (0..8).flat_map(|n: u64| lots.hash_one(n).to_ne_bytes()).collect();
        let mut mapping = SharedMapping::new(&file, PAGE_BYTES as usize)?;
        mapping.write(0, &content);
        let mut entry = [0; 8];
        let frames = File::open("/proc/self/pagemap")?;
        frames.read_exact_at(&mut entry, mapping.address() / PAGE_BYTES * 8)?;
        match u64::from_ne_bytes(entry) & FRAME {
            0 => {
                Err(io::Error::new(io::ErrorKind::PermissionDenied, "frames are told to CAP_SYS_ADMIN only"))
            }
            frame => Ok(Self { file, _mapping: mapping, frame, content }),
        }
    }
}

/// The way from a thread to the pages of a file.
#[derive(Debug)]
struct OfFiles {
    task_files: u64,
    files_table: u64,
    table_files: u64,
    file_mapping: u64,
    mapping_pages: u64,
}

impl OfFiles {
    fn of(types: &Types) -> Option<Self> {
        let at = |structure, member| types.offset(structure, member).map(u64::from);
        Some(Self {
            task_files: at("task_struct", "files")?,
            files_table: at("files_struct", "fdt")?,
            table_files: at("fdtable", "fd")?,
            file_mapping: at("file", "f_mapping")?,
            // With one entry, the first, the head is the entry.
            mapping_pages: at("address_space", "i_pages")? + at("xarray", "xa_head")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root, as the manager does.
    #[test]
    fn pages_are_found_by_their_numbers() {
        let types = Types::of_kernel().unwrap();
        let mut memory = KernelMemory::new(&types).unwrap();
        let known = Known::make().unwrap();
        let number = memory.number_of(&known, &OfFiles::of(&types).unwrap()).unwrap();
        let page = memory.page(number).unwrap();
        assert!(memory.has(page, &known.content).unwrap());
        assert!(!memory.has(page + PAGE_BYTES, &known.content).unwrap_or(false));
        memory.page(number + 1).unwrap_err();
    }
}
