//! Who keeps the key that everything else hangs from.
//!
//! A provider wraps the root of a key ring and unwraps it again; the key itself never leaves it.
//! This crate has two: [`FileProvider`], a key in a file outside the store, and
//! [`EpochKeys`](crate::EpochKeys), a key in a service. Layout of what the first one wraps:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | `WVK` and a version byte, 1 |
//! | 4 | 8 | fingerprint of the key |
//! | 12 | 16 | random salt, fresh at every wrapping |
//! | 28 | n | ciphertext of the n bytes wrapped |
//! | 28 + n | 16 | GCM tag over the ciphertext, the 28 bytes before it and the caller's `aad` |
//!
//! The wrapping key is derived from the key file and the salt, and encrypts once, with nonce 0.

mod key_file;

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{Aad, LessSafeKey};
use aws_lc_rs::digest::{SHA256, digest};
use wirevault_format::StoreId;

use crate::hkdf::{Domain, derive, derive_cipher};
use crate::locked::{LockedBytes, Secret, effective_uid};
use crate::segment::{open, record_nonce};
use crate::{ForgetLevel, SALT_BYTES, SealError, TAG_BYTES, random};

/// Keeps a key and wraps other keys with it.
pub trait KeyProvider: Send + Sync {
    /// Names kind and key for people, `file:0123456789abcdef` for example. Not secret.
    fn id(&self) -> String;

    /// The [id](KeyProvider::id) of the key that something it wrapped hangs from: it may have gone
    /// over to another since. Nothing if these bytes do not say.
    fn id_of(&self, _wrapped: &[u8]) -> Option<String> {
        Some(self.id())
    }

    /// Encrypts `plaintext` so that only [`KeyProvider::unwrap`] of the same key with the same
    /// `aad` gives it back.
    ///
    /// # Errors
    /// When the key or the cipher cannot be used.
    fn wrap(&self, plaintext: &[u8], aad: &[u8]) -> Result<Vec<u8>, SealError>;

    /// Decrypts what `wrap` made.
    ///
    /// # Errors
    /// [`SealError::WrongKey`] when another key wrapped it; [`SealError::Damaged`] when the key is
    /// right and bytes or `aad` are not.
    fn unwrap(&self, wrapped: &[u8], aad: &[u8]) -> Result<LockedBytes, SealError>;

    /// Whether a segment may be begun under keys that it wrapped.
    ///
    /// # Errors
    /// Why not, when the key was taken away and the configuration says to stop then.
    fn may_begin(&self) -> Result<(), SealError> {
        Ok(())
    }

    /// Whether rings are written in parts, from which keys can be left out without opening them.
    fn writes_parts(&self) -> bool {
        false
    }

    /// Whether recording may go on although a part of a ring does not open, for this reason: what
    /// hangs from that part is kept, and stays unread.
    fn may_leave_shut(&self, _why: &SealError) -> bool {
        false
    }

    /// How far [`KeyProvider::forget_others`] reaches.
    fn forget_level(&self) -> ForgetLevel {
        ForgetLevel::L0
    }

    /// Makes all that it wrapped for a ring, but `kept`, impossible to unwrap, as far as its
    /// [level](KeyProvider::forget_level) reaches. At L0 it can do nothing.
    ///
    /// # Errors
    /// When what forgets cannot be reached: older wrappings may still open.
    fn forget_others(&self, _kept: &[u8]) -> Result<(), SealError> {
        Ok(())
    }
}

const MAGIC: [u8; 3] = *b"WVK";
const VERSION: u8 = 1;
const FINGERPRINT_BYTES: usize = 8;
const HEAD_BYTES: usize = MAGIC.len() + 1 + FINGERPRINT_BYTES + SALT_BYTES;
const WHAT: &str = "a wrapped root key";

/// A key in a file.
///
/// Layout of the file: text; lines that start with `#` and empty lines are skipped; then the line
/// `wirevault-key 1`; then one line of 64 hexadecimal digits.
pub struct FileProvider {
    path: PathBuf,
    key: Secret,
    fingerprint: [u8; FINGERPRINT_BYTES],
}

impl FileProvider {
    /// Draws a key and writes it to a new file of mode 0600, durable on return. Missing directories
    /// are made with mode 0700.
    ///
    /// # Errors
    /// [`SealError::KeyExists`] when there is a file already: a key is never overwritten.
    /// [`SealError::KeyIo`] when the operating system refuses; the file is then removed again.
    pub fn create(path: &Path) -> Result<Self, SealError> {
        let provider = Self::with_key(path, Secret::random()?)?;
        key_file::create(path, provider.key.expose(), &provider.fingerprint())?;
        Ok(provider)
    }

