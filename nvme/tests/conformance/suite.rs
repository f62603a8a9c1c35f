//! The suite: what the crate's rules promise, whichever queue is behind them. Each function takes a
//! queue of [`DEPTH`] operations and [`SLOTS`] files that was not used before.
//!
//! The laboratory of virtual machines runs the same file on devices.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wirevault_buffer::{Arena, ArenaOptions, ChunkBuf, Hugepages, Pool};
use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};
use wirevault_media::sim::SplitMix64;
use wirevault_media::{Media, MediaFile, OpenMode};
use wirevault_nvme::{Completion, NvmeError, Queue, QueueOptions, Slot};

/// Operations in flight.
pub(crate) const DEPTH: usize = 8;
/// Files attached.
pub(crate) const SLOTS: u16 = 3;
/// Bytes that every file can take.
pub(crate) const FILE_BYTES: u64 = 64 * CHUNK_BYTES as u64;
/// Longest wait for anything: devices may be emulated.
pub(crate) const WAIT: Duration = Duration::from_secs(30);

/// A check, and its name.
pub(crate) type Check = (&'static str, fn(Bench));

/// Checks of queues that store what they are given.
pub(crate) const STORING: &[Check] = &[
    ("bytes_arrive_where_they_belong", bytes_arrive_where_they_belong),
    ("chunks_that_follow_each_other_arrive_whole", chunks_that_follow_each_other_arrive_whole),
    ("chunks_of_a_foreign_arena_are_written_too", chunks_of_a_foreign_arena_are_written_too),
];

/// Checks of every queue.
pub(crate) const EVERY: &[Check] = &[
    ("every_operation_ends_once", every_operation_ends_once_and_gives_its_chunk_back),
    ("full_queue_pushes_back_with_the_chunk", full_queue_pushes_back_with_the_chunk),
    ("misuse_is_refused_by_name", misuse_is_refused_by_name),
    ("slots_are_limited_and_reused", slots_are_limited_and_reused),
    ("waiting_is_bounded", waiting_is_bounded),
    ("dropped_queues_give_chunks_back", dropped_queues_give_chunks_back),
];

/// A queue with the volume it writes to.
pub(crate) struct Bench {
    pub(crate) label: &'static str,
    pub(crate) queue: Box<dyn Queue>,
    pub(crate) media: Box<dyn Media>,
    pub(crate) pool: Pool,
    /// A folder that goes with the bench.
    pub(crate) _dir: Option<tempfile::TempDir>,
}

/// Memory for this many chunks.
pub(crate) fn pool(chunks: usize) -> Pool {
    let options =
        ArenaOptions { bytes: chunks * CHUNK_BYTES, hugepages: Hugepages::Off, numa_node: None };
    Pool::new(Arena::new(options).unwrap())
}

/// What a queue of the suite is made with.
pub(crate) fn options(direct: bool) -> QueueOptions {
    QueueOptions { depth: DEPTH as u32, slots: SLOTS, direct, ..QueueOptions::default() }
}

impl Bench {
    pub(crate) fn file(&mut self, name: &str) -> (Slot, Arc<dyn MediaFile>) {
        let file = self.open(name);
        (self.queue.attach(&file).unwrap(), file)
    }

    /// Files are named like segments: a device has no others.
    pub(crate) fn open(&self, name: &str) -> Arc<dyn MediaFile> {
        let place = name.bytes().next().unwrap_or(b'a') - b'a';
        let file = self.media.open(&format!("{place:06}.pcapng"), OpenMode::Create).unwrap();
        file.allocate(FILE_BYTES).unwrap();
        file
    }

    pub(crate) fn buf(&self, fill: u8) -> ChunkBuf {
        let mut buf = self.pool.take().expect("the pool has more chunks than the queue takes");
        buf.fill(fill);
        buf
    }

    pub(crate) fn finish(&mut self) -> Vec<Completion> {
        let mut out = Vec::new();
        drain(self.queue.as_mut(), &mut out);
        out
    }
}

/// Polls until nothing is in flight.
pub(crate) fn drain(queue: &mut dyn Queue, out: &mut Vec<Completion>) {
    let deadline = Instant::now() + WAIT;
    while queue.in_flight() > 0 {
        assert!(Instant::now() < deadline, "{}: operations do not end", queue.name());
        queue.poll(WAIT, out).unwrap();
    }
}

fn token_set(completions: &[Completion]) -> HashSet<u64> {
    completions.iter().map(Completion::token).collect()
}

pub(crate) fn bytes_arrive_where_they_belong(mut bench: Bench) {
    let label = bench.label;
    let (a, file_a) = bench.file("a");
    let (b, file_b) = bench.file("b");
    let mut rng = SplitMix64::new(7);
    let mut expected = Vec::new();
    let (mut out, mut sent) = (Vec::new(), 0u64);
    for n in 0..60u64 {
        let (slot, file) = if n % 2 == 0 { (a, &file_a) } else { (b, &file_b) };
        let len = LBA_BYTES * (1 + rng.below((CHUNK_BYTES / LBA_BYTES) as u64) as usize);
        let offset = n / 2 * CHUNK_BYTES as u64;
        while bench.queue.in_flight() == DEPTH {
            bench.queue.poll(WAIT, &mut out).unwrap();
        }
        for done in out.drain(..) {
            done.result().as_ref().unwrap();
        }
        let buf = bench.buf(n as u8 + 1);
        bench.queue.write(slot, offset, buf, len, n).unwrap();
        sent += 1;
        expected.push((Arc::clone(file), offset, len, n as u8 + 1));
    }
    assert_eq!(sent, 60);
    for done in bench.finish() {
        done.result().as_ref().unwrap();
    }
    bench.queue.sync(a, 1000).unwrap();
    bench.queue.sync(b, 1001).unwrap();
    let ends = bench.finish();
    assert_eq!(token_set(&ends), HashSet::from([1000, 1001]), "{label}");
    assert!(ends.iter().all(|e| e.result().is_ok()), "{label}: {ends:?}");
    for (file, offset, len, fill) in expected {
        let mut found = vec![0; CHUNK_BYTES];
        file.read_exact_at(&mut found, offset).unwrap();
        assert!(found[..len].iter().all(|x| *x == fill), "{label}: {offset}");
        assert!(found[len..].iter().all(|x| *x == 0), "{label}: behind {offset}");
    }
    assert_eq!(bench.pool.in_flight(), 0, "{label}: leaked chunks");
}

/// Two files written in stretches of chunks that follow each other, of all lengths, now and then
/// from another arena: however a queue joins them, each ends once and every byte is in its place.
pub(crate) fn chunks_that_follow_each_other_arrive_whole(mut bench: Bench) {
    let label = bench.label;
    let foreign = pool(DEPTH);
    let files = [bench.file("a"), bench.file("b")];
    let mut expected: [Vec<u8>; 2] = Default::default();
    let mut rng = SplitMix64::new(11);
    let (mut ended, mut sent) = (Vec::new(), 0);
    for n in 0..150u64 {
        let at = usize::from(n / 7 % 2 == 1);
        let len = LBA_BYTES * (1 + rng.below((CHUNK_BYTES / LBA_BYTES) as u64 / 4) as usize);
        let mut buf = match rng.below(10) {
            0 => foreign.take().unwrap(),
            _ => bench.pool.take().unwrap(),
        };
        buf.fill(n as u8);
        let mut out = Vec::new();
        if bench.queue.in_flight() == DEPTH || rng.below(20) == 0 {
            drain(bench.queue.as_mut(), &mut out);
        }
        ended.extend(out.iter().map(|end| (end.token(), end.result().is_ok())));
        drop(out);
        let offset = expected[at].len() as u64;
        bench.queue.write(files[at].0, offset, buf, len, n).unwrap();
        expected[at].resize(expected[at].len() + len, n as u8);
        sent += 1;
    }
    ended.extend(bench.finish().iter().map(|end| (end.token(), end.result().is_ok())));
    ended.sort_unstable();
    let all: Vec<(u64, bool)> = (0..sent).map(|token| (token, true)).collect();
    assert_eq!(ended, all, "{label}");
    for ((_, file), expected) in files.iter().zip(expected) {
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected, "{label}");
    }
    assert_eq!((bench.pool.in_flight(), foreign.in_flight()), (0, 0), "{label}");
}

