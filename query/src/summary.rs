//! What an answer says of itself: what was asked, what was found, and what may be missing.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_format::{Cause, LinkType};

use crate::time::rfc3339;

/// Gaps and damages a summary lists at most; the others are counted.
pub const LIST_MAX: usize = 1000;
/// Gaps and damages that the text for people lists at most.
const TEXT_LINES_MAX: usize = 10;

/// A point in time, written both ways: RFC 3339 in UTC, and Unix time in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Instant {
    /// RFC 3339, UTC, with as many decimals as needed.
    pub utc: String,
    /// Nanoseconds since 1970.
    pub ns: u64,
}

impl From<u64> for Instant {
    fn from(ns: u64) -> Self {
        Self { utc: rfc3339(ns), ns }
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.utc)
    }
}

/// A time within the window for which packets may be absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GapLine {
    /// First nanosecond in which packets may be absent.
    pub from: Instant,
    /// First nanosecond after it.
    pub until: Instant,
    /// Lane, if the gap is of one lane only.
    pub lane: Option<u16>,
    /// Packets absent, if that is known.
    pub packets: Option<u64>,
    /// Why.
    #[serde(with = "cause_name")]
    #[schemars(with = "String")]
    pub cause: Cause,
    /// The configured policy that left them out; nothing for the capture filter and other causes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

/// Stored bytes within the window that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DamageLine {
    /// Name of the segment.
    pub segment: String,
    /// Chunk, if it is one.
    pub chunk: Option<u32>,
    /// First nanosecond that the packets may have.
    pub from: Instant,
    /// First nanosecond after them.
    pub until: Instant,
    /// What was found.
    pub what: String,
}

/// Statement at the end of an answer.
///
/// Complete means: no gap, nothing left out by a filter or policy and no damage touches the window
/// within the coverage, and the window does not explicitly reach outside the coverage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub struct Summary {
    /// Nothing is missing in the window, as far as it was covered.
    pub complete: bool,
    /// Packets found.
    pub packets: u64,
    /// Captured bytes of them.
    pub bytes: u64,
    /// The answer was cut, by the limit or by its receiver; the summary speaks of the part before
    /// the cut. With a limit of 0 there is no such part, and the answer is incomplete.
    pub limit_reached: bool,
    /// Start asked for, if one was.
    pub since: Option<Instant>,
    /// End asked for, if one was. The window is half-open.
    pub until: Option<Instant>,
    /// Start of the part of the window that the store covers.
    pub covered_from: Option<Instant>,
    /// End of that part.
    pub covered_until: Option<Instant>,
    /// What is missing, by time.
    pub gaps: Vec<GapLine>,
    /// Gaps beyond those listed.
    pub gaps_not_listed: u64,
    /// What is damaged, by time.
    pub damaged: Vec<DamageLine>,
    /// Damages beyond those listed.
    pub damaged_not_listed: u64,
    /// Volumes that cannot be opened: path and reason.
    pub missing_volumes: Vec<String>,
    /// What made the query slower without making the answer worse, such as an index that could not
    /// be used.
    pub warnings: Vec<String>,
    /// Link types left out on request, because the filter does not fit them.
    pub skipped_link_types: Vec<String>,
    /// Segments whose times touch the window.
    pub segments_considered: u64,
    /// Segments of which at least one chunk was read.
    pub segments_read: u64,
    /// Chunks of the segments considered that lie in the window.
    pub chunks_considered: u64,
    /// Chunks read.
    pub chunks_read: u64,
    /// Bytes that came from the object tier, indexes included.
    #[serde(default)]
    pub tier_bytes: u64,
}

impl Summary {
    /// The summary as JSON of no more than `bytes_max` bytes, with fewer gaps and damages listed
    /// where it must be.
    pub fn json_within(&self, bytes_max: usize) -> String {
        let mut shown = self.clone();
        loop {
            // Numbers, texts and lists always serialise.
            let json = serde_json::to_string(&shown).unwrap_or_default();
            let listed = shown.gaps.len() + shown.damaged.len() + shown.warnings.len();
            if json.len() <= bytes_max || listed == 0 {
                return json;
            }
            let (gaps, damaged) = (shown.gaps.len() / 2, shown.damaged.len() / 2);
            shown.gaps_not_listed += (shown.gaps.len() - gaps) as u64;
            shown.damaged_not_listed += (shown.damaged.len() - damaged) as u64;
            shown.gaps.truncate(gaps);
            shown.damaged.truncate(damaged);
            shown.warnings.truncate(shown.warnings.len() / 2);
        }
    }

    /// It was cut before the first packet.
    fn is_untouched(&self) -> bool {
        self.limit_reached && self.packets == 0 && self.covered_from.is_none()
    }

    pub(crate) fn skipped(&mut self, link_type: LinkType) {
        self.skipped_link_types.push(link_type.to_string());
    }
}

