//! One suite over every back end: what the crate's rules promise, whichever queue is behind them.
//!
//! Queues that cannot be had here are skipped loudly; with WIREVAULT_NO_SKIP set a skip is a
//! failure.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use wirevault_buffer::{Arena, ArenaOptions, ChunkBuf, Hugepages, Pool};
use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};
use wirevault_media::sim::SplitMix64;
use wirevault_media::{DirMedia, Fault, Media, MediaFile, OpenMode, SimMedia, Trigger};
use wirevault_nvme::{
    Completion, NullQueue, NvmeError, Queue, QueueOptions, SimOptions, SimQueue, Slot, ThreadQueue,
    UringQueue, is_poisoned,
};

const DEPTH: usize = 8;
const SLOTS: u16 = 3;
const WAIT: Duration = Duration::from_secs(5);

/// A queue with the volume it writes to.
struct Bench {
    label: &'static str,
    queue: Box<dyn Queue>,
    media: Box<dyn Media>,
    pool: Pool,
    _dir: Option<tempfile::TempDir>,
}

fn pool(chunks: usize) -> Pool {
    let options =
        ArenaOptions { bytes: chunks * CHUNK_BYTES, hugepages: Hugepages::Off, numa_node: None };
    Pool::new(Arena::new(options).unwrap())
}

fn options(direct: bool) -> QueueOptions {
    QueueOptions { depth: DEPTH as u32, slots: SLOTS, direct, ..QueueOptions::default() }
}

fn uring(direct: bool, arena: Option<&Arena>) -> Option<Box<dyn Queue>> {
    match UringQueue::new(&options(direct), arena) {
        Ok(queue) => Some(Box::new(queue)),
        Err(e) => {
            eprintln!("skipped: {e}");
            assert!(std::env::var_os("WIREVAULT_NO_SKIP").is_none(), "skips are failures here");
            None
        }
    }
}

/// Queues that store what they are given.
fn storing() -> Vec<Bench> {
    let mut benches = Vec::new();
    let mut on_dir = |label, make: &dyn Fn(&Pool) -> Option<Box<dyn Queue>>| {
        let pool = pool(DEPTH + 4);
        let dir = tempfile::tempdir().unwrap();
        let media = Box::new(DirMedia::open(dir.path()).unwrap());
        if let Some(queue) = make(&pool) {
            benches.push(Bench { label, queue, media, pool, _dir: Some(dir) });
        }
    };
    on_dir("uring direct", &|pool| uring(true, Some(pool.arena())));
    on_dir("uring buffered", &|pool| uring(false, Some(pool.arena())));
    on_dir("uring unregistered", &|_| uring(true, None));
    on_dir("thread direct", &|_| Some(Box::new(ThreadQueue::new(&options(true)).unwrap())));
    on_dir("thread buffered", &|_| Some(Box::new(ThreadQueue::new(&options(false)).unwrap())));
    let thread = Box::new(ThreadQueue::new(&options(true)).unwrap());
    benches.push(simulated("thread over sim", thread, SimMedia::new()));
    for seed in 0..4 {
        benches.push(simulated("sim", sim(seed), SimMedia::new()));
    }
    benches
}

fn sim(seed: u64) -> Box<dyn Queue> {
    Box::new(SimQueue::new(SimOptions { seed, depth: DEPTH, slots: SLOTS, delay_polls_max: 5 }))
}

fn simulated(label: &'static str, queue: Box<dyn Queue>, media: SimMedia) -> Bench {
    Bench { label, queue, media: Box::new(media), pool: pool(DEPTH + 4), _dir: None }
}

/// All queues.
fn every() -> Vec<Bench> {
    let mut benches = storing();
    let null = Box::new(NullQueue::new(&options(true)).unwrap());
    benches.push(simulated("null", null, SimMedia::new()));
    benches
}

impl Bench {
    fn file(&mut self, name: &str) -> (Slot, Arc<dyn MediaFile>) {
        let file = self.media.open(name, OpenMode::Create).unwrap();
        file.allocate(64 * CHUNK_BYTES as u64).unwrap();
        (self.queue.attach(&file).unwrap(), file)
    }

    fn buf(&self, fill: u8) -> ChunkBuf {
        let mut buf = self.pool.take().expect("the pool has more chunks than the queue takes");
        buf.fill(fill);
        buf
    }

    fn finish(&mut self) -> Vec<Completion> {
        let mut out = Vec::new();
        drain(self.queue.as_mut(), &mut out);
        out
    }
}

