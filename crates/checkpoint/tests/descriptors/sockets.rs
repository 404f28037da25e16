//! TCP, MPTCP, UDP, unix and netlink sockets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use image::descriptor::FileKind;
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};
use sys::sockets::{bind, connect, get_option, local_address, set_option as set_bytes};

use crate::stage::{Circumstances, Servant, cache, carry, option, set_option};

/// 127.0.0.1 with a port of the kernel's choice.
fn loopback() -> Vec<u8> {
    let mut address = vec![0; 16];
    address[0] = libc::AF_INET as u8;
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    address
}

fn port_of(socket: BorrowedFd<'_>) -> u16 {
    let address = local_address(socket).expect("an address");
    u16::from_be_bytes([address[2], address[3]])
}

/// A listener of the app on a port of its own.
fn listener(app: &mut Servant, protocol: i32, backlog: i32) -> (i32, OwnedFd) {
    let number = app.socket(libc::AF_INET, libc::SOCK_STREAM, protocol);
    let own = app.borrow(number);
    bind(own.as_fd(), &loopback()).expect("bind");
    rustix::net::listen(&own, backlog).expect("listen");
    (number, own)
}

/// The app's end of a connection, and ours.
fn connection(app: &mut Servant) -> (i32, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let number = app.socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    let own = app.borrow(number);
    let address = local_address(listener.as_fd()).expect("an address");
    connect(own.as_fd(), &address).expect("connect");
    (number, listener.accept().expect("accept").0)
}

const LOST_BY_OTHERS: [(i32, i32, i32); 9] = [
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 4321),
    (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 8192),
    (IPPROTO_TCP, libc::TCP_LINGER2, 33),
    (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 7),
    (IPPROTO_TCP, libc::TCP_FASTOPEN, 5),
    (SOL_SOCKET, libc::SO_BUSY_POLL, 50),
    (SOL_SOCKET, libc::SO_PRIORITY, 3),
    (IPPROTO_IP, libc::IP_TOS, 0x10),
    (IPPROTO_TCP, libc::TCP_NODELAY, 1),
];

#[test]
fn a_listener_serves_again_with_all_its_options() {
    let mut app = Servant::start();
    let (number, own) = listener(&mut app, 0, 37);
    for (level, name, value) in LOST_BY_OTHERS {
        set_option(own.as_fd(), level, name, value);
    }
    set_option(own.as_fd(), SOL_SOCKET, libc::SO_RCVBUF, 50_000);
    set_bytes(own.as_fd(), SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 9, 0, 0, 0]).expect("linger");
    set_bytes(own.as_fd(), IPPROTO_TCP, libc::TCP_CONGESTION, b"reno").expect("reno is built in");
    let before = LOST_BY_OTHERS.map(|(level, name, _)| option(own.as_fd(), level, name));
    let port = port_of(own.as_fd());
    drop(own);

    let (mut skeleton, saved) = carry(app);
    assert!(matches!(&saved.files[0].kind, FileKind::Listener(socket) if socket.backlog == 37));
    let own = skeleton.borrow(number);
    let after = LOST_BY_OTHERS.map(|(level, name, _)| option(own.as_fd(), level, name));
    assert_eq!(after, before);
    assert_eq!(option(own.as_fd(), SOL_SOCKET, libc::SO_RCVBUF), 100_000);
    let mut linger = [0; 8];
    get_option(own.as_fd(), SOL_SOCKET, libc::SO_LINGER, &mut linger).expect("linger");
    assert_eq!(linger, [1, 0, 0, 0, 9, 0, 0, 0]);
    let mut congestion = [0; 16];
    get_option(own.as_fd(), IPPROTO_TCP, libc::TCP_CONGESTION, &mut congestion).expect("congestion");
    assert!(congestion.starts_with(b"reno\0"));

    let mut client = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    client.write_all(b"hello").expect("write"); // TCP_DEFER_ACCEPT waits for it.
    let accepted = skeleton.call(libc::SYS_accept4, &[number as u64, 0, 0, 0]);
    assert_eq!(skeleton.read_from(accepted, 5), Ok(b"hello".to_vec()));
}

