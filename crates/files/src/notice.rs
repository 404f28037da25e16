//! What the kernel says of changes: one inotify instance with a watch per directory.
//!
//! A write is told when it is done, and a thread that stands still has no write under way; so when the app is frozen,
//! all that it wrote has been told. What is not told: writes through shared mappings, and writes through a hard link
//! from outside.

use std::collections::{BTreeMap, HashMap};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use image::FileId;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::error::{FilesError, failed};

#[derive(Debug)]
pub struct Notices {
    inotify: OwnedFd,
    directories: HashMap<i32, FileId>,
    buffer: Vec<MaybeUninit<u8>>,
}

/// What was told since it was last asked for.
#[derive(Debug, Default)]
pub struct Told {
    pub names: BTreeMap<(FileId, Vec<u8>), Notice>,
    /// Too much happened, or directories moved: nothing of this says where to look.
    pub everything: bool,
    /// A directory itself was moved or removed.
    pub displaced: Vec<FileId>,
}

/// What happened to one name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Notice {
    /// Written to, or another file than before.
    pub content: bool,
    /// Somebody who could write to it has closed it; he may have mapped it.
    pub closed: bool,
    /// Made, moved or removed.
    pub name: bool,
}

impl Notices {
    pub fn new() -> Result<Self, FilesError> {
        const BUFFER_BYTES: usize = 64 << 10;
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .map_err(failed("watch files below", Path::new("/")))?;
        let buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        Ok(Self { inotify, directories: HashMap::new(), buffer })
    }

    pub fn watch(&mut self, directory: FileId, path: &Path) -> Result<i32, FilesError> {
        // N.B. not EXCL_UNLINK: a file that is made without a name and gets one later counts as unlinked for ever.
        let mask = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        match inotify::add_watch(&self.inotify, path, mask) {
            Ok(watch) => {
                self.directories.insert(watch, directory);
                Ok(watch)
            }
            Err(Errno::NOSPC) => Err(FilesError::Watches { path: path.to_owned() }),
            Err(why) => Err(failed("watch", path)(why)),
        }
    }

    pub fn forget(&mut self, watch: i32) {
        self.directories.remove(&watch);
        // It goes with its directory, if that is gone.
        let _ = inotify::remove_watch(&self.inotify, watch);
    }

    pub fn read(&mut self) -> Result<Told, FilesError> {
        let mut told = Told::default();
        let mut reader = inotify::Reader::new(&self.inotify, &mut self.buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(told),
                Err(Errno::INTR) => continue,
                Err(why) => return Err(failed("read of changes below", Path::new("/"))(why)),
            };
            let what = event.events();
            if what.contains(ReadFlags::QUEUE_OVERFLOW) {
                told.everything = true;
                continue;
            }
            let Some(&directory) = self.directories.get(&event.wd()) else { continue };
            if what.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT) {
                told.displaced.push(directory);
                continue;
            }
            let moved = ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO;
            told.everything |= what.contains(ReadFlags::ISDIR) && what.intersects(moved);
            // Without a name it is the directory's own permissions.
            let name = event.file_name().map(|name| name.to_bytes().to_vec()).unwrap_or_default();
            let notice = told.names.entry((directory, name)).or_default();
            let fresh = ReadFlags::CREATE | ReadFlags::MOVED_TO;
            notice.content |= what.intersects(ReadFlags::MODIFY | fresh);
            notice.closed |= what.intersects(ReadFlags::CLOSE_WRITE | fresh);
            notice.name |= what.intersects(ReadFlags::DELETE | moved | fresh);
        }
    }
}
