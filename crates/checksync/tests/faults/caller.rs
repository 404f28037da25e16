//! Somebody who calls again and again, each time on a connection of its own: for how long nobody answers. Clients whose
//! connections stay open wait for TCP's next retransmission as well, which may be as long again as the fault.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gate::Namespace;
use testkit::wait::Deadline;

const PORT: u16 = 7000;
/// An answer takes a few milliseconds; one that was lost is not waited for.
const PATIENCE: Duration = Duration::from_millis(60);
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub struct Caller {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Instant>>>,
}

impl Caller {
    pub fn start(host: &Namespace, service: Ipv4Addr) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&over);
        let calls = move || {
            let mut answered = Vec::new();
            while !own.load(Ordering::SeqCst) {
                if answers((service, PORT).into()) {
                    answered.push(Instant::now());
                }
                Deadline::after(PAUSE).poll(|| None::<()>);
            }
            answered
        };
        let thread = host.within(|| Ok(thread::spawn(calls))).unwrap();
        Self { over, thread: Some(thread) }
    }

    /// The longest time without an answer that ended after `since`.
    pub fn longest_silence(mut self, since: Instant) -> Duration {
        self.over.store(true, Ordering::SeqCst);
        let answered = self.thread.take().expect("it ends once").join().expect("it only calls");
        let now = Instant::now();
        let ends = answered.iter().skip(1).chain([&now]);
        let silences = answered.iter().zip(ends).filter(|(_, end)| **end >= since);
        silences.map(|(begin, end)| *end - *begin).max().unwrap_or(Duration::MAX)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // Nobody asks for its answers.
            let _ = thread.join();
        }
    }
}

fn answers(server: SocketAddr) -> bool {
    let call = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET k\n")?;
        Ok(stream.read(&mut [0; 64])? > 0)
    };
    call().unwrap_or(false)
}
