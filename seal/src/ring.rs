//! The key ring of a volume: which life has which key. What is not in the ring can never be read
//! again.
//!
//! A ring is one flat table, rewritten whole. Every writing draws a fresh random root key, has the
//! provider wrap it, and encrypts the table under a key derived from it. Forgetting a life means
//! leaving it out of the next writing and then destroying the one before.
//!
//! Layout, little-endian, `w` = bytes of the wrapped root, `n` = entries:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `WVRING`, two zero bytes |
//! | 8 | 2 | version, 1 |
//! | 10 | 2 | `w`, at most 4096 |
//! | 12 | 4 | `n`, at most 1,048,576 |
//! | 16 | 8 | epoch |
//! | 24 | 16 | store id |
//! | 40 | 16 | volume id |
//! | 56 | w | root key, wrapped by the provider; `aad` = `WVROOT`, two zero bytes, then bytes 16..56 |
//! | 56 + w | 4 | CRC32C (Castagnoli) of everything before it |
//! | 60 + w | 48 n | AES-256-GCM ciphertext of the entries: life id (16), segment key (32); ascending by life id |
//! | 60 + w + 48 n | 16 | GCM tag; `aad` = the 60 + w bytes before the ciphertext |
//!
//! A provider may ask for parts instead (version 2, `parts`): then keys can be left out by who
//! cannot open them.
//!
//! Table key = HKDF-SHA256(salt "wirevault/1 ring root", root, info `table` padded with zero bytes
//! to 8). It encrypts once, with nonce 0; no two encodings share a root.

mod parts;

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::aead::{Aad, LessSafeKey};
use wirevault_format::{LifeId, StoreId, VolumeId};

use crate::hkdf::{Domain, derive_cipher};
use crate::locked::{LockedBytes, Secret};
use crate::ring::parts::Part;
use crate::segment::{open, record_nonce};
use crate::{KEY_BYTES, KeyProvider, SealError, SegmentKeys, TAG_BYTES};

/// Bytes at the start of a ring that tell how long the whole is; see [`encoded_bytes`].
pub const HEAD_BYTES: usize = 56;

/// Entries of one ring at most: a volume of 64 TiB cut into the smallest segments has 4 times as
/// many, but with the 1 GiB segments it would get, 16 times fewer. The table is then 48 MiB.
pub const ENTRIES_MAX: usize = 1 << 20;

/// Bytes of a wrapped root at most. Key services answer with a few hundred.
pub const WRAPPED_ROOT_BYTES_MAX: usize = 4096;

const MAGIC: [u8; 8] = *b"WVRING\0\0";
const ROOT_LABEL: [u8; 8] = *b"WVROOT\0\0";
const TABLE_INFO: [u8; 8] = *b"table\0\0\0";
const VERSION: u16 = 1;
/// Of a ring in parts.
const VERSION_PARTS: u16 = 2;
const CRC_BYTES: usize = 4;
const LIFE_BYTES: usize = 16;
const ENTRY_BYTES: usize = LIFE_BYTES + KEY_BYTES;
const WHAT: &str = "the key ring";

/// Bytes of a ring of `entries` whose root wraps to `wrapped_root` bytes.
pub const fn ring_bytes(entries: usize, wrapped_root: usize) -> usize {
    HEAD_BYTES + wrapped_root + CRC_BYTES + entries * ENTRY_BYTES + TAG_BYTES
}

/// Bytes of the ring that starts with `head`, without opening it.
///
/// # Errors
/// As [`KeyRing::decode`] for the fields it looks at. The checksum is not looked at.
pub fn encoded_bytes(head: &[u8; HEAD_BYTES]) -> Result<usize, SealError> {
    match u16::from_le_bytes(field(head, 8)) {
        VERSION_PARTS if field(head, 0) == MAGIC => Ok(parts::encoded_bytes(head)),
        _ => Head::read(head).map(|head| ring_bytes(head.entries, head.wrapped_root)),
    }
}

pub use parts::parts_bytes;

/// The wrapped root of the newest keys in an encoded ring; nothing if these bytes are none.
pub fn wrapped_root(ring: &[u8]) -> Option<&[u8]> {
    if parts::is_in_parts(ring) {
        return parts::newest_root(ring);
    }
    let head = Head::read(ring.first_chunk()?).ok()?;
    ring.get(HEAD_BYTES..HEAD_BYTES + head.wrapped_root)
}

