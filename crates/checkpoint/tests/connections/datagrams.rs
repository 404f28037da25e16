//! Datagrams that nobody has read yet are read after the takeover, each once, in order, and as their senders'.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use checkpoint::descriptors::{Cache, Saved};
use image::descriptor::{Datagram, FileKind};
use libc::{IPPROTO_IP, IPPROTO_UDP, SOL_SOCKET};
use sys::sockets::{bind, connect, local_address, peek, set_option as set_bytes};

use crate::stage::{Circumstances, DEADLINE, Servant, cache, option, set_option};
use crate::world::{V4, V6, World, circumstances, eventually, run};

/// A `sockaddr`.
fn raw(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address.ip() {
        IpAddr::V4(ip) => [&(libc::AF_INET as u16).to_ne_bytes()[..], &port, &ip.octets(), &[0; 8]].concat(),
        IpAddr::V6(ip) => {
            [&(libc::AF_INET6 as u16).to_ne_bytes()[..], &port, &[0; 4], &ip.octets(), &[0; 4]].concat()
        }
    }
}

fn read_address(bytes: &[u8]) -> SocketAddr {
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    match bytes.len() {
        16 => (<[u8; 4]>::try_from(&bytes[4..8]).expect("four bytes"), port).into(),
        _ => (<[u8; 16]>::try_from(&bytes[8..24]).expect("sixteen bytes"), port).into(),
    }
}

fn on(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// A socket of the app's that does not wait, before it is bound.
fn socket(app: &mut Servant, ip: &str) -> i32 {
    let family = if ip.contains(':') { libc::AF_INET6 } else { libc::AF_INET };
    app.socket(family, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0)
}

/// Binds it to a port, zero for one of the kernel's choice; which that is.
fn bind_to(app: &Servant, number: i32, ip: &str, port: u16) -> u16 {
    let own = app.borrow(number);
    bind(own.as_fd(), &raw(on(ip, port))).expect("bind");
    read_address(&local_address(own.as_fd()).expect("an address")).port()
}

fn bound(app: &mut Servant, ip: &str) -> (i32, u16) {
    let number = socket(app, ip);
    (number, bind_to(app, number, ip, 0))
}

fn any(ip: &str) -> &'static str {
    if ip.contains(':') { "::" } else { "0.0.0.0" }
}

/// Somebody outside.
fn sender(ip: &str) -> UdpSocket {
    let sender = UdpSocket::bind((any(ip), 0)).expect("bind");
    sender.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    sender
}

fn send_all(sender: &UdpSocket, words: &[&[u8]], to: SocketAddr) {
    for word in words {
        sender.send_to(word, to).expect("send");
    }
}

/// What the app reads next, and from whom; `-errno` where nothing is there.
fn receive(app: &mut Servant, number: i32) -> Result<(Vec<u8>, SocketAddr), i32> {
    const BUFFER: u64 = 66_000;
    let at = app.put(&28_u32.to_ne_bytes());
    let (from, bytes) = (at + 8, at + 64);
    let got = app.try_call(libc::SYS_recvfrom, &[number as u64, bytes, BUFFER, 0, from, at]);
    let len = usize::try_from(got).map_err(|_| -got as i32)?;
    let all = app.got(64 + len);
    let from_len = u32::from_ne_bytes([0, 1, 2, 3].map(|n| all[n])) as usize;
    Ok((all[64..].to_vec(), read_address(&all[8..8 + from_len])))
}

fn read_all(app: &mut Servant, number: i32) -> Vec<(Vec<u8>, SocketAddr)> {
    let mut all = Vec::new();
    loop {
        match receive(app, number) {
            Ok(one) => all.push(one),
            Err(libc::EAGAIN) => return all,
            Err(error) => panic!("{}", std::io::Error::from_raw_os_error(error)),
        }
    }
}

fn answer(app: &mut Servant, number: i32, to: SocketAddr, word: &[u8]) {
    let to = raw(to);
    let at = app.put(&[&to, word].concat());
    let (word_at, to_len) = (at + to.len() as u64, to.len() as u64);
    let arguments = [number as u64, word_at, word.len() as u64, 0, at, to_len];
    assert_eq!(app.try_call(libc::SYS_sendto, &arguments), word.len() as i64);
}

