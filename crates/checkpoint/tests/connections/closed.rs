//! Connections that the app has closed, on which the kernel still has something to say: it is said, whole, and its end
//! is an end.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use checkpoint::descriptors::{ConnectionCounts, Saved};
use image::descriptor::{StrayKind, TcpState};

use crate::stage::{DEADLINE, Servant, cache, set_option};
use crate::world::{
    Connected, V4, V6, World, accept, circumstances, client, eventually, listener, save, talk,
};

const FIN_WAIT1: u8 = 4;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

/// Writes all of it, in pieces that a servant can hold.
fn write(app: &mut Servant, number: i32, bytes: &[u8]) {
    bytes.chunks(50_000).for_each(|piece| app.write_to(number, piece));
}

/// The one connection that is to go on without descriptor.
fn closed(saved: &Saved) -> Option<&TcpState> {
    let [stray] = &saved.strays[..] else { return None };
    assert_eq!(stray.kind, StrayKind::Closed);
    stray.tcp.as_deref()
}

/// A save that finds it in this state.
fn save_in(app: &Servant, state: u8) -> Saved {
    let mut found = None;
    eventually("the state", || {
        let saved = save(app);
        let is_there = closed(&saved).is_some_and(|tcp| tcp.state == state);
        found = Some(saved);
        is_there
    });
    found.expect("a save")
}

fn drained(count: u32, counts: ConnectionCounts) {
    let ended = counts.reset + counts.unaccepted + counts.closed;
    assert_eq!((counts.drained, counts.kept + counts.unanswered, ended), (count, 0, 0), "{counts:?}");
}

/// Takes over, and reads what the client lacks, up to an end that is none of a reset.
fn finish(world: &World, app: Servant, saved: &Saved, client: &mut TcpStream) -> Vec<u8> {
    let (copy, counts) = world.take_over(app, saved);
    drained(1, counts);
    let numbers: Vec<i32> = saved.descriptors.iter().map(|descriptor| descriptor.number).collect();
    assert_eq!(copy.numbers(), numbers, "the copy has exactly the app's descriptors");
    let mut rest = Vec::new();
    let began = Instant::now();
    client.read_to_end(&mut rest).expect("everything up to the end");
    // A retransmission timer of a second or more would have been waited for otherwise.
    assert!(began.elapsed() < Duration::from_millis(950), "{:?}", began.elapsed());
    rest
}

#[test]
fn an_answer_that_was_closed_and_not_heard_arrives() {
    for (ip, heard) in [(V4, &b""[..]), (V6, b""), (V4, b"half ")] {
        let Connected { world, mut app, number, mut client, .. } = Connected::talking(ip);
        if !heard.is_empty() {
            app.write_to(number, heard);
            world.until_quiet(client.as_fd());
        }
        world.mute_primary();
        app.write_to(number, b"an answer");
        app.close(number);
        let saved = save_in(&app, FIN_WAIT1);
        assert_eq!(closed(&saved).expect("a state").unacknowledged, b"an answer".to_vec());
        let whole = [heard, b"an answer"].concat();
        assert_eq!(finish(&world, app, &saved, &mut client), whole);
    }
}

/// It cannot be told from here that the client has it.
#[test]
fn an_answer_that_was_heard_is_not_heard_again() {
    for ip in [V4, V6] {
        let Connected { world, mut app, number, mut client, .. } = Connected::talking(ip);
        world.deafen_primary();
        app.write_to(number, b"an answer");
        app.close(number);
        let mut got = vec![0; 9];
        client.read_exact(&mut got).expect("all of it");
        let saved = save_in(&app, FIN_WAIT1);
        assert_eq!(finish(&world, app, &saved, &mut client), b"");
        // Its own end is heard, too.
        client.shutdown(Shutdown::Write).expect("shutdown");
    }
}

#[test]
fn an_end_without_a_word_arrives() {
    let Connected { world, mut app, number, mut client, .. } = Connected::talking(V4);
    world.mute_primary();
    app.close(number);
    let saved = save_in(&app, FIN_WAIT1);
    assert_eq!(finish(&world, app, &saved, &mut client), b"");
}

