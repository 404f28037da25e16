//! What lives on an anonymous inode: eventfd, timerfd, signalfd, epoll, inotify and pidfd.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use image::descriptor::{EpollTarget, FileKind, InotifyWatch, TimerDescriptor};
use rustix::event::EventfdFlags;
use rustix::fs::inotify::{CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use serde_bytes::ByteBuf;

use super::error::{Doing, RebuildError, SaveError};
use super::fdinfo::{EpollLine, Info, WatchLine};
use super::files;
use super::save::{Saver, unreadable};

pub(super) fn save<'t>(
    saver: &mut Saver<'_, 't>,
    number: i32,
    info: &Info<'t>,
    name: &[u8],
) -> Result<FileKind, SaveError> {
    let lost = || unreadable(saver.subject, number);
    match name {
        b"[eventfd]" => {
            let (count, semaphore) = info.event().ok_or_else(lost)?;
            Ok(FileKind::Event { count, semaphore })
        }
        b"[signalfd]" => Ok(FileKind::Signal { mask: info.signal_mask().ok_or_else(lost)? }),
        b"[timerfd]" => save_timer(saver, number, info.timer().ok_or_else(lost)?).map(FileKind::Timer),
        b"[eventpoll]" => save_epoll(saver, number, info),
        b"inotify" => save_inotify(saver, number, info),
        b"[pidfd]" => save_process(saver, number, info.pid().ok_or_else(lost)?),
        other => Err(refuse_anonymous(saver, number, other)),
    }
}

fn refuse_anonymous(saver: &Saver<'_, '_>, number: i32, name: &[u8]) -> SaveError {
    let name = String::from_utf8_lossy(name);
    let (what, way_out) = match name.trim_matches(['[', ']']) {
        "io_uring" => ("is an io_uring", "switch it off in the app (epoll is protected)"),
        "perf_event" => ("is a perf event", "stop the profiler"),
        "userfaultfd" => ("is a userfaultfd", "have the app handle its own page faults another way"),
        "fanotify" => ("is a fanotify group", "use inotify"),
        "landlock-ruleset" => ("is a landlock ruleset", "close it after landlock_restrict_self"),
        name if name.starts_with("bpf") || name == "btf" => {
            return saver.refuse(
                number,
                &format!("is a BPF object ({name})"),
                "load it from another process",
            );
        }
        name => {
            return saver.refuse(number, &format!("is an anonymous {name}"), "have the app close it");
        }
    };
    saver.refuse(number, what, way_out)
}

/// An interval timer that fired unread stands still until somebody asks: then the kernel counts on, and
/// tells the true rest.
fn save_timer(
    saver: &mut Saver<'_, '_>,
    number: i32,
    timer: TimerDescriptor,
) -> Result<TimerDescriptor, SaveError> {
    if timer.remaining_ns > 0 || timer.interval_ns == 0 {
        return Ok(timer);
    }
    let failed = |source| SaveError::Kernel { pid: saver.subject.pid, number, what: "ask the timer", source };
    rustix::time::timerfd_gettime(saver.steal(number)?).map_err(|source| failed(source.into()))?;
    let mut text = String::new();
    saver.cache.append_info(number, &mut text).map_err(failed)?;
    let again = Info::parse(&text).and_then(|info| info.timer());
    again.ok_or_else(|| unreadable(saver.subject, number))
}

fn save_epoll(saver: &mut Saver<'_, '_>, number: i32, info: &Info<'_>) -> Result<FileKind, SaveError> {
    let lines = info.epoll_lines().ok_or_else(|| unreadable(saver.subject, number))?;
    let mut seen: HashMap<i32, u32> = HashMap::with_capacity(lines.len());
    let mut targets = Vec::with_capacity(lines.len());
    for line in lines {
        let offset = seen.entry(line.target).or_default();
        let file = epoll_file(saver, number, &line, *offset)?;
        *offset += 1;
        let EpollLine { target, events, data, inode: _, device: _ } = line;
        targets.push(EpollTarget { descriptor: target, file, events, data });
    }
    Ok(FileKind::Epoll { targets })
}

/// Which file an epoll watches: mostly the one that has the number now, but the number may have been closed
/// or given away while a duplicate keeps the file.
fn epoll_file(saver: &Saver<'_, '_>, epoll: i32, line: &EpollLine, offset: u32) -> Result<u32, SaveError> {
    let holder = saver.table.find(line.target).filter(|(_, info)| info.inode == line.inode);
    if let Some((file, info)) = holder
        && (is_that_socket(saver, line, info) || watches(saver, epoll, line, offset, line.target)?)
    {
        return Ok(file);
    }
    for (file, candidate, info) in saver.table.files() {
        if info.inode == line.inode && watches(saver, epoll, line, offset, candidate)? {
            return Ok(file);
        }
    }
    let what = format!("is an epoll that watches a file without descriptor (once fd {})", line.target);
    Err(saver.refuse(epoll, &what, "let the app settle, or keep what it watches inside the app"))
}

