//! The standby's side: the trees as of the last epoch that was applied.
//!
//! Names lead to files by their numbers, so what an epoch says is carried out in any order of its records: first the
//! names that change are taken away, with what they led to kept aside, then files are made, and then the new names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use image::batch::Pages;
use image::files::{FileKind, FileRecord, NameRecord, StateDirectory};
use image::{FileChanges, FileId, PageBatch, PageTarget, Range};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, Timespec, Timestamps};

use crate::OURS;
use crate::error::FilesError;
use crate::place::{Place, Replaced};

const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4095;
/// Far above what any file system holds; a file is sparse, so its size alone costs nothing.
const FILE_BYTES_MAX: u64 = 1 << 47;
const DIRECTORIES_MAX: usize = 64;

#[derive(Debug, Default)]
pub struct Mirror {
    /// Where the trees are kept, if not below their paths.
    apart: Option<PathBuf>,
    places: Vec<(FileId, Place)>,
    files: HashMap<FileId, Held>,
    /// Parts of a full sync that were not carried out yet.
    parts: FileChanges,
}

#[derive(Debug)]
struct Held {
    place: usize,
    record: FileRecord,
    names: Vec<(FileId, Vec<u8>)>,
    entries: BTreeMap<Vec<u8>, FileId>,
}

/// Where the standby keeps what will be at a path.
#[derive(Debug, Clone)]
pub struct Located {
    pub path: PathBuf,
    pub tree: PathBuf,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    move |source| FilesError::Kernel { what, path: path.to_owned(), source }
}

fn senseless<T>(why: impl Into<String>) -> Result<T, FilesError> {
    Err(FilesError::Senseless(why.into()))
}

impl Mirror {
    /// One whose trees are kept in this directory, and are never put in their place: what is at their paths is left alone.
    pub fn apart(directory: PathBuf) -> Self {
        Self { apart: Some(directory), ..Self::default() }
    }

    /// Takes a part of a full sync, and carries all out when it is the last.
    pub fn add_part(&mut self, mut part: FileChanges) -> Result<(), FilesError> {
        for StateDirectory { id, path } in std::mem::take(&mut part.directories) {
            self.add_place(id, &path)?;
        }
        self.parts.extend(part);
        if self.parts.more { Ok(()) } else { self.settle() }
    }

    fn add_place(&mut self, id: FileId, path: &[u8]) -> Result<(), FilesError> {
        let path = Path::new(OsStr::from_bytes(path));
        let whole = path.is_absolute()
            && path.as_os_str().len() <= PATH_MAX
            && path.parent().is_some()
            && !path.as_os_str().as_bytes().contains(&0)
            && path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        let apart = |other: &Path| !other.starts_with(path) && !path.starts_with(other);
        if !whole || !self.places.iter().all(|(_, place)| apart(&place.path)) {
            return senseless(format!("{} can't be a state directory", path.display()));
        }
        if self.places.len() == DIRECTORIES_MAX || self.files.contains_key(&id) {
            return senseless("there are too many state directories, or two of one name");
        }
        let place = self.places.len();
        self.places.push((
            id,
            match &self.apart {
                None => Place::make(path)?,
                Some(apart) => Place::make_apart(path, apart.join(place.to_string()))?,
            },
        ));
        let (names, entries) = (Vec::new(), BTreeMap::new());
        let kind = FileKind::Directory;
        let record = FileRecord { id, kind, mode: 0o700, owner: 0, group: 0, modified: (0, 0) };
        self.files.insert(id, Held { place, record, names, entries });
        Ok(())
    }

    fn settle(&mut self) -> Result<(), FilesError> {
        if self.parts.is_empty() {
            return Ok(());
        }
        let parts = std::mem::take(&mut self.parts);
        self.check(&parts, &[])?;
        self.apply(&parts, &[])
    }

    /// Where the trees are, for whoever maps files in them.
    pub fn located(&self) -> Vec<Located> {
        let locate = |(_, place): &(FileId, Place)| Located { path: place.path.clone(), tree: place.tree() };
        self.places.iter().map(locate).collect()
    }

