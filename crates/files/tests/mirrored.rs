//! A tree, its source and its mirror: after every epoch the mirror is the tree, whatever happened to it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use files::{Mapped, Mirror, Opened, Source, Taken, frames};
use image::batch::BatchWriter;
use image::frame::{Frame, FrameKind, FrameWriter};
use image::layout::ObjectKey;
use image::{CheckpointId, FileChanges, FileId, PAGE_BYTES, PageBatch, PageTarget};
use tempfile::TempDir;

const SEED: u64 = 7;
/// Content at a time.
const STEP: usize = 128 << 10;

/// A state directory on two hosts: the paths differ, so that both can be looked at.
struct World {
    primary: TempDir,
    standby: TempDir,
    source: Source,
    mirror: Mirror,
    epoch: u64,
}

impl World {
    fn new(prepare: impl FnOnce(&Path)) -> Self {
        Self::with_life(prepare, |_| ())
    }

    /// `live` happens before each piece of the full sync is read.
    fn with_life(prepare: impl FnOnce(&Path), mut live: impl FnMut(&Path)) -> Self {
        let (primary, standby) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state = primary.path().join("state");
        fs::create_dir(&state).unwrap();
        prepare(&state);
        let mut source = Source::open(primary.path(), &[PathBuf::from("/state")], SEED).unwrap();
        let mut mirror = Mirror::default();
        let mut more = true;
        while more {
            live(&state);
            more = source.read_on(300_000).unwrap();
            full(&mut mirror, source.take_found(), standby.path());
        }
        full(&mut mirror, source.take(&[], &[]).unwrap(), standby.path());
        Self { primary, standby, source, mirror, epoch: 0 }
    }

    fn state(&self) -> PathBuf {
        self.primary.path().join("state")
    }

    fn epoch(&mut self) {
        self.epoch_of(&[], &[]);
    }

