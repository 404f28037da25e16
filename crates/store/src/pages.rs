//! Pages on top of pages: what one epoch's records leave of another's.

use std::ops::RangeInclusive;

use bytes::Bytes;
use image::batch::{LINE_BYTES, Pages};
use image::{FileId, PAGE_BYTES, PageTarget, Range};

pub(crate) const PAGE: usize = PAGE_BYTES as usize;

/// What is known of one page. `Lines` has a whole page of bytes, of which those of its lines count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Whole(Vec<u8>),
    Lines { lines: u64, page: Vec<u8> },
}

impl Piece {
    pub(crate) fn lines(&self) -> u64 {
        match self {
            Self::Whole(_) => u64::MAX,
            Self::Lines { lines, .. } => *lines,
        }
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Whole(page) | Self::Lines { page, .. } => page,
        }
    }

    /// As it is where nothing was before.
    pub(crate) fn into_page(self) -> Vec<u8> {
        let empty = Self::Whole(vec![0; PAGE]);
        match self.over(Some(empty)) {
            Self::Whole(page) | Self::Lines { page, .. } => page,
        }
    }

    /// This one, written over an older one.
    pub(crate) fn over(self, old: Option<Self>) -> Self {
        let (Self::Lines { lines, page }, Some(mut old)) = (&self, old) else { return self };
        let into = match &mut old {
            Self::Whole(bytes) => bytes,
            Self::Lines { lines: older, page } => {
                *older |= lines;
                page
            }
        };
        for line in line_places(*lines) {
            into[line.clone()].copy_from_slice(&page[line]);
        }
        old
    }
}

/// Where the lines of a mask lie in a page.
pub(crate) fn line_places(lines: u64) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..PAGE / LINE_BYTES)
        .filter(move |line| lines & 1 << line != 0)
        .map(|line| line * LINE_BYTES..(line + 1) * LINE_BYTES)
}

/// A record, page by page. `Gone` has none.
pub(crate) fn pieces(record: &Pages) -> Vec<(u64, Piece)> {
    match record {
        Pages::Gone { .. } => Vec::new(),
        Pages::Whole { range, data } => {
            let starts = (range.start..range.end).step_by(PAGE);
            starts.zip(data.chunks_exact(PAGE)).map(|(at, page)| (at, Piece::Whole(page.to_vec()))).collect()
        }
        Pages::Lines { page, lines, data } => vec![(*page, spread(*lines, data))],
    }
}

fn spread(lines: u64, data: &Bytes) -> Piece {
    let mut page = vec![0; PAGE];
    for (place, line) in line_places(lines).zip(data.chunks_exact(LINE_BYTES)) {
        page[place].copy_from_slice(line);
    }
    Piece::Lines { lines, page }
}

/// The windows in which a base is cut: what changed in one is written anew, the others are shared.
pub(crate) const WINDOW_BYTES: u64 = 4 << 20;
/// The beginnings of files share windows: a directory may have many small ones.
const GROUP_FILES: u64 = 64;
pub(crate) const HEAD_BYTES: u64 = WINDOW_BYTES / GROUP_FILES;

/// A window, as bases and folds sort them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Window {
    /// The first that has pages in it.
    target: PageTarget,
    start: u64,
}

/// The files whose beginnings lie in one window.
pub(crate) fn group_of(FileId(id): FileId) -> RangeInclusive<FileId> {
    let first = id - id % GROUP_FILES;
    FileId(first)..=FileId(first + (GROUP_FILES - 1))
}

impl Window {
    pub(crate) fn of(target: PageTarget, page: u64) -> Self {
        match target {
            PageTarget::File(id) if page < HEAD_BYTES => {
                Self { target: PageTarget::File(*group_of(id).start()), start: 0 }
            }
            PageTarget::File(_) if page < WINDOW_BYTES => Self { target, start: HEAD_BYTES },
            _ => Self { target, start: page - page % WINDOW_BYTES },
        }
    }

    /// Which pages of its targets are in it.
    pub(crate) fn range(self) -> Range {
        match (self.target, self.start) {
            (PageTarget::File(_), 0) => Range::new(0, HEAD_BYTES),
            (PageTarget::File(_), HEAD_BYTES) => Range::new(HEAD_BYTES, WINDOW_BYTES),
            (_, start) => Range::new(start, start.saturating_add(WINDOW_BYTES)),
        }
    }

    pub(crate) fn targets(self) -> RangeInclusive<PageTarget> {
        match self.target {
            PageTarget::File(id) if self.start == 0 => {
                let (first, last) = group_of(id).into_inner();
                PageTarget::File(first)..=PageTarget::File(last)
            }
            target => target..=target,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_over_a_page_change_those_lines_only() {
        let old = Piece::Whole(vec![1; PAGE]);
        let new = Piece::Lines { lines: 0b10, page: vec![2; PAGE] };
        let Piece::Whole(page) = new.clone().over(Some(old)) else { panic!("a page stays one") };
        assert!(page.iter().enumerate().all(|(n, &byte)| byte == if (64..128).contains(&n) { 2 } else { 1 }));
        assert_eq!(new.clone().over(None), new);
    }

    #[test]
    fn lines_over_lines_are_both() {
        let old = Piece::Lines { lines: 0b11, page: vec![1; PAGE] };
        let both = Piece::Lines { lines: 0b110, page: vec![2; PAGE] }.over(Some(old));
        assert_eq!(both.lines(), 0b111);
        assert_eq!((both.bytes()[0], both.bytes()[64], both.bytes()[191]), (1, 2, 2));
    }

    #[test]
    fn a_page_over_anything_is_that_page() {
        let new = Piece::Whole(vec![3; PAGE]);
        assert_eq!(new.clone().over(Some(Piece::Lines { lines: 1, page: vec![1; PAGE] })), new);
    }
}
