//! System calls that wait for somebody: stopped in the middle, they must still end whole, once, and without EINTR.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{RecvFlags, recv};

use crate::harness::{Context, Guest, Outcome};
use crate::{ensure_eq, kernel};

pub const GUESTS: &[Guest] = &[
    Guest::new("blocked-reads", blocked_reads),
    Guest::new("blocked-writes", blocked_writes),
    Guest::new("blocked-accept", blocked_accept),
    Guest::new("blocked-futex", blocked_futex),
];

fn joined<T>(worker: JoinHandle<std::io::Result<T>>) -> Result<T, Box<dyn std::error::Error + Send + Sync>> {
    Ok(worker.join().map_err(|_| "a thread panicked")??)
}

/// Reads of a pipe, an eventfd and a unix socket, and one that wants all of 64 bytes of which half are there.
fn blocked_reads(context: &mut Context) -> Outcome {
    let (pipe_out, pipe_in) = rustix::pipe::pipe()?;
    let counter = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
    let (ours, mut theirs) = UnixStream::pair()?;
    let (all_ours, mut all_theirs) = UnixStream::pair()?;
    let from_pipe = thread::spawn(move || read_once(&pipe_out));
    let from_counter = {
        let counter = Arc::clone(&counter);
        thread::spawn(move || read_once(&counter))
    };
    let from_socket = thread::spawn(move || read_once(&OwnedFd::from(ours)));
    let from_all = thread::spawn(move || read_all_64(&all_ours));
    all_theirs.write_all(&[1; 32])?;
    context.ready();
    rustix::io::write(&pipe_in, b"pipe")?;
    rustix::io::write(&*counter, &5_u64.to_ne_bytes())?;
    theirs.write_all(b"socket")?;
    all_theirs.write_all(&[2; 32])?;
    ensure_eq!("read of a pipe", joined(from_pipe)?, b"pipe");
    ensure_eq!("read of an eventfd", joined(from_counter)?, 5_u64.to_ne_bytes());
    ensure_eq!("read of a socket", joined(from_socket)?, b"socket");
    ensure_eq!("read of all 64 bytes", joined(from_all)?, [[1; 32], [2; 32]].concat());
    Ok(())
}

/// One read(2), without the loop that hides EINTR.
fn read_once(fd: &OwnedFd) -> std::io::Result<Vec<u8>> {
    let mut buffer = [0; 64];
    let count = rustix::io::read(fd, &mut buffer)?;
    Ok(buffer[..count].to_vec())
}

fn read_all_64(socket: &UnixStream) -> std::io::Result<Vec<u8>> {
    let mut buffer = [0; 64];
    let (_, count) = recv(socket.as_fd(), &mut buffer, RecvFlags::WAITALL)?;
    Ok(buffer[..count].to_vec())
}

/// One write of a mebibyte into a pipe of 64 KiB that nobody reads yet.
fn blocked_writes(context: &mut Context) -> Outcome {
    const BYTES: usize = 1 << 20;
    let pattern = |at: usize| u8::try_from(at % 251).unwrap_or(0);
    let data: Vec<u8> = (0..BYTES).map(pattern).collect();
    let (pipe_out, pipe_in) = rustix::pipe::pipe()?;
    let writer = thread::spawn(move || Ok(rustix::io::write(&pipe_in, &data)?));
    context.ready();
    let mut found = Vec::new();
    std::fs::File::from(pipe_out).read_to_end(&mut found)?;
    ensure_eq!("bytes that one write wrote", joined(writer)?, BYTES);
    ensure_eq!("bytes that were read", found.len(), BYTES);
    let wrong = found.iter().enumerate().find(|&(at, &byte)| byte != pattern(at));
    ensure_eq!("first wrong byte", wrong, None);
    Ok(())
}

fn blocked_accept(context: &mut Context) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let acceptor = thread::spawn(move || Ok(rustix::net::accept(&listener)?));
    context.ready();
    let mut client = std::net::TcpStream::connect(address)?;
    client.write_all(b"x")?;
    ensure_eq!("first byte of what was accepted", read_once(&joined(acceptor)?)?, b"x");
    Ok(())
}

/// A futex without timeout, and one that is woken.
fn blocked_futex(context: &mut Context) -> Outcome {
    let word = Arc::new(AtomicU32::new(0));
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let word = Arc::clone(&word);
            thread::spawn(move || kernel::futex_wait_forever(&word, 0))
        })
        .collect();
    context.ready();
    word.store(1, Ordering::SeqCst);
    while waiters.iter().any(|waiter| !waiter.is_finished()) {
        kernel::futex_wake_all(&word)?;
        thread::yield_now();
    }
    for waiter in waiters {
        // EAGAIN: the waiter came to it only after the word had changed.
        let ended = waiter.join().map_err(|_| "a waiter panicked")?;
        let error = ended.err().and_then(|error| error.raw_os_error());
        crate::ensure!(
            error.is_none_or(|error| error == libc::EAGAIN),
            "futex wait ended with error {error:?}"
        );
    }
    Ok(())
}