/// A socket has one open file: its inode says enough.
fn is_that_socket(saver: &Saver<'_, '_>, line: &EpollLine, info: &Info<'_>) -> bool {
    saver.cache.is_socket(info) && line.device == saver.cache.socket_device
}

fn watches(
    saver: &Saver<'_, '_>,
    epoll: i32,
    line: &EpollLine,
    offset: u32,
    candidate: i32,
) -> Result<bool, SaveError> {
    sys::descriptors::epoll_watches(saver.subject.pid, epoll, line.target, offset, candidate)
        .map_err(|source| saver.kernel(epoll, "compare what the epoll watches", source))
}

/// What waits unread in an inotify is not carried, just as what happens between the last epoch and the
/// takeover is not: whoever watches files across a failover looks at them again.
fn save_inotify(saver: &mut Saver<'_, '_>, number: i32, info: &Info<'_>) -> Result<FileKind, SaveError> {
    let lines = info.watch_lines().ok_or_else(|| unreadable(saver.subject, number))?;
    let mut watches = Vec::with_capacity(lines.len());
    for line in lines {
        let path = watched_path(saver, &line).map_err(|source| {
            let what =
                format!("watches inode {:x} by inotify, whose path is not found ({source})", line.inode);
            saver.refuse(number, &what, "watch files on an ordinary file system")
        })?;
        watches.push(InotifyWatch { number: line.number, path: ByteBuf::from(path), mask: line.mask });
    }
    watches.sort_by_key(|watch| watch.number);
    Ok(FileKind::Inotify { watches })
}

