//! The VFIO back end: a queue pair of our own on a controller taken over from the kernel.
//!
//! No system call and no copy stands between a chunk and the device: the chunk's memory is mapped
//! for it, commands are written into memory it reads, and completions are read from memory it
//! writes. Chunks longer than one command may carry are cut; parts end in any order.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use wirevault_buffer::ChunkBuf;
use wirevault_format::limits::CHUNK_BYTES;
use wirevault_media::MediaFile;

use super::bus::Bus;
use super::controller::Controller;
use super::disk::device_path;
use super::io_queue::{Dead, IoQueue};
use super::pages::piece;
use crate::error::{NvmeError, Refused};
use crate::options::{QueueOptions, QueueReport};
use crate::slot::{Slot, Slots};
use crate::{Completion, Queue, check_write};

const NAME: &str = "vfio";
const WHY: &str = "the configuration has us drive this device ourselves";

/// Chunks of foreign arenas in flight at most. They are copied; the writer's own never are.
const FOREIGN_MAX: usize = 2;

/// Parts that a chunk is cut into before more operations than these share the queue's entries.
const PARTS_PLANNED: usize = 8;

/// Writes through a queue pair of its own. The controller lives as long as its last queue.
pub struct VfioQueue<B: Bus> {
    io: IoQueue<B, u16>,
    slots: Slots<Place>,
    ops: Vec<Option<Op>>,
    free: Vec<u16>,
    /// Operations of which not every part is submitted, oldest first.
    waiting: VecDeque<u16>,
    /// Places for foreign chunks that are free.
    foreign: Vec<usize>,
    report: QueueReport,
    dead: bool,
}

/// Where an attached file lies on the namespace.
#[derive(Clone, Copy)]
struct Place {
    start: u64,
    bytes: u64,
}

struct Op {
    slot: Slot,
    token: u64,
    kind: Kind,
    /// Commands submitted and not ended.
    parts: usize,
    error: Option<io::Error>,
}

enum Kind {
    Write {
        buf: ChunkBuf,
        /// The device's address of the data; a foreign chunk has none before it is copied.
        data: Option<u64>,
        first_byte: u64,
        bytes: usize,
        submitted: usize,
        foreign: Option<usize>,
    },
    Sync {
        submitted: bool,
    },
}

impl<B: Bus> VfioQueue<B> {
    /// Opens a queue pair. Errors: options beyond limits; the device has no queue left or refuses.
    pub fn new(controller: &Arc<Controller<B>>, options: &QueueOptions) -> Result<Self, NvmeError> {
        options.check()?;
        let depth = options.depth as usize;
        let parts = CHUNK_BYTES.div_ceil(controller.facts().transfer_bytes_max).min(PARTS_PLANNED);
        let io = IoQueue::open(Arc::clone(controller), depth * parts, FOREIGN_MAX * CHUNK_BYTES)
            .map_err(|source| NvmeError::Setup {
                backend: NAME,
                reason: "no queue pair could be opened on the device",
                source,
            })?;
        let mut report = QueueReport::new(NAME, WHY);
        report.polled = true;
        report.flushes = controller.facts().controller.volatile_cache;
        report.registered_buffers = controller.has_arena();
        if !report.registered_buffers {
            report.because("the arena is not mapped for the device: chunks are copied".to_owned());
        }
        Ok(Self {
            io,
            slots: Slots::new(options.slots, depth),
            ops: (0..depth).map(|_| None).collect(),
            free: (0..depth as u16).rev().collect(),
            waiting: VecDeque::with_capacity(depth),
            foreign: (0..FOREIGN_MAX).collect(),
            report,
            dead: false,
        })
    }

    /// The controller.
    pub fn controller(&self) -> &Arc<Controller<B>> {
        self.io.controller()
    }

    fn enter(&mut self, op: Op) {
        // `Slots` counts operations up to the depth, so there is a place.
        if let Some(at) = self.free.pop() {
            self.ops[usize::from(at)] = Some(op);
            self.waiting.push_back(at);
        }
    }

