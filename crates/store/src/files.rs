//! The files of state directories that wait for the store: which of them changed, and their pages.
//!
//! As with memory, the newest counts: what comes out says nothing of versions in between, and of a file that was made
//! and removed meanwhile nothing at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use image::batch::Pages;
use image::{FileChanges, FileId, PAGE_BYTES, PageBatch, PageTarget, Range, RangeSet};

use crate::StoreError;
use crate::gathered::{GatherError, Memory};
use crate::pages::{HEAD_BYTES, PAGE, Piece, group_of, pieces};
use crate::spool::{Slot, Spool};
use crate::tree::Tree;

#[derive(Debug)]
pub(crate) struct StateFiles {
    /// Of a full checkpoint: what nobody has written is empty.
    full: bool,
    /// Before the first epoch, and after the last.
    began: Arc<Tree>,
    tree: Arc<Tree>,
    /// What was said and not taken in: it comes in parts, and counts as a whole.
    said: FileChanges,
    content: BTreeMap<FileId, Memory>,
    /// Pages in which a file was cut off, and that have not come anew: behind the cut they are zero.
    torn: BTreeSet<(FileId, u64)>,
}

impl StateFiles {
    /// Of a full checkpoint.
    pub(crate) fn new() -> Self {
        let mut files = Self::since(Arc::default());
        files.full = true;
        files
    }

    pub(crate) fn since(tree: Arc<Tree>) -> Self {
        Self {
            full: false,
            began: Arc::clone(&tree),
            tree,
            said: FileChanges::default(),
            content: BTreeMap::new(),
            torn: BTreeSet::new(),
        }
    }

    pub(crate) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Whether the size that a file has in the end is needed to know what is in it.
    pub(crate) fn is_torn(&self) -> bool {
        !self.torn.is_empty()
    }

    pub(crate) fn pages(&self) -> u64 {
        self.content.values().map(|memory| memory.pages.len() as u64).sum()
    }

    pub(crate) fn say(&mut self, part: FileChanges, spool: &mut Spool) -> Result<(), GatherError> {
        if !self.full && !part.directories.is_empty() {
            return Err(GatherError::Files("state directories came in the middle".to_owned()));
        }
        self.said.extend(part);
        if self.said.more { Ok(()) } else { self.settle(spool) }
    }

    /// Whether a part came that is not the last.
    pub(crate) fn awaits_more(&self) -> bool {
        self.said.more
    }

    fn settle(&mut self, spool: &mut Spool) -> Result<(), GatherError> {
        if self.said.is_empty() {
            return Ok(());
        }
        let said = std::mem::take(&mut self.said);
        let effects = Arc::make_mut(&mut self.tree).apply(said).map_err(GatherError::Files)?;
        for (id, before, after) in effects.cut {
            self.cut_off(id, before, after, spool)?;
        }
        for id in effects.gone {
            if let Some(mut memory) = self.content.remove(&id) {
                memory.drop_pages(Range::new(0, u64::MAX), spool);
            }
            self.torn.retain(|(file, _)| *file != id);
        }
        Ok(())
    }

    fn cut_off(&mut self, id: FileId, before: u64, after: u64, spool: &mut Spool) -> Result<(), StoreError> {
        let end = after.next_multiple_of(PAGE_BYTES);
        let memory = self.content.entry(id).or_default();
        // N.B. what is gone behind it stays so: the file may have been longer still.
        memory.drop_pages(Range::new(end, u64::MAX), spool);
        memory.zero_tail(after, spool)?;
        self.torn.retain(|(file, page)| *file != id || *page < end);
        if self.full || self.began.size(id).is_none() {
            return Ok(());
        }
        // Should it grow again, what comes is empty.
        memory.gone.insert(Range::new(end, before.next_multiple_of(PAGE_BYTES)));
        let last = after - after % PAGE_BYTES;
        if after < end && !memory.pages.contains_key(&last) && !memory.gone.contains(last) {
            self.torn.insert((id, last));
        }
        Ok(())
    }

    /// Takes content, as far as it lies within its file.
    pub(crate) fn write(&mut self, batch: &PageBatch, spool: &mut Spool) -> Result<(), GatherError> {
        let PageTarget::File(id) = batch.target else { return Ok(()) };
        // What was made and removed since is not here.
        let Some(size) = self.tree.size(id) else { return Ok(()) };
        let memory = self.content.entry(id).or_default();
        let end = size.next_multiple_of(PAGE_BYTES);
        for record in &batch.pages {
            if let Pages::Lines { .. } = record {
                return Err(GatherError::Files("content came in lines".to_owned()));
            }
            if let Pages::Gone { range } = record {
                memory.drop_pages(*range, spool);
                if !self.full {
                    memory.gone.extend(range.intersect(Range::new(0, end)));
                }
                self.torn.retain(|(file, page)| *file != id || !range.contains(*page));
            }
            for (at, piece) in pieces(record).into_iter().take_while(|(at, _)| *at < end) {
                let old = memory.pages.get(&at).copied();
                memory.pages.insert(at, spool.put(&within(piece, size - at), old)?);
                self.torn.remove(&(id, at));
            }
        }
        Ok(())
    }

