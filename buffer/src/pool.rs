//! The bounded free lists of chunks, for each part of the arena.
//!
//! A part's chunks are shared out over a few lists, each as long as all before it, and the first
//! that has a chunk gives it. So the chunks in use are about as many as are in flight, the same
//! again and again, and these stay in a cache; one list for all went round the whole arena. Filling
//! a chunk cost twice as much then as soon as the arena was larger than the cache: 97 against 39 ns
//! for each packet of 800 B.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use crate::arena::{Arena, ArenaId, Frame};

/// Hands out the chunks of one arena. Clones share the free list; every call is lock-free and may
/// come from any thread.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

/// Chunks of a part's first list: 4 MiB, what a writer submits in a row.
const FIRST_CHUNKS: usize = 16;

struct Shared {
    arena: Arena,
    /// By part.
    free: Vec<Free>,
}

/// The free chunks of a part.
struct Free {
    /// Its first chunk in the arena.
    begin: usize,
    /// The first is of [`FIRST_CHUNKS`], each other as long as all before it.
    lists: Vec<ArrayQueue<Frame>>,
}

/// A chunk in somebody's hands: `CHUNK_BYTES` of memory, aligned to the chunk size, returned to its
/// pool on drop.
///
/// The bytes are those that the last owner left.
pub struct ChunkBuf {
    /// `None` only while the value is being dropped.
    frame: Option<Frame>,
    home: Arc<Shared>,
}

impl Pool {
    /// Takes all chunks of an arena whose chunks nobody took yet. A second pool over one arena has
    /// no chunks.
    pub fn new(arena: Arena) -> Self {
        let mut begin = 0;
        let parts = arena.report().parts.iter().map(|part| {
            let free = Free::new(begin, part.chunks);
            begin += part.chunks;
            free
        });
        let free: Vec<_> = parts.collect();
        for frame in arena.take_frames() {
            free[arena.part_of(frame.index())].put(frame);
        }
        Self { shared: Arc::new(Shared { arena, free }) }
    }

    /// A free chunk, or `None`: all are in flight, which is pressure and not an error.
    pub fn take(&self) -> Option<ChunkBuf> {
        self.take_near(0)
    }

    /// As [`Pool::take`], of this part as long as it has one, else of any other: memory that is far
    /// away is better than none. Parts are numbered as in the arena's report.
    pub fn take_near(&self, part: usize) -> Option<ChunkBuf> {
        let free = &self.shared.free;
        let near = free.get(part).and_then(Free::take);
        let frame = near.or_else(|| free.iter().find_map(Free::take))?;
        Some(ChunkBuf { frame: Some(frame), home: Arc::clone(&self.shared) })
    }

    /// Gives a chunk back; the same as dropping it.
    pub fn put(&self, buf: ChunkBuf) {
        drop(buf);
    }

    /// Chunks in somebody's hands. Every test ends with 0 here: this is the leak counter.
    pub fn in_flight(&self) -> usize {
        self.capacity().saturating_sub(self.shared.free.iter().map(Free::len).sum())
    }

    /// Chunks of a part in somebody's hands.
    pub fn in_flight_of(&self, part: usize) -> usize {
        let has = self.shared.arena.report().parts.get(part).map_or(0, |part| part.chunks);
        has.saturating_sub(self.shared.free.get(part).map_or(0, Free::len))
    }

    /// Chunks there are.
    pub fn capacity(&self) -> usize {
        self.shared.arena.chunks()
    }

    /// Share of chunks in flight, from 0.0 (all free) to 1.0 (none left).
    pub fn pressure(&self) -> f64 {
        self.in_flight() as f64 / self.capacity().max(1) as f64
    }

    /// The arena that the chunks belong to.
    pub fn arena(&self) -> &Arena {
        &self.shared.arena
    }
}

impl Free {
    fn new(begin: usize, chunks: usize) -> Self {
        let list = |number: u32| {
            let end = FIRST_CHUNKS << number;
            let from = if number == 0 { 0 } else { end / 2 };
            (from < chunks).then(|| ArrayQueue::new(end.min(chunks) - from))
        };
        Self { begin, lists: (0..).map_while(list).collect() }
    }

    fn take(&self) -> Option<Frame> {
        self.lists.iter().find_map(ArrayQueue::pop)
    }

    fn put(&self, frame: Frame) {
        let at = frame.index() as usize - self.begin;
        let list = (at / FIRST_CHUNKS).checked_ilog2().map_or(0, |log| log as usize + 1);
        // A list has as many places as chunks, so nothing is refused.
        let _ = self.lists[list].push(frame);
    }

    fn len(&self) -> usize {
        self.lists.iter().map(ArrayQueue::len).sum()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("capacity", &self.capacity())
            .field("in_flight", &self.in_flight())
            .finish()
    }
}

impl ChunkBuf {
    /// Number of the chunk within its arena, from 0.
    pub fn index(&self) -> u32 {
        self.frame().index()
    }

    /// Arena the chunk belongs to; registrations of memory are good for one arena only.
    pub fn arena_id(&self) -> ArenaId {
        self.home.arena.id()
    }

    /// Index into [`Arena::regions`] of the region that holds the chunk.
    pub fn region_index(&self) -> u16 {
        self.home.arena.region_of(self.index())
    }

    /// Asks for the cache lines of `bytes` from `at` on, which are to be written soon. They may lie
    /// outside of the chunk.
    #[inline]
    pub fn prefetch_for_writing(&self, at: usize, bytes: usize) {
        self.frame().prefetch_for_writing(at, bytes);
    }

