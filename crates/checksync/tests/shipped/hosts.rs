//! Two hosts, of which the first alone has the program: it lies in a directory that the other has empty, or other files in.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use testkit::process::Running;
use testkit::servers::own_address;
use testkit::wait::{Deadline, wait_for};

use crate::world::{Fencing, Primary, SOON, World, checksync, wait_for_two_epochs};

/// The system's interpreter, whose copy is the program's executable.
const PYTHON: &str = "/usr/bin/python3";
const ZLIB: &str = "/lib/x86_64-linux-gnu/libz.so.1";
/// Whoever hears nothing for so long asks anew.
const SILENCE: Duration = Duration::from_secs(5);

/// A directory that is another one on each host.
pub struct Place {
    /// Where it is, on both.
    pub path: PathBuf,
    pub of_a: PathBuf,
    pub of_b: PathBuf,
    pub dir: tempfile::TempDir,
}

impl Place {
    /// The first host has the program.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [path, of_a, of_b] = ["app", "of-a", "of-b"].map(|name| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        });
        for below in ["bin", "lib", "deep/data", "deep/empty"] {
            fs::create_dir_all(of_a.join(below)).unwrap();
        }
        fs::copy(PYTHON, of_a.join("bin/kv")).unwrap();
        fs::copy(ZLIB, of_a.join("lib/libkv.so.1.2")).unwrap();
        symlink("libkv.so.1.2", of_a.join("lib/libkv.so")).unwrap();
        fs::copy(ZLIB, of_a.join("lib/plugin.so")).unwrap();
        fs::write(of_a.join("deep/data/table"), vec![7; 3 << 20]).unwrap();
        Self { path, of_a, of_b, dir }
    }

    pub fn program(&self, address: SocketAddr, opened: &str) -> Vec<String> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shipped/app.py");
        let path = |below: &str| self.path.join(below).display().to_string();
        let opened = if opened.is_empty() { String::new() } else { path(opened) };
        vec![path("bin/kv"), script.to_owned(), address.to_string(), path("lib/libkv.so"), opened]
    }

    /// The same command, on the first host or on the second.
    pub fn on(&self, tree: &Path, command: &Command) -> Command {
        const SCRIPT: &str = "mount --bind \"$0\" \"$1\" && shift && cd \"${IN:-.}\" && exec \"$@\"";
        let mut within = Command::new("unshare");
        within.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT]).arg(tree).arg(&self.path);
        within.arg(command.get_program()).args(command.get_args());
        let set =
            command.get_envs().filter_map(|(name, value): (&OsStr, Option<&OsStr>)| Some((name, value?)));
        within.envs(set).env("PYTHONHOME", "/usr").env("PYTHONDONTWRITEBYTECODE", "1");
        within
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// What the second host has in the directory.
    pub fn tree_of_b(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let (mut found, mut left) = (Vec::new(), vec![self.of_b.clone()]);
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => left.push(path),
                    false => found.push((path.clone(), fs::read(&path).unwrap())),
                }
            }
        }
        found.sort();
        found
    }
}

/// The pair.
pub struct Hosts {
    pub place: Place,
    pub world: World,
    pub primary: Primary,
    pub address: SocketAddr,
    keeps: bool,
}

impl Hosts {
    pub fn protecting(place: Place, options: &[&str], opened: &str) -> Self {
        Self::make(place, false, options, opened, |_| {})
    }

    /// The standby has a state directory.
    pub fn keeping(place: Place) -> Self {
        Self::make(place, true, &[], "", |_| {})
    }

    /// The app is in this directory.
    pub fn in_its_directory(place: Place, below: &str, opened: &str) -> Self {
        let directory = place.path.join(below);
        Self::make(place, false, &[], opened, |command| {
            command.env("IN", directory);
        })
    }

    /// The standby is not asked.
    pub fn storing(place: Place, options: &[&str]) -> Self {
        Self::make(place, false, &[&["--none"], options].concat(), "", |_| {})
    }

