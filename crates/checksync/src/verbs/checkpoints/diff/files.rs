//! What changed in state directories. Files are known by their paths, since each full sync numbers them anew; a file that
//! has only been touched is the same.

use std::collections::BTreeSet;
use std::path::PathBuf;

use image::files::{FileKind, FileRecord};
use image::{FileId, PAGE_BYTES, PageTarget};
use serde::Serialize;
use store::StoreError;

use super::changes::{Change, changed_pages};
use super::{Page, Side};
use crate::verbs::describe;

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct FileChange {
    pub change: Change,
    pub path: String,
    pub before: Option<Shape>,
    pub after: Option<Shape>,
    /// Of a file that is there in both, and of a new one.
    pub pages_changed: u64,
    pub bytes_changed: u64,
}

/// A file, but for its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shape {
    pub kind: &'static str,
    pub bytes: u64,
    /// Of a link: where it leads.
    pub target: Option<String>,
    pub mode: u32,
    pub owner: u32,
    pub group: u32,
}

pub fn between(from: &Side, to: &Side) -> Result<Vec<FileChange>, StoreError> {
    let (before, after) = (from.gathered.tree().files(), to.gathered.tree().files());
    let paths: BTreeSet<&PathBuf> = before.keys().chain(after.keys()).collect();
    let mut changes = Vec::new();
    for path in paths {
        let (old, new) = (before.get(path).copied(), after.get(path).copied());
        let pages_changed = match new {
            Some(new) => pages_changed(old.map(|old| (from, old)), (to, new))?,
            None => 0,
        };
        let (before, after) = (old.map(shape), new.map(shape));
        let change = match (&before, &after) {
            (None, _) => Change::New,
            (_, None) => Change::Gone,
            (Some(before), Some(after)) if before.bytes != after.bytes => Change::Resized,
            (Some(before), Some(after)) if before != after || pages_changed > 0 => Change::Changed,
            (Some(_), Some(_)) => continue,
        };
        let path = path.display().to_string();
        let bytes_changed = pages_changed * PAGE_BYTES;
        changes.push(FileChange { change, path, before, after, pages_changed, bytes_changed });
    }
    Ok(changes)
}

fn shape(record: &FileRecord) -> Shape {
    let (kind, bytes, target) = match &record.kind {
        FileKind::Directory => ("directory", 0, None),
        FileKind::Regular { size_bytes } => ("file", *size_bytes, None),
        FileKind::Link(target) => ("link", 0, Some(describe::text(target))),
        FileKind::Fifo => ("FIFO", 0, None),
    };
    let FileRecord { mode, owner, group, .. } = *record;
    Shape { kind, bytes, target, mode, owner, group }
}

/// How many pages of a file have another content than they had; one that is not there is empty.
fn pages_changed(old: Option<(&Side, &FileRecord)>, new: (&Side, &FileRecord)) -> Result<u64, StoreError> {
    // Each side has a number of its own for it.
    const IT: PageTarget = PageTarget::File(FileId(0));
    fn pages<'a>(
        (side, record): (&'a Side, &FileRecord),
    ) -> impl Iterator<Item = Result<Page, StoreError>> + 'a {
        side.gathered.each_page_of(record.id).map(|page| page.map(|(at, page)| (IT, at, page)))
    }
    let before = old.into_iter().flat_map(pages);
    Ok(changed_pages(before, pages(new), |_, _| false)?.len() as u64)
}
