//! Real servers that nobody here wrote, each under load with the real pair: its manager is killed after two hundred
//! epochs, and what the standby serves is a valid prefix.

use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::Value;
use testkit::needs;
use testkit::process::Running;
use testkit::servers::{Load, Server, own_address};
use testkit::wait::wait_until;

use crate::world::{Fencing, Primary, SOON, World, python};

const EPOCHS: u64 = 200;

fn survives(server: &Server) {
    let world = World::new(Fencing::Register);
    let address = own_address();
    let mut line = server.command_line(address);
    if *server == Server::Python {
        line[0] = python();
    }
    let mut primary = Primary(Running::start(world.run_command_with("pki", &["--interval", "10ms"], &line)));
    server.wait_ready(address, SOON);
    let load = Load::start(server, address).unwrap();
    world.wait_until_protected();
    let epoch = |app: &Value| app["epoch"].as_u64();
    let first = epoch(&world.wait_for_app("primary", "an epoch", |app| epoch(app).is_some()));
    world.wait_for_app("primary", "many epochs", |app| epoch(app) >= first.map(|first| first + EPOCHS));
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    let served = world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    let before = load.acknowledged();
    wait_until("writes after the takeover", SOON, || load.acknowledged() > before + 10);
    let judgement = load.stop().unwrap();
    let (_, status) = world.status();
    let takeover = &status["managers"][0]["takeovers"][0];
    assert_eq!(takeover["term"], served["term"], "{status}");
    let frozen = SystemTime::UNIX_EPOCH + Duration::from_nanos(takeover["frozen_at_ns"].as_u64().unwrap());
    assert_eq!(judgement.violations(frozen), Vec::<String>::new(), "{server:?} is no valid prefix");
    assert!(judgement.connections_lost > 0, "the load noticed nothing: {judgement:?}");
    world.end();
}

macro_rules! servers {
    ($($name:ident: $server:ident needs $need:literal;)+) => {$(
        #[test]
        fn $name() {
            needs!("root", "pagemap-scan", CAP_BPF, $need);
            survives(&Server::$server);
        }
    )+};
}

servers! {
    a_go_server_survives_its_manager: Kv needs "go";
    redis_survives_its_manager: Redis needs "debian:redis-server";
    memcached_survives_its_manager: Memcached needs "debian:memcached";
    nats_survives_its_manager: Nats needs "debian:nats-server";
    caddy_survives_its_manager: Caddy needs "debian:caddy";
    a_python_server_survives_its_manager: Python needs "debian:python3";
    a_node_server_survives_its_manager: Node needs "debian:nodejs";
    a_java_server_survives_its_manager: Java needs "debian:default-jdk-headless";
}
