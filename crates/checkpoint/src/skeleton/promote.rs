//! The skeleton becomes the app: clocks, shared files, descriptors, threads, in this order.
//!
//! Nothing of it can be seen from outside before the thaw but what belongs to the winner of a takeover:
//! listening sockets, locks, the bytes of files that are mapped shared. A failure leaves a skeleton that
//! must be thrown away.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use image::Range;
use image::layout::{Backing, ObjectKey, ObjectKind};
use image::state::State;
use rustix::fs::{FallocateFlags, Mode, OFlags, ResolveFlags, SeekFrom};
use tracee::{Call, Frozen, Remote};

use super::writer::{HeldObject, bits};
use super::{ApplyError, Skeleton};
use crate::descriptors::{
    self, CellNetwork, ConnectionCounts, ManagerSocket, Revival, Scratch, Surroundings, Target,
};
use crate::process;

const CLONE_NEWTIME: u64 = 0x80;

/// What the app is given in its new life.
#[derive(Debug)]
pub struct Promotion<'a> {
    pub state: &'a State,
    /// The host's monotonic and boot clock when the epoch came in, in nanoseconds.
    pub received_monotonic_ns: u64,
    pub received_boottime_ns: u64,
    pub output: BorrowedFd<'a>,
    pub error: BorrowedFd<'a>,
    /// The directory of the control group that the skeleton is in.
    pub cgroup: &'a Path,
    /// Our end of the unix socket whose other end the skeleton has open at `channel_number`.
    pub channel: BorrowedFd<'a>,
    pub channel_number: i32,
    pub manager: Option<&'a dyn ManagerSocket>,
}

/// Where the time of a promotion went.
#[derive(Debug, Clone, Copy, Default)]
pub struct PromotionTimes {
    pub clocks: Duration,
    pub objects: Duration,
    pub descriptors: Duration,
    pub threads: Duration,
    /// From the opening of the network to the last connection that goes on.
    pub revival: Duration,
    pub connections: ConnectionCounts,
}

impl<'tree> Skeleton<'tree> {
    /// Makes the skeleton the app as it was at the freeze. It still stands: thaw what comes back. `network`:
    /// the cell's own, if it has one.
    pub fn promote(
        mut self,
        promotion: &Promotion<'_>,
        mut network: Option<&mut dyn CellNetwork>,
    ) -> Result<(Frozen<'tree>, PromotionTimes), ApplyError> {
        let [process] = &promotion.state.processes[..] else {
            return Err(ApplyError::Space(promotion.state.processes.len() as u32));
        };
        let memory = promotion.state.spaces.first().ok_or(ApplyError::Space(0))?;
        let mut times = PromotionTimes::default();
        let mut last = Instant::now();
        let mut lap = move || {
            let now = Instant::now();
            std::mem::replace(&mut last, now).elapsed()
        };
        self.set_clocks(promotion)?;
        times.clocks = lap();
        let objects = self.materialize_objects()?;
        times.objects = lap();
        let revival = self.install_descriptors(promotion, process, &objects, &mut network)?;
        times.descriptors = lap();
        self.lock_memory()?;
        self.install_guards()?;
        process::restore(&mut self.frozen, self.pid, process, memory)?;
        times.threads = lap();
        if let Some(network) = network {
            network.let_in().map_err(host("open the way into the cell's network"))?;
        }
        times.connections = revival.finish();
        times.revival = lap();
        Ok((self.frozen, times))
    }

