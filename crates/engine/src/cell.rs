//! The cell: the namespaces that an app runs in, and their first process.
//!
//! The first process is ours: [`CellSpec`] says how to start it (this program again, with a hidden verb), and
//! it calls [`Init::enter`], which makes the app's process or the skeleton's and returns. It reaps what the
//! app leaves behind, is never captured, and is the guard: what it does while the app runs is the program's
//! own business. When it ends, the kernel ends everything in the cell.
//!
//! The cell's process may live in a network namespace of its own; the first process, which is the guard, stays
//! in the host's.
//!
//! Descriptor 3 of the first process and its child is a line to the engine; 4, in a skeleton, is the channel
//! through which descriptors come; 5, in a first process, is the
//! cell's network. Inherited ones have numbers from 10 on.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sys::clone::Forked;

use crate::command::AppStdio;

/// Where an app finds its manager's socket: a directory of the cell's own, which nobody outside sees. It is the same in
/// every cell, so that the app finds it again after a takeover.
pub const SOCKET: &str = "/run/checksync-app/socket";
/// The variable that tells the app so.
const SOCKET_VARIABLE: &str = "CHECKSYNC_SOCKET";
const LINE: i32 = 3;
const NETWORK: i32 = 5;
/// Before the other arguments, where the cell's files are to be sealed.
const SEALED: &str = "sealed";
/// After that, where descriptor [`NETWORK`] is given.
const IN_NETWORK: &str = "in-network";
/// The skeleton's end of the channel for descriptors.
pub const CHANNEL: i32 = 4;
const BORN: u8 = b'b';
const GO: u8 = b'g';
const PATIENCE: Duration = Duration::from_secs(10);

/// How to start a cell's first process.
#[derive(Debug)]
pub struct CellSpec {
    /// This program; `/proc/self/exe` will do.
    pub program: PathBuf,
    /// What comes before the engine's own arguments.
    pub arguments: Vec<OsString>,
    /// Descriptors that it inherits beside the engine's own, with their numbers there (10 and above).
    pub inherited: Vec<(OwnedFd, i32)>,
    /// The network namespace that the app lives in; the host's, if none is given.
    pub network: Option<OwnedFd>,
    /// The app is told of its manager's socket.
    pub socket: bool,
    /// What is written to files in there goes with the cell: see [`sys::seal`].
    pub sealed: bool,
    /// The control group that a skeleton is born into: `cgroup.procs`' directory. N.B. moving a process takes the
    /// kernel up to some tens of milliseconds, which a takeover does not have.
    pub cgroup: Option<PathBuf>,
}

impl CellSpec {
    /// Another one like it, with duplicates of its descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        let copy = |(fd, number): &(OwnedFd, i32)| Ok((fd.try_clone()?, *number));
        let inherited = self.inherited.iter().map(copy).collect::<io::Result<_>>()?;
        let network = self.network.as_ref().map(OwnedFd::try_clone).transpose()?;
        let (program, arguments) = (self.program.clone(), self.arguments.clone());
        let (socket, sealed, cgroup) = (self.socket, self.sealed, self.cgroup.clone());
        Ok(Self { program, arguments, inherited, network, socket, sealed, cgroup })
    }
}

impl CellSpec {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args(self.sealed.then_some(SEALED));
        command.args(self.network.is_some().then_some(IN_NETWORK));
        command
    }

    fn descriptors(self) -> Vec<(OwnedFd, i32)> {
        let network = self.network.map(|network| (network, NETWORK));
        self.inherited.into_iter().chain(network).collect()
    }
}

/// A cell with a process in it. Dropping it ends everything in there.
#[derive(Debug)]
pub struct Cell {
    init: OwnedFd,
    /// The app's process, or the skeleton, as the host counts.
    pub pid: i32,
    line: UnixStream,
    channel: Option<UnixStream>,
}

impl Cell {
    /// Starts a cell with a process that becomes `program` on [`Cell::go`].
    pub fn with_app(
        spec: CellSpec,
        program: &OsStr,
        arguments: &[OsString],
        directory: Option<&Path>,
        stdio: AppStdio,
    ) -> io::Result<Self> {
        let mut command = spec.command();
        command.arg("app").arg("--").arg(program).args(arguments);
        command.env_remove(SOCKET_VARIABLE).envs(spec.socket.then_some((SOCKET_VARIABLE, SOCKET)));
        command.stdin(Stdio::null()).stdout(stdio.output).stderr(stdio.error);
        if let Some(directory) = directory {
            command.current_dir(directory);
        }
        Self::start(command, spec.descriptors(), None)
    }

    /// Starts a cell with a process that has the number `pid` in there, waits for ever and is to be filled.
    pub fn with_skeleton(spec: CellSpec, pid: i32) -> io::Result<Self> {
        let mut command = spec.command();
        command.arg("skeleton").arg(pid.to_string()).stdin(Stdio::null());
        let (ours, theirs) = UnixStream::pair()?;
        Self::start(command, spec.descriptors(), Some((ours, theirs)))
    }