impl fmt::Display for Summary {
    /// One line if all is well, else one more for every thing that is missing, up to a few.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = |n: u64| if n == 1 { "" } else { "s" };
        write!(f, "{} packet{}, {} bytes; ", self.packets, s(self.packets), self.bytes)?;
        f.write_str(if self.complete { "complete" } else { "INCOMPLETE" })?;
        match (&self.covered_from, &self.covered_until) {
            (Some(from), Some(until)) => write!(f, " from {from} to {until}")?,
            _ if self.is_untouched() => f.write_str(": with a limit of 0 nothing was looked at")?,
            _ => f.write_str(", the store covers nothing of the window")?,
        }
        if self.limit_reached && !self.is_untouched() {
            f.write_str("; cut there, more may follow")?;
        }
        for link_type in &self.skipped_link_types {
            write!(f, "\n  left out: link type {link_type}, which the filter does not fit")?;
        }
        for gap in self.gaps.iter().take(TEXT_LINES_MAX) {
            write!(f, "\n  gap from {} to {}: {}", gap.from, gap.until, gap.cause)?;
            if let Some(policy) = &gap.policy {
                write!(f, " by {policy}")?;
            }
            if let Some(lane) = gap.lane {
                write!(f, ", lane {lane}")?;
            }
            match gap.packets {
                Some(packets) => write!(f, ", {packets} packet{}", s(packets))?,
                None => f.write_str(", packets unknown")?,
            }
        }
        more(f, "gaps", self.gaps.len(), self.gaps_not_listed)?;
        for damage in self.damaged.iter().take(TEXT_LINES_MAX) {
            write!(f, "\n  damaged: {}", damage.what)?;
            if !damage.what.contains(&damage.segment) {
                write!(f, " (segment {})", damage.segment)?;
            }
        }
        more(f, "damages", self.damaged.len(), self.damaged_not_listed)?;
        for volume in &self.missing_volumes {
            write!(f, "\n  missing volume: {volume}")?;
        }
        for warning in self.warnings.iter().take(TEXT_LINES_MAX) {
            write!(f, "\n  note: {warning}")?;
        }
        Ok(())
    }
}

fn more(f: &mut fmt::Formatter<'_>, what: &str, listed: usize, not_listed: u64) -> fmt::Result {
    let left = listed.saturating_sub(TEXT_LINES_MAX) as u64 + not_listed;
    if left > 0 {
        write!(f, "\n  and {left} more {what}")?;
    }
    Ok(())
}

/// Causes by their name.
mod cause_name {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use wirevault_format::Cause;

    pub(super) fn serialize<S: Serializer>(cause: &Cause, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(cause.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Cause, D::Error> {
        let name = String::deserialize(from)?;
        let found = Cause::ALL.iter().find(|cause| cause.name() == name).copied();
        found.ok_or_else(|| de::Error::custom(format!("`{name}` is not the cause of a gap")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(gaps: usize) -> Summary {
        let gap = |n: usize| GapLine {
            from: Instant::from(n as u64 * 1000),
            until: Instant::from(n as u64 * 1000 + 5),
            lane: Some(3),
            packets: None,
            cause: Cause::RingOverflow,
            policy: (n == 0).then(|| "backups".to_owned()),
        };
        Summary {
            packets: 1,
            bytes: 60,
            covered_from: Some(Instant::from(0)),
            covered_until: Some(Instant::from(1_500_000_000)),
            gaps: (0..gaps).map(gap).collect(),
            ..Summary::default()
        }
    }

    #[test]
    fn json_reads_back_and_names_causes() {
        let json = summary(1).json_within(usize::MAX);
        assert!(
            json.contains(r#""packets":null,"cause":"ring_overflow","policy":"backups""#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<Summary>(&json).unwrap(), summary(1));
        assert!(serde_json::from_str::<Summary>(&json.replace("ring_", "wing_")).is_err());
    }

    #[test]
    fn json_is_cut_to_its_room_and_says_so() {
        let json = summary(1000).json_within(20_000);
        assert!(json.len() <= 20_000);
        let read: Summary = serde_json::from_str(&json).unwrap();
        assert_eq!(read.gaps.len() as u64 + read.gaps_not_listed, 1000);
        assert!(read.gaps.len() > 50);
    }

    #[test]
    fn text_is_one_line_if_all_is_well() {
        let mut all_well = summary(0);
        all_well.complete = true;
        assert_eq!(
            all_well.to_string(),
            "1 packet, 60 bytes; complete from 1970-01-01T00:00:00Z to 1970-01-01T00:00:01.5Z"
        );
        let text = summary(12).to_string();
        assert!(text.starts_with("1 packet, 60 bytes; INCOMPLETE from"), "{text}");
        assert!(
            text.contains(
                "\n  gap from 1970-01-01T00:00:00Z to 1970-01-01T00:00:00.000000005Z: \
            ring_overflow by backups, lane 3, packets unknown\n"
            ),
            "{text}"
        );
        assert!(text.ends_with("\n  and 2 more gaps"), "{text}");
    }
}
