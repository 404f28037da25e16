//! Pipes and FIFOs, with what is in them.
//!
//! The content is duplicated with `tee` into a pipe of our own and read from there, so the app's bytes stay
//! where they are. A pipe is one entry of the table of pipes, however many open files it has.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use image::descriptor::{FileKind, OpenFile, Pipe};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, SpliceFlags};
use serde_bytes::ByteBuf;

use super::error::{Doing, RebuildError, SaveError};
use super::fdinfo::Info;
use super::files;
use super::save::Saver;

/// The pipes met so far, by mount and inode.
#[derive(Debug, Default)]
pub(super) struct PipeTable {
    indexes: HashMap<(u32, u64), usize>,
    ends: Vec<Ends>,
}

/// A descriptor for each direction that the app has open.
#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    reader: Option<i32>,
    writer: Option<i32>,
    has_path: bool,
}

impl PipeTable {
    fn add(&mut self, number: i32, info: &Info<'_>, has_path: bool) -> u32 {
        let ends = &mut self.ends;
        let index = *self.indexes.entry((info.mount, info.inode)).or_insert_with(|| {
            ends.push(Ends::default());
            ends.len() - 1
        });
        let end = &mut ends[index];
        end.has_path = has_path;
        let access = info.flags as i32 & libc::O_ACCMODE;
        if access != libc::O_WRONLY {
            end.reader.get_or_insert(number);
        }
        if access != libc::O_RDONLY {
            end.writer.get_or_insert(number);
        }
        index as u32
    }
}

pub(super) fn save(saver: &mut Saver<'_, '_>, number: i32, info: &Info<'_>) -> Result<FileKind, SaveError> {
    if let Some((_, stream)) = saver.subject.stdio.iter().find(|(inode, _)| *inode == info.inode) {
        return Ok(FileKind::Stdio { stream: *stream });
    }
    Ok(FileKind::Pipe { pipe: saver.pipes.add(number, info, false) })
}

pub(super) fn save_fifo(
    saver: &mut Saver<'_, '_>,
    number: i32,
    info: &Info<'_>,
    path: Vec<u8>,
) -> Result<FileKind, SaveError> {
    Ok(FileKind::Fifo { path: ByteBuf::from(path), pipe: saver.pipes.add(number, info, true) })
}

/// The content of every pipe, once all ends are known.
pub(super) fn save_contents(saver: &mut Saver<'_, '_>) -> Result<(), SaveError> {
    for index in 0..saver.pipes.ends.len() {
        let pipe = save_content(saver, saver.pipes.ends[index])?;
        saver.saved.pipes.push(pipe);
    }
    Ok(())
}

fn save_content(saver: &mut Saver<'_, '_>, ends: Ends) -> Result<Pipe, SaveError> {
    let number = ends.reader.or(ends.writer).unwrap_or(-1);
    let stolen = saver.steal(number)?;
    if !ends.has_path && has_outside_end(ends, stolen.as_fd()) {
        let way_out =
            "redirect it to a file, or run it under `checksync run`, which owns its standard streams";
        return Err(saver.refuse(number, "is a pipe whose other end is outside the app", way_out));
    }
    let capacity = rustix::pipe::fcntl_getpipe_size(&stolen)
        .map_err(|source| saver.kernel(number, "ask for the pipe's capacity", source.into()))?;
    let mut pipe = Pipe { capacity: capacity as u32, content: ByteBuf::new(), packets: Vec::new() };
    if ends.reader.is_some() {
        copy_content(saver, stolen.as_fd(), &mut pipe)
            .map_err(|source| saver.kernel(number, "copy the pipe's content", source))?;
    }
    Ok(pipe)
}

/// A pipe with one end here must have lost the other one.
fn has_outside_end(ends: Ends, stolen: BorrowedFd<'_>) -> bool {
    let sign = match (ends.reader, ends.writer) {
        (Some(_), None) => PollFlags::HUP,
        (None, Some(_)) => PollFlags::ERR,
        _ => return false,
    };
    !polled(stolen).contains(sign)
}

