//! The mapping behind the chunks. The only unsafe code of this crate.
//!
//! # Invariants
//! - A `Frame` is made once per chunk, when the arena is made, and is not `Clone`: whoever has it
//!   is the only one with access to that chunk's memory.
//! - `Mapping` is unmapped only when the last `Arc` of it goes; every frame has one.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use wirevault_format::limits::CHUNK_BYTES;

use crate::error::BufferError;
use crate::hugepages::{self, Hugepages, PageKind};

/// Bytes of the largest piece that io_uring registers as one buffer (io_uring_register(2)).
pub const REGION_BYTES_MAX: usize = 1 << 30;

/// Bytes of the largest arena: 4 TiB, far above any machine's, so that sums of sizes cannot
/// overflow.
pub const ARENA_BYTES_MAX: usize = 4 << 40;

/// Bytes of a cache line; where they are more, some are asked for twice.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

const _: () = assert!(REGION_BYTES_MAX.is_multiple_of(CHUNK_BYTES), "a chunk lies in one region");
const _: () =
    assert!((2usize << 20).is_multiple_of(CHUNK_BYTES), "every page kind is whole chunks");

/// What an arena should be.
#[derive(Clone, Copy, Debug)]
pub struct ArenaOptions {
    /// Bytes wanted; rounded up to whole chunks, or whole pages where those are larger.
    pub bytes: usize,
    /// Pages wanted.
    pub hugepages: Hugepages,
    /// NUMA node to prefer; `None` leaves it to the kernel (first touch).
    pub numa_node: Option<u32>,
}

/// What an arena is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArenaReport {
    /// Bytes mapped.
    pub bytes: usize,
    /// Chunks that fit.
    pub chunks: usize,
    /// Pages in use.
    pub pages: PageKind,
    /// Bytes backed by hugepages: all of reserved ones; of ordinary memory what was transparent at
    /// the start.
    pub huge_bytes: usize,
    /// Its parts, in order of their chunks: one, or one for each node.
    pub parts: Vec<ArenaPart>,
    /// Whether the memory cannot be swapped out. Reserved hugepages never are.
    pub locked: bool,
    /// What was wanted and is not so, each with the way out. Empty when everything is as wanted.
    pub why_not: Vec<String>,
}

/// The chunks of an arena that lie on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaPart {
    /// NUMA node that was asked for; `None` leaves it to the kernel.
    pub node: Option<u32>,
    /// Chunks; they follow those of the parts before.
    pub chunks: usize,
}

/// Names an arena within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ArenaId(u64);

/// A piece of an arena to register with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address. Only good for registering while the arena lives.
    pub address: usize,
    /// Bytes, at most [`REGION_BYTES_MAX`].
    pub bytes: usize,
}

/// Memory cut into chunks. Clones are handles to the same memory.
#[derive(Clone, Debug)]
pub struct Arena {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: ArenaId,
    /// Keeps `regions` true even if no frame is left.
    _mapping: Arc<Mapping>,
    report: ArenaReport,
    regions: Vec<Region>,
    /// Frames until a pool takes them.
    frames: Mutex<Vec<Frame>>,
}

impl Arena {
    /// Maps, places, touches and locks the memory. Falls back from better to worse pages and says
    /// so in the report.
    ///
    /// Errors: impossible sizes, or no memory at all.
    pub fn new(options: ArenaOptions) -> Result<Self, BufferError> {
        let nodes: Vec<_> = options.numa_node.iter().map(|node| (*node, 1)).collect();
        Self::over_nodes(options, &nodes)
    }