/// The keys of one volume, in memory.
///
/// Holds the keys of all segments and some spares. A *spare* is a key that no segment uses yet. A
/// segment may open only with a spare that this process drew and that a durable writing of the ring
/// contains; spares read from a ring are dropped ([`KeyRing::retain`]) and replaced, as a segment
/// may have been begun with them before a crash.
#[derive(Clone)]
pub struct KeyRing {
    store: StoreId,
    volume: VolumeId,
    epoch: u64,
    entries: BTreeMap<LifeId, SegmentKeys>,
    /// Keys that this process could not open.
    shut: Vec<Part>,
}

impl KeyRing {
    /// An empty ring at epoch 0.
    pub fn new(store: StoreId, volume: VolumeId) -> Self {
        Self { store, volume, epoch: 0, entries: BTreeMap::new(), shut: Vec::new() }
    }

    /// The store this ring belongs to.
    pub fn store(&self) -> StoreId {
        self.store
    }

    /// The volume this ring belongs to.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Counts the writings of this ring; of two valid rings of a volume the one with the higher
    /// epoch counts.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Steps to the next epoch, before the ring is written again.
    pub fn advance_epoch(&mut self) {
        self.epoch = self.epoch.saturating_add(1);
    }

    /// Number of keys, spares included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The key of `life`, if it has not been forgotten.
    pub fn get(&self, life: LifeId) -> Option<&SegmentKeys> {
        self.entries.get(&life)
    }

    /// Why the key of `life` does not open, if it is there and does not.
    pub fn why_shut(&self, life: LifeId) -> Option<&SealError> {
        self.shut.iter().find(|part| part.has(life)).map(Part::why)
    }

    /// Why there are keys that do not open, one reason for each part of them.
    pub fn shut(&self) -> impl Iterator<Item = &SealError> {
        self.shut.iter().map(Part::why)
    }

    /// Takes out a reason why keys do not open that is not good enough to go on without them.
    pub fn take_shut(&mut self, may_stay: impl Fn(&SealError) -> bool) -> Option<SealError> {
        let at = self.shut.iter().position(|part| !may_stay(part.why()))?;
        self.shut.swap_remove(at).into_why()
    }

