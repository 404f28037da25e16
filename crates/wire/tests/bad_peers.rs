//! Whoever is no peer gets a closed connection and a line in the log, and the others notice nothing.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use common::{DEADLINE, Standby, hello, made_pki, soon, welcome};
use image::CheckpointId;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wire::*;

const REPLICATE: &str = "/checksync.wire.v1.Replication/Replicate";
const BEAT: &str = "/checksync.wire.v1.Heart/Beat";
const SILENT: &str = "/checksync.wire.v1.Guard/Silent";
const H2: Option<&[u8]> = Some(b"h2");

/// A standby with a peer whose link must go on whatever the others do.
struct Witnessed {
    standby: Standby,
    primary: Replication,
    answers: Outgoing<FromStandby>,
    _incoming: Incoming<FromPrimary>,
}

impl Witnessed {
    async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    async fn start_with(limits: Limits) -> Self {
        let mut standby = Standby::start_with(limits).await;
        let client = standby.client().await;
        let (primary, answers, _incoming) = standby.replication(&client).await;
        Self { standby, primary, answers, _incoming }
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(&self.standby.address).await.unwrap()
    }

    async fn tls(&self, alpn: Option<&[u8]>) -> TlsStream<TcpStream> {
        tls(self.tcp().await, self.standby.pki.path(), alpn).await.unwrap()
    }

    /// The log has exactly one line more, it says `what`, and the good peer's link still carries.
    async fn one_line_and_nothing_else(&mut self, what: &str) {
        let line = self.standby.log_line().await;
        assert!(line.contains(what) && line.contains("127.0.0.1"), "{what:?} is not in {line}");
        let ack = FromStandby::Ack(CheckpointId::new(1, 1));
        self.answers.send(ack.clone()).await.unwrap();
        assert_eq!(soon(self.primary.incoming.recv()).await.unwrap().unwrap(), ack);
        let client = self.standby.client().await;
        let _ = self.standby.replication(&client).await;
        assert_eq!(self.standby.log.try_recv().ok(), None, "one line is enough");
    }
}

async fn tls(tcp: TcpStream, pki: &Path, alpn: Option<&[u8]>) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.join("ca.crt")).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_file(pki.join("primary.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(pki.join("primary.key")).unwrap();
    let config = builder(roots).with_client_auth_cert(chain, key).unwrap();
    handshake(tcp, config, alpn).await
}

fn builder(roots: RootCertStore) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
}

async fn handshake(
    tcp: TcpStream,
    mut config: ClientConfig,
    alpn: Option<&[u8]>,
) -> std::io::Result<TlsStream<TcpStream>> {
    config.alpn_protocols = alpn.map(<[u8]>::to_vec).into_iter().collect();
    let name = ServerName::try_from("checksync.peer").unwrap();
    soon(TlsConnector::from(Arc::new(config)).connect(name, tcp)).await
}

/// Reads until the other side has closed.
async fn closed(mut stream: impl tokio::io::AsyncRead + Unpin) {
    let mut rest = Vec::new();
    // A reset is as good an end as any.
    let _ = soon(stream.read_to_end(&mut rest)).await;
}

/// One gRPC message as it travels: no compression, its length, its bytes.
fn message(bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
    out.freeze()
}

