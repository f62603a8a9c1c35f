//! A ring in parts, for stores whose recorder may have to go on without opening its ring.
//!
//! Every start that cannot open what is there begins a part of its own, under a root of its own.
//! Each key is encrypted by itself, so one can be left out of a part that does not open: forgetting
//! needs no key. Who can open all parts writes one.
//!
//! Layout, little-endian, behind magic, version 2, and with store and volume as in version 1:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 10 | 2 | parts, at most 1024 |
//! | 12 | 4 | bytes of the whole ring |
//! | 16 | 8 | epoch |
//! | 56 | | parts, the newest first |
//! | end - 4 | 4 | CRC32C (Castagnoli) of everything before it |
//!
//! A part, `w` = bytes of the wrapped root, `n` = entries:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | epoch in which its root was drawn |
//! | 8 | 2 | `w`, at most 4096 |
//! | 10 | 2 | zero |
//! | 12 | 4 | `n` |
//! | 16 | w | root key, wrapped by the provider; `aad` as in version 1, with this epoch |
//! | 16 + w | 64 n | entries, ascending by life id: life id (16), ciphertext of the segment key (32), GCM tag (16); `aad` that of the root |
//!
//! Entry key = HKDF-SHA256(salt "wirevault/1 ring root", root, info `entry` padded with zero bytes
//! to 8, then the life id). It encrypts once, with nonce 0: no root is used for two writings.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::aead::{Aad, LessSafeKey};
use wirevault_format::{LifeId, StoreId, VolumeId};

use super::{
    HEAD_BYTES, KeyRing, LIFE_BYTES, MAGIC, Place, VERSION_PARTS, WHAT, WRAPPED_ROOT_BYTES_MAX,
    entry_keys, field, unwrap_root,
};
use crate::hkdf::{Domain, derive_cipher};
use crate::locked::{LockedBytes, Secret};
use crate::segment::{open, record_nonce};
use crate::{KEY_BYTES, KeyProvider, SealError, TAG_BYTES};

/// Parts of a ring at most: starts without the key whose segments are still there.
const PARTS_MAX: usize = 1024;
const PART_HEAD_BYTES: usize = 16;
const SEALED_BYTES: usize = KEY_BYTES + TAG_BYTES;
const ENTRY_BYTES: usize = LIFE_BYTES + SEALED_BYTES;
const CRC_BYTES: usize = 4;
const ENTRY_INFO: [u8; 8] = *b"entry\0\0\0";
/// Bytes of a wrapped root for which a part has room in [`parts_bytes`]: 512 of RSA, and names.
const PART_ROOT_BYTES: usize = 1008;

type Sealed = [u8; SEALED_BYTES];

/// Bytes for which a volume keeps room: so many entries in as many parts as they can be in.
pub const fn parts_bytes(entries: usize) -> usize {
    let parts = if entries < PARTS_MAX { entries + 1 } else { PARTS_MAX };
    HEAD_BYTES + parts * (PART_HEAD_BYTES + PART_ROOT_BYTES) + entries * ENTRY_BYTES + CRC_BYTES
}

/// Keys under a root that did not open, as they are stored.
#[derive(Clone)]
pub(super) struct Part {
    place: Place,
    wrapped_root: Vec<u8>,
    entries: BTreeMap<LifeId, Sealed>,
    why: Arc<SealError>,
}

