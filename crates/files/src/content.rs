//! Which pages of a file are not what the standby has.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use image::{FileId, PAGE_BYTES, Range, RangeSet};
use rustix::fs::SeekFrom;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How much is read at once.
const STEP_BYTES: u64 = 256 << 10;
const PAGE: usize = PAGE_BYTES as usize;

/// Pages of one file, in order.
#[derive(Debug, PartialEq, Eq)]
pub struct Content {
    pub file: FileId,
    pub pieces: Vec<Piece>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Whole pages; what is beyond the file's end is zero.
    Data(u64, Vec<u8>),
    /// These read as zero.
    Zero(Range),
}

/// What the standby has of a file.
#[derive(Debug, Default)]
pub struct Pages {
    /// Of each page. N.B. not secret, but nobody outside can make two pages of one digest, as he does not know the seed.
    digests: Vec<u64>,
    /// What the standby was told. It has nothing behind this, whatever was read there of a file that grows meanwhile.
    size: u64,
    /// It is not known what the standby has there.
    unknown: RangeSet,
}

/// How pages are told from each other.
#[derive(Debug, Clone, Copy)]
pub struct Digester {
    seed: u64,
    zero: u64,
}

impl Digester {
    pub fn new(seed: u64) -> Self {
        Self { seed, zero: xxh3_64_with_seed(&[0; PAGE], seed) }
    }

    fn of(self, page: &[u8]) -> u64 {
        xxh3_64_with_seed(page, self.seed)
    }
}

impl Pages {
    /// Where the known pages end.
    pub fn end(&self) -> u64 {
        self.digests.len() as u64 * PAGE_BYTES
    }

    pub fn owe(&mut self, range: Range) {
        self.unknown.insert(range);
    }

    pub fn owes(&self) -> bool {
        self.unknown.iter().next().is_some()
    }

    /// The file has this size now, here and on the standby. Returns what it has lost.
    pub fn resize(&mut self, size: u64, digester: Digester) -> Range {
        let (old, new) = (self.end(), size.next_multiple_of(PAGE_BYTES));
        self.digests.resize((new / PAGE_BYTES) as usize, digester.zero);
        self.size = size;
        let lost = Range::new(new.min(old), old);
        if !lost.is_empty() && size < new {
            // The standby has cut it there, too, and what it has behind the cut is zero.
            self.unknown.insert(Range::new(new - PAGE_BYTES, new));
        }
        self.unknown.remove(Range::new(new, u64::MAX));
        lost
    }

    /// The pieces of `range` that the standby lacks. They count as known afterwards.
    pub fn compare(&mut self, file: &File, range: Range, digester: Digester) -> io::Result<Vec<Piece>> {
        let end = range.end.next_multiple_of(PAGE_BYTES).min(self.end());
        let start = range.start - range.start % PAGE_BYTES;
        let mut pieces = Pieces::default();
        let mut buffer = vec![0; STEP_BYTES as usize];
        let mut at = start;
        while at < end {
            let data = next_data(file, at, end)?;
            self.compare_hole(Range::new(at, data.start), digester, &mut pieces);
            at = data.start;
            while at < data.end {
                let len = STEP_BYTES.min(data.end - at) as usize;
                let told = self.size.saturating_sub(at).min(len as u64) as usize;
                read_or_zero(file, &mut buffer[..told], at)?;
                buffer[told..len].fill(0);
                self.compare_pages(at, &buffer[..len], digester, &mut pieces);
                at += len as u64;
            }
        }
        self.unknown.remove(Range::new(start, end.max(start)));
        Ok(pieces.0)
    }

    /// As [`Self::compare`], where it is not known what the standby has.
    pub fn compare_unknown(&mut self, file: &File, digester: Digester) -> io::Result<Vec<Piece>> {
        let ranges: Vec<Range> = self.unknown.iter().collect();
        let mut pieces = Vec::new();
        for range in ranges {
            pieces.extend(self.compare(file, range, digester)?);
        }
        Ok(pieces)
    }

    fn compare_pages(&mut self, start: u64, bytes: &[u8], digester: Digester, pieces: &mut Pieces) {
        let starts = (start..).step_by(PAGE);
        for (at, page) in starts.zip(bytes.chunks_exact(PAGE)) {
            let digest = digester.of(page);
            if self.differs(at, digest) {
                match digest == digester.zero {
                    true => pieces.zero(at),
                    false => pieces.data(at, page),
                }
            }
        }
    }

    fn compare_hole(&mut self, hole: Range, digester: Digester, pieces: &mut Pieces) {
        for at in (hole.start..hole.end).step_by(PAGE) {
            if self.differs(at, digester.zero) {
                pieces.zero(at);
            }
        }
    }

    fn differs(&mut self, at: u64, digest: u64) -> bool {
        let known = &mut self.digests[(at / PAGE_BYTES) as usize];
        let before = std::mem::replace(known, digest);
        before != digest || self.unknown.contains(at)
    }
}

#[derive(Default)]
struct Pieces(Vec<Piece>);

impl Pieces {
    fn data(&mut self, at: u64, page: &[u8]) {
        if let Some(Piece::Data(start, bytes)) = self.0.last_mut()
            && *start + bytes.len() as u64 == at
        {
            return bytes.extend_from_slice(page);
        }
        self.0.push(Piece::Data(at, page.to_vec()));
    }

    fn zero(&mut self, at: u64) {
        if let Some(Piece::Zero(range)) = self.0.last_mut()
            && range.end == at
        {
            range.end += PAGE_BYTES;
            return;
        }
        self.0.push(Piece::Zero(Range::new(at, at + PAGE_BYTES)));
    }
}

impl Piece {
    pub fn range(&self) -> Range {
        match self {
            Self::Data(start, bytes) => Range::new(*start, start + bytes.len() as u64),
            Self::Zero(range) => *range,
        }
    }
}

/// The first range of whole pages from `at` on that is no hole; an empty one at `end` if there is none.
fn next_data(file: &File, at: u64, end: u64) -> io::Result<Range> {
    /// To ask costs as much as to read this.
    const WORTH_ASKING_BYTES: u64 = 1 << 20;
    if end - at < WORTH_ASKING_BYTES {
        return Ok(Range::new(at, end));
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(Range::new(end, end)),
        // It knows no holes.
        Err(rustix::io::Errno::INVAL) => return Ok(Range::new(at, end)),
        Err(why) => return Err(why.into()),
    };
    let start = (start - start % PAGE_BYTES).clamp(at, end);
    if start == end {
        return Ok(Range::new(end, end));
    }
    let hole = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(hole) => hole,
        // It was cut meanwhile, and that will be told.
        Err(rustix::io::Errno::NXIO) => end,
        Err(why) => return Err(why.into()),
    };
    Ok(Range::new(start, hole.next_multiple_of(PAGE_BYTES).clamp(start + PAGE_BYTES, end)))
}

/// What is beyond the file's end is zero.
fn read_or_zero(file: &File, into: &mut [u8], mut at: u64) -> io::Result<()> {
    let mut rest = into;
    while !rest.is_empty() {
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(read) => {
                at += read as u64;
                rest = &mut rest[read..];
            }
            Err(why) if why.kind() == io::ErrorKind::Interrupted => (),
            Err(why) => return Err(why),
        }
    }
    rest.fill(0);
    Ok(())
}