    /// What changed besides content.
    pub(crate) fn changes(&self) -> FileChanges {
        match Arc::ptr_eq(&self.began, &self.tree) {
            true => FileChanges::default(),
            false => self.tree.since(&self.began),
        }
    }

    /// The pages that are empty now.
    pub(crate) fn gone(&self) -> BTreeMap<PageTarget, RangeSet> {
        let gone = self.content.iter().filter(|(_, memory)| memory.gone.iter().next().is_some());
        gone.map(|(&id, memory)| (PageTarget::File(id), memory.gone.iter().collect())).collect()
    }

    /// All pages, in the order of their windows.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = (PageTarget, u64, Slot)> + '_ {
        let groups: BTreeSet<FileId> = self.content.keys().map(|&id| *group_of(id).start()).collect();
        groups.into_iter().flat_map(|first| {
            let heads = self.part(first, Range::new(0, HEAD_BYTES));
            heads.chain(self.part(first, Range::new(HEAD_BYTES, u64::MAX)))
        })
    }

    /// The same part of each file of a group.
    fn part(&self, first: FileId, part: Range) -> impl Iterator<Item = (PageTarget, u64, Slot)> + '_ {
        self.content.range(group_of(first)).flat_map(move |(&id, memory)| {
            let pages = memory.pages.range(part.start..part.end);
            pages.map(move |(&at, &slot)| (PageTarget::File(id), at, slot))
        })
    }

    /// The content of a file of a full checkpoint; pages that are not there are empty.
    pub(crate) fn slots(&self, id: FileId) -> impl Iterator<Item = (u64, Slot)> + '_ {
        self.content
            .get(&id)
            .into_iter()
            .flat_map(|memory| memory.pages.iter().map(|(&at, &slot)| (at, slot)))
    }
}

/// Without what lies behind the end of its file, which is `room` bytes away.
fn within(piece: Piece, room: u64) -> Piece {
    match piece {
        Piece::Whole(mut page) => {
            page[room.min(PAGE as u64) as usize..].fill(0);
            Piece::Whole(page)
        }
        lines @ Piece::Lines { .. } => lines,
    }
}

#[cfg(test)]
mod tests {
    use image::batch::BatchWriter;
    use image::files::{FileKind, FileRecord, NameRecord, StateDirectory};

    use super::*;

    fn record(id: u64, kind: FileKind) -> FileRecord {
        FileRecord { id: FileId(id), kind, mode: 0o600, owner: 0, group: 0, modified: (0, 0) }
    }

    /// As two looks of a full sync say it, with no content between them.
    #[test]
    fn what_was_cut_off_does_not_come_back_when_the_file_grows() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut spool = Spool::new(dir.path()).expect("a spool");
        let mut files = StateFiles::new();
        let is_long = |size_bytes| record(1, FileKind::Regular { size_bytes });
        let first = FileChanges {
            directories: vec![StateDirectory { id: FileId(0), path: b"/state".to_vec() }],
            files: vec![record(0, FileKind::Directory), is_long(8192)],
            names: vec![NameRecord { directory: FileId(0), name: b"a".to_vec(), file: Some(FileId(1)) }],
            ..FileChanges::default()
        };
        files.say(first, &mut spool).expect("a tree");
        let mut batch = BatchWriter::new(PageTarget::File(FileId(1)));
        batch.whole(0, &[7; 2 * PAGE]);
        let batch = PageBatch::decode(batch.finish()).expect("a batch");
        files.write(&batch, &mut spool).expect("content");
        assert_eq!(files.pages(), 2);
        for size in [0, 8192] {
            let said = FileChanges { files: vec![is_long(size)], ..FileChanges::default() };
            files.say(said, &mut spool).expect("a size");
        }
        assert_eq!(files.pages(), 0);
        let part = FileChanges { gone: vec![FileId(1)], more: true, ..FileChanges::default() };
        files.say(part, &mut spool).expect("a part");
        assert!(
            files.awaits_more() && files.tree().size(FileId(1)).is_some(),
            "half of it counts for nothing"
        );
    }
}
