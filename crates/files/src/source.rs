//! The primary's side: what the standby has of the state directories, and what it lacks.
//!
//! Like the memory's ledger, it remembers what each epoch carried until that is committed: the looking takes the mark of
//! a change away, and nobody else remembers.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use image::files::{FileKind, FileRecord, NameRecord, StateDirectory};
use image::layout::ObjectKey;
use image::{CheckpointId, FileChanges, FileId, Range, RangeSet};
use rustix::fs::{Mode, OFlags};

use crate::content::{Content, Digester, Pages, Piece};
use crate::error::{FilesError, failed};
use crate::notice::Notices;

/// A file that only grows is read from here on before its old end: what a failed write left behind is cut off and
/// written again.
const OVERLAP_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub struct Source {
    pub(crate) roots: Vec<Root>,
    pub(crate) notices: Notices,
    pub(crate) files: HashMap<FileId, Known>,
    /// By root and inode: a file that moves from one state directory to another is another file.
    pub(crate) by_inode: HashMap<(FileId, u64), FileId>,
    next: u64,
    digester: Digester,
    /// What was found and not taken yet.
    pub(crate) found: Found,
    /// Of a full sync: files whose content was not read yet, and from where on.
    unread: VecDeque<(FileId, u64)>,
    /// Whether content is read later.
    pub(crate) listing: bool,
    /// Grown while the app ran: whether the rest of it is what it was can be said in the freeze only.
    grown: BTreeMap<FileId, u64>,
    /// In shared mappings at the last freeze.
    mapped: BTreeSet<FileId>,
    /// With names that we do not know: their writes may go untold.
    pub(crate) linked_outside: BTreeSet<FileId>,
    /// Have just lost a name.
    pub(crate) nameless: BTreeSet<FileId>,
    /// Of which the standby has pages that nobody knows.
    owing: BTreeSet<FileId>,
    /// All of them, since the freeze began.
    compared: BTreeSet<FileId>,
    /// A look failed half-way: what it had been told of is lost, so the next one looks at everything.
    pub(crate) shaken: bool,
    in_flight: VecDeque<(CheckpointId, Touched)>,
    owed: Touched,
}

#[derive(Debug)]
pub(crate) struct Root {
    pub id: FileId,
    pub path: PathBuf,
    pub device: u64,
    /// Keeps it in reach, whatever becomes of its path.
    pub directory: OwnedFd,
}

/// A file as the standby knows it, once everything that was taken is committed.
#[derive(Debug)]
pub(crate) struct Known {
    pub root: FileId,
    pub inode: u64,
    pub record: FileRecord,
    /// With the directories where they are.
    pub names: Vec<(FileId, Vec<u8>)>,
    /// Of a directory.
    pub entries: BTreeMap<Vec<u8>, FileId>,
    pub watch: Option<i32>,
    pub pages: Pages,
    pub sign: Sign,
}

/// Moves when a file changes, unless that happens in the same tick of the file system's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sign {
    pub size: u64,
    pub modified: (i64, u64),
    pub changed: (i64, u64),
    /// It moved so shortly before it was looked at that it may stand still over a change.
    pub fresh: bool,
}

/// What an epoch says of files.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub changes: FileChanges,
    pub content: Vec<Content>,
    pub touched: Touched,
}

/// What is unknown if the epoch is lost.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    pub files: BTreeSet<FileId>,
    pub names: BTreeSet<(FileId, Vec<u8>)>,
    pub pages: BTreeMap<FileId, RangeSet>,
    pub gone: BTreeSet<FileId>,
}

/// What one epoch carries. It is entered under the epoch's name, or given back.
#[derive(Debug, Default)]
pub struct Taken {
    pub changes: FileChanges,
    pub content: Vec<Content>,
    touched: Touched,
}

impl Taken {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.content.is_empty()
    }

    pub fn content_bytes(&self) -> u64 {
        let pieces = self.content.iter().flat_map(|content| &content.pieces);
        pieces.map(|piece| if let Piece::Data(_, bytes) = piece { bytes.len() as u64 } else { 0 }).sum()
    }
}

/// A file that the app has open for writing.
#[derive(Debug, Clone, Copy)]
pub struct Opened<'a> {
    pub path: &'a [u8],
    /// Every write goes to the end.
    pub appends: bool,
    /// It can be read, too, and so be mapped for writing.
    pub reads: bool,
}

