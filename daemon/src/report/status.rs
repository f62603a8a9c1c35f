//! The report of a running recorder, and of a store that nobody was asked about.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use wirevault_format::gap::CAUSES;
use wirevault_format::table::{SegmentEntry, SegmentState};
use wirevault_format::{Cause, PressureCause, RunId};
use wirevault_index::error::chain;
use wirevault_index::lost::{LostSegment, LostStore};
use wirevault_index::{Catalog, Segment, StoreReader};
use wirevault_media::Erased;
use wirevault_pipeline::{
    LaneState, LaneView, Pipeline, PolicyCounters, Shares, ThreadPlace, VolumeView,
};
use wirevault_storage::{Budget, StoreStatus, Verdict};
use wirevault_telemetry::clock::{Clock, SystemClock};
use wirevault_telemetry::histogram::LatencySnapshot;

use crate::api::{
    BudgetStatus, BufferStatus, ErasedStatus, HoldsStatus, LaneStatus, LayoutStatus, LimitsStatus,
    LostStatus, MemoryStatus, PolicyStatus, PressureStatus, SegmentRow, State, StatusReport,
    ThreadStatus, VolumeStatus,
};
use crate::cloud::keys;
use crate::lifecycle::tier::Tier;
use crate::server::App;
use crate::server::answers::STOPPED;

/// Release of this program.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Causes that packets are dropped for; they stand in every report, others only when they occur.
const DROP_CAUSES: [Cause; 4] =
    [Cause::RingOverflow, Cause::NoBuffer, Cause::InterfaceDown, Cause::DeviceFailed];

/// Report of a running recorder, or of a machine that stands by.
///
/// # Errors
/// In words: the recorder has stopped; the store of the other machine cannot be read.
pub(crate) fn live(app: &App) -> Result<StatusReport, String> {
    let shared = app.facts().shared.as_ref().map(|shared| shared.status());
    if let Some(stored) = app.stored() {
        let (reader, catalog) = stored.open().map_err(|error| chain(&error))?;
        return Ok(StatusReport {
            state: State::Standby,
            started: Some(app.facts().started_ns.into()),
            shared,
            publish: app.facts().publishing.as_ref().map(|publishing| publishing.status()),
            ..offline(&reader, &catalog)
        });
    }
    let pipeline = app.pipeline().ok_or(STOPPED)?;
    let now_ns = SystemClock.unix_ns();
    let store = pipeline.store().status();
    let pages = pipeline.pool().arena().report().pages.to_string();
    let lane_row = |lane| LaneStatus {
        pressure: Some(pressure_status(&pipeline.pressure_on(lane))),
        ..lane_status(lane, now_ns, &pages)
    };
    let lanes: Vec<_> = pipeline.lanes().iter().map(lane_row).collect();
    let (condition, conditions) = app.conditions().told();
    let volumes: Vec<_> = store
        .volumes
        .iter()
        .enumerate()
        .map(|(number, volume)| VolumeStatus {
            device: app.devices().of(number),
            condition: conditions.get(number).copied().unwrap_or_default().name().to_owned(),
            ..volume_status(volume, pipeline.volumes().get(number))
        })
        .collect();
    let mut reasons = app.facts().notes.clone();
    reasons.extend(store.key_trouble.clone());
    reasons.extend(app.facts().keys.as_deref().and_then(keys::reason));
    reasons.extend(app.audit().trouble());
    let certificates = app.facts().certificates.as_ref();
    reasons.extend(certificates.and_then(|certificates| certificates.trouble(now_ns)));
    let snapshots = app.facts().snapshots.as_ref().map(|snapshots| snapshots.status());
    reasons.extend(snapshots.as_ref().and_then(|snapshots| snapshots.trouble.clone()));
    reasons.extend(app.facts().publishing.as_ref().and_then(|publishing| publishing.reason()));
    let started_ns = app.facts().started_ns;
    let backups = app.facts().backups.as_ref();
    reasons.extend(backups.and_then(|backups| backups.reason(now_ns, started_ns)));
    reasons.extend(app.facts().instance.iter().flat_map(|instance| instance.reasons()));
    let waiting = app.holds().waiting();
    reasons.extend(waiting.why);
    reasons.extend(app.rules().trouble());
    reasons.extend(app.tier().and_then(Tier::trouble));
    let anchors = app.audit().anchors();
    reasons.extend(anchors.iter().filter_map(|anchor| anchor.trouble.clone()));
    reasons.extend(troubles(&lanes, &volumes));
    let ended = pipeline.is_finished();
    let state = match () {
        () if app.lost().is_some() => State::Fenced,
        () if app.is_stopping() => State::Stopping,
        () if ended => State::Ended,
        () if reasons.is_empty() => State::Recording,
        () => State::Degraded,
    };
    Ok(StatusReport {
        state,
        condition: condition.name().to_owned(),
        reasons,
        store: store.id.to_string(),
        sealed: store.sealed,
        started: Some(app.facts().started_ns.into()),
        now: now_ns.into(),
        version: VERSION.to_owned(),
        lanes,
        segments: volumes.iter().map(|volume| volume.segments).sum(),
        volumes,
        missing_volumes: Vec::new(),
        buffer: Some(buffer_status(&pipeline)),
        layout: Some(layout_status(&pipeline)),
        recovery: Some(app.facts().recovery.clone()),
        limits: Some(limits(&store)),
        shared,
        holds: Some(HoldsStatus {
            budget_bytes: pipeline.store().hold_budget_bytes(),
            used_bytes: pipeline.store().holds_bytes(),
            waiting_segments: waiting.segments,
        }),
        key: keys::status(app),
        snapshots,
        backup: app.facts().backups.as_ref().map(|backups| backups.status()),
        instance: app.facts().instance.as_ref().map(|instance| instance.status()),
        lost: lost_status(&pipeline.catalog().lost),
        cards: app.facts().cards.status(),
        publish: app.facts().publishing.as_ref().map(|publishing| publishing.status()),
        sandbox: app.facts().sandbox.clone(),
        tier: app.tier().map(Tier::status),
        anchors,
    })
}

