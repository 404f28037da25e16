//! Files that come with a full epoch, since this host lacks them.

use std::collections::BTreeMap;

use checkpoint::shipped::{Arriving, Shelf, ShipError};
use checkpoint::skeleton::{Lacking, is_here};
use image::Shipped;
use image::layout::FileIdentity;
use image::shipped::{FILE_BYTES_MAX, SHIPPED_FILES_MAX};

/// So much is asked for at a time; the rest is lacking still when that came.
const ASKED_BYTES_MAX: usize = 100 << 10;
const BESIDE_PATH_BYTES: usize = 100;

#[derive(Debug, Default)]
enum Coming {
    #[default]
    Nothing,
    Kept(Box<Arriving>),
    /// This host has it, and another one did not.
    PassedOver,
}

/// What came of them, of one epoch.
#[derive(Debug, Default)]
pub(crate) struct Supply {
    coming: Coming,
    files: usize,
    /// What the primary does not ship, and why.
    refused: BTreeMap<FileIdentity, String>,
}

impl Supply {
    pub fn take(&mut self, shelf: Option<&Shelf>, shipped: Shipped) -> Result<(), ShipError> {
        self.coming = match (shipped, std::mem::take(&mut self.coming)) {
            (Shipped::File(file), Coming::Nothing) => {
                self.count()?;
                let has = |shelf: &Shelf| shelf.find(&file.identity).is_some();
                // Name and size alone say too little.
                let told = file.identity.build_id.is_some();
                match told && (is_here(&file.identity) || shelf.is_some_and(has)) {
                    true => Coming::PassedOver,
                    false => Coming::Kept(Box::new(shelf.ok_or(ShipError::NoCache)?.begin(file)?)),
                }
            }
            (Shipped::Bytes(bytes), Coming::Kept(mut arriving)) => {
                arriving.take(&bytes)?;
                Coming::Kept(arriving)
            }
            (Shipped::Bytes(_), Coming::PassedOver) => Coming::PassedOver,
            (Shipped::Whole(digest), Coming::Kept(arriving)) => {
                arriving.finish(digest)?;
                Coming::Nothing
            }
            (Shipped::Whole(_), Coming::PassedOver) => Coming::Nothing,
            (Shipped::Known { file, digest }, Coming::Nothing) => {
                self.count()?;
                shelf.into_iter().for_each(|shelf| shelf.expect(file.clone(), digest));
                Coming::Nothing
            }
            (Shipped::Cannot { file, why }, _) => {
                self.count()?;
                self.refused.insert(file, why);
                Coming::Nothing
            }
            (Shipped::File(_) | Shipped::Known { .. }, Coming::Kept(_) | Coming::PassedOver)
            | (Shipped::Bytes(_) | Shipped::Whole(_), Coming::Nothing) => return Err(ShipError::Place),
        };
        Ok(())
    }

    fn count(&mut self) -> Result<(), ShipError> {
        self.files += 1;
        if self.files > 2 * SHIPPED_FILES_MAX { Err(ShipError::Place) } else { Ok(()) }
    }

