//! The app's own cgroup: what tells its packets from everybody else's.
//!
//! It lies in the v2 tree, wherever that is mounted, and enables no controller, so it works beside version 1
//! controllers and inside a delegated part of the tree. It must hold the app's processes and nobody else's: the
//! guard and the manager stay outside, because they go on speaking after the app has been silenced.
//!
//! N.B. A socket belongs for life to the cgroup that its process was in *when the socket was made*, and an
//! accepted connection to that of its listener; moving the process moves none of them. So an app that we start
//! is put here before its first instruction ([`CellCgroup::directory`] and `CLONE_INTO_CGROUP`, or
//! [`CellCgroup::move_in`] before `exec`). To a running process that already listens a permit on a new
//! cgroup would mean nothing: `attach` has these ways out, the best first.
//! 1. The process has a cgroup to itself already, as each systemd service has: [`CellCgroup::adopt`] it, and
//!    every socket that it ever made there is covered.
//! 2. It has made no internet socket yet: move it.
//! 3. Otherwise refuse, unless the user says `--fencing none`. Replacing its listeners inside the app does
//!    not help, as connections are there too, and `sock_diag` can only tell which sockets are elsewhere.
//!
//! A failure leaves at most an empty directory, which does nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::mount;

/// More cells of one app by one manager, at one time, than anybody starts.
const ATTEMPTS_MAX: u32 = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "no cgroup v2 file system is mounted here; mount one (`mount -t cgroup2 none /sys/fs/cgroup`), or run \
         with --fencing none"
    )]
    Missing,
    #[error("{name:?} cannot name a cgroup: names are not empty, start with no dot and have no slash")]
    Name { name: String },
    #[error("process {pid} ended before it could be moved into cgroup {}", path.display())]
    NoProcess { pid: i32, path: PathBuf },
    #[error(
        "cgroup {} of process {pid} holds other processes too ({}), which a permit would silence; start \
         the app with `checksync run`, give it a cgroup of its own and restart it, or use --fencing none",
        path.display(),
        first(others)
    )]
    Shared { pid: i32, path: PathBuf, others: Vec<i32> },
    #[error("cgroup {} still holds the processes {pids:?}; end them, then remove the directory", path.display())]
    Populated { path: PathBuf, pids: Vec<i32> },
    #[error(
        "cannot {what} {}; the cgroup v2 file system must be writable (in a container: delegated to it), or run \
         with --fencing none",
        path.display()
    )]
    Kernel {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Some of the processes, for a message.
fn first(pids: &[i32]) -> String {
    const SHOWN: usize = 5;
    let list: Vec<String> = pids.iter().take(SHOWN).map(i32::to_string).collect();
    match pids.len().checked_sub(SHOWN) {
        None | Some(0) => list.join(", "),
        Some(more) => format!("{} and {more} more", list.join(", ")),
    }
}

/// A cgroup with the processes of one cell. Dropping this removes nothing: the app may outlive its manager,
/// and is then found again by [`CellCgroup::name`].
#[derive(Debug)]
pub struct CellCgroup {
    mount: PathBuf,
    name: String,
    directory: OwnedFd,
}

impl CellCgroup {
    /// Makes the empty cgroup `parent/APP-PID-N`, and `parent` (`checksync`, or `a/b`) if it is missing. The
    /// parent should be nobody else's: [`remove`](Self::remove) takes it along when it is empty.
    pub fn create(parent: &str, app: &str) -> Result<Self, CgroupError> {
        if let Some(name) = parent.split('/').chain([app]).find(|name| !mount::is_plain_name(name)) {
            return Err(CgroupError::Name { name: name.to_owned() });
        }
        let mount = find_mount()?;
        let mut attempt = 0;
        loop {
            let name = format!("{parent}/{app}-{}-{attempt}", std::process::id());
            match make_directory(&mount.join(parent), &mount.join(&name)) {
                Ok(()) => return Self::at(mount, name),
                Err(CgroupError::Kernel { source, .. })
                    if source.kind() == io::ErrorKind::AlreadyExists && attempt < ATTEMPTS_MAX =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The cgroup with this [`name`](Self::name), for a manager that comes back.
    pub fn reopen(name: &str) -> Result<Self, CgroupError> {
        if let Some(name) = name.split('/').find(|name| !mount::is_plain_name(name)) {
            return Err(CgroupError::Name { name: name.to_owned() });
        }
        Self::at(find_mount()?, name.to_owned())
    }

    /// What a process that is no more has [created](Self::create) for `app` and left, whoever may still be in it.
    pub fn left_by(creator: u32, parent: &str, app: &str) -> Result<Vec<Self>, CgroupError> {
        let mount = find_mount()?;
        let start = format!("{app}-{creator}-");
        let Ok(entries) = fs::read_dir(mount.join(parent)) else { return Ok(Vec::new()) };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let left = names.filter(|name| name.strip_prefix(&start).is_some_and(|n| n.parse::<u32>().is_ok()));
        // One may have gone meanwhile.
        Ok(left.filter_map(|name| Self::at(mount.clone(), format!("{parent}/{name}")).ok()).collect())
    }

    /// The cgroup that `pid` is in already, if `family` (it and its descendants) has it for itself. It is
    /// somebody else's: take the permit off it in the end, and leave it.
    pub fn adopt(pid: i32, family: &[i32]) -> Result<Self, CgroupError> {
        let list = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let text = fs::read_to_string(&list).map_err(|_| CgroupError::NoProcess { pid, path: list })?;
        let mount = find_mount()?;
        let name = text.lines().find_map(|line| line.strip_prefix("0::/")).ok_or(CgroupError::Missing)?;
        let cgroup = Self::at(mount, name.to_owned())?;
        let others: Vec<i32> =
            cgroup.pids()?.into_iter().filter(|one| *one != pid && !family.contains(one)).collect();
        // The root cgroup is never anybody's own: the kernel's and future processes are in it.
        if others.is_empty() && !name.is_empty() {
            return Ok(cgroup);
        }
        Err(CgroupError::Shared { pid, path: cgroup.path(), others })
    }

    fn at(mount: PathBuf, name: String) -> Result<Self, CgroupError> {
        let path = mount.join(&name);
        let directory = File::open(&path).map_err(kernel("open the cgroup", &path))?.into();
        Ok(Self { mount, name, directory })
    }

    /// The path below the mount: the same on every mount of the tree, and what `/proc/PID/cgroup` shows.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        self.mount.join(&self.name)
    }

    /// The directory, closed on exec: for `clone3` with `CLONE_INTO_CGROUP`.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Moves a process with all its threads in here; 0 is the caller. Its children are born here from now
    /// on; its sockets stay where they were made.
    pub fn move_in(&self, pid: i32) -> Result<(), CgroupError> {
        self.write("cgroup.procs", "move a process into", &pid.to_string()).map_err(|error| match error {
            CgroupError::Kernel { path, source, .. } if source.raw_os_error() == Some(libc::ESRCH) => {
                CgroupError::NoProcess { pid, path }
            }
            error => error,
        })
    }

    /// The processes in here; one of another PID namespace shows as 0. Sub-cgroups are not looked into.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let path = self.path().join("cgroup.procs");
        let text = fs::read_to_string(&path).map_err(kernel("list the processes of", &path))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Kills every process in here and below at once; none escapes by forking. They may take some
    /// hundred milliseconds to be gone, and their sockets speak until the permit is shut.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "kill the processes of", "1")
    }

    /// Removes the cgroup with what the app made below it, once its processes are gone, and the parent if
    /// that is empty now. What was attached goes with it, but not before the last socket made in it: an
    /// orphaned connection stays as silent as its permit was. Waits for `patience` at most.
    pub fn remove(self, patience: Duration) -> Result<(), CgroupError> {
        let deadline = Instant::now() + patience;
        let path = self.path();
        let mut events = match File::open(path.join("cgroup.events")) {
            Ok(events) => events,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(kernel("watch the cgroup", &path)(error)),
        };
        while is_populated(&mut events).map_err(kernel("watch the cgroup", &path))? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::Populated { pids: self.pids()?, path });
            }
            wait_for_change(&events, left).map_err(kernel("watch the cgroup", &path))?;
        }
        remove_tree(&path).map_err(kernel("remove the cgroup", &path))?;
        // Best effort: it is not empty while there are other cells.
        let _ = path.parent().filter(|parent| *parent != self.mount).map(fs::remove_dir);
        Ok(())
    }

    fn write(&self, file: &str, what: &'static str, text: &str) -> Result<(), CgroupError> {
        let path = self.path().join(file);
        let written =
            OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(kernel(what, &path))
    }
}

fn find_mount() -> Result<PathBuf, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let mountinfo = fs::read(path).map_err(kernel("read", path))?;
    mount::cgroup2_mount(&mountinfo).ok_or(CgroupError::Missing)
}

/// The parent may vanish in between, when another cell's removal finds it empty: then once more.
fn make_directory(parent: &Path, path: &Path) -> Result<(), CgroupError> {
    loop {
        fs::create_dir_all(parent).map_err(kernel("make the cgroup", parent))?;
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            made => return made.map_err(kernel("make the cgroup", path)),
        }
    }
}

fn is_populated(events: &mut File) -> io::Result<bool> {
    let mut text = String::new();
    events.rewind()?;
    match events.read_to_string(&mut text) {
        Ok(_) => Ok(text.lines().any(|line| line == "populated 1")),
        // Somebody else has removed it.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

fn wait_for_change(events: &File, patience: Duration) -> io::Result<()> {
    let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) };
    match poll(&mut [PollFd::new(events, PollFlags::PRI)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn kernel(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Kernel { what, path, source }
}
