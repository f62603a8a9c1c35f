//! The closed list of metrics, and the page that Prometheus reads.
//!
//! A page is built on request from values that others counted; nothing is registered, so a lane or
//! a device that went away is simply not on the next page.
//!
//! ```
//! use wirevault_telemetry::metrics::{Counter, Gauge, MetricsPage};
//!
//! let mut page = MetricsPage::new();
//! page.counter(Counter::LaneStoredPackets, &[("lane", "0")], 12);
//! page.gauge(Gauge::BufferPressureRatio, &[], 0.25);
//! let text = page.render();
//! assert!(text.contains("wirevault_lane_stored_packets_total{lane=\"0\"} 12\n"));
//! ```
//!
//! Names are `wirevault_<component>_<thing>_<unit>`, counters end in `_total`. Labels have few
//! values: a lane, a device, a cause. Never an address, a file or a query.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, text},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Registry,
};

use crate::{
    books::{CAUSES_MAX, Snapshot},
    histogram::LatencySnapshot,
};

/// What stands before every name.
pub(crate) const PREFIX: &str = "wirevault";

/// One enum of names for one kind of metric: variant, name without prefix, help.
macro_rules! names {
    ($(#[$doc:meta])* $kind:ident { $($variant:ident = $name:literal, $help:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $kind {
            $(#[doc = $help] $variant,)+
        }

        impl $kind {
            /// Every metric of this kind.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name without the prefix, and without a counter's `_total`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What it means, in one sentence.
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => $help),+ }
            }
        }
    };
}

names! {
    /// Values that only grow while the process runs. Prometheus sees the name with `_total`.
    Counter {
        LaneReceivedPackets = "lane_received_packets",
            "Packets the source received, drops included.";
        LaneStoredPackets = "lane_stored_packets", "Packets acknowledged, that is durable.";
        LaneShedPackets = "lane_shed_packets", "Packets left out by a configured policy.";
        PolicyShedPackets = "policy_shed_packets", "Packets that a policy or rung left out.";
        PolicyCutPackets = "policy_cut_packets", "Packets that a policy or rung cut.";
        PolicyRungEntriesCount = "policy_rung_entries_count",
            "Times that a rung of the pressure ladder was entered, by what the pressure came from.";
        LaneDroppedPackets = "lane_dropped_packets", "Packets lost, by cause.";
        LaneCutPackets = "lane_cut_packets", "Packets stored with some of their bytes cut.";
        LaneUnparsedPackets = "lane_unparsed_packets", "Packets stored that no parser understood.";
        LaneUnreadableRecords = "lane_unreadable_records", "Imported records without a known end.";
        DecapStrippedPackets = "decap_stripped_packets",
            "Packets stored without their outer headers.";
        DecapFragmentPackets = "decap_fragment_packets",
            "Fragments of tunnels' packets, stored as they came.";
        LaneDuplicatePackets = "lane_duplicate_packets",
            "Packets marked as second copies of others.";
        DecapTruncatedPackets = "decap_truncated_packets",
            "Packets without outer headers that the mirror had cut.";
        NvmeWrittenBytes = "nvme_written_bytes", "Bytes that a device accepted.";
        NvmeSyncsCount = "nvme_syncs_count", "Flushes that a device completed.";
        NvmeFailuresCount = "nvme_failures_count", "Chunks given up because a device failed.";
        IndexLostDeltas = "index_lost_deltas", "Chunk deltas lost; those chunks are scanned.";
        NicMissedPackets = "nic_missed_packets",
            "Packets that a network card had no room for; they are in no lane's books.";
        NicAllowancePackets = "nic_allowance_packets",
            "Packets that EC2 queued or dropped, by the limit of the instance that was exceeded.";
        QueryFinishedCount = "query_finished_count", "Queries finished, by result.";
        QueryMatchedPackets = "query_matched_packets", "Packets that queries returned.";
        PublishSentPeriods = "publish_sent_periods", "Periods that CloudWatch took.";
        PublishDroppedPeriods = "publish_dropped_periods",
            "Periods that CloudWatch will never have: refused, or given up for their age.";
    }
}

