//! What an operator asks of a running manager: one JSON line in, news as JSON lines out, on `NAME.ctl` in the run
//! directory. Whoever hangs up withdraws what was asked, as far as it can be withdrawn.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream as Caller;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader as Lines};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::drill::Record;
use crate::status::{Socket, run_dir};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    SwitchOver {
        to: Option<String>,
    },
    /// Nobody takes over by itself for so long; zero ends that.
    Pause {
        millis: u64,
    },
    /// To a standby's daemon: restore the copy of `app` beside it.
    Drill {
        app: String,
        health: Option<String>,
        patience_ms: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "news", rename_all = "kebab-case")]
pub enum News {
    /// The move begins; a checkpoint pauses the app for this long at the median.
    Expect { checkpoint_us: Option<u64> },
    /// It is so from now on.
    Done,
    /// The app goes on where it was.
    CalledOff { why: String },
    /// The app runs at `to`; nobody was answered for this long.
    Moved { to: String, pause_us: u64 },
    /// The drill is over.
    Drilled { record: Box<Record> },
}

/// Who hears what comes of an order. When it is dropped, no more is said.
#[derive(Debug)]
pub struct Listener(mpsc::UnboundedSender<News>);

impl Listener {
    pub fn say(&self, news: News) {
        // Who has hung up does not want to know.
        let _ = self.0.send(news);
    }

    pub fn is_gone(&self) -> bool {
        self.0.is_closed()
    }

    /// Waits until all that was said is on its way, for a manager that ends next.
    pub fn flush(self) {
        const PATIENCE: Duration = Duration::from_millis(500);
        const AGAIN: Duration = Duration::from_millis(1);
        let deadline = std::time::Instant::now() + PATIENCE;
        // The reader hangs up after the last news of an order.
        while !self.0.is_closed() && std::time::Instant::now() < deadline {
            std::thread::sleep(AGAIN);
        }
    }
}

/// Takes orders until the returned value is dropped. Call it holding the manager's lock.
pub fn serve(
    name: &str,
    on_order: impl Fn(Order, Listener) + Send + Sync + Clone + 'static,
    on_gone: impl Fn() + Send + Sync + Clone + 'static,
) -> anyhow::Result<Socket> {
    let path = run_dir()?.join(format!("{name}.ctl"));
    match std::fs::remove_file(&path) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => {
            return Err(why).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => (),
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot bind {}", path.display()))?;
    tokio::spawn(async move {
        const PAUSE: Duration = Duration::from_millis(100);
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(attend(stream, on_order.clone(), on_gone.clone()))),
                // Out of descriptors, most likely: it passes.
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    });
    Ok(Socket::at(path))
}

async fn attend(stream: UnixStream, on_order: impl Fn(Order, Listener), on_gone: impl Fn()) {
    const PATIENCE: Duration = Duration::from_secs(2);
    const LEN_MAX: u64 = 4 << 10;
    let (from, mut to) = stream.into_split();
    let mut from = Lines::new(from.take(LEN_MAX));
    let mut line = String::new();
    if !matches!(timeout(PATIENCE, from.read_line(&mut line)).await, Ok(Ok(len)) if len > 0) {
        return;
    }
    let (say, mut said) = mpsc::unbounded_channel();
    match serde_json::from_str(&line) {
        Ok(order) => on_order(order, Listener(say)),
        Err(why) => Listener(say).say(News::CalledOff { why: format!("the order is not understood: {why}") }),
    }
    let mut rest = Vec::new();
    loop {
        tokio::select! {
            news = said.recv() => {
                let Some(news) = news else { return };
                let mut text = serde_json::to_vec(&news).expect("news are plain data");
                text.push(b'\n');
                if to.write_all(&text).await.is_err() {
                    break;
                }
                if matches!(news, News::Done | News::CalledOff { .. } | News::Moved { .. } | News::Drilled { .. }) {
                    return;
                }
            }
            _ = from.read_to_end(&mut rest) => break,
        }
    }
    drop(said);
    on_gone();
}

/// The control socket of the manager of `app`, or of the only one of this host.
pub fn find(app: Option<&str>) -> anyhow::Result<PathBuf> {
    find_in(&run_dir()?, app)
}

fn find_in(dir: &Path, app: Option<&str>) -> anyhow::Result<PathBuf> {
    if let Some(app) = app {
        let path = dir.join(format!("primary-{app}.ctl"));
        if !path.exists() {
            bail!("no manager of {app} runs on this host; ask on the host that serves it");
        }
        return Ok(path);
    }
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let of_a_primary = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("primary-") && name.ends_with(".ctl")
    };
    paths.retain(of_a_primary);
    match paths.len() {
        0 => bail!("no manager that serves an app runs on this host"),
        1 => Ok(paths.remove(0)),
        _ => bail!("several apps are served here; say which with --app NAME"),
    }
}

/// Gives an order, and calls `on_news` with all that comes of it.
pub fn ask(path: &Path, order: &Order, mut on_news: impl FnMut(News)) -> anyhow::Result<()> {
    let mut stream =
        Caller::connect(path).with_context(|| format!("no manager answers at {}", path.display()))?;
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    stream.write_all(&line).context("cannot give the order")?;
    for line in BufReader::new(stream).lines() {
        on_news(serde_json::from_str(&line.context("the manager is gone")?)?);
    }
    Ok(())
}
