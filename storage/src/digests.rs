//! Writing the digests of closed segments, and making those anew that are missing.
//!
//! # Crashes
//! A digest is written before its segment's table entry says "closed", and the page of facts after
//! the other pages are durable. Readers believe a page only if it names the life and the closing of
//! the entry, so whatever is torn or lost just makes them open the segment. A failure to write is
//! no failure of the recording: the next start tries again.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wirevault_format::digest::{FACTS_PAGE, PAGE_BYTES, PageHeader, host_pages, page_offset};
use wirevault_format::table::{SegmentEntry, SegmentState};
use wirevault_index::digest::PagePayload;
use wirevault_index::{Catalog, Digest, Segment};
use wirevault_media::{DIGEST_FILE, Media, OpenMode};
use wirevault_seal::{SALT_BYTES, SegmentKeys};

/// Pause after each digest made anew: a thousand of them take some seconds, and what records has
/// the device to itself in between.
const PAUSE: Duration = Duration::from_millis(5);

/// What [`mend_digests`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mended {
    /// Digests made anew.
    pub made: u64,
    /// Segments that have none still: every question opens them.
    pub without: u64,
}

/// Makes the digests of closed segments that have none, until `stop` is set. It reads their indexes
/// and writes beside them; it needs neither the store nor its lock. A segment whose place is used
/// again meanwhile loses nothing: a digest of another life counts for nobody.
pub fn mend_digests(catalog: &Catalog, stop: &AtomicBool) -> Mended {
    let mut mended = Mended::default();
    for segment in catalog.segments.iter() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if segment.entry.state != SegmentState::Closed || segment.has_digest() != Some(false) {
            continue;
        }
        match mend(segment) {
            Some(()) => mended.made += 1,
            None => mended.without += 1,
        }
        std::thread::sleep(PAUSE);
    }
    mended
}

fn mend(segment: &Segment) -> Option<()> {
    let reader = segment.open().ok()?;
    let digest = reader.digest().ok()??;
    let pages = digest.pages(segment.host_pages()?)?;
    let keys = segment.keys().ok()?;
    let of = Of { place: segment.place, entry: &segment.entry, keys: keys.as_ref() };
    of.write(&**segment.media()?, segment.host_pages()?, &pages).ok()
}

/// Writes the digest of a segment that was just finished, in a volume with segments of this size.
pub(crate) fn write_digest(
    media: &dyn Media,
    segment_bytes: u64,
    place: u32,
    entry: &SegmentEntry,
    keys: Option<&SegmentKeys>,
    digest: &Digest,
) -> io::Result<()> {
    let Some(host_pages) = host_pages(segment_bytes) else { return Ok(()) };
    match digest.pages(host_pages) {
        Some(pages) => Of { place, entry, keys }.write(media, host_pages, &pages),
        None => Ok(()),
    }
}

/// Whose digest it is.
struct Of<'a> {
    place: u32,
    entry: &'a SegmentEntry,
    keys: Option<&'a SegmentKeys>,
}

impl Of<'_> {
    fn write(&self, media: &dyn Media, host_pages: u16, pages: &[PagePayload]) -> io::Result<()> {
        let file = media.open(DIGEST_FILE, OpenMode::Create)?;
        let put = |(page, bytes): &(u16, [u8; PAGE_BYTES])| {
            file.write_at(bytes, page_offset(host_pages, self.place, *page))
        };
        let pages = self.encode(pages)?;
        let (facts, others): (Vec<_>, Vec<_>) =
            pages.into_iter().partition(|(page, _)| *page == FACTS_PAGE);
        others.iter().try_for_each(put)?;
        if !others.is_empty() {
            file.sync()?;
        }
        facts.iter().try_for_each(put)
    }

    /// The pages, which come by increasing number, as they stand in the file.
    fn encode(&self, pages: &[PagePayload]) -> io::Result<Vec<(u16, [u8; PAGE_BYTES])>> {
        let sealer = self.keys.map(SegmentKeys::digest_sealer).transpose();
        let mut sealer = sealer.map_err(io::Error::other)?;
        let mut encoded = Vec::with_capacity(pages.len());
        for PagePayload { page, probes, bytes } in pages {
            let header = PageHeader {
                page: *page,
                sealed: self.keys.is_some(),
                probes: *probes,
                place: self.place,
                life: self.entry.life,
                closed_ns: self.entry.closed_ns,
                payload_bytes: bytes.len() as u16,
            };
            let mut body = bytes.clone();
            let mut salt = [0; SALT_BYTES];
            if let Some((sealed, sealer)) = &mut sealer {
                let tag = sealer.seal(u32::from(*page), &header.aad(), &mut body);
                body.extend_from_slice(&tag.map_err(io::Error::other)?);
                salt = sealed.salt;
            }
            encoded.push((*page, header.encode(&salt, &body)));
        }
        Ok(encoded)
    }
}