    /// All that is there, as a full sync says it; the content is read from [`Self::open`]'s files.
    pub fn census(&self) -> FileChanges {
        let place = |(id, place): &(FileId, Place)| StateDirectory {
            id: *id,
            path: place.path.as_os_str().as_bytes().to_vec(),
        };
        let mut census =
            FileChanges { directories: self.places.iter().map(place).collect(), ..FileChanges::default() };
        for (id, held) in &self.files {
            census.files.push(held.record.clone());
            let name = |(name, file): (&Vec<u8>, &FileId)| NameRecord {
                directory: *id,
                name: name.clone(),
                file: Some(*file),
            };
            census.names.extend(held.entries.iter().map(name));
        }
        census
    }

    /// A regular file, to be read, while it is there.
    pub fn open(&self, id: FileId) -> Option<File> {
        self.kind_of(id)?.size_bytes()?;
        let path = self.path_of(id);
        open(&path).inspect_err(|why| tracing::warn!("{why}")).ok()
    }

    fn kind_of(&self, id: FileId) -> Option<&FileKind> {
        self.files.get(&id).map(|held| &held.record.kind)
    }

    /// Writes content of a full sync, which may be of a file that was removed meanwhile.
    pub fn take_content(&mut self, batch: PageBatch) -> Result<(), FilesError> {
        if let PageTarget::File(id) = batch.target
            && self.kind_of(id).is_none()
        {
            return Ok(());
        }
        let batch = [batch];
        self.check(&FileChanges::default(), &batch)?;
        self.write(&batch)
    }

    /// Checks what can be known before the epoch is acknowledged. Nothing is changed.
    pub fn check(&self, changes: &FileChanges, content: &[PageBatch]) -> Result<(), FilesError> {
        let FileChanges { directories, files, names, gone: _, more: _ } = changes;
        if !directories.is_empty() {
            return senseless("state directories came in the middle");
        }
        let mut kinds: HashMap<FileId, &FileKind> = HashMap::new();
        for record in files {
            check_record(record)?;
            let held = self.kind_of(record.id);
            let before = kinds.insert(record.id, &record.kind).or(held);
            if before.is_some_and(|before| !before.is_like(&record.kind)) {
                return senseless("a file became one of another kind");
            }
        }
        let kind_of = |id: FileId| kinds.get(&id).copied().or_else(|| self.kind_of(id));
        for NameRecord { directory, name, file } in names {
            let root = self.places.iter().any(|(id, _)| id == directory);
            if !is_name(name) || (root && name == OURS) {
                return senseless("a name is none");
            }
            let leads = file.is_none_or(|file| kind_of(file).is_some());
            let lies = match kind_of(*directory) {
                Some(kind) => *kind == FileKind::Directory,
                None => file.is_none(),
            };
            if !leads || !lies {
                return senseless("a name leads to nothing, or lies in no directory");
            }
        }
        let mut wanted = 0;
        for batch in content {
            let PageTarget::File(id) = batch.target else { return senseless("pages are of no file") };
            if !matches!(kind_of(id), Some(FileKind::Regular { .. })) {
                return senseless("pages are of something that has none");
            }
            for pages in &batch.pages {
                wanted += match pages {
                    Pages::Whole { data, .. } => data.len() as u64,
                    Pages::Gone { .. } => 0,
                    Pages::Lines { .. } => return senseless("content came in lines"),
                };
                if pages.range().end > FILE_BYTES_MAX {
                    return senseless("pages lie behind the end of any file");
                }
            }
        }
        self.check_room(wanted)
    }

