//! Segments in the object tier: where a copy lies, and how it is opened.
//!
//! A copy is the segment as it lay on its volume, under a name made of its store and its life. Its
//! key is an object of its own: a [`KeyRing`] of one entry, wrapped like those of volumes, whose
//! "volume" is the life. Without that object the copy is bytes that nobody can read. It has two
//! names in turn: when the store goes over to another key, its key is put under the other name
//! before the one under the first goes. Whoever reads takes the first that opens.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use wirevault_format::footer::FOOTER_BYTES;
use wirevault_format::table::SegmentEntry;
use wirevault_format::{LifeId, StoreId, VolumeId};
use wirevault_media::{MediaFile, ObjectError, ObjectFile, Objects};
use wirevault_seal::{KeyProvider, KeyRing, SealError, SegmentKeys, ring};

use crate::IndexError;

/// Bytes of a key object at most: a ring of one entry with the longest root that a ring may have.
const KEY_BYTES_MAX: u64 = 8 << 10;

/// Name of the object with the bytes of a segment.
pub fn segment_object(store: StoreId, life: LifeId) -> String {
    format!("segments/{store}/{life}.pcapng")
}

/// Name of the object with its key: the first one, or the second.
pub fn key_object(store: StoreId, life: LifeId, second: bool) -> String {
    let number = if second { ".2" } else { "" };
    format!("keys/{store}/{life}{number}.key")
}

/// Bytes of a closed segment up to the end of its footer: those that a copy has. A place on a
/// device is longer.
pub fn content_bytes(entry: &SegmentEntry) -> u64 {
    entry.footer_offset + FOOTER_BYTES as u64
}

/// What opens the key objects of a store; in words, why they do not open.
pub type TierKey = Result<Arc<dyn KeyProvider>, String>;

/// A key object: a ring of this one key.
///
/// # Errors
/// When the provider, the random generator or the cipher library fails.
pub fn encode_key(
    store: StoreId,
    keys: &SegmentKeys,
    provider: &dyn KeyProvider,
) -> Result<Vec<u8>, SealError> {
    let mut ring = KeyRing::new(store, VolumeId(keys.life().0));
    ring.insert(keys.clone())?;
    ring.encode(provider)
}

/// The id of the key that a key object hangs from, if it says.
pub fn hangs_from(object: &[u8], provider: &dyn KeyProvider) -> Option<String> {
    provider.id_of(ring::wrapped_root(object)?)
}

/// A segment that has a copy in the tier.
#[derive(Clone)]
pub struct Tiered {
    /// Entry of the segment table, as it was when the segment was closed.
    pub entry: SegmentEntry,
    /// Number of the volume that it lay on.
    pub volume: u16,
    /// Its place there.
    pub place: u32,
    /// The copy.
    pub copy: Arc<TierCopy>,
}

/// A copy of a segment in the tier.
pub struct TierCopy {
    objects: Arc<dyn Objects>,
    store: StoreId,
    life: LifeId,
    bytes: u64,
    /// Nothing of a plain segment.
    key: Option<TierKey>,
    /// Found once, for as long as the catalog lives.
    keys: OnceLock<SegmentKeys>,
}

impl TierCopy {
    /// The copy of a segment. Nothing is asked of the tier yet.
    pub fn new(
        objects: Arc<dyn Objects>,
        store: StoreId,
        entry: &SegmentEntry,
        key: Option<&TierKey>,
    ) -> Self {
        Self {
            objects,
            store,
            life: entry.life,
            bytes: content_bytes(entry),
            key: key.filter(|_| entry.sealed).cloned(),
            keys: OnceLock::new(),
        }
    }

    /// Name of the object with its bytes.
    pub fn segment_object(&self) -> String {
        segment_object(self.store, self.life)
    }

    /// The copy as a file, and the count of what is read of it.
    pub(crate) fn file(&self) -> (Arc<dyn MediaFile>, Arc<AtomicU64>) {
        let objects = Arc::clone(&self.objects);
        let file = ObjectFile::new(objects, &self.segment_object(), self.bytes);
        let taken = file.taken();
        (Arc::new(file), taken)
    }

    /// The key of a sealed segment; `None` of a plain one. `segment` names it in messages.
    pub(crate) fn keys(&self, segment: &str) -> Result<Option<SegmentKeys>, IndexError> {
        let Some(key) = &self.key else { return Ok(None) };
        if let Some(keys) = self.keys.get() {
            return Ok(Some(keys.clone()));
        }
        let no_key = |why: String| IndexError::NoKey { segment: segment.to_owned(), why };
        let provider = key.as_ref().map_err(|why| no_key(why.clone()))?;
        let [first, second] = [false, true].map(|second| key_object(self.store, self.life, second));
        let mut shut = None;
        for name in [&first, &second] {
            let Some(object) = self.key_bytes(name, segment)? else { continue };
            match self.opened(name, &object, &**provider, segment) {
                Ok(keys) => return Ok(Some(self.keys.get_or_init(|| keys).clone())),
                Err(error) => drop(shut.get_or_insert(error)),
            }
        }
        let none = || no_key(format!("{} has no {first}", self.objects.describe()));
        Err(shut.unwrap_or_else(none))
    }

    /// A key object as it lies there; nothing if there is none of this name.
    ///
    /// # Errors
    /// `Io`: what the tier says.
    pub fn key_bytes(&self, name: &str, segment: &str) -> Result<Option<Vec<u8>>, IndexError> {
        let unread = |error: ObjectError| {
            let what = format!("the key of segment {segment}");
            IndexError::Io { what, source: io::Error::from(error) }
        };
        let Some(bytes) = self.objects.bytes(name).map_err(unread)? else { return Ok(None) };
        self.objects.read(name, 0..bytes.min(KEY_BYTES_MAX)).map(Some).map_err(unread)
    }

    /// The key in a key object.
    ///
    /// # Errors
    /// `Key` if it does not open; `NoKey` if it is another segment's.
    pub fn opened(
        &self,
        name: &str,
        object: &[u8],
        provider: &dyn KeyProvider,
        segment: &str,
    ) -> Result<SegmentKeys, IndexError> {
        let failed = |source| IndexError::Key { volume: self.objects.describe(), source };
        let ring = KeyRing::decode(object, provider).map_err(failed)?;
        let own = (ring.store(), ring.volume()) == (self.store, VolumeId(self.life.0));
        ring.get(self.life).filter(|_| own).cloned().ok_or_else(|| IndexError::NoKey {
            segment: segment.to_owned(),
            why: format!("{name} is of another segment"),
        })
    }
}