/// Report of a store that only this process looks at. `lanes` are those of the newest run, as the
/// segments that are still there tell of them.
pub fn offline(reader: &StoreReader, catalog: &Catalog) -> StatusReport {
    let first = reader.volumes.first().map(|volume| &volume.superblock);
    let volumes: Vec<_> = reader.volumes.iter().map(stored_volume).collect();
    let missing = catalog.missing_volumes.iter();
    let missing: Vec<_> = missing.map(|it| format!("{}: {}", it.path, it.why)).collect();
    StatusReport {
        state: State::Offline,
        condition: String::new(),
        reasons: missing.iter().map(|volume| format!("missing volume {volume}")).collect(),
        store: reader.store.to_string(),
        sealed: first.is_some_and(|superblock| superblock.sealed),
        started: None,
        now: catalog.now_ns.into(),
        version: VERSION.to_owned(),
        lanes: stored_lanes(catalog),
        volumes,
        missing_volumes: missing,
        buffer: None,
        layout: None,
        segments: catalog.segments.len() as u64,
        recovery: None,
        limits: None,
        shared: None,
        holds: None,
        key: None,
        snapshots: None,
        backup: None,
        instance: None,
        lost: lost_status(&catalog.lost),
        cards: Vec::new(),
        publish: None,
        sandbox: None,
        tier: None,
        anchors: Vec::new(),
    }
}

fn limits(store: &StoreStatus) -> LimitsStatus {
    let budget = |(budget, used_bytes): &(Budget, u64)| BudgetStatus {
        lanes: budget.lanes.clone().collect(),
        budget_bytes: budget.bytes,
        used_bytes: *used_bytes,
    };
    let budgets = store.budgets.iter().map(budget).collect();
    LimitsStatus { reserve_percent: store.reserve_percent, budgets }
}

/// Every segment of a catalog, oldest first, those of stores that are gone before the others. Open
/// ones are looked into for their figures.
pub fn segments(catalog: &Catalog) -> Vec<SegmentRow> {
    segment_rows(catalog).collect()
}

/// The same one by one.
pub(crate) fn segment_rows(catalog: &Catalog) -> impl Iterator<Item = SegmentRow> {
    let of_store = |store: &'_ LostStore| {
        store.segments.iter().map(|it| lost_row(store, it)).collect::<Vec<_>>()
    };
    let lost = catalog.lost.iter().flat_map(of_store);
    lost.chain(catalog.segments.iter().map(|segment| segment_row(segment)))
}

fn lost_status(stores: &[LostStore]) -> Vec<LostStatus> {
    let status = |store: &LostStore| {
        let entries = || store.segments.iter().map(|segment| &segment.entry);
        let times = entries().filter_map(|entry| entry.times_ns);
        let times = times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        LostStatus {
            store: store.store.clone(),
            checkpoint: store.checkpoint,
            segments: store.segments.len() as u64,
            packets: entries().map(|entry| entry.packets).sum(),
            from: times.map(|times| times.0.into()),
            until: times.map(|times| times.1.into()),
        }
    };
    stores.iter().map(status).collect()
}

