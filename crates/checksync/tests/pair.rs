//! The pair as people use it: the real program on both sides, on loopback, with the Python server of `apps/`.

use std::fs;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gate::netlink::Netlink;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::Value;
use tempfile::TempDir;
use testkit::needs;
use testkit::process::Running;
use testkit::servers::{Client, Server, own_address};
use testkit::wait::{Deadline, wait_for, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// Who decides, in a test.
#[derive(Clone, Copy)]
enum Fencing {
    None,
    Register,
}

/// Two hosts' files, a run directory of this test's own, and a standby.
struct World {
    /// Real-time threads of several pairs on few processors would measure each other.
    _alone: MutexGuard<'static, ()>,
    dir: TempDir,
    fencing: [String; 2],
    standby: Running,
    standby_address: String,
}

impl World {
    fn new(fencing: Fencing) -> Self {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let made =
            checksync(dir.path()).args(["pki", "init"]).arg(dir.path().join("pki")).args(["a", "b"]).output();
        assert!(made.unwrap().status.success());
        let fencing = match fencing {
            Fencing::None => ["--fencing".to_owned(), "none".to_owned()],
            Fencing::Register => {
                ["--arbiter".to_owned(), format!("file:{}", dir.path().join("reg").display())]
            }
        };
        let mut command = checksync(dir.path());
        command
            .args(["standby", "--listen", "127.0.0.1:0", "--host", "b", "--pki"])
            .arg(dir.path().join("pki"));
        command.args(&fencing).arg("--promote-hook").arg(hook(dir.path()));
        let mut standby = Running::start(command);
        let line = standby.line(SOON).expect("a standby says where it listens");
        let standby_address = line.rsplit(' ').next().unwrap().to_owned();
        Self { _alone: alone, dir, fencing, standby, standby_address }
    }

    fn run(&self, program: &[String]) -> Primary {
        Primary(Running::start(self.run_command("pki", program)))
    }

    fn run_command(&self, pki: &str, program: &[String]) -> Command {
        self.run_command_with(pki, &[], program)
    }

    fn run_command_with(&self, pki: &str, options: &[&str], program: &[String]) -> Command {
        let mut command = checksync(self.dir.path());
        command.args(["run", "--app", "kv", "--host", "a", "--standby", &self.standby_address, "--pki"]);
        command.arg(self.dir.path().join(pki)).args(&self.fencing).args(options).arg("--").args(program);
        command
    }

    /// The report of the app by the manager of this role, once `wanted` says that it is the one.
    fn wait_for_app(&self, role: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("{role}: {what}"), SOON, || {
            let (_, status) = self.status();
            let managers = status["managers"].as_array()?.clone();
            let manager = managers.into_iter().find(|manager| manager["role"] == role)?;
            manager["apps"].as_array()?.iter().find(|app| wanted(app)).cloned()
        })
    }

    fn wait_until_protected(&self) {
        self.wait_for_app("primary", "protected", |app| app["state"] == "protected");
    }

    fn status(&self) -> (i32, Value) {
        let asked = checksync(self.dir.path()).args(["status", "-o", "json"]).output().unwrap();
        (asked.status.code().unwrap(), serde_json::from_slice(&asked.stdout).unwrap())
    }

    fn hook_has_run(&self) -> Option<String> {
        let text = fs::read_to_string(hook_file(self.dir.path())).ok()?;
        text.ends_with('\n').then_some(text)
    }

    fn end(mut self) {
        self.standby.signal(Signal::TERM);
        assert!(self.standby.wait(SOON).success());
    }
}

/// A primary manager. One that is dropped while it runs is asked to end: killed, it would leave its app behind.
struct Primary(Running);

impl Deref for Primary {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.0
    }
}

impl DerefMut for Primary {
    fn deref_mut(&mut self) -> &mut Running {
        &mut self.0
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        if self.0.is_running() {
            self.0.signal(Signal::TERM);
            // One that hangs is killed by the inner guard.
            let _ = Deadline::after(SOON).poll(|| (!self.0.is_running()).then_some(()));
        }
    }
}

fn checksync(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_checksync"));
    command.env("CHECKSYNC_RUN_DIR", dir.join("run"));
    command
}

fn hook_file(dir: &Path) -> PathBuf {
    dir.join("hook")
}

fn hook(dir: &Path) -> String {
    let file = hook_file(dir);
    format!("echo $CHECKSYNC_APP $CHECKSYNC_TERM $CHECKSYNC_ROLE > {}", file.display())
}

fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

/// By the interpreter itself: what is found on the PATH may be a script that ends in it.
fn python() -> String {
    let asked = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    String::from_utf8(asked.stdout).unwrap().trim().to_owned()
}

fn counter(address: SocketAddr) -> Vec<String> {
    let mut line = Server::Python.command_line(address);
    line[0] = python();
    line
}

/// A protected counter at 3, its manager and a client.
fn protected_counter(world: &World) -> (SocketAddr, Primary, Client) {
    let address = own_address();
    let primary = world.run(&counter(address));
    let mut client = Server::Python.wait_ready(address, SOON);
    for sequence in 1..=3 {
        client.advance(0, sequence).unwrap();
    }
    world.wait_until_protected();
    (address, primary, client)
}

/// Waits for a checkpoint that began after now.
fn wait_for_two_epochs(world: &World) {
    let epoch = |app: &Value| app["epoch"].as_u64();
    let first = epoch(&world.wait_for_app("primary", "an epoch", |app| epoch(app).is_some()));
    world.wait_for_app("primary", "two epochs more", |app| epoch(app) >= first.map(|first| first + 2));
}

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

#[test]
fn app_that_is_killed_goes_on_at_the_standby() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    let (address, mut primary, client) = protected_counter(&world);
    wait_for_two_epochs(&world);
    drop(client);
    let report = world.wait_for_app("primary", "a process", |app| app["app_pid"].is_i64());
    let pid = i32::try_from(report["app_pid"].as_i64().unwrap()).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    let mut client = Server::Python.wait_ready(address, SOON);
    assert_eq!(client.read(0).unwrap(), Some(3));
    assert!(!primary.wait(SOON).success());
    world.end();
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
    // Nobody may be there to reap an orphan: its end is asked for, not the end of its entry in /proc.
    let guard = rustix::process::pidfd_open(parent(pid), PidfdFlags::empty()).unwrap();
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    client.advance(0, 1).unwrap();
    rustix::process::kill_process(app, Signal::KILL).unwrap();
    wait_until("the app's end", SOON, || Client::connect(&Server::Python, address).is_err());
    wait_until("the guard's end", SOON, || {
        let mut ended = [PollFd::new(&guard, PollFlags::IN)];
        rustix::event::poll(&mut ended, Some(&Timespec::default())).unwrap() == 1
    });
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
        let app = PathBuf::from(format!("/proc/{}", report["app_pid"]));
        assert!(app.exists());
        primary.signal(Signal::KILL);
        primary.wait(SOON);
        wait_until("the app's end", SOON, || !app.exists());
        world.end();
    };
    std::thread::spawn(in_a_network_of_its_own).join().unwrap();
}

/// Certificates of an authority that the standby does not know.
fn foreign_pki(world: &World) {
    let foreign = world.dir.path().join("foreign");
    let made = checksync(world.dir.path()).args(["pki", "init"]).arg(&foreign).arg("a").output().unwrap();
    assert!(made.status.success());
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
