//! Bytes on their way: every one arrives, once, in order.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use image::descriptor::FileKind;
use rustix::net::{AddressFamily, SendFlags, SocketType};

use crate::stage::{DEADLINE, Servant, set_option};
use crate::world::{Connected, V4, V6, World, accept, client, eventually, listener, run, save};

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

/// How many bytes it sends before it waits for an acknowledgement, as far as it decides that itself.
fn sends_at_once(app: &Servant, number: i32) -> usize {
    /// In `struct tcp_info`.
    const SEND_SEGMENT: usize = 16;
    const CONGESTION_WINDOW: usize = 80;
    let mut info = [0; 104];
    let socket = app.borrow(number);
    sys::sockets::get_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)
        .expect("its state");
    let number = |at: usize| u32::from_ne_bytes(info[at..at + 4].try_into().expect("four bytes")) as usize;
    number(SEND_SEGMENT) * number(CONGESTION_WINDOW)
}

impl Scene {
    /// A connection that has seen such traffic: both windows are so wide that all of it goes at once.
    fn new(ip: &str) -> Self {
        Self::on(World::new(), ip)
    }

    fn on(world: World, ip: &str) -> Self {
        let Connected { world, mut app, number, mut client, .. } = Connected::on(world, ip);
        // Others take a busy machine for a narrow path.
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_CONGESTION);
        sys::sockets::set_option(app.borrow(number).as_fd(), level, name, b"reno").expect("an option");
        set_option(app.borrow(number).as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 2 << 20);
        let mut round = || {
            write(&mut app, number, &pattern(0, LEN));
            read(&mut client, LEN);
            sends_at_once(&app, number)
        };
        (0..30).for_each(|_| _ = round());
        // What a busy machine was too late with was taken for lost.
        eventually("a wide path", || round() >= LEN);
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
        assert!(began.elapsed() < Duration::from_millis(950), "{:?}", began.elapsed());
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

/// Such a peer cannot show that it has heard the question.
#[test]
fn a_peer_without_selective_acknowledgements_is_understood() {
    const SOME: usize = 10_000;
    for deaf in [true, false] {
        let world = World::new();
        std::fs::write("/proc/sys/net/ipv4/tcp_sack", "0").expect("a setting");
        let mut scene = Scene::on(world, V4);
        if deaf {
            scene.world.deafen_primary();
        } else {
            scene.world.mute_primary();
        }
        write(&mut scene.app, scene.number, &pattern(0, LEN));
        // Without acknowledgements the rest waits for them.
        let had = if deaf { read(&mut scene.client, SOME).len() } else { 0 };
        scene.finish(had);
    }
}

/// Says in the client's name, again and again, that it has everything before `acknowledged`: as a segment that
/// was on its way for long.
struct Strays {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Strays {
    fn begin(client: &TcpStream, sequence: u32, acknowledged: u32) -> Self {
        let (from, to) = (client.local_addr().expect("an address"), client.peer_addr().expect("an address"));
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else { panic!("IPv4") };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let header = NonZeroU32::new(libc::IPPROTO_RAW as u32).map(rustix::net::Protocol::from_raw);
        let raw = rustix::net::socket(AddressFamily::INET, SocketType::RAW, header).expect("a raw socket");
        // Without checksums: no kernel is to believe it.
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
        packet.extend([source.octets(), destination.octets()].concat());
        packet.extend([from.port().to_be_bytes(), to.port().to_be_bytes()].concat());
        packet.extend([sequence.to_be_bytes(), acknowledged.to_be_bytes()].concat());
        packet.extend([0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        /// The answer itself must find room.
        const PACE: Duration = Duration::from_micros(100);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // The link comes and goes.
                let _ = rustix::net::sendto(&raw, &packet, SendFlags::empty(), &SocketAddr::new(to.ip(), 0));
                let sent = Instant::now();
                while sent.elapsed() < PACE {
                    std::thread::yield_now();
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Strays {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A takeover that believes the first segment that comes in sends a queue again that the client has, of which it
/// is never freed.
#[test]
fn segments_from_before_the_question_are_not_taken_for_the_answer() {
    for before in [0, 1000] {
        let mut scene = Scene::new(V4);
        scene.world.deafen_primary();
        write(&mut scene.app, scene.number, &pattern(0, LEN));
        assert_eq!(read(&mut scene.client, LEN), pattern(0, LEN));
        let saved = save(&scene.app);
        let states = saved.files.iter().filter_map(|file| match &file.kind {
            FileKind::Connection(socket) => socket.tcp.as_deref(),
            _ => None,
        });
        let tcp = states.into_iter().next().expect("a connection");
        let first = tcp.write_sequence.wrapping_sub(tcp.unacknowledged.len() as u32);
        let strays = Strays::begin(&scene.client, tcp.read_sequence, first.wrapping_sub(before));
        scene.finish(LEN);
        drop(strays);
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

/// Its end is given to the copy's socket behind a queue that waits for room.
#[test]
fn a_client_that_ended_and_does_not_read_gets_everything_later() {
    for ip in [V4, V6] {
        let Connected { world, mut app, number, mut client, .. } = Connected::talking(ip);
        set_option(client.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 4096);
        set_option(app.borrow(number).as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 1 << 20);
        client.shutdown(std::net::Shutdown::Write).expect("shutdown");
        assert_eq!(app.read_from(number, 1), Ok(Vec::new()));
        write(&mut app, number, &pattern(0, LEN));
        world.until_quiet(app.borrow(number).as_fd());
        let saved = save(&app);
        let (mut copy, counts) = world.take_over(app, &saved);
        assert_eq!((counts.kept, counts.unanswered, counts.reset), (1, 0, 0));
        assert_eq!(read(&mut client, LEN), pattern(0, LEN));
        copy.write_to(number, b"again");
        assert_eq!(read(&mut client, 5), b"again");
    }
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