    /// The app's clocks go on from the freeze, as if it had only been slow. N.B. offsets can be set only
    /// until a task enters the namespace, and only a single-threaded one can: so it is now or never.
    fn set_clocks(&mut self, promotion: &Promotion<'_>) -> Result<(), ApplyError> {
        let clocks = promotion.state.clocks;
        let mut remote = self.frozen.remote(self.pid)?;
        remote.call("make a time namespace", libc::SYS_unshare, [CLONE_NEWTIME])?;
        let text = format!(
            "monotonic {}\nboottime {}\n",
            offset(clocks.monotonic_ns, promotion.received_monotonic_ns),
            offset(clocks.boottime_ns, promotion.received_boottime_ns),
        );
        let path = format!("/proc/{}/timens_offsets", self.pid);
        File::options()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(host("set the app's clocks"))?;
        let name = remote.put(0, b"/proc/self/ns/time_for_children\0");
        let at = libc::AT_FDCWD as u64;
        let fd = remote.call("open a time namespace", libc::SYS_openat, [at, name, 0])?;
        remote.call("enter a time namespace", libc::SYS_setns, [fd, CLONE_NEWTIME])?;
        remote.call("close a time namespace", libc::SYS_close, [fd])?;
        Ok(())
    }

    /// Files that were mapped shared and writable get the bytes that the app last saw in them, and are
    /// mapped in the place of what stood for them. The others are handed on as they are.
    fn materialize_objects(&mut self) -> Result<HashMap<ObjectKey, OwnedFd>, ApplyError> {
        let mut objects = HashMap::new();
        let root = self.root()?;
        for (key, held) in &self.objects {
            let file = match &held.object.kind {
                ObjectKind::File { path, deleted, mode } => {
                    let file = write_file(root.as_fd(), held, path, *deleted, *mode)?;
                    map_file(&mut self.frozen, self.pid, &self.mappings, *key, &file)?;
                    file
                }
                ObjectKind::Memfd { seals, .. } => {
                    let seals = rustix::fs::SealFlags::from_bits_retain(*seals);
                    if !seals.is_empty() {
                        rustix::fs::fcntl_add_seals(&held.file, seals)
                            .map_err(|why| host("seal a memfd")(why.into()))?;
                    }
                    held.file.try_clone().map_err(host("duplicate a memfd"))?
                }
                ObjectKind::Anonymous => held.file.try_clone().map_err(host("duplicate shared memory"))?,
            };
            objects.insert(*key, OwnedFd::from(file));
        }
        Ok(objects)
    }

    fn install_descriptors<'p>(
        &mut self,
        promotion: &Promotion<'p>,
        process: &'p image::process::Process,
        objects: &HashMap<ObjectKey, OwnedFd>,
        network: &mut Option<&mut dyn CellNetwork>,
    ) -> Result<Revival<'p>, ApplyError> {
        let root = self.root()?;
        let surroundings = Surroundings {
            root: root.as_fd(),
            cgroup: promotion.cgroup,
            stdio: [None, Some(promotion.output), Some(promotion.error)],
            objects,
        };
        let state = promotion.state;
        let prepared = descriptors::prepare(&process.descriptors, &state.files, &state.pipes, &surroundings)?;
        let pidfd = rustix::process::Pid::from_raw(self.pid)
            .ok_or(io::ErrorKind::NotFound.into())
            .and_then(|pid| {
                rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
                    .map_err(io::Error::from)
            })
            .map_err(host("open the skeleton"))?;
        let skeleton = descriptors::Skeleton {
            pid: self.pid,
            pidfd: pidfd.as_fd(),
            channel: promotion.channel,
            channel_number: promotion.channel_number,
            elapsed: elapsed_since(promotion.received_monotonic_ns),
            strays: &state.strays,
            manager: promotion.manager,
        };
        let mut target = InSkeleton(self.frozen.remote(self.pid)?);
        let network = network.as_mut().map(|network| &mut **network as &mut dyn CellNetwork);
        Ok(descriptors::install(prepared, &mut target, &skeleton, network)?)
    }

    /// The directory that the app takes for the root.
    pub(super) fn root(&self) -> Result<File, ApplyError> {
        File::open(format!("/proc/{}/root", self.pid)).map_err(host("open the cell's root"))
    }

    fn lock_memory(&mut self) -> Result<(), ApplyError> {
        const MLOCK_ONFAULT: u64 = 1;
        let locked = self.mappings.iter().filter(|mapping| mapping.advice.locked);
        let calls: Vec<Call> = locked
            .map(|mapping| {
                let flags = if mapping.advice.locked_on_fault { MLOCK_ONFAULT } else { 0 };
                Call::new(libc::SYS_mlock2, [mapping.range.start, mapping.range.len_bytes(), flags])
            })
            .collect();
        self.calls("lock memory", calls)
    }

    /// N.B. only now: a guarded page can't be written, not even from outside.
    fn install_guards(&mut self) -> Result<(), ApplyError> {
        const MADV_GUARD_INSTALL: u64 = 102;
        let install = |range: &Range| {
            Call::new(libc::SYS_madvise, [range.start, range.len_bytes(), MADV_GUARD_INSTALL])
        };
        self.calls("install guards", self.guards.iter().map(install).collect())
    }
}

