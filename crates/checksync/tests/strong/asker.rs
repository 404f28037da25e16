//! One connection to the Go server, and one request at a time.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gate::Namespace;

use super::street::{SERVICE, SOON};

const PORT: u16 = 7000;

/// A client that asks when it is told to.
#[derive(Debug)]
pub struct Asker(BufReader<TcpStream>);

impl Asker {
    pub fn connect(host: &Namespace) -> io::Result<Self> {
        Self::connect_to(SERVICE.into(), host)
    }

    pub fn connect_to(service: IpAddr, host: &Namespace) -> io::Result<Self> {
        let stream = host.within(|| TcpStream::connect_timeout(&(service, PORT).into(), SOON))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SOON))?;
        Ok(Self(BufReader::new(stream)))
    }

    pub fn send(&mut self, request: &str) -> io::Result<()> {
        self.0.get_mut().write_all(format!("{request}\n").as_bytes())
    }

    pub fn answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    pub fn ask(&mut self, request: &str) -> io::Result<String> {
        self.send(request)?;
        self.answer()
    }

    /// Whether no answer comes for so long. What was asked stays asked.
    pub fn is_silent_for(&mut self, silence: Duration) -> io::Result<bool> {
        let stream = self.0.get_ref();
        stream.set_read_timeout(Some(silence))?;
        let peeked = stream.peek(&mut [0]);
        stream.set_read_timeout(Some(SOON))?;
        match peeked {
            Err(why) if why.kind() == ErrorKind::WouldBlock => Ok(true),
            peeked => peeked.map(|_| false),
        }
    }
}

/// A client that asks again and again, until it is dropped.
#[derive(Debug)]
pub struct Pesterer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    tally: Mutex<Tally>,
    over: AtomicBool,
    failure: Mutex<Option<String>>,
}

/// Answers to requests that were made in this period.
#[derive(Debug, Default)]
struct Tally {
    period: usize,
    answers: usize,
}

impl Pesterer {
    /// Returns once its connection is open.
    pub fn start(host: &Namespace) -> Self {
        let mut asker = Asker::connect(host).unwrap();
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let pestered = own.pester(&mut asker).map_err(|why| why.to_string());
            *own.failure.lock().unwrap_or_else(PoisonError::into_inner) = pestered.err();
        });
        Self { shared, thread: Some(thread) }
    }

    /// From now on only the answers to requests count that are made from now on.
    pub fn begin_period(&self) {
        let mut tally = self.shared.tally();
        *tally = Tally { period: tally.period + 1, answers: 0 };
    }

    /// Since the period began.
    #[track_caller]
    pub fn answers(&self) -> usize {
        let failure = self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(*failure, None, "a connection broke");
        self.shared.tally().answers
    }
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pester(&self, asker: &mut Asker) -> io::Result<()> {
        while !self.over.load(Ordering::SeqCst) {
            let period = self.tally().period;
            asker.ask("GET k")?;
            let mut tally = self.tally();
            tally.answers += usize::from(tally.period == period);
        }
        Ok(())
    }
}

impl Drop for Pesterer {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // Its failure is told by `answers`.
            let _ = thread.join();
        }
    }
}
