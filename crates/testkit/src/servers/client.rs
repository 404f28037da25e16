//! One connection to a server, in the server's own protocol: as little of it as a test needs.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::Server;

/// What caddy is told to say.
pub(super) const CADDY_BODY: &str = "hello";
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// The subject that our NATS client talks to itself on.
const SUBJECT: &str = "checksync";

/// How a server is spoken to.
#[derive(Debug, Clone, Copy)]
enum Protocol {
    Kv,
    Redis,
    Memcached,
    Nats,
    /// HTTP with the same answer each time.
    Fixed,
    /// HTTP with counters: POST adds one.
    Counters,
}

/// A connection. After any error it is of no use.
#[derive(Debug)]
pub struct Client {
    protocol: Protocol,
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects, and says what the protocol wants said first.
    pub fn connect(server: &Server, address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let protocol = match server {
            Server::Kv | Server::KvBy(_) => Protocol::Kv,
            Server::Redis => Protocol::Redis,
            Server::Memcached => Protocol::Memcached,
            Server::Nats => Protocol::Nats,
            Server::Caddy => Protocol::Fixed,
            Server::Python | Server::Node | Server::Java => Protocol::Counters,
        };
        let mut client = Self { protocol, stream: BufReader::new(stream) };
        if let Protocol::Nats = protocol {
            client.nats_hello()?;
        }
        Ok(client)
    }

    /// One request that changes nothing.
    pub fn ping(&mut self) -> io::Result<()> {
        match self.protocol {
            Protocol::Nats | Protocol::Fixed => self.advance(0, 1).map(drop),
            _ => self.read(0).map(drop),
        }
    }

    /// Whether the server counts itself, whatever sequence it is told.
    #[must_use]
    pub fn counts(&self) -> bool {
        matches!(self.protocol, Protocol::Counters)
    }

    /// Moves the key on: to `sequence`, or by one where the server counts itself. Returns where it then stands,
    /// as the server has acknowledged it.
    pub fn advance(&mut self, key: usize, sequence: u64) -> io::Result<u64> {
        match self.protocol {
            Protocol::Kv => self.command(&format!("PUT k{key} {sequence}\n"), "OK")?,
            Protocol::Redis => self.command(&format!("SET k{key} {sequence}\r\n"), "+OK")?,
            Protocol::Memcached => {
                let value = sequence.to_string();
                self.command(&format!("set k{key} 0 0 {}\r\n{value}\r\n", value.len()), "STORED")?;
            }
            Protocol::Nats => self.nats_echo(sequence)?,
            Protocol::Fixed => {
                let body = self.http("GET", key)?;
                expect(&body, CADDY_BODY)?;
            }
            Protocol::Counters => return parse(&self.http("POST", key)?),
        }
        Ok(sequence)
    }

    /// Where the key stands, 0 if it was never moved; `None` for a server that keeps nothing.
    pub fn read(&mut self, key: usize) -> io::Result<Option<u64>> {
        let value = match self.protocol {
            Protocol::Nats | Protocol::Fixed => return Ok(None),
            Protocol::Counters => self.http("GET", key)?,
            Protocol::Kv => self.kv_get(key)?,
            Protocol::Redis => self.redis_get(key)?,
            Protocol::Memcached => self.memcached_get(key)?,
        };
        parse(&value).map(Some)
    }

    fn command(&mut self, request: &str, answer: &str) -> io::Result<()> {
        self.send(request)?;
        expect(&self.line()?, answer)
    }

    fn kv_get(&mut self, key: usize) -> io::Result<String> {
        self.send(&format!("GET k{key}\n"))?;
        let line = self.line()?;
        Ok(line.strip_prefix("VALUE ").unwrap_or(if line == "NONE" { "0" } else { &line }).to_owned())
    }

    /// `$-1`, or the length and then the value, each on a line.
    fn redis_get(&mut self, key: usize) -> io::Result<String> {
        self.send(&format!("GET k{key}\r\n"))?;
        match self.line()?.strip_prefix('$') {
            Some("-1") => Ok("0".to_owned()),
            Some(_) => self.line(),
            None => Err(unexpected("no bulk string")),
        }
    }

    /// `END`, or a line about the value, the value, and then `END`.
    fn memcached_get(&mut self, key: usize) -> io::Result<String> {
        self.send(&format!("get k{key}\r\n"))?;
        if self.line()? == "END" {
            return Ok("0".to_owned());
        }
        let value = self.line()?;
        expect(&self.line()?, "END")?;
        Ok(value)
    }

    fn nats_hello(&mut self) -> io::Result<()> {
        self.line()?; // INFO {…}
        self.send(&format!("CONNECT {{\"verbose\":false}}\r\nSUB {SUBJECT} 1\r\nPING\r\n"))?;
        expect(&self.line()?, "PONG")
    }

    /// Publishes to our own subscription, and waits for the message.
    fn nats_echo(&mut self, sequence: u64) -> io::Result<()> {
        let value = sequence.to_string();
        self.send(&format!("PUB {SUBJECT} {}\r\n{value}\r\n", value.len()))?;
        let mut line = self.line()?;
        while line == "PING" {
            self.send("PONG\r\n")?;
            line = self.line()?;
        }
        expect(&line, &format!("MSG {SUBJECT} 1 {}", value.len()))?;
        expect(&self.line()?, &value)
    }

    /// One request over HTTP/1.1 on the connection that stays; the answer must have a length.
    fn http(&mut self, method: &str, key: usize) -> io::Result<String> {
        self.send(&format!("{method} /k{key} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n"))?;
        let status = self.line()?;
        if !status.starts_with("HTTP/1.1 200") {
            return Err(unexpected(&status));
        }
        let mut length = 0;
        loop {
            let header = self.line()?.to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = usize::try_from(parse(value)?).map_err(io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(String::from_utf8_lossy(&body).trim().to_owned())
    }

    fn send(&mut self, request: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(request.as_bytes())
    }

    /// One line, without its end. The end of the stream is an error: no answer ends with it.
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

fn parse(value: &str) -> io::Result<u64> {
    value.trim().parse().map_err(|_| unexpected(value))
}

fn expect(found: &str, wanted: &str) -> io::Result<()> {
    if found == wanted { Ok(()) } else { Err(unexpected(found)) }
}

fn unexpected(answer: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer {answer:?}"))
}
