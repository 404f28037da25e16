//! What has a path: files, directories, harmless devices, deleted files, and the paths of `/proc` and of
//! control groups that mean something else on another host.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use image::descriptor::{FileKind, OpenFile, ReadFile};
use image::layout::ObjectKey;
use rustix::fs::{Mode, OFlags, ResolveFlags, SeekFrom, Stat};
use serde_bytes::ByteBuf;

use super::error::{Doing, RebuildError, SaveError};
use super::fdinfo::Info;
use super::pipes;
use super::save::Saver;

/// A deleted file travels inside the state, in the freeze: no more than this.
const DELETED_BYTES_MAX: u64 = 64 << 20;

const DELETED_MARK: &[u8] = b" (deleted)";
const CGROUP_FILES: [&str; 3] = ["cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"];
const USE_FILES: &str = "have it use a regular file, or let it close this before it is protected";
const REDIRECT: &str =
    "start it with its standard streams redirected, or run it under `checksync run`, which owns them";

pub(super) fn save(
    saver: &mut Saver<'_, '_>,
    number: i32,
    info: &Info<'_>,
    link: Vec<u8>,
) -> Result<FileKind, SaveError> {
    if !link.starts_with(b"/") {
        let what = format!("is {}", String::from_utf8_lossy(&link));
        return Err(saver.refuse(number, &what, "close it before the app is protected"));
    }
    let stat = saver.cache.stat(number).map_err(|source| saver.kernel(number, "stat the file", source))?;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => save_regular(saver, number, info, link, &stat),
        libc::S_IFCHR | libc::S_IFBLK => save_device(saver, number, link, &stat),
        libc::S_IFIFO if info.flags & libc::O_PATH as u32 == 0 => pipes::save_fifo(saver, number, info, link),
        file_type => save_path(saver, number, link, file_type, stat.st_nlink == 0),
    }
}

fn save_regular(
    saver: &mut Saver<'_, '_>,
    number: i32,
    info: &Info<'_>,
    link: Vec<u8>,
    stat: &Stat,
) -> Result<FileKind, SaveError> {
    refuse_special_file_system(saver, number, stat)?;
    let key = ObjectKey { device: stat.st_dev, inode: stat.st_ino };
    let deleted = stat.st_nlink == 0;
    if deleted && (link.starts_with(b"/memfd:") || saver.subject.objects.contains(&key)) {
        saver.saved.objects.push(key);
        return Ok(FileKind::Object { key });
    }
    if deleted {
        return save_deleted(saver, number, link, stat);
    }
    if let Some(name) = cgroup_file(saver.subject.cgroup_mount, &link) {
        return Ok(FileKind::CgroupFile { name });
    }
    match link.strip_prefix(b"/proc/") {
        Some(below) if below.first().is_some_and(u8::is_ascii_digit) => save_proc(saver, number, below, stat),
        _ => save_path(saver, number, link, libc::S_IFREG, false).map(|kind| with_reads(kind, info, stat)),
    }
}

/// What another host has to have of a file that the app only reads.
fn with_reads(kind: FileKind, info: &Info<'_>, stat: &Stat) -> FileKind {
    const SETTLED_SECONDS: i64 = 3600;
    let FileKind::Path { path, file_type, .. } = kind else { return kind };
    let flags = info.flags as i32;
    let alone = flags & libc::O_ACCMODE == libc::O_RDONLY && flags & libc::O_PATH == 0;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    let settled = now.saturating_sub(stat.st_mtime) > SETTLED_SECONDS;
    let reads = (alone && !is_kernel_s(&path)).then_some(ReadFile { size: stat.st_size as u64, settled });
    FileKind::Path { path, file_type, reads }
}

fn is_kernel_s(path: &[u8]) -> bool {
    [&b"/proc/"[..], b"/sys/", b"/dev/"].iter().any(|place| path.starts_with(place))
}

/// Files that only look regular.
fn refuse_special_file_system(saver: &mut Saver<'_, '_>, number: i32, stat: &Stat) -> Result<(), SaveError> {
    const MQUEUE: u32 = 0x1980_0202;
    const SECRETMEM: u32 = 0x5345_434d;
    const DMA_BUF: u32 = 0x444d_4142;
    let magic = match saver.cache.file_systems.get(&stat.st_dev) {
        Some(&magic) => magic,
        None => {
            let stolen = saver.steal(number)?;
            let found = rustix::fs::fstatfs(&stolen)
                .map_err(|source| saver.kernel(number, "ask for the file system", source.into()))?;
            saver.cache.file_systems.insert(stat.st_dev, found.f_type as u32);
            found.f_type as u32
        }
    };
    match magic {
        MQUEUE => Err(saver.refuse(number, "is a POSIX message queue", USE_FILES)),
        SECRETMEM => Err(saver.refuse(number, "is secret memory (memfd_secret)", "use an ordinary memfd")),
        DMA_BUF => Err(saver.refuse(number, "is a DMA buffer", "run it without the GPU")),
        _ => Ok(()),
    }
}

