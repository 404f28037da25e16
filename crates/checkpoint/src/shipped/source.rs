//! Reading what is asked for, where the app has it.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use image::layout::FileIdentity;
use image::shipped::{FILE_BYTES_MAX, LINKS_MAX, SHIPPED_BYTES_MAX, SHIPPED_FILES_MAX};
use image::{ContentDigest, Shipped, ShippedFile};
use ring::digest::{Context, SHA256};
use serde_bytes::ByteBuf;

use super::is_name;
use super::stamp::{Stamp, content};
use crate::memory::{build_id, parse_maps};

/// As much as a frame of pages has.
const PIECE_BYTES: usize = 1 << 20;
const DELETED: &[u8] = b" (deleted)";
const NAMES_MAX: usize = 16_384;

/// Files on their way, one after the other.
#[derive(Debug)]
pub struct Shipment {
    pid: i32,
    wanted: VecDeque<FileIdentity>,
    reading: Option<Box<Reading>>,
    room_bytes: u64,
}

struct Reading {
    identity: FileIdentity,
    file: File,
    stamp: Stamp,
    at: u64,
    digest: Context,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reading({:?} at {})", self.identity, self.at)
    }
}

impl Shipment {
    pub fn of(pid: i32, wanted: Vec<FileIdentity>) -> Self {
        let mut wanted = VecDeque::from(wanted);
        wanted.truncate(SHIPPED_FILES_MAX);
        Self { pid, wanted, reading: None, room_bytes: SHIPPED_BYTES_MAX }
    }

    /// The next piece; none after the last.
    pub fn step(&mut self) -> Option<Shipped> {
        match self.reading.take() {
            Some(reading) => Some(self.read_on(reading)),
            None => {
                let wanted = self.wanted.pop_front()?;
                Some(self.begin(wanted.clone()).unwrap_or_else(|why| Shipped::Cannot { file: wanted, why }))
            }
        }
    }

    fn begin(&mut self, identity: FileIdentity) -> Result<Shipped, String> {
        let file = open(self.pid, &identity)?;
        let metadata = file.metadata().map_err(|why| why.to_string())?;
        let size_bytes = metadata.len();
        if size_bytes > FILE_BYTES_MAX {
            return Err(format!(
                "its {size_bytes} bytes are more than the {FILE_BYTES_MAX} of a file that is shipped"
            ));
        }
        self.room_bytes = self.room_bytes.checked_sub(size_bytes).ok_or_else(|| {
            format!("all that is lacking is more than the {SHIPPED_BYTES_MAX} bytes that are shipped with a checkpoint")
        })?;
        const PERMISSIONS: u32 = 0o777;
        let begun = ShippedFile {
            identity: identity.clone(),
            size_bytes,
            mode: metadata.mode() & PERMISSIONS,
            owner: metadata.uid(),
            group: metadata.gid(),
            links: links_to(self.pid, &identity.path),
        };
        let (stamp, digest) = (Stamp::from(&metadata), Context::new(&SHA256));
        self.reading = Some(Box::new(Reading { identity, file, stamp, at: 0, digest }));
        Ok(Shipped::File(begun))
    }

    fn read_on(&mut self, mut reading: Box<Reading>) -> Shipped {
        let left = reading.stamp.size_bytes - reading.at;
        let mut bytes = vec![0; left.min(PIECE_BYTES as u64) as usize];
        let read = reading.file.read_exact_at(&mut bytes, reading.at);
        let now = Stamp::of(&reading.file);
        let cannot = |why: String| Shipped::Cannot { file: reading.identity.clone(), why };
        match (read, now) {
            (Err(why), _) | (_, Err(why)) => cannot(format!("it cannot be read: {why}")),
            (Ok(()), Ok(now)) if now != reading.stamp => {
                cannot("it was changed while it was shipped".to_owned())
            }
            (Ok(()), Ok(_)) if bytes.is_empty() => Shipped::Whole(content(&reading.digest.finish())),
            (Ok(()), Ok(_)) => {
                reading.digest.update(&bytes);
                reading.at += bytes.len() as u64;
                self.reading = Some(reading);
                Shipped::Bytes(ByteBuf::from(bytes))
            }
        }
    }
}

