//! What an app has open and mapped, in words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use image::descriptor::{Datagram, FileKind, InternetSocket, OpenFile, UnixName};
use image::layout::{Backing, Layout, Mapping, ObjectKind};
use serde::Serialize;

/// What becomes of a descriptor at a takeover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It is as it was.
    Protected,
    /// It is opened again by its path: the file must be there on the other host.
    Reopened,
    /// The app finds its connection reset.
    Reset,
}

impl Fate {
    pub fn text(self) -> &'static str {
        match self {
            Self::Protected => "protected",
            Self::Reopened => "reopened",
            Self::Reset => "reset",
        }
    }
}

/// What kind of thing a descriptor is, which one, and what becomes of it.
pub fn open_file(file: &OpenFile) -> (&'static str, String, Fate) {
    use Fate::{Protected, Reopened, Reset};
    match &file.kind {
        FileKind::Path { path, file_type, reads: _ } => (file_kind(*file_type), text(path), Reopened),
        FileKind::Deleted { path, content, .. } => {
            ("deleted file", format!("{}, {}", text(path), bytes(content.len() as u64)), Protected)
        }
        FileKind::Stdio { stream } => ("stdio", STREAMS[usize::from(*stream).min(2)].to_owned(), Protected),
        FileKind::Pipe { pipe } => ("pipe", format!("pipe {pipe}"), Protected),
        FileKind::Fifo { path, .. } => ("fifo", text(path), Reopened),
        FileKind::Event { count, .. } => ("eventfd", format!("count {count}"), Protected),
        FileKind::Timer(_) => ("timerfd", String::new(), Protected),
        FileKind::Signal { .. } => ("signalfd", String::new(), Protected),
        FileKind::Epoll { targets } => ("epoll", format!("{} watched", targets.len()), Protected),
        FileKind::Inotify { watches } => ("inotify", format!("{} watched", watches.len()), Reopened),
        FileKind::Object { key } => ("shared memory", format!("inode {}", key.inode), Protected),
        FileKind::Process { pid } => ("pidfd", format!("process {pid}"), Protected),
        FileKind::CgroupFile { name } => ("cgroup file", name.clone(), Reopened),
        FileKind::OwnProc { path } => ("proc file", format!("/proc/{}", text(path)), Reopened),
        FileKind::UnixPair(end) => ("unix pair", format!("{} messages wait", end.queue.len()), Protected),
        FileKind::Conversation(_) => ("manager", "a connection to it".to_owned(), Protected),
        FileKind::UnixListener { socket, .. } => ("unix listener", unix(socket), Protected),
        FileKind::UnixLoose(socket) => ("unix socket", unix(socket) + &waiting(&socket.queue), Protected),
        FileKind::Listener(socket) => ("listener", internet(socket), Protected),
        FileKind::Datagram(socket) => {
            ("datagram socket", internet(socket) + &waiting(&socket.queue), Protected)
        }
        FileKind::Connection(socket) => ("connection", internet(socket), Reset),
        FileKind::Unconnected(socket) => ("socket", internet(socket), Protected),
        FileKind::Netlink { protocol, .. } => ("netlink", format!("protocol {protocol}"), Protected),
    }
}

const STREAMS: [&str; 3] = ["input", "output", "error"];

/// Sockets of any kind.
pub fn is_socket(kind: &FileKind) -> bool {
    match kind {
        FileKind::UnixPair(_)
        | FileKind::Conversation(_)
        | FileKind::UnixListener { .. }
        | FileKind::UnixLoose(_)
        | FileKind::Listener(_)
        | FileKind::Datagram(_)
        | FileKind::Connection(_)
        | FileKind::Unconnected(_)
        | FileKind::Netlink { .. } => true,
        FileKind::Path { .. }
        | FileKind::Deleted { .. }
        | FileKind::Stdio { .. }
        | FileKind::Pipe { .. }
        | FileKind::Fifo { .. }
        | FileKind::Event { .. }
        | FileKind::Timer(_)
        | FileKind::Signal { .. }
        | FileKind::Epoll { .. }
        | FileKind::Inotify { .. }
        | FileKind::Object { .. }
        | FileKind::Process { .. }
        | FileKind::CgroupFile { .. }
        | FileKind::OwnProc { .. } => false,
    }
}

fn file_kind(file_type: u32) -> &'static str {
    match file_type & libc::S_IFMT {
        libc::S_IFREG => "file",
        libc::S_IFDIR => "directory",
        libc::S_IFCHR => "device",
        _ => "path",
    }
}

