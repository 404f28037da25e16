//! Files, directories, devices, deleted files, pipes, FIFOs and locks.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use image::descriptor::FileKind;
use rustix::fs::FlockOperation;

use crate::stage::{Circumstances, DEADLINE, Servant, cache, carry};

fn link(servant: &Servant, number: i32) -> String {
    let link = std::fs::read_link(format!("/proc/{}/fd/{number}", servant.pid)).expect("a link");
    link.to_string_lossy().into_owned()
}

#[test]
fn files_come_back_with_offset_and_flags_and_are_not_truncated() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    let mut app = Servant::start();
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND | libc::O_CLOEXEC;
    let file = app.open(&path, flags);
    app.write_to(file, b"0123456789");
    app.call(libc::SYS_lseek, &[file as u64, 4, 0]);
    let listing = app.open(directory.path(), libc::O_RDONLY | libc::O_DIRECTORY);
    let null = app.open("/dev/null", libc::O_WRONLY);
    let by_path = app.open(&path, libc::O_PATH);
    let before = [file, listing, null, by_path].map(|number| (app.info(number), link(&app, number)));

    let (mut skeleton, _) = carry(app);
    let after = [file, listing, null, by_path].map(|number| (skeleton.info(number), link(&skeleton, number)));
    assert_eq!(after, before);
    assert_eq!(skeleton.read_from(file, 100), Ok(b"456789".to_vec()));
}

#[test]
fn duplicates_share_their_offset_and_other_opens_do_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    std::fs::write(&path, b"0123456789").expect("a file");
    let mut app = Servant::start();
    let first = app.open(&path, libc::O_RDONLY);
    let other = app.open(&path, libc::O_RDONLY);
    let duplicate = app.call(libc::SYS_fcntl, &[first as u64, libc::F_DUPFD_CLOEXEC as u64, 40]);

    let (mut skeleton, saved) = carry(app);
    assert_eq!(saved.files.len(), 2);
    assert_eq!(skeleton.read_from(first, 3), Ok(b"012".to_vec()));
    assert_eq!(skeleton.read_from(duplicate, 3), Ok(b"345".to_vec()));
    assert_eq!(skeleton.read_from(other, 3), Ok(b"012".to_vec()));
    let close_on_exec = [first, duplicate].map(|fd| skeleton.call(libc::SYS_fcntl, &[fd as u64, 1]));
    assert_eq!(close_on_exec, [0, libc::FD_CLOEXEC]);
}

#[test]
fn deleted_files_keep_their_content_and_stay_one_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("gone");
    let mut app = Servant::start();
    let writer = app.open(&path, libc::O_RDWR | libc::O_CREAT);
    let reader = app.open(&path, libc::O_RDONLY);
    app.write_to(writer, b"still here");
    std::fs::remove_file(&path).expect("remove it");

    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.read_from(reader, 100), Ok(b"still here".to_vec()));
    skeleton.write_to(writer, b", both");
    assert_eq!(skeleton.read_from(reader, 100), Ok(b", both".to_vec()));
    let stat = rustix::fs::fstat(skeleton.borrow(writer)).expect("stat");
    assert_eq!((stat.st_nlink, stat.st_mode & 0o777), (0, 0o600));
}

#[test]
fn a_name_that_ends_like_a_deleted_one_is_an_ordinary_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("strange (deleted)");
    std::fs::write(&path, b"x").expect("a file");
    let mut app = Servant::start();
    let file = app.open(&path, libc::O_RDONLY);
    let (skeleton, _) = carry(app);
    assert_eq!(link(&skeleton, file), path.to_string_lossy());
}

#[test]
fn memfds_are_left_to_the_memory_module_and_opened_from_it() {
    let mut app = Servant::start();
    let name = app.put(b"shared\0");
    let memfd = app.call(libc::SYS_memfd_create, &[name, 0]);
    app.write_to(memfd, b"content");
    app.call(libc::SYS_lseek, &[memfd as u64, 3, 0]);
    let mut around = Circumstances::default();
    let saved = around.save(&app, &mut cache()).expect("saved");
    let FileKind::Object { key } = saved.files[0].kind else { panic!("not an object: {:?}", saved.files) };
    assert_eq!(saved.objects, [key]);
    around.object_files.insert(key, app.borrow(memfd));
    let mut skeleton = around.rebuild(&saved).expect("rebuilt");
    assert_eq!(skeleton.read_from(memfd, 100), Ok(b"tent".to_vec()));
}