names! {
    /// Values that go up and down.
    Gauge {
        LaneInFlightPackets = "lane_in_flight_packets", "Packets received and not yet settled.";
        LaneRingPackets = "lane_ring_packets", "Packets waiting in the source's ring.";
        LaneWatermarkPackets = "lane_watermark_packets",
            "Packets below which all is durable or told as lost.";
        LaneUnacknowledgedSeconds = "lane_unacknowledged_seconds",
            "Age of the oldest packet not durable.";
        PolicyRungState = "policy_rung_state",
            "1 while a rung of the pressure ladder is entered, 0 while it is not.";
        LanePressureRatio = "lane_pressure_ratio",
            "Pressure on a lane, 0 to 1, by what it comes from; the largest counts.";
        SourceUpState = "source_up_state", "1 while the source delivers, 0 while it does not.";
        BufferArenaBytes = "buffer_arena_bytes", "Bytes of the chunk arena, by page size.";
        BufferFreeChunks = "buffer_free_chunks", "Chunks that can be taken.";
        BufferPressureRatio = "buffer_pressure_ratio",
            "Share of the chunks that is in use, 0 to 1.";
        NvmeStalledState = "nvme_stalled_state",
            "1 while a device has not answered for longer than it may.";
        NvmeTemperatureCelsius = "nvme_temperature_celsius", "Temperature of a volume's device.";
        NvmeUsedRatio = "nvme_used_ratio",
            "Share of a device's life that is used, as it says; may exceed 1.";
        NvmeSpareRatio = "nvme_spare_ratio", "Share of a device's spare capacity that is left.";
        NvmeHealthWarnings = "nvme_health_warnings",
            "Warnings that a volume's device gives of its health.";
        NvmeMediaErrors = "nvme_media_errors",
            "Times that a volume's device could not recover data, in its life.";
        NvmeErrorEntries = "nvme_error_entries",
            "Entries that the error log of a volume's device has had in its life.";
        NvmeLifeWrittenBytes = "nvme_life_written_bytes",
            "Bytes written to a volume's device in its life, by whomever.";
        NvmeDeviceWriteSeconds = "nvme_device_write_seconds",
            "What 99 of 100 writes to an EC2 device stayed below, inside of it.";
        NvmeThrottledSeconds = "nvme_throttled_seconds",
            "Time in which more was asked of an EC2 device than its limits allow.";
        StorageUsedBytes = "storage_used_bytes", "Bytes of segments on a volume.";
        HoldUsedBytes = "hold_used_bytes", "Bytes of copies for holds.";
        HoldBudgetBytes = "hold_budget_bytes", "Bytes that copies for holds may use.";
        HoldWaitingSegments = "hold_waiting_segments",
            "Closed segments that a hold wants and that are not copied yet.";
        SnapshotAgeSeconds = "snapshot_age_seconds",
            "Time since the last checkpoint of the state was taken.";
        BackupAgeSeconds = "backup_age_seconds",
            "Time since the newest backup of the state was ordered.";
        SnapshotFailedState = "snapshot_failed_state",
            "1 while the last checkpoint of the state could not be taken.";
        BackupOverdueSeconds = "backup_overdue_seconds",
            "Time by which the newest backup of the state is older than it should get.";
        TierKeptSegments = "tier_kept_segments", "Segments that lie in the object tier.";
        TierKeptBytes = "tier_kept_bytes", "Their bytes.";
        TierFailedState = "tier_failed_state",
            "1 while what should move to the object tier, or go from it, does not.";
        StorageQuotaBytes = "storage_quota_bytes", "Bytes that segments may use on a volume.";
        StorageLiveSegments = "storage_live_segments", "Segments on a volume.";
        StorageBadPlaces = "storage_bad_places",
            "Places of a volume whose device did not take what was written there.";
        StorageDegradedState = "storage_degraded_state",
            "1 while a volume is out of use or suspect.";
        StorageConditionState = "storage_condition_state",
            "1 for the condition that a volume is in, 0 for the others.";
        StoreConditionState = "store_condition_state",
            "1 for the condition that the store is in, 0 for the others.";
        SharedWriterState = "shared_writer_state",
            "1 while this machine writes the volume that two machines have, 0 while it does not.";
        SharedBeatSeconds = "shared_beat_seconds",
            "Time since the writer of a shared volume showed that it lives.";
        AuditAnchorAgeSeconds = "audit_anchor_age_seconds",
            "Time since a place has kept a head of the audit log that is not the head any more.";
        KeyConditionState = "key_condition_state",
            "1 for the condition that a service's key is in, 0 for the others.";
        KeyAheadKeys = "key_ahead_keys", "Epoch keys that were fetched and wait for their turn.";
        PublishWaitingPeriods = "publish_waiting_periods",
            "Periods on disk that CloudWatch has not confirmed.";
        QueryRunningQueries = "query_running_queries", "Queries running now.";
        DaemonRecordingState = "daemon_recording_state",
            "1 while the process records, 0 while it stands by for another machine.";
        DaemonStartedSeconds = "daemon_started_seconds", "Unix time at which the process started.";
        DaemonInfoState = "daemon_info_state", "Always 1; a label says the version.";
    }
}

