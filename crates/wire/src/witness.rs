//! A stream that reports when its peer has begun to speak, or that it will not.
//!
//! TLS 1.3 lets a client finish its handshake before the server has judged its certificate; the refusal is
//! what the client's first read returns, deep in the HTTP/2 driver. And HTTP/2 itself has no deadline for the
//! first bytes. So both sides wait here for the other's first bytes while the driver runs.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

#[derive(Debug)]
pub(crate) struct Witness<S> {
    inner: S,
    wanted_bytes: usize,
    report: Option<oneshot::Sender<io::Result<()>>>,
}

impl<S> Witness<S> {
    /// The receiver gets `Ok` when the peer has sent `wanted_bytes`, and what ended the stream if it did not.
    pub(crate) fn new(inner: S, wanted_bytes: usize) -> (Self, oneshot::Receiver<io::Result<()>>) {
        let (report, reported) = oneshot::channel();
        (Self { inner, wanted_bytes, report: Some(report) }, reported)
    }

    fn saw(&mut self, read: &io::Result<()>, len: usize) {
        self.wanted_bytes = self.wanted_bytes.saturating_sub(len);
        let what = match read {
            Err(why) => Err(copy(why)),
            Ok(()) if len == 0 => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other side closed it"))
            }
            Ok(()) if self.wanted_bytes == 0 => Ok(()),
            Ok(()) => return,
        };
        if let Some(report) = self.report.take() {
            // Nobody may be waiting any more: the deadline was over.
            let _ = report.send(what);
        }
    }
}

/// An error for the witness beside the one for the driver, still a TLS error if it was one.
fn copy(why: &io::Error) -> io::Error {
    match why.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => io::Error::new(why.kind(), tls.clone()),
        None => io::Error::new(why.kind(), why.to_string()),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Witness<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = std::task::ready!(Pin::new(&mut self.inner).poll_read(cx, buf));
        if self.report.is_some() {
            self.saw(&read, buf.filled().len() - before);
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Witness<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
