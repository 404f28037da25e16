//! Whose the address is: raising, lowering, moving and defending it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use gate::netlink::Netlink;
use gate::{CellNetwork, Claim, Namespace, NetworkError, NetworkSpec, PermitHandle};
use testkit::needs;

use crate::world::{
    CLIENT, CLIENT_V6, Ear, PATIENCE, PREFIX, PREFIX_V6, SERVICE, SERVICE_V6, SILENCE, World, connect,
    datagrams, inside, is_readable, listen, permit,
};

/// Says its name to whoever asks, and leaves when it is told to.
fn answer_as(cell: &CellNetwork, name: u8, port: u16) -> UdpSocket {
    let address = SocketAddr::new(cell.spec().address.ip(), port);
    let own = inside(cell.namespace(), || UdpSocket::bind(address).unwrap());
    let socket = own.try_clone().unwrap();
    thread::spawn(move || {
        let mut question = [0; 16];
        while let Ok((len, from)) = socket.recv_from(&mut question) {
            if len == 0 {
                return;
            }
            // Answers to a client that went away are lost.
            let _ = socket.send_to(&[name, question[0]], from);
        }
    });
    own
}

/// Who answers. A question may be lost: on a busy machine the client's kernel may not have looked at the
/// announcement when the first leaves.
fn ask(client: &UdpSocket, number: u8) -> u8 {
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    testkit::wait::wait_for("an answer", PATIENCE, || {
        client.send(&[number]).unwrap();
        let mut answer = [0; 2];
        // The answer to an earlier question is none.
        client.recv(&mut answer).ok().filter(|_| answer[1] == number).map(|_| answer[0])
    })
}

fn moves(world: &World, cells: [CellNetwork; 2], client_address: IpAddr) {
    const PORT: u16 = 7000;
    let service = SocketAddr::new(cells[0].spec().address.ip(), PORT);
    cells.iter().for_each(|cell| cell.let_out());
    let client = inside(&world.client, || UdpSocket::bind((client_address, 0)).unwrap());
    let mut sockets = Vec::new();
    for round in 0..4 {
        let (cell, other) = (&cells[round % 2], &cells[(round + 1) % 2]);
        other.lower().unwrap();
        cell.raise(Claim::Takeover).unwrap();
        if round < 2 {
            sockets.push(answer_as(cell, round as u8, PORT));
            // Not before there is an address to be routed to.
            client.connect(service).unwrap();
        }
        let asked = Instant::now();
        assert_eq!(ask(&client, round as u8), (round % 2) as u8, "the other one answers in round {round}");
        // A client that still believed in the old owner would do so for five seconds.
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    }
    for (socket, cell) in sockets.iter().zip(&cells) {
        let own = socket.local_addr().unwrap();
        cell.raise(Claim::Takeover).unwrap();
        socket.send_to(&[], own).unwrap();
        cell.lower().unwrap();
    }
}

#[test]
fn bridge_keeps_its_hardware_address_when_cells_come_and_go() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    const CELLS: usize = 8;
    const HIGHEST_OF_ONE_S_OWN: [u8; 3] = [0xfe, 0xff, 0xff];
    let mac_in = |world: &World| world.street.within(|| Ok(Netlink::open()?.link("br0")?.mac)).unwrap();
    // The client's port has an address by lot, and stands for a network card's, which is never one of the highest.
    let mut worlds = std::iter::repeat_with(World::new);
    let world = worlds
        .find(|world| mac_in(world).0[..3] < HIGHEST_OF_ONE_S_OWN[..])
        .expect("there is always another");
    let mac = || mac_in(&world);
    let before = mac();
    let cells: Vec<CellNetwork> = (0..CELLS).map(|_| world.cell()).collect();
    assert_eq!(mac(), before, "its neighbours do not find the host any more");
    drop(cells);
    assert_eq!(mac(), before);
}

#[test]
fn traffic_follows_the_address_at_once() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    moves(&world, [world.cell(), world.cell()], CLIENT);
}

#[test]
fn traffic_follows_an_ipv6_address_at_once() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    moves(&world, [world.cell_v6(), world.cell_v6()], CLIENT_V6);
}

/// Counts how often a device says that the address is its own, while nobody asks.
fn count_claims(ear: &Ear, cell: &CellNetwork, span: Duration) -> usize {
    let end = Instant::now() + span;
    let next = || ear.next_from(cell.mac(), end.saturating_duration_since(Instant::now()));
    std::iter::from_fn(next).count()
}

#[test]
fn announcement_is_repeated_for_a_second_and_then_ends() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    for (cell, each) in [(world.cell(), 2), (world.cell_v6(), 1)] {
        let ear = world.ear();
        cell.raise(Claim::Takeover).unwrap();
        assert_eq!(count_claims(&ear, &cell, Duration::from_millis(1300)), 5 * each);
        ear.assert_silent(cell.mac());
    }
}