fn lane_status(lane: &LaneView, now_ns: u64, pages: &str) -> LaneStatus {
    let books = lane.books.snapshot();
    let report = lane.shared.report();
    let live = report.as_ref().filter(|report| report.kind != "replay");
    let skipped = lane.shared.skipped_blocks();
    let since_ns = books.unacknowledged_since_ns;
    let age_ns = since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns));
    let durable_ns = lane.shared.durable_ns.load(Ordering::Acquire);
    LaneStatus {
        lane: books.lane,
        interface: live.map(|report| report.name.clone()),
        source: report.as_ref().map_or(String::new(), |report| report.kind.to_owned()),
        state: lane.shared.state().name().to_owned(),
        received: books.received,
        stored: books.stored,
        shed: books.shed,
        policies: lane.shared.policies.iter().map(policy_status).collect(),
        pressure: None,
        dropped: books.dropped_packets(),
        dropped_by_cause: by_cause(&books.dropped),
        in_flight: books.in_flight,
        in_ring: books.in_ring,
        cut: books.cut,
        unparsed: books.unparsed,
        unreadable: books.unreadable,
        times_rounded: lane.shared.times_rounded(),
        cut_to_snaplen: lane.shared.cut_to_snaplen(),
        times_carried: lane.shared.times_carried(),
        options_cut: lane.shared.options_cut(),
        skipped_blocks: skipped.map(|(kind, count)| (kind.name().to_owned(), count)).collect(),
        watermark: books.watermark,
        unacknowledged_age_ms: age_ns / 1_000_000,
        durable_until: (durable_ns > 0).then(|| durable_ns.into()),
        unindexed_chunks: lane.shared.unindexed_chunks.load(Ordering::Relaxed),
        stripped: lane.shared.decap.stripped.load(Ordering::Relaxed),
        kept_fragments: lane.shared.decap.kept_fragments.load(Ordering::Relaxed),
        truncated_mirror: lane.shared.decap.truncated_mirror.load(Ordering::Relaxed),
        duplicates: lane.shared.duplicates.load(Ordering::Relaxed),
        filtered_chunks: lane.shared.filtered_chunks.load(Ordering::Relaxed),
        flows: lane.shared.flows.load(Ordering::Relaxed),
        flows_max: lane.shared.flows_max.load(Ordering::Relaxed),
        hugepages: pages.to_owned(),
        fanout: report.as_ref().and_then(|report| report.fanout.clone()),
        ring_bytes: report.as_ref().map_or(0, |report| report.ring_bytes as u64),
        cpu: lane.shared.cpu(),
        clocks: report.as_ref().map(|report| report.clocks.clone()).unwrap_or_default(),
        notes: report.map(|report| report.notes).unwrap_or_default(),
        error: lane.shared.error(),
    }
}

fn pressure_status(shares: &Shares) -> PressureStatus {
    let permille = |share: f64| (share * 1000.0) as u64;
    let (share, cause) = shares.largest();
    let one = |cause: PressureCause| (cause.name().to_owned(), permille(shares.of(cause)));
    PressureStatus {
        permille: permille(share),
        cause: cause.name().to_owned(),
        by_cause: PressureCause::ALL.into_iter().map(one).collect(),
    }
}

fn policy_status(policy: &PolicyCounters) -> PolicyStatus {
    let causes = PressureCause::ALL.iter().zip(policy.entered());
    let causes = causes.filter(|_| policy.is_rung);
    PolicyStatus {
        name: policy.name.to_string(),
        rung: policy.is_rung,
        active: policy.is_active(),
        entered: causes.map(|(cause, count)| (cause.name().to_owned(), count)).collect(),
        shed: policy.shed(),
        cut: policy.cut(),
    }
}

fn by_cause(dropped: &[u64; CAUSES]) -> BTreeMap<String, u64> {
    let shown = |cause: &&Cause| dropped[cause.index()] > 0 || DROP_CAUSES.contains(cause);
    let causes = Cause::ALL.iter().filter(shown);
    causes.map(|cause| (cause.name().to_owned(), dropped[cause.index()])).collect()
}