    /// As [`Arena::new`], with a part on each of these NUMA nodes, in the proportion of the numbers
    /// beside them. It is one mapping: registered once, every part may go to every device.
    ///
    /// Errors: as there.
    pub fn over_nodes(options: ArenaOptions, nodes: &[(u32, usize)]) -> Result<Self, BufferError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);

        let bytes = options.bytes;
        if bytes < CHUNK_BYTES {
            return Err(BufferError::TooSmall { bytes, chunk_bytes: CHUNK_BYTES });
        }
        if bytes > ARENA_BYTES_MAX {
            return Err(BufferError::TooLarge { bytes, bytes_max: ARENA_BYTES_MAX });
        }
        let mut why_not = Vec::new();
        let (mapping, pages) = map_best(&options, nodes, &mut why_not)?;
        let locked = pages != PageKind::Ordinary || mapping.lock(&mut why_not);
        mapping.hide(&mut why_not);
        let bytes = mapping.bytes;
        let start = mapping.address();
        let huge_bytes = match pages {
            PageKind::Ordinary => hugepages::transparent_bytes(start, start + bytes),
            PageKind::OneGiB | PageKind::TwoMiB => bytes,
        };
        let chunks = bytes / CHUNK_BYTES;
        let mapping = Arc::new(mapping);
        let frames = (0..chunks as u32)
            .map(|index| Frame { mapping: Arc::clone(&mapping), index })
            .collect();
        let regions = (0..bytes)
            .step_by(REGION_BYTES_MAX)
            .map(|at| Region { address: start + at, bytes: REGION_BYTES_MAX.min(bytes - at) })
            .collect();
        let parts = parts(bytes, pages, nodes);
        let report = ArenaReport { bytes, chunks, pages, huge_bytes, parts, locked, why_not };
        let id = ArenaId(NEXT_ID.fetch_add(1, Ordering::Relaxed));
        let frames = Mutex::new(frames);
        Ok(Self { inner: Arc::new(Inner { id, _mapping: mapping, report, regions, frames }) })
    }

    /// What the arena is and what it is not.
    pub fn report(&self) -> &ArenaReport {
        &self.inner.report
    }

    /// Name within the process.
    pub fn id(&self) -> ArenaId {
        self.inner.id
    }

    /// Chunks that fit.
    pub fn chunks(&self) -> usize {
        self.inner.report.chunks
    }

    /// Pieces to register with the kernel, in order, without gaps.
    pub fn regions(&self) -> &[Region] {
        &self.inner.regions
    }

    /// Number of the part that holds a chunk.
    pub(crate) fn part_of(&self, chunk_index: u32) -> usize {
        let mut end = 0;
        let ends = self.inner.report.parts.iter().map(|part| {
            end += part.chunks;
            end
        });
        ends.take_while(|end| *end <= chunk_index as usize).count()
    }

    pub(crate) fn region_of(&self, chunk_index: u32) -> u16 {
        // At most ARENA_BYTES_MAX / REGION_BYTES_MAX = 4096 regions.
        (chunk_index as usize / (REGION_BYTES_MAX / CHUNK_BYTES)) as u16
    }

    pub(crate) fn take_frames(&self) -> Vec<Frame> {
        std::mem::take(&mut *self.inner.frames.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The right to one chunk's memory.
#[derive(Debug)]
pub(crate) struct Frame {
    mapping: Arc<Mapping>,
    index: u32,
}

impl Frame {
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let start = self.start();
        // SAFETY: `start` begins `CHUNK_BYTES` of memory that `self.mapping` keeps mapped and that
        // `Mapping::touch` or the kernel initialised with zeros; this frame is the only one with
        // this index, and it is borrowed shared.
        unsafe { std::slice::from_raw_parts(start, CHUNK_BYTES) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.start();
        // SAFETY: as in `bytes`; the frame is borrowed exclusively, so nobody else reads or writes
        // this chunk.
        unsafe { std::slice::from_raw_parts_mut(start, CHUNK_BYTES) }
    }

    /// Asks for the cache lines of `bytes` from `at` on, to be written soon.
    #[inline]
    pub(crate) fn prefetch_for_writing(&self, at: usize, bytes: usize) {
        #[cfg(target_arch = "x86_64")]
        for at in (at..at.saturating_add(bytes)).step_by(LINE_BYTES) {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            let address = self.start().wrapping_add(at);
            // SAFETY: a prefetch is a hint: it does not fault and changes nothing, at any address.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(address.cast()) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (at, bytes);
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: `Arena::new` makes frames with indices below `mapping.bytes / CHUNK_BYTES`, so
        // the offset stays within the mapping.
        unsafe { self.mapping.start.as_ptr().add(self.index as usize * CHUNK_BYTES) }
    }
}

/// Memory from mmap(2).
#[derive(Debug)]
struct Mapping {
    /// First chunk; aligned to 2 MiB at least.
    start: NonNull<u8>,
    bytes: usize,
    /// What mmap gave, which may begin before `start` to make room for alignment.
    whole: NonNull<u8>,
    whole_bytes: usize,
}

// SAFETY: a mapping belongs to the process and not to a thread; access to its bytes goes through
// frames, of which there is one per chunk.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; the methods of a shared mapping only read its fields or advise the kernel.
unsafe impl Sync for Mapping {}

/// Shares an arena out over nodes, in whole pages; nodes whose share is none have no part.
fn parts(bytes: usize, pages: PageKind, nodes: &[(u32, usize)]) -> Vec<ArenaPart> {
    let chunks = bytes / CHUNK_BYTES;
    let page_chunks = pages.bytes() / CHUNK_BYTES;
    let all: usize = nodes.iter().map(|(_, weight)| weight).sum();
    let (mut parts, mut given, mut weighed) = (Vec::new(), 0, 0);
    for (node, weight) in nodes {
        weighed += weight;
        let end = match weighed == all {
            true => chunks,
            false => chunks * weighed / all / page_chunks * page_chunks,
        };
        if end > given {
            parts.push(ArenaPart { node: Some(*node), chunks: end - given });
        }
        given = end;
    }
    match parts.is_empty() {
        true => vec![ArenaPart { node: None, chunks }],
        false => parts,
    }
}

fn map_best(
    options: &ArenaOptions,
    nodes: &[(u32, usize)],
    why_not: &mut Vec<String>,
) -> Result<(Mapping, PageKind), BufferError> {
    let kinds: &[PageKind] = match options.hugepages {
        Hugepages::Auto if options.bytes.is_multiple_of(PageKind::OneGiB.bytes()) => {
            &[PageKind::OneGiB, PageKind::TwoMiB]
        }
        Hugepages::Auto | Hugepages::TwoMiB => &[PageKind::TwoMiB],
        Hugepages::OneGiB => &[PageKind::OneGiB, PageKind::TwoMiB],
        Hugepages::Off => &[],
    };
    for &kind in kinds {
        match Mapping::reserved(kind, options.bytes, nodes, why_not) {
            Ok(mapping) => {
                // 1 GiB pages are a bonus in Auto: their absence needs no remark when 2 MiB pages
                // are there.
                if options.hugepages == Hugepages::Auto {
                    why_not.retain(|text| !text.contains("1 GiB hugepages"));
                }
                return Ok((mapping, kind));
            }
            Err(text) => why_not.push(text),
        }
    }
    let mapping = Mapping::ordinary(options.bytes, nodes, why_not).map_err(|source| {
        BufferError::Map { bytes: options.bytes, reasons: why_not.join("; "), source }
    })?;
    Ok((mapping, PageKind::Ordinary))
}

impl Mapping {
    /// Pages of the kernel's hugepage pool. Errors: the reason in words.
    fn reserved(
        kind: PageKind,
        bytes: usize,
        nodes: &[(u32, usize)],
        why_not: &mut Vec<String>,
    ) -> Result<Self, String> {
        // Of several nodes each may have some; what is missing is then told by the whole.
        let numa_node = if let [(node, _)] = nodes { Some(*node) } else { None };
        let bytes = bytes.next_multiple_of(kind.bytes());
        let wanted = (bytes / kind.bytes()) as u64;
        if kind.free(numa_node).is_none_or(|free| free < wanted) {
            return Err(kind.shortage(wanted, numa_node));
        }
        let size_flag = match kind {
            PageKind::OneGiB => libc::MAP_HUGE_1GB,
            PageKind::TwoMiB | PageKind::Ordinary => libc::MAP_HUGE_2MB,
        };
        let start = mmap(bytes, libc::MAP_HUGETLB | size_flag)
            .map_err(|e| format!("{}: {e}", kind.shortage(wanted, numa_node)))?;
        let mapping = Self { start, bytes, whole: start, whole_bytes: bytes };
        mapping.prefer_nodes(&parts(bytes, kind, nodes), why_not);
        mapping.touch().map_err(|e| format!("{kind} hugepages were taken away meanwhile: {e}"))?;
        Ok(mapping)
    }

    /// Ordinary memory, aligned so that transparent hugepages can back all of it.
    fn ordinary(
        bytes: usize,
        nodes: &[(u32, usize)],
        why_not: &mut Vec<String>,
    ) -> io::Result<Self> {
        let align = PageKind::Ordinary.bytes();
        let bytes = bytes.next_multiple_of(CHUNK_BYTES);
        let whole_bytes = bytes + align;
        let whole = mmap(whole_bytes, 0)?;
        let skip = whole.as_ptr().align_offset(align).min(align);
        // SAFETY: `skip <= align`, and the mapping has `bytes + align` bytes.
        let start = unsafe { whole.add(skip) };
        let mapping = Self { start, bytes, whole, whole_bytes };
        match hugepages::transparent_off() {
            Some(text) => why_not.push(text.to_owned()),
            None => {
                if let Err(e) = mapping.advise(libc::MADV_HUGEPAGE) {
                    why_not.push(format!("transparent hugepages were refused: {e}"));
                }
            }
        }
        mapping.prefer_nodes(&parts(bytes, PageKind::Ordinary, nodes), why_not);
        mapping.touch()?;
        Ok(mapping)
    }

    fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }

    fn prefer_nodes(&self, parts: &[ArenaPart], why_not: &mut Vec<String>) {
        let mut at = 0;
        for part in parts {
            let bytes = part.chunks * CHUNK_BYTES;
            if let Some(node) = part.node {
                self.prefer_node(at, bytes, node, why_not);
            }
            at += bytes;
        }
    }

    /// Prefers (not binds): a bound mapping whose node runs dry after the reservation is killed
    /// with SIGBUS. The range is within the mapping.
    fn prefer_node(&self, at: usize, bytes: usize, node: u32, why_not: &mut Vec<String>) {
        const MASK_BITS: usize = 1024;
        let mut mask = [0u64; MASK_BITS / 64];
        let Some(word) = mask.get_mut(node as usize / 64) else {
            why_not.push(format!("NUMA node {node} does not exist"));
            return;
        };
        *word |= 1 << (node % 64);
        // SAFETY: mbind reads `MASK_BITS` bits of `mask`, which lives through the call, and changes
        // only the policy of a range that this mapping owns: `parts` shares out its bytes and no
        // more.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.start.as_ptr().wrapping_add(at),
                bytes,
                libc::MPOL_PREFERRED,
                mask.as_ptr(),
                MASK_BITS,
                0,
            )
        };
        if result != 0 {
            let e = io::Error::last_os_error();
            why_not.push(format!("memory could not be placed on NUMA node {node}: {e}"));
        }
    }

    /// Has the kernel back every page now. Errors: it cannot (where a first touch would be a
    /// SIGBUS).
    fn touch(&self) -> io::Result<()> {
        match self.advise(libc::MADV_POPULATE_WRITE) {
            // Linux before 5.14 does not know this advice; then pages come at first use.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }

    /// Locks ordinary memory against swapping, which would write packets in clear to the swap
    /// device.
    fn lock(&self, why_not: &mut Vec<String>) -> bool {
        // SAFETY: the range is mapped and owned by `self`; mlock does not change its content.
        let result = unsafe { libc::mlock(self.start.as_ptr().cast(), self.bytes) };
        if result != 0 {
            let e = io::Error::last_os_error();
            why_not.push(format!(
                "memory is not locked ({e}); allow {} bytes with LimitMEMLOCK= \
                 or ulimit -l, or give CAP_IPC_LOCK",
                self.bytes
            ));
        }
        result == 0
    }

    /// Keeps packets out of core dumps and out of child processes.
    fn hide(&self, why_not: &mut Vec<String>) {
        for (advice, text) in [
            (libc::MADV_DONTDUMP, "core dumps may contain packets"),
            (libc::MADV_DONTFORK, "child processes may see packets"),
        ] {
            if let Err(e) = self.advise(advice) {
                why_not.push(format!("{text}: {e}"));
            }
        }
    }

    fn advise(&self, advice: i32) -> io::Result<()> {
        // SAFETY: the range is mapped and owned by `self`; the advices used in this file keep its
        // content.
        let result = unsafe { libc::madvise(self.start.as_ptr().cast(), self.bytes, advice) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range came from `mmap` with this size and nothing points into it any more:
        // every frame holds an `Arc` of this mapping, and this is the last one's drop.
        let result = unsafe { libc::munmap(self.whole.as_ptr().cast(), self.whole_bytes) };
        debug_assert_eq!(result, 0, "munmap of a range that mmap gave");
    }
}

fn mmap(bytes: usize, flags: i32) -> io::Result<NonNull<u8>> {
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no existing memory.
    let start = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;

    fn arena(bytes: usize, hugepages: Hugepages, numa_node: Option<u32>) -> Arena {
        Arena::new(ArenaOptions { bytes, hugepages, numa_node }).unwrap()
    }

    #[test]
    fn ordinary_memory_is_aligned_and_zero() {
        let arena = arena(CHUNK_BYTES * 9 - 5, Hugepages::Off, None);
        let report = arena.report();
        assert_eq!((report.chunks, report.bytes), (9, CHUNK_BYTES * 9));
        assert_eq!(report.pages, PageKind::Ordinary);
        assert!(report.huge_bytes <= report.bytes);
        assert!(arena.regions()[0].address.is_multiple_of(2 << 20));
        let pool = Pool::new(arena);
        assert!(pool.take().unwrap().iter().all(|b| *b == 0));
    }

    #[test]
    fn missing_hugepages_are_told_with_the_way_out() {
        // More 2 MiB pages than any test machine reserves, and few enough bytes to be had as
        // ordinary memory.
        let arena = arena(64 << 20, Hugepages::TwoMiB, None);
        let report = arena.report();
        match report.pages {
            PageKind::Ordinary => {
                let text = report.why_not.join("\n");
                assert!(text.contains("hugepages"), "{text}");
            }
            PageKind::TwoMiB => assert_eq!(report.huge_bytes, report.bytes),
            PageKind::OneGiB => panic!("not asked for"),
        }
        assert_eq!(report.chunks, 256);
    }

    #[test]
    fn one_gib_pages_fall_back() {
        if PageKind::OneGiB.free(None).unwrap_or(0) > 0 {
            return;
        }
        let arena = arena(2 << 20, Hugepages::OneGiB, None);
        assert!(arena.report().why_not[0].contains("1 GiB"), "{:?}", arena.report());
        assert!(arena.report().bytes == 2 << 20, "no rounding up to a page that was not had");
    }

    #[test]
    fn reserved_hugepages_are_used_where_free() {
        if PageKind::TwoMiB.free(None).unwrap_or(0) < 2 {
            eprintln!("skipped: fewer than 2 hugepages free; set vm.nr_hugepages=2");
            assert!(std::env::var_os("WIREVAULT_NO_SKIP").is_none(), "skips are failures here");
            return;
        }
        let arena = arena((2 << 20) + 1, Hugepages::Auto, None);
        let report = arena.report();
        assert_eq!(
            (report.pages, report.bytes, report.huge_bytes),
            (PageKind::TwoMiB, 4 << 20, 4 << 20)
        );
        assert!(report.locked);
        let pool = Pool::new(arena);
        let mut bufs: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(bufs.len(), 16);
        bufs.iter_mut().for_each(|b| b.fill(1));
        drop(bufs);
        assert_eq!(pool.in_flight(), 0);
    }

    #[test]
    fn nodes_that_do_not_exist_are_told() {
        for node in [4000, 900] {
            let arena = arena(CHUNK_BYTES, Hugepages::Off, Some(node));
            let text = arena.report().why_not.join("\n");
            assert!(text.contains(&format!("NUMA node {node}")), "{text}");
        }
        let arena = arena(CHUNK_BYTES, Hugepages::Off, Some(0));
        assert!(!arena.report().why_not.join("\n").contains("NUMA"), "{:?}", arena.report());
    }

    #[test]
    fn an_arena_is_shared_out_over_nodes_in_whole_pages() {
        let shares = |chunks, pages, nodes: &[(u32, usize)]| -> Vec<_> {
            let parts = parts(chunks * CHUNK_BYTES, pages, nodes);
            parts.iter().map(|part| (part.node, part.chunks)).collect()
        };
        use PageKind::{OneGiB, TwoMiB};
        assert_eq!(shares(17, TwoMiB, &[]), [(None, 17)]);
        assert_eq!(shares(17, TwoMiB, &[(3, 1)]), [(Some(3), 17)]);
        assert_eq!(shares(32, TwoMiB, &[(0, 1), (1, 3)]), [(Some(0), 8), (Some(1), 24)]);
        assert_eq!(shares(20, TwoMiB, &[(0, 1), (1, 1)]), [(Some(0), 8), (Some(1), 12)]);
        assert_eq!(shares(4096, OneGiB, &[(0, 1), (1, 1)]), [(Some(1), 4096)], "one page");

        let options = ArenaOptions { bytes: 8 << 20, hugepages: Hugepages::Off, numa_node: None };
        // There is a node 0 everywhere; that the other one may not exist is told, not refused.
        let arena = Arena::over_nodes(options, &[(0, 1), (900, 1)]).unwrap();
        let report = arena.report();
        assert!(report.why_not.join("\n").contains("NUMA node 900"), "{report:?}");
        assert_eq!(report.parts.iter().map(|part| part.chunks).sum::<usize>(), 32);
        let of = [0, 15, 16, 31].map(|chunk| arena.part_of(chunk));
        assert_eq!(of, [0, 0, 1, 1]);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let new =
            |bytes| Arena::new(ArenaOptions { bytes, hugepages: Hugepages::Off, numa_node: None });
        assert!(matches!(new(CHUNK_BYTES - 1), Err(BufferError::TooSmall { .. })));
        assert!(matches!(new(usize::MAX), Err(BufferError::TooLarge { .. })));
        assert!(matches!(new(ARENA_BYTES_MAX), Err(BufferError::Map { .. })));
    }

    #[test]
    fn regions_cover_the_arena() {
        let arena = arena(5 << 20, Hugepages::Off, None);
        let regions = arena.regions();
        assert_eq!(regions.len(), 1);
        assert_eq!(regions[0].bytes, 5 << 20);
        assert_eq!(arena.region_of(0), 0);
        assert_eq!(arena.region_of((REGION_BYTES_MAX / CHUNK_BYTES) as u32), 1);
    }
}
