//! Device queues: chunks go in, completions come out, many at once.
//!
//! ```text
//!  writer thread ── write(slot, offset, ChunkBuf, token) ──► Queue ──► device
//!        ▲            sync(slot, token)                        │
//!        └──────────── poll ──► Completion (with the ChunkBuf) ┘
//! ```
//!
//! One thread owns a queue. The back ends behind [`Queue`]:
//!
//! - [`UringQueue`]: `O_DIRECT` io_uring with registered memory and files;
//! - [`PassthroughQueue`]: NVMe commands to a namespace, past file system and block layer;
//! - [`VfioQueue`]: queue pairs of our own on a controller taken from the kernel ([`vfio`]);
//! - [`ThreadQueue`]: a plain pwrite thread, where io_uring is forbidden;
//! - [`SimQueue`]: a simulated disk with late and reordered completions;
//! - [`LeasedQueue`]: any of them, to a shared volume: it tells of no sync once the lease is lost;
//! - [`NullQueue`]: completes everything and writes nothing, for measuring what comes before it.
//!
//! [`open_best`] picks between io_uring, passthrough and the thread, and says why. A controller is
//! taken from the kernel only where somebody asked for that: [`open_vfio`].
//!
//! # Rules
//! - **Ordering.** Operations in flight may be carried out in any order. A sync makes durable the
//!   writes whose completion was *seen* (came out of [`Queue::poll`]) before the sync was
//!   submitted, and nothing else. Which writes those are is the caller's bookkeeping: note them
//!   when submitting the sync, acknowledge them when it succeeds.
//! - **Poison.** After the first failed write or sync of a slot nothing of that slot succeeds any
//!   more: completions still to come report an error (see [`is_poisoned`]) and new operations are
//!   refused. A failed flush loses pages that the kernel then calls clean, so a later success would
//!   prove nothing. Detach it and use another file.
//! - **Ownership.** The queue owns a chunk from `write` until its completion; every chunk comes
//!   back once, with a completion or with the refusal.
//! - **Alignment.** Offsets and lengths are multiples of `LBA_BYTES`; the padding of the last LBA
//!   is the caller's.
//! - Polling instead of interrupts (IOPOLL) is for passthrough, where the driver has polled queues:
//!   without them it burns a core to no gain.
//!
//! [`device`] finds the block devices of the machine and tells who uses them; [`health`] asks one
//! how it is, [`erase`] has it erase itself, [`reserve`] keeps other machines from writing it,
//! through [`admin`].
//!
//! Files: [`options`], [`error`], [`slot`] (table and poison rule), [`Layer`] (a queue in front of
//! another), one per back end, `run` (chunks
//! that are written together), [`open`], [`spec`] (what devices say, and commands), and `sys`,
//! `passthrough::sys`, `admin::sys` and `vfio::sys`, the unsafe code.

#![deny(unsafe_code)]

pub mod admin;
mod age;
pub mod device;
pub mod erase;
pub mod error;
pub mod health;
pub mod layer;
pub mod leased;
pub mod null;
pub mod open;
pub mod options;
pub mod passthrough;
pub mod reserve;
mod run;
pub mod sim;
pub mod slot;
pub mod spec;
#[expect(unsafe_code, reason = "system calls on memory that the module owns")]
mod sys;
mod target;
pub mod thread;
pub mod uring;
pub mod vfio;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wirevault_buffer::ChunkBuf;
use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};
use wirevault_media::MediaFile;

pub use device::{Controller, Device, DeviceKind, Namespace, Roots, Use};
pub use error::{NvmeError, Refused, is_poisoned};
pub use health::Health;
pub use layer::Layer;
pub use leased::LeasedQueue;
pub use null::NullQueue;
pub use open::{Successor, open_best, open_instead, open_vfio};
pub use options::{Backend, QueueOptions, QueueReport};
pub use passthrough::PassthroughQueue;
pub use reserve::Reservation;
pub use sim::{SimOptions, SimQueue};
pub use slot::Slot;
pub use thread::ThreadQueue;
pub use uring::UringQueue;
pub use vfio::VfioQueue;

