//! The calls on one accepted connection, from tonic's hands into those of a [`Handler`].

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use crate::error::version_advice;
use crate::identity::PeerIdentity;
use crate::limits::{
    FROM_PRIMARY_BYTES_MAX, FROM_STANDBY_BYTES_MAX, QUEUE_MESSAGES, REGISTER_BYTES_MAX, SMALL_BYTES_MAX,
};
use crate::link::{Connection, Incoming, Outgoing};
use crate::message::{
    FromPrimary, FromStandby, Heartbeat, HeartbeatAnswer, Hello, Refusal, RefusalCode, Silent, Welcome,
};
use crate::proto;
use crate::proto::from_standby::Message;
use crate::proto::guard_server::{self, Guard, GuardServer};
use crate::proto::heart_server::{self, Heart, HeartServer};
use crate::proto::registry_server::{self, Registry, RegistryServer};
use crate::proto::replication_server::{self, Replication, ReplicationServer};
use crate::registry::{RegisterAnswer, RegisterQuestion};

/// Who answers verified peers. A call of `replicate` or `beat` owns its links; when the last half of one is
/// dropped, that direction ends.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// A primary whose protocol version is ours has said hello. Answer by [`Opening::welcome`] or
    /// [`Opening::refuse`].
    async fn replicate(&self, peer: PeerIdentity, hello: Hello, opening: Opening);

    async fn beat(&self, peer: PeerIdentity, beats: Incoming<Heartbeat>, answers: Outgoing<HeartbeatAnswer>);

    /// Where connections for heartbeats alone are served, [`Handler::beat`] included.
    fn heartbeats_run_on(&self) -> Handle {
        Handle::current()
    }

    /// A guard gives its word. Whether its token is the armed one is for the handler to see. Runs to its end
    /// even if the guard is gone; the guard waits for the answer no longer than [`crate::Limits::opening`].
    async fn silent(&self, peer: PeerIdentity, silent: Silent) -> Result<(), Refusal>;

    /// A manager asks for the register of an app. Like a guard's word it runs to its end.
    async fn register(
        &self,
        _peer: PeerIdentity,
        _app: String,
        _question: RegisterQuestion,
    ) -> Result<RegisterAnswer, Refusal> {
        Err(Refusal {
            code: RefusalCode::Register,
            why: "no registers are kept here".to_owned(),
            way_out: "name the port of `checksync witness`".to_owned(),
        })
    }
}

/// A hello that waits for its answer. Dropped without one, the stream just ends.
#[derive(Debug)]
pub struct Opening {
    answer: mpsc::Sender<proto::FromStandby>,
    outgoing: Outgoing<FromStandby>,
    incoming: Incoming<FromPrimary>,
}

impl Opening {
    pub fn welcome(self, welcome: Welcome) -> (Outgoing<FromStandby>, Incoming<FromPrimary>) {
        self.say(Message::Welcome(welcome.into()));
        (self.outgoing, self.incoming)
    }

    pub fn refuse(self, refusal: Refusal) {
        self.say(Message::Refusal(refusal.into()));
    }

    fn say(&self, message: Message) {
        // There is room: this is the only message of its queue. A peer that is gone needs no answer.
        let _ = self.answer.try_send(proto::FromStandby { message: Some(message) });
    }
}

