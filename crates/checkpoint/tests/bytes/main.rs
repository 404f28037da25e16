//! The skeleton's memory equals the app's, byte for byte, after every epoch.

mod world;

use std::process::Command;
use std::time::Duration;

use world::{Fate, Guarded, World};

#[test]
fn memory_of_a_busy_interpreter_is_followed() {
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
    let guest = Guarded::start(Command::new("/usr/bin/python3").args(["-c", program]));
    let mut world = World::new(guest);
    let pause = |_| std::thread::park_timeout(Duration::from_millis(10));
    world.run(100, pause, |epoch| if epoch % 7 == 3 { Fate::Lost } else { Fate::Committed });
}