#[test]
fn a_client_that_ended_first_hears_the_answer_and_the_end() {
    for ip in [V4, V6] {
        let Connected { world, mut app, number, mut client, .. } = Connected::talking(ip);
        client.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(app.read_from(number, 1), Ok(Vec::new()));
        world.mute_primary();
        app.write_to(number, b"goodbye");
        app.close(number);
        let saved = save_in(&app, LAST_ACK);
        assert_eq!(finish(&world, app, &saved, &mut client), b"goodbye");
    }
}

#[test]
fn ends_that_crossed_are_both_heard() {
    for ip in [V4, V6] {
        let Connected { world, mut app, number, mut client, .. } = Connected::talking(ip);
        world.mute_primary();
        app.write_to(number, b"goodbye");
        app.close(number);
        client.shutdown(Shutdown::Write).expect("shutdown");
        let saved = save_in(&app, CLOSING);
        assert_eq!(finish(&world, app, &saved, &mut client), b"goodbye");
    }
}

/// What could not be read again is taken along as it was: from before its client ended, too, and was told that this had
/// arrived.
#[test]
fn a_connection_as_it_was_before_goes_on_as_well() {
    const LEN: usize = 3_000_000;
    const READ: usize = 200_000;
    for ip in [V4, V6] {
        let Connected { world, mut app, number, mut client, .. } = Connected::talking(ip);
        set_option(app.borrow(number).as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 16 << 20);
        // All of it must not find room there, however long the client takes.
        set_option(client.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 256 << 10);
        write(&mut app, number, &pattern(LEN));
        app.close(number);
        let before = save_in(&app, FIN_WAIT1);
        let mut got = vec![0; READ];
        client.read_exact(&mut got).expect("read");
        client.shutdown(Shutdown::Write).expect("shutdown");
        save_in(&app, CLOSING);
        got.extend(finish(&world, app, &before, &mut client));
        assert!(got == pattern(LEN), "{} bytes", got.len());
    }
}

/// Nobody has seen its descriptor.
#[test]
fn a_connection_that_came_and_went_between_two_freezes_is_answered() {
    for ip in [V4, V6] {
        let world = World::new();
        let mut app = world.app();
        let (port, address) = listener(&mut app, ip);
        let mut cache = cache();
        let mut save =
            |app: &Servant| circumstances().save(app, &mut cache).expect("everything can be saved");
        assert_eq!(save(&app).strays, []);
        let mut client = client(address);
        client.write_all(b"question").expect("write");
        let number = accept(&mut app, port);
        assert_eq!(app.read_from(number, 64), Ok(b"question".to_vec()));
        world.mute_primary();
        app.write_to(number, b"an answer");
        app.close(number);
        let saved = save(&app);
        assert!(closed(&saved).is_some());
        assert_eq!(save(&app), saved, "the next freeze finds the same");
        assert_eq!(finish(&world, app, &saved, &mut client), b"an answer");
    }
}