    /// Reads the key in `path`.
    ///
    /// # Errors
    /// [`SealError::KeyMissing`], [`SealError::KeyMalformed`], [`SealError::KeyExposed`] when
    /// others than the owner have any right to the file, [`SealError::Newer`],
    /// [`SealError::KeyIo`].
    pub fn open(path: &Path) -> Result<Self, SealError> {
        Self::with_key(path, key_file::read(path)?)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells keys apart, for people: 16 hexadecimal digits, the start of a SHA-256 of a value
    /// derived from the key.
    pub fn fingerprint(&self) -> String {
        hex(&self.fingerprint)
    }

    fn with_key(path: &Path, key: Secret) -> Result<Self, SealError> {
        let derived =
            derive(Domain::KeyFile, key.expose(), &[b"id\0\0\0\0\0\0", &[0; SALT_BYTES]])?;
        let fingerprint = *digest(&SHA256, &*derived)
            .as_ref()
            .first_chunk()
            .ok_or(SealError::Cipher { doing: "hash a key" })?;
        Ok(Self { path: path.to_owned(), key, fingerprint })
    }

    fn cipher(&self, salt: &[u8]) -> Result<LessSafeKey, SealError> {
        derive_cipher(Domain::KeyFile, &self.key, &[b"wrap\0\0\0\0", salt])
    }
}

impl KeyProvider for FileProvider {
    fn id(&self) -> String {
        format!("file:{}", self.fingerprint())
    }

    fn wrap(&self, plaintext: &[u8], aad: &[u8]) -> Result<Vec<u8>, SealError> {
        let salt: [u8; SALT_BYTES] = random::array()?;
        let mut wrapped = Vec::with_capacity(HEAD_BYTES + plaintext.len() + TAG_BYTES);
        wrapped.extend_from_slice(&MAGIC);
        wrapped.push(VERSION);
        wrapped.extend_from_slice(&self.fingerprint);
        wrapped.extend_from_slice(&salt);
        let aad = [&wrapped, aad].concat();

        let mut text = LockedBytes::copy_of(plaintext)?;
        let tag = self
            .cipher(&salt)?
            .seal_in_place_separate_tag(record_nonce(), Aad::from(aad), &mut text)
            .map_err(|_| SealError::Cipher { doing: "wrap a root key" })?;
        wrapped.extend_from_slice(&text);
        wrapped.extend_from_slice(tag.as_ref());
        Ok(wrapped)
    }

    fn unwrap(&self, wrapped: &[u8], aad: &[u8]) -> Result<LockedBytes, SealError> {
        let damaged = |detail| SealError::Damaged { what: WHAT, detail };
        let short = || damaged("it is too short");
        let (magic, after) = wrapped.split_first_chunk().ok_or_else(short)?;
        if *magic != MAGIC {
            return Err(SealError::Foreign { what: WHAT });
        }
        let (&version, after) = after.split_first().ok_or_else(short)?;
        if version != VERSION {
            let (version, supported) = (version.into(), VERSION.into());
            return Err(SealError::Newer { what: WHAT, version, supported });
        }
        let (fingerprint, after) = after.split_first_chunk().ok_or_else(short)?;
        if *fingerprint != self.fingerprint {
            let (expected, got) = (hex(fingerprint), self.fingerprint());
            return Err(SealError::WrongKey { expected, got });
        }
        let (salt, after) = after.split_first_chunk::<SALT_BYTES>().ok_or_else(short)?;
        let (text, tag) = after.split_last_chunk().ok_or_else(short)?;
        let aad = [&wrapped[..HEAD_BYTES], aad].concat();
        let mut text = LockedBytes::copy_of(text)?;
        match open(&self.cipher(salt)?, record_nonce(), &aad, &mut text, tag) {
            Ok(()) => Ok(text),
            Err(_) => Err(damaged("its authentication tag is wrong, though the key is right")),
        }
    }
}

impl fmt::Debug for FileProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileProvider({} in {})", self.id(), self.path.display())
    }
}

/// Where a store's key file is when nothing else is configured: `/etc/wirevault/keys/ID.key` for
/// root, else `wirevault/keys/ID.key` in the user's configuration directory (`XDG_CONFIG_HOME`, or
/// `.config` in `HOME`).
///
/// # Errors
/// [`SealError::KeyHome`] when a user other than root has neither variable set to an absolute path.
pub fn default_key_path(store: StoreId) -> Result<PathBuf, SealError> {
    let variable = |name| env::var_os(name).map(PathBuf::from);
    key_path(store, effective_uid(), variable("XDG_CONFIG_HOME"), variable("HOME"))
}

