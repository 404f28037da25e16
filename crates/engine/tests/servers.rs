//! Real servers that nobody here wrote, each under load through 200 epochs, killed, and on the other side a
//! valid prefix: no write from before the freeze of the last committed epoch is missing, none is half there.

mod common;

use std::time::{Duration, SystemTime};

use testkit::servers::{Load, Server, own_address};
use testkit::wait::wait_until;

use common::{PATIENCE, Pair};

const EPOCHS: u32 = 200;
const INTERVAL: Duration = Duration::from_millis(10);

fn main() {
    common::main(&[
        ("kv", || survives(&Server::Kv)),
        ("kv_by_the_newest_go", || match testkit::programs::newest_go() {
            Ok(go) => survives(&Server::KvBy(go)),
            Err(why) => println!("SKIPPED: no newer Go: {why}"),
        }),
        ("redis", || survives(&Server::Redis)),
        ("memcached", || survives(&Server::Memcached)),
        ("nats", || survives(&Server::Nats)),
        ("caddy", || survives(&Server::Caddy)),
        ("python", || survives(&Server::Python)),
        ("node", || survives(&Server::Node)),
        ("java", || survives(&Server::Java)),
    ]);
}

fn survives(server: &Server) {
    let address = own_address();
    let line = server.command_line(address);
    let arguments: Vec<&str> = line[1..].iter().map(String::as_str).collect();
    let mut pair = Pair::start(&line[0], &arguments);
    server.wait_ready(address, PATIENCE);
    let load = Load::start(server, address).expect("the server takes load");
    pair.full_sync();
    let mut pauses = Vec::new();
    let mut frozen_at_ns = 0;
    for _ in 0..EPOCHS {
        let report = pair.epoch();
        pauses.push(report.pause);
        frozen_at_ns = report.frozen_at_ns;
        std::thread::park_timeout(INTERVAL);
    }
    pauses.sort_unstable();
    let before = load.acknowledged();
    let (_standby, restored) = pair.take_over();
    wait_until("writes after the takeover", PATIENCE, || load.acknowledged() > before + 10);
    let judgement = load.stop().expect("the server is there");
    let frozen = SystemTime::UNIX_EPOCH + Duration::from_nanos(frozen_at_ns);
    println!(
        "{server:?}: pause p50 {:?} p99 {:?}, restored in {:?}, {} acknowledged, {} lost after the last freeze",
        pauses[pauses.len() / 2],
        pauses[pauses.len() * 99 / 100],
        restored.total,
        judgement.acknowledged,
        judgement.lost.len(),
    );
    assert_eq!(judgement.violations(frozen), Vec::<String>::new(), "{server:?} is no valid prefix");
}
