//! What leaves, and when.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gate::netlink::Netlink;
use gate::{CellNetwork, Claim, GateError, TapError, TapGate, TapOptions, TapState, Waiting};
use image::CheckpointId;
use testkit::needs;
use testkit::wait::wait_until;

use crate::world::{
    CLIENT, PATIENCE, PREFIX, SERVICE, SILENCE, World, datagrams, inside, is_readable, permit,
};

/// A cell that says numbers to a client by datagram.
struct Talk {
    world: World,
    cell: CellNetwork,
    gate: TapGate,
    app: UdpSocket,
    client: UdpSocket,
}

impl Talk {
    fn new(options: TapOptions) -> Self {
        let world = World::new();
        let cell = world.cell();
        let gate = TapGate::open(&cell, options).unwrap();
        cell.raise(Claim::Takeover).unwrap();
        let client = inside(&world.client, || UdpSocket::bind((CLIENT, 0)).unwrap());
        let app = datagrams(cell.namespace(), SERVICE, client.local_addr().unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { world, cell, gate, app, client }
    }

    /// The gate holds, and the neighbours know each other.
    fn holding() -> Self {
        let talk = Self::new(TapOptions::default());
        talk.gate.hold().unwrap();
        talk.say(&[0]);
        wait_until("the client is found", PATIENCE, || talk.gate.counters().held_frames == 1);
        talk.gate.barrier(epoch(0)).unwrap();
        talk.gate.release(epoch(0)).unwrap();
        assert_eq!(talk.hear(), 0);
        talk
    }

    fn say(&self, numbers: &[u8]) {
        for number in numbers {
            self.app.send(&[*number]).unwrap();
        }
    }

    fn hear(&self) -> u8 {
        let mut number = [0];
        self.client.recv(&mut number).expect("the client hears something in time");
        number[0]
    }

    fn hear_all(&self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.hear()).collect()
    }

    #[track_caller]
    fn assert_nothing_heard(&self) {
        assert!(!is_readable(&self.client, SILENCE), "the client heard something");
    }
}

fn epoch(number: u64) -> CheckpointId {
    CheckpointId::new(1, number)
}

#[test]
fn closed_gate_lets_nothing_out_not_even_answers_to_neighbours() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let talk = Talk::new(TapOptions::default());
    // The announcement of the address is the herald's, which speaks only for whoever holds the term.
    talk.cell.lower().unwrap();
    let ear = talk.world.ear();
    while ear.next_from(talk.cell.mac(), Duration::ZERO).is_some() {}
    let add = || Netlink::open()?.add_address(talk.cell.device(), SERVICE, PREFIX);
    inside(talk.cell.namespace(), add).unwrap();
    assert_eq!(talk.gate.state(), TapState::Closed);
    talk.say(&[1, 2, 3]);
    // Who asks for the address gets no answer.
    let asker = datagrams(&talk.world.client, CLIENT, SocketAddr::new(SERVICE, 9));
    asker.send(b"?").unwrap();
    ear.assert_silent(talk.cell.mac());
    assert!(talk.gate.counters().dropped_frames > 0);
    assert_eq!(talk.gate.counters().released_frames, 0);
}

#[test]
fn nothing_leaves_before_its_release_and_then_exactly_what_was_marked() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let talk = Talk::holding();
    talk.say(&[1, 2, 3]);
    talk.gate.barrier(epoch(1)).unwrap();
    talk.say(&[4]);
    talk.gate.barrier(epoch(2)).unwrap();
    talk.say(&[5, 6]);
    talk.gate.barrier(epoch(3)).unwrap();
    talk.say(&[7]);
    talk.assert_nothing_heard();
    talk.gate.release(epoch(2)).unwrap();
    assert_eq!(talk.hear_all(4), [1, 2, 3, 4]);
    talk.assert_nothing_heard();
    // A late proof, and one that came already.
    talk.gate.release(epoch(1)).unwrap();
    talk.gate.release(epoch(2)).unwrap();
    talk.assert_nothing_heard();
    talk.gate.release(epoch(3)).unwrap();
    assert_eq!(talk.hear_all(2), [5, 6]);
    talk.assert_nothing_heard();
}

#[test]
fn barrier_covers_all_that_was_said_before_it() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let talk = Talk::holding();
    for number in 1..=200 {
        talk.say(&[number]);
        talk.gate.barrier(epoch(number.into())).unwrap();
        talk.gate.release(epoch(number.into())).unwrap();
        // What the barrier did not see would wait for the next.
        assert_eq!(talk.hear(), number);
        assert_eq!(talk.gate.counters().held_frames, 0);
    }
}

