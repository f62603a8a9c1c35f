//! Pages of digests as they are read: checked, unsealed, and kept for the next question.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wirevault_format::LifeId;
use wirevault_format::digest::{
    FACTS_PAGE, HOSTS_PAGE, PAGE_BYTES, decode, host_pages, page_offset,
};
use wirevault_media::{DIGEST_FILE, Media, MediaFile, OpenMode};
use wirevault_seal::{DataOpener, SALT_BYTES, TAG_BYTES};

use super::unpacked;
use crate::catalog::Segment;

/// Bytes of pages that one volume keeps in memory: twice this, and a little for each page. A page
/// of 10,000 segments takes 40 MB, their facts and keys 12 MB.
const KEPT_BYTES: usize = 64 << 20;
/// Bytes that the prepared key of a digest is counted as: key schedule and tables of AES-GCM.
const KEY_BYTES: usize = 1 << 10;

/// The digests of one volume.
pub struct Digests {
    media: Arc<dyn Media>,
    host_pages: Option<u16>,
    kept: Mutex<Kept>,
}

/// A page that passed its checks.
pub(super) struct Loaded {
    pub(super) probes: u8,
    pub(super) bytes: Box<[u8]>,
    /// What opened it opens the other pages of the digest: deriving a key takes longer than
    /// opening a page. Nothing in plain stores.
    key: Option<Key>,
}

/// The key of a digest, and the salt that names it.
#[derive(Clone)]
struct Key {
    salt: [u8; SALT_BYTES],
    opener: DataOpener,
}

impl Loaded {
    /// What it counts as among what is kept.
    fn kept_bytes(&self, page: u16) -> usize {
        // Pages of a digest share the key of its facts.
        let key = self.key.as_ref().filter(|_| page == FACTS_PAGE);
        self.bytes.len() + key.map_or(0, |_| KEY_BYTES)
    }
}

/// A page of the life of a segment.
type Name = (LifeId, u16);

/// Pages in two generations: when the young one is full it becomes the old one, which goes.
#[derive(Default)]
struct Kept {
    young: HashMap<Name, Arc<Loaded>>,
    young_bytes: usize,
    old: HashMap<Name, Arc<Loaded>>,
}

impl Digests {
    pub(crate) fn new(media: Arc<dyn Media>, segment_bytes: u64) -> Self {
        Self { media, host_pages: host_pages(segment_bytes), kept: Mutex::default() }
    }

    /// Pages of addresses of each segment; `None` if this volume has no digests.
    pub fn host_pages(&self) -> Option<u16> {
        self.host_pages
    }

    /// Drops what is kept of a life that was given up, and its digest's key. A question that began
    /// before may bring pages back; they go as all others do, when newer ones need the room.
    pub fn forget(&self, life: LifeId) {
        let mut kept = self.kept();
        let pages = HOSTS_PAGE + self.host_pages.unwrap_or(0);
        (0..pages).for_each(|page| kept.remove((life, page)));
    }

    /// The digest of this segment is there and whole, as far as its facts tell. They are written
    /// last.
    pub(crate) fn has(&self, segment: &Segment) -> bool {
        let load = |file: Arc<dyn MediaFile>| {
            let facts = self.load(&*file, FACTS_PAGE, &[(segment, None)], &mut Vec::new());
            facts.iter().any(Option::is_some)
        };
        self.file().is_some_and(load)
    }

    /// The file, if there is one.
    pub(super) fn file(&self) -> Option<Arc<dyn MediaFile>> {
        // Why it does not open makes no difference: without it segments are opened.
        self.host_pages.and_then(|_| self.media.open(DIGEST_FILE, OpenMode::Read).ok())
    }

