//! Signals that a manager gets are its app's.

use tokio::signal::unix::{SignalKind, signal};

/// The first SIGTERM or Ctrl-C asks the app to end, the second kills it: those are `None`. Others are the app's, by
/// number. `told` is false once nobody takes them any more.
pub fn forward(told: impl Fn(Option<i32>) -> bool + Clone + Send + 'static) -> std::io::Result<()> {
    let kinds = [
        (SignalKind::terminate(), None),
        (SignalKind::interrupt(), None),
        (SignalKind::hangup(), Some(libc::SIGHUP)),
        (SignalKind::user_defined1(), Some(libc::SIGUSR1)),
        (SignalKind::user_defined2(), Some(libc::SIGUSR2)),
    ];
    for (kind, number) in kinds {
        let (mut signals, told) = (signal(kind)?, told.clone());
        tokio::spawn(async move { while signals.recv().await.is_some() && told(number) {} });
    }
    Ok(())
}
