//! The library's side of a manager: a unix socket, and what is said there. `docs/structures.md` has the protocol.
//!
//! Whoever breaks it is told why, if that is still possible, and let go; nothing else of the manager notices. What a
//! library can make us hold is one frame that has not come to its end, and what a [`Keeper`] takes before it says that
//! there is no more room.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use structure::{Change, Cursor, Frames, FromLibrary, Malformed, ToLibrary};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::PART_BYTES;

const HELLO_PATIENCE: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 64 << 10;
/// Strangers at one time; one of them may become the library.
const CONNECTIONS_MAX: u64 = 16;

/// Who keeps the structures that a library opens.
pub trait Keeper: Send + Sync + 'static {
    /// A library has come. Its outbox is granted when it may have the structures.
    fn join(&self, number: u64, outbox: Arc<Outbox>) -> Result<(), String>;
    fn leave(&self, number: u64);
    /// A part of the structures as they are, and how far it goes.
    fn piece(&self, cursor: Cursor, out: &mut Vec<u8>) -> Cursor;
    fn take(&self, number: u64, frames: &[u8]) -> Result<(), Malformed>;
    /// Ready when the next changes may come.
    fn room(&self) -> impl Future<Output = ()> + Send;
    fn term(&self) -> u64;
    /// How long reads may be answered from now on.
    fn lease(&self) -> Duration;
    /// How often that is to be asked.
    fn lease_every(&self) -> Duration;
}

/// What waits to be said to one library.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    granted: bool,
    closed: bool,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn say(&self, message: ToLibrary<'_>) {
        message.append(&mut self.lock().bytes);
        self.changed.notify_one();
    }

    pub fn grant(&self) {
        self.lock().granted = true;
        self.changed.notify_one();
    }

    #[cfg(test)]
    pub fn is_granted(&self) -> bool {
        self.lock().granted
    }

    /// What was said before still goes.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// What waits, if there is more to come.
    pub fn take_now(&self) -> Option<Vec<u8>> {
        let mut waiting = self.lock();
        let over = waiting.closed && waiting.bytes.is_empty();
        (!over).then(|| std::mem::take(&mut waiting.bytes))
    }

    /// True once granted, false when it was closed before.
    async fn granted(&self) -> bool {
        loop {
            {
                let waiting = self.lock();
                if waiting.closed || waiting.granted {
                    return waiting.granted && !waiting.closed;
                }
            }
            self.changed.notified().await;
        }
    }

    async fn take(&self) -> Option<Vec<u8>> {
        loop {
            match self.take_now() {
                Some(bytes) if bytes.is_empty() => self.changed.notified().await,
                taken => return taken,
            }
        }
    }
}

/// A socket that libraries may knock at until this is dropped. Connections that were made go on.
#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    accepting: JoinHandle<()>,
}

impl Door {
    /// Call it holding the lock of who uses this path: a socket that is there already is then a dead one's.
    pub fn open<K: Keeper>(path: &Path, keeper: &Arc<K>) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
            _ => (),
        }
        let listener = UnixListener::bind(path)?;
        let accepting = tokio::spawn(accept(listener, Arc::clone(keeper)));
        Ok(Self { path: path.to_owned(), accepting })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepting.abort();
        // One that stays refuses connections, and is replaced by the next.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept<K: Keeper>(listener: UnixListener, keeper: Arc<K>) {
    const PAUSE: Duration = Duration::from_millis(100);
    let inside = Arc::new(AtomicU64::new(0));
    for number in 1.. {
        match listener.accept().await {
            Ok(_) if inside.load(Ordering::Relaxed) >= CONNECTIONS_MAX => {
                tracing::warn!("{CONNECTIONS_MAX} connections of libraries are open; refused another");
            }
            Ok((stream, _)) => {
                let (keeper, inside) = (Arc::clone(&keeper), Arc::clone(&inside));
                inside.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    serve(stream, number, &*keeper).await;
                    inside.fetch_sub(1, Ordering::Relaxed);
                });
            }
            // Out of descriptors, most likely: it passes.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// One connection, to its end.
async fn serve<K: Keeper>(stream: UnixStream, number: u64, keeper: &K) {
    let (mut read, mut write) = stream.into_split();
    let outbox = Arc::new(Outbox::default());
    let mut buffer = Vec::new();
    let opened = open(number, keeper, &outbox, &mut read, &mut write, &mut buffer).await;
    let over = match opened {
        Ok(()) => {
            let writer = tokio::spawn(write_all(Arc::clone(&outbox), write));
            let over = listen(number, keeper, &outbox, &mut read, buffer).await;
            keeper.leave(number);
            if let Err(why) = &over {
                outbox.say(ToLibrary::Refused { why: &why.to_string() });
            }
            outbox.close();
            // It ends with what it has, or with the connection.
            let _ = writer.await;
            over
        }
        Err(why) => {
            keeper.leave(number);
            let mut last = Vec::new();
            ToLibrary::Refused { why: &why.to_string() }.append(&mut last);
            // Whoever is gone needs no answer.
            let _ = timeout(HELLO_PATIENCE, write.write_all(&last)).await;
            Err(why)
        }
    };
    match over {
        Ok(()) => {}
        Err(Over::Io(why)) => tracing::debug!(number, "a library is gone: {why}"),
        Err(why) => tracing::warn!(number, "refused a library: {why}"),
    }
}

