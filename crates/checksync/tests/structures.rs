//! Structures as people use them: the real program on both sides and a server on the SDK, without root.

#[path = "structures/world.rs"]
mod world;
#[path = "structures/writers.rs"]
mod writers;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use testkit::process::Watched;
use testkit::wait::{wait_for, wait_until};

use world::{Fencing, SOON, World, served_by};
use writers::{Client, Writers};

/// So many writes are acknowledged before something is killed.
const ENOUGH: usize = 3_000;
const WRITERS: usize = 4;

#[test]
fn acknowledged_writes_outlive_the_program() {
    let mut world = World::new(Fencing::Register);
    let mut primary = world.run(&[]);
    world.wait_until_protected();
    let writers = Writers::start(served_by(&mut primary), WRITERS);
    writers.wait_for(ENOUGH);
    world.kill_program();
    let written = writers.finish();
    written.check(&mut Client::connect(&world.taken_over()));
    assert_eq!(primary.wait(SOON).code(), Some(5), "the old primary knows that it was replaced");
}

#[test]
fn acknowledged_writes_outlive_the_primary_manager_which_takes_its_program_along() {
    let mut world = World::new(Fencing::Register);
    let mut primary = world.run(&[]);
    world.wait_until_protected();
    let writers = Writers::start(served_by(&mut primary), WRITERS);
    writers.wait_for(ENOUGH);
    let program = Watched::of(world.program());
    primary.signal(Signal::KILL);
    wait_until("the program to die", SOON, || program.has_ended());
    let written = writers.finish();
    written.check(&mut Client::connect(&world.taken_over()));
}

#[test]
fn acknowledged_writes_outlive_program_and_manager_together() {
    let mut world = World::new(Fencing::None);
    let mut primary = world.run(&["--on-standby-loss", "stop"]);
    world.wait_until_protected();
    let writers = Writers::start(served_by(&mut primary), WRITERS);
    writers.wait_for(ENOUGH);
    world.kill_program();
    primary.signal(Signal::KILL);
    let written = writers.finish();
    let client = &mut Client::connect(&world.taken_over());
    written.check(client);
    assert_eq!(client.ask("PUT after 1").as_deref(), Some("OK"), "it is served from there");
}

/// From host to host and back, with no hand but the killer's.
#[test]
fn who_takes_over_is_protected_by_who_comes_back() {
    let mut world = World::new(Fencing::Register);
    let mut daemon = world.form_a_group();
    let mut primary = world.run(&[]);
    assert_eq!(world.wait_until_protected_in(1), "a");
    let writers = Writers::start(served_by(&mut primary), WRITERS);
    writers.wait_for(ENOUGH);
    primary.signal(Signal::KILL);
    let (written, there) = (writers.finish(), world.taken_over());
    written.check(&mut Client::connect(&there));
    assert_eq!(
        world.wait_until_protected_in(2),
        "b",
        "the daemon beside the dead primary protects the winner"
    );
    let writers = Writers::start(there, WRITERS);
    writers.wait_for(ENOUGH);
    world.stop_standby();
    let (written, back) = (writers.finish(), served_by(&mut daemon));
    written.check(&mut Client::connect(&back));
    world.start_standby_again();
    assert_eq!(world.wait_until_protected_in(3), "a");
    let writers = Writers::start(back, WRITERS);
    writers.wait_for(ENOUGH);
    daemon.signal(Signal::KILL);
    let (written, there) = (writers.finish(), world.taken_over());
    written.check(&mut Client::connect(&there));
}

#[test]
fn a_standby_that_joins_late_gets_all_that_was_written_before_and_meanwhile() {
    let mut world = World::new(Fencing::Register);
    world.stop_standby();
    let mut primary = world.run_with(&[], &["100000"]);
    let address = served_by(&mut primary);
    let client = &mut Client::connect(&address);
    assert_eq!(client.ask("PUT before 1").as_deref(), Some("OK"), "unprotected, it goes on");
    assert_eq!(client.ask("DEL 00000007").as_deref(), Some("OK"));
    let app = world.wait_for_app("primary", "unprotected", |app| app["state"] == "unprotected");
    assert_eq!(app["protected"], false, "{app}");
    let writers = Writers::start(address, WRITERS);
    writers.wait_for(ENOUGH);
    world.start_standby_again();
    world.wait_until_protected();
    writers.wait_for(writers.acknowledged() + ENOUGH);
    world.kill_program();
    let written = writers.finish();
    let client = &mut Client::connect(&world.taken_over());
    written.check(client);
    assert_eq!(client.ask("GET before").as_deref(), Some("VALUE 1"));
    assert_eq!(client.ask("GET 00000007").as_deref(), Some("NONE"), "what was deleted stays so");
    for key in ["00000000", "00054321", "00099999"] {
        assert!(client.ask(&format!("GET {key}")).unwrap().starts_with("VALUE ...."), "{key}");
    }
}

