//! Forgetting: what a key ring's old roots hang from must be gone for good.
//!
//! A deleted segment's key is left out of the next writing of the ring. But media keep old bytes: a
//! flash device the writing before, a backup or a snapshot all of it. Those are closed only if
//! *something small really forgets*: a [`ForgetStore`] keeps one secret of 32 bytes for each ring,
//! and a [`Forgetful`] provider mixes it into what it wraps.
//!
//! ```text
//!  root ──AES-256-GCM under HKDF(secret F)──► wrapped by the provider ──► ring
//!           F_e lives in the forget store; once it is destroyed, no copy of the ring of epoch e
//!           opens, whoever has the provider's key
//! ```
//!
//! Layout of what [`Forgetful`] wraps:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | `WVF` and a version byte, 1 |
//! | 4 | 16 | id of the secret |
//! | 20 | n | what the inner provider wrapped: ciphertext of the root, then its GCM tag |
//!
//! Each secret encrypts once, with nonce 0; the 20 bytes before it and the caller's `aad` are its
//! additional data.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::Aad;

use crate::hkdf::{Domain, derive_cipher};
use crate::locked::{LockedBytes, Secret};
use crate::segment::{open, record_nonce};
use crate::{KeyProvider, SealError, TAG_BYTES, random};

/// How far a deletion reaches: what must be lost or stolen besides the medium to undo it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ForgetLevel {
    /// Nothing forgets: the old ring is overwritten and discarded. Holds against who reads the
    /// device through its interface; not against who has old copies of its cells and the key.
    L0,
    /// The key is in a service that may refuse. Holds against stolen media without rights there.
    L1,
    /// A store of secrets forgot the old root. Holds against media and keys together.
    L2,
    /// As L2, and the service's own key material is destroyed.
    L3,
}

impl ForgetLevel {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::L0 => "L0",
            Self::L1 => "L1",
            Self::L2 => "L2",
            Self::L3 => "L3",
        }
    }
}

impl fmt::Display for ForgetLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Names a secret. Random, never used again.
pub type SecretId = [u8; 16];

/// Keeps the secrets of one key ring, and really forgets them. Every call is durable on return.
pub trait ForgetStore: Send + Sync {
    /// Names it for people.
    fn id(&self) -> String;

    /// How far its forgetting reaches.
    fn level(&self) -> ForgetLevel;

    /// Keeps a secret, beside those that are there, and has read it back.
    ///
    /// # Errors
    /// `Provider`.
    fn put(&self, id: SecretId, secret: &[u8]) -> Result<(), SealError>;

    /// A secret.
    ///
    /// # Errors
    /// [`SealError::Forgotten`] if it is gone, `Provider`.
    fn get(&self, id: SecretId) -> Result<LockedBytes, SealError>;

    /// Destroys every secret but `kept`.
    ///
    /// # Errors
    /// `Provider`: some may still be there.
    fn destroy_others(&self, kept: SecretId) -> Result<(), SealError>;
}

/// A provider whose wrappings can be forgotten, one by one.
pub struct Forgetful {
    inner: Arc<dyn KeyProvider>,
    secrets: Arc<dyn ForgetStore>,
}

const MAGIC: [u8; 4] = *b"WVF\x01";
const HEAD_BYTES: usize = MAGIC.len() + size_of::<SecretId>();
const WHAT: &str = "a root that can be forgotten";

impl Forgetful {
    /// `inner` with secrets of this store, which serves no other ring.
    pub fn new(inner: Arc<dyn KeyProvider>, secrets: Arc<dyn ForgetStore>) -> Self {
        Self { inner, secrets }
    }

    fn secret(&self, id: SecretId) -> Result<Secret, SealError> {
        let kept = self.secrets.get(id)?;
        let damaged = SealError::Damaged { what: WHAT, detail: "its secret has a wrong length" };
        let kept: &[u8; crate::KEY_BYTES] = kept.first_chunk().ok_or(damaged)?;
        Secret::filled_by(|slot| {
            slot.copy_from_slice(kept);
            Ok(())
        })
    }
}

fn head(wrapped: &[u8]) -> Result<(SecretId, &[u8]), SealError> {
    let rest = wrapped.strip_prefix(&MAGIC).ok_or(SealError::Foreign { what: WHAT })?;
    let (id, rest) = rest
        .split_first_chunk()
        .ok_or(SealError::Damaged { what: WHAT, detail: "it is too short" })?;
    Ok((*id, rest))
}

impl KeyProvider for Forgetful {
    fn id(&self) -> String {
        self.inner.id()
    }

