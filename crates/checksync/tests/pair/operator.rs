//! What an operator does to a pair, and what goes wrong around it: second starts, Ctrl-C, a full disk, no fencing.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::{Pid, Signal, kill_process};
use testkit::needs;
use testkit::process::{Running, Watched};
use testkit::servers::{Client, Server, own_address};
use testkit::wait::wait_until;

use crate::world::{
    Fencing, Primary, SOON, World, checksync, counter, foreign_pki, protected_counter, python, shell,
    wait_for_two_epochs,
};
use crate::{children, parent};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A standby of host b, on this address and with a state directory.
fn standby(dir: &Path, address: &str, fencing: &[String]) -> Command {
    let mut command = checksync(dir);
    command.args(["standby", "--listen", address, "--host", "b", "--pki"]).arg(dir.join("pki")).args(fencing);
    command.arg("--state").arg(dir.join("b"));
    command
}

#[test]
fn second_start_on_a_state_directory_is_refused_by_the_number_of_the_first() {
    needs!("root", "pagemap-scan");
    let world = World::with_standby(Fencing::None, |dir, none| standby(dir, "127.0.0.1:0", none));
    let state = world.dir.path().join("b").display().to_string();
    let named = format!("state directory {state} is in use by process {}", world.standby.pid());
    let run = world.run_command_with("pki", &["--state", &state], &shell("true"));
    for mut second in [standby(world.dir.path(), "127.0.0.1:0", &world.fencing), run] {
        let refused = second.output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        assert!(said(&refused).contains(&named), "{}", said(&refused));
    }
    world.end();
}

#[test]
fn second_standby_on_an_address_is_told_so() {
    needs!("root", "pagemap-scan");
    let world = World::new(Fencing::None);
    let mut second = standby(world.dir.path(), &world.standby_address, &world.fencing);
    let refused = second.output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let named = format!("cannot listen on {}; does another process?", world.standby_address);
    assert!(said(&refused).contains(&named), "{}", said(&refused));
    world.end();
}

/// By Ctrl-C, as in a terminal.
#[test]
fn standby_that_is_stopped_takes_its_copy_along_and_the_next_one_protects_again() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    let mut world =
        World::with_standby(Fencing::Register, |dir, arbiter| standby(dir, "127.0.0.1:0", arbiter));
    let (_, mut primary, mut client) = protected_counter(&world);
    let cells = children(i32::try_from(world.standby.pid()).unwrap());
    let copies: Vec<i32> = cells.iter().flat_map(|&cell| children(cell)).collect();
    assert_eq!((cells.len(), copies.len()), (1, 1), "a cell and a copy");
    let left: Vec<Watched> =
        cells.into_iter().chain(copies).map(|pid| Watched::of(Pid::from_raw(pid).unwrap())).collect();
    world.standby.signal(Signal::INT);
    assert!(world.standby.wait(SOON).success());
    wait_until("the copy's end", SOON, || left.iter().all(Watched::has_ended));
    let report = world.wait_for_app("primary", "unprotected", |app| app["protected"] == false);
    assert!(report["why_not"].is_string(), "{report}");
    assert_eq!(world.status().0, 3);
    client.advance(0, 4).unwrap();
    world.standby = Running::start(standby(world.dir.path(), &world.standby_address, &world.fencing));
    world.wait_until_protected();
    assert_eq!(world.status().0, 0);
    client.advance(0, 5).unwrap();
    primary.signal(Signal::TERM);
    primary.wait(SOON);
    world.end();
}

#[test]
fn standby_that_serves_ends_its_app_when_it_is_stopped() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    let (address, mut primary, client) = protected_counter(&world);
    wait_for_two_epochs(&world);
    drop(client);
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    let served = world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    let app = i32::try_from(served["app_pid"].as_i64().unwrap()).unwrap();
    let left = [Watched::of(Pid::from_raw(app).unwrap()), Watched::of(parent(app))];
    drop(Server::Python.wait_ready(address, SOON));
    world.end();
    assert!(left.iter().all(Watched::has_ended), "something is left");
    assert!(Client::connect(&Server::Python, address).is_err(), "somebody serves");
}

