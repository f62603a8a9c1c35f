//! What a closed segment may hold, in a few pages outside of it (`docs/FORMAT.md`, digests).
//!
//! ```text
//!  closing ─► Digest ─► pages ─► digests.wv ─► Digests (checked, unsealed, cached) ─► ask
//! ```
//! A question without a window may be about 10,000 segments. Opening each of them costs six reads
//! and half a millisecond; of the digests it reads two or three pages a segment, in rows.
//!
//! Invariants:
//! - a digest only ever rules out: a segment without one, or with one that fails its check, is
//!   opened;
//! - a page counts only for the life and the closing that it names, so nothing has to be durable in
//!   any order: what a crash tears or loses is as if it had never been written.

pub mod ask;
mod pages;

use wirevault_format::Gap;
use wirevault_format::digest::{
    FACTS_PAGE, HOSTS_PAGE, PAGE_PAYLOAD_BYTES_MAX, PORTS_HELD, PORTS_PAGE,
};
use wirevault_format::footer::ChunkEntry;
use wirevault_format::gap::GAP_BYTES;

use crate::IndexError;
use crate::flows::Shape;
use crate::host_filter::{PORT_BITMAP_BYTES, host_keys};
use crate::varint::{Cursor, put};

pub use pages::Digests;

/// zstd level of facts that do not fit as they are.
const ZSTD_LEVEL: i32 = 3;
/// Bytes of facts at most before they are compressed: some thousand shapes.
const FACTS_BYTES_MAX: usize = 64 << 10;
/// Bits a key sets at most: with more the filter gets slower and no better.
const PROBES_MAX: u8 = 8;

/// The facts follow as they are.
const PLAIN: u8 = 0;
/// The facts follow as one zstd frame.
const PACKED: u8 = 1;

/// What a segment may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    pub(crate) gaps: Vec<Gap>,
    /// Chunks with packets.
    pub(crate) chunks: u32,
    pub(crate) shapes: Vec<Vec<u8>>,
    /// `None`: any address and any port may be here.
    pub(crate) values: Option<Values>,
}

/// The addresses and ports of all packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Values {
    pub(crate) hosts4: Vec<[u8; 4]>,
    pub(crate) hosts6: Vec<[u8; 16]>,
    /// One bit a port.
    pub(crate) ports: Vec<u8>,
}

impl Values {
    /// Those of no packet.
    pub(crate) fn none() -> Self {
        Self { hosts4: Vec::new(), hosts6: Vec::new(), ports: vec![0; PORT_BITMAP_BYTES] }
    }
}

