//! Connections that cannot go on end at both ends, soon, and say so.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use checkpoint::descriptors::Connections;

use crate::stage::{Circumstances, cache};
use crate::world::{V4, V6, World, accept, client, listener, save, talk};

/// Far below any retransmission.
const SOON: Duration = Duration::from_millis(500);

fn is_reset_soon(client: &mut std::net::TcpStream) {
    let began = Instant::now();
    let why = client.read(&mut [0]).expect_err("a reset").kind();
    assert_eq!(why, ErrorKind::ConnectionReset);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[test]
fn a_peer_that_has_heard_more_than_was_captured_is_reset() {
    for ip in [V4, V6] {
        let world = World::new();
        let mut app = world.app();
        let (port, address) = listener(&mut app, ip);
        let mut client = client(address);
        let number = accept(&mut app, port);
        talk(&mut app, number, &mut client, b"before");
        let saved = save(&app);
        app.write_to(number, b"never captured");
        client.read_exact(&mut [0; 14]).expect("read");
        let (mut copy, counts) = world.take_over(app, &saved);
        assert_eq!((counts.kept, counts.unanswered, counts.reset), (0, 0, 1));
        is_reset_soon(&mut client);
        assert_eq!(copy.read_from(number, 1), Err(libc::ECONNRESET));
    }
}

#[test]
fn a_peer_that_is_gone_leaves_a_reset_behind_what_it_said() {
    let world = World::new();
    let mut app = world.app();
    let (port, address) = listener(&mut app, V4);
    let mut client = client(address);
    let number = accept(&mut app, port);
    client.write_all(b"last words").expect("write");
    world.until_quiet(app.borrow(number).as_fd());
    let saved = save(&app);
    world.cut_off_primary();
    sys::sockets::set_option(client.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 0, 0, 0, 0])
        .expect("linger");
    drop(client);
    let (mut copy, counts) = world.take_over(app, &saved);
    assert_eq!((counts.kept, counts.unanswered, counts.reset), (0, 0, 1));
    assert_eq!(copy.read_from(number, 64), Ok(b"last words".to_vec()));
    assert_eq!(copy.read_from(number, 64), Err(libc::ECONNRESET));
}

/// Timeline mode with an address of its own.
#[test]
fn connections_that_are_not_kept_are_reset_at_both_ends() {
    for ip in [V4, V6] {
        let world = World::new();
        let mut app = world.app();
        let (port, address) = listener(&mut app, ip);
        let mut first = client(address);
        let number = accept(&mut app, port);
        talk(&mut app, number, &mut first, b"before");
        let circumstances = Circumstances { connections: Connections::Reset, ..Circumstances::default() };
        let saved = circumstances.save(&app, &mut cache()).expect("a save");
        app.write_to(number, b"never captured");
        first.read_exact(&mut [0; 14]).expect("read");
        let (mut copy, counts) = world.take_over(app, &saved);
        assert_eq!((counts.kept, counts.unanswered, counts.reset), (0, 0, 1));
        is_reset_soon(&mut first);
        assert_eq!(copy.read_from(number, 1), Err(libc::ECONNRESET));
        let mut second = client(address);
        let number = accept(&mut copy, port);
        talk(&mut copy, number, &mut second, b"after");
    }
}
