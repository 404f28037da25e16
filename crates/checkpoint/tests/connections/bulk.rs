//! A connection that is read in the middle of a fast transfer.

use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::stage::{cache, set_option};
use crate::world::{V4, World, accept, circumstances, client, listener};

const PIECE: usize = 100_000;
const PIECES: usize = 500;

#[derive(Debug)]
#[allow(dead_code, reason = "printed")]
struct Transfer {
    whole: Duration,
    /// That the client had to wait for more.
    longest: Duration,
    /// How many readings found something unsent.
    unsent: usize,
}

fn transfer(saves: bool) -> Transfer {
    let world = World::new();
    let mut app = world.app();
    let (port, address) = listener(&mut app, V4);
    let mut client = client(address);
    set_option(client.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 200_000);
    let number = accept(&mut app, port);
    set_option(app.borrow(number).as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 1 << 20);
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 30_000];
        let (mut got, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
        while got < PIECE * PIECES {
            got += client.read(&mut buffer).expect("read");
            longest = longest.max(last.elapsed());
            let until = Instant::now() + Duration::from_micros(300);
            while Instant::now() < until {}
            last = Instant::now();
        }
        longest
    });
    let mut cache = cache();
    let began = Instant::now();
    let mut unsent = 0;
    for n in 0..PIECES {
        app.write_to(number, &[n as u8; PIECE]);
        if saves {
            let saved = circumstances().save(&app, &mut cache).expect("a save");
            for file in &saved.files {
                if let image::descriptor::FileKind::Connection(socket) = &file.kind {
                    unsent += usize::from(socket.tcp.as_ref().is_some_and(|tcp| tcp.unsent > 0));
                }
            }
        }
    }
    let longest = reader.join().expect("the reader");
    Transfer { whole: began.elapsed(), longest, unsent }
}

/// While its send queue is read, the kernel takes what is unsent for sent, and the peer waits for a time-out.
/// How often that still happens is printed; it depends on the machine too much to be asserted.
#[test]
fn a_transfer_arrives_whole_while_its_queue_is_read() {
    let alone = transfer(false);
    let read = transfer(true);
    println!("alone {alone:?}, read {read:?}");
    assert!(read.unsent > PIECES / 10, "{read:?}");
}
