//! A bridge with clients on it, and two hosts, of which one has the service's address.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use checkpoint::descriptors::{CellNetwork, ConnectionCounts, Connections, Saved};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sys::sockets::{bind, local_address};

use crate::stage::{Circumstances, DEADLINE, Servant, cache};

pub const V4: &str = "10.77.0.9";
pub const V6: &str = "fd77::9";

/// The test's thread lives where the clients are; [`World::at`] takes it elsewhere for a moment.
#[derive(Debug)]
pub struct World {
    home: OwnedFd,
    pub primary: OwnedFd,
    pub standby: OwnedFd,
}

/// Runs a command where the thread is.
pub fn run(line: &str) -> io::Result<()> {
    said(line).map(drop)
}

/// The same, for what it says.
fn said(line: &str) -> io::Result<String> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    let output = command.args(words).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(io::Error::other(format!("{line}: {}", String::from_utf8_lossy(&output.stderr))))
}

fn here() -> OwnedFd {
    File::open("/proc/thread-self/ns/net").expect("the thread's network namespace").into()
}

fn new_namespace() -> OwnedFd {
    sys::netns::unshare_network().expect("a network namespace");
    run("ip link set lo up").expect("lo");
    here()
}

fn go_to(namespace: &OwnedFd) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
}

impl World {
    pub fn new() -> Self {
        // Small tables, as a cell has them, are the heritage of the namespace before.
        sys::netns::unshare_network().expect("a network namespace");
        let [primary, standby, home] = [(); 3].map(|()| {
            std::fs::write("/proc/sys/net/ipv4/tcp_child_ehash_entries", "4096").expect("a setting");
            new_namespace()
        });
        let world = Self { home, primary, standby };
        run("ip link add br0 type bridge").expect("a bridge");
        run("ip addr add 10.77.0.1/24 dev br0").expect("an address");
        run("ip addr add fd77::1/64 dev br0 nodad").expect("an address");
        run("ip link set br0 up").expect("the bridge");
        // A pause would narrow the windows, and what tests hold back has to fit in whole.
        for host in [&world.primary, &world.standby] {
            let setting = "/proc/sys/net/ipv4/tcp_slow_start_after_idle";
            world.at(host, || std::fs::write(setting, "0")).expect("a setting");
        }
        for (name, host) in [("primary", &world.primary), ("standby", &world.standby)] {
            let place = format!("/proc/{}/fd/{}", std::process::id(), host.as_raw_fd());
            run(&format!("ip link add {name} type veth peer name eth0 netns {place}")).expect("a link");
            run(&format!("ip link set {name} master br0 up")).expect("a port");
            world.at(host, || {
                run("ip link set eth0 up").expect("the link");
                run("tc qdisc add dev eth0 clsact").expect("a place for filters");
                run("ip link add nowhere type veth peer name nobody").expect("a link");
                run("ip link set nowhere up").expect("the link");
            });
        }
        // The kernel sees to its ports on a thread of its own.
        eventually("a bridge that forwards", || {
            let ports = said("ip -d link show master br0").expect("the ports");
            ports.matches("state forwarding").count() == 2
        });
        world.at(&world.primary, take_addresses).expect("the addresses");
        world
    }

    /// Does something on one of the hosts.
    pub fn at<T>(&self, host: &OwnedFd, work: impl FnOnce() -> T) -> T {
        go_to(host);
        let result = work();
        go_to(&self.home);
        result
    }

    pub fn app(&self) -> Servant {
        self.at(&self.primary, Servant::start)
    }

    /// The primary is heard no more, whatever it still does.
    pub fn cut_off_primary(&self) {
        run("ip link set primary down").expect("cut the link");
    }

    /// What the primary sends is lost from here on, as if it were held back; it still hears.
    pub fn mute_primary(&self) {
        self.at(&self.primary, || shut("egress")).expect("mute the primary");
    }

    /// The primary hears nothing from here on; what it sends arrives.
    pub fn deafen_primary(&self) {
        self.at(&self.primary, || shut("ingress")).expect("deafen the primary");
    }

    /// Whoever connects to the primary believes to be connected, and the primary does not know.
    pub fn lose_the_ends_of_handshakes(&self) {
        let lost = "action mirred egress redirect dev nowhere";
        let filter = "tc filter add dev eth0 ingress protocol ip prio 1 u32 match ip protocol 6 0xff";
        let no_beginning = "match u8 0x00 0x02 at 33"; // After a plain IP header.
        self.at(&self.primary, || run(&format!("{filter} {no_beginning} {lost}"))).expect("a filter");
    }

    /// Until what is delayed on a connection (acknowledgements) is over.
    pub fn until_quiet(&self, socket: BorrowedFd<'_>) {
        eventually("silence", || {
            let mut info = [0; 60];
            sys::sockets::get_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).expect("TCP_INFO");
            let last_heard_ms = u32::from_ne_bytes([52, 53, 54, 55].map(|at| info[at]));
            last_heard_ms > 200
        });
    }

    pub fn network(&self) -> Moved {
        Moved {
            home: self.home.try_clone().expect("a duplicate"),
            host: self.standby.try_clone().expect("a duplicate"),
        }
    }

    /// Kills the app on a host that has gone silent, and goes on on the other one.
    pub fn take_over(&self, app: Servant, saved: &Saved) -> (Servant, ConnectionCounts) {
        self.cut_off_primary();
        drop(app);
        let mut network = self.network();
        self.at(&self.standby, || circumstances().rebuild_with(saved, Some(&mut network))).expect("rebuild")
    }
}

