//! What changed in the memory since the last look, and what of it is to be copied or dropped.

use std::sync::Arc;

use image::layout::{Backing, Mapping, Protection};
use image::{PAGE_BYTES, PageTarget, Range, RangeSet};
use std::os::unix::fs::FileExt;
use sys::pagemap::{Query, Region, category, entries, scan};

use super::{CaptureError, Found, ROOM, Tracker, can_be_tracked, page_at};
use crate::memory::ledger::{self, Pages};
use crate::memory::staging::Chunk;

/// What becomes of the private pages of writable file mappings that a scan reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    /// Nothing: in a freeze they are all read and compared anyway.
    Compared,
    /// They are copied like others. N.B. the scan takes their marks away, and by the freeze the mapping may be
    /// read-only, as after the relocation of a library that was just loaded.
    Copied,
}

impl Tracker {
    pub(super) fn find(&mut self, gone: RangeSet) -> Result<Found, CaptureError> {
        let target = PageTarget::Space(self.space);
        let owed = self.pending.clone();
        gone.iter().for_each(|range| ledger::add(&mut self.pending, target, range));
        let written = self.scan_written(&self.spans())?;
        // Noted before anything can fail: the scan has taken the marks away.
        let noted = self.sort(&written, Data::Compared);
        for range in noted.copy.iter().chain(noted.gone.iter()) {
            ledger::add(&mut self.pending, target, range);
        }
        for (&key, ranges) in &noted.objects {
            ranges.iter().for_each(|range| ledger::add(&mut self.pending, PageTarget::Object(key), range));
        }
        self.unsearched.extend(noted.guards.iter());
        let regions = self.tell_files(written)?;
        let mut found = self.sort(&regions, Data::Compared);
        found.gone.extend(gone.iter());
        self.add_owed(owed, &mut found)?;
        for range in found.gone.iter() {
            self.present.take(range);
        }
        for range in found.copy.iter() {
            found.gone.remove(range);
            self.present.insert(range);
            self.forget_data(range);
        }
        Ok(found)
    }

    pub(super) fn forget_data(&mut self, range: Range) {
        let pages: Vec<u64> = self.data.range(range.start..range.end).map(|(&page, _)| page).collect();
        for page in pages {
            self.data.remove(&page);
        }
    }

    /// What of `ranges` is private memory of the app now.
    pub(super) fn private<'a>(&'a self, ranges: &'a RangeSet) -> impl Iterator<Item = Range> + 'a {
        self.private_where(ranges, can_be_tracked)
    }

    /// What of `ranges` lies in private mappings of shared objects.
    pub(super) fn private_of_objects<'a>(&'a self, ranges: &'a RangeSet) -> impl Iterator<Item = Range> + 'a {
        self.private_where(ranges, |mapping| matches!(mapping.backing, Backing::Object(_)))
    }