fn is_answered(app: &mut Servant, number: i32, peer: &UdpSocket, from: SocketAddr) {
    let to = peer.local_addr().expect("an address").port();
    let ip = if from.is_ipv4() { "10.77.0.1" } else { "fd77::1" };
    answer(app, number, on(ip, to), b"an answer");
    let mut heard = [0; 32];
    assert_eq!(peer.recv_from(&mut heard).expect("an answer"), (9, from));
    assert_eq!(&heard[..9], b"an answer");
}

fn queue(saved: &Saved, number: i32) -> &[Datagram] {
    let descriptor = saved.descriptors.iter().find(|one| one.number == number).expect("a descriptor");
    match &saved.files[descriptor.file as usize].kind {
        FileKind::Datagram(socket) => &socket.queue,
        other => panic!("{other:?}"),
    }
}

fn words(queue: &[Datagram]) -> Vec<&[u8]> {
    queue.iter().map(|one| &one.bytes[..]).collect()
}

/// How the app sees a sender.
fn name(ip: &str, sender: &UdpSocket) -> SocketAddr {
    let port = sender.local_addr().expect("an address").port();
    on(if ip.contains(':') { "fd77::1" } else { "10.77.0.1" }, port)
}

/// An app, and the cache of its manager.
struct Scene {
    world: World,
    app: Servant,
    cache: Cache,
}

impl Scene {
    fn new() -> Self {
        let world = World::new();
        let app = world.app();
        Self { world, app, cache: cache() }
    }

    fn save(&mut self) -> Saved {
        circumstances().save(&self.app, &mut self.cache).expect("a save")
    }

    /// Until so many datagrams wait in a socket of the app's.
    fn until_there(&mut self, number: i32, count: usize) {
        eventually("what was sent", || queue(&self.save(), number).len() == count);
    }

    fn take_over(mut self) -> (World, Servant) {
        let saved = self.save();
        let (copy, _) = self.world.take_over(self.app, &saved);
        (self.world, copy)
    }
}

#[test]
fn what_waits_is_read_after_the_takeover_and_can_be_answered() {
    for ip in [V4, V6] {
        for at in [ip, any(ip)] {
            let mut scene = Scene::new();
            let (number, port) = bound(&mut scene.app, at);
            let [a, b] = [sender(ip), sender(ip)];
            let long = vec![9; 9000];
            let sent: [(&UdpSocket, &[u8]); 6] =
                [(&a, b"one"), (&b, b"two"), (&a, b""), (&b, &long), (&b, b""), (&a, b"six")];
            for (n, (sender, word)) in sent.iter().enumerate() {
                sender.send_to(word, on(ip, port)).expect("send");
                scene.until_there(number, n + 1); // Of one sender or another, they come in this order.
            }
            let (_world, mut copy) = scene.take_over();
            let expected = sent.map(|(sender, word)| (word.to_vec(), name(ip, sender)));
            assert_eq!(read_all(&mut copy, number), expected, "{at}");
            is_answered(&mut copy, number, &b, on(ip, port));
            a.send_to(b"new", on(ip, port)).expect("send");
            eventually("what comes", || receive(&mut copy, number) == Ok((b"new".to_vec(), name(ip, &a))));
        }
    }
}

#[test]
fn the_app_itself_reads_each_once_and_in_its_own_way() {
    for ip in [V4, V6] {
        let mut scene = Scene::new();
        let (number, port) = bound(&mut scene.app, any(ip));
        set_option(scene.app.borrow(number).as_fd(), SOL_SOCKET, libc::SO_PEEK_OFF, 4);
        let sender = sender(ip);
        let sent = [&b"first"[..], b"", b"third"];
        send_all(&sender, &sent, on(ip, port));
        scene.until_there(number, sent.len());
        let (saved, again) = (scene.save(), scene.save());
        assert_eq!(saved, again, "looking takes nothing away");
        let own = scene.app.borrow(number);
        assert_eq!(option(own.as_fd(), SOL_SOCKET, libc::SO_PEEK_OFF), 4);
        assert_eq!(option(own.as_fd(), IPPROTO_IP, libc::IP_RECVORIGDSTADDR), 0);
        let at = scene.app.put(&[]);
        let peek = [number as u64, at, 100, libc::MSG_PEEK as u64, 0, 0];
        assert_eq!(scene.app.try_call(libc::SYS_recvfrom, &peek), 1, "behind the app's own offset");
        set_option(own.as_fd(), SOL_SOCKET, libc::SO_PEEK_OFF, -1);
        let read: Vec<_> = read_all(&mut scene.app, number).into_iter().map(|(word, _)| word).collect();
        assert_eq!(read, sent);
    }
}

