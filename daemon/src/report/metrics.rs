//! The metrics page: everything others counted, under the names of the closed list.

use std::sync::atomic::{AtomicU64, Ordering};

use wirevault_format::{Cause, PressureCause};
use wirevault_pipeline::{LaneState, WriterShared};
use wirevault_seal::epoch::KeyCondition;
use wirevault_storage::condition::Condition;
use wirevault_telemetry::clock::{Clock, SystemClock};
use wirevault_telemetry::metrics::{Counter, Gauge, Histogram, MetricsPage};

use crate::api::{SnapshotStatus, TierStatus};
use crate::report::status::VERSION;
use crate::server::App;
use crate::server::answers::STOPPED;

/// The page.
///
/// # Errors
/// In words: the pipeline was taken away.
pub(crate) fn gather(app: &App) -> Result<MetricsPage, String> {
    let now_ns = SystemClock.unix_ns();
    let mut page = MetricsPage::new();
    page.gauge(Gauge::DaemonInfoState, &[("version", VERSION)], 1.0);
    page.gauge(Gauge::DaemonStartedSeconds, &[], app.facts().started_ns as f64 / 1e9);
    if let Some(shared) = app.facts().shared.as_ref().map(|shared| shared.status()) {
        page.gauge(Gauge::SharedWriterState, &[], f64::from(u8::from(shared.writes)));
        page.gauge(Gauge::SharedBeatSeconds, &[], shared.beat_age_ms as f64 / 1e3);
    }
    if let Some(publishing) = &app.facts().publishing {
        publishing.page(&mut page);
    }
    let records = f64::from(u8::from(app.stored().is_none()));
    page.gauge(Gauge::DaemonRecordingState, &[], records);
    app.facts().cards.page(&mut page);
    questions(app, &mut page);
    if app.stored().is_some() {
        return Ok(page);
    }
    let pipeline = app.pipeline().ok_or(STOPPED)?;
    for lane in pipeline.lanes() {
        let books = lane.books.snapshot();
        page.books(&books, now_ns, |at| Cause::ALL.get(at).map(|cause| cause.name()));
        let number = books.lane.to_string();
        let down = [LaneState::InterfaceDown, LaneState::Waiting, LaneState::Ended];
        let up = !down.contains(&lane.shared.state());
        let labels = [("lane", number.as_str())];
        page.gauge(Gauge::SourceUpState, &labels, f64::from(u8::from(up)));
        let decap = &lane.shared.decap;
        for (name, count) in [
            (Counter::DecapStrippedPackets, &decap.stripped),
            (Counter::DecapFragmentPackets, &decap.kept_fragments),
            (Counter::DecapTruncatedPackets, &decap.truncated_mirror),
            (Counter::LaneDuplicatePackets, &lane.shared.duplicates),
        ] {
            page.counter(name, &labels, count.load(Ordering::Relaxed));
        }
        for policy in &lane.shared.policies {
            let labels = [("lane", number.as_str()), ("policy", policy.name.as_str())];
            page.counter(Counter::PolicyShedPackets, &labels, policy.shed());
            page.counter(Counter::PolicyCutPackets, &labels, policy.cut());
            if policy.is_rung {
                let active = f64::from(u8::from(policy.is_active()));
                page.gauge(Gauge::PolicyRungState, &labels, active);
                for (cause, count) in PressureCause::ALL.iter().zip(policy.entered()) {
                    let [lane, policy] = labels;
                    let labels = [lane, policy, ("cause", cause.name())];
                    page.counter(Counter::PolicyRungEntriesCount, &labels, count);
                }
            }
        }
        let pressure = pipeline.pressure_on(lane);
        for cause in PressureCause::ALL {
            let labels = [("lane", number.as_str()), ("cause", cause.name())];
            page.gauge(Gauge::LanePressureRatio, &labels, pressure.of(cause));
        }
    }
    let pool = pipeline.pool();
    let report = pool.arena().report();
    let pages = report.pages.to_string();
    page.gauge(Gauge::BufferArenaBytes, &[("pages", &pages)], report.bytes as f64);
    page.gauge(Gauge::BufferFreeChunks, &[], (pool.capacity() - pool.in_flight()) as f64);
    page.gauge(Gauge::BufferPressureRatio, &[], pool.pressure());
    for (operation, latency) in pipeline.buffer_times().all() {
        let labels = [("operation", operation)];
        page.histogram(Histogram::BufferOperationSeconds, &labels, latency.snapshot());
    }
    for (volume, view) in pipeline.volumes().iter().enumerate() {
        let number = volume.to_string();
        let labels = [("volume", number.as_str())];
        let shared = &view.shared;
        writer(&mut page, volume, shared);
        let stalled = f64::from(u8::from(shared.stalled.load(Ordering::Relaxed)));
        page.gauge(Gauge::NvmeStalledState, &labels, stalled);
        let device = app.devices().of(volume).unwrap_or_default();
        let seconds = |it: Option<u64>| it.map(|us| us as f64 / 1e6);
        let percent = |it: Option<u8>| it.map(|percent| f64::from(percent) / 100.0);
        for (gauge, value) in [
            (Gauge::NvmeTemperatureCelsius, device.celsius.map(f64::from)),
            (Gauge::NvmeUsedRatio, percent(device.used_percent)),
            (Gauge::NvmeSpareRatio, percent(device.spare_percent)),
            // Whoever tells of its media tells of its warnings.
            (Gauge::NvmeHealthWarnings, device.media_errors.map(|_| device.warnings.len() as f64)),
            (Gauge::NvmeMediaErrors, device.media_errors.map(|count| count as f64)),
            (Gauge::NvmeErrorEntries, device.error_entries.map(|count| count as f64)),
            (Gauge::NvmeLifeWrittenBytes, device.life_written_bytes.map(|bytes| bytes as f64)),
            (Gauge::NvmeDeviceWriteSeconds, seconds(device.device_write_p99_us)),
            (Gauge::NvmeThrottledSeconds, seconds(device.throttled_us)),
        ] {
            // What a device does not tell has no value, not a value of 0.
            value.into_iter().for_each(|value| page.gauge(gauge, &labels, value));
        }
    }
    let (store, volumes) = app.conditions().told();
    for condition in Condition::ALL {
        let is = |told: Condition| f64::from(u8::from(told == condition));
        let name = ("condition", condition.name());
        page.gauge(Gauge::StoreConditionState, &[name], is(store));
        for (number, told) in volumes.iter().enumerate() {
            let number = number.to_string();
            let labels = [("volume", number.as_str()), name];
            page.gauge(Gauge::StorageConditionState, &labels, is(*told));
        }
    }
    let (store, waiting) = (pipeline.store(), app.holds().waiting().segments);
    page.gauge(Gauge::HoldUsedBytes, &[], store.holds_bytes() as f64);
    page.gauge(Gauge::HoldBudgetBytes, &[], store.hold_budget_bytes() as f64);
    page.gauge(Gauge::HoldWaitingSegments, &[], waiting as f64);
    for (number, volume) in pipeline.store().status().volumes.iter().enumerate() {
        let number = number.to_string();
        let labels = [("volume", number.as_str())];
        page.gauge(Gauge::StorageUsedBytes, &labels, volume.used_bytes as f64);
        page.gauge(Gauge::StorageQuotaBytes, &labels, volume.quota_bytes as f64);
        page.gauge(Gauge::StorageLiveSegments, &labels, f64::from(volume.segments));
        page.gauge(Gauge::StorageBadPlaces, &labels, f64::from(volume.bad_places));
        let failed = f64::from(u8::from(volume.failed.is_some() || volume.suspect.is_some()));
        page.gauge(Gauge::StorageDegradedState, &labels, failed);
    }
    kept_elsewhere(app, &mut page, now_ns);
    for anchor in app.audit().anchors() {
        let labels = [("place", anchor.place.as_str())];
        page.gauge(Gauge::AuditAnchorAgeSeconds, &labels, anchor.age_ms as f64 / 1e3);
    }
    if let Some(keys) = &app.facts().keys {
        let status = keys.status();
        page.gauge(Gauge::KeyAheadKeys, &[], status.ahead as f64);
        for condition in KeyCondition::ALL {
            let is = f64::from(u8::from(status.condition == condition));
            page.gauge(Gauge::KeyConditionState, &[("condition", condition.name())], is);
        }
    }
    Ok(page)
}

