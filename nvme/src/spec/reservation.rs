//! Reservations: which hosts may write a namespace that several have (base specification, sections
//! 7.2 to 7.5 and 8.19).
//!
//! ```text
//! data of Register  0 current key(8)  8 new key(8)
//! data of Acquire   0 current key(8)  8 key of whom it is taken from(8)
//! data of Release   0 current key(8)
//! Report            0 generation(4)  4 type  5 registrants(2)  9 persistence
//!                   24 registrants, 24 bytes each:
//!                      0 controller(2)  2 bit 0: holds the reservation  8 host(8)  16 key(8)
//! with extended     64 registrants, 64 bytes each:
//! data                 0 controller(2)  2 bit 0: holds the reservation  8 key(8)  16 host(16)
//! ```

use super::command::{Command, io};
use super::{bytes_at, u16_at, u64_at};

/// Bytes of the data of Register and of Acquire.
pub const KEYS_BYTES: usize = 16;
/// Bytes of a report that are asked for: room for 63 registrants at least. EC2 attaches a volume to
/// 16 machines at most.
pub const REPORT_BYTES: usize = 4096;

/// Write Exclusive - Registrants Only: hosts that are not registered read, and do not write.
pub const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 3;

/// What Register does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Registers a key.
    Add = 0,
    /// Takes the registration away.
    Remove = 1,
    /// Registers another key, whatever the current one is.
    Replace = 2,
}

/// What Acquire does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquire {
    /// Reserves what nobody has reserved.
    Take = 0,
    /// Takes registration and reservation of another host away, and ends its commands.
    PreemptAndAbort = 2,
}

/// Bit of Register: the current key is not compared.
const IGNORE_KEY: u32 = 1 << 3;
/// Bits of Register: registrations and reservations survive a loss of the device's power.
const PERSIST: u32 = 3 << 30;

impl Command {
    /// Reservation Register, with data of [`KEYS_BYTES`]. `persist`: registrations survive a loss
    /// of the device's power from now on; else that stays as it is.
    pub fn register(namespace: u32, action: Register, persist: bool) -> Self {
        let ignore = if action == Register::Replace { IGNORE_KEY } else { 0 };
        let dword = action as u32 | ignore | if persist { PERSIST } else { 0 };
        Self::reservation(io::RESERVATION_REGISTER, namespace, dword, KEYS_BYTES)
    }

    /// Reservation Acquire, Write Exclusive - Registrants Only, with data of [`KEYS_BYTES`].
    pub fn acquire(namespace: u32, action: Acquire) -> Self {
        let dword = action as u32 | u32::from(WRITE_EXCLUSIVE_REGISTRANTS_ONLY) << 8;
        Self::reservation(io::RESERVATION_ACQUIRE, namespace, dword, KEYS_BYTES)
    }

    /// Reservation Report, of [`REPORT_BYTES`]. Extended data is for hosts whose ids have 128 bits.
    pub fn report(namespace: u32, extended: bool) -> Self {
        let dword = (REPORT_BYTES / 4 - 1) as u32;
        let report = Self::reservation(io::RESERVATION_REPORT, namespace, dword, REPORT_BYTES);
        Self { dwords: [dword, u32::from(extended), 0, 0, 0, 0], ..report }
    }

    fn reservation(opcode: u8, namespace: u32, dword: u32, data_bytes: usize) -> Self {
        let data_bytes = data_bytes as u32;
        Self { opcode, namespace, data_bytes, dwords: [dword, 0, 0, 0, 0, 0], timeout_ms: 0 }
    }
}

/// The data of Register and Acquire.
pub fn keys(current: u64, other: u64) -> [u8; KEYS_BYTES] {
    let mut data = [0; KEYS_BYTES];
    data[..8].copy_from_slice(&current.to_le_bytes());
    data[8..].copy_from_slice(&other.to_le_bytes());
    data
}

/// A host that registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registrant {
    /// Its key.
    pub key: u64,
    /// Its id.
    pub host: u128,
    /// Whether it holds the reservation.
    pub holds: bool,
}

