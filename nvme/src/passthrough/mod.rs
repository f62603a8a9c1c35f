//! The NVMe passthrough back end: commands for a namespace, put together here and handed to its
//! driver through io_uring (`IORING_OP_URING_CMD` on `/dev/ngXnY`, Linux 6.0 with registered memory
//! and polling), past file system and block layer.
//!
//! ```text
//!  write(slot, offset, chunk) ─► pieces of at most one transfer ─► CommandRing ─► driver, device
//!  sync(slot)                 ─► Flush                                 │
//!  Completion ◄─ when the last piece ended ◄───────────────────────────┘
//! ```
//!
//! # Rules
//! - **Durability.** A write is durable when a Flush succeeds that was submitted after the write's
//!   completion. If controller and kernel both say that there is no volatile write cache, the
//!   completion itself is the promise and a sync needs no command. Forced Unit Access is not used:
//!   a Flush covers all chunks of a commit interval. Atomicity of writes is never relied on.
//! - **Pieces.** A command carries at most what the device and its driver take at a time. A chunk
//!   is written when all its pieces are; the first piece that fails fails it.
//! - **Repeating.** The block layer repeats commands that a reset or a busy device cut short;
//!   passthrough leaves that to its caller. Writing the same bytes to the same place again is
//!   harmless, so such pieces are submitted again, [`TRIES_MAX`] times.
//! - **Permission.** Opening the node says nothing about commands: the kernel lets one pass when it
//!   is sent, for `CAP_SYS_ADMIN`, and since Linux 6.2 for everybody if the device's log of
//!   supported commands names it. So a queue sends a Flush and asks for a Write before it is used.
//! - **Reads beside it.** These writes do not pass the kernel's page cache. Whoever reads the same
//!   places through the block device must read past the cache too (`O_DIRECT`).

mod held;
pub mod sim;
#[expect(unsafe_code, reason = "io_uring on memory that the ring holds")]
mod sys;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wirevault_buffer::{Arena, ChunkBuf};
use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};
use wirevault_media::MediaFile;

use crate::admin::volatile_cache;
use crate::device::Device;
use crate::error::{NvmeError, Refused};
use crate::options::{QueueOptions, QueueReport};
use crate::slot::{Slot, Slots};
use crate::spec::Status;
use crate::spec::command::Command;
use crate::{Completion, Queue, check_write};

pub use sys::UringCommands;

pub(crate) const NAME: &str = "passthrough";
const WHY: &str = "the volume is an NVMe namespace without a file system";

/// Submissions of one operation's commands that may be cut short before it counts as failed. The
/// kernel's own drivers repeat as often (`nvme_core.max_retries`).
pub const TRIES_MAX: u32 = 5;

/// Longest wait for an answer by which a queue learns whether its commands pass.
const ANSWERS_WAIT: Duration = Duration::from_secs(10);

/// A namespace as the queue needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Number of the namespace within its controller.
    pub namespace: u32,
    /// Bytes of a logical block.
    pub lba_bytes: u32,
    /// Bytes of the namespace.
    pub bytes: u64,
    /// Bytes that a command may carry.
    pub transfer_bytes: usize,
    /// Whether a write is durable only after a Flush.
    pub must_flush: bool,
}

impl Target {
    /// Of a device that discovery found. `cache` is what its controller says of a volatile write
    /// cache (Identify), if it could be asked.
    ///
    /// Errors: the device is no NVMe namespace, or its blocks or transfers do not fit ours.
    pub fn of(device: &Device, cache: Option<bool>) -> Result<Self, NvmeError> {
        let wrong = |reason| NvmeError::WrongFile {
            backend: NAME,
            file: device.node.display().to_string(),
            reason,
        };
        let nvme = device.nvme.as_ref().ok_or_else(|| wrong("it is no NVMe namespace"))?;
        if !LBA_BYTES.is_multiple_of(device.lba_bytes as usize) {
            return Err(wrong("its logical blocks are larger than ours"));
        }
        let transfer = usize::try_from(device.transfer_bytes_max).unwrap_or(CHUNK_BYTES);
        let transfer_bytes = transfer.min(CHUNK_BYTES) / LBA_BYTES * LBA_BYTES;
        if transfer_bytes == 0 {
            return Err(wrong("a command carries less than one of our blocks"));
        }
        Ok(Self {
            namespace: nvme.id,
            lba_bytes: device.lba_bytes,
            bytes: device.bytes,
            transfer_bytes,
            // Who cannot be asked may have one. An operator can tell the kernel that there is none
            // (write_cache in sysfs), which changes nothing about the device.
            must_flush: device.volatile_cache || cache.unwrap_or(true),
        })
    }