/// One page's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PagePayload {
    /// Number of the page.
    pub page: u16,
    /// Bits that a key sets in it.
    pub probes: u8,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Digest {
    /// The digest of an index; `None` where packets are not covered by it, so that every question
    /// must look at the segment. `values` are those of all its flows.
    pub(crate) fn new(
        chunks: &[ChunkEntry],
        scanned: &[bool],
        gaps: &[(u32, Gap)],
        shapes: &[Shape],
        values: Option<Values>,
    ) -> Option<Self> {
        let uncovered = chunks.iter().zip(scanned).any(|(chunk, scan)| *scan && chunk.packets > 0);
        let held = chunks.iter().filter(|chunk| chunk.packets > 0).count() as u32;
        let explained = !uncovered && (held == 0 || !shapes.is_empty());
        explained.then(|| Self {
            gaps: gaps.iter().map(|(_, gap)| *gap).collect(),
            chunks: held,
            shapes: shapes.iter().map(|shape| shape.bytes.clone()).collect(),
            values,
        })
    }

    /// Its pages, in a store with so many pages of addresses. `None` if the facts do not fit
    /// theirs.
    pub fn pages(&self, host_pages: u16) -> Option<Vec<PagePayload>> {
        let bytes = self.facts()?;
        let mut pages = vec![PagePayload { page: FACTS_PAGE, probes: 0, bytes }];
        if let Some(values) = &self.values {
            let bytes = values.ports[..PORTS_HELD as usize / 8].to_vec();
            pages.push(PagePayload { page: PORTS_PAGE, probes: 0, bytes });
            let mut keys_of = vec![Vec::new(); usize::from(host_pages)];
            for key in host_keys(&values.hosts4, &values.hosts6) {
                keys_of[usize::from(host_page(key, host_pages) - HOSTS_PAGE)].push(key);
            }
            for (page, keys) in (HOSTS_PAGE..).zip(keys_of) {
                let (probes, bytes) = bloom(&keys);
                pages.push(PagePayload { page, probes, bytes });
            }
        }
        Some(pages)
    }

    /// What a page of facts says, without addresses and ports; `None` if it does not decode.
    pub fn of_facts(payload: &[u8]) -> Option<Self> {
        let facts = unpacked(payload)?;
        let facts = Facts::read(&facts).ok()?;
        let shapes = facts.shapes.iter().map(|shape| shape.to_vec()).collect();
        Some(Self { gaps: facts.gaps()?, chunks: facts.chunks, shapes, values: None })
    }

    fn facts(&self) -> Option<Vec<u8>> {
        let mut facts = Vec::new();
        facts.push(u8::from(self.values.is_some()));
        put(&mut facts, u64::from(self.chunks));
        put(&mut facts, self.gaps.len() as u64);
        for gap in &self.gaps {
            let mut block = [0; GAP_BYTES];
            gap.encode(&mut block);
            facts.extend_from_slice(&block);
        }
        put(&mut facts, self.shapes.len() as u64);
        for shape in &self.shapes {
            put(&mut facts, shape.len() as u64);
            facts.extend_from_slice(shape);
        }
        let packed = match facts.len() {
            bytes if bytes < PAGE_PAYLOAD_BYTES_MAX => None,
            bytes if bytes > FACTS_BYTES_MAX => return None,
            _ => Some(zstd::bulk::compress(&facts, ZSTD_LEVEL).ok()?),
        };
        let codec = if packed.is_some() { PACKED } else { PLAIN };
        let mut bytes = vec![codec];
        bytes.extend(packed.unwrap_or(facts));
        (bytes.len() <= PAGE_PAYLOAD_BYTES_MAX).then_some(bytes)
    }
}

/// Takes the codec off a page of facts.
fn unpacked(bytes: &[u8]) -> Option<Vec<u8>> {
    match bytes.split_first()? {
        (&PLAIN, facts) => Some(facts.to_vec()),
        (&PACKED, frame) => zstd::bulk::decompress(frame, FACTS_BYTES_MAX).ok(),
        _ => None,
    }
}

/// A page of facts, taken apart.
struct Facts<'a> {
    has_values: bool,
    chunks: u32,
    gaps: &'a [u8],
    shapes: Vec<&'a [u8]>,
}

impl<'a> Facts<'a> {
    fn read(facts: &'a [u8]) -> Result<Self, IndexError> {
        let mut read = Cursor::new("digest", facts);
        let [has_values] = read.array()?;
        let chunks = read.u32()?;
        let gaps = read.count(GAP_BYTES)?;
        let gaps = read.take(gaps * GAP_BYTES)?;
        let count = read.count(1)?;
        let mut shapes = Vec::with_capacity(count);
        for _ in 0..count {
            let len = read.count(1)?;
            shapes.push(read.take(len)?);
        }
        read.end()?;
        Ok(Self { has_values: has_values != 0, chunks, gaps, shapes })
    }

    fn gaps(&self) -> Option<Vec<Gap>> {
        self.gaps.chunks(GAP_BYTES).map(|block| Gap::decode(block).ok()).collect()
    }
}

/// The page on which an address key would be.
fn host_page(key: u64, host_pages: u16) -> u16 {
    HOSTS_PAGE + ((u128::from(key) * u128::from(host_pages)) >> 64) as u16
}

/// A filter of a whole page over keys, and the bits that each of them sets.
fn bloom(keys: &[u64]) -> (u8, Vec<u8>) {
    let mut bytes = vec![0; PAGE_PAYLOAD_BYTES_MAX];
    let bits_each = bytes.len() as f64 * 8.0 / keys.len().max(1) as f64;
    let probes = (bits_each * std::f64::consts::LN_2).round().clamp(1.0, f64::from(PROBES_MAX));
    let probes = probes as u8;
    for key in keys {
        for at in places(*key, probes, PAGE_PAYLOAD_BYTES_MAX) {
            bytes[at / 8] |= 1 << (at % 8);
        }
    }
    (probes, bytes)
}

