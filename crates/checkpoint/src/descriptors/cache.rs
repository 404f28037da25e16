//! What the save keeps from epoch to epoch. Only what cannot change unseen is in here: which internal mounts
//! sockets, pipes and anonymous inodes live on, what kind of socket an inode is, which file system a device holds. The texts
//! of `/proc/PID/fdinfo` are read anew each time; only the *files* that give them stay open, since such a
//! file always tells of whatever has its number now. No descriptor of the app is ever kept.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, SeekFrom};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::ThreadNameSpaceType;

use super::ahead;
use super::datagrams::Queues;
use super::fdinfo::Info;
use super::probe::Raw;
use super::watch::Watch;
use crate::memory::Workers;

/// How many `/proc/PID/fdinfo` files stay open: they count against the manager's own limit.
const OPEN_INFOS_MAX: usize = 2048;
const INFO_BYTES_FIRST: usize = 1024;

/// What a socket is for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketIdentity {
    pub family: i32,
    pub socket_type: i32,
    pub protocol: i32,
}

/// Kept by the caller from one save of a process to the next; a new one is always right, and slower.
#[derive(Debug)]
pub struct Cache {
    socket_mount: u32,
    pub(super) socket_device: u64,
    pipe_mount: u32,
    anonymous_mount: u32,
    opened: Option<Opened>,
    pub(super) sockets: HashMap<u64, SocketIdentity>,
    pub(super) file_systems: HashMap<u64, u32>,
    pub(super) scratch_pipe: Option<(OwnedFd, OwnedFd)>,
    pub(super) watched_paths: HashMap<(u32, u64), Vec<u8>>,
    diagnosis: Option<OwnedFd>,
    pub(super) watch: Watch,
    buffer: Vec<u8>,
    /// What waits in datagram sockets.
    pub(super) queues: Queues,
    /// Room for what waits in a connection's queues.
    pub(super) queue: Vec<u8>,
    /// To speak to peers, where the app lives.
    pub(super) raw: Option<Raw>,
    helpers: Option<Arc<Workers>>,
    /// Connections that were read ahead, by inode.
    pub(super) ahead: HashMap<u64, ahead::Read>,
}

/// The directories of one process.
#[derive(Debug)]
struct Opened {
    pid: i32,
    links: OwnedFd,
    infos: OwnedFd,
    files: HashMap<i32, OwnedFd>,
    /// As they were listed last.
    numbers: Vec<i32>,
}

/// Texts of `fdinfo` one after the other, and which part of them is whose.
pub(super) type Infos = (String, Vec<(i32, Range<usize>)>);

impl Cache {
    /// Asks the kernel where sockets and pipes live, by looking at some of our own.
    pub fn new() -> io::Result<Self> {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
        let (pipe, _writer) = rustix::pipe::pipe()?;
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        Ok(Self {
            socket_mount: mount_of(socket.as_fd())?,
            socket_device: rustix::fs::fstat(&socket)?.st_dev,
            pipe_mount: mount_of(pipe.as_fd())?,
            anonymous_mount: mount_of(event.as_fd())?,
            opened: None,
            sockets: HashMap::new(),
            file_systems: HashMap::new(),
            scratch_pipe: None,
            watched_paths: HashMap::new(),
            diagnosis: None,
            watch: Watch::default(),
            buffer: vec![0; INFO_BYTES_FIRST],
            queues: Queues::default(),
            queue: Vec::new(),
            raw: None,
            helpers: None,
            ahead: HashMap::new(),
        })
    }

    /// Many connections are read side by side with these.
    pub fn helped_by(self, workers: Arc<Workers>) -> Self {
        Self { helpers: Some(workers), ..self }
    }

    pub(super) fn is_socket(&self, info: &Info<'_>) -> bool {
        info.mount == self.socket_mount
    }

    pub(super) fn is_pipe(&self, info: &Info<'_>) -> bool {
        info.mount == self.pipe_mount
    }

    /// What an anonymous inode's own lines in `fdinfo` say it is. An empty epoll or inotify has none: then
    /// only the link tells.
    pub(super) fn anonymous_kind(&self, info: &Info<'_>) -> Option<&'static [u8]> {
        const KINDS: [(&str, &[u8]); 4] = [
            ("eventfd-count:", b"[eventfd]"),
            ("tfd:", b"[eventpoll]"),
            ("clockid:", b"[timerfd]"),
            ("sigmask:", b"[signalfd]"),
        ];
        let known = KINDS.iter().find(|(line, _)| info.details.starts_with(line));
        known.filter(|_| info.mount == self.anonymous_mount).map(|(_, kind)| *kind)
    }

    /// Forgets what belonged to another process than `pid`.
    pub(super) fn belongs_to(&mut self, pid: i32) -> io::Result<()> {
        if self.opened.as_ref().is_none_or(|opened| opened.pid != pid) {
            self.opened = Some(Opened::new(pid)?);
            self.forget_sockets();
            self.queues = Queues::default();
        }
        Ok(())
    }

    /// All but what cannot be found out a second time: which empty datagrams wait.
    pub fn forget_sockets(&mut self) {
        self.sockets.clear();
        self.diagnosis = None;
        self.watch.forget();
        self.raw = None;
    }

    /// The texts of `/proc/PID/fdinfo` for all descriptors, in order. If there are as many as before, and each
    /// of those before is still there, they are the same, and need not be listed, which costs as much as half
    /// of the reading.
    pub(super) fn infos(&mut self) -> io::Result<Infos> {
        let opened = opened(&mut self.opened)?;
        if opened.count()? == opened.numbers.len() {
            match self.read_infos() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                read => return read,
            }
        }
        self.list()?;
        self.read_infos()
    }

