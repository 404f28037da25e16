//! The roles of the other processes. A role announces itself on its output and goes on until it is killed, or
//! until its input, which the test holds, is closed.

use std::env;
use std::io::{BufRead, Read, Write, stdin};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::exit;
use std::thread;
use std::time::Duration;

use gate::{PermitHandle, boot_clock_ns};
use rustix::net::{AddressFamily, SocketType, ipproto};

const TICK: Duration = Duration::from_millis(5);
pub const LEASE: Duration = Duration::from_millis(300);

/// Not a test of its own: without a role there is nothing to do.
#[test]
fn plays_its_role() {
    match env::var("GUEST_ROLE").as_deref() {
        Err(_) => (),
        Ok("server") => serve(),
        Ok("manager") => extend_again_and_again(),
        Ok("idler") => idle(),
        Ok(role) => panic!("no role {role}"),
    }
}

/// Moves into CGROUP if there is one, then ticks to everybody who calls, by TCP, MPTCP and UDP.
fn serve() {
    if let Ok(cgroup) = env::var("CGROUP") {
        std::fs::write(format!("{cgroup}/cgroup.procs"), "0").unwrap();
    }
    let tcp = TcpListener::bind("[::]:0").unwrap();
    let mptcp = mptcp_listener();
    let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = |address: std::io::Result<SocketAddr>| address.unwrap().port();
    println!("\nports {} {} {}", port(tcp.local_addr()), port(mptcp.local_addr()), port(udp.local_addr()));
    thread::spawn(move || tick_to_callers(&tcp));
    thread::spawn(move || tick_to_callers(&mptcp));
    thread::spawn(move || tick_by_datagram(&udp));
    wait_for_end();
}

/// As Go makes its listeners.
fn mptcp_listener() -> TcpListener {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::MPTCP)).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([0, 0, 0, 0], 0))).unwrap();
    rustix::net::listen(&socket, 16).unwrap();
    socket.into()
}

fn tick_to_callers(listener: &TcpListener) {
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        stream.set_nodelay(true).unwrap();
        let reader = stream.try_clone().unwrap();
        thread::spawn(move || while (&reader).read(&mut [0; 512]).is_ok_and(|len| len > 0) {});
        thread::spawn(move || tick_on(&stream));
    }
}

fn tick_on(mut stream: &TcpStream) {
    while stream.write_all(b".").is_ok() {
        thread::sleep(TICK);
    }
}

/// Ticks to the first who calls. An error is the end of this server: a shut permit must not look like one.
fn tick_by_datagram(socket: &UdpSocket) {
    let mut first = [0; 512];
    let (len, caller) = socket.recv_from(&mut first).unwrap();
    println!("\nfirst {}", String::from_utf8_lossy(&first[..len]));
    loop {
        if let Err(error) = socket.send_to(b".", caller) {
            println!("\nudp error {error}");
            exit(1);
        }
        thread::sleep(TICK);
    }
}

/// A manager whose standby always answers.
fn extend_again_and_again() {
    let number = env::var("PERMIT").unwrap().parse().unwrap();
    let handle = PermitHandle::from_inherited(number).unwrap();
    handle.extend_to(boot_clock_ns() + LEASE.as_nanos() as u64).unwrap();
    println!("\nextends");
    loop {
        handle.extend_to(boot_clock_ns() + LEASE.as_nanos() as u64).unwrap();
        thread::sleep(TICK);
    }
}

fn idle() {
    println!("\nidles");
    wait_for_end();
}

fn wait_for_end() {
    for line in stdin().lock().lines() {
        line.unwrap();
    }
}