    /// Commands that a chunk takes at most.
    fn pieces_max(&self) -> usize {
        CHUNK_BYTES.div_ceil(self.transfer_bytes)
    }
}

/// Where commands go: the kernel, or a simulation. It holds an operation's memory from `hold` to
/// `release`, and gives it out only when none of the operation's commands is under way.
pub trait CommandRing: Send {
    /// Takes the memory of operation `index` over. Nothing of that index is held.
    fn hold(&mut self, index: usize, buf: ChunkBuf);

    /// Gives the memory back; nothing while commands of the operation are under way, or if nothing
    /// is held.
    fn release(&mut self, index: usize) -> Option<ChunkBuf>;

    /// Queues a command whose data is `data` of the memory held for the operation, or none.
    /// `false` if there is no room.
    fn push(&mut self, tag: Tag, command: Command, data: Option<Range<usize>>) -> bool;

    /// Queues a command that has no memory which the kernel could use: one that the kernel lets
    /// pass ends with EFAULT before it reaches the device, another one with EACCES. `false` if
    /// there is no room.
    fn ask(&mut self, tag: Tag, command: Command) -> bool;

    /// Hands commands over and waits up to `wait` for one to end.
    ///
    /// Errors: the ring is unusable, or used from a wrong thread (EEXIST).
    fn enter(&mut self, wait: Duration) -> io::Result<()>;

    /// The next command that ended: an NVMe status (0 is success) or a negative errno.
    fn next(&mut self) -> Option<(Tag, i32)>;

    /// Whether this path leads to the device that commands go to.
    fn leads_to_device(&self, node: &Path) -> io::Result<bool>;
}

/// Which command of which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Place of the operation in the queue.
    pub index: u32,
    /// Number of the command within it.
    pub piece: u32,
}

/// Of the commands by which a queue learns whether such pass.
const TRIAL: Tag = Tag { index: 0, piece: 0 };
const REFUSED: &str = "the kernel lets commands pass for CAP_SYS_ADMIN, or from Linux 6.2 on where \
                       the device's log of supported commands names Write and Flush";

/// Writes by NVMe commands to places of one namespace. Files are attached that tell their
/// [extent](MediaFile::extent).
pub struct PassthroughQueue<R> {
    ring: R,
    target: Target,
    slots: Slots<Place>,
    ops: Vec<Option<Op>>,
    free: Vec<usize>,
    /// Syncs that need no command.
    durable_already: Vec<(Slot, u64)>,
    report: QueueReport,
    broken: bool,
}

/// Where an attached file lies.
#[derive(Clone, Copy)]
struct Place {
    start: u64,
    bytes: u64,
}

struct Op {
    slot: Slot,
    token: u64,
    /// Place on the device; nothing for a Flush.
    write: Option<Span>,
    /// Commands under way.
    pieces: u32,
    /// Commands that were cut short so far.
    tries: u32,
    failed: Option<io::Error>,
}

#[derive(Clone, Copy)]
struct Span {
    start: u64,
    bytes: usize,
}

impl PassthroughQueue<UringCommands> {
    /// Opens the node that takes a device's commands.
    ///
    /// Errors: options beyond limits; the device has no such node or is of a wrong kind; the node
    /// cannot be opened; the kernel cannot do it, or does not let us.
    pub fn open(
        options: &QueueOptions,
        arena: Option<&Arena>,
        device: &Device,
    ) -> Result<Self, NvmeError> {
        options.check()?;
        let node = device.nvme.as_ref().and_then(|nvme| nvme.generic_node.as_deref());
        let target = Target::of(device, node.and_then(volatile_cache))?;
        let mut report = QueueReport::new(NAME, WHY);
        let commands = options.depth as usize * target.pieces_max();
        let ring = UringCommands::open(device, commands, options, arena, &mut report.why_not)?;
        report.registered_buffers = ring.has_registered_buffers();
        report.registered_files = ring.has_registered_file();
        report.polled = ring.is_polled();
        let mut queue = Self::build(options, ring, target, report);
        queue.try_out()?;
        Ok(queue)
    }
}

impl<R: CommandRing> PassthroughQueue<R> {
    /// A queue over any ring. Errors: options beyond limits.
    pub fn over(options: &QueueOptions, ring: R, target: Target) -> Result<Self, NvmeError> {
        options.check()?;
        Ok(Self::build(options, ring, target, QueueReport::new(NAME, WHY)))
    }

    fn build(options: &QueueOptions, ring: R, target: Target, mut report: QueueReport) -> Self {
        let depth = options.depth as usize;
        report.o_direct = true;
        report.flushes = target.must_flush;
        Self {
            ring,
            target,
            slots: Slots::new(options.slots, depth),
            ops: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            durable_already: Vec::with_capacity(depth),
            report,
            broken: false,
        }
    }

