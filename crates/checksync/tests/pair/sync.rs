//! Calls of `sync` over the manager's socket, with the real pair: an HTTP client of Python's, and curl.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use gate::netlink::Netlink;
use rustix::process::Signal;
use serde_json::Value;
use testkit::needs;
use testkit::process::Running;
use testkit::servers::{Client, Server, own_address};
use testkit::wait::Deadline;

use crate::world::{Fencing, Primary, SOON, World, foreign_pki, python, shell};

fn app(arguments: &[&str]) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pair/sync.py");
    let mut line = vec![python(), "-u".to_owned(), script.display().to_string()];
    line.extend(arguments.iter().map(|&argument| argument.to_owned()));
    line
}

/// Status and body, as the app printed them.
fn answer(line: &str) -> (&str, Value) {
    let (status, body) = line.split_once(' ').unwrap_or_else(|| panic!("no answer: {line}"));
    (status, serde_json::from_str(body).unwrap_or_else(|why| panic!("{why}: {line}")))
}

/// A standby that stands still holds nothing more: without its acknowledgement there is no answer.
#[test]
fn sync_is_answered_when_a_later_epoch_is_committed_and_not_before() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    let go = world.dir.path().join("go");
    let app = app(&["ask-when", go.to_str().unwrap(), "POST", "/v1/sync?patience=60s"]);
    // Silence is long in coming here: the standby is to be slow, not lost.
    let patient = ["--interval", "60s", "--heartbeat", "2s", "--missed", "30"];
    let mut primary = Primary(Running::start(world.run_command_with("pki", &patient, &app)));
    let before = world.wait_for_app("primary", "protected", |app| app["state"] == "protected");
    world.standby.signal(Signal::STOP);
    fs::write(&go, "").unwrap();
    primary.expect_line("asking", SOON);
    let early = Deadline::after(Duration::from_millis(500)).poll(|| primary.line_now());
    world.standby.signal(Signal::CONT);
    assert_eq!(early, None, "an answer without an acknowledgement");
    let line = primary.line(SOON).unwrap();
    let (status, told) = answer(&line);
    assert_eq!((status, &told["schema"], &told["term"]), ("200", &1.into(), &1.into()), "{told}");
    assert!(told["epoch"].as_u64() > before["epoch"].as_u64(), "{told} after {before}");
    primary.wait(SOON);
    world.end();
}

fn calls_go_on_at_the_standby(mut world: World, options: &[&str]) {
    let go = world.dir.path().join("go");
    let app = app(&["call", go.to_str().unwrap()]);
    let mut primary = Primary(Running::start(world.run_command_with("pki", options, &app)));
    world.wait_until_protected();
    fs::write(&go, "").unwrap();
    primary.expect_line("calling", SOON);
    let epoch = |app: &Value| app["epoch"].as_u64();
    let first = epoch(&world.wait_for_app("primary", "an epoch", |app| epoch(app).is_some()));
    // Each of these was closed by a call, which waits in it.
    world.wait_for_app("primary", "epochs", |app| epoch(app) >= first.map(|first| first + 50));
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    let (mut refused, mut promoted) = (0, None);
    while refused < 3 || promoted.is_none() {
        let line = world.standby.line(SOON).expect("the standby goes on");
        match line.as_str() {
            "refused 503 unprotected" => refused += 1,
            line if line.starts_with("200 ") => promoted = Some(answer(line).1),
            line => panic!("a call was not answered as it should: {line}"),
        }
    }
    let promoted = promoted.unwrap();
    assert_eq!((&promoted["role"], &promoted["host"]), (&"primary".into(), &"b".into()), "{promoted}");
    assert_eq!((&promoted["term"], &promoted["restored"]["term"]), (&2.into(), &1.into()), "{promoted}");
    world.end();
}

/// Three threads call in turn, one waits for the promotion: each hears the answer to the request that the old manager
/// had read, on the connection that it was made on.
#[test]
fn calls_that_wait_when_the_manager_is_killed_are_answered_by_the_next() {
    needs!("root", "pagemap-scan", "debian:python3");
    calls_go_on_at_the_standby(World::new(Fencing::None), &[]);
}

#[test]
fn calls_that_wait_go_on_in_strong_consistency() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    let in_a_network_of_its_own = || {
        gate::Namespace::new().and_then(|namespace| namespace.enter()).unwrap();
        Netlink::open().and_then(|netlink| netlink.add_bridge("br0")).unwrap();
        let strong = ["--consistency", "strong", "--address", "10.9.0.9/24", "--link", "br0"];
        calls_go_on_at_the_standby(World::on_link(Fencing::Register, "br0"), &strong);
    };
    std::thread::spawn(in_a_network_of_its_own).join().unwrap();
}

#[test]
fn an_unprotected_app_is_told_so_with_the_reason() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    foreign_pki(&world);
    let go = world.dir.path().join("go");
    let app = app(&["ask-when", go.to_str().unwrap(), "POST", "/v1/sync"]);
    let mut primary = Primary(Running::start(world.run_command("foreign", &app)));
    world.wait_for_app("primary", "trouble", |app| {
        app["why_not"].as_str().is_some_and(|why| why.contains("certificate"))
    });
    fs::write(&go, "").unwrap();
    primary.expect_line("asking", SOON);
    let line = primary.line(SOON).unwrap();
    let (status, told) = answer(&line);
    assert_eq!((status, &told["error"]), ("503", &"unprotected".into()));
    assert!(told["reason"].as_str().unwrap().contains("certificate"), "{told}");
    assert!(primary.wait(SOON).success());
    world.end();
}

