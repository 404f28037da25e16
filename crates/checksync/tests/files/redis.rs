//! Redis with an append-only file.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use testkit::needs;
use testkit::process::Running;
use testkit::servers::own_address;
use testkit::wait::{wait_for, wait_until};

use crate::hosts::{Hosts, rounds};
use crate::world::SOON;

fn redis(dir: &Path, address: SocketAddr, fsync: &str) -> Vec<String> {
    let mut line = vec!["redis-server".to_owned()];
    let (port, dir) = (address.port().to_string(), dir.display().to_string());
    for (option, value) in [
        ("--port", &port[..]),
        ("--bind", &address.ip().to_string()),
        ("--dir", &dir),
        ("--appendonly", "yes"),
        ("--appendfsync", fsync),
        ("--save", ""),
        ("--auto-aof-rewrite-percentage", "0"),
        ("--enable-debug-command", "yes"),
    ] {
        line.extend([option.to_owned(), value.to_owned()]);
    }
    line
}

/// Whoever hears nothing for so long asks anew.
const SILENCE: Duration = Duration::from_secs(2);

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).ok()?;
        // Nobody resets a connection to a server that went silent.
        stream.set_read_timeout(Some(SILENCE)).ok()?;
        Some(Self(BufReader::new(stream)))
    }

    fn call(&mut self, words: &[&str]) -> Option<String> {
        let mut request = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| request += &format!("${}\r\n{word}\r\n", word.len()));
        self.0.get_mut().write_all(request.as_bytes()).ok()?;
        let mut line = String::new();
        self.0.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let line = line.trim_end();
        let Some(len) = line.strip_prefix('$') else { return Some(line[1..].to_owned()) };
        let mut bulk = vec![0; len.parse::<usize>().ok()? + 2];
        self.0.read_exact(&mut bulk).ok()?;
        bulk.truncate(bulk.len() - 2);
        String::from_utf8(bulk).ok()
    }
}

/// Writes until it is told to stop, through whatever connection there is.
struct Load {
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (written, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, over) = (Arc::clone(&written), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut client = None;
            while !over.load(Ordering::Relaxed) {
                let Some(mut open) = client.take().or_else(|| Client::connect(address)) else { continue };
                let n = count.load(Ordering::Relaxed);
                let (key, value) = (format!("key{}", n % 1000), format!("value {n} ").repeat(10));
                if open.call(&["SET", &key, &value]).is_some() && open.call(&["INCR", "count"]).is_some() {
                    count.fetch_add(1, Ordering::Relaxed);
                    client = Some(open);
                }
            }
        });
        Self { written, stop, thread }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// A second server that knows nothing but the files.
fn digest_of_files(dir: &Path) -> String {
    let address = own_address();
    let line = redis(dir, address, "no");
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]);
    let mut server = Running::start(command);
    // N.B. the digest is answered while it still loads, and is that of a part.
    let mut client = wait_for("a server of the files", SOON, || {
        let mut client = Client::connect(address)?;
        client.call(&["PING"]).filter(|answer| answer == "PONG").map(|_| client)
    });
    let digest = client.call(&["DEBUG", "DIGEST"]).unwrap();
    server.signal(Signal::KILL);
    server.wait(SOON);
    digest
}

fn agrees(fsync: &str, disturb: impl Fn(SocketAddr), judge: impl Fn(&Path)) {
    for round in 0..rounds() {
        let address = own_address();
        let mut hosts = Hosts::protecting(&[], |path| redis(path, address, fsync));
        wait_for("redis", SOON, || Client::connect(address)?.call(&["PING"]));
        let load = Load::start(address);
        hosts.wait_until_protected();
        disturb(address);
        hosts.wait_until_protected();
        hosts.fail_over();
        let before = load.written();
        wait_until("writes after the takeover", SOON, || load.written() > before + 50);
        load.stop();
        let mut client = wait_for("redis after the takeover", SOON, || Client::connect(address));
        // What waits for a sync of the second before is in its buffer, and in its file soon.
        wait_until("an empty buffer", SOON, || {
            client.call(&["INFO", "persistence"]).is_some_and(|info| info.contains("aof_buffer_length:0\r"))
        });
        let memory = client.call(&["DEBUG", "DIGEST"]).unwrap();
        let files = hosts.standby_tree.join("appendonlydir");
        let checked =
            Command::new("redis-check-aof").arg(files.join("appendonly.aof.manifest")).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.success(), "{fsync}, round {round}: {said}");
        let copy = tempfile::tempdir().unwrap();
        let copied =
            Command::new("cp").arg("-r").arg(&files).arg(copy.path().join("appendonlydir")).status().unwrap();
        assert!(copied.success());
        assert_eq!(digest_of_files(copy.path()), memory, "{fsync}, round {round}");
        judge(&hosts.standby_tree);
        hosts.world.end();
    }
}

/// A child of the server writes files, and while it lives nothing is captured.
fn write_by_children(address: SocketAddr) {
    for (order, done) in [("BGREWRITEAOF", "aof_rewrites:1\r"), ("BGSAVE", "rdb_saves:1\r")] {
        let mut client = wait_for("redis", SOON, || Client::connect(address));
        client.call(&[order]).unwrap();
        wait_until(order, SOON, || {
            let info = client.call(&["INFO", "persistence"]).unwrap_or_default();
            ["aof_rewrite_in_progress:0\r", "rdb_bgsave_in_progress:0\r", done]
                .iter()
                .all(|line| info.contains(line))
        });
    }
}

#[test]
fn redis_that_syncs_each_second_agrees_with_its_file() {
    needs!("root", "pagemap-scan", CAP_BPF, "debian:redis-server");
    agrees("everysec", |_| (), |_| ());
}

#[test]
fn redis_that_syncs_always_agrees_with_its_file() {
    needs!("root", "pagemap-scan", CAP_BPF, "debian:redis-server");
    agrees("always", |_| (), |_| ());
}

#[test]
fn what_children_of_redis_wrote_is_there_after_a_takeover() {
    needs!("root", "pagemap-scan", CAP_BPF, "debian:redis-server");
    agrees("everysec", write_by_children, |tree| {
        let checked = Command::new("redis-check-rdb").arg(tree.join("dump.rdb")).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        let files = tree.join("appendonlydir");
        assert!(files.join("appendonly.aof.2.base.rdb").exists());
        assert!(!files.join("appendonly.aof.1.base.rdb").exists());
    });
}
