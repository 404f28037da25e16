//! Bytes on their way: every one arrives, once, in order.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use image::descriptor::FileKind;

use crate::stage::{DEADLINE, Servant, set_option};
use crate::world::{V4, V6, World, accept, client, listener, run, save};

const LEN: usize = 300_000;

struct Scene {
    world: World,
    app: Servant,
    number: i32,
    client: TcpStream,
}

fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|n| (n % 251) as u8).collect()
}

/// Writes all of it, in pieces that a servant can hold.
fn write(app: &mut Servant, number: i32, bytes: &[u8]) {
    bytes.chunks(50_000).for_each(|piece| app.write_to(number, piece));
}

fn read(client: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    client.read_exact(&mut bytes).expect("all of it");
    bytes
}

impl Scene {
    /// A connection that has seen such traffic: both windows are so wide that all of it goes at once.
    fn new(ip: &str) -> Self {
        let world = World::new();
        let mut app = world.app();
        let (port, address) = listener(&mut app, ip);
        let mut client = client(address);
        let number = accept(&mut app, port);
        set_option(app.borrow(number).as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 2 << 20);
        for _ in 0..30 {
            write(&mut app, number, &pattern(0, LEN));
            read(&mut client, LEN);
        }
        Self { world, app, number, client }
    }

    /// The whole queue of [`LEN`] bytes is in the kernel; takes over, and reads what the client lacks.
    fn finish(self, had: usize) {
        let saved = save(&self.app);
        let kept = saved.files.iter().any(|file| match &file.kind {
            FileKind::Connection(socket) => {
                socket.tcp.as_ref().is_some_and(|tcp| tcp.unacknowledged.len() >= LEN / 2)
            }
            _ => false,
        });
        assert!(kept, "the queue is in the image");
        let (mut copy, counts) = self.world.take_over(self.app, &saved);
        assert_eq!((counts.kept, counts.unanswered, counts.reset), (1, 0, 0));
        let mut client = self.client;
        let began = Instant::now();
        assert_eq!(read(&mut client, LEN - had), pattern(had, LEN - had));
        copy.write_to(self.number, b"again");
        assert_eq!(read(&mut client, 5), b"again");
        client.write_all(b"and back").expect("write");
        assert_eq!(copy.read_from(self.number, 64), Ok(b"and back".to_vec()));
        // A retransmission timer of a second or more would have been waited for otherwise.
        assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    }
}

#[test]
fn a_queue_of_which_the_client_has_nothing_arrives_whole() {
    for ip in [V4, V6] {
        let mut scene = Scene::new(ip);
        scene.world.mute_primary();
        write(&mut scene.app, scene.number, &pattern(0, LEN));
        scene.finish(0);
    }
}

#[test]
fn a_queue_that_the_client_has_whole_is_not_sent_again() {
    for ip in [V4, V6] {
        let mut scene = Scene::new(ip);
        scene.world.deafen_primary();
        write(&mut scene.app, scene.number, &pattern(0, LEN));
        assert_eq!(read(&mut scene.client, LEN), pattern(0, LEN));
        scene.finish(LEN);
    }
}

#[test]
fn the_half_that_the_client_lacks_arrives() {
    for ip in [V4, V6] {
        let mut scene = Scene::new(ip);
        scene.world.deafen_primary();
        write(&mut scene.app, scene.number, &pattern(0, LEN / 2));
        assert_eq!(read(&mut scene.client, LEN / 2), pattern(0, LEN / 2));
        scene.world.mute_primary();
        write(&mut scene.app, scene.number, &pattern(LEN / 2, LEN / 2));
        scene.finish(LEN / 2);
    }
}

#[test]
fn a_client_that_does_not_read_gets_everything_later() {
    let world = World::new();
    let mut app = world.app();
    let (port, address) = listener(&mut app, V4);
    let mut client = client(address);
    set_option(client.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 4096);
    let number = accept(&mut app, port);
    set_option(app.borrow(number).as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, 400_000);
    write(&mut app, number, &pattern(0, LEN));
    world.until_quiet(app.borrow(number).as_fd());
    let saved = save(&app);
    let (copy, counts) = world.take_over(app, &saved);
    assert_eq!((counts.kept, counts.unanswered, counts.reset), (1, 0, 0));
    assert_eq!(read(&mut client, LEN), pattern(0, LEN));
    drop(copy);
}

#[test]
fn what_the_app_has_not_read_is_read_by_the_copy() {
    for ip in [V4, V6] {
        let mut scene = Scene::new(ip);
        scene.client.write_all(&pattern(0, LEN / 2)).expect("write");
        let own = scene.app.borrow(scene.number);
        scene.world.until_quiet(own.as_fd());
        drop(own);
        // Of the rest the client hears no acknowledgement: it sends it again.
        scene.world.mute_primary();
        scene.client.write_all(&pattern(LEN / 2, 1000)).expect("write");
        let saved = save(&scene.app);
        let (mut copy, counts) = scene.world.take_over(scene.app, &saved);
        assert_eq!((counts.kept, counts.unanswered, counts.reset), (1, 0, 0));
        let mut got = Vec::new();
        let began = Instant::now();
        while got.len() < LEN / 2 + 1000 && began.elapsed() < DEADLINE {
            got.extend(copy.read_from(scene.number, 50_000).expect("read"));
        }
        assert_eq!(got, pattern(0, LEN / 2 + 1000));
    }
}

/// Nobody answers while the copy asks: the link is down for that long. The queue is then restored as it was
/// captured, and what the client lacks of it comes with the kernel's timer.
#[test]
fn a_client_that_could_not_be_asked_gets_everything_late() {
    #[derive(Clone, Copy, Debug)]
    enum Has {
        Nothing,
        Everything,
    }
    for has in [Has::Nothing, Has::Everything] {
        let mut scene = Scene::new(V4);
        match has {
            Has::Nothing => scene.world.mute_primary(),
            Has::Everything => scene.world.deafen_primary(),
        }
        write(&mut scene.app, scene.number, &pattern(0, LEN));
        let Scene { world, app, number, mut client } = scene;
        if let Has::Everything = has {
            assert_eq!(read(&mut client, LEN), pattern(0, LEN));
        }
        let saved = save(&app);
        run("ip link set standby down").expect("cut the link");
        let (mut copy, counts) = world.take_over(app, &saved);
        run("ip link set standby up").expect("the link");
        assert_eq!((counts.kept, counts.unanswered, counts.reset), (0, 1, 0), "{has:?}");
        if let Has::Nothing = has {
            assert_eq!(read(&mut client, LEN), pattern(0, LEN));
        }
        copy.write_to(number, b"again");
        assert_eq!(read(&mut client, 5), b"again");
        client.write_all(b"and back").expect("write");
        assert_eq!(copy.read_from(number, 64), Ok(b"and back".to_vec()));
    }
}