#[test]
fn an_mptcp_listener_comes_back_as_one() {
    let mut app = Servant::start();
    let (number, own) = listener(&mut app, libc::IPPROTO_MPTCP, 12);
    set_option(own.as_fd(), SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    let port = port_of(own.as_fd());
    drop(own);
    let (mut skeleton, saved) = carry(app);
    assert!(matches!(&saved.files[0].kind, FileKind::Listener(socket) if socket.backlog == 12));
    let own = skeleton.borrow(number);
    assert_eq!(option(own.as_fd(), SOL_SOCKET, libc::SO_PROTOCOL), libc::IPPROTO_MPTCP);
    assert_eq!(option(own.as_fd(), SOL_SOCKET, libc::SO_KEEPALIVE), 1);
    let _client = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    skeleton.call(libc::SYS_accept4, &[number as u64, 0, 0, 0]);
}

#[test]
fn an_ipv6_listener_keeps_its_dual_stack_setting() {
    let mut app = Servant::start();
    let number = app.socket(libc::AF_INET6, libc::SOCK_STREAM, 0);
    let own = app.borrow(number);
    set_option(own.as_fd(), IPPROTO_IPV6, libc::IPV6_V6ONLY, 1);
    let mut any = vec![0; 28];
    any[0] = libc::AF_INET6 as u8;
    bind(own.as_fd(), &any).expect("bind");
    rustix::net::listen(&own, 5).expect("listen");
    let port = port_of(own.as_fd());
    drop(own);
    let (skeleton, _) = carry(app);
    assert_eq!(option(skeleton.borrow(number).as_fd(), IPPROTO_IPV6, libc::IPV6_V6ONLY), 1);
    TcpStream::connect(("::1", port)).expect("connect");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_listener_comes_back_beside_connections_that_linger() {
    let mut app = Servant::start();
    let (number, own) = listener(&mut app, 0, 5);
    set_option(own.as_fd(), SOL_SOCKET, libc::SO_REUSEADDR, 1);
    let port = port_of(own.as_fd());
    drop(own);
    let client = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let accepted = app.call(libc::SYS_accept4, &[number as u64, 0, 0, 0]);
    app.close(accepted); // The app closes first: its port lingers.
    drop(client);
    let (skeleton, _) = carry(app);
    assert_eq!(port_of(skeleton.borrow(number).as_fd()), port);
}

#[test]
fn a_listener_on_an_address_that_is_not_here_yet_is_bound_all_the_same() {
    let mut app = Servant::start();
    let number = app.socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    let own = app.borrow(number);
    set_option(own.as_fd(), IPPROTO_IP, libc::IP_FREEBIND, 1);
    let mut elsewhere = loopback();
    elsewhere[4..8].copy_from_slice(&[198, 51, 100, 7]);
    bind(own.as_fd(), &elsewhere).expect("bind");
    set_option(own.as_fd(), IPPROTO_IP, libc::IP_FREEBIND, 0);
    rustix::net::listen(&own, 5).expect("listen");
    let address = local_address(own.as_fd()).expect("an address");
    drop(own);
    let (skeleton, _) = carry(app);
    let own = skeleton.borrow(number);
    assert_eq!(local_address(own.as_fd()).expect("an address"), address);
    assert_eq!(option(own.as_fd(), IPPROTO_IP, libc::IP_FREEBIND), 0);
}

#[test]
fn a_connection_is_reset_and_epoll_says_so() {
    let mut app = Servant::start();
    let (number, _client) = connection(&mut app);
    let epoll = app.call(libc::SYS_epoll_create1, &[0]);
    let edge = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
    app.add_to_epoll(epoll, number, edge, 0xfeed_0000_0000_beef);
    app.call(libc::SYS_fcntl, &[number as u64, libc::F_SETFL as u64, libc::O_NONBLOCK as u64]);

    let (mut skeleton, saved) = carry(app);
    assert!(matches!(&saved.files[0].kind, FileKind::Connection(socket) if !socket.remote.is_empty()));
    let [(events, data)] = skeleton.epoll_events(epoll)[..] else { panic!("one event") };
    assert_eq!(data, 0xfeed_0000_0000_beef);
    let wanted = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLERR | libc::EPOLLHUP) as u32;
    assert_eq!(events, wanted);
    assert_eq!(skeleton.read_from(number, 10), Err(libc::ECONNRESET));
    assert_eq!(skeleton.read_from(number, 10), Ok(Vec::new()));
    assert!(skeleton.info(number).contains("flags:\t04002"), "still without waiting");
}

#[test]
fn a_write_to_a_reset_connection_fails_by_that_name() {
    let mut app = Servant::start();
    let (number, _client) = connection(&mut app);
    let (mut skeleton, _) = carry(app);
    let address = skeleton.put(b"answer");
    let nosignal = libc::MSG_NOSIGNAL as u64;
    let send = |servant: &mut Servant| {
        servant.try_call(libc::SYS_sendto, &[number as u64, address, 6, nosignal, 0, 0])
    };
    assert_eq!(send(&mut skeleton), -i64::from(libc::ECONNRESET));
    assert_eq!(send(&mut skeleton), -i64::from(libc::EPIPE));
}

#[test]
fn an_ipv6_connection_is_reset_too() {
    let mut app = Servant::start();
    let listener = TcpListener::bind("[::1]:0").expect("listen");
    let number = app.socket(libc::AF_INET6, libc::SOCK_STREAM, 0);
    let address = local_address(listener.as_fd()).expect("an address");
    connect(app.borrow(number).as_fd(), &address).expect("connect");
    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.read_from(number, 10), Err(libc::ECONNRESET));
}