fn drain(queue: &mut dyn Queue, out: &mut Vec<Completion>) {
    let deadline = Instant::now() + WAIT;
    while queue.in_flight() > 0 {
        assert!(Instant::now() < deadline, "{}: operations do not end", queue.name());
        queue.poll(WAIT, out).unwrap();
    }
}

fn token_set(completions: &[Completion]) -> HashSet<u64> {
    completions.iter().map(Completion::token).collect()
}

#[test]
fn bytes_arrive_where_they_belong() {
    for mut bench in storing() {
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
}

/// Two files written in stretches of chunks that follow each other, of all lengths, now and then
/// from another arena: however a queue joins them, each ends once and every byte is in its place.
#[test]
fn chunks_that_follow_each_other_arrive_whole() {
    for mut bench in storing() {
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
}

#[test]
fn every_operation_ends_once_and_gives_its_chunk_back() {
    for mut bench in every() {
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
}

#[test]
fn full_queue_pushes_back_with_the_chunk() {
    for mut bench in every() {
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
}

#[test]
fn misuse_is_refused_by_name() {
    for mut bench in every() {
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
}

#[test]
fn slots_are_limited_and_reused() {
    for mut bench in every() {
        let slots: Vec<_> = ["a", "b", "c"].iter().map(|n| bench.file(n).0).collect();
        let extra = bench.media.open("d", OpenMode::Create).unwrap();
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
}

#[test]
fn waiting_is_bounded() {
    for mut bench in every() {
        let start = Instant::now();
        let mut out = Vec::new();
        bench.queue.poll(WAIT, &mut out).unwrap();
        bench.queue.poll(Duration::ZERO, &mut out).unwrap();
        assert!(
            start.elapsed() < WAIT / 2,
            "{}: nothing in flight, nothing to wait for",
            bench.label
        );
        let (slot, _file) = bench.file("a");
        bench.queue.write(slot, 0, bench.buf(1), CHUNK_BYTES, 1).unwrap();
        let start = Instant::now();
        while out.is_empty() {
            bench.queue.poll(Duration::ZERO, &mut out).unwrap();
            assert!(
                start.elapsed() < WAIT,
                "{}: polling without waiting gets there too",
                bench.label
            );
        }
    }
}

#[test]
fn dropped_queues_give_chunks_back() {
    for mut bench in every() {
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
}

#[test]
fn chunks_of_a_foreign_arena_are_written_too() {
    for mut bench in storing() {
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
}

/// A failing file for each back end: /dev/full for real ones, an injected error for simulated ones.
fn failing() -> Vec<(Bench, Arc<dyn MediaFile>)> {
    let mut benches = Vec::new();
    for bench in storing() {
        let bad = if bench.media.describe() == "simulated disk" {
            continue;
        } else {
            DirMedia::open("/dev").unwrap().open("full", OpenMode::ReadWrite).unwrap()
        };
        benches.push((bench, bad));
    }
    let thread: Box<dyn Queue> = Box::new(ThreadQueue::new(&options(true)).unwrap());
    for (label, queue) in [("thread over sim", thread), ("sim", sim(1)), ("sim", sim(2))] {
        let media = SimMedia::new();
        media.inject(Trigger::Write(1), Fault::Enospc);
        let bad = media.open("bad", OpenMode::Create).unwrap();
        benches.push((simulated(label, queue, media), bad));
    }
    benches
}

#[test]
fn a_failed_write_poisons_its_file_and_no_other() {
    // Chunks with gaps between them, and chunks that follow each other.
    for step in [CHUNK_BYTES, LBA_BYTES] {
        failing().into_iter().for_each(|(bench, bad)| fail_a_write(bench, &bad, step as u64));
    }
}

fn fail_a_write(mut bench: Bench, bad: &Arc<dyn MediaFile>, step_bytes: u64) {
    let label = bench.label;
    let slot = bench.queue.attach(bad).unwrap();
    for n in 0..4u64 {
        bench.queue.write(slot, n * step_bytes, bench.buf(1), LBA_BYTES, n).unwrap();
    }
    let ends = bench.finish();
    assert_eq!(ends.len(), 4, "{label}");
    let failed = ends.iter().position(|e| e.result().is_err()).expect("the write failed");
    assert!(ends[failed..].iter().all(|e| e.result().is_err()), "{label}: {ends:?}");
    let first = ends[failed].result().as_ref().unwrap_err();
    assert!(!is_poisoned(first), "{label}: the first error is the device's own");
    assert_eq!(first.kind(), io::ErrorKind::StorageFull, "{label}: {first}");
    let refused = bench.queue.write(slot, 0, bench.buf(1), LBA_BYTES, 9).unwrap_err();
    assert!(refused.error.is_poisoned(), "{label}");
    assert!(bench.queue.sync(slot, 9).unwrap_err().is_poisoned(), "{label}");
    let (good, _file) = bench.file("good");
    bench.queue.write(good, 0, bench.buf(1), LBA_BYTES, 5).unwrap();
    assert!(bench.finish()[0].result().is_ok(), "{label}");
    bench.queue.detach(slot).unwrap();
    drop((ends, refused));
    assert_eq!(bench.pool.in_flight(), 0, "{label}");
}

#[test]
fn a_failed_sync_poisons_its_file() {
    let thread: Box<dyn Queue> = Box::new(ThreadQueue::new(&options(true)).unwrap());
    for queue in [thread, sim(3), sim(4)] {
        let media = SimMedia::new();
        media.inject(Trigger::Sync(1), Fault::Eio);
        let mut bench = simulated("sync", queue, media);
        let (slot, _file) = bench.file("a");
        bench.queue.write(slot, 0, bench.buf(1), LBA_BYTES, 0).unwrap();
        assert!(bench.finish()[0].result().is_ok());
        bench.queue.sync(slot, 1).unwrap();
        let ends = bench.finish();
        assert_eq!(ends[0].result().as_ref().unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(bench.queue.sync(slot, 2).unwrap_err().is_poisoned());
    }
}

#[test]
fn a_ring_belongs_to_the_thread_that_used_it_first() {
    let pool = pool(4);
    let Some(mut queue) = uring(true, Some(pool.arena())) else { return };
    if queue.report().why_not.iter().any(|r| r.contains("SINGLE_ISSUER")) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = DirMedia::open(dir.path()).unwrap().open("a", OpenMode::Create).unwrap();
    let slot = queue.attach(&file).unwrap();
    let mut queue = thread::scope(|scope| {
        let first = scope.spawn(|| {
            let mut out = Vec::new();
            queue.write(slot, 0, pool.take().unwrap(), CHUNK_BYTES, 1).unwrap();
            drain(queue.as_mut(), &mut out);
            assert!(out[0].result().is_ok());
            queue
        });
        first.join().unwrap()
    });
    queue.write(slot, 0, pool.take().unwrap(), CHUNK_BYTES, 2).unwrap();
    let e = queue.poll(Duration::ZERO, &mut Vec::new()).unwrap_err();
    assert!(matches!(e, NvmeError::WrongThread), "{e}");
    drop(queue);
    assert_eq!(pool.in_flight(), 1, "what may still be in the kernel's hands is never reused");
}

#[test]
fn the_report_tells_what_is_in_use() {
    for mut bench in storing() {
        let before = bench.queue.report();
        assert!(!before.o_direct, "{}: no file, no claim", bench.label);
        assert_eq!(before.backend, bench.queue.name());
        bench.file("a");
        let report = bench.queue.report();
        match bench.label {
            "uring buffered" | "thread buffered" | "thread over sim" | "sim" => {
                assert!(!report.o_direct, "{}", bench.label);
            }
            _ => assert!(report.o_direct || !report.why_not.is_empty(), "{}", bench.label),
        }
        if bench.label == "uring direct" {
            let said = |word: &str| report.why_not.iter().any(|r| r.contains(word));
            assert!(report.registered_buffers || said("memory"), "{report:?}");
            assert!(report.registered_files || said("files"), "{report:?}");
        }
    }
}

#[test]
#[ignore = "takes more than 1 GiB of memory"]
fn arenas_above_one_gib_are_registered_in_pieces() {
    let pool = pool((1 << 30) / CHUNK_BYTES + 1);
    assert_eq!(pool.arena().regions().len(), 2);
    let Some(mut queue) = uring(true, Some(pool.arena())) else { return };
    assert!(queue.report().registered_buffers, "{:?}", queue.report());
    let dir = tempfile::tempdir().unwrap();
    let file = DirMedia::open(dir.path()).unwrap().open("a", OpenMode::Create).unwrap();
    let slot = queue.attach(&file).unwrap();
    let mut all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
    let mut last = all.pop().unwrap();
    assert_eq!(last.region_index(), 1);
    last.fill(9);
    queue.write(slot, 0, last, CHUNK_BYTES, 1).unwrap();
    let mut out = Vec::new();
    drain(queue.as_mut(), &mut out);
    assert!(out[0].result().is_ok(), "{out:?}");
    let mut found = vec![0; CHUNK_BYTES];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found.iter().all(|b| *b == 9));
}