    /// Submits what fits, in order.
    fn feed(&mut self, out: &mut Vec<Completion>) {
        while let Some(&at) = self.waiting.front() {
            let Some(op) = self.ops[usize::from(at)].as_mut() else {
                self.waiting.pop_front();
                continue;
            };
            if !op.submit(at, &mut self.io, &mut self.foreign) {
                break;
            }
            self.waiting.pop_front();
            self.leave_if_ended(at, out);
        }
        self.io.tell();
    }

    /// Takes what ended.
    fn reap(&mut self, out: &mut Vec<Completion>) -> Result<(), Dead> {
        let Self { io, slots, ops, free, foreign, .. } = self;
        io.reap(&mut |at, result| {
            let place = &mut ops[usize::from(at)];
            let Some(op) = place.as_mut() else { return };
            op.parts -= 1;
            if let Err(error) = result {
                op.error.get_or_insert(error);
            }
            if let Some(op) = place.take_if(|op| op.has_ended()) {
                free.push(at);
                out.push(op.leave(slots, foreign));
            }
        })
    }

    fn leave_if_ended(&mut self, at: u16, out: &mut Vec<Completion>) {
        if let Some(op) = self.ops[usize::from(at)].take_if(|op| op.has_ended()) {
            self.free.push(at);
            out.push(op.leave(&mut self.slots, &mut self.foreign));
        }
    }

    /// Nothing more can be done on this device. Chunks that it may still read are never used again;
    /// all others come back as failed.
    fn die(&mut self, dead: &Dead, out: &mut Vec<Completion>) {
        self.dead = true;
        self.waiting.clear();
        for at in 0..self.ops.len() as u16 {
            let Some(mut op) = self.ops[usize::from(at)].take() else { continue };
            if dead.runaway && op.parts > 0 {
                mem::forget(op);
                continue;
            }
            op.error.get_or_insert_with(dead_device);
            self.free.push(at);
            out.push(op.leave(&mut self.slots, &mut self.foreign));
        }
    }

    fn usable(&self) -> Result<(), NvmeError> {
        if !self.dead {
            return Ok(());
        }
        Err(NvmeError::Broken { backend: NAME, source: dead_device() })
    }
}

/// Copies a foreign chunk to a place beside the queue and gives the device's address of that.
fn copy_in<B: Bus>(io: &IoQueue<B, u16>, place: usize, bytes: &[u8]) -> u64 {
    let (memory, at, data) = io.data();
    memory.copy_in(at + place * CHUNK_BYTES, bytes);
    data + (place * CHUNK_BYTES) as u64
}

fn dead_device() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the device is gone, or does not answer any more")
}

impl Op {
    /// Submits the rest; `false`: there was no room for all of it.
    fn submit<B: Bus>(
        &mut self,
        at: u16,
        io: &mut IoQueue<B, u16>,
        foreign_free: &mut Vec<usize>,
    ) -> bool {
        let bytes_max = io.controller().facts().transfer_bytes_max;
        match &mut self.kind {
            Kind::Write { buf, data, first_byte, bytes, submitted, foreign } => {
                let data = match *data {
                    Some(data) => data,
                    None => {
                        let Some(place) = foreign_free.pop() else { return false };
                        *foreign = Some(place);
                        *data.insert(copy_in(io, place, &buf[..*bytes]))
                    }
                };
                // What is left of a write that failed already is of no use.
                while *submitted < *bytes && self.error.is_none() {
                    let length = piece(*submitted, *bytes, bytes_max);
                    let done = *submitted as u64;
                    if io.transfer(true, *first_byte + done, length, data + done, at).is_err() {
                        return false;
                    }
                    *submitted += length;
                    self.parts += 1;
                }
            }
            Kind::Sync { submitted } if !*submitted => {
                // Without a volatile cache every completed write is durable already.
                if io.controller().facts().controller.volatile_cache {
                    if io.flush(at).is_err() {
                        return false;
                    }
                    self.parts += 1;
                }
                *submitted = true;
            }
            Kind::Sync { .. } => {}
        }
        true
    }

