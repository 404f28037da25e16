//! Descriptors that are not sockets.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, inotify, memfd_create,
};
use rustix::io::{Errno, FdFlags, dup, fcntl_getfd};
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

use crate::harness::{Context, Guest, Outcome};
use crate::{ensure, ensure_eq, kernel};

pub const GUESTS: &[Guest] = &[
    Guest::new("regular-files", regular_files),
    Guest::new("deleted-file", deleted_file),
    Guest::new("shared-offsets", shared_offsets),
    Guest::new("devices", devices),
    Guest::new("pipes", pipes),
    Guest::new("packet-pipe", packet_pipe),
    Guest::new("fifo", fifo),
    Guest::new("eventfd", event_counters),
    Guest::new("signalfd", signal_descriptor),
    Guest::new("epoll", epoll_sets),
    Guest::new("inotify", inotify_watches),
    Guest::new("memfd", memory_file),
    Guest::new("pidfd", pidfd),
    Guest::new("descriptor-numbers", descriptor_numbers),
];

/// A directory for what a guest needs: the first argument, or one of its own. What is in it is left to whoever
/// gave it; one of our own is removed.
struct Scratch {
    path: PathBuf,
    _own: Option<tempfile::TempDir>,
}

impl Scratch {
    fn new(context: &Context) -> std::io::Result<Self> {
        if let Some(path) = context.arguments().first() {
            return Ok(Self { path: path.into(), _own: None });
        }
        let own = tempfile::tempdir()?;
        Ok(Self { path: own.path().to_owned(), _own: Some(own) })
    }

    fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

/// Offsets, flags and access modes, of files and a directory.
fn regular_files(context: &mut Context) -> Outcome {
    let scratch = Scratch::new(context)?;
    let path = scratch.join("file");
    fs::write(&path, "0123456789")?;
    let mut reader = File::open(&path)?;
    reader.seek(SeekFrom::Start(4))?;
    let mut appender = File::options().append(true).open(&path)?;
    let far = File::options().write(true).open(&path)?;
    (&far).seek(SeekFrom::Start(1 << 40))?;
    let directory = File::open(&scratch.path)?;
    let path_only = rustix::fs::open(&path, OFlags::PATH, Mode::empty())?;
    let flags = |fd: &dyn AsFd| rustix::fs::fcntl_getfl(fd.as_fd());
    let before = [flags(&reader)?, flags(&appender)?, flags(&far)?, flags(&directory)?, flags(&path_only)?];
    context.ready();
    let after = [flags(&reader)?, flags(&appender)?, flags(&far)?, flags(&directory)?, flags(&path_only)?];
    ensure_eq!("flags of files", after, before);
    appender.write_all(b"end")?;
    let mut rest = String::new();
    reader.read_to_string(&mut rest)?;
    ensure_eq!("read from the offset on", rest, "456789end");
    ensure_eq!("far offset", (&far).stream_position()?, 1 << 40);
    ensure_eq!("directory", directory.metadata()?.ino(), fs::metadata(&scratch.path)?.ino());
    ensure_eq!("access mode of a reader", (&reader).write(b"x").is_err(), true);
    Ok(())
}

/// A file without a name keeps its content and its offset.
fn deleted_file(context: &mut Context) -> Outcome {
    let scratch = Scratch::new(context)?;
    let path = scratch.join("gone");
    let mut file = File::options().read(true).write(true).create_new(true).open(&path)?;
    let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    file.write_all(&content)?;
    file.write_all_at(b"behind a hole", 4 << 20)?;
    file.seek(SeekFrom::Start(1000))?;
    fs::remove_file(&path)?;
    context.ready();
    ensure!(!path.exists(), "the deleted file is back at {}", path.display());
    ensure_eq!("links", file.metadata()?.nlink(), 0);
    ensure_eq!("length", file.metadata()?.len(), (4 << 20) + 13);
    let mut found = vec![0; content.len() - 1000];
    file.read_exact(&mut found)?;
    ensure!(found == content[1000..], "the content of the deleted file has changed");
    let mut behind = [0; 13];
    file.read_exact_at(&mut behind, 4 << 20)?;
    ensure_eq!("behind the hole", &behind, b"behind a hole");
    Ok(())
}

/// Descriptors made by dup share an offset, and those opened twice do not.
fn shared_offsets(context: &mut Context) -> Outcome {
    let scratch = Scratch::new(context)?;
    let path = scratch.join("file");
    fs::write(&path, "0123456789")?;
    let mut original = File::open(&path)?;
    let mut duplicate = original.try_clone()?;
    let mut separate = File::open(&path)?;
    context.ready();
    original.seek(SeekFrom::Start(7))?;
    ensure_eq!("offset of the duplicate", duplicate.stream_position()?, 7);
    ensure_eq!("offset of the one opened apart", separate.stream_position()?, 0);
    Ok(())
}

fn devices(context: &mut Context) -> Outcome {
    let open = |path| File::options().read(true).write(true).open(path);
    let mut null = open("/dev/null")?;
    let mut zero = open("/dev/zero")?;
    let mut random = File::open("/dev/urandom")?;
    context.ready();
    let mut bytes = [1; 32];
    ensure_eq!("read of /dev/null", null.read(&mut bytes)?, 0);
    null.write_all(b"away")?;
    zero.read_exact(&mut bytes)?;
    ensure_eq!("read of /dev/zero", bytes, [0; 32]);
    random.read_exact(&mut bytes)?;
    ensure!(bytes != [0; 32], "/dev/urandom reads as zeroes");
    Ok(())
}

/// Content, size, flags and closed ends.
fn pipes(context: &mut Context) -> Outcome {
    let (out, input) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setpipe_size(&input, 1 << 20)?;
    let content: Vec<u8> = (0..200_000_u32).map(|at| u8::try_from(at % 251).unwrap_or(0)).collect();
    rustix::io::write(&input, &content)?;
    let (half_out, half_in) = pipe_with(PipeFlags::NONBLOCK)?;
    rustix::io::write(&half_in, b"last words")?;
    drop(half_in);
    let (broken_out, broken_in) = pipe_with(PipeFlags::NONBLOCK)?;
    drop(broken_out);
    context.ready();
    ensure_eq!("pipe size", fcntl_getpipe_size(&out)?, 1 << 20);
    ensure!(rustix::fs::fcntl_getfl(&half_out)?.contains(OFlags::NONBLOCK), "the pipe blocks now");
    drop(input);
    let mut found = Vec::new();
    File::from(out).read_to_end(&mut found)?;
    ensure!(found == content, "{} bytes of {} came out of the pipe, or others", found.len(), content.len());
    let mut words = String::new();
    File::from(half_out).read_to_string(&mut words)?;
    ensure_eq!("pipe without a writer", words, "last words");
    ensure_eq!("pipe without a reader", rustix::io::write(&broken_in, b"x"), Err(Errno::PIPE));
    Ok(())
}

/// In packet mode each read takes one write.
fn packet_pipe(context: &mut Context) -> Outcome {
    let (out, input) = pipe_with(PipeFlags::DIRECT)?;
    for packet in [&b"one"[..], b"three", b"seven!!"] {
        rustix::io::write(&input, packet)?;
    }
    context.ready();
    rustix::io::write(&input, b"late")?;
    for packet in [&b"one"[..], b"three", b"seven!!", b"late"] {
        let mut buffer = [0; 64];
        let count = rustix::io::read(&out, &mut buffer)?;
        ensure_eq!("packet", &buffer[..count], packet);
    }
    Ok(())
}

fn fifo(context: &mut Context) -> Outcome {
    let scratch = Scratch::new(context)?;
    let path = scratch.join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RWXU, 0)?;
    let both = rustix::fs::open(&path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty())?;
    let reader = rustix::fs::open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
    rustix::io::write(&both, b"queued")?;
    context.ready();
    rustix::io::write(&both, b" and new")?;
    let mut buffer = [0; 64];
    let count = rustix::io::read(&reader, &mut buffer)?;
    ensure_eq!("content of the FIFO", &buffer[..count], b"queued and new");
    Ok(())
}

