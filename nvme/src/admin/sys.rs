//! The system call.
//!
//! # Invariants
//! - The kernel reads or writes the caller's memory during the call only, and not more of it than
//!   the command says.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::spec::command::{COMMAND_BYTES, Command};

/// Where a command goes (Linux `include/uapi/linux/nvme_ioctl.h`).
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    /// The admin queue.
    Admin,
    /// A queue of the namespace.
    Io,
}

impl To {
    /// `_IOWR('N', 0x41 or 0x43, struct nvme_passthru_cmd)`.
    fn request(self) -> libc::Ioctl {
        match self {
            Self::Admin => 0xc048_4e41_u64 as libc::Ioctl,
            Self::Io => 0xc048_4e43_u64 as libc::Ioctl,
        }
    }
}

/// `struct nvme_passthru_cmd`.
#[repr(C, align(8))]
struct Argument([u8; COMMAND_BYTES]);

/// Carries a command out whose data is `data`, which the caller made as long as the command says.
/// Gives its status. Errors: the system's.
pub(super) fn carry_out(
    node: &File,
    to: To,
    command: &Command,
    data: &mut [u8],
) -> io::Result<u16> {
    assert_eq!(data.len(), command.data_bytes as usize, "the kernel goes by the command");
    let mut argument = Argument(command.encode(data.as_mut_ptr() as u64));
    // SAFETY: the node is open; the argument has the size that is part of the request's number, and
    // it names `data`, which is borrowed through the call, with its length (asserted above).
    let result = unsafe { libc::ioctl(node.as_raw_fd(), to.request(), &raw mut argument) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // A status has 15 bits.
    u16::try_from(result).map_err(|_| io::Error::other("the kernel gave what is no status"))
}
