//! Real servers that nobody here wrote, and how to start, load and judge each of them.
//!
//! A [`Server`] says how to start itself on an address; it needs no files. [`Load`] writes through the server's
//! own protocol, outlives its failovers, and [`Judgement`] says whether what the server holds is a valid prefix.

mod azurite;
mod client;
mod etcd;
mod load;
mod moto;
#[cfg(feature = "s3s")]
mod s3s;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

pub use azurite::{Azurite, azurite};
pub use client::Client;
pub use etcd::{Enter, Etcd, EtcdFiles, EtcdPlace};
pub use load::{Judgement, Load, Lost};
pub use moto::{Moto, moto};
#[cfg(feature = "s3s")]
pub use s3s::S3sFs;

use crate::programs::{apps_build_dir, go_app, go_app_by, lock, run_to_success, source_dir};
use crate::rights::on_path;
use crate::wait::wait_for;

/// One real server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// The key/value server of `apps/`, by the Go on the PATH.
    Kv,
    /// The same, by another Go.
    KvBy(std::path::PathBuf),
    Redis,
    Memcached,
    Nats,
    Caddy,
    Python,
    Node,
    Java,
}

/// A program that tests start, and the Debian package that has it.
const PACKAGES: &[(&str, &str)] = &[
    ("redis-server", "redis-server"),
    ("memcached", "memcached"),
    ("nats-server", "nats-server"),
    ("caddy", "caddy"),
    ("python3", "python3"),
    ("pip3", "python3-pip"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("javac", "default-jdk-headless"),
    ("java", "default-jre-headless"),
    ("curl", "curl"),
    ("etcd", "etcd-server"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
];

/// The Debian packages to install for the tests: `apt-get install -y --no-install-recommends …`.
pub fn packages() -> impl Iterator<Item = &'static str> {
    PACKAGES.iter().map(|&(_, package)| package)
}

/// Those of [`packages`] whose program is nowhere on the PATH.
pub fn packages_missing() -> impl Iterator<Item = &'static str> {
    PACKAGES.iter().filter(|(program, _)| !on_path(program)).map(|&(_, package)| package)
}

/// What a package is installed for.
pub(crate) fn program_of(package: &str) -> Option<&'static str> {
    PACKAGES.iter().find(|(_, known)| *known == package).map(|(program, _)| *program)
}

impl Server {
    /// Every server, but for the one by another Go.
    pub const ALL: [Self; 8] = [
        Self::Kv,
        Self::Redis,
        Self::Memcached,
        Self::Nats,
        Self::Caddy,
        Self::Python,
        Self::Node,
        Self::Java,
    ];

    /// The program that must be on the PATH.
    #[must_use]
    pub fn program(&self) -> &'static str {
        match self {
            Self::Kv | Self::KvBy(_) => "go",
            Self::Redis => "redis-server",
            Self::Memcached => "memcached",
            Self::Nats => "nats-server",
            Self::Caddy => "caddy",
            Self::Python => "python3",
            Self::Node => "node",
            Self::Java => "javac",
        }
    }

    /// The command line that serves `address` in the foreground. Builds what is ours to build.
    #[must_use]
    pub fn command_line(&self, address: SocketAddr) -> Vec<String> {
        let (host, port, both) = (address.ip().to_string(), address.port().to_string(), address.to_string());
        match self {
            Self::Kv => strings(&[&text(&go_app("kv")), "serve", "--listen", &both]),
            Self::KvBy(go) => strings(&[&text(&go_app_by("kv", go)), "serve", "--listen", &both]),
            Self::Redis => strings(&[
                "redis-server",
                "--bind",
                &host,
                "--port",
                &port,
                "--save",
                "",
                "--appendonly",
                "no",
                "--protected-mode",
                "no",
            ]),
            Self::Memcached => {
                strings(&["memcached", "-u", "root", "-l", &host, "-p", &port, "-U", "0", "-m", "256"])
            }
            Self::Nats => strings(&["nats-server", "--addr", &host, "--port", &port]),
            Self::Caddy => strings(&["caddy", "respond", "--listen", &both, client::CADDY_BODY]),
            Self::Python => {
                strings(&["python3", &text(&source_dir("python").join("counter.py")), &host, &port])
            }
            Self::Node => strings(&["node", &text(&source_dir("node").join("counter.js")), &host, &port]),
            Self::Java => strings(&[
                "java",
                "-Xmx256m",
                "-Dsun.net.httpserver.nodelay=true",
                "-cp",
                java_classes(),
                "Counter",
                &host,
                &port,
            ]),
        }
    }

    /// [`Self::command_line`] as a command.
    #[must_use]
    pub fn command(&self, address: SocketAddr) -> Command {
        let line = self.command_line(address);
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]);
        command
    }

    /// Waits until the server answers, and returns a client.
    #[track_caller]
    pub fn wait_ready(&self, address: SocketAddr, limit: Duration) -> Client {
        wait_for(&format!("an answer of {self:?} at {address}"), limit, || {
            let mut client = Client::connect(self, address).ok()?;
            client.ping().is_ok().then_some(client)
        })
    }
}

fn strings(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|&part| part.to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.to_str().expect("the checkout has a path of UTF-8").to_owned()
}

/// The directory with the Java program's classes, compiled once per process.
fn java_classes() -> &'static str {
    static COMPILED: OnceLock<String> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let dir = apps_build_dir().join("java");
        let _lock = lock(&dir);
        run_to_success(
            Command::new("javac").arg("-d").arg(&dir).arg(source_dir("java").join("Counter.java")),
        );
        text(&dir)
    })
}

/// An address for a server that wants to be told one: a loopback address that is this process's own, so that no
/// other test takes the port between our asking for it and the server's taking it.
#[must_use]
pub fn own_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(2);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    let host = Ipv4Addr::new(127, high.max(1), low, last);
    let listener = TcpListener::bind((host, 0)).expect("all of 127.0.0.0/8 is ours");
    listener.local_addr().expect("a bound socket has an address")
}