/// How the kernel writes an offset: seconds, which may be negative, and nanoseconds, which may not.
fn offset(app_ns: u64, host_ns: u64) -> String {
    const SECOND_NS: i64 = 1_000_000_000;
    let difference = app_ns.wrapping_sub(host_ns) as i64;
    format!("{} {}", difference.div_euclid(SECOND_NS), difference.rem_euclid(SECOND_NS))
}

fn elapsed_since(monotonic_ns: u64) -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now_ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    Duration::from_nanos(now_ns.saturating_sub(monotonic_ns))
}

/// The file as the cell has it: its mounts may be others than ours.
fn write_file(
    root: BorrowedFd<'_>,
    held: &HeldObject,
    path: &[u8],
    deleted: bool,
    mode: u32,
) -> Result<File, ApplyError> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let failed = |why: io::Error| ApplyError::File { path: path.display().to_string(), why: why.to_string() };
    let mode = Mode::from_raw_mode(mode & 0o7777);
    let file = if deleted {
        let place = path.parent().unwrap_or(Path::new("/tmp"));
        let nameless = |place| open_in(root, place, OFlags::RDWR | OFlags::TMPFILE, mode);
        nameless(place).or_else(|_| nameless(Path::new("/tmp")))
    } else {
        make_directories(root, path.parent().unwrap_or(path)).map_err(failed)?;
        open_in(root, path, OFlags::RDWR | OFlags::CREATE, mode)
    };
    copy_bytes(held, file.map_err(failed)?.into()).map_err(failed)
}

/// Opens the cell's own path, whatever links lie on it.
fn open_in(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let below = path.strip_prefix("/").unwrap_or(path);
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let flags = flags | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(root, below, flags, mode, ResolveFlags::IN_ROOT)?)
}

fn make_directories(root: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    const USUAL: Mode = Mode::from_raw_mode(0o777);
    let directory = |path| open_in(root, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
    match (directory(path), path.parent(), path.file_name()) {
        (Err(why), Some(parent), Some(name)) if why.kind() == io::ErrorKind::NotFound => {
            make_directories(root, parent)?;
            match rustix::fs::mkdirat(directory(parent)?, name, USUAL) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
                Err(why) => Err(why.into()),
            }
        }
        (opened, ..) => opened.map(drop),
    }
}

fn copy_bytes(held: &HeldObject, file: File) -> io::Result<File> {
    const STEP_BYTES: u64 = 1 << 20;
    file.set_len(held.object.size_bytes)?;
    let mut buffer = vec![0; STEP_BYTES as usize];
    let mut at = 0;
    while let Some(data) = next_data(&held.file, at)? {
        clear(&file, Range::new(at, data.start))?;
        for start in (data.start..data.end).step_by(STEP_BYTES as usize) {
            let len = (data.end - start).min(STEP_BYTES) as usize;
            held.file.read_exact_at(&mut buffer[..len], start)?;
            file.write_all_at(&buffer[..len], start)?;
        }
        at = data.end;
    }
    clear(&file, Range::new(at, held.object.size_bytes))?;
    Ok(file)
}

