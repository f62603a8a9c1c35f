//! Writes that follow each other in a file and go to the kernel as one.
//!
//! A file system looks up, locks and marks blocks for each write it gets, and a device is told of
//! each: for chunks of 256 KiB that is most of what a write costs. The bytes need not lie side by
//! side in memory.

use wirevault_buffer::ChunkBuf;

/// Chunks in one write at most: 4 MiB. Longer writes gain nothing more on the disks tried.
pub(crate) const RUN_CHUNKS_MAX: usize = 16;

/// A chunk, and how its write is known to the caller.
pub(crate) struct RunChunk {
    pub(crate) buf: ChunkBuf,
    pub(crate) len_bytes: usize,
    pub(crate) token: u64,
}

/// One chunk or more that follow each other in one file.
pub(crate) struct Run {
    chunks: Vec<RunChunk>,
    offset: u64,
    len_bytes: usize,
    /// Written so far.
    pub(crate) done_bytes: usize,
}

impl Run {
    /// A run that begins with one chunk, in a list that may have been used before.
    pub(crate) fn new(mut chunks: Vec<RunChunk>, offset: u64, first: RunChunk) -> Self {
        let len_bytes = first.len_bytes;
        chunks.clear();
        chunks.push(first);
        Self { chunks, offset, len_bytes, done_bytes: 0 }
    }

    /// An empty list that need not grow.
    pub(crate) fn list() -> Vec<RunChunk> {
        Vec::with_capacity(RUN_CHUNKS_MAX)
    }

    /// Whether a chunk at this offset of the same file can join. The kernel wants one registered
    /// piece of memory for a write.
    pub(crate) fn takes(&self, buf: &ChunkBuf, offset: u64) -> bool {
        let same = |other: &RunChunk| {
            (other.buf.arena_id(), other.buf.region_index()) == (buf.arena_id(), buf.region_index())
        };
        self.chunks.len() < RUN_CHUNKS_MAX
            && self.offset + self.len_bytes as u64 == offset
            && self.chunks.last().is_some_and(same)
    }

    pub(crate) fn push(&mut self, chunk: RunChunk) {
        self.len_bytes += chunk.len_bytes;
        self.chunks.push(chunk);
    }

    /// One chunk of it; all lie in the same piece of memory.
    pub(crate) fn first(&self) -> Option<&ChunkBuf> {
        self.chunks.first().map(|chunk| &chunk.buf)
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Where in the file the rest goes.
    pub(crate) fn rest_offset(&self) -> u64 {
        self.offset + self.done_bytes as u64
    }

    /// What is not written yet, in pieces.
    pub(crate) fn rest(&self) -> impl Iterator<Item = &[u8]> {
        let mut done_bytes = self.done_bytes;
        self.chunks.iter().filter_map(move |chunk| {
            let skipped = done_bytes.min(chunk.len_bytes);
            done_bytes -= skipped;
            Some(&chunk.buf[skipped..chunk.len_bytes]).filter(|rest| !rest.is_empty())
        })
    }

    /// The chunks, and the list to be used again once they are taken out.
    pub(crate) fn into_chunks(self) -> Vec<RunChunk> {
        self.chunks
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
    use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};

    use super::*;

    fn pool() -> Pool {
        let bytes = (RUN_CHUNKS_MAX + 1) * CHUNK_BYTES;
        let options = ArenaOptions { bytes, hugepages: Hugepages::Off, numa_node: None };
        Pool::new(Arena::new(options).unwrap())
    }

    fn chunk(pool: &Pool, len_bytes: usize, token: u64) -> RunChunk {
        RunChunk { buf: pool.take().unwrap(), len_bytes, token }
    }

    #[test]
    fn only_what_follows_in_the_same_memory_joins() {
        let (ours, other) = (pool(), pool());
        let mut run = Run::new(Run::list(), 4096, chunk(&ours, LBA_BYTES, 0));
        let next = chunk(&ours, CHUNK_BYTES, 1);
        assert!(run.takes(&next.buf, 8192) && !run.takes(&next.buf, 12288));
        assert!(!run.takes(&other.take().unwrap(), 8192));
        run.push(next);
        let mut end = 8192 + CHUNK_BYTES as u64;
        while let Some(buf) = ours.take().filter(|buf| run.takes(buf, end)) {
            run.push(RunChunk { buf, len_bytes: LBA_BYTES, token: end });
            end += LBA_BYTES as u64;
        }
        assert_eq!(run.into_chunks().len(), RUN_CHUNKS_MAX);
    }

    proptest! {
        /// What is left of a run is its end, however much of it is written.
        #[test]
        fn the_rest_is_its_end(
            blocks in prop::collection::vec(1usize..=CHUNK_BYTES / LBA_BYTES, 1..=RUN_CHUNKS_MAX),
            done in any::<prop::sample::Index>(),
        ) {
            let pool = pool();
            let mut expected = Vec::new();
            let mut chunks = blocks.iter().enumerate().map(|(n, blocks)| {
                let mut chunk = chunk(&pool, blocks * LBA_BYTES, n as u64);
                chunk.buf.fill(n as u8);
                expected.resize(expected.len() + chunk.len_bytes, n as u8);
                chunk
            });
            let mut run = Run::new(Run::list(), 0, chunks.next().unwrap());
            chunks.for_each(|chunk| run.push(chunk));
            run.done_bytes = done.index(expected.len() / LBA_BYTES) * LBA_BYTES;
            prop_assert_eq!(run.rest_offset(), run.done_bytes as u64);
            prop_assert!(run.rest().collect::<Vec<_>>().concat() == expected[run.done_bytes..]);
        }
    }
}
