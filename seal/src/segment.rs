//! The key of one life, and what is sealed under its subkeys.
//!
//! # Why no nonce repeats
//!
//! AES-GCM breaks when one (key, nonce) pair encrypts twice. Pairs are kept apart in three ways:
//!
//! - **Between lives**: every life draws its own random 256-bit segment key, and the life id is
//!   part of every derivation.
//! - **Records** (segment header, index, footer): every writing draws a random 128-bit salt and
//!   derives a subkey of its own from it; that subkey encrypts once, with nonce 0. So recovery may
//!   write an index and a footer again.
//! - **Pages of a digest**: every writing of a digest draws a random 128-bit salt, as a record
//!   does; the nonce is the page number, and its sealer accepts only increasing ones.
//! - **Chunks**: the nonce is the chunk number under the data subkey. [`DataSealer`] accepts only
//!   increasing numbers; [`SegmentKeys`] gives out one sealer ever; and a key that came out of a
//!   ring gives out none. A data subkey is therefore used by one sealer in the one process that
//!   drew the segment key, whatever crashes, is restored, or is read twice.
//!
//! Subkey = HKDF-SHA256(salt "wirevault/1 segment", segment key, info), 32 bytes. Layout of `info`,
//! 40 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | purpose: `data`, `header`, `index`, `footer` or `digest`, padded with zero bytes |
//! | 8 | 16 | life id |
//! | 24 | 16 | salt of the record or digest; zero for `data` |

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use wirevault_format::LifeId;
use zeroize::Zeroize;

use crate::hkdf::{Domain, derive_cipher};
use crate::locked::Secret;
use crate::{SALT_BYTES, SealError, TAG_BYTES, random};

/// The key of one life. Clones share it; it is zeroed when the last clone goes.
#[derive(Clone)]
pub struct SegmentKeys {
    inner: Arc<Inner>,
}

struct Inner {
    life: LifeId,
    key: Secret,
    /// Whether a sealer may still be given out.
    may_seal: AtomicBool,
    /// Whether this process drew the key.
    drawn_here: bool,
}

impl SegmentKeys {
    /// Draws a new life id and its key: a spare, until a segment opens with it.
    ///
    /// # Errors
    /// When the random generator fails or there is no memory for secrets.
    pub fn generate() -> Result<Self, SealError> {
        Ok(Self::new(random::life_id()?, Secret::random()?, true))
    }

    /// The key of `life` as a ring holds it. It opens, and seals records, but never seals data.
    pub(crate) fn from_ring(life: LifeId, key: Secret) -> Self {
        Self::new(life, key, false)
    }

    fn new(life: LifeId, key: Secret, drawn_here: bool) -> Self {
        let may_seal = AtomicBool::new(drawn_here);
        Self { inner: Arc::new(Inner { life, key, may_seal, drawn_here }) }
    }

    /// The life this key belongs to.
    pub fn life(&self) -> LifeId {
        self.inner.life
    }

    /// Whether [`SegmentKeys::data_sealer`] would give a sealer: drawn by this process, and not
    /// used yet.
    pub fn may_seal_data(&self) -> bool {
        self.inner.may_seal.load(Ordering::Acquire)
    }

    /// The one sealer of this life's chunks.
    ///
    /// # Errors
    /// [`SealError::NoSealer`] when it was given out before, or when the key was read from a ring.
    pub fn data_sealer(&self) -> Result<DataSealer, SealError> {
        let opener = self.data_opener()?;
        if self.inner.may_seal.swap(false, Ordering::AcqRel) {
            return Ok(DataSealer { opener, last: None });
        }
        let reason = if self.inner.drawn_here {
            "its one data sealer was given out before"
        } else {
            "its key was read from a ring, so chunks may already be sealed under it"
        };
        Err(SealError::NoSealer { life: self.inner.life, reason })
    }

    /// An opener of this life's chunks. Costs a key derivation (about 4 us); keep it for all chunks
    /// of a segment.
    ///
    /// # Errors
    /// When the cipher library fails.
    pub fn data_opener(&self) -> Result<DataOpener, SealError> {
        let key = Arc::new(self.cipher(b"data\0\0\0\0", &[0; SALT_BYTES])?);
        Ok(DataOpener { life: self.inner.life, key })
    }

