//! One conversation: what was said and not answered, and what the answer waits for.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use replica::primary::SyncCall;

use super::http::{self, Question, REQUEST_BYTES_MAX, Refusal};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    Sync(SyncCall),
    /// For a term after this one.
    Promotion(u64),
}

#[derive(Debug)]
pub struct Talk {
    stream: UnixStream,
    /// From the first byte on that no answer was written for.
    said: Vec<u8>,
    /// Of `said`, the request that is being answered, and whether it is the last one.
    current: Option<(usize, bool)>,
    waiting: Option<Waiting>,
    /// The app says nothing more.
    heard_all: bool,
    over: bool,
}

impl Talk {
    pub fn new(stream: UnixStream, said: &[u8]) -> Self {
        Self { stream, said: said.to_vec(), current: None, waiting: None, heard_all: false, over: false }
    }

    /// Reads what is there. `false`: it can't go on.
    pub fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    // Who has only shut his own side still hears the answers.
                    self.heard_all = true;
                    return true;
                }
                // Whoever sends requests ahead while one waits has a bound, too.
                Ok(len) if self.said.len() + len > 2 * REQUEST_BYTES_MAX => return false,
                Ok(len) => self.said.extend_from_slice(&buffer[..len]),
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => return true,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    /// The next question, if nobody waits for the answer to one: it is to be answered, or to wait.
    pub fn next_question(&mut self) -> Option<Result<Question, Refusal>> {
        if self.current.is_some() || self.over {
            return None;
        }
        match http::parse(&self.said) {
            Ok(None) => {
                self.over = self.heard_all;
                None
            }
            Ok(Some(asked)) => {
                self.current = Some((asked.len_bytes, asked.last));
                Some(asked.question)
            }
            Err(why) => {
                self.current = Some((self.said.len(), true));
                Some(Err(why))
            }
        }
    }

    pub fn wait(&mut self, waiting: Waiting) {
        self.waiting = Some(waiting);
    }

    pub fn waiting(&self) -> Option<Waiting> {
        self.waiting
    }

    /// Writes the answer to the current request. It is short, so it goes whole or, to somebody who reads nothing, not
    /// at all.
    pub fn answer(&mut self, answer: impl FnOnce(bool) -> Vec<u8>) {
        let Some((len, last)) = self.current.take() else { return };
        self.waiting = None;
        let answer = answer(last);
        let written = self.stream.write(&answer);
        self.said.drain(..len);
        self.over = last || !written.is_ok_and(|written| written == answer.len());
    }

    /// The end would be reported again and again.
    pub fn stop_polling(&self, poll: &OwnedFd) {
        if self.heard_all {
            // If it is not polled any more, all the better.
            let _ = rustix::event::epoll::delete(poll, &self.stream);
        }
    }

    pub fn is_over(&self) -> bool {
        self.over
    }

    /// All that was said and not answered, read or not.
    pub fn unanswered(&self) -> io::Result<Vec<u8>> {
        let mut said = self.said.clone();
        let waiting = rustix::io::ioctl_fionread(&self.stream)? as usize;
        let mut rest = vec![0; waiting.min(2 * REQUEST_BYTES_MAX)];
        if !rest.is_empty() {
            let peeked = sys::sockets::peek(self.stream.as_fd(), &mut rest, &mut [])?;
            said.extend_from_slice(&rest[..peeked.len.min(rest.len())]);
        }
        Ok(said)
    }
}
