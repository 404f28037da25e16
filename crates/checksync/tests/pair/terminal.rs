//! What somebody sees who started the manager by hand.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use testkit::needs;
use testkit::process::Running;

use crate::world::{Fencing, Primary, SOON, World, python, wait_for_two_epochs};

/// A terminal's two ends: ours, and that of who believes to sit at it.
fn terminal() -> (OwnedFd, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let theirs = ioctl_tiocgptpeer(&ours, flags).unwrap();
    (ours, theirs)
}

fn shows_progress(seen: &str) -> bool {
    let line = seen.split("full sync: ").nth(1);
    line.is_some_and(|line| line.contains(" %, ") && line.contains("/s, ") && line.contains(" s left"))
}

#[test]
fn full_sync_shows_how_far_it_is_on_a_terminal_that_may_be_closed() {
    needs!("root", "pagemap-scan", "debian:python3");
    let world = World::new(Fencing::None);
    let (ours, theirs) = terminal();
    let much = "import time; much = b'x' * (300 << 20)\nwhile True: time.sleep(1)";
    let mut command = world.run_command("pki", &[python(), "-c".to_owned(), much.to_owned()]);
    command.stderr(theirs);
    let primary = Running::start(command);
    let (tell, told) = mpsc::channel();
    let reader = thread::spawn(move || {
        let (mut ours, mut some, mut seen) = (File::from(ours), [0; 4096], String::new());
        while !shows_progress(&seen) {
            // Fails once nobody sits there any more.
            let Ok(count) = ours.read(&mut some) else { break };
            seen.push_str(&String::from_utf8_lossy(&some[..count]));
        }
        // The window is closed.
        drop(ours);
        tell.send(seen).unwrap();
    });
    let mut primary = Primary(primary);
    let seen = told.recv_timeout(SOON).expect("something is seen in time");
    reader.join().unwrap();
    assert!(shows_progress(&seen), "{seen}");
    // Nobody reads what is logged, and the app is as well protected as with somebody.
    world.wait_until_protected();
    wait_for_two_epochs(&world);
    primary.signal(Signal::TERM);
    const DIED_BY_SIGTERM: i32 = 128 + 15;
    assert_eq!(primary.wait(SOON).code(), Some(DIED_BY_SIGTERM));
    world.end();
}