/// Whether a page of addresses may hold a key.
fn may_hold(bytes: &[u8], probes: u8, key: u64) -> bool {
    places(key, probes, bytes.len()).all(|at| {
        // A page without bytes denies nothing.
        bytes.get(at / 8).is_none_or(|byte| byte & 1 << (at % 8) != 0)
    })
}

/// The bits of a key. The page was chosen by the upper bits of the key, so the places begin with
/// its lower half.
fn places(key: u64, probes: u8, bytes: usize) -> impl Iterator<Item = usize> {
    let (start, step) = (key as u32, (key >> 32) as u32 | 1);
    let at = move |probe: u32| u64::from(start.wrapping_add(probe.wrapping_mul(step)));
    (0..u32::from(probes)).map(move |probe| ((at(probe) * (bytes as u64 * 8)) >> 32) as usize)
}

#[cfg(test)]
mod tests {
    use wirevault_format::Cause;

    use super::*;
    use crate::host_filter::key4;

    fn gap(from_ns: u64) -> Gap {
        Gap {
            cause: Cause::RingOverflow,
            from_ns,
            until_ns: Some(from_ns + 5),
            packets: Some(3),
            cumulative: 3,
            sequence: 1,
            policy: None,
            pressure: None,
        }
    }

    #[test]
    fn facts_come_back_packed_or_not() {
        for shapes in [3u16, 2000] {
            let shapes: Vec<Vec<u8>> = (0..shapes)
                .map(|n| [&[1, 0, 3], &n.to_be_bytes()[..], &[8, 0, 7, 0x50, 6, 11]].concat())
                .collect();
            let gaps = vec![gap(10), gap(20)];
            let digest = Digest { gaps: gaps.clone(), chunks: 7, shapes, values: None };
            let pages = digest.pages(2).unwrap();
            assert_eq!((pages.len(), pages[0].page), (1, FACTS_PAGE));
            assert_eq!(Digest::of_facts(&pages[0].bytes).as_ref(), Some(&digest));
            let facts = unpacked(&pages[0].bytes).unwrap();
            let read = Facts::read(&facts).unwrap();
            assert_eq!((read.has_values, read.chunks, read.gaps().unwrap()), (false, 7, gaps));
            assert_eq!(read.shapes, digest.shapes);
            assert!(Facts::read(&facts[..facts.len() - 1]).is_err());
        }
        let endless = (0..20_000u32).map(|n| crate::host_filter::mix(n.into()).to_le_bytes());
        let shapes = endless.map(|shape| shape.to_vec()).collect();
        let digest = Digest { gaps: Vec::new(), chunks: 7, shapes, values: None };
        assert_eq!(digest.pages(2), None, "it does not fit, so the segment is opened");
    }

    #[test]
    fn pages_of_addresses_hold_theirs_and_few_strangers() {
        let host = |n: u32| (0x0a00_0000 + n * 7).to_be_bytes();
        let hosts4: Vec<[u8; 4]> = (0..40_000).map(host).collect();
        let values = Values { hosts4: hosts4.clone(), hosts6: Vec::new(), ports: vec![0; 8192] };
        let digest =
            Digest { gaps: Vec::new(), chunks: 1, shapes: Vec::new(), values: Some(values) };
        let pages = digest.pages(32).unwrap();
        let may = |addr: [u8; 4], bits| {
            let key = key4(addr, bits);
            let page = &pages[usize::from(host_page(key, 32))];
            may_hold(&page.bytes, page.probes, key)
        };
        assert!(hosts4.iter().all(|addr| [32, 24, 16].into_iter().all(|bits| may(*addr, bits))));
        let strangers = (0..100_000u32).filter(|n| may((0xc000_0000 + n * 13).to_be_bytes(), 32));
        let through = strangers.count();
        assert!(through < 100, "{through} of 100,000");
    }
}
