//! The io_uring that writes files, and what it has in common with the one for NVMe commands.
//!
//! # Invariants
//! - Memory that a submitted write points to belongs to the [`Op`] in `ops`, and leaves it only
//!   when the kernel has posted the completion of its last submission.
//! - The list of pieces of a vectored write stands in `pieces` at the same index, which is neither
//!   reallocated nor written until then.
//! - A ring that is dropped with operations in flight waits for them; if they do not end, their
//!   chunks are leaked and never reused.

use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, Submitter, cqueue, opcode, squeue};
use wirevault_buffer::{Arena, ChunkBuf};

use crate::run::{RUN_CHUNKS_MAX, Run};
use crate::slot::Slot;

/// How long a dropped ring waits for a device to finish.
pub(crate) const DRAIN: Duration = Duration::from_secs(30);

/// An operation in flight.
pub(crate) struct Op {
    pub(crate) slot: Slot,
    pub(crate) kind: OpKind,
    /// Submissions of this operation that made no progress.
    pub(crate) idle_tries: u32,
    pub(crate) file: RingFile,
}

pub(crate) enum OpKind {
    Write(Run),
    Sync { token: u64 },
}

/// A piece of memory, as the kernel wants it in a list.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Piece {
    address: usize,
    bytes: usize,
}

const _: () = assert!(size_of::<Piece>() == size_of::<libc::iovec>());
const _: () = assert!(align_of::<Piece>() == align_of::<libc::iovec>());
const _: () = assert!(mem::offset_of!(Piece, bytes) == mem::offset_of!(libc::iovec, iov_len));

/// How the ring names a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RingFile {
    /// Place in the table of registered files.
    Registered(u32),
    /// A descriptor, which stays open while its slot is attached.
    Descriptor(RawFd),
}

pub(crate) struct Ring {
    ring: IoUring,
    ops: Vec<Option<Op>>,
    /// For each of `ops`, what a vectored write of it is made of.
    pieces: Box<[[Piece; RUN_CHUNKS_MAX]]>,
    free: Vec<usize>,
    /// The arena whose regions are registered, kept mapped.
    registered: Option<Arena>,
    registered_files: bool,
    /// The kernel takes lists of pieces of registered memory (Linux 6.15).
    registered_lists: bool,
    /// Rings start disabled, so that the thread that uses them first becomes their owner.
    enabled: bool,
}

