//! What the driver needs of the machine: a controller's registers, memory that it reaches, and
//! time.

use std::io;
use std::sync::Arc;

use wirevault_buffer::Arena;

use super::memory::DmaMemory;

/// One controller, as its driver sees it. Implemented by [`VfioBus`](super::VfioBus) for real ones
/// and by [`ModelBus`](super::model::ModelBus) for simulated ones.
///
/// Whatever a driver does through it, the controller reaches nothing but memory that was mapped:
/// [`DmaMemory`], which every reader expects to change, and arenas, which it may only read.
pub trait Bus: Send + Sync {
    /// The device in words, for messages.
    fn describe(&self) -> String;

    /// Reads the register at byte `at` of BAR 0. A device that is gone answers `u32::MAX`, as does
    /// a place outside of the registers.
    fn read32(&self, at: usize) -> u32;

    /// Writes the register at byte `at` of BAR 0. All memory written before is seen by the device
    /// before this is. A place outside of the registers is left alone.
    fn write32(&self, at: usize, value: u32);

    /// Lets the device read and write memory until [`Bus::sever`]; gives the address that the
    /// device knows it by. Errors: the system's.
    fn map(&self, memory: &Arc<DmaMemory>) -> io::Result<u64>;

    /// Lets the device read an arena until [`Bus::sever`]; gives its address of each of
    /// [`Arena::regions`]. Errors: the system's.
    fn map_arena(&self, arena: &Arena) -> io::Result<Vec<u64>>;

    /// Takes all memory away from the device, whatever state it is in, and lets go of it. Then it
    /// reaches none, and answers as one that is gone. Errors: it may still reach some.
    fn sever(&self) -> io::Result<()>;

    /// Time since some start.
    fn now_ns(&self) -> u64;

    /// Passes a little time; less at the beginning of a wait than after `waited_ns` of it.
    fn relax(&self, waited_ns: u64);
}
