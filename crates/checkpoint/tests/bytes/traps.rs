//! Each trap of memory tracking, by a guest that walks into it: an epoch before, an epoch after, and all bytes
//! compared. "Seen" names the change of the code with which the test was seen to fail.

use std::path::Path;
use std::time::Duration;

use image::layout::Backing;
use image::{PAGE_BYTES, Range};
use testkit::swap::Swap;

use crate::app::App;
use crate::compare::{memory, read};
use crate::world::Fate::{Committed, Late, Lost, Merged};
use crate::world::{Carried, Fate, World};

/// Where guests that choose their addresses have their first window.
const WINDOW: u64 = 0x2000_0000_0000;

/// Starts a guest, by its name and its arguments.
fn start(guest: &str) -> App {
    let words: Vec<&str> = guest.split(' ').collect();
    App::guest(words[0], &words[1..])
}

/// Takes one epoch before each step of the guest, and one after the last.
fn follow(guest: &str, fates: &[Fate]) -> (World, Vec<Carried>) {
    let mut world = World::new(start(guest));
    let mut carried = Vec::new();
    for (number, &fate) in fates.iter().enumerate() {
        if number > 0 {
            world.step();
        }
        carried.push(world.epoch(fate));
    }
    (world, carried)
}

/// The guest's memory is followed, whatever becomes of the epochs between the first and the last.
fn survives(guest: &str, steps: usize) {
    follow(guest, &vec![Committed; steps + 1]);
    for between in [Lost, Merged, Late] {
        let mut fates = vec![between; steps + 1];
        (fates[0], fates[steps]) = (Committed, Committed);
        let (mut world, _) = follow(guest, &fates);
        // The change itself is lost, too, and nothing happens after it.
        world.epoch(between);
        world.epoch(Committed);
        fates[steps] = between;
        let (mut world, _) = follow(guest, &fates);
        world.epoch(between);
        world.epoch(Committed);
        follow_slowly(guest, steps, between);
    }
}

/// Two epochs that do not arrive between any two steps.
fn follow_slowly(guest: &str, steps: usize, between: Fate) {
    let (mut world, _) = follow(guest, &[Committed]);
    for _ in 0..steps {
        world.step();
        world.epoch(between);
        world.epoch(between);
    }
    world.epoch(Committed);
    world.finish();
}

/// Seen: no un-protecting after registering.
#[test]
fn marks_that_a_merging_move_leaves_behind_hide_no_write() {
    survives("memory-remap-merge", 2);
}

/// Seen: private pages of writable file mappings not compared.
#[test]
fn dropped_copy_of_a_file_page_shows_the_file_again() {
    survives("memory-dontneed-file", 2);
}

/// Seen: no look for pages that are not there.
#[test]
fn dropped_pages_are_dropped() {
    survives("memory-dontneed", 1);
}

/// Seen: dropped pages looked for only if the kernel counts fewer pages than the standby had *before* the epoch.
#[test]
fn as_many_dropped_as_new_pages_are_noticed() {
    survives("trap-drop-and-new", 1);
}

/// Seen: no look for pages that are not there.
#[test]
fn dropped_huge_pages_and_their_page_table_are_noticed() {
    survives("trap-drop-huge", 1);
}

/// Seen: no look for pages that are not there.
#[test]
fn pages_dropped_out_of_a_huge_page_are_noticed() {
    survives("memory-huge-pages", 1);
}

/// Seen: no look for pages that are not there.
#[test]
fn source_of_a_move_that_keeps_its_mapping_is_empty() {
    survives("trap-move-keeping", 1);
}

/// Seen: pages that revert to the file not dropped.
#[test]
fn as_many_reverted_data_pages_as_new_ones_are_noticed() {
    survives("trap-data-and-new", 1);
}

/// Seen: reverted pages looked for in writable file mappings only.
#[test]
fn dropped_copy_in_a_read_only_file_mapping_is_noticed() {
    survives("trap-read-only-file", 1);
}

/// Seen: only what is present taken for the app's own; markers of dropped pages taken for its own, too.
#[test]
fn swapped_copies_of_file_pages_are_told_from_dropped_ones() {
    let Some(_swap) = Swap::on(Path::new(env!("CARGO_TARGET_TMPDIR"))) else { return };
    survives("trap-swapped-file swap", 2);
}

/// Seen: guards not looked at again once they are known.
#[test]
fn guards_are_guards_and_come_and_go() {
    survives("memory-guard", 1);
}

/// Seen: new ranges not searched for guards.
#[test]
fn guards_that_moves_leave_protected_are_noticed() {
    survives("trap-guard-merge", 2);
}

/// Seen: the zero page taken for content.
#[test]
fn zero_page_is_not_carried_as_content() {
    let (_, carried) = follow("trap-zero-page", &[Committed, Committed]);
    // What the guest's own stack and heap take, give or take one; eight zero pages would come on top.
    let base = follow("trap-nothing", &[Committed, Committed]).1[1].pages;
    assert!(carried[1].pages < base + 4, "{} pages were carried, {base} are usual", carried[1].pages);
    survives("trap-zero-page", 1);
}

