//! The manager, as a program sees it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::connection::{Answer, Connection};
use crate::json::{self, Value};

/// Where `checksync run` says that its socket is.
const SOCKET_VARIABLE: &str = "CHECKSYNC_SOCKET";
/// Connections that are kept for the next call.
const IDLE_MAX: usize = 16;

/// A checkpoint's name. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checkpoint {
    pub term: u64,
    pub epoch: u64,
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.term, self.epoch)
    }
}

/// Where this process runs, and how well it is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    pub app: String,
    pub host: String,
    /// Always `primary` for a process that runs.
    pub role: String,
    /// Grows with every takeover: a fencing token, if what is written elsewhere carries it.
    pub term: u64,
    pub protected: bool,
    /// Why it is not protected.
    pub reason: Option<String>,
    /// The checkpoint that this process was restored from, if it was.
    pub restored: Option<Checkpoint>,
}

#[derive(Debug, Clone)]
pub enum Error {
    /// This process is not run by `checksync run`.
    NotProtected,
    /// The manager is not there.
    NoManager { socket: PathBuf, source: Arc<io::Error> },
    /// Nobody would go on if this host died now.
    Unprotected { reason: String },
    /// The manager refuses, or says what we don't understand.
    Refused { status: u16, reason: String },
    /// The connection broke, twice.
    Broken(Arc<io::Error>),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotProtected => {
                write!(f, "{SOCKET_VARIABLE} is not set; start the program with `checksync run`")
            }
            Self::NoManager { socket, .. } => write!(f, "no manager listens on {}", socket.display()),
            Self::Unprotected { reason } => write!(f, "the app is not protected: {reason}"),
            Self::Refused { status, reason } => write!(f, "the manager answers {status}: {reason}"),
            Self::Broken(_) => write!(f, "the connection to the manager broke"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoManager { source, .. } | Self::Broken(source) => Some(&**source),
            Self::NotProtected | Self::Unprotected { .. } | Self::Refused { .. } => None,
        }
    }
}

/// A manager's socket, with connections that calls share one after the other.
#[derive(Debug, Clone)]
pub struct Manager {
    socket: PathBuf,
    patience: Option<Duration>,
    idle: Arc<Mutex<Vec<Connection>>>,
    rounds: Arc<(Mutex<Rounds>, Condvar)>,
}

/// Questions of `sync`, one after the other, each for all who called before it was asked.
#[derive(Debug)]
struct Rounds {
    begun: u64,
    done: u64,
    /// Of the last one that is done.
    told: Result<Checkpoint, Error>,
}