    /// One page of segments of one group of places; `None` for those whose page is not there or not
    /// whole. Beside a segment stands its page of facts, once it is known. `buf` is what is read
    /// into.
    pub(super) fn load(
        &self,
        file: &dyn MediaFile,
        page: u16,
        segments: &[(&Segment, Option<&Loaded>)],
        buf: &mut Vec<u8>,
    ) -> Vec<Option<Arc<Loaded>>> {
        let mut loaded: Vec<_> = {
            let mut kept = self.kept();
            segments.iter().map(|(segment, _)| kept.get((segment.entry.life, page))).collect()
        };
        let absent = || segments.iter().zip(&loaded).filter(|(_, known)| known.is_none());
        let places = absent().map(|((segment, _), _)| segment.place);
        let (Some(first), Some(last)) = (places.clone().min(), places.max()) else {
            return loaded;
        };
        let Some(host_pages) = self.host_pages else { return loaded };
        let at = page_offset(host_pages, first, page);
        buf.clear();
        buf.resize((last - first + 1) as usize * PAGE_BYTES, 0);
        read_what_is_there(file, at, buf);
        let mut fresh = Vec::new();
        let absent = segments.iter().zip(&mut loaded).filter(|(_, known)| known.is_none());
        for ((segment, facts), loaded) in absent {
            let from = (segment.place - first) as usize * PAGE_BYTES;
            let key = facts.and_then(|facts| facts.key.as_ref());
            *loaded = checked(segment, page, key, &buf[from..from + PAGE_BYTES]).map(Arc::new);
            fresh.extend(loaded.iter().map(|it| ((segment.entry.life, page), Arc::clone(it))));
        }
        self.kept().add(fresh);
        loaded
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The page if it is whole, and of this life and this closing. `key` is that of another page of the
/// segment.
fn checked(segment: &Segment, page: u16, key: Option<&Key>, bytes: &[u8]) -> Option<Loaded> {
    let found = decode(bytes).ok()?;
    let (header, entry) = (&found.header, &segment.entry);
    let same = header.page == page
        && header.place == segment.place
        && header.life == entry.life
        && header.closed_ns == entry.closed_ns
        && header.sealed == entry.sealed;
    if !same {
        return None;
    }
    let (payload, tag) = found.body.split_at(usize::from(header.payload_bytes));
    let mut payload: Box<[u8]> = payload.into();
    let key = match segment.keys().ok()? {
        None => None,
        Some(keys) => {
            let salt = found.salt;
            let derive = || keys.digest_opener(&salt).ok().map(|opener| Key { salt, opener });
            let key = key.filter(|key| key.salt == salt).cloned().or_else(derive)?;
            let tag: &[u8; TAG_BYTES] = tag.first_chunk()?;
            key.opener.open(u32::from(page), &header.aad(), &mut payload, tag).ok()?;
            Some(key)
        }
    };
    let bytes = if page == FACTS_PAGE { unpacked(&payload)?.into() } else { payload };
    Some(Loaded { probes: header.probes, bytes, key })
}

/// Fills `buf`, with what it held where the file ends or cannot be read.
fn read_what_is_there(file: &dyn MediaFile, at: u64, buf: &mut [u8]) {
    let mut done = 0;
    while let Some(bytes) =
        file.read_at(&mut buf[done..], at + done as u64).ok().filter(|bytes| *bytes > 0)
    {
        done += bytes;
        if done == buf.len() {
            break;
        }
    }
}

impl Kept {
    fn get(&mut self, name: Name) -> Option<Arc<Loaded>> {
        if let Some(known) = self.young.get(&name) {
            return Some(Arc::clone(known));
        }
        let known = self.old.remove(&name)?;
        self.add([(name, Arc::clone(&known))]);
        Some(known)
    }

    fn remove(&mut self, name: Name) {
        if let Some(page) = self.young.remove(&name) {
            self.young_bytes -= page.kept_bytes(name.1);
        }
        self.old.remove(&name);
    }

    fn add(&mut self, pages: impl IntoIterator<Item = (Name, Arc<Loaded>)>) {
        for (name, page) in pages {
            let bytes = page.kept_bytes(name.1);
            if self.young_bytes + bytes > KEPT_BYTES {
                self.old = std::mem::take(&mut self.young);
                self.young_bytes = 0;
            }
            self.young_bytes += bytes;
            // Two questions at once may both have read it.
            if let Some(same) = self.young.insert(name, page) {
                self.young_bytes -= same.kept_bytes(name.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_what_is_asked_for_stays() {
        let mut kept = Kept::default();
        let name = |n: u32| (LifeId([n as u8; 16]), (n >> 8) as u16);
        let page = || Arc::new(Loaded { probes: 1, bytes: vec![0; 4000].into(), key: None });
        for n in 0..40_000 {
            kept.add([(name(n), page())]);
            assert!(n < 1000 || kept.get(name(7)).is_some(), "it is asked for again and again");
        }
        let bytes = |pages: &HashMap<Name, Arc<Loaded>>| pages.len() * 4000;
        assert!(bytes(&kept.young) <= KEPT_BYTES && bytes(&kept.old) <= KEPT_BYTES);
        assert!(kept.get(name(8)).is_none() && kept.get(name(39_999)).is_some());
        (0..40_000).for_each(|n| kept.remove(name(n)));
        assert_eq!((kept.young.len(), kept.young_bytes, kept.old.len()), (0, 0, 0));
    }
}
