//! Calls that move a stream of bytes and wait until all have moved. Whatever stops them in the middle, each
//! moves all that it was asked to; only a handler that runs may end one early.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create, sendfile};
use rustix::io::{Errno, ioctl_fionread, read, write, writev};
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, recv, recvmsg, send, sendmsg,
};

use crate::harness::{Context, Guest, Outcome, say};
use crate::kernel::{self, SIGUSR2};
use crate::{ensure, ensure_eq};

pub const GUESTS: &[Guest] = &[
    Guest::new("blocked-streams", blocked_streams),
    Guest::new("blocked-filtered", blocked_filtered),
    Guest::new("blocked-exec", blocked_exec),
    Guest::stepped("blocked-handler", 1, blocked_handler),
];

/// What one call moves: more than a pipe or a socket holds.
const BYTES: usize = 1 << 20;
/// Calls of each kind after which all is said to move.
const CALLS: u32 = 4;

type Ends = fn() -> io::Result<(OwnedFd, OwnedFd)>;
type Move = fn(&OwnedFd, &[u8], &OwnedFd) -> io::Result<usize>;
type Take = fn(&OwnedFd, &mut [u8]) -> io::Result<usize>;

/// How a stream is made, written and read.
const STREAMS: &[(&str, Ends, Move, Take)] = &[
    ("pipe write", a_pipe, |to, data, _| Ok(write(to, data)?), take_some),
    ("pipe writev", a_pipe, |to, data, _| Ok(writev(to, &slices(data))?), take_some),
    ("unix write", a_pair, |to, data, _| Ok(write(to, data)?), take_some),
    ("unix sendmsg", a_pair, send_message, take_some),
    ("unix sendfile", a_pair, |to, data, file| Ok(sendfile(to, file, Some(&mut 0), data.len())?), take_some),
    ("unix recv", a_pair, |to, data, _| Ok(write(to, data)?), take_all),
    ("unix recvmsg", a_pair, |to, data, _| Ok(writev(to, &slices(data))?), take_all_in_parts),
    ("tcp send", a_connection, |to, data, _| Ok(send(to, data, SendFlags::empty())?), take_some),
    ("tcp writev", a_connection, |to, data, _| Ok(writev(to, &slices(data))?), take_some),
    ("tcp recv", a_connection, |to, data, _| Ok(write(to, data)?), take_all),
];

/// Moves bytes in every way at once until the go. With the argument "tcp" also over TCP, whose connections do
/// not outlive a takeover.
fn blocked_streams(context: &mut Context) -> Outcome {
    let over = Arc::new(AtomicBool::new(false));
    let moving = Arc::new(AtomicU32::new(0));
    let tcp = context.arguments().iter().any(|argument| argument == "tcp");
    let streams: Vec<_> = STREAMS.iter().filter(|(name, ..)| tcp || !name.starts_with("tcp")).collect();
    let count = u32::try_from(streams.len())?;
    let mut workers = Vec::new();
    for &(name, ends, put, take) in streams {
        let (source, sink) = ends()?;
        let (over, moving) = (Arc::clone(&over), Arc::clone(&moving));
        workers.push((name, thread::spawn(move || put_until(&over, name, &sink, put))));
        workers.push((name, thread::spawn(move || take_to_the_end(name, &source, take, &moving, count))));
    }
    context.ready();
    over.store(true, Ordering::Relaxed);
    for (name, worker) in workers {
        worker.join().map_err(|_| format!("{name}: a thread panicked"))??;
    }
    Ok(())
}

fn byte(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap_or(0)
}

fn put_until(over: &AtomicBool, name: &str, sink: &OwnedFd, put: Move) -> Outcome {
    let data: Vec<u8> = (0..BYTES).map(byte).collect();
    let file = memfd_create("data", MemfdFlags::CLOEXEC)?;
    ensure_eq!("bytes of the file", write(&file, &data)?, BYTES);
    while !over.load(Ordering::Relaxed) {
        let count = put(sink, &data, &file).map_err(|why| format!("{name}: {why}"))?;
        ensure!(count == BYTES, "{name}: wrote {count} bytes of {BYTES}");
    }
    Ok(())
}

fn take_to_the_end(name: &str, source: &OwnedFd, take: Take, moving: &AtomicU32, count: u32) -> Outcome {
    let mut buffer = vec![0; BYTES];
    let (mut at, mut calls) = (0, 0);
    loop {
        let taken = take(source, &mut buffer).map_err(|why| format!("{name}: {why}"))?;
        let wrong = buffer[..taken].iter().zip(at..).position(|(&found, at)| found != byte(at % BYTES));
        ensure!(wrong.is_none(), "{name}: byte {wrong:?} of {taken} at {at} is wrong");
        if taken == 0 {
            ensure!(at % BYTES == 0, "{name}: it ended after {at} bytes");
            return Ok(());
        }
        at += taken;
        if at / BYTES > calls {
            calls = at / BYTES;
            if calls == CALLS as usize && moving.fetch_add(1, Ordering::Relaxed) + 1 == count {
                say("moving");
            }
        }
    }
}