fn event_counters(context: &mut Context) -> Outcome {
    let plain = eventfd(7, EventfdFlags::NONBLOCK)?;
    let semaphore = eventfd(2, EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE)?;
    let empty = eventfd(0, EventfdFlags::NONBLOCK)?;
    context.ready();
    let take = |fd: &OwnedFd| {
        let mut count = [0; 8];
        rustix::io::read(fd, &mut count).map(|_| u64::from_ne_bytes(count))
    };
    ensure_eq!("counter", take(&plain), Ok(7));
    ensure_eq!("counter after the read", take(&plain), Err(Errno::AGAIN));
    ensure_eq!("semaphore", [take(&semaphore), take(&semaphore)], [Ok(1), Ok(1)]);
    ensure_eq!("semaphore after two reads", take(&semaphore), Err(Errno::AGAIN));
    ensure_eq!("empty counter", take(&empty), Err(Errno::AGAIN));
    Ok(())
}

fn signal_descriptor(context: &mut Context) -> Outcome {
    let signal = kernel::first_realtime_signal() + 7;
    kernel::block_signals(&[signal]);
    let descriptor = kernel::signalfd(signal)?;
    kernel::queue_to_process(signal, 99)?;
    context.ready();
    kernel::queue_to_process(signal, 100)?;
    let mut info = [0; 128];
    for value in [99, 100] {
        ensure_eq!("bytes of a signal", rustix::io::read(&descriptor, &mut info)?, 128);
        // signalfd_siginfo: the number first, and ssi_ptr at byte 48.
        ensure_eq!("signal", i32::from(info[0]), signal);
        ensure_eq!("value", u64::from_ne_bytes(info[48..56].try_into()?), value);
    }
    ensure_eq!("after the last", rustix::io::read(&descriptor, &mut info), Err(Errno::AGAIN));
    Ok(())
}

/// Nested sets, edge and level triggered entries, exact data, an entry used up by ONESHOT, and one whose number
/// was closed while a duplicate keeps it alive.
fn epoll_sets(context: &mut Context) -> Outcome {
    let (first, second) = (eventfd(0, EventfdFlags::NONBLOCK)?, eventfd(0, EventfdFlags::NONBLOCK)?);
    let (inner, outer) =
        (epoll::create(epoll::CreateFlags::CLOEXEC)?, epoll::create(epoll::CreateFlags::CLOEXEC)?);
    let (edge, used_up) =
        (epoll::EventFlags::IN | epoll::EventFlags::ET, eventfd(1, EventfdFlags::NONBLOCK)?);
    epoll::add(&inner, &first, data(u64::MAX - 5), edge)?;
    epoll::add(&inner, &second, data(0x0123_4567_89ab_cdef), epoll::EventFlags::IN)?;
    epoll::add(&inner, &used_up, data(3), epoll::EventFlags::IN | epoll::EventFlags::ONESHOT)?;
    epoll::add(&outer, &inner, data(77), epoll::EventFlags::IN)?;
    ensure_eq!("one-shot entry", ready_in(&inner)?, [3]);
    context.ready();
    ensure_eq!("set with nothing ready", ready_in(&outer)?, []);
    rustix::io::write(&first, &1_u64.to_ne_bytes())?;
    ensure_eq!("outer set", ready_in(&outer)?, [77]);
    ensure_eq!("edge triggered entry", ready_in(&inner)?, [u64::MAX - 5]);
    ensure_eq!("edge triggered entry, asked again", ready_in(&inner)?, []);
    rustix::io::write(&second, &1_u64.to_ne_bytes())?;
    ensure_eq!("level triggered entry", ready_in(&inner)?, [0x0123_4567_89ab_cdef]);
    ensure_eq!("level triggered entry, asked again", ready_in(&inner)?, [0x0123_4567_89ab_cdef]);
    Ok(())
}

fn data(value: u64) -> epoll::EventData {
    epoll::EventData::new_u64(value)
}

fn ready_in(set: &OwnedFd) -> rustix::io::Result<Vec<u64>> {
    let mut events = Vec::with_capacity(8);
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    epoll::wait(set, rustix::buffer::spare_capacity(&mut events), Some(&now))?;
    Ok(events.iter().map(|event| event.data.u64()).collect())
}