pub(crate) fn every_operation_ends_once_and_gives_its_chunk_back(mut bench: Bench) {
    let (slot, _file) = bench.file("a");
    let mut chunks = HashSet::new();
    for n in 0..DEPTH as u64 - 1 {
        let buf = bench.buf(n as u8);
        chunks.insert(buf.index());
        bench.queue.write(slot, n * CHUNK_BYTES as u64, buf, CHUNK_BYTES, n).unwrap();
    }
    bench.queue.sync(slot, 99).unwrap();
    assert_eq!(bench.queue.in_flight(), DEPTH);
    let ends = bench.finish();
    assert_eq!(ends.len(), DEPTH, "{}", bench.label);
    assert_eq!(token_set(&ends).len(), DEPTH, "{}", bench.label);
    for end in &ends {
        end.result().as_ref().unwrap();
        if let Completion::Write { token, buf, .. } = end {
            assert!(chunks.remove(&buf.index()));
            assert!(buf.iter().all(|b| u64::from(*b) == *token), "the chunk keeps its bytes");
        }
    }
    assert!(chunks.is_empty());
    drop(ends);
    assert_eq!(bench.pool.in_flight(), 0, "{}", bench.label);
}

pub(crate) fn full_queue_pushes_back_with_the_chunk(mut bench: Bench) {
    let (slot, _file) = bench.file("a");
    for n in 0..DEPTH as u64 {
        let buf = bench.buf(1);
        bench.queue.write(slot, n * CHUNK_BYTES as u64, buf, LBA_BYTES, n).unwrap();
    }
    let buf = bench.buf(77);
    let index = buf.index();
    let refused = bench.queue.write(slot, 0, buf, LBA_BYTES, 1).unwrap_err();
    assert!(refused.error.is_backpressure(), "{}: {}", bench.label, refused.error);
    assert_eq!((refused.buf.index(), refused.buf[0]), (index, 77));
    assert!(bench.queue.sync(slot, 2).unwrap_err().is_backpressure());
    assert_eq!(bench.finish().len(), DEPTH);
    bench.queue.write(slot, 0, refused.buf, LBA_BYTES, 3).unwrap();
    assert_eq!(bench.finish().len(), 1);
    assert_eq!(bench.pool.in_flight(), 0);
}

