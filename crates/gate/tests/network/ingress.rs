//! What comes in is recorded whole, and can come in again.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use gate::{CellNetwork, Claim, Recorded, Recorder, replay};
use image::CheckpointId;
use testkit::needs;
use testkit::wait::wait_until;

use crate::world::{
    CLIENT, CLIENT_V6, PATIENCE, SERVICE, SERVICE_V6, World, connect, datagrams, inside, is_readable, listen,
    pattern,
};

fn record(cell: &CellNetwork, bytes_max: usize) -> (Recorder, Receiver<Vec<Recorded>>) {
    let (tell, told) = channel();
    // The test may be over when the last packet comes.
    let on_packets = Box::new(move |packets| drop(tell.send(packets)));
    (Recorder::start(cell, bytes_max, on_packets).unwrap(), told)
}

/// Takes packets until `enough`.
fn take(told: &Receiver<Vec<Recorded>>, mut enough: impl FnMut(&[Recorded]) -> bool) -> Vec<Recorded> {
    let mut all = Vec::new();
    while !enough(&all) {
        all.extend(told.recv_timeout(PATIENCE).expect("packets are recorded in time"));
    }
    all
}

fn packets(recorded: &[Recorded]) -> Vec<&[u8]> {
    recorded.iter().map(|recorded| &recorded.packet[..]).collect()
}

#[test]
fn datagrams_that_a_shut_cell_dropped_come_in_again() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    for (cell, service, client) in [(world.cell(), SERVICE, CLIENT), (world.cell_v6(), SERVICE_V6, CLIENT_V6)]
    {
        cell.let_out();
        cell.raise(Claim::Takeover).unwrap();
        cell.shut_in();
        let (recorder, told) = record(&cell, 1 << 20);
        let app = inside(cell.namespace(), || UdpSocket::bind((service, 0)).unwrap());
        app.set_read_timeout(Some(PATIENCE)).unwrap();
        let client = datagrams(&world.client, client, app.local_addr().unwrap());
        let (old, new) = (CheckpointId::new(1, 4), CheckpointId::new(1, 5));
        recorder.mark(old);
        client.send(b"first").unwrap();
        let first = take(&told, |all| udp(all).count() == 1);
        recorder.mark(new);
        client.send(b"second").unwrap();
        let second = take(&told, |all| udp(all).count() == 1);
        assert_eq!(udp(&first).next().unwrap().since, Some(old));
        assert_eq!(udp(&second).next().unwrap().since, Some(new));
        let all: Vec<Recorded> = udp(&first).chain(udp(&second)).cloned().collect();
        let replayed = replay(cell.namespace(), &packets(&all)).unwrap();
        assert_eq!((replayed.delivered, replayed.refused), (2, 0));
        for expected in ["first", "second"] {
            let mut heard = [0; 16];
            let (len, from) = app.recv_from(&mut heard).expect("the kernel took the packet");
            assert_eq!(&heard[..len], expected.as_bytes());
            assert_eq!(from, client.local_addr().unwrap());
        }
    }
}

fn udp(recorded: &[Recorded]) -> impl Iterator<Item = &Recorded> {
    let protocol = |packet: &[u8]| if packet[0] >> 4 == 4 { packet[9] } else { packet[6] };
    recorded.iter().filter(move |recorded| protocol(&recorded.packet) == 17)
}

/// A whole connection is spoken into a cell that hears none of it but what is replayed: every checksum, also of
/// segments of 64 KiB that no device has computed, has to be right.
#[test]
fn stream_that_was_recorded_is_accepted_from_the_replay() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    const BYTES: usize = 200_000;
    let world = World::new();
    for (cell, service) in [(world.cell(), SERVICE), (world.cell_v6(), SERVICE_V6)] {
        cell.let_out();
        cell.raise(Claim::Takeover).unwrap();
        let listener = listen(&cell, service);
        let mut client = connect(&world.client, listener.local_addr().unwrap()).unwrap();
        let mut app = listener.accept().unwrap().0;
        app.set_read_timeout(Some(PATIENCE)).unwrap();
        cell.shut_in();
        let (_recorder, told) = record(&cell, 8 << 20);
        let said: Vec<u8> = (0..BYTES).map(pattern).collect();
        let whole = said.clone();
        let talk = std::thread::spawn(move || {
            client.write_all(&whole).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            client
        });
        let mut heard: Vec<u8> = Vec::new();
        let mut block = vec![0; 64 << 10];
        let mut longest = 0;
        while heard.len() < BYTES {
            let some = told.recv_timeout(PATIENCE).expect("packets are recorded in time");
            longest = some.iter().map(|recorded| recorded.packet.len()).max().unwrap_or(0).max(longest);
            replay(cell.namespace(), &packets(&some)).unwrap();
            while is_readable(&app, Duration::ZERO) {
                let len = app.read(&mut block).unwrap();
                assert_ne!(len, 0, "the end came too early");
                heard.extend(&block[..len]);
                if heard.len() >= BYTES {
                    break;
                }
            }
        }
        talk.join().unwrap();
        assert!(heard == said, "what was replayed is not what was said");
        assert!(longest > 1500, "nothing long was replayed: {longest}");
    }
}