/// A file that the app has in a shared mapping that it may write to.
#[derive(Debug, Clone)]
pub struct Mapped {
    pub key: ObjectKey,
    pub path: Vec<u8>,
}

impl Source {
    /// Looks at the trees and follows them from here on. `root` is where paths begin, `/` or a process's own. What is
    /// there waits to be read, see [`Self::read_on`].
    pub fn open(root: &Path, directories: &[PathBuf], seed: u64) -> Result<Self, FilesError> {
        let mut source = Self {
            roots: Vec::new(),
            notices: Notices::new()?,
            files: HashMap::new(),
            by_inode: HashMap::new(),
            next: 0,
            digester: Digester::new(seed),
            found: Found::default(),
            unread: VecDeque::new(),
            listing: true,
            grown: BTreeMap::new(),
            mapped: BTreeSet::new(),
            linked_outside: BTreeSet::new(),
            nameless: BTreeSet::new(),
            owing: BTreeSet::new(),
            compared: BTreeSet::new(),
            shaken: false,
            in_flight: VecDeque::new(),
            owed: Touched::default(),
        };
        for path in directories {
            source.add_root(root, path)?;
        }
        source.settle();
        Ok(source)
    }

    fn add_root(&mut self, root: &Path, path: &Path) -> Result<(), FilesError> {
        let below = path.strip_prefix("/").map_err(|_| FilesError::Directory {
            path: path.to_owned(),
            why: "it does not begin with /".to_owned(),
        })?;
        let refuse = |why: rustix::io::Errno| FilesError::Directory {
            path: path.to_owned(),
            why: std::io::Error::from(why).to_string(),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(root.join(below), flags, Mode::empty()).map_err(refuse)?;
        let stat = rustix::fs::fstat(&directory).map_err(refuse)?;
        let id = self.fresh_id();
        let bytes = path.as_os_str().as_bytes().to_vec();
        self.found.changes.directories.push(StateDirectory { id, path: bytes });
        self.roots.push(Root { id, path: path.to_owned(), device: stat.st_dev, directory });
        self.take_in(id, id, &stat, FileKind::Directory)?;
        self.walk(id)
    }

    pub(crate) fn fresh_id(&mut self) -> FileId {
        let id = FileId(self.next);
        self.next += 1;
        id
    }

    /// Reads on with what was there at the beginning, up to about so many bytes. `false` once all of it was read.
    pub fn read_on(&mut self, bytes_max: u64) -> Result<bool, FilesError> {
        let mut room = bytes_max;
        while room > 0
            && let Some((id, from)) = self.unread.pop_front()
        {
            let Some(end) = self.files.get(&id).map(|known| known.pages.end()) else { continue };
            let until = end.min(from.saturating_add(room));
            self.compare(id, How::Part(Range::new(from, until)))?;
            room = room.saturating_sub(until - from).saturating_sub(1);
            if until < end {
                self.unread.push_front((id, until));
            }
        }
        self.listing = !self.unread.is_empty();
        Ok(self.listing)
    }

    pub(crate) fn read_later(&mut self, id: FileId) {
        self.unread.push_back((id, 0));
    }

    /// Looks at what has changed, while the app runs: the freeze then has less to do.
    pub fn look_ahead(&mut self) -> Result<(), FilesError> {
        let looked = self.look_around();
        self.shaken |= looked.is_err();
        looked
    }

    /// What the files are now that the app stands still. `mapped`: what it has in shared mappings; `opened`: what it has
    /// open for writing. What [`Self::look_ahead`] and [`Self::read_on`] found comes along.
    pub fn take(&mut self, mapped: &[Mapped], opened: &[Opened<'_>]) -> Result<Taken, FilesError> {
        let looked = self.look(mapped, opened);
        self.shaken |= looked.is_err();
        looked.map(|()| self.take_found())
    }

    fn look(&mut self, mapped: &[Mapped], opened: &[Opened<'_>]) -> Result<(), FilesError> {
        let mapped = self.files_of(mapped);
        let before = std::mem::replace(&mut self.mapped, mapped);
        self.compared.clear();
        self.look_around()?;
        let (mut only_appended, mut mappable) = (BTreeMap::new(), BTreeSet::new());
        for opened in opened {
            if let Some(id) = self.find(opened.path) {
                *only_appended.entry(id).or_insert(true) &= opened.appends;
                mappable.extend(opened.reads.then_some(id));
            }
        }
        for (id, from) in std::mem::take(&mut self.grown) {
            let whole = Range::new(0, from);
            if !only_appended.get(&id).copied().unwrap_or(false) {
                self.compare(id, How::Part(whole))?;
            }
        }
        for id in before {
            // Writes to it went untold while it was mapped.
            self.look_at_sign(id)?;
            self.compare(id, How::Whole)?;
        }
        // It may have been mapped, written to and unmapped between two freezes.
        mappable.extend(&self.linked_outside);
        for id in mappable.difference(&self.compared.clone()) {
            self.look_at_sign(*id)?;
        }
        self.pay_debts()
    }

    /// Loses what the kernel has told, as a write that is not told of does. For tests.
    #[doc(hidden)]
    pub fn forget_notices(&mut self) {
        // An error shows at the next look.
        let _ = self.notices.read();
    }

    /// What was found so far, while the app runs.
    pub fn take_found(&mut self) -> Taken {
        let Found { changes, content, touched } = std::mem::take(&mut self.found);
        Taken { changes, content, touched }
    }

    /// N.B. on some file systems a mapping has another device than its file has: then the path tells.
    fn files_of(&self, mapped: &[Mapped]) -> BTreeSet<FileId> {
        let is_it = |root: &Root, id: FileId, mapped: &Mapped| {
            root.device == mapped.key.device || self.find(&mapped.path) == Some(id)
        };
        let of_root = |root: &Root, mapped: &Mapped| {
            let id = self.by_inode.get(&(root.id, mapped.key.inode)).copied();
            id.filter(|id| is_it(root, *id, mapped))
        };
        mapped.iter().flat_map(|it| self.roots.iter().filter_map(|root| of_root(root, it))).collect()
    }

    /// The epoch was made, and is on its way.
    pub fn enter(&mut self, id: CheckpointId, taken: Taken) {
        self.in_flight.push_back((id, taken.touched));
    }

    /// No epoch carries it.
    pub fn give_back(&mut self, taken: Taken) {
        self.owed.extend(taken.touched);
    }

    pub fn committed(&mut self, id: CheckpointId) {
        while self.in_flight.pop_front_if(|(first, _)| *first <= id).is_some() {}
    }

    /// What is not committed is lost, and the next epoch says it again.
    pub fn fail(&mut self) {
        for (_, touched) in self.in_flight.drain(..) {
            self.owed.extend(touched);
        }
    }

    fn pay_debts(&mut self) -> Result<(), FilesError> {
        // Said is not carried yet: `found` remembers what was said.
        let Touched { files, names, pages, gone } = std::mem::take(&mut self.owed);
        for id in files {
            if let Some(record) = self.files.get(&id).map(|known| known.record.clone()) {
                self.say_file(record);
            }
        }
        for (directory, name) in names {
            let file = self.files.get(&directory).and_then(|known| known.entries.get(&name)).copied();
            self.say_name(NameRecord { directory, name, file });
        }
        for (id, ranges) in pages {
            if let Some(known) = self.files.get_mut(&id) {
                let end = known.pages.end();
                ranges.within(Range::new(0, end)).into_iter().for_each(|range| known.pages.owe(range));
                self.owing.insert(id);
            }
        }
        gone.into_iter().for_each(|id| self.say_gone(id));
        for id in std::mem::take(&mut self.owing) {
            self.compare(id, How::Unknown)?;
            // What is mapped is asked again.
            let owes = self.files.get(&id).is_some_and(|known| known.pages.owes());
            self.owing.extend(owes.then_some(id));
        }
        Ok(())
    }

    pub(crate) fn say_file(&mut self, record: FileRecord) {
        self.found.touched.files.insert(record.id);
        self.found.changes.files.push(record);
    }

    pub(crate) fn say_name(&mut self, name: NameRecord) {
        self.found.touched.names.insert((name.directory, name.name.clone()));
        self.found.changes.names.push(name);
    }

    pub(crate) fn say_gone(&mut self, id: FileId) {
        self.found.touched.gone.insert(id);
        self.found.changes.gone.push(id);
    }

    /// A file has this size now.
    pub(crate) fn resize(&mut self, id: FileId, size: u64) {
        let Some(known) = self.files.get_mut(&id) else { return };
        let lost = known.pages.resize(size, self.digester);
        self.owing.extend(known.pages.owes().then_some(id));
        if !lost.is_empty() {
            self.say_content(Content { file: id, pieces: vec![Piece::Zero(lost)] });
        }
    }

    fn say_content(&mut self, content: Content) {
        if content.pieces.is_empty() {
            return;
        }
        let touched = self.found.touched.pages.entry(content.file).or_default();
        content.pieces.iter().for_each(|piece| touched.insert(piece.range()));
        self.found.content.push(content);
    }

    /// Compares a file with what the standby has of it. What the app has mapped is not ours to read.
    pub(crate) fn compare(&mut self, id: FileId, how: How) -> Result<(), FilesError> {
        if self.mapped.contains(&id) {
            return Ok(());
        }
        let path = self.path_of(id);
        let Some(known) = self.files.get_mut(&id) else { return Ok(()) };
        if !matches!(known.record.kind, FileKind::Regular { .. }) {
            return Ok(());
        }
        let file = match File::options().read(true).custom_flags(libc_flags()).open(&path) {
            Ok(file) => file,
            // It was removed meanwhile, and that will be told.
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(FilesError::Kernel { what: "open", path, source }),
        };
        let read = match how {
            How::Whole => {
                self.compared.insert(id);
                known.pages.compare(&file, Range::new(0, known.pages.end()), self.digester)
            }
            How::Part(range) => known.pages.compare(&file, range, self.digester),
            How::Unknown => known.pages.compare_unknown(&file, self.digester),
        };
        let pieces = read.map_err(|source| FilesError::Kernel { what: "read", path, source })?;
        self.say_content(Content { file: id, pieces });
        Ok(())
    }

    /// A file was written to, and had `before` bytes when it was last looked at.
    pub(crate) fn look_at_content(
        &mut self,
        id: FileId,
        before: u64,
        closed: bool,
    ) -> Result<(), FilesError> {
        let Some(known) = self.files.get(&id) else { return Ok(()) };
        let (end, only_new) = (known.pages.end(), before.saturating_sub(OVERLAP_BYTES));
        if closed || known.sign.size <= before || only_new == 0 {
            self.grown.remove(&id);
            return self.compare(id, How::Whole);
        }
        // The rest follows in the freeze, unless it is known then that writes go to the end alone.
        let from = self.grown.get(&id).map_or(only_new, |&from| from.min(only_new));
        self.grown.insert(id, from);
        self.compare(id, How::Part(Range::new(only_new, end)))
    }

    /// The file at a path of the app's.
    pub fn find(&self, path: &[u8]) -> Option<FileId> {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        let within = |root: &Root| Some((root.id, path.strip_prefix(&root.path).ok()?));
        let (root, below) = self.roots.iter().find_map(within)?;
        below.iter().try_fold(root, |at, name| self.files.get(&at)?.entries.get(name.as_bytes()).copied())
    }

    /// Where it can be opened.
    pub(crate) fn path_of(&self, id: FileId) -> PathBuf {
        let mut names = Vec::new();
        let mut at = id;
        while let Some((directory, name)) = self.files.get(&at).and_then(|known| known.names.last()) {
            names.push(name);
            at = *directory;
        }
        let mut path = match self.roots.iter().find(|root| root.id == at) {
            // What is behind the link, whoever asks.
            Some(root) => PathBuf::from(format!("/proc/self/fd/{}/.", root.directory.as_raw_fd())),
            None => PathBuf::from("/proc/self/fd"),
        };
        path.extend(names.into_iter().rev().map(|name| std::ffi::OsStr::from_bytes(name)));
        path
    }
}

/// What of a file is compared.
#[derive(Debug, Clone, Copy)]
pub(crate) enum How {
    Whole,
    Part(Range),
    Unknown,
}

impl Touched {
    fn extend(&mut self, other: Self) {
        let Self { files, names, pages, gone } = other;
        self.files.extend(files);
        self.names.extend(names);
        self.gone.extend(gone);
        for (id, ranges) in pages {
            let own = self.pages.entry(id).or_default();
            ranges.iter().for_each(|range| own.insert(range));
        }
    }
}

/// It is not followed if it is a link, and nobody is waited for if it is a FIFO.
fn libc_flags() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32
}

pub(crate) fn stat(path: &Path) -> Result<Option<rustix::fs::Stat>, FilesError> {
    match rustix::fs::lstat(path) {
        Ok(stat) => Ok(Some(stat)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(why) => Err(failed("look at", path)(why)),
    }
}
