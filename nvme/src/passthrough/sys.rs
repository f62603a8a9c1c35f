//! The io_uring that carries NVMe commands.
//!
//! # Invariants
//! - A command points into memory that `held` has from before its submission until after its
//!   completion was taken from the ring, or for ever if the ring is dropped before.
//! - The node's descriptor and the registered arena live as long as the ring.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use wirevault_buffer::{Arena, ChunkBuf};

use crate::device::{Device, block_number};
use crate::error::NvmeError;
use crate::options::QueueOptions;
use crate::spec::command::{COMMAND_BYTES, Command};
use crate::sys::{DRAIN, build, is_passing, register_arena};

use super::held::Held;
use super::{CommandRing, NAME, Tag};

/// `_IOWR('N', 0x80, struct nvme_uring_cmd)`: a command for an I/O queue.
const NVME_URING_CMD_IO: u32 = 0xc048_4e80;
/// Room for a command in a submission of 128 bytes.
const ROOM_BYTES: usize = 80;
/// An address that no process has memory at: the kernel's own half. A command with data there ends
/// with EFAULT, behind the question whether it may pass and before it is sent.
const NOWHERE: u64 = u64::MAX << 20;
/// Entries of a ring at most (`IORING_MAX_ENTRIES`).
const ENTRIES_MAX: usize = 32_768;

/// Commands to a namespace's node.
pub struct UringCommands {
    ring: IoUring<squeue::Entry128, cqueue::Entry32>,
    held: Held,
    node: File,
    number: (u32, u32),
    registered: Option<Arena>,
    registered_file: bool,
    polled: bool,
    /// Rings start disabled, so that the thread that uses them first becomes their owner.
    enabled: bool,
}

impl UringCommands {
    /// Opens the node of a device, with room for this many commands.
    ///
    /// Errors: the device has no such node or it cannot be opened; the kernel cannot do it.
    pub(super) fn open(
        device: &Device,
        commands: usize,
        options: &QueueOptions,
        arena: Option<&Arena>,
        why_not: &mut Vec<String>,
    ) -> Result<Self, NvmeError> {
        let failed = |reason, source| NvmeError::Setup { backend: NAME, reason, source };
        let node = device.nvme.as_ref().and_then(|nvme| nvme.generic_node.as_deref());
        let node = node.ok_or_else(|| {
            failed("the device has no node for commands", io::ErrorKind::NotFound.into())
        })?;
        let node = OpenOptions::new().read(true).write(true).open(node).map_err(|source| {
            NvmeError::Open { backend: NAME, file: node.display().to_string(), source }
        })?;
        let entries = commands.min(ENTRIES_MAX) as u32;
        let polled = options.polling && device.polled_queues;
        let ring = |source| failed("a ring with commands of 128 bytes cannot be had", source);
        let (ring, enabled) = build(entries, polled, why_not).map_err(ring)?;
        let mut probe = Probe::new();
        let lacks = |source| failed("io_uring cannot carry commands (Linux 5.19)", source);
        ring.submitter().register_probe(&mut probe).map_err(lacks)?;
        if !probe.is_supported(opcode::UringCmd80::CODE) || !ring.params().is_feature_nodrop() {
            return Err(lacks(io::ErrorKind::Unsupported.into()));
        }
        let submitter = ring.submitter();
        let registered = arena.and_then(|arena| register_arena(&submitter, arena, why_not));
        let registered_file = match submitter.register_files(&[node.as_raw_fd()]) {
            Ok(()) => true,
            Err(e) => {
                why_not.push(format!("the node is not registered: {e}"));
                false
            }
        };
        if !device.polled_queues {
            why_not.push(
                "the device interrupts: the driver has no polled queues \
                 (nvme.poll_queues=1 on the kernel's command line makes some)"
                    .to_owned(),
            );
        }
        Ok(Self {
            ring,
            held: Held::new(options.depth as usize),
            node,
            number: device.number,
            registered,
            registered_file,
            polled,
            enabled,
        })
    }

    pub(super) fn has_registered_buffers(&self) -> bool {
        self.registered.is_some()
    }

    pub(super) fn has_registered_file(&self) -> bool {
        self.registered_file
    }

    pub(super) fn is_polled(&self) -> bool {
        self.polled
    }

