//! The table of real servers: each starts, is loaded and judged, and a server that loses writes is found out.

use std::time::{Duration, SystemTime};

use testkit::process::Running;
use testkit::programs::newest_go;
use testkit::rights::on_path;
use testkit::servers::{Load, Server, own_address};
use testkit::wait::wait_until;

const LIMIT: Duration = Duration::from_secs(60);

/// Whether the server's program is here; says aloud if not, or fails where nothing may be skipped.
fn is_here(server: &Server) -> bool {
    let program = server.program();
    let strict = std::env::var("CHECKSYNC_TESTS").is_ok_and(|tests| tests == "all");
    let here = on_path(program);
    assert!(here || !strict, "{program} is missing, and CHECKSYNC_TESTS=all lets no test be skipped");
    if !here {
        eprintln!("SKIPPED: {server:?} needs {program}");
    }
    here
}

/// The servers whose programs are here, and our own by the newest Go if that can be had.
fn servers() -> Vec<Server> {
    let newest = newest_go().inspect_err(|why| eprintln!("SKIPPED: the newest Go: {why}"));
    Server::ALL.into_iter().filter(is_here).chain(newest.map(Server::KvBy)).collect()
}

#[test]
fn every_server_starts_and_keeps_what_it_acknowledged() {
    for server in &servers() {
        let address = own_address();
        let _running = Running::start(server.command(address));
        server.wait_ready(address, LIMIT);
        let load = Load::start(server, address).expect("the server answered a moment ago");
        wait_until("300 acknowledged writes", LIMIT, || load.acknowledged() >= 300);
        let judgement = load.stop().expect("the server still runs");
        assert_eq!(judgement.violations(SystemTime::now()), Vec::<String>::new(), "{server:?}");
        assert_eq!((judgement.lost.len(), judgement.connections_lost), (0, 0), "{server:?}");
    }
}

#[test]
fn a_server_that_comes_back_empty_has_lost_what_it_acknowledged() {
    for server in [Server::Redis, Server::Node].iter().filter(|server| is_here(server)) {
        let address = own_address();
        let first = Running::start(server.command(address));
        server.wait_ready(address, LIMIT);
        let load = Load::start(server, address).expect("the server answered a moment ago");
        wait_until("300 acknowledged writes", LIMIT, || load.acknowledged() >= 300);
        drop(first);
        let died = SystemTime::now();
        let _second = Running::start(server.command(address));
        wait_until("a new connection", LIMIT, || load.reconnected() >= 1);
        let judgement = load.stop().expect("the second server runs");
        assert!(judgement.lost.len() >= 300, "{server:?}: {judgement:?}");
        assert!(!judgement.violations(died).is_empty(), "{server:?}: lost writes from before were not found");
        assert_eq!(judgement.violations(SystemTime::UNIX_EPOCH), Vec::<String>::new(), "{server:?}");
    }
}
