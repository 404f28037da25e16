//! A checkpoint in a directory: one file with the frames of one full epoch, as they are on the wire.
//!
//! ```text
//! DIR/checkpoint-TERM-EPOCH.incomplete   while it is written
//! DIR/checkpoint-TERM-EPOCH.csf          once all of it is on the disk
//! ```
//!
//! A failed write leaves neither, nor the directory if it was made for it. A file is verified from its first
//! byte to its last before anything is done with it.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use image::frame::FrameOrder;
use image::{CheckpointId, Frame, FrameError, Header, Sync};

const WHOLE: &str = "csf";
const INCOMPLETE: &str = "incomplete";
const BUFFER_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum OneShotError {
    #[error("{} holds no checkpoint; name a directory that `checksync checkpoint` made", dir.display())]
    Nothing { dir: PathBuf },
    #[error("{} was never finished: the disk was full, or checksync was killed; take the checkpoint again", path.display())]
    Unfinished { path: PathBuf },
    #[error("{} is there already and is not overwritten; remove it, or name another directory", path.display())]
    Exists { path: PathBuf },
    #[error("{} cannot be used: frame {frame}, at byte {at}: {why}; take the checkpoint again", path.display())]
    Damaged { path: PathBuf, frame: u64, at: u64, why: FrameError },
    #[error("{} is cut off after {frames} frames, at byte {at}; copy it again, or take the checkpoint again", path.display())]
    CutOff { path: PathBuf, frames: u64, at: u64 },
    #[error("{} builds on checkpoint {parent}, which is not in it; only full checkpoints can be restored", path.display())]
    NotFull { path: PathBuf, parent: CheckpointId },
    #[error("cannot {what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OneShotError {
    let path = path.to_owned();
    move |source| OneShotError::File { what, path, source }
}

/// A checkpoint that is being written. Dropped before [`finish`](Self::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    made_dir: bool,
    path: PathBuf,
    /// `None` once it is finished.
    file: Option<BufWriter<File>>,
    bytes: u64,
}

impl Writer {
    /// Refuses where a checkpoint is already.
    pub fn create(dir: &Path, id: CheckpointId) -> Result<Self, OneShotError> {
        let made_dir = !dir.exists();
        fs::create_dir_all(dir).map_err(failed("make the directory", dir))?;
        if let Some(path) = files(dir, WHOLE)?.pop() {
            return Err(OneShotError::Exists { path });
        }
        let path = dir.join(format!("checkpoint-{}-{}.{INCOMPLETE}", id.term, id.epoch));
        // One that is left over is of no use to anybody.
        let file = File::create(&path).map_err(failed("make", &path))?;
        let file = Some(BufWriter::with_capacity(BUFFER_BYTES, file));
        Ok(Self { dir: dir.to_owned(), made_dir, path, file, bytes: 0 })
    }

    pub fn write(&mut self, frame: &Bytes) -> Result<(), OneShotError> {
        self.bytes += frame.len() as u64;
        let file = self.file.as_mut().expect("frames come before the end");
        file.write_all(frame).map_err(failed("write", &self.path))
    }