/// What Report tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Type of the reservation; 0 where there is none.
    pub kind: u8,
    /// Hosts that registered, one for each controller that they came by.
    pub registrants: Vec<Registrant>,
}

impl Report {
    /// Reads the structure.
    pub fn decode(bytes: &[u8; REPORT_BYTES], extended: bool) -> Self {
        let layout = Layout::of(extended);
        let count = usize::from(u16_at(bytes, 5));
        let registrant = |entry: &[u8]| Registrant {
            key: u64_at(entry, layout.key),
            host: match extended {
                true => u128::from_le_bytes(bytes_at(entry, layout.host)),
                false => u64_at(entry, layout.host).into(),
            },
            holds: entry[2] & 1 != 0,
        };
        let entries = bytes[layout.bytes..].chunks_exact(layout.bytes).take(count);
        Self { kind: bytes[4], registrants: entries.map(registrant).collect() }
    }

    /// The structure. Host ids are cut to what fits.
    pub fn encode(&self, extended: bool) -> [u8; REPORT_BYTES] {
        let layout = Layout::of(extended);
        let mut bytes = [0; REPORT_BYTES];
        bytes[4] = self.kind;
        let count = self.registrants.len().min(REPORT_BYTES / layout.bytes - 1);
        bytes[5..7].copy_from_slice(&(count as u16).to_le_bytes());
        let entries = bytes[layout.bytes..].chunks_exact_mut(layout.bytes);
        for (registrant, entry) in self.registrants.iter().zip(entries) {
            let host = registrant.host.to_le_bytes();
            let host = if extended { &host[..] } else { &host[..8] };
            entry[2] = u8::from(registrant.holds);
            entry[layout.key..][..8].copy_from_slice(&registrant.key.to_le_bytes());
            entry[layout.host..][..host.len()].copy_from_slice(host);
        }
        bytes
    }
}

/// Where the fields of a registrant are.
struct Layout {
    /// Of a registrant, and of what stands before the first one.
    bytes: usize,
    key: usize,
    host: usize,
}

impl Layout {
    fn of(extended: bool) -> Self {
        match extended {
            true => Self { bytes: 64, key: 8, host: 16 },
            false => Self { bytes: 24, key: 16, host: 8 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_fields_of_the_specification() {
        let register = Command::register(7, Register::Replace, true);
        let dword = 2 | 8 | 3 << 30;
        assert_eq!((register.opcode, register.namespace, register.dwords[0]), (0x0d, 7, dword));
        let acquire = Command::acquire(7, Acquire::PreemptAndAbort);
        assert_eq!((acquire.opcode, acquire.dwords[0], acquire.data_bytes), (0x11, 2 | 3 << 8, 16));
        let report = Command::report(7, true);
        assert_eq!((report.opcode, report.dwords[..2].to_vec()), (0x0e, vec![1023, 1]));
        assert_eq!(keys(1, 2)[..9], [1, 0, 0, 0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn a_report_is_read() {
        let registrants = vec![
            Registrant { key: 5, host: 1 << 100, holds: false },
            Registrant { key: 6, host: 2, holds: true },
        ];
        let report = Report { kind: WRITE_EXCLUSIVE_REGISTRANTS_ONLY, registrants };
        let mut bytes = report.encode(true);
        assert_eq!((bytes[4], bytes[5], bytes[64 + 8], bytes[128 + 2]), (3, 2, 5, 1));
        assert_eq!(Report::decode(&bytes, true), report);
        bytes[5..7].fill(0xff);
        assert_eq!(Report::decode(&bytes, true).registrants.len(), 63, "no more than fit");
        let bytes = report.encode(false);
        assert_eq!((bytes[24 + 16], bytes[48 + 2], bytes[48 + 8]), (5, 1, 2));
        let short = Report::decode(&bytes, false);
        assert_eq!(short.registrants[1], report.registrants[1]);
    }
}
