//! Two processes without descriptors of their own: one plays the app, one the skeleton. A test has the app
//! make system calls, carries its descriptors over, and looks at what the skeleton then has.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use checkpoint::descriptors::{
    Cache, Call, CellNetwork, ConnectionCounts, Connections, ManagerSocket, RebuildError, SaveError, Saved,
    Scratch, Skeleton, Subject, Surroundings, Target, install, prepare, save,
};
use image::layout::ObjectKey;
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, WaitId, WaitIdOptions, pidfd_getfd, pidfd_open,
    pidfd_send_signal, waitid,
};
use sys::servant::{CALLS_MAX, Mailbox, SCRATCH_BYTES};

/// How long anything may take.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A process that stands still except while it makes the calls that it is told.
#[derive(Debug)]
pub struct Servant {
    pub pid: i32,
    pub pidfd: OwnedFd,
    mailbox: u64,
    memory: File,
}

impl Servant {
    pub fn start() -> Self {
        let (pid, mailbox) = sys::servant::spawn().expect("fork a servant");
        let number = Pid::from_raw(pid).expect("a child has a number");
        let pidfd = pidfd_open(number, PidfdFlags::empty()).expect("open its pidfd");
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
        let servant = Self { pid, pidfd, mailbox, memory: memory.expect("open its memory") };
        servant.wait_until_stopped().expect("it stops itself");
        servant
    }

    fn wait_until_stopped(&self) -> io::Result<()> {
        let started = Instant::now();
        while started.elapsed() < DEADLINE {
            let wanted = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), wanted)? {
                Some(status) if status.stopped() => return Ok(()),
                Some(_) => return Err(io::Error::other("the servant died")),
                None => std::thread::yield_now(),
            }
        }
        Err(io::Error::from(io::ErrorKind::TimedOut))
    }

    fn scratch_address(&self) -> u64 {
        self.mailbox + offset_of!(Mailbox, scratch) as u64
    }

    /// Makes one call; `-errno` on failure.
    pub fn try_call(&mut self, number: i64, arguments: &[u64]) -> i64 {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        self.calls(&[(number, all)]).expect("the servant answers")[0]
    }

    /// Makes one call that must succeed.
    pub fn call(&mut self, number: i64, arguments: &[u64]) -> i32 {
        let result = self.try_call(number, arguments);
        assert!(result >= 0, "system call {number}: {}", io::Error::from_raw_os_error(-result as i32));
        result as i32
    }

    /// Puts bytes where a call may point to; they stay until the next `put`.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        let address = self.scratch_address();
        self.write(address, bytes).expect("its memory can be written");
        address
    }

    pub fn got(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(self.scratch_address(), &mut bytes).expect("its memory can be read");
        bytes
    }

    pub fn open(&mut self, path: impl AsRef<Path>, flags: i32) -> i32 {
        use std::os::unix::ffi::OsStrExt;
        let name = [path.as_ref().as_os_str().as_bytes(), b"\0"].concat();
        let name = self.put(&name);
        self.call(libc::SYS_openat, &[libc::AT_FDCWD as u64, name, flags as u64, 0o600])
    }

    /// A call that gives two descriptors, `pipe2` or `socketpair`, with the address as argument `at`.
    pub fn two(&mut self, number: i64, mut arguments: [u64; 4], at: usize) -> [i32; 2] {
        arguments[at] = self.scratch_address();
        self.call(number, &arguments);
        let numbers = self.got(8);
        [0, 4].map(|at| i32::from_ne_bytes(numbers[at..at + 4].try_into().expect("four bytes")))
    }

    pub fn pipe(&mut self, flags: i32) -> [i32; 2] {
        self.two(libc::SYS_pipe2, [0, flags as u64, 0, 0], 0)
    }

    pub fn socket(&mut self, family: i32, kind: i32, protocol: i32) -> i32 {
        self.call(libc::SYS_socket, &[family as u64, kind as u64, protocol as u64])
    }

    pub fn close(&mut self, number: i32) {
        self.call(libc::SYS_close, &[number as u64]);
    }

    pub fn add_to_epoll(&mut self, epoll: i32, number: i32, events: u32, data: u64) {
        let event = self.put(&[events.to_ne_bytes().as_slice(), &data.to_ne_bytes()].concat());
        let add = libc::EPOLL_CTL_ADD as u64;
        self.call(libc::SYS_epoll_ctl, &[epoll as u64, add, number as u64, event]);
    }

    /// What the servant reads, or `-errno`.
    pub fn read_from(&mut self, number: i32, len: usize) -> Result<Vec<u8>, i32> {
        let address = self.scratch_address();
        match self.try_call(libc::SYS_read, &[number as u64, address, len as u64]) {
            got if got >= 0 => Ok(self.got(got as usize)),
            error => Err(-error as i32),
        }
    }

    pub fn write_to(&mut self, number: i32, bytes: &[u8]) {
        let address = self.put(bytes);
        let written = self.call(libc::SYS_write, &[number as u64, address, bytes.len() as u64]);
        assert_eq!(written as usize, bytes.len());
    }

    /// What an epoll reports now: events and data, in order of data.
    pub fn epoll_events(&mut self, epoll: i32) -> Vec<(u32, u64)> {
        let address = self.scratch_address();
        let count = self.call(libc::SYS_epoll_wait, &[epoll as u64, address, 64, 0]) as usize;
        let bytes = self.got(count * 12);
        let event = |bytes: &[u8]| {
            let events = u32::from_ne_bytes(bytes[..4].try_into().expect("four bytes"));
            (events, u64::from_ne_bytes(bytes[4..].try_into().expect("eight bytes")))
        };
        let mut events: Vec<_> = bytes.chunks_exact(12).map(event).collect();
        events.sort_by_key(|(_, data)| *data);
        events
    }

    /// One of its descriptors, borrowed.
    pub fn borrow(&self, number: i32) -> OwnedFd {
        pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty()).expect("borrow a descriptor")
    }

    /// Everything of `fdinfo` that must survive: the inode may differ.
    pub fn info(&self, number: i32) -> String {
        let text = std::fs::read_to_string(format!("/proc/{}/fdinfo/{number}", self.pid)).expect("fdinfo");
        let kept =
            |line: &&str| !["ino:", "mnt_id:", "eventfd-id:"].iter().any(|gone| line.starts_with(gone));
        text.lines().filter(kept).collect::<Vec<_>>().join("\n")
    }

    pub fn numbers(&self) -> Vec<i32> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("its descriptors");
        let number = |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
        let mut numbers: Vec<i32> = entries.filter_map(number).collect();
        numbers.sort_unstable();
        numbers
    }
}

