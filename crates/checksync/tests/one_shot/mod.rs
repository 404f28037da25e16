//! `checkpoint`, `restore` and `inspect`: of a process that runs already, and knows nothing of it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use testkit::needs;
use testkit::wait::{wait_for, wait_until};

use super::{checksync, code, complained, json, run, said, text};

const SOON: Duration = Duration::from_secs(30);

/// The demo's key/value server, as a process that anybody might have started.
struct App {
    process: Child,
    address: SocketAddr,
    dir: TempDir,
}

impl App {
    fn start() -> Self {
        // What the test runner has open would be the app's, too.
        sys::spawn::close_all_on_exec().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("app.out");
        let file = File::create(&output).unwrap();
        let mut command = checksync();
        command.args(["demo-app", "127.0.0.1:0"]).stdout(file.try_clone().unwrap()).stderr(file);
        command.current_dir("/").process_group(0);
        let process = command.spawn().unwrap();
        let address = wait_for("the app's address", SOON, || {
            fs::read_to_string(&output).unwrap().trim().rsplit_once(' ')?.1.parse().ok()
        });
        Self { process, address, dir }
    }

    fn pid(&self) -> String {
        self.process.id().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ask(&self, request: &str) -> String {
        let mut connection = TcpStream::connect(self.address).unwrap();
        connection.set_read_timeout(Some(SOON)).unwrap();
        writeln!(connection, "{request}").unwrap();
        let mut answer = String::new();
        BufReader::new(connection).read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    fn runs(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Saves it into `name` and lets it end.
    fn save(&mut self, name: &str) -> PathBuf {
        let dir = self.path(name);
        let saved = run(&["checkpoint", &self.pid(), "--to", text(&dir)]);
        assert_eq!(code(&saved), Some(0), "{}", complained(&saved));
        assert!(!self.process.wait().unwrap().success(), "it was to be killed");
        dir.join("checkpoint-1-1.csf")
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

macro_rules! needs_all {
    () => {
        needs!(CAP_SYS_ADMIN, CAP_SYS_PTRACE, "pagemap-scan", "root");
    };
}

#[test]
fn process_that_is_left_running_notices_nothing_and_can_be_inspected() {
    needs_all!();
    let mut app = App::start();
    assert_eq!(app.ask("PUT a 1"), "OK");
    let dir = app.path("saved");
    let saved = run(&["checkpoint", &app.pid(), "--to", text(&dir), "--leave-running", "-o", "json"]);
    let why = complained(&saved);
    assert!(why.contains("not in the checkpoint") && why.contains(text(&app.path("app.out"))), "{why}");
    assert_eq!(code(&saved), Some(0), "{}", complained(&saved));
    assert_eq!(json(&saved)["left_running"], true);
    assert!(app.runs());
    assert_eq!(app.ask("GET a"), "1");
    let tree = said(&run(&["inspect", text(&dir)]));
    for wanted in ["checkpoint 1/1", "threads  2", &format!("listener tcp {}", app.address), "anonymous"] {
        assert!(tree.contains(wanted), "{wanted} is not in\n{tree}");
    }
    let contents = json(&run(&["inspect", text(&dir), "-o", "json"]));
    assert_eq!(contents["processes"][0]["pid"], app.process.id());
    assert!(contents["memory"]["pages"].as_u64().unwrap() > 10);
}

#[test]
fn restored_process_goes_on_with_its_memory_and_passes_on_how_it_ends() {
    needs_all!();
    let mut app = App::start();
    assert_eq!(app.ask("PUT a 1"), "OK");
    let file = app.save("saved");
    let pidfile = app.path("pid");
    let mut command = checksync();
    command.arg("restore").arg(file.parent().unwrap()).arg("--pidfile").arg(&pidfile);
    let mut restored = command.stderr(Stdio::null()).spawn().unwrap();
    wait_until("the pid file", SOON, || pidfile.exists());
    assert_eq!(app.ask("GET a"), "1");
    assert_eq!(app.ask("PUT b 2"), "OK");
    sys::task::kill(restored.id() as i32, libc::SIGTERM).unwrap();
    let ended = wait_for("its end", SOON, || restored.try_wait().unwrap());
    assert_eq!(ended.code(), Some(128 + libc::SIGTERM), "the app's own end is passed on");
    assert!(!pidfile.exists(), "the pid file names a process that is gone");
}

#[test]
fn detached_process_outlives_the_verb() {
    needs_all!();
    let mut app = App::start();
    assert_eq!(app.ask("PUT a 1"), "OK");
    let file = app.save("saved");
    let dir = file.parent().unwrap();
    let pidfile = app.path("pid");
    let mut restore = checksync();
    restore.arg("restore").arg(dir).args(["--detach", "-o", "json", "--pidfile"]).arg(&pidfile);
    let restored = restore.output().unwrap();
    assert_eq!(code(&restored), Some(0), "{}", complained(&restored));
    let pid = json(&restored)["pid"].as_i64().unwrap() as i32;
    assert_eq!(fs::read_to_string(&pidfile).unwrap(), format!("{pid}\n"));
    assert_eq!(app.ask("GET a"), "1");
    sys::task::kill(pid, libc::SIGKILL).unwrap();
    wait_until("its manager's end", SOON, || !pidfile.exists());
}

#[test]
fn two_checkpoints_are_compared_by_mappings_pages_threads_and_descriptors() {
    needs_all!();
    let app = App::start();
    let (first, second) = (app.path("first"), app.path("second"));
    let save = |dir: &Path| run(&["checkpoint", &app.pid(), "--to", text(dir), "--leave-running"]);
    assert_eq!(code(&save(&first)), Some(0));
    let mut client = TcpStream::connect(app.address).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    let mut answers = BufReader::new(client.try_clone().unwrap());
    for key in 0..200 {
        writeln!(client, "PUT key{key} {}", "v".repeat(1000)).unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "OK\n");
    }
    assert_eq!(code(&save(&second)), Some(0));

    let same = json(&run(&["checkpoints", "diff", text(&first), text(&first), "-o", "json"]));
    assert_eq!((&same["same"], &same["memory"]["pages_changed"]), (&true.into(), &0.into()), "{same}");
    let changed = json(&run(&["checkpoints", "diff", text(&first), text(&second), "-o", "json"]));
    assert_eq!(changed["same"], false);
    let list = |list: &serde_json::Value| list.as_array().unwrap().clone();
    let mappings = list(&changed["memory"]["mappings"]);
    let pages = |mapping: &serde_json::Value| mapping["pages_changed"].as_u64().unwrap();
    let most = mappings.iter().max_by_key(|mapping| pages(mapping)).unwrap();
    assert!(pages(most) >= 50, "200 kB are 50 pages: {most}");
    assert!(["[heap]", "[anon]"].iter().any(|what| most["what"] == *what), "{most}");
    assert_eq!(mappings.iter().map(pages).sum::<u64>(), changed["memory"]["pages_changed"].as_u64().unwrap());
    let executable = env!("CARGO_BIN_EXE_checksync");
    let unwritten = |mapping: &serde_json::Value| mapping["what"] == executable && pages(mapping) > 20;
    assert!(!mappings.iter().any(unwritten), "its text is as it was: {mappings:?}");
    let descriptors = list(&changed["processes"][0]["descriptors"]);
    let connection = descriptors.iter().find(|one| one["change"] == "new").expect("a connection");
    assert_eq!(connection["after"]["kind"], "connection");
    let peer = client.local_addr().unwrap().to_string();
    assert!(connection["after"]["what"].as_str().unwrap().contains(&peer), "{connection}");
    let threads = list(&changed["processes"][0]["threads"]);
    assert!(threads.iter().any(|thread| thread["change"] == "new"), "one for the connection: {threads:?}");
    let back = json(&run(&["checkpoints", "diff", text(&second), text(&first), "-o", "json"]));
    assert_eq!(list(&back["processes"][0]["descriptors"])[0]["change"], "gone", "{back}");
    let tree = said(&run(&["checkpoints", "diff", text(&first), text(&second)]));
    for wanted in ["checkpoint 1.1 to 1.1", "pages", &format!("connection tcp {}", app.address)] {
        assert!(tree.contains(wanted), "{wanted} is not in\n{tree}");
    }
}

#[test]
fn what_cannot_be_compared_is_named() {
    needs_all!();
    let mut app = App::start();
    let file = app.save("saved");
    let saved = file.parent().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes.pop();
    let cut = app.path("cut");
    fs::create_dir(&cut).unwrap();
    fs::write(cut.join("checkpoint-1-1.csf"), bytes).unwrap();
    for (other, exit, named) in [
        (text(&cut), 1, "is cut off after"),
        (text(&app.path("nowhere")), 1, "nowhere"),
        ("1.2", 2, "--store"),
        ("latest", 2, "--store"),
    ] {
        let refused = run(&["checkpoints", "diff", text(saved), other]);
        assert_eq!(code(&refused), Some(exit), "{other}");
        assert!(complained(&refused).contains(named), "{other}: {}", complained(&refused));
    }
}

/// Each is refused by its own name, and leaves no process behind.
#[test]
fn damaged_files_are_refused_and_nothing_is_half_restored() {
    needs_all!();
    let mut app = App::start();
    let file = app.save("saved");
    let good = fs::read(&file).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut newer = good.clone();
    newer[6] = 9;
    for (bad, name) in [
        (flipped, "checksum of frame"),
        (newer, "frame version 9 is not known"),
        (good[..good.len() / 2].to_vec(), "is cut off after"),
        (good[..good.len() - 1].to_vec(), "is cut off after"),
        (b"something else".repeat(10), "not a checkpoint frame"),
        (Vec::new(), "is cut off after"),
    ] {
        fs::write(&file, bad).unwrap();
        for verb in [&["restore"][..], &["restore", "--detach"], &["inspect"]] {
            let refused = run(&[verb, &[text(file.parent().unwrap())]].concat());
            assert_eq!(code(&refused), Some(1), "{verb:?} of a file with {name}");
            assert!(complained(&refused).contains(name), "{verb:?}: {}", complained(&refused));
        }
    }
    assert!(TcpStream::connect(app.address).is_err(), "somebody listens again");
    fs::write(&file, good).unwrap();
    assert_eq!(code(&run(&["inspect", text(file.parent().unwrap())])), Some(0), "the good file is good");
}

#[test]
fn full_disk_costs_the_checkpoint_and_nothing_else() {
    needs_all!();
    let mut app = App::start();
    let mount = app.path("small");
    fs::create_dir(&mount).unwrap();
    let script = r#"mount -t tmpfs -o size=64k none "$1" && "$2" checkpoint "$3" --to "$1/saved"; echo "exit $?"; ls "$1""#;
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-c", script, "sh"]).arg(&mount);
    let output = shell.arg(env!("CARGO_BIN_EXE_checksync")).arg(app.pid()).output().unwrap();
    assert_eq!(said(&output), "exit 1\n", "the failure is not 1, or something is left");
    assert!(complained(&output).contains("No space left on device"), "{}", complained(&output));
    assert!(app.runs(), "a failed checkpoint may not cost the app its life");
    assert_eq!(app.ask("COUNT"), "0");
}

#[test]
fn what_cannot_be_saved_is_named_and_code_6() {
    needs_all!();
    let dir = tempfile::tempdir().unwrap();
    let mut app = Command::new("sleep").arg("60").stdin(Stdio::piped()).spawn().unwrap();
    let pid = app.id().to_string();
    let to = dir.path().join("saved");
    wait_until("sleep runs", SOON, || comm(&pid) == "sleep\n");
    let refused = run(&["checkpoint", &pid, "--to", text(&to)]);
    let checked = run(&["check", "--pid", &pid]);
    let runs = app.try_wait().unwrap().is_none();
    app.kill().and_then(|()| app.wait()).unwrap();
    assert_eq!(code(&refused), Some(6));
    let what = format!("cannot protect pid {pid}: fd 0 is a pipe whose other end is outside the app");
    assert!(complained(&refused).contains(&what), "{}", complained(&refused));
    assert!(!to.exists(), "a refused checkpoint left something");
    assert_eq!(code(&checked), Some(6));
    assert!(said(&checked).contains(&what), "{}", said(&checked));
    assert!(said(&checked).contains("fix: redirect it to a file"), "{}", said(&checked));
    assert!(runs, "it was to be left alone");
}

#[test]
fn files_that_nobody_replicates_are_named_by_check() {
    needs!(CAP_SYS_ADMIN, CAP_SYS_PTRACE, "pagemap-scan", "root");
    let app = App::start();
    let line = format!("open for writing, and not replicated: {}", text(&app.path("app.out")));
    let checked = said(&run(&["check", "--pid", &app.pid()]));
    assert!(checked.contains(&line) && checked.contains("--state-dir"), "{checked}");
    for flag in ["--state-dir", "--shared"] {
        let checked = said(&run(&["check", "--pid", &app.pid(), flag, text(app.dir.path())]));
        assert!(checked.contains("pause") && !checked.contains("not replicated"), "{flag}: {checked}");
    }
}

fn comm(pid: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

#[test]
fn process_that_is_not_there_is_code_4() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("saved");
    let refused = run(&["checkpoint", "2147483647", "--to", text(&to)]);
    assert_eq!(code(&refused), Some(4), "{}", complained(&refused));
    assert!(!to.exists());
}

#[test]
fn second_checkpoint_never_replaces_the_first() {
    needs_all!();
    let app = App::start();
    let dir = app.path("saved");
    let arguments = ["checkpoint", &app.pid(), "--to", text(&dir), "--leave-running"];
    assert_eq!(code(&run(&arguments)), Some(0));
    let first = contents(&dir);
    let second = run(&arguments);
    assert_eq!(code(&second), Some(1));
    assert!(
        complained(&second).contains("is there already and is not overwritten"),
        "{}",
        complained(&second)
    );
    assert_eq!(contents(&dir), first);
}

fn contents(dir: &Path) -> Vec<(PathBuf, u64)> {
    let entry = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.path(), entry.metadata().unwrap().len())
    };
    fs::read_dir(dir).unwrap().map(entry).collect()
}
