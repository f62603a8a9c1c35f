//! A laboratory of virtual machines: the real nvme driver, and devices that fail when told to.
//!
//! ```text
//!  packages ──► image ──► machine: boot once, save ──► Vm: restored for each test
//!  (Debian)    (kernel,                                 │ agent: commands in the guest
//!               first files)                            │ QMP: devices and their faults
//! ```
//! Everything comes from Debian packages of the mirror that this machine uses, unpacked into a
//! cache (`WIREVAULT_VM_CACHE`, else `wirevault/vm` in the user's cache folder); nothing is
//! installed. QEMU emulates the processor (TCG): hosts of tests are virtual machines themselves. A
//! machine with NVMe devices cannot be saved, so it is saved without, and each test adds its own.
//!
//! Nothing here is skipped: what is missing fails the test and names the way out.
//!
//! - [`container`]: Debian with systemd on this kernel, where no other one is needed.
//! - [`cache`]: folders, locks. [`packages`]: fetching, unpacking. [`image`]: kernel, first files,
//!   the disk with our programs. [`machine`]: starting, saving, restoring, the agent. [`nvme`]:
//!   devices and faults. [`qmp`]: QEMU's control socket.

pub mod cache;
pub mod container;
pub mod image;
pub mod machine;
pub mod nvme;
pub mod packages;
pub mod qmp;

pub use container::Container;
pub use machine::{Kind, Vm};
pub use nvme::{Disk, Fault, NvmeOptions};