    fn epoch_of(&mut self, mapped: &[Mapped], opened: &[Opened<'_>]) {
        let taken = self.source.take(mapped, opened).unwrap();
        self.epoch += 1;
        let id = CheckpointId::new(1, self.epoch);
        self.receive(&taken);
        self.source.enter(id, taken);
        self.source.committed(id);
    }

    fn receive(&mut self, taken: &Taken) {
        let (changes, content) = decoded(taken, self.standby.path());
        self.mirror.check(&changes, &content).unwrap();
        self.mirror.apply(&changes, &content).unwrap();
    }

    fn assert_mirrored(&self, what: &str) {
        let tree = &self.mirror.located()[0].tree;
        assert_eq!(look(tree), look(&self.state()), "{what}");
    }

    /// What the mirror says of itself makes another one.
    fn assert_told(&self, what: &str) {
        let place = tempfile::tempdir().unwrap();
        let mut second = Mirror::apart(place.path().to_owned());
        let census = self.mirror.census();
        let files: Vec<FileId> = census.files.iter().map(|record| record.id).collect();
        census.parts().into_iter().for_each(|part| second.add_part(part).unwrap());
        for (id, file) in files.into_iter().filter_map(|id| Some((id, self.mirror.open(id)?))) {
            let mut content = vec![0; file.metadata().unwrap().len().next_multiple_of(PAGE_BYTES) as usize];
            let len = file.metadata().unwrap().len() as usize;
            file.read_exact_at(&mut content[..len], 0).unwrap();
            let mut batch = BatchWriter::new(PageTarget::File(id));
            for (at, pages) in (0..).step_by(STEP).zip(content.chunks(STEP)) {
                batch.whole(at, pages);
                second.take_content(PageBatch::decode(batch.finish()).unwrap()).unwrap();
            }
        }
        assert_eq!(look(&second.located()[0].tree), look(&self.state()), "{what}, told");
    }
}

fn full(mirror: &mut Mirror, taken: Taken, standby: &Path) {
    let (changes, content) = decoded(&taken, standby);
    mirror.add_part(changes).unwrap();
    mirror.write(&content).unwrap();
}

/// By way of the wire.
fn decoded(taken: &Taken, standby: &Path) -> (FileChanges, Vec<PageBatch>) {
    let (mut changes, mut content) = (FileChanges::default(), Vec::new());
    let mut take = |bytes| {
        let frame = Frame::parse(bytes).unwrap();
        match frame.kind {
            FrameKind::Files => changes.extend(frame.decode("files").unwrap()),
            FrameKind::Pages => content.push(PageBatch::decode(frame.payload).unwrap()),
            other => panic!("{other:?} among files"),
        }
    };
    frames(taken.changes.clone(), &taken.content, &mut FrameWriter::default(), &mut take);
    for directory in &mut changes.directories {
        let path = Path::new(std::ffi::OsStr::from_bytes(&directory.path)).strip_prefix("/").unwrap();
        directory.path = standby.join(path).as_os_str().as_bytes().to_vec();
    }
    (changes, content)
}

/// What there is to see of a tree: by path, what is there, its permissions and time, and who else is the same file.
fn look(tree: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut inodes: BTreeMap<u64, usize> = BTreeMap::new();
    look_into(tree, Path::new(""), &mut found, &mut inodes);
    found
}

fn look_into(
    tree: &Path,
    below: &Path,
    found: &mut BTreeMap<PathBuf, String>,
    inodes: &mut BTreeMap<u64, usize>,
) {
    let path = tree.join(below);
    let about = fs::symlink_metadata(&path).unwrap();
    let number = inodes.len();
    let same = *inodes.entry(about.ino()).or_insert(number);
    let what = if about.is_dir() {
        "directory".to_owned()
    } else if about.is_symlink() {
        format!("link to {:?}", fs::read_link(&path).unwrap())
    } else if about.is_file() {
        format!("{} bytes {:x}", about.len(), sum(&fs::read(&path).unwrap()))
    } else {
        "other".to_owned()
    };
    let time = (about.mtime(), about.mtime_nsec());
    found.insert(below.to_owned(), format!("{what} {:o} {} {time:?} {same}", about.mode(), about.uid()));
    if about.is_dir() {
        let mut names: Vec<_> =
            fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names.into_iter().for_each(|name| look_into(tree, &below.join(name), found, inodes));
    }
}

fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum: u64, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn what_is_there_at_first_is_mirrored() {
    let world = World::new(|state| {
        fs::create_dir_all(state.join("a/b/c")).unwrap();
        fs::write(state.join("a/b/large"), vec![7; 1_000_001]).unwrap();
        fs::write(state.join("empty"), b"").unwrap();
        symlink("a/b", state.join("link")).unwrap();
        fs::hard_link(state.join("empty"), state.join("a/other")).unwrap();
        let sparse = File::create(state.join("sparse")).unwrap();
        sparse.set_len(1 << 32).unwrap();
        sparse.write_all_at(b"far", 1 << 31).unwrap();
        fs::set_permissions(state, fs::Permissions::from_mode(0o750)).unwrap();
        std::os::unix::fs::chown(state.join("empty"), Some(1234), None).unwrap();
        // Looking at it in full would take for ever.
        fs::remove_file(state.join("sparse")).unwrap();
    });
    world.assert_mirrored("at first");
}

#[test]
fn a_file_that_grows_in_its_last_page_during_the_full_sync_is_whole() {
    let mut grown = false;
    let world = World::with_life(
        |state| fs::write(state.join("log"), vec![1; 5000]).unwrap(),
        |state| {
            if !std::mem::replace(&mut grown, true) {
                let log = File::options().append(true).open(state.join("log")).unwrap();
                log.write_all_at(&[2; 100], 0).unwrap();
            }
        },
    );
    world.assert_mirrored("at first");
}

/// Two looks of one full sync, with no content between them.
#[test]
fn what_was_cut_off_does_not_come_back_when_the_file_grows() {
    let mut world = World::new(|state| fs::write(state.join("a"), vec![7; 10_000]).unwrap());
    let file = File::options().write(true).open(world.state().join("a")).unwrap();
    for size in [0, 10_000] {
        file.set_len(size).unwrap();
        let taken = world.source.take(&[], &[]).unwrap();
        full(&mut world.mirror, taken, world.standby.path());
    }
    world.assert_mirrored("cut, and grown again");
}

#[test]
fn a_sparse_file_stays_sparse() {
    let mut world = World::new(|state| {
        let sparse = File::create(state.join("sparse")).unwrap();
        sparse.set_len(1 << 33).unwrap();
        sparse.write_all_at(b"far", 1 << 32).unwrap();
    });
    let file = File::options().write(true).open(world.state().join("sparse")).unwrap();
    file.write_all_at(b"near", 5 << 20).unwrap();
    file.write_all_at(&[0; 4096], 1 << 32).unwrap();
    world.epoch();
    let mirrored = world.mirror.located()[0].tree.join("sparse");
    let about = fs::metadata(&mirrored).unwrap();
    assert!(about.len() == 1 << 33 && about.blocks() < 1000, "{} blocks", about.blocks());
    let file = File::open(mirrored).unwrap();
    let mut bytes = [0; 4];
    for (at, wanted) in [(5 << 20, b"near"), (1 << 32, &[0; 4])] {
        file.read_exact_at(&mut bytes, at).unwrap();
        assert_eq!(&bytes, wanted, "at {at}");
    }
}

#[test]
fn an_idle_tree_costs_no_record() {
    let mut world = World::new(|state| fs::write(state.join("file"), b"x").unwrap());
    world.epoch();
    assert!(world.source.take(&[], &[]).unwrap().is_empty());
}

/// Numbers that look random, and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// Does something to a tree. What can't be done is left alone.
fn disturb(state: &Path, dice: &mut Dice) {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let mut place = |depth: usize| {
        let mut path = state.to_owned();
        (0..depth).for_each(|_| path.push(NAMES[dice.roll(NAMES.len())]));
        path
    };
    let (one, other) = (place(2), place(2));
    let (shallow, deep) = (place(1), place(3));
    let path = [&one, &shallow, &deep][dice.roll(3)];
    let _may_fail = match dice.roll(14) {
        0 | 1 => fs::create_dir(path),
        2 => fs::write(path, vec![dice.roll(256) as u8; dice.roll(20_000)]),
        3 | 4 => File::options()
            .append(true)
            .open(path)
            .and_then(|file| file.write_all_at(&vec![1 + dice.roll(200) as u8; 1 + dice.roll(10_000)], 0)),
        5 | 6 => File::options().write(true).open(path).and_then(|file| {
            file.write_all_at(&vec![1 + dice.roll(200) as u8; dice.roll(9000)], dice.roll(30_000) as u64)
        }),
        7 => File::options().write(true).open(path).and_then(|file| file.set_len(dice.roll(30_000) as u64)),
        8 => fs::rename(&one, &other),
        9 => fs::rename(&shallow, &deep).or_else(|_| fs::rename(&deep, &shallow)),
        10 => fs::hard_link(&one, &other),
        11 => fs::remove_file(path).or_else(|_| fs::remove_dir_all(path)),
        12 => symlink("target", path),
        _ => fs::set_permissions(path, fs::Permissions::from_mode(0o600 + dice.roll(64) as u32)),
    };
}

#[test]
fn random_trees_are_mirrored_after_every_epoch() {
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let mut world = World::new(|state| (0..30).for_each(|_| disturb(state, &mut dice)));
        world.assert_mirrored("at first");
        for epoch in 0..25 {
            let state = world.state();
            for _ in 0..dice.roll(12) {
                disturb(&state, &mut dice);
                if dice.roll(5) == 0 {
                    world.source.look_ahead().unwrap();
                }
            }
            world.epoch();
            world.assert_mirrored(&format!("seed {seed}, epoch {epoch}"));
        }
        world.assert_told(&format!("seed {seed}"));
    }
}