/// What the peer, or a router on the way, can tell: also of one that no freeze has seen with a descriptor, and of one whose
/// app has chosen something else since.
#[test]
fn what_was_chosen_for_a_connection_holds_after_its_end() {
    const CHOICES: [(i32, i32, i32); 5] = [
        (libc::IPPROTO_IP, libc::IP_TOS, 0x10),
        (libc::SOL_SOCKET, libc::SO_PRIORITY, 5),
        (libc::SOL_SOCKET, libc::SO_MARK, 77),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 9000),
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0x48),
    ];
    for (ip, before, after) in [V4, V6].into_iter().flat_map(|ip| [(ip, 0, 1), (ip, 2, 1), (ip, 2, 0)]) {
        let Connected { world, mut app, number, mut client, .. } = Connected::talking(ip);
        let mut cache = cache();
        let mut save =
            |app: &Servant| circumstances().save(app, &mut cache).expect("everything can be saved");
        let choices = &CHOICES[..if ip == V4 { 4 } else { 5 }];
        let choose = |app: &Servant, factor: i32| {
            for (level, name, value) in choices {
                set_option(app.borrow(number).as_fd(), *level, *name, value * factor);
            }
        };
        if before > 0 {
            choose(&app, before);
            save(&app);
        }
        choose(&app, after);
        world.mute_primary();
        app.write_to(number, b"an answer");
        app.close(number);
        let saved = save(&app);
        let options = &saved.strays[0].options;
        for (level, name, value) in choices {
            let found = options.iter().filter(|option| (option.level, option.name) == (*level, *name));
            let values: Vec<&[u8]> = found.map(|option| option.value.as_slice()).collect();
            let expected = value.to_ne_bytes();
            let expected = &[&expected[..]][..after as usize];
            assert_eq!(values, expected, "{ip}, {before}, {after}: option {name} of level {level}");
        }
        assert_eq!(finish(&world, app, &saved, &mut client), b"an answer");
    }
}

/// Far more than one look at the queue, and nearly nothing of it was sent.
#[test]
fn megabytes_that_were_never_sent_arrive() {
    const LEN: usize = 5_000_000;
    for ip in [V4, V6] {
        let world = World::new();
        let mut app = world.app();
        let (port, address) = listener(&mut app, ip);
        let mut client = client(address);
        set_option(client.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 8192);
        let number = accept(&mut app, port);
        talk(&mut app, number, &mut client, b"before");
        set_option(app.borrow(number).as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 16 << 20);
        write(&mut app, number, &pattern(LEN));
        app.close(number);
        let saved = save_in(&app, FIN_WAIT1);
        let tcp = closed(&saved).expect("a state");
        assert!(tcp.unacknowledged.len() > LEN / 2 && tcp.unsent as usize > LEN / 2);
        let (_copy, counts) = world.take_over(app, &saved);
        drained(1, counts);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).expect("everything up to the end");
        assert!(rest == pattern(LEN), "{} bytes", rest.len());
    }
}

/// Without its `SO_REUSEADDR`, which is the listener's, the last `bind` fails.
#[test]
fn a_listener_can_be_made_again_beside_one_that_drains() {
    const LEN: usize = 500_000;
    let world = World::new();
    let mut app = world.app();
    let number = app.socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    let listen = |app: &Servant, number: i32, address: &[u8]| {
        let own = app.borrow(number);
        set_option(own.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
        sys::sockets::bind(own.as_fd(), address).expect("bind");
        rustix::net::listen(&own, 5).expect("listen");
    };
    listen(&app, number, &[&[2, 0, 0x1f, 0x90][..], &[0; 12]].concat());
    let mut client = client(format!("{V4}:8080").parse().expect("an address"));
    set_option(client.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 8192);
    assert_eq!(save(&app).strays.len(), 1, "it is not accepted yet");
    let accepted = accept(&mut app, number);
    set_option(app.borrow(accepted).as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 1 << 20);
    write(&mut app, accepted, &pattern(LEN));
    app.close(accepted);
    let saved = save_in(&app, FIN_WAIT1);
    let (mut copy, counts) = world.take_over(app, &saved);
    drained(1, counts);
    let bound = sys::sockets::local_address(copy.borrow(number).as_fd()).expect("an address");
    copy.close(number);
    let again = copy.socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    listen(&copy, again, &bound);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).expect("everything up to the end");
    assert!(rest == pattern(LEN), "{} bytes", rest.len());
}