#[test]
fn lowered_address_is_neither_announced_nor_answered_for() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    for (cell, own) in [(world.cell(), CLIENT), (world.cell_v6(), CLIENT_V6)] {
        cell.let_out();
        cell.raise(Claim::Takeover).unwrap();
        let ear = world.ear();
        cell.lower().unwrap();
        while ear.next_from(cell.mac(), Duration::ZERO).is_some() {}
        let asker = datagrams(&world.client, own, SocketAddr::new(cell.spec().address.ip(), 9));
        asker.send(b"?").unwrap();
        ear.assert_no_claim(cell.mac());
    }
}

#[test]
fn rival_claim_is_answered() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    for make in [World::cell, World::cell_v6] {
        let (owner, rival) = (make(&world), make(&world));
        owner.raise(Claim::Takeover).unwrap();
        let ear = world.ear();
        // Until its own repetitions are over.
        count_claims(&ear, &owner, Duration::from_millis(1300));
        rival.raise(Claim::Takeover).unwrap();
        assert!(ear.next_from(owner.mac(), PATIENCE).is_some(), "the owner keeps silent");
    }
}

/// Who stood still while somebody else took the address wakes up to a queue of claims, and has nothing to say to them.
#[test]
fn rival_claim_is_not_answered_without_a_permit() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    for make in [World::cell, World::cell_v6] {
        let (owner, rival) = (make(&world), make(&world));
        let permit = permit();
        owner.obey(&permit).unwrap();
        permit.open_for_ever().unwrap();
        owner.raise(Claim::Takeover).unwrap();
        let ear = world.ear();
        count_claims(&ear, &owner, Duration::from_millis(1300));
        permit.shut();
        rival.raise(Claim::Takeover).unwrap();
        ear.assert_no_claim(owner.mac());
        permit.open_for_ever().unwrap();
        rival.raise(Claim::Takeover).unwrap();
        assert!(ear.next_from(owner.mac(), PATIENCE).is_some(), "the owner keeps silent");
    }
}

#[test]
fn address_that_somebody_has_is_refused_at_first_and_taken_at_a_takeover() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    let squatter = Namespace::new().unwrap();
    world.plug_in(&squatter, &[(SERVICE, PREFIX), (SERVICE_V6, PREFIX_V6)]);
    let mac = squatter.within(|| Netlink::open()?.link("eth0")).unwrap().mac;
    for cell in [world.cell(), world.cell_v6()] {
        match cell.raise(Claim::Fresh) {
            Err(NetworkError::InUse { by, .. }) => assert_eq!(by, mac),
            other => panic!("{other:?}"),
        }
        cell.raise(Claim::Takeover).unwrap();
    }
}

#[test]
fn claim_of_the_past_is_no_reason_to_refuse() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    for make in [World::cell, World::cell_v6] {
        let (before, after) = (make(&world), make(&world));
        before.raise(Claim::Takeover).unwrap();
        before.lower().unwrap();
        after.raise(Claim::Fresh).unwrap();
    }
}

#[test]
fn new_network_lets_nothing_out_but_its_announcement() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    for (cell, own) in [(world.cell(), CLIENT), (world.cell_v6(), CLIENT_V6)] {
        let ear = world.ear();
        cell.raise(Claim::Takeover).unwrap();
        // The announcements are over after a second.
        count_claims(&ear, &cell, Duration::from_millis(1300));
        let app = datagrams(cell.namespace(), cell.spec().address.ip(), SocketAddr::new(own, 9));
        // The filter's drop may be told to the app, as a full queue is.
        let _ = app.send(b"x");
        let asker = datagrams(&world.client, own, SocketAddr::new(cell.spec().address.ip(), 9));
        asker.send(b"?").unwrap();
        ear.assert_silent(cell.mac());
        cell.let_out();
        asker.send(b"?").unwrap();
        assert!(ear.next_from(cell.mac(), PATIENCE).is_some(), "the way out stays shut");
        cell.shut_out();
        while ear.next_from(cell.mac(), SILENCE).is_some() {}
        let _ = app.send(b"x");
        ear.assert_silent(cell.mac());
    }
}