#[test]
fn paths_of_the_process_itself_follow_it() {
    let mut app = Servant::start();
    let status = app.open("/proc/self/status", libc::O_RDONLY);
    let saved = Circumstances::default().save(&app, &mut cache()).expect("saved");
    let expected = FileKind::OwnProc { path: serde_bytes::ByteBuf::from("1/status") };
    assert_eq!(saved.files[status as usize].kind, expected);
}

#[test]
fn limits_of_the_control_group_are_the_restorers_own_or_nothing() {
    let Some(path) = cgroup_limit() else { return };
    let mut app = Servant::start();
    let file = app.open(&path, libc::O_RDONLY);
    let (mut skeleton, saved) = carry(app);
    assert!(matches!(&saved.files[0].kind, FileKind::CgroupFile { name } if path.ends_with(name)));
    assert_eq!(skeleton.read_from(file, 10), Ok(Vec::new()));
}

/// A file with a CPU limit, where this machine has one.
fn cgroup_limit() -> Option<String> {
    let known = ["/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu.max"];
    known.into_iter().find(|path| std::fs::exists(path).is_ok_and(|exists| exists)).map(str::to_owned)
}

#[test]
fn unread_bytes_stay_in_the_pipe_and_come_along() {
    let mut app = Servant::start();
    let [reader, writer] = app.pipe(libc::O_NONBLOCK);
    app.call(libc::SYS_fcntl, &[writer as u64, libc::F_SETPIPE_SZ as u64, 1 << 18]);
    app.write_to(writer, b"first ");
    app.write_to(writer, &vec![b'x'; 70_000]);
    let around = Circumstances::default();
    let saved = around.save(&app, &mut cache()).expect("saved");
    assert_eq!(app.read_from(reader, 6), Ok(b"first ".to_vec()), "the app still has it");

    let mut skeleton = around.rebuild(&saved).expect("rebuilt");
    assert_eq!(skeleton.read_from(reader, 6), Ok(b"first ".to_vec()));
    assert_eq!(skeleton.read_from(reader, 100_000).map(|rest| rest.len()), Ok(70_000));
    assert_eq!(skeleton.read_from(reader, 1), Err(libc::EAGAIN));
    assert_eq!(skeleton.call(libc::SYS_fcntl, &[reader as u64, libc::F_GETPIPE_SZ as u64]), 1 << 18);
    skeleton.write_to(writer, b"more");
    assert_eq!(skeleton.read_from(reader, 10), Ok(b"more".to_vec()));
    skeleton.close(writer);
    // Another test's fork may hold a copy of everything for a moment.
    let started = std::time::Instant::now();
    while skeleton.read_from(reader, 10) != Ok(Vec::new()) {
        assert!(started.elapsed() < DEADLINE, "somebody else holds the writing end");
    }
}

#[test]
fn packets_of_a_pipe_stay_apart() {
    let mut app = Servant::start();
    let [reader, writer] = app.pipe(libc::O_DIRECT | libc::O_NONBLOCK);
    app.write_to(writer, b"one");
    app.write_to(writer, b"second");
    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.read_from(reader, 100), Ok(b"one".to_vec()));
    assert_eq!(skeleton.read_from(reader, 100), Ok(b"second".to_vec()));
    skeleton.write_to(writer, b"a");
    skeleton.write_to(writer, b"b");
    assert_eq!(skeleton.read_from(reader, 100), Ok(b"a".to_vec()), "still packets");
}

#[test]
fn a_pipe_that_lost_an_end_has_lost_it_afterwards() {
    let mut app = Servant::start();
    let [reader, writer] = app.pipe(0);
    app.write_to(writer, b"last words");
    app.close(writer);
    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.read_from(reader, 100), Ok(b"last words".to_vec()));
    assert_eq!(skeleton.read_from(reader, 100), Ok(Vec::new()));
}

