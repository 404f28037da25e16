//! A street of the test's own: a bridge in a namespace, a client on it, and as many cells as a test wants. None
//! has a name, and all vanish with the test.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use gate::netlink::{Mac, Netlink};
use gate::{CellNetwork, Namespace, NetworkError, NetworkSpec, PermitHandle, ServiceAddress};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Protocol, RawProtocol, RecvFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 9));
pub const SERVICE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 9));
pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
pub const CLIENT_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1));
pub const PREFIX: u8 = 24;
pub const PREFIX_V6: u8 = 64;
/// No test waits longer than this for something that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing may be heard: longer than the first retransmission, after 200 ms.
pub const SILENCE: Duration = Duration::from_millis(500);

pub struct World {
    pub street: Namespace,
    pub client: Namespace,
}

impl World {
    pub fn new() -> Self {
        let world = Self { street: Namespace::new().unwrap(), client: Namespace::new().unwrap() };
        world.street.within(|| Netlink::open()?.add_bridge("br0")).unwrap();
        world.plug_in(&world.client, &[(CLIENT, PREFIX), (CLIENT_V6, PREFIX_V6)]);
        world
    }

    /// Connects a namespace to the bridge, by a device called eth0.
    pub fn plug_in(&self, host: &Namespace, addresses: &[(IpAddr, u8)]) {
        let near = format!("p{:x}", rustix::fs::fstat(host).unwrap().st_ino);
        let street = || {
            let netlink = Netlink::open()?;
            netlink.add_veth(&near, "eth0", host.as_fd())?;
            let index = netlink.link(&near)?.index;
            netlink.set_master(index, netlink.link("br0")?.index)?;
            netlink.set_up(index)
        };
        self.street.within(street).unwrap();
        let inside = || {
            let netlink = Netlink::open()?;
            let index = netlink.link("eth0")?.index;
            for (address, prefix) in addresses {
                netlink.add_address(index, *address, *prefix)?;
            }
            netlink.set_up(index)
        };
        host.within(inside).unwrap();
    }

    pub fn cell(&self) -> CellNetwork {
        self.cell_at(SERVICE, PREFIX)
    }

    pub fn cell_v6(&self) -> CellNetwork {
        self.cell_at(SERVICE_V6, PREFIX_V6)
    }

    fn cell_at(&self, address: IpAddr, prefix: u8) -> CellNetwork {
        let spec = NetworkSpec::new(ServiceAddress::new(address, prefix).unwrap(), "br0", None).unwrap();
        self.try_cell(spec).unwrap()
    }

    pub fn try_cell(&self, spec: NetworkSpec) -> Result<CellNetwork, NetworkError> {
        inside(&self.street, || CellNetwork::create(spec, "test"))
    }

    /// What the street hears of the client's neighbours.
    pub fn ear(&self) -> Ear {
        Ear::new(&self.client)
    }
}

/// A permit that is shut, of no cgroup.
pub fn permit() -> PermitHandle {
    const WORDS: usize = 2;
    let words = sys::bpf::WordArray::create("checksync_words", WORDS).unwrap();
    PermitHandle::from_fd(words.as_fd().try_clone_to_owned().unwrap()).unwrap()
}

/// Does something in a namespace.
pub fn inside<T: Send>(namespace: impl AsFd + Sync, work: impl FnOnce() -> T + Send) -> T {
    let enter_and_work = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    };
    thread::scope(|scope| scope.spawn(enter_and_work).join().unwrap())
}

pub fn listen(cell: &CellNetwork, address: IpAddr) -> TcpListener {
    inside(cell.namespace(), || TcpListener::bind((address, 0)).unwrap())
}

pub fn connect(from: &Namespace, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = inside(from, || TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A socket of the app's that talks to `to`.
pub fn datagrams(from: impl AsFd + Sync, own: IpAddr, to: SocketAddr) -> UdpSocket {
    let socket = inside(from, || UdpSocket::bind((own, 0)).unwrap());
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Hears every frame that comes to a host.
pub struct Ear(OwnedFd);

impl Ear {
    pub fn new(host: &Namespace) -> Self {
        const EVERY_PROTOCOL: u32 = (libc::ETH_P_ALL as u16).to_be() as u32;
        let protocol = RawProtocol::new(EVERY_PROTOCOL).map(Protocol::from_raw);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let open = || rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol);
        Self(inside(host, open).unwrap())
    }

    /// The next frame from this device, if one comes within `patience`.
    pub fn next_from(&self, mac: Mac, patience: Duration) -> Option<Vec<u8>> {
        let end = Instant::now() + patience;
        loop {
            let mut frame = vec![0; 70_000];
            match rustix::net::recv(&self.0, &mut frame[..], RecvFlags::empty()) {
                Ok((len, _)) if frame[6..12] == mac.0 => {
                    frame.truncate(len);
                    return Some(frame);
                }
                Ok(_) => continue,
                Err(_) => (),
            }
            let left = end.checked_duration_since(Instant::now())?;
            is_readable(&self.0, left);
        }
    }

    /// Leaving a group is no claim: it tells a bridge what not to forward.
    #[track_caller]
    pub fn assert_no_claim(&self, mac: Mac) {
        const REPORTS: [u8; 6] = [0x33, 0x33, 0, 0, 0, 0x16];
        let end = Instant::now() + SILENCE;
        while let Some(frame) = self.next_from(mac, end.saturating_duration_since(Instant::now())) {
            assert_eq!(frame[..6], REPORTS, "the cell was heard: {frame:02x?}");
        }
    }

    /// Questions about neighbours and answers to such may be heard.
    #[track_caller]
    pub fn assert_no_packet(&self, mac: Mac) {
        let end = Instant::now() + SILENCE;
        while let Some(frame) = self.next_from(mac, end.saturating_duration_since(Instant::now())) {
            assert_eq!(frame[12..14], [8, 6], "the cell was heard: {frame:02x?}");
        }
    }

    #[track_caller]
    pub fn assert_silent(&self, mac: Mac) {
        if let Some(frame) = self.next_from(mac, SILENCE) {
            panic!("the cell was heard: {frame:02x?}");
        }
    }
}

pub fn is_readable(descriptor: impl AsFd, patience: Duration) -> bool {
    let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) };
    poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// A stream's bytes, each known by its place.
pub fn pattern(at: usize) -> u8 {
    (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

pub fn send_pattern(mut stream: &TcpStream, len: usize) -> io::Result<()> {
    let mut at = 0;
    while at < len {
        let block: Vec<u8> = (at..len.min(at + (256 << 10))).map(pattern).collect();
        stream.write_all(&block)?;
        at += block.len();
    }
    stream.shutdown(Shutdown::Write)
}

/// Reads to the end, and fails at the first byte that is not what was sent.
pub fn receive_pattern(mut stream: &TcpStream) -> io::Result<usize> {
    let (mut at, mut block) = (0, vec![0; 256 << 10]);
    loop {
        let len = stream.read(&mut block)?;
        if len == 0 {
            return Ok(at);
        }
        if let Some(wrong) = (0..len).find(|index| block[*index] != pattern(at + index)) {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("byte {} is wrong", at + wrong)));
        }
        at += len;
    }
}