impl Part {
    pub(super) fn has(&self, life: LifeId) -> bool {
        self.entries.contains_key(&life)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn why(&self) -> &SealError {
        &self.why
    }

    /// The same, if nobody else has it.
    pub(super) fn into_why(self) -> Option<SealError> {
        Arc::into_inner(self.why)
    }

    /// Whether anything is left.
    pub(super) fn retain(&mut self, keep: &mut impl FnMut(LifeId) -> bool) -> bool {
        self.entries.retain(|life, _| keep(*life));
        !self.entries.is_empty()
    }
}

pub(super) fn is_in_parts(ring: &[u8]) -> bool {
    ring.starts_with(&MAGIC) && ring.get(8..10) == Some(&VERSION_PARTS.to_le_bytes())
}

pub(super) fn encoded_bytes(head: &[u8; HEAD_BYTES]) -> usize {
    u32::from_le_bytes(field(head, 12)) as usize
}

/// The wrapped root of the first part.
pub(super) fn newest_root(ring: &[u8]) -> Option<&[u8]> {
    let (part, _) = split_part(ring.get(HEAD_BYTES..)?)?;
    Some(part.wrapped_root)
}

/// Writes a ring: what is open under a fresh root, the rest as it was.
pub(super) fn encode(ring: &KeyRing, provider: &dyn KeyProvider) -> Result<Vec<u8>, SealError> {
    let limited = |what, got: usize, max: usize| match got <= max {
        true => Ok(()),
        false => Err(SealError::Exhausted { what, got, max }),
    };
    let parts = 1 + ring.shut.len();
    limited("parts of a key ring, one for each start without its key", parts, PARTS_MAX)?;
    let root = Secret::random()?;
    let place = Place { epoch: ring.epoch, store: ring.store, volume: ring.volume };
    let wrapped = provider.wrap(root.expose(), &place.root_aad())?;
    limited("bytes of a wrapped root", wrapped.len(), WRAPPED_ROOT_BYTES_MAX)?;
    let mut sealed = BTreeMap::new();
    for (life, keys) in &ring.entries {
        sealed.insert(*life, seal(&root, &place, *life, keys.key())?);
    }

    let mut bytes = Vec::new();
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION_PARTS.to_le_bytes());
    bytes.extend_from_slice(&(parts as u16).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&place.bytes());
    put_part(&mut bytes, place.epoch, &wrapped, &sealed);
    for Part { place, wrapped_root, entries, .. } in &ring.shut {
        put_part(&mut bytes, place.epoch, wrapped_root, entries);
    }
    let len = u32::try_from(bytes.len() + CRC_BYTES);
    let too_long = |_| SealError::Exhausted {
        what: "bytes of a key ring",
        got: bytes.len(),
        max: u32::MAX as usize,
    };
    let len = len.map_err(too_long)?;
    bytes[12..16].copy_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    Ok(bytes)
}

/// Reads a ring. A part whose root the provider does not open is kept as it is; damage is an error.
pub(super) fn decode(
    bytes: &[u8],
    head: &[u8; HEAD_BYTES],
    provider: &dyn KeyProvider,
) -> Result<KeyRing, SealError> {
    let cut = || damaged("it is cut off");
    let bytes = bytes.get(..encoded_bytes(head)).ok_or_else(cut)?;
    let (body, crc) = bytes.split_last_chunk().ok_or_else(cut)?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err(damaged("its checksum is wrong"));
    }
    let (store, volume) = (StoreId(field(head, 24)), VolumeId(field(head, 40)));
    let epoch = u64::from_le_bytes(field(head, 16));
    let mut ring = KeyRing { epoch, ..KeyRing::new(store, volume) };
    let mut rest = body.get(HEAD_BYTES..).ok_or_else(cut)?;
    for _ in 0..u16::from_le_bytes(field(head, 10)) {
        let (part, behind) = split_part(rest).ok_or_else(cut)?;
        rest = behind;
        let place = Place { epoch: part.epoch, store, volume };
        match unwrap_root(part.wrapped_root, &place, provider) {
            Ok(root) => {
                for (life, sealed) in part.entries() {
                    ring.insert(unseal(&root, &place, life, &sealed)?)?;
                }
            }
            Err(error) if error.is_damage() => return Err(error),
            Err(error) => ring.shut.push(Part {
                place,
                wrapped_root: part.wrapped_root.to_vec(),
                entries: part.entries().collect(),
                why: Arc::new(error),
            }),
        }
    }
    match rest.is_empty() {
        true => Ok(ring),
        false => Err(damaged("there are bytes behind its parts")),
    }
}

/// A part, as it is stored.
struct Stored<'a> {
    epoch: u64,
    wrapped_root: &'a [u8],
    table: &'a [u8],
}

