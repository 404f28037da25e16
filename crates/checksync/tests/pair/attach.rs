//! `attach`: a process that was started by hand is protected where it is.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use gate::CellCgroup;
use rustix::process::{Pid, Signal, kill_process};
use testkit::needs;
use testkit::process::{Running, Watched};
use testkit::servers::{Server, own_address};
use testkit::wait::wait_until;

use crate::children;
use crate::world::{Fencing, Primary, SOON, World, counter, foreign_pki, shell, wait_for_two_epochs};

/// What a manager ends with whose app goes on elsewhere.
const FENCED: Option<i32> = Some(5);

/// Starts a program as somebody would who knows nothing of us, with nothing open that is this test's.
fn start(line: &[String]) -> Running {
    sys::spawn::close_all_on_exec().unwrap();
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).current_dir("/");
    Running::start(command)
}

/// A counter in a cgroup that it has to itself.
fn start_in_a_cgroup(name: &str, address: SocketAddr) -> (Running, CellCgroup) {
    let cgroup = CellCgroup::create("checksync-attach", name).unwrap();
    // Before it makes a socket, as for a service of systemd's.
    let join = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", cgroup.path().display());
    let mut line = shell(&join);
    line.push("sh".to_owned());
    line.extend(counter(address));
    (start(&line), cgroup)
}

/// A counter at 3, protected where it is.
fn attached(world: &World, app: &Running, address: SocketAddr) -> Primary {
    let mut client = Server::Python.wait_ready(address, SOON);
    for sequence in 1..=3 {
        client.advance(0, sequence).unwrap();
    }
    let primary = Primary(Running::start(world.attach_command(app.pid(), &[])));
    world.wait_until_protected();
    wait_for_two_epochs(world);
    client.advance(0, 4).unwrap();
    wait_for_two_epochs(world);
    primary
}

/// As at the death of a host, both end at once.
fn goes_on_at_the_standby(world: World, app: Running, address: SocketAddr) {
    let mut primary = attached(&world, &app, address);
    primary.signal(Signal::KILL);
    app.signal(Signal::KILL);
    primary.wait(SOON);
    drop(app);
    let taken = world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    assert_eq!((taken["role"].as_str(), taken["term"].as_u64()), (Some("primary"), Some(2)));
    let mut client = Server::Python.wait_ready(address, SOON);
    assert_eq!(client.read(0).unwrap(), Some(4), "what was committed is there");
    client.advance(0, 5).unwrap();
    drop(client);
    world.end();
}

#[test]
fn attached_process_goes_on_at_the_standby() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    let address = own_address();
    let app = start(&counter(address));
    goes_on_at_the_standby(world, app, address);
}

#[test]
fn attached_process_in_a_cgroup_of_its_own_goes_on_with_the_term_of_the_register() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    let world = World::new(Fencing::Register);
    let address = own_address();
    let (app, cgroup) = start_in_a_cgroup("kv", address);
    goes_on_at_the_standby(world, app, address);
    cgroup.remove(Duration::from_secs(5)).unwrap();
}

#[test]
fn attached_process_that_is_killed_goes_on_at_the_standby() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    let address = own_address();
    let app = start(&counter(address));
    let mut primary = attached(&world, &app, address);
    app.signal(Signal::KILL);
    assert_eq!(primary.wait(SOON).code(), FENCED);
    world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    assert_eq!(Server::Python.wait_ready(address, SOON).read(0).unwrap(), Some(4));
    world.end();
}

fn goes_on_when_its_manager_is_killed(world: World, app: Running, address: SocketAddr) {
    let mut primary = attached(&world, &app, address);
    let ended = Watched::of(Pid::from_raw(i32::try_from(app.pid()).unwrap()).unwrap());
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    wait_until("the guard kills what nobody protects", SOON, || ended.has_ended());
    drop(app);
    world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    assert_eq!(Server::Python.wait_ready(address, SOON).read(0).unwrap(), Some(4));
    world.end();
}

#[test]
fn attached_process_whose_manager_is_killed_is_silenced_and_goes_on_at_the_standby() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    let address = own_address();
    let app = start(&counter(address));
    goes_on_when_its_manager_is_killed(world, app, address);
}

#[test]
fn attached_process_in_a_cgroup_of_its_own_is_silenced_by_its_permit() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    let world = World::new(Fencing::Register);
    let address = own_address();
    let (app, cgroup) = start_in_a_cgroup("kv-silenced", address);
    goes_on_when_its_manager_is_killed(world, app, address);
    cgroup.remove(Duration::from_secs(5)).unwrap();
}

/// With no standby, what ran before its manager runs after it, too.
#[test]
fn attached_process_that_nobody_could_take_over_outlives_its_manager() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    foreign_pki(&world);
    let address = own_address();
    let app = start(&counter(address));
    let mut client = Server::Python.wait_ready(address, SOON);
    let mut primary = Primary(Running::start(world.attach_command_with("foreign", app.pid(), &[])));
    world.wait_for_app("primary", "trouble", |app| {
        app["why_not"].as_str().is_some_and(|why| why.contains("certificate"))
    });
    let manager = i32::try_from(primary.0.pid()).unwrap();
    let is_guard =
        |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap().windows(6).any(|w| w == b"\0guard");
    let guard = children(manager).into_iter().find(is_guard).expect("it has a guard");
    let guard = Watched::of(Pid::from_raw(guard).unwrap());
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    wait_until("the guard's end", SOON, || guard.has_ended());
    client.advance(0, 1).unwrap();
    assert_eq!(client.read(0).unwrap(), Some(1));
    drop(app);
    world.end();
}