fn volume_status(
    volume: &wirevault_storage::VolumeStatus,
    view: Option<&VolumeView>,
) -> VolumeStatus {
    let mut status = VolumeStatus {
        path: volume.path.clone(),
        quota_bytes: volume.quota_bytes,
        used_bytes: volume.used_bytes,
        segments: u64::from(volume.segments),
        places: u64::from(volume.places),
        bad_places: u64::from(volume.bad_places),
        segment_bytes: volume.segment_bytes,
        state: match (&volume.failed, volume.verdict(), &volume.refused, &volume.suspect) {
            (Some(why), ..) => format!("failed: {why}"),
            (None, Verdict::Spent, ..) => format!("failed: {}", bad_places(volume)),
            (None, _, Some(why), _) => format!("full: {why}"),
            (None, Verdict::Worn, None, _) => format!("worn: {}", bad_places(volume)),
            (None, Verdict::Sound, None, Some(why)) => format!("suspect: {why}"),
            (None, Verdict::Sound, None, None) => "ok".to_owned(),
        },
        erased: {
            let Erased { zeros, other, unread, kept } = volume.erased;
            ErasedStatus { zeros, other, unread, kept }
        },
        ..VolumeStatus::default()
    };
    let Some(view) = view else { return status };
    let stalled = view.shared.stalled.load(Ordering::Relaxed) || volume.hangs;
    if stalled && volume.failed.is_none() {
        status.state = "stalled: the device does not answer".to_owned();
    }
    let report = view.shared.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(report) = report {
        status.backend = report.backend.to_owned();
        status.backend_why = report.why.to_owned();
        status.o_direct = report.o_direct;
        status.registered_buffers = report.registered_buffers;
        status.registered_files = report.registered_files;
        status.why_not = report.why_not;
    }
    let micros = |latency: &LatencySnapshot, share| latency.quantile_ns(share).map(|ns| ns / 1000);
    let writes = view.shared.write_latency.snapshot();
    let syncs = view.shared.sync_latency.snapshot();
    status.write_p50_us = micros(&writes, 0.5);
    status.write_p99_us = micros(&writes, 0.99);
    status.sync_p50_us = micros(&syncs, 0.5);
    status.sync_p99_us = micros(&syncs, 0.99);
    status.written_bytes = view.shared.written_bytes.load(Ordering::Relaxed);
    status.failed_chunks = view.shared.failed_chunks.load(Ordering::Relaxed);
    status.error = view.shared.error.lock().unwrap_or_else(PoisonError::into_inner).clone();
    status
}

/// Why a volume with bad places is not as it should be.
pub(crate) fn bad_places(volume: &wirevault_storage::VolumeStatus) -> String {
    let wirevault_storage::VolumeStatus { bad_places, places, .. } = volume;
    format!("{bad_places} of its {places} places are bad: its device is wearing out, replace it")
}

fn buffer_status(pipeline: &Pipeline) -> BufferStatus {
    let pool = pipeline.pool();
    let times = pipeline.buffer_times().all().into_iter();
    let p999_ns = times.filter_map(|(name, latency)| {
        Some((name.to_owned(), latency.snapshot().quantile_ns(0.999)?))
    });
    let report = pool.arena().report();
    BufferStatus {
        bytes: report.bytes as u64,
        hugepages: report.pages.to_string(),
        huge_bytes: report.huge_bytes as u64,
        locked: report.locked,
        chunks: report.chunks as u64,
        in_flight: pool.in_flight() as u64,
        pressure_permille: (pool.pressure() * 1000.0) as u64,
        p999_ns: p999_ns.collect(),
        why_not: report.why_not.clone(),
    }
}

fn layout_status(pipeline: &Pipeline) -> LayoutStatus {
    let (layout, pool) = (pipeline.layout(), pipeline.pool());
    let thread = |thread: &ThreadPlace| ThreadStatus {
        name: thread.name.clone(),
        cpus: thread.cpus.clone(),
        node: thread.node,
        why_not: thread.why_not.clone(),
    };
    let parts = pool.arena().report().parts.iter().enumerate();
    let memory = parts.map(|(number, part)| MemoryStatus {
        node: part.node,
        chunks: part.chunks as u64,
        in_flight: pool.in_flight_of(number) as u64,
    });
    LayoutStatus {
        topology: layout.topology.name().to_owned(),
        why: layout.why.clone(),
        threads: layout.threads.iter().map(thread).collect(),
        others: layout.others.clone(),
        memory: memory.collect(),
    }
}

