//! Log page 02h: health (base specification, section 5.16.1.3).

use super::{u16_at, u32_at, u128_at};

/// Bytes of the page.
pub const SMART_BYTES: usize = 512;

/// Bytes of a data unit: 1000 blocks of 512.
const DATA_UNIT_BYTES: u128 = 512_000;

/// What a device says of its health. Counters are of its whole life. Instance-store disks may
/// answer with zeros; such figures are shown as reported and decide nothing.
///
/// ```text
/// byte   0 warning   1 temperature(2)   3 spare   4 spare threshold   5 used
///       32 units read(16)   48 units written(16)   64 reads(16)   80 writes(16)
///       96 busy minutes(16)   112 power cycles(16)   128 hours(16)   144 unsafe shutdowns(16)
///      160 media errors(16)   176 error log entries(16)   192 warning minutes(4)
///      196 critical minutes(4)   200 sensors(2) x 8   216 throttled x 2(4)
///      224 its seconds x 2(4)
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SmartLog {
    /// What the device warns of.
    pub warning: Warning,
    /// Composite temperature in kelvin; 0 where there is none.
    pub kelvin: u16,
    /// Spare capacity left, in percent.
    pub spare_percent: u8,
    /// Spare capacity below which the device warns, in percent.
    pub spare_threshold_percent: u8,
    /// Life used, in percent of what the maker expects; may exceed 100, 255 stands for more.
    pub used_percent: u8,
    /// Bytes read by the host.
    pub read_bytes: u64,
    /// Bytes written by the host.
    pub written_bytes: u64,
    /// Commands that read.
    pub reads: u64,
    /// Commands that wrote.
    pub writes: u64,
    /// Minutes in which commands were under way.
    pub busy_minutes: u64,
    /// Times that it was switched on.
    pub power_cycles: u64,
    /// Hours that it was on.
    pub power_on_hours: u64,
    /// Times that power went without notice.
    pub unsafe_shutdowns: u64,
    /// Times that data could not be recovered.
    pub media_errors: u64,
    /// Entries that the error log ever had.
    pub error_entries: u64,
    /// Minutes at or above the warning temperature.
    pub warning_minutes: u32,
    /// Minutes at or above the critical temperature.
    pub critical_minutes: u32,
    /// Temperatures of single sensors in kelvin; 0 where there is none.
    pub sensors_kelvin: [u16; 8],
    /// Seconds that the device spent slowed down for heat, lightly and heavily.
    pub throttled_seconds: [u32; 2],
}

/// Bits of the critical warning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Warning(pub u8);

impl Warning {
    const NAMES: [&'static str; 6] = [
        "spare capacity is below its threshold",
        "temperature is out of its bounds",
        "reliability is degraded by media or internal errors",
        "the medium is read-only",
        "the backup of volatile memory failed",
        "persistent memory is unreliable",
    ];

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the medium takes no more writes.
    pub fn is_read_only(self) -> bool {
        self.0 & 8 != 0
    }

    /// Whether it warns of anything but temperature.
    pub fn is_failing(self) -> bool {
        self.0 & !2 != 0
    }

    /// Each warning in words.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let known = Self::NAMES.into_iter().enumerate();
        let known = known.filter(move |(bit, _)| self.0 >> bit & 1 == 1).map(|(_, name)| name);
        known.chain((self.0 >> 6 != 0).then_some("a warning that is not in the specification"))
    }
}

impl SmartLog {
    /// Reads the page. Counters beyond 64 bits stand at the largest number.
    pub fn decode(bytes: &[u8; SMART_BYTES]) -> Self {
        let count = |at| u64::try_from(u128_at(bytes, at)).unwrap_or(u64::MAX);
        let data = |at| {
            let sum = u128_at(bytes, at).saturating_mul(DATA_UNIT_BYTES);
            u64::try_from(sum).unwrap_or(u64::MAX)
        };
        Self {
            warning: Warning(bytes[0]),
            kelvin: u16_at(bytes, 1),
            spare_percent: bytes[3],
            spare_threshold_percent: bytes[4],
            used_percent: bytes[5],
            read_bytes: data(32),
            written_bytes: data(48),
            reads: count(64),
            writes: count(80),
            busy_minutes: count(96),
            power_cycles: count(112),
            power_on_hours: count(128),
            unsafe_shutdowns: count(144),
            media_errors: count(160),
            error_entries: count(176),
            warning_minutes: u32_at(bytes, 192),
            critical_minutes: u32_at(bytes, 196),
            sensors_kelvin: std::array::from_fn(|n| u16_at(bytes, 200 + 2 * n)),
            throttled_seconds: [u32_at(bytes, 224), u32_at(bytes, 228)],
        }
    }

    /// Composite temperature in degrees Celsius, if the device tells one.
    pub fn celsius(&self) -> Option<i32> {
        celsius(self.kelvin)
    }
}

/// Kelvin as devices tell them, in degrees Celsius; nothing for 0.
pub fn celsius(kelvin: u16) -> Option<i32> {
    (kelvin != 0).then(|| i32::from(kelvin) - 273)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_page_is_read() {
        let mut bytes = [0; SMART_BYTES];
        bytes[..6].copy_from_slice(&[4, 0x43, 1, 100, 10, 3]);
        bytes[32] = 2;
        bytes[48..50].copy_from_slice(&[0, 1]);
        bytes[160] = 7;
        bytes[192..196].copy_from_slice(&90u32.to_le_bytes());
        bytes[202..204].copy_from_slice(&300u16.to_le_bytes());
        bytes[228] = 5;
        let log = SmartLog::decode(&bytes);
        assert_eq!(log.warning.names().collect::<Vec<_>>(), [Warning::NAMES[2]]);
        assert_eq!((log.kelvin, log.celsius()), (323, Some(50)));
        assert_eq!(
            (log.spare_percent, log.spare_threshold_percent, log.used_percent),
            (100, 10, 3)
        );
        assert_eq!((log.read_bytes, log.written_bytes), (1_024_000, 131_072_000));
        assert_eq!((log.media_errors, log.warning_minutes), (7, 90));
        assert_eq!((log.sensors_kelvin[1], log.throttled_seconds), (300, [0, 5]));
        assert_eq!(celsius(0), None);
    }

    #[test]
    fn warnings_have_words() {
        assert_eq!(Warning(0).names().count(), 0);
        assert!(Warning(0).is_empty() && Warning(8).is_read_only());
        assert_eq!(Warning(0xff).names().count(), 7);
    }

    proptest! {
        /// Counters are read from their own 16 bytes, and stop at the largest number.
        #[test]
        fn counters_do_not_wrap(value: u128, place in 0usize..10) {
            let mut bytes = [0; SMART_BYTES];
            let at = [32, 48, 64, 80, 96, 112, 128, 144, 160, 176][place];
            bytes[at..at + 16].copy_from_slice(&value.to_le_bytes());
            let log = SmartLog::decode(&bytes);
            let counters = [
                log.read_bytes,
                log.written_bytes,
                log.reads,
                log.writes,
                log.busy_minutes,
                log.power_cycles,
                log.power_on_hours,
                log.unsafe_shutdowns,
                log.media_errors,
                log.error_entries,
            ];
            let unit = if place < 2 { DATA_UNIT_BYTES } else { 1 };
            let expected = value.saturating_mul(unit).min(u128::from(u64::MAX)) as u64;
            for (n, counter) in counters.into_iter().enumerate() {
                prop_assert_eq!(counter, if n == place { expected } else { 0 });
            }
        }
    }
}