    fn private_where<'a>(
        &'a self,
        ranges: &'a RangeSet,
        is_wanted: impl Fn(&Mapping) -> bool + 'a,
    ) -> impl Iterator<Item = Range> + 'a {
        let mappings = self.tracked.iter().map(|tracked| &tracked.mapping);
        let private = mappings.filter(move |mapping| !mapping.shared && is_wanted(mapping));
        private.flat_map(|mapping| ranges.within(mapping.range))
    }

    /// The registered address space, cut into about equal parts for the workers.
    pub(super) fn spans(&self) -> Vec<Range> {
        const WORTH_CUTTING_BYTES: u64 = 64 << 20;
        /// What has pages lies together, so that equal parts are not equal work.
        const PARTS_EACH: u64 = 4;
        let registered = self.tracked.iter().filter(|tracked| tracked.registered);
        let ranges: Vec<Range> = registered.map(|tracked| tracked.mapping.range).collect();
        let total: u64 = ranges.iter().map(|range| range.len_bytes()).sum();
        let parts = if total < WORTH_CUTTING_BYTES { 1 } else { self.workers.width() as u64 * PARTS_EACH };
        cut(&ranges, total.div_ceil(parts).next_multiple_of(2 << 20))
    }

    /// Takes the marks of what was written.
    pub(super) fn scan_written(&self, spans: &[Range]) -> Result<Vec<Region>, CaptureError> {
        let query = Query {
            inverted: 0,
            all: category::WRITTEN,
            any: category::PRESENT | category::SWAPPED,
            report: self.kinds(),
            protect: true,
        };
        self.scan_spans(spans, query)
    }

    /// What is said of each page.
    fn kinds(&self) -> u64 {
        category::PRESENT | category::SWAPPED | category::ZERO_PAGE | self.kernel.guard()
    }

    /// Tells the app's own pages from those of files.
    pub(super) fn tell_files(&self, regions: Vec<Region>) -> Result<Vec<Region>, CaptureError> {
        // N.B. to say whether a page is a file's, the kernel must look at its descriptor, which is in no cache: ten
        // times the cost of the scan. So only those that were written are asked about, where they may be a file's.
        let may_show_a_file = |mapping: &Mapping| {
            !mapping.shared && matches!(mapping.backing, Backing::File(_) | Backing::Object(_))
        };
        let (doubtful, clear): (Vec<_>, Vec<_>) =
            self.pieces(&regions).into_iter().partition(|(mapping, ..)| may_show_a_file(mapping));
        let doubtful: Vec<Range> = doubtful.into_iter().map(|(_, range, _)| range).collect();
        let query = Query { report: self.kinds() | category::FILE, ..Query::default() };
        let mut regions = self.scan_spans(&doubtful, query)?;
        let clear = clear.into_iter();
        regions.extend(clear.map(|(_, Range { start, end }, categories)| Region { start, end, categories }));
        regions.sort_unstable_by_key(|region| region.start);
        Ok(regions)
    }

    pub(super) fn scan_spans(&self, spans: &[Range], query: Query) -> Result<Vec<Region>, CaptureError> {
        let jobs = spans.iter().map(|&span| {
            let pagemap = Arc::clone(&self.pagemap);
            move || {
                let mut regions = Vec::new();
                let mut room = [Region::default(); ROOM];
                scan(&*pagemap, span.start, span.end, query, &mut room, |region| regions.push(region))
                    .map(|()| regions)
            }
        });
        // To wake a worker takes as long as to scan some megabytes.
        const WORTH_SHARING_BYTES: u64 = 8 << 20;
        let total: u64 = spans.iter().map(|span| span.len_bytes()).sum();
        let results: Vec<_> = match total < WORTH_SHARING_BYTES {
            true => jobs.map(|job| job()).collect(),
            false => self.workers.run(jobs.collect()),
        };
        let mut all = Vec::new();
        for regions in results {
            all.extend(regions.map_err(self.failed("scan the page tables"))?);
        }
        all.sort_unstable_by_key(|region| region.start);
        Ok(all)
    }

    /// What to do with each region that a scan reported.
    pub(super) fn sort(&self, regions: &[Region], data: Data) -> Found {
        let mut found = Found::default();
        for (mapping, piece, categories) in self.pieces(regions) {
            self.sort_piece(mapping, piece, categories, data, &mut found);
        }
        found
    }

    /// The regions, which are in order, by the mappings that they lie in.
    fn pieces(&self, regions: &[Region]) -> Vec<(&Mapping, Range, u64)> {
        let mut pieces = Vec::with_capacity(regions.len());
        let mut mappings = self.tracked.iter().map(|tracked| &tracked.mapping).peekable();
        for region in regions {
            let mut start = region.start;
            while start < region.end {
                while mappings.next_if(|mapping| mapping.range.end <= start).is_some() {}
                let Some(mapping) = mappings.peek() else { return pieces };
                let Some(piece) = Range::new(start, region.end).intersect(mapping.range) else { break };
                pieces.push((*mapping, piece, region.categories));
                start = piece.end;
            }
        }
        pieces
    }

    pub(super) fn sort_piece(
        &self,
        mapping: &Mapping,
        piece: Range,
        categories: u64,
        data: Data,
        found: &mut Found,
    ) {
        if categories & self.kernel.guard() != 0 {
            found.guards.insert(piece);
        }
        let empty = categories & (category::ZERO_PAGE | category::GUARD) != 0
            || categories & (category::PRESENT | category::SWAPPED) == 0;
        match &mapping.backing {
            Backing::Object(key) if mapping.shared => {
                let offset = mapping.offset + (piece.start - mapping.range.start);
                let written = Range::new(offset, offset + piece.len_bytes());
                found.objects.entry(*key).or_default().insert(written);
            }
            Backing::Anonymous | Backing::Object(_) if empty => found.gone.extend(self.present.within(piece)),
            Backing::Anonymous => found.copy.insert(piece),
            Backing::File(_) | Backing::Object(_) if empty || categories & category::FILE != 0 => {
                found.gone.extend(self.present.within(piece));
            }
            Backing::File(_) | Backing::Object(_) if mapping.shared => (),
            // Writable ones are compared as a whole, see `compare_data`.
            Backing::File(_) | Backing::Object(_) if mapping.protection.write && data == Data::Compared => (),
            Backing::File(_) | Backing::Object(_) => found.copy.insert(piece),
            Backing::Droppable | Backing::Vvar | Backing::VvarClock | Backing::Vdso | Backing::Vsyscall => (),
        }
    }

    /// What a failed epoch carried is looked at as it is now.
    pub(super) fn add_owed(&mut self, owed: Pages, found: &mut Found) -> Result<(), CaptureError> {
        for (target, ranges) in owed {
            match target {
                PageTarget::Object(key) => self.objects.send_all(key),
                PageTarget::File(_) => unreachable!("what is owed of files is the files' own business"),
                PageTarget::Space(_) => {
                    self.unmapped.extend(ranges.iter());
                    let everything = Query {
                        report: category::PRESENT
                            | category::SWAPPED
                            | category::ZERO_PAGE
                            | category::FILE
                            | self.kernel.guard(),
                        ..Query::default()
                    };
                    let spans: Vec<Range> = ranges.iter().collect();
                    let now = self.sort(&self.scan_spans(&spans, everything)?, Data::Compared);
                    // Whatever the standby holds there, it was never told: both lists are in its terms.
                    let kept: RangeSet = now.copy;
                    for range in ranges.iter() {
                        self.data.retain(|&page, _| !range.contains(page));
                        found.gone.insert(range);
                    }
                    kept.iter().for_each(|range| {
                        found.gone.remove(range);
                        found.copy.insert(range);
                    });
                }
            }
        }
        Ok(())
    }

    /// Pages that were dropped are just not there. Looked for only if the kernel counts fewer than we do.
    pub(super) fn find_drops(&mut self, found: &mut Found) -> Result<(), CaptureError> {
        let held = self.present.len() + self.data.len() as u64;
        if self.kernel.counts_anonymous_pages && self.anonymous_pages()? == held + self.droppable_pages()? {
            return Ok(());
        }
        let none = category::PRESENT | category::SWAPPED;
        let query = Query { inverted: none, all: none, any: 0, report: category::PRESENT, protect: false };
        for region in self.scan_spans(&self.spans(), query)? {
            found.gone.extend(self.present.take(Range::new(region.start, region.end)));
        }
        // N.B. a dropped page of a private file mapping leaves its marker, so the scan above does not show it.
        for range in self.file_mappings(|protection| !protection.write) {
            let now = self.own_pages(range)?;
            for held in self.present.within(range) {
                let mut reverted = RangeSet::from_iter([held]);
                now.iter().for_each(|own| reverted.remove(own));
                reverted.iter().for_each(|range| found.gone.extend(self.present.take(range)));
            }
        }
        Ok(())
    }

    /// The private mappings of files with a protection of this kind.
    pub(super) fn file_mappings(&self, protection: impl Fn(Protection) -> bool) -> Vec<Range> {
        let of_file = |mapping: &&Mapping| {
            let file = matches!(mapping.backing, Backing::File(_) | Backing::Object(_));
            file && !mapping.shared && protection(mapping.protection)
        };
        self.tracked
            .iter()
            .map(|tracked| &tracked.mapping)
            .filter(of_file)
            .map(|mapping| mapping.range)
            .collect()
    }

    /// The pages of a private file mapping that are the app's own and not the file's: there, or swapped out, or just
    /// being moved by the kernel, which looks the same.
    pub(super) fn own_pages(&self, range: Range) -> Result<RangeSet, CaptureError> {
        let query = Query {
            inverted: category::FILE,
            all: category::FILE,
            any: category::PRESENT | category::SWAPPED,
            report: category::PRESENT | category::SWAPPED,
            ..Query::default()
        };
        let mut own = RangeSet::default();
        for Region { start, end, categories } in self.scan_spans(&[range], query)? {
            own.insert(Range::new(start, end));
            if categories & category::SWAPPED != 0 {
                // N.B. the marker of a page that was dropped counts as swapped, too.
                let entries =
                    entries(&self.pagemap, start, end).map_err(self.failed("read the page tables"))?;
                let pages = (start..end).step_by(PAGE_BYTES as usize).zip(entries);
                pages.filter(|(_, entry)| entry.is_marker()).for_each(|(page, _)| own.remove(page_at(page)));
            }
        }
        Ok(own)
    }

    /// The kernel counts them, we don't: what is dropped elsewhere must not make up for them.
    fn droppable_pages(&self) -> Result<u64, CaptureError> {
        let droppable = self.tracked.iter().filter(|t| t.mapping.backing == Backing::Droppable);
        let spans: Vec<Range> = droppable.map(|tracked| tracked.mapping.range).collect();
        let query = Query {
            inverted: category::ZERO_PAGE,
            all: category::PRESENT | category::ZERO_PAGE,
            report: category::PRESENT,
            ..Query::default()
        };
        let regions = self.scan_spans(&spans, query)?;
        Ok(regions.iter().map(|region| Range::new(region.start, region.end).pages()).sum())
    }

    pub(super) fn anonymous_pages(&self) -> Result<u64, CaptureError> {
        let mut text = [0; 128];
        let len = self.statm.read_at(&mut text, 0).map_err(self.failed("read the counts"))?;
        let mut numbers = std::str::from_utf8(&text[..len]).unwrap_or("").split_ascii_whitespace();
        let mut number = || numbers.next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        let (_size, resident, shared) = (number(), number(), number());
        Ok(resident.saturating_sub(shared))
    }

    /// The private pages of writable file mappings: all are read, and sent if they are not what they were.
    pub(super) fn compare_data(
        &mut self,
        found: &mut Found,
        chunks: &mut Vec<Chunk>,
    ) -> Result<(), CaptureError> {
        let mut now = RangeSet::default();
        for range in self.file_mappings(|protection| protection.write) {
            now.extend(self.own_pages(range)?.iter());
            self.drop_data(range, &now, found);
        }
        for chunk in self.copy(now.iter(), true)? {
            chunks.extend(self.changed_data(chunk));
        }
        Ok(())
    }

    pub(super) fn drop_data(&mut self, range: Range, now: &RangeSet, found: &mut Found) {
        let reverted: Vec<u64> = self
            .data
            .range(range.start..range.end)
            .map(|(&page, _)| page)
            .filter(|&page| !now.contains(page))
            .collect();
        for page in reverted {
            self.data.remove(&page);
            found.gone.insert(page_at(page));
        }
        for range in self.present.take(range) {
            // It was read-only when it was sent, and its pages are followed here from now on.
            for page in (range.start..range.end).step_by(PAGE_BYTES as usize) {
                if !now.contains(page) {
                    found.gone.insert(page_at(page));
                }
            }
        }
    }

    pub(super) fn changed_data(&mut self, chunk: Chunk) -> Option<Chunk> {
        let (mut ranges, mut bytes) = (Vec::new(), Vec::new());
        for (address, page) in chunk.pages() {
            if self.data.get(&address).is_some_and(|old| **old == *page) {
                continue;
            }
            self.data.insert(address, page.into());
            ranges.push(Range::new(address, address + PAGE_BYTES));
            bytes.extend_from_slice(page);
        }
        self.buffers.give_back(chunk.bytes);
        let target = chunk.target;
        (!ranges.is_empty()).then(|| Chunk { target, ranges, bytes: bytes.into() })
    }

    pub(super) fn capture_objects(
        &mut self,
        found: &mut Found,
        chunks: &mut Vec<Chunk>,
    ) -> Result<(), CaptureError> {
        let failed = self.failed("read a shared object");
        self.objects.capture(&found.objects, chunks, &mut found.object_gone).map_err(failed)
    }

    /// Guard regions: a new one is reported as written, like any change; that one was removed is not, and one
    /// that was moved may be protected from before. So those that we know are looked at, and new ranges.
    pub(super) fn find_guards(&mut self, found: &Found) -> Result<(), CaptureError> {
        let places = self.guards.iter().chain(found.guards.iter()).chain(self.unsearched.iter());
        let places: RangeSet = places.collect();
        if !self.kernel.guards || places.is_empty() {
            return Ok(());
        }
        let spans: Vec<Range> = places.iter().collect();
        let query = Query { all: category::GUARD, report: category::GUARD, ..Query::default() };
        let regions = self.scan_spans(&spans, query)?;
        let now: RangeSet = regions.into_iter().map(|region| Range::new(region.start, region.end)).collect();
        if now != self.guards {
            self.guards = now;
            self.layout_pending = true;
        }
        Ok(())
    }
}

/// Cuts a list of ranges into spans that cover about `bytes` of them each.
fn cut(ranges: &[Range], bytes: u64) -> Vec<Range> {
    let mut spans: Vec<Range> = Vec::new();
    let mut left = 0;
    for &range in ranges {
        let mut start = range.start;
        while start < range.end {
            if left == 0 {
                spans.push(Range::new(start, start));
                left = bytes;
            }
            let take = left.min(range.end - start);
            start += take;
            left -= take;
            spans.last_mut().expect("pushed above").end = start;
        }
    }
    spans
}
