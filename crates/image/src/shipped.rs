//! Content of files that the app has mapped, or open for reading, and that the receiver has not: before the layout that
//! maps them.
//!
//! A file is begun, its bytes follow in order, and its digest ends it. What is to be shipped was asked for, and the asker
//! believes nothing but the digest of what came.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::layout::FileIdentity;

/// No file is shipped that is longer.
pub const FILE_BYTES_MAX: u64 = 1 << 30;
/// All that one checkpoint ships.
pub const SHIPPED_BYTES_MAX: u64 = 4 << 30;
/// How many of them.
pub const SHIPPED_FILES_MAX: usize = 4096;
/// How many links to one file.
pub const LINKS_MAX: usize = 32;

/// A SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContentDigest(pub [u8; 32]);

/// One frame of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shipped {
    File(ShippedFile),
    /// The next bytes of the file that was begun.
    Bytes(ByteBuf),
    /// All of them came.
    Whole(ContentDigest),
    /// The content that a file has whose name and size say too little; the receiver may have it.
    Known {
        file: FileIdentity,
        digest: ContentDigest,
    },
    /// It is not shipped, or not further.
    Cannot {
        file: FileIdentity,
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShippedFile {
    /// As it was asked for.
    pub identity: FileIdentity,
    pub size_bytes: u64,
    /// Permissions alone.
    pub mode: u32,
    pub owner: u32,
    pub group: u32,
    /// Names of symbolic links in its directory that lead to it.
    pub links: Vec<ByteBuf>,
}

impl std::fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
