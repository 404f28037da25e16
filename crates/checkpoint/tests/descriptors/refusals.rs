//! What cannot be captured is refused by its name, with its number and a way out.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sys::sockets::connect;

use crate::stage::{Servant, refusal};

#[track_caller]
fn assert_refused(app: &Servant, number: i32, what: &str) {
    let refusal = refusal(app);
    let expected = format!("cannot protect pid {}: fd {number} {what}", app.pid);
    assert!(refusal.starts_with(&expected), "{refusal:?} instead of {expected:?}");
    assert!(refusal.contains("; "), "no way out: {refusal}");
}

#[test]
fn an_io_uring_is_refused() {
    let mut app = Servant::start();
    let parameters = app.put(&[0; 120]);
    let number = app.try_call(libc::SYS_io_uring_setup, &[4, parameters]);
    if number == -i64::from(libc::EPERM) || number == -i64::from(libc::ENOSYS) {
        eprintln!("skipped: this host has no io_uring");
        return;
    }
    assert_refused(&app, number as i32, "is an io_uring");
}

#[test]
fn a_userfaultfd_is_refused() {
    let mut app = Servant::start();
    let number = app.call(libc::SYS_userfaultfd, &[libc::O_CLOEXEC as u64]);
    assert_refused(&app, number, "is a userfaultfd");
}

#[test]
fn a_fanotify_group_is_refused() {
    let mut app = Servant::start();
    let number = app.call(libc::SYS_fanotify_init, &[0, 0]);
    assert_refused(&app, number, "is a fanotify group");
}

#[test]
fn a_bpf_map_is_refused() {
    let mut app = Servant::start();
    // BPF_MAP_CREATE of an array: type, key and value size, one entry.
    let attributes: Vec<u8> = [2_u32, 4, 4, 1].into_iter().flat_map(u32::to_ne_bytes).collect();
    let attributes = app.put(&attributes);
    let number = app.call(libc::SYS_bpf, &[0, attributes, 16]);
    assert_refused(&app, number, "is a BPF object");
}

#[test]
fn a_terminal_is_refused_with_the_way_out() {
    let mut app = Servant::start();
    let number = app.open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY);
    assert_refused(&app, number, "is a terminal");
    assert!(refusal(&app).ends_with("run it under `checksync run`, which owns them"));
}

#[test]
fn a_device_is_refused() {
    let mut app = Servant::start();
    let number = app.open("/dev/kmsg", libc::O_RDONLY);
    assert_refused(&app, number, "is a device (/dev/kmsg)");
}

#[test]
fn a_namespace_is_refused() {
    let mut app = Servant::start();
    let number = app.open("/proc/self/ns/net", libc::O_RDONLY);
    assert_refused(&app, number, "is net:[");
}

#[test]
fn secret_memory_is_refused() {
    let mut app = Servant::start();
    let number = app.try_call(libc::SYS_memfd_secret, &[0]);
    if number == -i64::from(libc::ENOSYS) {
        eprintln!("skipped: this kernel has no memfd_secret");
        return;
    }
    assert_refused(&app, number as i32, "is secret memory");
}

#[test]
fn a_message_queue_is_refused() {
    let mut app = Servant::start();
    let name = app.put(format!("checksync-{}\0", app.pid).as_bytes());
    let number = app.call(libc::SYS_mq_open, &[name, (libc::O_RDWR | libc::O_CREAT) as u64, 0o600, 0]);
    app.call(libc::SYS_mq_unlink, &[name]);
    assert_refused(&app, number, "is a POSIX message queue");
}

#[test]
fn sockets_of_other_families_are_refused() {
    for (family, kind, protocol, what) in [
        (libc::AF_PACKET, libc::SOCK_RAW, 0, "is a packet socket"),
        (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP, "is a raw socket"),
        (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_KOBJECT_UEVENT, "is a netlink socket of protocol"),
    ] {
        let mut app = Servant::start();
        let number = app.socket(family, kind, protocol);
        assert_refused(&app, number, what);
    }
}

#[test]
fn a_pipe_to_another_process_is_refused() {
    for kept in [0, 1] {
        let mut app = Servant::start();
        let ends = app.pipe(0);
        let _other_process = app.borrow(ends[1 - kept]);
        app.close(ends[1 - kept]);
        assert_refused(&app, ends[kept], "is a pipe whose other end is outside the app");
    }
}

#[test]
fn a_unix_connection_to_outside_is_refused_by_its_path() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("log");
    let _logger = UnixListener::bind(&path).expect("listen");
    let mut app = Servant::start();
    let number = app.socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
    let address = [&[libc::AF_UNIX as u8, 0], path.as_os_str().as_encoded_bytes()].concat();
    connect(app.borrow(number).as_fd(), &address).expect("connect");
    assert_refused(&app, number, &format!("is a unix socket connected to {}, outside", path.display()));
}

#[test]
fn descriptors_on_their_way_through_a_unix_socket_are_refused() {
    let mut app = Servant::start();
    let [a, b] = app.two(libc::SYS_socketpair, [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0, 0], 3);
    let (own, travels) = (app.borrow(a), app.borrow(b));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let fds = [travels.as_fd()];
    assert!(rights.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&own, &[IoSlice::new(b"x")], &mut rights, SendFlags::empty()).expect("send");
    assert_refused(&app, b, "is a unix socket with descriptors in its queue");
}

#[test]
fn an_epoll_on_a_file_that_nobody_has_open_any_more_is_refused() {
    let mut app = Servant::start();
    let epoll = app.call(libc::SYS_epoll_create1, &[0]);
    let event = app.call(libc::SYS_eventfd2, &[0, 0]);
    app.add_to_epoll(epoll, event, 1, 0);
    let _elsewhere = app.borrow(event);
    app.close(event);
    assert_refused(&app, epoll, "is an epoll that watches a file without descriptor");
}

#[test]
fn a_file_of_another_process_is_refused() {
    let mut app = Servant::start();
    let number = app.open(format!("/proc/{}/stat", std::process::id()), libc::O_RDONLY);
    assert_refused(&app, number, &format!("is /proc/{}/stat, of another process", std::process::id()));
}

#[test]
fn a_pidfd_of_another_process_is_refused() {
    let mut app = Servant::start();
    let number = app.call(libc::SYS_pidfd_open, &[std::process::id().into(), 0]);
    assert_refused(&app, number, "is a pidfd of process");
}

#[test]
fn a_lease_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("leased");
    std::fs::write(&path, b"x").expect("a file");
    let mut app = Servant::start();
    let number = app.open(&path, libc::O_RDONLY);
    app.call(libc::SYS_fcntl, &[number as u64, libc::F_SETLEASE as u64, libc::F_RDLCK as u64]);
    assert_refused(&app, number, "holds a lease");
}

#[test]
fn a_large_deleted_file_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("large");
    let mut app = Servant::start();
    let number = app.open(&path, libc::O_RDWR | libc::O_CREAT);
    app.call(libc::SYS_ftruncate, &[number as u64, (64 << 20) + 1]);
    std::fs::remove_file(&path).expect("remove it");
    assert_refused(&app, number, "is a deleted file of 67108865 bytes");
}

#[test]
fn a_file_that_lost_the_name_it_was_opened_by_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let [path, other] = ["one", "two"].map(|name| directory.path().join(name));
    std::fs::write(&path, b"x").expect("a file");
    std::fs::hard_link(&path, other).expect("a second name");
    let mut app = Servant::start();
    let number = app.open(&path, libc::O_RDONLY);
    std::fs::remove_file(&path).expect("remove it");
    assert_refused(&app, number, &format!("is {} (deleted): its path is gone", path.display()));
}
