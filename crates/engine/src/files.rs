//! The state directories of an app that is captured.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use checkpoint::descriptors::Saved;
use checkpoint::memory::Tracker;
use files::{FilesError, Located, Mapped, Mirror, Opened, Source, Taken};
use image::CheckpointId;
use image::descriptor::{FileKind, OpenFile};
use image::frame::FrameWriter;
use sys::mounts;

/// Follows them from one full sync to the next.
#[derive(Debug)]
pub(crate) struct StateFiles {
    directories: Vec<PathBuf>,
    /// Elsewhere the app may write without a word: both hosts see the same files there.
    shared: Vec<PathBuf>,
    source: Option<Source>,
    uncovered: Vec<String>,
    news: bool,
}

impl StateFiles {
    pub fn new(directories: Vec<PathBuf>, shared: Vec<PathBuf>) -> Self {
        Self { directories, shared, source: None, uncovered: Vec::new(), news: false }
    }

    pub fn start_over(&mut self) {
        self.source = None;
    }

    /// Looks at the trees for a full sync. True if there is content to be read on with.
    pub fn begin(&mut self, pid: i32) -> Result<bool, FilesError> {
        self.source = None;
        if self.directories.is_empty() {
            return Ok(false);
        }
        let mut seed = [0; 8];
        // Without one all digests have the same, which only an attacker could make use of.
        let _ = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        self.source = Some(Source::open(&root, &self.directories, u64::from_le_bytes(seed))?);
        Ok(true)
    }

    /// The next piece of what was there at the beginning. False when that was the last.
    pub fn read_on(
        &mut self,
        frames: &mut FrameWriter,
        out: &mut dyn FnMut(Bytes),
    ) -> Result<bool, FilesError> {
        const STEP_BYTES: u64 = 8 << 20;
        let Some(source) = &mut self.source else { return Ok(false) };
        let more = source.read_on(STEP_BYTES)?;
        let found = source.take_found();
        files::frames(found.changes, &found.content, frames, out);
        Ok(more)
    }

    /// While the app runs.
    pub fn look_ahead(&mut self) -> Result<(), FilesError> {
        self.source.as_mut().map_or(Ok(()), Source::look_ahead)
    }

    /// While it stands still.
    pub fn take(&mut self, tracker: &Tracker, saved: &Saved) -> Result<Taken, FilesError> {
        let opened: Vec<Opened<'_>> = saved.files.iter().filter_map(open_for_writing).collect();
        self.note_uncovered(&opened);
        let Some(source) = &mut self.source else { return Ok(Taken::default()) };
        let mapped = tracker.mapped_files().into_iter().map(|(key, path)| Mapped { key, path });
        source.take(&mapped.collect::<Vec<_>>(), &opened)
    }

    /// Files that the app writes to, and that nobody replicates.
    fn note_uncovered(&mut self, opened: &[Opened<'_>]) {
        let covered: Vec<&Path> = self.directories.iter().chain(&self.shared).map(PathBuf::as_path).collect();
        let uncovered = outside(opened, &covered);
        if uncovered != self.uncovered {
            (self.uncovered, self.news) = (uncovered, true);
        }
    }

    /// Their names, if they are others than before.
    pub fn uncovered(&mut self) -> Option<Vec<String>> {
        std::mem::take(&mut self.news).then(|| self.uncovered.clone())
    }

    pub fn enter(&mut self, id: CheckpointId, taken: Taken) {
        if let Some(source) = &mut self.source {
            source.enter(id, taken);
        }
    }

    pub fn committed(&mut self, id: CheckpointId) {
        self.source.iter_mut().for_each(|source| source.committed(id));
    }

    pub fn fail(&mut self) {
        self.source.iter_mut().for_each(Source::fail);
    }
}

/// Puts the trees of a mirror in the place of their directories in a cell that has mounts of its own and is sealed, and
/// nowhere else.
pub(crate) fn show_in_cell(mirror: &Mirror, pid: i32) -> io::Result<()> {
    for Located { path, tree } in mirror.located() {
        let taken = mounts::take(&tree)?;
        mounts::within(pid, move || {
            fs::create_dir_all(&path)?;
            mounts::put(taken.as_fd(), &path)
        })?;
    }
    Ok(())
}

/// Files that are open for writing, and in none of these directories.
pub fn written_outside(files: &[OpenFile], directories: &[&Path]) -> Vec<String> {
    outside(&files.iter().filter_map(open_for_writing).collect::<Vec<_>>(), directories)
}

fn outside(opened: &[Opened<'_>], directories: &[&Path]) -> Vec<String> {
    let is_outside = |opened: &&Opened<'_>| {
        let path = Path::new(OsStr::from_bytes(opened.path));
        !directories.iter().any(|directory| path.starts_with(directory))
    };
    let outside = opened.iter().filter(is_outside);
    let paths: BTreeSet<String> =
        outside.map(|opened| String::from_utf8_lossy(opened.path).into_owned()).collect();
    paths.into_iter().collect()
}

fn open_for_writing(file: &OpenFile) -> Option<Opened<'_>> {
    const NOT_OPENED: u32 = libc::O_PATH as u32;
    let FileKind::Path { path, file_type: libc::S_IFREG, reads: _ } = &file.kind else { return None };
    let access = file.flags & libc::O_ACCMODE as u32;
    let writes = access != libc::O_RDONLY as u32 && file.flags & NOT_OPENED == 0;
    writes.then(|| Opened {
        path,
        appends: file.flags & libc::O_APPEND as u32 != 0,
        reads: access == libc::O_RDWR as u32,
    })
}