names! {
    /// Distributions of durations.
    Histogram {
        BufferOperationSeconds = "buffer_operation_seconds",
            "Time of taking a free chunk, handing one over, giving one back.";
        NvmeWriteSeconds = "nvme_write_seconds", "Time from submitting a write to its completion.";
        NvmeSyncSeconds = "nvme_sync_seconds", "Time from submitting a flush to its completion.";
        QueryDurationSeconds = "query_duration_seconds", "Time from a query's start to its end.";
    }
}

/// Labels of one value, as given by the caller.
pub type Labels<'a> = [(&'a str, &'a str)];

/// Metrics of one moment.
#[derive(Debug, Default)]
pub struct MetricsPage {
    counters: Family<Counter, u64>,
    gauges: Family<Gauge, f64>,
    histograms: Family<Histogram, LatencySnapshot>,
}

impl MetricsPage {
    /// An empty page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the value of a counter. A second value with the same labels replaces the first.
    pub fn counter(&mut self, name: Counter, labels: &Labels<'_>, value: u64) {
        put(&mut self.counters, name, labels, value);
    }

    /// Adds the value of a gauge. A second value with the same labels replaces the first.
    pub fn gauge(&mut self, name: Gauge, labels: &Labels<'_>, value: f64) {
        put(&mut self.gauges, name, labels, value);
    }

    /// Adds a histogram. A second one with the same labels replaces the first.
    pub fn histogram(&mut self, name: Histogram, labels: &Labels<'_>, value: LatencySnapshot) {
        put(&mut self.histograms, name, labels, value);
    }

    /// Values of a counter, with their labels.
    pub(crate) fn counters(&self, name: Counter) -> impl Iterator<Item = (&OwnedLabels, u64)> {
        values(&self.counters, name)
    }

    /// Values of a gauge, with their labels.
    pub(crate) fn gauges(&self, name: Gauge) -> impl Iterator<Item = (&OwnedLabels, f64)> {
        values(&self.gauges, name)
    }

    /// Values of a histogram, with their labels.
    pub(crate) fn histograms(
        &self,
        name: Histogram,
    ) -> impl Iterator<Item = (&OwnedLabels, LatencySnapshot)> {
        values(&self.histograms, name)
    }