    fn check_room(&self, wanted: u64) -> Result<(), FilesError> {
        /// What the names and blocks of an epoch may need.
        const RESERVE_BYTES: u64 = 1 << 20;
        if wanted == 0 {
            return Ok(());
        }
        for (_, place) in &self.places {
            let tree = place.tree();
            let found = rustix::fs::statvfs(&tree);
            let found = found.map_err(|why| failed("ask for the room in", &tree)(why.into()))?;
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            if free < wanted + RESERVE_BYTES {
                return Err(FilesError::NoRoom { path: place.path.clone(), free, wanted });
            }
        }
        Ok(())
    }

    /// Applies an epoch that was checked. After a failure the trees are no epoch's.
    pub fn apply(&mut self, changes: &FileChanges, content: &[PageBatch]) -> Result<(), FilesError> {
        let mut names: BTreeMap<(FileId, &[u8]), Option<FileId>> = BTreeMap::new();
        for record in &changes.names {
            names.insert((record.directory, &record.name), record.file);
        }
        let records: BTreeMap<FileId, &FileRecord> =
            changes.files.iter().map(|record| (record.id, record)).collect();
        let mut lost: BTreeSet<FileId> = records.keys().chain(&changes.gone).copied().collect();
        for (&(directory, name), &file) in &names {
            lost.extend(self.detach(directory, name, file)?);
        }
        self.make_files(&records, &names)?;
        for (&(directory, name), &file) in &names {
            if let Some(file) = file {
                self.attach(directory, name, file)?;
            }
        }
        for (id, record) in &records {
            self.set_size_and_owner(*id, record)?;
        }
        self.write(content)?;
        for id in records.keys() {
            self.set_time(*id)?;
        }
        self.drop_nameless(lost)
    }

    /// Takes a name away that is to lead somewhere else, or nowhere. Returns what it led to.
    fn detach(
        &mut self,
        directory: FileId,
        name: &[u8],
        file: Option<FileId>,
    ) -> Result<Option<FileId>, FilesError> {
        let old = self.files.get(&directory).and_then(|held| held.entries.get(name)).copied();
        let Some(old) = old.filter(|&old| Some(old) != file) else { return Ok(None) };
        let path = self.path_of(directory).join(OsStr::from_bytes(name));
        let Some(held) = self.files.get_mut(&old) else { return senseless("a name leads to nothing") };
        held.names.retain(|(parent, known)| (*parent, &known[..]) != (directory, name));
        match held.names.is_empty() {
            true => {
                let aside = self.path_of(old);
                fs::rename(&path, &aside).map_err(failed("move aside", &path))?;
            }
            false => fs::remove_file(&path).map_err(failed("remove", &path))?,
        }
        if let Some(parent) = self.files.get_mut(&directory) {
            parent.entries.remove(name);
        }
        Ok(Some(old))
    }

    fn make_files(
        &mut self,
        records: &BTreeMap<FileId, &FileRecord>,
        names: &BTreeMap<(FileId, &[u8]), Option<FileId>>,
    ) -> Result<(), FilesError> {
        let mut places: BTreeMap<FileId, FileId> = BTreeMap::new();
        for (&(directory, _), &file) in names {
            places.extend(file.map(|file| (file, directory)));
        }
        for (&id, record) in records {
            if self.files.contains_key(&id) {
                continue;
            }
            // Up to a directory that is there. What has no name was made and removed meanwhile.
            let mut at = id;
            let known = (0..=records.len()).find_map(|_| {
                at = *places.get(&at)?;
                self.files.get(&at).map(|held| held.place)
            });
            let Some(place) = known else { continue };
            let mut made = (*record).clone();
            if let FileKind::Regular { size_bytes } = &mut made.kind {
                *size_bytes = 0;
            }
            let (names, entries) = (Vec::new(), BTreeMap::new());
            self.files.insert(id, Held { place, record: made, names, entries });
            let path = self.path_of(id);
            make(&path, &record.kind).map_err(failed("make", &path))?;
        }
        Ok(())
    }

