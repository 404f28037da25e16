//! What a client notices of a takeover: nothing.

use std::io::{Read, Write};

use crate::stage::Servant;
use crate::world::{V4, V6, World, accept, client, listener, save};

fn talk(app: &mut Servant, number: i32, client: &mut std::net::TcpStream, word: &[u8]) {
    client.write_all(word).expect("write");
    assert_eq!(app.read_from(number, 64), Ok(word.to_vec()));
    app.write_to(number, word);
    let mut back = vec![0; word.len()];
    client.read_exact(&mut back).expect("read");
    assert_eq!(back, word);
}

#[test]
fn an_established_connection_goes_on_both_ways() {
    for ip in [V4, V6] {
        let world = World::new();
        let mut app = world.app();
        let (port, address) = listener(&mut app, ip);
        let mut client = client(address);
        let number = accept(&mut app, port);
        talk(&mut app, number, &mut client, b"before");
        let saved = save(&app);
        let (mut copy, counts) = world.take_over(app, &saved);
        assert_eq!((counts.kept, counts.unanswered, counts.reset), (1, 0, 0), "{ip}");
        talk(&mut copy, number, &mut client, b"after");
    }
}
