use std::io::{Read, Write};
use std::net::Shutdown;

use serde_json::{Value, json};

use crate::mpsc;

use super::*;

const SOON: Duration = Duration::from_secs(10);
/// Long enough for an answer that must not come to have come.
const A_WHILE: Duration = Duration::from_millis(50);

/// A socket in a directory that plays the cell's root, and the actor's ends.
struct Bench {
    root: tempfile::TempDir,
    socket: AppSocket,
    calls: mpsc::Receiver<(SyncCall, Option<Duration>)>,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(path_in(root.path()).parent().unwrap()).unwrap();
        let (post, calls) = mpsc::channel();
        let on_sync = Box::new(move |call, patience| post.send((call, patience)).unwrap());
        let socket = AppSocket::new("kv", "a", on_sync).unwrap();
        socket.for_engine().listen(root.path()).unwrap();
        socket.tell(|role| role.term = 1);
        Self { root, socket, calls }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(path_in(self.root.path())).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    fn call(&self) -> SyncCall {
        self.calls.recv_timeout(SOON).expect("a call comes").0
    }

    /// What a freeze sees of the conversation that is alone.
    fn captured(&self) -> String {
        let inode = |inner: &Inner| *inner.talks.keys().next().unwrap();
        let mut seen = None;
        let manager = self.socket.for_engine();
        manager.hold(&mut |_| ());
        let number = inode(&self.socket.shared.lock());
        manager.hold(&mut |unanswered| seen = unanswered(number));
        String::from_utf8(seen.expect("it is known")).unwrap()
    }
}

fn path_in(root: &Path) -> std::path::PathBuf {
    root.join(SOCKET.trim_start_matches('/'))
}

fn say(stream: &mut UnixStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
}

/// One answer: its status and its body.
fn hear(stream: &mut UnixStream) -> (u16, Value) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; len];
    stream.read_exact(&mut body).unwrap();
    (head[9..12].parse().unwrap(), serde_json::from_slice(&body).unwrap())
}

fn hears_nothing(stream: &mut UnixStream) -> bool {
    stream.set_read_timeout(Some(A_WHILE)).unwrap();
    let silent = stream.read(&mut [0]).is_err_and(|why| why.kind() == io::ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(SOON)).unwrap();
    silent
}

const SYNC: &str = "POST /v1/sync HTTP/1.1\r\n\r\n";
const EPOCH: &str = "GET /v1/epoch HTTP/1.1\r\n\r\n";

#[test]
fn a_call_waits_for_the_actor_and_what_is_asked_behind_it_waits_for_the_call() {
    let bench = Bench::new();
    let mut stream = bench.connect();
    say(&mut stream, "POST /v1/sync?patience=5s HTTP/1.1\r\n\r\n");
    let (call, patience) = bench.calls.recv_timeout(SOON).unwrap();
    assert_eq!(patience, Some(Duration::from_secs(5)));
    say(&mut stream, EPOCH);
    assert!(hears_nothing(&mut stream));
    bench.socket.tell(|role| role.epoch = Some(9));
    bench.socket.synced(call, CheckpointId::new(1, 9));
    assert_eq!(hear(&mut stream), (200, json!({ "schema": 1, "term": 1, "epoch": 9 })));
    assert_eq!(hear(&mut stream), (200, json!({ "schema": 1, "term": 1, "epoch": 9 })));
}

#[test]
fn a_refused_call_says_why_and_the_connection_goes_on() {
    let bench = Bench::new();
    let mut stream = bench.connect();
    say(&mut stream, SYNC);
    bench.socket.refuse(bench.call(), "nobody is there".to_owned());
    let told = json!({ "schema": 1, "error": "unprotected", "reason": "nobody is there" });
    assert_eq!(hear(&mut stream), (503, told));
    say(&mut stream, "GET /nowhere HTTP/1.1\r\n\r\n");
    assert_eq!(hear(&mut stream).0, 404);
    say(&mut stream, SYNC);
    bench.socket.synced(bench.call(), CheckpointId::new(1, 2));
    assert_eq!(hear(&mut stream).0, 200);
}

#[test]
fn a_connection_ends_where_its_client_said_or_made_no_sense() {
    let bench = Bench::new();
    for (text, status) in
        [("GET /v1/epoch HTTP/1.1\r\nConnection: close\r\n\r\n", 200), ("tea?\r\n\r\n", 400)]
    {
        let mut stream = bench.connect();
        say(&mut stream, text);
        assert_eq!(hear(&mut stream).0, status, "{text}");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{text}: it ends");
    }
}

