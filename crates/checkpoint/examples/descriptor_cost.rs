//! What a save of descriptors costs, for a set like a small Go server's: three streams, an epoll, an
//! eventfd, two listeners and ten connections.
//! Prints microseconds per save.
//!
//! Run it with no descriptors but the standard streams: the app inherits others, and they are measured too.

use std::collections::{HashMap, HashSet};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use checkpoint::descriptors::{Cache, Subject, save};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::process::{PidfdFlags, pidfd_open};

const SAVES: u32 = 2000;

type Failure = Box<dyn std::error::Error>;

/// A process is measured from outside, by this program started again.
fn main() -> Result<(), Failure> {
    match std::env::args().nth(1).as_deref() {
        Some("app") => play_app(),
        _ => measure(),
    }
}

/// Opens the set, says so, and waits until its input ends.
fn play_app() -> Result<(), Failure> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("[::1]:0")?];
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let event = eventfd(0, EventfdFlags::CLOEXEC)?;
    let mut connections: Vec<(TcpStream, OwnedFd)> = Vec::new();
    for _ in 0..5 {
        let client = TcpStream::connect(listeners[0].local_addr()?)?;
        connections.push((client, listeners[0].accept()?.0.into()));
    }
    let watched = connections.iter().flat_map(|(one, other)| [one.as_fd(), other.as_fd()]);
    for (index, fd) in watched.chain([event.as_fd()]).enumerate() {
        epoll::add(&set, fd, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
    }
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

fn measure() -> Result<(), Failure> {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let mut app = Command::new(std::env::current_exe()?)
        .arg("app")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = app.stdout.take().ok_or("no output")?;
    let input = app.stdin.take().ok_or("no input")?;
    let streams = [inode(input.as_fd())?, inode(output.as_fd())?];
    let mut output = BufReader::new(output);
    output.read_line(&mut String::new())?;
    let pid = i32::try_from(app.id())?;
    let (descriptors, micros) = time_saves(pid, &[(streams[0], 0), (streams[1], 1)])?;
    println!("{descriptors} descriptors: {micros:.1} us per save");
    drop(input);
    app.wait()?;
    Ok(())
}

fn inode(fd: std::os::fd::BorrowedFd<'_>) -> Result<u64, Failure> {
    Ok(rustix::fs::fstat(fd)?.st_ino)
}

fn time_saves(pid: i32, stdio: &[(u64, u8)]) -> Result<(usize, f64), Failure> {
    let number = rustix::process::Pid::from_raw(pid).ok_or("no pid")?;
    let pidfd = pidfd_open(number, PidfdFlags::empty())?;
    let (pids, objects) = (HashMap::from([(pid, 1)]), HashSet::new());
    let subject = Subject {
        manager: None,
        pid,
        pidfd: pidfd.as_fd(),
        cell_pid: 1,
        pids: &pids,
        stdio,
        cgroup_mount: Path::new("/sys/fs/cgroup"),
        objects: &objects,
        connections: checkpoint::descriptors::Connections::Reset,
    };
    let mut cache = Cache::new()?;
    let saved = save(&subject, &mut cache)?;
    let started = Instant::now();
    for _ in 0..SAVES {
        save(&subject, &mut cache)?;
    }
    Ok((saved.descriptors.len(), started.elapsed().as_secs_f64() * 1e6 / f64::from(SAVES)))
}