#[derive(Clone)]
pub(crate) struct Calls {
    handler: Arc<dyn Handler>,
    connection: Connection,
    opening: Duration,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Calls {
    pub(crate) fn new(handler: Arc<dyn Handler>, connection: Connection, opening: Duration) -> Self {
        Self { handler, connection, opening }
    }

    /// Hands one request to the service that it names. Our own answers never carry a failed status, so one
    /// that does comes from tonic: there is no such method, or the request can't be read.
    pub(crate) async fn answer(
        self,
        request: http::Request<hyper::body::Incoming>,
    ) -> Result<http::Response<Body>, Infallible> {
        const PATH_CHARS_LOGGED: usize = 80;
        let connection = self.connection.clone();
        let path: String = request.uri().path().chars().take(PATH_CHARS_LOGGED).collect();
        let response = self.dispatch(request.map(Body::new)).await?;
        if let Some(status) = Status::from_header_map(response.headers()) {
            connection.condemn(format!("its call of {path:?} failed: {}", status.message()));
        }
        Ok(response)
    }

    async fn dispatch(self, request: http::Request<Body>) -> Result<http::Response<Body>, Infallible> {
        let opening = self.opening;
        let service = request.uri().path().trim_start_matches('/').split('/').next();
        match service.unwrap_or_default() {
            replication_server::SERVICE_NAME => {
                let service = ReplicationServer::new(self)
                    .max_decoding_message_size(FROM_PRIMARY_BYTES_MAX)
                    .max_encoding_message_size(FROM_STANDBY_BYTES_MAX);
                { service }.call(request).await
            }
            heart_server::SERVICE_NAME => {
                let service = HeartServer::new(self)
                    .max_decoding_message_size(SMALL_BYTES_MAX)
                    .max_encoding_message_size(SMALL_BYTES_MAX);
                { service }.call(request).await
            }
            guard_server::SERVICE_NAME => {
                let service = GuardServer::new(self)
                    .max_decoding_message_size(SMALL_BYTES_MAX)
                    .max_encoding_message_size(SMALL_BYTES_MAX);
                // Its message ends with the request: a request that never ends is none. So it is below.
                let answered = timeout(opening, { service }.call(request)).await;
                answered.unwrap_or_else(|_| Ok(Status::deadline_exceeded("it took too long").into_http()))
            }
            registry_server::SERVICE_NAME => {
                let service = RegistryServer::new(self)
                    .max_decoding_message_size(REGISTER_BYTES_MAX)
                    .max_encoding_message_size(REGISTER_BYTES_MAX);
                let answered = timeout(opening, { service }.call(request)).await;
                answered.unwrap_or_else(|_| Ok(Status::deadline_exceeded("it took too long").into_http()))
            }
            _ => Ok(Status::unimplemented("there is no such service").into_http()),
        }
    }

    fn peer(&self) -> PeerIdentity {
        self.connection.peer().clone()
    }

    /// Waits for the hello, sees that its version is ours, and hands over.
    async fn open(self, mut messages: Streaming<proto::FromPrimary>, answers: OpeningQueues) {
        let Some(hello) = self.hello(&mut messages).await else { return };
        let OpeningQueues { answer, queue } = answers;
        let outgoing = Outgoing::new(queue, self.connection.clone());
        let incoming = Incoming::new(messages, self.connection.clone());
        let opening = Opening { answer, outgoing, incoming };
        if let Some((why, way_out)) = version_advice(hello.protocol_version, &hello.release) {
            warn!(peer = %self.connection.peer(), %why, "refused a peer of another version");
            return opening.refuse(Refusal { code: RefusalCode::Version, why, way_out });
        }
        match Hello::try_from(hello) {
            Ok(hello) => self.handler.replicate(self.peer(), hello, opening).await,
            Err(why) => drop(self.connection.malformed(why.to_string())),
        }
    }

    async fn hello(&self, messages: &mut Streaming<proto::FromPrimary>) -> Option<proto::Hello> {
        match timeout(self.opening, messages.message()).await {
            Ok(Ok(Some(proto::FromPrimary {
                message: Some(proto::from_primary::Message::Hello(hello)),
            }))) => {
                return Some(hello);
            }
            Ok(Ok(Some(_))) => self.connection.condemn("its first message is no hello".to_owned()),
            Ok(Ok(None)) => (),
            Ok(Err(status)) => drop(self.connection.broken(&status)),
            Err(_) => self.connection.condemn(format!("it said no hello within {:?}", self.opening)),
        }
        None
    }
}

/// The one answer to the hello, and what follows it.
struct OpeningQueues {
    answer: mpsc::Sender<proto::FromStandby>,
    queue: mpsc::Sender<FromStandby>,
}

#[async_trait]
impl Replication for Calls {
    type ReplicateStream = Answers<proto::FromStandby>;

    async fn replicate(
        &self,
        request: Request<Streaming<proto::FromPrimary>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        let (answer, first) = mpsc::channel(1);
        let (queue, later) = mpsc::channel::<FromStandby>(QUEUE_MESSAGES);
        tokio::spawn(self.clone().open(request.into_inner(), OpeningQueues { answer, queue }));
        let answers = ReceiverStream::new(first).chain(ReceiverStream::new(later).map(Into::into));
        Ok(Response::new(Box::pin(answers.map(Ok))))
    }
}

#[async_trait]
impl Heart for Calls {
    type BeatStream = Answers<proto::HeartbeatAnswer>;

    async fn beat(
        &self,
        request: Request<Streaming<proto::Heartbeat>>,
    ) -> Result<Response<Self::BeatStream>, Status> {
        let (queue, answers) = mpsc::channel::<HeartbeatAnswer>(QUEUE_MESSAGES);
        let beats = Incoming::new(request.into_inner(), self.connection.clone());
        let (calls, outgoing) = (self.clone(), Outgoing::new(queue, self.connection.clone()));
        tokio::spawn(async move { calls.handler.beat(calls.peer(), beats, outgoing).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers).map(|answer| Ok(answer.into())))))
    }
}

#[async_trait]
impl Guard for Calls {
    async fn silent(
        &self,
        request: Request<proto::SilentRequest>,
    ) -> Result<Response<proto::SilentAnswer>, Status> {
        let silent =
            Silent::try_from(request.into_inner()).map_err(|why| Status::internal(why.to_string()))?;
        // On a task of its own: a guard may be gone before it has read the answer, and its word still counts.
        let calls = self.clone();
        let taken = tokio::spawn(async move { calls.handler.silent(calls.peer(), silent).await }).await;
        let refusal = taken.map_err(|why| Status::internal(why.to_string()))?.err().map(Into::into);
        Ok(Response::new(proto::SilentAnswer { refusal }))
    }
}

#[async_trait]
impl Registry for Calls {
    async fn ask(
        &self,
        request: Request<proto::RegisterQuestion>,
    ) -> Result<Response<proto::RegisterAnswer>, Status> {
        let malformed = |why: crate::convert::Malformed| Status::internal(why.to_string());
        let (app, question) = RegisterQuestion::from_wire(request.into_inner()).map_err(malformed)?;
        let calls = self.clone();
        let answered =
            tokio::spawn(async move { calls.handler.register(calls.peer(), app, question).await }).await;
        Ok(Response::new(answered.map_err(|why| Status::internal(why.to_string()))?.into()))
    }
}
