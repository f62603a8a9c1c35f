//! Points in time as people write them, and as answers state them.
//!
//! A time without an offset is local: the zone is the caller's, so that a service can use its
//! user's. A local time that a clock change skips or repeats is resolved as RFC 5545 does: the
//! earlier offset.

use jiff::civil;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

/// A text is not a point in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a time{why}; possible are `5m ago`, `now`, `10:00`, `2026-11-21`, \
     `2026-11-21 10:00`, `2026-11-21T10:00:00.5Z`, `2026-11-21T10:00+01:00` and `@1795255200`"
)]
pub struct TimeError {
    text: String,
    why: String,
}

/// Reads a point in time. Returns Unix time in nanoseconds.
///
/// `now_ns` is what `ago` and bare times of day refer to; `zone` holds for times that state no
/// offset.
///
/// # Errors
/// The text is none of the forms named in the error, or lies before 1970 or after 2554.
pub fn parse(text: &str, now_ns: u64, zone: &TimeZone) -> Result<u64, TimeError> {
    let wrong = |why: &str| TimeError { text: text.to_owned(), why: why.to_owned() };
    let now = timestamp(now_ns).ok_or_else(|| wrong(": the clock is out of range"))?;
    let words = text.trim();
    let found = point(words, &now.to_zoned(zone.clone())).map_err(|why| wrong(&why))?;
    u64::try_from(found.as_nanosecond()).map_err(|_| wrong(": it lies outside 1970 to 2554"))
}

/// The machine's zone.
pub fn local_zone() -> TimeZone {
    TimeZone::system()
}

/// A time in UTC, with as many decimals as it needs.
pub fn rfc3339(ns: u64) -> String {
    // The years until 2554 lie within what a timestamp can be.
    timestamp(ns).map_or_else(|| format!("@{ns}ns"), |time| time.to_string())
}

/// Day and hour in UTC, as programs that look for partitions in paths know them:
/// `day=2026-01-31/hour=07`.
pub fn partition(ns: u64) -> String {
    let of = |time: Timestamp| time.strftime("day=%Y-%m-%d/hour=%H").to_string();
    timestamp(ns).map_or_else(|| "day=none/hour=none".to_owned(), of)
}

/// A time of day in `zone` with nanoseconds, as tcpdump writes it before a packet.
pub fn time_of_day(ns: u64, zone: &TimeZone) -> String {
    timestamp(ns).map_or_else(
        || format!("@{ns}ns"),
        |time| time.to_zoned(zone.clone()).strftime("%H:%M:%S.%9f").to_string(),
    )
}

fn timestamp(ns: u64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(i128::from(ns)).ok()
}

fn point(words: &str, now: &Zoned) -> Result<Timestamp, String> {
    let in_zone = |time: civil::DateTime| {
        let zoned = time.to_zoned(now.time_zone().clone());
        zoned.map(|zoned| zoned.timestamp()).map_err(|error| format!(": {error}"))
    };
    let midnight = civil::Time::midnight();
    match words {
        "now" => return Ok(now.timestamp()),
        "today" => return in_zone(now.date().to_datetime(midnight)),
        "yesterday" => {
            let day = now.date().yesterday().map_err(|error| format!(": {error}"))?;
            return in_zone(day.to_datetime(midnight));
        }
        _ => {}
    }
    if let Some(epoch) = epoch(words) {
        return epoch;
    }
    if let Ok(instant) = words.parse::<Timestamp>() {
        return Ok(instant);
    }
    if let Ok(time) = words.parse::<civil::DateTime>() {
        return in_zone(time);
    }
    if words.len() <= 18 && words.as_bytes().get(2) == Some(&b':') {
        let time: civil::Time = words.parse().map_err(|_| String::new())?;
        return in_zone(now.date().to_datetime(time));
    }
    let span: Span = words.parse().map_err(|_| String::new())?;
    if span.is_positive() {
        return Err(format!(": it is a length of time, did you mean `{words} ago`?"));
    }
    let then = now.checked_add(span).map_err(|error| format!(": {error}"))?;
    Ok(then.timestamp())
}

