//! The made-up app's files, and what a standby makes of what epochs say of them.

use std::collections::{BTreeMap, BTreeSet};

use image::batch::Pages;
use image::files::{FileKind, FileRecord, NameRecord, StateDirectory};
use image::{FileChanges, FileId, PAGE_BYTES, PageTarget, Range};

use super::{App, Memory, PAGE};

pub const ROOT: FileId = FileId(0);
const DIRECTORIES_MAX: u64 = 3;
const FILES_MAX: usize = 12;
/// Over more than one window.
const SIZES: [u64; 4] = [3 * PAGE_BYTES, 3 * PAGE_BYTES, 40 * PAGE_BYTES, 1030 * PAGE_BYTES];

/// Which files there are. Their pages are with those of memory.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Disk {
    pub directories: Vec<StateDirectory>,
    pub files: BTreeMap<FileId, FileRecord>,
    pub names: BTreeMap<(FileId, Vec<u8>), FileId>,
}

impl Disk {
    pub fn size(&self, id: FileId) -> u64 {
        self.files.get(&id).and_then(|record| record.kind.size_bytes()).unwrap_or(0)
    }

    fn is_directory(&self, id: FileId) -> bool {
        self.files.get(&id).is_some_and(|record| record.kind == FileKind::Directory)
    }

    fn regular(&self) -> Vec<FileId> {
        let regular = |record: &&FileRecord| matches!(record.kind, FileKind::Regular { .. });
        self.files.values().filter(regular).map(|record| record.id).collect()
    }

    /// Those that no name leads to, with what is below them.
    fn drop_nameless(&mut self) -> Vec<FileId> {
        let mut dropped = Vec::new();
        loop {
            let named: BTreeSet<FileId> = self.names.values().copied().chain([ROOT]).collect();
            let nameless: Vec<FileId> = self.files.keys().copied().filter(|id| !named.contains(id)).collect();
            if nameless.is_empty() {
                return dropped;
            }
            self.files.retain(|id, _| named.contains(id));
            self.names.retain(|(directory, _), _| named.contains(directory));
            dropped.extend(nameless);
        }
    }
}

/// What changed since the last epoch.
#[derive(Debug, Clone, Default)]
pub struct Touched {
    files: BTreeSet<FileId>,
    names: BTreeSet<(FileId, Vec<u8>)>,
    gone: BTreeSet<FileId>,
    /// Cut in the middle, and not said anew.
    torn: BTreeSet<(FileId, u64)>,
}

impl Memory {
    /// As a standby does: of what is said twice the later counts, and sizes come before pages.
    pub fn apply_files(&mut self, changes: FileChanges) {
        let FileChanges { directories, files, names, .. } = changes;
        self.disk.directories.extend(directories);
        let records: BTreeMap<FileId, FileRecord> = files.into_iter().map(|said| (said.id, said)).collect();
        for (id, record) in records {
            self.disk.files.insert(id, record);
            self.clip(id);
        }
        for NameRecord { directory, name, file } in names {
            match file {
                Some(file) => {
                    assert!(self.disk.is_directory(directory) && self.disk.files.contains_key(&file));
                    self.disk.names.insert((directory, name), file);
                }
                None => drop(self.disk.names.remove(&(directory, name))),
            }
        }
        for id in self.disk.drop_nameless() {
            self.clip(id);
        }
    }

    /// What lies behind the end of a file is no more.
    fn clip(&mut self, id: FileId) {
        let size = self.disk.size(id);
        self.pages.retain(|&(target, at), page| {
            let room = if target == PageTarget::File(id) { size.saturating_sub(at) } else { PAGE_BYTES };
            page[room.min(PAGE_BYTES) as usize..].fill(0);
            room > 0
        });
    }
}

impl App {
    pub fn make_root(&mut self) {
        let root = StateDirectory { id: ROOT, path: b"/var/made-up".to_vec() };
        self.memory.disk.directories.push(root);
        self.set_file(ROOT, FileKind::Directory);
        self.next_file = 1;
    }

    /// Something that a program does with files.
    pub fn live_on_disk(&mut self) {
        match self.dice.below(12) {
            0 | 1 => self.make_file(),
            2 => self.make_directory(),
            3 => self.rename(),
            4 => self.link(),
            5 => self.unlink(),
            6 => self.remove_directory(),
            7 | 8 => self.resize(),
            9 => self.punch(),
            _ => self.write_file(),
        }
    }