    fn list(&mut self) -> io::Result<()> {
        let opened = opened(&mut self.opened)?;
        let mut numbers = opened.list()?;
        numbers.sort_unstable();
        opened.files.retain(|number, _| numbers.binary_search(number).is_ok());
        opened.numbers = numbers;
        Ok(())
    }

    fn read_infos(&mut self) -> io::Result<Infos> {
        let numbers = std::mem::take(&mut opened(&mut self.opened)?.numbers);
        let mut text = String::with_capacity(numbers.len() * 128);
        let mut ranges = Vec::with_capacity(numbers.len());
        let mut read = Ok(());
        for &number in &numbers {
            let start = text.len();
            read = self.append_info(number, &mut text);
            if read.is_err() {
                break;
            }
            ranges.push((number, start..text.len()));
        }
        opened(&mut self.opened)?.numbers = numbers;
        read.map(|()| (text, ranges))
    }

    /// Appends the text of `/proc/PID/fdinfo/number` to `text`.
    pub(super) fn append_info(&mut self, number: i32, text: &mut String) -> io::Result<()> {
        let opened = opened(&mut self.opened)?;
        let len = match opened.files.get(&number) {
            Some(file) => read_from_start(file.as_fd(), &mut self.buffer)?,
            None => opened.first_read(number, &mut self.buffer)?,
        };
        let told = std::str::from_utf8(&self.buffer[..len]).map_err(io::Error::other)?;
        text.push_str(told);
        Ok(())
    }

    /// What the link `/proc/PID/fd/number` says.
    pub(super) fn link(&mut self, number: i32) -> io::Result<Vec<u8>> {
        let name = number.to_string();
        let link = rustix::fs::readlinkat(&opened(&mut self.opened)?.links, name, Vec::new())?;
        Ok(link.into_bytes())
    }

    /// `stat` of the open file behind a descriptor.
    pub(super) fn stat(&mut self, number: i32) -> io::Result<rustix::fs::Stat> {
        let name = number.to_string();
        Ok(rustix::fs::statat(&opened(&mut self.opened)?.links, name, AtFlags::empty())?)
    }

