//! Drills as people ask for them: the copy is restored where nobody sees it, and everything else goes on.

mod world;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;
use testkit::needs;
use testkit::process::Running;
use testkit::servers::Server;
use testkit::wait::wait_until;
use world::{Fencing, SOON, World, checksync, protected_counter, python, wait_for_two_epochs};

macro_rules! needs_all {
    () => {
        needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    };
}

/// A standby that writes down what it does, with these options.
fn world(options: &[&str]) -> World {
    World::with_standby(Fencing::Register, |dir, fencing| {
        let mut command = checksync(dir);
        command.args(["standby", "--listen", "127.0.0.1:0", "--host", "b", "--pki"]).arg(dir.join("pki"));
        command.args(options).args(fencing).arg("--state").arg(dir.join("state"));
        command
    })
}

fn drill(world: &World, options: &[&str]) -> Command {
    let mut command = checksync(world.dir.path());
    command.args(["drill", "-o", "json"]).args(options);
    command
}

fn record(output: &Output) -> Value {
    let complaint = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|why| panic!("{why}: {complaint}"))
}

/// A command that is well if the counter stands at `wanted`, and moves it on.
fn counter_stands_at(address: std::net::SocketAddr, wanted: u64) -> String {
    let script = format!(
        "import urllib.request as r; u=\"http://{address}/k0\"; v=r.urlopen(u).read().strip(); \
         print(v); assert int(v)=={wanted}; r.urlopen(u,data=b\"\").read()"
    );
    format!("{} -c '{script}'", python())
}

/// What the copy's daemon says of drills.
fn status(world: &World) -> Value {
    world.wait_for_app("standby", "its drills", |app| app["drill"].is_object())["drill"].clone()
}

#[test]
fn a_drill_serves_as_the_app_would_and_nobody_else_sees_it() {
    needs_all!();
    let world = world(&[]);
    let (address, mut primary, mut client) = protected_counter(&world);
    wait_for_two_epochs(&world);
    let written = world.dir.path().join("written");
    let file = written.display();
    let health = format!("{} && touch {file} && test -e {file}", counter_stands_at(address, 3));
    let passed = drill(&world, &["--health", &health]).output().unwrap();
    let record = record(&passed);
    assert_eq!((passed.status.code(), &record["outcome"]), (Some(0), &Value::from("passed")), "{record}");
    assert_eq!((&record["app"], &record["host"]), (&Value::from("kv"), &Value::from("b")));
    assert!(record["restore_us"].as_u64() > Some(0) && record["healthy_us"].as_u64() > Some(0), "{record}");
    assert!(!written.exists(), "files of a drill go with it");
    // What it was moved on to in there was never here.
    assert_eq!(client.read(0).unwrap(), Some(3));
    client.advance(0, 4).unwrap();
    wait_for_two_epochs(&world);
    assert_eq!(status(&world)["last_success"], record, "who was told finds it in the status");
    assert_eq!(status(&world)["last_failure"], Value::Null);
    let lines = fs::read_to_string(world.dir.path().join("state/kv.drills")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(lines.trim()).unwrap(), record);
    // The warm copy is as good as before.
    drop(client);
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    let mut client = Server::Python.wait_ready(address, SOON);
    assert_eq!(client.read(0).unwrap(), Some(4), "what was committed is there");
    let refused = drill(&world, &[]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("served here"), "{refused:?}");
    drop(client);
    world.end();
}

