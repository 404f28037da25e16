//! The guests themselves: without any checkpoint each of them passes, so a failure under a checkpoint is the
//! checkpoint's. That they can fail is shown where something is done to them.

use std::time::Duration;

use testkit::guest::{self, Guest};
use testkit::needs;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn every_guest_passes_when_nothing_is_done_to_it() {
    needs!("root");
    let failures: Vec<_> =
        guest::all().into_iter().filter_map(|(name, steps)| failure_of(&name, steps)).collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

fn failure_of(name: &str, steps: u32) -> Option<String> {
    let mut guest = Guest::start(name, &[]);
    (1..=steps).for_each(|step| guest.step(step));
    let verdict = guest.verdict(LIMIT).pop().unwrap_or_else(|| "no verdict".to_owned());
    (verdict != "pass").then(|| format!("{name}: {verdict}"))
}

#[test]
fn a_guest_whose_thread_was_moved_to_another_cpu_fails() {
    needs!("root");
    let mut guest = Guest::start("scheduling", &[]);
    for thread in std::fs::read_dir(format!("/proc/{}/task", guest.pid())).expect("the guest lives") {
        let thread: i32 =
            thread.ok().and_then(|entry| entry.file_name().to_str()?.parse().ok()).expect("a thread");
        let thread = rustix::process::Pid::from_raw(thread);
        rustix::process::setpriority_process(thread, 9).expect("root may make anybody nicer");
    }
    let verdict = guest.verdict(LIMIT).pop();
    assert_eq!(verdict.as_deref(), Some("fail: nice value: found 9, set up 3"));
}

#[test]
fn spin_reports_the_pause_of_a_stopped_process() {
    let mut guest = Guest::start("spin", &["10000"]);
    guest.stop_for(Duration::from_millis(100));
    let lines = guest.verdict(LIMIT);
    let lengths =
        lines.iter().filter_map(|line| line.strip_prefix("gap ")?.split(' ').nth(1)?.parse::<u64>().ok());
    let longest = Duration::from_nanos(lengths.max().unwrap_or(0));
    assert!(
        longest >= Duration::from_millis(100),
        "stopped for 100 ms, but the longest gap is {longest:?}: {lines:?}"
    );
}
