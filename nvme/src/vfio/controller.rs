//! The controller itself: started, asked what it is, given queues, reset, stopped.
//!
//! # Reset
//! A reset ends every queue at once. Each start has a number, the *epoch*; a queue that sees
//! another epoch than its own knows that all its commands are gone, and opens itself again. A
//! controller that will not stop has all memory taken away from it and is dead for good, and so
//! is one that the kernel wants back.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use wirevault_buffer::{Arena, ArenaId, ChunkBuf};
use wirevault_format::limits::LBA_BYTES;

use super::bus::Bus;
use super::command::Command;
use super::memory::DmaMemory;
use super::pages::transfer_bytes_max;
use super::registers::{
    ACQ, AQA, ASQ, CAP, CC, CC_EN, CC_RUN, CC_SHN_MASK, CC_SHN_NORMAL, CSTS, CSTS_CFS, CSTS_RDY,
    CSTS_SHST_DONE, CSTS_SHST_MASK, Capabilities, GONE, PAGE_BYTES,
};
use super::ring::Ring;
use crate::device::{Device, DeviceKind, Roots};
use crate::error::NvmeError;
use crate::spec::command::{self as spec, admin};
use crate::spec::identify::IDENTIFY_BYTES;
use crate::spec::{IdentifyController, IdentifyNamespace, Status};

/// Entries of the admin queue. One command is in flight at a time; completions that come after we
/// gave up waiting need room.
const ADMIN_ENTRIES: u16 = 32;
/// I/O queue pairs asked for: a writer and the blocking calls need one each.
const PAIRS_WANTED: u16 = 64;
/// An admin command that takes longer has somebody look whether the device is still there.
const ADMIN_LOOK_NS: u64 = 1_000_000;
/// A local device that takes longer than this for a command never answers it. It is what Amazon
/// gives its instance stores, and above what others are given; without a limit a lost completion
/// would hold up tables, questions and the end of the recorder for good.
const LOCAL_TIMEOUT_MAX: Duration = Duration::from_secs(90);
/// The epoch of a dead controller.
const DEAD: u32 = 0;

/// How to run a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerOptions {
    /// Namespace to use; `None` takes the first.
    pub namespace: Option<u32>,
    /// How old a read, write or flush may grow before it is aborted.
    pub command_timeout: Duration,
    /// How long an admin command may take, and an aborted command to end, before the controller is
    /// reset.
    pub admin_timeout: Duration,
}

impl Default for ControllerOptions {
    /// The timeout of Linux' own driver (30 s), and its half for admin commands: nothing that is
    /// asked for here formats or erases.
    fn default() -> Self {
        Self {
            namespace: None,
            command_timeout: Duration::from_secs(30),
            admin_timeout: Duration::from_secs(15),
        }
    }
}

impl ControllerOptions {
    /// With the time that the kernel's own driver leaves a command of a device that it still has:
    /// the device's own limit, else `nvme_core.io_timeout`. Images of Amazon raise that beyond all
    /// bounds, because an EBS volume may stall for long and comes back; other devices have 90 s at
    /// most.
    pub fn as_patient_as_the_kernel(roots: &Roots, device: &Device) -> Self {
        let number = |path: &str| {
            let text = fs::read_to_string(roots.sys.join(path)).ok()?;
            text.trim().parse::<u32>().ok().filter(|number| *number > 0).map(u64::from)
        };
        let of_device = number(&format!("block/{}/queue/io_timeout", device.name));
        let of_all = || number("module/nvme_core/parameters/io_timeout").map(Duration::from_secs);
        let own = Self::default();
        let set = of_device.map(Duration::from_millis).or_else(of_all);
        let command_timeout = match set.unwrap_or(own.command_timeout) {
            set if device.kind == DeviceKind::Ebs => set,
            set => set.min(LOCAL_TIMEOUT_MAX),
        };
        Self { command_timeout, ..own }
    }
}

/// A running controller and one of its namespaces. Dropping it shuts the device down.
pub struct Controller<B: Bus> {
    admin: Mutex<Admin>,
    epoch: AtomicU32,
    /// The device could not be stopped and may still use memory it was given.
    runaway: AtomicBool,
    pub(super) bus: B,
    pub(super) capabilities: Capabilities,
    pub(super) options: ControllerOptions,
    pub(super) facts: Facts,
    arena: OnceLock<MappedArena>,
}

