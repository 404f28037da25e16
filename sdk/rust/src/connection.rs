//! One connection to the manager: a request, an answer, and the next.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Answers are short.
const BODY_BYTES_MAX: u64 = 1 << 20;
const LINE_BYTES_MAX: u64 = 8 << 10;

#[derive(Debug)]
pub struct Connection {
    stream: BufReader<UnixStream>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    /// The manager says nothing more here.
    pub last: bool,
}

impl Connection {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { stream: BufReader::new(UnixStream::connect(path)?) })
    }

    /// In one write, so that it is never half a request that waits.
    pub fn ask(&mut self, method: &str, target: &str) -> io::Result<Answer> {
        let request = format!("{method} {target} HTTP/1.1\r\nhost: checksync\r\ncontent-length: 0\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        read(&mut self.stream)
    }
}

fn read(from: &mut impl BufRead) -> io::Result<Answer> {
    let first = line(from)?;
    let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    let status = status.ok_or_else(|| malformed("its first line"))?;
    let (mut len, mut last) = (0, false);
    loop {
        let header = line(from)?;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').ok_or_else(|| malformed("a header"))?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => len = value.trim().parse().map_err(|_| malformed("its length"))?,
            "connection" => last = value.trim().eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    if len > BODY_BYTES_MAX {
        return Err(malformed("its length"));
    }
    let mut body = String::new();
    if from.take(len).read_to_string(&mut body)? as u64 != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Answer { status, body, last })
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.take(LINE_BYTES_MAX).read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None if line.len() as u64 == LINE_BYTES_MAX => Err(malformed("a line")),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} makes no sense in an answer of the manager"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str =
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\nConnection: close\r\n\r\n{}\nHTTP/1.1 200";

    #[test]
    fn an_answer_ends_where_its_length_says() {
        let mut bytes = ANSWER.as_bytes();
        let answer = read(&mut bytes).unwrap();
        assert_eq!(answer, Answer { status: 503, body: "{}\n".to_owned(), last: true });
        assert_eq!(bytes, b"HTTP/1.1 200");
    }

    #[test]
    fn half_an_answer_is_none() {
        let whole = ANSWER.find("HTTP/1.1 200").unwrap();
        for len in 0..whole {
            assert!(read(&mut &ANSWER.as_bytes()[..len]).is_err(), "{}", &ANSWER[..len]);
        }
        for text in
            ["SSH-2.0\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n", &"x".repeat(9_000)]
        {
            assert_eq!(read(&mut text.as_bytes()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
