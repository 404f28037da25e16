//! What came, by its content.
//!
//! ```text
//! DIR/files/DIGEST-MODE-OWNER-GROUP    the bytes, by their SHA-256
//! DIR/known/DIGEST                     which bytes a file has: by the SHA-256 of what it was asked for as
//! DIR/arriving-NUMBER                  what is not whole
//! ```
//!
//! DIR is its owner's alone: the modes of the files are those that the app has to see. A name on the host is never made
//! of what a peer said but of digests. What is found is read through once, and is what its name says or is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use image::layout::FileIdentity;
use image::shipped::{FILE_BYTES_MAX, LINKS_MAX};
use image::{ContentDigest, ShippedFile};
use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};

use super::stamp::{Stamp, content};
use super::temporary::Temporary;
use super::{is_name, is_straight};

/// Beyond it the files go that were of use the longest time ago.
const CACHE_BYTES_MAX: u64 = 16 << 30;
const RECORD_BYTES_MAX: u64 = 64 << 10;
const ARRIVING: &str = "arriving-";

#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    #[error("what came of {path} is not what its sender says: it is damaged, or its sender is")]
    Digest { path: String },
    #[error("the content of {path} makes no sense: {why}")]
    Senseless { path: String, why: &'static str },
    #[error("content of a file came that nobody began")]
    Place,
    #[error("this manager keeps no files of others")]
    NoCache,
    #[error("cannot {what} below {}", directory.display())]
    Host { what: &'static str, directory: PathBuf, source: io::Error },
}

/// Files that were shipped here.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    temporary: Option<Temporary>,
    arriving: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Read through, and right.
    verified: BTreeMap<String, Stamp>,
    /// Files of the host's, which were read through.
    read: BTreeMap<Stamp, ContentDigest>,
    /// What an app's files have to be, where that was said.
    expected: BTreeMap<(String, FileIdentity), ContentDigest>,
}

/// What of it is one app's. What another app's primary has shipped is nothing that this one's is believed to mean.
#[derive(Debug, Clone)]
pub struct Shelf {
    cache: Arc<Cache>,
    app: String,
}

/// One of them.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its bytes on this host.
    pub content: PathBuf,
    pub file: ShippedFile,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    file: ShippedFile,
    digest: ContentDigest,
}

impl Record {
    fn name(&self) -> String {
        let ShippedFile { mode, owner, group, .. } = &self.file;
        format!("{}-{mode:o}-{owner}-{group}", self.digest)
    }
}

impl Cache {
    /// Opens it, or makes it. Nobody else may have it open.
    pub fn open(directory: &Path) -> Result<Arc<Self>, ShipError> {
        let cache = Self::make(directory.to_owned(), None)?;
        cache.remove_left();
        Ok(cache)
    }

