//! The walk over everything that a frozen process has open.
//!
//! 1. One look at each descriptor's `fdinfo`: flags, position, inode, and what its kind adds.
//! 2. Descriptors that *could* name one open file (same inode, position, flags and details) are compared by
//!    `kcmp`; those that do share one entry of the table of files.
//! 3. Each open file is asked what it is by the module of its kind.
//! 4. What needs the whole table comes last: epoll sets, and the content of pipes.
//!
//! Nothing in the app changes: descriptors are borrowed by `pidfd_getfd` for a few calls and closed again
//! before the save returns, on success and on failure.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use image::descriptor::{AsyncOwner, Descriptor, FileKind, Lock, OpenFile, Pipe, Stray};
use image::layout::ObjectKey;

use crate::Unsupported;

use super::cache::Cache;
use super::conversation::ManagerSocket;
use super::error::SaveError;
use super::fdinfo::{Info, LockLine};
use super::{anonymous, files, inside, pipes, sockets, unix};

/// The process whose descriptors are saved, and what must be known about it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its number here; every thread of it is stopped.
    pub pid: i32,
    pub pidfd: BorrowedFd<'a>,
    /// Its number inside the cell.
    pub cell_pid: i32,
    /// For every process and thread of the app: its number here to its number in the cell.
    pub pids: &'a HashMap<i32, i32>,
    /// The inodes of the pipes that the manager gave the app, and which stream (0, 1, 2) each is.
    pub stdio: &'a [(u64, u8)],
    /// Where the app sees its control groups, usually `/sys/fs/cgroup`.
    pub cgroup_mount: &'a Path,
    /// Files that the memory module carries because they are mapped and have no name.
    pub objects: &'a HashSet<ObjectKey>,
    pub connections: Connections,
    /// The manager's own socket, if it has one.
    pub manager: Option<&'a dyn ManagerSocket>,
}

/// What becomes of TCP connections at a takeover.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Connections {
    /// They are reset: the app finds an error, and what they carried is not captured.
    #[default]
    Reset,
    /// They go on. Right only where nothing that the app says is heard before it is captured, or where
    /// nothing is rewound.
    Keep,
}

/// What goes into the state; `objects` must be among the layout's objects.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Saved {
    pub descriptors: Vec<Descriptor>,
    pub files: Vec<OpenFile>,
    pub pipes: Vec<Pipe>,
    pub objects: Vec<ObjectKey>,
    pub strays: Vec<Stray>,
}

/// Captures the descriptors of a frozen process. On failure nothing has changed either.
pub fn save(subject: &Subject<'_>, cache: &mut Cache) -> Result<Saved, SaveError> {
    let list = |source| SaveError::List { pid: subject.pid, source };
    cache.belongs_to(subject.pid).map_err(list)?;
    cache.queues.begin();
    if subject.connections == Connections::Keep {
        cache.begin_watch(subject.pidfd).map_err(list)?;
    }
    let (text, ranges) = cache.infos().map_err(list)?;
    let mut table = Table::build(subject, parse_infos(subject, &text, ranges)?)?;
    table.note_sockets(cache);
    if subject.connections == Connections::Keep {
        let sockets = table.files().filter(|(_, _, info)| table.has_socket(info.inode));
        let sockets = sockets.map(|(_, number, info)| (info.inode, number));
        cache.read_ahead(subject.pidfd, sockets).map_err(list)?;
    }
    Saver { subject, cache, table: &table, pipes: pipes::PipeTable::default(), saved: Saved::default() }.run()
}

fn parse_infos<'t>(
    subject: &Subject<'_>,
    text: &'t str,
    ranges: Vec<(i32, Range<usize>)>,
) -> Result<Vec<(i32, Info<'t>)>, SaveError> {
    let parse = |(number, range): (i32, Range<usize>)| {
        let info = Info::parse(&text[range]).ok_or_else(|| unreadable(subject, number))?;
        Ok((number, info))
    };
    ranges.into_iter().map(parse).collect()
}

/// The text of an `fdinfo` is not what this kernel's version of it should be.
pub(super) fn unreadable(subject: &Subject<'_>, number: i32) -> SaveError {
    let source = io::Error::from(io::ErrorKind::InvalidData);
    SaveError::Kernel { pid: subject.pid, number, what: "understand the fdinfo", source }
}

