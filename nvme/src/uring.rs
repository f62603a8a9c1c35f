//! The io_uring back end (io_uring(7); set-up flags of Linux 6.1, plain set-up from 5.11 on).
//!
//! The queue belongs to the thread that submits first: it may be made and filled with files
//! elsewhere, then moved there. Chunks that follow each other in a file and are written without a
//! poll in between become one vectored write, see `run`. Short writes are submitted again for
//! their rest.

use std::io;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use wirevault_buffer::{Arena, ChunkBuf};
use wirevault_format::limits::LBA_BYTES;
use wirevault_media::MediaFile;

use crate::error::{NvmeError, Refused};
use crate::options::{QueueOptions, QueueReport};
use crate::run::{Run, RunChunk};
use crate::slot::{Slot, Slots};
use crate::sys::{Op, OpKind, Ring, RingFile};
use crate::target::Target;
use crate::{Completion, Queue, check_write};

const NAME: &str = "io_uring";
const WHY: &str =
    "files, and devices that take no NVMe commands from us, are written through the kernel";

/// Submissions of one write without progress before it counts as failed. The kernel asks for
/// repeats (EINTR, EAGAIN) when it is short of memory; for ever would hang the writer.
const IDLE_TRIES_MAX: u32 = 64;

/// Writes with io_uring, from registered memory into registered files where possible.
pub struct UringQueue {
    ring: Ring,
    slots: Slots<Attached>,
    /// The last write, as long as others may join it.
    open: Option<Op>,
    /// Lists of runs that ended.
    lists: Vec<Vec<RunChunk>>,
    report: QueueReport,
    direct: bool,
    /// No file attached so far went through the page cache.
    all_direct: bool,
    broken: bool,
}

struct Attached {
    file: RingFile,
    /// Keeps the descriptor open.
    target: Target,
}

impl UringQueue {
    /// Sets up a ring and registers the arena's memory. Chunks of other arenas can be written,
    /// unregistered.
    ///
    /// Errors: options beyond limits; io_uring is missing or forbidden.
    pub fn new(options: &QueueOptions, arena: Option<&Arena>) -> Result<Self, NvmeError> {
        options.check()?;
        let mut report = QueueReport::new(NAME, WHY);
        let ring = Ring::open(options.depth, options.slots, arena, &mut report.why_not).map_err(
            |source| NvmeError::Setup { backend: NAME, reason: reason(&source), source },
        )?;
        report.registered_buffers = ring.has_registered_buffers();
        report.registered_files = ring.has_registered_files();
        let depth = options.depth as usize;
        Ok(Self {
            ring,
            slots: Slots::new(options.slots, depth),
            open: None,
            lists: (0..depth).map(|_| Run::list()).collect(),
            report,
            direct: options.direct,
            all_direct: true,
            broken: false,
        })
    }

    /// Hands the open write to the ring. Every operation in the ring is one that was counted, so
    /// there is room; should that ever be wrong, it stays open.
    fn close_run(&mut self) {
        self.open = self.open.take().and_then(|op| self.ring.push(op).err());
    }

    /// Takes every completion that is there. Short writes go back into the ring.
    fn reap(&mut self, out: &mut Vec<Completion>) {
        while let Some((mut op, result)) = self.ring.next() {
            let step = match &mut op.kind {
                OpKind::Write(run) => {
                    let step = progress(run.done_bytes, run.len_bytes(), result);
                    if let Step::Again(done) = step {
                        op.idle_tries = if done > run.done_bytes { 0 } else { op.idle_tries + 1 };
                        run.done_bytes = done;
                    }
                    step
                }
                OpKind::Sync { .. } if result < 0 => {
                    Step::Failed(io::Error::from_raw_os_error(-result))
                }
                OpKind::Sync { .. } => Step::Done,
            };
            let result = match step {
                Step::Done => Ok(()),
                Step::Failed(e) => Err(e),
                Step::Again(_) if op.idle_tries > IDLE_TRIES_MAX => {
                    Err(io::Error::from_raw_os_error(libc::EIO))
                }
                Step::Again(_) => match self.ring.push(op) {
                    Ok(()) => continue,
                    // The operation just left its place, so there is room; should that ever be
                    // wrong, it failed.
                    Err(back) => {
                        op = back;
                        Err(io::Error::from_raw_os_error(libc::EBUSY))
                    }
                },
            };
            self.finish(op, result, out);
        }
    }