    /// All keys, ascending by life id.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &SegmentKeys> {
        self.entries.values()
    }

    /// Keys that a segment may be opened with once this ring is durable: drawn by this process, not
    /// sealed with yet.
    pub fn spares(&self) -> impl Iterator<Item = &SegmentKeys> {
        self.entries.values().filter(|keys| keys.may_seal_data())
    }

    /// Draws keys until there are `count` spares.
    ///
    /// # Errors
    /// [`SealError::Exhausted`] when the ring would exceed [`ENTRIES_MAX`]; otherwise as
    /// [`SegmentKeys::generate`].
    pub fn fill_spares(&mut self, count: usize) -> Result<(), SealError> {
        for _ in self.spares().count()..count {
            self.insert(SegmentKeys::generate()?)?;
        }
        Ok(())
    }

    /// Adds a key.
    ///
    /// # Errors
    /// [`SealError::Exhausted`] when the ring is full.
    pub fn insert(&mut self, keys: SegmentKeys) -> Result<(), SealError> {
        if self.entries.len() >= ENTRIES_MAX {
            let (got, max) = (self.entries.len() + 1, ENTRIES_MAX);
            return Err(SealError::Exhausted { what: "keys in a ring", got, max });
        }
        self.entries.insert(keys.life(), keys);
        Ok(())
    }

    /// Forgets the key of `life`. It stays readable on the device until the ring is written again
    /// and the writing before is destroyed. Tells whether there was one.
    pub fn forget(&mut self, life: LifeId) -> bool {
        self.entries.remove(&life).is_some()
    }

    /// Forgets every key for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&SegmentKeys) -> bool) {
        self.entries.retain(|_, keys| keep(keys));
    }

    /// As [`KeyRing::retain`], for the keys that did not open.
    pub fn retain_shut(&mut self, mut keep: impl FnMut(LifeId) -> bool) {
        self.shut.retain_mut(|part| part.retain(&mut keep));
    }

    /// Writes the ring out under a fresh root, in parts if the provider wants that or if there are
    /// keys that did not open.
    ///
    /// # Errors
    /// When the provider, the random generator or the cipher library fails.
    pub fn encode(&self, provider: &dyn KeyProvider) -> Result<Vec<u8>, SealError> {
        if provider.writes_parts() || !self.shut.is_empty() {
            return parts::encode(self, provider);
        }
        let root = Secret::random()?;
        let place = Place { epoch: self.epoch, store: self.store, volume: self.volume };
        let wrapped = provider.wrap(root.expose(), &place.root_aad())?;
        let (got, max) = (wrapped.len(), WRAPPED_ROOT_BYTES_MAX);
        let wrapped_bytes = u16::try_from(got).ok().filter(|_| got <= max);
        let too_long = || SealError::Exhausted { what: "bytes of a wrapped root", got, max };

        let mut bytes = Vec::with_capacity(ring_bytes(self.entries.len(), wrapped.len()));
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&wrapped_bytes.ok_or_else(too_long)?.to_le_bytes());
        // `insert` keeps the number far below 2^32.
        bytes.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&place.bytes());
        bytes.extend_from_slice(&wrapped);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());

        let mut table = LockedBytes::zeroed(self.entries.len() * ENTRY_BYTES)?;
        for (slot, (life, keys)) in table.chunks_exact_mut(ENTRY_BYTES).zip(&self.entries) {
            let (life_at, key_at) = slot.split_at_mut(LIFE_BYTES);
            life_at.copy_from_slice(&life.0);
            key_at.copy_from_slice(keys.key());
        }
        let tag = table_cipher(&root)?
            .seal_in_place_separate_tag(record_nonce(), Aad::from(&bytes), &mut table)
            .map_err(|_| SealError::Cipher { doing: "seal the key ring" })?;
        bytes.extend_from_slice(&table);
        bytes.extend_from_slice(tag.as_ref());
        Ok(bytes)
    }

    /// Reads a ring. Bytes after its end are ignored: a slot on a volume is longer than its ring.
    ///
    /// The caller compares [`KeyRing::store`] and [`KeyRing::volume`] with those it expects; a ring
    /// copied from another volume of the same store opens well.
    ///
    /// # Errors
    /// In this order: [`SealError::Foreign`] (not a ring), [`SealError::Newer`],
    /// [`SealError::Damaged`] (lengths or checksum), whatever the provider says
    /// ([`SealError::WrongKey`] above all), [`SealError::Damaged`] (the root is right, the table
    /// does not authenticate).
    pub fn decode(bytes: &[u8], provider: &dyn KeyProvider) -> Result<Self, SealError> {
        let damaged = |detail| SealError::Damaged { what: WHAT, detail };
        let head_bytes = bytes.first_chunk().ok_or(if bytes.starts_with(&MAGIC) {
            damaged("it is cut off in its header")
        } else {
            SealError::Foreign { what: WHAT }
        })?;
        if parts::is_in_parts(bytes) {
            return parts::decode(bytes, head_bytes, provider);
        }
        let head = Head::read(head_bytes)?;
        let len = ring_bytes(head.entries, head.wrapped_root);
        let bytes = bytes.get(..len).ok_or_else(|| damaged("it is cut off"))?;

        let (before_crc, rest) = bytes.split_at(HEAD_BYTES + head.wrapped_root);
        let (crc, rest) = rest.split_first_chunk().ok_or_else(|| damaged("it is cut off"))?;
        if crc32c::crc32c(before_crc) != u32::from_le_bytes(*crc) {
            return Err(damaged("the checksum of its header is wrong"));
        }
        let root = unwrap_root(&before_crc[HEAD_BYTES..], &head.place, provider)?;

        let (table, tag) = rest.split_last_chunk().ok_or_else(|| damaged("it is cut off"))?;
        let aad = &bytes[..HEAD_BYTES + head.wrapped_root + CRC_BYTES];
        let mut table = LockedBytes::copy_of(table)?;
        open(&table_cipher(&root)?, record_nonce(), aad, &mut table, tag)
            .map_err(|_| damaged("its table does not authenticate, though the key is right"))?;

        let Place { epoch, store, volume } = head.place;
        let mut ring = Self { epoch, ..Self::new(store, volume) };
        for entry in table.chunks_exact(ENTRY_BYTES) {
            ring.insert(entry_keys(entry)?)?;
        }
        if ring.len() != head.entries {
            return Err(damaged("it names a life twice"));
        }
        Ok(ring)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { volume, epoch, entries, shut, .. } = self;
        let (keys, shut) = (entries.len(), shut.iter().map(Part::len).sum::<usize>());
        write!(f, "KeyRing(volume {volume}, epoch {epoch}, {keys} keys, {shut} that do not open)")
    }
}