#[test]
fn what_lost_epochs_carried_comes_again() {
    for seed in 100..140 {
        let mut dice = Dice(seed);
        let mut world = World::new(|state| (0..30).for_each(|_| disturb(state, &mut dice)));
        for round in 0..12 {
            let state = world.state();
            for n in 0..1 + dice.roll(3) {
                (0..dice.roll(10)).for_each(|_| disturb(&state, &mut dice));
                let taken = world.source.take(&[], &[]).unwrap();
                match dice.roll(2) {
                    0 => world.source.enter(CheckpointId::new(1, 1000 * (round + 1) + n as u64), taken),
                    _ => world.source.give_back(taken),
                }
            }
            world.source.fail();
            (0..dice.roll(4)).for_each(|_| disturb(&state, &mut dice));
            world.epoch = 1000 * (round + 1) + 500;
            world.epoch();
            world.assert_mirrored(&format!("seed {seed}, round {round}"));
        }
    }
}

#[test]
fn a_file_that_is_only_appended_to_is_read_at_its_end() {
    let mut world = World::new(|state| fs::write(state.join("log"), vec![1; 8 << 20]).unwrap());
    let path = world.state().join("log");
    let log = File::options().append(true).open(&path).unwrap();
    let opened = [Opened { path: b"/state/log", appends: true, reads: false }];
    use std::io::Write;
    (&log).write_all(&[2; 5000]).unwrap();
    // Unseen by everybody: what is read in spite of it shows.
    let taken = world.source.take(&[], &opened).unwrap();
    assert!(taken.content_bytes() <= 3 * 4096, "{}", taken.content_bytes());
    world.receive(&taken);
    world.assert_mirrored("after an append");
    // Somebody who can write elsewhere has it open, too: all of it is compared.
    let other = File::options().write(true).open(&path).unwrap();
    (&log).write_all(&[3; 100]).unwrap();
    other.write_all_at(b"in the middle", 3 << 20).unwrap();
    let both = [opened[0], Opened { path: b"/state/log", appends: false, reads: false }];
    world.epoch_of(&[], &both);
    world.assert_mirrored("after a write in the middle");
}

