//! The pair as people use it: the real program on both sides, on loopback, with the Python server of `apps/`.

#[path = "pair/attach.rs"]
mod attach;
#[path = "pair/configured.rs"]
mod configured;
#[path = "pair/crash.rs"]
mod crash;
#[path = "pair/operator.rs"]
mod operator;
#[path = "pair/servers.rs"]
mod servers;
#[path = "pair/survivor.rs"]
mod survivor;
#[path = "pair/sync.rs"]
mod sync;
#[path = "pair/terminal.rs"]
mod terminal;
mod world;

use std::fs;
use std::process::Stdio;

use gate::netlink::Netlink;
use rustix::process::{Pid, Signal};
use testkit::needs;
use testkit::process::{Running, Watched};
use testkit::servers::{Client, Server, own_address};
use testkit::wait::{wait_for, wait_until};
use world::{
    Fencing, Primary, SOON, World, counter, foreign_pki, protected_counter, python, shell,
    wait_for_two_epochs,
};

fn serves_after_its_manager_was_killed(world: World) {
    let (address, mut primary, client) = protected_counter(&world);
    wait_for_two_epochs(&world);
    drop(client);
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    let taken = world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    assert_eq!((taken["role"].as_str(), taken["term"].as_u64()), (Some("primary"), Some(2)));
    let mut client = Server::Python.wait_ready(address, SOON);
    assert_eq!(client.read(0).unwrap(), Some(3), "what was committed is there");
    client.advance(0, 4).unwrap();
    let hook = wait_for("the promote hook", SOON, || world.hook_has_run());
    assert_eq!(hook, "kv 2 primary\n");
    assert_eq!(world.status().0, 3, "a winner without a standby is unprotected");
    world.end();
}

#[test]
fn standby_serves_after_the_primary_manager_is_killed() {
    needs!("root", "pagemap-scan", "debian:python3");
    serves_after_its_manager_was_killed(World::new(Fencing::None));
}

#[test]
fn standby_serves_with_the_term_of_the_register() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    serves_after_its_manager_was_killed(World::new(Fencing::Register));
}

/// The processes that have this one as their parent, or are threads' of it.
fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

/// A host kills the copy of an app (for its memory, say): the primary hears of it, and syncs a new one.
#[test]
fn a_copy_that_is_killed_is_made_anew_and_takes_over() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::Register);
    let (address, mut primary, client) = protected_counter(&world);
    wait_for_two_epochs(&world);
    drop(client);
    let copies = || {
        let cells = children(i32::try_from(world.standby.pid()).unwrap());
        cells.into_iter().flat_map(children).collect::<Vec<_>>()
    };
    let [copy] = copies()[..] else { panic!("copies: {:?}", copies()) };
    rustix::process::kill_process(Pid::from_raw(copy).unwrap(), Signal::KILL).unwrap();
    wait_until(
        "a new copy, and nothing left of the old",
        SOON,
        || matches!(copies()[..], [new] if new != copy),
    );
    world.wait_until_protected();
    wait_for_two_epochs(&world);
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    let mut client = Server::Python.wait_ready(address, SOON);
    assert_eq!(client.read(0).unwrap(), Some(3), "what was committed is there");
    drop(client);
    world.end();
}

#[test]
fn clean_exit_passes_its_code_and_nobody_takes_over() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    let go = world.dir.path().join("go");
    let script = format!(
        "import os, time\nwhile not os.path.exists({:?}): time.sleep(0.01)\nprint('bye', flush=True)\nos._exit(7)",
        go.display().to_string()
    );
    let mut primary = world.run(&[python(), "-c".to_owned(), script]);
    world.wait_until_protected();
    fs::write(&go, "").unwrap();
    primary.expect_line("bye", SOON);
    assert_eq!(primary.wait(SOON).code(), Some(7));
    let copy = world.wait_for_app("standby", "discarded", |app| app["state"] == "discarded");
    assert!(copy["why_not"].as_str().unwrap().contains("the app ended"), "{copy}");
    world.end();
}

