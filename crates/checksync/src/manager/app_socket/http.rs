//! What an app may ask, as HTTP/1.1: bytes to requests, answers to bytes.

use std::time::Duration;

use httparse::{EMPTY_HEADER, Request, Status};
use serde::Serialize;
use serde_json::json;

use crate::duration;

/// The longest request, with its headers and a body that nobody reads.
pub const REQUEST_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
const SCHEMA: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// To be answered when everything before is committed; `patience` while nothing is protected.
    Sync {
        patience: Option<Duration>,
    },
    Epoch,
    /// To be answered when the term is later than this, if it is given.
    Role {
        after: Option<u64>,
    },
}

/// A request that is whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    pub len_bytes: usize,
    pub question: Result<Question, Refusal>,
    /// Nothing follows on this connection.
    pub last: bool,
}

/// Why a question gets no other answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is nothing at {0}; ask for /v1/sync, /v1/epoch or /v1/role")]
    Unknown(String),
    #[error("{0} is no way to ask; take GET, or POST for /v1/sync")]
    Method(String),
    #[error("{0:?} is no number or span of time that {1} takes")]
    Parameter(String, &'static str),
    #[error("a body without a length can't be passed over; send none")]
    Body,
    #[error("this is no HTTP/1.1 request: {0}")]
    Malformed(String),
    #[error("a request has at most {REQUEST_BYTES_MAX} bytes")]
    TooLong,
    #[error("{0}")]
    Unprotected(String),
}

impl Refusal {
    fn status(&self) -> (&'static str, &'static str) {
        match self {
            Self::Unknown(_) => ("404 Not Found", "not-found"),
            Self::Method(_) => ("405 Method Not Allowed", "method"),
            Self::Parameter(..) => ("400 Bad Request", "parameter"),
            Self::Body => ("411 Length Required", "body"),
            Self::Malformed(_) => ("400 Bad Request", "malformed"),
            Self::TooLong => ("413 Content Too Large", "too-long"),
            Self::Unprotected(_) => ("503 Service Unavailable", "unprotected"),
        }
    }
}

/// The first request in `bytes`; `None`: more of it is to come. After an error nothing on the connection can be
/// understood any more.
pub fn parse(bytes: &[u8]) -> Result<Option<Asked>, Refusal> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = Request::new(&mut headers);
    let head = match request.parse(bytes) {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) if bytes.len() >= REQUEST_BYTES_MAX => return Err(Refusal::TooLong),
        Ok(Status::Partial) => return Ok(None),
        Err(why) => return Err(Refusal::Malformed(why.to_string())),
    };
    let header = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| String::from_utf8_lossy(header.value).trim().to_ascii_lowercase())
    };
    if header("transfer-encoding").is_some() {
        return Err(Refusal::Body);
    }
    let body = match header("content-length").map(|text| text.parse::<usize>()) {
        None => 0,
        Some(Ok(len)) if len <= REQUEST_BYTES_MAX - head.min(REQUEST_BYTES_MAX) => len,
        Some(Ok(_)) => return Err(Refusal::TooLong),
        Some(Err(_)) => return Err(Refusal::Malformed("its content-length is no number".to_owned())),
    };
    if bytes.len() < head + body {
        return Ok(None);
    }
    let connection = header("connection").unwrap_or_default();
    let last = connection == "close" || (request.version == Some(0) && connection != "keep-alive");
    let question = question(request.method.unwrap_or_default(), request.path.unwrap_or_default());
    Ok(Some(Asked { len_bytes: head + body, question, last }))
}

fn question(method: &str, target: &str) -> Result<Question, Refusal> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameter = |wanted: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value)
    };
    match (path, method) {
        ("/v1/sync", "GET" | "POST") => {
            let patience = parameter("patience").map(|text| {
                duration::parse(text).map_err(|_| Refusal::Parameter(text.to_owned(), "patience"))
            });
            Ok(Question::Sync { patience: patience.transpose()? })
        }
        ("/v1/epoch", "GET") => Ok(Question::Epoch),
        ("/v1/role", "GET") => {
            let after = parameter("after")
                .map(|text| text.parse().map_err(|_| Refusal::Parameter(text.to_owned(), "after")));
            Ok(Question::Role { after: after.transpose()? })
        }
        ("/v1/sync" | "/v1/epoch" | "/v1/role", other) => Err(Refusal::Method(other.to_owned())),
        (other, _) => Err(Refusal::Unknown(other.to_owned())),
    }
}