/// What `poll` says now.
pub(super) fn polled(fd: BorrowedFd<'_>) -> PollFlags {
    let events = PollFlags::IN | PollFlags::OUT | PollFlags::RDHUP | PollFlags::PRI;
    let mut asked = [PollFd::from_borrowed_fd(fd, events)];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    match rustix::event::poll(&mut asked, Some(&now)) {
        Ok(_) => asked[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

fn copy_content(saver: &mut Saver<'_, '_>, reader: BorrowedFd<'_>, pipe: &mut Pipe) -> io::Result<()> {
    let waiting = rustix::io::ioctl_fionread(reader)? as usize;
    if waiting == 0 {
        return Ok(());
    }
    let scratch = saver.cache.scratch_pipe(pipe.capacity as usize)?;
    let copied = copy_through(scratch, reader, waiting, pipe);
    if copied.is_err() {
        saver.cache.scratch_pipe = None; // It may hold a rest.
    }
    copied
}

/// A read that gives less than all means packets (`O_DIRECT`): each read gives one.
fn copy_through(
    (scratch_reader, scratch_writer): &(OwnedFd, OwnedFd),
    reader: BorrowedFd<'_>,
    waiting: usize,
    pipe: &mut Pipe,
) -> io::Result<()> {
    if rustix::pipe::tee(reader, scratch_writer, waiting, SpliceFlags::NONBLOCK)? != waiting {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    let (mut content, mut len) = (vec![0; waiting], 0);
    while len < waiting {
        let read = rustix::io::read(scratch_reader, &mut content[len..])?;
        pipe.packets.push(read as u32);
        len += read;
    }
    if pipe.packets.len() == 1 {
        pipe.packets.clear();
    }
    pipe.content = ByteBuf::from(content);
    Ok(())
}

/// A new pipe with the old one's capacity and content: reader and writer.
pub(super) fn make(pipe: &Pipe) -> Result<(OwnedFd, OwnedFd), RebuildError> {
    let made = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK);
    let (reader, writer) = made.doing(|| "make a pipe".to_owned())?;
    fill(writer.as_fd(), pipe)?;
    Ok((reader, writer))
}

/// Gives the pipe behind `writer` its capacity and content.
fn fill(writer: BorrowedFd<'_>, pipe: &Pipe) -> Result<(), RebuildError> {
    let what = || format!("fill a pipe of {} bytes", pipe.capacity);
    if rustix::pipe::fcntl_getpipe_size(writer).doing(what)? != pipe.capacity as usize {
        rustix::pipe::fcntl_setpipe_size(writer, pipe.capacity as usize).doing(what)?;
    }
    write_packets(writer, pipe).doing(what)
}

fn write_packets(writer: BorrowedFd<'_>, pipe: &Pipe) -> io::Result<()> {
    let whole = [pipe.content.len() as u32];
    let (lens, direct) = match pipe.packets.as_slice() {
        [] => (&whole[..], OFlags::empty()),
        packets => (packets, OFlags::DIRECT),
    };
    rustix::fs::fcntl_setfl(writer, OFlags::NONBLOCK | direct)?;
    let mut rest = pipe.content.as_slice();
    for &len in lens {
        let packet = rest.split_off(..len as usize).ok_or(io::ErrorKind::InvalidData)?;
        if rustix::io::write(writer, packet)? != packet.len() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
    }
    Ok(())
}

/// Opens a FIFO as the app had it; the first one of the app brings the content back.
pub(super) fn open_fifo(
    root: BorrowedFd<'_>,
    path: &[u8],
    content: Option<&Pipe>,
    file: &OpenFile,
) -> Result<(OwnedFd, OwnedFd), RebuildError> {
    let what = || format!("open the FIFO {}", String::from_utf8_lossy(path));
    // Both directions at once never wait for somebody at the other end.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let anchor = files::open_below(root, path, flags).doing(what)?;
    let stat = rustix::fs::fstat(&anchor).doing(what)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFIFO {
        return Err(RebuildError::OtherKind { path: String::from_utf8_lossy(path).into_owned() });
    }
    if let Some(pipe) = content {
        fill(anchor.as_fd(), pipe)?;
    }
    let end = files::reopen(anchor.as_fd(), file).doing(what)?;
    Ok((anchor, end))
}
