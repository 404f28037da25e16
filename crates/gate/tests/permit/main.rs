//! The permit and the cell's cgroup, on the kernel that they are about: real sockets, a real cable, real kills.
//!
//! Silence is what the client's side of the cable hears: no data, acknowledgement, retransmission or reset. The
//! window in which nothing may come is longer than the retransmission timer (200 ms) and than the half second
//! after which a dropped packet is tried again.

mod cells;
mod guest;
mod world;

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use gate::{CellCgroup, Permit, PermitHandle, Revoked, boot_clock_ns};
use sys::bpf::CgroupHook;
use testkit::needs;
use world::{Guest, Line, Net, PATIENCE, SERVER, SERVER_V6, World};

const WINDOW: Duration = Duration::from_millis(1200);
/// What a packet that passed in time may need to be heard on a busy machine.
const GRACE_NS: u64 = 50_000_000;

/// A cgroup that is removed, with its processes, when the test ends.
#[derive(Debug)]
pub struct Cell(Option<CellCgroup>);

impl Cell {
    pub fn new(app: &str) -> Self {
        Self(Some(CellCgroup::create("checksync-test", app).unwrap()))
    }
}

impl std::ops::Deref for Cell {
    type Target = CellCgroup;

    fn deref(&self) -> &CellCgroup {
        self.0.as_ref().unwrap()
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let cgroup = self.0.take().unwrap();
        if cgroup.path().exists() {
            cgroup.kill_all().unwrap();
        }
        cgroup.remove(PATIENCE).unwrap();
    }
}

/// A server under a permit, and a client with every kind of line to it.
struct Stage {
    world: World,
    server: Guest,
    permit: Permit,
    cell: Cell,
    ports: [u16; 3],
}

impl Stage {
    fn new(app: &str) -> Self {
        let (world, cell) = (World::new(), Cell::new(app));
        let permit = Permit::attach(&cell).unwrap();
        let mut server = start_server(&world.server, Some(&cell));
        let ports = ports(&mut server);
        Self { world, server, permit, cell, ports }
    }

    fn tcp(&self) -> SocketAddr {
        (SERVER, self.ports[0]).into()
    }

    fn lines(&self) -> Lines {
        let client = &self.world.client;
        let mut lines = Lines {
            streams: [
                client.connect(self.tcp()),
                client.connect((SERVER_V6, self.ports[0]).into()),
                client.connect((SERVER, self.ports[1]).into()),
            ],
            datagrams: client.datagrams((SERVER, self.ports[2]).into()),
        };
        lines.assert_tick();
        lines
    }
}

struct Lines {
    streams: [TcpStream; 3],
    datagrams: UdpSocket,
}

impl Lines {
    fn assert_tick(&mut self) {
        self.streams.iter_mut().for_each(Line::assert_ticks);
        self.datagrams.assert_ticks();
    }

    fn say(&mut self) {
        self.streams.iter_mut().for_each(Line::say);
        self.datagrams.say();
    }
}

fn start_server(net: &Net, cell: Option<&Cell>) -> Guest {
    let cgroup = cell.map(|cell| ("CGROUP", cell.path().display().to_string()));
    net.inside(|| Guest::start("server", &cgroup.into_iter().collect::<Vec<_>>()))
}

fn ports(server: &mut Guest) -> [u16; 3] {
    let ports: Vec<u16> = server.told("ports").split(' ').map(|port| port.parse().unwrap()).collect();
    ports.try_into().unwrap()
}

fn in_a_minute() -> u64 {
    boot_clock_ns() + 60_000_000_000
}

#[test]
fn nothing_is_heard_before_the_first_extension() {
    needs!("root");
    let stage = Stage::new("first");
    let ear = stage.world.client.ear();
    ear.assert_silent_for(Duration::from_millis(300), || stage.world.client.knock(stage.tcp()));
    assert_ne!(stage.permit.handle().packets_dropped(), 0);
    stage.permit.extend_to(in_a_minute()).unwrap();
    stage.lines();
}