    /// A sealer of the pages of one digest, by increasing page number, and the salt to open them
    /// with. Every call draws a salt and so a key of its own.
    ///
    /// # Errors
    /// When the random generator or the cipher library fails.
    pub fn digest_sealer(&self) -> Result<(Sealed, DataSealer), SealError> {
        let salt = random::array()?;
        let opener = self.digest_opener(&salt)?;
        Ok((Sealed { salt }, DataSealer { opener, last: None }))
    }

    /// An opener of the pages of the digest with this salt. Costs a key derivation, as
    /// [`SegmentKeys::data_opener`] does, so a question keeps it for all pages.
    ///
    /// # Errors
    /// When the cipher library fails.
    pub fn digest_opener(&self, salt: &[u8; SALT_BYTES]) -> Result<DataOpener, SealError> {
        let key = Arc::new(self.cipher(b"digest\0\0", salt)?);
        Ok(DataOpener { life: self.inner.life, key })
    }

    /// Seals one record in place: `plaintext` becomes the ciphertext followed by the tag of
    /// [`TAG_BYTES`]. Safe to call again for the same record: every call draws a salt and so a key
    /// of its own.
    ///
    /// `aad` is authenticated with it; give what identifies the record's place. Life and purpose
    /// are bound already.
    ///
    /// # Errors
    /// When the random generator or the cipher library fails; `plaintext` is then zeroed and empty.
    pub fn seal_record(
        &self,
        purpose: Purpose,
        aad: &[u8],
        plaintext: &mut Vec<u8>,
    ) -> Result<Sealed, SealError> {
        let salt = random::array()?;
        self.seal_record_with(salt, purpose, aad, plaintext)
            .inspect_err(|_| plaintext.zeroize())?;
        Ok(Sealed { salt })
    }

    fn seal_record_with(
        &self,
        salt: [u8; SALT_BYTES],
        purpose: Purpose,
        aad: &[u8],
        plaintext: &mut Vec<u8>,
    ) -> Result<(), SealError> {
        let key = self.cipher(purpose.label(), &salt)?;
        let tag = key
            .seal_in_place_separate_tag(record_nonce(), Aad::from(aad), plaintext)
            .map_err(|_| SealError::Cipher { doing: "seal a record" })?;
        plaintext.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens in place what [`SegmentKeys::seal_record`] made: the tag goes, the plaintext stays.
    ///
    /// # Errors
    /// [`SealError::Record`] when anything differs from what was sealed; `sealed` is then zeroed
    /// and empty.
    pub fn open_record(
        &self,
        purpose: Purpose,
        salt: &[u8; SALT_BYTES],
        aad: &[u8],
        sealed: &mut Vec<u8>,
    ) -> Result<(), SealError> {
        let key = self.cipher(purpose.label(), salt)?;
        let opened = sealed
            .split_last_chunk_mut::<TAG_BYTES>()
            .is_some_and(|(text, tag)| open(&key, record_nonce(), aad, text, tag).is_ok());
        if opened {
            sealed.truncate(sealed.len() - TAG_BYTES);
            Ok(())
        } else {
            sealed.zeroize();
            Err(SealError::Record { life: self.inner.life, purpose })
        }
    }

    /// The segment key itself, for the ring.
    pub(crate) fn key(&self) -> &[u8] {
        self.inner.key.expose()
    }

    fn cipher(&self, label: &[u8; 8], salt: &[u8; SALT_BYTES]) -> Result<LessSafeKey, SealError> {
        derive_cipher(Domain::Segment, &self.inner.key, &[label, &self.inner.life.0, salt])
    }
}

impl fmt::Debug for SegmentKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentKeys({})", self.inner.life)
    }
}

/// What a record is. Records of different purposes never share a subkey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The segment's own description at its start.
    SegmentHeader,
    /// An index section.
    Index,
    /// The segment's footer.
    Footer,
}

impl Purpose {
    fn label(self) -> &'static [u8; 8] {
        match self {
            Self::SegmentHeader => b"header\0\0",
            Self::Index => b"index\0\0\0",
            Self::Footer => b"footer\0\0",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SegmentHeader => "segment header",
            Self::Index => "index section",
            Self::Footer => "footer",
        })
    }
}

/// What must be stored beside a sealed record to open it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Names the record's subkey. Not secret.
    pub salt: [u8; SALT_BYTES],
}

/// Seals the chunks of one life, or the pages of a digest, in order of their numbers. The hot path:
/// no call allocates, locks or makes a system call.
pub struct DataSealer {
    opener: DataOpener,
    last: Option<u32>,
}

