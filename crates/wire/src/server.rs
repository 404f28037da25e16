//! The side that is connected to: the standby.
//!
//! ```text
//! accept ─▶ TLS handshake ─┬────────────────────▶ HTTP/2: calls ─▶ Handler
//!           `handshakes`   └ heartbeats: moved ─▶  `connections`
//! ```
//!
//! Each connection is a task of its own. Whatever is wrong with a peer ends that task with one line in the
//! log; nothing it does reaches another connection.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

use crate::calls::{Calls, Handler};
use crate::error::chain;
use crate::identity::PeerIdentity;
use crate::limits::{
    CALLS_MAX, HTTP2_FRAME_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Limits, REQUEST_HEAD_BYTES_MAX,
    SEND_BUFFER_BYTES, WINDOW_BYTES,
};
use crate::link::Connection;
use crate::tls::{HEART, TlsFiles};
use crate::witness::Witness;

/// Serves until `shutdown` is ready, then closes all connections. Their handlers see their links end.
pub async fn serve(
    listener: TcpListener,
    tls: &TlsFiles,
    limits: Limits,
    handler: Arc<dyn Handler>,
    shutdown: impl Future<Output = ()>,
) {
    let door = Arc::new(Door {
        acceptor: TlsAcceptor::from(tls.server()),
        handshakes: Semaphore::new(limits.handshakes),
        connections: Semaphore::new(limits.connections),
        limits,
        handler,
    });
    let mut tasks = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = tasks.join_next() => (),
            accepted = listener.accept() => match accepted {
                Ok((tcp, from)) => drop(tasks.spawn(Arc::clone(&door).visit(tcp, from))),
                Err(why) => rest_after(&why).await,
            },
        }
    }
    tasks.shutdown().await;
}

/// Most errors of `accept` belong to the one connection that was not made; the others, no descriptors left
/// above all, would make a loop without pause burn a processor.
async fn rest_after(why: &io::Error) {
    warn!(%why, "cannot accept a connection");
    tokio::time::sleep(Duration::from_millis(20)).await;
}

struct Door {
    acceptor: TlsAcceptor,
    handshakes: Semaphore,
    connections: Semaphore,
    limits: Limits,
    handler: Arc<dyn Handler>,
}

type Stream = TlsStream<TcpStream>;

impl Door {
    async fn visit(self: Arc<Self>, tcp: TcpStream, from: SocketAddr) {
        if let Err(why) = self.let_in(tcp, from).await {
            warn!(peer = %from, %why, "closed the connection of a peer");
        }
    }

    /// Returns when the connection is over; an error is what the log should say about it.
    async fn let_in(self: &Arc<Self>, tcp: TcpStream, from: SocketAddr) -> Result<(), String> {
        let Ok(shaking) = self.handshakes.try_acquire() else {
            return Err(format!("{} handshakes are going on already", self.limits.handshakes));
        };
        let greeted = timeout(self.limits.handshake, self.greet(tcp, from)).await;
        let (stream, peer) =
            greeted.map_err(|_| format!("no handshake within {:?}", self.limits.handshake))??;
        let Ok(_place) = self.connections.try_acquire() else {
            return Err(format!("{} peers are connected already", self.limits.connections));
        };
        drop(shaking);
        let connection = Connection::new(peer);
        if stream.get_ref().1.alpn_protocol() == Some(HEART) {
            return self.hear(stream, connection).await;
        }
        self.speak(stream, connection).await
    }

    /// Has a connection served where the handler wants heartbeats.
    async fn hear(self: &Arc<Self>, mut stream: Stream, connection: Connection) -> Result<(), String> {
        let door = Arc::clone(self);
        let mut moved = JoinSet::new(); // What is in it ends with us.
        let speaking = async move {
            move_here(stream.get_mut().0).map_err(|why| format!("it can't be moved: {}", chain(&why)))?;
            door.speak(stream, connection).await
        };
        moved.spawn_on(speaking, &self.handler.heartbeats_run_on());
        moved.join_next().await.unwrap_or(Ok(Ok(()))).map_err(|why| chain(&why))?
    }

    async fn greet(&self, tcp: TcpStream, from: SocketAddr) -> Result<(Stream, PeerIdentity), String> {
        tcp.set_nodelay(true).map_err(|why| chain(&why))?;
        let stream =
            self.acceptor.accept(tcp).await.map_err(|why| format!("no handshake: {}", chain(&why)))?;
        let peer = PeerIdentity::read(stream.get_ref().1.peer_certificates(), from);
        let peer = peer.ok_or("its certificate names no host of ours")?;
        Ok((stream, peer))
    }

    async fn speak(&self, stream: Stream, connection: Connection) -> Result<(), String> {
        const PREFACE_BYTES: usize = 24;
        let calls = Calls::new(Arc::clone(&self.handler), connection.clone(), self.limits.opening);
        let (stream, spoken) = Witness::new(stream, PREFACE_BYTES);
        let driver = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(HTTP2_FRAME_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_header_list_size(REQUEST_HEAD_BYTES_MAX)
            .max_concurrent_streams(CALLS_MAX)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service_fn(move |request| calls.clone().answer(request)));
        // A condemned connection is dropped as it is: whatever it still had to say was not for us.
        let over = tokio::select! {
            biased;
            why = connection.condemned() => Err(why),
            ended = driver => ended.or_else(|why| departure(&connection, &why)),
            () = silence(spoken, self.limits.handshake) => Err("it never spoke HTTP/2".to_owned()),
        };
        over.inspect_err(|why| connection.ended(why.clone()))
    }
}

/// From here on the runtime that we run on wakes whoever waits for `tcp`.
fn move_here(tcp: &mut TcpStream) -> io::Result<()> {
    let ours = tcp.as_fd().try_clone_to_owned()?;
    *tcp = TcpStream::from_std(ours.into())?;
    Ok(())
}

/// Tells a peer that is gone, which is the end of many a good peer, from one that breaks the protocol.
fn departure(connection: &Connection, why: &hyper::Error) -> Result<(), String> {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    let text = chain(why);
    let io = why.source().and_then(|source| source.downcast_ref::<io::Error>());
    match io.map(io::Error::kind) {
        Some(BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof) => {
            info!(peer = %connection.peer(), why = text, "a peer is gone");
            connection.ended(text);
            Ok(())
        }
        _ => Err(text),
    }
}

/// Ends when the peer has not spoken in time, and never when it has: then the driver knows how it goes on.
async fn silence(spoken: oneshot::Receiver<io::Result<()>>, longest: Duration) {
    if timeout(longest, spoken).await.is_ok() {
        std::future::pending().await
    }
}