/// A queue of writes and syncs to files of volumes. See the crate's rules on ordering and poison.
pub trait Queue: Send {
    /// The back end's name: `passthrough`, `io_uring`, `vfio`, `thread`, `sim`, `null`.
    fn name(&self) -> &'static str;

    /// What the queue is and what it is not. Allocates; not for the hot path.
    fn report(&self) -> QueueReport;

    /// Operations that fit in flight.
    fn depth(&self) -> usize;

    /// Opens a file for this queue. Errors: no free slot, the file cannot be opened, or the back
    /// end cannot use it.
    fn attach(&mut self, file: &Arc<dyn MediaFile>) -> Result<Slot, NvmeError>;

    /// Lets go of a file. Errors: [`NvmeError::SlotBusy`] while operations of it are in flight.
    fn detach(&mut self, slot: Slot) -> Result<(), NvmeError>;

    /// Submits the first `len_bytes` of `buf` to `offset`. `token` comes back with the completion.
    /// The operation may be held back until the next [`Queue::poll`], so that many go to the kernel
    /// together; chunks that follow each other in a file may become one write there.
    ///
    /// Errors: the queue is full ([`NvmeError::is_backpressure`]), the slot is poisoned, or the
    /// call is wrong; the chunk comes back.
    fn write(
        &mut self,
        slot: Slot,
        offset: u64,
        buf: ChunkBuf,
        len_bytes: usize,
        token: u64,
    ) -> Result<(), Refused>;

    /// Submits a sync of the file's data and length (`fdatasync`).
    ///
    /// Errors: as [`Queue::write`].
    fn sync(&mut self, slot: Slot, token: u64) -> Result<(), NvmeError>;

    /// Hands everything submitted to the device, then appends finished operations to `out`, at most
    /// [`Queue::depth`] of them. Waits up to `wait` for the first; returns at once when nothing is
    /// in flight or `wait` is zero. It may return early without completions (signals).
    ///
    /// Errors: the queue itself is broken or used from a wrong thread; failed operations are
    /// completions.
    fn poll(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError>;

    /// Operations submitted and not yet returned by [`Queue::poll`].
    fn in_flight(&self) -> usize;

    /// When the oldest operation in flight was submitted, if the queue keeps track (what
    /// [`open_best`] gives does). A device that hangs shows here: its operations neither end nor
    /// fail, and polling goes on without them.
    fn oldest(&self) -> Option<Instant> {
        None
    }
}

/// The end of one operation.
#[derive(Debug)]
pub enum Completion {
    /// A write ended.
    Write {
        /// The caller's number.
        token: u64,
        /// The chunk, with its bytes as they were.
        buf: ChunkBuf,
        /// Success means that the device has all bytes, not that they are durable.
        result: io::Result<()>,
    },
    /// A sync ended.
    Sync {
        /// The caller's number.
        token: u64,
        /// Success means durable, for writes whose completion was seen before the sync was
        /// submitted.
        result: io::Result<()>,
    },
}

impl Completion {
    /// The caller's number.
    pub fn token(&self) -> u64 {
        match self {
            Self::Write { token, .. } | Self::Sync { token, .. } => *token,
        }
    }

    /// How it ended.
    pub fn result(&self) -> &io::Result<()> {
        match self {
            Self::Write { result, .. } | Self::Sync { result, .. } => result,
        }
    }
}

/// Checks what the caller of [`Queue::write`] promised.
fn check_write(offset: u64, len_bytes: usize) -> Result<(), NvmeError> {
    if len_bytes == 0 || len_bytes > CHUNK_BYTES || !len_bytes.is_multiple_of(LBA_BYTES) {
        return Err(NvmeError::Length { len_bytes });
    }
    // The kernel counts file offsets in i64.
    let end = offset.checked_add(len_bytes as u64).filter(|end| i64::try_from(*end).is_ok());
    if !offset.is_multiple_of(LBA_BYTES as u64) || end.is_none() {
        return Err(NvmeError::Offset { offset });
    }
    Ok(())
}
