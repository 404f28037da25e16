//! The library against a manager that a test plays.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use checksync_sdk::{Map, StructureError, Structures};

const SOON: Duration = Duration::from_secs(10);
const HOUR_NS: u64 = 3_600_000_000_000;

const ASK: u8 = 2;
const PUT: u8 = 16;
const DELETE: u8 = 17;
const STORE: u8 = 18;

struct Manager {
    socket: UnixStream,
}

impl Manager {
    /// Opens structures at a manager that hands over what is held.
    fn open(held: &[u8]) -> (Structures, Self) {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("checksync-sdk-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = Removed(std::env::temp_dir().join(name));
        let listener = UnixListener::bind(&path.0).unwrap();
        let opening = {
            let path = path.0.clone();
            thread::spawn(move || Structures::connect(&path).unwrap())
        };
        let (socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let mut manager = Self { socket };
        assert_eq!(manager.read(), (1, b"CKSTRUCT\x01\0".to_vec()));
        manager.say(1, &[&1_u16.to_le_bytes()[..], &3_u64.to_le_bytes()]);
        manager.socket.write_all(held).unwrap();
        manager.say(2, &[&HOUR_NS.to_le_bytes()]);
        (opening.join().unwrap(), manager)
    }

    fn say(&mut self, kind: u8, parts: &[&[u8]]) {
        self.socket.write_all(&frame(kind, parts)).unwrap();
    }

    fn read(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 5];
        self.socket.read_exact(&mut head).unwrap();
        let length = u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
        let mut body = vec![0; length - 1];
        self.socket.read_exact(&mut body).unwrap();
        (head[4], body)
    }

    /// Answers the library's first question.
    fn lease(&mut self, span_ns: u64) {
        assert_eq!(self.read(), (ASK, 1_u64.to_le_bytes().to_vec()));
        self.say(4, &[&1_u64.to_le_bytes(), &span_ns.to_le_bytes()]);
    }

    fn committed(&mut self, count: u64) {
        self.say(3, &[&count.to_le_bytes()]);
    }
}

struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

fn frame(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [&(body.len() as u32 + 1).to_le_bytes()[..], &[kind], &body].concat()
}

fn change(kind: u8, name: &str, key: &str, value: &str) -> Vec<u8> {
    let key_len = (key.len() as u32).to_le_bytes();
    frame(kind, &[&[name.len() as u8], &key_len, name.as_bytes(), key.as_bytes(), value.as_bytes()])
}

fn text(map: &Map, key: &str) -> Option<String> {
    map.get(key).unwrap().map(|value| String::from_utf8(value.to_vec()).unwrap())
}

#[test]
fn structures_are_handed_back() {
    let held = [change(PUT, "m", "k", "v"), change(PUT, "m", "l", "w"), change(STORE, "s", "", "whole")];
    let (structures, mut manager) = Manager::open(&held.concat());
    manager.lease(HOUR_NS);
    let map = structures.map("m").unwrap();
    let mut pairs = BTreeMap::new();
    map.for_each(|key, value| drop(pairs.insert(key.to_vec(), value.to_vec()))).unwrap();
    assert_eq!(pairs, BTreeMap::from([(b"k".to_vec(), b"v".to_vec()), (b"l".to_vec(), b"w".to_vec())]));
    assert_eq!(structures.value("s").unwrap().load().unwrap().as_deref(), Some(b"whole".as_slice()));
    assert!(structures.map("other").unwrap().is_empty().unwrap());
    assert_eq!(structures.term(), 3);
}

#[test]
fn a_write_returns_and_is_seen_once_it_is_committed() {
    let (structures, mut manager) = Manager::open(&[]);
    manager.lease(HOUR_NS);
    let map = structures.map("m").unwrap();
    let first = map.start_put("k", "v").unwrap();
    assert_eq!(frame_of(manager.read()), change(PUT, "m", "k", "v"));
    let second = map.start_delete("k").unwrap();
    assert!(!first.is_done());
    assert_eq!(text(&map, "k"), None, "it was seen before it was committed");
    manager.committed(1);
    first.wait().unwrap();
    assert_eq!(text(&map, "k").as_deref(), Some("v"));
    assert_eq!(
        frame_of(manager.read()),
        change(DELETE, "m", "k", ""),
        "the next batch goes with the end of the first"
    );
    assert!(!second.is_done());
    manager.committed(2);
    second.wait().unwrap();
    assert_eq!(map.len().unwrap(), 0);
}

fn frame_of((kind, body): (u8, Vec<u8>)) -> Vec<u8> {
    frame(kind, &[&body])
}

#[test]
fn changes_of_many_threads_all_arrive_and_return() {
    const THREADS: u64 = 8;
    const EACH: u64 = 500;
    let (structures, mut manager) = Manager::open(&[]);
    manager.lease(HOUR_NS);
    let map = structures.map("m").unwrap();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let map = map.clone();
            thread::spawn(move || (0..EACH).try_for_each(|n| map.put(format!("{thread}-{n}"), "v")))
        })
        .collect();
    for count in 1..=THREADS * EACH {
        assert_eq!(manager.read().0, PUT);
        manager.committed(count);
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    assert_eq!(map.len().unwrap() as u64, THREADS * EACH);
}

#[test]
fn a_fenced_side_fails_writes_and_reads_with_the_new_term() {
    let (structures, mut manager) = Manager::open(&change(PUT, "m", "k", "v"));
    manager.lease(HOUR_NS);
    let map = structures.map("m").unwrap();
    let commit = map.start_put("k", "w").unwrap();
    manager.say(5, &[&4_u64.to_le_bytes(), b"b"]);
    for why in [commit.wait().unwrap_err(), map.get("k").unwrap_err(), map.put("k", "x").unwrap_err()] {
        assert!(matches!(&why, StructureError::Fenced { term: 4, by } if by == "b"), "{why}");
        assert!(why.to_string().contains("term 4"), "{why}");
    }
}

#[test]
fn a_read_waits_for_its_lease_and_fails_without_a_manager() {
    let (structures, mut manager) = Manager::open(&change(PUT, "m", "k", "v"));
    let map = structures.map("m").unwrap();
    let (answered, answer) = mpsc::channel();
    thread::spawn(move || answered.send(map.get("k").map(|_| ())));
    manager.lease(0);
    let early = answer.recv_timeout(Duration::from_millis(20));
    assert!(early.is_err(), "it was answered without a lease: {early:?}");
    drop(manager);
    let why = answer.recv_timeout(SOON).unwrap().unwrap_err();
    assert!(matches!(&why, StructureError::Lost(why) if why.kind() == ErrorKind::UnexpectedEof), "{why}");
}

#[test]
fn more_than_was_sent_cannot_be_committed() {
    let (structures, mut manager) = Manager::open(&[]);
    manager.lease(HOUR_NS);
    manager.committed(2);
    let why = structures.map("m").unwrap().put("k", "v").unwrap_err();
    assert!(matches!(why, StructureError::Refused(_)), "{why}");
}

#[test]
fn what_is_too_long_is_refused_by_name() {
    let (structures, _manager) = Manager::open(&[]);
    let why = structures.map("m").unwrap().put(vec![b'k'; (64 << 10) + 1], "v").unwrap_err();
    assert!(why.to_string().starts_with("a key of 65537 bytes"), "{why}");
    let why = structures.map(&"m".repeat(256)).unwrap_err();
    assert!(why.to_string().starts_with("a name of 256 bytes"), "{why}");
}
