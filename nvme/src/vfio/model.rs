//! A controller in memory, for tests: registers, queues and a disk with a volatile cache.
//!
//! It reads and writes the driver's memory by address, as a device does, through
//! `/proc/self/mem`, and only where the driver mapped it. Commands end late and in any order; data
//! of a write is read at its end, so a chunk given away too early shows on the disk. Time is
//! counted and never waited for. Deterministic: the same seed and calls give the same run.
//!
//! What a driver may not do (registers, addresses, lengths) is noted in [`ModelBus::violations`].

mod device;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wirevault_buffer::Arena;

use self::device::Device;
use super::bus::Bus;
use super::memory::DmaMemory;
use super::registers::GONE;
use crate::spec::Status;

/// Time that one look at the clock takes.
const TICK_NS: u64 = 500;
/// Time that one rest takes.
const REST_NS: u64 = 20_000;
/// Distance of device addresses, which are none of this process.
const IOVA_STEP: u64 = 1 << 32;

/// What a model should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOptions {
    /// Decides delays and order.
    pub seed: u64,
    /// Bytes of the namespace.
    pub bytes: usize,
    /// Bytes of a logical block, a power of two from 512 on.
    pub block_bytes: u32,
    /// Largest transfer as a power of two of 4096 bytes; 0 is without limit.
    pub mdts: u8,
    /// Entries of a queue at most.
    pub entries: u16,
    /// Distance of doorbells: 4 bytes shifted by this.
    pub stride: u8,
    /// I/O queue pairs there are.
    pub pairs: u16,
    /// Whether there is a volatile write cache.
    pub volatile_cache: bool,
    /// Whether it offers Deallocate.
    pub can_deallocate: bool,
    /// Whether it offers Write Zeroes.
    pub can_write_zeroes: bool,
    /// How long a command takes at most.
    pub delay_ns_max: u64,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            bytes: 64 << 20,
            block_bytes: 512,
            mdts: 5,
            entries: 64,
            stride: 0,
            pairs: 4,
            volatile_cache: true,
            can_deallocate: true,
            can_write_zeroes: false,
            delay_ns_max: 200_000,
        }
    }
}

/// What can be wrong with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The next this many I/O commands never end by themselves; Abort ends them.
    Stuck(u32),
    /// As [`Trouble::Stuck`], and Abort says that it could not.
    Deaf(u32),
    /// No command of the admin queue ends any more.
    AdminStuck,
    /// The next command of the admin queue takes this many ns.
    AdminLate(u64),
    /// Disabling never finishes.
    WillNotStop,
    /// The status register reports a fatal error, and nothing ends, until a reset.
    Fatal,
    /// It was pulled out: registers read as ones, nothing ends.
    Gone,
    /// Every completion is followed by one of an identifier that is not in flight.
    Echo,
    /// Flushes succeed and do nothing.
    FlushLies,
    /// Somebody else resets it, now: it is not enabled, and has no queues.
    Reset,
}

/// Is told of what is done to the disk, in the order in which it is done.
pub trait Journal: Send {
    /// A command that writes or flushes was fetched. What is given comes back at its end.
    fn begun(&mut self) -> usize;

    /// It ended well: offset and bytes that were written, or a flush.
    fn ended(&mut self, begun: usize, write: Option<(u64, &[u8])>);
}

/// The model as a [`Bus`]. Clones are the same device, so that tests can keep hold of it.
#[derive(Clone)]
pub struct ModelBus {
    shared: Arc<Mutex<State>>,
}

struct State {
    device: Device,
    memory: HostMemory,
    now_ns: u64,
    /// The driver has let go of it.
    left: bool,
    /// After how many looks at the clock the driver stands still, and for how long.
    pause: Option<(u32, u64)>,
}

/// The driver's memory as the device reaches it.
struct HostMemory {
    process: File,
    mapped: Vec<Mapping>,
    next: u64,
    sever_fails: bool,
}

struct Mapping {
    iova: u64,
    address: u64,
    bytes: u64,
    writable: bool,
    _kept: Kept,
}

enum Kept {
    Pages { _memory: Arc<DmaMemory> },
    Arena { _arena: Arena },
}

impl ModelBus {
    /// Makes a device that is switched off. Errors: `/proc` is not there.
    pub fn new(options: ModelOptions) -> io::Result<Self> {
        let process = OpenOptions::new().read(true).write(true).open("/proc/self/mem")?;
        let memory =
            HostMemory { process, mapped: Vec::new(), next: IOVA_STEP, sever_fails: false };
        let state =
            State { device: Device::new(options), memory, now_ns: 0, left: false, pause: None };
        Ok(Self { shared: Arc::new(Mutex::new(state)) })
    }

