//! Looking at names and files where something may have changed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use image::FileId;
use image::files::{FileKind, FileRecord, NameRecord};
use rustix::fs::{Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::OURS;
use crate::error::{FilesError, failed};
use crate::notice::{Notice, Told};
use crate::source::{Known, Sign, Source, stat};

/// No clock of a file system moves less often.
const TICK_NS: i128 = 20_000_000;

impl Source {
    /// Looks where the kernel told of changes.
    pub(crate) fn look_around(&mut self) -> Result<(), FilesError> {
        let Told { names, everything, displaced } = self.notices.read()?;
        if let Some(root) = displaced.iter().find_map(|id| self.roots.iter().find(|root| root.id == *id)) {
            let why = "it was moved or removed while the app ran; restart the app".to_owned();
            return Err(FilesError::Directory { path: root.path.clone(), why });
        }
        for id in displaced {
            // Another directory may have its number by now, which nobody watches.
            self.files.entry(id).and_modify(|known| known.watch = None);
        }
        let shaken = std::mem::take(&mut self.shaken);
        if everything || shaken {
            // Where names lead is known again only afterwards.
            let written = names.iter().filter(|(_, notice)| notice.content || notice.closed);
            let written: BTreeSet<FileId> =
                written.filter_map(|((directory, name), _)| self.entry(*directory, name)).collect();
            for root in self.roots.iter().map(|root| root.id).collect::<Vec<_>>() {
                self.walk(root)?;
            }
            let all = self.files.keys().copied().filter(|_| shaken).collect::<Vec<_>>();
            for id in written.into_iter().chain(all) {
                self.compare(id, crate::source::How::Whole)?;
            }
        }
        let mut directories = BTreeSet::new();
        for ((directory, name), notice) in names {
            directories.insert(directory);
            if name.is_empty() || !self.files.contains_key(&directory) {
                continue;
            }
            if is_of_no_name(&name, notice) && self.entry(directory, &name).is_none() {
                self.walk(directory)?;
                continue;
            }
            self.look_at(directory, &name, notice)?;
        }
        directories.into_iter().try_for_each(|directory| self.refresh(directory))?;
        self.settle();
        Ok(())
    }

    fn entry(&self, directory: FileId, name: &[u8]) -> Option<FileId> {
        self.files.get(&directory)?.entries.get(name).copied()
    }

    /// Looks at all names of a directory and below; at content only where a sign has moved.
    pub(crate) fn walk(&mut self, directory: FileId) -> Result<(), FilesError> {
        let path = self.path_of(directory);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
            Err(why) => return Err(failed("open", &path)(why)),
        };
        let mut found = BTreeSet::new();
        for entry in Dir::new(opened).map_err(failed("list", &path))? {
            let entry = entry.map_err(failed("list", &path))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                found.insert(name.to_vec());
            }
        }
        let known = self.files.get(&directory).map(|known| known.entries.keys().cloned().collect());
        let gone: Vec<Vec<u8>> = known.unwrap_or_default();
        for name in gone.into_iter().filter(|name| !found.contains(name)) {
            self.drop_name(directory, &name);
        }
        for name in found {
            let first = self.look_at(directory, &name, Notice::default())?;
            if let Some(id) = self.entry(directory, &name).filter(|_| !first)
                && self.files.get(&id).is_some_and(|known| known.record.kind == FileKind::Directory)
            {
                self.walk(id)?;
            }
        }
        self.refresh(directory)
    }

    /// Looks at one name. What it leads to is known afterwards, and its content if `notice` says that it changed or a
    /// sign does. True if it is looked at for the first time.
    fn look_at(&mut self, directory: FileId, name: &[u8], notice: Notice) -> Result<bool, FilesError> {
        let root = self.root_of(directory);
        if directory == root && name == OURS {
            return Ok(false);
        }
        let path = self.path_of(directory).join(OsStr::from_bytes(name));
        let Some(stat) = stat(&path)? else {
            self.drop_name(directory, name);
            return Ok(false);
        };
        let Some(kind) = self.kind_of(root, &path, &stat)? else {
            self.drop_name(directory, name);
            return Ok(false);
        };
        let same = self.by_inode.get(&(root, stat.st_ino)).copied();
        let same = same.filter(|id| self.files.get(id).is_some_and(|known| known.record.kind.is_like(&kind)));
        let id = match same {
            Some(id) => id,
            None => {
                let id = self.fresh_id();
                self.take_in(id, root, &stat, kind.clone())?;
                id
            }
        };
        // A new directory may have the number of one that is gone.
        let another =
            kind == FileKind::Directory && self.files.get(&id).is_some_and(|known| known.watch.is_none());
        if self.entry(directory, name) != Some(id) {
            self.drop_name(directory, name);
            self.add_name(directory, name, id)?;
        }
        if same.is_none() {
            self.look_into(id)?;
            return Ok(true);
        }
        if another {
            self.watch(id)?;
            self.update(id, &stat, kind);
            self.look_into(id)?;
            return Ok(true);
        }
        let before = self.files.get(&id).map_or(0, |known| known.sign.size);
        let moved = self.update(id, &stat, kind);
        if notice.content || notice.closed || moved {
            self.look_at_content(id, before, notice.closed || !notice.content)?;
        }
        Ok(false)
    }

    /// The first look at a file.
    fn look_into(&mut self, id: FileId) -> Result<(), FilesError> {
        match self.files.get(&id).map(|known| &known.record.kind) {
            // It was there before it was watched, and may have been filled before.
            Some(FileKind::Directory) => self.walk(id),
            Some(FileKind::Regular { .. }) if self.listing => {
                self.read_later(id);
                Ok(())
            }
            Some(FileKind::Regular { .. }) => self.compare(id, crate::source::How::Whole),
            Some(FileKind::Link(_) | FileKind::Fifo) | None => Ok(()),
        }
    }

    /// None for what is not replicated: a socket is bound again by whoever had it bound.
    fn kind_of(
        &self,
        root: FileId,
        path: &std::path::Path,
        stat: &Stat,
    ) -> Result<Option<FileKind>, FilesError> {
        let device = self.roots.iter().find(|known| known.id == root).map(|root| root.device);
        if device != Some(stat.st_dev) {
            return Err(FilesError::OtherFileSystem { path: self.name_for_people(path) });
        }
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if matches!(file_type, FileType::RegularFile | FileType::Directory) {
            self.refuse_attributes(path)?;
        }
        Ok(Some(match file_type {
            FileType::RegularFile => FileKind::Regular { size_bytes: stat.st_size as u64 },
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => match rustix::fs::readlink(path, Vec::new()) {
                Ok(target) => FileKind::Link(target.into_bytes()),
                Err(rustix::io::Errno::NOENT) => return Ok(None),
                Err(why) => return Err(failed("read the link", path)(why)),
            },
            FileType::Fifo => FileKind::Fifo,
            FileType::Socket => return Ok(None),
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => {
                return Err(FilesError::Device { path: self.name_for_people(path) });
            }
        }))
    }

    /// What would be lost. Labels that each host puts on by its own rules are not the file's.
    fn refuse_attributes(&self, path: &std::path::Path) -> Result<(), FilesError> {
        const LIST_BYTES: usize = 64 << 10;
        let mut short = [0; 256];
        let mut long = Vec::new();
        let list = match rustix::fs::llistxattr(path, &mut short[..]) {
            Ok(len) => &short[..len],
            Err(Errno::RANGE) => {
                long.resize(LIST_BYTES, 0);
                let len = rustix::fs::llistxattr(path, &mut long[..]);
                &long[..len.map_err(failed("list the attributes of", path))?]
            }
            // No such thing there, or no such file any more.
            Err(Errno::NOTSUP | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(why) => return Err(failed("list the attributes of", path)(why)),
        };
        let is_of_file = |name: &&[u8]| {
            name.starts_with(b"user.")
                || name.starts_with(b"system.posix_acl_")
                || *name == b"security.capability"
        };
        match list.split(|byte| *byte == 0).find(is_of_file) {
            None => Ok(()),
            Some(name) => Err(FilesError::Attribute {
                path: self.name_for_people(path),
                name: String::from_utf8_lossy(name).into_owned(),
            }),
        }
    }

    /// As the app calls it.
    fn name_for_people(&self, path: &std::path::Path) -> std::path::PathBuf {
        let of_root = |root: &crate::source::Root| {
            path.strip_prefix(self.path_of(root.id)).ok().map(|below| root.path.join(below))
        };
        self.roots.iter().find_map(of_root).unwrap_or_else(|| path.to_owned())
    }

    fn root_of(&self, id: FileId) -> FileId {
        self.files.get(&id).map_or(id, |known| known.root)
    }

    /// Makes a file known, whose content is not. N.B. a directory is watched before anybody looks into it.
    pub(crate) fn take_in(
        &mut self,
        id: FileId,
        root: FileId,
        stat: &Stat,
        kind: FileKind,
    ) -> Result<(), FilesError> {
        let record = record_of(id, stat, kind);
        let mut known = Known {
            root,
            inode: stat.st_ino,
            record: record.clone(),
            names: Vec::new(),
            entries: Default::default(),
            watch: None,
            pages: Default::default(),
            sign: sign_of(stat),
        };
        if record.kind == FileKind::Directory && id == root {
            known.watch = Some(self.notices.watch(id, &self.path_of(id))?);
        }
        self.by_inode.insert((root, stat.st_ino), id);
        self.files.insert(id, known);
        if let FileKind::Regular { size_bytes } = record.kind {
            self.resize(id, size_bytes);
            self.note_links(id, stat);
        }
        self.say_file(record);
        Ok(())
    }

    /// True if a sign says that its content may have changed.
    fn update(&mut self, id: FileId, stat: &Stat, kind: FileKind) -> bool {
        let (record, sign) = (record_of(id, stat, kind), sign_of(stat));
        let Some(known) = self.files.get_mut(&id) else { return false };
        let moved = known.sign.fresh || known.sign.size != sign.size || known.sign.modified != sign.modified;
        known.sign = sign;
        let regular = matches!(record.kind, FileKind::Regular { .. });
        if known.record != record {
            known.record = record.clone();
            if let FileKind::Regular { size_bytes } = record.kind {
                self.resize(id, size_bytes);
            }
            self.say_file(record);
        }
        if regular {
            self.note_links(id, stat);
        }
        moved && regular
    }

    fn note_links(&mut self, id: FileId, stat: &Stat) {
        let names = self.files.get(&id).map_or(0, |known| known.names.len().max(1));
        match stat.st_nlink as usize > names {
            true => self.linked_outside.insert(id),
            false => self.linked_outside.remove(&id),
        };
    }

    /// Looks at a file that may have changed without a notice.
    pub(crate) fn look_at_sign(&mut self, id: FileId) -> Result<(), FilesError> {
        let Some(stat) = stat(&self.path_of(id))? else { return Ok(()) };
        let Some(known) = self.files.get(&id) else { return Ok(()) };
        let FileKind::Regular { .. } = known.record.kind else { return Ok(()) };
        if known.inode == stat.st_ino
            && self.update(id, &stat, FileKind::Regular { size_bytes: stat.st_size as u64 })
        {
            self.compare(id, crate::source::How::Whole)?;
        }
        Ok(())
    }

    /// A directory's own permissions and times.
    fn refresh(&mut self, directory: FileId) -> Result<(), FilesError> {
        let path = self.path_of(directory);
        if self.files.contains_key(&directory)
            && let Some(stat) = stat(&path)?
        {
            self.refuse_attributes(&path)?;
            self.update(directory, &stat, FileKind::Directory);
        }
        Ok(())
    }

    fn add_name(&mut self, directory: FileId, name: &[u8], id: FileId) -> Result<(), FilesError> {
        let is_directory = |known: &Known| known.record.kind == FileKind::Directory;
        if let Some(known) = self.files.get(&id).filter(|known| is_directory(known)) {
            // It has one name at a time.
            for (parent, old) in known.names.clone() {
                self.drop_name(parent, &old);
            }
        }
        if let Some(parent) = self.files.get_mut(&directory) {
            parent.entries.insert(name.to_vec(), id);
        }
        let watch = self.files.get_mut(&id).is_some_and(|known| {
            known.names.push((directory, name.to_vec()));
            is_directory(known) && known.watch.is_none()
        });
        self.say_name(NameRecord { directory, name: name.to_vec(), file: Some(id) });
        if watch { self.watch(id) } else { Ok(()) }
    }

    fn watch(&mut self, id: FileId) -> Result<(), FilesError> {
        let watch = self.notices.watch(id, &self.path_of(id))?;
        self.files.entry(id).and_modify(|known| known.watch = Some(watch));
        Ok(())
    }

    fn drop_name(&mut self, directory: FileId, name: &[u8]) {
        let Some(id) = self.files.get_mut(&directory).and_then(|known| known.entries.remove(name)) else {
            return;
        };
        if let Some(known) = self.files.get_mut(&id) {
            known.names.retain(|(parent, known)| (*parent, &known[..]) != (directory, name));
            self.nameless.extend(known.names.is_empty().then_some(id));
        }
        self.say_name(NameRecord { directory, name: name.to_vec(), file: None });
    }

    /// Forgets what no name leads to any more. Not before all names were looked at: a file may have moved.
    pub(crate) fn settle(&mut self) {
        while let Some(id) = self.nameless.pop_first() {
            if self.files.get(&id).is_some_and(|known| known.names.is_empty()) {
                self.forget(id);
            }
        }
    }

    fn forget(&mut self, id: FileId) {
        let entries = self.files.get(&id).map(|known| known.entries.keys().cloned().collect::<Vec<_>>());
        for name in entries.unwrap_or_default() {
            self.drop_name(id, &name);
        }
        let Some(known) = self.files.remove(&id) else { return };
        if self.by_inode.get(&(known.root, known.inode)) == Some(&id) {
            self.by_inode.remove(&(known.root, known.inode));
        }
        if let Some(watch) = known.watch {
            self.notices.forget(watch);
        }
        self.linked_outside.remove(&id);
        self.say_gone(id);
    }
}

/// A file that was made without a name is told of by one that nobody can look up, also after it has got another.
fn is_of_no_name(name: &[u8], notice: Notice) -> bool {
    !notice.name && name.strip_prefix(b"#").is_some_and(|rest| rest.iter().all(u8::is_ascii_digit))
}

fn record_of(id: FileId, stat: &Stat, kind: FileKind) -> FileRecord {
    FileRecord {
        id,
        kind,
        mode: stat.st_mode & 0o7777,
        owner: stat.st_uid,
        group: stat.st_gid,
        modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
    }
}

fn sign_of(stat: &Stat) -> Sign {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let at = |seconds: i64, nanos: i128| i128::from(seconds) * 1_000_000_000 + nanos;
    let changed = at(stat.st_ctime, i128::from(stat.st_ctime_nsec));
    Sign {
        size: stat.st_size as u64,
        modified: (stat.st_mtime, stat.st_mtime_nsec),
        changed: (stat.st_ctime, stat.st_ctime_nsec),
        fresh: at(now.tv_sec, i128::from(now.tv_nsec)) - changed < TICK_NS,
    }
}