/// What the device said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The controller.
    pub controller: IdentifyController,
    /// The namespace in use.
    pub namespace: IdentifyNamespace,
    /// Its number.
    pub namespace_id: u32,
    /// Bytes of the largest command.
    pub transfer_bytes_max: usize,
    /// I/O queue pairs that can be opened.
    pub pairs: u16,
}

struct Admin {
    ring: Ring,
    memory: Arc<DmaMemory>,
    start: u64,
    next_id: u16,
    /// Numbers of I/O queues in use; number 1 is the first.
    taken: Vec<bool>,
    /// Memory of closed queues. It stays mapped, so it is used again.
    spare: Vec<Mapped>,
}

/// Memory with the address that the device knows.
#[derive(Clone)]
pub(super) struct Mapped {
    pub(super) memory: Arc<DmaMemory>,
    pub(super) start: u64,
}

struct MappedArena {
    id: ArenaId,
    /// Address here, and the device's.
    regions: Vec<(usize, u64)>,
}

impl<B: Bus> Controller<B> {
    /// Resets a controller, enables it and asks what it is. `arena` is the memory that queues
    /// write chunks from without copying.
    ///
    /// Errors: the device does not answer, or is not one that this driver can use.
    pub fn start(
        bus: B,
        options: ControllerOptions,
        arena: Option<&Arena>,
    ) -> Result<Arc<Self>, NvmeError> {
        let device = bus.describe();
        let failed =
            |action, source| NvmeError::Controller { device: device.clone(), action, source };
        let low = u64::from(bus.read32(CAP));
        let capabilities = Capabilities(u64::from(bus.read32(CAP + 4)) << 32 | low);
        check_capabilities(capabilities).map_err(|e| failed("use the controller", e))?;
        let admin = Admin::new(&bus, capabilities).map_err(|e| failed("map the admin queue", e))?;
        let mut controller = Self {
            admin: Mutex::new(admin),
            epoch: AtomicU32::new(DEAD + 1),
            runaway: AtomicBool::new(false),
            capabilities,
            options,
            facts: Facts::unknown(),
            arena: OnceLock::new(),
            bus,
        };
        controller.restart(&mut controller.lock()).map_err(|e| failed("start it", e))?;
        controller.facts = controller.ask().map_err(|e| failed("ask what it is", e))?;
        controller.facts.check().map_err(|e| failed("use the namespace", e))?;
        if let Some(arena) = arena {
            controller.map_arena(arena)?;
        }
        Ok(Arc::new(controller))
    }

    /// Lets queues write chunks of this arena without copying. The first one counts; chunks of
    /// others are copied.
    ///
    /// Errors: the system does not map it.
    pub fn map_arena(&self, arena: &Arena) -> Result<(), NvmeError> {
        // Two callers at a time would map it twice, to no harm: whoever makes queues is one thread.
        if self.has_arena() {
            return Ok(());
        }
        let starts = self.bus.map_arena(arena).map_err(|source| NvmeError::Controller {
            device: self.describe(),
            action: "map the arena",
            source,
        })?;
        let regions = arena.regions().iter().map(|r| r.address).zip(starts).collect();
        let _ = self.arena.set(MappedArena { id: arena.id(), regions });
        Ok(())
    }

    /// What the device said of itself at the start.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The device in words.
    pub fn describe(&self) -> String {
        self.bus.describe()
    }

    /// Whether the device still answers.
    pub fn is_alive(&self) -> bool {
        self.epoch() != DEAD
    }

    /// Whether this process has nothing to do with the device any more: it is dead, and closed.
    pub fn is_left(&self) -> bool {
        !self.is_alive() && !self.is_runaway()
    }

    /// Lets go of the device, for good: what is in flight has failed, and queues say that it is
    /// gone. What its cache holds is left to it.
    pub fn let_go(&self) {
        let _admin = self.lock();
        if !self.is_left() {
            let _ = self.disable();
            self.die();
        }
    }

    /// How often the controller was reset because commands did not end.
    pub fn resets(&self) -> u32 {
        self.epoch().saturating_sub(1)
    }

    /// The device's address of a chunk, if it belongs to the mapped arena.
    pub(super) fn chunk_address(&self, buf: &ChunkBuf) -> Option<u64> {
        let arena = self.arena.get().filter(|arena| arena.id == buf.arena_id())?;
        let (here, there) = *arena.regions.get(usize::from(buf.region_index()))?;
        Some(there + (buf.as_ptr() as usize - here) as u64)
    }