    /// Puts bytes on the disk, durably, as if they had been there before.
    pub fn put(&self, offset: usize, bytes: &[u8]) {
        let device = &mut self.state().device;
        for disk in [&mut device.disk, &mut device.durable] {
            disk[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Has the driver stand still for so long after it has looked at the clock this many times.
    pub fn stand_still(&self, looks: u32, for_ns: u64) {
        self.state().pause = Some((looks, for_ns));
    }

    /// Has a journal told of what is done from now on.
    pub fn tell(&self, journal: Box<dyn Journal>) {
        self.state().device.journal = Some(journal);
    }

    /// Lets something go wrong from now on.
    pub fn trouble(&self, trouble: Trouble) {
        self.state().device.trouble(trouble);
    }

    /// Has I/O commands that touch a byte of `range` end with a status: writes, or reads.
    pub fn fail(&self, writes: bool, range: std::ops::Range<u64>, status: Status) {
        self.state().device.failing.push((writes, range, status));
    }

    /// Has taking the memory away fail.
    pub fn keep_memory(&self) {
        self.state().memory.sever_fails = true;
    }

    /// What the driver did that it must not do.
    pub fn violations(&self) -> Vec<String> {
        self.state().device.violations.clone()
    }

    /// Commands fetched so far, of I/O queues.
    pub fn io_commands(&self) -> u64 {
        self.state().device.io_commands
    }

    /// Abort commands seen.
    pub fn aborts(&self) -> u64 {
        self.state().device.aborts
    }

    /// Bytes of the disk as a read finds them.
    pub fn bytes_at(&self, offset: usize, bytes: usize) -> Vec<u8> {
        self.state().device.disk[offset..offset + bytes].to_vec()
    }

    /// Bytes that survive a loss of power now.
    pub fn durable_at(&self, offset: usize, bytes: usize) -> Vec<u8> {
        self.state().device.durable[offset..offset + bytes].to_vec()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, address: usize, bytes: usize, writable: bool, kept: Kept) -> u64 {
        let mut state = self.state();
        let memory = &mut state.memory;
        let iova = memory.next;
        let (address, bytes) = (address as u64, bytes as u64);
        memory.next += bytes.next_multiple_of(IOVA_STEP);
        memory.mapped.push(Mapping { iova, address, bytes, writable, _kept: kept });
        iova
    }
}

impl State {
    fn step(&mut self, passed_ns: u64) {
        self.now_ns += passed_ns;
        self.device.step(self.now_ns, &self.memory);
    }
}

impl HostMemory {
    /// Reads memory that the device was given. `false`: it was not given that.
    fn read(&self, iova: u64, data: &mut [u8]) -> bool {
        self.address(iova, data.len(), false)
            .is_some_and(|address| self.process.read_exact_at(data, address).is_ok())
    }

    /// Writes memory that the device was given for writing.
    fn write(&self, iova: u64, data: &[u8]) -> bool {
        self.address(iova, data.len(), true)
            .is_some_and(|address| self.process.write_all_at(data, address).is_ok())
    }

    fn address(&self, iova: u64, bytes: usize, write: bool) -> Option<u64> {
        let end = iova.checked_add(bytes as u64)?;
        let holds = |m: &&Mapping| m.iova <= iova && end <= m.iova + m.bytes;
        let mapping = self.mapped.iter().find(holds).filter(|m| m.writable || !write)?;
        Some(mapping.address + (iova - mapping.iova))
    }
}

impl Bus for ModelBus {
    fn describe(&self) -> String {
        "model".to_owned()
    }

    fn read32(&self, at: usize) -> u32 {
        let mut state = self.state();
        state.step(TICK_NS);
        if state.left || state.device.is_gone() { GONE } else { state.device.read32(at) }
    }

    fn write32(&self, at: usize, value: u32) {
        let mut state = self.state();
        let now_ns = state.now_ns;
        let State { device, memory, left, .. } = &mut *state;
        if !*left && !device.is_gone() {
            device.write32(at, value, now_ns, memory);
        }
    }

    fn map(&self, memory: &Arc<DmaMemory>) -> io::Result<u64> {
        let kept = Kept::Pages { _memory: Arc::clone(memory) };
        Ok(self.add(memory.address(), memory.bytes(), true, kept))
    }

    fn map_arena(&self, arena: &Arena) -> io::Result<Vec<u64>> {
        let add = |region: &wirevault_buffer::Region| {
            self.add(region.address, region.bytes, false, Kept::Arena { _arena: arena.clone() })
        };
        Ok(arena.regions().iter().map(add).collect())
    }

    fn sever(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.memory.sever_fails {
            return Err(io::Error::other("the memory stays mapped"));
        }
        state.memory.mapped.clear();
        state.left = true;
        Ok(())
    }

    fn now_ns(&self) -> u64 {
        let mut state = self.state();
        state.step(TICK_NS);
        let now_ns = state.now_ns;
        match state.pause.take() {
            Some((0 | 1, for_ns)) => state.step(for_ns),
            Some((looks, for_ns)) => state.pause = Some((looks - 1, for_ns)),
            None => {}
        }
        now_ns
    }

    fn relax(&self, _waited_ns: u64) {
        self.state().step(REST_NS);
    }
}
