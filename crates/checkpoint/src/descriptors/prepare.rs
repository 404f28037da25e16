//! The part of rebuilding that can fail early and that nobody can see: done before the takeover.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use image::descriptor::{Descriptor, FileKind, OpenFile, Pipe};
use image::layout::ObjectKey;

use super::error::{Doing, RebuildError};
use super::files::{self, NamelessFiles};
use super::{anonymous, pipes};

/// What descriptors are rebuilt from and into.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The root directory that the app will see; its `/proc` is the cell's.
    pub root: BorrowedFd<'a>,
    /// The control group that the app will be in.
    pub cgroup: &'a Path,
    /// The app's ends of the three streams that the manager owns.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// The shared objects, opened for reading and writing.
    pub objects: &'a HashMap<ObjectKey, OwnedFd>,
}

/// Open files of the manager's that become the app's, and what is left for [`super::install`]. Dropped, it
/// leaves nothing behind.
#[derive(Debug)]
pub struct Prepared<'a, 'r> {
    pub(super) descriptors: &'a [Descriptor],
    pub(super) files: &'a [OpenFile],
    pub(super) pipes: &'a [Pipe],
    pub(super) root: BorrowedFd<'r>,
    /// For each file, where it can be made early.
    pub(super) made: Vec<Option<OwnedFd>>,
}

/// Opens and makes everything that has no effect outside, and checks that this host has what the app had
/// open: paths of the same kind. On failure nothing is left behind.
pub fn prepare<'a, 'r>(
    descriptors: &'a [Descriptor],
    files: &'a [OpenFile],
    pipes: &'a [Pipe],
    surroundings: &Surroundings<'r>,
) -> Result<Prepared<'a, 'r>, RebuildError> {
    check_references(descriptors, files, pipes)?;
    let made_pipes = pipes.iter().map(|_| None).collect();
    let mut maker = Maker { pipes, surroundings, nameless: NamelessFiles::default(), made_pipes };
    let made = files.iter().map(|file| maker.make(file)).collect::<Result<_, _>>()?;
    Ok(Prepared { descriptors, files, pipes, root: surroundings.root, made })
}

/// The state comes from another machine: no index in it is trusted.
pub fn check_references(
    descriptors: &[Descriptor],
    files: &[OpenFile],
    pipes: &[Pipe],
) -> Result<(), RebuildError> {
    let inconsistent = |what: String| Err(RebuildError::Inconsistent { what });
    let mut named = vec![false; files.len()];
    let mut last = -1;
    for descriptor in descriptors {
        match named.get_mut(descriptor.file as usize) {
            Some(named) if descriptor.number > last => *named = true,
            _ => return inconsistent(format!("the file of fd {}, or its place", descriptor.number)),
        }
        last = descriptor.number;
    }
    for (index, file) in files.iter().enumerate() {
        let whole = match &file.kind {
            FileKind::Pipe { pipe } | FileKind::Fifo { path: _, pipe } => (*pipe as usize) < pipes.len(),
            FileKind::Epoll { targets } => targets.iter().all(|target| (target.file as usize) < files.len()),
            FileKind::Stdio { stream } => *stream < 3,
            _ => true,
        };
        if !whole || !named[index] {
            return inconsistent(format!("what file {index} belongs to"));
        }
    }
    Ok(())
}

#[derive(Debug)]
struct Maker<'a> {
    pipes: &'a [Pipe],
    surroundings: &'a Surroundings<'a>,
    nameless: NamelessFiles,
    made_pipes: Vec<Option<(OwnedFd, OwnedFd)>>,
}

impl Maker<'_> {
    /// `None`: made later, by [`super::install`].
    fn make(&mut self, file: &OpenFile) -> Result<Option<OwnedFd>, RebuildError> {
        let root = self.surroundings.root;
        match &file.kind {
            FileKind::Path { path, file_type, reads: _ } => files::open_path(root, path, *file_type, file),
            FileKind::OwnProc { path } => {
                files::open_path(root, &[b"/proc/", path.as_slice()].concat(), libc::S_IFREG, file)
            }
            FileKind::Deleted { key, path, mode, content } => {
                self.nameless.open(root, *key, (path, *mode, content), file)
            }
            FileKind::Stdio { stream } => self.stdio(*stream, file),
            FileKind::Pipe { pipe } => self.pipe(*pipe as usize, file),
            FileKind::Event { count, semaphore } => anonymous::make_event(*count, *semaphore, file.flags),
            FileKind::Timer(timer) => anonymous::make_timer(timer, file.flags),
            FileKind::Signal { mask } => anonymous::make_signal(*mask, file.flags),
            FileKind::Epoll { targets: _ } => {
                let flags = rustix::event::epoll::CreateFlags::CLOEXEC;
                rustix::event::epoll::create(flags).doing(|| "make an epoll".to_owned())
            }
            FileKind::Inotify { watches } => anonymous::make_inotify(root, watches),
            FileKind::Object { key } => self.object(key, file),
            FileKind::CgroupFile { name } => files::open_cgroup_file(self.surroundings.cgroup, name),
            FileKind::Fifo { .. }
            | FileKind::Process { .. }
            | FileKind::UnixPair(_)
            | FileKind::Conversation(_)
            | FileKind::UnixListener { .. }
            | FileKind::UnixLoose(_)
            | FileKind::Listener(_)
            | FileKind::Datagram(_)
            | FileKind::Connection(_)
            | FileKind::Unconnected(_)
            | FileKind::Netlink { .. } => return Ok(None),
        }
        .map(Some)
    }

    fn stdio(&self, stream: u8, file: &OpenFile) -> Result<OwnedFd, RebuildError> {
        let missing = || RebuildError::Inconsistent { what: format!("standard stream {stream}") };
        let given =
            self.surroundings.stdio.get(usize::from(stream)).copied().flatten().ok_or_else(missing)?;
        let what = || format!("hand over standard stream {stream}");
        files::set_flags(given, file.flags).doing(what)?;
        given.try_clone_to_owned().doing(what)
    }

    fn pipe(&mut self, index: usize, file: &OpenFile) -> Result<OwnedFd, RebuildError> {
        if self.made_pipes[index].is_none() {
            self.made_pipes[index] = Some(pipes::make(&self.pipes[index])?);
        }
        let anchor = self.made_pipes[index].as_ref().map(|(reader, _)| reader.as_fd());
        let anchor = anchor.ok_or_else(|| RebuildError::Inconsistent { what: format!("pipe {index}") })?;
        files::reopen(anchor, file).doing(|| "open the end of a pipe".to_owned())
    }

    fn object(&self, key: &ObjectKey, file: &OpenFile) -> Result<OwnedFd, RebuildError> {
        let missing = || RebuildError::Inconsistent { what: format!("shared object {key:?}") };
        let object = self.surroundings.objects.get(key).ok_or_else(missing)?;
        files::reopen_at_position(object.as_fd(), file).doing(|| "open a shared object".to_owned())
    }
}
