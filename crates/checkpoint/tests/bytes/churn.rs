//! Programs that change their memory at random, followed for thousands of epochs.

use std::process::Command;
use std::time::Duration;

use crate::app::App;
use crate::chance::{Chance, seed};
use crate::world::{Fate, World};

/// Some epochs are lost, several in a row at times; some are late, some merge.
struct Fates {
    chance: Chance,
    bad: u64,
}

impl Fates {
    fn new(seed: u64) -> Self {
        Self { chance: Chance::new(seed), bad: 0 }
    }

    fn next(&mut self) -> Fate {
        if self.bad == 0 && self.chance.below(5) == 0 {
            self.bad = 1 + self.chance.below(4);
        }
        if self.bad == 0 {
            return Fate::Committed;
        }
        self.bad -= 1;
        [Fate::Lost, Fate::Merged, Fate::Late][self.chance.below(3) as usize]
    }
}

/// Follows `app` for this many epochs and compares everything after those that arrive.
fn follow(app: App, epochs: u32, seed: u64, run_us_max: u64) {
    let (mut chance, mut fates) = (Chance::new(seed), Fates::new(seed + 1));
    let mut world = World::new(app);
    let (mut arrived, mut pages, mut compared) = (0, 0, 0);
    for epoch in 0..epochs {
        world.run_for(Duration::from_micros(chance.below(run_us_max)));
        let fate = if epoch == 0 { Fate::Committed } else { fates.next() };
        let carried = world.epoch(fate);
        arrived += u32::from(fate == Fate::Committed);
        (pages, compared) = (pages + carried.pages, compared + carried.compared);
    }
    println!("{epochs} epochs, {arrived} arrived, {pages} pages carried, {compared} compared");
}

/// Each round is another program with another seed.
fn churn(which: u64, rounds: u64, epochs: u32) {
    let seed = seed() + which * 1000;
    for round in 0..rounds {
        let number = (seed + round).to_string();
        println!("round {round}, guest seed {number}");
        follow(App::guest("churn", &[&number]), epochs, seed + round, 4000);
    }
}

#[test]
fn skeleton_equals_a_program_that_changes_everything_at_random() {
    churn(0, 3, 400);
}

#[test]
fn skeleton_equals_another_such_program_at_the_same_time() {
    churn(1, 3, 400);
}

#[test]
fn skeleton_equals_a_busy_interpreter() {
    let program = "
import threading, random, os, mmap
def work(n):
    r = random.Random(n)
    kept = []
    while True:
        kept.append(bytearray(r.randrange(1, 200000)))
        if len(kept) > 100: kept = kept[r.randrange(100):]
        for k in kept:
            k[r.randrange(len(k))] = r.randrange(256)
        m = mmap.mmap(-1, 4096 * r.randrange(1, 50), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        m.write(b'x' * 100)
        m.close()
for n in range(4): threading.Thread(target=work, args=(n,), daemon=True).start()
threading.Event().wait()
";
    let app = App::program(Command::new("/usr/bin/python3").args(["-c", program]));
    follow(app, 200, seed(), 10_000);
}