/// The state and old segments, where they are kept elsewhere.
fn kept_elsewhere(app: &App, page: &mut MetricsPage, now_ns: u64) {
    let state = |is: bool| f64::from(u8::from(is));
    let seconds = |since_ns: u64| now_ns.saturating_sub(since_ns) as f64 / 1e9;
    if let Some(snapshots) = &app.facts().snapshots {
        let SnapshotStatus { taken, trouble, .. } = snapshots.status();
        page.gauge(Gauge::SnapshotFailedState, &[], state(trouble.is_some()));
        taken.into_iter().for_each(|it| page.gauge(Gauge::SnapshotAgeSeconds, &[], seconds(it.ns)));
    }
    if let Some(backups) = &app.facts().backups {
        let overdue = backups.overdue(now_ns, app.facts().started_ns);
        page.gauge(Gauge::BackupOverdueSeconds, &[], overdue.as_secs_f64());
        let taken = backups.status().taken;
        taken.into_iter().for_each(|it| page.gauge(Gauge::BackupAgeSeconds, &[], seconds(it.ns)));
    }
    if let Some(tier) = app.tier() {
        let TierStatus { segments, bytes, trouble, .. } = tier.status();
        page.gauge(Gauge::TierKeptSegments, &[], segments as f64);
        page.gauge(Gauge::TierKeptBytes, &[], bytes as f64);
        page.gauge(Gauge::TierFailedState, &[], state(trouble.is_some()));
    }
}

/// What the writer of a volume counted.
pub(crate) fn writer(page: &mut MetricsPage, volume: usize, shared: &WriterShared) {
    let number = volume.to_string();
    let labels = [("volume", number.as_str())];
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let syncs = shared.sync_latency.snapshot();
    page.counter(Counter::NvmeWrittenBytes, &labels, count(&shared.written_bytes));
    page.counter(Counter::NvmeSyncsCount, &labels, syncs.count());
    page.counter(Counter::NvmeFailuresCount, &labels, count(&shared.failed_chunks));
    page.counter(Counter::IndexLostDeltas, &labels, count(&shared.lost_deltas));
    page.histogram(Histogram::NvmeWriteSeconds, &labels, shared.write_latency.snapshot());
    page.histogram(Histogram::NvmeSyncSeconds, &labels, syncs);
}

fn questions(app: &App, page: &mut MetricsPage) {
    let questions = app.questions();
    let results = [
        ("answered", &questions.answered),
        ("refused", &questions.refused),
        ("cancelled", &questions.cancelled),
        ("failed", &questions.failed),
    ];
    for (result, count) in results {
        let count = count.load(Ordering::Relaxed);
        page.counter(Counter::QueryFinishedCount, &[("result", result)], count);
    }
    let matched = questions.matched_packets.load(Ordering::Relaxed);
    page.counter(Counter::QueryMatchedPackets, &[], matched);
    let running = questions.running.load(Ordering::Relaxed);
    page.gauge(Gauge::QueryRunningQueries, &[], running as f64);
    page.histogram(Histogram::QueryDurationSeconds, &[], questions.duration.snapshot());
}