#[test]
fn a_connection_that_the_peer_reset_before_is_still_a_connection() {
    let mut app = Servant::start();
    let (number, client) = connection(&mut app);
    set_bytes(client.as_fd(), SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 0, 0, 0, 0]).expect("linger");
    drop(client);
    let (_, saved) = carry(app);
    assert!(matches!(saved.files[number as usize].kind, FileKind::Connection(_)));
}

#[test]
fn a_fresh_socket_is_not_a_reset_one() {
    let mut app = Servant::start();
    let number = app.socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    set_option(app.borrow(number).as_fd(), IPPROTO_TCP, libc::TCP_NODELAY, 1);
    let (skeleton, saved) = carry(app);
    assert!(matches!(saved.files[0].kind, FileKind::Unconnected(_)));
    let own = skeleton.borrow(number);
    assert_eq!(option(own.as_fd(), IPPROTO_TCP, libc::TCP_NODELAY), 1);
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    connect(own.as_fd(), &local_address(listener.as_fd()).expect("an address")).expect("it can connect");
}

#[test]
fn udp_sockets_keep_address_peer_and_options() {
    let peer = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let mut app = Servant::start();
    let number = app.socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
    let own = app.borrow(number);
    set_option(own.as_fd(), SOL_SOCKET, libc::SO_BROADCAST, 1);
    set_option(own.as_fd(), IPPROTO_IP, libc::IP_MULTICAST_TTL, 9);
    set_option(own.as_fd(), IPPROTO_IP, libc::IP_PKTINFO, 1);
    bind(own.as_fd(), &loopback()).expect("bind");
    connect(own.as_fd(), &local_address(peer.as_fd()).expect("an address")).expect("connect");
    let port = port_of(own.as_fd());
    drop(own);
    let (mut skeleton, _) = carry(app);
    let own = skeleton.borrow(number);
    assert_eq!(port_of(own.as_fd()), port);
    assert_eq!(option(own.as_fd(), SOL_SOCKET, libc::SO_BROADCAST), 1);
    assert_eq!(option(own.as_fd(), IPPROTO_IP, libc::IP_MULTICAST_TTL), 9);
    assert_eq!(option(own.as_fd(), IPPROTO_IP, libc::IP_PKTINFO), 1);
    skeleton.write_to(number, b"datagram");
    let mut heard = [0; 20];
    assert_eq!(peer.recv_from(&mut heard).expect("a datagram"), (8, ([127, 0, 0, 1], port).into()));
}

#[test]
fn a_classic_filter_stays_on_its_socket() {
    const DROP_ALL: [u8; 8] = [6, 0, 0, 0, 0, 0, 0, 0];
    let mut app = Servant::start();
    let number = app.socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
    sys::sockets::attach_filter(app.borrow(number).as_fd(), &DROP_ALL).expect("attach");
    let (skeleton, _) = carry(app);
    assert_eq!(sys::sockets::filter(skeleton.borrow(number).as_fd()).expect("read it"), DROP_ALL);
}

