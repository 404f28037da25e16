//! What waits in the app's unix datagram sockets is read after the takeover, each once, in order, and as its sender's.

use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use checkpoint::descriptors::Saved;
use image::descriptor::FileKind;
use libc::SOL_SOCKET;
use sys::sockets::connect;

use crate::stage::{Circumstances, Servant, cache, option, refusal, set_option};

/// A datagram's bytes and its sender's address.
type Read = (Vec<u8>, Vec<u8>);

const DATAGRAM: i32 = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK;

/// `sockaddr_un`: a path with its zero, or an abstract name with one before it.
fn address(name: &[u8]) -> Vec<u8> {
    let end: &[u8] = if name.first() == Some(&0) { b"" } else { b"\0" };
    [(libc::AF_UNIX as u16).to_ne_bytes().as_slice(), name, end].concat()
}

fn path(directory: &Path, name: &str) -> Vec<u8> {
    directory.join(name).into_os_string().into_encoded_bytes()
}

/// Nobody else's: the tests run side by side.
fn abstract_name(name: &str) -> Vec<u8> {
    format!("\0checksync-test-{}-{name}", std::process::id()).into_bytes()
}

fn bound(app: &mut Servant, name: &[u8]) -> i32 {
    let number = app.socket(libc::AF_UNIX, DATAGRAM, 0);
    let bytes = address(name);
    let at = app.put(&bytes);
    app.call(libc::SYS_bind, &[number as u64, at, bytes.len() as u64]);
    number
}

fn send(app: &mut Servant, from: i32, to: &[u8], word: &[u8]) {
    let to = address(to);
    let at = app.put(&[&to, word].concat());
    let arguments = [from as u64, at + to.len() as u64, word.len() as u64, 0, at, to.len() as u64];
    assert_eq!(app.try_call(libc::SYS_sendto, &arguments), word.len() as i64);
}

/// Somebody outside; without a name as long as nothing is bound.
fn sender(name: &[u8]) -> UnixDatagram {
    let sender = UnixDatagram::unbound().expect("a socket");
    if !name.is_empty() {
        sys::sockets::bind(sender.as_fd(), &address(name)).expect("bind");
    }
    sender
}

fn say(sender: &UnixDatagram, to: &[u8], word: &[u8]) {
    // Without keeping a peer.
    connect(sender.as_fd(), &address(to)).expect("connect");
    assert_eq!(sender.send(word).expect("send"), word.len());
}

/// What the app reads next, and its sender's address; `-errno` where nothing is there.
fn receive(app: &mut Servant, number: i32) -> Result<Read, i32> {
    const ROOM: u64 = 128;
    let at = app.put(&(ROOM as u32).to_ne_bytes());
    let (from, bytes) = (at + 8, at + 8 + ROOM);
    let got = app.try_call(libc::SYS_recvfrom, &[number as u64, bytes, 60_000, 0, from, at]);
    let len = usize::try_from(got).map_err(|_| -got as i32)?;
    let all = app.got(8 + ROOM as usize + len);
    let from_len = u32::from_ne_bytes([0, 1, 2, 3].map(|n| all[n])) as usize;
    Ok((all[8 + ROOM as usize..].to_vec(), all[8..8 + from_len].to_vec()))
}

fn read_all(app: &mut Servant, number: i32) -> Vec<Read> {
    std::iter::from_fn(|| receive(app, number).ok()).collect()
}

fn count(saved: &Saved) -> usize {
    let queue = |kind: &FileKind| match kind {
        FileKind::UnixLoose(name) => name.queue.len(),
        _ => 0,
    };
    saved.files.iter().map(|file| queue(&file.kind)).sum()
}

/// Saved twice, read by the app itself, and rebuilt.
fn carried(mut app: Servant, number: i32) -> (Servant, Vec<Read>) {
    let (around, mut cache) = (Circumstances::default(), cache());
    let saved = around.save(&app, &mut cache).expect("a save");
    assert_eq!(around.save(&app, &mut cache).expect("a save"), saved, "looking takes nothing away");
    let own = read_all(&mut app, number);
    assert_eq!(own.len(), count(&saved), "the app reads each once");
    drop(app);
    (around.rebuild(&saved).expect("rebuild"), own)
}