fn watched_path(saver: &mut Saver<'_, '_>, line: &WatchLine) -> io::Result<Vec<u8>> {
    let key = (line.device, line.inode);
    let root = format!("/proc/{}/root", saver.subject.pid);
    if let Some(path) = saver.cache.watched_paths.get(&key)
        && names_watched(&root, path, line)
    {
        return Ok(path.clone());
    }
    let path = path_by_handle(saver.subject.pid, &root, line)?;
    if !names_watched(&root, &path, line) {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    saver.cache.watched_paths.insert(key, path.clone());
    Ok(path)
}

fn names_watched(root: &str, path: &[u8], line: &WatchLine) -> bool {
    let whole = [root.as_bytes(), path].concat();
    rustix::fs::lstat(whole).is_ok_and(|stat| {
        let device = rustix::fs::major(stat.st_dev) << 20 | rustix::fs::minor(stat.st_dev);
        (device, stat.st_ino) == (line.device, line.inode)
    })
}

/// Tries each mount of the watched device: handles are decoded within one.
fn path_by_handle(pid: i32, root: &str, line: &WatchLine) -> io::Result<Vec<u8>> {
    let device = format!("{}:{}", line.device >> 20, line.device & 0xf_ffff);
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let points = mounts.lines().filter_map(|mount| {
        let mut words = mount.split(' ').skip(2);
        (words.next() == Some(&device)).then(|| words.nth(1)).flatten()
    });
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for point in points {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let found = rustix::fs::open(format!("{root}{point}"), flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|mount| {
                sys::descriptors::open_by_handle(mount.as_fd(), line.handle_kind, &line.handle)
            });
        match found {
            Ok(file) => return link_of(file.as_fd()),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn link_of(own: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let name = format!("/proc/self/fd/{}", own.as_raw_fd());
    Ok(rustix::fs::readlink(name, Vec::new())?.into_bytes())
}

fn save_process(saver: &Saver<'_, '_>, number: i32, pid: i32) -> Result<FileKind, SaveError> {
    match saver.subject.pids.get(&pid) {
        Some(&pid) => Ok(FileKind::Process { pid }),
        None if pid < 0 => {
            Err(saver.refuse(number, "is a pidfd of a process that has ended", "have the app close it"))
        }
        None => {
            let what = format!("is a pidfd of process {pid}, which is not protected");
            Err(saver.refuse(number, &what, "wait for that process to end"))
        }
    }
}

pub(super) fn make_event(count: u64, semaphore: bool, flags: u32) -> Result<OwnedFd, RebuildError> {
    let what = || "make an eventfd".to_owned();
    let kind = if semaphore { EventfdFlags::SEMAPHORE } else { EventfdFlags::empty() };
    let made =
        rustix::event::eventfd(0, kind | EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).doing(what)?;
    if count > 0 {
        rustix::io::write(&made, &count.to_ne_bytes()).doing(what)?;
    }
    files::set_flags(made.as_fd(), flags).doing(what)?;
    Ok(made)
}

/// A timer that does not run yet.
pub(super) fn make_timer(timer: &TimerDescriptor, flags: u32) -> Result<OwnedFd, RebuildError> {
    let clock = match timer.clock {
        libc::CLOCK_REALTIME => TimerfdClockId::Realtime,
        libc::CLOCK_MONOTONIC => TimerfdClockId::Monotonic,
        libc::CLOCK_BOOTTIME => TimerfdClockId::Boottime,
        libc::CLOCK_REALTIME_ALARM => TimerfdClockId::RealtimeAlarm,
        libc::CLOCK_BOOTTIME_ALARM => TimerfdClockId::BoottimeAlarm,
        other => return Err(RebuildError::Inconsistent { what: format!("clock {other} of a timerfd") }),
    };
    let what = || "make a timerfd".to_owned();
    let made = timerfd_create(clock, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK).doing(what)?;
    files::set_flags(made.as_fd(), flags).doing(what)?;
    Ok(made)
}

/// Starts the timer with what was left of it, `elapsed` after the freeze on the app's own clock.
pub(super) fn arm_timer(
    made: BorrowedFd<'_>,
    timer: &TimerDescriptor,
    elapsed: Duration,
) -> Result<(), RebuildError> {
    let what = || "start a timerfd".to_owned();
    if timer.remaining_ns > 0 {
        let left = Duration::from_nanos(timer.remaining_ns).saturating_sub(elapsed);
        let spec = Itimerspec {
            it_value: timespec(left.max(Duration::from_nanos(1))),
            it_interval: timespec(Duration::from_nanos(timer.interval_ns)),
        };
        timerfd_settime(made, TimerfdTimerFlags::empty(), &spec).doing(what)?;
    }
    if timer.ticks > 0 {
        sys::descriptors::set_timer_ticks(made, timer.ticks).doing(what)?;
    }
    Ok(())
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: duration.subsec_nanos().into() }
}

pub(super) fn make_signal(mask: u64, flags: u32) -> Result<OwnedFd, RebuildError> {
    let what = || "make a signalfd".to_owned();
    let made = sys::descriptors::signal_descriptor(mask, libc::SFD_CLOEXEC).doing(what)?;
    files::set_flags(made.as_fd(), flags).doing(what)?;
    Ok(made)
}

/// The watches get their old numbers. What our own opening of files caused is read away by [`drain`].
pub(super) fn make_inotify(root: BorrowedFd<'_>, watches: &[InotifyWatch]) -> Result<OwnedFd, RebuildError> {
    let made = rustix::fs::inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
        .doing(|| "make an inotify".to_owned())?;
    for watch in watches {
        add_watch(root, made.as_fd(), watch)?;
    }
    Ok(made)
}

fn add_watch(root: BorrowedFd<'_>, made: BorrowedFd<'_>, watch: &InotifyWatch) -> Result<(), RebuildError> {
    let what = || format!("watch {}", String::from_utf8_lossy(&watch.path));
    let path_only = OFlags::PATH | OFlags::CLOEXEC;
    let watched = files::open_below(root, &watch.path, path_only).doing(what)?;
    sys::descriptors::set_next_watch(made, watch.number).doing(what)?;
    let name = format!("/proc/self/fd/{}", watched.as_raw_fd());
    // The name is a link, and must be followed.
    let mask = WatchFlags::from_bits_retain(watch.mask) - WatchFlags::DONT_FOLLOW;
    let number = rustix::fs::inotify::add_watch(made, name, mask).doing(what)?;
    if number == watch.number {
        return Ok(());
    }
    Err(RebuildError::Inconsistent { what: format!("number {} of an inotify watch", watch.number) })
}

/// Reads away what an inotify has queued, and gives it the flags that the app set.
pub(super) fn drain_inotify(made: BorrowedFd<'_>, flags: u32) -> Result<(), RebuildError> {
    let mut queued = vec![0_u8; 64 << 10];
    while rustix::io::read(made, &mut queued).is_ok_and(|len| len > 0) {}
    files::set_flags(made, flags).doing(|| "set the flags of an inotify".to_owned())
}
