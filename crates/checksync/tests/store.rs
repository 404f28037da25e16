//! What is in the store outlives both hosts: with every manager and the app dead, a restore from the store alone serves
//! what was served.

mod world;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;
use testkit::needs;
use testkit::process::{Running, kill};
use testkit::servers::{Azurite, Client, Moto, Server};
use world::{Fencing, Primary, SOON, World, checksync, counter, pid};

macro_rules! needs_all {
    () => {
        needs!("root", "pagemap-scan", "debian:python3", CAP_BPF);
    };
}

#[path = "store/heirs.rs"]
mod heirs;

fn options(spec: &str) -> [&str; 4] {
    ["--store", spec, "--store-interval", "100ms"]
}

fn ask(world: &World, verb: &[&str], spec: &str, more: &[&str]) -> Output {
    let mut command = checksync(world.dir.path());
    command.args(verb).args(["--store", spec, "--app", "kv"]).args(more).output().unwrap()
}

fn json(output: &Output) -> Value {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A protected counter whose checkpoints go to a folder.
struct Storing {
    folder: PathBuf,
    spec: String,
    address: SocketAddr,
    primary: Primary,
    client: Client,
}

impl Storing {
    fn start(world: &World) -> Self {
        let folder = world.dir.path().join("store");
        let spec = format!("file:{}", folder.display());
        let address = testkit::servers::own_address();
        let command = world.run_command_with("pki", &options(&spec), &counter(address));
        let primary = Primary(Running::start(command));
        let client = Server::Python.wait_ready(address, SOON);
        world.wait_until_protected();
        Self { folder, spec, address, primary, client }
    }
}

#[test]
fn with_everything_dead_the_store_alone_brings_the_app_back() {
    needs_all!();
    let mut world = World::new(Fencing::Register);
    let Storing { spec, address, mut primary, mut client, .. } = Storing::start(&world);
    let mut stored_at = 0;
    for sequence in 1..=40 {
        client.advance(0, sequence).unwrap();
        if sequence % 10 == 0 && sequence < 40 {
            let report = world.wait_until_stored();
            assert_eq!(report["state"], "following", "{report}");
            stored_at = sequence;
        }
    }
    drop(client);
    world.kill_everything(&mut primary);

    let listed = json(&ask(&world, &["checkpoints", "list"], &spec, &["-o", "json"]));
    let newest = listed["checkpoints"].as_array().unwrap().last().unwrap().clone();
    let verified = json(&ask(&world, &["checkpoints", "verify"], &spec, &["-o", "json"]));
    assert_eq!(verified["whole"], true, "{verified}");
    let first = &listed["checkpoints"][0];
    let name = |one: &Value| format!("{}.{}", one["term"], one["epoch"]);
    let (first, last) = (name(first), name(&newest));
    let changed = json(&ask(&world, &["checkpoints", "diff"], &spec, &[&first, &last, "-o", "json"]));
    assert!(changed["memory"]["pages_changed"].as_u64().unwrap() > 0, "{changed}");
    let same = json(&ask(&world, &["checkpoints", "diff"], &spec, &["latest", &last, "-o", "json"]));
    assert_eq!(same["same"], true, "{same}");
    let shown = json(&ask(&world, &["inspect"], &spec, &["-o", "json"]));
    assert_eq!((&shown["epoch"], &shown["app"]), (&newest["epoch"], &Value::from("kv")));

    sealed_restore_is_heard_inside_alone(&world, &spec, address);
    let log = world.dir.path().join("log");
    let restored =
        json(&ask(&world, &["restore", log.to_str().unwrap()], &spec, &["--detach", "-o", "json"]));
    assert_eq!(restored["epoch"], newest["epoch"]);
    let mut client = Server::Python.wait_ready(address, SOON);
    let served = client.read(0).unwrap().expect("the key is there");
    assert!((stored_at..=40).contains(&served), "{served} is served, {stored_at} was stored");
    client.advance(0, served + 1).unwrap();
    kill(pid(&restored["pid"]).unwrap(), SOON);
}

#[test]
fn a_bucket_is_followed_and_its_checkpoints_compared() {
    needs_all!();
    let moto = Moto::start("backups");
    let endpoint = format!("http://{}", moto.address());
    is_followed_and_compared("s3://backups/prod", &environment(&endpoint));
}

#[test]
fn a_container_of_azure_is_followed_and_its_checkpoints_compared() {
    needs_all!();
    needs!("debian:nodejs", "debian:npm");
    let azurite = Azurite::start("backups");
    let endpoint = azurite.endpoint();
    let environment = [
        ("AZURE_STORAGE_ENDPOINT", endpoint.as_str()),
        ("AZURE_ALLOW_HTTP", "true"),
        ("AZURE_STORAGE_ACCOUNT_NAME", Azurite::ACCOUNT),
        ("AZURE_STORAGE_ACCOUNT_KEY", Azurite::KEY),
    ];
    is_followed_and_compared("az://backups/prod", &environment);
}

fn is_followed_and_compared(spec: &str, environment: &[(&str, &str)]) {
    let world = World::new(Fencing::Register);
    let address = testkit::servers::own_address();
    let mut command = world.run_command_with("pki", &options(spec), &counter(address));
    command.envs(environment.iter().copied());
    let mut primary = Primary(Running::start(command));
    let mut client = Server::Python.wait_ready(address, SOON);
    world.wait_until_protected();
    let before = world.wait_until_stored();
    client.advance(0, 1).unwrap();
    let after = world.wait_until_stored();
    let name = |report: &Value| format!("{}.{}", report["term"], report["epoch"]);
    let mut diff = checksync(world.dir.path());
    diff.envs(environment.iter().copied()).args([
        "checkpoints",
        "diff",
        "--store",
        spec,
        "--app",
        "kv",
        "-o",
        "json",
    ]);
    let changed = json(&diff.args([name(&before), name(&after)]).output().unwrap());
    assert_eq!(changed["same"], false, "{changed}");
    assert!(changed["memory"]["pages_changed"].as_u64().unwrap() > 0, "{changed}");
    primary.signal(Signal::TERM);
    primary.wait(SOON);
    world.end();
}

/// The bucket is all that is left of the app: what it has taken goes on, by the same register, and is kept there again.
#[test]
fn what_a_bucket_has_committed_goes_on_from_there_with_a_right_to_serve() {
    needs_all!();
    let moto = Moto::start("backups");
    let world = World::new(Fencing::Register);
    let endpoint = format!("http://{}", moto.address());
    let address = testkit::servers::own_address();
    let manager = |options: &[&str], program: &[String]| {
        let mut command = checksync(world.dir.path());
        command.args(["run", "--app", "kv", "--store", "s3://backups/prod", "--commit-on", "store"]);
        command.arg("--pki").arg(world.dir.path().join("pki")).args(&world.fencing).args(options);
        command.args(program).envs(environment(&endpoint));
        command
    };
    let words: Vec<String> = std::iter::once("--".to_owned()).chain(counter(address)).collect();
    let mut primary = Primary(Running::start(manager(&["--host", "a"], &words)));
    let mut client = Server::Python.wait_ready(address, SOON);
    world.wait_until_protected();
    for sequence in 1..=20 {
        client.advance(0, sequence).unwrap();
    }
    world.wait_until_stored();
    drop(client);
    world.kill_primary(&mut primary);
    drop(primary);

    let mut winner = Primary(Running::start(manager(&["--host", "b", "--from-store"], &[])));
    let mut client = Server::Python.wait_ready(address, SOON);
    let served = client.read(0).unwrap().expect("the key is there");
    assert_eq!(served, 20, "it was committed");
    client.advance(0, 21).unwrap();
    let app = world.wait_for_app("primary", "protected", |app| app["state"] == "protected");
    assert_eq!((&app["term"], &app["store"]["state"]), (&2.into(), &"following".into()), "{app}");
    winner.signal(Signal::TERM);
    winner.wait(SOON);
    world.end();
}

fn environment(endpoint: &str) -> [(&str, &str); 5] {
    [
        ("AWS_ENDPOINT", endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ]
}

/// Leaves nothing behind.
fn sealed_restore_is_heard_inside_alone(world: &World, spec: &str, address: std::net::SocketAddr) {
    let log = world.dir.path().join("sealed");
    let options = [log.to_str().unwrap(), "--sealed", "--detach", "-o", "json"];
    let restored = json(&ask(world, &["restore"], spec, &options));
    let app = pid(&restored["pid"]).unwrap();
    let written = world.dir.path().join("written");
    let script = format!(
        "import urllib.request as r; r.urlopen(\"http://{address}/k0\").read(); open(\"{}\", \"w\")",
        written.display()
    );
    let enter = |script: &str| {
        let command = format!("{} -c '{script}'", world::python());
        checksync(world.dir.path()).args(["cell-enter", &app.to_string(), &command]).output().unwrap()
    };
    let inside = enter(&script);
    assert!(inside.status.success(), "{inside:?}");
    assert!(std::net::TcpStream::connect(address).is_err(), "it is heard outside");
    assert!(!written.exists(), "what is written in there stays in there");
    let still_there = enter(&format!("open(\"{}\")", written.display()));
    assert!(still_there.status.success(), "{still_there:?}");
    kill(app, SOON);
}

#[test]
fn a_store_that_is_gone_costs_checkpoints_and_nothing_else() {
    needs_all!();
    let world = World::new(Fencing::Register);
    let Storing { folder, spec, mut primary, mut client, .. } = Storing::start(&world);
    client.advance(0, 1).unwrap();
    world.wait_until_stored();
    // A file where the folder was: nobody can write below it, not even root.
    let away = world.dir.path().join("away");
    fs::rename(&folder, &away).unwrap();
    fs::write(&folder, "").unwrap();
    let behind = world.wait_for_app("primary", "behind", |app| app["store"]["state"] == "behind");
    assert!(behind["store"]["why_not"].as_str().unwrap().contains("kv"), "{behind}");
    for sequence in 2..=20 {
        client.advance(0, sequence).unwrap();
    }
    world::wait_for_two_epochs(&world);
    assert_eq!(world.status().0, 0, "the app is as protected as before");
    fs::remove_file(&folder).unwrap();
    fs::rename(&away, &folder).unwrap();
    let report = world.wait_until_stored();
    assert_eq!(report["state"], "following", "{report}");
    let verified = json(&ask(&world, &["checkpoints", "verify"], &spec, &["-o", "json"]));
    assert_eq!(verified["whole"], true, "{verified}");
    primary.signal(Signal::TERM);
    primary.wait(SOON);
    world.end();
}

/// Nothing more may build on a chain that cannot be read: it could not be restored either.
#[test]
fn a_damaged_chain_is_given_up_for_the_next_full_sync() {
    needs_all!();
    let mut world = World::new(Fencing::Register);
    let Storing { folder, spec, mut primary, mut client, .. } = Storing::start(&world);
    client.advance(0, 1).unwrap();
    world.wait_until_stored();
    let run = fs::read_dir(folder.join("kv")).unwrap().next().unwrap().unwrap().path();
    for segment in fs::read_dir(run.join("segments")).unwrap() {
        let path = segment.unwrap().path();
        // One that is being written has another name as soon as it is whole.
        let Ok(mut bytes) = fs::read(&path) else { continue };
        let Some(first) = bytes.first_mut() else { continue };
        *first ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let waiting = world.wait_for_app("primary", "waiting", |app| app["store"]["state"] == "waiting");
    assert!(waiting["store"]["why_not"].as_str().unwrap().contains("/segments/"), "{waiting}");
    client.advance(0, 2).unwrap();
    world::wait_for_two_epochs(&world);
    assert_eq!(world.status().0, 0, "the app is as protected as before");
    // A standby that has nothing gets a full sync, and so does the store.
    world.standby.signal(Signal::KILL);
    world.standby.wait(SOON);
    world.standby = world.standby_again();
    world.wait_for_app("primary", "following", |app| app["store"]["state"] == "following");
    world.wait_until_stored();
    let verified = ask(&world, &["checkpoints", "verify"], &spec, &["-o", "json"]);
    let verified: Value = serde_json::from_slice(&verified.stdout).unwrap();
    let verdicts = verified["checkpoints"].as_array().unwrap();
    let whole = |verdict: &Value| verdict["why_not"].is_null();
    assert!(!whole(&verdicts[0]) && whole(verdicts.last().unwrap()), "{verified}");
    primary.signal(Signal::TERM);
    primary.wait(SOON);
    world.end();
}

#[test]
fn errors_name_the_thing_and_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| -> (Option<i32>, String) {
        let mut command: Command = checksync(dir.path());
        let output = command.args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let spec = format!("file:{}", dir.path().join("store").display());
    for (arguments, named) in [
        (&["restore", "--store", &spec, "--app", "kv"][..], "no checkpoint of app \"kv\""),
        (&["checkpoints", "list", "--store", &spec, "--app", "kv"], "no checkpoint of app \"kv\""),
        (&["checkpoints", "verify", "--store", "gs://x", "--app", "kv"], "s3://BUCKET"),
        (&["inspect", "--store", &spec], "--app"),
        (&["restore", "--store", &spec, "--app", "kv", "--at", "yesterday"], "2026-01-31T12:00:00Z"),
        (&["restore", "--store", &spec, "--app", "kv", "--epoch", "x"], "TERM.EPOCH"),
        (&["restore", "--latest", "somewhere"], "--store"),
    ] {
        let (code, complaint) = run(arguments);
        assert!(
            matches!(code, Some(1 | 2)) && complaint.contains(named),
            "{arguments:?}: {code:?} {complaint}"
        );
    }
}