#[test]
fn what_was_mapped_is_compared_when_it_is_so_no_more() {
    let mut world = World::new(|state| fs::write(state.join("map"), vec![1; 40_000]).unwrap());
    let path = world.state().join("map");
    let about = fs::metadata(&path).unwrap();
    let mapped =
        [Mapped { key: ObjectKey { device: about.dev(), inode: about.ino() }, path: b"/state/map".to_vec() }];
    let file = File::options().read(true).write(true).open(&path).unwrap();
    world.epoch_of(&mapped, &[]);
    silently(&path, || file.write_all_at(b"through the mapping", 20_000).unwrap(), &mut world.source);
    world.epoch_of(&mapped, &[]);
    world.epoch();
    world.assert_mirrored("after the mapping");
    // Made and gone between two freezes, while the file is open: a sign moved.
    silently(&path, || file.write_all_at(b"in between", 30_000).unwrap(), &mut world.source);
    world.epoch_of(&[], &[Opened { path: b"/state/map", appends: false, reads: true }]);
    world.assert_mirrored("after a short mapping");
}

/// As a write through a mapping is: nobody is told, but the file's time moves.
fn silently(path: &Path, write: impl FnOnce(), source: &mut Source) {
    write();
    source.forget_notices();
    assert!(path.exists());
}