/// In small portions and not too fast, so that the writer waits for the reader.
fn take_some(source: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    const PORTION: usize = 16 << 10;
    const PACE: Duration = Duration::from_micros(200);
    thread::park_timeout(PACE);
    Ok(read(source, &mut buffer[..PORTION])?)
}

/// All or, at the end, nothing.
fn take_all(source: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    let (_, count) = recv(source, &mut *buffer, RecvFlags::WAITALL)?;
    whole(count, buffer.len())
}

fn take_all_in_parts(source: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    let len = buffer.len();
    let (first, rest) = buffer.split_at_mut(1001);
    let (second, third) = rest.split_at_mut(300_000);
    let mut parts = [first, second, third].map(IoSliceMut::new);
    let mut control = RecvAncillaryBuffer::default();
    whole(recvmsg(source, &mut parts, &mut control, RecvFlags::WAITALL)?.bytes, len)
}

fn whole(count: usize, wanted: usize) -> io::Result<usize> {
    match count {
        0 => Ok(0),
        count if count == wanted => Ok(count),
        _ => Err(io::Error::other(format!("read {count} bytes of {wanted}"))),
    }
}

fn slices(data: &[u8]) -> [IoSlice<'_>; 4] {
    [&data[..1001], &data[1001..1001], &data[1001..300_000], &data[300_000..]].map(IoSlice::new)
}

fn send_message(to: &OwnedFd, data: &[u8], _file: &OwnedFd) -> io::Result<usize> {
    Ok(sendmsg(to, &slices(data), &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?)
}

fn a_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe()?)
}

fn a_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (one, other) = UnixStream::pair()?;
    Ok((one.into(), other.into()))
}

fn a_connection() -> io::Result<(OwnedFd, OwnedFd)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok((listener.accept()?.0.into(), client.into()))
}

/// A filter that refuses another call of the same kind has nothing to say about a write.
fn blocked_filtered(context: &mut Context) -> Outcome {
    let (source, sink) = a_pair()?;
    let writer = thread::spawn(move || {
        kernel::refuse_syscall(libc::SYS_sendto, 13)?;
        let written = write(&sink, &vec![7; BYTES])?;
        let refused = send(&sink, &[7], SendFlags::empty());
        Ok::<_, io::Error>((written, refused))
    });
    wait_for_bytes(&source, 1)?;
    context.ready();
    let mut found = Vec::new();
    File::from(source).read_to_end(&mut found)?;
    let (written, refused) = writer.join().map_err(|_| "the writer panicked")??;
    ensure_eq!("bytes written", written, BYTES);
    ensure_eq!("bytes read", found.len(), BYTES);
    ensure_eq!("what the filter refuses", refused, Err(Errno::ACCESS));
    Ok(())
}

/// The program is replaced under a thread that writes.
fn blocked_exec(context: &mut Context) -> Outcome {
    let _writer = Writer::start()?;
    context.ready();
    Err(Command::new("echo").arg("pass").exec().into())
}

fn wait_for_bytes(source: &OwnedFd, count: u64) -> io::Result<()> {
    while ioctl_fionread(source)? < count {
        thread::yield_now();
    }
    Ok(())
}

/// A handler ends a write that has moved something: the writer is told how much, once here and once there.
fn blocked_handler(context: &mut Context) -> Outcome {
    kernel::count_handled(SIGUSR2, libc::SA_RESTART, 0)?;
    let here = Writer::start()?;
    context.step();
    here.interrupt(1)?;
    let there = Writer::start()?;
    context.ready();
    there.interrupt(2)
}

struct Writer {
    source: OwnedFd,
    tid: Arc<AtomicU32>,
    worker: JoinHandle<io::Result<usize>>,
}

impl Writer {
    /// Waits until the pipe is full.
    fn start() -> io::Result<Self> {
        const PIPE_BYTES: u64 = 64 << 10;
        let (source, sink) = rustix::pipe::pipe()?;
        let tid = Arc::new(AtomicU32::new(0));
        let told = Arc::clone(&tid);
        let worker = thread::spawn(move || {
            told.store(kernel::thread_id().cast_unsigned(), Ordering::Release);
            Ok(write(&sink, &vec![7; BYTES])?)
        });
        wait_for_bytes(&source, PIPE_BYTES)?;
        Ok(Self { source, tid, worker })
    }

    fn interrupt(self, handled: u32) -> Outcome {
        kernel::signal_thread(self.tid.load(Ordering::Acquire).cast_signed(), SIGUSR2)?;
        let written = self.worker.join().map_err(|_| "the writer panicked")??;
        ensure_eq!("bytes written", written as u64, ioctl_fionread(&self.source)?);
        ensure_eq!("times that the handler ran", kernel::times_handled(SIGUSR2), handled);
        Ok(())
    }
}