/// Calls `path` as somebody with a good certificate, sends `body`, and waits until the connection is closed.
async fn call(good: &Witnessed, path: &str, body: Bytes) {
    let (client, connection) = h2::client::handshake(good.tls(H2).await).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = soon(client.ready()).await.unwrap();
    let request = http::Request::post(format!("http://checksync.peer{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (_response, mut stream) = client.send_request(request, false).unwrap();
    stream.send_data(body, path == SILENT).unwrap();
    // An error or an end: the connection is over, though our stream still has something to say.
    let _ = soon(connection).await.unwrap();
}

#[tokio::test]
async fn plain_bytes_instead_of_tls() {
    let mut good = Witnessed::start().await;
    for garbage in
        [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0xff; 4096]]
    {
        let mut tcp = good.tcp().await;
        tcp.write_all(garbage).await.unwrap();
        closed(tcp).await;
        good.one_line_and_nothing_else("no handshake").await;
    }
}

#[tokio::test]
async fn connection_that_is_closed_at_once() {
    let mut good = Witnessed::start().await;
    drop(good.tcp().await);
    good.one_line_and_nothing_else("no handshake").await;
}

#[tokio::test]
async fn peer_that_never_starts_tls() {
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let mut good = Witnessed::start_with(limits).await;
    closed(good.tcp().await).await;
    good.one_line_and_nothing_else("no handshake within").await;
}

#[tokio::test]
async fn peer_without_a_certificate() {
    let mut good = Witnessed::start().await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(good.standby.pki.path().join("ca.crt")).unwrap()).unwrap();
    let config = builder(roots).with_no_client_auth();
    // TLS 1.3: the client may believe for a moment that it is in.
    if let Ok(stream) = handshake(good.tcp().await, config, H2).await {
        closed(stream).await;
    }
    good.one_line_and_nothing_else("peer sent no certificates").await;
}

#[tokio::test]
async fn peer_with_a_certificate_of_another_authority() {
    let mut good = Witnessed::start().await;
    // It knows our authority, but its own certificate is of another one.
    let (other, mixed) = (made_pki(&["primary"]), made_pki(&["primary"]));
    std::fs::copy(good.standby.pki.path().join("ca.crt"), mixed.path().join("ca.crt")).unwrap();
    if let Ok(stream) = tls(good.tcp().await, mixed.path(), H2).await {
        closed(stream).await;
    }
    good.one_line_and_nothing_else("invalid peer certificate").await;
    // And a whole stranger refuses us: our client says which files it needs.
    let tls = TlsFiles::load(other.path(), None).unwrap();
    let why = soon(Client::connect(&good.standby.address, &tls, DEADLINE)).await.unwrap_err();
    assert!(matches!(why, WireError::Certificate { .. }), "{why:?}");
    assert!(why.to_string().contains("files that one `checksync pki init` made"), "{why}");
    good.one_line_and_nothing_else("no handshake").await;
}

#[tokio::test]
async fn certificate_that_names_no_host_of_ours() {
    let mut good = Witnessed::start().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = rcgen::KeyPair::from_pem(&read(&good, "ca.key")).unwrap();
    let mut issuer = rcgen::CertificateParams::default();
    issuer.distinguished_name.push(rcgen::DnType::CommonName, "CheckSync authority");
    let mut params = rcgen::CertificateParams::new(vec!["elsewhere.example".to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &rcgen::Issuer::new(issuer, authority)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(read(&good, "ca.crt").as_bytes()).unwrap()).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = builder(roots).with_client_auth_cert(vec![certificate.into()], key).unwrap();
    closed(handshake(good.tcp().await, config, H2).await.unwrap()).await;
    good.one_line_and_nothing_else("names no host of ours").await;
}

fn read(good: &Witnessed, name: &str) -> String {
    std::fs::read_to_string(good.standby.pki.path().join(name)).unwrap()
}

#[tokio::test]
async fn client_that_wants_http_1() {
    let mut good = Witnessed::start().await;
    let refused = tls(good.tcp().await, good.standby.pki.path(), Some(b"http/1.1")).await;
    assert!(refused.is_err(), "another protocol was agreed on");
    good.one_line_and_nothing_else("no handshake").await;
}

#[tokio::test]
async fn http_1_and_noise_under_a_good_certificate() {
    let mut good = Witnessed::start().await;
    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 4096]] {
        for alpn in [None, H2] {
            let mut stream = good.tls(alpn).await;
            stream.write_all(garbage).await.unwrap();
            closed(stream).await;
            good.one_line_and_nothing_else("http2 error").await;
        }
    }
}

#[tokio::test]
async fn noise_after_http_2_has_begun() {
    let mut good = Witnessed::start().await;
    let mut stream = good.tls(H2).await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&[0xff; 4096]).await.unwrap();
    closed(stream).await;
    good.one_line_and_nothing_else("http2 error").await;
}

#[tokio::test]
async fn peer_that_never_speaks_http_2() {
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let mut good = Witnessed::start_with(limits).await;
    let mut stream = good.tls(H2).await;
    stream.write_all(b"PRI *").await.unwrap();
    closed(stream).await;
    good.one_line_and_nothing_else("it never spoke HTTP/2").await;
}