#[test]
fn a_superseded_primary_acknowledges_nothing_and_names_the_new_term() {
    let mut world = World::new(Fencing::None);
    let mut primary = world.run(&["--on-standby-loss", "stop"]);
    world.wait_until_protected();
    let old = served_by(&mut primary);
    let (mut reader, mut writer) = (Client::connect(&old), Client::connect(&old));
    assert_eq!(writer.ask("PUT x old").as_deref(), Some("OK"));
    let writers = Writers::start(old, WRITERS);
    writers.wait_for(ENOUGH);
    // It stands still for long enough to be taken for dead, and its program does not.
    primary.signal(Signal::STOP);
    let new = world.taken_over();
    assert_eq!(Client::connect(&new).ask("PUT x new").as_deref(), Some("OK"));
    reader.send("GET x").unwrap();
    writer.send("PUT x old-again").unwrap();
    let acknowledged = writers.acknowledged();
    primary.signal(Signal::CONT);
    for answer in [reader.answer(), writer.answer()] {
        let answer = answer.expect("the program lives on for a moment");
        assert!(answer.contains("fenced: b serves") && answer.contains("term 2"), "{answer}");
    }
    let written = writers.finish();
    // What the standby had acknowledged before it took over may be told late: it is there. No more than that.
    let late = written.acknowledged as usize - acknowledged;
    assert!(late <= WRITERS, "{late} writes of a superseded primary were acknowledged");
    assert_eq!(Client::connect(&new).ask("GET x").as_deref(), Some("VALUE new"));
    assert_eq!(primary.wait(SOON).code(), Some(5));
    written.check(&mut Client::connect(&new));
}

#[test]
fn without_a_standby_writes_go_on_or_wait_as_the_operator_says() {
    let mut world = World::new(Fencing::Register);
    for goes_on in [true, false] {
        let mut primary = world.run(&["--on-standby-loss", if goes_on { "continue" } else { "stop" }]);
        world.wait_until_protected();
        let writers = Writers::start(served_by(&mut primary), WRITERS);
        writers.wait_for(ENOUGH);
        world.stop_standby();
        if goes_on {
            writers.wait_for(writers.acknowledged() + ENOUGH);
        } else {
            world.wait_for_app("primary", "unprotected", |app| app["state"] == "unprotected");
            writers.wait_until_stuck();
        }
        world.start_standby_again();
        world.wait_until_protected();
        writers.wait_for(writers.acknowledged() + ENOUGH);
        writers.stop();
        let written = writers.finish();
        // A clean end is the end of the structures, too.
        world.kill_program();
        written.check(&mut Client::connect(&world.taken_over()));
        assert_eq!(primary.wait(SOON).code(), Some(5));
        world.renew();
    }
}

#[test]
fn a_program_that_is_restarted_has_its_structures_again() {
    let world = World::new(Fencing::Register);
    let mut primary = world.run(&["--on-crash", "restart"]);
    world.wait_until_protected();
    let writers = Writers::start(served_by(&mut primary), WRITERS);
    writers.wait_for(ENOUGH);
    world.kill_program();
    let written = writers.finish();
    written.check(&mut Client::connect(&served_by(&mut primary)));
    primary.signal(Signal::TERM);
    assert!(!primary.wait(SOON).success(), "the program has died of the signal");
}

#[test]
fn strangers_at_the_socket_are_told_why_and_disturb_nobody() {
    let world = World::new(Fencing::Register);
    let mut primary = world.run(&[]);
    world.wait_until_protected();
    let client = &mut Client::connect(&served_by(&mut primary));
    assert_eq!(client.ask("PUT a 1").as_deref(), Some("OK"));
    let hello = b"\x0b\0\0\0\x01CKSTRUCT\x01\0";
    let newer = b"\x0b\0\0\0\x01CKSTRUCT\x09\0";
    let put = b"\x08\0\0\0\x10\x01\x01\0\0\0mk";
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("another program", hello.to_vec(), "one at a time"),
        ("a newer library", newer.to_vec(), "version 9"),
        ("no library", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "which none has"),
        ("a length of nothing", vec![0; 4], "which none has"),
        ("a change before the hello", put.to_vec(), "kind 16"),
        ("a change behind the hello", [hello.as_slice(), put].concat(), "before it had"),
    ];
    for (who, bytes, why) in cases {
        let mut socket = UnixStream::connect(world.socket()).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(answer.get(4) == Some(&6) && text.contains(why), "{who}: {text:?}");
    }
    // One that says nothing holds up nobody.
    let _silent = UnixStream::connect(world.socket()).unwrap();
    assert_eq!(client.ask("PUT a 2").as_deref(), Some("OK"));
    assert_eq!(client.ask("GET a").as_deref(), Some("VALUE 2"));
    primary.signal(Signal::TERM);
    wait_for("the primary's end", SOON, || (!primary.is_running()).then_some(()));
    assert!(!world.socket().exists(), "its socket is gone");
}