#[test]
fn nothing_is_heard_after_the_deadline_of_a_manager_that_was_killed() {
    needs!("root");
    let stage = Stage::new("killed");
    let mut manager = start_manager(stage.permit.handle());
    let mut lines = stage.lines();
    lines.assert_tick();
    let ear = stage.world.client.ear();
    manager.kill();
    let deadline_ns = stage.permit.handle().deadline_ns();
    assert_ne!(ear.count_until(deadline_ns + GRACE_NS), 0, "it is heard until the deadline");
    ear.assert_silent_for(WINDOW, || {
        lines.say();
        stage.world.client.knock(stage.tcp());
    });
    stage.permit.extend_to(in_a_minute()).unwrap();
    lines.assert_tick();
}

fn start_manager(handle: &PermitHandle) -> Guest {
    let inheritable = handle.to_inheritable().unwrap();
    let mut manager = Guest::start("manager", &[("PERMIT", inheritable.as_raw_fd().to_string())]);
    manager.told("extends");
    manager
}

#[test]
fn shut_permit_silences_a_dying_app_even_when_its_cgroup_is_removed() {
    needs!("root");
    let mut stage = Stage::new("dying");
    stage.permit.extend_to(in_a_minute()).unwrap();
    let mut lines = stage.lines();
    let ear = stage.world.client.ear();
    stage.permit.shut();
    ear.count_until(boot_clock_ns() + GRACE_NS);
    stage.server.kill();
    CellCgroup::reopen(stage.cell.name()).unwrap().remove(PATIENCE).unwrap();
    assert!(!stage.cell.path().exists());
    ear.assert_silent_for(WINDOW, || lines.streams.iter_mut().for_each(Line::say));
}

#[test]
fn removed_cell_leaves_neither_cgroup_nor_program() {
    needs!("root");
    let cell = Cell::new("removed");
    let permit = Permit::attach(&cell).unwrap();
    let programs: Vec<u32> = [CgroupHook::Ingress, CgroupHook::Egress]
        .iter()
        .flat_map(|&hook| sys::bpf::programs_on_cgroup(cell.directory(), hook).unwrap())
        .collect();
    assert_eq!(programs.len(), 2);
    drop(permit);
    assert!(programs.iter().all(|&id| sys::bpf::program_by_id(id).is_ok()), "they outlive who attached them");
    let path = cell.path();
    drop(cell);
    assert!(!path.exists());
    let end = Instant::now() + PATIENCE;
    while programs.iter().any(|&id| sys::bpf::program_by_id(id).is_ok()) {
        assert!(Instant::now() < end, "programs {programs:?} are left behind");
        std::thread::yield_now();
    }
}

#[test]
fn removed_permit_sets_the_app_free() {
    needs!("root");
    let stage = Stage::new("free");
    let (mut server, world, permit) = (stage.server, stage.world, stage.permit);
    permit.remove().unwrap();
    assert!(Permit::find(&stage.cell).unwrap().is_none());
    world.client.connect((SERVER, stage.ports[0]).into()).assert_ticks();
    server.kill();
}

#[test]
fn client_on_the_same_host_is_a_client() {
    needs!("root");
    let stage = Stage::new("loopback");
    stage.permit.open_for_ever().unwrap();
    let address = ([127, 0, 0, 1], stage.ports[0]).into();
    let mut local = stage.world.server.connect(address);
    local.assert_ticks();
    stage.permit.shut();
    local.set_nonblocking(true).unwrap();
    while std::io::Read::read(&mut local, &mut [0; 4096]).is_ok() {}
    stage.world.server.knock(address);
    local.set_nonblocking(false).unwrap();
    local.set_read_timeout(Some(WINDOW)).unwrap();
    let heard = std::io::Read::read(&mut local, &mut [0; 4096]);
    assert_eq!(heard.map_err(|error| error.kind()), Err(std::io::ErrorKind::WouldBlock));
}

