//! eventfd, timerfd, signalfd, epoll, inotify, pidfd and asynchronous owners.

use std::time::Duration;

use image::descriptor::FileKind;

use crate::stage::{CELL_PID, Circumstances, Servant, cache, carry};

#[test]
fn counters_of_eventfds_survive() {
    let mut app = Servant::start();
    let plain = app.call(libc::SYS_eventfd2, &[0, libc::EFD_NONBLOCK as u64]);
    app.write_to(plain, &0xffff_ffff_0000_0001_u64.to_ne_bytes());
    let semaphore = app.call(libc::SYS_eventfd2, &[3, libc::EFD_SEMAPHORE as u64]);
    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.read_from(plain, 8), Ok(0xffff_ffff_0000_0001_u64.to_ne_bytes().to_vec()));
    assert_eq!(skeleton.read_from(plain, 8), Err(libc::EAGAIN));
    assert_eq!(skeleton.read_from(semaphore, 8), Ok(1_u64.to_ne_bytes().to_vec()));
    assert!(skeleton.info(semaphore).contains("eventfd-count:                2"));
}

fn set_timer(app: &mut Servant, number: i32, value: Duration, interval: Duration) {
    let words = [interval, value].map(|part| [part.as_secs(), u64::from(part.subsec_nanos())]);
    let bytes: Vec<u8> = words.concat().into_iter().flat_map(u64::to_ne_bytes).collect();
    let address = app.put(&bytes);
    app.call(libc::SYS_timerfd_settime, &[number as u64, 0, address, 0]);
}

fn timer(around: &Circumstances, app: &Servant, number: i32) -> image::descriptor::TimerDescriptor {
    let saved = around.save(app, &mut cache()).expect("saved");
    let FileKind::Timer(timer) = saved.files[number as usize].kind else { panic!("not a timer") };
    timer
}

#[test]
fn timers_go_on_with_what_was_left() {
    let mut app = Servant::start();
    let number = app.call(libc::SYS_timerfd_create, &[libc::CLOCK_MONOTONIC as u64, 0]);
    set_timer(&mut app, number, Duration::from_secs(1000), Duration::from_millis(250));
    let around = Circumstances { elapsed: Duration::from_secs(400), ..Circumstances::default() };
    let (skeleton, _) = around.carry(app);
    let after = timer(&around, &skeleton, number);
    assert_eq!((after.clock, after.interval_ns), (libc::CLOCK_MONOTONIC, 250_000_000));
    let left = Duration::from_nanos(after.remaining_ns);
    assert!(left <= Duration::from_secs(600) && left > Duration::from_secs(500), "{left:?}");
}

#[test]
fn a_timer_that_fired_unread_is_still_unread_and_an_idle_one_idle() {
    let mut app = Servant::start();
    let clock = libc::CLOCK_MONOTONIC as u64;
    let fired = app.call(libc::SYS_timerfd_create, &[clock, libc::TFD_NONBLOCK as u64]);
    let idle = app.call(libc::SYS_timerfd_create, &[clock, libc::TFD_NONBLOCK as u64]);
    sys::descriptors::set_timer_ticks(std::os::fd::AsFd::as_fd(&app.borrow(fired)), 7).expect("ticks");
    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.read_from(fired, 8), Ok(7_u64.to_ne_bytes().to_vec()));
    assert_eq!(skeleton.read_from(idle, 8), Err(libc::EAGAIN));
}

#[test]
fn an_interval_timer_that_fired_unread_is_saved_with_the_rest_of_its_interval() {
    let mut app = Servant::start();
    let number = app.call(libc::SYS_timerfd_create, &[libc::CLOCK_MONOTONIC as u64, 0]);
    set_timer(&mut app, number, Duration::from_nanos(1), Duration::from_secs(500));
    let around = Circumstances::default();
    let saved = timer(&around, &app, number);
    assert_eq!(saved.ticks, 1);
    assert!(saved.remaining_ns > 400_000_000_000, "{saved:?}");
}

#[test]
fn masks_of_signalfds_survive() {
    let mut app = Servant::start();
    let mask = 1_u64 << (libc::SIGUSR1 - 1) | 1 << (libc::SIGTERM - 1);
    let address = app.put(&mask.to_ne_bytes());
    let number = app.call(libc::SYS_signalfd4, &[u64::MAX, address, 8, libc::SFD_NONBLOCK as u64]);
    let before = app.info(number);
    let (skeleton, saved) = carry(app);
    assert_eq!(saved.files[0].kind, FileKind::Signal { mask });
    assert_eq!(skeleton.info(number), before);
}

