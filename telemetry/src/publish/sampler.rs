//! From metrics pages, one a second, to periods.
//!
//! Counters are told by what they grew by since the page before, and begin at 0 with the process,
//! so that the sum over all periods of all runs is what was counted, to the unit. Gauges are told
//! as they are. Which second a page belongs to is the caller's word; nothing is lost if a page
//! comes late, the growth is told with it.

use std::collections::{BTreeMap, HashMap};

use super::table::{Metric, Of, PUBLISHED};
use super::{Period, Series, Unit, Values};
use crate::histogram::{BUCKETS, LatencySnapshot, OVERFLOW_NS};
use crate::metrics::{MetricsPage, OwnedLabels};

/// The label that names a device: that of its volume.
const DEVICE_LABEL: &str = "volume";

/// Takes samples and makes periods of them.
#[derive(Debug)]
pub struct Sampler {
    period_s: u64,
    before: Before,
    open: Option<Open>,
}

/// What a row's sources were at the last sample.
#[derive(Debug, Default)]
struct Before {
    counters: HashMap<Source, u64>,
    risen: HashMap<Source, f64>,
    histograms: HashMap<Source, LatencySnapshot>,
}

/// A row of the table and the labels of one of its sources.
type Source = (usize, OwnedLabels);
/// What a sample says of a row, by device.
type ByDevice<T> = BTreeMap<Option<String>, T>;

/// A period that samples are added to.
#[derive(Debug)]
struct Open {
    since_s: u64,
    until_s: u64,
    /// By row and device.
    gathered: BTreeMap<(usize, Option<String>), Gathered>,
}

#[derive(Debug)]
enum Gathered {
    Numbers(Values),
    Buckets([u64; BUCKETS]),
}

impl Sampler {
    /// For periods of so many seconds, at least one; they begin at whole multiples of it.
    pub fn new(period_s: u64) -> Self {
        Self { period_s: period_s.max(1), before: Before::default(), open: None }
    }

    /// Adds the page of a second. Gives the period before, if this second begins another one.
    pub fn take(&mut self, page: &MetricsPage, at_s: u64) -> Option<Period> {
        let since_s = at_s - at_s % self.period_s;
        let other = self.open.as_ref().is_some_and(|open| open.since_s != since_s);
        let done = if other { self.close() } else { None };
        let fresh = Open { since_s, until_s: at_s, gathered: BTreeMap::new() };
        let open = self.open.get_or_insert(fresh);
        open.until_s = open.until_s.max(at_s);
        // A period has fewer seconds than u32 counts.
        let second = u32::try_from(at_s - since_s).unwrap_or(u32::MAX);
        for (row, metric) in PUBLISHED.iter().enumerate() {
            match metric.of {
                Of::Durations(of) => {
                    let buckets = self.before.durations(row, metric, page.histograms(of));
                    buckets.into_iter().for_each(|(device, it)| open.buckets(row, device, &it));
                }
                // It is told when the period closes.
                Of::Marker => {}
                _ => {
                    for (device, value) in self.before.numbers(row, metric, page) {
                        open.number(row, device, metric.each_second, (second, value));
                    }
                }
            }
        }
        done
    }

    /// Gives what has been gathered of a period that is not over yet, if there is any.
    pub fn close(&mut self) -> Option<Period> {
        let Open { since_s, until_s, mut gathered } = self.open.take()?;
        let last = u32::try_from(until_s - since_s).unwrap_or(u32::MAX);
        for (row, _) in PUBLISHED.iter().enumerate().filter(|(_, it)| matches!(it.of, Of::Marker)) {
            let marker = Gathered::Numbers(Values::Seconds(vec![(last, 1.0)]));
            gathered.insert((row, None), marker);
        }
        let series = gathered.into_iter().map(|((row, device), gathered)| {
            let Metric { name, unit, .. } = PUBLISHED[row];
            Series { name: name.to_owned(), device, unit, values: gathered.values() }
        });
        Some(Period { since_s, until_s, series: series.collect() })
    }
}