#[test]
fn nothing_reaches_the_app_while_the_permit_is_shut() {
    needs!("root");
    let mut stage = Stage::new("deaf");
    let client = stage.world.client.datagrams((SERVER, stage.ports[2]).into());
    client.send(b"early").unwrap();
    let end = Instant::now() + PATIENCE;
    while stage.permit.handle().packets_dropped() == 0 {
        assert!(Instant::now() < end, "the datagram is never dropped");
        std::thread::yield_now();
    }
    stage.permit.extend_to(in_a_minute()).unwrap();
    client.send(b"late").unwrap();
    assert_eq!(stage.server.told("first"), "late");
}

/// A limit, not a wish: what no socket of the app's says is not the cgroup's. Who needs silence after the app's
/// death removes the address or the namespace.
#[test]
fn kernel_refuses_callers_of_a_dead_app_though_the_permit_is_shut() {
    needs!("root");
    let mut stage = Stage::new("refuses");
    stage.server.kill();
    let attempt = stage.world.client.inside(|| TcpStream::connect_timeout(&stage.tcp(), PATIENCE));
    assert_eq!(attempt.map(drop).map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionRefused));
}

/// Why `attach` can't just move a process: see the header of `cgroup.rs`.
#[test]
fn socket_from_before_the_move_is_not_held() {
    needs!("root");
    let (world, cell) = (World::new(), Cell::new("trap"));
    let _shut = Permit::attach(&cell).unwrap();
    let mut server = start_server(&world.server, None);
    let ports = ports(&mut server);
    cell.move_in(server.pid()).unwrap();
    assert_eq!(cell.pids().unwrap(), [server.pid()]);
    world.client.connect((SERVER, ports[0]).into()).assert_ticks();
}

#[test]
fn restarted_manager_finds_the_permit_with_its_deadline() {
    needs!("root");
    let cell = Cell::new("restarted");
    assert!(Permit::find(&cell).unwrap().is_none());
    let permit = Permit::attach(&cell).unwrap();
    permit.extend_to(4711).unwrap();
    drop(permit);
    let found = Permit::find(&CellCgroup::reopen(cell.name()).unwrap()).unwrap().unwrap();
    assert_eq!(found.handle().deadline_ns(), 4711);
}

#[test]
fn new_permit_replaces_the_old_one() {
    needs!("root");
    let cell = Cell::new("replaced");
    let old = Permit::attach(&cell).unwrap();
    let new = Permit::attach(&cell).unwrap();
    for hook in [CgroupHook::Ingress, CgroupHook::Egress] {
        assert_eq!(sys::bpf::programs_on_cgroup(cell.directory(), hook).unwrap().len(), 1);
    }
    new.extend_to(4711).unwrap();
    assert_eq!(Permit::find(&cell).unwrap().unwrap().handle().deadline_ns(), 4711);
    assert_eq!(old.handle().deadline_ns(), 0);
    old.remove().unwrap();
    assert!(Permit::find(&cell).unwrap().is_some(), "an old permit's removal spares the new one");
}

#[test]
fn deadline_never_moves_back_and_revocation_is_final() {
    needs!("root");
    let cell = Cell::new("revoked");
    let permit = Permit::attach(&cell).unwrap();
    let other = PermitHandle::from_fd(permit.handle().to_inheritable().unwrap()).unwrap();
    permit.extend_to(1).unwrap();
    assert_eq!(permit.extend_to(5000), Ok(()), "1 is no deadline, and no revocation either");
    permit.extend_to(4000).unwrap();
    assert_eq!(other.deadline_ns(), 5000);
    other.shut();
    assert_eq!(permit.handle().deadline_ns(), 0);
    assert_eq!(permit.extend_to(4000), Ok(()));
    other.revoke();
    permit.shut();
    assert_eq!(permit.extend_to(in_a_minute()), Err(Revoked));
    assert_eq!(permit.open_for_ever(), Err(Revoked));
}