#[test]
fn what_the_app_sent_to_itself_waits_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let named = [
        (path(directory.path(), "one"), path(directory.path(), "two")),
        (abstract_name("own one"), abstract_name("own two")),
    ];
    for (one, two) in named {
        let mut app = Servant::start();
        let (a, b) = (bound(&mut app, &one), bound(&mut app, &two));
        let nameless = app.socket(libc::AF_UNIX, DATAGRAM, 0);
        for (from, word) in
            [(b, &b"first"[..]), (nameless, b""), (a, b"to myself"), (b, b""), (b, &[7; 50_000])]
        {
            send(&mut app, from, &one, word);
        }
        send(&mut app, a, &two, b"an answer");
        let saved = Circumstances::default().save(&app, &mut cache()).expect("a save");
        assert_eq!(count(&saved), 6);
        let expected = [read_all(&mut app, a), read_all(&mut app, b)];
        assert_eq!(expected.each_ref().map(Vec::len), [5, 1], "the app reads each once");
        drop(app);
        let mut copy = Circumstances::default().rebuild(&saved).expect("rebuild");
        assert_eq!([read_all(&mut copy, a), read_all(&mut copy, b)], expected);
        assert_eq!(expected[0][0].1, address(&two));
        send(&mut copy, a, &two, b"again");
        assert_eq!(receive(&mut copy, b), Ok((b"again".to_vec(), address(&one))));
    }
}

/// They are not there where the app goes on: somebody has their names for the time.
#[test]
fn what_came_from_outside_has_its_senders_names() {
    let directory = tempfile::tempdir().expect("a directory");
    let service = path(directory.path(), "service");
    let names = [Vec::new(), path(directory.path(), "client"), abstract_name("client")];
    let mut app = Servant::start();
    let number = bound(&mut app, &service);
    for (name, word) in names.iter().zip([&b"nameless"[..], b"of a path", b"of a name"]) {
        say(&sender(name), &service, word);
    }
    std::fs::remove_file(directory.path().join("client")).expect("the client's file");
    let (mut copy, own) = carried(app, number);
    assert_eq!(own.len(), 3);
    assert_eq!(read_all(&mut copy, number), own);
    assert!(!directory.path().join("client").exists(), "nothing is left of the sender");
    // Whoever has the name later can be answered.
    let client = sender(&names[1]);
    send(&mut copy, number, &names[1], b"an answer");
    let mut heard = [0; 16];
    assert_eq!(client.recv(&mut heard).expect("an answer"), 9);
}

/// An answer would go to who has it.
#[test]
fn a_datagram_whose_sender_s_name_is_taken_is_not_given_another() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in [path(directory.path(), "client"), abstract_name("taken")] {
        let service = path(directory.path(), if name[0] == 0 { "one" } else { "two" });
        let mut app = Servant::start();
        let number = bound(&mut app, &service);
        let client = sender(&name);
        say(&client, &service, b"of a client");
        say(&sender(b""), &service, b"of another");
        let (mut copy, own) = carried(app, number);
        assert_eq!(read_all(&mut copy, number), own[1..], "the second one has no name");
        drop(client);
    }
}

/// Nobody reaches it by name any more, but what came before is there.
#[test]
fn a_socket_whose_file_is_gone_has_its_queue() {
    let directory = tempfile::tempdir().expect("a directory");
    let service = path(directory.path(), "service");
    let mut app = Servant::start();
    let number = bound(&mut app, &service);
    say(&sender(b""), &service, b"a word");
    std::fs::remove_file(directory.path().join("service")).expect("the file");
    let (mut copy, own) = carried(app, number);
    assert_eq!(own.len(), 1);
    assert_eq!(read_all(&mut copy, number), own);
    assert!(!directory.path().join("service").exists());
}