    /// Another open file for the same inode. Only for kinds whose opening and closing nobody sees.
    pub(super) fn reopen(&mut self, number: i32, flags: OFlags) -> io::Result<OwnedFd> {
        let name = number.to_string();
        let links = &opened(&mut self.opened)?.links;
        Ok(rustix::fs::openat(links, name, flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Asks a question of a socket in the app's network namespace, which knows about its sockets. After an error the
    /// rest of the answer may still lie there, and would be taken for the next one's: that is asked of a new socket.
    pub(super) fn diagnose<T>(
        &mut self,
        pidfd: BorrowedFd<'_>,
        ask: impl FnOnce(&OwnedFd) -> io::Result<T>,
    ) -> io::Result<T> {
        let socket = match self.diagnosis.take() {
            Some(socket) => socket,
            None => in_network_of(pidfd, diagnosis_socket)?,
        };
        let answer = ask(&socket)?;
        self.diagnosis = Some(socket);
        Ok(answer)
    }

    /// Finds out which connections have changed.
    pub(super) fn begin_watch(&mut self, pidfd: BorrowedFd<'_>) -> io::Result<()> {
        let mut watch = std::mem::take(&mut self.watch);
        let begun = self.diagnose(pidfd, |diagnosis| watch.begin(diagnosis));
        if begun.is_ok() {
            watch.read_strays(pidfd);
            watch.read_outwards(pidfd);
        }
        self.watch = watch;
        begun
    }

    /// Reads those of these sockets, by inode and descriptor, that are connections of which only the state has changed.
    pub(super) fn read_ahead(
        &mut self,
        pidfd: BorrowedFd<'_>,
        sockets: impl Iterator<Item = (u64, i32)>,
    ) -> io::Result<()> {
        const WORTH_IT: usize = 2;
        self.ahead.clear();
        let Some(workers) = &self.helpers else { return Ok(()) };
        let changed = |(inode, number)| Some((inode, number, self.watch.changed(inode)?));
        let changed: Vec<_> = sockets.filter_map(changed).collect();
        if changed.len() < WORTH_IT {
            return Ok(());
        }
        let wanted = changed.into_iter().map(|(inode, number, agreed)| {
            let outwards = self.watch.outwards(inode);
            ahead::Wanted { inode, number, agreed, outwards }
        });
        self.ahead = ahead::read(workers, pidfd, wanted.collect())?;
        Ok(())
    }

    /// An empty pipe that takes at least `capacity` bytes.
    pub(super) fn scratch_pipe(&mut self, capacity: usize) -> io::Result<&(OwnedFd, OwnedFd)> {
        use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};
        if self.scratch_pipe.is_none() {
            self.scratch_pipe = Some(pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?);
        }
        let pipe = self.scratch_pipe.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if fcntl_getpipe_size(&pipe.1)? < capacity {
            fcntl_setpipe_size(&pipe.1, capacity)?;
        }
        Ok(pipe)
    }
}

fn opened(opened: &mut Option<Opened>) -> io::Result<&mut Opened> {
    opened.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

impl Opened {
    fn new(pid: i32) -> io::Result<Self> {
        let open = |name: &str| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(format!("/proc/{pid}/{name}"), flags, Mode::empty())
        };
        Ok(Self {
            pid,
            links: open("fd")?,
            infos: open("fdinfo")?,
            files: HashMap::new(),
            numbers: Vec::new(),
        })
    }

    /// How many descriptors there are; none at all where the kernel does not say (before 6.2).
    fn count(&self) -> io::Result<usize> {
        Ok(rustix::fs::fstat(&self.links)?.st_size as usize)
    }

    fn list(&self) -> io::Result<Vec<i32>> {
        rustix::fs::seek(&self.links, SeekFrom::Start(0))?;
        let mut numbers = Vec::new();
        let mut buffer = Vec::with_capacity(8192);
        let mut entries = RawDir::new(&self.links, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let name = entry?.file_name().to_str().map(str::parse::<i32>);
            numbers.extend(name.ok().and_then(Result::ok));
        }
        Ok(numbers)
    }

    fn first_read(&mut self, number: i32, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.infos, number.to_string(), flags, Mode::empty())?;
        let len = read_from_start(file.as_fd(), buffer)?;
        if self.files.len() < OPEN_INFOS_MAX {
            self.files.insert(number, file);
        }
        Ok(len)
    }
}

/// Reads a file of `/proc` whole; the buffer grows as it must.
fn read_from_start(file: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut len = 0;
    loop {
        let read = rustix::io::pread(file, &mut buffer[len..], len as u64)?;
        len += read;
        // A text that leaves room has come whole: the kernel writes these files in one piece.
        if read == 0 || len < buffer.len() {
            return Ok(len);
        }
        buffer.resize(buffer.len() * 2, 0);
    }
}

fn mount_of(own: BorrowedFd<'_>) -> io::Result<u32> {
    use std::os::fd::AsRawFd;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", own.as_raw_fd()))?;
    Info::parse(&text).map(|info| info.mount).ok_or_else(|| io::Error::other("fdinfo without mnt_id"))
}

pub(super) fn diagnosis_socket() -> rustix::io::Result<OwnedFd> {
    let protocol = Some(rustix::net::netlink::SOCK_DIAG);
    rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
}

/// Makes something in the network namespace of a process. Only a thread of its own may enter it: the caller's
/// must stay where it is.
pub(super) fn in_network_of<T: Send, E: Into<io::Error> + Send>(
    pidfd: BorrowedFd<'_>,
    make: impl FnOnce() -> Result<T, E> + Send,
) -> io::Result<T> {
    let make = || {
        rustix::thread::move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::NETWORK)?;
        make().map_err(Into::into)
    };
    let made: Result<io::Result<T>, _> = std::thread::scope(|scope| scope.spawn(make).join());
    made.map_err(|_| io::Error::other("the thread that enters the network namespace died"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root, as the manager does.
    #[test]
    fn after_an_error_no_answer_is_taken_from_the_old_socket() {
        let mut cache = Cache::new().unwrap();
        let own = rustix::process::getpid();
        let pidfd = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
        let mut other = None;
        let failed = cache.diagnose(pidfd.as_fd(), |socket| {
            other = Some(rustix::io::dup(socket)?);
            Err::<(), _>(io::ErrorKind::UnexpectedEof.into())
        });
        failed.unwrap_err();
        let same = |socket: &OwnedFd| {
            sys::descriptors::compare_files(own.as_raw_pid(), raw(socket), raw(other.as_ref().unwrap()))
        };
        assert_ne!(cache.diagnose(pidfd.as_fd(), same).unwrap(), std::cmp::Ordering::Equal);
        cache.begin_watch(pidfd.as_fd()).unwrap();
    }

    fn raw(socket: &OwnedFd) -> i32 {
        use std::os::fd::AsRawFd;
        socket.as_raw_fd()
    }
}
