//! An app is captured by one engine, kept by another, killed, and goes on.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use engine::{Command, Event};
use testkit::guest::GoFile;

use common::{PATIENCE, Pair, Side};

fn main() {
    common::main(&[
        ("an_interpreter_goes_on_where_it_was", an_interpreter_goes_on_where_it_was),
        ("a_go_server_goes_on_where_it_was", a_go_server_goes_on_where_it_was),
        ("an_exit_code_is_reported", an_exit_code_is_reported),
        (
            "a_new_standby_is_not_told_of_guards_that_are_gone",
            a_new_standby_is_not_told_of_guards_that_are_gone,
        ),
        ("who_changes_all_of_its_memory_goes_on_and_ends_well", who_changes_all_of_its_memory_goes_on),
    ]);
}

fn an_interpreter_goes_on_where_it_was() {
    let address = testkit::servers::own_address();
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let source = testkit::programs::source_dir("python").join("counter.py");
    let mut pair = Pair::start("/usr/bin/python3", &[source.to_str().unwrap(), &host, &port]);
    wait_for_listener(address);
    for n in 1..=5 {
        assert_eq!(count(address, "POST"), n);
    }
    let full = pair.full_sync();
    println!("full sync: {full:?}");
    for n in 6..=30 {
        assert_eq!(count(address, "POST"), n);
        let report = pair.epoch();
        if n % 6 == 0 {
            println!("epoch: {report:?}");
        }
    }
    let (_standby, report) = pair.take_over();
    println!("restored: {report:?}");
    assert_eq!(count(address, "GET"), 30);
    assert_eq!(count(address, "POST"), 31);
}

fn who_changes_all_of_its_memory_goes_on() {
    let rounds = std::env::var("CHECKSYNC_ROUNDS").map_or(6, |rounds| rounds.parse().unwrap());
    for seed in 1..=rounds {
        let go_file = GoFile::new();
        let mut pair = Pair::of_guest("churn", &go_file, &[&seed.to_string()]);
        pair.full_sync();
        for number in 0..20 {
            if number == 10 {
                pair.full_sync();
            }
            pair.epoch();
        }
        let (standby, report) = pair.take_over();
        println!("seed {seed}, restored: {report:?}");
        go_file.go();
        standby.output.wait_for("pass", PATIENCE);
    }
}

/// They were known to the standby before, and their mapping went while nobody looked.
fn a_new_standby_is_not_told_of_guards_that_are_gone() {
    let go_file = GoFile::new();
    let mut pair = Pair::of_guest("memory-guard-unmap", &go_file, &[]);
    pair.full_sync();
    pair.epoch();
    go_file.step(1);
    pair.primary.output.wait_for("ready 1", PATIENCE);
    pair.full_sync();
    let (standby, _) = pair.take_over();
    go_file.go();
    standby.output.wait_for("pass", PATIENCE);
}

fn a_go_server_goes_on_where_it_was() {
    let address = testkit::servers::own_address();
    let kv = testkit::programs::go_app("kv");
    let listen = address.to_string();
    let mut pair = Pair::start(kv.to_str().unwrap(), &["serve", "--listen", &listen, "--preload", "1000"]);
    wait_for_listener(address);
    pair.full_sync();
    for n in 0..50 {
        let mut line = TcpStream::connect(address).expect("the server answers");
        line.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(line, "PUT key{n} value{n}").unwrap();
        assert_eq!(answer(&mut line), "OK");
        let report = pair.epoch();
        if n % 10 == 9 {
            println!("epoch: {report:?}");
        }
    }
    let (_standby, report) = pair.take_over();
    println!("restored: {report:?}");
    let mut line = TcpStream::connect(address).expect("the copy answers");
    line.set_read_timeout(Some(PATIENCE)).unwrap();
    for n in 0..50 {
        writeln!(line, "GET key{n}").unwrap();
        assert_eq!(answer(&mut line), format!("VALUE value{n}"));
    }
}

fn an_exit_code_is_reported() {
    let side = Side::primary("/bin/sh", &["-c", "exit 7"]);
    side.until("a ready app", |event| matches!(event, Event::Ready { .. }).then_some(()));
    side.engine.send(Command::Start);
    assert_eq!(side.exit(), engine::AppExit::Code(7));
}

fn wait_for_listener(address: std::net::SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "nobody listens at {address}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn answer(line: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while line.read(&mut byte).expect("an answer") == 1 && byte != [b'\n'] {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

fn count(address: std::net::SocketAddr, method: &str) -> u64 {
    let mut line = TcpStream::connect(address).expect("the server answers");
    line.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(line, "{method} /n HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    line.read_to_string(&mut text).expect("an answer");
    text.rsplit("\r\n\r\n").next().unwrap().trim().parse().unwrap_or_else(|_| panic!("{text}"))
}