    /// What a killed one was taking in.
    fn remove_left(&self) {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().as_bytes().starts_with(ARRIVING.as_bytes())) {
            // What stays takes room, and is tried again in the next life.
            let _ = fs::remove_file(entry.path());
        }
    }

    /// One that goes with this value.
    pub fn temporary() -> Result<Arc<Self>, ShipError> {
        let below = std::env::temp_dir();
        Temporary::remove_left(&below);
        let made = Temporary::make(&below);
        let failed = |source| ShipError::Host { what: "make a directory", directory: below.clone(), source };
        let (directory, temporary) = made.map_err(failed)?;
        Self::make(directory, Some(temporary))
    }

    fn make(directory: PathBuf, temporary: Option<Temporary>) -> Result<Arc<Self>, ShipError> {
        for path in [directory.clone(), directory.join("files"), directory.join("known")] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            let made = made.and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o700)));
            made.map_err(|source| ShipError::Host { what: "make a directory", directory: path, source })?;
        }
        Ok(Arc::new(Self { directory, temporary, arriving: AtomicU64::new(0), state: Mutex::default() }))
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> ShipError {
        let directory = self.directory.clone();
        move |source| ShipError::Host { what, directory, source }
    }

    /// For this app.
    pub fn of(self: &Arc<Self>, app: &str) -> Shelf {
        Shelf { cache: Arc::clone(self), app: app.to_owned() }
    }

    fn record(&self, app: &str, identity: &FileIdentity) -> PathBuf {
        let asked = image::frame::encode(&(app, identity));
        self.directory.join("known").join(content(&digest(&SHA256, &asked)).to_string())
    }

    fn find(&self, app: &str, identity: &FileIdentity) -> Option<Kept> {
        let record = File::open(self.record(app, identity)).ok()?;
        let mut bytes = Vec::new();
        record.take(RECORD_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let record: Record = image::frame::decode(&bytes, "record of a file").ok()?;
        let name = record.name();
        let path = self.directory.join("files").join(&name);
        let expected = self.expected(app, identity);
        let other = expected.is_some_and(|expected| expected != record.digest);
        if record.file.identity != *identity || other || !self.is_right(&name, &path, record.digest) {
            return None;
        }
        Some(Kept { content: path, file: record.file })
    }

    fn is_right(&self, name: &str, path: &Path, wanted: ContentDigest) -> bool {
        let Ok(mut file) = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path) else {
            return false;
        };
        let Ok(stamp) = Stamp::of(&file) else { return false };
        let mut state = self.state();
        if state.verified.get(name) == Some(&stamp) {
            return true;
        }
        let right = digest_of(&mut file).is_ok_and(|found| found == wanted);
        if right {
            state.verified.insert(name.to_owned(), stamp);
        } else {
            tracing::warn!(file = %path.display(), "a file that was shipped here is damaged, and asked for again");
            // What can't be removed is found to be damaged again.
            let _ = fs::remove_file(path);
        }
        right
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expected(&self, app: &str, identity: &FileIdentity) -> Option<ContentDigest> {
        self.state().expected.get(&(app.to_owned(), identity.clone())).copied()
    }

    /// Of a file of the host's, which is read through once.
    fn digest_of(&self, file: &mut File) -> io::Result<ContentDigest> {
        let stamp = Stamp::of(file)?;
        if let Some(known) = self.state().read.get(&stamp) {
            return Ok(*known);
        }
        let digest = digest_of(file)?;
        self.state().read.insert(stamp, digest);
        Ok(digest)
    }

    /// Takes a file in.
    fn begin(self: &Arc<Self>, app: &str, file: ShippedFile) -> Result<Arriving, ShipError> {
        let path = String::from_utf8_lossy(&file.identity.path).into_owned();
        let senseless = |why| Err(ShipError::Senseless { path: path.clone(), why });
        if !is_straight(Path::new(std::ffi::OsStr::from_bytes(&file.identity.path))) {
            return senseless("its path is none");
        }
        if file.size_bytes > FILE_BYTES_MAX {
            return senseless("it is longer than anything that is shipped");
        }
        if file.mode & !0o777 != 0 {
            return senseless("it has more rights than are carried");
        }
        if file.links.len() > LINKS_MAX || !file.links.iter().all(|link| is_name(link)) {
            return senseless("the links to it are none");
        }
        let number = self.arriving.fetch_add(1, Ordering::Relaxed);
        let place = self.directory.join(format!("{ARRIVING}{number}"));
        let made = File::options().write(true).create(true).truncate(true).mode(0o600).open(&place);
        let bytes = made.map_err(self.failed("make a file"))?;
        Ok(Arriving { shelf: self.of(app), file, place, bytes, digest: Context::new(&SHA256), left: None })
    }

    fn keep(&self, app: &str, record: &Record, place: &Path) -> Result<(), ShipError> {
        self.make_room(record.file.size_bytes);
        let name = record.name();
        fs::rename(place, self.directory.join("files").join(name)).map_err(self.failed("name a file"))?;
        let known = self.record(app, &record.file.identity);
        let half = place.with_extension("known");
        let written = fs::write(&half, image::frame::encode(record)).and_then(|()| fs::rename(&half, known));
        written.map_err(self.failed("write down a file"))
    }

    /// Removes what nobody in this process has used, the oldest first.
    fn make_room(&self, bytes: u64) {
        let state = self.state();
        let used: BTreeSet<&str> = state.verified.keys().map(String::as_str).collect();
        let entries = fs::read_dir(self.directory.join("files")).into_iter().flatten().flatten();
        let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let metadata = entry.metadata().ok()?;
                let name = entry.file_name();
                let used = name.to_str().is_some_and(|name| used.contains(name));
                let at = if used { None } else { metadata.modified().ok() };
                Some((at?, metadata.len(), entry.path()))
            })
            .collect();
        files.sort();
        let mut total: u64 = bytes + files.iter().map(|(_, len, _)| len).sum::<u64>();
        for (_, len, path) in files {
            if total <= CACHE_BYTES_MAX {
                break;
            }
            // What stays is tried again with the next file.
            let _ = fs::remove_file(path);
            total -= len;
        }
    }
}