/// curl is the app here, as a shell's child it would be a process that no epoch can carry.
#[test]
fn a_line_of_shell_with_curl_will_do() {
    needs!("root", "pagemap-scan", "debian:curl");
    let world = World::new(Fencing::None);
    let sync = "exec curl -sS --unix-socket $CHECKSYNC_SOCKET http://checksync/v1/sync?patience=30s -X POST";
    let mut primary = world.run(&shell(sync));
    let told: Value = serde_json::from_str(&primary.line(SOON).unwrap()).unwrap();
    assert_eq!((&told["schema"], &told["term"]), (&1.into(), &1.into()), "{told}");
    assert!(told["epoch"].as_u64() >= Some(1), "{told}");
    assert!(primary.wait(SOON).success());
    world.end();
}

/// Writes one key until its server's manager is killed. What was acknowledged last, sent last, and found afterwards.
fn write_until_killed(options: &[&str]) -> (u64, u64, u64) {
    let world = World::new(Fencing::None);
    let address = own_address();
    let mut line = Server::Kv.command_line(address);
    line.extend(options.iter().map(|&option| option.to_owned()));
    let slow = ["--interval", "1s"];
    let mut primary = Primary(Running::start(world.run_command_with("pki", &slow, &line)));
    let mut client = Server::Kv.wait_ready(address, SOON);
    world.wait_until_protected();
    let mut sent = 0;
    let mut write = |client: &mut Client| {
        sent += 1;
        client.advance(0, sent).map(|acknowledged| (acknowledged, sent))
    };
    let (mut acknowledged, mut last) = (0, 0);
    for _ in 0..200 {
        (acknowledged, last) = write(&mut client).unwrap();
    }
    primary.signal(Signal::KILL);
    while let Ok(written) = write(&mut client) {
        (acknowledged, last) = written;
    }
    primary.wait(SOON);
    world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    let mut client = Server::Kv.wait_ready(address, SOON);
    let found = client.read(0).unwrap().unwrap();
    // With nobody who could hold it, a write is refused.
    assert_eq!(client.advance(1, 1).is_ok(), options.is_empty());
    world.end();
    (acknowledged, last + 1, found)
}

#[test]
fn a_server_that_syncs_loses_no_answered_write_in_timeline_consistency() {
    needs!("root", "pagemap-scan", "go");
    let (acknowledged, sent, found) = write_until_killed(&["--sync"]);
    assert!((acknowledged..=sent).contains(&found), "{found} is not from {acknowledged} to {sent}");
    let (acknowledged, _, found) = write_until_killed(&[]);
    assert!(found < acknowledged, "without sync nothing was lost either: this test sees nothing");
}

/// What a program in Rust does with the SDK, as the app of the test below.
#[test]
#[ignore = "it is run by another test, under a manager"]
fn rust_app() {
    let (told, promoted) = std::sync::mpsc::channel();
    checksync_sdk::on_promote(move |role| {
        println!("\npromoted {} {} {:?}", role.host, role.term, role.restored);
        told.send(()).unwrap();
    })
    .unwrap();
    let patient = checksync_sdk::Manager::from_environment().unwrap().with_patience(SOON);
    let first = patient.sync().unwrap();
    println!("\nsynced {first}");
    let refused = loop {
        match checksync_sdk::sync() {
            Ok(checkpoint) => assert!(checkpoint > first, "{checkpoint} after {first}"),
            Err(why) => break why,
        }
    };
    println!("\nrefused: {refused}");
    println!("\nat {} in term {}", checksync_sdk::role().unwrap().host, checksync_sdk::role().unwrap().term);
    println!("\nepoch {:?}", checksync_sdk::epoch().unwrap());
    promoted.recv_timeout(SOON).unwrap();
}

/// Kills the manager of a program that prints "synced…" and calls on. Then it must print all that is `wanted`, on the
/// other host.
fn goes_on_where_it_is_restored(program: &[String], mut wanted: Vec<&str>) {
    let mut world = World::new(Fencing::None);
    let mut primary = world.run(program);
    while !primary.line(SOON).unwrap().starts_with("synced") {}
    let epoch = |app: &Value| app["epoch"].as_u64();
    world.wait_for_app("primary", "epochs", |app| epoch(app) > Some(50));
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    while !wanted.is_empty() {
        let line = world.standby.line(SOON).expect("the standby goes on");
        wanted.retain(|start| !line.starts_with(start));
        assert!(!line.contains("panicked") && !line.contains("broke"), "{line}");
    }
    world.end();
}

#[test]
fn a_program_with_the_rust_sdk_goes_on_where_it_is_restored() {
    needs!("root", "pagemap-scan");
    let test = std::env::current_exe().unwrap().display().to_string();
    let line = [&test, "sync::rust_app", "--exact", "--ignored", "--nocapture"].map(str::to_owned);
    let refused = "refused: the app is not protected";
    let wanted = vec!["promoted b 2 Some(Checkpoint", refused, "at b in term 2", "epoch None"];
    goes_on_where_it_is_restored(&line, wanted);
}

#[test]
fn a_program_with_the_go_sdk_goes_on_where_it_is_restored() {
    needs!("root", "pagemap-scan", "go");
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("example");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk/go/example");
    let mut build = Command::new("go");
    build.args(["build", "-buildvcs=false", "-o"]).arg(&program).arg(".");
    build.env("GOTOOLCHAIN", "local").env("GOWORK", "off").current_dir(sources);
    assert!(build.status().unwrap().success());
    let wanted = vec!["promoted b 2 1/", "counted at b in term 2", "refused: the app is not protected"];
    goes_on_where_it_is_restored(&[program.display().to_string()], wanted);
}
