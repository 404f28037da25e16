//! The client on the street: it writes a growing sequence, one write after the other, and keeps the time of
//! every answer. When its connection breaks it comes back, and before it goes on it looks at what the server
//! still has: exactly the first writes, each as it was, or something is wrong.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::network::Network;

/// Between two writes, so that a small machine has something left for the managers.
const THINKING: Duration = Duration::from_micros(200);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(1);
/// No answer for this long: the connection counts as broken.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Requests that are on their way at once when the server's content is looked at.
const BATCH: u64 = 200;

/// An answered write.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    pub at: Instant,
    /// The same, on the clock of checkpoints: nanoseconds since 1970.
    pub wall_ns: u64,
}

impl Answered {
    fn now() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { at: Instant::now(), wall_ns: wall.as_nanos() as u64 }
    }
}

/// What the client found when it came back.
#[derive(Debug)]
pub struct Return {
    /// Writes that had been answered by then.
    pub answered: Vec<Answered>,
    /// The server has exactly the writes up to this one.
    pub held: u64,
    /// When it gave its first answer, and the same on the clock of checkpoints.
    pub first_reply: Instant,
    pub first_reply_ns: u64,
}

impl Return {
    pub fn lost(&self) -> &[Answered] {
        self.answered.get(self.held as usize..).unwrap_or_default()
    }

    pub fn gap(&self) -> Duration {
        self.answered.last().map_or(Duration::ZERO, |last| self.first_reply - last.at)
    }
}

#[derive(Debug)]
pub struct Record {
    /// Answers in all.
    pub writes: u64,
    pub returns: Vec<Return>,
}

/// The client at work, on a thread of its own.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    thread: JoinHandle<io::Result<Record>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    writes: AtomicU64,
    returns: AtomicU64,
}

impl Client {
    pub fn start(network: &Arc<Network>, relay: SocketAddr) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (network, its) = (Arc::clone(network), Arc::clone(&shared));
        let thread = thread::Builder::new().name("client".to_owned()).spawn(move || {
            network.street.enter()?;
            Sequence { relay, shared: its, writes: Vec::new(), returns: Vec::new(), answers: 0 }.run()
        })?;
        Ok(Self { shared, thread })
    }

    /// Answers so far.
    pub fn writes(&self) -> u64 {
        self.shared.writes.load(Ordering::Relaxed)
    }

    /// How often it came back and found all well.
    pub fn returns(&self) -> u64 {
        self.shared.returns.load(Ordering::Relaxed)
    }

    /// It found something that must not be, and has stopped.
    pub fn gave_up(&self) -> bool {
        self.thread.is_finished()
    }

    /// Has it stop, and says what it saw. An error is what it found wrong with the server.
    pub fn finish(self) -> io::Result<Record> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the client failed")))
    }
}

struct Sequence {
    relay: SocketAddr,
    shared: Arc<Shared>,
    /// The write number n is at n - 1.
    writes: Vec<Answered>,
    returns: Vec<Return>,
    answers: u64,
}