    /// A file in the root directory, full of bytes.
    pub fn put_file(&mut self, name: &str, size_bytes: u64, byte: u8) {
        let led = self.memory.disk.names.get(&(ROOT, name.as_bytes().to_vec())).copied();
        let id = led.unwrap_or(FileId(self.next_file));
        self.set_file(id, FileKind::Regular { size_bytes });
        if led.is_none() {
            self.next_file += 1;
            self.set_name(ROOT, name.as_bytes().to_vec(), Some(id));
        }
        for at in (0..size_bytes).step_by(PAGE) {
            let mut data = vec![byte; PAGE];
            data[(size_bytes - at).min(PAGE_BYTES) as usize..].fill(0);
            let range = Range::new(at, at + PAGE_BYTES);
            self.record(PageTarget::File(id), Pages::Whole { range, data: data.into() });
        }
    }

    pub fn remove_file(&mut self, name: &str) {
        self.set_name(ROOT, name.as_bytes().to_vec(), None);
    }

    fn set_file(&mut self, id: FileId, kind: FileKind) {
        let modified = ((self.now_ns / 1_000_000_000) as i64, self.dice.below(1000) as u32);
        let record = FileRecord { id, kind, mode: 0o640, owner: 0, group: 0, modified };
        self.memory.disk.files.insert(id, record);
        self.memory.clip(id);
        self.touched.files.insert(id);
    }

    fn set_name(&mut self, directory: FileId, name: Vec<u8>, file: Option<FileId>) {
        match file {
            Some(file) => drop(self.memory.disk.names.insert((directory, name.clone()), file)),
            None => drop(self.memory.disk.names.remove(&(directory, name.clone()))),
        }
        self.touched.names.insert((directory, name));
        let below: Vec<_> = self.memory.disk.names.keys().cloned().collect();
        for id in self.memory.disk.drop_nameless() {
            self.touched.names.extend(below.iter().filter(|(directory, _)| *directory == id).cloned());
            self.touched.gone.insert(id);
            self.memory.clip(id);
        }
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let at = self.dice.below(from.len().max(1) as u64) as usize;
        from.get(at).cloned()
    }

    fn a_directory(&mut self) -> FileId {
        let disk = &self.memory.disk;
        let directories: Vec<FileId> =
            disk.files.keys().copied().filter(|id| disk.is_directory(*id)).collect();
        self.pick(&directories).unwrap_or(ROOT)
    }

    fn a_name(&mut self) -> Vec<u8> {
        format!("name-{}", self.dice.below(2 * FILES_MAX as u64)).into_bytes()
    }

    /// A name of something that is no directory.
    fn a_file(&mut self) -> Option<((FileId, Vec<u8>), FileId)> {
        let disk = &self.memory.disk;
        let names = disk.names.iter().filter(|(_, id)| !disk.is_directory(**id));
        let names: Vec<_> = names.map(|(name, id)| (name.clone(), *id)).collect();
        self.pick(&names)
    }

    fn is_free(&self, directory: FileId, name: &[u8]) -> bool {
        !self.memory.disk.names.contains_key(&(directory, name.to_vec()))
    }

    fn make(&mut self, kind: FileKind) {
        let (directory, name) = (self.a_directory(), self.a_name());
        if !self.is_free(directory, &name) || self.memory.disk.files.len() > FILES_MAX {
            return;
        }
        let id = FileId(self.next_file);
        // Some that are far apart, as in a directory of many.
        self.next_file += 1 + self.dice.below(2) * self.dice.below(70);
        self.set_file(id, kind);
        self.set_name(directory, name, Some(id));
    }

    fn make_file(&mut self) {
        let kind = match self.dice.below(6) {
            0 => FileKind::Link(b"somewhere".to_vec()),
            1 => FileKind::Fifo,
            _ => FileKind::Regular { size_bytes: 0 },
        };
        self.make(kind);
        self.write_file();
    }

    fn make_directory(&mut self) {
        let directories = self.memory.disk.files.values().filter(|it| it.kind == FileKind::Directory).count();
        if (directories as u64) <= DIRECTORIES_MAX {
            self.make(FileKind::Directory);
        }
    }

    fn rename(&mut self) {
        let Some(((directory, name), id)) = self.a_file() else { return };
        let (to, new) = (self.a_directory(), self.a_name());
        let in_the_way = self.memory.disk.names.get(&(to, new.clone())).copied();
        if in_the_way.is_some_and(|other| other == id || self.memory.disk.is_directory(other)) {
            return;
        }
        self.set_name(to, new, Some(id));
        self.set_name(directory, name, None);
    }

    fn link(&mut self) {
        let Some((_, id)) = self.a_file() else { return };
        let (directory, name) = (self.a_directory(), self.a_name());
        if self.is_free(directory, &name) {
            self.set_name(directory, name, Some(id));
        }
    }

    fn unlink(&mut self) {
        if let Some(((directory, name), _)) = self.a_file() {
            self.set_name(directory, name, None);
        }
    }