/// The app is dead, and so is its manager, who would have given the address up: the cell's kernel goes on answering
/// for it, and resetting what nobody listens to, until the last process is torn down.
#[test]
fn nothing_leaves_without_the_permit_not_even_the_kernels_own_answers() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    const LONG_ENOUGH: Duration = Duration::from_secs(10);
    let world = World::new();
    for (cell, own) in [(world.cell(), CLIENT), (world.cell_v6(), CLIENT_V6)] {
        let permit = permit();
        cell.obey(&permit).unwrap();
        cell.let_out();
        cell.raise(Claim::Takeover).unwrap();
        let ear = world.ear();
        // The announcements are the herald's.
        count_claims(&ear, &cell, Duration::from_millis(1300));
        let closed = SocketAddr::new(cell.spec().address.ip(), 9);
        let knock = |patience| inside(&world.client, || TcpStream::connect_timeout(&closed, patience));
        // A permit that was never extended, one that has run out, and one that was revoked.
        let shut: [fn(&PermitHandle); 3] =
            [|_| (), |permit| permit.extend_to(2).unwrap(), PermitHandle::revoke];
        for (shut, last) in shut.into_iter().zip([false, false, true]) {
            shut(&permit);
            assert_ne!(knock(SILENCE).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
            datagrams(&world.client, own, closed).send(b"?").unwrap();
            ear.assert_silent(cell.mac());
            if !last {
                permit.open_for_ever().unwrap();
                // Who was not answered when it looked for the address looks again after a second.
                assert_eq!(knock(LONG_ENOUGH).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
                while ear.next_from(cell.mac(), SILENCE).is_some() {}
                permit.shut();
            }
        }
    }
}

#[test]
fn free_address_is_taken_and_kept_by_its_own_cell() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    for (cell, own) in [(world.cell(), CLIENT), (world.cell_v6(), CLIENT_V6)] {
        cell.let_out();
        cell.raise(Claim::Fresh).unwrap();
        cell.raise(Claim::Fresh).unwrap();
        let app = answer_as(&cell, 7, 0);
        let client = datagrams(&world.client, own, app.local_addr().unwrap());
        assert_eq!(ask(&client, 0), 7);
        app.send_to(&[], app.local_addr().unwrap()).unwrap();
    }
}

#[test]
fn shut_ingress_answers_no_connection_but_neighbours() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    for (cell, own) in [(world.cell(), CLIENT), (world.cell_v6(), CLIENT_V6)] {
        cell.let_out();
        cell.raise(Claim::Takeover).unwrap();
        cell.shut_in();
        let app = inside(cell.namespace(), || UdpSocket::bind((cell.spec().address.ip(), 0)).unwrap());
        let client = datagrams(&world.client, own, app.local_addr().unwrap());
        let ear = world.ear();
        client.send(b"lost").unwrap();
        assert!(!is_readable(&app, SILENCE), "it came in");
        // Somebody that the client does not know is asked for by it, and answers.
        let closed = SocketAddr::new(cell.spec().address.ip(), 9);
        let refused = inside(&world.client, || TcpStream::connect_timeout(&closed, SILENCE)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut, "the kernel answered with a reset");
        cell.let_in();
        client.send(b"heard").unwrap();
        assert!(is_readable(&app, PATIENCE));
        assert!(ear.next_from(cell.mac(), Duration::ZERO).is_some(), "no neighbour was answered");
    }
}

#[test]
fn cell_on_an_ordinary_device_is_reached() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    let host = Namespace::new().unwrap();
    world.plug_in(&host, &[]);
    let narrow = || {
        let netlink = Netlink::open()?;
        netlink.set_mtu(netlink.link("eth0")?.index, 1400)
    };
    host.within(narrow).unwrap();
    let spec = NetworkSpec::new("10.9.0.9/24".parse().unwrap(), "eth0", Some(CLIENT)).unwrap();
    let cell = inside(&host, || CellNetwork::create(spec, "test")).unwrap();
    let link = inside(cell.namespace(), || Netlink::open()?.link("eth0")).unwrap();
    assert_eq!((link.kind.as_str(), link.mtu, link.index), ("macvlan", 1400, cell.device()));
    cell.let_out();
    cell.raise(Claim::Fresh).unwrap();
    let listener = listen(&cell, SERVICE);
    let mut client = connect(&world.client, listener.local_addr().unwrap()).unwrap();
    let (mut served, _) = listener.accept().unwrap();
    served.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

#[test]
fn gateway_leads_to_other_networks() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    let beyond = "192.0.2.7".parse().unwrap();
    // The client stands for a router: it has an address of another network, too.
    world.client.within(|| Netlink::open()?.add_address(1, beyond, 32)).unwrap();
    let spec = NetworkSpec::new("10.9.0.9/24".parse().unwrap(), "br0", Some(CLIENT)).unwrap();
    let cell = world.try_cell(spec).unwrap();
    cell.let_out();
    for _ in 0..2 {
        cell.raise(Claim::Takeover).unwrap();
        let far = inside(&world.client, || UdpSocket::bind((beyond, 0)).unwrap());
        let app = datagrams(cell.namespace(), SERVICE, far.local_addr().unwrap());
        app.send(b"x").unwrap();
        assert!(is_readable(&far, PATIENCE));
        cell.lower().unwrap();
    }
    let wrong = NetworkSpec::new("10.9.0.9/24".parse().unwrap(), "br0", Some("10.8.0.1".parse().unwrap()));
    let cell = world.try_cell(wrong.unwrap()).unwrap();
    assert!(matches!(cell.raise(Claim::Takeover), Err(NetworkError::Gateway { .. })));
}

