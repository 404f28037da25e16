//! What the wire costs on loopback: the time from a 4 KiB epoch to its acknowledgement, and GiB/s in frames of
//! 1 MiB. `cargo run --release -p checksync-wire --example throughput`

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use image::{CheckpointId, Term};
use wire::*;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Acknowledges every frame shorter than a page and a half, and the empty one.
struct Acknowledger;

#[async_trait]
impl Handler for Acknowledger {
    async fn replicate(&self, _: PeerIdentity, hello: Hello, opening: Opening) {
        let (outgoing, mut incoming) = opening.welcome(Welcome {
            protocol_version: PROTOCOL_VERSION,
            release: RELEASE.to_owned(),
            standby_name: hello.app,
            incarnation: 0,
            held: None,
            host_facts: Bytes::new(),
        });
        while let Some(Ok(message)) = incoming.recv().await {
            let small = matches!(message, FromPrimary::Frames(frame) if frame.len() < 6144);
            if small && outgoing.send(FromStandby::Ack(CheckpointId::default())).await.is_err() {
                return;
            }
        }
    }

    async fn beat(&self, _: PeerIdentity, _: Incoming<Heartbeat>, _: Outgoing<HeartbeatAnswer>) {}

    async fn silent(&self, _: PeerIdentity, _: Silent) -> Result<(), Refusal> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    pki::init(dir.path(), &["one".to_owned()])?;
    let tls = TlsFiles::load(dir.path(), None)?;
    let standby = tokio::runtime::Runtime::new()?;
    let listener = standby.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let (address, server_tls) = (listener.local_addr()?.to_string(), tls.clone());
    standby.spawn(async move {
        serve(listener, &server_tls, Limits::default(), Arc::new(Acknowledger), std::future::pending()).await;
    });
    let primary = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    primary.block_on(measure(&address, &tls))
}

async fn measure(address: &str, tls: &TlsFiles) -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect(address, tls, TIMEOUT).await?;
    let mut link = client.replicate(hello()).await?;
    let mut times = Vec::new();
    for _ in 0..5000 {
        let start = Instant::now();
        round_trip(&mut link, 4096).await?;
        times.push(start.elapsed());
    }
    times.sort();
    println!("4 KiB epoch to its acknowledgement: p50 {:?}, p99 {:?}", times[2500], times[4950]);
    const MIB: u32 = 4096;
    let (start, mebibyte) = (Instant::now(), Bytes::from(vec![7; 1 << 20]));
    for _ in 0..MIB {
        link.outgoing.send(FromPrimary::Frames(mebibyte.clone())).await?;
    }
    round_trip(&mut link, 0).await?;
    println!("frames of 1 MiB: {:.2} GiB/s", f64::from(MIB) / 1024.0 / start.elapsed().as_secs_f64());
    Ok(())
}

async fn round_trip(link: &mut Replication, len: usize) -> Result<(), WireError> {
    link.outgoing.send(FromPrimary::Frames(Bytes::from(vec![1; len]))).await?;
    link.incoming.recv().await.map_or(Ok(()), |ack| ack.map(drop))
}

fn hello() -> Hello {
    Hello {
        protocol_version: PROTOCOL_VERSION,
        release: RELEASE.to_owned(),
        app: "throughput".to_owned(),
        term: Term(1),
        owner: String::new(),
        incarnation: 0,
        primary_name: String::new(),
        host_facts: Bytes::new(),
        consistency: Consistency::Timeline,
        heartbeat: Duration::from_millis(20),
        missed: 5,
        guard_token_hash: None,
        has_register: false,
        fencing: "none".to_owned(),
        network: None,
        structures: None,
        policy: Bytes::new(),
    }
}
