//! The side that connects: the primary and its guard. One client is one connection; it never reconnects by
//! itself, because when to do so is a decision.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Context, Poll, Service, http};
use tonic::{Request, Status};

use crate::convert::Malformed;
use crate::error::{WireError, chain, version_advice};
use crate::identity::{CLUSTER_NAME, PeerIdentity};
use crate::limits::{
    FROM_PRIMARY_BYTES_MAX, FROM_STANDBY_BYTES_MAX, HTTP2_FRAME_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT,
    QUEUE_MESSAGES, REGISTER_BYTES_MAX, REQUEST_HEAD_BYTES_MAX, SEND_BUFFER_BYTES, SMALL_BYTES_MAX,
    WINDOW_BYTES,
};
use crate::link::{Connection, Incoming, Outgoing};
use crate::message::{
    FromPrimary, FromStandby, Heartbeat, HeartbeatAnswer, Hello, Refusal, RefusalCode, Silent, Welcome,
};
use crate::proto;
use crate::proto::from_standby::Message;
use crate::proto::guard_client::GuardClient;
use crate::proto::heart_client::HeartClient;
use crate::proto::registry_client::RegistryClient;
use crate::proto::replication_client::ReplicationClient;
use crate::registry::{RegisterAnswer, RegisterQuestion};
use crate::tls::TlsFiles;
use crate::witness::Witness;

/// A connection to a standby. It ends when the client and all links made with it are dropped.
#[derive(Clone)]
pub struct Client {
    calls: Calls,
    connection: Connection,
    timeout: Duration,
}

/// A replication that the standby has accepted.
#[derive(Debug)]
pub struct Replication {
    pub welcome: Welcome,
    pub outgoing: Outgoing<FromPrimary>,
    pub incoming: Incoming<FromStandby>,
}

impl Client {
    /// Connects to `address`, `HOST:PORT`, and returns when each side has accepted the other's certificate.
    /// `timeout` bounds this, and later the wait for the answer that opens a call.
    pub async fn connect(address: &str, tls: &TlsFiles, timeout: Duration) -> Result<Self, WireError> {
        Self::connect_as(address, tls.client(), timeout).await
    }

    /// The same for heartbeats and nothing else: the standby hears them where nothing is in front of them.
    pub async fn connect_heart(address: &str, tls: &TlsFiles, timeout: Duration) -> Result<Self, WireError> {
        Self::connect_as(address, tls.heart(), timeout).await
    }

    async fn connect_as(address: &str, tls: Arc<ClientConfig>, timeout: Duration) -> Result<Self, WireError> {
        let deadline = Instant::now() + timeout;
        let late = |what| WireError::TimedOut { peer: address.to_owned(), what, waited: timeout };
        let unreachable = |source| WireError::Unreachable { address: address.to_owned(), source };
        let tcp = timeout_at(deadline, TcpStream::connect(address))
            .await
            .map_err(|_| late("answer the connection"))?
            .map_err(unreachable)?;
        let (tls, peer) = timeout_at(deadline, handshake(tcp, tls, address))
            .await
            .map_err(|_| late("finish the TLS handshake"))??;
        let connection = Connection::new(peer);
        let calls = timeout_at(deadline, start_http2(tls, &connection))
            .await
            .map_err(|_| late("start to speak HTTP/2"))??;
        Ok(Self { calls, connection, timeout })
    }

    pub fn peer(&self) -> &PeerIdentity {
        self.connection.peer()
    }

    /// Says hello and waits for the answer.
    pub async fn replicate(&self, hello: Hello) -> Result<Replication, WireError> {
        let (queue, later) = mpsc::channel::<FromPrimary>(QUEUE_MESSAGES);
        let hello = proto::from_primary::Message::Hello(hello.into());
        let hello = proto::FromPrimary { message: Some(hello) };
        let messages = tokio_stream::once(hello).chain(ReceiverStream::new(later).map(Into::into));
        let mut client = ReplicationClient::with_origin(self.calls.clone(), origin())
            .max_encoding_message_size(FROM_PRIMARY_BYTES_MAX)
            .max_decoding_message_size(FROM_STANDBY_BYTES_MAX);
        let opening = async {
            let mut answers = client.replicate(Request::new(messages)).await?.into_inner();
            Ok((answers.message().await?, answers))
        };
        let (first, answers) = self.answered("answer the hello", opening).await?;
        Ok(Replication {
            welcome: self.welcome(first)?,
            outgoing: Outgoing::new(queue, self.connection.clone()),
            incoming: Incoming::new(answers, self.connection.clone()),
        })
    }

    /// Starts heartbeats, of a client that [`Client::connect_heart`] made: behind a page even a heartbeat waits.
    pub async fn beat(&self) -> Result<(Outgoing<Heartbeat>, Incoming<HeartbeatAnswer>), WireError> {
        let (queue, beats) = mpsc::channel::<Heartbeat>(QUEUE_MESSAGES);
        let beats = ReceiverStream::new(beats).map(proto::Heartbeat::from);
        let mut client = HeartClient::with_origin(self.calls.clone(), origin())
            .max_encoding_message_size(SMALL_BYTES_MAX)
            .max_decoding_message_size(SMALL_BYTES_MAX);
        let answers = self.answered("answer the heart", client.beat(Request::new(beats))).await?.into_inner();
        let connection = &self.connection;
        Ok((Outgoing::new(queue, connection.clone()), Incoming::new(answers, connection.clone())))
    }