    fn has_ended(&self) -> bool {
        let submitted = match &self.kind {
            Kind::Write { bytes, submitted, .. } => submitted == bytes || self.error.is_some(),
            Kind::Sync { submitted } => *submitted,
        };
        submitted && self.parts == 0
    }

    fn leave(self, slots: &mut Slots<Place>, foreign_free: &mut Vec<usize>) -> Completion {
        let Self { slot, token, kind, error, .. } = self;
        let result = slots.finish(slot, error.map_or(Ok(()), Err));
        match kind {
            Kind::Write { buf, foreign, .. } => {
                foreign_free.extend(foreign);
                Completion::Write { token, buf, result }
            }
            Kind::Sync { .. } => Completion::Sync { token, result },
        }
    }
}

impl<B: Bus> Queue for VfioQueue<B> {
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
        let wrong =
            |reason| NvmeError::WrongFile { backend: NAME, file: file.name().to_owned(), reason };
        let extent = file.extent().ok_or_else(|| {
            wrong("it is no fixed part of a device; files of a file system need io_uring")
        })?;
        let controller = self.io.controller();
        if extent.device != device_path(controller.as_ref()) {
            return Err(wrong("it lies on another device"));
        }
        self.usable()?;
        let end = extent.start.checked_add(extent.bytes);
        if end.is_none_or(|end| end > controller.facts().bytes()) {
            return Err(wrong("it reaches beyond the end of the device"));
        }
        let place = self.slots.free_place()?;
        // Nothing of the kernel stands between: neither cache nor file system.
        self.report.o_direct = true;
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
        let started = self
            .usable()
            .and_then(|()| check_write(offset, len_bytes))
            .and_then(|()| self.slots.start(slot).copied());
        let place = match started {
            Ok(place) => place,
            Err(error) => return Err(Refused { error, buf }),
        };
        if offset + len_bytes as u64 > place.bytes {
            // Nothing reached the device, so the count goes back without a verdict on the file.
            let _ = self.slots.finish(slot, Ok(()));
            return Err(Refused { error: NvmeError::Offset { offset }, buf });
        }
        let data = self.io.controller().chunk_address(&buf);
        let (first_byte, bytes) = (place.start + offset, len_bytes);
        let kind = Kind::Write { buf, data, first_byte, bytes, submitted: 0, foreign: None };
        self.enter(Op { slot, token, kind, parts: 0, error: None });
        Ok(())
    }

    fn sync(&mut self, slot: Slot, token: u64) -> Result<(), NvmeError> {
        self.usable()?;
        self.slots.start(slot)?;
        let kind = Kind::Sync { submitted: false };
        self.enter(Op { slot, token, kind, parts: 0, error: None });
        Ok(())
    }

    fn poll(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        self.usable()?;
        if self.slots.in_flight() == 0 {
            return Ok(());
        }
        let before = out.len();
        let controller = Arc::clone(self.io.controller());
        let start = controller.bus.now_ns();
        loop {
            self.feed(out);
            if let Err(dead) = self.reap(out) {
                self.die(&dead, out);
                return if out.len() > before { Ok(()) } else { self.usable() };
            }
            let waited = controller.bus.now_ns().saturating_sub(start);
            if out.len() > before || u128::from(waited) >= wait.as_nanos() {
                // What ended made room, and the device may have its completions' places back.
                self.feed(out);
                return Ok(());
            }
            controller.bus.relax(waited);
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }
}

impl<B: Bus> Drop for VfioQueue<B> {
    /// Ends what was submitted. Commands that do not end in time are aborted and then reset away,
    /// by their own timeouts.
    fn drop(&mut self) {
        let mut out = Vec::new();
        while self.in_flight() > 0 && !self.dead {
            if self.poll(Duration::from_millis(100), &mut out).is_err() {
                break;
            }
            out.clear();
        }
    }
}
