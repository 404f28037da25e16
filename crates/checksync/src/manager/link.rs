//! The primary's page stream: one session after the other, for as long as the app is served here.
//!
//! What goes out waits in one queue, in order. Its memory is bounded by others: incremental epochs by the
//! machine's limit of unacknowledged ones, a full sync by [`ROOM_FRAMES`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use engine::FrameSink;
use image::frame::FrameKind;
use image::{CheckpointId, Member};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use wire::{Client, FromPrimary, FromStandby, Hello, Replication, TlsFiles, Welcome, WireError};

use super::candidates::Candidates;
use super::host::HostFacts;

/// Frames of a full sync that wait for the network.
const ROOM_FRAMES: usize = 16;
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub enum LinkEvent {
    /// A standby has welcomed us.
    Connected {
        standby: Member,
        /// Where it listens, as a number if its name was found.
        address: String,
        held: Option<CheckpointId>,
        sender: LinkSender,
    },
    Said(FromStandby),
    /// The session is over.
    Ended {
        why: String,
    },
    /// No session came about.
    Failed {
        why: String,
    },
}

/// Called with the number of the session.
pub type OnLink = Arc<dyn Fn(u64, LinkEvent) + Send + Sync>;

pub struct Dialling {
    pub candidates: Arc<Candidates>,
    pub tls: TlsFiles,
    /// What a process needs of its next host; structures need nothing.
    pub facts: Option<HostFacts>,
    /// What to say; its guard's token changes with the cell.
    pub hello: Arc<Mutex<Hello>>,
    pub on_link: OnLink,
}

/// The sending half of a session. Dropping it ends the session.
#[derive(Debug)]
pub struct LinkSender {
    queue: mpsc::UnboundedSender<Out>,
    room: Arc<Semaphore>,
    runtime: Handle,
    _alive: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Out {
    message: FromPrimary,
    _room: Option<OwnedSemaphorePermit>,
}

impl LinkSender {
    pub fn send(&self, message: FromPrimary) {
        // A queue without a reader belongs to a session that has ended, and that is told by an event.
        let _ = self.queue.send(Out { message, _room: None });
    }

    /// Waits for room, which there is for a few messages at a time. Without any the session is over.
    pub fn room(&self) -> impl Future<Output = Option<OwnedSemaphorePermit>> + use<> {
        let room = Arc::clone(&self.room);
        async move { room.acquire_owned().await.ok() }
    }

    /// Sends what was waited for by [`LinkSender::room`].
    pub fn send_in(&self, room: OwnedSemaphorePermit, message: FromPrimary) {
        let _ = self.queue.send(Out { message, _room: Some(room) });
    }

    /// Sends what nobody waits for, unless the link is busy with a full sync.
    pub fn offer(&self, message: FromPrimary) {
        if let Ok(room) = Arc::clone(&self.room).try_acquire_owned() {
            let _ = self.queue.send(Out { message, _room: Some(room) });
        }
    }

