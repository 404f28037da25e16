//! Planned moves, as an operator makes them: nothing is lost, and a move that can't be made leaves the app where it was.

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Signal;
use serde_json::Value;
use testkit::needs;
use testkit::servers::Server;
use testkit::wait::wait_until;
use world::{Fencing, SOON, World, checksync, protected_counter};

/// What `switchover` prints, and its exit code.
fn switch_over(world: &World, arguments: &[&str]) -> (Vec<Value>, Option<i32>) {
    let mut command = checksync(world.dir.path());
    command.args(["switchover", "-o", "json"]).args(arguments);
    let done = command.output().unwrap();
    let lines = String::from_utf8(done.stdout).unwrap();
    (lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), done.status.code())
}

#[test]
fn a_move_loses_nothing_although_nothing_is_held_back() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    let world = World::new(Fencing::Register);
    let (address, mut primary, mut client) = protected_counter(&world);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    // Writes until the connection ends with the move, and says what was answered last.
    let answered = Arc::new(AtomicU64::new(3));
    let counts = Arc::clone(&answered);
    let writer = std::thread::spawn(move || {
        let mut last = 3;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty)
            && client.advance(0, last + 1).is_ok()
        {
            last += 1;
            counts.store(last, Ordering::SeqCst);
        }
        last
    });
    wait_until("answers", SOON, || answered.load(Ordering::SeqCst) > 20);
    world.wait_until_protected();
    let (news, exit) = switch_over(&world, &["--app", "kv", "--to", "b"]);
    drop(stop);
    assert_eq!(exit, Some(0), "{news:?}");
    let moved = news.last().unwrap();
    assert!(moved["news"] == "moved" && moved["to"] == "b", "{news:?}");
    assert!(moved["pause_us"].as_u64().unwrap() < 5_000_000, "{moved}");
    let written = writer.join().unwrap();
    primary.wait(SOON);
    let taken = world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    assert_eq!(taken["term"].as_u64(), Some(2));
    let mut client = Server::Python.wait_ready(address, SOON);
    let kept = client.read(0).unwrap().unwrap();
    // The last write may have been taken and its answer cut off.
    assert!(kept == written || kept == written + 1, "{written} was answered, {kept} is there");
    client.advance(0, kept + 1).unwrap();
    world.end();
}

#[test]
fn a_move_that_cannot_be_made_leaves_the_app_where_it_was() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    let mut world = World::new(Fencing::Register);
    let (_, primary, mut client) = protected_counter(&world);
    let (news, exit) = switch_over(&world, &["--to", "c"]);
    assert!(exit == Some(1) && news.last().unwrap()["why"].as_str().unwrap().contains("b is"), "{news:?}");
    client.advance(0, 4).unwrap();
    world.standby.signal(Signal::KILL);
    world.standby.wait(SOON);
    world.wait_for_app("primary", "unprotected", |app| app["protected"] == false);
    let (news, exit) = switch_over(&world, &[]);
    assert!(exit == Some(1) && news.last().unwrap()["news"] == "called-off", "{news:?}");
    client.advance(0, 5).unwrap();
    drop(primary);
}

/// The standby stops answering at the worst time: the app goes on where it was, and nothing is lost.
#[test]
fn a_standby_that_hangs_in_a_move_calls_it_off() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    let world = World::new(Fencing::Register);
    let (_, primary, mut client) = protected_counter(&world);
    world.standby.signal(Signal::STOP);
    let (news, exit) = switch_over(&world, &[]);
    assert!(exit == Some(1) && news.last().unwrap()["news"] == "called-off", "{news:?}");
    world.standby.signal(Signal::CONT);
    assert_eq!(client.read(0).unwrap(), Some(3));
    client.advance(0, 4).unwrap();
    drop(client);
    // Called off again while the standby is about to be one.
    wait_until("a move", SOON, || {
        let (news, exit) = switch_over(&world, &[]);
        assert!(exit == Some(0) || news.last().is_some_and(|last| last["news"] == "called-off"), "{news:?}");
        exit == Some(0)
    });
    drop(primary);
    world.end();
}

/// While it lasts a dead manager leaves its app alone, and nobody else serves it.
#[test]
fn a_pause_is_shown_and_ends_when_it_is_told_to_or_by_itself() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    let world = World::new(Fencing::Register);
    let (_, primary, client) = protected_counter(&world);
    drop(client);
    let pause = |arguments: &[&str]| {
        let done = checksync(world.dir.path()).arg("pause").args(arguments).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let paused = |app: &Value| app["why_not"].as_str().is_some_and(|why| why.contains("paused"));
    pause(&["--for", "1000s"]);
    world.wait_for_app("primary", "paused", paused);
    pause(&["--end"]);
    world.wait_until_protected();
    pause(&["--for", "300ms"]);
    world.wait_for_app("primary", "paused", paused);
    world.wait_until_protected();
    drop(primary);
    world.end();
}