fn save_deleted(
    saver: &mut Saver<'_, '_>,
    number: i32,
    link: Vec<u8>,
    stat: &Stat,
) -> Result<FileKind, SaveError> {
    let key = ObjectKey { device: stat.st_dev, inode: stat.st_ino };
    let known = |file: &OpenFile| matches!(&file.kind, FileKind::Deleted { key: other, .. } if *other == key);
    let content = if saver.saved.files.iter().any(known) {
        Vec::new()
    } else if stat.st_size as u64 > DELETED_BYTES_MAX {
        let what =
            format!("is a deleted file of {} bytes ({})", stat.st_size, String::from_utf8_lossy(&link));
        return Err(saver.refuse(number, &what, "keep deleted files below 64 MiB, or give the file a name"));
    } else {
        read_whole(saver, number, stat.st_size as usize)?
    };
    let path = link.strip_suffix(DELETED_MARK).unwrap_or(&link);
    let (path, content) = (ByteBuf::from(path), ByteBuf::from(content));
    Ok(FileKind::Deleted { key, path, mode: stat.st_mode, content })
}

fn read_whole(saver: &mut Saver<'_, '_>, number: i32, size: usize) -> Result<Vec<u8>, SaveError> {
    let opened = saver.cache.reopen(number, OFlags::RDONLY);
    let file = opened.map_err(|source| saver.kernel(number, "open the deleted file", source))?;
    let (mut content, mut len) = (vec![0; size], 0);
    while len < size {
        match rustix::io::pread(&file, &mut content[len..], len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(source) => return Err(saver.kernel(number, "read the deleted file", source.into())),
        }
    }
    content.truncate(len);
    Ok(content)
}

fn cgroup_file(mount: &Path, link: &[u8]) -> Option<String> {
    let name =
        Path::new(std::ffi::OsStr::from_bytes(link)).strip_prefix(mount).ok()?.file_name()?.to_str()?;
    CGROUP_FILES.contains(&name).then(|| name.to_owned())
}

/// `/proc/PID/…`, maybe with `task/TID`: the numbers become those of the cell.
fn save_proc(saver: &Saver<'_, '_>, number: i32, below: &[u8], stat: &Stat) -> Result<FileKind, SaveError> {
    let text = String::from_utf8_lossy(below).into_owned();
    // In the cell's own /proc the numbers are the cell's already; in ours they are ours.
    let ours = rustix::fs::stat("/proc").is_ok_and(|proc| proc.st_dev == stat.st_dev);
    let pids = saver.subject.pids;
    let translate = |word: &str| {
        let id: i32 = word.parse().ok()?;
        if ours { pids.get(&id).copied() } else { pids.values().find(|cell| **cell == id).copied() }
    };
    let mut words = text.split('/').map(str::to_owned).collect::<Vec<_>>();
    let threads = words.get(1).is_some_and(|word| word == "task");
    for index in [0, 2].into_iter().take(if threads { 2 } else { 1 }) {
        let Some(id) = words.get(index).and_then(|word| translate(word)) else {
            return Err(saver.refuse(number, &format!("is /proc/{text}, of another process"), USE_FILES));
        };
        words[index] = id.to_string();
    }
    Ok(FileKind::OwnProc { path: ByteBuf::from(words.join("/")) })
}

fn save_device(
    saver: &Saver<'_, '_>,
    number: i32,
    link: Vec<u8>,
    stat: &Stat,
) -> Result<FileKind, SaveError> {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let name = String::from_utf8_lossy(&link).into_owned();
    let character = stat.st_mode & libc::S_IFMT == libc::S_IFCHR;
    match (character, major, minor) {
        // null, zero, full, random, urandom.
        (true, 1, 3 | 5 | 7 | 8 | 9) => save_path(saver, number, link, libc::S_IFCHR, false),
        (true, 4 | 5 | 136..=143, _) => {
            Err(saver.refuse(number, &format!("is a terminal ({name})"), REDIRECT))
        }
        (true, 226 | 195, _) => Err(saver.refuse(number, &format!("is a GPU ({name})"), "run it without")),
        _ => Err(saver.refuse(number, &format!("is a device ({name})"), USE_FILES)),
    }
}

fn save_path(
    saver: &Saver<'_, '_>,
    number: i32,
    link: Vec<u8>,
    file_type: u32,
    gone: bool,
) -> Result<FileKind, SaveError> {
    // A name may end in " (deleted)" by itself: then a file is there.
    let marked = link.ends_with(DELETED_MARK) && {
        let below = link.strip_prefix(b"/").unwrap_or(&link);
        let root = format!("/proc/{}/root", saver.subject.pid);
        std::fs::symlink_metadata(Path::new(&root).join(std::ffi::OsStr::from_bytes(below))).is_err()
    };
    if gone || marked {
        let what = format!("is {}: its path is gone", String::from_utf8_lossy(&link));
        return Err(saver.refuse(number, &what, "have the app open it anew under a path that stays"));
    }
    Ok(FileKind::Path { path: ByteBuf::from(link), file_type, reads: None })
}

/// Flags that `open` may be given again; the others made or checked the file when it was opened first.
fn reopen_flags(flags: u32) -> OFlags {
    let once = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY | libc::O_ASYNC;
    let temporary = libc::O_TMPFILE & !libc::O_DIRECTORY;
    OFlags::from_bits_retain(flags & !((once | temporary) as u32)) | OFlags::CLOEXEC
}