    /// Gives the guard's word. `Ok`: the standby took it.
    pub async fn silent(&self, silent: Silent) -> Result<(), WireError> {
        let mut client = GuardClient::with_origin(self.calls.clone(), origin())
            .max_encoding_message_size(SMALL_BYTES_MAX)
            .max_decoding_message_size(SMALL_BYTES_MAX);
        let word = Request::new(proto::SilentRequest::from(silent));
        let answer = self.answered("answer the guard's word", client.silent(word)).await?.into_inner();
        answer.refusal.map_or(Ok(()), |refusal| Err(self.refused(refusal.into())))
    }

    /// Asks a witness.
    pub async fn register(&self, app: &str, question: RegisterQuestion) -> Result<RegisterAnswer, WireError> {
        let mut client = RegistryClient::with_origin(self.calls.clone(), origin())
            .max_encoding_message_size(REGISTER_BYTES_MAX)
            .max_decoding_message_size(REGISTER_BYTES_MAX);
        let question = Request::new(question.into_wire(app.to_owned()));
        let answer = self.answered("answer for the register", client.ask(question)).await?.into_inner();
        match answer.refusal {
            Some(refusal) => Err(self.refused(refusal.into())),
            None => answer.try_into().map_err(|why: Malformed| self.connection.malformed(why.to_string())),
        }
    }

    async fn answered<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, WireError> {
        match timeout(self.timeout, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(self.connection.broken(&status)),
            Err(_) => Err(self.connection.timed_out(what, self.timeout)),
        }
    }

    fn welcome(&self, first: Option<proto::FromStandby>) -> Result<Welcome, WireError> {
        match first.ok_or_else(|| self.connection.lost())?.message {
            Some(Message::Welcome(welcome)) => {
                match version_advice(welcome.protocol_version, &welcome.release) {
                    None => Ok(welcome.into()),
                    Some((why, way_out)) => Err(WireError::Version {
                        peer: self.peer().to_string(),
                        why: format!("{why}; {way_out}"),
                    }),
                }
            }
            Some(Message::Refusal(refusal)) => Err(self.refused(refusal.into())),
            Some(_) | None => {
                Err(self.connection.malformed("it answers a hello with something else".to_owned()))
            }
        }
    }

    fn refused(&self, refusal: Refusal) -> WireError {
        let peer = self.peer().to_string();
        match refusal.code {
            RefusalCode::Version => WireError::Version { peer, why: refusal.to_string() },
            _ => WireError::Refused { peer, refusal },
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client(to {})", self.peer())
    }
}

fn origin() -> http::Uri {
    http::Uri::from_static("http://checksync.peer")
}

type Stream = TlsStream<TcpStream>;

async fn handshake(
    tcp: TcpStream,
    tls: Arc<ClientConfig>,
    address: &str,
) -> Result<(Stream, PeerIdentity), WireError> {
    let failed = |why: io::Error| handshake_error(address, &why);
    tcp.set_nodelay(true).map_err(failed)?;
    let remote = tcp.peer_addr().map_err(failed)?;
    let name = ServerName::try_from(CLUSTER_NAME).expect("a constant DNS name");
    let stream = TlsConnector::from(tls).connect(name, tcp).await.map_err(failed)?;
    let peer = PeerIdentity::read(stream.get_ref().1.peer_certificates(), remote);
    let peer = peer.ok_or_else(|| WireError::Certificate {
        address: address.to_owned(),
        why: "the certificate names no host of ours".to_owned(),
    })?;
    Ok((stream, peer))
}

/// Tells a certificate that was refused, on either side, from something that speaks no TLS.
fn handshake_error(address: &str, why: &io::Error) -> WireError {
    use rustls::{AlertDescription as Alert, Error as Tls};
    let (address, text) = (address.to_owned(), chain(why));
    match why.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) {
        Some(Tls::InvalidCertificate(_)) => WireError::Certificate { address, why: text },
        Some(Tls::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::DecryptError
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::AccessDenied,
        )) => WireError::Certificate { address, why: format!("the other side says: {text}") },
        Some(_) => WireError::NotAPeer { address, why: text },
        None => WireError::Lost { peer: address, why: text },
    }
}

/// Returns when the server has spoken, which it does only after it has accepted our certificate.
async fn start_http2(stream: Stream, connection: &Connection) -> Result<Calls, WireError> {
    let peer = connection.peer().to_string();
    let (stream, spoken) = Witness::new(stream, 1);
    let (calls, driver) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(REQUEST_HEAD_BYTES_MAX)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|why| WireError::Lost { peer: peer.clone(), why: chain(&why) })?;
    tokio::spawn(drive(driver, connection.clone()));
    match spoken.await {
        Ok(Ok(())) => Ok(Calls(calls)),
        Ok(Err(why)) => Err(handshake_error(&peer, &why)),
        Err(_) => Err(connection.lost()),
    }
}

async fn drive(driver: impl Future<Output = hyper::Result<()>>, connection: Connection) {
    tokio::select! {
        ended = driver => if let Err(why) = ended { connection.ended(chain(&why)) },
        _ = connection.condemned() => (),
    }
}

/// What tonic's generated code calls.
#[derive(Clone)]
pub(crate) struct Calls(pub(crate) SendRequest<Body>);

impl Service<http::Request<Body>> for Calls {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
