//! Connections that are being ended, in each state that there is.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;

use image::descriptor::FileKind;

use crate::stage::{Servant, set_option};
use crate::world::{Connected, V4, V6, World, eventually, save};

const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

struct Scene {
    world: World,
    app: Servant,
    number: i32,
    client: TcpStream,
}

impl Scene {
    fn new(ip: &str) -> Self {
        let Connected { world, app, number, client, .. } = Connected::talking(ip);
        Self { world, app, number, client }
    }

    fn app_ends(&mut self) {
        self.app.call(libc::SYS_shutdown, &[self.number as u64, libc::SHUT_WR as u64]);
    }

    fn client_ends(&self) {
        self.client.shutdown(Shutdown::Write).expect("shutdown");
    }

    fn until(&self, state: u8) {
        let own = self.app.borrow(self.number);
        eventually("the state", || state_of(&own) == state);
    }

    /// The copy's app and what else must live on.
    fn carry(self, state: u8) -> (Servant, i32, TcpStream, World) {
        self.until(state);
        let saved = save(&self.app);
        let found = saved.files.iter().find_map(|file| match &file.kind {
            FileKind::Connection(socket) => socket.tcp.as_ref().map(|tcp| tcp.state),
            _ => None,
        });
        assert_eq!(found, Some(state));
        let (copy, counts) = self.world.take_over(self.app, &saved);
        assert_eq!((counts.kept, counts.unanswered, counts.reset), (1, 0, 0));
        (copy, self.number, self.client, self.world)
    }
}

fn state_of(socket: &std::os::fd::OwnedFd) -> u8 {
    let mut state = [0];
    sys::sockets::get_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, &mut state)
        .expect("TCP_INFO");
    state[0]
}

fn rest(client: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).expect("everything up to the end");
    rest
}

#[test]
fn after_the_clients_end_the_app_still_answers() {
    for ip in [V4, V6] {
        let scene = Scene::new(ip);
        scene.client_ends();
        let (mut copy, number, mut client, _world) = scene.carry(CLOSE_WAIT);
        assert_eq!(copy.read_from(number, 10), Ok(Vec::new()));
        copy.write_to(number, b"late answer");
        copy.close(number);
        assert_eq!(rest(&mut client), b"late answer");
    }
}

#[test]
fn what_the_client_said_before_its_end_is_read_before_it() {
    let mut scene = Scene::new(V4);
    scene.client.write_all(b"last words").expect("write");
    scene.client_ends();
    let (mut copy, number, ..) = scene.carry(CLOSE_WAIT);
    assert_eq!(copy.read_from(number, 64), Ok(b"last words".to_vec()));
    assert_eq!(copy.read_from(number, 64), Ok(Vec::new()));
}

#[test]
fn an_end_that_the_client_knows_of_leaves_it_talking() {
    for ip in [V4, V6] {
        let mut scene = Scene::new(ip);
        scene.app_ends();
        let (mut copy, number, mut client, _world) = scene.carry(FIN_WAIT2);
        assert_eq!(rest(&mut client), b"");
        client.write_all(b"still here").expect("write");
        assert_eq!(copy.read_from(number, 64), Ok(b"still here".to_vec()));
        client.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(copy.read_from(number, 64), Ok(Vec::new()));
    }
}

#[test]
fn an_end_that_never_left_comes_after_all_that_was_written() {
    for ip in [V4, V6] {
        let mut scene = Scene::new(ip);
        scene.world.mute_primary();
        let own = scene.app.borrow(scene.number);
        set_option(own.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 1 << 20);
        drop(own);
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        scene.app.write_to(scene.number, &bytes);
        scene.app_ends();
        let (mut copy, number, mut client, _world) = scene.carry(FIN_WAIT1);
        assert_eq!(rest(&mut client), bytes);
        client.write_all(b"thanks").expect("write");
        assert_eq!(copy.read_from(number, 64), Ok(b"thanks".to_vec()));
    }
}

#[test]
fn ends_that_crossed_are_both_heard() {
    for ip in [V4, V6] {
        let mut scene = Scene::new(ip);
        scene.world.mute_primary();
        scene.app.write_to(scene.number, b"goodbye");
        scene.app_ends();
        scene.client_ends();
        let (mut copy, number, mut client, _world) = scene.carry(CLOSING);
        assert_eq!(rest(&mut client), b"goodbye");
        assert_eq!(copy.read_from(number, 64), Ok(Vec::new()));
    }
}

#[test]
fn the_last_end_is_heard() {
    for ip in [V4, V6] {
        let mut scene = Scene::new(ip);
        scene.client_ends();
        scene.until(CLOSE_WAIT);
        scene.world.mute_primary();
        scene.app.write_to(scene.number, b"goodbye");
        scene.app_ends();
        let (mut copy, number, mut client, _world) = scene.carry(LAST_ACK);
        assert_eq!(rest(&mut client), b"goodbye");
        assert_eq!(copy.read_from(number, 64), Ok(Vec::new()));
    }
}