const F_OWNER_PID: i32 = 1;
const READABLE: u32 = libc::EPOLLIN as u32;

/// A new epoll, and an eventfd that is readable if `count` is above zero.
fn epoll_and_event(app: &mut Servant, count: u64) -> (i32, i32) {
    let epoll = app.call(libc::SYS_epoll_create1, &[0]);
    (epoll, app.call(libc::SYS_eventfd2, &[count, 0]))
}

#[test]
fn epoll_sets_keep_events_and_all_64_bits_of_data() {
    let mut app = Servant::start();
    let (epoll, event) = epoll_and_event(&mut app, 1);
    app.add_to_epoll(epoll, event, READABLE | libc::EPOLLET as u32, 0x8000_0000_dead_beef);
    let before = app.info(epoll);
    let (mut skeleton, _) = carry(app);
    let without_inode = |text: String| text.split(" ino:").next().map(str::to_owned);
    assert_eq!(without_inode(skeleton.info(epoll)), without_inode(before));
    assert_eq!(skeleton.epoll_events(epoll), [(READABLE, 0x8000_0000_dead_beef)]);
}

#[test]
fn an_epoll_inside_an_epoll_still_reports_through_it() {
    let mut app = Servant::start();
    let outer = app.call(libc::SYS_epoll_create1, &[0]);
    let (inner, event) = epoll_and_event(&mut app, 0);
    app.add_to_epoll(outer, inner, READABLE, 10);
    app.add_to_epoll(inner, event, READABLE, 20);
    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.epoll_events(outer), []);
    skeleton.write_to(event, &1_u64.to_ne_bytes());
    assert_eq!(skeleton.epoll_events(outer), [(READABLE, 10)]);
    assert_eq!(skeleton.epoll_events(inner), [(READABLE, 20)]);
}

#[test]
fn an_entry_whose_number_was_closed_or_given_away_still_watches_the_same_file() {
    let mut app = Servant::start();
    let (epoll, closed) = epoll_and_event(&mut app, 1);
    let given_away = app.call(libc::SYS_eventfd2, &[1, 0]);
    for (number, data) in [(closed, 1), (given_away, 2)] {
        app.add_to_epoll(epoll, number, READABLE, data);
        app.call(libc::SYS_dup3, &[number as u64, 20 + data, 0]);
    }
    app.close(closed);
    let silent = app.call(libc::SYS_eventfd2, &[0, libc::EFD_CLOEXEC as u64]);
    app.call(libc::SYS_dup3, &[silent as u64, given_away as u64, libc::O_CLOEXEC as u64]);
    app.add_to_epoll(epoll, given_away, READABLE, 3);
    let before = app.epoll_events(epoll);
    assert_eq!(before, [(READABLE, 1), (READABLE, 2)]);

    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.epoll_events(epoll), before);
    skeleton.write_to(silent, &1_u64.to_ne_bytes());
    assert_eq!(skeleton.epoll_events(epoll).last(), Some(&(READABLE, 3)));
    assert_eq!(skeleton.call(libc::SYS_fcntl, &[given_away as u64, 1]), libc::FD_CLOEXEC);
}

#[test]
fn a_one_shot_entry_that_has_fired_stays_silent() {
    let mut app = Servant::start();
    let epoll = app.call(libc::SYS_epoll_create1, &[0]);
    let [reader, writer] = app.pipe(0);
    app.close(writer); // Hung up: the kernel would report that on its own.
    app.add_to_epoll(epoll, reader, READABLE | libc::EPOLLONESHOT as u32, 5);
    assert_eq!(app.epoll_events(epoll).len(), 1);
    assert_eq!(app.epoll_events(epoll), []);
    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.epoll_events(epoll), []);
}

fn add_watch(app: &mut Servant, inotify: i32, path: &std::path::Path, mask: u32) -> i32 {
    let name = [path.as_os_str().as_encoded_bytes(), b"\0"].concat();
    let address = app.put(&name);
    app.call(libc::SYS_inotify_add_watch, &[inotify as u64, address, mask.into()])
}