fn unix_pair(app: &mut Servant, kind: i32) -> [i32; 2] {
    app.two(libc::SYS_socketpair, [libc::AF_UNIX as u64, kind as u64, 0, 0], 3)
}

#[test]
fn a_unix_pair_keeps_what_waits_in_both_directions() {
    let mut app = Servant::start();
    let [a, b] = unix_pair(&mut app, libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
    app.write_to(a, b"to b, ");
    app.write_to(a, b"in two writes");
    app.write_to(b, &vec![7; 50_000]);
    let around = Circumstances::default();
    let saved = around.save(&app, &mut cache()).expect("saved");
    let again = around.save(&app, &mut cache()).expect("saved");
    assert_eq!(saved, again, "looking takes nothing away");
    assert_eq!(app.read_from(b, 100), Ok(b"to b, in two writes".to_vec()));

    let mut skeleton = around.rebuild(&saved).expect("rebuilt");
    assert_eq!(skeleton.read_from(b, 100), Ok(b"to b, in two writes".to_vec()));
    assert_eq!(skeleton.read_from(a, 60_000), Ok(vec![7; 50_000]));
    skeleton.write_to(b, b"still a pair");
    assert_eq!(skeleton.read_from(a, 100), Ok(b"still a pair".to_vec()));
    assert_eq!(skeleton.read_from(a, 100), Err(libc::EAGAIN));
}

#[test]
fn messages_of_packet_pairs_stay_apart() {
    for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        let mut app = Servant::start();
        let [a, b] = unix_pair(&mut app, kind | libc::SOCK_NONBLOCK);
        app.write_to(a, b"x");
        app.write_to(a, b"a longer message than the first one");
        let (mut skeleton, _) = carry(app);
        assert_eq!(skeleton.read_from(b, 100), Ok(b"x".to_vec()));
        assert_eq!(skeleton.read_from(b, 100), Ok(b"a longer message than the first one".to_vec()));
        assert_eq!(skeleton.read_from(b, 100), Err(libc::EAGAIN));
    }
}

#[test]
fn a_unix_end_whose_peer_is_gone_gives_the_rest_and_then_the_end() {
    let mut app = Servant::start();
    let [a, b] = unix_pair(&mut app, libc::SOCK_STREAM);
    app.write_to(a, b"the rest");
    app.close(a);
    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.read_from(b, 100), Ok(b"the rest".to_vec()));
    assert_eq!(skeleton.read_from(b, 100), Ok(Vec::new()));
}

#[test]
fn a_unix_pair_that_was_shut_one_way_still_is() {
    let mut app = Servant::start();
    let [a, b] = unix_pair(&mut app, libc::SOCK_STREAM);
    rustix::net::shutdown(app.borrow(a), rustix::net::Shutdown::Write).expect("shutdown");
    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.read_from(b, 100), Ok(Vec::new()));
    skeleton.write_to(b, b"the other way");
    assert_eq!(skeleton.read_from(a, 100), Ok(b"the other way".to_vec()));
}

#[test]
fn datagram_ends_are_shut_each_for_itself() {
    for shut in [0, 1] {
        let mut app = Servant::start();
        let ends = unix_pair(&mut app, libc::SOCK_DGRAM);
        rustix::net::shutdown(app.borrow(ends[shut]), rustix::net::Shutdown::Write).expect("shutdown");
        let (mut skeleton, _) = carry(app);
        let address = skeleton.put(b"x");
        let nosignal = libc::MSG_NOSIGNAL as u64;
        let mut send =
            |number: i32| skeleton.try_call(libc::SYS_sendto, &[number as u64, address, 1, nosignal, 0, 0]);
        assert_eq!(send(ends[shut]), -i64::from(libc::EPIPE));
        assert_eq!(send(ends[1 - shut]), 1);
    }
}

#[test]
fn credentials_are_asked_for_again() {
    let mut app = Servant::start();
    let [a, b] = unix_pair(&mut app, libc::SOCK_DGRAM);
    set_option(app.borrow(b).as_fd(), SOL_SOCKET, libc::SO_PASSCRED, 1);
    app.write_to(a, b"signed");
    let (mut skeleton, _) = carry(app);
    assert_eq!(option(skeleton.borrow(b).as_fd(), SOL_SOCKET, libc::SO_PASSCRED), 1);
    assert_eq!(skeleton.read_from(b, 100), Ok(b"signed".to_vec()));
}