/// Why a connection is over that did not end in order.
#[derive(Debug, thiserror::Error)]
enum Over {
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("no hello came within {HELLO_PATIENCE:?}")]
    NoHello,
    #[error("it spoke before it had the structures")]
    TooEarly,
    #[error("the manager has closed it")]
    Closed,
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// From the hello to the end of the snapshot.
async fn open<K: Keeper>(
    number: u64,
    keeper: &K,
    outbox: &Arc<Outbox>,
    read: &mut OwnedReadHalf,
    write: &mut OwnedWriteHalf,
    buffer: &mut Vec<u8>,
) -> Result<(), Over> {
    timeout(HELLO_PATIENCE, hello(read, buffer)).await.map_err(|_| Over::NoHello)??;
    keeper.join(number, Arc::clone(outbox)).map_err(Over::Refused)?;
    let granted = tokio::select! {
        granted = outbox.granted() => granted,
        read = read.read_buf(buffer) => match read? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            _ => return Err(Over::TooEarly),
        },
    };
    if !granted {
        let last = outbox.take_now().unwrap_or_default();
        write.write_all(&last).await?;
        return Err(Over::Closed);
    }
    let mut piece = Vec::new();
    ToLibrary::Welcome { term: keeper.term() }.append(&mut piece);
    let mut cursor = Cursor::default();
    while cursor != Cursor::End {
        cursor = keeper.piece(cursor, &mut piece);
        write.write_all(&piece).await?;
        piece.clear();
    }
    let lease_every_ns = u64::try_from(keeper.lease_every().as_nanos()).unwrap_or(u64::MAX);
    ToLibrary::Ready { lease_every_ns }.append(&mut piece);
    write.write_all(&piece).await?;
    Ok(())
}

async fn hello(read: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> Result<(), Over> {
    loop {
        let mut frames = Frames::of(buffer);
        if let Some(frame) = frames.take()? {
            let FromLibrary::Hello = FromLibrary::parse(frame)? else { return Err(Over::NoHello) };
            let taken = frames.taken();
            buffer.drain(..taken);
            return if buffer.is_empty() { Ok(()) } else { Err(Over::TooEarly) };
        }
        // A hello is short: more than this is none.
        if buffer.len() > READ_BYTES || read.read_buf(buffer).await? == 0 {
            return Err(Over::NoHello);
        }
    }
}

/// Takes what the library sends until it hangs up.
async fn listen<K: Keeper>(
    number: u64,
    keeper: &K,
    outbox: &Outbox,
    read: &mut OwnedReadHalf,
    mut buffer: Vec<u8>,
) -> Result<(), Over> {
    loop {
        buffer.reserve(READ_BYTES);
        if read.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let taken = take(number, keeper, outbox, &buffer)?;
        buffer.drain(..taken);
        // A long value leaves no long buffer behind.
        if buffer.is_empty() && buffer.capacity() > PART_BYTES {
            buffer = Vec::new();
        }
        keeper.room().await;
    }
}

/// Takes the whole frames, all changes that follow each other at once, and says how many bytes they had.
fn take<K: Keeper>(number: u64, keeper: &K, outbox: &Outbox, buffer: &[u8]) -> Result<usize, Over> {
    let (mut frames, mut changes_from) = (Frames::of(buffer), 0);
    loop {
        let end = frames.taken();
        let frame = frames.take()?;
        if frame.is_some_and(|frame| Change::is_kind(frame.kind)) {
            continue;
        }
        if changes_from < end {
            keeper.take(number, &buffer[changes_from..end])?;
        }
        changes_from = frames.taken();
        let Some(frame) = frame else { return Ok(end) };
        match FromLibrary::parse(frame)? {
            FromLibrary::AskLease(asked) => {
                let span_ns = u64::try_from(keeper.lease().as_nanos()).unwrap_or(u64::MAX);
                outbox.say(ToLibrary::Lease { number: asked, span_ns });
            }
            FromLibrary::Hello => return Err(Over::Refused("it said hello a second time".to_owned())),
        }
    }
}

async fn write_all(outbox: Arc<Outbox>, mut write: OwnedWriteHalf) {
    while let Some(bytes) = outbox.take().await {
        // That it is gone, its other half tells.
        if write.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