    /// Adds all counters of one lane. `cause` names a cause by its number; causes it does not
    /// name are left out while they are 0, and shown as `other` when they are not. `now_ns` is the
    /// Unix time that the age of the oldest unacknowledged packet is counted to.
    pub fn books(
        &mut self,
        books: &Snapshot,
        now_ns: u64,
        cause: impl Fn(usize) -> Option<&'static str>,
    ) {
        let lane = books.lane.to_string();
        let labels = [("lane", lane.as_str())];
        self.counter(Counter::LaneReceivedPackets, &labels, books.received);
        self.counter(Counter::LaneStoredPackets, &labels, books.stored);
        self.counter(Counter::LaneShedPackets, &labels, books.shed);
        self.counter(Counter::LaneCutPackets, &labels, books.cut);
        self.counter(Counter::LaneUnparsedPackets, &labels, books.unparsed);
        self.counter(Counter::LaneUnreadableRecords, &labels, books.unreadable);
        let mut other = 0;
        for at in 0..CAUSES_MAX {
            match cause(at) {
                Some(name) => {
                    let labels = [("lane", lane.as_str()), ("cause", name)];
                    self.counter(Counter::LaneDroppedPackets, &labels, books.dropped[at]);
                }
                None => other += books.dropped[at],
            }
        }
        if other > 0 {
            let labels = [("lane", lane.as_str()), ("cause", "other")];
            self.counter(Counter::LaneDroppedPackets, &labels, other);
        }
        let age_ns =
            books.unacknowledged_since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns));
        self.gauge(Gauge::LaneInFlightPackets, &labels, books.in_flight as f64);
        self.gauge(Gauge::LaneRingPackets, &labels, books.in_ring as f64);
        self.gauge(Gauge::LaneWatermarkPackets, &labels, books.watermark as f64);
        self.gauge(Gauge::LaneUnacknowledgedSeconds, &labels, age_ns as f64 / 1e9);
    }

    /// The page as OpenMetrics text; [`Exposition`](crate::exposition::Exposition) knows others.
    pub fn render(self) -> String {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        text::encode(&mut text, &registry).expect("writing to a string does not fail");
        text
    }
}

impl Collector for MetricsPage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (metric, values) in &self.counters {
            let mut family = encoder.encode_descriptor(
                metric.name(),
                metric.help(),
                None,
                MetricType::Counter,
            )?;
            for (labels, value) in values {
                with_labels(&mut family, labels, |metric| {
                    metric.encode_counter(value, None::<&Exemplar<OwnedLabels, u64>>)
                })?;
            }
        }
        for (metric, values) in &self.gauges {
            let mut family =
                encoder.encode_descriptor(metric.name(), metric.help(), None, MetricType::Gauge)?;
            for (labels, value) in values {
                with_labels(&mut family, labels, |metric| metric.encode_gauge(value))?;
            }
        }
        for (metric, values) in &self.histograms {
            let mut family = encoder.encode_descriptor(
                metric.name(),
                metric.help(),
                None,
                MetricType::Histogram,
            )?;
            for (labels, value) in values {
                with_labels(&mut family, labels, |metric| {
                    metric.encode_histogram::<OwnedLabels>(
                        value.sum_ns as f64 / 1e9,
                        value.count(),
                        &value.seconds(),
                        None,
                    )
                })?;
            }
        }
        Ok(())
    }
}

/// Encodes one value of a family; without labels it has no braces either.
fn with_labels(
    family: &mut MetricEncoder<'_>,
    labels: &OwnedLabels,
    encode: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    if labels.is_empty() { encode(family) } else { encode(&mut family.encode_family(labels)?) }
}

pub(crate) type OwnedLabels = Vec<(String, String)>;
type Family<K, V> = BTreeMap<K, BTreeMap<OwnedLabels, V>>;

fn values<K: Ord, V: Copy>(
    family: &Family<K, V>,
    name: K,
) -> impl Iterator<Item = (&OwnedLabels, V)> {
    family.get(&name).into_iter().flatten().map(|(labels, value)| (labels, *value))
}