/// An answer with `body` and the version of its form.
pub fn answer(body: &impl Serialize, last: bool) -> Vec<u8> {
    #[derive(Serialize)]
    struct Whole<'a, T> {
        schema: u32,
        #[serde(flatten)]
        body: &'a T,
    }
    render("200 OK", &Whole { schema: SCHEMA, body }, last)
}

pub fn refusal(why: &Refusal, last: bool) -> Vec<u8> {
    let (status, error) = why.status();
    render(status, &json!({ "schema": SCHEMA, "error": error, "reason": why.to_string() }), last)
}

fn render(status: &str, body: &impl Serialize, last: bool) -> Vec<u8> {
    let mut body = serde_json::to_vec(body).expect("an answer is plain data");
    body.push(b'\n');
    let connection = if last { "connection: close\r\n" } else { "" };
    let mut answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{connection}\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend(body);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Asked {
        parse(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn what_curl_says_is_understood() {
        let text = "POST /v1/sync HTTP/1.1\r\nHost: checksync\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\n\r\n";
        let sync = asked(text);
        assert_eq!(
            sync,
            Asked { len_bytes: text.len(), question: Ok(Question::Sync { patience: None }), last: false }
        );
        let patience = asked("GET /v1/sync?patience=5s HTTP/1.1\r\n\r\n").question;
        assert_eq!(patience, Ok(Question::Sync { patience: Some(Duration::from_secs(5)) }));
        assert_eq!(
            asked("GET /v1/role?after=3 HTTP/1.0\r\n\r\n").question,
            Ok(Question::Role { after: Some(3) })
        );
    }

    #[test]
    fn a_request_is_whole_with_its_body_and_the_next_begins_behind_it() {
        let text = "POST /v1/sync HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}GET /v1/epoch HTTP/1.1\r\nConnection: close\r\n\r\n";
        let first = text.find("GET").unwrap();
        for len in 0..first {
            assert_eq!(parse(&text.as_bytes()[..len]), Ok(None), "{len} bytes are not whole");
        }
        assert_eq!(asked(text).len_bytes, first);
        let second = asked(&text[first..]);
        assert!(second.last && second.question == Ok(Question::Epoch));
        assert!(asked("GET /v1/epoch HTTP/1.0\r\n\r\n").last);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let refused = |line: &str| asked(&format!("{line} HTTP/1.1\r\n\r\n")).question.unwrap_err();
        assert_eq!(refused("GET /v2/sync"), Refusal::Unknown("/v2/sync".to_owned()));
        assert_eq!(refused("DELETE /v1/sync"), Refusal::Method("DELETE".to_owned()));
        assert_eq!(refused("POST /v1/sync?patience=5"), Refusal::Parameter("5".to_owned(), "patience"));
        assert!(matches!(parse(b"\x16\x03\x01 tls"), Err(Refusal::Malformed(_))));
        let chunked = b"POST /v1/sync HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(parse(chunked), Err(Refusal::Body));
        assert_eq!(
            parse(format!("GET /{}", "x".repeat(REQUEST_BYTES_MAX)).as_bytes()),
            Err(Refusal::TooLong)
        );
        let long = b"POST /v1/sync HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n";
        assert_eq!(parse(long), Err(Refusal::TooLong));
    }

    #[test]
    fn an_answer_has_its_length_and_its_schema() {
        let text = String::from_utf8(answer(&json!({ "term": 1 }), true)).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "{\"schema\":1,\"term\":1}\n");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("content-length: 22"), "{head}");
        assert!(head.ends_with("connection: close"), "{head}");
        let refused = String::from_utf8(refusal(&Refusal::Unprotected("alone".to_owned()), false)).unwrap();
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        assert!(
            refused.ends_with("{\"error\":\"unprotected\",\"reason\":\"alone\",\"schema\":1}\n"),
            "{refused}"
        );
    }
}