    /// What to ask for, and how to say that it is lacking.
    pub fn lacks(&self, lacking: &Lacking, takes: bool) -> (Vec<FileIdentity>, String) {
        let too_long =
            |file: &FileIdentity| file.size > FILE_BYTES_MAX && file.size != FileIdentity::ANY_SIZE;
        let of_size = |file: &&FileIdentity| !too_long(file);
        let files = lacking.0.iter().map(|(file, _)| file).filter(of_size).take(SHIPPED_FILES_MAX);
        let mut room = ASKED_BYTES_MAX;
        let fits = files.take_while(|file| {
            room = room.saturating_sub(file.path.len() + BESIDE_PATH_BYTES);
            takes && room > 0
        });
        let files: Vec<FileIdentity> = fits.cloned().collect();
        let refused = lacking.0.iter().find_map(|(file, why)| Some((file, why, self.refused.get(file)?)));
        let too_long = lacking.0.iter().find(|(file, _)| too_long(file));
        let name = |file: &FileIdentity| String::from_utf8_lossy(&file.path).into_owned();
        let why = match (refused, too_long) {
            (Some((file, why, refused)), _) => format!(
                "{}: {why}, and it is not shipped: {refused}; install the same version of it on this host",
                name(file)
            ),
            (None, Some((file, why))) if takes => format!(
                "{}: {why}, and more than {FILE_BYTES_MAX} bytes are not shipped; install the same version of it on this host",
                name(file)
            ),
            _ if takes => format!("{lacking}, unless its content comes by itself"),
            _ => lacking.to_string(),
        };
        (files, why)
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::shipped::Cache;
    use image::{ContentDigest, ShippedFile};
    use serde_bytes::ByteBuf;

    use super::*;

    /// Of four zeros.
    const ZEROS: [u8; 32] = [
        0xdf, 0x3f, 0x61, 0x98, 0x04, 0xa9, 0x2f, 0xdb, 0x40, 0x57, 0x19, 0x2d, 0xc4, 0x3d, 0xd7, 0x48, 0xea,
        0x77, 0x8a, 0xdc, 0x52, 0xbc, 0x49, 0x8c, 0xe8, 0x05, 0x24, 0xc0, 0x14, 0xb8, 0x11, 0x19,
    ];

    fn identity(path: &[u8]) -> FileIdentity {
        FileIdentity { path: path.to_vec(), size: 4, build_id: None }
    }

    fn file(path: &[u8]) -> Shipped {
        let (size_bytes, mode, owner, group, links) = (4, 0o644, 0, 0, Vec::new());
        Shipped::File(ShippedFile { identity: identity(path), size_bytes, mode, owner, group, links })
    }

    fn bytes(len: usize) -> Shipped {
        Shipped::Bytes(ByteBuf::from(vec![0; len]))
    }

    fn whole(digest: [u8; 32]) -> Shipped {
        Shipped::Whole(ContentDigest(digest))
    }

    fn take(shelf: Option<&Shelf>, pieces: Vec<Shipped>) -> Result<(), ShipError> {
        let mut supply = Supply::default();
        pieces.into_iter().try_for_each(|piece| supply.take(shelf, piece))
    }

    #[test]
    fn pieces_in_their_order_are_a_file() {
        let shelf = Cache::temporary().unwrap().of("kv");
        let pieces = vec![file(b"/opt/kv"), bytes(1), bytes(3), whole(ZEROS), file(b"/opt/b"), bytes(4)];
        take(Some(&shelf), pieces).unwrap();
        assert!(shelf.find(&identity(b"/opt/kv")).is_some());
        assert!(shelf.find(&identity(b"/opt/b")).is_none(), "its end never came");
    }

    #[test]
    fn another_digest_another_order_and_another_length_are_refused() {
        let shelf = Cache::temporary().unwrap().of("kv");
        let kv = || file(b"/opt/kv");
        for pieces in [
            vec![kv(), bytes(4), whole([7; 32])],
            vec![kv(), bytes(5)],
            vec![kv(), bytes(3), whole(ZEROS)],
            vec![bytes(4)],
            vec![whole(ZEROS)],
            vec![kv(), kv()],
            vec![kv(), bytes(4), whole(ZEROS), bytes(1)],
            vec![kv(), Shipped::Known { file: identity(b"/opt/kv"), digest: ContentDigest(ZEROS) }],
            vec![file(b"/opt/../etc/shadow")],
        ] {
            assert!(take(Some(&shelf), pieces.clone()).is_err(), "{pieces:?}");
        }
        assert!(take(None, vec![kv()]).is_err(), "nobody keeps it");
        let endless = || Shipped::Cannot { file: identity(b"/opt/kv"), why: String::new() };
        assert!(take(Some(&shelf), (0..3 * SHIPPED_FILES_MAX).map(|_| endless()).collect()).is_err());
    }

    #[test]
    fn what_is_asked_for_is_bounded_and_what_is_not_shipped_is_said() {
        let lacking = |count: usize, size| {
            let file = |n| FileIdentity { size, ..identity(format!("/opt/{n:0>200}").as_bytes()) };
            Lacking((0..count).map(|n| (file(n), "no such file".to_owned())).collect())
        };
        let supply = Supply::default();
        let (asked, why) = supply.lacks(&lacking(1, 4), true);
        assert!(asked.len() == 1 && why.contains("comes by itself"), "{why}");
        let (asked, why) = supply.lacks(&lacking(1, FILE_BYTES_MAX + 1), true);
        assert!(asked.is_empty() && why.contains("install"), "{why}");
        let (asked, why) = supply.lacks(&lacking(1, 4), false);
        assert!(asked.is_empty() && why.contains("install"), "{why}");
        let bytes = |asked: &[FileIdentity]| asked.iter().map(|file| file.path.len()).sum::<usize>();
        let (asked, _) = supply.lacks(&lacking(10_000, 4), true);
        assert!(!asked.is_empty() && bytes(&asked) < ASKED_BYTES_MAX, "{}", asked.len());
        let (mut supply, lacking) = (Supply::default(), lacking(1, 4));
        let file = lacking.0[0].0.clone();
        supply.take(None, Shipped::Cannot { file, why: "it changes".to_owned() }).unwrap();
        let (_, why) = supply.lacks(&lacking, true);
        assert!(why.contains("it changes") && why.contains("install"), "{why}");
    }
}
