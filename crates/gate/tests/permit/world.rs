//! Two network namespaces with a cable between them, and a listener on the client's end of it. Neither has a
//! name, and both vanish with the last process in them, however a test ends.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use gate::boot_clock_ns;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Protocol, RawProtocol, RecvFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// No test waits longer than this for something that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct World {
    pub server: Net,
    pub client: Net,
}

impl World {
    pub fn new() -> Self {
        let (server, client) = (Net::new(), Net::new());
        let peer = format!("/proc/{}/fd/{}", std::process::id(), client.0.as_raw_fd());
        server.ip(&format!("link add eth0 type veth peer name eth0 netns {peer}"));
        for (net, host) in [(&server, 1), (&client, 2)] {
            net.ip(&format!("addr add 10.77.0.{host}/24 dev eth0"));
            net.ip(&format!("addr add fd77::{host}/64 dev eth0 nodad"));
            net.ip("link set lo up");
            net.ip("link set eth0 up");
        }
        Self { server, client }
    }
}

/// A network namespace.
#[derive(Debug)]
pub struct Net(OwnedFd);

impl Net {
    fn new() -> Self {
        let script = ["--net", "sh", "-c", "echo made; exec cat"];
        let mut holder = Command::new("unshare")
            .args(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut made = [0; 5];
        holder.stdout.as_mut().unwrap().read_exact(&mut made).expect("unshare --net works");
        let net = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        drop(holder.stdin.take());
        holder.wait().unwrap();
        Self(net.into())
    }

    /// Runs `work` in here; what it opens or starts stays in here.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    fn ip(&self, command: &str) {
        let status = self.inside(|| Command::new("ip").args(command.split(' ')).status());
        assert!(status.expect("iproute2 is installed").success(), "ip {command}");
    }

    /// A connection to the server that hears its ticks.
    pub fn connect(&self, to: SocketAddr) -> TcpStream {
        let stream = self.inside(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Starts a connection that nobody waits for.
    pub fn knock(&self, at: SocketAddr) {
        let attempt = self.inside(|| TcpStream::connect_timeout(&at, Duration::from_millis(1)));
        assert_eq!(attempt.map(drop).map_err(|error| error.kind()), Err(ErrorKind::TimedOut));
    }

    pub fn datagrams(&self, to: SocketAddr) -> UdpSocket {
        self.inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(to).unwrap();
            socket
        })
    }

    pub fn ear(&self) -> Ear {
        const EVERY_PROTOCOL: u32 = (libc::ETH_P_ALL as u16).to_be() as u32;
        let protocol = RawProtocol::new(EVERY_PROTOCOL).map(Protocol::from_raw);
        self.inside(|| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol);
            Ear(socket.unwrap())
        })
    }
}

/// Hears every packet that comes over the cable.
#[derive(Debug)]
pub struct Ear(OwnedFd);

impl Ear {
    /// How many packets of the server come in until the boot clock says `end_ns`.
    pub fn count_until(&self, end_ns: u64) -> usize {
        let mut count = 0;
        while let Some(left) = end_ns.checked_sub(boot_clock_ns()) {
            if is_readable(&self.0, Duration::from_nanos(left)) {
                count += self.drain();
            }
        }
        count + self.drain()
    }

    /// Asserts that nothing comes for so long; `poke` is called meanwhile, to provoke answers.
    pub fn assert_silent_for(&self, span: Duration, mut poke: impl FnMut()) {
        let end_ns = boot_clock_ns() + span.as_nanos() as u64;
        while boot_clock_ns() < end_ns {
            poke();
            let step_ns = boot_clock_ns() + 20_000_000;
            assert_eq!(self.count_until(step_ns), 0, "the server was heard though its permit had lapsed");
        }
    }

    fn drain(&self) -> usize {
        let mut count = 0;
        let mut packet = [0; 2048];
        while let Ok((len, _)) = rustix::net::recv(&self.0, &mut packet[..], RecvFlags::empty()) {
            count += usize::from(is_of_server(&packet[..len.min(2048)]));
        }
        count
    }
}

/// Whether an Ethernet frame carries anything of the server's but neighbour discovery.
fn is_of_server(frame: &[u8]) -> bool {
    const NEIGHBOURS: u8 = libc::IPPROTO_ICMPV6 as u8;
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(26..30) == Some(&SERVER.octets()),
        Some([0x86, 0xdd]) => {
            frame.get(20) != Some(&NEIGHBOURS) && frame.get(22..38) == Some(&SERVER_V6.octets())
        }
        _ => false,
    }
}

fn is_readable(socket: impl AsFd, patience: Duration) -> bool {
    let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) };
    poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// Something that the server ticks on.
pub trait Line: AsFd {
    fn hear(&mut self) -> usize;
    fn say(&mut self);

    /// Waits for a tick that is newer than this call.
    fn assert_ticks(&mut self) {
        let end = Instant::now() + PATIENCE;
        while is_readable(self.as_fd(), Duration::ZERO) {
            assert_ne!(self.hear(), 0, "the server hung up");
        }
        self.say();
        assert!(is_readable(self.as_fd(), end - Instant::now()), "the server ticks within {PATIENCE:?}");
        assert_ne!(self.hear(), 0, "the server hung up");
    }
}

impl Line for TcpStream {
    fn hear(&mut self) -> usize {
        self.read(&mut [0; 4096]).unwrap()
    }

    fn say(&mut self) {
        self.write_all(b"hear me").unwrap();
    }
}

impl Line for UdpSocket {
    fn hear(&mut self) -> usize {
        self.recv(&mut [0; 4096]).unwrap()
    }

    fn say(&mut self) {
        self.send(b"hear me").unwrap();
    }
}

/// Another process: this test binary again, in one of the roles of `guest.rs`. Killed when dropped.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Guest {
    pub fn start(role: &str, variables: &[(&str, String)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "guest::plays_its_role", "--nocapture"]).env("GUEST_ROLE", role);
        command.envs(variables.iter().cloned()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What follows `word` on the next line that starts with it.
    pub fn told(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.lines.read_line(&mut line).unwrap(),
                0,
                "the guest ended instead of saying {word}"
            );
            if let Some(rest) = line.strip_prefix(word) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Waits until somebody else has ended it.
    pub fn told_end(&mut self) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}