/// Which writing of which volume's ring this is.
#[derive(Debug, Clone, Copy)]
struct Place {
    epoch: u64,
    store: StoreId,
    volume: VolumeId,
}

const PLACE_BYTES: usize = 40;

impl Place {
    fn bytes(&self) -> [u8; PLACE_BYTES] {
        let mut bytes = [0; PLACE_BYTES];
        bytes[..8].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.store.0);
        bytes[24..].copy_from_slice(&self.volume.0);
        bytes
    }

    fn root_aad(&self) -> [u8; ROOT_LABEL.len() + PLACE_BYTES] {
        let mut aad = [0; ROOT_LABEL.len() + PLACE_BYTES];
        aad[..ROOT_LABEL.len()].copy_from_slice(&ROOT_LABEL);
        aad[ROOT_LABEL.len()..].copy_from_slice(&self.bytes());
        aad
    }
}

/// The fixed part, its limits checked.
struct Head {
    wrapped_root: usize,
    entries: usize,
    place: Place,
}

impl Head {
    fn read(bytes: &[u8; HEAD_BYTES]) -> Result<Self, SealError> {
        if field(bytes, 0) != MAGIC {
            return Err(SealError::Foreign { what: WHAT });
        }
        let version = u16::from_le_bytes(field(bytes, 8));
        if version != VERSION {
            return Err(SealError::Newer { what: WHAT, version, supported: VERSION_PARTS });
        }
        let wrapped_root = usize::from(u16::from_le_bytes(field(bytes, 10)));
        let entries = u32::from_le_bytes(field(bytes, 12)) as usize;
        if wrapped_root > WRAPPED_ROOT_BYTES_MAX || entries > ENTRIES_MAX {
            let detail = "its header names a length beyond the limit";
            return Err(SealError::Damaged { what: WHAT, detail });
        }
        let place = Place {
            epoch: u64::from_le_bytes(field(bytes, 16)),
            store: StoreId(field(bytes, 24)),
            volume: VolumeId(field(bytes, 40)),
        };
        Ok(Self { wrapped_root, entries, place })
    }
}