#[test]
fn barrier_reads_what_the_gates_own_thread_has_not() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let (gone, (tell, told)) = (std::sync::Mutex::new(gone), std::sync::mpsc::channel());
    // Keeps the gate's thread from reading until the test lets it go.
    let on_waiting = Box::new(move |Waiting { since, .. }: Waiting| {
        let _ = tell.send(since);
        let _ = gone.lock().unwrap().recv_timeout(PATIENCE);
    });
    let talk = Talk::new(TapOptions { on_waiting: Some(on_waiting), ..TapOptions::default() });
    talk.gate.hold().unwrap();
    talk.say(&[1]);
    told.recv_timeout(PATIENCE).expect("the waiting is told");
    talk.say(&[2, 3]);
    talk.gate.barrier(epoch(1)).unwrap();
    talk.say(&[4]);
    talk.gate.release(epoch(1)).unwrap();
    assert_eq!(talk.hear_all(3), [1, 2, 3]);
    drop(go);
    talk.assert_nothing_heard();
}

#[test]
fn neighbours_are_answered_while_data_wait() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let talk = Talk::new(TapOptions::default());
    talk.gate.hold().unwrap();
    // The announcements, which are over after a second, would tell the client as well.
    let ear = talk.world.ear();
    while ear.next_from(talk.cell.mac(), 2 * SILENCE).is_some() {}
    let heard = inside(talk.cell.namespace(), || UdpSocket::bind((SERVICE, 0)).unwrap());
    heard.set_read_timeout(Some(PATIENCE)).unwrap();
    let asker = datagrams(&talk.world.client, CLIENT, heard.local_addr().unwrap());
    asker.send(b"?").unwrap();
    let (_, from) = heard.recv_from(&mut [0; 8]).expect("the client finds the cell");
    heard.send_to(b"!", from).unwrap();
    assert!(!is_readable(&asker, SILENCE), "an answer left without its epoch");
}

#[test]
fn passing_gate_sends_what_was_held_and_then_at_once() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let talk = Talk::holding();
    talk.say(&[1]);
    talk.gate.barrier(epoch(1)).unwrap();
    talk.say(&[2]);
    talk.gate.pass().unwrap();
    talk.say(&[3]);
    assert_eq!(talk.hear_all(3), [1, 2, 3]);
    talk.gate.hold().unwrap();
    talk.say(&[4]);
    talk.assert_nothing_heard();
    talk.gate.barrier(epoch(2)).unwrap();
    talk.gate.release(epoch(2)).unwrap();
    assert_eq!(talk.hear(), 4);
}

/// A copy that was taken over runs when its gate is made.
#[test]
fn gate_for_a_cell_that_speaks_already_loses_nothing() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    const LAST: u8 = 200;
    for at_first in [TapState::Passing, TapState::Holding] {
        let world = World::new();
        let cell = world.cell();
        cell.raise(Claim::Takeover).unwrap();
        cell.let_out();
        let client = inside(&world.client, || UdpSocket::bind((CLIENT, 0)).unwrap());
        let app = datagrams(cell.namespace(), SERVICE, client.local_addr().unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        app.send(&[0]).unwrap();
        assert_eq!(client.recv(&mut [9]).unwrap(), 1, "without a gate it is heard");
        let speaker = thread::spawn(move || {
            for number in 1..=LAST {
                app.send(&[number]).unwrap();
                // All the while, and no more than the client's buffer holds.
                let next = Instant::now() + Duration::from_micros(100);
                while Instant::now() < next {
                    std::hint::spin_loop();
                }
            }
        });
        let gate = TapGate::open(&cell, TapOptions { at_first, ..TapOptions::default() }).unwrap();
        assert_eq!(gate.state(), at_first);
        speaker.join().unwrap();
        if at_first == TapState::Holding {
            gate.barrier(epoch(1)).unwrap();
            gate.release(epoch(1)).unwrap();
        }
        let mut heard = [0];
        for number in 1..=LAST {
            client.recv(&mut heard).unwrap_or_else(|why| panic!("{number} was lost, {at_first:?}: {why}"));
            assert_eq!(heard[0], number);
        }
    }
}

/// It would take what waits for a slow link. What the host has chosen otherwise stays.
#[test]
fn connections_of_a_cell_whose_output_waits_do_not_begin_with_bbr() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    const SETTING: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
    for before in ["reno", "bbr"] {
        let world = World::new();
        let cell = world.cell();
        let setting = || inside(cell.namespace(), || fs::read_to_string(SETTING).unwrap().trim().to_owned());
        // Only what this host has for everybody can be chosen.
        if inside(cell.namespace(), || fs::write(SETTING, before)).is_err() {
            continue;
        }
        let _gate = TapGate::open(&cell, TapOptions::default()).unwrap();
        match before {
            "bbr" => assert!(["cubic", "reno"].contains(&setting().as_str()), "{}", setting()),
            other => assert_eq!(setting(), other),
        }
    }
}