/// The first asks, the second does not.
#[test]
fn app_that_does_not_hear_is_killed_by_the_second_signal_or_after_its_grace() {
    needs!("root", "pagemap-scan", "debian:python3");
    const KILLED: Option<i32> = Some(128 + 9);
    let deaf = "import signal\nfor s in (signal.SIGTERM, signal.SIGINT): signal.signal(s, signal.SIG_IGN)\n\
                print('up', flush=True)\nwhile True: signal.pause()";
    let line = [python(), "-c".to_owned(), deaf.to_owned()];
    let world = World::new(Fencing::None);
    let start = |grace: &str| {
        let command = world.run_command_with("pki", &["--grace", grace], &line);
        let mut primary = Primary(Running::start(command));
        primary.expect_line("up", SOON);
        primary
    };
    let mut patient = start("600s");
    patient.signal(Signal::INT);
    patient.signal(Signal::TERM);
    assert_eq!(patient.wait(SOON).code(), KILLED);
    let mut impatient = start("50ms");
    impatient.signal(Signal::TERM);
    assert_eq!(impatient.wait(SOON).code(), KILLED);
    world.end();
}

#[test]
fn status_says_by_its_exit_code_how_it_stands() {
    needs!("root", "pagemap-scan");
    const PROTECTED: Option<i32> = Some(0);
    const UNPROTECTED: Option<i32> = Some(3);
    const NOT_RUNNING: Option<i32> = Some(4);
    let mut world = World::new(Fencing::None);
    foreign_pki(&world);
    let dir = world.dir.path().to_owned();
    let ask = |arguments: &[&str], code: Option<i32>, says: &str| {
        let asked = checksync(&dir).arg("status").args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&asked.stdout).into_owned();
        assert_eq!(asked.status.code(), code, "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {says:?} is not in {said}");
    };
    let begin = |world: &World, pki: &str| {
        let command = world.run_command(pki, &shell("echo up; exec sleep 1000"));
        let mut primary = Primary(Running::start(command));
        primary.expect_line("up", SOON);
        primary
    };
    let end = |mut primary: Primary| {
        primary.signal(Signal::TERM);
        primary.wait(SOON);
    };
    ask(&[], PROTECTED, "no app yet (fencing: none)");
    let primary = begin(&world, "foreign");
    world.wait_for_app("primary", "trouble", |app| {
        app["why_not"].as_str().is_some_and(|why| why.contains("certificate"))
    });
    ask(&[], UNPROTECTED, "kv: UNPROTECTED (");
    ask(&["-o", "json"], UNPROTECTED, r#""schema":1,"protected":false"#);
    end(primary);
    let primary = begin(&world, "pki");
    world.wait_until_protected();
    ask(&[], PROTECTED, "kv: PROTECTED, as primary, checkpoint 1/");
    ask(&["-o", "json", "--app", "kv"], PROTECTED, r#""schema":1,"protected":true"#);
    ask(&["--app", "other"], NOT_RUNNING, "no manager runs");
    end(primary);
    world.standby.signal(Signal::TERM);
    assert!(world.standby.wait(SOON).success());
    ask(&[], NOT_RUNNING, "no manager runs on this host");
    ask(&["-o", "json"], NOT_RUNNING, r#""protected":false,"managers":[]"#);
}

/// Runs a command where the directory `$1` has a file system of its own, without a byte that is free.
const FULL: &str = r#"mkdir -p "$1" && mount -t tmpfs -o size=64k none "$1" || exit 1
touch "$1/kv.log" "$1/manager.pid"
dd if=/dev/zero of="$1/filler" bs=4k 2>/dev/null
shift; exec "$@""#;

fn on_a_full_disk(state: &Path, command: &Command) -> Command {
    let mut shell = Command::new("unshare");
    shell
        .args(["--mount", "sh", "-c", FULL, "sh"])
        .arg(state)
        .arg(command.get_program())
        .args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

/// It costs the log of the app's output and nothing else, on both sides.
#[test]
fn full_disk_under_the_state_directories_costs_the_log_and_nothing_else() {
    needs!("root", "pagemap-scan", "debian:python3");
    let mut world = World::with_standby(Fencing::None, |dir, none| {
        let mut full = on_a_full_disk(&dir.join("b"), &standby(dir, "127.0.0.1:0", none));
        full.stderr(File::create(dir.join("standby.log")).unwrap());
        full
    });
    let dir = world.dir.path().to_owned();
    let counts = "import time\nn = 0\nwhile True: print(n, flush=True); n += 1; time.sleep(0.01)";
    let line = [python(), "-c".to_owned(), counts.to_owned()];
    let state = dir.join("a");
    let run = world.run_command_with("pki", &["--state", state.to_str().unwrap()], &line);
    let (mut primary, log) = world.start_logged(on_a_full_disk(&state, &run));
    let missing = |text: &str, state: &str| {
        let log = format!("the app's output is missing in {}", dir.join(state).join("kv.log").display());
        assert_eq!(text.matches(&log).count(), 1, "{text}");
        assert!(text.contains("No space left on device"), "{text}");
    };
    primary.expect_line("3", SOON);
    world.wait_until_protected();
    wait_for_two_epochs(&world);
    missing(&log.text(), "a");
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    let mut number = || world.standby.line(SOON).unwrap().parse::<u64>().expect("the app counts on");
    let first = number();
    assert!(first > 0, "it has begun anew");
    (1..5).for_each(|next| assert_eq!(number(), first + next));
    missing(&fs::read_to_string(dir.join("standby.log")).unwrap(), "b");
    world.end();
}

/// A counter at 3 that its standby could go on with, although nobody calls that protected.
fn unfenced_counter(world: &World) -> (SocketAddr, Primary) {
    let address = own_address();
    let primary = world.run(&counter(address));
    let mut client = Server::Python.wait_ready(address, SOON);
    for sequence in 1..=3 {
        client.advance(0, sequence).unwrap();
    }
    let report = world.wait_for_app("primary", "epochs", |app| app["epoch"].as_u64() >= Some(1));
    wait_for_two_epochs(world);
    assert_eq!(report["protected"], false, "{report}");
    assert!(report["why_not"].as_str().is_some_and(|why| why.contains("--fencing none")), "{report}");
    (address, primary)
}

/// With neither a register nor an explicit `none`, a standby believes the guard, and silence never.
#[test]
fn without_fencing_a_guards_word_is_enough_and_silence_is_not() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    let world = World::new(Fencing::Absent);
    let (address, mut primary) = unfenced_counter(&world);
    assert_eq!(world.status().1["managers"][0]["fencing"], "absent");
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    assert_eq!(Server::Python.wait_ready(address, SOON).read(0).unwrap(), Some(3));
    world.end();
    let world = World::new(Fencing::Absent);
    let (address, mut primary) = unfenced_counter(&world);
    let report = world.wait_for_app("primary", "a process", |app| app["app_pid"].is_i64());
    let guard = parent(i32::try_from(report["app_pid"].as_i64().unwrap()).unwrap());
    // As when the host dies: nobody is left to say anything.
    primary.signal(Signal::STOP);
    kill_process(guard, Signal::KILL).unwrap();
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    let copy = world.wait_for_app("standby", "that silence is no ground", |app| {
        app["why_not"].as_str().is_some_and(|why| why.contains("--arbiter"))
    });
    assert_eq!((&copy["state"], &copy["protected"]), (&"suspecting".into(), &false.into()), "{copy}");
    assert!(Client::connect(&Server::Python, address).is_err(), "it serves");
    world.end();
}