#[test]
fn who_has_shut_his_side_hears_the_answer_and_who_has_gone_leaves_nothing() {
    let bench = Bench::new();
    let mut stream = bench.connect();
    say(&mut stream, SYNC);
    let call = bench.call();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(hears_nothing(&mut stream));
    bench.socket.synced(call, CheckpointId::new(1, 2));
    assert_eq!(hear(&mut stream).0, 200);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    say(&mut bench.connect(), SYNC);
    bench.socket.synced(bench.call(), CheckpointId::new(1, 3));
    testkit::wait::wait_until("an empty table", SOON, || {
        let inner = bench.socket.shared.lock();
        inner.talks.is_empty() && inner.calls.is_empty()
    });
}

#[test]
fn a_freeze_sees_a_request_until_it_sees_its_answer() {
    let bench = Bench::new();
    let mut stream = bench.connect();
    // Half of it; whoever has not been let in yet is, by the freeze.
    say(&mut stream, &SYNC[..9]);
    testkit::wait::wait_until("half a request", SOON, || bench.captured() == SYNC[..9]);
    say(&mut stream, &SYNC[9..]);
    let call = bench.call();
    assert_eq!(bench.captured(), SYNC);
    say(&mut stream, EPOCH);
    assert_eq!(bench.captured(), format!("{SYNC}{EPOCH}"), "read or not");
    bench.socket.synced(call, CheckpointId::new(1, 2));
    assert_eq!((hear(&mut stream).0, hear(&mut stream).0), (200, 200));
    assert_eq!(bench.captured(), "", "both are answered");
}

#[test]
fn what_was_captured_is_answered_by_the_next_manager() {
    let bench = Bench::new();
    bench.socket.tell(|role| {
        role.term = 2;
        role.restored = Some(Restored { term: 1, epoch: 7 });
    });
    let take_up = |unanswered: &str| {
        let (ours, app) = UnixStream::pair().unwrap();
        app.set_read_timeout(Some(SOON)).unwrap();
        bench.socket.for_engine().take_up(ours.into(), unanswered.as_bytes());
        app
    };
    // Covered by what was restored, pipelined ones too: the actor is not asked.
    let mut app = take_up(&format!("{SYNC}{SYNC}"));
    for _ in 0..2 {
        assert_eq!(hear(&mut app), (200, json!({ "schema": 1, "term": 1, "epoch": 7 })));
    }
    // Half was said before the freeze, half after it: a call of now.
    let mut app = take_up(&SYNC[..9]);
    say(&mut app, &SYNC[9..]);
    bench.socket.refuse(bench.call(), "alone".to_owned());
    assert_eq!(hear(&mut app).0, 503);
    let mut app = take_up("GET /v1/role?after=1 HTTP/1.1\r\n\r\n");
    let (status, role) = hear(&mut app);
    assert_eq!((status, &role["restored"]["epoch"]), (200, &7.into()));
}

#[test]
fn who_waits_for_a_later_term_is_answered_when_it_comes() {
    let bench = Bench::new();
    let mut stream = bench.connect();
    say(&mut stream, "GET /v1/role?after=1 HTTP/1.1\r\n\r\n");
    assert!(hears_nothing(&mut stream));
    bench.socket.tell(|role| role.protected = true);
    assert!(hears_nothing(&mut stream));
    bench.socket.tell(|role| role.term = 2);
    assert_eq!(hear(&mut stream).1["term"], 2);
}

#[test]
fn who_sends_without_end_or_reads_nothing_is_let_go() {
    let bench = Bench::new();
    let mut stream = bench.connect();
    say(&mut stream, SYNC);
    bench.call();
    let flood = vec![b'x'; 1 << 20];
    stream.set_write_timeout(Some(SOON)).unwrap();
    assert!(stream.write_all(&flood).is_err(), "it is never read to its end");
    let mut stream = bench.connect();
    stream.set_write_timeout(Some(SOON)).unwrap();
    let ended = (0..100_000).any(|_| stream.write_all(EPOCH.as_bytes()).is_err());
    assert!(ended, "answers that nobody reads have a bound");
}

#[test]
fn a_new_cell_knows_nothing_of_the_old_ones_calls() {
    let bench = Bench::new();
    let mut stream = bench.connect();
    say(&mut stream, SYNC);
    let call = bench.call();
    std::fs::remove_file(path_in(bench.root.path())).unwrap();
    bench.socket.for_engine().listen(bench.root.path()).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the old connection is over");
    bench.socket.synced(call, CheckpointId::new(1, 2));
    let mut stream = bench.connect();
    say(&mut stream, EPOCH);
    assert_eq!(hear(&mut stream).0, 200);
}
