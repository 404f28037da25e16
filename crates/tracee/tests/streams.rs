//! Threads that are stopped a thousand times a second in the middle of calls that move bytes: every call moves
//! all of them, and none stands still.

use std::time::{Duration, Instant};

use testkit::guest::Guest;
use tracee::{Tree, TreeEvent};

const PATIENCE: Duration = Duration::from_secs(5);
const AT_LEAST: usize = 500;
const AT_MOST: Duration = Duration::from_secs(60);

#[test]
fn calls_that_are_cut_short_move_all_their_bytes() {
    testkit::needs!(CAP_SYS_PTRACE);
    let mut guest = Guest::start("blocked-streams", &["tcp"]);
    // With this thread goes its hold on the guest, also when the test fails.
    let traced = std::thread::scope(|scope| scope.spawn(|| stop_again_and_again(&mut guest)).join());
    traced.expect("the tracer did what it should");
    assert_eq!(guest.verdict(AT_MOST), ["pass"]);
}

fn stop_again_and_again(guest: &mut Guest) {
    let mut tree = Tree::seize(guest.pid() as i32).expect("seize");
    let began = Instant::now();
    let (mut freezes, mut moves) = (0, false);
    while freezes < AT_LEAST || !moves {
        assert!(began.elapsed() < AT_MOST, "calls do not end while the app is stopped again and again");
        tree.freeze(PATIENCE).expect("freeze").thaw();
        freezes += 1;
        pump_for(&mut tree, Duration::from_millis(1));
        moves |= guest.has_said("moving");
    }
    tree.release().expect("release");
}

fn pump_for(tree: &mut Tree, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        for event in tree.pump().expect("pump") {
            assert!(!matches!(event, TreeEvent::Ended { .. }), "the guest ended: {event:?}");
        }
        std::thread::yield_now();
    }
}