/// Seconds since 1970, with up to nine decimals, behind an `@`; nine digits and more also without.
fn epoch(words: &str) -> Option<Result<Timestamp, String>> {
    let digits = words.strip_prefix('@');
    let bare = words.len() >= 9 && words.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let digits = digits.or(bare.then_some(words))?;
    let (seconds, decimals) = digits.split_once('.').unwrap_or((digits, "0"));
    let wrong = || Err(": seconds with at most nine decimals are expected".to_owned());
    let whole = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !whole(seconds) || !whole(decimals) || decimals.len() > 9 {
        return Some(wrong());
    }
    let (Ok(seconds), Ok(ns)) = (seconds.parse(), format!("{decimals:0<9}").parse()) else {
        return Some(wrong());
    };
    Some(Timestamp::new(seconds, ns).map_err(|_| ": it is out of range".to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR_NS: u64 = 3_600_000_000_000;

    fn vienna() -> TimeZone {
        TimeZone::get("Europe/Vienna").unwrap()
    }

    fn at(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_nanosecond()).unwrap()
    }

    #[test]
    fn partitions_are_of_utc_and_sort() {
        assert_eq!(partition(1_700_000_000_000_000_000), "day=2023-11-14/hour=22");
        assert_eq!(partition(0), "day=1970-01-01/hour=00");
    }

    #[test]
    fn every_form_is_read() {
        let now = "2026-11-21T10:30:00Z";
        for (text, expected) in [
            ("now", now),
            ("5m ago", "2026-11-21T10:25:00Z"),
            ("1h30m ago", "2026-11-21T09:00:00Z"),
            ("-5m", "2026-11-21T10:25:00Z"),
            ("2 days ago", "2026-11-19T10:30:00Z"),
            ("10:00", "2026-11-21T09:00:00Z"),
            ("10:00:00.25", "2026-11-21T09:00:00.25Z"),
            ("2026-11-21", "2026-11-20T23:00:00Z"),
            ("today", "2026-11-20T23:00:00Z"),
            ("yesterday", "2026-11-19T23:00:00Z"),
            ("2026-11-21 10:00", "2026-11-21T09:00:00Z"),
            ("2026-07-01 10:00", "2026-07-01T08:00:00Z"),
            (" 2026-11-21T10:00:00.123456789Z ", "2026-11-21T10:00:00.123456789Z"),
            ("2026-11-21T10:00+05:30", "2026-11-21T04:30:00Z"),
            ("@1795255200", "2026-11-21T10:00:00Z"),
            ("@1795255200.5", "2026-11-21T10:00:00.5Z"),
            ("1795255200", "2026-11-21T10:00:00Z"),
            ("@0", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(parse(text, at(now), &vienna()), Ok(at(expected)), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused_with_a_way_out() {
        for text in [
            "",
            "x",
            "5m",
            "2026",
            "25:00",
            "@-5",
            "@",
            "@1.",
            "@1.0000000001",
            "1969-12-31",
            "@99999999999999999999",
            "9999-01-01",
            "in 5m",
            "é:00",
        ] {
            let error = parse(text, at("2026-11-21T10:30:00Z"), &TimeZone::UTC).unwrap_err();
            assert!(error.to_string().contains("possible are"), "{text}: {error}");
        }
        let error = parse("5m", at("2026-11-21T10:30:00Z"), &TimeZone::UTC).unwrap_err();
        assert!(error.to_string().contains("did you mean `5m ago`"), "{error}");
    }

    #[test]
    fn clock_changes_take_the_earlier_offset() {
        let parse = |text| parse(text, at("2026-11-21T10:30:00Z"), &vienna()).unwrap();
        assert_eq!(parse("2026-10-25 02:30"), at("2026-10-25T00:30:00Z"));
        assert_eq!(parse("2026-03-29 02:30"), at("2026-03-29T01:30:00Z"));
        let day = parse("2026-10-26") - parse("2026-10-25");
        assert_eq!(day, 25 * HOUR_NS);
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(ns in any::<u64>()) {
            prop_assert_eq!(parse(&rfc3339(ns), 0, &TimeZone::UTC), Ok(ns));
        }

        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,20}", now in any::<u64>()) {
            let _ = parse(&text, now, &TimeZone::UTC);
        }
    }

    #[test]
    fn a_time_of_day_has_nine_decimals() {
        let time = time_of_day(at("2026-11-21T10:00:00.5Z"), &vienna());
        assert_eq!(time, "11:00:00.500000000");
    }
}