    fn frame(&self) -> &Frame {
        self.frame.as_ref().expect("a chunk has its frame until it is dropped")
    }
}

impl Deref for ChunkBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.frame().bytes()
    }
}

impl DerefMut for ChunkBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.frame.as_mut().expect("a chunk has its frame until it is dropped").bytes_mut()
    }
}

impl Drop for ChunkBuf {
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            self.home.free[self.home.arena.part_of(frame.index())].put(frame);
        }
    }
}

impl fmt::Debug for ChunkBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkBuf({})", self.index())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::thread;

    use proptest::prelude::*;
    use wirevault_format::limits::CHUNK_BYTES;

    use super::*;
    use crate::{ArenaOptions, Hugepages};

    fn pool(chunks: usize) -> Pool {
        let options = ArenaOptions {
            bytes: chunks * CHUNK_BYTES,
            hugepages: Hugepages::Off,
            numa_node: None,
        };
        Pool::new(Arena::new(options).unwrap())
    }

    #[test]
    fn chunks_are_distinct_and_come_back() {
        let pool = pool(8);
        let mut bufs: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(bufs.len(), 8);
        assert_eq!((pool.in_flight(), pool.pressure()), (8, 1.0));
        for (n, buf) in bufs.iter_mut().enumerate() {
            assert_eq!(buf.len(), CHUNK_BYTES);
            assert!((buf.as_ptr() as usize).is_multiple_of(CHUNK_BYTES));
            buf.fill(n as u8);
        }
        for (n, buf) in bufs.iter().enumerate() {
            assert!(buf.iter().all(|b| *b == n as u8), "chunk {n} is shared with another");
        }
        assert_eq!(bufs.iter().map(ChunkBuf::index).collect::<HashSet<_>>().len(), 8);
        pool.put(bufs.pop().unwrap());
        assert_eq!(pool.in_flight(), 7);
        drop(bufs);
        assert_eq!((pool.in_flight(), pool.pressure()), (0, 0.0));
    }

    #[test]
    fn chunks_of_a_part_come_first_and_go_back_there() {
        let options = ArenaOptions { bytes: 8 << 20, hugepages: Hugepages::Off, numa_node: None };
        let pool = Pool::new(Arena::over_nodes(options, &[(0, 1), (1, 1)]).unwrap());
        let far = |buf: &ChunkBuf| buf.index() >= 16;
        let mut bufs: Vec<_> = (0..16).map(|_| pool.take_near(1).unwrap()).collect();
        assert!(bufs.iter().all(far));
        assert_eq!([0, 1, 2].map(|part| pool.in_flight_of(part)), [0, 16, 0]);
        bufs.push(pool.take_near(1).unwrap());
        assert!(!far(&bufs[16]), "the other part helps out");
        bufs.truncate(16);
        assert_eq!([0, 1].map(|part| pool.in_flight_of(part)), [0, 16]);
        bufs.extend(std::iter::from_fn(|| pool.take()));
        assert_eq!((bufs.len(), pool.in_flight()), (32, 32));
        drop(bufs);
        assert_eq!((pool.in_flight(), pool.in_flight_of(1)), (0, 0));
    }

    #[test]
    fn what_is_in_use_is_little_more_than_what_is_in_flight() {
        let pool = pool(200);
        let mut held = std::collections::VecDeque::new();
        let mut used = HashSet::new();
        for _ in 0..1000 {
            held.push_back(pool.take().unwrap());
            used.insert(held.back().unwrap().index());
            if held.len() == 20 {
                held.pop_front();
            }
        }
        assert_eq!(used.into_iter().max(), Some(31), "the first two lists of 16");
        drop(held);
        assert_eq!(std::iter::from_fn(|| pool.take()).collect::<Vec<_>>().len(), 200);
    }

    #[test]
    fn chunks_outlive_pool_and_arena() {
        let pool = pool(2);
        let mut buf = pool.take().unwrap();
        drop(pool);
        buf.fill(7);
        assert!(buf.iter().all(|b| *b == 7));
    }

    #[test]
    fn second_pool_over_an_arena_is_empty() {
        let first = pool(2);
        let second = Pool::new(first.arena().clone());
        assert!(second.take().is_none());
        assert!(first.take().is_some());
        assert_eq!(first.in_flight(), 0);
    }

    #[test]
    fn threads_never_share_a_chunk() {
        let pool = pool(4);
        thread::scope(|scope| {
            for id in 1..=3u8 {
                let pool = pool.clone();
                scope.spawn(move || {
                    for _ in 0..2000 {
                        if let Some(mut buf) = pool.take() {
                            buf[..64].fill(id);
                            thread::yield_now();
                            assert!(buf[..64].iter().all(|b| *b == id));
                        }
                    }
                });
            }
        });
        assert_eq!(pool.in_flight(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn in_flight_equals_a_count(steps in prop::collection::vec(any::<Option<u8>>(), 0..100)) {
            let pool = pool(5);
            let mut held = Vec::new();
            for step in steps {
                match step {
                    Some(n) if !held.is_empty() => {
                        let at = n as usize % held.len();
                        drop::<ChunkBuf>(held.swap_remove(at));
                    }
                    _ => match pool.take() {
                        Some(buf) => held.push(buf),
                        None => prop_assert_eq!(held.len(), 5),
                    },
                }
                prop_assert_eq!(pool.in_flight(), held.len());
            }
        }
    }
}
