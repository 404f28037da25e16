//! What stands on the street between clients and whoever serves: it forwards connections to one target, and
//! the promote hook names another by writing its address into a FIFO, as a line.
//!
//! A new target cuts every connection to the old one, so that clients come back and reach the new one. Each
//! connection has two threads; they end with it. The FIFO's thread ends with the relay.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use gate::Namespace;
use rustix::fs::{CWD, Mode, mkfifoat};

const CONNECT_LIMIT: Duration = Duration::from_millis(200);

/// A running relay. What it forwards goes on as long as the process lives.
#[derive(Debug, Clone)]
pub struct Relay {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    open: Vec<TcpStream>,
}

impl Relay {
    /// Starts one on `street`, which listens there on loopback and takes new targets from `fifo`, which it makes.
    pub fn start(street: &Namespace, target: SocketAddr, fifo: &Path) -> io::Result<Self> {
        mkfifoat(CWD, fifo, Mode::RUSR | Mode::WUSR)?;
        // For writing too, or it would be at its end whenever no hook is writing.
        let orders = OpenOptions::new().read(true).write(true).open(fifo)?;
        street.within(|| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let state = State { target, open: Vec::new() };
            let relay = Self { address: listener.local_addr()?, state: Arc::new(Mutex::new(state)) };
            let (accepting, obeying) = (relay.clone(), relay.clone());
            // Threads that are started on the street stay on it.
            thread::Builder::new().name("relay".to_owned()).spawn(move || accepting.accept(&listener))?;
            thread::Builder::new().name("relay-orders".to_owned()).spawn(move || obeying.obey(orders))?;
            Ok(relay)
        })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn accept(&self, listener: &TcpListener) {
        for client in listener.incoming().flatten() {
            let relay = self.clone();
            thread::spawn(move || relay.forward(client));
        }
    }

    fn obey(&self, orders: File) {
        for order in BufReader::new(orders).lines().map_while(Result::ok) {
            match order.trim().parse() {
                Ok(target) => self.repoint(target),
                Err(_) => tracing::warn!("the relay was given {order:?}, which is no address"),
            }
        }
    }

    fn repoint(&self, target: SocketAddr) {
        let mut state = self.state();
        state.target = target;
        for connection in state.open.drain(..) {
            // One that is shut already has nothing left to cut.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// A client that can't be served is hung up on, and comes again.
    fn forward(&self, client: TcpStream) -> io::Result<()> {
        let target = self.state().target;
        let server = TcpStream::connect_timeout(&target, CONNECT_LIMIT)?;
        self.remember(target, [&client, &server])?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_server, to_client) = (server.try_clone()?, client.try_clone()?);
        thread::spawn(move || pump(&from_server, &to_client));
        pump(&client, &server);
        Ok(())
    }

    /// So that a new target can cut it; a connection that was made while the target changed is refused.
    fn remember(&self, target: SocketAddr, ends: [&TcpStream; 2]) -> io::Result<()> {
        let mut state = self.state();
        if state.target != target {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        for end in ends {
            state.open.push(end.try_clone()?);
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies until either side ends, and then ends both.
fn pump(mut from: &TcpStream, mut to: &TcpStream) {
    let _broken = io::copy(&mut from, &mut to);
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn greeter(street: &Namespace, greeting: u8) -> SocketAddr {
        let listener = street.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let mut open = Vec::new();
            for mut connection in listener.incoming().flatten() {
                connection.write_all(&[greeting]).unwrap();
                open.push(connection);
            }
        });
        address
    }

    fn greeting(client: &mut TcpStream) -> u8 {
        let mut greeting = [0];
        client.read_exact(&mut greeting).unwrap();
        greeting[0]
    }

    #[test]
    fn new_target_cuts_old_connections_and_gets_the_new_ones() {
        testkit::needs!(CAP_SYS_ADMIN, CAP_NET_ADMIN);
        let street = Namespace::new().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let fifo = scratch.path().join("serving");
        let (first, second) = (greeter(&street, 1), greeter(&street, 2));
        let relay = Relay::start(&street, first, &fifo).unwrap();
        let connect = || {
            let client = street.within(|| TcpStream::connect(relay.address())).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            client
        };
        let mut old = connect();
        assert_eq!(greeting(&mut old), 1);
        std::fs::write(&fifo, format!("nonsense\n{second}\n")).unwrap();
        assert_eq!(old.read(&mut [0]).unwrap(), 0, "the old connection was cut");
        assert_eq!(greeting(&mut connect()), 2);
    }
}