    fn start(
        mut command: Command,
        mut descriptors: Vec<(OwnedFd, i32)>,
        channel: Option<(UnixStream, UnixStream)>,
    ) -> io::Result<Self> {
        let (line, theirs) = UnixStream::pair()?;
        line.set_read_timeout(Some(PATIENCE))?;
        descriptors.push((theirs.into(), LINE));
        let channel = channel.map(|(ours, theirs)| {
            descriptors.push((theirs.into(), CHANNEL));
            ours
        });
        let child = sys::spawn::spawn_first_process(&mut command, descriptors)?;
        let init = child.id() as i32;
        let number = Pid::from_raw(init).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())?;
        let mut cell = Self { init: pidfd, pid: 0, line, channel };
        let mut byte = [0];
        cell.line.read_exact(&mut byte)?;
        if byte != [BORN] {
            return Err(io::Error::other("the cell's first process failed; its message is in the log"));
        }
        cell.pid = only_child(init)?;
        Ok(cell)
    }

    /// Lets the app's process become its program.
    pub fn go(&mut self) -> io::Result<()> {
        self.line.write_all(&[GO])
    }

    /// Why the program could not be started, if it could not. Call it once the process has ended.
    pub fn failure(&mut self) -> Option<String> {
        self.line.set_nonblocking(true).ok()?;
        let mut text = String::new();
        let _whatever_came = self.line.read_to_string(&mut text);
        (!text.is_empty()).then_some(text)
    }

    /// Our end of the channel for descriptors.
    pub fn channel(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// Whether the cell is empty, waiting for it a little.
    pub fn has_ended(&self, at_most: Duration) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let timeout = Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: at_most.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.init, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&timeout)), Ok(1..))
    }

    pub fn kill(&self) {
        // Gone already is as good.
        let _ = pidfd_send_signal(&self.init, Signal::KILL);
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.kill();
    }
}

fn only_child(init: i32) -> io::Result<i32> {
    let text = fs::read_to_string(format!("/proc/{init}/task/{init}/children"))?;
    let mut children = text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
    children.next().ok_or_else(|| io::Error::other("the cell's process was not born"))
}

/// The first process of a cell, after its one child was made.
#[derive(Debug)]
pub struct Init {
    /// The child's number in the cell.
    pub child: i32,
}

impl Init {
    /// Makes the cell's mounts and its process, as the engine's `arguments` say. In the child it does not
    /// return. Call it before anything else: this process may have one thread only, and what is open from
    /// descriptor 3 on closes in the app.
    pub fn enter(arguments: &[OsString]) -> io::Result<Self> {
        sys::spawn::close_all_on_exec()?;
        sys::spawn::enter_mount_namespace()?;
        let place = Path::new(SOCKET).parent().unwrap_or(Path::new("/"));
        let place_made = fs::create_dir_all(place);
        let sealed = arguments.first().is_some_and(|word| word == SEALED);
        if sealed {
            sys::seal::seal_files(place)?;
        }
        if let Err(why) = place_made.and_then(|()| sys::spawn::mount_own_directory(place)) {
            // The app can live without, and the manager says so.
            eprintln!("cannot make {}: {why}", place.display());
        }
        let arguments = &arguments[usize::from(sealed)..];
        let networked = arguments.first().is_some_and(|word| word == IN_NETWORK);
        let network = networked.then(|| sys::spawn::adopt_descriptor(NETWORK));
        let arguments = &arguments[usize::from(networked)..];
        let words: Vec<Option<&str>> = arguments.iter().map(|argument| argument.to_str()).collect();
        match (&words[..], arguments) {
            ([Some("app"), Some("--"), ..], [_, _, program, rest @ ..]) => match sys::clone::fork()? {
                Forked::Child => become_app(network, program, rest),
                Forked::Parent(child) => Ok(Self { child }),
            },
            ([Some("skeleton"), Some(pid)], _) => {
                let pid =
                    pid.parse().map_err(|_| io::Error::other(format!("{pid:?} is no process number")))?;
                match sys::clone::fork_as(pid)? {
                    Forked::Child => become_skeleton(network),
                    Forked::Parent(child) => Ok(Self { child }),
                }
            }
            _ => Err(io::Error::other("the cell's first process was started without the engine's arguments")),
        }
    }
}

fn line_of_child() -> UnixStream {
    UnixStream::from(sys::spawn::adopt_descriptor(LINE))
}

/// This process alone goes into the cell's network.
fn enter(network: Option<OwnedFd>) -> io::Result<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    let Some(network) = network else { return Ok(()) };
    Ok(move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn become_app(network: Option<OwnedFd>, program: &OsStr, arguments: &[OsString]) -> ! {
    let mut line = line_of_child();
    let mut byte = [0];
    let told = sys::spawn::new_session()
        .and_then(|()| enter(network))
        .and_then(|()| line.write_all(&[BORN]))
        .and_then(|()| line.read_exact(&mut byte));
    if let Err(why) = &told {
        eprintln!("cannot make the app's process: {why}");
    }
    if told.is_ok() && byte == [GO] {
        let why = sys::spawn::exec(program, arguments);
        let _nobody_left = write!(line, "cannot start {}: {why}", program.display());
    }
    const NOT_FOUND: i32 = 127;
    std::process::exit(NOT_FOUND)
}

fn become_skeleton(network: Option<OwnedFd>) -> ! {
    let mut line = line_of_child();
    let born = sys::spawn::new_session().and_then(|()| enter(network)).and_then(|()| line.write_all(&[BORN]));
    if let Err(why) = born {
        eprintln!("cannot make a copy's process: {why}");
        std::process::exit(1);
    }
    sys::clone::sleep_for_ever()
}