/// Opens a path as the app had it open. Nothing is created, nothing truncated, and nothing waits.
pub(super) fn open_path(
    root: BorrowedFd<'_>,
    path: &[u8],
    file_type: u32,
    file: &OpenFile,
) -> Result<OwnedFd, RebuildError> {
    let name = || format!("open {}, which the app had open", String::from_utf8_lossy(path));
    let opened = open_below(root, path, reopen_flags(file.flags) | OFlags::NONBLOCK).doing(name)?;
    let stat = rustix::fs::fstat(&opened).doing(name)?;
    if stat.st_mode & libc::S_IFMT != file_type {
        return Err(RebuildError::OtherKind { path: String::from_utf8_lossy(path).into_owned() });
    }
    set_flags_and_position(&opened, file).doing(name)?;
    Ok(opened)
}

/// Opens the app's own path, whatever links lie on it, inside `root`.
pub(crate) fn open_below(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let below = path.strip_prefix(b"/").unwrap_or(path);
    let below = if below.is_empty() { b"." } else { below };
    // O_PATH takes few others, and openat2 is strict.
    let flags = if flags.contains(OFlags::PATH) { flags - OFlags::NONBLOCK } else { flags };
    rustix::fs::openat2(root, below, flags, Mode::empty(), ResolveFlags::IN_ROOT)
}

fn set_flags_and_position(opened: &OwnedFd, file: &OpenFile) -> rustix::io::Result<()> {
    if file.flags & libc::O_PATH as u32 != 0 {
        return Ok(());
    }
    set_flags(opened.as_fd(), file.flags)?;
    if file.position == 0 {
        return Ok(());
    }
    rustix::fs::seek(opened, SeekFrom::Start(file.position as u64)).map(drop)
}

/// `F_SETFL`: what can be changed on an open file, without signals.
pub(super) fn set_flags(opened: BorrowedFd<'_>, flags: u32) -> rustix::io::Result<()> {
    let flags = OFlags::from_bits_retain(flags & !(libc::O_ASYNC as u32));
    rustix::fs::fcntl_setfl(opened, flags)
}

/// Another open file for what `anchor` names, with the access and flags that the app had.
pub(super) fn reopen(anchor: BorrowedFd<'_>, file: &OpenFile) -> rustix::io::Result<OwnedFd> {
    let name = format!("/proc/self/fd/{}", anchor.as_raw_fd());
    let access = OFlags::from_bits_retain(file.flags & libc::O_ACCMODE as u32);
    let opened = rustix::fs::open(name, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    set_flags(opened.as_fd(), file.flags)?;
    Ok(opened)
}

pub(super) fn reopen_at_position(anchor: BorrowedFd<'_>, file: &OpenFile) -> rustix::io::Result<OwnedFd> {
    let opened = reopen(anchor, file)?;
    rustix::fs::seek(&opened, SeekFrom::Start(file.position as u64))?;
    Ok(opened)
}

/// Nameless files made so far, so that open files that shared one share it again.
#[derive(Debug, Default)]
pub(super) struct NamelessFiles(HashMap<ObjectKey, OwnedFd>);

impl NamelessFiles {
    pub(super) fn open(
        &mut self,
        root: BorrowedFd<'_>,
        key: ObjectKey,
        (path, mode, content): (&[u8], u32, &[u8]),
        file: &OpenFile,
    ) -> Result<OwnedFd, RebuildError> {
        let what = || format!("make the deleted file {} again", String::from_utf8_lossy(path));
        let made = match self.0.entry(key) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(entry) => entry.insert(make_nameless(root, path, mode, content).doing(what)?),
        };
        reopen_at_position(made.as_fd(), file).doing(what)
    }
}

/// Where the file was if that directory is here, otherwise in memory.
fn make_nameless(root: BorrowedFd<'_>, path: &[u8], mode: u32, content: &[u8]) -> std::io::Result<OwnedFd> {
    let directory = path.iter().rposition(|byte| *byte == b'/').map_or(&b"/"[..], |end| &path[..end]);
    let directory = directory.strip_prefix(b"/").filter(|below| !below.is_empty()).unwrap_or(b".");
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::from_bits_truncate(mode);
    let made = rustix::fs::openat2(root, directory, flags, mode, ResolveFlags::IN_ROOT)
        .or_else(|_| rustix::fs::memfd_create("deleted", rustix::fs::MemfdFlags::CLOEXEC))?;
    rustix::fs::fchmod(&made, mode)?;
    let mut file = std::fs::File::from(made);
    file.write_all(content)?;
    Ok(file.into())
}

/// The restorer's own limits instead of the primary's; without such a file there is nothing to read.
pub(super) fn open_cgroup_file(cgroup: &Path, name: &str) -> Result<OwnedFd, RebuildError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(cgroup.join(name), flags, Mode::empty())
        .or_else(|_| rustix::fs::open("/dev/null", flags, Mode::empty()))
        .doing(|| "open /dev/null".to_owned())
}