#[test]
fn terminated_manager_ends_the_app_and_the_pair() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    let (address, mut primary, client) = protected_counter(&world);
    drop(client);
    primary.signal(Signal::TERM);
    const DIED_BY_SIGTERM: i32 = 128 + 15;
    assert_eq!(primary.wait(SOON).code(), Some(DIED_BY_SIGTERM));
    world.wait_for_app("standby", "discarded", |app| app["state"] == "discarded");
    assert!(Client::connect(&Server::Python, address).is_err(), "nobody serves any more");
    world.end();
}

#[test]
fn unprotected_app_outlives_its_manager() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    foreign_pki(&world);
    let address = own_address();
    let mut primary = Primary(Running::start(world.run_command("foreign", &counter(address))));
    let mut client = Server::Python.wait_ready(address, SOON);
    let trouble = world.wait_for_app("primary", "trouble", |app| {
        app["why_not"].as_str().is_some_and(|why| why.contains("certificate"))
    });
    let pid = i32::try_from(trouble["app_pid"].as_i64().unwrap()).unwrap();
    let app = rustix::process::Pid::from_raw(pid).unwrap();
    let guard = Watched::of(parent(pid));
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    client.advance(0, 1).unwrap();
    rustix::process::kill_process(app, Signal::KILL).unwrap();
    wait_until("the app's end", SOON, || Client::connect(&Server::Python, address).is_err());
    wait_until("the guard's end", SOON, || guard.has_ended());
    world.end();
}

fn parent(pid: i32) -> Pid {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    Pid::from_raw(line.trim().parse().unwrap()).unwrap()
}

#[test]
fn app_begins_with_no_signal_blocked() {
    needs!("root", "pagemap-scan");
    let world = World::new(Fencing::None);
    let mut primary = world.run(&["grep", "SigBlk", "/proc/self/status"].map(str::to_owned));
    assert_eq!(primary.line(SOON).as_deref(), Some("SigBlk:\t0000000000000000"));
    primary.wait(SOON);
    world.end();
}

/// Its output left by way of its manager: alive, it would be mute, and in the way of a second one.
#[test]
fn gated_app_ends_with_its_manager_also_when_it_is_unprotected() {
    needs!("root", "pagemap-scan", CAP_BPF);
    let in_a_network_of_its_own = || {
        gate::Namespace::new().and_then(|namespace| namespace.enter()).unwrap();
        Netlink::open().and_then(|netlink| netlink.add_bridge("br0")).unwrap();
        let world = World::new(Fencing::Register);
        foreign_pki(&world);
        let strong = ["--consistency", "strong", "--address", "10.9.0.9/24", "--link", "br0"];
        let command = world.run_command_with("foreign", &strong, &shell("exec sleep 1000"));
        let mut primary = Primary(Running::start(command));
        let report = world.wait_for_app("primary", "trouble", |app| {
            app["app_pid"].is_i64() && app["why_not"].as_str().is_some_and(|why| why.contains("certificate"))
        });
        let app = i32::try_from(report["app_pid"].as_i64().unwrap()).unwrap();
        let app = Watched::of(Pid::from_raw(app).unwrap());
        primary.signal(Signal::KILL);
        primary.wait(SOON);
        wait_until("the app's end", SOON, || app.has_ended());
        world.end();
    };
    std::thread::spawn(in_a_network_of_its_own).join().unwrap();
}

#[test]
fn second_manager_of_an_app_is_refused_by_the_number_of_the_first() {
    needs!("root", "pagemap-scan");
    let world = World::new(Fencing::None);
    let mut first = world.run(&shell("echo up; exec sleep 1000"));
    first.expect_line("up", SOON);
    let second = world.run_command("pki", &shell("true")).stdin(Stdio::null()).output().unwrap();
    let why = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{why}");
    assert!(why.contains("app kv") && why.contains(&first.pid().to_string()), "{why}");
    first.signal(Signal::TERM);
    first.wait(SOON);
    world.end();
}

#[test]
fn a_program_that_is_not_there_is_named() {
    needs!("root", "pagemap-scan");
    let world = World::new(Fencing::None);
    let tried = world.run_command("pki", &["/no/such/program".to_owned()]).output().unwrap();
    let why = String::from_utf8_lossy(&tried.stderr).into_owned();
    assert!(!tried.status.success() && why.contains("/no/such/program"), "{why}");
    world.end();
}