impl Drop for Servant {
    fn drop(&mut self) {
        if pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok() {
            let gone = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
            assert!(gone.is_ok() || std::thread::panicking(), "the servant cannot be reaped: {gone:?}");
        }
    }
}

impl Target for Servant {
    fn calls(&mut self, calls: &[Call]) -> io::Result<Vec<i64>> {
        let mut results = Vec::with_capacity(calls.len());
        for batch in calls.chunks(CALLS_MAX) {
            let words: Vec<u64> = std::iter::once(batch.len() as u64)
                .chain(
                    batch
                        .iter()
                        .flat_map(|(number, arguments)| [*number as u64].into_iter().chain(*arguments)),
                )
                .collect();
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            self.memory.write_all_at(&bytes, self.mailbox)?;
            pidfd_send_signal(&self.pidfd, Signal::CONT)?;
            self.wait_until_stopped()?;
            let mut answers = vec![0; batch.len() * 8];
            self.memory.read_exact_at(&mut answers, self.mailbox + offset_of!(Mailbox, results) as u64)?;
            let answer = |bytes: &[u8]| i64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
            results.extend(answers.chunks_exact(8).map(answer));
        }
        Ok(results)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.write_all_at(bytes, address)
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(bytes, address)
    }

    fn scratch(&self) -> Scratch {
        Scratch { address: self.scratch_address(), len: SCRATCH_BYTES }
    }
}

/// The number that a servant has inside its imagined cell.
pub const CELL_PID: i32 = 1;

