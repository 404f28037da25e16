//! Whole connections through the gate.

use std::net::{IpAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use gate::{CellNetwork, Claim, TapCounters, TapGate, TapHandle, TapOptions};
use image::CheckpointId;
use testkit::needs;

use crate::world::{SERVICE, SERVICE_V6, World, connect, listen, receive_pattern, send_pattern};

const BYTES: usize = 50 << 20;

/// A connection between the client and an app in a cell whose gate passes.
struct Line {
    gate: TapGate,
    client: TcpStream,
    app: TcpStream,
    _cell: CellNetwork,
    _world: World,
}

impl Line {
    fn new(make: fn(&World) -> CellNetwork, address: IpAddr) -> Self {
        let world = World::new();
        let cell = make(&world);
        let gate = TapGate::open(&cell, TapOptions::default()).unwrap();
        cell.raise(Claim::Takeover).unwrap();
        gate.pass().unwrap();
        let listener = listen(&cell, address);
        let client = connect(&world.client, listener.local_addr().unwrap()).unwrap();
        let app = listener.accept().unwrap().0;
        for stream in [&client, &app] {
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(crate::world::PATIENCE)).unwrap();
            stream.set_write_timeout(Some(crate::world::PATIENCE)).unwrap();
        }
        Self { gate, client, app, _cell: cell, _world: world }
    }

    /// Both ways at once.
    fn transfer(&self) {
        thread::scope(|scope| {
            for (from, to) in [(&self.app, &self.client), (&self.client, &self.app)] {
                scope.spawn(move || send_pattern(from, BYTES).unwrap());
                scope.spawn(move || assert_eq!(receive_pattern(to).unwrap(), BYTES));
            }
        });
    }

    fn transfer_in_epochs_of(&self, span: Duration) -> TapCounters {
        self.gate.hold().unwrap();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let epochs = scope.spawn(|| make_epochs(&self.gate.handle(), span, &over));
            self.transfer();
            over.store(true, Ordering::Relaxed);
            epochs.join().unwrap();
        });
        self.gate.counters()
    }
}

/// As a primary would: each epoch is committed when the next one begins.
fn make_epochs(gate: &TapHandle, span: Duration, over: &AtomicBool) {
    for number in 1.. {
        gate.barrier(CheckpointId::new(1, number)).unwrap();
        gate.release(CheckpointId::new(1, number - 1)).unwrap();
        if over.load(Ordering::Relaxed) {
            return gate.release(CheckpointId::new(1, number)).unwrap();
        }
        thread::park_timeout(span);
    }
}

#[test]
fn bytes_arrive_whole_through_a_passing_gate() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let line = Line::new(World::cell, SERVICE);
    line.transfer();
    let counters = line.gate.counters();
    // Far fewer frames than packets: they pass as they are, and are cut up behind the gate or never.
    assert!(counters.released_frames < (BYTES / 1448) as u64, "{counters:?}");
    assert_eq!((counters.lost_frames, counters.dropped_frames, counters.overflowed_frames), (0, 0, 0));
}

#[test]
fn bytes_arrive_whole_and_fast_while_every_epoch_holds_them() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let line = Line::new(World::cell, SERVICE);
    let counters = line.transfer_in_epochs_of(Duration::from_millis(2));
    assert_eq!((counters.held_frames, counters.held_bytes), (0, 0), "{counters:?}");
    // A frame that stays charged to its socket lets TCP send two or three at a time; then no epoch holds more.
    assert!(counters.held_bytes_peak > 1 << 20, "{counters:?}");
}

#[test]
fn bytes_arrive_whole_over_ipv6() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let line = Line::new(World::cell_v6, SERVICE_V6);
    line.transfer_in_epochs_of(Duration::from_millis(2));
}