    /// Has the kernel say whether it lets Flush and Write pass: a Flush is sent, and a Write asked
    /// for. Nothing is under way.
    ///
    /// Errors: it does not, or did not say so in time.
    pub fn try_out(&mut self) -> Result<(), NvmeError> {
        let Target { namespace, lba_bytes, bytes, .. } = self.target;
        if self.ring.push(TRIAL, Command::flush(namespace), None) {
            self.judge_trial()?;
        }
        let behind = bytes / u64::from(lba_bytes);
        if self.ring.ask(TRIAL, Command::write(namespace, behind, 1, lba_bytes)) {
            self.judge_trial()?;
        }
        Ok(())
    }

    /// Waits for the one command under way. What the device answers is its own affair: whoever asks
    /// it is told the same.
    fn judge_trial(&mut self) -> Result<(), NvmeError> {
        let failed = |reason, source| NvmeError::Setup { backend: NAME, reason, source };
        let deadline = Instant::now() + ANSWERS_WAIT;
        let result = loop {
            let lost = |source| failed("commands cannot be handed over", source);
            self.ring.enter(Duration::from_millis(100)).map_err(lost)?;
            match self.ring.next() {
                Some((_, result)) => break result,
                None if Instant::now() < deadline => {}
                None => {
                    let late = io::ErrorKind::TimedOut.into();
                    return Err(failed("a Flush that was tried does not end", late));
                }
            }
        };
        match judge(result) {
            Err(source) if is_refusal(&source) => Err(failed(REFUSED, source)),
            Err(source) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Err(failed("the kernel's driver takes no commands", source))
            }
            _ => Ok(()),
        }
    }

    fn usable(&self) -> Result<(), NvmeError> {
        if !self.broken {
            return Ok(());
        }
        let source = io::Error::other("an earlier call to the kernel failed");
        Err(NvmeError::Broken { backend: NAME, source })
    }

    /// The place on the device, after which one operation is counted in.
    fn start(&mut self, slot: Slot, offset: u64, len_bytes: usize) -> Result<u64, NvmeError> {
        self.usable()?;
        check_write(offset, len_bytes)?;
        let place = *self.slots.start(slot)?;
        if offset + len_bytes as u64 <= place.bytes {
            return Ok(place.start + offset);
        }
        // Nothing reached the device: no verdict on the file.
        let _ = self.slots.finish(slot, Ok(()));
        Err(NvmeError::Beyond { offset, len_bytes, bytes: place.bytes })
    }

    /// Puts an operation and its commands into the ring. The caller counted it in, so that there is
    /// a place for it.
    fn submit(&mut self, index: usize, slot: Slot, token: u64, write: Option<Span>) {
        let pieces = write.map_or(1, |span| span.bytes.div_ceil(self.target.transfer_bytes)) as u32;
        let mut op = Op { slot, token, write, pieces, tries: 0, failed: None };
        for piece in 0..pieces {
            if !self.push(index, piece, write) {
                op.pieces -= 1;
                op.failed = Some(io::Error::from_raw_os_error(libc::EBUSY));
            }
        }
        self.ops[index] = Some(op);
    }

    fn push(&mut self, index: usize, piece: u32, write: Option<Span>) -> bool {
        let tag = Tag { index: index as u32, piece };
        let namespace = self.target.namespace;
        let Some(span) = write else {
            return self.ring.push(tag, Command::flush(namespace), None);
        };
        let from = piece as usize * self.target.transfer_bytes;
        let until = span.bytes.min(from + self.target.transfer_bytes);
        let (bytes, lba_bytes) = ((until - from) as u32, self.target.lba_bytes);
        let first_block = (span.start + from as u64) / u64::from(lba_bytes);
        let command = Command::write(namespace, first_block, bytes / lba_bytes, bytes);
        self.ring.push(tag, command, Some(from..until))
    }

    /// Takes every command that ended, and gives the operations that ended with them.
    fn reap(&mut self, out: &mut Vec<Completion>) {
        for (slot, token) in self.durable_already.drain(..) {
            out.push(Completion::Sync { token, result: self.slots.finish(slot, Ok(())) });
        }
        while let Some((tag, result)) = self.ring.next() {
            let index = tag.index as usize;
            let Some(op) = self.ops.get_mut(index).and_then(Option::as_mut) else { continue };
            op.pieces = op.pieces.saturating_sub(1);
            if is_cut_short(result) && op.tries < TRIES_MAX && op.failed.is_none() {
                op.tries += 1;
                op.pieces += 1;
                let write = op.write;
                if self.push(index, tag.piece, write) {
                    continue;
                }
                self.fail(index, io::Error::from_raw_os_error(libc::EBUSY));
            } else if let Err(error) = judge(result) {
                op.failed.get_or_insert(error);
            }
            self.finish(index, out);
        }
        // Operations none of whose commands found room.
        for index in 0..self.ops.len() {
            self.finish(index, out);
        }
    }

    fn fail(&mut self, index: usize, error: io::Error) {
        if let Some(op) = &mut self.ops[index] {
            op.pieces = op.pieces.saturating_sub(1);
            op.failed.get_or_insert(error);
        }
    }

    /// Ends an operation if its last command ended.
    fn finish(&mut self, index: usize, out: &mut Vec<Completion>) {
        let Some(op) = self.ops[index].take_if(|op| op.pieces == 0) else { return };
        self.free.push(index);
        let Op { slot, token, write, failed, .. } = op;
        let result = self.slots.finish(slot, failed.map_or(Ok(()), Err));
        match (write, self.ring.release(index)) {
            (Some(_), Some(buf)) => out.push(Completion::Write { token, buf, result }),
            _ => out.push(Completion::Sync { token, result }),
        }
    }
}

