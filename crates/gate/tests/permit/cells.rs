//! The cell's cgroup without a permit.

use std::fs;
use std::time::Duration;

use gate::{CellCgroup, CgroupError};
use testkit::needs;

use crate::Cell;
use crate::world::{Guest, PATIENCE};

fn idler() -> Guest {
    let mut idler = Guest::start("idler", &[]);
    idler.told("idles");
    idler
}

#[test]
fn process_moves_in_and_its_end_lets_the_cgroup_go() {
    needs!("root");
    let (cell, mut idler) = (Cell::new("moves"), idler());
    cell.move_in(idler.pid()).unwrap();
    assert_eq!(cell.pids().unwrap(), [idler.pid()]);
    let populated = CellCgroup::reopen(cell.name()).unwrap().remove(Duration::from_millis(20));
    assert!(matches!(populated, Err(CgroupError::Populated { pids, .. }) if pids == [idler.pid()]));
    let name = cell.name().to_owned();
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| CellCgroup::reopen(&name).unwrap().remove(PATIENCE));
        idler.kill();
        removal.join().unwrap().unwrap();
    });
    assert!(!cell.path().exists());
}

#[test]
fn kill_all_reaches_what_the_app_put_below() {
    needs!("root");
    let (cell, mut idler) = (Cell::new("below"), idler());
    let below = cell.path().join("of-the-app");
    fs::create_dir(&below).unwrap();
    fs::write(below.join("cgroup.procs"), idler.pid().to_string()).unwrap();
    assert_eq!(cell.pids().unwrap(), [0; 0]);
    cell.kill_all().unwrap();
    idler.told_end();
    let path = cell.path();
    drop(cell);
    assert!(!path.exists());
}

#[test]
fn two_cells_of_one_app_are_two() {
    needs!("root");
    let (one, other) = (Cell::new("twice"), Cell::new("twice"));
    assert_ne!(one.name(), other.name());
}

#[test]
fn last_cell_takes_the_parent_along() {
    needs!("root");
    let parent = format!("checksync-test-{}", std::process::id());
    let one = CellCgroup::create(&parent, "one").unwrap();
    let other = CellCgroup::create(&parent, "other").unwrap();
    let path = one.path().parent().unwrap().to_owned();
    one.remove(PATIENCE).unwrap();
    assert!(path.exists());
    other.remove(PATIENCE).unwrap();
    assert!(!path.exists());
}

#[test]
fn only_a_cgroup_of_its_own_is_adopted() {
    needs!("root");
    let (cell, first, second) = (Cell::new("adopted"), idler(), idler());
    assert!(matches!(CellCgroup::adopt(first.pid(), &[]), Err(CgroupError::Shared { .. })));
    cell.move_in(first.pid()).unwrap();
    assert_eq!(CellCgroup::adopt(first.pid(), &[]).unwrap().name(), cell.name());
    cell.move_in(second.pid()).unwrap();
    let shared = CellCgroup::adopt(first.pid(), &[]);
    assert!(matches!(shared, Err(CgroupError::Shared { others, .. }) if others == [second.pid()]));
    assert!(CellCgroup::adopt(first.pid(), &[second.pid()]).is_ok());
}

#[test]
fn dead_process_and_bad_names_are_refused_by_name() {
    needs!("root");
    let (cell, mut idler) = (Cell::new("refused"), idler());
    idler.kill();
    assert!(
        matches!(cell.move_in(idler.pid()), Err(CgroupError::NoProcess { pid, .. }) if pid == idler.pid())
    );
    for (parent, app) in [("checksync-test", "../escape"), ("..", "app"), ("", "app"), ("a//b", "app")] {
        assert!(matches!(CellCgroup::create(parent, app), Err(CgroupError::Name { .. })), "{parent}/{app}");
    }
    assert!(matches!(CellCgroup::reopen("../escape"), Err(CgroupError::Name { .. })));
}