#[test]
fn the_offset_of_the_app_s_own_looks_is_carried() {
    let mut scene = Scene::new();
    let (number, _) = bound(&mut scene.app, V4);
    set_option(scene.app.borrow(number).as_fd(), SOL_SOCKET, libc::SO_PEEK_OFF, 4);
    let (_world, copy) = scene.take_over();
    assert_eq!(option(copy.borrow(number).as_fd(), SOL_SOCKET, libc::SO_PEEK_OFF), 4);
}

/// A look without offset shows only the first, and one with an offset none that was looked at.
#[test]
fn empty_datagrams_are_carried_at_every_freeze_until_they_are_read() {
    for ip in [V4, V6] {
        let mut scene = Scene::new();
        let (number, port) = bound(&mut scene.app, ip);
        let sender = sender(ip);
        let sent = [&b"read"[..], b"", b"one", b"", b"", b"two", b""];
        send_all(&sender, &sent, on(ip, port));
        scene.until_there(number, sent.len());
        for read in 1..4 {
            receive(&mut scene.app, number).expect("a datagram");
            for _ in 0..2 {
                assert_eq!(words(queue(&scene.save(), number)), sent[read..]);
            }
        }
        let (_world, mut copy) = scene.take_over();
        let read: Vec<_> = read_all(&mut copy, number).into_iter().map(|(word, _)| word).collect();
        assert_eq!(read, sent[3..]);
    }
}

#[test]
fn a_connected_socket_has_what_its_peer_sent_and_what_others_sent_before() {
    for ip in [V4, V6] {
        let mut scene = Scene::new();
        let (number, port) = bound(&mut scene.app, ip);
        let [other, peer] = [sender(ip), sender(ip)];
        other.send_to(b"before", on(ip, port)).expect("send");
        scene.until_there(number, 1);
        connect(scene.app.borrow(number).as_fd(), &raw(name(ip, &peer))).expect("connect");
        peer.send_to(b"after", on(ip, port)).expect("send");
        scene.until_there(number, 2);
        let (_world, mut copy) = scene.take_over();
        let expected = [(b"before".to_vec(), name(ip, &other)), (b"after".to_vec(), name(ip, &peer))];
        assert_eq!(read_all(&mut copy, number), expected);
        copy.write_to(number, b"to the peer");
        assert_eq!(peer.recv_from(&mut [0; 32]).expect("an answer"), (11, on(ip, port)));
    }
}

#[test]
fn sockets_that_share_a_port_get_back_their_own() {
    for ip in [V4, V6] {
        for share in [libc::SO_REUSEPORT, libc::SO_REUSEADDR] {
            let mut scene = Scene::new();
            let mut port = 0;
            let mut numbers = Vec::new();
            let senders: Vec<UdpSocket> = (0..24).map(|_| sender(ip)).collect();
            for some in senders.chunks(6) {
                let number = socket(&mut scene.app, ip);
                set_option(scene.app.borrow(number).as_fd(), SOL_SOCKET, share, 1);
                port = bind_to(&scene.app, number, any(ip), port);
                numbers.push(number);
                // Of two that are plainly the same, the last one gets all: each gets some this way.
                some.iter().for_each(|one| send_all(one, &[b"a word"], on(ip, port)));
                eventually("what was sent", || {
                    let saved = scene.save();
                    let there: usize = numbers.iter().map(|number| queue(&saved, *number).len()).sum();
                    there == numbers.len() * 6
                });
            }
            let saved = scene.save();
            let expected = numbers.iter().map(|number| {
                let one = |one: &Datagram| (one.bytes.to_vec(), read_address(&one.from));
                queue(&saved, *number).iter().map(one).collect::<Vec<_>>()
            });
            let expected: Vec<_> = expected.collect();
            let owners = expected.iter().filter(|queue| !queue.is_empty()).count();
            assert!(owners > 1, "one socket got all: {expected:?}");
            let (_world, mut copy) = scene.take_over();
            let read: Vec<_> = numbers.iter().map(|number| read_all(&mut copy, *number)).collect();
            assert_eq!(read, expected);
        }
    }
}

