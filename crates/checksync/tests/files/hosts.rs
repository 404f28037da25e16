//! Two hosts that have different trees at one path: their managers live in mount namespaces of their own.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;
use testkit::process::Running;

use crate::world::{Fencing, Primary, SOON, World, checksync};

pub struct Hosts {
    pub world: World,
    pub primary: Primary,
    /// Where the state directory is, on all hosts.
    pub path: PathBuf,
    /// What the standby has at `path`.
    pub standby_tree: PathBuf,
    /// What a third host has there: nothing.
    pub empty_tree: PathBuf,
    /// The standby's directory for what goes by.
    pub room: PathBuf,
    _place: tempfile::TempDir,
}

impl Hosts {
    /// `program` gets the path of its state directory.
    pub fn protecting(options: &[&str], program: impl FnOnce(&Path) -> Vec<String>) -> Self {
        Self::make(options, program, |world, options, program| {
            world.run_command_with("pki", options, program)
        })
    }

    /// The standby is not asked.
    pub fn storing(options: &[&str], program: impl FnOnce(&Path) -> Vec<String>) -> Self {
        Self::make(options, program, |world, options, program| {
            let mut command = checksync(world.dir.path());
            command.args(["run", "--app", "kv", "--host", "a", "--pki"]).arg(world.dir.path().join("pki"));
            command.args(&world.fencing).args(options).arg("--").args(program);
            command
        })
    }

    fn make(
        options: &[&str],
        program: impl FnOnce(&Path) -> Vec<String>,
        run: impl FnOnce(&World, &[&str], &[String]) -> Command,
    ) -> Self {
        let place = tempfile::tempdir().unwrap();
        let [path, primary_tree, standby_tree, empty_tree, room] = ["state", "of-a", "of-b", "of-c", "room"]
            .map(|name| {
                let path = place.path().join(name);
                fs::create_dir(&path).unwrap();
                path
            });
        fs::write(standby_tree.join("left-over"), b"of an earlier life").unwrap();
        let world = World::with_standby(Fencing::Register, |dir, fencing| {
            let mut command = checksync(dir);
            command.args(["standby", "--listen", "127.0.0.1:0", "--host", "b", "--pki"]).arg(dir.join("pki"));
            command.args(fencing).env("TMPDIR", &room);
            with_tree(&command, &standby_tree, &path)
        });
        let state_dir = path.display().to_string();
        let options = [&["--interval", "10ms", "--state-dir", &state_dir], options].concat();
        let command = run(&world, &options, &program(&path));
        let command = with_tree(&command, &primary_tree, &path);
        let log = fs::File::create(world.dir.path().join("primary.log")).unwrap();
        let mut command = command;
        command.stderr(log);
        let primary = Primary(Running::start(command));
        Self { world, primary, path, standby_tree, empty_tree, room, _place: place }
    }

    pub fn wait_until_protected(&self) {
        self.world.wait_until_protected();
    }

    /// Kills the primary's manager at some moment, and waits until the standby serves.
    pub fn fail_over(&mut self) {
        const EPOCHS_MAX: u64 = 60;
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).subsec_nanos();
        let epochs = u64::from(nanos / 1000) % EPOCHS_MAX;
        let epoch = |app: &Value| app["epoch"].as_u64();
        let first = epoch(&self.world.wait_for_app("primary", "an epoch", |app| epoch(app).is_some()));
        self.world.wait_for_app("primary", "some epochs", |app| epoch(app) >= first.map(|n| n + epochs));
        self.primary.signal(Signal::KILL);
        self.primary.wait(SOON);
        self.world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
        assert_eq!(fs::read(self.replaced().join("left-over")).unwrap(), b"of an earlier life");
        assert!(!self.standby_tree.join("left-over").exists());
    }

    /// The same command, on the third host.
    pub fn on_third(&self, command: &Command) -> Command {
        with_tree(command, &self.empty_tree, &self.path)
    }

    /// Where the standby has kept what it had there before.
    fn replaced(&self) -> PathBuf {
        let ours = fs::read_dir(self.standby_tree.join(".checksync")).unwrap();
        let mut names = ours.map(|entry| entry.unwrap().path());
        let is_one = |path: &PathBuf| path.to_string_lossy().contains("replaced-by-");
        names.find(is_one).expect("what was there before is kept")
    }
}

/// The same command, where `tree` is at `path`.
fn with_tree(command: &Command, tree: &Path, path: &Path) -> Command {
    const SCRIPT: &str = "mount --bind \"$0\" \"$1\" && shift && exec \"$@\"";
    let mut within = Command::new("unshare");
    within.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT]).arg(tree).arg(path);
    within.arg(command.get_program()).args(command.get_args());
    let set = command.get_envs().filter_map(|(name, value): (&OsStr, Option<&OsStr>)| Some((name, value?)));
    within.envs(set);
    within
}

/// More of them show rarer moments.
pub fn rounds() -> usize {
    std::env::var("CHECKSYNC_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}
