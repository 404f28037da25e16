//! Connections of the app to itself.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use checkpoint::descriptors::{ConnectionCounts, Saved};
use image::descriptor::{FileKind, TcpState};

use crate::stage::{Circumstances, Servant, cache, set_option};
use crate::world::{V4, V6, World, accept, circumstances, listener, run, save};

const ADDRESSES: [&str; 4] = ["127.0.0.1", "::1", V4, V6];

fn sockaddr(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address.ip() {
        IpAddr::V4(ip) => {
            let family = (libc::AF_INET as u16).to_ne_bytes();
            [&family[..], &port, &ip.octets(), &[0; 8]].concat()
        }
        IpAddr::V6(ip) => {
            let family = (libc::AF_INET6 as u16).to_ne_bytes();
            [&family[..], &port, &[0; 4], &ip.octets(), &[0; 4]].concat()
        }
    }
}

fn connect(app: &mut Servant, to: SocketAddr) -> i32 {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let number = app.socket(family, libc::SOCK_STREAM, 0);
    let address = sockaddr(to);
    let place = app.put(&address);
    app.call(libc::SYS_connect, &[number as u64, place, address.len() as u64]);
    number
}

/// Both ends of a connection, and the listener that it came by.
fn pair(app: &mut Servant, ip: &str) -> ([i32; 2], i32) {
    let (port, address) = listener(app, ip);
    let one = connect(app, address);
    ([one, accept(app, port)], port)
}