/// A kernel by itself asks three times, a second apart, and then drops what waits for the answer.
#[test]
fn neighbour_that_hears_no_earlier_than_the_fifth_question_gets_what_waits_for_it() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    let late = ["10.9.0.77", "fd09::77"].map(|address| address.parse::<IpAddr>().unwrap());
    for (cell, late) in [world.cell(), world.cell_v6()].into_iter().zip(late) {
        cell.let_out();
        cell.raise(Claim::Takeover).unwrap();
        let (any, prefix): (&str, u8) =
            if late.is_ipv4() { ("0.0.0.0:0", PREFIX) } else { ("[::]:0", PREFIX_V6) };
        let hearer = inside(&world.client, || UdpSocket::bind(any).unwrap());
        let place = SocketAddr::new(late, hearer.local_addr().unwrap().port());
        let ear = world.ear();
        datagrams(cell.namespace(), cell.spec().address.ip(), place).send(b"x").unwrap();
        let mut questions = 0;
        while questions < 5 {
            let frame = ear.next_from(cell.mac(), PATIENCE);
            let frame = frame.unwrap_or_else(|| panic!("{questions} questions for {late}"));
            questions += u32::from(asks_for(&frame, late));
        }
        let appear = || {
            Netlink::open().and_then(|netlink| netlink.add_address(netlink.link("eth0")?.index, late, prefix))
        };
        world.client.within(appear).unwrap();
        assert!(is_readable(&hearer, PATIENCE), "what waited for {late} is lost");
    }
}

/// The kernel takes an address of IPv6 into use on a thread of its own, and has answered before.
#[test]
fn address_is_of_use_as_soon_as_it_is_raised() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    for cell in [world.cell(), world.cell_v6()] {
        let address = cell.spec().address.ip();
        let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0; 16].into() };
        let socket = inside(cell.namespace(), || UdpSocket::bind((any, 0)).unwrap());
        let place = SocketAddr::new(address, socket.local_addr().unwrap().port());
        for round in 0..50 {
            cell.raise(Claim::Takeover).unwrap();
            socket.send_to(b"x", place).unwrap();
            assert!(is_readable(&socket, PATIENCE), "what comes for {address} is lost, round {round}");
            socket.recv(&mut [0]).unwrap();
            cell.lower().unwrap();
        }
    }
}

fn asks_for(frame: &[u8], address: IpAddr) -> bool {
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    match address {
        IpAddr::V4(address) => frame[12..14] == [8, 6] && frame[38..42] == address.octets(),
        IpAddr::V6(address) => {
            let is_question = frame[12..14] == [0x86, 0xdd] && frame.get(54) == Some(&NEIGHBOUR_SOLICITATION);
            is_question && frame[62..78] == address.octets()
        }
    }
}

#[test]
fn missing_and_unfit_links_are_told_apart() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    let on = |link: &str| {
        world.try_cell(NetworkSpec::new("10.9.0.9/24".parse().unwrap(), link, None).unwrap()).map(drop)
    };
    let port = format!("p{:x}", rustix::fs::fstat(&world.client).unwrap().st_ino);
    assert!(matches!(on("br7"), Err(NetworkError::NoLink { .. })));
    assert!(matches!(on(&port), Err(NetworkError::Enslaved { .. })));
    world.street.within(|| Netlink::open()?.add_bridge("br1")).unwrap();
    let down = || Netlink::open().and_then(|netlink| netlink.set_down(netlink.link("br1")?.index));
    world.street.within(down).unwrap();
    assert!(matches!(on("br1"), Err(NetworkError::LinkDown { .. })));
}

#[test]
fn nothing_stays_behind_and_the_tables_are_small() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    let setting = "/proc/sys/net/ipv4/tcp_child_ehash_entries";
    let before = std::fs::read_to_string(setting).unwrap();
    let devices = || inside(&world.street, || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let count = devices().lines().count();
    let cell = world.cell();
    assert_eq!(devices().lines().count(), count + 1);
    let entries = || std::fs::read_to_string("/proc/sys/net/ipv4/tcp_ehash_entries").unwrap();
    assert_eq!(inside(cell.namespace(), entries).trim(), "4096");
    // Somebody who is inside must not keep the device alive.
    let inhabitant = inside(cell.namespace(), || UdpSocket::bind("0.0.0.0:0").unwrap());
    drop(cell);
    assert_eq!(devices().lines().count(), count, "{}", devices());
    assert_eq!(std::fs::read_to_string(setting).unwrap(), before);
    drop(inhabitant);
}