#[test]
fn a_fifo_keeps_its_content_without_waiting_for_anybody() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a FIFO");
    let mut app = Servant::start();
    let reader = app.open(&path, libc::O_RDONLY | libc::O_NONBLOCK);
    let writer = app.open(&path, libc::O_WRONLY);
    app.write_to(writer, b"queued");
    let (mut skeleton, _) = carry(app);
    assert_eq!(skeleton.read_from(reader, 100), Ok(b"queued".to_vec()));
    skeleton.write_to(writer, b"again");
    assert_eq!(skeleton.read_from(reader, 100), Ok(b"again".to_vec()));
}

#[test]
fn streams_of_the_manager_are_replaced_by_its_new_ones() {
    let mut app = Servant::start();
    let [reader, writer] = app.pipe(0);
    let inode = rustix::fs::fstat(app.borrow(writer)).expect("stat").st_ino;
    let _managers_end = app.borrow(reader);
    app.close(reader);
    let (new_reader, new_writer) = std::io::pipe().expect("a pipe");
    let around = Circumstances {
        stdio: vec![(inode, 1)],
        new_stdio: [None, Some(OwnedFd::from(new_writer)), None],
        ..Circumstances::default()
    };
    let (mut skeleton, saved) = around.carry(app);
    assert_eq!(saved.files[0].kind, FileKind::Stdio { stream: 1 });
    skeleton.write_to(writer, b"hello");
    let mut heard = [0; 5];
    std::io::Read::read_exact(&mut &new_reader, &mut heard).expect("what the app wrote");
    assert_eq!(&heard, b"hello");
}

#[test]
fn locks_of_all_kinds_are_held_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut app = Servant::start();
    let paths = ["whole", "open_file", "process"].map(|name| directory.path().join(name));
    let files = paths.clone().map(|path| app.open(path, libc::O_RDWR | libc::O_CREAT));
    rustix::fs::flock(app.borrow(files[0]), FlockOperation::LockExclusive).expect("lock");
    sys::descriptors::lock_open_file(app.borrow(files[1]).as_fd(), true, 10, 5).expect("lock");
    let request = sys::descriptors::lock_request(true, 100, 0).map(u64::to_ne_bytes).concat();
    let request = app.put(&request);
    app.call(libc::SYS_fcntl, &[files[2] as u64, libc::F_SETLK as u64, request]);

    let (skeleton, _) = carry(app);
    let again = paths.map(|path| std::fs::File::options().write(true).open(path).expect("open it"));
    assert!(rustix::fs::flock(&again[0], FlockOperation::NonBlockingLockShared).is_err());
    assert!(sys::descriptors::lock_open_file(again[1].as_fd(), true, 14, 1).is_err());
    assert!(sys::descriptors::lock_open_file(again[1].as_fd(), true, 15, 1).is_ok(), "only what was locked");
    assert!(sys::descriptors::lock_open_file(again[2].as_fd(), true, 5000, 1).is_err());
    assert!(skeleton.info(files[2]).contains(&format!("POSIX  ADVISORY  WRITE {}", skeleton.pid)));
}

#[test]
fn a_missing_path_or_another_kind_of_file_is_found_before_the_takeover() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    std::fs::write(&path, b"x").expect("a file");
    let mut app = Servant::start();
    app.open(&path, libc::O_RDONLY);
    let around = Circumstances::default();
    let saved = around.save(&app, &mut cache()).expect("saved");
    std::fs::remove_file(&path).expect("remove it");
    let missing = around.rebuild(&saved).expect_err("it is gone").to_string();
    assert!(missing.contains("data, which the app had open"), "{missing}");
    std::fs::create_dir(&path).expect("a directory in its place");
    let other = around.rebuild(&saved).expect_err("it is a directory").to_string();
    assert!(other.contains("not the kind of file"), "{other}");
}

#[test]
fn a_reader_of_the_saved_deleted_file_sees_no_trace_of_the_save() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("gone");
    let mut app = Servant::start();
    let file = app.open(&path, libc::O_RDWR | libc::O_CREAT);
    app.write_to(file, b"abc");
    std::fs::remove_file(&path).expect("remove it");
    let before = (app.info(file), std::fs::metadata(format!("/proc/{}/fd/{file}", app.pid)).expect("stat"));
    Circumstances::default().save(&app, &mut cache()).expect("saved");
    let after = std::fs::metadata(format!("/proc/{}/fd/{file}", app.pid)).expect("stat");
    assert_eq!((app.info(file), after.ctime_nsec(), after.size()), (before.0, before.1.ctime_nsec(), 3));
}