/// `sockaddr_un` for a path or, with a leading zero, an abstract name.
fn unix_address(name: &[u8]) -> Vec<u8> {
    [(libc::AF_UNIX as u16).to_ne_bytes().as_slice(), name].concat()
}

fn unix_listener(app: &mut Servant, name: &[u8], backlog: u64) -> i32 {
    let number = app.socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
    let bytes = unix_address(name);
    let address = app.put(&bytes);
    app.call(libc::SYS_bind, &[number as u64, address, bytes.len() as u64]);
    app.call(libc::SYS_listen, &[number as u64, backlog]);
    number
}

#[test]
fn a_unix_listener_lies_at_its_path_again_with_its_mode() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let mut app = Servant::start();
    let number = unix_listener(&mut app, path.as_os_str().as_encoded_bytes(), 9);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).expect("chmod");
    let (mut skeleton, saved) = carry(app);
    assert!(matches!(&saved.files[0].kind, FileKind::UnixListener { backlog: 9, .. }));
    let client = UnixStream::connect(&path).expect("connect");
    let credentials = rustix::net::sockopt::socket_peercred(&client).expect("who listens");
    assert_eq!(credentials.pid.as_raw_nonzero().get(), skeleton.pid, "the app itself, not the manager");
    skeleton.call(libc::SYS_accept4, &[number as u64, 0, 0, 0]);
    let mode = std::fs::metadata(&path).expect("stat").permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
}

#[test]
fn an_abstract_unix_listener_has_its_name_again() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("checksync-test-{}", std::process::id());
    let mut app = Servant::start();
    unix_listener(&mut app, format!("\0{name}").as_bytes(), 5);
    let (_skeleton, _) = carry(app);
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("a name");
    UnixStream::connect_addr(&address).expect("connect");
}

#[test]
fn a_client_that_the_app_accepted_over_unix_is_gone_afterwards() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let mut app = Servant::start();
    let number = unix_listener(&mut app, path.as_os_str().as_encoded_bytes(), 5);
    let mut client = UnixStream::connect(&path).expect("connect");
    client.write_all(b"request").expect("write");
    let accepted = app.call(libc::SYS_accept4, &[number as u64, 0, 0, 0]);
    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.read_from(accepted, 10), Ok(Vec::new()));
    assert_eq!(client.read(&mut [0; 1]).ok(), None, "unread data was reset");
}

#[test]
fn a_bound_unix_datagram_socket_hears_at_its_path_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let mut app = Servant::start();
    let number = app.socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0);
    let bytes = unix_address(path.as_os_str().as_encoded_bytes());
    bind(app.borrow(number).as_fd(), &bytes).expect("bind");
    let (mut skeleton, _) = carry(app);
    UnixDatagram::unbound().and_then(|socket| socket.send_to(b"hello", &path)).expect("send");
    assert_eq!(skeleton.read_from(number, 10), Ok(b"hello".to_vec()));
}

#[test]
fn a_unix_connection_to_a_listener_of_the_app_stays() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let mut app = Servant::start();
    let number = unix_listener(&mut app, path.as_os_str().as_encoded_bytes(), 5);
    let client = app.socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
    connect(app.borrow(client).as_fd(), &unix_address(path.as_os_str().as_encoded_bytes())).expect("connect");
    let accepted = app.call(libc::SYS_accept4, &[number as u64, 0, 0, 0]);
    app.write_to(client, b"inside");
    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.read_from(accepted, 10), Ok(b"inside".to_vec()));
    let _ = UnixListener::bind(&path).expect_err("the path is taken again");
}

#[test]
fn a_route_socket_can_be_open() {
    let mut app = Servant::start();
    let number = app.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
    let mut address = vec![0; 12];
    address[0] = libc::AF_NETLINK as u8;
    address[8] = 1; // The group of link changes.
    bind(app.borrow(number).as_fd(), &address).expect("bind");
    let (skeleton, _) = carry(app);
    let bound = local_address(skeleton.borrow(number).as_fd()).expect("an address");
    assert_eq!(bound[8], 1);
}
