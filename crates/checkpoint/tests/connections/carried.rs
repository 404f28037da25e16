//! What a client notices of a takeover: nothing.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use libc::{IPPROTO_TCP, SOL_SOCKET};

use crate::stage::{option, set_option};
use crate::world::{
    Connected, V4, V6, World, accept, circumstances, client, eventually, listener, save, talk,
};

#[test]
fn an_established_connection_goes_on_both_ways() {
    for ip in [V4, V6] {
        let Connected { world, app, number, mut client, .. } = Connected::talking(ip);
        let saved = save(&app);
        let (mut copy, counts) = world.take_over(app, &saved);
        assert_eq!((counts.kept, counts.unanswered, counts.reset), (1, 0, 0), "{ip}");
        talk(&mut copy, number, &mut client, b"after");
    }
}

/// Without the listener's and the connection's `SO_REUSEADDR` given back, the second `bind` fails.
#[test]
fn a_listener_can_be_made_again_beside_connections_that_were_read() {
    let Connected { world, mut app, port, number, client, .. } = Connected::new(V4);
    set_option(app.borrow(number).as_fd(), SOL_SOCKET, libc::SO_REUSEADDR, 1);
    let saved = save(&app);
    let again = |app: &mut crate::stage::Servant| {
        let bound = sys::sockets::local_address(app.borrow(port).as_fd()).expect("an address");
        app.close(port);
        let number = app.socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        let own = app.borrow(number);
        set_option(own.as_fd(), SOL_SOCKET, libc::SO_REUSEADDR, 1);
        sys::sockets::bind(own.as_fd(), &bound).expect("bind again");
        rustix::net::listen(&own, 5).expect("listen again");
    };
    again(&mut app);
    let (mut copy, _) = world.take_over(app, &saved);
    again(&mut copy);
    drop(client);
}

const SO_BUF_LOCK: i32 = 72;

#[test]
fn options_of_a_connection_are_carried() {
    let options = [
        (IPPROTO_TCP, libc::TCP_NODELAY, 1),
        (IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 4321),
        (IPPROTO_TCP, libc::TCP_KEEPIDLE, 77),
        (IPPROTO_TCP, libc::TCP_CORK, 1),
        (SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (SOL_SOCKET, libc::SO_RCVLOWAT, 2),
        (SOL_SOCKET, libc::SO_RCVBUF, 60_000),
    ];
    let Connected { world, app, number, client: _client, .. } = Connected::new(V4);
    let own = app.borrow(number);
    for (level, name, value) in options {
        set_option(own.as_fd(), level, name, value);
    }
    let read = |socket: &std::os::fd::OwnedFd| {
        let buffers = [libc::SO_SNDBUF, libc::SO_RCVBUF, SO_BUF_LOCK];
        let buffers = buffers.map(|name| option(socket.as_fd(), SOL_SOCKET, name));
        (options.map(|(level, name, _)| option(socket.as_fd(), level, name)), buffers)
    };
    let before = read(&own);
    drop(own);
    let saved = save(&app);
    let (copy, _) = world.take_over(app, &saved);
    let own = copy.borrow(number);
    assert_eq!(read(&own), before);
}

/// How many went out and came in.
fn segments(socket: BorrowedFd<'_>) -> Vec<u8> {
    let mut info = [0; 144];
    sys::sockets::get_option(socket, IPPROTO_TCP, libc::TCP_INFO, &mut info).expect("TCP_INFO");
    info[136..144].to_vec()
}

/// With the timestamp restored as it was, the peer drops all segments until it has caught up.
#[test]
fn a_peer_that_has_seen_later_timestamps_goes_on_at_once() {
    const LATER: Duration = Duration::from_millis(1500);
    let Connected { world, app, number, mut client, .. } = Connected::talking(V4);
    let saved = save(&app);
    let later = Instant::now() + LATER;
    eventually("later", || Instant::now() > later);
    // The client's own window probe is answered by an acknowledgement with a stamp, which moves nothing else.
    let before = segments(client.as_fd());
    set_option(client.as_fd(), IPPROTO_TCP, libc::TCP_REPAIR, 1);
    set_option(client.as_fd(), IPPROTO_TCP, libc::TCP_REPAIR, 0);
    eventually("an acknowledgement", || segments(client.as_fd())[4..] != before[4..]);
    world.cut_off_primary();
    drop(app);
    let mut circumstances = circumstances();
    circumstances.elapsed = LATER;
    let mut network = world.network();
    let rebuilt = world.at(&world.standby, || circumstances.rebuild_with(&saved, Some(&mut network)));
    let (mut copy, counts) = rebuilt.expect("rebuild");
    assert_eq!(counts.kept, 1);
    let began = Instant::now();
    talk(&mut copy, number, &mut client, b"after");
    assert!(began.elapsed() < LATER / 2, "{:?}", began.elapsed());
}

#[test]
fn a_thousand_connections_go_on() {
    const COUNT: usize = 1000;
    let world = World::new();
    let mut app = world.app();
    let room = rustix::process::Rlimit { current: Some(8192), maximum: Some(8192) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, room).expect("room for descriptors");
    let pid = rustix::process::Pid::from_raw(app.pid);
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, room).expect("room for descriptors");
    let (port, address) = listener(&mut app, V4);
    let mut connections = Vec::with_capacity(COUNT);
    for n in 0..COUNT {
        let mut client = client(address);
        let number = accept(&mut app, port);
        talk(&mut app, number, &mut client, format!("before {n}").as_bytes());
        connections.push((number, client));
    }
    let mut cache = crate::stage::cache();
    let saving = Instant::now();
    let saved = circumstances().save(&app, &mut cache).expect("all are saved");
    let first = saving.elapsed();
    let again = [(); 5].map(|()| {
        let saving = Instant::now();
        assert_eq!(circumstances().save(&app, &mut cache).expect("all are saved"), saved);
        saving.elapsed()
    });
    for (number, client) in &mut connections {
        talk(&mut app, *number, client, b"and more");
    }
    let saving = Instant::now();
    let saved = circumstances().save(&app, &mut cache).expect("all are saved");
    let changed = saving.elapsed();
    let restoring = Instant::now();
    let (mut copy, counts) = world.take_over(app, &saved);
    println!("all changed: {changed:?}");
    println!("saved in {first:?}, again in {again:?}, all back in {:?}: {counts:?}", restoring.elapsed());
    assert_eq!((counts.kept, counts.unanswered, counts.reset), (COUNT as u32, 0, 0));
    for (n, (number, client)) in connections.iter_mut().enumerate() {
        talk(&mut copy, *number, client, format!("after {n}").as_bytes());
    }
}

#[test]
fn a_thousand_readings_leave_the_app_and_the_wire_alone() {
    let Connected { world, mut app, number, mut client, .. } = Connected::talking(V4);
    let own = app.borrow(number);
    set_option(own.as_fd(), SOL_SOCKET, libc::SO_REUSEADDR, 1);
    std::io::Write::write_all(&mut client, b"unread").expect("write");
    world.until_quiet(own.as_fd());
    let before = segments(own.as_fd());
    let mut cache = crate::stage::cache();
    let began = Instant::now();
    for _ in 0..1000 {
        circumstances().save(&app, &mut cache).expect("a save");
    }
    println!("{:?} each", began.elapsed() / 1000);
    assert_eq!(segments(own.as_fd()), before, "segments out and in");
    assert_eq!(option(own.as_fd(), SOL_SOCKET, libc::SO_REUSEADDR), 1);
    drop(own);
    assert_eq!(app.read_from(number, 64), Ok(b"unread".to_vec()));
    talk(&mut app, number, &mut client, b"after");
}
