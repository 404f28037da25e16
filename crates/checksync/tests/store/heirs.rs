//! Who takes over goes on keeping the app in its store: at once, and without anybody who protects it.

use super::*;

/// What the winner says, once the store has a checkpoint of its term that was frozen after now.
fn wait_until_kept_by_the_winner(world: &World) -> Value {
    let has_one = |app: &Value| app["store"]["term"] == 2 && app["store"]["epoch"].is_u64();
    world.wait_for_app("standby", "a checkpoint of its own", has_one);
    world.wait_until_stored();
    world.wait_for_app("standby", "the winner", has_one)
}

fn listed(world: &World, spec: &str) -> Vec<(u64, u64)> {
    let listed = json(&ask(world, &["checkpoints", "list"], spec, &["-o", "json"]));
    let list = listed["checkpoints"].as_array().unwrap();
    list.iter().map(|one| (one["term"].as_u64().unwrap(), one["epoch"].as_u64().unwrap())).collect()
}

/// Where its primary had them go, and from there it comes back when the winner dies, too.
#[test]
fn the_winner_goes_on_where_its_primary_had_checkpoints_go() {
    needs_all!();
    let mut world = World::new(Fencing::Register);
    let Storing { spec, address, mut primary, mut client, .. } = Storing::start(&world);
    client.advance(0, 1).unwrap();
    world.wait_until_stored();
    let copy = world.wait_for_app("standby", "a copy", |app| app["role"] == "standby");
    let store = &copy["store"];
    let said = (&store["state"], &store["named_by"], &store["location"]);
    assert_eq!(said, (&"idle".into(), &"primary".into(), &spec.as_str().into()), "{copy}");
    let terms = |list: &[(u64, u64)]| list.iter().map(|one| one.0).max();
    assert_eq!(terms(&listed(&world, &spec)), Some(1));

    primary.signal(Signal::KILL);
    primary.wait(SOON);
    let mut client = Server::Python.wait_ready(address, SOON);
    let served = client.read(0).unwrap().expect("the key is there");
    for sequence in served + 1..=served + 20 {
        client.advance(0, sequence).unwrap();
    }
    let app = wait_until_kept_by_the_winner(&world);
    assert_eq!(
        (&app["state"], &app["store"]["state"]),
        (&"unprotected".into(), &"following".into()),
        "{app}"
    );
    let newest = *listed(&world, &spec).last().unwrap();
    assert_eq!(newest.0, 2);

    drop(client);
    world.kill_everything(&mut primary);
    let verified = json(&ask(&world, &["checkpoints", "verify"], &spec, &["-o", "json"]));
    assert_eq!(verified["whole"], true, "{verified}");
    let log = world.dir.path().join("log");
    let options = [log.to_str().unwrap(), "--latest", "--detach", "-o", "json"];
    let restored = json(&ask(&world, &["restore"], &spec, &options));
    assert!((2, restored["epoch"].as_u64().unwrap()) >= newest, "{restored}");
    let mut client = Server::Python.wait_ready(address, SOON);
    assert_eq!(client.read(0).unwrap(), Some(served + 20));
    kill(pid(&restored["pid"]).unwrap(), SOON);
}

/// A standby that was told of a store of its own uses that.
#[test]
fn a_standby_with_a_store_of_its_own_goes_on_there() {
    needs_all!();
    let own = |dir: &Path| format!("file:{}", dir.join("own").display());
    let mut world = World::with_standby(Fencing::Register, |dir, fencing| {
        let mut command = checksync(dir);
        command.args(["standby", "--listen", "127.0.0.1:0", "--host", "b", "--pki"]).arg(dir.join("pki"));
        command.args(options(&own(dir))).args(fencing);
        command
    });
    let Storing { spec, address, mut primary, mut client, .. } = Storing::start(&world);
    client.advance(0, 1).unwrap();
    world.wait_until_stored();
    let own = own(world.dir.path());
    let copy = world.wait_for_app("standby", "a copy", |app| app["role"] == "standby");
    assert_eq!(
        (&copy["store"]["named_by"], &copy["store"]["location"]),
        (&"here".into(), &own.as_str().into())
    );
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    drop(client);
    drop(Server::Python.wait_ready(address, SOON));
    wait_until_kept_by_the_winner(&world);
    assert!(listed(&world, &own).iter().all(|one| one.0 == 2));
    assert!(listed(&world, &spec).iter().all(|one| one.0 == 1));
    world.standby.signal(Signal::TERM);
    assert!(world.standby.wait(SOON).success());
}

/// A store that is none on the winner's host costs it checkpoints, and says so; the app goes on.
#[test]
fn a_winner_whose_host_does_not_have_the_store_goes_on_without() {
    needs_all!();
    let mut world = World::new(Fencing::Register);
    let Storing { folder, address, mut primary, mut client, .. } = Storing::start(&world);
    client.advance(0, 1).unwrap();
    world.wait_until_stored();
    primary.signal(Signal::STOP);
    fs::rename(&folder, world.dir.path().join("away")).unwrap();
    fs::write(&folder, "").unwrap();
    primary.signal(Signal::KILL);
    primary.wait(SOON);
    let mut client = Server::Python.wait_ready(address, SOON);
    let served = client.read(0).unwrap().expect("the key is there");
    client.advance(0, served + 1).unwrap();
    let app = world.wait_for_app("standby", "the winner", |app| app["role"] == "primary");
    assert_eq!(app["store"]["state"], "stopped", "{app}");
    assert!(app["store"]["why_not"].as_str().unwrap().contains("not on this host"), "{app}");
    world.standby.signal(Signal::TERM);
    assert!(world.standby.wait(SOON).success());
}

/// A program that nobody protects yet is kept as well.
#[test]
fn checkpoints_go_to_the_store_before_there_is_a_standby() {
    needs_all!();
    let mut world = World::new(Fencing::Register);
    world.standby.signal(Signal::KILL);
    world.standby.wait(SOON);
    let spec = format!("file:{}", world.dir.path().join("store").display());
    let address = testkit::servers::own_address();
    let command = world.run_command_with("pki", &options(&spec), &counter(address));
    let mut primary = Primary(Running::start(command));
    let mut client = Server::Python.wait_ready(address, SOON);
    client.advance(0, 1).unwrap();
    let stored = |app: &Value| app["store"]["epoch"].as_u64().is_some_and(|epoch| epoch > 2);
    let app = world.wait_for_app("primary", "three checkpoints", stored);
    assert_eq!(app["state"], "unprotected", "{app}");
    // Who comes is protected from, and the chain goes on.
    world.standby = world.standby_again();
    world.wait_until_protected();
    client.advance(0, 2).unwrap();
    world.wait_until_stored();
    let verified = json(&ask(&world, &["checkpoints", "verify"], &spec, &["-o", "json"]));
    assert_eq!(verified["whole"], true, "{verified}");
    primary.signal(Signal::TERM);
    primary.wait(SOON);
    world.end();
}
