//! What comes in is recorded whole, and can come in again.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use gate::{Batch, CellNetwork, Claim, Recorded, Recorder, replay};
use image::CheckpointId;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};
use testkit::needs;
use testkit::wait::wait_until;

use crate::world::{
    CLIENT, CLIENT_V6, PATIENCE, SERVICE, SERVICE_V6, World, connect, datagrams, inside, is_readable, listen,
    pattern,
};

fn record(cell: &CellNetwork, bytes_max: usize) -> (Recorder, Receiver<Batch>) {
    let (tell, told) = channel();
    // The test may be over when the last packet comes.
    let on_packets = Box::new(move |packets| drop(tell.send(packets)));
    (Recorder::start(cell, bytes_max, on_packets).unwrap(), told)
}

/// Takes packets until `enough`.
fn take(told: &Receiver<Batch>, mut enough: impl FnMut(&[Recorded]) -> bool) -> Vec<Recorded> {
    let mut all = Vec::new();
    while !enough(&all) {
        all.extend_from_slice(&told.recv_timeout(PATIENCE).expect("packets are recorded in time"));
    }
    all
}

fn packets(recorded: &[Recorded]) -> Vec<&[u8]> {
    recorded.iter().map(|recorded| &recorded.packet[..]).collect()
}

/// Says hand-made TCP segments of connections that nobody knows; their checksum is wrong, so that nobody answers.
struct Segments(OwnedFd);

impl Segments {
    fn new(world: &World) -> Self {
        let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
        let open = || socket_with(AddressFamily::INET, kind, flags, Some(ipproto::RAW)).unwrap();
        Self(inside(&world.client, open))
    }

    fn say(&self, number: u32) {
        const BYTES: u16 = 1000;
        let packet = segment(CLIENT, SERVICE, number, BYTES);
        sendto(&self.0, &packet, SendFlags::empty(), &SocketAddr::new(SERVICE, 0)).unwrap();
    }
}

fn segment(from: IpAddr, to: IpAddr, number: u32, bytes: u16) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => unreachable!("these are IPv4"),
    };
    let mut packet = vec![0x45, 0];
    packet.extend(bytes.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 6, 0, 0]);
    packet.extend(octets(from));
    packet.extend(octets(to));
    packet.extend([1, 0, 0, 9]);
    packet.extend(number.to_be_bytes());
    packet.extend([0, 0, 0, 0, 0x50, 0x10]);
    packet.resize(bytes.into(), 0);
    packet
}

/// The numbers of hand-made segments.
fn numbers(recorded: &[Recorded]) -> Vec<u32> {
    let number = |one: &Recorded| u32::from_be_bytes(one.packet[24..28].try_into().unwrap());
    recorded.iter().map(number).collect()
}

#[test]
fn segment_is_labelled_with_the_last_barrier() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    let cell = world.cell();
    cell.let_out();
    cell.raise(Claim::Takeover).unwrap();
    cell.shut_in();
    let (recorder, told) = record(&cell, 1 << 20);
    let client = Segments::new(&world);
    for number in 1..=3 {
        let epoch = CheckpointId::new(1, number.into());
        recorder.mark(epoch);
        client.say(number);
        let came = take(&told, |all| !all.is_empty());
        assert_eq!((numbers(&came), came[0].since), (vec![number], Some(epoch)));
    }
}