    fn entry(
        &self,
        tag: Tag,
        command: [u8; COMMAND_BYTES],
        region: Option<u16>,
    ) -> squeue::Entry128 {
        let mut room = [0; ROOM_BYTES];
        room[..COMMAND_BYTES].copy_from_slice(&command);
        let entry = if self.registered_file {
            opcode::UringCmd80::new(Fixed(0), NVME_URING_CMD_IO)
        } else {
            opcode::UringCmd80::new(Fd(self.node.as_raw_fd()), NVME_URING_CMD_IO)
        };
        let number = u64::from(tag.index) << 32 | u64::from(tag.piece);
        entry.cmd(room).buf_index(region).build().user_data(number)
    }

    /// The registered region that the memory of an operation is in, if it is in one.
    fn region(&self, index: usize) -> Option<u16> {
        let arena = self.registered.as_ref().map(Arena::id)?;
        let buf = self.held.buf(index).filter(|buf| buf.arena_id() == arena)?;
        Some(buf.region_index())
    }

    /// A polled ring does not end a wait by time: it asks the driver for as long as we call it.
    fn spin(&mut self, wait: Duration) -> io::Result<()> {
        let begin = Instant::now();
        loop {
            self.ring.submitter().submit_and_wait(0)?;
            if !self.ring.completion().is_empty() || begin.elapsed() >= wait {
                return Ok(());
            }
            std::hint::spin_loop();
        }
    }
}

impl CommandRing for UringCommands {
    fn hold(&mut self, index: usize, buf: ChunkBuf) {
        self.held.hold(index, buf);
    }

    fn release(&mut self, index: usize) -> Option<ChunkBuf> {
        self.held.release(index)
    }

    fn push(&mut self, tag: Tag, command: Command, data: Option<Range<usize>>) -> bool {
        let index = tag.index as usize;
        // A command must carry exactly the bytes that we hold for it.
        let ours = data.as_ref().map_or(Some(0), |range| Some(self.held.data(index, range)?.len()));
        if ours != Some(command.data_bytes as usize) || !self.held.begin(index) {
            return false;
        }
        let memory = data.and_then(|range| self.held.data(index, &range));
        let address = memory.map_or(0, |data| data.as_ptr() as u64);
        let region = memory.and_then(|_| self.region(index));
        let entry = self.entry(tag, command.encode(address), region);
        // SAFETY: the command's address and length are a slice of the chunk that `held` has for
        // `index`, which it keeps until `end` was called for this command; the node stays open.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.is_ok() || !self.held.end(index)
    }

    fn ask(&mut self, tag: Tag, command: Command) -> bool {
        let index = tag.index as usize;
        if !self.held.begin(index) {
            return false;
        }
        let entry = self.entry(tag, command.encode(NOWHERE), None);
        // SAFETY: the command's address is no memory of any process, which the kernel refuses to
        // use; the node stays open.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.is_ok() || !self.held.end(index)
    }

    fn enter(&mut self, wait: Duration) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        let entered = if self.polled {
            self.spin(wait)
        } else if wait.is_zero() || !self.ring.completion().is_empty() {
            self.ring.submitter().submit().map(drop)
        } else {
            let timeout = Timespec::from(wait);
            let arguments = SubmitArgs::new().timespec(&timeout);
            self.ring.submitter().submit_with_args(1, &arguments).map(drop)
        };
        entered.or_else(|error| if is_passing(&error) { Ok(()) } else { Err(error) })
    }

    fn next(&mut self) -> Option<(Tag, i32)> {
        loop {
            let entry = self.ring.completion().next()?;
            let number = entry.user_data();
            let tag = Tag { index: (number >> 32) as u32, piece: number as u32 };
            // A number that we have not under way would be a fault of the kernel; nothing of ours
            // ended then.
            if self.held.end(tag.index as usize) {
                return Some((tag, entry.result()));
            }
        }
    }

    fn leads_to_device(&self, node: &Path) -> io::Result<bool> {
        Ok(block_number(node)? == self.number)
    }
}

impl Drop for UringCommands {
    fn drop(&mut self) {
        let deadline = Instant::now() + DRAIN;
        while self.held.commands() > 0 && Instant::now() < deadline {
            while self.next().is_some() {}
            if self.held.commands() > 0 && self.enter(Duration::from_millis(100)).is_err() {
                break;
            }
        }
        // The device may still read this memory; giving it back to the pool could put other bytes
        // on the disk.
        self.held.abandon();
    }
}