impl DataSealer {
    /// The life whose chunks are sealed.
    pub fn life(&self) -> LifeId {
        self.opener.life
    }

    /// Encrypts `buf` in place and returns its tag. `aad` is authenticated with it: give the
    /// chunk's header.
    ///
    /// # Errors
    /// [`SealError::ChunkOrder`] when `chunk_number` is not above every number offered before;
    /// `buf` is untouched. [`SealError::Cipher`] when the cipher library fails; `buf` is then
    /// zeroed and the number is used up.
    pub fn seal(
        &mut self,
        chunk_number: u32,
        aad: &[u8],
        buf: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], SealError> {
        if let Some(last) = self.last.filter(|last| chunk_number <= *last) {
            return Err(SealError::ChunkOrder {
                life: self.opener.life,
                chunk: chunk_number,
                last,
            });
        }
        self.last = Some(chunk_number);
        let nonce = chunk_nonce(chunk_number);
        let tag = self.opener.key.seal_in_place_separate_tag(nonce, Aad::from(aad), buf);
        tag.ok().and_then(|tag| tag.as_ref().try_into().ok()).ok_or_else(|| {
            buf.zeroize();
            SealError::Cipher { doing: "seal a chunk" }
        })
    }

    /// Decrypts a chunk of this life in place, as [`DataOpener::open`] does.
    ///
    /// # Errors
    /// As [`DataOpener::open`].
    pub fn open(
        &self,
        chunk_number: u32,
        aad: &[u8],
        buf: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), SealError> {
        self.opener.open(chunk_number, aad, buf, tag)
    }

    /// An opener of the same life.
    pub fn opener(&self) -> DataOpener {
        self.opener.clone()
    }
}

impl fmt::Debug for DataSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataSealer({}, last chunk {:?})", self.opener.life, self.last)
    }
}

/// Opens the chunks of one life, or the pages of a digest, in any order. Clones share the subkey.
#[derive(Clone)]
pub struct DataOpener {
    life: LifeId,
    key: Arc<LessSafeKey>,
}

impl DataOpener {
    /// The life whose chunks are opened.
    pub fn life(&self) -> LifeId {
        self.life
    }

    /// Decrypts `buf` in place. Allocates nothing.
    ///
    /// # Errors
    /// [`SealError::Chunk`] when number, `aad`, bytes or tag differ from what was sealed; `buf` is
    /// then zeroed.
    pub fn open(
        &self,
        chunk_number: u32,
        aad: &[u8],
        buf: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), SealError> {
        open(&self.key, chunk_nonce(chunk_number), aad, buf, tag).map_err(|Unauthentic| {
            buf.zeroize();
            SealError::Chunk { life: self.life, chunk: chunk_number }
        })
    }
}

impl fmt::Debug for DataOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataOpener({})", self.life)
    }
}

/// The bytes are not those that were sealed. The caller overwrites them.
pub(crate) struct Unauthentic;

/// Decrypts in place. The cipher library may leave anything in `buf` on failure.
pub(crate) fn open(
    key: &LessSafeKey,
    nonce: Nonce,
    aad: &[u8],
    buf: &mut [u8],
    tag: &[u8; TAG_BYTES],
) -> Result<(), Unauthentic> {
    key.open_in_place_separate_tag(nonce, Aad::from(aad), tag, buf)
        .map(|_| ())
        .map_err(|_| Unauthentic)
}

/// The nonce of a key that encrypts once.
pub(crate) fn record_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

