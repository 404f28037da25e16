//! Batches of pages: the bulk of an epoch.
//!
//! ```text
//! | target 20 bytes | records u32 | records … 24 bytes each | data of the records, in their order |
//! record: start u64 | pages u32 | kind u32 | lines u64
//! ```
//!
//! Records apply in order. `Whole` carries `pages` pages of data; `Gone` carries none, and the pages read as
//! zero (or as the file below a private mapping) from then on; `Lines` is one page of which only the 64-byte
//! lines whose bit is set in `lines` changed since the parent, and carries those.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::PAGE_BYTES;
use crate::files::FileId;
use crate::frame::{FrameError, PAYLOAD_BYTES_MAX};
use crate::layout::ObjectKey;
use crate::ranges::Range;

pub const LINE_BYTES: usize = 64;
const HEAD_BYTES: usize = 24;
const RECORD_BYTES: usize = 24;

/// Whose pages these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageTarget {
    /// The private pages of an address space; `start` is an address.
    Space(u32),
    /// The content of a shared object; `start` is an offset in it.
    Object(ObjectKey),
    /// The content of a file in a state directory; `start` is an offset in it. What a page has beyond the file's end
    /// is zero.
    File(FileId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pages {
    Whole { range: Range, data: Bytes },
    Gone { range: Range },
    Lines { page: u64, lines: u64, data: Bytes },
}

impl Pages {
    pub fn range(&self) -> Range {
        match *self {
            Self::Whole { range, .. } | Self::Gone { range } => range,
            Self::Lines { page, .. } => Range::new(page, page + PAGE_BYTES),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageBatch {
    pub target: PageTarget,
    pub pages: Vec<Pages>,
}

/// Fills batches up to what fits into one frame.
#[derive(Debug)]
pub struct BatchWriter {
    target: PageTarget,
    records: BytesMut,
    data: BytesMut,
    count: u32,
}

impl BatchWriter {
    pub fn new(target: PageTarget) -> Self {
        Self { target, records: BytesMut::new(), data: BytesMut::new(), count: 0 }
    }

    /// How many bytes of page data a record may still carry here.
    pub fn room_bytes(&self) -> usize {
        (PAYLOAD_BYTES_MAX / 4).saturating_sub(self.len_bytes() + RECORD_BYTES)
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn len_bytes(&self) -> usize {
        HEAD_BYTES + self.records.len() + self.data.len()
    }

    pub fn whole(&mut self, start: u64, data: &[u8]) {
        let pages = data.len() as u64 / PAGE_BYTES;
        assert!(pages > 0 && pages * PAGE_BYTES == data.len() as u64, "{} bytes are no pages", data.len());
        self.record(start, pages as u32, KIND_WHOLE, 0);
        self.data.put_slice(data);
    }

    pub fn gone(&mut self, range: Range) {
        let mut start = range.start;
        while start < range.end {
            let pages = ((range.end - start) / PAGE_BYTES).min(u64::from(u32::MAX));
            self.record(start, pages as u32, KIND_GONE, 0);
            start += pages * PAGE_BYTES;
        }
    }

    /// Writes the lines of `page` whose bit is set.
    pub fn lines(&mut self, start: u64, lines: u64, page: &[u8]) {
        assert_eq!(page.len() as u64, PAGE_BYTES, "lines of something that is no page");
        self.record(start, 1, KIND_LINES, lines);
        for (n, line) in page.chunks(LINE_BYTES).enumerate() {
            if lines & 1 << n != 0 {
                self.data.put_slice(line);
            }
        }
    }

    /// A record as it came in another batch.
    pub fn again(&mut self, pages: &Pages) {
        match pages {
            Pages::Whole { range, data } => self.whole(range.start, data),
            Pages::Gone { range } => self.gone(*range),
            Pages::Lines { page, lines, data } => {
                self.record(*page, 1, KIND_LINES, *lines);
                self.data.put_slice(data);
            }
        }
    }

    /// The batch as the payload of a frame; the writer is empty again.
    pub fn finish(&mut self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.len_bytes());
        put_target(&mut out, self.target);
        out.put_u32_le(self.count);
        out.put_slice(&self.records);
        out.put_slice(&self.data);
        self.records.clear();
        self.data.clear();
        self.count = 0;
        out.freeze()
    }

    fn record(&mut self, start: u64, pages: u32, kind: u32, lines: u64) {
        self.records.put_u64_le(start);
        self.records.put_u32_le(pages);
        self.records.put_u32_le(kind);
        self.records.put_u64_le(lines);
        self.count += 1;
    }
}

const KIND_WHOLE: u32 = 1;
const KIND_GONE: u32 = 2;
const KIND_LINES: u32 = 3;
const TARGET_SPACE: u32 = 1;
const TARGET_OBJECT: u32 = 2;
const TARGET_FILE: u32 = 3;

fn put_target(out: &mut BytesMut, target: PageTarget) {
    let (kind, a, b) = match target {
        PageTarget::Space(space) => (TARGET_SPACE, u64::from(space), 0),
        PageTarget::Object(key) => (TARGET_OBJECT, key.device, key.inode),
        PageTarget::File(FileId(id)) => (TARGET_FILE, id, 0),
    };
    out.put_u32_le(kind);
    out.put_u64_le(a);
    out.put_u64_le(b);
}

impl PageBatch {
    /// Decodes the payload of a frame whose checksum was verified. The data stays where it is.
    pub fn decode(mut payload: Bytes) -> Result<Self, FrameError> {
        if payload.len() < HEAD_BYTES {
            return Err(bad(format!("{} bytes are too few", payload.len())));
        }
        let (kind, a, b) = (payload.get_u32_le(), payload.get_u64_le(), payload.get_u64_le());
        let target = match kind {
            TARGET_SPACE => {
                PageTarget::Space(u32::try_from(a).map_err(|_| bad(format!("address space {a}")))?)
            }
            TARGET_OBJECT => PageTarget::Object(ObjectKey { device: a, inode: b }),
            TARGET_FILE => PageTarget::File(FileId(a)),
            kind => return Err(bad(format!("target kind {kind}"))),
        };
        let count = payload.get_u32_le() as usize;
        let records_len = count
            .checked_mul(RECORD_BYTES)
            .filter(|&len| len <= payload.len())
            .ok_or_else(|| bad(format!("{count} records in {} bytes", payload.len())))?;
        let mut records = payload.split_to(records_len);
        let mut pages = Vec::with_capacity(count);
        for _ in 0..count {
            pages.push(decode_record(&mut records, &mut payload)?);
        }
        if !payload.is_empty() {
            return Err(bad(format!("{} bytes are left over", payload.len())));
        }
        Ok(Self { target, pages })
    }
}

fn decode_record(records: &mut Bytes, data: &mut Bytes) -> Result<Pages, FrameError> {
    let start = records.get_u64_le();
    let pages = u64::from(records.get_u32_le());
    let (kind, lines) = (records.get_u32_le(), records.get_u64_le());
    let len = pages * PAGE_BYTES;
    let end = start.checked_add(len).filter(|_| start.is_multiple_of(PAGE_BYTES) && pages > 0);
    let range = Range::new(start, end.ok_or_else(|| bad(format!("{pages} pages at {start:#x}")))?);
    let mut take = |len: u64| {
        let len = usize::try_from(len).ok().filter(|&len| len <= data.len());
        len.map(|len| data.split_to(len)).ok_or_else(|| bad(format!("no data for the pages at {start:#x}")))
    };
    match kind {
        KIND_WHOLE => Ok(Pages::Whole { range, data: take(len)? }),
        KIND_GONE => Ok(Pages::Gone { range }),
        KIND_LINES if pages == 1 => {
            let data = take(u64::from(lines.count_ones()) * LINE_BYTES as u64)?;
            Ok(Pages::Lines { page: start, lines, data })
        }
        kind => Err(bad(format!("record kind {kind} over {pages} pages"))),
    }
}

fn bad(why: String) -> FrameError {
    FrameError::Decode { what: "page batch", why }
}

/// Which 64-byte lines differ between two versions of a page.
pub fn changed_lines(old: &[u8], new: &[u8]) -> u64 {
    let pairs = old.chunks_exact(LINE_BYTES).zip(new.chunks_exact(LINE_BYTES));
    pairs.enumerate().fold(0, |bits, (n, (old, new))| bits | u64::from(old != new) << n)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn batch_survives_encoding_and_decoding() {
        let page: Vec<u8> = (0..PAGE_BYTES).map(|n| n as u8).collect();
        let object = ObjectKey { device: 1, inode: 2 };
        for target in [PageTarget::Space(3), PageTarget::Object(object), PageTarget::File(FileId(4))] {
            let mut writer = BatchWriter::new(target);
            writer.whole(0x1000, &page);
            writer.gone(Range::new(0x4000, 0x9000));
            writer.lines(0x2000, 0b101, &page);
            let payload = writer.finish();
            let batch = PageBatch::decode(payload.clone()).unwrap();
            assert!(writer.is_empty());
            batch.pages.iter().for_each(|pages| writer.again(pages));
            assert_eq!(writer.finish(), payload);
            let lines = [&page[..64], &page[128..192]].concat();
            assert_eq!(batch.target, target);
            assert_eq!(
                batch.pages,
                [
                    Pages::Whole { range: Range::new(0x1000, 0x2000), data: page.clone().into() },
                    Pages::Gone { range: Range::new(0x4000, 0x9000) },
                    Pages::Lines { page: 0x2000, lines: 0b101, data: lines.into() },
                ]
            );
        }
    }

    #[test]
    fn changed_lines_name_the_first_and_the_last_byte() {
        let old = vec![0; PAGE_BYTES as usize];
        let mut new = old.clone();
        assert_eq!(changed_lines(&old, &new), 0);
        new[0] = 1;
        new[4095] = 1;
        assert_eq!(changed_lines(&old, &new), 1 | 1 << 63);
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_error_and_no_panic(bytes: Vec<u8>) {
            let _ = PageBatch::decode(bytes.into());
        }

        #[test]
        fn absurd_counts_are_refused(count: u32, start: u64, pages: u32, kind in 0u32..5, lines: u64) {
            let mut out = BytesMut::new();
            put_target(&mut out, PageTarget::Space(0));
            out.put_u32_le(count);
            out.put_u64_le(start);
            out.put_u32_le(pages);
            out.put_u32_le(kind);
            out.put_u64_le(lines);
            if let Ok(batch) = PageBatch::decode(out.freeze()) {
                prop_assert!(batch.pages.iter().all(|p| !p.range().is_empty()));
            }
        }
    }
}