    fn attach(&mut self, directory: FileId, name: &[u8], id: FileId) -> Result<(), FilesError> {
        let Some(parent) = self.files.get(&directory) else {
            return senseless("a name lies in no directory");
        };
        if parent.entries.get(name) == Some(&id) {
            return Ok(());
        }
        let place = parent.place;
        let path = self.path_of(directory).join(OsStr::from_bytes(name));
        let from = self.path_of(id);
        let Some(held) = self.files.get_mut(&id) else { return senseless("a name leads to nothing") };
        if held.place != place {
            return senseless("a file is in two state directories");
        }
        match (held.names.is_empty(), &held.record.kind) {
            (true, _) => fs::rename(&from, &path).map_err(failed("name", &path))?,
            (false, FileKind::Directory) => return senseless("a directory has two names"),
            (false, _) => fs::hard_link(&from, &path).map_err(failed("name", &path))?,
        }
        held.names.push((directory, name.to_vec()));
        if let Some(parent) = self.files.get_mut(&directory) {
            parent.entries.insert(name.to_vec(), id);
        }
        Ok(())
    }

    fn set_size_and_owner(&mut self, id: FileId, record: &FileRecord) -> Result<(), FilesError> {
        if !self.files.contains_key(&id) {
            return Ok(());
        }
        let path = self.path_of(id);
        let owner = Some(rustix::fs::Uid::from_raw(record.owner));
        let group = Some(rustix::fs::Gid::from_raw(record.group));
        rustix::fs::chownat(CWD, &path, owner, group, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|why| failed("give an owner to", &path)(why.into()))?;
        if !matches!(record.kind, FileKind::Link(_)) {
            fs::set_permissions(&path, fs::Permissions::from_mode(record.mode))
                .map_err(failed("set the permissions of", &path))?;
        }
        if let FileKind::Regular { size_bytes } = record.kind {
            open(&path)?.set_len(size_bytes).map_err(failed("set the size of", &path))?;
        }
        self.files.entry(id).and_modify(|held| held.record = record.clone());
        Ok(())
    }

    /// Writes content that was checked.
    pub fn write(&mut self, content: &[PageBatch]) -> Result<(), FilesError> {
        let mut last: Option<(FileId, File)> = None;
        for batch in content {
            let PageTarget::File(id) = batch.target else { return senseless("pages are of no file") };
            // What was made and removed since is not here.
            let Some(held) = self.files.get(&id) else { continue };
            let FileKind::Regular { size_bytes } = held.record.kind else {
                return senseless("pages are of no file");
            };
            let path = self.path_of(id);
            let file = match last.take_if(|(known, _)| *known == id) {
                Some((_, file)) => file,
                None => open(&path)?,
            };
            for pages in &batch.pages {
                write_pages(&file, pages, size_bytes).map_err(failed("write", &path))?;
            }
            last = Some((id, file));
            self.set_time(id)?;
        }
        Ok(())
    }