/// Only its protection ends, as it began.
#[test]
fn attached_process_outlives_an_orderly_end_of_its_manager() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    let address = own_address();
    let mut app = start(&counter(address));
    for number in [4, 5] {
        let mut primary = match number {
            4 => attached(&world, &app, address),
            _ => Primary(Running::start(world.attach_command(app.pid(), &[]))),
        };
        world.wait_until_protected();
        primary.signal(Signal::TERM);
        assert!(primary.wait(SOON).success());
        world.wait_for_app("standby", "discarded", |app| app["state"] == "discarded");
        let mut client = Server::Python.wait_ready(address, SOON);
        assert_eq!(client.read(0).unwrap(), Some(number));
        client.advance(0, number + 1).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", app.pid())).unwrap();
        assert!(status.contains("TracerPid:\t0"), "{status}");
    }
    assert!(app.is_running());
    world.end();
}

/// A shell starts the program, and becomes its manager.
#[test]
fn child_of_its_own_manager_is_protected() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    let address = own_address();
    let attach = world.attach_command(0, &[]);
    let words = std::iter::once(attach.get_program()).chain(attach.get_args());
    let mut words: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
    words.pop(); // The process is the shell's to name.
    let script = format!("{} & exec {} $!", counter(address).join(" "), words.join(" "));
    sys::spawn::close_all_on_exec().unwrap();
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).env("CHECKSYNC_RUN_DIR", world.dir.path().join("run")).current_dir("/");
    let mut primary = Primary(Running::start(command));
    Server::Python.wait_ready(address, SOON).advance(0, 1).unwrap();
    let report = world.wait_for_app("primary", "protected", |app| app["state"] == "protected");
    wait_for_two_epochs(&world);
    let app = i32::try_from(report["app_pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(app).unwrap(), Signal::KILL).unwrap();
    assert_eq!(primary.wait(SOON).code(), FENCED);
    world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    assert_eq!(Server::Python.wait_ready(address, SOON).read(0).unwrap(), Some(1));
    world.end();
}

/// What can't be attached to is named, in no time, and whatever it is it runs on.
#[test]
fn what_cannot_be_attached_to_is_named_with_the_way_out() {
    needs!("root", "pagemap-scan");
    const USAGE: i32 = 2;
    const NOT_RUNNING: i32 = 4;
    const UNSUPPORTED: i32 = 6;
    let world = World::new(Fencing::Register);
    let tried = |pid: u32, code: i32, named: &[&str]| {
        let tried = world.attach_command(pid, &[]).output().unwrap();
        let why = String::from_utf8_lossy(&tried.stderr).into_owned();
        assert_eq!(tried.status.code(), Some(code), "{pid}: {why}");
        for name in named {
            assert!(why.contains(name), "{name:?} is not in: {why}");
        }
    };
    let mut gone = start(&shell("exit 0"));
    gone.wait(SOON);
    tried(gone.pid(), NOT_RUNNING, &[&format!("there is no process {}", gone.pid())]);
    tried(0, NOT_RUNNING, &["there is no process 0"]);
    // Ended, but not reaped as long as nobody asks.
    let zombie = start(&shell("exit 0"));
    let state = |pid: u32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    wait_until("its end", SOON, || state(zombie.pid()).contains(") Z "));
    tried(zombie.pid(), NOT_RUNNING, &["has ended"]);
    const KTHREADD: u32 = 2;
    if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
        tried(
            KTHREADD,
            UNSUPPORTED,
            &["process 2 (kthreadd) is the kernel's own", "name the process of a program"],
        );
    }
    // The other one of a program's threads.
    let own = std::process::id();
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let mut numbers = threads.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap());
    let thread: u32 = numbers.find(|&tid| tid != own).unwrap();
    tried(thread, USAGE, &[&format!("{thread} is a thread of process {own}; name that")]);
    let shared = start(&shell("exec sleep 1000"));
    tried(shared.pid(), UNSUPPORTED, &["holds other processes too", "more", "--fencing none"]);
    // Each of the calls above left the register as it was: it names nobody.
    let (code, status) = world.status();
    assert_eq!((code, status["managers"].as_array().map(Vec::len)), (0, Some(1)), "{status}");
    world.end();
}

#[test]
fn process_that_is_traced_already_is_refused_by_its_tracer() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    let address = own_address();
    let app = start(&counter(address));
    let mut primary = attached(&world, &app, address);
    let tried = world.attach_command(app.pid(), &[]).output().unwrap();
    let why = String::from_utf8_lossy(&tried.stderr).into_owned();
    assert_eq!(tried.status.code(), Some(6), "{why}");
    let named = format!("process {} (checksync) traces process {} already", primary.pid(), app.pid());
    assert!(why.contains(&named) && why.contains("end that first"), "{why}");
    primary.signal(Signal::TERM);
    primary.wait(SOON);
    world.end();
}
