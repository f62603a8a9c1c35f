//! NVMe controllers driven from here, past the kernel's block layer and its driver, through VFIO.
//!
//! ```text
//!  Queue trait ── queue ──┐                                  ┌─ hardware ── sys: VFIO, BAR 0
//!  volume ── disk ────────┴─ io_queue ── controller ── bus ──┤
//!                             │  ids, ring, pages            └─ model: a controller in memory
//! ```
//!
//! Everything left of [`Bus`] is safe code that knows neither VFIO nor addresses of this process,
//! and is tested against [`model::ModelBus`]. [`Binder`] takes devices from the kernel's driver and
//! hands them back.
//!
//! # What is promised
//! - The device can read the arena and read and write the driver's own memory, nothing else; the
//!   IOMMU sees to that.
//! - A chunk comes back only when the device is done with it: its commands completed, or the
//!   controller was reset, or all memory was taken away from it. If none of these can be had, the
//!   chunk is never used again.
//! - A command that does not end is aborted; if that does not help, the controller is reset, which
//!   fails everything in flight on it; if it does not come back, it is dead and every queue says
//!   so.
//! - A sync is a Flush command, or nothing if the device has no volatile cache.

mod bind;
mod bus;
mod command;
mod controller;
mod disk;
mod hardware;
mod ids;
mod io_queue;
mod iova;
mod memory;
pub mod model;
mod pages;
mod queue;
mod registers;
mod ring;
#[expect(unsafe_code, reason = "ioctls, mapped registers, and memory that a device writes to")]
mod sys;
mod volume;

pub use bind::{Binder, PciAddress, Taken};
pub use bus::Bus;
pub use controller::{Controller, ControllerOptions, Facts};
pub use disk::VfioDisk;
pub use hardware::VfioBus;
pub use memory::DmaMemory;
pub use queue::VfioQueue;
pub use volume::VfioVolume;