#[test]
fn the_mirror_takes_its_place_and_keeps_what_was_there() {
    let mut world = World::new(|state| fs::write(state.join("new"), b"new").unwrap());
    let path = world.standby.path().join("state");
    fs::write(path.join("old"), b"old").unwrap();
    fs::create_dir(path.join("new")).unwrap();
    world.epoch();
    let replaced = std::mem::take(&mut world.mirror).replace("2-17").unwrap();
    assert_eq!(fs::read(path.join("new")).unwrap(), b"new");
    assert!(!path.join("old").exists());
    let before = replaced[0].before.clone().expect("something was there");
    assert_eq!(before, path.join(".checksync/replaced-by-2-17"));
    assert_eq!(fs::read(before.join("old")).unwrap(), b"old");
    // What is ours is not replicated.
    let source = Source::open(world.standby.path(), &[PathBuf::from("/state")], SEED).unwrap().take_found();
    assert!(source.changes.names.iter().all(|record| record.name != b".checksync"));
}

#[test]
fn a_takeover_that_died_half_way_is_finished() {
    for step in ["leaving", "arriving"] {
        let dir = tempfile::tempdir().unwrap();
        let ours = dir.path().join(".checksync");
        let tree = ours.join("copy-1-0/tree");
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("second"), b"new").unwrap();
        // One of two entries had gone each way.
        match step {
            "leaving" => {
                fs::write(tree.join("first"), b"new").unwrap();
                fs::write(dir.path().join("other"), b"old").unwrap();
            }
            _ => fs::write(dir.path().join("first"), b"new").unwrap(),
        }
        fs::create_dir(ours.join("replaced-by-3-4")).unwrap();
        fs::write(ours.join("replaced-by-3-4/first"), b"old").unwrap();
        fs::write(ours.join(step), "copy-1-0\n3-4\n").unwrap();
        files::finish_replacing(dir.path()).unwrap();
        for name in ["first", "second"] {
            assert_eq!(fs::read(dir.path().join(name)).unwrap(), b"new", "{step}: {name}");
        }
        assert!(!dir.path().join("other").exists() && !ours.join("copy-1-0").exists());
        assert_eq!(fs::read(ours.join("replaced-by-3-4/first")).unwrap(), b"old");
        files::finish_replacing(dir.path()).unwrap();
    }
}

#[test]
fn what_a_failed_look_was_told_is_found_by_the_next() {
    let mut world = World::new(|state| fs::write(state.join("file"), vec![1; 3 << 20]).unwrap());
    let device = world.state().join("a-device");
    let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::RUSR);
    let number = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(rustix::fs::CWD, &device, kind, mode, number).unwrap();
    let file = File::options().write(true).open(world.state().join("file")).unwrap();
    file.write_all_at(b"told of once", 12345).unwrap();
    fs::write(world.state().join("new"), b"new").unwrap();
    assert!(world.source.take(&[], &[]).unwrap_err().is_refusal());
    fs::remove_file(device).unwrap();
    world.epoch();
    world.assert_mirrored("after a failure");
}

#[test]
fn what_can_not_be_carried_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    let open = || Source::open(dir.path(), &[PathBuf::from("/state")], SEED);
    let device = state.join("device");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &device,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RUSR,
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    let why = open().unwrap_err().to_string();
    assert!(why.contains("/state/device is a device"), "{why}");
    fs::remove_file(device).unwrap();
    let marked = state.join("marked");
    fs::write(&marked, b"x").unwrap();
    match rustix::fs::setxattr(&marked, "user.colour", b"red", rustix::fs::XattrFlags::empty()) {
        // This file system has none.
        Err(rustix::io::Errno::NOTSUP) => (),
        set => {
            set.unwrap();
            let why = open().unwrap_err();
            let said = "/state/marked has the attribute user.colour";
            assert!(why.is_refusal() && why.to_string().contains(said), "{why}");
            rustix::fs::removexattr(&marked, "user.colour").unwrap();
        }
    }
    let missing = Source::open(dir.path(), &[PathBuf::from("/missing")], SEED).unwrap_err();
    assert!(missing.is_refusal() && missing.to_string().contains("--state-dir"), "{missing}");
    let _quiet = File::options().write(true).create(true).truncate(true).mode(0o600).open(state.join("x"));
    open().unwrap();
}
