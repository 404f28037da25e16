//! The guard's one-shot secret. The primary tells the standby its hash; whoever can later show the secret
//! itself is the guard that the primary armed, and not merely somebody with a certificate.

use std::fmt;

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

pub const TOKEN_BYTES: usize = 32;

/// 32 secret bytes. Its `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct GuardToken([u8; TOKEN_BYTES]);

/// The SHA-256 of a [`GuardToken`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; TOKEN_BYTES]);

impl GuardToken {
    /// # Panics
    /// If the kernel has no random bytes to give, which it always has once it is up.
    pub fn random() -> Self {
        let mut bytes = [0; TOKEN_BYTES];
        SystemRandom::new().fill(&mut bytes).expect("getrandom cannot fail for 32 bytes");
        Self(bytes)
    }

    pub fn from_bytes(bytes: [u8; TOKEN_BYTES]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; TOKEN_BYTES] {
        &self.0
    }

    pub fn hash(&self) -> TokenHash {
        TokenHash(digest(&SHA256, &self.0).as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl TokenHash {
    /// Comparing hashes of what the other side sent gives away nothing about the secret, at any timing.
    pub fn matches(&self, token: &GuardToken) -> bool {
        *self == token.hash()
    }
}

impl fmt::Debug for GuardToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuardToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_matches_its_hash() {
        let (token, other) = (GuardToken::random(), GuardToken::random());
        assert!(token.hash().matches(&token));
        assert!(!token.hash().matches(&other));
    }

    #[test]
    fn hash_is_sha_256_so_that_releases_agree_on_it() {
        let hash = GuardToken::from_bytes([0; TOKEN_BYTES]).hash();
        assert_eq!(hash.0[..4], [0x66, 0x68, 0x7a, 0xad]);
    }

    #[test]
    fn token_is_not_shown() {
        assert_eq!(format!("{:?}", GuardToken::from_bytes([7; TOKEN_BYTES])), "GuardToken(…)");
    }
}
