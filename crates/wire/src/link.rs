//! The two halves of a call, and the connection that they share.
//!
//! `Outgoing::send` waits while the queue is full, with a deadline; nothing is dropped. `Incoming::recv` takes
//! a message from the network only when it is asked for one, so a receiver that does not ask makes HTTP/2's
//! window close and the sender wait. After an error both halves are useless: drop them and connect anew.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Status, Streaming};

use crate::error::WireError;
use crate::identity::PeerIdentity;
use crate::limits::SEND_DEADLINE;

/// One connection to a verified peer, as everything that uses it sees it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    peer: PeerIdentity,
    end: Arc<End>,
}

#[derive(Debug, Default)]
struct End {
    why: OnceLock<String>,
    condemned: Notify,
}

impl Connection {
    pub(crate) fn new(peer: PeerIdentity) -> Self {
        Self { peer, end: Arc::default() }
    }

    pub(crate) fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// Has the whole connection closed: its peer sent what no peer of ours sends.
    pub(crate) fn condemn(&self, why: String) {
        self.ended(why);
        self.end.condemned.notify_one();
    }

    /// Waits until the connection must be closed, and says why.
    pub(crate) async fn condemned(&self) -> String {
        self.end.condemned.notified().await;
        self.why()
    }

    /// Notes why the connection ended. The first cause counts.
    pub(crate) fn ended(&self, why: String) {
        self.end.why.get_or_init(|| why);
    }

    fn why(&self) -> String {
        self.end.why.get().map_or("the other side closed it", String::as_str).to_owned()
    }

    pub(crate) fn lost(&self) -> WireError {
        WireError::Lost { peer: self.peer.to_string(), why: self.why() }
    }

    pub(crate) fn timed_out(&self, what: &'static str, waited: Duration) -> WireError {
        WireError::TimedOut { peer: self.peer.to_string(), what, waited }
    }

    /// What a status means. One that was made by the decoder, not by a lost connection, condemns the peer.
    pub(crate) fn broken(&self, status: &Status) -> WireError {
        let (peer, why) = (self.peer.to_string(), status.message().to_owned());
        let from_the_transport = std::error::Error::source(status).is_some();
        match status.code() {
            Code::OutOfRange => {
                self.condemn(format!("a message of it is too large: {why}"));
                WireError::TooLarge { peer, why }
            }
            Code::Internal | Code::Unimplemented if !from_the_transport => self.malformed(why),
            _ => {
                let why = self.end.why.get().cloned().unwrap_or(why);
                WireError::Lost { peer, why }
            }
        }
    }

    pub(crate) fn malformed(&self, why: String) -> WireError {
        self.condemn(format!("a message of it cannot be understood: {why}"));
        WireError::Malformed { peer: self.peer.to_string(), why }
    }
}

/// The sending half. Its clones share one queue; the stream ends in order when the last one is dropped.
pub struct Outgoing<T> {
    queue: mpsc::Sender<T>,
    connection: Connection,
    deadline: Duration,
}

impl<T> Outgoing<T> {
    pub(crate) fn new(queue: mpsc::Sender<T>, connection: Connection) -> Self {
        Self { queue, connection, deadline: SEND_DEADLINE }
    }

    /// Changes how long a send may wait for a peer that takes nothing.
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Puts `message` into the queue, or waits until there is room. `Ok` says nothing about its arrival.
    pub async fn send(&self, message: T) -> Result<(), WireError> {
        match tokio::time::timeout(self.deadline, self.queue.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(self.connection.lost()),
            Err(_) => Err(self.connection.timed_out("take any of what waits for it", self.deadline)),
        }
    }

    /// As [`Outgoing::send`], but hands `message` back when there is no room: for what must not wait in line.
    pub fn try_send(&self, message: T) -> Result<Option<T>, WireError> {
        match self.queue.try_send(message) {
            Ok(()) => Ok(None),
            Err(mpsc::error::TrySendError::Full(message)) => Ok(Some(message)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(self.connection.lost()),
        }
    }

    pub fn peer(&self) -> &PeerIdentity {
        self.connection.peer()
    }
}

impl<T> Clone for Outgoing<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), connection: self.connection.clone(), deadline: self.deadline }
    }
}

impl<T> fmt::Debug for Outgoing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outgoing(to {})", self.connection.peer())
    }
}

/// The receiving half.
pub struct Incoming<T> {
    messages: Pin<Box<dyn Stream<Item = Result<T, WireError>> + Send>>,
    peer: PeerIdentity,
}

impl<T> Incoming<T> {
    pub(crate) fn new<P>(messages: Streaming<P>, connection: Connection) -> Self
    where
        P: Send + 'static,
        T: TryFrom<P, Error: fmt::Display> + Send + 'static,
    {
        let peer = connection.peer().clone();
        let convert = move |message: Result<P, Status>| match message {
            Ok(message) => T::try_from(message).map_err(|why| connection.malformed(why.to_string())),
            Err(status) => Err(connection.broken(&status)),
        };
        Self { messages: Box::pin(messages.map(convert)), peer }
    }

    /// The next message. `None`: the peer ended the stream in order, which says nothing about its app.
    ///
    /// Waits as long as the connection lives; HTTP/2's pings end it when the peer's machine is gone. Cancelling
    /// loses no message.
    pub async fn recv(&mut self) -> Option<Result<T, WireError>> {
        self.messages.next().await
    }

    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }
}

impl<T> fmt::Debug for Incoming<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incoming(from {})", self.peer)
    }
}
