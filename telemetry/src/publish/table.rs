//! The table of what is published: name, unit, where it comes from, what it means.

use super::{MARKER, Unit};
use crate::metrics::{Counter, Gauge, Histogram};

/// One metric of the service.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name there.
    pub name: &'static str,
    /// Its unit. A ratio becomes hundredths if that is `Percent`.
    pub unit: Unit,
    /// Where its values come from.
    pub of: Of,
    /// Whether each device has its own; otherwise the appliance has one.
    pub per_device: bool,
    /// Whether each second is sent by itself; otherwise a period is summed up.
    pub each_second: bool,
    /// Whether it is 0 where nothing counts it: on a machine that stands by.
    pub always: bool,
    /// What it means, in one sentence.
    pub meaning: &'static str,
}

/// What a value is made of. Values with several labels become one.
#[derive(Debug, Clone, Copy)]
pub enum Of {
    /// What counters of this process grew by, together.
    Growth(Counter),
    /// What a gauge that counts on from before this process grew by.
    Risen(Gauge),
    /// The highest.
    Highest(Gauge),
    /// The lowest.
    Lowest(Gauge),
    /// The sum.
    Total(Gauge),
    /// The sum of the first, as a share of the sum of the second.
    Share(Gauge, Gauge),
    /// All durations, by bucket: each counts as its bucket's upper bound.
    Durations(Histogram),
    /// The duration that 99 of 100 stayed below in a second.
    P99(Histogram),
    /// 1, once in a period.
    Marker,
}

/// Of the whole appliance, a period summed up.
const fn row(name: &'static str, unit: Unit, of: Of, meaning: &'static str) -> Metric {
    Metric { name, unit, of, per_device: false, each_second: false, always: false, meaning }
}

/// As `row`, each second by itself: what is looked at when it matters.
const fn each_second(metric: Metric) -> Metric {
    Metric { each_second: true, ..metric }
}

/// As `row`, told by whoever publishes: a metric whose silence is bad.
const fn always(metric: Metric) -> Metric {
    Metric { always: true, ..metric }
}

/// As `row`, of each device.
const fn per_device(metric: Metric) -> Metric {
    Metric { per_device: true, ..metric }
}