/// What an app said before it died, in every place where it may wait.
#[test]
fn what_is_forgotten_never_leaves() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let (gone, (tell, told)) = (std::sync::Mutex::new(gone), std::sync::mpsc::channel());
    // Keeps the gate's thread from reading until the test lets it go.
    let on_waiting = Box::new(move |Waiting { since, .. }: Waiting| {
        let _ = tell.send(since);
        let _ = gone.lock().unwrap().recv_timeout(PATIENCE);
    });
    let talk = Talk::new(TapOptions { on_waiting: Some(on_waiting), ..TapOptions::default() });
    talk.gate.hold().unwrap();
    talk.say(&[1]);
    told.recv_timeout(PATIENCE).expect("the waiting is told");
    talk.gate.barrier(epoch(1)).unwrap();
    talk.say(&[2]);
    talk.gate.barrier(epoch(2)).unwrap();
    // More than a few rounds of reading.
    (0..500).for_each(|_| talk.say(&[3]));
    talk.gate.release(epoch(1)).unwrap();
    talk.gate.forget().unwrap();
    assert_eq!(talk.gate.waiting(), None);
    let counters = talk.gate.counters();
    assert_eq!((counters.held_frames, counters.held_bytes, counters.dropped_frames), (0, 0, 501));
    drop(go);
    talk.say(&[4]);
    talk.gate.barrier(epoch(3)).unwrap();
    talk.gate.release(epoch(3)).unwrap();
    assert_eq!(talk.hear_all(2), [1, 4]);
    talk.assert_nothing_heard();
    talk.gate.discard();
    assert_eq!(talk.gate.forget(), Err(GateError::Discarded));
}

/// Who releases, or lets all pass, may have stood still since he looked at the clock.
fn lets_go_without_a_permit(let_go: impl Fn(&TapGate)) {
    const COUNT: u8 = 200;
    // A patience of 20 ms for each would be four seconds.
    const SOON: Duration = Duration::from_secs(1);
    let permit = permit();
    let talk = Talk::holding();
    permit.open_for_ever().unwrap();
    talk.cell.obey(&permit).unwrap();
    (0..COUNT).for_each(|number| talk.say(&[number]));
    talk.gate.barrier(epoch(1)).unwrap();
    permit.shut();
    let begun = Instant::now();
    let_go(&talk.gate);
    talk.gate.barrier(epoch(2)).unwrap();
    wait_until("all are lost", PATIENCE, || talk.gate.counters().lost_frames >= COUNT.into());
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let counters = talk.gate.counters();
    assert_eq!((counters.held_frames, counters.held_bytes), (0, 0), "{counters:?}");
    talk.assert_nothing_heard();
    permit.open_for_ever().unwrap();
    talk.say(&[COUNT]);
    talk.gate.barrier(epoch(3)).unwrap();
    talk.gate.release(epoch(3)).unwrap();
    assert_eq!(talk.hear(), COUNT);
}

#[test]
fn nothing_of_what_is_released_leaves_without_the_permit_and_nobody_waits_for_each_frame() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    lets_go_without_a_permit(|gate| gate.release(epoch(1)).unwrap());
    lets_go_without_a_permit(|gate| gate.pass().unwrap());
}

#[test]
fn discarded_gate_stays_shut_for_good() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let talk = Talk::holding();
    talk.say(&[1]);
    talk.gate.barrier(epoch(1)).unwrap();
    talk.gate.discard();
    let discarded = Err(GateError::Discarded);
    assert_eq!(talk.gate.release(epoch(1)), discarded);
    assert_eq!(talk.gate.barrier(epoch(2)), discarded);
    assert_eq!(talk.gate.hold(), discarded);
    assert_eq!(talk.gate.pass(), discarded);
    talk.say(&[2]);
    talk.assert_nothing_heard();
    let counters = talk.gate.counters();
    assert_eq!((counters.held_frames, counters.held_bytes), (0, 0));
    assert!(counters.dropped_frames >= 2, "{counters:?}");
}

#[test]
fn dropped_gate_leaves_the_way_shut() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let Talk { world: _world, cell: _cell, gate, app, client } = Talk::holding();
    drop(gate);
    app.send(&[1]).unwrap();
    assert!(!is_readable(&client, SILENCE), "the client heard something");
}

