//! The real nvme driver, in a virtual machine.

mod laboratory;
mod queues;
mod recorder;
mod vfio;
