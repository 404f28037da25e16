//! Connections that cannot go on end at both ends, soon, and say so.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use checkpoint::descriptors::Connections;
use image::descriptor::FileKind;
use rustix::net::{RecvFlags, SendFlags};

use crate::stage::{Circumstances, cache};
use crate::world::{Connected, V4, V6, World, accept, client, is_reset_soon, listener, save, talk};

#[test]
fn a_peer_that_has_heard_more_than_was_captured_is_reset() {
    for ip in [V4, V6] {
        let Connected { world, mut app, number, mut client, .. } = Connected::talking(ip);
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
    let Connected { world, app, number, mut client, .. } = Connected::new(V4);
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
        let Connected { world, mut app, port, address, number, client: mut first } = Connected::talking(ip);
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

/// The image cannot be followed: a socket has no such lock.
#[test]
fn a_connection_that_fails_late_counts_once_and_is_reset() {
    let Connected { world, app, number, mut client, .. } = Connected::talking(V4);
    let mut saved = save(&app);
    for file in &mut saved.files {
        if let FileKind::Connection(socket) = &mut file.kind {
            socket.tcp.as_mut().expect("it is kept").buffers_locked = 99;
        }
    }
    let (mut copy, counts) = world.take_over(app, &saved);
    assert_eq!((counts.kept, counts.unanswered, counts.reset), (0, 0, 1));
    is_reset_soon(&mut client);
    assert_eq!(copy.read_from(number, 1), Err(libc::ECONNRESET));
}

/// Whether the app has read the urgent byte or not, what the kernel says of the queue ends where it was.
#[test]
fn a_connection_with_urgent_data_is_reset_and_the_others_go_on() {
    for app_reads_it in [false, true] {
        let world = World::new();
        let mut app = world.app();
        let (port, address) = listener(&mut app, V4);
        let (mut urgent, mut other) = (client(address), client(address));
        let (number, other_number) = (accept(&mut app, port), accept(&mut app, port));
        talk(&mut app, number, &mut urgent, b"before");
        talk(&mut app, other_number, &mut other, b"before");
        urgent.write_all(b"ab").expect("write");
        rustix::net::send(&urgent, b"!", SendFlags::OOB).expect("send");
        urgent.write_all(b"cd").expect("write");
        let own = app.borrow(number);
        world.until_quiet(own.as_fd());
        if app_reads_it {
            let (len, _) = rustix::net::recv(&own, &mut [0; 1][..], RecvFlags::OOB).expect("recv");
            assert_eq!(len, 1);
        }
        drop(own);
        let saved = save(&app);
        assert_eq!(app.read_from(number, 2), Ok(b"ab".to_vec()), "the app is not disturbed");
        let (mut copy, counts) = world.take_over(app, &saved);
        assert_eq!((counts.kept, counts.unanswered, counts.reset), (1, 0, 1), "read: {app_reads_it}");
        is_reset_soon(&mut urgent);
        assert_eq!(copy.read_from(number, 1), Err(libc::ECONNRESET));
        talk(&mut copy, other_number, &mut other, b"after");
    }
}