pub(crate) fn misuse_is_refused_by_name(mut bench: Bench) {
    let (slot, file) = bench.file("a");
    for len in [0, 1, LBA_BYTES - 1, LBA_BYTES + 512, CHUNK_BYTES + LBA_BYTES, usize::MAX] {
        let refused = bench.queue.write(slot, 0, bench.buf(1), len, 0).unwrap_err();
        assert!(matches!(refused.error, NvmeError::Length { .. }), "{len}");
    }
    for offset in [1, 512, u64::MAX, u64::MAX - 4095, i64::MAX as u64 - 4095] {
        let refused = bench.queue.write(slot, offset, bench.buf(1), LBA_BYTES, 0).unwrap_err();
        assert!(matches!(refused.error, NvmeError::Offset { .. }), "{offset}");
    }
    bench.queue.write(slot, 0, bench.buf(1), LBA_BYTES, 0).unwrap();
    assert!(matches!(bench.queue.detach(slot), Err(NvmeError::SlotBusy { .. })));
    bench.finish();
    bench.queue.detach(slot).unwrap();
    assert!(matches!(bench.queue.detach(slot), Err(NvmeError::UnknownSlot { .. })));
    let again = bench.queue.attach(&file).unwrap();
    let refused = bench.queue.write(slot, 0, bench.buf(1), LBA_BYTES, 0).unwrap_err();
    assert!(matches!(refused.error, NvmeError::UnknownSlot { .. }), "a stale slot");
    drop(refused);
    bench.queue.sync(again, 5).unwrap();
    assert_eq!(bench.finish().len(), 1);
    assert_eq!((bench.pool.in_flight(), bench.queue.in_flight()), (0, 0));
}

pub(crate) fn slots_are_limited_and_reused(mut bench: Bench) {
    let slots: Vec<_> = ["a", "b", "c"].iter().map(|n| bench.file(n).0).collect();
    let extra = bench.open("d");
    assert!(matches!(bench.queue.attach(&extra), Err(NvmeError::SlotsFull { slots: SLOTS })));
    bench.queue.detach(slots[1]).unwrap();
    let slot = bench.queue.attach(&extra).unwrap();
    bench.queue.write(slot, 0, bench.buf(5), LBA_BYTES, 1).unwrap();
    assert!(bench.finish()[0].result().is_ok());
    if bench.label != "null" {
        let mut found = [0; 1];
        extra.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, [5], "{}: the reused place leads to the new file", bench.label);
    }
}

pub(crate) fn waiting_is_bounded(mut bench: Bench) {
    let start = Instant::now();
    let mut out = Vec::new();
    bench.queue.poll(WAIT, &mut out).unwrap();
    bench.queue.poll(Duration::ZERO, &mut out).unwrap();
    assert!(start.elapsed() < WAIT / 2, "{}: nothing in flight, nothing to wait for", bench.label);
    let (slot, _file) = bench.file("a");
    bench.queue.write(slot, 0, bench.buf(1), CHUNK_BYTES, 1).unwrap();
    let start = Instant::now();
    while out.is_empty() {
        bench.queue.poll(Duration::ZERO, &mut out).unwrap();
        assert!(start.elapsed() < WAIT, "{}: polling without waiting gets there too", bench.label);
    }
}

pub(crate) fn dropped_queues_give_chunks_back(mut bench: Bench) {
    let (slot, _file) = bench.file("a");
    for n in 0..4u64 {
        let buf = bench.buf(1);
        bench.queue.write(slot, n * CHUNK_BYTES as u64, buf, CHUNK_BYTES, n).unwrap();
    }
    bench.queue.sync(slot, 9).unwrap();
    bench.queue.poll(Duration::ZERO, &mut Vec::new()).unwrap();
    drop(bench.queue);
    assert_eq!(bench.pool.in_flight(), 0, "{}", bench.label);
}

pub(crate) fn chunks_of_a_foreign_arena_are_written_too(mut bench: Bench) {
    let (slot, file) = bench.file("a");
    let foreign = pool(1);
    let mut buf = foreign.take().unwrap();
    buf.fill(42);
    bench.queue.write(slot, 0, buf, CHUNK_BYTES, 1).unwrap();
    assert!(bench.finish()[0].result().is_ok(), "{}", bench.label);
    let mut found = vec![0; CHUNK_BYTES];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found.iter().all(|b| *b == 42), "{}", bench.label);
    assert_eq!(foreign.in_flight(), 0);
}
