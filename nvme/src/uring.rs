//! The io_uring back end (io_uring(7); set-up flags of Linux 6.1, plain set-up from 5.11 on).
//!
//! The queue belongs to the thread that submits first: it may be made and filled with files
//! elsewhere, then moved there. Short writes are submitted again for their rest.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use wirevault_buffer::{Arena, ChunkBuf};
use wirevault_format::limits::LBA_BYTES;
use wirevault_media::MediaFile;

use crate::error::{NvmeError, Refused};
use crate::options::{QueueOptions, QueueReport};
use crate::slot::{Slot, Slots};
use crate::sys::{Op, OpKind, Ring, RingFile};
use crate::target::Target;
use crate::{Completion, Queue, check_write};

const NAME: &str = "io_uring";

/// Submissions of one write without progress before it counts as failed. The kernel asks for
/// repeats (EINTR, EAGAIN) when it is short of memory; for ever would hang the writer.
const IDLE_TRIES_MAX: u32 = 64;

/// Writes with io_uring, from registered memory into registered files where possible.
pub struct UringQueue {
    ring: Ring,
    slots: Slots<Attached>,
    report: QueueReport,
    direct: bool,
    /// No file attached so far went through the page cache.
    all_direct: bool,
    broken: bool,
}

struct Attached {
    file: RingFile,
    /// Keeps the descriptor open.
    _target: Target,
}

impl UringQueue {
    /// Sets up a ring and registers the arena's memory. Chunks of other arenas can be written,
    /// unregistered.
    ///
    /// Errors: options beyond limits; io_uring is missing or forbidden.
    pub fn new(options: &QueueOptions, arena: Option<&Arena>) -> Result<Self, NvmeError> {
        options.check()?;
        let mut report = QueueReport::new(NAME);
        let ring = Ring::open(options.depth, options.slots, arena, &mut report.why_not).map_err(
            |source| NvmeError::Setup { backend: NAME, reason: reason(&source), source },
        )?;
        report.registered_buffers = ring.has_registered_buffers();
        report.registered_files = ring.has_registered_files();
        let slots = Slots::new(options.slots, options.depth as usize);
        Ok(Self { ring, slots, report, direct: options.direct, all_direct: true, broken: false })
    }

    fn push(&mut self, op: Op) -> Result<(), Op> {
        self.ring.push(op)
    }

    /// Takes every completion that is there. Short writes go back into the ring.
    fn reap(&mut self, out: &mut Vec<Completion>) {
        while let Some((mut op, result)) = self.ring.next() {
            let step = match &mut op.kind {
                OpKind::Write { len_bytes, done_bytes, .. } => {
                    let step = progress(*done_bytes, *len_bytes, result);
                    if let Step::Again(done) = step {
                        op.idle_tries = if done > *done_bytes { 0 } else { op.idle_tries + 1 };
                        *done_bytes = done;
                    }
                    step
                }
                OpKind::Sync if result < 0 => Step::Failed(io::Error::from_raw_os_error(-result)),
                OpKind::Sync => Step::Done,
            };
            let result = match step {
                Step::Done => Ok(()),
                Step::Failed(e) => Err(e),
                Step::Again(_) if op.idle_tries > IDLE_TRIES_MAX => {
                    Err(io::Error::from_raw_os_error(libc::EIO))
                }
                Step::Again(_) => match self.push(op) {
                    Ok(()) => continue,
                    // The operation just left its place, so there is room; should that ever be
                    // wrong, it failed.
                    Err(back) => {
                        op = back;
                        Err(io::Error::from_raw_os_error(libc::EBUSY))
                    }
                },
            };
            let result = self.slots.finish(op.slot, result);
            let token = op.token;
            out.push(match op.kind {
                OpKind::Write { buf, .. } => Completion::Write { token, buf, result },
                OpKind::Sync => Completion::Sync { token, result },
            });
        }
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
        Ok(self.slots.put(place, file.name(), Attached { file: ring_file, _target: target }))
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
        let file = self
            .usable()
            .and_then(|()| check_write(offset, len_bytes))
            .and_then(|()| self.slots.start(slot).map(|attached| attached.file));
        let file = match file {
            Ok(file) => file,
            Err(error) => return Err(Refused { error, buf }),
        };
        let kind = OpKind::Write { buf, offset, len_bytes, done_bytes: 0 };
        match self.push(Op { slot, token, kind, idle_tries: 0, file }) {
            Ok(()) => Ok(()),
            Err(Op { kind: OpKind::Write { buf, .. }, .. }) => {
                // Nothing reached the device, so the count goes back without a verdict on the file.
                let _ = self.slots.finish(slot, Ok(()));
                Err(Refused { error: NvmeError::QueueFull { depth: self.depth() }, buf })
            }
            // `push` gives back what it was given.
            Err(Op { kind: OpKind::Sync, .. }) => Ok(()),
        }
    }

    fn sync(&mut self, slot: Slot, token: u64) -> Result<(), NvmeError> {
        self.usable()?;
        let file = self.slots.start(slot)?.file;
        let op = Op { slot, token, kind: OpKind::Sync, idle_tries: 0, file };
        self.push(op).map_err(|_| {
            let _ = self.slots.finish(slot, Ok(()));
            NvmeError::QueueFull { depth: self.slots.depth() }
        })
    }

    fn poll(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        self.usable()?;
        if self.slots.in_flight() == 0 {
            return Ok(());
        }
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
    use wirevault_format::limits::CHUNK_BYTES;

    use super::*;

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