    fn make(
        place: Place,
        keeps: bool,
        options: &[&str],
        opened: &str,
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let world = World::with_standby(Fencing::Register, |dir, fencing| {
            let mut command = checksync(dir);
            command.args(["standby", "--listen", "127.0.0.1:0", "--host", "b", "--pki"]).arg(dir.join("pki"));
            command.args(fencing);
            Self::keep(&mut command, &place, keeps);
            let log = fs::File::create(dir.join("standby.log")).unwrap();
            let mut command = place.on(&place.of_b, &command);
            command.stderr(log);
            command
        });
        let address = own_address();
        let alone = options.first() == Some(&"--none");
        let options = [&["--interval", "10ms"], &options[usize::from(alone)..]].concat();
        let command = match alone {
            true => {
                let mut command = checksync(world.dir.path());
                command
                    .args(["run", "--app", "kv", "--host", "a", "--pki"])
                    .arg(world.dir.path().join("pki"));
                command.args(&world.fencing).args(options).arg("--").args(place.program(address, opened));
                command
            }
            false => world.run_command_with("pki", &options, &place.program(address, opened)),
        };
        let mut command = place.on(&place.of_a, &command);
        change(&mut command);
        command.stderr(fs::File::create(world.dir.path().join("primary.log")).unwrap());
        let primary = Primary(Running::start(command));
        Self { place, world, primary, address, keeps }
    }

    fn keep(command: &mut Command, place: &Place, keeps: bool) {
        if keeps {
            command.arg("--state").arg(place.state());
        }
    }

    /// Another life of the standby's daemon.
    pub fn restart_standby(&mut self) {
        self.world.standby.signal(Signal::KILL);
        self.world.standby.wait(SOON);
        self.world.wait_for_app("primary", "no standby", |app| app["state"] != "protected");
        let mut command = checksync(self.world.dir.path());
        command.args(["standby", "--listen", &self.world.standby_address, "--host", "b", "--pki"]);
        command.arg(self.world.dir.path().join("pki")).args(&self.world.fencing);
        Self::keep(&mut command, &self.place, self.keeps);
        let log = fs::File::create(self.log("standby-again")).unwrap();
        let mut command = self.place.on(&self.place.of_b, &command);
        command.stderr(log);
        self.world.standby = Running::start(command);
        self.world.standby.line(SOON).expect("a standby says where it listens");
    }

    fn log(&self, name: &str) -> PathBuf {
        self.world.dir.path().join(format!("{name}.log"))
    }

    pub fn log_of(&self, name: &str) -> String {
        fs::read_to_string(self.log(name)).unwrap_or_default()
    }

    pub fn ask(&self, question: &str) -> String {
        ask(self.address, question)
    }

    /// Kills the primary's manager, and waits until the standby serves.
    pub fn fail_over(&mut self) {
        wait_for_two_epochs(&self.world);
        self.primary.signal(Signal::KILL);
        self.primary.wait(SOON);
        self.world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // Killed, a standby that took over would leave its app behind.
        if self.world.standby.is_running() {
            self.world.standby.signal(Signal::TERM);
            let _ = Deadline::after(SOON).poll(|| (!self.world.standby.is_running()).then_some(()));
        }
        if std::thread::panicking() {
            for name in ["primary", "standby", "standby-again"] {
                eprintln!("{name}:\n{}", self.log_of(name));
            }
        }
    }
}

/// As the app says it.
pub fn digest(path: &Path) -> String {
    let said = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(said.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

pub fn ask(address: SocketAddr, question: &str) -> String {
    wait_for(&format!("an answer to {question:?}"), SOON, || {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(SILENCE)).ok()?;
        stream.write_all(format!("{question}\n").as_bytes()).ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok().filter(|len| *len > 0)?;
        Some(line.trim_end().to_owned())
    })
}