impl Stored<'_> {
    fn entries(&self) -> impl Iterator<Item = (LifeId, Sealed)> {
        self.table.chunks_exact(ENTRY_BYTES).map(|entry| {
            let (mut life, mut sealed) = (LifeId([0; LIFE_BYTES]), [0; SEALED_BYTES]);
            life.0.copy_from_slice(&entry[..LIFE_BYTES]);
            sealed.copy_from_slice(&entry[LIFE_BYTES..]);
            (life, sealed)
        })
    }
}

/// The first part, and what is behind it; `None` if it is cut off.
fn split_part(bytes: &[u8]) -> Option<(Stored<'_>, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<PART_HEAD_BYTES>()?;
    let [a, b, c, d, e, f, g, h, w0, w1, _, _, n0, n1, n2, n3] = *head;
    let epoch = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let root_bytes = usize::from(u16::from_le_bytes([w0, w1]));
    let entries = u32::from_le_bytes([n0, n1, n2, n3]) as usize;
    let (wrapped_root, rest) = rest.split_at_checked(root_bytes)?;
    let (table, rest) = rest.split_at_checked(entries.checked_mul(ENTRY_BYTES)?)?;
    Some((Stored { epoch, wrapped_root, table }, rest))
}

/// The limits of both lengths were checked, of this writing or of the one it was read from.
fn put_part(out: &mut Vec<u8>, epoch: u64, wrapped: &[u8], entries: &BTreeMap<LifeId, Sealed>) {
    out.extend_from_slice(&epoch.to_le_bytes());
    out.extend_from_slice(&(wrapped.len() as u16).to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    out.extend_from_slice(wrapped);
    for (life, sealed) in entries {
        out.extend_from_slice(&life.0);
        out.extend_from_slice(sealed);
    }
}

fn cipher(root: &Secret, life: LifeId) -> Result<LessSafeKey, SealError> {
    derive_cipher(Domain::RingRoot, root, &[&ENTRY_INFO, &life.0])
}

fn seal(root: &Secret, place: &Place, life: LifeId, key: &[u8]) -> Result<Sealed, SealError> {
    let mut text = LockedBytes::copy_of(key)?;
    let tag = cipher(root, life)?
        .seal_in_place_separate_tag(record_nonce(), Aad::from(place.root_aad()), &mut text)
        .map_err(|_| SealError::Cipher { doing: "seal the key ring" })?;
    let mut sealed = [0; SEALED_BYTES];
    sealed[..KEY_BYTES].copy_from_slice(&text);
    sealed[KEY_BYTES..].copy_from_slice(tag.as_ref());
    Ok(sealed)
}

fn unseal(
    root: &Secret,
    place: &Place,
    life: LifeId,
    sealed: &Sealed,
) -> Result<crate::SegmentKeys, SealError> {
    let (text, tag) = sealed.split_last_chunk().ok_or_else(|| damaged("it is cut off"))?;
    let mut entry = LockedBytes::zeroed(LIFE_BYTES + KEY_BYTES)?;
    let (life_at, key) = entry.split_at_mut(LIFE_BYTES);
    life_at.copy_from_slice(&life.0);
    key.copy_from_slice(text);
    open(&cipher(root, life)?, record_nonce(), &place.root_aad(), key, tag)
        .map_err(|_| damaged("a key in it does not authenticate, though the root is right"))?;
    entry_keys(&entry)
}

fn damaged(detail: &'static str) -> SealError {
    SealError::Damaged { what: WHAT, detail }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use proptest::prelude::*;
    use wirevault_telemetry::clock::SystemClock;

    use super::*;
    use crate::one_way::tests::halves;
    use crate::{EpochKeys, EpochOptions, OneWayKey, ServiceKeys};

    const STORE: StoreId = StoreId([1; 16]);
    const VOLUME: VolumeId = VolumeId([2; 16]);

    fn both(dir: &Path) -> [Arc<EpochKeys>; 2] {
        let (pair, public) = halves(dir);
        [pair, public].map(|key| key.keys_of(STORE))
    }

    /// As another process reads it: none of its own epoch keys is known.
    fn again(dir: &Path) -> Arc<EpochKeys> {
        OneWayKey::read(&dir.join("public.pem")).unwrap().keys_of(STORE)
    }

    fn lives(ring: &KeyRing) -> Vec<LifeId> {
        ring.entries().map(|keys| keys.life()).collect()
    }

    #[test]
    fn who_cannot_open_a_ring_adds_keys_and_forgets_keys() {
        let dir = tempfile::tempdir().unwrap();
        let [reader, first] = both(dir.path());
        let mut ring = KeyRing::new(STORE, VOLUME);
        ring.fill_spares(3).unwrap();
        let before = lives(&ring);
        let written = ring.encode(&*first).unwrap();

        let second = again(dir.path());
        let mut ring = KeyRing::decode(&written, &*second).unwrap();
        assert_eq!((ring.len(), ring.shut().count()), (0, 1));
        let why = ring.why_shut(before[0]).unwrap();
        assert!(why.is_wrong_key() && second.may_leave_shut(why), "{why}");
        assert!(ring.why_shut(LifeId([9; 16])).is_none());
        ring.fill_spares(2).unwrap();
        ring.retain_shut(|life| life != before[1]);
        ring.advance_epoch();
        let after = lives(&ring);
        let written = ring.encode(&*second).unwrap();
        assert_eq!(encoded_bytes(written.first_chunk().unwrap()), written.len());
        assert!(written.len() <= parts_bytes(4), "{}", written.len());

        let read = KeyRing::decode(&written, &*reader).unwrap();
        let mut all = [vec![before[0], before[2]], after].concat();
        all.sort();
        assert_eq!((lives(&read), read.epoch(), read.shut().count()), (all, 1, 0));
        let merged = KeyRing::decode(&read.encode(&*reader).unwrap(), &*reader).unwrap();
        assert_eq!((merged.len(), merged.shut().count()), (4, 0));

        let third = again(dir.path());
        let mut ring = KeyRing::decode(&written, &*third).unwrap();
        assert_eq!(ring.shut().count(), 2, "a part for each start");
        ring.retain_shut(|life| life == before[0]);
        assert_eq!(ring.shut().count(), 1, "an empty part goes");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let [reader, writer] = both(dir.path());
        let mut ring = KeyRing::new(STORE, VOLUME);
        ring.fill_spares(2).unwrap();
        let written = ring.encode(&*writer).unwrap();
        for at in 0..written.len() {
            let mut bytes = written.clone();
            bytes[at] ^= 1 << (at % 8);
            assert!(KeyRing::decode(&bytes, &*reader).is_err(), "byte {at}");
            assert!(KeyRing::decode(&written[..at], &*reader).is_err(), "{at} bytes");
        }
        // With a checksum that fits, whoever has the key still finds it.
        for at in HEAD_BYTES + PART_HEAD_BYTES..written.len() - CRC_BYTES {
            let mut bytes = written.clone();
            bytes[at] ^= 0x10;
            let body = bytes.len() - CRC_BYTES;
            let crc = crc32c::crc32c(&bytes[..body]);
            bytes[body..].copy_from_slice(&crc.to_le_bytes());
            let whole = KeyRing::decode(&bytes, &*reader)
                .is_ok_and(|read| read.shut().count() == 0 && lives(&read) == lives(&ring));
            assert!(!whole, "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut ring = [&MAGIC[..], &VERSION_PARTS.to_le_bytes(), &bytes].concat();
            if let Some(len) = ring.get_mut(12..16) {
                len.copy_from_slice(&(bytes.len() as u32 + 10).to_le_bytes());
            }
            let body = ring.len().saturating_sub(CRC_BYTES);
            let crc = crc32c::crc32c(&ring[..body]);
            ring[body..].copy_from_slice(&crc.to_le_bytes());
            let provider = crate::sim::SimService::default();
            let clock = Arc::new(SystemClock);
            let keys = ServiceKeys::new(Arc::new(provider), EpochOptions::default(), clock);
            let keys = keys.of(STORE, "k");
            // No parts at all, or some that nothing opens.
            if let Ok(read) = KeyRing::decode(&ring, &*keys) {
                prop_assert!(read.is_empty());
            }
        }
    }
}