    /// With all that is in it.
    fn remove_directory(&mut self) {
        let disk = &self.memory.disk;
        let named: Vec<_> = disk
            .names
            .iter()
            .filter(|(_, id)| disk.is_directory(**id))
            .map(|(name, _)| name.clone())
            .collect();
        if let Some((directory, name)) = self.pick(&named) {
            self.set_name(directory, name, None);
        }
    }

    fn resize(&mut self) {
        let regular = self.memory.disk.regular();
        let Some(id) = self.pick(&regular) else { return };
        let sizes = SIZES[self.dice.below(4) as usize];
        let size_bytes = match self.dice.below(3) {
            0 => self.dice.below(sizes),
            1 => self.dice.below(sizes) / PAGE_BYTES * PAGE_BYTES,
            _ => self.memory.disk.size(id) / 2,
        };
        let before = self.memory.disk.size(id);
        if size_bytes > before {
            self.mend(id);
        }
        self.set_file(id, FileKind::Regular { size_bytes });
        if size_bytes >= before {
            return;
        }
        let (end, last) = (size_bytes.next_multiple_of(PAGE_BYTES), size_bytes - size_bytes % PAGE_BYTES);
        let lost = Range::new(end, before.next_multiple_of(PAGE_BYTES));
        self.touched.torn.retain(|(file, page)| *file != id || *page < end);
        if !lost.is_empty() {
            self.record(PageTarget::File(id), Pages::Gone { range: lost });
        }
        if size_bytes < end {
            self.touched.torn.insert((id, last));
        }
    }

    /// Says anew what is in the page that was cut.
    fn mend(&mut self, id: FileId) {
        for (id, at) in self.touched.torn.extract_if(.., |(file, _)| *file == id).collect::<Vec<_>>() {
            let page = self.memory.pages.get(&(PageTarget::File(id), at)).cloned();
            let data = page.unwrap_or_else(|| vec![0; PAGE]).into();
            self.record(PageTarget::File(id), Pages::Whole { range: Range::new(at, at + PAGE_BYTES), data });
        }
    }

    /// At the end, or somewhere in the midst.
    fn write_file(&mut self) {
        let regular = self.memory.disk.regular();
        let Some(id) = self.pick(&regular) else { return };
        let size = self.memory.disk.size(id);
        let at = match self.dice.below(3) {
            0 => size / PAGE_BYTES * PAGE_BYTES,
            1 => self.dice.below(SIZES[self.dice.clone().below(4) as usize]) / PAGE_BYTES * PAGE_BYTES,
            _ => self.dice.below(size.max(1)) / PAGE_BYTES * PAGE_BYTES,
        };
        let end = size.max(at + 1 + self.dice.below(PAGE_BYTES));
        self.mend(id);
        self.set_file(id, FileKind::Regular { size_bytes: end });
        let mut data = vec![1 + self.dice.below(255) as u8; PAGE];
        data[(end - at).min(PAGE_BYTES) as usize..].fill(0);
        let range = Range::new(at, at + PAGE_BYTES);
        self.record(PageTarget::File(id), Pages::Whole { range, data: data.into() });
    }

    fn punch(&mut self) {
        let regular = self.memory.disk.regular();
        let Some(id) = self.pick(&regular) else { return };
        let at = self.dice.below(self.memory.disk.size(id).max(1)) / PAGE_BYTES * PAGE_BYTES;
        self.mend(id);
        self.set_file(id, FileKind::Regular { size_bytes: self.memory.disk.size(id) });
        self.record(PageTarget::File(id), Pages::Gone { range: Range::new(at, at + PAGE_BYTES) });
    }

    /// What the next epoch says of files, besides content.
    pub fn file_changes(&mut self, full: bool) -> FileChanges {
        // A page that was cut is said anew, or what the file has there is somebody else's.
        for (id, _) in self.touched.torn.clone() {
            if self.dice.below(2) == 0 {
                self.mend(id);
            }
        }
        let Touched { files, names, gone, torn: _ } = std::mem::take(&mut self.touched);
        let Disk { directories, files: all, names: led } = &self.memory.disk;
        let name = |(directory, name): (FileId, Vec<u8>)| {
            let file = led.get(&(directory, name.clone())).copied();
            NameRecord { directory, name, file }
        };
        if full {
            let names = led.keys().cloned().map(name).collect();
            let (directories, files) = (directories.clone(), all.values().cloned().collect());
            return FileChanges { directories, files, names, ..FileChanges::default() };
        }
        let files = files.iter().filter_map(|id| all.get(id).cloned()).collect();
        let names = names.into_iter().map(name).collect();
        FileChanges { files, names, gone: gone.into_iter().collect(), ..FileChanges::default() }
    }
}
