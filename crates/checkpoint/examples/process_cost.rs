//! What a capture of processes costs inside of the freeze, by the number of threads.
//!
//! `cargo run --release -p checksync-checkpoint --example process_cost`

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use checkpoint::process::{CellNumbers, ProcessCache, save};
use tracee::Tree;

const ROUNDS: usize = 400;
const PATIENCE: Duration = Duration::from_secs(5);

fn main() {
    match std::env::args().nth(1) {
        Some(count) => sleep_in_threads(count.parse().expect("a number of threads")),
        None => measure_all(),
    }
}

fn sleep_in_threads(count: usize) {
    for _ in 1..count {
        std::thread::spawn(|| {
            loop {
                std::thread::park()
            }
        });
    }
    println!("ready");
    loop {
        std::thread::park();
    }
}

fn measure_all() {
    if let Err(why) = sys::task::become_real_time(10) {
        eprintln!("not at real-time priority: {why}");
    }
    println!(
        "{:>8} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "threads", "stop", "save p50", "p99", "µs/thread", "thaw"
    );
    for count in [1, 8, 20, 128] {
        measure(count);
    }
}

fn start(count: usize) -> Child {
    let program = std::env::current_exe().expect("our own path");
    let mut guest = Command::new(program)
        .arg(count.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a copy of ourselves starts");
    let mut line = String::new();
    let stdout = guest.stdout.as_mut().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("it speaks");
    guest
}

fn measure(count: usize) {
    let mut guest = start(count);
    let pid = guest.id() as i32;
    let mut tree = Tree::seize(pid).expect("seize");
    let (mut numbers, mut cache) = (CellNumbers::new(), ProcessCache::new());
    let (mut stops, mut saves, mut thaws) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        tree.pump().expect("pump");
        let mut frozen = tree.freeze(PATIENCE).expect("freeze");
        stops.push(frozen.stop_time());
        let began = Instant::now();
        save(&mut frozen, pid, &mut numbers, &mut cache).expect("save");
        saves.push(began.elapsed());
        let began = Instant::now();
        frozen.thaw();
        thaws.push(began.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
    let micros = |times: &mut Vec<Duration>, share: usize| {
        times.sort_unstable();
        times[times.len() * share / 100].as_secs_f64() * 1e6
    };
    let (stop, median, late, thaw) =
        (micros(&mut stops, 50), micros(&mut saves, 50), micros(&mut saves, 99), micros(&mut thaws, 50));
    println!(
        "{count:>8} {stop:>10.0} {median:>10.0} {late:>10.0} {:>10.1} {thaw:>10.0}",
        median / count as f64
    );
    tree.release().expect("release");
    let _ = guest.kill();
    let _ = guest.wait();
}