impl Before {
    fn numbers(&mut self, row: usize, metric: &Metric, page: &MetricsPage) -> ByDevice<f64> {
        let scale = if metric.unit == Unit::Percent { 100.0 } else { 1.0 };
        let add = |sum: f64, value: f64| sum + value;
        let mut by_device = match metric.of {
            Of::Growth(counter) => {
                let grown = page.counters(counter).map(|(labels, value)| {
                    let before = self.counters.insert((row, labels.clone()), value).unwrap_or(0);
                    // One that begins anew has grown by all it says.
                    let grown = value.checked_sub(before).unwrap_or(value);
                    (labels, grown as f64)
                });
                folded(metric, grown.collect::<Vec<_>>(), add)
            }
            Of::Risen(gauge) => {
                let risen = page.gauges(gauge).map(|(labels, value)| {
                    let before = self.risen.insert((row, labels.clone()), value);
                    (labels, (value - before.unwrap_or(value)).max(0.0))
                });
                folded(metric, risen.collect::<Vec<_>>(), add)
            }
            Of::Highest(gauge) => folded(metric, page.gauges(gauge), f64::max),
            Of::Lowest(gauge) => folded(metric, page.gauges(gauge), f64::min),
            Of::Total(gauge) => folded(metric, page.gauges(gauge), add),
            Of::Share(part, whole) => {
                let wholes = folded(metric, page.gauges(whole), add);
                let mut parts = folded(metric, page.gauges(part), add);
                parts.retain(|device, part| match wholes.get(device) {
                    Some(whole) if *whole > 0.0 => {
                        *part /= whole;
                        true
                    }
                    _ => false,
                });
                parts
            }
            Of::P99(histogram) => {
                let times = self.durations(row, metric, page.histograms(histogram)).into_iter();
                let p99 = times.filter_map(|(device, buckets)| {
                    let p99_ns = LatencySnapshot { buckets, sum_ns: 0 }.quantile_ns(0.99)?;
                    Some((device, p99_ns.min(OVERFLOW_NS) as f64 / 1e6))
                });
                p99.collect()
            }
            Of::Durations(_) | Of::Marker => ByDevice::new(),
        };
        if metric.always {
            by_device.entry(None).or_insert(0.0);
        }
        by_device.values_mut().for_each(|value| *value *= scale);
        by_device
    }

    fn durations<'a>(
        &mut self,
        row: usize,
        metric: &Metric,
        now: impl Iterator<Item = (&'a OwnedLabels, LatencySnapshot)>,
    ) -> ByDevice<[u64; BUCKETS]> {
        let mut by_device = ByDevice::new();
        for (labels, now) in now {
            let before = self.histograms.insert((row, labels.clone()), now);
            let sums = by_device.entry(device(metric, labels)).or_insert([0; BUCKETS]);
            let before = before.map_or([0; BUCKETS], |before| before.buckets);
            for (sum, (now, before)) in sums.iter_mut().zip(now.buckets.into_iter().zip(before)) {
                *sum += now.saturating_sub(before);
            }
        }
        by_device
    }
}

/// One value for each device, of those with several labels.
fn folded<'a>(
    metric: &Metric,
    values: impl IntoIterator<Item = (&'a OwnedLabels, f64)>,
    fold: impl Fn(f64, f64) -> f64,
) -> ByDevice<f64> {
    let mut by_device = ByDevice::new();
    for (labels, value) in values {
        let known = by_device.entry(device(metric, labels)).or_insert(None::<f64>);
        *known = Some(known.map_or(value, |known| fold(known, value)));
    }
    by_device.into_iter().filter_map(|(device, value)| Some((device, value?))).collect()
}

fn device(metric: &Metric, labels: &OwnedLabels) -> Option<String> {
    let named = labels.iter().find(|(name, _)| metric.per_device && name == DEVICE_LABEL);
    named.map(|(_, volume)| volume.clone())
}

impl Open {
    fn number(&mut self, row: usize, device: Option<String>, single: bool, at: (u32, f64)) {
        let (_, value) = at;
        let empty = match single {
            true => Values::Seconds(Vec::new()),
            false => Values::Set { count: 0.0, sum: 0.0, min: value, max: value },
        };
        match self.gathered.entry((row, device)).or_insert(Gathered::Numbers(empty)) {
            Gathered::Numbers(Values::Seconds(seconds)) => seconds.push(at),
            Gathered::Numbers(Values::Set { count, sum, min, max }) => {
                *count += 1.0;
                *sum += value;
                (*min, *max) = (min.min(value), max.max(value));
            }
            // A row gathers either numbers or buckets.
            Gathered::Numbers(Values::Counts(_)) | Gathered::Buckets(_) => {}
        }
    }

