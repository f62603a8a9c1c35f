//! Blocking reads, writes and flushes: tables, headers and queries, beside the writers' queues.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};

use super::bus::Bus;
use super::controller::Controller;
use super::io_queue::IoQueue;
use super::pages::piece;
use crate::error::NvmeError;

/// Bytes that one command deallocates at most: far below the 2^32 blocks that it could name, so
/// that no command outlives its time limit.
const DEALLOCATE_BYTES_MAX: usize = 1 << 30;

/// The namespace of a controller as a disk. Calls may come from several threads; they take turns.
///
/// Offsets and lengths are multiples of `LBA_BYTES`.
pub struct VfioDisk<B: Bus> {
    controller: Arc<Controller<B>>,
    turn: Mutex<IoQueue<B, ()>>,
}

/// What a disk is called where files say which device they lie on.
pub(super) fn device_path<B: Bus>(controller: &Controller<B>) -> PathBuf {
    let device = Path::new("/sys/bus/pci/devices").join(controller.describe());
    device.join(format!("ns{}", controller.facts().namespace_id))
}

impl<B: Bus> Controller<B> {
    /// The name for [`Extent::device`](wirevault_media::Extent::device) of files on its namespace.
    pub fn path(&self) -> PathBuf {
        device_path(self)
    }
}

/// One command of a call.
enum Step {
    Read,
    Write,
    Flush,
    Deallocate,
    WriteZeroes,
}

impl<B: Bus> VfioDisk<B> {
    /// Opens a queue for the calls. Errors: the device has none left, or refuses.
    pub fn open(controller: &Arc<Controller<B>>) -> Result<Self, NvmeError> {
        let queue = IoQueue::open(Arc::clone(controller), 1, CHUNK_BYTES).map_err(|source| {
            NvmeError::Controller {
                device: controller.describe(),
                action: "open a queue for tables and queries",
                source,
            }
        })?;
        Ok(Self { controller: Arc::clone(controller), turn: Mutex::new(queue) })
    }

    /// The name for [`Extent::device`](wirevault_media::Extent::device) of files on this disk, by
    /// which a [`VfioQueue`](super::VfioQueue) of the same controller knows them.
    pub fn path(&self) -> PathBuf {
        device_path(&self.controller)
    }

    /// Bytes of the namespace, in whole blocks of `LBA_BYTES`.
    pub fn bytes(&self) -> u64 {
        self.controller.facts().bytes()
    }

    /// Fills `data` from `offset`. Errors: the range is not on the disk; the device's.
    pub fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(data.len(), offset)?;
        let mut queue = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < data.len() {
            let bytes = piece(done, data.len(), self.controller.facts().transfer_bytes_max);
            run(&mut queue, &Step::Read, offset + done as u64, bytes)?;
            let (memory, at, _) = queue.data();
            memory.copy_out(at, &mut data[done..done + bytes]);
            done += bytes;
        }
        Ok(())
    }

    /// Writes all of `data` at `offset`. Volatile until [`VfioDisk::flush`]. Errors: the range is
    /// not on the disk; the device's.
    pub fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.check(data.len(), offset)?;
        let mut queue = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < data.len() {
            let bytes = piece(done, data.len(), self.controller.facts().transfer_bytes_max);
            let (memory, at, _) = queue.data();
            memory.copy_in(at, &data[done..done + bytes]);
            run(&mut queue, &Step::Write, offset + done as u64, bytes)?;
            done += bytes;
        }
        Ok(())
    }

    /// Makes every write that completed before this call durable. Errors: the device's; nothing
    /// written since the last flush may be trusted then.
    pub fn flush(&self) -> io::Result<()> {
        if !self.controller.facts().controller.volatile_cache {
            return Ok(());
        }
        let mut queue = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        run(&mut queue, &Step::Flush, 0, 0)
    }

    /// Says that these bytes are not wanted any more; `false` if the device cannot take that.
    /// Errors: the range is not on the disk; the device's.
    pub fn discard(&self, offset: u64, bytes: u64) -> io::Result<bool> {
        self.check_range(offset, bytes)?;
        let facts = self.controller.facts();
        let (step, bytes_max) = match &facts.controller {
            it if it.can_deallocate => (Step::Deallocate, DEALLOCATE_BYTES_MAX),
            // As many at a time as the kernel's driver has it zero.
            it if it.can_write_zeroes => (Step::WriteZeroes, facts.transfer_bytes_max),
            _ => return Ok(false),
        };
        let mut queue = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < bytes {
            let part = (bytes - done).min(bytes_max as u64);
            run(&mut queue, &step, offset + done, part as usize)?;
            done += part;
        }
        Ok(true)
    }

    fn check(&self, bytes: usize, offset: u64) -> io::Result<()> {
        self.check_range(offset, bytes as u64)
    }

    fn check_range(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let lba = LBA_BYTES as u64;
        let end = offset.checked_add(bytes).filter(|end| *end <= self.bytes());
        if offset.is_multiple_of(lba) && bytes.is_multiple_of(lba) && end.is_some() {
            return Ok(());
        }
        let text = format!(
            "{bytes} bytes at {offset} are not whole blocks of {LBA_BYTES} bytes within the {} of \
             the device",
            self.bytes()
        );
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }
}

/// One command, with data in the queue's own memory, to its end.
fn run<B: Bus>(
    queue: &mut IoQueue<B, ()>,
    step: &Step,
    offset: u64,
    bytes: usize,
) -> io::Result<()> {
    let controller = Arc::clone(queue.controller());
    let dead = || io::Error::new(io::ErrorKind::NotConnected, "the device is gone");
    let mut end = None;
    // A reset since the last call has closed the pair; this opens it again.
    queue.reap(&mut |(), _| {}).map_err(|_| dead())?;
    let (_, _, data) = queue.data();
    let submitted = match step {
        Step::Read => queue.transfer(false, offset, bytes, data, ()),
        Step::Write => queue.transfer(true, offset, bytes, data, ()),
        Step::Flush => queue.flush(()),
        Step::Deallocate => {
            let blocks = bytes as u64 / u64::from(controller.facts().block_bytes());
            queue.deallocate(offset, blocks as u32, ())
        }
        Step::WriteZeroes => queue.write_zeroes(offset, bytes, ()),
    };
    submitted.map_err(|()| dead())?;
    queue.tell();
    let start = controller.bus.now_ns();
    loop {
        queue.reap(&mut |(), result| end = Some(result)).map_err(|_| dead())?;
        if let Some(result) = end.take() {
            queue.tell();
            return result;
        }
        controller.bus.relax(controller.bus.now_ns().saturating_sub(start));
    }
}