/// Behind a socket's name.
fn waiting(queue: &[Datagram]) -> String {
    match queue.len() {
        0 => String::new(),
        1 => ", 1 datagram waits".to_owned(),
        count => format!(", {count} datagrams wait"),
    }
}

fn internet(socket: &InternetSocket) -> String {
    let protocol = match socket.protocol {
        libc::IPPROTO_TCP => "tcp",
        libc::IPPROTO_UDP => "udp",
        libc::IPPROTO_MPTCP => "mptcp",
        _ => "ip",
    };
    let side = |address: &[u8]| internet_address(address).map(|address| address.to_string());
    match (side(&socket.local), side(&socket.remote)) {
        (Some(local), Some(remote)) => format!("{protocol} {local} to {remote}"),
        (Some(local), None) => format!("{protocol} {local}"),
        (None, _) => protocol.to_owned(),
    }
}

/// A `sockaddr_in` or `sockaddr_in6`.
fn internet_address(raw: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(raw.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(raw.get(2..4)?.try_into().ok()?);
    let address: IpAddr = match family {
        libc::AF_INET => Ipv4Addr::from(<[u8; 4]>::try_from(raw.get(4..8)?).ok()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(<[u8; 16]>::try_from(raw.get(8..24)?).ok()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

fn unix(socket: &UnixName) -> String {
    let name = socket.address.get(2..).unwrap_or_default();
    match name.split_first() {
        None => "without a name".to_owned(),
        Some((0, abstract_name)) => format!("@{}", text(abstract_name)),
        Some(_) => text(name.split(|&byte| byte == 0).next().unwrap_or_default()),
    }
}

/// What is behind a mapping.
pub fn mapping(mapping: &Mapping, layout: &Layout) -> String {
    match &mapping.backing {
        Backing::Anonymous => "anonymous".to_owned(),
        Backing::File(file) => text(&file.path),
        Backing::Object(key) => {
            let object = layout.objects.iter().find(|object| object.key == *key);
            object.map_or_else(|| "shared object".to_owned(), |object| self::object(&object.kind))
        }
        Backing::Droppable => "droppable".to_owned(),
        Backing::Vvar | Backing::VvarClock | Backing::Vdso | Backing::Vsyscall => "kernel".to_owned(),
    }
}

/// What a shared object is called.
pub fn object(kind: &ObjectKind) -> String {
    match kind {
        ObjectKind::Anonymous => "shared anonymous".to_owned(),
        ObjectKind::Memfd { name, .. } => format!("memfd {}", text(name)),
        ObjectKind::File { path, deleted: false, .. } => format!("shared {}", text(path)),
        ObjectKind::File { path, deleted: true, .. } => format!("shared {} (deleted)", text(path)),
    }
}

/// Protections as `/proc/PID/maps` writes them.
pub fn protection(mapping: &Mapping) -> String {
    let letter = |set: bool, letter: char| if set { letter } else { '-' };
    let protection = mapping.protection;
    [
        letter(protection.read, 'r'),
        letter(protection.write, 'w'),
        letter(protection.execute, 'x'),
        if mapping.shared { 's' } else { 'p' },
    ]
    .iter()
    .collect()
}

/// Names are bytes; ones that are no text are shown as well as can be.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().flat_map(char::escape_debug).collect()
}

/// A number of bytes as people say it.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut rest = count as f64 / 1024.0;
    let mut unit = 0;
    while rest >= 1024.0 && unit + 1 < UNITS.len() {
        rest /= 1024.0;
        unit += 1;
    }
    format!("{rest:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_said_in_the_unit_that_fits() {
        for (count, said) in
            [(0, "0 B"), (1023, "1023 B"), (4096, "4.0 KiB"), (3 << 30, "3.0 GiB"), (u64::MAX, "16384.0 PiB")]
        {
            assert_eq!(bytes(count), said);
        }
    }

    #[test]
    fn addresses_are_read_and_cut_ones_are_none() {
        let mut raw = vec![2, 0, 0x1f, 0x90, 127, 0, 0, 1];
        raw.resize(16, 0);
        assert_eq!(internet_address(&raw).unwrap().to_string(), "127.0.0.1:8080");
        assert_eq!(internet_address(&raw[..6]), None);
        assert_eq!(internet_address(&[]), None);
    }

    #[test]
    fn names_cannot_move_the_terminals_cursor() {
        assert_eq!(text(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }
}
