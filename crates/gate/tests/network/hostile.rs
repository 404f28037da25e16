//! An app that says what no decent app says, and strangers who do: the gate takes it as it comes, and goes on.

use std::io::{Read, Write};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use gate::netlink::Netlink;
use gate::{Batch, Claim, QUEUE_FRAMES, Recorder, TapGate, TapOptions};
use image::CheckpointId;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socket_with};
use sys::sockets::{bind, set_number};
use testkit::needs;
use testkit::wait::wait_until;

use crate::world::{
    CLIENT, CLIENT_V6, PATIENCE, SERVICE, SILENCE, World, connect, datagrams, inside, is_readable, listen,
};

/// Sends frames as they are, each led by a `virtio_net_hdr`, through the filters of the device.
fn frame_sender(device: u32) -> OwnedFd {
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
    set_number(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1).unwrap();
    let mut address = [0; 20];
    address[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
    address[4..8].copy_from_slice(&device.to_ne_bytes());
    bind(socket.as_fd(), &address).unwrap();
    socket
}

#[test]
fn no_frame_of_the_app_stops_the_gate() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    let cell = world.cell();
    let gate = TapGate::open(&cell, TapOptions::default()).unwrap();
    gate.hold().unwrap();
    cell.raise(Claim::Takeover).unwrap();
    let sender = inside(cell.namespace(), || frame_sender(cell.device()));
    let kinds: [[u8; 2]; 4] = [[8, 0], [8, 6], [0x86, 0xdd], [0x81, 0]];
    let headers =
        [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 4, 0xff, 0xff], [1, 5, 1, 0], [1, 0x81, 8, 0]];
    let mut taken = 0;
    for kind in kinds {
        for [flags, segments, size_low, size_high] in headers {
            for len in [0, 1, 14, 15, 20, 33, 34, 54, 55, 60, 1514, 40_000] {
                let mut led = vec![flags, segments, 54, 0, size_low, size_high, 34, 0, 16, 0];
                led.extend([0xff; 12]);
                led.extend(kind);
                // An IP packet with a protocol and lengths of its own.
                led.extend([0x45, 0, 0xff, 0xff, 0, 0, 0, 0, 64, 6]);
                led.resize(10 + len, 0x66);
                // Much of it the kernel refuses itself.
                taken += usize::from(rustix::net::send(&sender, &led, SendFlags::empty()).is_ok());
            }
        }
    }
    assert!(taken > 50, "the kernel took only {taken}");
    let epoch = CheckpointId::new(1, 1);
    wait_until("the gate has read some", PATIENCE, || gate.counters().held_frames > 20);
    gate.barrier(epoch).unwrap();
    gate.release(epoch).unwrap();
    gate.pass().unwrap();
    let counters = gate.counters();
    assert!(counters.released_frames > 20, "{counters:?}");
    let client = inside(&world.client, || UdpSocket::bind((CLIENT, 0)).unwrap());
    let app = datagrams(cell.namespace(), SERVICE, client.local_addr().unwrap());
    app.send(b"x").unwrap();
    assert!(is_readable(&client, PATIENCE));
}

/// Whoever is on the link may say anything, to the cell alone or to everybody: claims to its address that are cut
/// short, tags, packets that lie about their lengths, segments that no device would send.
#[test]
fn no_frame_of_a_stranger_stops_who_listens() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    for (cell, own) in [(world.cell(), CLIENT), (world.cell_v6(), CLIENT_V6)] {
        let address = cell.spec().address.ip();
        let gate = TapGate::open(&cell, TapOptions::default()).unwrap();
        gate.pass().unwrap();
        cell.raise(Claim::Takeover).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        // The test may be over when the last packet comes.
        let on_packets = Box::new(move |packets: Batch| tell.send(packets.len()).unwrap_or_default());
        let recorder = Recorder::start(&cell, 1 << 20, on_packets).unwrap();
        let stranger = || Netlink::open().and_then(|netlink| netlink.link("eth0")).unwrap();
        let stranger = inside(&world.client, stranger);
        let sender = inside(&world.client, || frame_sender(stranger.index));
        let mut taken = 0;
        for to in [cell.mac().0, [0xff; 6], [0x33, 0x33, 0, 0, 0, 1]] {
            for body in bodies(address) {
                for [flags, segments] in [[0, 0], [1, 0], [1, 1], [1, 4], [1, 5]] {
                    for len in [0, 1, 7, 19, 20, 27, 28, 39, 40, 41, 60, 86, 1500, 30_000] {
                        let mut led = vec![flags, segments, 54, 0, 0, 4, 34, 0, 16, 0];
                        led.extend(to);
                        led.extend(stranger.mac.0);
                        let kind_and_body: Vec<u8> = body.iter().copied().chain([0x66].repeat(len)).collect();
                        led.extend(&kind_and_body[..(2 + len).min(kind_and_body.len())]);
                        // Much of it the kernel refuses itself.
                        taken += usize::from(rustix::net::send(&sender, &led, SendFlags::empty()).is_ok());
                    }
                }
            }
        }
        assert!(taken > 200, "the kernel took only {taken}");
        let listener = listen(&cell, address);
        let before = recorder.counters().recorded;
        let mut client = connect(&world.client, listener.local_addr().unwrap()).unwrap();
        let (mut app, _) = listener.accept().unwrap();
        app.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        wait_until("a segment is recorded", PATIENCE, || recorder.counters().recorded > before);
        assert!(told.recv_timeout(PATIENCE).unwrap() > 0);
        // A claim that is in order is still answered.
        let ear = world.ear();
        let rival = if own == CLIENT { world.cell() } else { world.cell_v6() };
        rival.raise(Claim::Takeover).unwrap();
        assert!(ear.next_from(cell.mac(), PATIENCE).is_some(), "the herald keeps silent");
    }
}