/// What keeps a recorder from being whole. Missing hugepages are told elsewhere: they cost speed,
/// not packets.
fn troubles(lanes: &[LaneStatus], volumes: &[VolumeStatus]) -> Vec<String> {
    let mut reasons = Vec::new();
    let well = [LaneState::Running.name(), LaneState::Ended.name()];
    for lane in lanes.iter().filter(|lane| !well.contains(&lane.state.as_str())) {
        let why = lane.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
        let (number, state) = (lane.lane, &lane.state);
        reasons.push(format!("lane {number} is {state}{why}"));
    }
    for volume in volumes {
        if volume.state != "ok" {
            reasons.push(format!("volume {} is {}", volume.path, volume.state));
        }
        if volume.failed_chunks > 0 {
            let (path, chunks) = (&volume.path, volume.failed_chunks);
            reasons.push(format!("volume {path} did not take {chunks} chunks since the start"));
        }
    }
    reasons
}

fn stored_volume(volume: &wirevault_index::Volume) -> VolumeStatus {
    let superblock = &volume.superblock;
    let present = volume.segments.entries.iter().filter(|entry| entry.state != SegmentState::Free);
    let bytes = |entry: &wirevault_format::table::SegmentEntry| match entry.state {
        SegmentState::Closed | SegmentState::Forgetting => entry.file_bytes,
        _ => superblock.segment_bytes,
    };
    VolumeStatus {
        path: volume.media.describe(),
        quota_bytes: superblock.quota_bytes,
        used_bytes: wirevault_storage::volume_file_bytes(superblock)
            + present.clone().map(bytes).sum::<u64>(),
        segments: present.count() as u64,
        places: u64::from(superblock.places),
        bad_places: volume.segments.entries.iter().filter(|entry| entry.bad).count() as u64,
        segment_bytes: superblock.segment_bytes,
        state: match &volume.ring {
            Some(Err(error)) => error.to_string(),
            _ => "ok".to_owned(),
        },
        ..VolumeStatus::default()
    }
}

/// The lanes of the newest run. Counts are those that its newest segments tell.
fn stored_lanes(catalog: &Catalog) -> Vec<LaneStatus> {
    let Some(run) = catalog.runs.last() else { return Vec::new() };
    let source = if run.import { "import" } else { "live" };
    (0..run.lanes)
        .map(|lane| {
            let mut status =
                LaneStatus { lane, source: source.to_owned(), ..LaneStatus::default() };
            status.state = LaneState::Ended.name().to_owned();
            let of_lane = catalog.segments.iter();
            let of_lane = of_lane.filter(|it| it.entry.run == run.run && it.entry.lane == lane);
            add_segments(&mut status, of_lane.map(AsRef::as_ref), run.run);
            status
        })
        .collect()
}

fn add_segments<'a>(
    lane: &mut LaneStatus,
    segments: impl Iterator<Item = &'a Segment>,
    run: RunId,
) {
    let mut dropped = [0; CAUSES];
    let mut ends = BTreeMap::new();
    let mut until_ns = 0;
    for segment in segments {
        debug_assert_eq!(segment.entry.run, run, "segments of one run");
        let Ok(reader) = segment.open() else {
            lane.error = Some(format!("segment {} cannot be opened", segment.name()));
            continue;
        };
        let (received, shed, next, max_ns) = match reader.footer() {
            Some(footer) => {
                for (sum, packets) in dropped.iter_mut().zip(footer.dropped) {
                    *sum = packets.max(*sum);
                }
                let max_ns = footer.times_ns.map_or(0, |(_, max_ns)| max_ns);
                lane.unindexed_chunks += u64::from(footer.unindexed_chunks);
                (footer.received, footer.shed, footer.sequences.1, max_ns)
            }
            None => reader.with_index(|index| {
                let chunks = index.chunks();
                let next = chunks.iter().map(|it| it.first_sequence + u64::from(it.packets));
                let max_ns = chunks.iter().filter_map(|it| it.times_ns).map(|times| times.1);
                (0, 0, next.max().unwrap_or(0), max_ns.max().unwrap_or(0))
            }),
        };
        lane.received = lane.received.max(received);
        lane.shed = lane.shed.max(shed);
        until_ns = until_ns.max(max_ns);
        let end = ends.entry(segment.entry.link_type).or_insert(0);
        *end = next.max(*end);
    }
    let sequenced: u64 = ends.values().sum();
    lane.watermark = sequenced;
    lane.durable_until = (until_ns > 0).then(|| until_ns.into());
    lane.dropped = dropped.iter().sum();
    lane.dropped_by_cause = by_cause(&dropped);
    // Packets that no device took were numbered and then lost.
    lane.stored = sequenced.saturating_sub(dropped[Cause::DeviceFailed.index()]);
    lane.received = lane.received.max(lane.stored + lane.shed + lane.dropped);
    lane.in_flight = lane.received - lane.stored - lane.shed - lane.dropped;
}

