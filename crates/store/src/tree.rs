//! The state directories of a checkpoint: which files there are, and which names lead to them. What is in the files is
//! kept elsewhere.
//!
//! It follows what epochs say as `files::Mirror` does: a file goes with its last name. So it is as large as what is there
//! now, however much was made and removed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use image::files::{FileKind, FileRecord, NameRecord, StateDirectory};
use image::{FileChanges, FileId};

/// Far above what any file system holds.
const FILE_BYTES_MAX: u64 = 1 << 47;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    directories: Vec<StateDirectory>,
    files: BTreeMap<FileId, Known>,
    names: BTreeMap<(FileId, Vec<u8>), FileId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    record: FileRecord,
    /// How many lead to it.
    names: usize,
}

/// What changes do to the content of files.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Files that are shorter now, with their sizes before and after.
    pub(crate) cut: Vec<(FileId, u64, u64)>,
    pub(crate) gone: Vec<FileId>,
}

impl Tree {
    /// Where the directories are.
    pub fn directories(&self) -> impl Iterator<Item = &Path> + '_ {
        self.directories.iter().map(|directory| Path::new(OsStr::from_bytes(&directory.path)))
    }

    /// What lies in the directories, by its path.
    pub fn files(&self) -> BTreeMap<PathBuf, &FileRecord> {
        let mut found = BTreeMap::new();
        let paths = self.directories().map(Path::to_owned);
        let mut left: Vec<(FileId, PathBuf)> = self.directories.iter().map(|it| it.id).zip(paths).collect();
        let mut seen = BTreeSet::new();
        while let Some((directory, path)) = left.pop() {
            // A name that leads back up is none that a file system has.
            if !seen.insert(directory) {
                continue;
            }
            for (name, id) in self.below(directory) {
                let Some(known) = self.files.get(&id) else { continue };
                let path = path.join(OsStr::from_bytes(name));
                if known.record.kind == FileKind::Directory {
                    left.push((id, path.clone()));
                }
                found.insert(path, &known.record);
            }
        }
        found
    }

    /// What the app finds at a path.
    pub fn find(&self, path: &[u8]) -> Option<&FileRecord> {
        let path = Path::new(OsStr::from_bytes(path));
        let within = |(directory, at)| Some((directory, path.strip_prefix(at).ok()?));
        let mut directories = self.directories.iter().map(|it| it.id).zip(self.directories());
        let (root, below) = directories.find_map(within)?;
        let id = below.iter().try_fold(root, |at, name| {
            let name = (at, name.as_bytes().to_vec());
            self.names.get(&name).copied()
        })?;
        Some(&self.files.get(&id)?.record)
    }

    /// The size of a regular file.
    pub(crate) fn size(&self, id: FileId) -> Option<u64> {
        self.files.get(&id)?.record.kind.size_bytes()
    }

    fn below(&self, directory: FileId) -> impl Iterator<Item = (&[u8], FileId)> + '_ {
        let from = self.names.range((directory, Vec::new())..);
        let own = from.take_while(move |((at, _), _)| *at == directory);
        own.map(|((_, name), id)| (&name[..], *id))
    }

    /// Takes in what was said at once. An error says what is wrong with it; nothing of this can be used then.
    pub(crate) fn apply(&mut self, changes: FileChanges) -> Result<Effects, String> {
        let FileChanges { directories, files, names, gone, more: _ } = changes;
        let mut effects = Effects::default();
        self.directories.extend(directories);
        // Of what is said twice, the later counts.
        let names: BTreeMap<(FileId, Vec<u8>), Option<FileId>> =
            names.into_iter().map(|said| ((said.directory, said.name), said.file)).collect();
        let files: BTreeMap<FileId, FileRecord> = files.into_iter().map(|said| (said.id, said)).collect();
        let mut loose: Vec<FileId> = files.keys().copied().chain(gone).collect();
        for (name, file) in &names {
            if let Some(old) = self.names.get(name).copied().filter(|old| Some(*old) != *file) {
                self.names.remove(name);
                self.count_down(old);
                loose.push(old);
            }
        }
        for (id, record) in files {
            self.set_record(id, record, &mut effects)?;
        }
        for (name, file) in names {
            if let Some(file) = file {
                self.add_name(name, file)?;
            }
        }
        while let Some(id) = loose.pop() {
            self.drop_nameless(id, &mut loose, &mut effects);
        }
        Ok(effects)
    }

    fn count_down(&mut self, id: FileId) {
        self.files.entry(id).and_modify(|known| known.names -= 1);
    }

    fn set_record(&mut self, id: FileId, record: FileRecord, effects: &mut Effects) -> Result<(), String> {
        let size = record.kind.size_bytes().unwrap_or(0);
        if size > FILE_BYTES_MAX {
            return Err(format!("file {} has {size} bytes", id.0));
        }
        let before = self.size(id).unwrap_or(0);
        let names = match self.files.get(&id) {
            Some(known) if !known.record.kind.is_like(&record.kind) => {
                return Err(format!("file {} became one of another kind", id.0));
            }
            known => known.map_or(0, |known| known.names),
        };
        self.files.insert(id, Known { record, names });
        if size < before {
            effects.cut.push((id, before, size));
        }
        Ok(())
    }

    fn add_name(&mut self, name: (FileId, Vec<u8>), file: FileId) -> Result<(), String> {
        let holds = self.files.get(&name.0).is_some_and(|known| known.record.kind == FileKind::Directory);
        let Some(known) = self.files.get_mut(&file).filter(|_| holds) else {
            return Err(format!("a name in {} leads to nothing, or lies in no directory", name.0.0));
        };
        if self.names.insert(name, file).is_none() {
            known.names += 1;
        }
        Ok(())
    }

    fn drop_nameless(&mut self, id: FileId, loose: &mut Vec<FileId>, effects: &mut Effects) {
        let is_root = self.directories.iter().any(|directory| directory.id == id);
        let nameless = self.files.get(&id).is_some_and(|known| known.names == 0);
        if is_root || !nameless {
            return;
        }
        let below: Vec<(Vec<u8>, FileId)> = self.below(id).map(|(name, id)| (name.to_vec(), id)).collect();
        for (name, child) in below {
            self.names.remove(&(id, name));
            self.count_down(child);
            loose.push(child);
        }
        self.files.remove(&id);
        effects.gone.push(id);
    }

    /// What somebody has to be told who has `before`.
    pub(crate) fn since(&self, before: &Self) -> FileChanges {
        let is_new =
            |id: &FileId, known: &Known| before.files.get(id).is_none_or(|old| old.record != known.record);
        let files = self.files.iter().filter(|(id, known)| is_new(id, known));
        let name = |(directory, name): &(FileId, Vec<u8>), file| NameRecord {
            directory: *directory,
            name: name.clone(),
            file,
        };
        let lost = before.names.keys().filter(|key| !self.names.contains_key(*key));
        let led = self.names.iter().filter(|(key, id)| before.names.get(*key) != Some(*id));
        FileChanges {
            directories: if before.directories.is_empty() { self.directories.clone() } else { Vec::new() },
            files: files.map(|(_, known)| known.record.clone()).collect(),
            names: lost.map(|key| name(key, None)).chain(led.map(|(key, id)| name(key, Some(*id)))).collect(),
            gone: before.files.keys().filter(|id| !self.files.contains_key(*id)).copied().collect(),
            more: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: FileId = FileId(0);

    fn record(id: u64, kind: FileKind) -> FileRecord {
        FileRecord { id: FileId(id), kind, mode: 0o644, owner: 0, group: 0, modified: (0, 0) }
    }

    fn regular(id: u64, size_bytes: u64) -> FileRecord {
        record(id, FileKind::Regular { size_bytes })
    }

    fn name(directory: u64, name: &str, file: Option<u64>) -> NameRecord {
        let (directory, file) = (FileId(directory), file.map(FileId));
        NameRecord { directory, name: name.as_bytes().to_vec(), file }
    }

    fn changes(files: Vec<FileRecord>, names: Vec<NameRecord>) -> FileChanges {
        FileChanges { files, names, ..FileChanges::default() }
    }

    fn sample() -> Tree {
        let mut tree = Tree::default();
        let directories = vec![StateDirectory { id: ROOT, path: b"/var/kv".to_vec() }];
        let files = vec![
            record(0, FileKind::Directory),
            record(1, FileKind::Directory),
            regular(2, 5000),
            regular(3, 10),
        ];
        let names = vec![
            name(0, "below", Some(1)),
            name(1, "deep", Some(2)),
            name(0, "flat", Some(3)),
            name(0, "again", Some(2)),
        ];
        tree.apply(FileChanges { directories, files, names, ..FileChanges::default() }).unwrap();
        tree
    }

    fn paths(tree: &Tree) -> Vec<String> {
        tree.files().keys().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn files_are_found_by_all_of_their_names() {
        let tree = sample();
        assert_eq!(paths(&tree), ["/var/kv/again", "/var/kv/below", "/var/kv/below/deep", "/var/kv/flat"]);
        assert_eq!(tree.find(b"/var/kv/below/deep"), tree.find(b"/var/kv/again"));
        assert_eq!(tree.find(b"/var/kv/flat"), Some(&regular(3, 10)));
        assert_eq!((tree.find(b"/var/kvflat"), tree.find(b"/var/kv/none")), (None, None));
    }

    #[test]
    fn what_no_name_leads_to_is_gone_with_all_below_it() {
        let mut tree = sample();
        let effects = tree.apply(changes(Vec::new(), vec![name(0, "below", None)])).unwrap();
        assert_eq!(effects.gone, [FileId(1)], "another name leads to what was in it");
        assert_eq!(paths(&tree), ["/var/kv/again", "/var/kv/flat"]);
        let effects = tree.apply(changes(vec![regular(2, 7)], vec![name(0, "again", None)])).unwrap();
        assert_eq!(effects.gone, [FileId(2)]);
        assert_eq!(tree.files.len(), 2);
    }

    #[test]
    fn what_was_made_and_removed_leaves_nothing() {
        let mut tree = sample();
        let before = tree.clone();
        for id in 10..50 {
            let named = name(0, &format!("temporary-{id}"), Some(id));
            tree.apply(changes(vec![regular(id, 1)], vec![named.clone()])).unwrap();
            let unnamed = FileChanges { gone: vec![FileId(id)], ..FileChanges::default() };
            let unnamed = FileChanges { names: vec![NameRecord { file: None, ..named }], ..unnamed };
            tree.apply(unnamed).unwrap();
        }
        assert_eq!(tree, before);
        assert!(tree.since(&before).is_empty());
    }

    #[test]
    fn whoever_is_told_what_changed_has_the_same() {
        let before = sample();
        let mut tree = before.clone();
        let moved = vec![name(0, "below", None), name(0, "moved", Some(1)), name(0, "flat", Some(4))];
        let effects = tree.apply(changes(vec![regular(4, 1), regular(2, 100)], moved)).unwrap();
        assert_eq!((effects.cut, effects.gone), (vec![(FileId(2), 5000, 100)], vec![FileId(3)]));
        for told in [&before, &Tree::default()] {
            let mut other = told.clone();
            other.apply(tree.since(told)).unwrap();
            assert_eq!(other, tree);
        }
        assert_eq!(tree.since(&before).gone, [FileId(3)]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            changes(Vec::new(), vec![name(0, "x", Some(9))]),
            changes(Vec::new(), vec![name(3, "x", Some(2))]),
            changes(Vec::new(), vec![name(9, "x", Some(2))]),
            changes(vec![record(3, FileKind::Fifo)], Vec::new()),
            changes(vec![regular(3, u64::MAX)], Vec::new()),
        ] {
            assert!(sample().apply(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