/// What is sent is then a page of the file's.
#[test]
fn a_file_that_was_sent_arrives() {
    const LEN: usize = 150_000;
    let Connected { world, mut app, number, mut client, .. } = Connected::talking(V4);
    let bytes = pattern(LEN);
    let own = app.borrow(number);
    set_option(own.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 1 << 20);
    world.mute_primary();
    let file = rustix::fs::memfd_create("sent", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
    let mut file = File::from(file);
    file.write_all(&bytes).expect("write");
    let mut from = 0;
    while from < LEN as u64 {
        let left = LEN - from as usize;
        rustix::fs::sendfile(&own, &file, Some(&mut from), left).expect("sendfile");
    }
    drop(own);
    app.close(number);
    let saved = save_in(&app, FIN_WAIT1);
    assert_eq!(finish(&world, app, &saved, &mut client), bytes);
}

/// The network does not stand still while the kernel is read: what is read is right, or nothing.
#[test]
fn what_is_read_while_the_client_reads_is_the_rest_of_the_stream() {
    const LEN: usize = 6_000_000;
    let Connected { world: _world, app: mut servant, number, mut client, .. } = Connected::talking(V4);
    let app = &mut servant;
    set_option(app.borrow(number).as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 16 << 20);
    let bytes = pattern(LEN);
    let began = Instant::now();
    // However slow the captures are: the client reads on from one to the next, and not to its end in between.
    let allowed = Arc::new(AtomicUsize::new(0));
    let limit = Arc::clone(&allowed);
    let reader = std::thread::spawn(move || {
        let (mut got, mut piece) = (Vec::<u8>::new(), vec![0_u8; 30_000]);
        loop {
            match client.read(&mut piece).expect("read") {
                0 => return got,
                len => got.extend(&piece[..len]),
            }
            let read = Instant::now();
            while read.elapsed() < Duration::from_millis(1) || got.len() > limit.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
        }
    });
    write(app, number, &bytes);
    app.close(number);
    let mut cache = cache();
    let (mut read, mut missed, mut shortest) = (0, 0, LEN);
    while !reader.is_finished() && began.elapsed() < DEADLINE {
        allowed.fetch_add(LEN / 40, Ordering::Relaxed);
        let saved = circumstances().save(app, &mut cache).expect("everything can be saved");
        if saved.strays.is_empty() {
            continue;
        }
        match closed(&saved) {
            Some(tcp) => {
                read += 1;
                let rest = &bytes[LEN - tcp.unacknowledged.len()..];
                assert!(tcp.unacknowledged == rest, "{} bytes", rest.len());
                assert!(rest.len() <= shortest, "what was acknowledged is back");
                shortest = rest.len();
            }
            None => missed += 1,
        }
    }
    allowed.store(LEN, Ordering::Relaxed);
    assert!(reader.join().expect("the client") == bytes);
    assert!(shortest < LEN / 2, "it is what it was: {shortest} bytes");
    println!("read {read} times, missed {missed} times");
    assert!(read > 10 * missed && read > 20, "read {read} times, missed {missed} times");
}

#[test]
fn hundreds_of_closed_connections_are_answered() {
    const COUNT: usize = 300;
    let world = World::new();
    let mut app = world.app();
    let (port, address) = listener(&mut app, V4);
    let mut connections: Vec<(i32, TcpStream)> = Vec::with_capacity(COUNT);
    for _ in 0..COUNT {
        let client = client(address);
        connections.push((accept(&mut app, port), client));
    }
    let mut cache = cache();
    let mut save = |app: &Servant| {
        let saving = Instant::now();
        let saved = circumstances().save(app, &mut cache).expect("everything can be saved");
        (saved, saving.elapsed())
    };
    let (_, open) = save(&app);
    world.mute_primary();
    for (n, (number, _)) in connections.iter().enumerate() {
        app.write_to(*number, format!("answer {n}").as_bytes());
        app.close(*number);
    }
    let (saved, closed) = save(&app);
    let (_, again) = save(&app);
    println!("saved in {open:?}, closed in {closed:?}, again in {again:?}");
    assert!(saved.strays.iter().all(|stray| stray.tcp.is_some()));
    let (_copy, counts) = world.take_over(app, &saved);
    drained(COUNT as u32, counts);
    for (n, (_, client)) in connections.iter_mut().enumerate() {
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).expect("everything up to the end");
        assert_eq!(rest, format!("answer {n}").into_bytes());
    }
}