#[tokio::test]
async fn methods_that_do_not_exist() {
    let mut good = Witnessed::start().await;
    for path in
        ["/", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/checksync.wire.v1.Guard/Shout"]
    {
        call(&good, path, message(b"")).await;
        good.one_line_and_nothing_else("failed").await;
    }
}

#[tokio::test]
async fn messages_that_are_too_large() {
    let mut good = Witnessed::start().await;
    for (path, len, what) in [
        (REPLICATE, limits::FROM_PRIMARY_BYTES_MAX + 1, "too large"),
        (BEAT, limits::SMALL_BYTES_MAX + 1, "too large"),
        (SILENT, limits::SMALL_BYTES_MAX + 1, "too large"),
        (REPLICATE, u32::MAX as usize, "too large"),
    ] {
        // Only the length is sent: it must be enough, or we would have to hold the rest.
        let mut head = BytesMut::new();
        head.put_u8(0);
        head.put_u32(len as u32);
        call_and_listen(&mut good, path, head.freeze()).await;
        good.one_line_and_nothing_else(what).await;
    }
}

#[tokio::test]
async fn messages_that_cannot_be_understood() {
    let mut good = Witnessed::start().await;
    let no_protobuf = message(&[0xff; 64]);
    let empty = message(b"");
    // A frame (field 2) of three bytes where a hello is due.
    let frame = message(&[2 << 3 | 2, 3, 1, 2, 3]);
    // A hello (field 1) of the right version whose other fields are missing.
    let poor_hello = message(&[1 << 3 | 2, 2, 1 << 3, PROTOCOL_VERSION as u8]);
    // A guard's token (field 3) of one byte.
    let short_token = message(&[3 << 3 | 2, 1, 7]);
    for (path, body, what) in [
        (REPLICATE, no_protobuf.clone(), "cannot be understood"),
        (BEAT, no_protobuf.clone(), "cannot be understood"),
        (SILENT, no_protobuf, "failed"),
        (REPLICATE, empty, "its first message is no hello"),
        (REPLICATE, frame, "its first message is no hello"),
        (REPLICATE, poor_hello, "consistency"),
        (SILENT, short_token, "32 bytes"),
    ] {
        call_and_listen(&mut good, path, body).await;
        good.one_line_and_nothing_else(what).await;
    }
}

/// As [`call`], with a handler that listens to the heart, which otherwise nobody would read.
async fn call_and_listen(good: &mut Witnessed, path: &str, body: Bytes) {
    if path != BEAT {
        return call(good, path, body).await;
    }
    let (client, connection) = h2::client::handshake(good.tls(H2).await).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = soon(client.ready()).await.unwrap();
    let request = http::Request::post(format!("http://checksync.peer{path}")).body(()).unwrap();
    let (_response, mut stream) = client.send_request(request, false).unwrap();
    stream.send_data(body, false).unwrap();
    let (_, mut beats, _answers) = good.standby.heart().await;
    let bad = soon(beats.recv()).await;
    assert!(matches!(bad, Some(Err(WireError::Malformed { .. } | WireError::TooLarge { .. }))), "{bad:?}");
    let _ = soon(connection).await.unwrap();
}

#[tokio::test]
async fn peer_that_says_no_hello() {
    let limits = Limits { opening: Duration::from_millis(300), ..Limits::default() };
    let mut good = Witnessed::start_with(limits).await;
    call(&good, REPLICATE, Bytes::new()).await;
    good.one_line_and_nothing_else("no hello within").await;
}

#[tokio::test]
async fn guard_that_never_ends_its_request() {
    let limits = Limits { opening: Duration::from_millis(300), ..Limits::default() };
    let mut good = Witnessed::start_with(limits).await;
    let (client, connection) = h2::client::handshake(good.tls(H2).await).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://checksync.peer{SILENT}")).body(()).unwrap();
    let (_response, mut stream) = soon(client.ready()).await.unwrap().send_request(request, false).unwrap();
    stream.send_data(message(b""), false).unwrap();
    let _ = soon(connection).await.unwrap();
    good.one_line_and_nothing_else("it took too long").await;
}

#[tokio::test]
async fn strangers_who_shake_hands_for_ever_take_no_place_from_peers() {
    let limits = Limits { handshakes: 2, connections: 3, ..Limits::default() };
    let mut good = Witnessed::start_with(limits).await;
    let idle = [good.tcp().await, good.tcp().await];
    closed(good.tcp().await).await;
    assert!(good.standby.log_line().await.contains("2 handshakes are going on already"));
    drop(idle);
    for _ in 0..2 {
        assert!(good.standby.log_line().await.contains("no handshake"));
    }
    let peers = [good.standby.client().await, good.standby.client().await];
    let tls = TlsFiles::load(good.standby.pki.path(), Some("primary")).unwrap();
    assert!(
        soon(Client::connect(&good.standby.address, &tls, DEADLINE)).await.is_err(),
        "a fourth peer is in"
    );
    assert!(good.standby.log_line().await.contains("3 peers are connected already"));
    drop(peers);
    let ack = FromStandby::Ack(CheckpointId::new(1, 1));
    good.answers.send(ack.clone()).await.unwrap();
    assert_eq!(soon(good.primary.incoming.recv()).await.unwrap().unwrap(), ack);
}

#[tokio::test]
async fn primary_learns_what_it_has_reached_instead_of_a_standby() {
    let pki = made_pki(&["primary"]);
    let tls = TlsFiles::load(pki.path(), None).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();

    let deadline = Duration::from_millis(300);
    let why = soon(Client::connect(&address, &tls, deadline)).await.unwrap_err();
    assert!(matches!(&why, WireError::TimedOut { what: "finish the TLS handshake", .. }), "{why:?}");
    drop(listener.accept().await.unwrap());

    let (why, _tcp) = tokio::join!(Client::connect(&address, &tls, DEADLINE), async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
        tcp
    });
    let why = why.unwrap_err();
    assert!(matches!(why, WireError::NotAPeer { .. }), "{why:?}");
    assert!(why.to_string().contains("check the address and the port"), "{why}");

    drop(listener);
    let why = soon(Client::connect(&address, &tls, DEADLINE)).await.unwrap_err();
    assert!(matches!(why, WireError::Unreachable { .. }), "{why:?}");
    assert!(why.to_string().contains(&address), "{why}");
}