/// Eight zero bytes, then the chunk number in little-endian order.
fn chunk_nonce(chunk_number: u32) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 4..].copy_from_slice(&chunk_number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn known() -> SegmentKeys {
        let key = Secret::filled_by(|slot| {
            slot.iter_mut().zip(0u8..).for_each(|(byte, n)| *byte = n);
            Ok(())
        });
        SegmentKeys::new(LifeId([0xa5; 16]), key.unwrap(), true)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Expected values from Python's `cryptography` 48 (HKDF, AESGCM), following the tables above.
    #[test]
    fn known_answers() {
        let mut chunk = *b"sixteen byte chk";
        let tag = known().data_sealer().unwrap().seal(7, b"header", &mut chunk).unwrap();
        assert_eq!(hex(&chunk), "06ff67adc651f220ab1847593066dcf5");
        assert_eq!(hex(&tag), "69a70cfdc65b3c4e385cd65799d6d87f");

        let salt = [0x3c; SALT_BYTES];
        let opener = known().digest_opener(&salt).unwrap();
        let mut page = *b"sixteen byte pge";
        DataSealer { opener, last: None }.seal(7, b"place", &mut page).unwrap();
        assert_eq!(hex(&page), "23b1873efe44a9564fcff0bb12d990be");

        let mut record = b"a footer".to_vec();
        known().seal_record_with(salt, Purpose::Footer, b"place", &mut record).unwrap();
        assert_eq!(hex(&record), "72477d62a75c124b3e48dc69340d38cbb91273b0bdab2dd3");
    }

    #[test]
    fn chunk_numbers_only_increase() {
        let mut sealer = SegmentKeys::generate().unwrap().data_sealer().unwrap();
        let mut buf = [1; 32];
        for number in [0, 1, 5, u32::MAX] {
            sealer.seal(number, b"", &mut buf).unwrap();
        }
        let before = buf;
        for number in [u32::MAX, 5, 6, 0] {
            let refused = sealer.seal(number, b"", &mut buf);
            assert!(matches!(refused, Err(SealError::ChunkOrder { last: u32::MAX, .. })));
        }
        assert_eq!(buf, before, "a refused chunk is left as it was");
    }

    #[test]
    fn a_life_has_one_data_sealer() {
        let keys = SegmentKeys::generate().unwrap();
        assert!(keys.may_seal_data());
        let first = keys.data_sealer();
        assert!(first.is_ok() && !keys.may_seal_data());
        drop(first);
        assert!(matches!(keys.clone().data_sealer(), Err(SealError::NoSealer { .. })));

        let read = SegmentKeys::from_ring(keys.life(), Secret::random().unwrap());
        assert!(matches!(read.data_sealer(), Err(SealError::NoSealer { .. })));
        assert!(!read.may_seal_data());
    }

    #[test]
    fn a_record_sealed_twice_shares_nothing() {
        let keys = SegmentKeys::generate().unwrap();
        let (mut one, mut two) = (vec![0; 64], vec![0; 64]);
        let first = keys.seal_record(Purpose::Index, b"", &mut one).unwrap();
        let second = keys.seal_record(Purpose::Index, b"", &mut two).unwrap();
        assert_ne!(first.salt, second.salt);
        assert_ne!(one, two);
    }

    #[test]
    fn debug_texts_show_the_life_only() {
        let keys = known();
        let shown = format!("{keys:?} {:?} {:?}", keys.data_opener(), keys.data_sealer());
        assert!(shown.contains(&keys.life().to_string()));
        assert!(!shown.contains("000102") && !shown.contains("0, 1, 2"), "{shown}");
    }

    #[test]
    fn digests_written_twice_share_nothing_and_open_with_their_salt_only() {
        let keys = SegmentKeys::generate().unwrap();
        let read = SegmentKeys::from_ring(keys.life(), copy_of(&keys));
        let written = || {
            let (Sealed { salt }, mut sealer) = read.digest_sealer().unwrap();
            let mut page = [3; 64];
            let tag = sealer.seal(1, b"aad", &mut page).unwrap();
            assert!(matches!(sealer.seal(1, b"", &mut [0]), Err(SealError::ChunkOrder { .. })));
            (salt, page, tag)
        };
        let (one, two) = (written(), written());
        assert!(one.0 != two.0 && one.1 != two.1);
        let opened = |salt, number, mut page: [u8; 64], tag| {
            let result = keys.digest_opener(salt).unwrap().open(number, b"aad", &mut page, tag);
            result.map(|()| page)
        };
        assert_eq!(opened(&one.0, 1, one.1, &one.2).unwrap(), [3; 64]);
        assert!(opened(&two.0, 1, one.1, &one.2).is_err());
        assert!(opened(&one.0, 2, one.1, &one.2).is_err());
    }

    #[test]
    fn short_records_are_refused() {
        let keys = SegmentKeys::generate().unwrap();
        for len in 0..=TAG_BYTES {
            let mut short = vec![0; len];
            let opened = keys.open_record(Purpose::Footer, &[0; SALT_BYTES], b"", &mut short);
            assert!(matches!(opened, Err(SealError::Record { .. })));
        }
    }

    fn purpose() -> impl Strategy<Value = Purpose> {
        prop_oneof![Just(Purpose::SegmentHeader), Just(Purpose::Index), Just(Purpose::Footer)]
    }

    proptest! {
        #[test]
        fn chunks_open_to_what_was_sealed(
            number: u32,
            aad in prop::collection::vec(any::<u8>(), 0..160),
            text in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            let keys = SegmentKeys::generate().unwrap();
            let mut sealer = keys.data_sealer().unwrap();
            let mut buf = text.clone();
            let tag = sealer.seal(number, &aad, &mut buf).unwrap();
            prop_assert!(text.len() < 16 || buf != text);
            sealer.open(number, &aad, &mut buf.clone(), &tag).unwrap();
            keys.data_opener().unwrap().open(number, &aad, &mut buf, &tag).unwrap();
            prop_assert_eq!(buf, text);
        }

        #[test]
        fn records_open_to_what_was_sealed(
            purpose in purpose(),
            aad in prop::collection::vec(any::<u8>(), 0..64),
            text in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            let keys = SegmentKeys::generate().unwrap();
            let mut buf = text.clone();
            let Sealed { salt } = keys.seal_record(purpose, &aad, &mut buf).unwrap();
            prop_assert_eq!(buf.len(), text.len() + TAG_BYTES);
            let read = SegmentKeys::from_ring(keys.life(), copy_of(&keys));
            read.open_record(purpose, &salt, &aad, &mut buf).unwrap();
            prop_assert_eq!(buf, text);
        }
    }

    #[test]
    fn every_flipped_byte_of_a_chunk_is_noticed() {
        let keys = SegmentKeys::generate().unwrap();
        let (header, text) = ([7u8; 128], [9u8; 200]);
        let mut sealed = text;
        let tag = keys.data_sealer().unwrap().seal(3, &header, &mut sealed).unwrap();
        let opener = keys.data_opener().unwrap();
        let refused = |number: u32, aad: &[u8], mut buf: [u8; 200], tag: &[u8; TAG_BYTES]| {
            let result = opener.open(number, aad, &mut buf, tag);
            assert!(matches!(result, Err(SealError::Chunk { .. })));
            assert_eq!(buf, [0; 200], "nothing unauthentic is left in the buffer");
        };
        for bit in 0..8 {
            let mask = 1u8 << bit;
            (0..200).for_each(|at| refused(3, &header, flipped(sealed, at, mask), &tag));
            (0..128).for_each(|at| refused(3, &flipped(header, at, mask), sealed, &tag));
            (0..16).for_each(|at| refused(3, &header, sealed, &flipped(tag, at, mask)));
        }
        (0..32).for_each(|bit| refused(3 ^ (1 << bit), &header, sealed, &tag));
        refused(3, &header[..127], sealed, &tag);
    }

    #[test]
    fn every_flipped_byte_of_a_record_is_noticed() {
        let keys = SegmentKeys::generate().unwrap();
        let aad = [1u8; 24];
        let mut sealed = vec![5u8; 100];
        let Sealed { salt } = keys.seal_record(Purpose::Index, &aad, &mut sealed).unwrap();
        let refused = |purpose, salt: &[u8; 16], aad: &[u8], mut bytes: Vec<u8>| {
            let result = keys.open_record(purpose, salt, aad, &mut bytes);
            assert!(matches!(result, Err(SealError::Record { .. })) && bytes.is_empty());
        };
        for at in 0..sealed.len() {
            let mut bytes = sealed.clone();
            bytes[at] ^= 0x40;
            refused(Purpose::Index, &salt, &aad, bytes);
        }
        (0..16).for_each(|at| refused(Purpose::Index, &flipped(salt, at, 1), &aad, sealed.clone()));
        (0..24).for_each(|at| refused(Purpose::Index, &salt, &flipped(aad, at, 1), sealed.clone()));
        refused(Purpose::Footer, &salt, &aad, sealed.clone());
        refused(Purpose::SegmentHeader, &salt, &aad, sealed.clone());

        let other_life = SegmentKeys::from_ring(LifeId([1; 16]), copy_of(&keys));
        assert!(other_life.open_record(Purpose::Index, &salt, &aad, &mut sealed).is_err());
    }

    fn flipped<const N: usize>(mut bytes: [u8; N], at: usize, mask: u8) -> [u8; N] {
        bytes[at] ^= mask;
        bytes
    }

    fn copy_of(keys: &SegmentKeys) -> Secret {
        Secret::filled_by(|slot| {
            slot.copy_from_slice(keys.key());
            Ok(())
        })
        .unwrap()
    }
}