    fn set_time(&self, id: FileId) -> Result<(), FilesError> {
        let Some(held) = self.files.get(&id) else { return Ok(()) };
        let (path, (seconds, nanos)) = (self.path_of(id), held.record.modified);
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
            last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
        };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|why| failed("set the time of", &path)(why.into()))
    }

    /// What no name leads to is removed, with all that is below it.
    fn drop_nameless(&mut self, candidates: BTreeSet<FileId>) -> Result<(), FilesError> {
        for id in candidates {
            let is_place = self.places.iter().any(|(place, _)| *place == id);
            if !is_place && self.files.get(&id).is_some_and(|held| held.names.is_empty()) {
                self.forget(id)?;
            }
        }
        Ok(())
    }

    fn forget(&mut self, id: FileId) -> Result<(), FilesError> {
        let path = self.path_of(id);
        let Some(held) = self.files.remove(&id) else { return Ok(()) };
        if held.record.kind == FileKind::Directory {
            let below: Vec<(Vec<u8>, FileId)> = held.entries.into_iter().collect();
            for (name, child) in below {
                let Some(child_held) = self.files.get_mut(&child) else { continue };
                child_held.names.retain(|(parent, known)| (*parent, known) != (id, &name));
                if child_held.names.is_empty() {
                    self.files.remove(&child);
                }
            }
            return fs::remove_dir_all(&path).map_err(failed("remove", &path));
        }
        fs::remove_file(&path).map_err(failed("remove", &path))
    }

    fn path_of(&self, id: FileId) -> PathBuf {
        let mut names = Vec::new();
        let mut at = id;
        while let Some((directory, name)) = self.files.get(&at).and_then(|held| held.names.last()) {
            names.push(name);
            at = *directory;
        }
        let mut path = match self.places.iter().find(|(place, _)| *place == at) {
            Some((_, place)) => place.tree(),
            None => {
                let place = self.files.get(&at).map_or(0, |held| held.place);
                self.places
                    .get(place)
                    .map_or_else(PathBuf::new, |(_, place)| place.held().join(at.0.to_string()))
            }
        };
        path.extend(names.into_iter().rev().map(|name| OsStr::from_bytes(name)));
        path
    }

    /// Puts the trees in the place of what is at their paths. `by` names the checkpoint, in a file's name.
    pub fn replace(self, by: &str) -> Result<Vec<Replaced>, FilesError> {
        assert!(self.apart.is_none(), "trees that are kept apart stay there");
        self.places.into_iter().map(|(_, place)| place.replace(by)).collect()
    }
}

fn check_record(record: &FileRecord) -> Result<(), FilesError> {
    let possible = match &record.kind {
        FileKind::Directory | FileKind::Fifo => true,
        FileKind::Regular { size_bytes } => *size_bytes <= FILE_BYTES_MAX,
        FileKind::Link(target) => !target.is_empty() && target.len() <= PATH_MAX && !target.contains(&0),
    };
    if possible && record.mode <= 0o7777 { Ok(()) } else { senseless("a file is of no possible kind") }
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

fn make(path: &Path, kind: &FileKind) -> io::Result<()> {
    match kind {
        FileKind::Directory => fs::create_dir(path),
        FileKind::Regular { .. } => File::create_new(path).map(drop),
        FileKind::Link(target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), path),
        FileKind::Fifo => Ok(rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?),
    }
}

fn open(path: &Path) -> Result<File, FilesError> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    Ok(File::from(opened.map_err(|why| failed("open", path)(why.into()))?))
}

fn write_pages(file: &File, pages: &Pages, size: u64) -> io::Result<()> {
    match pages {
        Pages::Whole { range, data } => {
            let room = size.saturating_sub(range.start).min(data.len() as u64) as usize;
            file.write_all_at(&data[..room], range.start)
        }
        Pages::Gone { range } => {
            let range = Range::new(range.start, range.end.min(size));
            if range.is_empty() {
                return Ok(());
            }
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(file, flags, range.start, range.len_bytes()) {
                Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(file, range),
                other => Ok(other?),
            }
        }
        Pages::Lines { .. } => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// For file systems without holes.
fn write_zeros(file: &File, range: Range) -> io::Result<()> {
    const STEP_BYTES: u64 = 1 << 20;
    let zeros = vec![0; STEP_BYTES as usize];
    (range.start..range.end).step_by(STEP_BYTES as usize).try_for_each(|start| {
        file.write_all_at(&zeros[..(range.end - start).min(STEP_BYTES) as usize], start)
    })
}

/// Gives `to` the permissions, the owner and the time of `from`.
pub(crate) fn set_like(from: &Path, to: &Path) -> Result<(), FilesError> {
    let found = fs::metadata(from).map_err(failed("look at", from))?;
    std::os::unix::fs::chown(to, Some(found.uid()), Some(found.gid()))
        .map_err(failed("give an owner to", to))?;
    fs::set_permissions(to, found.permissions()).map_err(failed("set the permissions of", to))?;
    let times = found.modified().map_err(failed("look at", from))?;
    let directory = File::open(to).map_err(failed("open", to))?;
    directory.set_modified(times).map_err(failed("set the time of", to))
}