/// Watches stay, with their numbers. (Events that nobody has read may be repeated or lost: files differ.)
fn inotify_watches(context: &mut Context) -> Outcome {
    let scratch = Scratch::new(context)?;
    let (one, other) = (scratch.join("one"), scratch.join("other"));
    fs::create_dir_all(&one)?;
    fs::create_dir_all(&other)?;
    let watcher = inotify::init(inotify::CreateFlags::NONBLOCK)?;
    let _gone = inotify::add_watch(&watcher, &scratch.path, inotify::WatchFlags::CREATE)?;
    let created = inotify::add_watch(&watcher, &one, inotify::WatchFlags::CREATE)?;
    let removed = inotify::add_watch(&watcher, &other, inotify::WatchFlags::DELETE)?;
    inotify::remove_watch(&watcher, _gone)?;
    while rustix::io::read(&watcher, &mut [0; 4096]).is_ok() {}
    context.ready();
    File::create(one.join("new"))?;
    File::create(other.join("new"))?;
    fs::remove_file(other.join("new"))?;
    let mut buffer = [0; 4096];
    let count = rustix::io::read(&watcher, &mut buffer)?;
    ensure_eq!("watches that fired", watches_in(&buffer[..count]), [created, removed]);
    Ok(())
}

/// The watch of each event: the first of four numbers, of which the last is the length of the name.
fn watches_in(mut events: &[u8]) -> Vec<i32> {
    let number = |at: usize, events: &[u8]| {
        i32::from_ne_bytes([events[at], events[at + 1], events[at + 2], events[at + 3]])
    };
    let mut watches = Vec::new();
    while events.len() >= 16 {
        watches.push(number(0, events));
        let name = usize::try_from(number(12, events)).unwrap_or(0);
        events = &events[16 + name..];
    }
    watches
}

/// Content, offset and seals; unmapped, so that only the descriptor holds it.
fn memory_file(context: &mut Context) -> Outcome {
    let mut file = File::from(memfd_create("guest-memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(&[5; 20_000])?;
    file.seek(SeekFrom::Start(123))?;
    fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
    context.ready();
    ensure_eq!("offset", file.stream_position()?, 123);
    ensure_eq!("seals", fcntl_get_seals(&file)?, SealFlags::GROW | SealFlags::SHRINK);
    ensure!(file.set_len(1).is_err(), "a sealed file could be cut");
    let mut found = vec![0; 20_000];
    file.read_exact_at(&mut found, 0)?;
    ensure!(found.iter().all(|&byte| byte == 5), "the content has changed");
    let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    ensure_eq!("name", name, Path::new("/memfd:guest-memory (deleted)"));
    Ok(())
}

/// A pidfd of our own process.
fn pidfd(context: &mut Context) -> Outcome {
    use rustix::process::{PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    kernel::count_handled(kernel::SIGUSR2, libc::SA_RESTART, 0)?;
    context.ready();
    pidfd_send_signal(&own, Signal::USR2)?;
    ensure_eq!("signals through the pidfd", kernel::times_handled(kernel::SIGUSR2), 1);
    Ok(())
}

/// High numbers, gaps, and close-on-exec, which belongs to the number and not to the file.
fn descriptor_numbers(context: &mut Context) -> Outcome {
    let null = File::open("/dev/null")?;
    let high = rustix::io::fcntl_dupfd_cloexec(&null, 700)?;
    let stays = dup(&null)?;
    let numbers = || -> std::io::Result<Vec<i32>> {
        let names =
            fs::read_dir("/proc/self/fd")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut numbers: Vec<i32> = names.collect();
        numbers.sort_unstable();
        Ok(numbers)
    };
    let before = numbers()?;
    context.ready();
    ensure_eq!("descriptor numbers", numbers()?, before);
    ensure_eq!("close-on-exec", fcntl_getfd(&high)?, FdFlags::CLOEXEC);
    ensure_eq!("no close-on-exec", fcntl_getfd(&stays)?, FdFlags::empty());
    Ok(())
}
