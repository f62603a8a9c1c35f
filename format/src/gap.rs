//! Gaps: counted, timestamped, explained absences of packets, written into the data where they
//! happened.

use std::fmt;

use crate::bytes::{put, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::local::{self, Kind};
use crate::{FormatError, PolicyName};

/// Bytes of a gap block.
pub const GAP_BYTES: usize = 80;
/// Number of causes; counters by cause are arrays of this length.
pub const CAUSES: usize = 16;
/// Where the name of a policy stands.
const POLICY_AT: usize = 64;
/// Stands for "not known" in the packet count of a gap.
const UNKNOWN: u64 = u64::MAX;

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why packets are absent.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Cause { $($(#[$doc])* $name = $number,)* }

        impl Cause {
            /// Every cause, in the order of its number.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name that status, summaries and metrics use.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

causes! {
    /// The kernel's packet ring was full: the lane was not scheduled in time.
    RingOverflow = 0, "ring_overflow";
    /// No chunk buffer was free: the device is slower than the wire.
    NoBuffer = 1, "no_buffer";
    /// The interface was down or absent, or no sender was connected.
    InterfaceDown = 2, "interface_down";
    /// A device failed while it held packets that were not yet durable.
    DeviceFailed = 3, "device_failed";
    /// The rest of an imported file, or of a sender's stream, could not be read.
    ImportUnreadable = 4, "import_unreadable";
    /// No daemon was running.
    NotRecording = 5, "not_recording";
    /// The daemon ended without closing its segments; what was not yet durable is lost.
    CrashTail = 6, "crash_tail";
    /// The time lies before what the quota still keeps.
    Retention = 7, "retention";
    /// The time lies after the last packet that is durable.
    NotYetDurable = 8, "not_yet_durable";
    /// Stored bytes fail their check.
    Damaged = 9, "damaged";
    /// A segment's file is absent.
    MissingSegment = 10, "missing_segment";
    /// A volume cannot be opened.
    MissingVolume = 11, "missing_volume";
    /// The key does not open the segment.
    WrongKey = 12, "wrong_key";
    /// Packets left out by a configured capture filter or policy.
    Shed = 13, "shed";
    /// A mark and no absence: a rung of the pressure ladder was entered. What it left out is told
    /// as `shed`, with the name of the rung.
    Pressure = 14, "pressure";
    /// A segment lies in the object tier only, and that does not give it now.
    TierUnreachable = 15, "tier_unreachable";
}

impl Cause {
    /// The cause with that number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Place of this cause in an array of [`CAUSES`] counters.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// What the pressure came from for which a rung was entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum PressureCause {
    /// Chunk buffers ran short.
    Buffer = 1,
    /// The device was late with what it had been given.
    Queue = 2,
    /// No segment could be opened: there was no room, or no volume took writes.
    Disk = 3,
}

impl PressureCause {
    /// Every cause, in the order of its number.
    pub const ALL: [Self; 3] = [Self::Buffer, Self::Queue, Self::Disk];

    /// Name in status, metrics and log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Buffer => "buffer",
            Self::Queue => "queue",
            Self::Disk => "disk",
        }
    }

    /// Place of this cause in an array of all.
    pub const fn index(self) -> usize {
        self as usize - 1
    }

    /// The cause with that number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| *cause as u16 == number)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One absence of packets, on one lane.
///
/// Layout, [`GAP_BYTES`] bytes, little-endian: common start (see [`crate::local`]); 20 cause u16;
/// 22 [`PressureCause`] of a mark, else zero u16; 24 `from_ns` u64; 32 `until_ns` u64 (all ones:
/// still open); 40 packets u64 (all ones: not known); 48 packets lost to this cause, or left out by
/// this policy, in this run and lane so far u64; 56 stream sequence of the next packet u64; 64 name
/// of the policy, 12 bytes, zeros: none; 76 trailing length u32. With a name the version is 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub cause: Cause,
    /// First nanosecond (Unix time) in which packets may be absent.
    pub from_ns: u64,
    /// First nanosecond after the absence; `None` while it lasts.
    pub until_ns: Option<u64>,
    /// Packets absent, if that is known; of a rung that was left, those it left out or cut.
    pub packets: Option<u64>,
    /// Packets lost to this cause, or left out by this policy, in this run and lane, this gap
    /// included.
    pub cumulative: u64,
    /// Stream sequence number of the first packet after the gap.
    pub sequence: u64,
    /// The policy that left them out; `None` for the capture filter and for all other causes.
    pub policy: Option<PolicyName>,
    /// Of a mark: what the pressure came from. `None` for all else, and for marks of releases that
    /// did not tell.
    pub pressure: Option<PressureCause>,
}

impl Gap {
    /// Writes the block; `buf` has [`GAP_BYTES`].
    pub fn encode(&self, buf: &mut [u8; GAP_BYTES]) {
        buf.fill(0);
        local::put_start(buf, Kind::Gap, GAP_BYTES as u32, 0);
        put_u16(buf, 20, self.cause as u16);
        put_u16(buf, 22, self.pressure.map_or(0, |cause| cause as u16));
        put_u64(buf, 24, self.from_ns);
        put_u64(buf, 32, self.until_ns.unwrap_or(u64::MAX));
        put_u64(buf, 40, self.packets.unwrap_or(UNKNOWN));
        put_u64(buf, 48, self.cumulative);
        put_u64(buf, 56, self.sequence);
        put(buf, POLICY_AT, &PolicyName::bytes(self.policy));
        if self.policy.is_some() {
            buf[local::VERSION_AT] = local::VERSION_NAMED;
        }
        put_u32(buf, GAP_BYTES - 4, GAP_BYTES as u32);
    }

    /// Reads a block.
    ///
    /// # Errors
    /// As [`local::start`]; `Field` if the cause is unknown, the times are reversed or the policy
    /// has no proper name.
    pub fn decode(buf: &[u8]) -> Result<Self, FormatError> {
        let structure = "gap";
        if buf.len() < GAP_BYTES {
            return Err(FormatError::Short { structure, have: buf.len(), need: GAP_BYTES });
        }
        local::expect(buf, Kind::Gap, structure)?;
        let field = |field, value| FormatError::Field { structure, field, value };
        let length = u32_at(buf, GAP_BYTES - 4);
        if length != GAP_BYTES as u32 {
            return Err(field("trailing length", u64::from(length)));
        }
        let name = buf[POLICY_AT..].first_chunk().ok_or(field("policy", 0))?;
        let policy =
            PolicyName::from_bytes(*name).map_err(|()| field("policy", u64_at(buf, POLICY_AT)))?;
        let number = u16_at(buf, 20);
        let cause = Cause::from_number(number).ok_or(field("cause", u64::from(number)))?;
        let (from_ns, until_ns) = (u64_at(buf, 24), u64_at(buf, 32));
        if until_ns < from_ns {
            return Err(field("end before start", until_ns));
        }
        Ok(Self {
            cause,
            from_ns,
            until_ns: (until_ns != u64::MAX).then_some(until_ns),
            packets: Some(u64_at(buf, 40)).filter(|n| *n != UNKNOWN),
            cumulative: u64_at(buf, 48),
            sequence: u64_at(buf, 56),
            policy,
            pressure: PressureCause::from_number(u16_at(buf, 22)),
        })
    }
}

const _: () = assert!(Cause::ALL.len() <= CAUSES, "every cause has a counter");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_one_to_one() {
        for (number, cause) in Cause::ALL.iter().enumerate() {
            assert_eq!(cause.index(), number);
            assert_eq!(Cause::from_number(number as u16), Some(*cause));
        }
    }

    #[test]
    fn a_gap_reads_back() {
        let gap = Gap {
            cause: Cause::NoBuffer,
            from_ns: 5,
            until_ns: None,
            packets: Some(17),
            cumulative: 20,
            sequence: 99,
            policy: None,
            pressure: None,
        };
        let mut buf = [0; GAP_BYTES];
        gap.encode(&mut buf);
        assert_eq!((Gap::decode(&buf), buf[17]), (Ok(gap), 2));
        for (number, cause) in (1..).zip(PressureCause::ALL) {
            let mark = Gap { cause: Cause::Pressure, pressure: Some(cause), ..gap };
            mark.encode(&mut buf);
            assert_eq!((Gap::decode(&buf), buf[22]), (Ok(mark), number));
        }
        let named = Gap { policy: PolicyName::new("backups"), ..gap };
        named.encode(&mut buf);
        assert_eq!((Gap::decode(&buf), buf[17]), (Ok(named), 3));
        buf[POLICY_AT] = 0;
        assert!(Gap::decode(&buf).is_err(), "a name that begins with a zero");
    }
}
