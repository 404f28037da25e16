//! The table as a whole: what changes between two saves is seen, and any numbers in any amount arrive.

use std::time::{Duration, Instant};

use image::descriptor::FileKind;

use crate::stage::{Circumstances, Servant, cache, carry};

#[test]
fn a_second_save_sees_every_silent_change() {
    let mut app = Servant::start();
    let event = app.call(libc::SYS_eventfd2, &[1, 0]);
    let file = app.open("/etc/hostname", libc::O_RDONLY);
    let (around, mut cache) = (Circumstances::default(), cache());
    around.save(&app, &mut cache).expect("saved");

    app.write_to(event, &41_u64.to_ne_bytes());
    app.call(libc::SYS_lseek, &[file as u64, 2, 0]);
    app.call(libc::SYS_fcntl, &[file as u64, libc::F_SETFD as u64, 1]);
    app.call(libc::SYS_fcntl, &[event as u64, libc::F_SETFL as u64, libc::O_NONBLOCK as u64]);
    let saved = around.save(&app, &mut cache).expect("saved");
    assert_eq!(saved.files[0].kind, FileKind::Event { count: 42, semaphore: false });
    assert_eq!(saved.files[0].flags & libc::O_NONBLOCK as u32, libc::O_NONBLOCK as u32);
    assert_eq!((saved.files[1].position, saved.descriptors[1].close_on_exec), (2, true));
}

#[test]
fn a_number_that_went_to_another_kind_is_seen_as_that() {
    let mut app = Servant::start();
    let number = app.socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    let (around, mut cache) = (Circumstances::default(), cache());
    around.save(&app, &mut cache).expect("saved");
    app.close(number);
    assert_eq!(app.call(libc::SYS_eventfd2, &[7, 0]), number);
    let saved = around.save(&app, &mut cache).expect("saved");
    assert_eq!(saved.files[0].kind, FileKind::Event { count: 7, semaphore: false });
    app.close(number);
    assert!(around.save(&app, &mut cache).expect("saved").files.is_empty());
}

#[test]
fn numbers_in_any_order_and_far_apart_arrive() {
    let mut app = Servant::start();
    let mut counts = Vec::new();
    for (count, number) in [(1_u64, 5_i32), (2, 0), (3, 977), (4, 1), (5, 300), (6, 2)] {
        let made = app.call(libc::SYS_eventfd2, &[count, 0]);
        if made != number {
            app.call(libc::SYS_dup3, &[made as u64, number as u64, 0]);
            app.close(made);
        }
        counts.push((number, count));
    }
    let (mut skeleton, _) = carry(app);
    for (number, count) in counts {
        assert_eq!(skeleton.read_from(number, 8), Ok(count.to_ne_bytes().to_vec()), "fd {number}");
    }
}

#[test]
fn ten_thousand_descriptors_are_saved_and_rebuilt() {
    let mut app = Servant::start();
    let kinds = 2500;
    let first = app.call(libc::SYS_eventfd2, &[0, 0]) as u64;
    let mut calls = Vec::new();
    for index in 1..kinds {
        calls.push((libc::SYS_eventfd2, [index, 0, 0, 0, 0, 0]));
    }
    for _ in 0..kinds {
        calls.push((libc::SYS_dup, [first, 0, 0, 0, 0, 0]));
        calls.push((libc::SYS_socket, [libc::AF_INET as u64, libc::SOCK_DGRAM as u64, 0, 0, 0, 0]));
        calls.push((libc::SYS_epoll_create1, [0; 6]));
    }
    use checkpoint::descriptors::Target;
    assert!(app.calls(&calls).expect("calls").iter().all(|result| *result >= 0));
    let around = Circumstances::default();
    let mut cache = cache();
    around.save(&app, &mut cache).expect("saved");
    let started = Instant::now();
    let saved = around.save(&app, &mut cache).expect("saved");
    let saving = started.elapsed();
    assert_eq!((saved.descriptors.len(), saved.files.len()), (10_000, 7500));
    let started = Instant::now();
    let mut skeleton = around.rebuild(&saved).expect("rebuilt");
    let rebuilding = started.elapsed();
    println!("10,000 descriptors: saved in {saving:?}, rebuilt in {rebuilding:?}");
    assert_eq!(skeleton.numbers().len(), 10_000);
    assert_eq!(skeleton.read_from(1234, 8), Ok(1234_u64.to_ne_bytes().to_vec()));
    assert!(saving + rebuilding < Duration::from_secs(20), "{saving:?} and {rebuilding:?}");
}

#[test]
fn a_state_that_names_what_is_not_in_it_is_not_rebuilt() {
    let mut app = Servant::start();
    app.pipe(0);
    let around = Circumstances::default();
    let saved = around.save(&app, &mut cache()).expect("saved");
    let mut without_pipe = saved.clone();
    without_pipe.pipes.clear();
    let mut without_file = saved.clone();
    without_file.files.pop();
    let mut unsorted = saved;
    unsorted.descriptors.reverse();
    for broken in [without_pipe, without_file, unsorted] {
        let error = around.rebuild(&broken).expect_err("inconsistent").to_string();
        assert!(error.contains("not in it"), "{error}");
    }
}

/// As many as before, and not the same.
#[test]
fn a_descriptor_that_came_for_one_that_went_is_found() {
    let mut app = Servant::start();
    let [reader, writer] = app.pipe(0);
    let mut cache = cache();
    let mut numbers = |app: &Servant| -> Vec<i32> {
        let saved = Circumstances::default().save(app, &mut cache).expect("saved");
        saved.descriptors.iter().map(|descriptor| descriptor.number).collect()
    };
    assert_eq!(numbers(&app), app.numbers());
    assert_eq!(numbers(&app), app.numbers());
    app.call(libc::SYS_dup3, &[writer as u64, 50, 0]);
    app.close(writer);
    assert_eq!(numbers(&app), app.numbers());
    app.call(libc::SYS_dup3, &[reader as u64, 51, 0]);
    assert_eq!(numbers(&app), app.numbers());
}