    /// Puts the file in its place, once its bytes are on the disk. Returns where it is and its length.
    pub fn finish(mut self) -> Result<(PathBuf, u64), OneShotError> {
        let whole = self.path.with_extension(WHOLE);
        let file = self.file.as_mut().expect("a checkpoint is finished once");
        file.flush().map_err(failed("write", &self.path))?;
        file.get_ref().sync_all().map_err(failed("write", &self.path))?;
        fs::rename(&self.path, &whole).map_err(failed("rename", &self.path))?;
        self.file = None;
        let dir = File::open(&self.dir).and_then(|dir| dir.sync_all());
        dir.map_err(failed("write the directory", &self.dir))?;
        Ok((whole, self.bytes))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.file.is_none() {
            return;
        }
        // What can't be removed is called incomplete, and is refused by its name.
        let _ = fs::remove_file(&self.path);
        if self.made_dir {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

/// The newest whole checkpoint of a directory.
pub fn find(dir: &Path) -> Result<PathBuf, OneShotError> {
    if let Some(path) = files(dir, WHOLE)?.pop() {
        return Ok(path);
    }
    match files(dir, INCOMPLETE)?.pop() {
        Some(path) => Err(OneShotError::Unfinished { path }),
        None => Err(OneShotError::Nothing { dir: dir.to_owned() }),
    }
}

/// The checkpoints of a directory that have this ending, the newest last.
fn files(dir: &Path, ending: &str) -> Result<Vec<PathBuf>, OneShotError> {
    let entries = fs::read_dir(dir).map_err(failed("open the directory", dir))?;
    let mut found: Vec<_> =
        entries.flatten().filter_map(|entry| Some((id_in(&entry.path(), ending)?, entry.path()))).collect();
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn id_in(path: &Path, ending: &str) -> Option<CheckpointId> {
    let name = path.file_name()?.to_str()?.strip_prefix("checkpoint-")?;
    let (id, found) = name.rsplit_once('.')?;
    let (term, epoch) = id.split_once('-')?;
    (found == ending).then_some(CheckpointId::new(term.parse().ok()?, epoch.parse().ok()?))
}

/// Reads a checkpoint from its first frame to its last, each verified, and that the end is the end.
#[derive(Debug)]
pub struct Reader<R> {
    path: PathBuf,
    from: R,
    order: FrameOrder,
    frames: u64,
    at: u64,
}

impl Reader<BufReader<File>> {
    pub fn open(path: &Path) -> Result<Self, OneShotError> {
        let file = File::open(path).map_err(failed("open", path))?;
        Ok(Self::new(path, BufReader::with_capacity(BUFFER_BYTES, file)))
    }
}

impl<R: Read> Reader<R> {
    /// `path` is for messages.
    fn new(path: &Path, from: R) -> Self {
        Self { path: path.to_owned(), from, order: FrameOrder::default(), frames: 0, at: 0 }
    }

    /// Frames and bytes that were read.
    pub fn progress(&self) -> (u64, u64) {
        (self.frames, self.at)
    }

    /// The first frame; it says what follows.
    pub fn header(&mut self) -> Result<(Header, Frame), OneShotError> {
        let frame = self.next_frame()?.ok_or_else(|| self.cut_off())?;
        let header: Header = frame.decode("header").map_err(|why| self.damaged(why))?;
        match header.sync {
            Sync::Full => Ok((header, frame)),
            Sync::Since(parent) => Err(OneShotError::NotFull { path: self.path.clone(), parent }),
        }
    }

    /// The next frame; `None` after the end frame.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, OneShotError> {
        match Frame::read(&mut self.from) {
            Ok(Some(frame)) => {
                self.order.accept(&frame).map_err(|why| self.damaged(why))?;
                self.frames += 1;
                self.at += (image::frame::HEADER_BYTES + frame.payload.len()) as u64;
                Ok(Some(frame))
            }
            Ok(None) if self.order.ended() => Ok(None),
            Ok(None) => Err(self.cut_off()),
            Err(FrameError::CutOff { .. }) => Err(self.cut_off()),
            Err(why) => Err(self.damaged(why)),
        }
    }

    /// Says that what a frame carries makes no sense.
    pub fn damaged(&self, why: FrameError) -> OneShotError {
        OneShotError::Damaged { path: self.path.clone(), frame: self.frames, at: self.at, why }
    }

    fn cut_off(&self) -> OneShotError {
        OneShotError::CutOff { path: self.path.clone(), frames: self.frames, at: self.at }
    }
}

/// Reads the whole file, and returns its header if every byte is as it was written.
pub fn verify(path: &Path) -> Result<Header, OneShotError> {
    read_through(Reader::open(path)?)
}

fn read_through(mut reader: Reader<impl Read>) -> Result<Header, OneShotError> {
    let (header, _) = reader.header()?;
    while reader.next_frame()?.is_some() {}
    Ok(header)
}

/// The engine's settings, where no epoch ever follows the first.
pub fn engine_settings(app: &str) -> engine::Settings {
    const FREEZE_PATIENCE: Duration = Duration::from_secs(10);
    engine::Settings {
        app: app.to_owned(),
        shadow_bytes: 0,
        epoch_bytes_max: u64::MAX,
        freeze_patience: FREEZE_PATIENCE,
        connections: engine::Connections::Reset,
        barrier: None,
        manager: None,
        state_dirs: Vec::new(),
        shared_dirs: Vec::new(),
        shipped: None,
        in_background: false,
    }
}

/// The bytes of a frame that was read, as they are in the file.
pub fn encoded(frame: &Frame) -> Bytes {
    Frame::encode(frame.kind, frame.sequence, &frame.payload)
}

#[cfg(test)]
mod tests {
    use image::FrameKind;
    use image::frame::FrameWriter;

    use super::*;

    fn frames(sync: Sync) -> Vec<Bytes> {
        let mut writer = FrameWriter::default();
        let id = CheckpointId::new(1, 1);
        let header = Header { app: "x".to_owned(), id, sync, frozen_at_ns: 0 };
        let header = writer.cbor(FrameKind::Header, &header);
        vec![header, writer.frame(FrameKind::Pages, &[7; 100]), writer.end()]
    }

    fn written(dir: &Path, sync: Sync) -> PathBuf {
        let mut writer = Writer::create(dir, CheckpointId::new(1, 1)).unwrap();
        frames(sync).iter().for_each(|frame| writer.write(frame).unwrap());
        writer.finish().unwrap().0
    }

    #[test]
    fn what_is_written_is_read_and_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), Sync::Full);
        assert_eq!(find(dir.path()).unwrap(), path);
        assert_eq!(verify(&path).unwrap().id, CheckpointId::new(1, 1));
        let mut reader = Reader::open(&path).unwrap();
        let (_, first) = reader.header().unwrap();
        assert_eq!(encoded(&first), frames(Sync::Full)[0]);
    }