#[test]
fn what_the_app_sent_to_itself_waits_again() {
    for ip in [V4, V6] {
        let loopback = if ip == V4 { "127.0.0.1" } else { "::1" };
        for ip in [ip, loopback] {
            let mut scene = Scene::new();
            let (from, from_port) = bound(&mut scene.app, ip);
            let (number, port) = bound(&mut scene.app, any(ip));
            answer(&mut scene.app, from, on(ip, port), b"to myself");
            scene.until_there(number, 1);
            let (_world, mut copy) = scene.take_over();
            assert_eq!(read_all(&mut copy, number), [(b"to myself".to_vec(), on(ip, from_port))]);
        }
    }
}

#[test]
fn a_socket_of_a_device_hears_and_whoever_asks_is_told_the_device() {
    for ip in [V4, V6] {
        for of_device in [true, false] {
            let mut scene = Scene::new();
            let number = socket(&mut scene.app, ip);
            let own = scene.app.borrow(number);
            if of_device {
                set_bytes(own.as_fd(), SOL_SOCKET, libc::SO_BINDTODEVICE, b"eth0").expect("an option");
            }
            let (level, option) = match ip {
                V4 => (IPPROTO_IP, libc::IP_PKTINFO),
                _ => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
            };
            set_option(own.as_fd(), level, option, 1);
            let port = bind_to(&scene.app, number, any(ip), 0);
            send_all(&sender(ip), &[b"a word"], on(ip, port));
            scene.until_there(number, 1);
            let told = |socket: BorrowedFd<'_>| {
                let mut told = [0; 64];
                peek(socket, &mut [0; 16], &mut told).expect("a datagram");
                told
            };
            let before = told(own.as_fd());
            drop(own);
            let (_world, copy) = scene.take_over();
            assert_eq!(told(copy.borrow(number).as_fd()), before);
        }
    }
}

#[test]
fn a_socket_of_both_families_has_senders_of_both() {
    let mut scene = Scene::new();
    let (number, port) = bound(&mut scene.app, "::");
    let [four, six] = [sender(V4), sender(V6)];
    four.send_to(b"four", on(V4, port)).expect("send");
    scene.until_there(number, 1);
    six.send_to(b"six", on(V6, port)).expect("send");
    scene.until_there(number, 2);
    let (_world, mut copy) = scene.take_over();
    let mapped = SocketAddr::new("::ffff:10.77.0.1".parse().expect("an address"), name(V4, &four).port());
    let expected = [(b"four".to_vec(), mapped), (b"six".to_vec(), name(V6, &six))];
    assert_eq!(read_all(&mut copy, number), expected);
}

/// Datagrams that the kernel has joined (`UDP_GRO`) are several again.
#[test]
fn joined_datagrams_come_apart() {
    let mut scene = Scene::new();
    let number = socket(&mut scene.app, V4);
    set_option(scene.app.borrow(number).as_fd(), IPPROTO_UDP, libc::UDP_GRO, 1);
    let port = bind_to(&scene.app, number, V4, 0);
    let sender = sender(V4);
    set_option(sender.as_fd(), IPPROTO_UDP, libc::UDP_SEGMENT, 100);
    sender.send_to(&[5; 250], on(V4, port)).expect("send");
    scene.until_there(number, 1);
    assert_eq!(queue(&scene.save(), number)[0].segment, 100, "they came as one");
    let (_world, mut copy) = scene.take_over();
    let read: Vec<_> = read_all(&mut copy, number).into_iter().map(|(word, _)| word.len()).collect();
    assert_eq!(read, [100, 100, 50]);
}