fn put<K: Ord, V>(family: &mut Family<K, V>, name: K, labels: &Labels<'_>, value: V) {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    family.entry(name).or_default().insert(labels.collect(), value);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::histogram::Latency;

    #[test]
    fn names_follow_the_rule_and_are_unique() {
        let counters = Counter::ALL.iter().map(|metric| (metric.name(), metric.help()));
        let gauges = Gauge::ALL.iter().map(|metric| (metric.name(), metric.help()));
        let histograms = Histogram::ALL.iter().map(|metric| (metric.name(), metric.help()));
        let units = [
            "packets", "bytes", "records", "chunks", "segments", "deltas", "writes", "count",
            "keys", "places", "queries", "periods", "warnings", "errors", "entries", "seconds",
            "ratio", "celsius", "state", "level",
        ];
        let mut seen = BTreeSet::new();
        for (name, help) in counters.chain(gauges).chain(histograms) {
            assert!(name.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase()), "{name}");
            assert!(name.split('_').count() >= 3, "{name}: component, thing and unit");
            let unit = name.rsplit('_').next().expect("split gives at least one part");
            assert!(units.contains(&unit), "{name}: unknown unit {unit}");
            assert!(help.ends_with('.') && !help.starts_with(char::is_lowercase), "{name}: {help}");
            assert!(seen.insert(name), "{name} stands twice");
        }
    }

    #[test]
    fn a_page_reads_as_openmetrics() {
        let latency = Latency::new();
        latency.record_ns(1_500);
        latency.record_ns(u64::MAX / 2);
        let mut page = MetricsPage::new();
        page.counter(Counter::NvmeWrittenBytes, &[("device", "nvme\"0\\\n")], 7);
        page.counter(Counter::NvmeWrittenBytes, &[("device", "b")], 8);
        page.gauge(Gauge::BufferPressureRatio, &[], 0.5);
        page.histogram(Histogram::NvmeWriteSeconds, &[("device", "b")], latency.snapshot());
        let text = page.render();
        for line in [
            "# TYPE wirevault_nvme_written_bytes counter",
            "wirevault_nvme_written_bytes_total{device=\"b\"} 8",
            "wirevault_nvme_written_bytes_total{device=\"nvme\\\"0\\\\\\n\"} 7",
            "wirevault_buffer_pressure_ratio 0.5",
            "wirevault_nvme_write_seconds_bucket{le=\"0.000001024\",device=\"b\"} 0",
            "wirevault_nvme_write_seconds_bucket{le=\"0.000002048\",device=\"b\"} 1",
            "wirevault_nvme_write_seconds_bucket{le=\"+Inf\",device=\"b\"} 2",
            "wirevault_nvme_write_seconds_count{device=\"b\"} 2",
        ] {
            assert!(text.lines().any(|got| got == line), "{line}\nis not in\n{text}");
        }
        assert_eq!(text.matches("# TYPE wirevault_nvme_written_bytes ").count(), 1);
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_books_of_a_lane_come_with_their_causes() {
        let mut books = Snapshot { lane: 2, received: 10, stored: 4, ..Snapshot::default() };
        books.dropped[0] = 1;
        books.dropped[9] = 5;
        books.unacknowledged_since_ns = Some(1_000_000_000);
        let mut page = MetricsPage::new();
        page.books(&books, 3_500_000_000, |at| ["ring", "buffer"].get(at).copied());
        let text = page.render();
        for line in [
            "wirevault_lane_received_packets_total{lane=\"2\"} 10",
            "wirevault_lane_dropped_packets_total{lane=\"2\",cause=\"ring\"} 1",
            "wirevault_lane_dropped_packets_total{lane=\"2\",cause=\"buffer\"} 0",
            "wirevault_lane_dropped_packets_total{lane=\"2\",cause=\"other\"} 5",
            "wirevault_lane_unacknowledged_seconds{lane=\"2\"} 2.5",
        ] {
            assert!(text.lines().any(|got| got == line), "{line}\nis not in\n{text}");
        }
    }
}