    /// Reports the end of an operation for each chunk in it. When a run fails its first chunk gets
    /// the error and poisons the slot, so the others fail after it: nobody knows how far it came.
    fn finish(&mut self, op: Op, mut result: io::Result<()>, out: &mut Vec<Completion>) {
        let run = match op.kind {
            OpKind::Write(run) => run,
            OpKind::Sync { token } => {
                let result = self.slots.finish(op.slot, result);
                out.push(Completion::Sync { token, result });
                return;
            }
        };
        let mut chunks = run.into_chunks();
        for RunChunk { buf, token, .. } in chunks.drain(..) {
            let result = self.slots.finish(op.slot, mem::replace(&mut result, Ok(())));
            out.push(Completion::Write { token, buf, result });
        }
        self.lists.push(chunks);
    }

    fn enter(&mut self, wait: Duration) -> Result<(), NvmeError> {
        self.ring.enter(wait).map_err(|source| {
            if source.raw_os_error() == Some(libc::EEXIST) {
                return NvmeError::WrongThread;
            }
            self.broken = true;
            NvmeError::Broken { backend: NAME, source }
        })
    }

    fn usable(&self) -> Result<(), NvmeError> {
        if !self.broken {
            return Ok(());
        }
        let source = io::Error::other("an earlier call to the kernel failed");
        Err(NvmeError::Broken { backend: NAME, source })
    }
}

impl Queue for UringQueue {
    fn name(&self) -> &'static str {
        NAME
    }

    fn report(&self) -> QueueReport {
        self.report.clone()
    }

    fn depth(&self) -> usize {
        self.slots.depth()
    }

    fn attach(&mut self, file: &Arc<dyn MediaFile>) -> Result<Slot, NvmeError> {
        self.usable()?;
        let place = self.slots.free_place()?;
        let report = &mut self.report;
        let target = Target::open(NAME, file, self.direct, |text| report.because(text))?;
        let fd = target.fd().ok_or_else(|| NvmeError::WrongFile {
            backend: NAME,
            file: file.name().to_owned(),
            reason: "it has no descriptor; simulated files need the sim queue",
        })?;
        let ring_file = self.ring.attach(place, fd).map_err(|source| {
            if source.raw_os_error() == Some(libc::EEXIST) {
                return NvmeError::WrongThread;
            }
            NvmeError::Open { backend: NAME, file: file.name().to_owned(), source }
        })?;
        self.all_direct &= target.is_direct();
        report.o_direct = self.all_direct;
        Ok(self.slots.put(place, file.name(), Attached { file: ring_file, target }))
    }

    fn detach(&mut self, slot: Slot) -> Result<(), NvmeError> {
        let attached = self.slots.remove(slot)?;
        match self.ring.detach(attached.file) {
            Ok(()) => Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Err(NvmeError::WrongThread),
            Err(source) => Err(NvmeError::Broken { backend: NAME, source }),
        }
    }

    fn write(
        &mut self,
        slot: Slot,
        offset: u64,
        buf: ChunkBuf,
        len_bytes: usize,
        token: u64,
    ) -> Result<(), Refused> {
        let started = self
            .usable()
            .and_then(|()| check_write(offset, len_bytes))
            .and_then(|()| self.slots.start(slot).map(|it| (it.file, it.target.part())));
        let place = started.and_then(|(file, part)| {
            let place = part.place(offset, len_bytes).map(|offset| (file, offset));
            // Nothing was submitted, so the count goes back without a verdict on the file.
            place.inspect_err(|_| _ = self.slots.finish(slot, Ok(())))
        });
        let (file, offset) = match place {
            Ok(place) => place,
            Err(error) => return Err(Refused { error, buf }),
        };
        let chunk = RunChunk { buf, len_bytes, token };
        if let Some(Op { slot: same, kind: OpKind::Write(run), .. }) = &mut self.open
            && *same == slot
            && run.takes(&chunk.buf, offset)
        {
            run.push(chunk);
            return Ok(());
        }
        self.close_run();
        if self.open.is_some() {
            // Nothing reached the device, so the count goes back without a verdict on the file.
            let _ = self.slots.finish(slot, Ok(()));
            let error = NvmeError::QueueFull { depth: self.depth() };
            return Err(Refused { error, buf: chunk.buf });
        }
        let list = self.lists.pop().unwrap_or_else(Run::list);
        let kind = OpKind::Write(Run::new(list, offset, chunk));
        self.open = Some(Op { slot, kind, idle_tries: 0, file });
        Ok(())
    }

    fn sync(&mut self, slot: Slot, token: u64) -> Result<(), NvmeError> {
        self.usable()?;
        let file = self.slots.start(slot)?.file;
        self.close_run();
        let op = Op { slot, kind: OpKind::Sync { token }, idle_tries: 0, file };
        self.ring.push(op).map_err(|_| {
            let _ = self.slots.finish(slot, Ok(()));
            NvmeError::QueueFull { depth: self.slots.depth() }
        })
    }

    fn poll(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        self.usable()?;
        if self.slots.in_flight() == 0 {
            return Ok(());
        }
        self.close_run();
        self.enter(wait)?;
        self.reap(out);
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }
}