#[test]
fn whoever_asks_for_credentials_gets_the_sender_s() {
    const CREDENTIALS_AT: u64 = 200;
    let name = abstract_name("credentials");
    let mut app = Servant::start();
    let number = bound(&mut app, &name);
    set_option(app.borrow(number).as_fd(), SOL_SOCKET, libc::SO_PASSCRED, 1);
    let own = app.socket(libc::AF_UNIX, DATAGRAM, 0);
    app.call(libc::SYS_setresuid, &[1234, u64::MAX, u64::MAX]);
    send(&mut app, own, &name, b"of the app");
    app.call(libc::SYS_setresuid, &[0, u64::MAX, u64::MAX]);
    say(&sender(b""), &name, b"of another");
    let saved = Circumstances::default().save(&app, &mut cache()).expect("a save");
    drop(app);
    let mut copy = Circumstances::default().rebuild(&saved).expect("rebuild");
    let mut who = || {
        let at = copy.put(&[]);
        // msghdr {name, name_len, iov, iov_len, control, control_len, flags}, iovec {base, len}.
        let message = [0, 0, at + 56, 1, at + CREDENTIALS_AT, 32, 0, at + 80, 100];
        copy.put(&message.map(u64::to_ne_bytes).concat());
        copy.call(libc::SYS_recvmsg, &[number as u64, at, 0]);
        let got = copy.got(CREDENTIALS_AT as usize + 28);
        [16, 20, 24].map(|skip| {
            let at = CREDENTIALS_AT as usize + skip;
            u32::from_ne_bytes([0, 1, 2, 3].map(|n| got[at + n]))
        })
    };
    let (first, second) = (who(), who());
    assert_eq!(first[..2], [copy.pid as u32, 1234]);
    assert_eq!(second[1..], [0, 0]);
    assert_ne!(second[0], first[0]);
}

#[test]
fn descriptors_that_wait_are_refused_by_name() {
    use std::io::IoSlice;
    use std::mem::MaybeUninit;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let name = abstract_name("rights");
    let mut app = Servant::start();
    let number = bound(&mut app, &name);
    let sender = sender(b"");
    connect(sender.as_fd(), &address(&name)).expect("connect");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let descriptors = [sender.as_fd()];
    assert!(rights.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(&sender, &[IoSlice::new(b"here")], &mut rights, SendFlags::empty()).expect("send");
    let refused = refusal(&app);
    assert!(refused.contains("SCM_RIGHTS") && refused.contains(&format!("fd {number}")), "{refused}");
    receive(&mut app, number).expect("the datagram");
    Circumstances::default().save(&app, &mut cache()).expect("a save");
}

#[test]
fn datagrams_behind_an_error_are_refused_by_name() {
    let mut app = Servant::start();
    let [a, b] = app.two(libc::SYS_socketpair, [libc::AF_UNIX as u64, DATAGRAM as u64, 0, 0], 3);
    app.write_to(a, b"a word");
    let unspecified = [0; 16];
    app.write_to(b, b"so that it hears of it");
    connect(app.borrow(a).as_fd(), &unspecified).expect("disconnect");
    let refused = refusal(&app);
    assert!(refused.contains("behind an error") && refused.contains(&format!("fd {b}")), "{refused}");
    assert_eq!(receive(&mut app, b), Err(libc::ECONNRESET), "the app has it still");
}

#[test]
fn empty_datagrams_of_a_pair_are_some() {
    let mut app = Servant::start();
    let [a, b] = app.two(libc::SYS_socketpair, [libc::AF_UNIX as u64, DATAGRAM as u64, 0, 0], 3);
    let words = [&b""[..], b"one", b"", b"two", b""];
    for word in words {
        app.write_to(a, word);
    }
    let (around, mut cache) = (Circumstances::default(), cache());
    let saved = around.save(&app, &mut cache).expect("a save");
    assert_eq!(around.save(&app, &mut cache).expect("a save"), saved);
    drop(app);
    let mut copy = around.rebuild(&saved).expect("rebuild");
    let read: Vec<_> = read_all(&mut copy, b).into_iter().map(|(word, _)| word).collect();
    assert_eq!(read, words);
}

#[test]
fn the_offset_of_the_app_s_own_looks_stays() {
    let name = abstract_name("offset");
    let mut app = Servant::start();
    let number = bound(&mut app, &name);
    set_option(app.borrow(number).as_fd(), SOL_SOCKET, libc::SO_PEEK_OFF, 3);
    say(&sender(b""), &name, b"a word");
    let saved = Circumstances::default().save(&app, &mut cache()).expect("a save");
    assert_eq!(count(&saved), 1);
    assert_eq!(option(app.borrow(number).as_fd(), SOL_SOCKET, libc::SO_PEEK_OFF), 3);
}
