//! The program that the demo protects: a small key/value server, which knows nothing of checksync.
//!
//! One thread per connection and one that keeps statistics. A request is a line: `PUT KEY VALUE` is answered by
//! `OK`, `GET KEY` by the value or `NONE`, `COUNT` by the number of keys.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

const STATISTICS_EVERY: Duration = Duration::from_millis(10);
const HISTORY: usize = 4096;

#[derive(Debug, Default)]
struct Store {
    values: Mutex<HashMap<String, String>>,
    requests: AtomicU64,
}

impl Store {
    fn answer(&self, request: &str) -> String {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let mut words = request.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("PUT"), Some(key), Some(value)) => {
                values.insert(key.to_owned(), value.to_owned());
                "OK".to_owned()
            }
            (Some("GET"), Some(key), None) => values.get(key).cloned().unwrap_or_else(|| "NONE".to_owned()),
            (Some("COUNT"), None, None) => values.len().to_string(),
            _ => "UNKNOWN".to_owned(),
        }
    }
}

/// Serves until it is killed.
pub fn run(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let store = Arc::new(Store::default());
    let observed = Arc::clone(&store);
    thread::spawn(move || keep_statistics(&observed));
    println!("serving on {}", listener.local_addr()?);
    loop {
        let (connection, _) = listener.accept()?;
        let store = Arc::clone(&store);
        // A connection that breaks is the client's affair.
        thread::spawn(move || serve(&connection, &store));
    }
}

fn serve(connection: &TcpStream, store: &Store) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut answers = connection;
    for request in BufReader::new(connection).lines() {
        let answer = store.answer(&request?);
        answers.write_all(format!("{answer}\n").as_bytes())?;
    }
    Ok(())
}

fn keep_statistics(store: &Store) {
    let mut history = vec![0; HISTORY];
    for moment in (0..HISTORY).cycle() {
        history[moment] = store.requests.load(Ordering::Relaxed);
        thread::sleep(STATISTICS_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_got_and_counted() {
        let store = Store::default();
        assert_eq!(store.answer("GET a"), "NONE");
        assert_eq!(store.answer("PUT a 1"), "OK");
        assert_eq!(store.answer("PUT a 2"), "OK");
        assert_eq!(store.answer("GET a"), "2");
        assert_eq!(store.answer("COUNT"), "1");
        assert_eq!(store.answer("PUT a"), "UNKNOWN");
    }
}