impl Shelf {
    /// What came when this was asked for, if all of it is still what it was.
    pub fn find(&self, identity: &FileIdentity) -> Option<Kept> {
        self.cache.find(&self.app, identity)
    }

    /// Takes a file in.
    pub fn begin(&self, file: ShippedFile) -> Result<Arriving, ShipError> {
        self.cache.begin(&self.app, file)
    }

    /// The app's file has this content, whatever of the same size is here.
    pub fn expect(&self, identity: FileIdentity, digest: ContentDigest) {
        self.cache.state().expected.insert((self.app.clone(), identity), digest);
    }

    /// Whether a file of the host's may be the app's.
    pub(crate) fn fits(&self, identity: &FileIdentity, file: &mut File) -> bool {
        let expected = self.cache.expected(&self.app, identity);
        expected.is_none_or(|expected| self.cache.digest_of(file).is_ok_and(|found| found == expected))
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        if self.temporary.is_some() {
            // A cell goes on with what it has mounted.
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// A file that is not whole yet. Dropped, it leaves nothing.
pub struct Arriving {
    shelf: Shelf,
    file: ShippedFile,
    place: PathBuf,
    bytes: File,
    digest: Context,
    left: Option<u64>,
}

impl std::fmt::Debug for Arriving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arriving({:?})", self.file)
    }
}

impl Arriving {
    fn path(&self) -> String {
        String::from_utf8_lossy(&self.file.identity.path).into_owned()
    }

    pub fn take(&mut self, bytes: &[u8]) -> Result<(), ShipError> {
        let left = self.left.unwrap_or(self.file.size_bytes).checked_sub(bytes.len() as u64);
        let why = "it is longer than was said";
        self.left = Some(left.ok_or_else(|| ShipError::Senseless { path: self.path(), why })?);
        self.digest.update(bytes);
        self.bytes.write_all(bytes).map_err(self.shelf.cache.failed("write a file"))
    }