#[test]
fn more_wait_than_the_buffer_of_the_copy_would_take() {
    let mut scene = Scene::new();
    let number = socket(&mut scene.app, V4);
    set_option(scene.app.borrow(number).as_fd(), SOL_SOCKET, libc::SO_RCVBUFFORCE, 4 << 20);
    let port = bind_to(&scene.app, number, V4, 0);
    let sender = sender(V4);
    for n in 0..600_u32 {
        sender.send_to(&n.to_ne_bytes(), on(V4, port)).expect("send");
    }
    scene.until_there(number, 600);
    set_option(scene.app.borrow(number).as_fd(), SOL_SOCKET, libc::SO_RCVBUF, 2500);
    let (_world, mut copy) = scene.take_over();
    let read: Vec<_> = read_all(&mut copy, number).into_iter().map(|(word, _)| word).collect();
    assert_eq!(read, (0..600_u32).map(|n| n.to_ne_bytes().to_vec()).collect::<Vec<_>>());
    assert_eq!(option(copy.borrow(number).as_fd(), SOL_SOCKET, libc::SO_RCVBUF), 5000);
}

/// An address that has not come to this host is somebody else's.
#[test]
fn nothing_is_sent_to_another_host_in_a_sender_s_name() {
    for (ip, bits) in [("10.77.0.66", 24), ("fd77::66", 64)] {
        let mut scene = Scene::new();
        let add = |device: &str| {
            let nodad = if ip.contains(':') { " nodad" } else { "" };
            run(&format!("ip addr add {ip}/{bits} dev {device}{nodad}")).expect("an address");
        };
        scene.world.at(&scene.world.primary, || add("eth0"));
        let (number, port) = bound(&mut scene.app, ip);
        let from = sender(ip);
        from.send_to(b"not for others", on(ip, port)).expect("send");
        scene.until_there(number, 1);
        scene.world.cut_off_primary();
        add("br0");
        let other = UdpSocket::bind(on(ip, port)).expect("bind");
        other.set_read_timeout(Some(DEADLINE)).expect("a time-out");
        let (world, mut copy) = scene.take_over();
        assert_eq!(read_all(&mut copy, number), []);
        let teller = world.at(&world.standby, || sender(ip));
        teller.send_to(b"a mark", on(ip, port)).expect("send");
        let mut heard = [0; 32];
        let (len, _) = other.recv_from(&mut heard).expect("the mark");
        assert_eq!(&heard[..len], b"a mark", "nothing came before it");
    }
}

/// Whoever looks takes it away.
#[test]
fn an_error_that_waits_for_the_app_stays() {
    for ip in [V4, V6] {
        let mut scene = Scene::new();
        let (number, port) = bound(&mut scene.app, ip);
        let peer = sender(ip);
        connect(scene.app.borrow(number).as_fd(), &raw(name(ip, &peer))).expect("connect");
        peer.send_to(b"a word", on(ip, port)).expect("send");
        scene.until_there(number, 1);
        drop(peer);
        eventually("a refusal", || {
            use rustix::event::{PollFd, PollFlags, poll};
            let own = scene.app.borrow(number);
            let mut polled = [PollFd::new(&own, PollFlags::IN)];
            poll(&mut polled, Some(&rustix::time::Timespec::default())).expect("poll");
            if polled[0].revents().contains(PollFlags::ERR) {
                return true;
            }
            // Kernels say it only so often: not every one is refused aloud.
            let word = scene.app.put(b"to nobody");
            let _ = scene.app.try_call(libc::SYS_write, &[number as u64, word, 9]);
            false
        });
        assert_eq!(words(queue(&scene.save(), number)), [b""; 0]);
        assert_eq!(receive(&mut scene.app, number).expect_err("the refusal"), libc::ECONNREFUSED);
        assert_eq!(words(queue(&scene.save(), number)), [b"a word"]);
    }
}

/// In timeline the app uses its host's addresses: the one that it was sent to may be elsewhere.
#[test]
fn what_was_sent_to_another_address_of_a_host_s_comes_by_one_that_is_here() {
    for ip in [V4, V6] {
        let mut scene = Scene::new();
        let (number, port) = bound(&mut scene.app, any(ip));
        let sender = sender(ip);
        sender.send_to(b"a word", on(ip, port)).expect("send");
        scene.until_there(number, 1);
        let saved = Circumstances::default().save(&scene.app, &mut cache()).expect("a save");
        scene.world.cut_off_primary();
        drop(scene.app);
        let rebuild = || Circumstances::default().rebuild(&saved).expect("rebuild");
        let mut copy = scene.world.at(&scene.world.standby, rebuild);
        assert_eq!(read_all(&mut copy, number), [(b"a word".to_vec(), name(ip, &sender))]);
    }
}