pub fn circumstances() -> Circumstances {
    Circumstances { connections: Connections::Keep, ..Circumstances::default() }
}

pub fn save(app: &Servant) -> Saved {
    circumstances().save(app, &mut cache()).expect("everything can be saved")
}

fn take_addresses() -> io::Result<()> {
    run(&format!("ip addr add {V4}/24 dev eth0"))?;
    run(&format!("ip addr add {V6}/64 dev eth0 nodad"))?;
    // The kernel answers before what comes for it is heard.
    eventually("an address of IPv6", || {
        said(&format!("ip -6 route get {V6}")).is_ok_and(|route| route.starts_with("local"))
    });
    Ok(())
}

/// The standby's network: its address comes when it is raised.
#[derive(Debug)]
pub struct Moved {
    home: OwnedFd,
    host: OwnedFd,
}

impl CellNetwork for Moved {
    fn raise(&mut self) -> io::Result<()> {
        self.on_host(|| shut("ingress").and_then(|()| take_addresses()))?;
        // Stands in for the announcement.
        self.at_home(|| run("ip neigh flush dev br0"))
    }

    fn let_in(&mut self) -> io::Result<()> {
        self.on_host(|| run("tc filter del dev eth0 ingress"))
    }
}

impl Moved {
    fn on_host<T>(&self, work: impl FnOnce() -> T) -> T {
        go_to(&self.host);
        work()
    }

    fn at_home<T>(&self, work: impl FnOnce() -> T) -> T {
        go_to(&self.home);
        let result = work();
        go_to(&self.host);
        result
    }
}

/// Segments reach packet sockets and nobody else; neighbours are answered. (There is no plain `drop` in every
/// kernel: they go to a link that leads nowhere.)
fn shut(way: &str) -> io::Result<()> {
    let lost = "action mirred egress redirect dev nowhere";
    let filter = format!("tc filter add dev eth0 {way} protocol");
    run(&format!("{filter} ip prio 1 u32 match ip protocol 6 0xff {lost}"))?;
    run(&format!("{filter} ipv6 prio 2 u32 match ip6 protocol 6 0xff {lost}"))
}

/// A listener of the app on a port of the kernel's choice: its number, and where clients find it.
pub fn listener(app: &mut Servant, ip: &str) -> (i32, SocketAddr) {
    let ip: IpAddr = ip.parse().expect("an address");
    let family = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let number = app.socket(family, libc::SOCK_STREAM, 0);
    let own = app.borrow(number);
    let mut any = vec![0; if ip.is_ipv4() { 16 } else { 28 }];
    any[0] = family as u8;
    bind(own.as_fd(), &any).expect("bind");
    rustix::net::listen(&own, 2000).expect("listen");
    let address = local_address(own.as_fd()).expect("an address");
    (number, SocketAddr::new(ip, u16::from_be_bytes([address[2], address[3]])))
}

pub fn accept(app: &mut Servant, listener: i32) -> i32 {
    app.call(libc::SYS_accept4, &[listener as u64, 0, 0, 0])
}

/// A client that does not wait for ever.
pub fn client(to: SocketAddr) -> TcpStream {
    let client = TcpStream::connect_timeout(&to, DEADLINE).expect("connect");
    client.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    client.set_write_timeout(Some(DEADLINE)).expect("a time-out");
    client
}

/// A word there and back.
pub fn talk(app: &mut Servant, number: i32, client: &mut TcpStream, word: &[u8]) {
    client.write_all(word).expect("write");
    assert_eq!(app.read_from(number, 64), Ok(word.to_vec()));
    app.write_to(number, word);
    let mut back = vec![0; word.len()];
    client.read_exact(&mut back).expect("read");
    assert_eq!(back, word);
}

/// An app with one client that it has accepted.
#[derive(Debug)]
pub struct Connected {
    pub world: World,
    pub app: Servant,
    /// The listener, and where it is found.
    pub port: i32,
    pub address: SocketAddr,
    pub number: i32,
    pub client: TcpStream,
}

impl Connected {
    pub fn new(ip: &str) -> Self {
        Self::on(World::new(), ip)
    }

    pub fn on(world: World, ip: &str) -> Self {
        let mut app = world.app();
        let (port, address) = listener(&mut app, ip);
        let client = client(address);
        let number = accept(&mut app, port);
        Self { world, app, port, address, number, client }
    }

    /// They have spoken with each other.
    pub fn talking(ip: &str) -> Self {
        let mut new = Self::new(ip);
        talk(&mut new.app, new.number, &mut new.client, b"before");
        new
    }
}

/// Below any retransmission, and the client says nothing.
pub fn is_reset_soon(client: &mut TcpStream) {
    const SOON: Duration = Duration::from_millis(950);
    let began = Instant::now();
    let why = client.read(&mut [0]).expect_err("a reset").kind();
    assert_eq!(why, io::ErrorKind::ConnectionReset);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let came = testkit::wait::Deadline::after(DEADLINE).poll(|| holds().then_some(()));
    assert!(came.is_some(), "{what} never comes");
}
