//! Connections that the app has not accepted: the copy's listener gets them, and their clients notice nothing.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use checkpoint::descriptors::{ConnectionCounts, Saved};
use image::descriptor::{StrayKind, TcpState};

use crate::stage::{Servant, option, set_option};
use crate::world::{V4, V6, World, accept, client, eventually, is_reset_soon, listener, save, talk};

const SYN_RECV: u8 = 3;
const CLOSE_WAIT: u8 = 8;

/// What waits, if all of it can be carried.
fn waiting(saved: &Saved) -> Vec<&TcpState> {
    let unaccepted = saved.strays.iter().filter(|stray| stray.kind == StrayKind::Unaccepted);
    unaccepted.filter_map(|stray| stray.tcp.as_deref()).collect()
}

/// A save that finds so many of which this holds.
fn save_with(app: &Servant, count: usize, holds: impl Fn(&TcpState) -> bool) -> Saved {
    let mut found = None;
    eventually("the connections", || {
        let saved = save(app);
        let there = waiting(&saved).into_iter().filter(|tcp| holds(tcp)).count() == count;
        found = Some(saved);
        there
    });
    found.expect("a save")
}

/// All go on, and nobody is told anything.
#[track_caller]
fn kept(count: u32, counts: ConnectionCounts) {
    let others = counts.unaccepted + counts.unanswered + counts.reset + counts.closed;
    assert_eq!((counts.kept, others), (count, 0), "{counts:?}");
}

#[test]
fn a_silent_client_is_accepted_by_the_copy() {
    for ip in [V4, V6] {
        let world = World::new();
        let mut app = world.app();
        let (port, address) = listener(&mut app, ip);
        let mut silent = client(address);
        let saved = save_with(&app, 1, |tcp| tcp.unread.is_empty());
        let (mut copy, counts) = world.take_over(app, &saved);
        kept(1, counts);
        let number = accept(&mut copy, port);
        talk(&mut copy, number, &mut silent, b"after");
        let mut next = client(address);
        let number = accept(&mut copy, port);
        talk(&mut copy, number, &mut next, b"another");
    }
}

/// The same once more: what was admitted is a connection like others.
#[test]
fn who_was_admitted_can_be_taken_along_again() {
    let world = World::new();
    let mut app = world.app();
    let (port, address) = listener(&mut app, V4);
    let mut asking = client(address);
    asking.write_all(b"question").expect("write");
    let saved = save_with(&app, 1, |tcp| tcp.unread.len() == 8);
    let (copy, counts) = world.take_over(app, &saved);
    kept(1, counts);
    let again = world.at(&world.standby, || save_with(&copy, 1, |tcp| tcp.unread.len() == 8));
    let before = waiting(&saved);
    let after = waiting(&again);
    let numbers =
        |tcp: &TcpState| (tcp.write_sequence, tcp.read_sequence, tcp.window_scales, tcp.segment_max);
    assert_eq!(numbers(after[0]), numbers(before[0]));
    assert_eq!(after[0].selective_acknowledgements, before[0].selective_acknowledgements);
    assert_eq!(after[0].timestamp.is_some(), before[0].timestamp.is_some());
    let mut copy = copy;
    let number = accept(&mut copy, port);
    assert_eq!(copy.read_from(number, 64), Ok(b"question".to_vec()));
}

#[test]
fn who_asked_and_ended_before_is_answered() {
    for ip in [V4, V6] {
        let world = World::new();
        let mut app = world.app();
        let (port, address) = listener(&mut app, ip);
        let (mut asking, mut ended) = (client(address), client(address));
        asking.write_all(b"question").expect("write");
        save_with(&app, 1, |tcp| !tcp.unread.is_empty());
        ended.write_all(b"the last one").expect("write");
        ended.shutdown(Shutdown::Write).expect("shutdown");
        let saved = save_with(&app, 1, |tcp| tcp.state == CLOSE_WAIT);
        let (mut copy, counts) = world.take_over(app, &saved);
        kept(2, counts);
        let numbers = [accept(&mut copy, port), accept(&mut copy, port)];
        let mut heard = numbers.map(|number| (copy.read_from(number, 64).expect("a question"), number));
        heard.sort_by_key(|(heard, _)| heard.len());
        assert_eq!(heard.clone().map(|(heard, _)| heard), [b"question".to_vec(), b"the last one".to_vec()]);
        let [asked, last] = heard.map(|(_, number)| number);
        assert_eq!(copy.read_from(last, 64), Ok(Vec::new()));
        talk(&mut copy, asked, &mut asking, b"once more");
        copy.write_to(last, b"goodbye");
        copy.close(last);
        let mut answer = Vec::new();
        ended.read_to_end(&mut answer).expect("all of it");
        assert_eq!(answer, b"goodbye");
    }
}

