//! Segments in the object tier: where a copy lies, and how it is opened.
//!
//! A copy is the segment as it lay on its volume, under a name made of its store and its life. Its
//! key is an object of its own: a [`KeyRing`] of one entry, wrapped like those of volumes, whose
//! "volume" is the life. Without that object the copy is bytes that nobody can read.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use wirevault_format::footer::FOOTER_BYTES;
use wirevault_format::table::SegmentEntry;
use wirevault_format::{LifeId, StoreId, VolumeId};
use wirevault_media::{MediaFile, ObjectError, ObjectFile, Objects};
use wirevault_seal::{KeyProvider, KeyRing, SealError, SegmentKeys};

use crate::IndexError;

/// Bytes of a key object at most: a ring of one entry with the longest root that a ring may have.
const KEY_BYTES_MAX: u64 = 8 << 10;

/// Name of the object with the bytes of a segment.
pub fn segment_object(store: StoreId, life: LifeId) -> String {
    format!("segments/{store}/{life}.pcapng")
}

/// Name of the object with its key.
pub fn key_object(store: StoreId, life: LifeId) -> String {
    format!("keys/{store}/{life}.key")
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

    /// Name of the object with its key.
    pub fn key_object(&self) -> String {
        key_object(self.store, self.life)
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
        let name = self.key_object();
        let unread = |error: ObjectError| {
            let what = format!("the key of segment {segment}");
            IndexError::Io { what, source: io::Error::from(error) }
        };
        let Some(bytes) = self.objects.bytes(&name).map_err(unread)? else {
            return Err(no_key(format!("{} has no {name}", self.objects.describe())));
        };
        let found = self.objects.read(&name, 0..bytes.min(KEY_BYTES_MAX)).map_err(unread)?;
        let failed = |source| IndexError::Key { volume: self.objects.describe(), source };
        let ring = KeyRing::decode(&found, &**provider).map_err(failed)?;
        let own = (ring.store(), ring.volume()) == (self.store, VolumeId(self.life.0));
        let keys = ring.get(self.life).filter(|_| own).cloned();
        let keys = keys.ok_or_else(|| no_key(format!("{name} is of another segment")))?;
        Ok(Some(self.keys.get_or_init(|| keys).clone()))
    }
}