fn lost_row(store: &LostStore, segment: &LostSegment) -> SegmentRow {
    let LostStore { store: id, checkpoint, .. } = store;
    SegmentRow {
        state: "lost: instance store".to_owned(),
        at: "nowhere".to_owned(),
        close_reason: None,
        file_bytes: Some(segment.entry.file_bytes),
        error: Some(format!("of store {id}, known from checkpoint {checkpoint}")),
        ..entry_row(segment.name(), (segment.volume, segment.place), &segment.entry)
    }
}

fn segment_row(segment: &Segment) -> SegmentRow {
    let entry = &segment.entry;
    let closed = entry.state == SegmentState::Closed;
    let state = match (segment.is_live(), closed) {
        (true, _) => "open",
        (false, true) => "closed",
        (false, false) => "interrupted",
    };
    let mut row = SegmentRow {
        state: state.to_owned(),
        at: segment.whereabouts().name().to_owned(),
        ..entry_row(segment.name(), (segment.volume, segment.place), entry)
    };
    if !closed {
        look_into(segment, &mut row);
    }
    row
}

/// What the entry of the table says.
fn entry_row(name: String, (volume, place): (u16, u32), entry: &SegmentEntry) -> SegmentRow {
    let closed = entry.state == SegmentState::Closed;
    SegmentRow {
        name,
        volume,
        place,
        ordinal: entry.ordinal,
        state: String::new(),
        at: String::new(),
        close_reason: closed.then(|| entry.close_reason.name().to_owned()),
        sealed: entry.sealed,
        import: entry.import,
        recovered: entry.recovered,
        damaged: entry.damaged,
        hold: (entry.hold != 0).then_some(entry.hold),
        run: entry.run.to_string(),
        lane: entry.lane,
        link_type: entry.link_type.to_string(),
        from: entry.times_ns.map(|times| times.0.into()),
        until: entry.times_ns.map(|times| times.1.into()),
        opened: entry.opened_ns.into(),
        closed: closed.then(|| entry.closed_ns.into()),
        packets: entry.packets,
        captured_bytes: entry.captured_bytes,
        file_bytes: closed.then_some(entry.file_bytes),
        chunks: u64::from(entry.chunks),
        error: None,
    }
}

/// Figures of a segment that is not closed, from its chunks.
fn look_into(segment: &Segment, row: &mut SegmentRow) {
    let reader = match segment.open() {
        Ok(reader) => reader,
        Err(error) => {
            row.error = Some(chain(&error));
            return;
        }
    };
    reader.with_index(|index| {
        let chunks = index.chunks();
        row.chunks = chunks.len() as u64;
        row.packets = chunks.iter().map(|chunk| u64::from(chunk.packets)).sum();
        let times = chunks.iter().filter_map(|chunk| chunk.times_ns);
        let times = times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        row.from = times.map(|times| times.0.into());
        row.until = times.map(|times| times.1.into());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_causes_are_always_told_and_others_when_they_occur() {
        let mut dropped = [0; CAUSES];
        assert_eq!(by_cause(&dropped).len(), DROP_CAUSES.len());
        dropped[Cause::ImportUnreadable.index()] = 3;
        let told = by_cause(&dropped);
        assert_eq!((told["import_unreadable"], told["ring_overflow"]), (3, 0));
    }

    #[test]
    fn troubles_name_lane_and_volume() {
        let lane = |state: &str, error: Option<&str>| LaneStatus {
            state: state.to_owned(),
            error: error.map(str::to_owned),
            ..LaneStatus::default()
        };
        let volume = |state: &str, failed_chunks| VolumeStatus {
            path: "/v".to_owned(),
            state: state.to_owned(),
            failed_chunks,
            ..VolumeStatus::default()
        };
        assert!(troubles(&[lane("running", None)], &[volume("ok", 0)]).is_empty());
        let told = troubles(&[lane("blocked", Some("full"))], &[volume("failed", 2)]);
        let expected = [
            "lane 0 is blocked: full",
            "volume /v is failed",
            "volume /v did not take 2 chunks since the start",
        ];
        assert_eq!(told, expected);
    }
}