impl Manager {
    pub fn from_environment() -> Result<Self, Error> {
        std::env::var_os(SOCKET_VARIABLE).map(Self::new).ok_or(Error::NotProtected)
    }

    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let rounds = Rounds { begun: 0, done: 0, told: Err(Error::NotProtected) };
        let rounds = Arc::new((Mutex::new(rounds), Condvar::new()));
        Self { socket: socket.into(), patience: None, idle: Arc::default(), rounds }
    }

    /// How long [`Manager::sync`] waits for protection where there is none. Without one it is refused once the app has
    /// been unprotected for a second, and at once when that is longer ago.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        // Whoever shares a question has the same.
        Self { patience: Some(patience), ..Self::new(self.socket) }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// See [`crate::sync`]. Threads that call at one time share a question: the one under way may be older than what
    /// the caller did, so it is the next.
    pub fn sync(&self) -> Result<Checkpoint, Error> {
        let (rounds, done) = &*self.rounds;
        let mut now = rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = now.begun + 1;
        while now.done < mine {
            if now.begun > now.done {
                now = done.wait(now).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            now.begun += 1;
            drop(now);
            let told = self.ask_for_sync();
            now = rounds.lock().unwrap_or_else(PoisonError::into_inner);
            (now.done, now.told) = (now.begun, told);
            done.notify_all();
        }
        now.told.clone()
    }

    fn ask_for_sync(&self) -> Result<Checkpoint, Error> {
        let told = match self.patience {
            None => self.ask("POST", "/v1/sync"),
            Some(patience) => self.ask("POST", &format!("/v1/sync?patience={}us", patience.as_micros())),
        };
        told.and_then(|told| checkpoint(&told).ok_or_else(|| incomplete("a checkpoint")))
    }

    /// See [`crate::epoch`].
    pub fn epoch(&self) -> Result<Option<Checkpoint>, Error> {
        self.ask("GET", "/v1/epoch").map(|told| checkpoint(&told))
    }

    /// See [`crate::role`].
    pub fn role(&self) -> Result<Role, Error> {
        self.ask("GET", "/v1/role").and_then(|told| role(&told))
    }

    /// See [`crate::on_promote`].
    pub fn on_promote(&self, mut promoted: impl FnMut(&Role) + Send + 'static) -> Result<(), Error> {
        const AGAIN: Duration = Duration::from_secs(1);
        let mut term = self.role()?.term;
        let manager = self.clone();
        let watch = move || loop {
            // It waits in the manager, and is answered by the next one.
            let told = manager.ask("GET", &format!("/v1/role?after={term}")).and_then(|told| role(&told));
            match told {
                Ok(role) => {
                    term = role.term;
                    promoted(&role);
                }
                // A manager that has died may be followed by one that finds us.
                Err(_) => thread::sleep(AGAIN),
            }
        };
        thread::Builder::new()
            .name("on-promote".to_owned())
            .spawn(watch)
            .map(drop)
            .map_err(|why| Error::Broken(Arc::new(why)))
    }

    fn ask(&self, method: &str, target: &str) -> Result<Value, Error> {
        let answer = self.exchange(method, target)?;
        let told = json::parse(&answer.body);
        let reason = |told: &Value| told.text("reason").map(str::to_owned);
        let reason = told.as_ref().and_then(reason).unwrap_or_else(|| "no reason".to_owned());
        match answer.status {
            200 => told.ok_or_else(|| incomplete("an object")),
            503 => Err(Error::Unprotected { reason }),
            status => Err(Error::Refused { status, reason }),
        }
    }

    /// Every question may be asked twice: so a connection that broke is no failure yet.
    fn exchange(&self, method: &str, target: &str) -> Result<Answer, Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(mut connection) = idle
            && let Ok(answer) = connection.ask(method, target)
        {
            self.keep(connection, &answer);
            return Ok(answer);
        }
        const TRIES: u32 = 2;
        let mut broken = None;
        for _ in 0..TRIES {
            let opened = Connection::open(&self.socket);
            let mut connection = opened.map_err(|source| Error::NoManager {
                socket: self.socket.clone(),
                source: Arc::new(source),
            })?;
            match connection.ask(method, target) {
                Ok(answer) => {
                    self.keep(connection, &answer);
                    return Ok(answer);
                }
                Err(why) => broken = Some(why),
            }
        }
        Err(Error::Broken(Arc::new(broken.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()))))
    }

    fn keep(&self, connection: Connection, answer: &Answer) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !answer.last && idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }
}

fn checkpoint(told: &Value) -> Option<Checkpoint> {
    Some(Checkpoint { term: told.number("term")?, epoch: told.number("epoch")? })
}

fn role(told: &Value) -> Result<Role, Error> {
    let text = |name| told.text(name).unwrap_or_default().to_owned();
    Ok(Role {
        app: text("app"),
        host: text("host"),
        role: text("role"),
        term: told.number("term").ok_or_else(|| incomplete("a term"))?,
        protected: told.truth("protected").unwrap_or(false),
        reason: told.text("reason").map(str::to_owned),
        restored: told.get("restored").and_then(checkpoint),
    })
}

