//! Bytes of a root that an epoch key wraps. They name all that opens them again but the service, so
//! a ring stays readable whatever key the next ring hangs from.
//!
//! Layout, little-endian, `k` = bytes of the key's name, `b` = bytes of the wrapped epoch key:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | `WVE` and a version byte, 1 |
//! | 4 | 16 | id of the epoch |
//! | 20 | 16 | random salt, fresh at every wrapping |
//! | 36 | 2 | `k` |
//! | 38 | 2 | `b` |
//! | 40 | k | name of the key at its service, UTF-8 |
//! | 40 + k | b | epoch key, as the service wrapped it |
//! | 40 + k + b | n | ciphertext of the n bytes wrapped |
//! | 40 + k + b + n | 16 | GCM tag over the ciphertext, all before it and the caller's `aad` |
//!
//! The wrapping key is derived from epoch key and salt, and encrypts once, with nonce 0.

use aws_lc_rs::aead::{Aad, LessSafeKey};

use super::Epoch;
use crate::hkdf::{Domain, derive_cipher};
use crate::locked::{LockedBytes, Secret};
use crate::segment::{open, record_nonce};
use crate::service::EpochId;
use crate::{SALT_BYTES, SealError, TAG_BYTES, random};

const MAGIC: [u8; 3] = *b"WVE";
const VERSION: u8 = 1;
const WHAT: &str = "a root wrapped by an epoch key";

/// A wrapped root, taken apart.
pub(super) struct Wrapped<'a> {
    pub(super) epoch: EpochId,
    /// Name of the key at its service.
    pub(super) key: &'a str,
    /// The epoch key, as the service opens it.
    pub(super) epoch_key: &'a [u8],
    salt: [u8; SALT_BYTES],
    head: &'a [u8],
    text: &'a [u8],
    tag: &'a [u8; TAG_BYTES],
}

impl<'a> Wrapped<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, SealError> {
        let short = || damaged("it is too short");
        let (magic, rest) = bytes.split_first_chunk().ok_or_else(short)?;
        if *magic != MAGIC {
            return Err(SealError::Foreign { what: WHAT });
        }
        let (&version, rest) = rest.split_first().ok_or_else(short)?;
        if version != VERSION {
            let (version, supported) = (version.into(), VERSION.into());
            return Err(SealError::Newer { what: WHAT, version, supported });
        }
        let (epoch, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (salt, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (key_bytes, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (epoch_key_bytes, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let len = |bytes: &[u8; 2]| usize::from(u16::from_le_bytes(*bytes));
        let (key, rest) = rest.split_at_checked(len(key_bytes)).ok_or_else(short)?;
        let (epoch_key, rest) = rest.split_at_checked(len(epoch_key_bytes)).ok_or_else(short)?;
        let (text, tag) = rest.split_last_chunk().ok_or_else(short)?;
        let key = std::str::from_utf8(key).map_err(|_| damaged("its key's name is no text"))?;
        let head = &bytes[..bytes.len() - rest.len()];
        Ok(Self { epoch: *epoch, key, epoch_key, salt: *salt, head, text, tag })
    }

    /// What was wrapped.
    pub(super) fn open(&self, secret: &Secret, aad: &[u8]) -> Result<LockedBytes, SealError> {
        let aad = [self.head, aad].concat();
        let mut text = LockedBytes::copy_of(self.text)?;
        match open(&cipher(secret, &self.salt)?, record_nonce(), &aad, &mut text, self.tag) {
            Ok(()) => Ok(text),
            Err(_) => Err(damaged("its authentication tag is wrong, though the key is right")),
        }
    }
}

/// Wraps `plaintext` under `epoch`.
pub(super) fn wrap(epoch: &Epoch, plaintext: &[u8], aad: &[u8]) -> Result<Vec<u8>, SealError> {
    let salt: [u8; SALT_BYTES] = random::array()?;
    let mut wrapped = [&MAGIC[..], &[VERSION], &epoch.id, &salt].concat();
    let parts = [epoch.key.as_bytes(), &epoch.wrapped];
    for part in parts {
        let (what, got, max) = ("bytes of a key's name or of an epoch key", part.len(), u16::MAX);
        let too_long = |_| SealError::Exhausted { what, got, max: max.into() };
        wrapped.extend(u16::try_from(got).map_err(too_long)?.to_le_bytes());
    }
    wrapped.extend(parts.concat());
    let aad = [&wrapped, aad].concat();
    let mut text = LockedBytes::copy_of(plaintext)?;
    let tag = cipher(&epoch.secret, &salt)?
        .seal_in_place_separate_tag(record_nonce(), Aad::from(aad), &mut text)
        .map_err(|_| SealError::Cipher { doing: "wrap a root key" })?;
    wrapped.extend_from_slice(&text);
    wrapped.extend_from_slice(tag.as_ref());
    Ok(wrapped)
}

fn cipher(secret: &Secret, salt: &[u8]) -> Result<LessSafeKey, SealError> {
    derive_cipher(Domain::Epoch, secret, &[b"wrap\0\0\0\0", salt])
}

fn damaged(detail: &'static str) -> SealError {
    SealError::Damaged { what: WHAT, detail }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn epoch() -> Epoch {
        let secret = Secret::filled_by(|slot| {
            slot.fill(0x11);
            Ok(())
        });
        Epoch {
            id: [9; 16],
            key: "arn:aws:kms:x:1:key/k".into(),
            wrapped: vec![5; 184],
            secret: secret.unwrap(),
        }
    }

    #[test]
    fn it_reads_back_and_every_flipped_bit_is_an_error() {
        let epoch = epoch();
        let wrapped = wrap(&epoch, &[7; 32], b"place").unwrap();
        let read = Wrapped::read(&wrapped).unwrap();
        assert_eq!((read.epoch, read.key, read.epoch_key), (epoch.id, &*epoch.key, &[5; 184][..]));
        assert_eq!(&*read.open(&epoch.secret, b"place").unwrap(), [7; 32]);
        assert!(read.open(&epoch.secret, b"other").is_err());
        let opens = |bytes: &[u8]| Wrapped::read(bytes)?.open(&epoch.secret, b"place").map(drop);
        for at in 0..wrapped.len() {
            let mut bytes = wrapped.clone();
            bytes[at] ^= 1 << (at % 8);
            assert!(opens(&bytes).is_err(), "byte {at}");
            assert!(opens(&wrapped[..at]).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn two_wrappings_share_no_salt_and_no_ciphertext() {
        let epoch = epoch();
        let [one, two] = [(); 2].map(|()| wrap(&epoch, &[0; 32], b"").unwrap());
        assert_ne!(one[20..36], two[20..36]);
        assert_eq!(one[36..one.len() - 48], two[36..two.len() - 48]);
        assert_ne!(one[one.len() - 48..], two[two.len() - 48..]);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_errors(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            dress: bool,
        ) {
            let head = [&MAGIC[..], &[VERSION]].concat();
            let bytes = if dress { [head, bytes].concat() } else { bytes };
            let opened = Wrapped::read(&bytes).and_then(|it| it.open(&epoch().secret, b""));
            prop_assert!(opened.is_err());
        }
    }
}