/// The first range from `at` on that is no hole: the size of a sparse file says nothing about its content.
fn next_data(file: &File, at: u64) -> io::Result<Option<Range>> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => Ok(Some(Range::new(start, rustix::fs::seek(file, SeekFrom::Hole(start))?))),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(why) => Err(why.into()),
    }
}

/// What was in the file there before is not the app's.
fn clear(file: &File, range: Range) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, range.start, range.len_bytes()) {
        Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(file, range),
        other => Ok(other?),
    }
}

/// For file systems without holes. They have no room for what is too large to be written, and say so.
fn write_zeros(file: &File, range: Range) -> io::Result<()> {
    const STEP_BYTES: u64 = 1 << 20;
    let zeros = vec![0; STEP_BYTES as usize];
    (range.start..range.end).step_by(STEP_BYTES as usize).try_for_each(|start| {
        file.write_all_at(&zeros[..(range.end - start).min(STEP_BYTES) as usize], start)
    })
}

/// Maps the file itself where a stand-in was, through the path of our own descriptor's file.
fn map_file(
    frozen: &mut Frozen<'_>,
    pid: i32,
    mappings: &[image::layout::Mapping],
    key: ObjectKey,
    file: &File,
) -> Result<(), ApplyError> {
    use std::os::fd::AsRawFd;
    let link =
        std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(host("name a file"))?;
    let mut remote = frozen.remote(pid)?;
    let name = remote.put(0, &[link.as_os_str().as_bytes(), b"\0"].concat());
    let at = libc::AT_FDCWD as u64;
    let opened = remote.call("open a shared file", libc::SYS_openat, [at, name, libc::O_RDWR as u64]);
    // A file without a name can't be opened by one: its stand-in has its bytes, and nobody else has it.
    let Ok(fd) = opened else { return Ok(()) };
    for mapping in mappings.iter().filter(|mapping| mapping.backing == Backing::Object(key) && mapping.shared)
    {
        let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
        let (start, len) = (mapping.range.start, mapping.range.len_bytes());
        let arguments = [start, len, bits(mapping.protection), flags, fd, mapping.offset];
        remote.call("map a shared file", libc::SYS_mmap, arguments)?;
    }
    remote.call("close a shared file", libc::SYS_close, [fd])?;
    Ok(())
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> ApplyError {
    move |source| ApplyError::Host { what, source }
}

/// The skeleton as the descriptors' module knows it.
struct InSkeleton<'frozen, 'tree>(Remote<'frozen, 'tree>);

impl Target for InSkeleton<'_, '_> {
    fn calls(&mut self, calls: &[descriptors::Call]) -> io::Result<Vec<i64>> {
        let calls: Vec<Call> = calls.iter().map(|&(number, arguments)| Call { number, arguments }).collect();
        self.0.calls(&calls).map_err(io::Error::other)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> io::Result<()> {
        let start = self.0.buffer().0;
        self.0.put(address - start, bytes);
        Ok(())
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        let start = self.0.buffer().0;
        self.0.get(address - start, bytes);
        Ok(())
    }

    fn scratch(&self) -> Scratch {
        let (address, len) = self.0.buffer_place();
        Scratch { address, len: len as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_links_are_those_of_the_given_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("/real", dir.path().join("link")).unwrap();
        let root = File::open(dir.path()).unwrap();
        make_directories(root.as_fd(), Path::new("/link/a/b")).unwrap();
        let flags = OFlags::RDWR | OFlags::CREATE;
        open_in(root.as_fd(), Path::new("/link/a/b/file"), flags, Mode::from_raw_mode(0o600)).unwrap();
        assert!(dir.path().join("real/a/b/file").exists());
        open_in(root.as_fd(), Path::new("/"), OFlags::PATH, Mode::empty()).unwrap();
    }

    #[test]
    fn an_offset_has_no_negative_nanoseconds() {
        assert_eq!(offset(5_500_000_000, 2_000_000_000), "3 500000000");
        assert_eq!(offset(2_000_000_000, 5_500_000_000), "-4 500000000");
    }
}