impl Sequence {
    fn run(mut self) -> io::Result<Record> {
        while !self.stopped() {
            match self.converse() {
                Ok(()) => (),
                Err(why) if why.kind() == io::ErrorKind::InvalidData => return Err(why),
                Err(_) => thread::sleep(BETWEEN_ATTEMPTS),
            }
        }
        Ok(Record { writes: self.answers, returns: self.returns })
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    /// One connection, from its beginning to its end.
    fn converse(&mut self) -> io::Result<()> {
        let mut server = Server::connect(self.relay)?;
        if !self.writes.is_empty() {
            self.look_around(&mut server)?;
        }
        while !self.stopped() {
            let next = self.writes.len() as u64 + 1;
            let answer = server.ask(&format!("PUT {} {}", key(next), value(next)))?;
            expect("OK", &answer, || format!("an answer to write {next}"))?;
            self.writes.push(Answered::now());
            self.answers += 1;
            self.shared.writes.store(self.answers, Ordering::Relaxed);
            thread::sleep(THINKING);
        }
        Ok(())
    }

    /// Reads all that the server has. Writes that it has lost are made again from here on.
    fn look_around(&mut self, server: &mut Server) -> io::Result<()> {
        let count = server.ask("COUNT")?;
        let first = Answered::now();
        let held: u64 = count.parse().map_err(|_| wrong(format!("{count:?} is no count")))?;
        // One more than was answered: the answer to the last write may have been lost, not the write.
        if held > self.writes.len() as u64 + 1 {
            return Err(wrong(format!("the server has {held} keys, and {} were written", self.writes.len())));
        }
        server.check(held)?;
        let answered = self.writes.clone();
        self.writes.truncate(held as usize);
        if held > answered.len() as u64 {
            self.writes.push(Answered::now());
        }
        self.returns.push(Return { answered, held, first_reply: first.at, first_reply_ns: first.wall_ns });
        self.shared.returns.store(self.returns.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

fn key(number: u64) -> String {
    format!("key-{number}")
}

fn value(number: u64) -> String {
    format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

struct Server {
    connection: BufReader<TcpStream>,
}

impl Server {
    fn connect(relay: SocketAddr) -> io::Result<Self> {
        let connection = TcpStream::connect_timeout(&relay, ANSWER_LIMIT)?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self { connection: BufReader::new(connection) })
    }

    fn ask(&mut self, request: &str) -> io::Result<String> {
        self.connection.get_mut().write_all(format!("{request}\n").as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.connection.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.pop();
        Ok(line)
    }

    /// Whether each of the first `count` writes is there, and is as it was.
    fn check(&mut self, count: u64) -> io::Result<()> {
        for first in (1..=count).step_by(BATCH as usize) {
            let batch = first..(first + BATCH).min(count + 1);
            let requests: String = batch.clone().map(|number| format!("GET {}\n", key(number))).collect();
            self.connection.get_mut().write_all(requests.as_bytes())?;
            for number in batch {
                expect(&value(number), &self.answer()?, || {
                    format!("the value of write {number} of {count}")
                })?;
            }
        }
        Ok(())
    }
}

fn expect(wanted: &str, found: &str, what: impl FnOnce() -> String) -> io::Result<()> {
    if wanted == found { Ok(()) } else { Err(wrong(format!("{} is {found:?}, not {wanted:?}", what()))) }
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers each request by the next of `answers`, and then hangs up.
    fn server(answers: &'static [&'static str]) -> (SocketAddr, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = thread::spawn(move || {
            let (connection, _) = listener.accept().unwrap();
            let mut requests = BufReader::new(connection);
            let mut seen = Vec::new();
            for answer in answers {
                let mut line = String::new();
                requests.read_line(&mut line).unwrap();
                seen.push(line);
                requests.get_mut().write_all(format!("{answer}\n").as_bytes()).unwrap();
            }
            seen
        });
        (address, thread)
    }

    fn sequence(relay: SocketAddr, written: usize) -> Sequence {
        let writes = vec![Answered::now(); written];
        Sequence { relay, shared: Arc::default(), writes, returns: Vec::new(), answers: written as u64 }
    }

    #[test]
    fn lost_writes_are_those_behind_the_last_that_is_held() {
        let (address, thread) = server(&["1", "9e3779b97f4a7c15"]);
        let mut client = sequence(address, 3);
        client.converse().unwrap_err();
        assert_eq!(client.returns[0].lost().len(), 2);
        assert_eq!(client.writes.len(), 1, "the lost ones are written again");
        assert_eq!(thread.join().unwrap(), ["COUNT\n", "GET key-1\n"]);
    }

    #[test]
    fn write_whose_answer_was_lost_is_not_lost() {
        let (address, _thread) = server(&["2", "9e3779b97f4a7c15", "3c6ef372fe94f82a"]);
        let mut client = sequence(address, 1);
        client.converse().unwrap_err();
        assert!(client.returns[0].lost().is_empty());
        assert_eq!(client.writes.len(), 2);
    }

    #[test]
    fn hole_damage_and_surplus_are_found() {
        for (answers, written) in
            [(&["2", "NONE"][..], 2), (&["1", "9e3779b97f4a7c00"], 1), (&["9"], 3), (&["x"], 1)]
        {
            let (address, _thread) = server(answers);
            let why = sequence(address, written).converse().unwrap_err();
            assert_eq!(why.kind(), io::ErrorKind::InvalidData, "{answers:?} passed");
        }
    }
}