/// More than one packet of it, as much as a client may send before anybody listens.
#[test]
fn a_long_question_arrives_whole() {
    for ip in [V4, V6] {
        let world = World::new();
        let mut app = world.app();
        let (port, address) = listener(&mut app, ip);
        let mut asking = client(address);
        let bytes: Vec<u8> = (0..50_000_u32).map(|n| (n * 7 % 251) as u8).collect();
        asking.write_all(&bytes).expect("write");
        let saved = save_with(&app, 1, |tcp| tcp.unread.len() == bytes.len());
        let (mut copy, counts) = world.take_over(app, &saved);
        kept(1, counts);
        let number = accept(&mut copy, port);
        let mut heard = Vec::new();
        while heard.len() < bytes.len() {
            heard.extend(copy.read_from(number, 4000).expect("the rest"));
        }
        assert!(heard == bytes, "{} bytes", heard.len());
        talk(&mut copy, number, &mut asking, b"after");
    }
}

/// The last packet of the handshake is lost: the client is connected, and nobody would say a word.
#[test]
fn a_client_that_believes_to_be_connected_is_right() {
    let world = World::new();
    let mut app = world.app();
    let (port, address) = listener(&mut app, V4);
    world.lose_the_ends_of_handshakes();
    let mut silent = client(address);
    let saved = save_with(&app, 1, |tcp| tcp.state == SYN_RECV);
    let (mut copy, counts) = world.take_over(app, &saved);
    kept(1, counts);
    let number = accept(&mut copy, port);
    talk(&mut copy, number, &mut silent, b"after");
}

#[test]
fn a_client_that_is_still_connecting_gets_through_at_once() {
    let world = World::new();
    let mut app = world.app();
    let (port, address) = listener(&mut app, V4);
    world.mute_primary();
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| client(address));
        let saved = save_with(&app, 1, |tcp| tcp.state == SYN_RECV);
        let began = Instant::now();
        let (mut copy, counts) = world.take_over(app, &saved);
        kept(0, counts);
        assert!(counts.asking < Duration::from_millis(40), "it says so: {counts:?}");
        let mut client = connecting.join().expect("the client");
        println!("connected after {:?}", began.elapsed());
        let number = accept(&mut copy, port);
        talk(&mut copy, number, &mut client, b"after");
    });
}

/// As Go listens. Its clients go on to be served by TCP.
#[test]
fn a_listener_of_mptcp_takes_them_as_one_of_tcp() {
    let world = World::new();
    let mut app = world.app();
    let number = app.socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP);
    let own = app.borrow(number);
    set_option(own.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
    sys::sockets::bind(own.as_fd(), &[&[2, 0, 0x1f, 0x90][..], &[0; 12]].concat()).expect("bind");
    rustix::net::listen(&own, 5).expect("listen");
    drop(own);
    let address: SocketAddr = format!("{V4}:8080").parse().expect("an address");
    let mut waits = client(address);
    let saved = save_with(&app, 1, |_| true);
    let (mut copy, counts) = world.take_over(app, &saved);
    kept(1, counts);
    let accepted = accept(&mut copy, number);
    talk(&mut copy, accepted, &mut waits, b"after");
    let own = copy.borrow(number);
    assert_eq!(option(own.as_fd(), libc::SOL_SOCKET, libc::SO_PROTOCOL), libc::IPPROTO_TCP);
}

/// Acknowledged bytes that are nowhere would be waited for by both ends.
#[test]
fn who_finds_no_room_is_reset() {
    let world = World::new();
    let mut app = world.app();
    let (port, address) = listener(&mut app, V4);
    let mut asking = client(address);
    asking.write_all(&[7; 50_000]).expect("write");
    save_with(&app, 1, |tcp| tcp.unread.len() == 50_000);
    set_option(app.borrow(port).as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 4096);
    let saved = save(&app);
    let (_copy, counts) = world.take_over(app, &saved);
    assert_eq!((counts.kept, counts.unaccepted), (0, 1), "{counts:?}");
    is_reset_soon(&mut asking);
}

#[test]
fn many_wait_and_all_are_served() {
    const COUNT: usize = 200;
    let world = World::new();
    let mut app = world.app();
    let (port, address) = listener(&mut app, V4);
    let mut clients: Vec<TcpStream> = (0..COUNT).map(|_| client(address)).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.write_all(&(n as u32).to_be_bytes()).expect("write");
    }
    let saved = save_with(&app, COUNT, |tcp| tcp.unread.len() == 4);
    let began = Instant::now();
    let (mut copy, counts) = world.take_over(app, &saved);
    println!("{COUNT} after {:?}", began.elapsed());
    kept(COUNT as u32, counts);
    for _ in 0..COUNT {
        let number = accept(&mut copy, port);
        let question = copy.read_from(number, 4).expect("a question");
        copy.write_to(number, &question);
    }
    for (n, client) in clients.iter_mut().enumerate() {
        let mut answer = [0; 4];
        client.read_exact(&mut answer).expect("an answer");
        assert_eq!(u32::from_be_bytes(answer) as usize, n);
    }
}