#[test]
fn second_gate_takes_the_place_of_one_that_is_gone() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let Talk { world: _world, cell, gate, app, client } = Talk::holding();
    let handle = gate.handle();
    drop(gate);
    assert!(matches!(TapGate::open(&cell, TapOptions::default()), Err(TapError::Taken)));
    drop(handle);
    let gate = TapGate::open(&cell, TapOptions::default()).unwrap();
    app.send(&[1]).unwrap();
    assert!(!is_readable(&client, SILENCE), "the new gate is not closed");
    gate.pass().unwrap();
    app.send(&[2]).unwrap();
    assert_eq!(client.recv(&mut [0]).unwrap(), 1);
}

/// Marks, releases, questions about neighbours and the app's words all at once: nothing is lost or overtaken.
#[test]
fn order_is_kept_whatever_the_threads_do() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    const COUNT: u32 = 20_000;
    const AHEAD: u32 = 50;
    let talk = Talk::holding();
    let newest = AtomicU64::new(0);
    let heard = AtomicU32::new(0);
    let over = || heard.load(Ordering::Relaxed) == COUNT;
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1.. {
                talk.gate.barrier(epoch(number)).unwrap();
                newest.store(number, Ordering::Release);
                if over() {
                    return;
                }
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !over() {
                    talk.gate.release(epoch(newest.load(Ordering::Acquire))).unwrap();
                }
            });
        }
        scope.spawn(|| {
            let socket = datagrams(&talk.world.client, CLIENT, SocketAddr::new(SERVICE, 9));
            while !over() {
                // Whether it is answered is another test's business.
                let _ = socket.send(b"?");
                thread::yield_now();
            }
        });
        scope.spawn(|| {
            for number in 0..COUNT {
                // The client's socket has room for so many.
                while number - heard.load(Ordering::Relaxed) > AHEAD {
                    thread::yield_now();
                }
                talk.app.send(&number.to_be_bytes()).unwrap();
            }
        });
        for number in 0..COUNT {
            let mut word = [0; 4];
            talk.client.recv(&mut word).expect("the next number comes in time");
            assert_eq!(u32::from_be_bytes(word), number);
            heard.fetch_add(1, Ordering::Relaxed);
        }
    });
}

#[test]
fn first_frame_that_waits_is_told_once_per_barrier() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let (tell, told) = std::sync::mpsc::channel();
    let on_waiting = Box::new(move |waiting: Waiting| tell.send(waiting.since).unwrap());
    let talk = Talk::new(TapOptions { on_waiting: Some(on_waiting), ..TapOptions::default() });
    talk.gate.hold().unwrap();
    assert_eq!(talk.gate.waiting(), None);
    let before = Instant::now();
    for number in 1..=3 {
        talk.say(&[1, 2, 3]);
        let since = told.recv_timeout(PATIENCE).expect("the waiting is told");
        assert!(since >= before && since <= Instant::now());
        wait_until("all three wait", PATIENCE, || talk.gate.counters().held_frames == 3 * number);
        let (noted, bytes) = talk.gate.waiting().unwrap();
        assert!(noted.max(since) - noted.min(since) < Duration::from_micros(1) && bytes >= 3 * 43);
        talk.gate.barrier(epoch(number)).unwrap();
        assert_eq!(talk.gate.waiting(), None);
    }
    assert!(told.try_recv().is_err(), "told more than once");
}

#[test]
fn full_buffer_is_bounded_and_neighbours_are_answered_all_the_same() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    const BYTES_MAX: usize = 2_000_000;
    const CHUNK: usize = 600_000;
    let talk = Talk::new(TapOptions { held_bytes_max: BYTES_MAX, ..TapOptions::default() });
    talk.gate.hold().unwrap();
    let block = [7; 1400];
    wait_until("the buffer is full", PATIENCE, || {
        // A frame that waits is no longer charged to its socket: the app is never stopped.
        talk.app.send(&block).unwrap();
        talk.gate.counters().overflowed_frames > 100
    });
    let held = talk.gate.counters().held_frames as usize;
    // Chunks are counted whole as soon as they are full or marked.
    assert!(talk.gate.counters().held_bytes_peak <= BYTES_MAX + CHUNK, "{:?}", talk.gate.counters());
    assert!(held * block.len() > BYTES_MAX / 2);
    // The neighbour is not known yet to this one, and no datagram fits.
    let ear = talk.world.ear();
    datagrams(&talk.world.client, CLIENT, SocketAddr::new(SERVICE, 9)).send(b"?").unwrap();
    let answer = ear.next_from(talk.cell.mac(), PATIENCE).expect("a neighbour is answered");
    assert_eq!(answer[12..14], [8, 6], "not ARP: {answer:02x?}");
    talk.gate.barrier(epoch(1)).unwrap();
    let held = talk.gate.counters().held_frames;
    talk.gate.release(epoch(1)).unwrap();
    let counters = talk.gate.counters();
    assert_eq!((counters.held_bytes, counters.released_frames), (0, held), "{counters:?}");
}