/// Asked twice, the app would do twice what a datagram asks for.
#[test]
fn datagrams_are_not_recorded() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    for (cell, service, client) in [(world.cell(), SERVICE, CLIENT), (world.cell_v6(), SERVICE_V6, CLIENT_V6)]
    {
        cell.let_out();
        cell.raise(Claim::Takeover).unwrap();
        let (recorder, told) = record(&cell, 1 << 20);
        let app = inside(cell.namespace(), || UdpSocket::bind((service, 0)).unwrap());
        let listener = listen(&cell, service);
        let datagrams = datagrams(&world.client, client, app.local_addr().unwrap());
        let skipped = recorder.counters().skipped;
        for _ in 0..3 {
            datagrams.send(b"do it").unwrap();
        }
        wait_until("they are skipped", PATIENCE, || recorder.counters().skipped >= skipped + 3);
        let _client = connect(&world.client, listener.local_addr().unwrap()).unwrap();
        let first = take(&told, |all| !all.is_empty());
        let protocol = |packet: &[u8]| if packet[0] >> 4 == 4 { packet[9] } else { packet[6] };
        assert!(first.iter().all(|one| protocol(&one.packet) == 6), "{first:?}");
    }
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
            replay(cell.namespace(), service, &packets(&some)).unwrap();
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
        replay(cell.namespace(), service, &packets(&told.recv_timeout(PATIENCE).unwrap())).unwrap();
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
    let on_packets = Box::new(move |packets: Batch| {
        tell.send(packets).unwrap();
        // Whoever takes them is busy until the test says otherwise.
        let _ = gone.recv_timeout(PATIENCE);
    });
    let recorder = Recorder::start(&cell, BYTES_MAX, on_packets).unwrap();
    let client = Segments::new(&world);
    client.say(0);
    let first = told.recv_timeout(PATIENCE).unwrap().len();
    (1..=500).for_each(|number| client.say(number));
    wait_until("all are recorded", PATIENCE, || recorder.counters().recorded == 501);
    go.send(()).unwrap();
    let kept = told.recv_timeout(PATIENCE).unwrap();
    let numbers = numbers(&kept);
    assert!(kept.iter().map(|one| one.packet.len()).sum::<usize>() <= BYTES_MAX);
    assert_eq!(numbers.last(), Some(&500));
    assert!(numbers.is_sorted() && numbers.len() > 50, "{numbers:?}");
    let counters = recorder.counters();
    assert!(counters.forgotten > 300);
    assert_eq!(counters.recorded, counters.forgotten + (first + kept.len()) as u64);
    drop(go);
}

/// The receiver may be a queue that somebody looks at when they have the time.
#[test]
fn batches_that_lie_about_count_as_waiting() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    const BYTES_MAX: usize = 100_000;
    const SEGMENTS: u32 = 500;
    let world = World::new();
    let cell = world.cell();
    cell.let_out();
    cell.raise(Claim::Takeover).unwrap();
    let (recorder, told) = record(&cell, BYTES_MAX);
    let client = Segments::new(&world);
    client.say(0);
    wait_until("the neighbours know each other", PATIENCE, || recorder.counters().recorded == 1);
    (1..=SEGMENTS).for_each(|number| client.say(number));
    wait_until("all are recorded", PATIENCE, || recorder.counters().recorded > SEGMENTS.into());
    let forgotten = recorder.counters().forgotten;
    assert!(forgotten > 300, "only {forgotten} are forgotten");
    // Dropped, they make room again.
    let kept = (u64::from(SEGMENTS) + 1 - forgotten) as usize;
    let all = take(&told, |all| all.len() == kept);
    assert!(all.iter().map(|one| one.packet.len()).sum::<usize>() <= BYTES_MAX);
    client.say(SEGMENTS + 1);
    take(&told, |all| numbers(all).contains(&(SEGMENTS + 1)));
    assert_eq!(recorder.counters().forgotten, forgotten);
}

/// Packets come from strangers: what is repeated must not go where they say.
#[test]
fn only_what_is_for_the_service_is_repeated() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    let cell = world.cell();
    cell.let_out();
    cell.raise(Claim::Takeover).unwrap();
    let elsewhere = IpAddr::from([10, 9, 0, 77]);
    let mut datagram = segment(elsewhere, SERVICE, 1, 40);
    datagram[9] = 17;
    let refused = [
        segment(elsewhere, CLIENT, 1, 40),
        segment(elsewhere, IpAddr::from([10, 9, 0, 255]), 1, 40),
        segment(SERVICE, SERVICE, 1, 40),
        segment(IpAddr::from([127, 0, 0, 1]), SERVICE, 1, 40),
        segment(elsewhere, SERVICE, 1, 40)[..39].to_vec(),
        [segment(elsewhere, SERVICE, 1, 40), vec![0]].concat(),
        datagram,
        Vec::new(),
    ];
    let ear = world.ear();
    let replayed = replay(cell.namespace(), SERVICE, &refused).unwrap();
    assert_eq!((replayed.delivered, replayed.refused), (0, refused.len()));
    ear.assert_no_packet(cell.mac());
    let taken = replay(cell.namespace(), SERVICE, &[segment(elsewhere, SERVICE, 1, 40)]).unwrap();
    assert_eq!((taken.delivered, taken.refused), (1, 0));
}
