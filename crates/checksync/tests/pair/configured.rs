//! A whole pair from a file alone, or from the environment alone; and who beats whom.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use testkit::needs;
use testkit::process::Running;
use testkit::servers::{Server, own_address};
use testkit::wait::wait_for;

use crate::world::{Fencing, Primary, SOON, World, checksync, counter, hook, shell, wait_for_two_epochs};

/// Where settings are put down.
#[derive(Clone, Copy)]
enum Source {
    File,
    Environment,
}

type Settings = Vec<(&'static str, String)>;

/// Gives a manager its settings, each a key and a value as TOML writes it.
fn configure(command: &mut Command, source: Source, file: &Path, settings: &Settings) {
    match source {
        Source::File => {
            let lines = settings.iter().map(|(key, value)| format!("{key} = {value}\n"));
            fs::write(file, lines.collect::<String>()).unwrap();
            command.arg("--config").arg(file);
        }
        Source::Environment => {
            let name = |key: &str| format!("CHECKSYNC_{}", key.to_uppercase());
            command.envs(settings.iter().map(|(key, value)| (name(key), value.trim_matches('\''))));
        }
    }
}

fn text(value: impl AsRef<Path>) -> String {
    format!("'{}'", value.as_ref().display())
}

fn shared(dir: &Path, host: &str) -> Settings {
    vec![
        ("pki", text(dir.join("pki"))),
        ("host", text(host)),
        ("arbiter", text(format!("file:{}", dir.join("reg").display()))),
        ("state", text(dir.join(host))),
    ]
}

fn pair_from(source: Source) {
    let world = World::with_standby(Fencing::Register, |dir, _| {
        let mut command = checksync(dir);
        let mut settings = shared(dir, "b");
        settings.push(("listen", text("127.0.0.1:0")));
        settings.push(("promote_hook", text(hook(dir))));
        settings.push(("network_threads", "1".to_owned()));
        command.arg("standby");
        configure(&mut command, source, &dir.join("b.toml"), &settings);
        command
    });
    let (dir, address) = (world.dir.path(), own_address());
    let mut settings = shared(dir, "a");
    settings.extend([
        ("app", text("kv")),
        ("standby", text(&world.standby_address)),
        ("interval", text("20ms")),
        ("heartbeat", text("30ms")),
        ("missed", "4".to_owned()),
        ("on_crash", text("failover")),
        ("consistency", text("timeline")),
        ("grace", text("1s")),
        ("shadow_mib", "16".to_owned()),
    ]);
    let mut command = checksync(dir);
    command.arg("run");
    configure(&mut command, source, &dir.join("a.toml"), &settings);
    let mut line = counter(address);
    line.insert(0, "--".to_owned());
    let mut primary = Primary(Running::start({
        command.args(&line);
        command
    }));
    Server::Python.wait_ready(address, SOON).advance(0, 1).unwrap();
    world.wait_until_protected();
    wait_for_two_epochs(&world);
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    world.wait_for_app("standby", "serving", |app| app["state"] == "serving");
    assert_eq!(Server::Python.wait_ready(address, SOON).read(0).unwrap(), Some(1));
    let served = wait_for("the promote hook", SOON, || world.hook_has_run());
    assert_eq!(served, "kv 2 primary\n");
    for state in ["a", "b"] {
        assert!(dir.join(state).join("manager.pid").exists(), "the state directory {state} was not used");
    }
    world.end();
}

#[test]
fn pair_works_from_two_files_alone() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    pair_from(Source::File);
}

#[test]
fn pair_works_from_the_environment_alone() {
    needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    pair_from(Source::Environment);
}

/// By the name that the app gets.
#[test]
fn flag_beats_the_environment_which_beats_the_file() {
    needs!("root", "pagemap-scan");
    let world = World::new(Fencing::None);
    let file = world.dir.path().join("config");
    fs::write(&file, "app = 'of-the-file'\ninterval = '20ms'\n").unwrap();
    let start = |environment: Option<&str>, flag: Option<&str>| {
        let mut command = checksync(world.dir.path());
        command.args([
            "run",
            "--host",
            "a",
            "--fencing",
            "none",
            "--standby",
            &world.standby_address,
            "--pki",
        ]);
        command.arg(world.dir.path().join("pki")).env("CHECKSYNC_CONFIG", &file);
        command.envs(environment.map(|name| ("CHECKSYNC_APP", name)));
        command
            .args(flag.into_iter().flat_map(|name| ["--app", name]))
            .arg("--")
            .args(shell("exec sleep 1000"));
        Primary(Running::start(command))
    };
    for (environment, flag, wins) in [
        (None, None, "of-the-file"),
        (Some("of-the-environment"), None, "of-the-environment"),
        (Some("of-the-environment"), Some("of-the-flag"), "of-the-flag"),
    ] {
        let mut primary = start(environment, flag);
        let named = |app: &Value| app["app"] == wins;
        world.wait_for_app("primary", &format!("an app named {wins}"), named);
        primary.signal(Signal::TERM);
        primary.wait(SOON);
    }
    world.end();
}
