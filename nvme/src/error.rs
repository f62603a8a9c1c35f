//! Errors of queues, by blame.

use std::io;
use std::path::PathBuf;

use wirevault_buffer::ChunkBuf;
use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};

/// Why a queue refused a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NvmeError {
    /// Misuse: the length is 0, longer than a chunk, or no whole number of LBAs.
    #[error(
        "a write of {len_bytes} bytes is not 1 to {} whole blocks of {LBA_BYTES} bytes",
        CHUNK_BYTES / LBA_BYTES
    )]
    Length {
        /// Bytes asked for.
        len_bytes: usize,
    },
    /// Misuse: the offset is no multiple of an LBA, or beyond what a file can have.
    #[error(
        "a write at byte {offset} does not start on a block of {LBA_BYTES} bytes \
         within a file's limits"
    )]
    Offset {
        /// Byte asked for.
        offset: u64,
    },
    /// Misuse: a write behind the end of a file of fixed size.
    #[error("a write of {len_bytes} bytes at {offset} reaches beyond the file's {bytes} bytes")]
    Beyond {
        /// Byte asked for.
        offset: u64,
        /// Bytes asked for.
        len_bytes: usize,
        /// Bytes of the file.
        bytes: u64,
    },
    /// Misuse: the slot was detached or belongs to another queue.
    #[error("slot {index} is not attached")]
    UnknownSlot {
        /// Place in the slot table.
        index: u16,
    },
    /// Misuse: an io_uring queue belongs to the thread that used it first.
    #[error("this queue belongs to the thread that submitted to it first; use it from there only")]
    WrongThread,
    /// Misuse: this back end cannot write to this kind of file.
    #[error("the {backend} queue cannot write to {file}: {reason}")]
    WrongFile {
        /// Name of the queue.
        backend: &'static str,
        /// Name of the file.
        file: String,
        /// What is missing.
        reason: &'static str,
    },
    /// Misuse: options beyond the limits.
    #[error("queue option {option} is {value}; it must be {min} to {max}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// Value given.
        value: u64,
        /// Smallest value.
        min: u64,
        /// Largest value.
        max: u64,
    },
    /// Exhausted: as many operations in flight as fit. Poll, then try again.
    #[error("the queue is full ({depth} operations in flight)")]
    QueueFull {
        /// Operations that fit.
        depth: usize,
    },
    /// Exhausted: as many files attached as fit.
    #[error("all {slots} slots of the queue have a file; detach one")]
    SlotsFull {
        /// Files that fit.
        slots: u16,
    },
    /// Exhausted: the slot cannot be detached while the device works on it.
    #[error("{file} still has {in_flight} operations in flight; poll until they have ended")]
    SlotBusy {
        /// Name of the file.
        file: String,
        /// Operations of this slot in flight.
        in_flight: u32,
    },
    /// Device: an earlier write or sync of this file failed.
    #[error("{file} had a failed write or sync and is not trusted any more; go on in another file")]
    Poisoned {
        /// Name of the file.
        file: String,
    },
    /// Device: the file could not be opened for the queue.
    #[error("cannot open {file} for the {backend} queue: {source}")]
    Open {
        /// Name of the queue.
        backend: &'static str,
        /// Path of the file.
        file: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Device: the back end cannot be had here.
    #[error("the {backend} queue cannot be had: {reason}: {source}")]
    Setup {
        /// Name of the queue.
        backend: &'static str,
        /// What was tried, and the way out.
        reason: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Device: what the kernel says of devices cannot be read, or the path is no device.
    #[error("cannot tell which device {} is: {source}", path.display())]
    Discover {
        /// What was looked at.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Device: a device does not say what it was asked.
    #[error("cannot ask {device} {what}: {source}")]
    Ask {
        /// Who was asked.
        device: String,
        /// For what.
        what: &'static str,
        /// The system's or the device's answer.
        source: io::Error,
    },
    /// Misuse: the device offers nothing of the kind that was asked for.
    #[error("{device} cannot be erased so: {why}")]
    NotOffered {
        /// The device.
        device: String,
        /// What is missing.
        why: String,
    },
    /// Device: erasing it failed. What it holds now is not known.
    #[error("{device}: {way} of namespace {namespace} failed: {source}")]
    Erase {
        /// The device.
        device: String,
        /// By which means.
        way: &'static str,
        /// Number of the namespace.
        namespace: u32,
        /// The device's or the system's answer.
        source: io::Error,
    },
    /// Misuse: the device cannot keep other hosts from writing.
    #[error("{device} has no reservations: {why}")]
    NoReservations {
        /// The device.
        device: String,
        /// What is missing.
        why: String,
    },
    /// Device: it could not be reserved.
    #[error("{device}: cannot {action}: {source}")]
    Reserve {
        /// The device.
        device: String,
        /// What was tried.
        action: &'static str,
        /// The device's or the system's answer.
        source: io::Error,
    },
    /// Misuse: this is no address of a PCI function.
    #[error("{text:?} is no PCI address such as 0000:00:04.0")]
    PciAddress {
        /// What was given.
        text: String,
    },
    /// Misuse: the controller cannot be driven from here.
    #[error("{device} cannot be taken from the kernel's driver: {reasons}")]
    NotForUs {
        /// Its PCI address.
        device: String,
        /// Every reason, with its way out.
        reasons: String,
    },
    /// Device: the controller could not be moved between drivers, or opened.
    #[error("{device}: cannot {action}: {source}")]
    Takeover {
        /// Its PCI address.
        device: String,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Device: the controller could not be started or used.
    #[error("NVMe controller {device}: cannot {action}: {source}")]
    Controller {
        /// The device in words.
        device: String,
        /// What was tried.
        action: &'static str,
        /// The device's or the system's answer.
        source: io::Error,
    },
    /// Device: the queue itself broke; nothing in flight can be counted on.
    #[error("the {backend} queue broke: {source}")]
    Broken {
        /// Name of the queue.
        backend: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl NvmeError {
    /// Whether the same call may succeed after the next completions.
    pub fn is_backpressure(&self) -> bool {
        matches!(self, Self::QueueFull { .. } | Self::SlotBusy { .. })
    }

    /// Whether the file is poisoned by an earlier failure.
    pub fn is_poisoned(&self) -> bool {
        matches!(self, Self::Poisoned { .. })
    }
}

/// A refused write, with the chunk.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// Why.
    #[source]
    pub error: NvmeError,
    /// The chunk, unchanged.
    pub buf: ChunkBuf,
}

/// What the completion of an operation carries that may have succeeded after another of the same
/// file had failed.
#[derive(Debug, thiserror::Error)]
#[error("an earlier write or sync of this file failed")]
pub(crate) struct AfterFailure;

/// Whether a completion failed only because an earlier operation of the same file had failed.
pub fn is_poisoned(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<AfterFailure>())
}
