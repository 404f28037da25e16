//! A standby on loopback whose calls the test itself answers, and what its log says.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use image::Term;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use wire::*;

/// No wait of a test is longer.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("the test waits in vain")
}

pub enum Call {
    Replicate(PeerIdentity, Box<Hello>, Opening),
    Beat(PeerIdentity, Incoming<Heartbeat>, Outgoing<HeartbeatAnswer>, ThreadId),
    /// A word about the app `slow`, which is handled when the test says so.
    Silent {
        go: oneshot::Sender<()>,
        done: oneshot::Receiver<()>,
    },
}

/// Hands its calls to the test; takes a guard's word with [`armed_token`].
struct Hands {
    calls: mpsc::UnboundedSender<Call>,
    hearts: Handle,
}

#[async_trait]
impl Handler for Hands {
    async fn replicate(&self, peer: PeerIdentity, hello: Hello, opening: Opening) {
        let _ = self.calls.send(Call::Replicate(peer, Box::new(hello), opening));
    }

    async fn beat(&self, peer: PeerIdentity, beats: Incoming<Heartbeat>, answers: Outgoing<HeartbeatAnswer>) {
        let _ = self.calls.send(Call::Beat(peer, beats, answers, thread::current().id()));
    }

    fn heartbeats_run_on(&self) -> Handle {
        self.hearts.clone()
    }

    async fn silent(&self, peer: PeerIdentity, silent: Silent) -> Result<(), Refusal> {
        if silent.app == "slow" {
            let (go, gone_on) = oneshot::channel();
            let (finished, done) = oneshot::channel();
            let _ = self.calls.send(Call::Silent { go, done });
            let _ = gone_on.await;
            let _ = finished.send(());
        }
        if armed_token().hash().matches(&silent.token) && silent.term == Term(3) && silent.app == "kv" {
            return Ok(());
        }
        let why = format!("{} shows another token than the one that was armed", peer.name);
        Err(Refusal { code: RefusalCode::Guard, why, way_out: "wait for the heartbeats to stop".to_owned() })
    }
}

pub fn armed_token() -> GuardToken {
    GuardToken::from_bytes([42; 32])
}

pub struct Standby {
    pub address: String,
    pub calls: mpsc::UnboundedReceiver<Call>,
    /// The files of hosts `standby` and `primary`.
    pub pki: TempDir,
    pub log: mpsc::UnboundedReceiver<String>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
    _log: tracing::subscriber::DefaultGuard,
}

impl Standby {
    pub async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    pub async fn start_with(limits: Limits) -> Self {
        Self::start_where(limits, Handle::current()).await
    }

    pub async fn start_where(limits: Limits, hearts: Handle) -> Self {
        let (log, guard) = capture_log();
        let pki = made_pki(&["standby", "primary"]);
        let tls = TlsFiles::load(pki.path(), Some("standby")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (hands, calls) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            let hands = Arc::new(Hands { calls: hands, hearts });
            serve(listener, &tls, limits, hands, async { drop(stopped.await) }).await;
        });
        Self { address, calls, pki, log, stop: Some(stop), server, _log: guard }
    }

    pub async fn heart_client(&self) -> Client {
        let tls = TlsFiles::load(self.pki.path(), Some("primary")).unwrap();
        soon(Client::connect_heart(&self.address, &tls, DEADLINE)).await.unwrap()
    }

    pub async fn client(&self) -> Client {
        let tls = TlsFiles::load(self.pki.path(), Some("primary")).unwrap();
        soon(Client::connect(&self.address, &tls, DEADLINE)).await.unwrap()
    }

    /// A replication that is welcome: the primary's and the standby's ends.
    pub async fn replication(
        &mut self,
        client: &Client,
    ) -> (Replication, Outgoing<FromStandby>, Incoming<FromPrimary>) {
        let (primary, (_, _, outgoing, incoming)) =
            tokio::join!(client.replicate(hello("kv")), self.welcome(welcome()));
        (primary.unwrap(), outgoing, incoming)
    }

    pub async fn welcome(
        &mut self,
        welcome: Welcome,
    ) -> (PeerIdentity, Hello, Outgoing<FromStandby>, Incoming<FromPrimary>) {
        let (peer, hello, opening) = self.hello().await;
        let (outgoing, incoming) = opening.welcome(welcome);
        (peer, hello, outgoing, incoming)
    }

    pub async fn hello(&mut self) -> (PeerIdentity, Hello, Opening) {
        match soon(self.calls.recv()).await {
            Some(Call::Replicate(peer, hello, opening)) => (peer, *hello, opening),
            _ => panic!("no hello came"),
        }
    }

    pub async fn heart(&mut self) -> (PeerIdentity, Incoming<Heartbeat>, Outgoing<HeartbeatAnswer>) {
        let (peer, beats, answers, _) = self.call_of_a_heart().await;
        (peer, beats, answers)
    }

    /// The same, with where it is heard.
    pub async fn call_of_a_heart(
        &mut self,
    ) -> (PeerIdentity, Incoming<Heartbeat>, Outgoing<HeartbeatAnswer>, ThreadId) {
        match soon(self.calls.recv()).await {
            Some(Call::Beat(peer, beats, answers, ear)) => (peer, beats, answers, ear),
            _ => panic!("no heart beats"),
        }
    }

    pub async fn log_line(&mut self) -> String {
        soon(self.log.recv()).await.expect("the log is open")
    }

    pub async fn stop(&mut self) {
        drop(self.stop.take());
        soon(&mut self.server).await.unwrap();
    }
}

pub fn made_pki(hosts: &[&str]) -> TempDir {
    let dir = TempDir::new().unwrap();
    init(dir.path(), hosts).unwrap();
    dir
}

pub fn init(dir: &Path, hosts: &[&str]) -> Result<pki::Made, pki::PkiError> {
    pki::init(dir, &hosts.iter().map(ToString::to_string).collect::<Vec<_>>())
}

pub fn hello(app: &str) -> Hello {
    Hello {
        protocol_version: PROTOCOL_VERSION,
        release: RELEASE.to_owned(),
        app: app.to_owned(),
        term: Term(3),
        owner: "primary".to_owned(),
        incarnation: 0x1234_5678_9abc_def0,
        primary_name: "primary".to_owned(),
        host_facts: Bytes::from_static(b"\x00\xffopaque"),
        consistency: Consistency::Strong,
        heartbeat: Duration::from_millis(20),
        missed: 5,
        guard_token_hash: Some(armed_token().hash()),
        has_register: true,
        fencing: "file:/somewhere".to_owned(),
        network: None,
        structures: None,
        policy: Bytes::from_static(b"opaque, too"),
    }
}

pub fn welcome() -> Welcome {
    Welcome {
        protocol_version: PROTOCOL_VERSION,
        release: RELEASE.to_owned(),
        standby_name: "standby".to_owned(),
        incarnation: 7,
        held: Some(image::CheckpointId::new(2, 99)),
        host_facts: Bytes::from_static(b"also opaque"),
    }
}

/// The lines that this thread logs from now on, and only they.
fn capture_log() -> (mpsc::UnboundedReceiver<String>, tracing::subscriber::DefaultGuard) {
    let (lines, log) = mpsc::unbounded_channel();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || Lines(lines.clone()))
        .finish();
    (log, tracing::subscriber::set_default(subscriber))
}

struct Lines(mpsc::UnboundedSender<String>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.send(String::from_utf8_lossy(line).into_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