/// Which descriptors there are, and which of them name one open file.
#[derive(Debug)]
pub(super) struct Table<'t> {
    /// By number.
    infos: Vec<(i32, Info<'t>)>,
    /// For each of `infos`, its file.
    file_of: Vec<u32>,
    /// For each file, the first of `infos` that names it.
    first_of: Vec<usize>,
    sockets: HashSet<u64>,
}

impl<'t> Table<'t> {
    fn build(subject: &Subject<'_>, infos: Vec<(i32, Info<'t>)>) -> Result<Self, SaveError> {
        let mut alike: HashMap<_, Vec<usize>> = HashMap::with_capacity(infos.len());
        for (index, (_, info)) in infos.iter().enumerate() {
            let flags = info.flags & !(libc::O_CLOEXEC as u32);
            let likeness = (info.mount, info.inode, info.position, flags, info.details);
            alike.entry(likeness).or_default().push(index);
        }
        let mut first = (0..infos.len()).collect::<Vec<_>>();
        for group in alike.into_values().filter(|group| group.len() > 1) {
            join_shared(subject, &infos, group, &mut first)?;
        }
        Ok(Self::number_files(infos, &first))
    }

    fn number_files(infos: Vec<(i32, Info<'t>)>, first: &[usize]) -> Self {
        let mut file_of = Vec::with_capacity(infos.len());
        let mut first_of = Vec::new();
        for (index, &first) in first.iter().enumerate() {
            if first == index {
                file_of.push(first_of.len() as u32);
                first_of.push(index);
            } else {
                file_of.push(file_of[first]);
            }
        }
        Self { infos, file_of, first_of, sockets: HashSet::new() }
    }

    fn note_sockets(&mut self, cache: &Cache) {
        let sockets = self.infos.iter().filter(|(_, info)| cache.is_socket(info));
        self.sockets = sockets.map(|(_, info)| info.inode).collect();
    }

    /// Whether the app has the socket with this inode.
    pub(super) fn has_socket(&self, inode: u64) -> bool {
        self.sockets.contains(&inode)
    }

    /// The file that descriptor `number` names, and its `fdinfo`.
    pub(super) fn find(&self, number: i32) -> Option<(u32, &Info<'t>)> {
        let index = self.infos.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some((self.file_of[index], &self.infos[index].1))
    }

    /// Every file: its index, its first descriptor, and that one's `fdinfo`.
    pub(super) fn files(&self) -> impl Iterator<Item = (u32, i32, &Info<'t>)> {
        let describe = |(file, &index): (usize, &usize)| {
            let (number, info) = &self.infos[index];
            (file as u32, *number, info)
        };
        self.first_of.iter().enumerate().map(describe)
    }
}