/// What differs from test to test around a save and a rebuild.
#[derive(Debug, Default)]
pub struct Circumstances {
    pub stdio: Vec<(u64, u8)>,
    pub new_stdio: [Option<OwnedFd>; 3],
    pub objects: HashSet<ObjectKey>,
    pub object_files: HashMap<ObjectKey, OwnedFd>,
    pub elapsed: Duration,
    /// More processes of the app, as (here, in the cell).
    pub others: Vec<(i32, i32)>,
    pub connections: Connections,
    pub manager: Option<Box<dyn ManagerSocket>>,
}

impl Circumstances {
    pub fn save(&self, app: &Servant, cache: &mut Cache) -> Result<Saved, SaveError> {
        let pids = self.others.iter().copied().chain([(app.pid, CELL_PID)]).collect();
        let subject = Subject {
            pid: app.pid,
            pidfd: app.pidfd.as_fd(),
            cell_pid: CELL_PID,
            pids: &pids,
            stdio: &self.stdio,
            cgroup_mount: Path::new("/sys/fs/cgroup"),
            objects: &self.objects,
            connections: self.connections,
            manager: self.manager.as_deref(),
        };
        save(&subject, cache)
    }

    /// A new process with all that was saved, and nothing else.
    pub fn rebuild(&self, saved: &Saved) -> Result<Servant, RebuildError> {
        self.rebuild_with(saved, None).map(|(skeleton, _)| skeleton)
    }

    /// The same with a network of the cell's own.
    pub fn rebuild_with(
        &self,
        saved: &Saved,
        mut network: Option<&mut dyn CellNetwork>,
    ) -> Result<(Servant, ConnectionCounts), RebuildError> {
        let root = File::open("/").expect("open the root");
        let surroundings = Surroundings {
            root: root.as_fd(),
            cgroup: Path::new("/sys/fs/cgroup/nowhere"),
            stdio: [0, 1, 2].map(|stream| self.new_stdio[stream].as_ref().map(AsFd::as_fd)),
            objects: &self.object_files,
        };
        let prepared = prepare(&saved.descriptors, &saved.files, &saved.pipes, &surroundings)?;
        let mut skeleton = Servant::start();
        let stream = libc::SOCK_STREAM as u64;
        let [ours, channel_number] =
            skeleton.two(libc::SYS_socketpair, [libc::AF_UNIX as u64, stream, 0, 0], 3);
        let channel = skeleton.borrow(ours);
        skeleton.close(ours);
        let pidfd = skeleton.pidfd.try_clone().expect("clone a pidfd");
        let place = Skeleton {
            pid: skeleton.pid,
            pidfd: pidfd.as_fd(),
            channel: channel.as_fd(),
            channel_number,
            elapsed: self.elapsed,
            strays: &saved.strays,
            manager: self.manager.as_deref(),
        };
        let given = network.as_mut().map(|network| &mut **network as &mut dyn CellNetwork);
        let revival = install(prepared, &mut skeleton, &place, given)?;
        if let Some(network) = network {
            network.let_in().expect("the network opens");
        }
        let counts = revival.finish();
        Ok((skeleton, counts))
    }

    /// Saves the app, kills it, and rebuilds its descriptors in another process.
    pub fn carry(&self, app: Servant) -> (Servant, Saved) {
        let saved = self.save(&app, &mut cache()).expect("everything can be saved");
        drop(app);
        let skeleton = self.rebuild(&saved).expect("everything can be rebuilt");
        let expected: Vec<i32> = saved.descriptors.iter().map(|descriptor| descriptor.number).collect();
        assert_eq!(skeleton.numbers(), expected, "the skeleton has exactly the app's descriptors");
        (skeleton, saved)
    }
}

pub fn cache() -> Cache {
    Cache::new().expect("a cache").helped_by(checkpoint::memory::workers())
}

/// [`Circumstances::carry`] under plain ones.
pub fn carry(app: Servant) -> (Servant, Saved) {
    Circumstances::default().carry(app)
}

/// What an unprotectable app is told.
pub fn refusal(app: &Servant) -> String {
    match Circumstances::default().save(app, &mut cache()) {
        Err(SaveError::Unsupported(refusal)) => refusal.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

/// The number of an option's value.
pub fn option(socket: BorrowedFd<'_>, level: i32, name: i32) -> i32 {
    sys::sockets::get_number(socket, level, name).expect("the option can be read")
}

pub fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) {
    sys::sockets::set_number(socket, level, name, value).expect("the option can be set");
}