fn incomplete(what: &str) -> Error {
    Error::Refused { status: 200, reason: format!("its answer has not {what}") }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// A manager in a directory of its own, each of whose answers the test writes.
    struct Bench {
        dir: PathBuf,
        listener: UnixListener,
    }

    impl Bench {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("checksync-sdk-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            let listener = UnixListener::bind(dir.join("socket")).unwrap();
            Self { dir, listener }
        }

        fn manager(&self) -> Manager {
            Manager::new(self.dir.join("socket"))
        }

        fn accept(&self) -> UnixStream {
            let (stream, _) = self.listener.accept().unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            // A directory that stays is in nobody's way.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    /// The first line of the next request.
    fn hear(stream: &mut UnixStream) -> String {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap().lines().next().unwrap().to_owned()
    }

    fn say(stream: &mut UnixStream, status: u16, body: &str) {
        write!(stream, "HTTP/1.1 {status} So\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    }

    #[test]
    fn calls_that_come_during_a_question_share_the_next() {
        const CALLS: u64 = 20;
        let bench = Bench::new("shared");
        let manager = bench.manager();
        let (post, told) = mpsc::channel();
        let call = |manager: &Manager| {
            let (manager, post) = (manager.clone(), post.clone());
            thread::spawn(move || post.send(manager.sync().unwrap().epoch).unwrap());
        };
        call(&manager);
        let mut stream = bench.accept();
        assert_eq!(hear(&mut stream), "POST /v1/sync HTTP/1.1");
        (1..CALLS).for_each(|_| call(&manager));
        say(&mut stream, 200, "{\"term\":1,\"epoch\":1}");
        assert_eq!(told.recv_timeout(SOON), Ok(1));
        // Some may have called only after the second question.
        let (mut heard, mut questions) = (1, 1);
        while heard < CALLS {
            hear(&mut stream);
            questions += 1;
            say(&mut stream, 200, &format!("{{\"term\":1,\"epoch\":{questions}}}"));
            while let Ok(epoch) = told.recv_timeout(Duration::from_millis(100)) {
                assert!(epoch > 1, "answered by a question that was older");
                heard += 1;
            }
        }
        assert!(questions < CALLS, "{questions} questions for {CALLS} calls");
    }

    #[test]
    fn a_connection_that_broke_is_replaced_and_the_question_asked_again() {
        let bench = Bench::new("broken");
        let manager = bench.manager();
        let asker = thread::spawn(move || (manager.role(), manager.epoch()));
        let mut stream = bench.accept();
        assert_eq!(hear(&mut stream), "GET /v1/role HTTP/1.1");
        say(
            &mut stream,
            200,
            "{\"term\":3,\"host\":\"b\",\"protected\":true,\"restored\":{\"term\":2,\"epoch\":8}}",
        );
        assert_eq!(hear(&mut stream), "GET /v1/epoch HTTP/1.1");
        drop(stream);
        let mut stream = bench.accept();
        assert_eq!(hear(&mut stream), "GET /v1/epoch HTTP/1.1");
        say(&mut stream, 200, "{\"term\":3,\"epoch\":null}");
        let (role, epoch) = asker.join().unwrap();
        let role = role.unwrap();
        assert_eq!((role.term, role.host.as_str(), role.protected), (3, "b", true));
        assert_eq!(role.restored, Some(Checkpoint { term: 2, epoch: 8 }));
        assert_eq!(epoch.unwrap(), None);
    }

    #[test]
    fn refusals_are_told_apart() {
        let bench = Bench::new("refused");
        let manager = bench.manager().with_patience(Duration::from_millis(1500));
        let asker = thread::spawn(move || [manager.sync(), manager.sync()].map(|told| told.unwrap_err()));
        let mut stream = bench.accept();
        assert_eq!(hear(&mut stream), "POST /v1/sync?patience=1500000us HTTP/1.1");
        say(&mut stream, 503, "{\"error\":\"unprotected\",\"reason\":\"alone\"}");
        hear(&mut stream);
        say(&mut stream, 404, "what?");
        let [unprotected, refused] = asker.join().unwrap();
        assert!(matches!(unprotected, Error::Unprotected { reason } if reason == "alone"));
        assert!(matches!(refused, Error::Refused { status: 404, .. }), "{refused}");
        let nobody = Manager::new("/nowhere/socket").sync().unwrap_err();
        assert!(matches!(nobody, Error::NoManager { .. }), "{nobody}");
    }
}