    fn buckets(&mut self, row: usize, device: Option<String>, grown: &[u64; BUCKETS]) {
        if grown.iter().all(|count| *count == 0) {
            return;
        }
        let gathered = self.gathered.entry((row, device));
        if let Gathered::Buckets(sums) = gathered.or_insert(Gathered::Buckets([0; BUCKETS])) {
            sums.iter_mut().zip(grown).for_each(|(sum, count)| *sum += count);
        }
    }
}

impl Gathered {
    fn values(self) -> Values {
        match self {
            Self::Numbers(values) => values,
            Self::Buckets(buckets) => {
                let snapshot = LatencySnapshot { buckets, sum_ns: 0 };
                let filled = snapshot.nanos().filter(|(_, count)| *count > 0);
                let millis = filled.map(|(bound_ns, count)| (bound_ns as f64 / 1e6, count as f64));
                Values::Counts(millis.collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::Latency;
    use crate::metrics::{Counter, Gauge, Histogram};
    use crate::publish::{DATUMS_MAX, MARKER};

    fn of<'a>(period: &'a Period, name: &str, device: Option<&str>) -> Option<&'a Values> {
        let is = |it: &&Series| it.name == name && it.device.as_deref() == device;
        period.series.iter().find(is).map(|series| &series.values)
    }

    fn lanes(received: [u64; 2]) -> MetricsPage {
        let mut page = MetricsPage::new();
        for (lane, received) in ["0", "1"].into_iter().zip(received) {
            page.counter(Counter::LaneReceivedPackets, &[("lane", lane)], received);
            page.counter(Counter::LaneStoredPackets, &[("lane", lane)], received);
        }
        page
    }

    #[test]
    fn what_counters_grew_by_adds_up_to_what_they_say() {
        let mut sampler = Sampler::new(10);
        assert_eq!(sampler.take(&lanes([5, 7]), 1_003), None);
        assert_eq!(sampler.take(&lanes([5, 8]), 1_004), None);
        let first = sampler.take(&lanes([100, 8]), 1_010).unwrap();
        assert_eq!((first.since_s, first.until_s), (1_000, 1_004));
        let seconds = Values::Seconds(vec![(3, 12.0), (4, 1.0)]);
        assert_eq!(of(&first, "PacketsReceived", None), Some(&seconds));
        let set = Values::Set { count: 2.0, sum: 13.0, min: 1.0, max: 12.0 };
        assert_eq!(of(&first, "PacketsStored", None), Some(&set));
        assert_eq!(of(&first, MARKER, None), Some(&Values::Seconds(vec![(4, 1.0)])));
        let last = sampler.close().unwrap();
        assert_eq!(of(&last, "PacketsReceived", None), Some(&Values::Seconds(vec![(0, 95.0)])));
        assert_eq!(sampler.close(), None);
    }

    #[test]
    fn a_machine_that_stands_by_tells_that_and_that_nothing_is_lost() {
        let mut sampler = Sampler::new(60);
        let mut page = MetricsPage::new();
        page.gauge(Gauge::DaemonRecordingState, &[], 0.0);
        page.gauge(Gauge::SharedBeatSeconds, &[], 0.5);
        sampler.take(&page, 60);
        let period = sampler.close().unwrap();
        assert_eq!(of(&period, "PacketsLost", None), Some(&Values::Seconds(vec![(0, 0.0)])));
        let set = |value| Values::Set { count: 1.0, sum: value, min: value, max: value };
        assert_eq!(of(&period, "Recording", None), Some(&set(0.0)));
        assert_eq!(of(&period, "WriterBeatAge", None), Some(&set(0.5)));
        let names: Vec<_> = period.series.iter().map(|series| series.name.as_str()).collect();
        assert_eq!(names.len(), 4, "and the marker, but nothing of packets: {names:?}");
    }

    #[test]
    fn gauges_are_folded_and_what_is_not_there_is_not_told() {
        let mut sampler = Sampler::new(60);
        let page = |up: f64, used: f64, throttled: f64| {
            let mut page = MetricsPage::new();
            page.gauge(Gauge::SourceUpState, &[("lane", "0")], 1.0);
            page.gauge(Gauge::SourceUpState, &[("lane", "1")], up);
            page.gauge(Gauge::BufferPressureRatio, &[], 0.25);
            page.gauge(Gauge::StorageUsedBytes, &[("volume", "0")], used);
            page.gauge(Gauge::StorageUsedBytes, &[("volume", "1")], 0.0);
            page.gauge(Gauge::StorageQuotaBytes, &[("volume", "0")], 50.0);
            page.gauge(Gauge::StorageQuotaBytes, &[("volume", "1")], 50.0);
            page.gauge(Gauge::NvmeTemperatureCelsius, &[("volume", "1")], 40.0);
            page.gauge(Gauge::NvmeThrottledSeconds, &[("volume", "1")], throttled);
            page
        };
        sampler.take(&page(1.0, 50.0, 700.0), 0);
        sampler.take(&page(0.0, 20.0, 702.5), 1);
        let period = sampler.close().unwrap();
        let set = |sum, min, max| Values::Set { count: 2.0, sum, min, max };
        assert_eq!(of(&period, "SourcesUp", None), Some(&set(1.0, 0.0, 1.0)));
        assert_eq!(of(&period, "StorageUsed", None), Some(&set(70.0, 20.0, 50.0)));
        assert_eq!(of(&period, "DeviceThrottled", None), Some(&set(2.5, 0.0, 2.5)));
        assert_eq!(of(&period, "DeviceTemperature", Some("1")), Some(&set(80.0, 40.0, 40.0)));
        let pressure = Values::Seconds(vec![(0, 25.0), (1, 25.0)]);
        assert_eq!(of(&period, "BufferPressure", None), Some(&pressure));
        assert_eq!(of(&period, "EpochKeysAhead", None), None);
    }

    #[test]
    fn durations_keep_their_buckets_and_a_second_its_p99() {
        let (mut sampler, latency) = (Sampler::new(60), Latency::new());
        let page = || {
            let mut page = MetricsPage::new();
            let labels = [("volume", "3")];
            page.histogram(Histogram::NvmeWriteSeconds, &labels, latency.snapshot());
            page
        };
        (0..10).for_each(|_| latency.record_ns(1_000_000));
        sampler.take(&page(), 0);
        sampler.take(&page(), 1);
        latency.record_ns(u64::MAX);
        sampler.take(&page(), 2);
        let period = sampler.close().unwrap();
        let longest_ms = OVERFLOW_NS as f64 / 1e6;
        let counts = Values::Counts(vec![(1.048576, 10.0), (longest_ms, 1.0)]);
        assert_eq!(of(&period, "WriteLatency", Some("3")), Some(&counts));
        let seconds = Values::Seconds(vec![(0, 1.048576), (2, longest_ms)]);
        assert_eq!(of(&period, "WriteLatencyP99", None), Some(&seconds));
        assert_eq!(of(&period, "FlushLatency", Some("3")), None);
    }

    #[test]
    fn the_longest_period_of_the_most_volumes_fits_one_call() {
        let (mut sampler, latency) = (Sampler::new(120), Latency::new());
        for second in 0..120 {
            latency.record_ns(1);
            let mut page = MetricsPage::new();
            Counter::ALL.iter().for_each(|counter| page.counter(*counter, &[], 1));
            for volume in ["0", "1", "2", "3", "4", "5", "6", "7"] {
                let labels = [("volume", volume)];
                Gauge::ALL.iter().for_each(|gauge| page.gauge(*gauge, &labels, 1.0));
                let times = Histogram::ALL.iter();
                times.for_each(|it| page.histogram(*it, &labels, latency.snapshot()));
            }
            assert_eq!(sampler.take(&page, second), None);
        }
        let datums = sampler.close().unwrap().datums();
        assert!((500..=DATUMS_MAX).contains(&datums), "{datums}");
    }

    #[test]
    fn a_period_survives_its_text() {
        let mut sampler = Sampler::new(1);
        sampler.take(&lanes([5, 7]), 9);
        let period = sampler.take(&lanes([6, 7]), 10).unwrap();
        let text = serde_json::to_string(&period).unwrap();
        assert_eq!(serde_json::from_str::<Period>(&text).unwrap(), period);
    }
}