/// Everything that is published.
pub const PUBLISHED: &[Metric] = &[
    each_second(row(
        "PacketsReceived",
        Unit::Count,
        Of::Growth(Counter::LaneReceivedPackets),
        "Packets that came in, those lost included.",
    )),
    always(each_second(row(
        "PacketsLost",
        Unit::Count,
        Of::Growth(Counter::LaneDroppedPackets),
        "Packets that came in and that the recorder lost; 0 is sent as well.",
    ))),
    each_second(row(
        "BytesWritten",
        Unit::Bytes,
        Of::Growth(Counter::NvmeWrittenBytes),
        "Bytes that the devices accepted.",
    )),
    each_second(row(
        "BufferPressure",
        Unit::Percent,
        Of::Highest(Gauge::BufferPressureRatio),
        "Share of the packet buffer that is in use.",
    )),
    each_second(row(
        "WriteLatencyP99",
        Unit::Milliseconds,
        Of::P99(Histogram::NvmeWriteSeconds),
        "What 99 of 100 writes of a second stayed below, over all devices.",
    )),
    row(
        "PacketsStored",
        Unit::Count,
        Of::Growth(Counter::LaneStoredPackets),
        "Packets that became durable.",
    ),
    row(
        "PacketsShed",
        Unit::Count,
        Of::Growth(Counter::LaneShedPackets),
        "Packets that a configured policy left out.",
    ),
    row(
        "PacketsCut",
        Unit::Count,
        Of::Growth(Counter::LaneCutPackets),
        "Packets stored with some of their bytes cut.",
    ),
    row(
        "NicDrops",
        Unit::Count,
        Of::Growth(Counter::NicMissedPackets),
        "Packets that a network card had no room for: lost before the recorder saw them.",
    ),
    row(
        "AllowanceExceeded",
        Unit::Count,
        Of::Growth(Counter::NicAllowancePackets),
        "Packets that EC2 queued or dropped because a limit of the instance was exceeded.",
    ),
    row(
        "RingPackets",
        Unit::Count,
        Of::Total(Gauge::LaneRingPackets),
        "Packets that wait in the sources' rings.",
    ),
    row(
        "UnacknowledgedAge",
        Unit::Seconds,
        Of::Highest(Gauge::LaneUnacknowledgedSeconds),
        "Age of the oldest packet that a crash could take.",
    ),
    row(
        "SourcesUp",
        Unit::None,
        Of::Lowest(Gauge::SourceUpState),
        "1 while every source delivers, 0 while one does not.",
    ),
    row(
        "Recording",
        Unit::None,
        Of::Lowest(Gauge::DaemonRecordingState),
        "1 while the recorder records, 0 while it stands by for another machine.",
    ),
    row(
        "WriterBeatAge",
        Unit::Seconds,
        Of::Lowest(Gauge::SharedBeatSeconds),
        "Time since the writer of a volume that two machines have showed that it lives.",
    ),
    row(
        "RungsEntered",
        Unit::Count,
        Of::Total(Gauge::PolicyRungState),
        "Rungs of the pressure ladder that are entered, over all lanes.",
    ),
    row(
        "VolumesDegraded",
        Unit::Count,
        Of::Total(Gauge::StorageDegradedState),
        "Volumes that are out of use or suspect.",
    ),
    row(
        "WritesFailed",
        Unit::Count,
        Of::Growth(Counter::NvmeFailuresCount),
        "Chunks that no device took.",
    ),
    row(
        "StorageUsed",
        Unit::Percent,
        Of::Share(Gauge::StorageUsedBytes, Gauge::StorageQuotaBytes),
        "Share of the quota that segments use; near 100 is normal, the oldest go then.",
    ),
    row(
        "HoldSegmentsWaiting",
        Unit::Count,
        Of::Highest(Gauge::HoldWaitingSegments),
        "Closed segments that a hold wants and that are not copied yet.",
    ),
    row(
        "CheckpointFailed",
        Unit::Count,
        Of::Highest(Gauge::SnapshotFailedState),
        "1 while no checkpoint of the state can be taken.",
    ),
    row(
        "BackupOverdue",
        Unit::Seconds,
        Of::Highest(Gauge::BackupOverdueSeconds),
        "Time by which the newest backup of the state is older than it should get.",
    ),
    row(
        "TierFailed",
        Unit::Count,
        Of::Highest(Gauge::TierFailedState),
        "1 while what should move to the object tier, or go from it, does not.",
    ),
    row(
        "AuditAnchorAge",
        Unit::Seconds,
        Of::Highest(Gauge::AuditAnchorAgeSeconds),
        "Age of the last head of the audit log in the place that is behind most; 0 if none is.",
    ),
    row(
        "EpochKeysAhead",
        Unit::Count,
        Of::Lowest(Gauge::KeyAheadKeys),
        "Epoch keys that wait for their turn, where a service keeps the store's key.",
    ),
    row(
        "DeviceLifeUsed",
        Unit::Percent,
        Of::Highest(Gauge::NvmeUsedRatio),
        "Share of its life that the most worn device has used, as it says.",
    ),
    row(
        "DeviceWarnings",
        Unit::Count,
        Of::Total(Gauge::NvmeHealthWarnings),
        "Warnings that the devices give of their health.",
    ),
    row(
        "DeviceMediaErrors",
        Unit::Count,
        Of::Risen(Gauge::NvmeMediaErrors),
        "Times that a device could not recover data.",
    ),
    row(
        "DeviceThrottled",
        Unit::Seconds,
        Of::Risen(Gauge::NvmeThrottledSeconds),
        "Time in which more was asked of EC2's devices than their limits allow.",
    ),
    row(
        "QueriesFinished",
        Unit::Count,
        Of::Growth(Counter::QueryFinishedCount),
        "Questions that ended, however they did.",
    ),
    row(
        "QueryDuration",
        Unit::Milliseconds,
        Of::Durations(Histogram::QueryDurationSeconds),
        "Time from a question's start to its end.",
    ),
    per_device(row(
        "WriteLatency",
        Unit::Milliseconds,
        Of::Durations(Histogram::NvmeWriteSeconds),
        "Time from submitting a write to its completion.",
    )),
    per_device(row(
        "FlushLatency",
        Unit::Milliseconds,
        Of::Durations(Histogram::NvmeSyncSeconds),
        "Time from submitting a flush to its completion.",
    )),
    per_device(row(
        "DeviceTemperature",
        Unit::None,
        Of::Highest(Gauge::NvmeTemperatureCelsius),
        "Temperature of a volume's device, in degrees Celsius.",
    )),
    row(
        "PeriodsDropped",
        Unit::Count,
        Of::Growth(Counter::PublishDroppedPeriods),
        "Periods that this publisher gave up: refused, or older than it keeps them.",
    ),
    each_second(row(
        MARKER,
        Unit::Count,
        Of::Marker,
        "1 for each period that arrived; nothing else tells that the publisher lives.",
    )),
];

/// The row of this name.
pub fn metric(name: &str) -> Option<&'static Metric> {
    PUBLISHED.iter().find(|metric| metric.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_say_what_they_mean() {
        let names: BTreeSet<_> = PUBLISHED.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), PUBLISHED.len());
        for metric in PUBLISHED {
            assert!(metric.name.chars().all(|it| it.is_ascii_alphanumeric()), "{}", metric.name);
            assert!(metric.meaning.ends_with('.'), "{}", metric.name);
        }
    }

    #[test]
    fn lost_packets_and_the_marker_are_told_each_second() {
        assert!(metric("PacketsLost").is_some_and(|metric| metric.each_second && metric.always));
        assert!(metric(MARKER).is_some_and(|metric| metric.each_second));
        assert!(metric("Nothing").is_none());
    }
}
