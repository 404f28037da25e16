//! Connections that no descriptor leads to and that do not go on: their clients are told, and never wait.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;

use checkpoint::descriptors::{ConnectionCounts, Saved};
use image::descriptor::StrayKind;

use crate::stage::{Servant, cache};
use crate::world::{
    Connected, V4, V6, World, accept, circumstances, client, is_reset_soon, listener, save, talk,
};

fn kinds(saved: &Saved) -> Vec<StrayKind> {
    saved.strays.iter().map(|stray| stray.kind).collect()
}

fn endings(counts: ConnectionCounts) -> (u32, u32, u32) {
    (counts.unaccepted, counts.closed, counts.kept + counts.unanswered + counts.reset + counts.drained)
}

/// As where the kernel cannot be read.
#[test]
fn clients_that_were_not_accepted_and_could_not_be_read_are_reset() {
    for ip in [V4, V6] {
        let world = World::new();
        let mut app = world.app();
        let (port, address) = listener(&mut app, ip);
        let (mut silent, mut asking, mut ended) = (client(address), client(address), client(address));
        asking.write_all(b"question").expect("write");
        ended.shutdown(std::net::Shutdown::Write).expect("shutdown");
        world.until_quiet(asking.as_fd());
        let mut saved = save(&app);
        assert_eq!(kinds(&saved), [StrayKind::Unaccepted; 3]);
        saved.strays.iter_mut().for_each(|stray| stray.tcp = None);
        let (mut copy, counts) = world.take_over(app, &saved);
        assert_eq!(endings(counts), (3, 0, 0));
        is_reset_soon(&mut silent);
        is_reset_soon(&mut asking);
        is_reset_soon(&mut ended);
        let mut next = client(address);
        let number = accept(&mut copy, port);
        talk(&mut copy, number, &mut next, b"after");
    }
}

/// As where the kernel cannot be read. Never an end that looks like a whole answer.
#[test]
fn an_answer_that_was_closed_and_could_not_be_read_ends_in_a_reset() {
    for (ip, heard) in [(V4, &b""[..]), (V6, b""), (V4, b"half ")] {
        let Connected { world, mut app, number, mut client, .. } = Connected::talking(ip);
        if !heard.is_empty() {
            app.write_to(number, heard);
            world.until_quiet(client.as_fd());
        }
        world.mute_primary();
        app.write_to(number, b"an answer");
        app.close(number);
        let mut saved = save(&app);
        assert_eq!(kinds(&saved), [StrayKind::Closed]);
        saved.strays[0].tcp = None;
        let (_copy, counts) = world.take_over(app, &saved);
        assert_eq!(endings(counts), (0, 1, 0));
        let mut got = vec![0; heard.len()];
        client.read_exact(&mut got).expect("what was heard");
        assert_eq!(got, heard);
        is_reset_soon(&mut client);
    }
}

#[test]
fn an_answer_that_was_closed_and_heard_is_nobodys_loss() {
    let Connected { world, mut app, number, mut client, .. } = Connected::talking(V4);
    app.write_to(number, b"an answer");
    app.close(number);
    let mut got = Vec::new();
    client.read_to_end(&mut got).expect("all of it");
    assert_eq!(got, b"an answer");
    world.until_quiet(client.as_fd());
    let saved = save(&app);
    assert_eq!(kinds(&saved), []);
    let (_copy, counts) = world.take_over(app, &saved);
    assert_eq!(endings(counts), (0, 0, 0));
}

/// The app throws a connection away: the kernel sends a RST once, and forgets.
#[test]
fn a_reset_of_the_apps_that_nobody_heard_is_repeated() {
    let Connected { world, mut app, number, mut client, .. } = Connected::talking(V4);
    let mut cache = cache();
    let mut save = |app: &Servant| circumstances().save(app, &mut cache).expect("everything can be saved");
    assert_eq!(kinds(&save(&app)), []);
    world.mute_primary();
    let linger = [1, 0, 0, 0, 0, 0, 0, 0];
    let own = app.borrow(number);
    sys::sockets::set_option(own.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger).expect("linger");
    drop(own);
    app.close(number);
    assert_eq!(kinds(&save(&app)), [StrayKind::Gone]);
    let saved = save(&app);
    assert_eq!(kinds(&saved), [StrayKind::Gone], "until it was released");
    let (_copy, counts) = world.take_over(app, &saved);
    assert_eq!(endings(counts), (0, 0, 0));
    is_reset_soon(&mut client);
    assert_eq!(client.read(&mut [0]).map_err(|why| why.kind()), Ok::<_, ErrorKind>(0));
}