    /// All of it came, if this is its digest.
    pub fn finish(self, digest: ContentDigest) -> Result<(), ShipError> {
        if self.left.unwrap_or(self.file.size_bytes) != 0 {
            return Err(ShipError::Senseless { path: self.path(), why: "it is shorter than was said" });
        }
        if content(&self.digest.clone().finish()) != digest {
            return Err(ShipError::Digest { path: self.path() });
        }
        let (owner, group) = (Some(self.file.owner), Some(self.file.group));
        let given = fchown(&self.bytes, owner, group)
            .and_then(|()| self.bytes.set_permissions(Permissions::from_mode(self.file.mode)))
            .and_then(|()| self.bytes.sync_data());
        let Shelf { cache, app } = &self.shelf;
        given.map_err(cache.failed("give a file its rights"))?;
        cache.keep(app, &Record { file: self.file.clone(), digest }, &self.place)?;
        self.shelf.expect(self.file.identity.clone(), digest);
        Ok(())
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        // A whole one has another name by now.
        let _ = fs::remove_file(&self.place);
    }
}

fn digest_of(file: &mut File) -> io::Result<ContentDigest> {
    const STEP_BYTES: usize = 1 << 20;
    let (mut context, mut buffer) = (Context::new(&SHA256), vec![0; STEP_BYTES]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(content(&context.finish())),
            len => context.update(&buffer[..len]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use serde_bytes::ByteBuf;

    use super::*;

    fn file(path: &[u8], content: &[u8]) -> ShippedFile {
        let identity = FileIdentity { path: path.to_vec(), size: content.len() as u64, build_id: None };
        let size_bytes = content.len() as u64;
        ShippedFile { identity, size_bytes, mode: 0o755, owner: 0, group: 0, links: Vec::new() }
    }

    fn ship(cache: &Arc<Cache>, file: &ShippedFile, bytes: &[u8], said: &[u8]) -> Result<(), ShipError> {
        let mut arriving = cache.of("kv").begin(file.clone())?;
        bytes.chunks(3).try_for_each(|piece| arriving.take(piece))?;
        arriving.finish(content(&digest(&SHA256, said)))
    }

    fn left(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn what_came_is_found_again_by_what_was_asked_for() {
        let place = tempfile::tempdir().unwrap();
        let kv = file(b"/opt/kv", b"a program");
        ship(&Cache::open(place.path()).unwrap(), &kv, b"a program", b"a program").unwrap();
        let cache = Cache::open(place.path()).unwrap();
        let kept = cache.of("kv").find(&kv.identity).unwrap();
        assert_eq!((fs::read(&kept.content).unwrap(), kept.file), (b"a program".to_vec(), kv.clone()));
        assert!(cache.of("kv").find(&FileIdentity { size: 1, ..kv.identity.clone() }).is_none());
        let other = cache.of("other").find(&kv.identity);
        assert!(other.is_none(), "what one app's primary says is nothing to another's");
        assert_eq!(fs::metadata(place.path()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(left(place.path()), 2);
    }

    #[test]
    fn a_digest_that_is_not_the_contents_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let cache = Cache::open(place.path()).unwrap();
        let kv = file(b"/opt/kv", b"a program");
        let why = ship(&cache, &kv, b"a program", b"another").unwrap_err();
        assert!(matches!(why, ShipError::Digest { .. }), "{why}");
        let why = ship(&cache, &kv, b"a prog", b"a prog").unwrap_err();
        assert!(matches!(why, ShipError::Senseless { .. }), "{why}");
        let why = ship(&cache, &kv, b"a program and more", b"a program and more").unwrap_err();
        assert!(matches!(why, ShipError::Senseless { .. }), "{why}");
        assert!(cache.of("kv").find(&kv.identity).is_none());
        assert_eq!((left(place.path()), left(&place.path().join("files"))), (2, 0));
    }

    #[test]
    fn what_was_damaged_where_it_lay_is_not_used() {
        let place = tempfile::tempdir().unwrap();
        let kv = file(b"/opt/kv", b"a program");
        ship(&Cache::open(place.path()).unwrap(), &kv, b"a program", b"a program").unwrap();
        let cache = Cache::open(place.path()).unwrap();
        let content = cache.of("kv").find(&kv.identity).unwrap().content;
        drop(cache);
        fs::write(&content, b"a pr0gram").unwrap();
        assert!(Cache::open(place.path()).unwrap().of("kv").find(&kv.identity).is_none());
        assert!(!content.exists());
    }

    #[test]
    fn what_a_killed_one_was_taking_in_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let kv = file(b"/opt/kv", b"a program");
        let cache = Cache::open(place.path()).unwrap();
        ship(&cache, &kv, b"a program", b"a program").unwrap();
        let mut arriving = cache.of("kv").begin(file(b"/opt/other", b"a program")).unwrap();
        arriving.take(b"a p").unwrap();
        // As a killed one does: nothing is dropped.
        std::mem::forget(arriving);
        assert_eq!(left(place.path()), 3);
        drop(cache);
        let again = Cache::open(place.path()).unwrap();
        assert_eq!(left(place.path()), 2);
        assert!(again.of("kv").find(&kv.identity).is_some());
    }

    #[test]
    fn names_rights_and_sizes_that_make_no_sense_are_refused() {
        let cache = Cache::temporary().unwrap();
        let good = file(b"/opt/kv", b"x");
        let bad = [
            file(b"/opt/../etc/passwd", b"x"),
            file(b"opt/kv", b"x"),
            ShippedFile { mode: 0o4755, ..good.clone() },
            ShippedFile { size_bytes: FILE_BYTES_MAX + 1, ..good.clone() },
            ShippedFile { links: vec![ByteBuf::from(b"../kv".to_vec())], ..good.clone() },
            ShippedFile { links: vec![ByteBuf::from(b"kv".to_vec()); LINKS_MAX + 1], ..good },
        ];
        for file in bad {
            assert!(
                matches!(cache.of("kv").begin(file.clone()), Err(ShipError::Senseless { .. })),
                "{file:?}"
            );
        }
    }

    #[test]
    fn a_file_of_the_same_size_is_another_where_the_content_was_said() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("here");
        fs::write(&path, b"a program").unwrap();
        let shelf = Cache::temporary().unwrap().of("kv");
        let identity = file(b"/opt/kv", b"a program").identity;
        let fits = |shelf: &Shelf| shelf.fits(&identity, &mut File::open(&path).unwrap());
        assert!(fits(&shelf), "nothing was said");
        shelf.expect(identity.clone(), content(&digest(&SHA256, b"a program")));
        assert!(fits(&shelf));
        shelf.expect(identity.clone(), content(&digest(&SHA256, b"a pr0gram")));
        assert!(!fits(&shelf));
    }

    #[test]
    fn a_temporary_one_goes_with_its_value() {
        let cache = Cache::temporary().unwrap();
        let directory = cache.directory.clone();
        assert!(directory.exists());
        drop(cache);
        assert!(!directory.exists());
    }
}