enum Step {
    Done,
    /// Submit the rest, from this many bytes on.
    Again(usize),
    Failed(io::Error),
}

/// What the kernel's result (bytes, or a negative errno) means for a write of which `done` bytes
/// are written.
fn progress(done: usize, len: usize, result: i32) -> Step {
    match result {
        _ if -result == libc::EINTR || -result == libc::EAGAIN => Step::Again(done),
        ..0 => Step::Failed(io::Error::from_raw_os_error(-result)),
        0 => Step::Failed(io::ErrorKind::WriteZero.into()),
        // Not more than was asked for, whatever the kernel says.
        n if n as usize >= len - done => Step::Done,
        // O_DIRECT goes on at a block's start only, so a half block is written again.
        n => {
            let end = done + n as usize;
            Step::Again(end - end % LBA_BYTES)
        }
    }
}

fn reason(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has no io_uring",
        Some(libc::EPERM) => {
            "io_uring is forbidden here; check kernel.io_uring_disabled and the seccomp filter"
        }
        Some(libc::ENOMEM) => "memory for the rings is not allowed; raise LimitMEMLOCK=",
        Some(libc::EMFILE | libc::ENFILE) => "no file descriptor is left; raise LimitNOFILE=",
        _ => "the ring could not be set up",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wirevault_buffer::{ArenaOptions, Hugepages, Pool};
    use wirevault_format::limits::CHUNK_BYTES;
    use wirevault_media::{DirMedia, Media, OpenMode};

    use super::*;

    #[test]
    fn chunks_that_follow_each_other_are_one_operation() {
        let (bytes, hugepages) = (8 * CHUNK_BYTES, Hugepages::Off);
        let arena = Arena::new(ArenaOptions { bytes, hugepages, numa_node: None }).unwrap();
        let pool = Pool::new(arena.clone());
        let mut queue = match UringQueue::new(&QueueOptions::default(), Some(&arena)) {
            Ok(queue) => queue,
            Err(error) => {
                eprintln!("skipped: {error}");
                assert!(std::env::var_os("WIREVAULT_NO_SKIP").is_none(), "skips are failures here");
                return;
            }
        };
        let dir = tempfile::tempdir().unwrap();
        let file = DirMedia::open(dir.path()).unwrap().open("a", OpenMode::Create).unwrap();
        let slot = queue.attach(&file).unwrap();
        let mut write = |chunk: u64| {
            let offset = chunk * CHUNK_BYTES as u64;
            queue.write(slot, offset, pool.take().unwrap(), CHUNK_BYTES, chunk).unwrap();
            queue.ring.in_flight()
        };
        assert_eq!([0, 1, 2, 5, 6].map(&mut write), [0, 0, 0, 1, 1]);
        queue.sync(slot, 9).unwrap();
        assert_eq!((queue.ring.in_flight(), queue.in_flight()), (3, 6));
        let mut out = Vec::new();
        while queue.in_flight() > 0 {
            queue.poll(Duration::from_secs(1), &mut out).unwrap();
        }
        assert!(out.len() == 6 && out.iter().all(|end| end.result().is_ok()), "{out:?}");
    }

    proptest! {
        /// A device that takes any number of bytes at a time ends with every byte written, in whole
        /// blocks.
        #[test]
        fn short_writes_end(
            blocks in 1usize..=64,
            takes in prop::collection::vec(4096i32..100_000, 64),
        ) {
            let len = (blocks * LBA_BYTES).min(CHUNK_BYTES);
            let mut done = 0;
            for take in takes {
                match progress(done, len, take.min((len - done) as i32)) {
                    Step::Done => { done = len; break; }
                    Step::Again(at) => {
                        prop_assert!(at > done && at < len && at.is_multiple_of(LBA_BYTES));
                        done = at;
                    }
                    Step::Failed(e) => panic!("{e}"),
                }
            }
            prop_assert_eq!(done, len);
        }
    }

    #[test]
    fn results_are_judged() {
        assert!(matches!(progress(4096, 8192, -libc::EAGAIN), Step::Again(4096)));
        assert!(matches!(progress(0, 8192, -libc::EINTR), Step::Again(0)));
        assert!(matches!(progress(0, 8192, 512), Step::Again(0)));
        assert!(matches!(progress(0, 8192, 5000), Step::Again(4096)));
        assert!(matches!(progress(4096, 8192, 4096), Step::Done));
        let Step::Failed(e) = progress(0, 8192, -libc::ENOSPC) else { panic!() };
        assert_eq!(e.kind(), io::ErrorKind::StorageFull);
        let Step::Failed(e) = progress(0, 8192, 0) else { panic!() };
        assert_eq!(e.kind(), io::ErrorKind::WriteZero);
    }
}