    #[test]
    fn second_checkpoint_never_replaces_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), Sync::Full);
        let again = Writer::create(dir.path(), CheckpointId::new(1, 1));
        assert!(matches!(again, Err(OneShotError::Exists { path: there }) if there == path));
    }

    #[test]
    fn unfinished_checkpoint_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("new");
        let mut writer = Writer::create(&new, CheckpointId::new(1, 1)).unwrap();
        writer.write(&frames(Sync::Full)[0]).unwrap();
        drop(writer);
        assert!(!new.exists());
    }

    #[test]
    fn left_over_half_is_named_and_never_used() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(find(dir.path()), Err(OneShotError::Nothing { .. })));
        fs::write(dir.path().join("checkpoint-1-1.incomplete"), b"CSF1").unwrap();
        assert!(matches!(find(dir.path()), Err(OneShotError::Unfinished { .. })));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_an_error() {
        let read = |bytes: &[u8]| read_through(Reader::new(Path::new("x"), bytes));
        let good = frames(Sync::Full).concat();
        assert!(read(&good).is_ok());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bad).is_err(), "bit {bit} flipped unseen");
        }
        for len in 0..good.len() {
            assert!(matches!(read(&good[..len]), Err(OneShotError::CutOff { .. })), "cut at {len} unseen");
        }
        assert!(read(&[good.as_slice(), b"CSF1"].concat()).is_err(), "something follows the end");
    }

    #[test]
    fn checkpoint_that_needs_its_parent_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), Sync::Since(CheckpointId::new(1, 0)));
        assert!(matches!(verify(&path), Err(OneShotError::NotFull { .. })));
    }
}
