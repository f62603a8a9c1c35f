//! How a command ended (base specification, section 3.3.3.2.1; NVM command set, section 3.1.2).

use std::fmt;
use std::io;

/// A completion's status field without the phase: code in bits 0-7, type in 8-10, "more" in 13, "do
/// not retry" in 14. What the kernel's passthrough gives is the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u16);

/// Bits that say what happened.
const CODE: u16 = 0x7ff;
/// The same command would fail again.
const DO_NOT_RETRY: u16 = 0x4000;

impl Status {
    /// Success.
    pub const OK: Self = Self(0);
    /// A command that the device does not know.
    pub const INVALID_OPCODE: Self = Self(0x001);
    /// Extended data was asked for and host ids have 64 bits, or the other way round.
    pub const HOST_ID_FORMAT: Self = Self(0x018);
    /// Another host has reserved the namespace.
    pub const RESERVATION_CONFLICT: Self = Self(0x083);
    /// Aborted on request.
    pub const ABORTED: Self = Self(0x007);
    /// A write that the medium did not take.
    pub const WRITE_FAULT: Self = Self(0x280);

    /// Type and code, without the bits about repeating.
    pub fn code(self) -> u16 {
        self.0 & CODE
    }

    /// Whether the device says that the same command would fail again.
    pub fn is_final(self) -> bool {
        self.0 & DO_NOT_RETRY != 0
    }

    /// Whether the device does not know this command, log page or feature, or not with these
    /// fields: it lacks something, it is not broken.
    pub fn is_unsupported(self) -> bool {
        matches!(self.code(), 0x001 | 0x002 | 0x00b | 0x109)
    }

    /// Success, or the error that callers understand, with this status inside.
    pub fn into_result(self) -> io::Result<()> {
        if self.code() == 0 { Ok(()) } else { Err(io::Error::new(self.kind(), self)) }
    }

    /// The status inside an error that [`Status::into_result`] made.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }

    /// The nearest of the system's kinds of errors.
    pub fn kind(self) -> io::ErrorKind {
        match self.code() {
            0x081 => io::ErrorKind::StorageFull,
            0x020 | 0x182 => io::ErrorKind::ReadOnlyFilesystem,
            0x007 | 0x008 => io::ErrorKind::TimedOut,
            0x001 | 0x109 => io::ErrorKind::Unsupported,
            0x286 => io::ErrorKind::PermissionDenied,
            0x002 | 0x00b | 0x013 | 0x080 => io::ErrorKind::InvalidInput,
            0x083 => io::ErrorKind::ResourceBusy,
            0x301..=0x303 | 0x370 | 0x371 => io::ErrorKind::NotConnected,
            _ => io::ErrorKind::Other,
        }
    }

    fn name(self) -> &'static str {
        match self.code() {
            0x000 => "success",
            0x001 => "invalid opcode",
            0x002 => "invalid field",
            0x003 => "command id conflict",
            0x004 => "data transfer error",
            0x005 => "aborted: power loss",
            0x006 => "internal error",
            0x007 => "aborted on request",
            0x008 => "aborted: queue deleted",
            0x00b => "invalid namespace or format",
            0x013 => "invalid PRP offset",
            0x018 => "host id of another format",
            0x01d => "sanitize in progress",
            0x020 => "namespace is write protected",
            0x080 => "block out of range",
            0x081 => "capacity exceeded",
            0x082 => "namespace not ready",
            0x083 => "reservation conflict",
            0x084 => "format in progress",
            0x109 => "invalid log page",
            0x10b => "firmware needs a reset",
            0x182 => "write to a read-only range",
            0x280 => "write fault",
            0x281 => "unrecovered read error",
            0x282..=0x284 => "end-to-end check error",
            0x285 => "compare failure",
            0x286 => "access denied",
            0x287 => "deallocated or unwritten block",
            0x301 => "path persistently lost",
            0x302 => "path not accessible",
            0x303 => "path in transition",
            0x370 => "host path error",
            0x371 => "aborted by the driver: the device is gone or does not answer",
            _ => "error",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let retry = if self.is_final() { ", no use to repeat it" } else { "" };
        write!(f, "the device answered {} (NVMe status {:#05x}{retry})", self.name(), self.code())
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_say_what_happened() {
        let fault = Status(0x4280);
        assert_eq!((fault.code(), fault.is_final()), (Status::WRITE_FAULT.0, true));
        let error = fault.into_result().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("write fault") && text.contains("0x280"), "{text}");
        assert!(text.contains("repeat"), "{text}");
        assert_eq!(Status::of(&error), Some(fault));
        assert_eq!(Status::of(&io::Error::from_raw_os_error(libc::EIO)), None);
        assert_eq!(Status(0x81).kind(), io::ErrorKind::StorageFull);
        assert!(Status::OK.into_result().is_ok());
        assert!(Status(0x4002).is_unsupported() && !fault.is_unsupported());
    }

    #[test]
    fn every_status_is_success_or_an_error() {
        for raw in 0..=u16::MAX {
            assert_eq!(Status(raw).into_result().is_ok(), raw & CODE == 0, "{raw:#x}");
        }
    }
}
