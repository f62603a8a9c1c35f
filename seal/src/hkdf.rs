//! HKDF-SHA256 as this crate uses it: one extraction salt per kind of secret, fixed-width expansion
//! info.
//!
//! Source: RFC 5869. The extraction salts are public labels; they separate a key file from a
//! segment key even if both held the same bytes.

use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use zeroize::Zeroizing;

use crate::locked::Secret;
use crate::{KEY_BYTES, SealError};

/// Which kind of secret a subkey is derived from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Domain {
    /// The 32 bytes of a key file.
    KeyFile,
    /// A key that a service made for an epoch.
    Epoch,
    /// The root of one writing of a key ring.
    RingRoot,
    /// The random key of one life.
    Segment,
    /// A secret of a forget store.
    Forgettable,
}

impl Domain {
    fn label(self) -> &'static [u8] {
        match self {
            Self::KeyFile => b"wirevault/1 key file",
            Self::Epoch => b"wirevault/1 epoch key",
            Self::RingRoot => b"wirevault/1 ring root",
            Self::Segment => b"wirevault/1 segment",
            Self::Forgettable => b"wirevault/1 forgettable",
        }
    }
}

/// Derives 32 bytes from `secret`. Callers give `info` parts of fixed width, so that no two lists
/// of parts run together to the same bytes.
pub(crate) fn derive(
    domain: Domain,
    secret: &[u8],
    info: &[&[u8]],
) -> Result<Zeroizing<[u8; KEY_BYTES]>, SealError> {
    let failed = |_| SealError::Cipher { doing: "derive a key" };
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    let extracted = Salt::new(HKDF_SHA256, domain.label()).extract(secret);
    extracted.expand(info, HKDF_SHA256).and_then(|okm| okm.fill(&mut *key)).map_err(failed)?;
    Ok(key)
}

/// Derives an AES-256-GCM key from `secret`.
pub(crate) fn derive_cipher(
    domain: Domain,
    secret: &Secret,
    info: &[&[u8]],
) -> Result<LessSafeKey, SealError> {
    let key = derive(domain, secret.expose(), info)?;
    UnboundKey::new(&AES_256_GCM, &*key)
        .map(LessSafeKey::new)
        .map_err(|_| SealError::Cipher { doing: "prepare an AES-256-GCM key" })
}