/// A protocol's number, and how its packet begins.
fn bodies(address: IpAddr) -> Vec<Vec<u8>> {
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let claim = [&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 7][..], &octets].concat();
    let strange_claim = [&[8, 6, 0, 1, 8, 0, 0xff, 0xff, 0, 9][..], &octets].concat();
    let version4 =
        [&[8, 0, 0x4f, 0, 0xff, 0xff, 0, 0, 0x20, 1, 64, 6, 0, 0, 1, 2, 3, 4][..], &octets].concat();
    let advertisement = [
        &[0x86, 0xdd, 0x60, 0, 0, 0, 0xff, 0xff, 58, 255][..],
        &[0xfe; 32],
        &[136, 0, 0, 0, 0, 0, 0, 0],
        &octets,
    ];
    let hop_by_hop = [&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 0, 255][..], &[0xfe; 32], &[0, 0xff, 0, 0]].concat();
    let tagged = [&[0x81, 0, 0, 5, 8, 0, 0x45, 0][..], &octets].concat();
    vec![claim, strange_claim, version4, advertisement.concat(), hop_by_hop, tagged]
}

/// The gate's thread does not run for so long that the device is full: what is too much is lost as on a full link.
#[test]
fn full_device_stops_neither_the_app_nor_the_gate() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    const MANY: u64 = QUEUE_FRAMES as u64 + 3_000;
    // Questions about neighbours take some of the room.
    const FEW_LESS: u32 = QUEUE_FRAMES - 50;
    const SOON: Duration = Duration::from_secs(5);
    let (go, gone) = channel::<()>();
    let (gone, (tell, told)) = (Mutex::new(gone), channel());
    let on_waiting = Box::new(move |_since: Instant| {
        let _ = tell.send(());
        let _ = gone.lock().unwrap().recv_timeout(PATIENCE);
    });
    let world = World::new();
    let cell = world.cell();
    let gate =
        TapGate::open(&cell, TapOptions { on_waiting: Some(on_waiting), ..TapOptions::default() }).unwrap();
    cell.raise(Claim::Takeover).unwrap();
    gate.hold().unwrap();
    let client = inside(&world.client, || UdpSocket::bind((CLIENT, 0)).unwrap());
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let app = datagrams(cell.namespace(), SERVICE, client.local_addr().unwrap());
    app.send(&0_u64.to_be_bytes()).unwrap();
    told.recv_timeout(PATIENCE).expect("the waiting is told");
    let begun = Instant::now();
    for number in 1..MANY {
        // A full device may be told to the app, which goes on.
        let _ = app.send(&number.to_be_bytes());
    }
    assert!(begun.elapsed() < SOON, "the app was stopped: {:?}", begun.elapsed());
    drop(go);
    let held = || gate.counters().held_frames;
    wait_until("the device is read", PATIENCE, || held() >= FEW_LESS.into());
    gate.barrier(CheckpointId::new(1, 1)).unwrap();
    assert!(held() < MANY, "nothing was too much: {} of {MANY} are held", held());
    gate.release(CheckpointId::new(1, 1)).unwrap();
    let hear = || {
        let mut number = [0; 8];
        client.recv(&mut number).expect("the client hears something in time");
        u64::from_be_bytes(number)
    };
    // What its socket has no room for it does not hear, but nothing in disorder.
    assert_eq!(hear(), 0);
    wait_until("all that is held leaves", PATIENCE, || held() == 0);
    let mut last = 0;
    while is_readable(&client, SILENCE) {
        let next = hear();
        assert!(next > last, "{next} after {last}");
        last = next;
    }
    app.send(&MANY.to_be_bytes()).unwrap();
    gate.barrier(CheckpointId::new(1, 2)).unwrap();
    gate.release(CheckpointId::new(1, 2)).unwrap();
    assert_eq!(hear(), MANY);
}

#[test]
fn app_that_removes_the_gates_device_silences_itself() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    let cell = world.cell();
    let gate = TapGate::open(&cell, TapOptions::default()).unwrap();
    gate.pass().unwrap();
    cell.raise(Claim::Takeover).unwrap();
    let remove = || {
        let netlink = gate::netlink::Netlink::open()?;
        netlink.delete_link(netlink.link("gate0")?.index)
    };
    inside(cell.namespace(), remove).unwrap();
    wait_until("the gate notices", PATIENCE, || gate.state() == gate::TapState::Discarded);
    assert!(gate.barrier(CheckpointId::new(1, 1)).is_err());
}