/// Sorts descriptors that look alike by the kernel's order of open files, and sets `first` of each to the
/// lowest one that names the same file.
fn join_shared(
    subject: &Subject<'_>,
    infos: &[(i32, Info<'_>)],
    mut group: Vec<usize>,
    first: &mut [usize],
) -> Result<(), SaveError> {
    let mut failure = None;
    let mut compare = |a: usize, b: usize| {
        sys::descriptors::compare_files(subject.pid, infos[a].0, infos[b].0).unwrap_or_else(|source| {
            let (pid, number) = (subject.pid, infos[a].0);
            failure = Some(SaveError::Kernel { pid, number, what: "compare the open file", source });
            Ordering::Equal
        })
    };
    group.sort_by(|&a, &b| compare(a, b)); // Stable: the lowest number of a file comes first.
    for pair in group.windows(2) {
        if compare(pair[0], pair[1]) == Ordering::Equal {
            first[pair[1]] = first[pair[0]];
        }
    }
    failure.map_or(Ok(()), Err)
}

/// A save in progress.
#[derive(Debug)]
pub(super) struct Saver<'a, 't> {
    pub subject: &'a Subject<'a>,
    pub cache: &'a mut Cache,
    pub table: &'a Table<'t>,
    pub pipes: pipes::PipeTable,
    pub saved: Saved,
}

impl<'t> Saver<'_, 't> {
    fn run(mut self) -> Result<Saved, SaveError> {
        for (_, number, info) in self.table.files() {
            let file = self.open_file(number, info)?;
            self.saved.files.push(file);
        }
        pipes::save_contents(&mut self)?;
        unix::check_pairs(&self)?;
        inside::mend(&mut self)?;
        self.saved.descriptors = self.descriptors();
        self.saved.objects.sort_unstable();
        self.saved.objects.dedup();
        if self.subject.connections == Connections::Keep {
            self.saved.strays = self.cache.watch.strays();
        }
        Ok(self.saved)
    }

    fn descriptors(&self) -> Vec<Descriptor> {
        let descriptor = |((number, info), &file): (&(i32, Info<'_>), &u32)| Descriptor {
            number: *number,
            close_on_exec: info.close_on_exec(),
            file,
        };
        self.table.infos.iter().zip(&self.table.file_of).map(descriptor).collect()
    }

    fn open_file(&mut self, number: i32, info: &Info<'t>) -> Result<OpenFile, SaveError> {
        let flags = info.flags & !(libc::O_CLOEXEC as u32);
        let (kind, owner) = if self.cache.is_socket(info) {
            sockets::save(self, number, info)?
        } else {
            (self.kind_without_socket(number, info)?, self.owner_if_async(number, info)?)
        };
        Ok(OpenFile { flags, position: info.position, kind, locks: self.locks(number, info)?, owner })
    }

    fn kind_without_socket(&mut self, number: i32, info: &Info<'t>) -> Result<FileKind, SaveError> {
        if self.cache.is_pipe(info) {
            return pipes::save(self, number, info);
        }
        if let Some(name) = self.cache.anonymous_kind(info) {
            return anonymous::save(self, number, info, name);
        }
        let link = self.cache.link(number).map_err(|source| self.kernel(number, "read the link", source))?;
        match link.strip_prefix(b"anon_inode:") {
            Some(name) => anonymous::save(self, number, info, name),
            None => files::save(self, number, info, link),
        }
    }

    fn locks(&self, number: i32, info: &Info<'_>) -> Result<Vec<Lock>, SaveError> {
        if !info.details.contains("lock:") {
            return Ok(Vec::new());
        }
        let lines = info.lock_lines().ok_or_else(|| unreadable(self.subject, number))?;
        let held = |line| match line {
            LockLine::Held(lock) => Ok(lock),
            LockLine::Other => Err(self.refuse(number, "holds a lease", "have it released (F_UNLCK)")),
        };
        lines.into_iter().map(held).collect()
    }

    /// Only with `O_ASYNC` does the owner of a file that is no socket matter.
    fn owner_if_async(&self, number: i32, info: &Info<'_>) -> Result<Option<AsyncOwner>, SaveError> {
        if info.flags & libc::O_ASYNC as u32 == 0 {
            return Ok(None);
        }
        self.owner(number, &self.steal(number)?)
    }

    /// Who is signalled about the file, where somebody is.
    pub(super) fn owner(&self, number: i32, stolen: &OwnedFd) -> Result<Option<AsyncOwner>, SaveError> {
        use std::os::fd::AsFd;
        let ask = |source| self.kernel(number, "read the owner", source);
        let (kind, host_id) = sys::descriptors::async_owner(stolen.as_fd()).map_err(ask)?;
        if host_id == 0 {
            return Ok(None);
        }
        let signal = sys::descriptors::async_signal(stolen.as_fd()).map_err(ask)?;
        let id = self.subject.pids.get(&host_id).copied().ok_or_else(|| {
            self.refuse(number, &format!("signals process {host_id}, outside the app,"), "protect both")
        })?;
        Ok(Some(AsyncOwner { kind, id, signal }))
    }

    /// Borrows a descriptor. It must be dropped within the freeze: the app counts on the last close.
    pub(super) fn steal(&self, number: i32) -> Result<OwnedFd, SaveError> {
        use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
        pidfd_getfd(self.subject.pidfd, number, PidfdGetfdFlags::empty())
            .map_err(|source| self.kernel(number, "borrow", source.into()))
    }

    pub(super) fn kernel(&self, number: i32, what: &'static str, source: io::Error) -> SaveError {
        SaveError::Kernel { pid: self.subject.pid, number, what, source }
    }

    /// `what` follows `fd N `.
    pub(super) fn refuse(&self, number: i32, what: &str, way_out: &str) -> SaveError {
        let what = format!("fd {number} {what}");
        Unsupported { pid: self.subject.pid, what, way_out: way_out.to_owned() }.into()
    }
}