impl Ring {
    /// Sets a ring up with the best flags the kernel takes; `why_not` gets what could not be had.
    ///
    /// Errors: no usable io_uring here.
    pub(crate) fn open(
        depth: u32,
        slots: u16,
        arena: Option<&Arena>,
        why_not: &mut Vec<String>,
    ) -> io::Result<Self> {
        let (ring, enabled) = build(depth, false, why_not)?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel is older than Linux 5.11 (no timed wait)",
            ));
        }
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Write::CODE,
            opcode::WriteFixed::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
        ];
        for code in needed {
            if !probe.is_supported(code) {
                let text = format!("the kernel lacks io_uring operation {code}");
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
        }
        let mut ring = Self {
            ring,
            ops: (0..depth).map(|_| None).collect(),
            pieces: vec![[Piece::default(); RUN_CHUNKS_MAX]; depth as usize].into_boxed_slice(),
            free: (0..depth as usize).rev().collect(),
            registered: None,
            registered_files: false,
            registered_lists: probe.is_supported(opcode::WritevFixed::CODE),
            enabled,
        };
        let submitter = ring.ring.submitter();
        ring.registered = arena.and_then(|arena| register_arena(&submitter, arena, why_not));
        ring.registered_files = match ring.register_file_table(slots) {
            Ok(()) => true,
            Err(e) => {
                why_not.push(format!("files are not registered: {e}"));
                false
            }
        };
        Ok(ring)
    }

    pub(crate) fn has_registered_buffers(&self) -> bool {
        self.registered.is_some()
    }

    pub(crate) fn has_registered_files(&self) -> bool {
        self.registered_files
    }

    /// Names a file to the kernel under a place of the table.
    pub(crate) fn attach(&mut self, place: u16, fd: RawFd) -> io::Result<RingFile> {
        if !self.registered_files {
            return Ok(RingFile::Descriptor(fd));
        }
        let place = u32::from(place);
        self.ring.submitter().register_files_update(place, &[fd])?;
        Ok(RingFile::Registered(place))
    }

    /// Makes the kernel let go of a file.
    pub(crate) fn detach(&mut self, file: RingFile) -> io::Result<()> {
        if let RingFile::Registered(place) = file {
            self.ring.submitter().register_files_update(place, &[-1])?;
        }
        Ok(())
    }

    /// Queues an operation for the kernel; the next [`Ring::enter`] hands it over. Gives it back
    /// when there is no room, which a caller that counts operations never sees.
    pub(crate) fn push(&mut self, op: Op) -> Result<(), Op> {
        let Some(index) = self.free.pop() else { return Err(op) };
        let entry = self.entry(&op, index).user_data(index as u64);
        self.ops[index] = Some(op);
        // SAFETY: a write's pointers and lengths lie within the `ChunkBuf`s that `ops[index]` owns
        // from here until the kernel completes the operation (`next`), or for ever (`drop`), and
        // their list is `pieces[index]`, which stays as long; descriptors stay open while attached.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            self.free.push(index);
            if let Some(op) = self.ops[index].take() {
                return Err(op);
            }
        }
        Ok(())
    }

    /// Hands queued operations to the kernel and waits up to `wait` for a completion.
    ///
    /// Errors: EEXIST when the ring belongs to another thread, and anything that makes the ring
    /// unusable.
    pub(crate) fn enter(&mut self, wait: Duration) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        let result = if wait.is_zero() || !self.ring.completion().is_empty() {
            self.ring.submitter().submit()
        } else {
            let timeout = Timespec::from(wait);
            self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
        };
        match result {
            Ok(_) => Ok(()),
            Err(e) if is_passing(&e) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The next finished operation, with the kernel's result (bytes, or a negative errno).
    pub(crate) fn next(&mut self) -> Option<(Op, i32)> {
        loop {
            let entry = self.ring.completion().next()?;
            let index = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            // An index we do not have in flight would be a kernel fault; nothing of ours ended
            // then.
            if let Some(op) = self.ops.get_mut(index).and_then(Option::take) {
                self.free.push(index);
                return Some((op, entry.result()));
            }
        }
    }

    fn entry(&mut self, op: &Op, index: usize) -> squeue::Entry {
        // A registered file is named by its place instead of a descriptor, and by the flag.
        let (file, flags) = match op.file {
            RingFile::Registered(at) => (Fd(at as RawFd), squeue::Flags::FIXED_FILE),
            RingFile::Descriptor(fd) => (Fd(fd), squeue::Flags::empty()),
        };
        let OpKind::Write(run) = &op.kind else {
            return opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build().flags(flags);
        };
        let offset = run.rest_offset();
        let known = self.registered.as_ref().map(Arena::id);
        let region = run.first().filter(|buf| Some(buf.arena_id()) == known);
        let region = region.map(ChunkBuf::region_index);
        let list = &mut self.pieces[index];
        let mut count = 0;
        // A run has no more chunks than there are places.
        for (piece, bytes) in list.iter_mut().zip(run.rest()) {
            *piece = Piece { address: bytes.as_ptr() as usize, bytes: bytes.len() };
            count += 1;
        }
        let (start, bytes) = (list[0].address as *const u8, list[0].bytes as u32);
        let list = list.as_ptr().cast::<libc::iovec>();
        let entry = match region {
            Some(at) if count == 1 => {
                opcode::WriteFixed::new(file, start, bytes, at).offset(offset).build()
            }
            None if count == 1 => opcode::Write::new(file, start, bytes).offset(offset).build(),
            Some(at) if self.registered_lists => {
                opcode::WritevFixed::new(file, list, count, at).offset(offset).build()
            }
            _ => opcode::Writev::new(file, list, count).offset(offset).build(),
        };
        entry.flags(flags)
    }

    fn register_file_table(&self, slots: u16) -> io::Result<()> {
        let submitter = self.ring.submitter();
        // Linux before 5.19 has no sparse call, but takes a table of holes.
        submitter
            .register_files_sparse(u32::from(slots))
            .or_else(|_| submitter.register_files(&vec![-1; usize::from(slots)]))
    }

    /// Operations that the kernel has, or will have with the next [`Ring::enter`].
    pub(crate) fn in_flight(&self) -> usize {
        self.ops.len() - self.free.len()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let deadline = Instant::now() + DRAIN;
        while self.in_flight() > 0 && Instant::now() < deadline {
            while self.next().is_some() {}
            if self.in_flight() > 0 && self.enter(Duration::from_millis(100)).is_err() {
                break;
            }
        }
        // The kernel may still read these chunks; giving them back to the pool could put other
        // bytes on the disk.
        self.ops.iter_mut().for_each(|op| mem::forget(op.take()));
    }
}

/// Makes an arena's memory known to the kernel, and gives the handle that keeps it mapped, which
/// the ring holds for as long as it lives.
pub(crate) fn register_arena(
    submitter: &Submitter<'_>,
    arena: &Arena,
    why_not: &mut Vec<String>,
) -> Option<Arena> {
    let pieces: Vec<libc::iovec> = arena
        .regions()
        .iter()
        .map(|r| libc::iovec { iov_base: r.address as *mut libc::c_void, iov_len: r.bytes })
        .collect();
    // SAFETY: the regions are mapped, writable memory of the arena, which stays mapped while the
    // ring holds the handle that we give; the kernel reads them only for writes that the ring
    // submits.
    let result = unsafe { submitter.register_buffers(&pieces) };
    match result {
        Ok(()) => Some(arena.clone()),
        Err(e) => {
            why_not.push(format!(
                "memory is not registered ({e}); allow {} bytes with LimitMEMLOCK= or ulimit -l",
                arena.report().bytes
            ));
            None
        }
    }
}

/// Whether the ring is as good as before this error of a call that submits or waits. ETIME: nothing
/// ended in time. EINTR: a signal. EAGAIN and EBUSY: the kernel is short of memory or has
/// completions to be fetched; what was not taken stays queued for the next call.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::ETIME, libc::EINTR, libc::EAGAIN, libc::EBUSY];
    error.raw_os_error().is_some_and(|code| passing.contains(&code))
}

/// Tries set-up flags from best to plain. Gives the ring and whether it is enabled already.
pub(crate) fn build<S: squeue::EntryMarker, C: cqueue::EntryMarker>(
    entries: u32,
    polled: bool,
    why_not: &mut Vec<String>,
) -> io::Result<(IoUring<S, C>, bool)> {
    let plain = || {
        let mut builder = IoUring::<S, C>::builder();
        builder.setup_clamp();
        if polled {
            builder.setup_iopoll();
        }
        builder
    };
    let best = plain()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    match best {
        Ok(ring) => Ok((ring, false)),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            why_not.push(
                "the kernel refused SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1 has them); \
                 completions interrupt the thread"
                    .to_owned(),
            );
            Ok((plain().build(entries)?, true))
        }
        Err(e) => Err(e),
    }
}
