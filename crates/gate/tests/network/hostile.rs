//! An app that says what no decent app says: the gate takes it as it comes, and goes on.

use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};

use gate::{Claim, TapGate, TapOptions};
use image::CheckpointId;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socket_with};
use sys::sockets::{bind, set_number};
use testkit::needs;
use testkit::wait::wait_until;

use crate::world::{CLIENT, PATIENCE, SERVICE, World, datagrams, inside, is_readable};

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