#[test]
fn inotify_watches_keep_their_numbers_and_report_nothing_of_ours() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("watched");
    std::fs::write(&path, b"x").expect("a file");
    let mut app = Servant::start();
    let inotify = app.call(libc::SYS_inotify_init1, &[libc::IN_NONBLOCK as u64]);
    let dropped = add_watch(&mut app, inotify, std::path::Path::new("/"), libc::IN_CREATE);
    let on_file = add_watch(&mut app, inotify, &path, libc::IN_ALL_EVENTS);
    let on_directory = add_watch(&mut app, inotify, directory.path(), libc::IN_CREATE | libc::IN_ONLYDIR);
    app.call(libc::SYS_inotify_rm_watch, &[inotify as u64, dropped as u64]);
    app.open(&path, libc::O_RDONLY); // What it causes here, and again in the rebuild, is nobody's business.

    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.read_from(inotify, 1000), Err(libc::EAGAIN));
    std::fs::write(directory.path().join("new"), b"").expect("a new file");
    let event = skeleton.read_from(inotify, 1000).expect("an event");
    assert_eq!(event[..4], on_directory.to_ne_bytes());
    std::fs::write(&path, b"y").expect("a change");
    let event = skeleton.read_from(inotify, 1000).expect("an event");
    assert_eq!(event[..4], on_file.to_ne_bytes());
}

#[test]
fn a_renamed_watched_file_is_found_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let [path, renamed] = ["one", "two"].map(|name| directory.path().join(name));
    std::fs::write(&path, b"x").expect("a file");
    let mut app = Servant::start();
    let inotify = app.call(libc::SYS_inotify_init1, &[0]);
    add_watch(&mut app, inotify, &path, libc::IN_MODIFY);
    let (around, mut cache) = (Circumstances::default(), cache());
    around.save(&app, &mut cache).expect("saved");
    std::fs::rename(&path, &renamed).expect("rename");
    let saved = around.save(&app, &mut cache).expect("saved");
    let FileKind::Inotify { watches } = &saved.files[0].kind else { panic!("not an inotify") };
    assert_eq!(watches[0].path, renamed.as_os_str().as_encoded_bytes());
}

#[test]
fn pidfds_name_processes_by_their_number_in_the_cell() {
    let mut app = Servant::start();
    let number = app.call(libc::SYS_pidfd_open, &[app.pid as u64, libc::O_NONBLOCK as u64]);
    app.call(libc::SYS_fcntl, &[number as u64, libc::F_SETFD as u64, 0]);
    let around = Circumstances::default();
    let mut saved = around.save(&app, &mut cache()).expect("saved");
    assert_eq!(saved.files[0].kind, FileKind::Process { pid: CELL_PID });
    // Here the skeleton is in no cell of its own: any process that it may name stands in.
    let stand_in = Servant::start();
    saved.files[0].kind = FileKind::Process { pid: stand_in.pid };
    let skeleton = around.rebuild(&saved).expect("rebuilt");
    let info = skeleton.info(number);
    assert!(info.contains(&format!("Pid:\t{}", stand_in.pid)) && info.contains("flags:\t04002"), "{info}");
}

#[test]
fn owners_of_asynchronous_files_are_told_again() {
    let mut app = Servant::start();
    let [reader, _writer] = app.pipe(0);
    let owner = [F_OWNER_PID, app.pid];
    let bytes = [owner[0].to_ne_bytes(), owner[1].to_ne_bytes()].concat();
    let address = app.put(&bytes);
    app.call(libc::SYS_fcntl, &[reader as u64, 15, address]);
    app.call(libc::SYS_fcntl, &[reader as u64, 10, libc::SIGURG as u64]);
    app.call(libc::SYS_fcntl, &[reader as u64, libc::F_SETFL as u64, libc::O_ASYNC as u64]);

    let around = Circumstances::default();
    let mut saved = around.save(&app, &mut cache()).expect("saved");
    let owner = saved.files[0].owner.as_mut().expect("an owner");
    assert_eq!((owner.id, owner.signal), (CELL_PID, libc::SIGURG));
    owner.id = std::process::id() as i32; // In no cell, as above.
    let skeleton = around.rebuild(&saved).expect("rebuilt");
    let own = skeleton.borrow(reader);
    let own = std::os::fd::AsFd::as_fd(&own);
    let told = sys::descriptors::async_owner(own).expect("owner");
    assert_eq!(told, (F_OWNER_PID, std::process::id() as i32));
    assert_eq!(sys::descriptors::async_signal(own).expect("signal"), libc::SIGURG);
    assert!(rustix::fs::fcntl_getfl(own).expect("flags").bits() & libc::O_ASYNC as u32 != 0);
}