/// What is in files whose name and size say too little. Each is read through once, while the app runs.
#[derive(Debug, Default)]
pub struct Digests {
    known: HashMap<Stamp, ContentDigest>,
    work: Option<Shipment>,
    reading: Option<(FileIdentity, Stamp)>,
}

impl Digests {
    /// Of these, those without a build-id.
    pub fn begin<'a>(&mut self, pid: i32, files: impl Iterator<Item = &'a FileIdentity>) {
        let mut wanted: Vec<FileIdentity> = files.filter(|file| file.build_id.is_none()).cloned().collect();
        wanted.sort();
        wanted.dedup();
        (self.work, self.reading) = (Some(Shipment::of(pid, wanted)), None);
    }

    /// A part of the work. True after the last; then `found` was called with each that could be read.
    pub fn step(&mut self, mut found: impl FnMut(FileIdentity, ContentDigest)) -> bool {
        let Some(work) = &mut self.work else { return true };
        match work.step() {
            None => {
                self.work = None;
                return true;
            }
            Some(Shipped::File(file)) => {
                let stamp = work.reading.as_ref().map(|reading| reading.stamp);
                if let Some(digest) = stamp.and_then(|stamp| self.known.get(&stamp)) {
                    work.reading = None;
                    found(file.identity.clone(), *digest);
                }
                self.reading = stamp.map(|stamp| (file.identity, stamp));
            }
            Some(Shipped::Whole(digest)) => {
                if let Some((identity, stamp)) = self.reading.take() {
                    self.known.insert(stamp, digest);
                    found(identity, digest);
                }
            }
            // What changes is compared by its size alone.
            Some(Shipped::Bytes(_) | Shipped::Known { .. } | Shipped::Cannot { .. }) => (),
        }
        false
    }
}

/// The file as the app has it: mapped, or open for reading. What it has not got is none of the asker's business.
fn open(pid: i32, identity: &FileIdentity) -> Result<File, String> {
    let mapped = mapped(pid, identity);
    let found = mapped.into_iter().chain(opened(pid, identity)).find_map(|path| {
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
        let metadata = file.metadata().ok()?;
        let same_size = identity.size == metadata.len() || identity.size == FileIdentity::ANY_SIZE;
        let same = match &identity.build_id {
            Some(wanted) => build_id(&file).is_some_and(|found| found == **wanted),
            None => same_size,
        };
        (metadata.is_file() && same).then_some(file)
    });
    found.ok_or_else(|| "the app has no such file mapped, nor open for reading, any more".to_owned())
}

fn names(link: &[u8], identity: &FileIdentity) -> bool {
    link == identity.path || link.strip_suffix(DELETED) == Some(&identity.path)
}

fn mapped(pid: i32, identity: &FileIdentity) -> Vec<PathBuf> {
    let text = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let lines = parse_maps(&text).unwrap_or_default();
    let ours = lines.iter().filter(|line| line.inode != 0 && names(line.name, identity));
    ours.map(|line| format!("/proc/{pid}/map_files/{:x}-{:x}", line.range.start, line.range.end).into())
        .collect()
}

fn opened(pid: i32, identity: &FileIdentity) -> Vec<PathBuf> {
    // What is open for writing is the state directories' business.
    let reads = |number: &OsStr| {
        let text = fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(number)).ok()?;
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
        Some(flags & libc::O_ACCMODE == libc::O_RDONLY && flags & libc::O_PATH == 0)
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let named = entries.filter(|entry| {
        let link = fs::read_link(entry.path());
        link.is_ok_and(|link| names(link.as_os_str().as_bytes(), identity))
    });
    named.filter(|entry| reads(&entry.file_name()) == Some(true)).map(|entry| entry.path()).collect()
}

/// Libraries are asked for by such names.
fn links_to(pid: i32, path: &[u8]) -> Vec<ByteBuf> {
    let path = Path::new(OsStr::from_bytes(path));
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let below = directory.strip_prefix("/").unwrap_or(directory);
    let entries =
        fs::read_dir(Path::new(&format!("/proc/{pid}/root")).join(below)).into_iter().flatten().flatten();
    let links = entries.take(NAMES_MAX).filter(|entry| {
        entry.file_type().is_ok_and(|kind| kind.is_symlink())
            && fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == name)
    });
    let names = links.map(|entry| ByteBuf::from(entry.file_name().as_bytes()));
    names.filter(|name| is_name(name)).take(LINKS_MAX).collect()
}