    fn wrap(&self, plaintext: &[u8], aad: &[u8]) -> Result<Vec<u8>, SealError> {
        let (id, secret): (SecretId, _) = (random::array()?, Secret::random()?);
        // It is there before anything hangs from it.
        self.secrets.put(id, secret.expose())?;
        let mut wrapped = [&MAGIC[..], &id].concat();
        let inner_aad = [&wrapped, aad].concat();
        let mut text = LockedBytes::zeroed(plaintext.len() + TAG_BYTES)?;
        let (body, tag_at) = text.split_at_mut(plaintext.len());
        body.copy_from_slice(plaintext);
        let tag = derive_cipher(Domain::Forgettable, &secret, &[b"root\0\0\0\0"])?
            .seal_in_place_separate_tag(record_nonce(), Aad::from(&inner_aad), body)
            .map_err(|_| SealError::Cipher { doing: "wrap a root key" })?;
        tag_at.copy_from_slice(tag.as_ref());
        wrapped.extend(self.inner.wrap(&text, aad)?);
        Ok(wrapped)
    }

    fn unwrap(&self, wrapped: &[u8], aad: &[u8]) -> Result<LockedBytes, SealError> {
        let damaged = |detail| SealError::Damaged { what: WHAT, detail };
        let (id, rest) = head(wrapped)?;
        let text = self.inner.unwrap(rest, aad)?;
        let (body, tag) = text.split_last_chunk().ok_or_else(|| damaged("it is too short"))?;
        let inner_aad = [&wrapped[..HEAD_BYTES], aad].concat();
        let cipher = derive_cipher(Domain::Forgettable, &self.secret(id)?, &[b"root\0\0\0\0"])?;
        let mut root = LockedBytes::copy_of(body)?;
        match open(&cipher, record_nonce(), &inner_aad, &mut root, tag) {
            Ok(()) => Ok(root),
            Err(_) => Err(damaged("its authentication tag is wrong, though its secret is there")),
        }
    }

    fn forget_level(&self) -> ForgetLevel {
        self.secrets.level()
    }

    fn forget_others(&self, kept: &[u8]) -> Result<(), SealError> {
        self.secrets.destroy_others(head(kept)?.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;

    use super::*;
    use crate::FileProvider;

    #[derive(Default)]
    struct Memory(Mutex<HashMap<SecretId, Vec<u8>>>);

    impl ForgetStore for Memory {
        fn id(&self) -> String {
            "memory".to_owned()
        }

        fn level(&self) -> ForgetLevel {
            ForgetLevel::L2
        }

        fn put(&self, id: SecretId, secret: &[u8]) -> Result<(), SealError> {
            self.0.lock().unwrap().insert(id, secret.to_vec());
            Ok(())
        }

        fn get(&self, id: SecretId) -> Result<LockedBytes, SealError> {
            let secrets = self.0.lock().unwrap();
            LockedBytes::copy_of(secrets.get(&id).ok_or(SealError::Forgotten)?)
        }

        fn destroy_others(&self, kept: SecretId) -> Result<(), SealError> {
            self.0.lock().unwrap().retain(|id, _| *id == kept);
            Ok(())
        }
    }

    fn provider(dir: &tempfile::TempDir) -> Forgetful {
        let inner = FileProvider::create(&dir.path().join("a.key")).unwrap();
        Forgetful::new(Arc::new(inner), Arc::new(Memory::default()))
    }

    #[test]
    fn what_is_kept_opens_and_what_is_forgotten_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let provider = provider(&dir);
        let wrapped = [1, 2, 3].map(|root| provider.wrap(&[root; 32], b"place").unwrap());
        for (root, wrapped) in (1..).zip(&wrapped) {
            assert_eq!(&*provider.unwrap(wrapped, b"place").unwrap(), [root; 32]);
        }
        provider.forget_others(&wrapped[1]).unwrap();
        assert_eq!(&*provider.unwrap(&wrapped[1], b"place").unwrap(), [2; 32]);
        for gone in [&wrapped[0], &wrapped[2]] {
            assert!(matches!(provider.unwrap(gone, b"place"), Err(SealError::Forgotten)));
        }
        assert_eq!(provider.forget_level(), ForgetLevel::L2);
    }

    #[test]
    fn the_key_alone_does_not_give_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let provider = provider(&dir);
        let wrapped = provider.wrap(&[7; 32], b"").unwrap();
        let inner = FileProvider::open(&dir.path().join("a.key")).unwrap();
        let text = inner.unwrap(&wrapped[HEAD_BYTES..], b"").unwrap();
        assert!(!text.windows(4).any(|bytes| bytes == [7; 4]));
        for at in 0..wrapped.len() {
            let mut bytes = wrapped.clone();
            bytes[at] ^= 1;
            assert!(provider.unwrap(&bytes, b"").is_err(), "byte {at}");
        }
    }
}