/// The `N` bytes at `at`; a constant place within the header at every call.
fn field<const N: usize>(bytes: &[u8; HEAD_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn unwrap_root(
    wrapped: &[u8],
    place: &Place,
    provider: &dyn KeyProvider,
) -> Result<Secret, SealError> {
    let root = provider.unwrap(wrapped, &place.root_aad())?;
    if root.len() != KEY_BYTES {
        let detail = "its root key has the wrong length";
        return Err(SealError::Damaged { what: WHAT, detail });
    }
    Secret::filled_by(|slot| {
        slot.copy_from_slice(&root);
        Ok(())
    })
}

fn table_cipher(root: &Secret) -> Result<LessSafeKey, SealError> {
    derive_cipher(Domain::RingRoot, root, &[&TABLE_INFO])
}

/// One entry of the table, [`ENTRY_BYTES`] long.
fn entry_keys(entry: &[u8]) -> Result<SegmentKeys, SealError> {
    let mut life = LifeId([0; LIFE_BYTES]);
    life.0.copy_from_slice(&entry[..LIFE_BYTES]);
    let key = Secret::filled_by(|slot| {
        slot.copy_from_slice(&entry[LIFE_BYTES..]);
        Ok(())
    })?;
    Ok(SegmentKeys::from_ring(life, key))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::{FileProvider, Purpose};

    const STORE: StoreId = StoreId([1; 16]);
    const VOLUME: VolumeId = VolumeId([2; 16]);

    /// Wraps by exclusive-or and remembers the roots it saw.
    #[derive(Default)]
    struct Glass {
        roots: Mutex<Vec<Vec<u8>>>,
        overhead: usize,
    }

    impl KeyProvider for Glass {
        fn id(&self) -> String {
            "glass".into()
        }

        fn wrap(&self, plaintext: &[u8], _: &[u8]) -> Result<Vec<u8>, SealError> {
            self.roots.lock().unwrap().push(plaintext.to_vec());
            let padding = std::iter::repeat_n(0, self.overhead);
            Ok(plaintext.iter().map(|byte| byte ^ 0x5a).chain(padding).collect())
        }

        fn unwrap(&self, wrapped: &[u8], _: &[u8]) -> Result<LockedBytes, SealError> {
            let root: Vec<u8> = wrapped.iter().map(|byte| byte ^ 0x5a).collect();
            LockedBytes::copy_of(&root[..root.len() - self.overhead])
        }
    }

    fn file_provider(dir: &Path, name: &str) -> FileProvider {
        FileProvider::create(&dir.join(name)).unwrap()
    }

    fn ring_of(count: usize, epoch: u64) -> KeyRing {
        let mut ring = KeyRing::new(STORE, VOLUME);
        ring.epoch = epoch;
        ring.fill_spares(count).unwrap();
        ring
    }

    fn same(one: &KeyRing, two: &KeyRing) -> bool {
        let keys = |ring: &KeyRing| -> Vec<_> {
            ring.entries().map(|keys| (keys.life(), keys.key().to_vec())).collect()
        };
        let head = |ring: &KeyRing| (ring.store(), ring.volume(), ring.epoch());
        head(one) == head(two) && keys(one) == keys(two)
    }

    #[test]
    fn every_flipped_byte_is_an_error_of_the_right_kind() {
        let dir = TempDir::new().unwrap();
        let provider = file_provider(dir.path(), "k");
        let bytes = ring_of(3, 9).encode(&provider).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let error = KeyRing::decode(&flipped, &provider).unwrap_err();
                let right = match at {
                    0..8 => matches!(error, SealError::Foreign { .. }),
                    8..10 => matches!(error, SealError::Newer { .. }),
                    _ => error.is_damage(),
                };
                assert!(right, "byte {at} bit {bit}: {error}");
            }
        }
    }

    #[test]
    fn every_shorter_ring_is_an_error_and_a_longer_one_is_not() {
        let dir = TempDir::new().unwrap();
        let provider = file_provider(dir.path(), "k");
        let ring = ring_of(2, 1);
        let mut bytes = ring.encode(&provider).unwrap();
        for len in 0..bytes.len() {
            assert!(KeyRing::decode(&bytes[..len], &provider).is_err(), "{len} bytes");
        }
        assert_eq!(encoded_bytes(bytes.first_chunk().unwrap()).unwrap(), bytes.len());
        bytes.resize(bytes.len().next_multiple_of(4096), 0xee);
        assert!(same(&KeyRing::decode(&bytes, &provider).unwrap(), &ring));
    }

    #[test]
    fn errors_tell_what_is_the_matter() {
        let dir = TempDir::new().unwrap();
        let provider = file_provider(dir.path(), "right");
        let bytes = ring_of(1, 1).encode(&provider).unwrap();

        let wrong = KeyRing::decode(&bytes, &file_provider(dir.path(), "wrong")).unwrap_err();
        assert!(wrong.is_wrong_key() && !wrong.is_damage());
        assert!(wrong.to_string().contains(&provider.fingerprint()));
        for blank in [vec![], vec![0; 4096], b"WVRINGS are not rings".to_vec()] {
            assert!(matches!(KeyRing::decode(&blank, &provider), Err(SealError::Foreign { .. })));
        }
        let mut huge = bytes;
        huge[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(KeyRing::decode(&huge, &provider).unwrap_err().is_damage());
    }

    #[test]
    fn a_header_of_another_volume_or_epoch_does_not_fit() {
        let dir = TempDir::new().unwrap();
        let provider = file_provider(dir.path(), "k");
        let bytes = ring_of(1, 5).encode(&provider).unwrap();
        for at in [16, 24, 40] {
            let mut moved = bytes.clone();
            moved[at] ^= 1;
            let crc_at = moved.len() - TAG_BYTES - ENTRY_BYTES - CRC_BYTES;
            let crc = crc32c::crc32c(&moved[..crc_at]);
            moved[crc_at..crc_at + CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
            assert!(KeyRing::decode(&moved, &provider).unwrap_err().is_damage(), "byte {at}");
        }
    }

    #[test]
    fn two_encodings_of_one_ring_share_no_key() {
        let glass = Glass::default();
        let ring = ring_of(4, 7);
        let (one, two) = (ring.encode(&glass).unwrap(), ring.encode(&glass).unwrap());
        let roots = glass.roots.lock().unwrap();
        assert_eq!(roots.len(), 2);
        assert_ne!(roots[0], roots[1]);
        let table = one.len() - TAG_BYTES - 4 * ENTRY_BYTES;
        assert!(one[table..].iter().zip(&two[table..]).filter(|(a, b)| a == b).count() < 32);
    }

    #[test]
    fn keys_read_back_open_and_seal_records_but_no_data() {
        let glass = Glass::default();
        let ring = ring_of(1, 0);
        let keys = ring.spares().next().unwrap();
        let (mut chunk, mut footer) = (*b"some packets", b"a footer".to_vec());
        let tag = keys.data_sealer().unwrap().seal(0, b"head", &mut chunk).unwrap();
        let sealed = keys.seal_record(Purpose::Footer, b"", &mut footer).unwrap();
        assert_eq!(ring.spares().count(), 0, "a key with a sealer is no spare");

        let read = KeyRing::decode(&ring.encode(&glass).unwrap(), &glass).unwrap();
        let read_keys = read.get(keys.life()).unwrap();
        read_keys.data_opener().unwrap().open(0, b"head", &mut chunk, &tag).unwrap();
        assert_eq!(&chunk, b"some packets");
        read_keys.open_record(Purpose::Footer, &sealed.salt, b"", &mut footer).unwrap();
        assert_eq!(footer, b"a footer");
        read_keys.seal_record(Purpose::Footer, b"", &mut footer).unwrap();
        assert!(read_keys.data_sealer().is_err());
        assert_eq!(read.spares().count(), 0, "spares of an earlier process are not taken");
    }

    #[test]
    fn forgotten_lives_are_gone() {
        let mut ring = ring_of(3, 0);
        let lives: Vec<_> = ring.entries().map(SegmentKeys::life).collect();
        assert!(ring.forget(lives[0]) && !ring.forget(lives[0]));
        ring.retain(|keys| keys.life() != lives[1]);
        ring.advance_epoch();
        let glass = Glass::default();
        let read = KeyRing::decode(&ring.encode(&glass).unwrap(), &glass).unwrap();
        assert_eq!((read.len(), read.epoch(), read.is_empty()), (1, 1, false));
        assert!(read.get(lives[0]).is_none() && read.get(lives[2]).is_some());
    }

    #[test]
    fn a_root_that_wraps_too_long_is_refused() {
        let glass = Glass { overhead: WRAPPED_ROOT_BYTES_MAX, ..Glass::default() };
        let refused = ring_of(0, 0).encode(&glass);
        assert!(matches!(refused, Err(SealError::Exhausted { got: 4128, max: 4096, .. })));
    }

    /// Expected tag from Python's `cryptography` 48, following the table in the module's
    /// description: roots, wrapped by `Glass`, of 32 bytes 0x77; one life of 16 bytes 0xa5 with a
    /// key of 32 bytes 0x42; epoch 0x0102.
    #[test]
    fn known_answer() {
        let bytes: Vec<u8> = concat!(
            "575652494e47000001002000010000000201000000000000010101010101010101010101",
            "01010101020202020202020202020202020202022d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d",
            "2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d8bde9ac3bea6b603ea106b346e92b9333f11da23",
            "aab6911c79d877c9aa404bcda08997e5b8c9ba05231b9ab83301431a76326aa95ee1700a",
            "a1510fb96d1bd1f5db7c7d7f"
        )
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
        let ring = KeyRing::decode(&bytes, &Glass::default()).unwrap();
        assert_eq!((ring.store(), ring.volume(), ring.epoch()), (STORE, VOLUME, 0x0102));
        assert_eq!(ring.get(LifeId([0xa5; 16])).unwrap().key(), [0x42; 32]);
        assert_eq!(bytes.len(), ring_bytes(1, 32));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn rings_read_back(count in 0usize..40, epoch: u64, overhead in 0usize..300) {
            let glass = Glass { overhead, ..Glass::default() };
            let ring = ring_of(count, epoch);
            let bytes = ring.encode(&glass).unwrap();
            prop_assert_eq!(bytes.len(), ring_bytes(count, KEY_BYTES + overhead));
            prop_assert!(same(&KeyRing::decode(&bytes, &glass).unwrap(), &ring));
        }

        #[test]
        fn hostile_bytes_are_errors(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            dress: bool,
        ) {
            let dir = TempDir::new().unwrap();
            let provider = file_provider(dir.path(), "k");
            let mut bytes = bytes;
            if dress && bytes.len() >= 10 {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
            }
            prop_assert!(KeyRing::decode(&bytes, &provider).is_err());
        }
    }
}
