//! An app that outlived its manager: nobody starts a second one beside it, and it can be protected again.

use std::net::SocketAddr;

use rustix::process::{Pid, Signal, kill_process};
use testkit::needs;
use testkit::process::Watched;
use testkit::servers::{Server, own_address};
use testkit::wait::wait_until;

use crate::parent;
use crate::world::{
    Fencing, SOON, World, counter, foreign_pki, protected_counter, shell, wait_for_two_epochs,
};

struct Survivor {
    app: App,
    guard: Watched,
    address: SocketAddr,
    world: World,
}

/// A process that nobody else would end.
struct App {
    pid: i32,
    watched: Watched,
}

impl Drop for App {
    fn drop(&mut self) {
        if !self.watched.has_ended() {
            // It fails if it ends by itself just now.
            let _ = kill_process(Pid::from_raw(self.pid).unwrap(), Signal::KILL);
        }
    }
}

/// A counter at 3 whose manager was killed while no standby could take over.
fn survivor(fencing: Fencing<'_>) -> Survivor {
    let world = World::new(fencing);
    foreign_pki(&world);
    let address = own_address();
    let (mut primary, _) = world.start_logged(world.run_command("foreign", &counter(address)));
    let mut client = Server::Python.wait_ready(address, SOON);
    for sequence in 1..=3 {
        client.advance(0, sequence).unwrap();
    }
    let report = world.wait_for_app("primary", "trouble", |app| {
        app["why_not"].as_str().is_some_and(|why| why.contains("certificate"))
    });
    let pid = i32::try_from(report["app_pid"].as_i64().unwrap()).unwrap();
    let (watched, guard) = (Watched::of(Pid::from_raw(pid).unwrap()), Watched::of(parent(pid)));
    let app = App { pid, watched };
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    Survivor { app, guard, address, world }
}

impl Survivor {
    /// What a new manager of the name says that does not take this process.
    #[track_caller]
    fn refuses(&self, mut manager: std::process::Command) {
        let refused = manager.output().unwrap();
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{why}");
        let lives = format!("app kv still runs, as process {}", self.app.pid);
        let way_out = format!("protect it again with `checksync attach {} --app kv`", self.app.pid);
        assert!(why.contains(&lives) && why.contains(&way_out), "{why}");
        assert!(!self.app.watched.has_ended(), "it was to be left alone");
    }

    fn end_app(&self) {
        kill_process(Pid::from_raw(self.app.pid).unwrap(), Signal::KILL).unwrap();
        self.wait_for_end();
    }

    #[track_caller]
    fn wait_for_end(&self) {
        wait_until("the app's end", SOON, || self.app.watched.has_ended());
        wait_until("the guard's end", SOON, || self.guard.has_ended());
    }
}

fn is_protected_again_and_taken_over(fencing: Fencing<'_>) {
    let left = survivor(fencing);
    let (world, address) = (&left.world, left.address);
    left.refuses(world.run_command("pki", &counter(address)));
    left.refuses(world.attach_command(std::process::id(), &[]));
    let (mut primary, _log) = world.start_logged(world.attach_command(left.app.pid.cast_unsigned(), &[]));
    world.wait_until_protected();
    let mut client = Server::Python.wait_ready(address, SOON);
    assert_eq!(client.read(0).unwrap(), Some(3));
    client.advance(0, 4).unwrap();
    wait_for_two_epochs(world);
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    // Somebody can take over now, so the guard of the attached app ends it.
    left.wait_for_end();
    world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    let mut client = Server::Python.wait_ready(address, SOON);
    assert_eq!(client.read(0).unwrap(), Some(4), "what was committed is there");
    left.world.end();
}

#[test]
fn survivor_is_named_protected_again_and_taken_over() {
    needs!("root", "pagemap-scan", "debian:python3");
    is_protected_again_and_taken_over(Fencing::None);
}

/// Its cgroup has the permit of the manager that is dead.
#[test]
fn survivor_in_its_cgroup_is_protected_again_and_taken_over() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    is_protected_again_and_taken_over(Fencing::Register);
}

/// A winner has no standby, so its app lives on without it, too.
#[test]
fn app_that_was_taken_over_outlives_its_manager_and_is_named() {
    needs!("root", "pagemap-scan", "debian:python3");
    let mut world = World::new(Fencing::None);
    let (address, mut primary, client) = protected_counter(&world);
    wait_for_two_epochs(&world);
    drop(client);
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    let served = world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    let pid = i32::try_from(served["app_pid"].as_i64().unwrap()).unwrap();
    let (watched, guard) = (Watched::of(Pid::from_raw(pid).unwrap()), Watched::of(parent(pid)));
    world.standby.signal(Signal::KILL);
    world.standby.wait(SOON);
    let left = Survivor { app: App { pid, watched }, guard, address, world };
    left.refuses(left.world.run_command("pki", &counter(address)));
    assert_eq!(Server::Python.wait_ready(address, SOON).read(0).unwrap(), Some(3));
    left.end_app();
}

#[test]
fn app_of_a_survivors_name_begins_once_that_has_ended() {
    needs!("root", "pagemap-scan", "debian:python3");
    let left = survivor(Fencing::None);
    left.end_app();
    let mut primary = left.world.run(&shell("echo begun"));
    assert_eq!(primary.line(SOON).as_deref(), Some("begun"));
    assert!(primary.wait(SOON).success());
    left.world.end();
}
