//! The real nvme driver, in a virtual machine.

mod erase;
mod faults;
mod laboratory;
mod own_driver;
mod queues;
mod recorder;
mod shared;
mod vfio;