fn say(app: &mut Servant, from: i32, to: i32, word: &[u8]) {
    app.write_to(from, word);
    assert_eq!(app.read_from(to, 64), Ok(word.to_vec()));
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

fn read_all(app: &mut Servant, number: i32, len: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < len {
        got.extend(app.read_from(number, 50_000).expect("read"));
    }
    got
}

#[test]
fn both_ends_go_on() {
    for ip in ADDRESSES {
        let world = World::new();
        let mut app = world.app();
        let ([one, other], _) = pair(&mut app, ip);
        say(&mut app, one, other, b"before");
        say(&mut app, other, one, b"before, too");
        let saved = save(&app);
        let (mut copy, counts) = world.take_over(app, &saved);
        assert_eq!((counts.kept, counts.unanswered, counts.reset), (2, 0, 0), "{ip}");
        say(&mut copy, one, other, b"after");
        say(&mut copy, other, one, b"after, too");
        copy.close(one);
        assert_eq!(copy.read_from(other, 10), Ok(Vec::new()));
    }
}

/// The receiver's queue is full, and the sender's has the rest.
#[test]
fn what_was_said_and_not_read_is_read_once_and_in_order() {
    const LEN: usize = 200_000;
    for ip in ADDRESSES {
        let world = World::new();
        let mut app = world.app();
        let ([one, other], _) = pair(&mut app, ip);
        set_option(app.borrow(other).as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 8192);
        set_option(app.borrow(one).as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 1 << 20);
        pattern(LEN).chunks(50_000).for_each(|piece| app.write_to(one, piece));
        app.write_to(other, b"and back");
        let saved = save(&app);
        let (mut copy, counts) = world.take_over(app, &saved);
        assert_eq!((counts.kept, counts.reset), (2, 0), "{ip}");
        assert_eq!(copy.read_from(one, 64), Ok(b"and back".to_vec()));
        assert!(read_all(&mut copy, other, LEN) == pattern(LEN), "{ip}");
        say(&mut copy, one, other, b"after");
    }
}

/// The two ends' states, the sender's first.
fn states(saved: &Saved) -> [TcpState; 2] {
    let states = saved.files.iter().filter_map(|file| match &file.kind {
        FileKind::Connection(socket) => socket.tcp.as_deref().cloned(),
        _ => None,
    });
    let mut states: Vec<_> = states.collect();
    states
        .sort_by_key(|tcp| std::cmp::Reverse(tcp.unacknowledged.len() + usize::from(tcp.unread.is_empty())));
    states.try_into().expect("two ends")
}

/// Segments get through while the ends are looked at: nothing may be in neither image. The receiver comes before
/// the sender in the table, which is the bad order.
#[test]
fn what_is_on_its_way_at_the_freeze_is_not_lost() {
    const LEN: usize = 6_000_000;
    let world = World::new();
    let mut app = world.app();
    world.at(&world.primary, || {
        run("tc qdisc add dev lo root tbf rate 30mbit burst 70000 limit 20000000").expect("a slow lo")
    });
    let ([receiver, sender], _) = pair(&mut app, "127.0.0.1");
    assert!(receiver < sender);
    for number in [receiver, sender] {
        let own: OwnedFd = app.borrow(number);
        set_option(own.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 16 << 20);
        set_option(own.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20);
    }
    for piece in pattern(LEN).chunks(50_000) {
        app.write_to(sender, piece);
    }
    let (mut cache, mut on_the_way) = (cache(), 0);
    for _ in 0..200 {
        let saved = circumstances().save(&app, &mut cache).expect("a save");
        let states = states(&saved);
        let [from, to] = &states;
        let first = from.write_sequence.wrapping_sub(from.unacknowledged.len() as u32);
        let had = to.read_sequence.wrapping_sub(first) as usize;
        assert!(had <= from.unacknowledged.len(), "{first} is acknowledged, {} was read", to.read_sequence);
        on_the_way += usize::from(had < from.unacknowledged.len());
    }
    assert!(on_the_way > 10, "nothing was on its way");
    let saved = circumstances().save(&app, &mut cache).expect("a save");
    let (mut copy, counts) = world.take_over(app, &saved);
    assert_eq!((counts.kept, counts.reset), (2, 0));
    assert!(read_all(&mut copy, receiver, LEN) == pattern(LEN));
}

#[test]
fn an_end_is_heard_and_leaves_the_other_way_open() {
    for ip in ADDRESSES {
        let world = World::new();
        let mut app = world.app();
        let ([one, other], _) = pair(&mut app, ip);
        app.write_to(one, b"last words");
        app.call(libc::SYS_shutdown, &[one as u64, libc::SHUT_WR as u64]);
        let saved = save(&app);
        let (mut copy, counts) = world.take_over(app, &saved);
        assert_eq!((counts.kept, counts.reset), (2, 0), "{ip}");
        assert_eq!(copy.read_from(other, 64), Ok(b"last words".to_vec()));
        assert_eq!(copy.read_from(other, 64), Ok(Vec::new()));
        say(&mut copy, other, one, b"answer");
        copy.close(other);
        assert_eq!(copy.read_from(one, 64), Ok(Vec::new()));
    }
}

#[test]
fn the_rest_of_what_a_closed_end_said_is_read_and_then_its_end() {
    for ip in ADDRESSES {
        let world = World::new();
        let mut app = world.app();
        let ([one, other], _) = pair(&mut app, ip);
        app.write_to(one, b"goodbye");
        app.close(one);
        let saved = save(&app);
        let (mut copy, counts) = world.take_over(app, &saved);
        assert_eq!((counts.kept, counts.reset), (1, 0), "{ip}");
        assert_eq!(copy.read_from(other, 64), Ok(b"goodbye".to_vec()));
        assert_eq!(copy.read_from(other, 64), Ok(Vec::new()));
    }
}

/// Its last bytes are in no socket that has a descriptor.
#[test]
fn a_closed_end_is_heard_to_the_last() {
    let (read, end, counts) = rest_of_a_closed_end(|_| ());
    assert_eq!((counts.kept, counts.drained, counts.reset, counts.closed), (1, 1, 0, 0));
    assert!(end == 0 && read == pattern(CLOSED_LEN), "{} bytes, {end}", read.len());
}

/// As where the kernel cannot be read.
#[test]
fn a_closed_end_that_could_not_be_read_resets_the_other() {
    let (read, end, counts) = rest_of_a_closed_end(|saved| saved.strays[0].tcp = None);
    assert_eq!((counts.kept, counts.drained, counts.reset, counts.closed), (0, 0, 1, 1));
    assert_eq!(end, libc::ECONNRESET);
    assert!(read.len() < CLOSED_LEN && read == pattern(CLOSED_LEN)[..read.len()]);
}

const CLOSED_LEN: usize = 200_000;

/// What the other end reads after a takeover, with the error that ends it.
fn rest_of_a_closed_end(change: impl FnOnce(&mut Saved)) -> (Vec<u8>, i32, ConnectionCounts) {
    let world = World::new();
    let mut app = world.app();
    let ([one, other], _) = pair(&mut app, "127.0.0.1");
    set_option(app.borrow(other).as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 8192);
    set_option(app.borrow(one).as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 1 << 20);
    pattern(CLOSED_LEN).chunks(50_000).for_each(|piece| app.write_to(one, piece));
    app.close(one);
    let mut saved = save(&app);
    change(&mut saved);
    let (mut copy, counts) = world.take_over(app, &saved);
    let mut got = Vec::new();
    let end = loop {
        match copy.read_from(other, 50_000) {
            Ok(bytes) if bytes.is_empty() => break 0,
            Ok(bytes) => got.extend(bytes),
            Err(error) => break error,
        }
    };
    (got, end, counts)
}

#[test]
fn an_end_that_was_not_accepted_resets_the_other() {
    let world = World::new();
    let mut app = world.app();
    let (_, address) = listener(&mut app, "127.0.0.1");
    let one = connect(&mut app, address);
    app.write_to(one, b"read by nobody");
    let saved = save(&app);
    let (mut copy, counts) = world.take_over(app, &saved);
    assert_eq!((counts.kept, counts.reset, counts.unaccepted), (0, 1, 1));
    assert_eq!(copy.read_from(one, 64), Err(libc::ECONNRESET));
}

/// In timeline the addresses are the host's, and on the other host they may be somebody else's.
#[test]
fn where_connections_are_not_kept_both_ends_are_reset() {
    let world = World::new();
    let mut app = world.app();
    let ([one, other], _) = pair(&mut app, "127.0.0.1");
    say(&mut app, one, other, b"before");
    let saved = Circumstances::default().save(&app, &mut cache()).expect("a save");
    drop(app);
    let mut copy = world.at(&world.standby, || Circumstances::default().rebuild(&saved)).expect("rebuild");
    for number in [one, other] {
        assert_eq!(copy.read_from(number, 10), Err(libc::ECONNRESET));
        assert_eq!(copy.read_from(number, 10), Ok(Vec::new()));
    }
}