/// Seen: droppable memory taken for anonymous memory that can't be tracked, which refuses the app.
#[test]
fn droppable_memory_is_there_and_empty() {
    let (mut world, _) = follow("memory-droppable", &[Committed]);
    let is_droppable = |backing: &Backing| *backing == Backing::Droppable;
    let mappings = world.skeleton().mappings().to_vec();
    let droppable: Vec<Range> = mappings
        .iter()
        .filter(|mapping| is_droppable(&mapping.backing))
        .map(|mapping| mapping.range)
        .collect();
    assert!(droppable.iter().any(|range| range.pages() == 4), "the guest's mapping is not in {droppable:?}");
    let skeleton = memory(world.skeleton().pid());
    for range in droppable {
        let bytes = read(&skeleton, range).expect("droppable memory can be read");
        assert!(bytes.iter().all(|&byte| byte == 0), "droppable memory at {:#x} was shipped", range.start);
    }
}

/// Seen: droppable pages not taken off the kernel's count.
#[test]
fn as_many_dropped_as_droppable_pages_are_noticed() {
    survives("trap-droppable-balance", 1);
}

/// Seen: an unchanged text of mappings taken for unchanged kinds of memory.
#[test]
fn droppable_and_ordinary_memory_take_each_others_place() {
    survives("trap-droppable-swap", 2);
}

/// Seen: mappings registered at the first epoch only.
#[test]
fn stack_that_grows_is_followed() {
    survives("memory-stack", 1);
}

/// Seen: mappings registered at the first epoch only.
#[test]
fn heap_that_is_split_by_its_growth_is_followed() {
    survives("trap-heap", 1);
}

/// Seen: mappings looked at only if their text changed.
#[test]
fn mapping_in_the_place_of_one_that_looked_the_same_is_new() {
    survives("trap-map-again", 1);
}

/// Seen: pages that went with their mapping not entered into the ledger.
#[test]
fn unmapping_in_a_lost_epoch_is_not_forgotten() {
    survives("trap-unmap-then-map", 2);
}

/// Seen: no comparing where the object's times moved; no punching.
#[test]
fn object_that_is_written_and_punched_behind_its_mappings_is_followed() {
    survives("memory-memfd", 1);
}

/// Seen: the part that an object grew by taken for zero on the standby.
#[test]
fn object_that_is_cut_and_grows_again_is_followed() {
    survives("trap-resize", 2);
}

/// Seen: an object that was forgotten taken for one that the standby has not yet.
#[test]
fn object_that_is_unmapped_and_mapped_again_is_followed() {
    survives("trap-object-again", 2);
}

/// Seen: no reading through /proc/PID/mem; no writing through it.
#[test]
fn content_out_of_reach_is_followed() {
    survives("trap-out-of-reach", 1);
}

/// Seen: what was dropped before a refusal forgotten with it.
#[test]
fn refused_epoch_loses_no_page() {
    for fate in [Committed, Lost] {
        let mut world = World::new(App::guest("trap-refused", &["refuse"]));
        world.epoch(Committed);
        world.step();
        let refused = world.try_epoch(fate).expect_err("memory with a userfaultfd of its own is refused");
        assert!(refused.to_string().contains("can't be followed"), "{refused}");
        world.step();
        world.epoch(fate);
        world.epoch(Committed);
    }
}

/// Seen: huge reservations scanned for empty pages that were written, and these protected.
#[test]
fn sparse_reservations_get_no_page_tables() {
    let (mut world, _) = follow("memory-reservation", &[]);
    let before = page_tables_kib(world.app.pid());
    for _ in 0..5 {
        world.run_for(Duration::from_millis(5));
        world.epoch(Committed);
    }
    let after = page_tables_kib(world.app.pid());
    assert!(after <= before + 32, "the page tables grew from {before} to {after} KiB");
    let theirs = page_tables_kib(world.skeleton().pid());
    assert!(theirs <= before + 64, "the skeleton has {theirs} KiB of page tables, the app {before}");
}

fn page_tables_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:")).expect("the kernel counts VmPTE");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Seen: a reservation that exceeds the machine refused by the skeleton's kernel.
#[test]
fn reservation_larger_than_the_machine_is_mapped() {
    let (mut world, _) = follow("memory-reservation", &[Committed]);
    let gib_64 = |range: Range| range.len_bytes() >= 60 << 30;
    assert!(world.skeleton().mappings().iter().any(|mapping| gib_64(mapping.range)));
}

/// Seen: mappings that touch merged on their way.
#[test]
fn twenty_thousand_mappings_are_followed() {
    let mut world = World::new(App::guest("many-mappings", &["20000"]));
    world.epoch(Committed);
    world.epoch(Lost);
    let carried = world.epoch(Committed);
    assert!(carried.compared > 20_000, "{carried:?}");
}

/// The skeleton is followed through every guest of the memory kind, also those that are no trap.
#[test]
fn every_memory_guest_is_followed_through_its_steps() {
    let guests = testkit::guest::all().into_iter().filter(|(name, _)| name.starts_with("memory-"));
    for (guest, steps) in guests {
        println!("{guest}");
        survives(&guest, steps as usize);
    }
}

/// The first window of a guest is where the tests look for it.
#[test]
fn windows_are_where_they_are_claimed() {
    let (mut world, _) = follow("trap-map-again", &[Committed]);
    let first = Range::new(WINDOW, WINDOW + 64 * PAGE_BYTES);
    assert!(world.skeleton().mappings().iter().any(|mapping| mapping.range == first));
}
