//! Structures as people use them: the real program on both sides and a server on the SDK, without root.

#[path = "structures/world.rs"]
mod world;

use std::time::Duration;

use rustix::process::Signal;
use testkit::wait::wait_until;

use world::{Client, Fencing, World, Writers};

const SOON: Duration = Duration::from_secs(30);
/// So many writes are acknowledged before something is killed.
const ENOUGH: usize = 3_000;

#[test]
fn acknowledged_writes_outlive_the_program() {
    let mut world = World::new(Fencing::Register);
    let mut primary = world.run(&[]);
    world.wait_until_protected();
    let writers = Writers::start(world.served_by(&mut primary), 4);
    writers.wait_for(ENOUGH);
    world.kill_program();
    let written = writers.finish();
    let address = world.taken_over();
    assert_eq!(primary.wait(SOON).code(), Some(5), "the old primary knows that it was replaced");
    written.check(&mut Client::connect(&address));
}