#[test]
fn a_drill_that_fails_says_why_and_status_remembers() {
    needs_all!();
    let world = world(&["--health", "echo not well today >&2; exit 3"]);
    let (_, mut primary, client) = protected_counter(&world);
    // While it starts the server asks a name server, which nobody in a sealed network can.
    wait_for_two_epochs(&world);
    let nobody = drill(&world, &["--app", "other"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("keeps other"), "{nobody:?}");
    // As the standby was told, if nobody says otherwise.
    let failed = drill(&world, &["--patience", "2s"]).output().unwrap();
    let failure = record(&failed);
    assert_eq!((failed.status.code(), &failure["outcome"]), (Some(1), &Value::from("failed")), "{failure}");
    let why = failure["why"].as_str().unwrap();
    assert!(why.contains("not well today") && why.contains("2s") && why.contains('3'), "{why}");
    let hangs = drill(&world, &["--patience", "300ms", "--health", "sleep 100"]).output().unwrap();
    assert!(record(&hangs)["why"].as_str().unwrap().contains("still running"), "{hangs:?}");
    let told = checksync(world.dir.path()).args(["status", "--app", "kv"]).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("drill FAILED") && told.contains("still running"), "{told}");
    assert_eq!(world.status().0, 0, "what is kept here can take over all the same");
    let passed = drill(&world, &["--health", "true"]).output().unwrap();
    assert_eq!(passed.status.code(), Some(0));
    let report = status(&world);
    assert_eq!(report["last_success"]["health"], "true");
    assert!(report["last_failure"]["why"].as_str().unwrap().contains("still running"), "{report}");
    drop(client);
    primary.signal(Signal::TERM);
    primary.wait(SOON);
    world.end();
}

#[test]
fn a_takeover_ends_a_drill_and_wins() {
    needs_all!();
    let world = world(&[]);
    let (address, mut primary, client) = protected_counter(&world);
    wait_for_two_epochs(&world);
    let begun = world.dir.path().join("begun");
    let mut command = drill(&world, &["--health", "sleep 100"]);
    command.stderr(fs::File::create(&begun).unwrap());
    let mut under_way = Running::start(command);
    wait_until("a drill", SOON, || status(&world)["running"] == true);
    let second = drill(&world, &[]).output().unwrap();
    assert!(String::from_utf8_lossy(&second.stderr).contains("under way"), "{second:?}");
    wait_until("its health command", SOON, || sleepers(&world) > 0);
    drop(client);
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    let mut client = Server::Python.wait_ready(address, SOON);
    assert_eq!(client.read(0).unwrap(), Some(3), "what was committed is there");
    let line = under_way.line(SOON).expect("a record");
    let record: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(record["outcome"], "aborted", "{record}");
    assert_eq!(under_way.wait(SOON).code(), Some(1));
    wait_until("nothing of the drill", SOON, || sleepers(&world) == 0);
    drop(client);
    world.end();
}

/// Processes below the standby's that sleep for a hundred seconds.
fn sleepers(world: &World) -> usize {
    let mut left = vec![world.standby.pid()];
    let mut found = 0;
    while let Some(pid) = left.pop() {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            left.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        found += usize::from(line == b"sleep\x00100\x00");
    }
    found
}

#[test]
fn a_schedule_holds_drills_by_itself_with_the_command_of_the_primary() {
    needs_all!();
    let world = world(&["--drill-every", "1s"]);
    let address = testkit::servers::own_address();
    let health = counter_stands_at(address, 0);
    let command = world.run_command_with("pki", &["--health", &health], &world::counter(address));
    let mut primary = world::Primary(Running::start(command));
    drop(Server::Python.wait_ready(address, SOON));
    let twice = |after: u64| {
        let app = world.wait_for_app("standby", "a drill by itself", |app| {
            app["drill"]["last_success"]["began_at_ns"].as_u64() > Some(after)
        });
        app["drill"].clone()
    };
    let first = twice(0);
    assert_eq!(first["last_success"]["trigger"], "schedule");
    assert_eq!(first["last_success"]["health"], Value::from(health));
    let began = first["last_success"]["began_at_ns"].as_u64().unwrap();
    let next = twice(began)["last_success"]["began_at_ns"].as_u64().unwrap();
    assert!(next - began >= 1_000_000_000, "{began} {next}");
    assert!(Path::new(&world.dir.path().join("state/kv.drills")).exists());
    primary.signal(Signal::TERM);
    primary.wait(SOON);
    world.end();
}