/// Whether the kernel refuses a command for want of a right.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}

/// Whether the command did not get its turn: reset, path lost for a moment, device busy.
fn is_cut_short(result: i32) -> bool {
    match result {
        _ if -result == libc::EINTR || -result == libc::EAGAIN => true,
        ..=0 => false,
        status => {
            let status = Status(status as u16);
            !status.is_final()
                && matches!(status.code(), 0x007 | 0x008 | 0x021 | 0x082 | 0x302 | 0x303 | 0x371)
        }
    }
}

fn judge(result: i32) -> io::Result<()> {
    match u16::try_from(result) {
        Ok(status) => Status(status).into_result(),
        Err(_) if result < 0 => Err(io::Error::from_raw_os_error(-result)),
        Err(_) => Err(io::Error::other(format!("the kernel gave {result}, which is no status"))),
    }
}

impl<R: CommandRing> Queue for PassthroughQueue<R> {
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
        let wrong =
            |reason| NvmeError::WrongFile { backend: NAME, file: file.name().to_owned(), reason };
        let extent = file.extent().ok_or_else(|| wrong("it has no fixed place on a device"))?;
        let ours = self.ring.leads_to_device(&extent.device).map_err(|source| NvmeError::Open {
            backend: NAME,
            file: extent.device.display().to_string(),
            source,
        })?;
        if !ours {
            return Err(wrong("it lies on another device"));
        }
        let block = LBA_BYTES as u64;
        let end = extent.start.checked_add(extent.bytes);
        if !extent.start.is_multiple_of(block) || !extent.bytes.is_multiple_of(block) {
            return Err(wrong("it does not begin and end on a block"));
        }
        if end.is_none_or(|end| end > self.target.bytes) {
            return Err(wrong("it reaches beyond the end of the device"));
        }
        let place = self.slots.free_place()?;
        let at = Place { start: extent.start, bytes: extent.bytes };
        Ok(self.slots.put(place, file.name(), at))
    }

    fn detach(&mut self, slot: Slot) -> Result<(), NvmeError> {
        self.slots.remove(slot).map(drop)
    }

    fn write(
        &mut self,
        slot: Slot,
        offset: u64,
        buf: ChunkBuf,
        len_bytes: usize,
        token: u64,
    ) -> Result<(), Refused> {
        let start = match self.start(slot, offset, len_bytes) {
            Ok(start) => start,
            Err(error) => return Err(Refused { error, buf }),
        };
        let Some(index) = self.free.pop() else {
            let _ = self.slots.finish(slot, Ok(()));
            return Err(Refused { error: NvmeError::QueueFull { depth: self.depth() }, buf });
        };
        self.ring.hold(index, buf);
        self.submit(index, slot, token, Some(Span { start, bytes: len_bytes }));
        Ok(())
    }

    fn sync(&mut self, slot: Slot, token: u64) -> Result<(), NvmeError> {
        self.usable()?;
        self.slots.start(slot)?;
        if !self.target.must_flush {
            self.durable_already.push((slot, token));
            return Ok(());
        }
        let Some(index) = self.free.pop() else {
            let _ = self.slots.finish(slot, Ok(()));
            return Err(NvmeError::QueueFull { depth: self.depth() });
        };
        self.submit(index, slot, token, None);
        Ok(())
    }

    fn poll(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        self.usable()?;
        if self.slots.in_flight() == 0 {
            return Ok(());
        }
        let wait = if self.durable_already.is_empty() { wait } else { Duration::ZERO };
        self.ring.enter(wait).map_err(|source| {
            if source.raw_os_error() == Some(libc::EEXIST) {
                return NvmeError::WrongThread;
            }
            self.broken = true;
            NvmeError::Broken { backend: NAME, source }
        })?;
        self.reap(out);
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }
}
