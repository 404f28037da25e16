//! A second copy is made from the first while that one takes epochs in: in the end both are the same, byte for byte.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use engine::twin::{self, TwinError, Twinned};
use engine::{Command, Event};
use testkit::guest::GoFile;

use common::{PATIENCE, Pair, Side};

const PAGE: u64 = 4096;
const EPOCHS: u64 = 25;
const SHOWN_BYTES_MAX: u64 = 17 << 20;

fn main() {
    common::main(&[
        ("a_second_copy_is_the_first_byte_for_byte", a_second_copy_is_the_first_byte_for_byte),
        ("a_copy_that_is_replaced_or_called_off_ends_the_second", a_copy_that_is_replaced_or_called_off),
        ("where_there_is_no_copy_that_is_said", where_there_is_no_copy_that_is_said),
    ]);
}

fn churning(go_file: &GoFile, seed: &str) -> Pair {
    let mut pair = Pair::of_guest("churn", go_file, &[seed]);
    pair.full_sync();
    for _ in 0..5 {
        pair.epoch();
    }
    pair
}

/// The processes that stand in a cell of this test's.
fn in_cells() -> Vec<i32> {
    let children = |pid: i32| -> Vec<i32> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        lists
            .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
            .collect()
    };
    children(std::process::id() as i32).into_iter().flat_map(children).collect()
}

/// The new one among them.
fn born_since(before: &[i32]) -> i32 {
    let born: Vec<i32> = in_cells().into_iter().filter(|pid| !before.contains(pid)).collect();
    assert_eq!(born.len(), 1, "{born:?}");
    born[0]
}

/// Copies, with epochs in between.
fn copy(pair: &mut Pair, second: &Side, epochs: u64) -> Result<Twinned, TwinError> {
    let (showing, twin) = twin::twin(pair.standby.engine.lender());
    pair.standby.engine.send(Command::Show(showing));
    let source = twin.wait()?;
    let id = source.id();
    assert_eq!(id, pair.last);
    let (mut frames, mut done) = (0, 0);
    let twinned = source.copy(
        || false,
        |frame| {
            second.engine.send(Command::Frames(frame));
            if frames == 0 {
                second
                    .until("the beginning", |event| matches!(event, Event::EpochBegins { .. }).then_some(()));
                second.engine.send(Command::Receive { id, full: true, keep_old: false });
            }
            frames += 1;
            if frames % 2 == 0 && done < epochs {
                pair.epoch();
                done += 1;
            }
            true
        },
    )?;
    second.until("all of it", |event| matches!(event, Event::Prepared { .. }).then_some(()));
    second.engine.send(Command::Apply(id));
    second.until("the second copy", |event| matches!(event, Event::Applied { .. }).then_some(()));
    Ok(twinned)
}

/// All pages of a process with their protection, and their bytes where they can be read.
fn memory(pid: i32) -> BTreeMap<u64, (String, Option<Vec<u8>>)> {
    let mem = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut runs: Vec<(u64, u64, String)> = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines() {
        let mut words = line.split_whitespace();
        let (range, protection) = (words.next().unwrap(), words.next().unwrap());
        // The kernel's, and the place for our calls, of which each copy has one of its own.
        if line.contains("[v") || line.contains("/memfd:linux-vdso.so.1") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        // Whether the kernel has made one of two neighbours says nothing.
        match runs.last_mut() {
            Some(last) if last.1 == start && last.2 == protection => last.1 = end,
            _ => runs.push((start, end, protection.to_owned())),
        }
    }
    let mut pages = BTreeMap::new();
    for (start, end, protection) in runs {
        // A sparse object is larger than any memory: its first pages stand for it.
        for at in (start..end.min(start + SHOWN_BYTES_MAX)).step_by(PAGE as usize) {
            let mut page = vec![0; PAGE as usize];
            let read = mem.read_exact_at(&mut page, at).is_ok();
            pages.insert(at, (protection.clone(), read.then_some(page)));
        }
    }
    pages
}

fn assert_same(one: i32, other: i32) {
    let (one, other) = (memory(one), memory(other));
    let alone =
        |a: &BTreeMap<u64, _>, b: &BTreeMap<u64, _>| a.keys().filter(|at| !b.contains_key(at)).count();
    let (in_one, in_other) = (alone(&one, &other), alone(&other, &one));
    assert_eq!((in_one, in_other), (0, 0), "pages that are mapped in one alone");
    let compared = one.iter().filter_map(|(at, page)| Some((at, page, other.get(at)?)));
    let mut same = 0;
    for (at, one, other) in compared {
        assert_eq!(one.0, other.0, "protection at {at:#x}");
        assert!(one.1 == other.1, "the bytes at {at:#x} differ");
        same += 1;
    }
    assert!(same > 4096, "{same} pages were compared");
}

fn a_second_copy_is_the_first_byte_for_byte() {
    for seed in ["1", "2", "3"] {
        let go_file = GoFile::new();
        let before = in_cells();
        assert!(before.is_empty(), "{before:?}");
        let mut pair = churning(&go_file, seed);
        let known = in_cells();
        let second = Side::standby();
        let twinned = copy(&mut pair, &second, EPOCHS).unwrap();
        assert_eq!((twinned.id, twinned.epochs), (pair.last, EPOCHS), "the newest that there was");
        println!("seed {seed}: {twinned:?}");
        let twin = born_since(&known);
        let first = known.into_iter().find(|pid| is_a_copy(*pid)).expect("the first copy");
        assert_same(first, twin);
        println!("seed {seed}: the same");
        // The first one is as good as before.
        pair.epoch();
        let (standby, _) = pair.take_over();
        go_file.go();
        standby.output.wait_for("pass", PATIENCE);
        drop(standby);
        second.promote().unwrap();
        second.output.wait_for("pass", PATIENCE);
    }
}

/// It stands still with one thread, traced by us; the app runs.
fn is_a_copy(pid: i32) -> bool {
    fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() == 1)
}

fn a_copy_that_is_replaced_or_called_off() {
    let go_file = GoFile::new();
    let mut pair = churning(&go_file, "4");
    let (showing, twin) = twin::twin(pair.standby.engine.lender());
    pair.standby.engine.send(Command::Show(showing));
    let source = twin.wait().unwrap();
    pair.full_sync();
    assert!(matches!(source.copy(|| false, |_| true), Err(TwinError::Gone)));
    let (showing, twin) = twin::twin(pair.standby.engine.lender());
    pair.standby.engine.send(Command::Show(showing));
    assert!(matches!(twin.wait().unwrap().copy(|| true, |_| true), Err(TwinError::CalledOff)));
    let (showing, twin) = twin::twin(pair.standby.engine.lender());
    pair.standby.engine.send(Command::Show(showing));
    assert!(matches!(twin.wait().unwrap().copy(|| false, |_| false), Err(TwinError::Refused)));
    // Whom nobody looks at any more, goes on.
    pair.epoch();
    let (standby, _) = pair.take_over();
    go_file.go();
    standby.output.wait_for("pass", PATIENCE);
}

fn where_there_is_no_copy_that_is_said() {
    let side = Side::standby();
    let (showing, twin) = twin::twin(side.engine.lender());
    side.engine.send(Command::Show(showing));
    assert!(matches!(twin.wait(), Err(TwinError::Nothing)));
}