/// A packet that is replayed leaves its route in the socket that gets it. Such a route must not keep the cell's
/// device: whoever removed it would wait until the connection that the app has left behind dies, a minute later.
#[test]
fn connection_left_behind_does_not_keep_the_device() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    for (cell, service) in [(world.cell(), SERVICE), (world.cell_v6(), SERVICE_V6)] {
        cell.let_out();
        cell.raise(Claim::Takeover).unwrap();
        let listener = listen(&cell, service);
        let mut client = connect(&world.client, listener.local_addr().unwrap()).unwrap();
        let mut app = listener.accept().unwrap().0;
        let (_recorder, told) = record(&cell, 1 << 20);
        cell.shut_in();
        client.write_all(b"heard by replay only").unwrap();
        replay(cell.namespace(), &packets(&told.recv_timeout(PATIENCE).unwrap())).unwrap();
        app.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(app.read(&mut [0; 64]).unwrap(), 20);
        app.write_all(b"never acknowledged").unwrap();
        drop(app);
        let dropped = Instant::now();
        drop(cell);
        assert!(dropped.elapsed() < Duration::from_secs(5), "{:?}", dropped.elapsed());
    }
}

#[test]
fn oldest_packets_are_forgotten_when_nobody_takes_them() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    const BYTES_MAX: usize = 100_000;
    let world = World::new();
    let cell = world.cell();
    cell.let_out();
    cell.raise(Claim::Takeover).unwrap();
    let (go, gone) = channel::<()>();
    let (tell, told) = channel();
    let on_packets = Box::new(move |packets: Vec<Recorded>| {
        tell.send(packets).unwrap();
        // Whoever takes them is busy until the test says otherwise.
        let _ = gone.recv_timeout(PATIENCE);
    });
    let recorder = Recorder::start(&cell, BYTES_MAX, on_packets).unwrap();
    let client = datagrams(&world.client, CLIENT, SocketAddr::new(SERVICE, 9));
    // The neighbours get to know each other first; the port is closed, so the client is told so now and then.
    let say = |number: u32| {
        let mut block = [0; 1000];
        block[..4].copy_from_slice(&number.to_be_bytes());
        while client.send(&block).is_err() {}
    };
    say(0);
    let first = told.recv_timeout(PATIENCE).unwrap().len();
    (1..=500).for_each(say);
    wait_until("all are recorded", PATIENCE, || recorder.counters().recorded >= 501);
    go.send(()).unwrap();
    let kept = told.recv_timeout(PATIENCE).unwrap();
    let numbers: Vec<u32> =
        udp(&kept).map(|one| u32::from_be_bytes(one.packet[28..32].try_into().unwrap())).collect();
    assert!(kept.iter().map(|one| one.packet.len()).sum::<usize>() <= BYTES_MAX);
    assert_eq!(numbers.last(), Some(&500));
    assert!(numbers.is_sorted() && numbers.len() > 50, "{numbers:?}");
    let counters = recorder.counters();
    let known = counters.forgotten + (first + kept.len()) as u64;
    // What came after the last batch was taken is in none.
    assert!(counters.forgotten > 300 && counters.recorded >= known && counters.recorded < known + 20);
    drop(go);
}

#[test]
fn nonsense_is_refused_and_counted() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    let cell = world.cell();
    cell.raise(Claim::Takeover).unwrap();
    let nonsense: [&[u8]; 5] = [&[], &[0x45], &[0x45; 20], &[0x60; 40], &[0; 100]];
    let replayed = replay(cell.namespace(), &nonsense).unwrap();
    assert_eq!(replayed.delivered + replayed.refused, 5);
    assert!(replayed.refused >= 3);
}
