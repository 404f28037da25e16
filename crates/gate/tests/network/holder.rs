//! A gate whose process is killed, while the app lives on.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, stdin};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};

use gate::{CellNetwork, Claim, NetworkSpec, TapGate, TapOptions};
use testkit::needs;

use crate::world::{CLIENT, Ear, PATIENCE, SERVICE, SILENCE, World, datagrams, inside, is_readable};

/// Not a test of its own: in another process it holds a gate that passes, until that process is killed.
#[test]
fn plays_its_role() {
    let Ok(street) = std::env::var("HOLDER_OF_A_GATE_ON") else { return };
    let street = File::open(street).unwrap();
    let spec = NetworkSpec::new("10.9.0.9/24".parse().unwrap(), "br0", None).unwrap();
    let cell = inside(&street, || CellNetwork::create(spec, "test")).unwrap();
    let gate = TapGate::open(&cell, TapOptions::default()).unwrap();
    gate.pass().unwrap();
    cell.raise(Claim::Takeover).unwrap();
    println!("\ncell {}", cell.namespace().as_raw_fd());
    // Ends with the test, if that does not kill it.
    let _ = stdin().read(&mut [0]);
}

struct Holder(Child);

impl Holder {
    /// Where the cell's namespace is.
    fn start(world: &World) -> (Self, String) {
        let street = format!("/proc/{}/fd/{}", std::process::id(), world.street.as_fd().as_raw_fd());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "holder::plays_its_role", "--nocapture"]);
        command.env("HOLDER_OF_A_GATE_ON", street).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let number = lines.into_iter().find_map(|line| line.strip_prefix("cell ").map(str::to_owned));
        let path = format!("/proc/{}/fd/{}", child.id(), number.expect("the holder has a cell"));
        (Self(child), path)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn death_of_the_holder_closes_the_gate() {
    needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF);
    let world = World::new();
    let (mut holder, path) = Holder::start(&world);
    let namespace = File::open(path).unwrap();
    let client = inside(&world.client, || UdpSocket::bind((CLIENT, 0)).unwrap());
    let app = datagrams(&namespace, SERVICE, client.local_addr().unwrap());
    app.send(b"alive").unwrap();
    assert!(is_readable(&client, PATIENCE), "the gate does not pass");
    client.recv(&mut [0; 8]).unwrap();
    holder.kill();
    let ear = Ear::new(&world.client);
    let mac = inside(&namespace, || gate::netlink::Netlink::open()?.link("eth0")).unwrap().mac;
    for _ in 0..10 {
        // The filter's drop may be told to the app, as a full queue is.
        let _ = app.send(b"dead");
    }
    datagrams(&world.client, CLIENT, SocketAddr::new(SERVICE, 9)).send(b"?").unwrap();
    ear.assert_silent(mac);
    assert!(!is_readable(&client, SILENCE), "the app was heard");
}
