//! The app's output, on its way to the manager's own and into its log file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::mpsc;

/// Forwards until the app has closed both streams.
#[derive(Debug)]
pub struct Forwarding {
    done: mpsc::Receiver<()>,
}

impl Forwarding {
    pub fn start([output, error]: [OwnedFd; 2], log: Option<PathBuf>) -> io::Result<Self> {
        Self::begin([(output, Some(Stream::Output)), (error, Some(Stream::Error))], log)
    }

    /// Into the log alone; without one it is thrown away.
    pub fn quietly([output, error]: [OwnedFd; 2], log: Option<PathBuf>) -> io::Result<Self> {
        Self::begin([(output, None), (error, None)], log)
    }

    fn begin(streams: [(OwnedFd, Option<Stream>); 2], log: Option<PathBuf>) -> io::Result<Self> {
        let (ended, done) = mpsc::channel();
        for (stream, to) in streams {
            let log = log.as_deref().map(Log::open).transpose()?;
            let ended = ended.clone();
            thread::Builder::new().name("output".to_owned()).spawn(move || {
                forward(stream.into(), to, log);
                drop(ended);
            })?;
        }
        Ok(Self { done })
    }

    /// Waits until what was written has been forwarded, unless somebody who was left behind writes on.
    pub fn finish(self) {
        const PATIENCE: Duration = Duration::from_millis(500);
        // Nothing is ever sent: this ends when both threads have, or in time.
        let _ = self.done.recv_timeout(PATIENCE);
    }
}

#[derive(Clone, Copy)]
enum Stream {
    Output,
    Error,
}

struct Log {
    path: PathBuf,
    file: File,
    is_failing: bool,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { path: path.to_owned(), file, is_failing: false })
    }

    /// What can't be written is missing in the log, and that is said once for as long as it lasts.
    fn write(&mut self, bytes: &[u8]) {
        let written = self.file.write_all(bytes);
        if let (Err(why), false) = (&written, self.is_failing) {
            tracing::warn!("the app's output is missing in {}: {why}", self.path.display());
        }
        self.is_failing = written.is_err();
    }
}

/// Whether or not somebody listens to us: the app must not be held up, so a failed write is passed over.
fn forward(mut from: File, to: Option<Stream>, mut log: Option<Log>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => len,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let bytes = &buffer[..len];
        let _ = match to {
            None => Ok(()),
            Some(Stream::Output) => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Some(Stream::Error) => io::stderr().write_all(bytes),
        };
        if let Some(log) = &mut log {
            log.write(bytes);
        }
    }
}
