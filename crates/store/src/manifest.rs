//! What a checkpoint is made of: a line with a digest, and JSON behind it.
//!
//! ```text
//! sha256 HEX-DIGITS of all that follows this line
//! {"schema":1,"app":"kv","term":3,"epoch":1042,"parent":{…},"segments":[…]}
//! ```
//!
//! The bytes depend on the checkpoint alone, so that an upload which is repeated writes the same.

use std::fmt;

use image::layout::ObjectKey;
use image::{CheckpointId, FileId, PageTarget};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

pub(crate) const SCHEMA: u32 = 3;
/// Without state directories, which a release before it does not know.
pub(crate) const SCHEMA_SHIPPED: u32 = 2;
/// And without content of files, which the one before that does not know.
pub(crate) const SCHEMA_BARE: u32 = 1;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).ok()?;
        }
        Some(Self(bytes)).filter(|digest| digest.to_string() == text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is no digest"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub schema: u32,
    pub app: String,
    pub term: u64,
    pub epoch: u64,
    /// None: a full checkpoint.
    pub parent: Option<Parent>,
    /// Of a base: the digest of the manifest that it stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stands_for: Option<Digest>,
    /// The wall clock at the freeze, nanoseconds since 1970.
    pub frozen_at_ns: u64,
    /// In the order in which they are to be read.
    pub segments: Vec<SegmentRef>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    pub term: u64,
    pub epoch: u64,
    /// Of its manifest, all bytes of it.
    pub digest: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRef {
    pub digest: Digest,
    pub kind: SegmentKind,
    /// Of its frames.
    pub bytes: u64,
    /// As it lies in the store.
    pub stored_bytes: u64,
    /// Of pages: whose. The beginnings of several files can be in one: the first one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// Of pages: the first and the last one's place.
    #[serde(default)]
    pub first: u64,
    #[serde(default)]
    pub last: u64,
}

/// Kinds come in this order, but what is gone of files before their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SegmentKind {
    /// Content of files that are mapped.
    Shipped,
    /// Which files there are in state directories.
    Files,
    /// Pages of such files.
    Content,
    Layout,
    /// Pages that are no more.
    Gone,
    /// Of memory.
    Pages,
    State,
}

/// [`PageTarget`], as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    Space(u32),
    Object { device: u64, inode: u64 },
    File(u64),
}

impl From<PageTarget> for Target {
    fn from(target: PageTarget) -> Self {
        match target {
            PageTarget::Space(space) => Self::Space(space),
            PageTarget::Object(ObjectKey { device, inode }) => Self::Object { device, inode },
            PageTarget::File(FileId(id)) => Self::File(id),
        }
    }
}

impl From<Target> for PageTarget {
    fn from(target: Target) -> Self {
        match target {
            Target::Space(space) => Self::Space(space),
            Target::Object { device, inode } => Self::Object(ObjectKey { device, inode }),
            Target::File(id) => Self::File(FileId(id)),
        }
    }
}

impl Parent {
    pub fn id(&self) -> CheckpointId {
        CheckpointId::new(self.term, self.epoch)
    }
}

impl Manifest {
    pub fn id(&self) -> CheckpointId {
        CheckpointId::new(self.term, self.epoch)
    }

    /// The oldest schema that knows all that is in it.
    pub(crate) fn schema_for(segments: &[SegmentRef]) -> u32 {
        let schemas = segments.iter().map(|about| match about.kind {
            SegmentKind::Files | SegmentKind::Content => SCHEMA,
            SegmentKind::Shipped => SCHEMA_SHIPPED,
            SegmentKind::Layout | SegmentKind::Gone | SegmentKind::Pages | SegmentKind::State => SCHEMA_BARE,
        });
        schemas.max().unwrap_or(SCHEMA_BARE)
    }

    /// What of it lies in the store.
    pub fn stored_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.stored_bytes).sum()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        seal(&serde_json::to_vec(self).expect("a manifest is plain data"))
    }

    /// An error says what is wrong with it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(open(bytes)?).map_err(|why| why.to_string())?;
        match manifest.schema {
            SCHEMA_BARE | SCHEMA_SHIPPED | SCHEMA => Ok(manifest),
            other => Err(format!(
                "its schema is {other}, this release reads {SCHEMA}: use the release that stored it, or a later one"
            )),
        }
    }
}

const MARK: &str = "sha256 ";
const LINE_BYTES: usize = MARK.len() + 64 + 1;

/// Text with its digest in front.
pub(crate) fn seal(text: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{MARK}{}\n", Digest::of(text)).into_bytes();
    bytes.extend_from_slice(text);
    bytes
}

/// The text behind a digest that is its own.
pub(crate) fn open(bytes: &[u8]) -> Result<&[u8], String> {
    let (line, text) = bytes.split_at_checked(LINE_BYTES).ok_or("it is cut off")?;
    let line = line.strip_prefix(MARK.as_bytes()).and_then(|line| line.strip_suffix(b"\n"));
    let digest = line.and_then(|line| Digest::parse(std::str::from_utf8(line).ok()?));
    match digest {
        None => Err("it does not begin with its digest".to_owned()),
        Some(digest) if digest != Digest::of(text) => Err("its digest is another".to_owned()),
        Some(_) => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let digest = Digest::of(b"x");
        let segment = SegmentRef {
            digest,
            kind: SegmentKind::Pages,
            bytes: 10,
            stored_bytes: 5,
            target: Some(Target::Object { device: 1, inode: 2 }),
            first: 0,
            last: 4096,
        };
        Manifest {
            schema: SCHEMA,
            app: "kv".to_owned(),
            term: 3,
            epoch: 1042,
            parent: Some(Parent { term: 3, epoch: 1041, digest }),
            stands_for: None,
            frozen_at_ns: 7,
            segments: vec![segment],
        }
    }

    #[test]
    fn manifest_survives_encoding_and_decoding() {
        assert_eq!(Manifest::decode(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_an_error() {
        let good = sample().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&bad).is_err(), "bit {bit} flipped unseen");
        }
        for len in 0..good.len() {
            assert!(Manifest::decode(&good[..len]).is_err(), "cut at {len} unseen");
        }
    }

    #[test]
    fn the_schema_is_the_oldest_that_knows_what_is_in_it() {
        let of = |kind| SegmentRef { kind, ..sample().segments.remove(0) };
        let schema =
            |kinds: &[SegmentKind]| Manifest::schema_for(&kinds.iter().copied().map(of).collect::<Vec<_>>());
        use SegmentKind::{Content, Files, Gone, Layout, Pages, Shipped, State};
        assert_eq!(schema(&[Layout, Gone, Pages, State]), 1);
        assert_eq!(schema(&[Shipped, Layout, State]), 2);
        assert_eq!((schema(&[Files, State]), schema(&[Shipped, Content, State])), (3, 3));
    }

    #[test]
    fn a_later_schema_is_refused_by_its_number() {
        let why = Manifest::decode(&Manifest { schema: 9, ..sample() }.encode()).unwrap_err();
        assert!(why.contains('9'), "{why}");
    }
}