    /// Where a full sync goes. Its last frame is left in `end`: it is what makes the epoch one, and may go
    /// only when the machine says so. Past `patience` without room it takes no more.
    pub fn sink(&self, end: Arc<Mutex<Option<Bytes>>>, patience: Option<Duration>) -> FrameSink {
        let (queue, room, runtime) = (self.queue.clone(), Arc::clone(&self.room), self.runtime.clone());
        Box::new(move |frame| {
            if kind_of(&frame) == Some(FrameKind::End as u16) {
                *end.lock().unwrap_or_else(PoisonError::into_inner) = Some(frame);
                return !queue.is_closed();
            }
            let room = Arc::clone(&room).acquire_owned();
            let room = match patience {
                None => runtime.block_on(room).ok(),
                Some(patience) => {
                    let room = runtime.block_on(async { timeout(patience, room).await });
                    room.ok().and_then(Result::ok)
                }
            };
            let Some(room) = room else { return false };
            queue.send(Out { message: FromPrimary::Frames(frame), _room: Some(room) }).is_ok()
        })
    }
}

/// Reads the kind without looking at the rest.
pub fn kind_of(frame: &[u8]) -> Option<u16> {
    const AT: std::ops::Range<usize> = 4..6;
    frame.get(AT).and_then(|kind| kind.try_into().ok()).map(u16::from_le_bytes)
}

/// Connects for ever: until its task is aborted.
pub async fn keep_connected(dialling: Dialling) {
    let mut backoff = BACKOFF_MIN;
    for session in 1.. {
        let event = match dialling.open().await {
            Ok((client, replication)) => {
                backoff = BACKOFF_MIN;
                let why = dialling.hold(session, client, replication).await;
                LinkEvent::Ended { why }
            }
            Err(why) => {
                dialling.candidates.next();
                LinkEvent::Failed { why }
            }
        };
        (dialling.on_link)(session, event);
        sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

impl Dialling {
    async fn open(&self) -> Result<(Client, Replication), String> {
        let text = |why: WireError| format!("{:#}", anyhow::Error::from(why));
        let standby = self.candidates.current();
        let client = Client::connect(&standby, &self.tls, CONNECT_PATIENCE).await.map_err(text)?;
        let hello = self.hello.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let replication = client.replicate(hello).await.map_err(text)?;
        if let Some(facts) = &self.facts {
            let theirs = HostFacts::decode(&replication.welcome.host_facts);
            let fits = theirs.and_then(|theirs| facts.fits(&theirs));
            fits.map_err(|why| format!("{why}; {}", why.way_out()))?;
        }
        Ok((client, replication))
    }

    /// Runs one session to its end, and says why it ended.
    async fn hold(&self, session: u64, client: Client, replication: Replication) -> String {
        let Replication { welcome, outgoing, mut incoming } = replication;
        let (queue, mut queued) = mpsc::unbounded_channel::<Out>();
        let (alive, let_go) = oneshot::channel();
        let room = Arc::new(Semaphore::new(ROOM_FRAMES));
        let runtime = Handle::current();
        let sender = LinkSender { queue, room: Arc::clone(&room), runtime, _alive: alive };
        let Welcome { standby_name, incarnation, held, .. } = welcome;
        let standby = Member::new(standby_name, incarnation);
        let address = numeric(&self.candidates.current()).await;
        (self.on_link)(session, LinkEvent::Connected { standby, address, held, sender });
        let write = async {
            while let Some(out) = queued.recv().await {
                if let Err(why) = outgoing.send(out.message).await {
                    return why.to_string();
                }
            }
            "it was let go".to_owned()
        };
        let read = async {
            loop {
                match incoming.recv().await {
                    Some(Ok(message)) => (self.on_link)(session, LinkEvent::Said(message)),
                    Some(Err(why)) => return why.to_string(),
                    None => return format!("{} ended the stream", client.peer()),
                }
            }
        };
        let why = tokio::select! {
            why = write => why,
            why = read => why,
            _ = let_go => "it was let go".to_owned(),
        };
        // Whoever waits for room must see that there will be none.
        room.close();
        why
    }
}

/// A guard asks no name server.
async fn numeric(name: &str) -> String {
    let found = tokio::net::lookup_host(name).await.ok().and_then(|mut all| all.next());
    found.map_or_else(|| name.to_owned(), |address| address.to_string())
}

#[cfg(test)]
mod tests {
    use image::frame::FrameWriter;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_end_of_a_full_sync_waits_for_leave() {
        let (queue, mut queued) = mpsc::unbounded_channel();
        let (alive, _let_go) = oneshot::channel();
        let room = Arc::new(Semaphore::new(1));
        let sender = LinkSender { queue, room, runtime: Handle::current(), _alive: alive };
        let end = Arc::new(Mutex::new(None));
        let mut sink = sender.sink(Arc::clone(&end), None);
        let mut frames = FrameWriter::default();
        let pages = frames.frame(FrameKind::Pages, b"pages");
        let last = frames.end();
        let (first, end_frame) = (pages.clone(), last.clone());
        let sunk = tokio::task::spawn_blocking(move || sink(pages) && sink(last)).await.unwrap();
        assert!(sunk);
        assert_eq!(queued.recv().await.unwrap().message, FromPrimary::Frames(first));
        assert!(queued.try_recv().is_err(), "the end went out by itself");
        assert_eq!(end.lock().unwrap().take(), Some(end_frame));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_sink_that_waits_for_room_sees_the_end_of_the_session() {
        let (queue, queued) = mpsc::unbounded_channel();
        let (alive, _let_go) = oneshot::channel();
        let room = Arc::new(Semaphore::new(0));
        let sender = LinkSender { queue, room: Arc::clone(&room), runtime: Handle::current(), _alive: alive };
        let mut sink = sender.sink(Arc::default(), None);
        let page = FrameWriter::default().frame(FrameKind::Pages, b"");
        let sunk = tokio::task::spawn_blocking(move || sink(page));
        room.close();
        drop(queued);
        assert!(!sunk.await.unwrap());
    }
}