#[tokio::test]
async fn our_standby_never_sends_more_than_the_limit() {
    let mut good = Witnessed::start().await;
    let client = good.standby.client().await;
    let facts = Bytes::from(vec![0; limits::FROM_STANDBY_BYTES_MAX + 1]);
    let greedy = Welcome { host_facts: facts, ..welcome() };
    let (answer, _) = tokio::join!(client.replicate(hello("kv")), good.standby.welcome(greedy));
    assert!(answer.is_err(), "a welcome beyond the limit was sent");
}

#[tokio::test]
async fn standby_that_sends_too_much_is_dropped_by_the_primary() {
    let pki = made_pki(&["primary"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let standby = tokio::spawn(greedy_standby(listener, pki.path().to_owned()));
    let tls = TlsFiles::load(pki.path(), None).unwrap();
    let client = soon(Client::connect(&address, &tls, DEADLINE)).await.unwrap();
    let why = soon(client.replicate(hello("kv"))).await.unwrap_err();
    assert!(matches!(why, WireError::TooLarge { .. }), "{why:?}");
    soon(standby).await.unwrap();
}

/// Answers a call with the length of a message that is too large, and waits until it is left.
async fn greedy_standby(listener: TcpListener, pki: std::path::PathBuf) {
    let chain = vec![CertificateDer::from_pem_file(pki.join("primary.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(pki.join("primary.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(tcp).await.unwrap();
    let mut connection = h2::server::handshake(tls).await.unwrap();
    let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
    let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
    let mut head = BytesMut::new();
    head.put_u8(0);
    head.put_u32(limits::FROM_STANDBY_BYTES_MAX as u32 + 1);
    stream.send_data(head.freeze(), false).unwrap();
    while let Some(Ok(_)) = connection.accept().await {}
}