    /// Whether chunks of an arena are written from where they are.
    pub(super) fn has_arena(&self) -> bool {
        self.arena.get().is_some()
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether the device may still use memory although nobody can stop it.
    pub(super) fn is_runaway(&self) -> bool {
        self.runaway.load(Ordering::Acquire)
    }

    /// Whether the status register says that the device needs a reset, was reset by somebody else,
    /// or is gone.
    pub(super) fn has_failed(&self) -> bool {
        let status = self.bus.read32(CSTS);
        status & CSTS_CFS != 0 || status & CSTS_RDY == 0
    }

    /// Takes a free queue number, and memory of `bytes` for it.
    pub(super) fn reserve(&self, bytes: usize) -> io::Result<(u16, Mapped)> {
        let mut admin = self.lock();
        let Some(at) = admin.taken.iter().position(|taken| !taken) else {
            let text = format!("all {} I/O queues of the device are in use", admin.taken.len());
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        };
        let mapped = match admin.spare.iter().position(|m| m.memory.bytes() >= bytes) {
            Some(nth) => admin.spare.swap_remove(nth),
            None => {
                let memory = Arc::new(DmaMemory::new(bytes)?);
                let start = self.bus.map(&memory)?;
                Mapped { memory, start }
            }
        };
        admin.taken[at] = true;
        Ok((at as u16 + 1, mapped))
    }

    /// Opens the queue pair that a [`Ring`] at the start of the memory describes, and gives the
    /// epoch it is good for.
    pub(super) fn open_pair(&self, number: u16, entries: u16, start: u64) -> io::Result<u32> {
        let mut admin = self.lock();
        // Only whoever holds the lock resets, so the pair belongs to this epoch.
        let epoch = self.epoch();
        if epoch == DEAD {
            return Err(gone());
        }
        let completions = start + Ring::completions_at(entries) as u64;
        self.run(&mut admin, Command::create_cq(number, entries, completions))?;
        let result = self.run(&mut admin, Command::create_sq(number, entries, start));
        if result.is_err() {
            let _ =
                self.run(&mut admin, Command::delete_queue(admin::DELETE_COMPLETION_QUEUE, number));
        }
        result.map(|_| epoch)
    }

    /// Closes a queue pair, if it is open, and gives number and memory back; afterwards the device
    /// uses nothing of it. Its commands end without a completion that anybody sees. A device that
    /// refuses is reset.
    pub(super) fn close_pair(&self, number: u16, epoch: Option<u32>, mapped: &Mapped) {
        let mut admin = self.lock();
        if epoch == Some(self.epoch()) {
            let closed = self
                .run(&mut admin, Command::delete_queue(admin::DELETE_SUBMISSION_QUEUE, number))
                .and_then(|_| {
                    self.run(
                        &mut admin,
                        Command::delete_queue(admin::DELETE_COMPLETION_QUEUE, number),
                    )
                });
            if closed.is_err() {
                self.reset_locked(&mut admin);
            }
        }
        if let Some(taken) = admin.taken.get_mut(usize::from(number) - 1) {
            *taken = false;
        }
        if self.is_alive() {
            admin.spare.push(mapped.clone());
        }
    }

    /// Asks the device to end a command early. Errors: it did not answer.
    pub(super) fn abort(&self, queue: u16, id: u16) -> io::Result<()> {
        self.run(&mut self.lock(), Command::abort(queue, id)).map(drop)
    }

    /// Stops everything and starts anew, unless somebody did so since `seen`. If that fails, the
    /// device is dead.
    pub(super) fn reset(&self, seen: u32) {
        let mut admin = self.lock();
        if self.epoch() == seen {
            self.reset_locked(&mut admin);
        }
    }

    fn reset_locked(&self, admin: &mut Admin) {
        let epoch = self.epoch();
        if epoch == DEAD {
            return;
        }
        match self.restart(admin) {
            Ok(()) => self.epoch.store(epoch.wrapping_add(1).max(DEAD + 1), Ordering::Release),
            Err(_) => self.die(),
        }
    }

    /// For whoever holds the admin queue.
    fn die(&self) {
        self.runaway.store(self.bus.sever().is_err(), Ordering::Release);
        self.epoch.store(DEAD, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Admin> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Disables, enables, and asks for queues.
    fn restart(&self, admin: &mut Admin) -> io::Result<()> {
        self.disable()?;
        admin.ring = Ring::new(Arc::clone(&admin.memory), ADMIN_ENTRIES, 0, self.capabilities);
        self.enable(admin)?;
        let granted = self.run(admin, Command::set_queues(PAIRS_WANTED))?;
        let pairs = (granted & 0xffff).min(granted >> 16) + 1;
        let pairs = pairs.min(u32::from(PAIRS_WANTED)) as usize;
        // After a reset the open queues keep their numbers; a device that grants fewer than before
        // refuses to open the others.
        let length = admin.taken.len().max(pairs);
        admin.taken.resize(length, false);
        Ok(())
    }

    fn disable(&self) -> io::Result<()> {
        let cc = self.bus.read32(CC);
        if cc == GONE {
            return Err(gone());
        }
        if cc & CC_EN != 0 {
            self.bus.write32(CC, cc & !(CC_EN | CC_SHN_MASK));
        }
        let timeout_ns = self.capabilities.ready_timeout_ns();
        self.wait(timeout_ns, "stop", |status| Ok(status & CSTS_RDY == 0))
    }

    fn enable(&self, admin: &Admin) -> io::Result<()> {
        let less_one = u32::from(ADMIN_ENTRIES) - 1;
        self.bus.write32(AQA, less_one << 16 | less_one);
        let completions = admin.start + Ring::completions_at(ADMIN_ENTRIES) as u64;
        for (register, address) in [(ASQ, admin.start), (ACQ, completions)] {
            self.bus.write32(register, address as u32);
            self.bus.write32(register + 4, (address >> 32) as u32);
        }
        self.bus.write32(CC, CC_RUN);
        self.wait(self.capabilities.ready_timeout_ns(), "become ready", |status| {
            if status & CSTS_CFS != 0 {
                return Err(io::Error::other("the controller reports a fatal error"));
            }
            Ok(status & CSTS_RDY != 0)
        })
    }

    /// Waits for the status register. Errors: the device is gone, or it takes too long.
    fn wait(
        &self,
        timeout_ns: u64,
        what: &str,
        mut reached: impl FnMut(u32) -> io::Result<bool>,
    ) -> io::Result<()> {
        let start = self.bus.now_ns();
        loop {
            let status = self.bus.read32(CSTS);
            if status == GONE {
                return Err(gone());
            }
            if reached(status)? {
                return Ok(());
            }
            let waited = self.bus.now_ns().saturating_sub(start);
            if waited > timeout_ns {
                let text = format!("the controller did not {what} in {} ms", waited / 1_000_000);
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            self.bus.relax(waited);
        }
    }

    /// Runs one admin command to its end. Errors: the device's status, or no answer in time.
    fn run(&self, admin: &mut Admin, command: Command) -> io::Result<u32> {
        let id = admin.next_id;
        // It comes round long after a late completion of its last use. FFFFh is reserved.
        admin.next_id = (id + 1) % u16::MAX;
        if !admin.ring.push(&command.with_id(id)) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the admin queue is stuck"));
        }
        admin.ring.tell(&self.bus);
        let start = self.bus.now_ns();
        loop {
            while let Some(ended) = admin.ring.pop() {
                admin.ring.tell(&self.bus);
                if ended.id == id {
                    return ended.status.into_result().map(|()| ended.result);
                }
            }
            let waited = self.bus.now_ns().saturating_sub(start);
            if waited > self.options.admin_timeout.as_nanos() as u64 {
                let text = format!("no answer to an admin command in {} ms", waited / 1_000_000);
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            if waited > ADMIN_LOOK_NS && self.has_failed() {
                return Err(gone());
            }
            self.bus.relax(waited);
        }
    }

    fn ask(&self) -> io::Result<Facts> {
        let mut admin = self.lock();
        let controller = IdentifyController::decode(&*self.identify(&mut admin, 1, 0)?);
        let namespace_id = match self.options.namespace {
            Some(id) => id,
            None => {
                let list = self.identify(&mut admin, 2, 0)?;
                u32::from_le_bytes(std::array::from_fn(|n| list[n]))
            }
        };
        if namespace_id == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it has no namespace"));
        }
        let namespace = IdentifyNamespace::decode(&*self.identify(&mut admin, 0, namespace_id)?);
        Ok(Facts {
            transfer_bytes_max: transfer_bytes_max(controller.transfer_bytes_max),
            controller,
            namespace,
            namespace_id,
            pairs: admin.taken.len() as u16,
        })
    }

    fn identify(
        &self,
        admin: &mut Admin,
        cns: u8,
        namespace: u32,
    ) -> io::Result<Box<[u8; IDENTIFY_BYTES]>> {
        let mut data = Box::new([0; IDENTIFY_BYTES]);
        self.answer(admin, &spec::Command::identify(cns, namespace), &mut data[..])?;
        Ok(data)
    }

    /// Runs an admin command that answers with data, at most a page. One that was given up may
    /// still be answered, over what a later one reads there, until the controller was reset.
    fn answer(
        &self,
        admin: &mut Admin,
        command: &spec::Command,
        data: &mut [u8],
    ) -> io::Result<()> {
        if data.len() != command.data_bytes as usize || data.len() > PAGE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the answer has another size"));
        }
        admin.memory.clear(admin.data_at(), PAGE_BYTES);
        let page = admin.start + admin.data_at() as u64;
        if let Err(error) = self.run(admin, Command::reading(command, page)) {
            // A status of the same kind is an answer.
            if error.kind() == io::ErrorKind::TimedOut && Status::of(&error).is_none() {
                self.reset_locked(admin);
            }
            return Err(error);
        }
        admin.memory.copy_out(admin.data_at(), data);
        Ok(())
    }
}

impl<B: Bus> crate::admin::Admin for Controller<B> {
    /// At most 4096 bytes.
    fn read(&self, command: &spec::Command, data: &mut [u8]) -> io::Result<()> {
        self.answer(&mut self.lock(), command, data)
    }

    fn describe(&self) -> String {
        self.bus.describe()
    }
}

impl<B: Bus> Drop for Controller<B> {
    /// Has the device put away what it holds, then stops it. A device that does neither has its
    /// memory taken away.
    fn drop(&mut self) {
        if !self.is_alive() {
            return;
        }
        self.bus.write32(CC, CC_RUN | CC_SHN_NORMAL);
        let timeout_ns = self.options.admin_timeout.as_nanos() as u64;
        let _ = self
            .wait(timeout_ns, "shut down", |status| Ok(status & CSTS_SHST_MASK == CSTS_SHST_DONE));
        if self.disable().is_err() {
            // Closing the device resets it as well; nothing more can be done here.
            let _ = self.bus.sever();
        }
    }
}

impl Admin {
    fn new(bus: &impl Bus, capabilities: Capabilities) -> io::Result<Self> {
        let memory = Arc::new(DmaMemory::new(Ring::bytes(ADMIN_ENTRIES) + IDENTIFY_BYTES)?);
        let start = bus.map(&memory)?;
        let ring = Ring::new(Arc::clone(&memory), ADMIN_ENTRIES, 0, capabilities);
        Ok(Self { ring, memory, start, next_id: 0, taken: Vec::new(), spare: Vec::new() })
    }

    /// Byte of the page for answers.
    fn data_at(&self) -> usize {
        Ring::bytes(ADMIN_ENTRIES)
    }
}

impl Facts {
    fn unknown() -> Self {
        Self {
            controller: IdentifyController::decode(&[0; IDENTIFY_BYTES]),
            namespace: IdentifyNamespace::decode(&[0; IDENTIFY_BYTES]),
            namespace_id: 0,
            transfer_bytes_max: LBA_BYTES,
            pairs: 0,
        }
    }

    /// Bytes of the namespace, in whole blocks of ours.
    pub fn bytes(&self) -> u64 {
        let bytes = self.namespace.blocks.saturating_mul(u64::from(self.block_bytes()));
        bytes - bytes % LBA_BYTES as u64
    }

    /// Bytes of a logical block, 512 to `LBA_BYTES`.
    pub fn block_bytes(&self) -> u32 {
        self.namespace.lba_bytes.unwrap_or(LBA_BYTES as u32)
    }

    fn check(&self) -> io::Result<()> {
        let IdentifyNamespace { lba_bytes, metadata_bytes, write_protected, .. } = self.namespace;
        let text = if lba_bytes.is_none_or(|bytes| bytes as usize > LBA_BYTES) {
            let bytes = lba_bytes.unwrap_or_default();
            format!("its blocks have {bytes} bytes; 512 to {LBA_BYTES} are supported")
        } else if metadata_bytes != 0 {
            format!("its blocks carry {metadata_bytes} bytes of metadata; format it without")
        } else if write_protected {
            "it is write protected".to_owned()
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    }
}

fn check_capabilities(capabilities: Capabilities) -> io::Result<()> {
    let text = if capabilities.0 == u64::MAX {
        return Err(gone());
    } else if !capabilities.has_nvm_commands() {
        "it has no NVM command set"
    } else if capabilities.page_bytes_min() > PAGE_BYTES as u64 {
        "it cannot work with pages of 4096 bytes"
    } else if capabilities.entries_max() < u32::from(ADMIN_ENTRIES) {
        "its queues are shorter than 32 entries"
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::Unsupported, text))
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the device is gone, or was reset")
}
