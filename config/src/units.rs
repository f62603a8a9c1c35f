//! Sizes and durations, read from text and written as people write them.

use std::time::Duration;

use bytesize::ByteSize;

/// Reads a size: `64MiB`, `1.5GiB`, `64MB` (decimal), or a plain number of bytes.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    text.parse::<ByteSize>().ok().map(|size| size.as_u64())
}

/// Writes a size in the largest binary unit that shows it exactly: `64MiB`, `1000B`.
pub fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scale = 0;
    let mut number = bytes;
    while number != 0 && number.is_multiple_of(1024) && scale + 1 < UNITS.len() {
        number /= 1024;
        scale += 1;
    }
    format!("{number}{}", UNITS[scale])
}

/// Reads a duration: `250ms`, `1h`, `1h 30m`. A number alone has no meaning, except 0.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

/// Writes a duration: `250ms`, `1h`.
pub(crate) fn duration_text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        let cases = [
            ("64MiB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("512k", 512_000),
            ("64MB", 64_000_000),
            ("262144", 262_144),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "-1", "64 megs", "1e9", "MiB", "0x10", "."] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("1h 30m"), Some(Duration::from_secs(5400)));
        for text in ["", "250", "-1s", "1 fortnight", "1h ago"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        assert_eq!(duration_text(Duration::from_millis(250)), "250ms");
        assert_eq!(duration_text(Duration::from_secs(3600)), "1h");
    }

    proptest! {
        #[test]
        fn a_size_reads_back(bytes: u64) {
            prop_assert_eq!(parse_size(&size_text(bytes)), Some(bytes));
        }

        #[test]
        fn a_duration_reads_back(ns in 0..u64::MAX / 2) {
            let duration = Duration::from_nanos(ns);
            prop_assert_eq!(parse_duration(&duration_text(duration)), Some(duration));
        }
    }
}