fn key_path(
    store: StoreId,
    uid: u32,
    config_home: Option<PathBuf>,
    home: Option<PathBuf>,
) -> Result<PathBuf, SealError> {
    let base = if uid == 0 {
        PathBuf::from("/etc")
    } else {
        // A relative XDG_CONFIG_HOME is invalid and to be ignored (XDG Base Directory
        // Specification).
        let absolute = |path: &PathBuf| path.is_absolute();
        let home = || home.filter(absolute).map(|home| home.join(".config"));
        config_home.filter(absolute).or_else(home).ok_or(SealError::KeyHome)?
    };
    Ok(base.join("wirevault/keys").join(format!("{store}.key")))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    fn provider(dir: &TempDir) -> FileProvider {
        FileProvider::create(&dir.path().join("a.key")).unwrap()
    }

    #[test]
    fn a_key_read_back_is_the_same_key() {
        let dir = TempDir::new().unwrap();
        let made = provider(&dir);
        let read = FileProvider::open(made.path()).unwrap();
        assert_eq!(made.id(), read.id());
        assert_eq!(made.id(), format!("file:{}", made.fingerprint()));
        let wrapped = made.wrap(b"root", b"place").unwrap();
        assert_eq!(&*read.unwrap(&wrapped, b"place").unwrap(), b"root");
    }

    #[test]
    fn neither_fingerprint_nor_debug_text_is_the_key() {
        let dir = TempDir::new().unwrap();
        let made = provider(&dir);
        let key = hex(made.key.expose());
        assert!(!key.contains(&made.fingerprint()));
        assert!(!format!("{made:?}").contains(&key[..8]));
        let raw = hex(digest(&SHA256, made.key.expose()).as_ref());
        assert!(!raw.starts_with(&made.fingerprint()), "a hash of the raw key must not be shown");
    }

    #[test]
    fn another_key_is_told_by_its_fingerprint() {
        let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (right, wrong) = (provider(&one), provider(&two));
        let wrapped = right.wrap(b"root", b"").unwrap();
        match wrong.unwrap(&wrapped, b"") {
            Err(SealError::WrongKey { expected, got }) => {
                assert_eq!((expected, got), (right.fingerprint(), wrong.fingerprint()));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_flipped_byte_is_an_error() {
        let dir = TempDir::new().unwrap();
        let made = provider(&dir);
        let wrapped = made.wrap(&[7; 32], b"place").unwrap();
        for at in 0..wrapped.len() {
            for bit in 0..8 {
                let mut bytes = wrapped.clone();
                bytes[at] ^= 1 << bit;
                assert!(made.unwrap(&bytes, b"place").is_err(), "byte {at} bit {bit}");
            }
        }
        assert!(matches!(made.unwrap(&wrapped, b"other"), Err(SealError::Damaged { .. })));
        for len in 0..wrapped.len() {
            assert!(made.unwrap(&wrapped[..len], b"place").is_err(), "{len} bytes");
        }
    }

    #[test]
    fn two_wrappings_share_nothing_but_the_fingerprint() {
        let dir = TempDir::new().unwrap();
        let made = provider(&dir);
        let (one, two) = (made.wrap(&[0; 32], b"").unwrap(), made.wrap(&[0; 32], b"").unwrap());
        assert_eq!(one[..12], two[..12]);
        assert_ne!(one[12..HEAD_BYTES], two[12..HEAD_BYTES]);
        assert_ne!(one[HEAD_BYTES..], two[HEAD_BYTES..]);
    }

    /// Expected values from Python's `cryptography` 48, following the table in the module's
    /// description.
    #[test]
    fn known_answers() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("known.key");
        key_file::create(&path, &[0x11; 32], "").unwrap();
        let provider = FileProvider::open(&path).unwrap();
        assert_eq!(provider.fingerprint(), "603c2b17fd4a006a");
        let wrapped: Vec<u8> = concat!(
            "57564b01603c2b17fd4a006a000102030405060708090a0b0c0d0e0ff79f00d6877adb81",
            "aeb5d394e45b165e250fb7a216cc8623be56"
        )
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
        assert_eq!(&*provider.unwrap(&wrapped, b"place").unwrap(), b"a root key");
    }

    #[test]
    fn root_and_users_keep_keys_apart() {
        let store = StoreId([0x0f; 16]);
        let file = "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f.key";
        let path = |text: &str| Some(PathBuf::from(text));
        let expect = |uid, config, home, dir: &str| {
            assert_eq!(key_path(store, uid, config, home).unwrap(), Path::new(dir).join(file));
        };
        expect(0, path("/x"), path("/root"), "/etc/wirevault/keys");
        expect(1000, path("/x"), path("/home/a"), "/x/wirevault/keys");
        expect(1000, path("relative"), path("/home/a"), "/home/a/.config/wirevault/keys");
        expect(1000, None, path("/home/a"), "/home/a/.config/wirevault/keys");
        assert!(matches!(key_path(store, 1000, None, None), Err(SealError::KeyHome)));
        assert!(default_key_path(store).is_ok_and(|path| path.ends_with(file)));
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let dir = TempDir::new().unwrap();
            let made = provider(&dir);
            prop_assert!(made.unwrap(&bytes, b"").is_err());
            let mut dressed = made.wrap(b"", b"").unwrap();
            dressed.truncate(HEAD_BYTES);
            dressed.extend_from_slice(&bytes);
            prop_assert!(made.unwrap(&dressed, b"").is_err());
        }
    }
}
