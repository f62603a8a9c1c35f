//! What must hold of a store, whatever happened to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use wirevault_format::RunId;
use wirevault_format::pcapng::BLOCK_EPB;
use wirevault_format::pcapng::read::{Blocks, Epb};
use wirevault_format::table::{RunEntry, RunState, SegmentState};
use wirevault_index::{Catalog, StoreReader, Volume};
use wirevault_media::{Media, OpenMode, SimMedia};
use wirevault_storage::{RecoveredSegment, RecoveryReport, Store};
use wirevault_telemetry::clock::{Clock, ManualClock};

use crate::support::*;

/// Sequences that a catalog gives back, by stream, ascending; every packet is compared byte for
/// byte.
pub(crate) type Held = BTreeMap<Stream, Vec<u64>>;

/// Reads everything that a catalog names. `strict`: nothing may be reported as damaged.
pub(crate) fn read_all(catalog: &Catalog, strict: bool) -> Result<Held, String> {
    let mut held = Held::new();
    let mut buf = Vec::new();
    for segment in &catalog.segments {
        let name = segment.name();
        let reader = segment.open().map_err(|error| format!("{name}: {error}"))?;
        if strict && !reader.damage().is_empty() {
            return Err(format!("{name}: damage {:?}", reader.damage()));
        }
        let stream = (segment.entry.run, segment.entry.lane);
        let (chunks, flow_packets, unindexed) = reader.with_index(|index| {
            let flows = index.flows().map_err(|error| error.to_string())?;
            let packets: u64 = flows.iter().map(|flow| flow.stats.packets).sum();
            Ok::<_, String>((index.chunks().to_vec(), packets, index.unindexed_chunks()))
        })?;
        let mut packets = 0;
        for (number, entry) in chunks.iter().enumerate() {
            let (header, payload) = match reader.read_chunk(number as u32, &mut buf) {
                Ok(read) => read,
                Err(error) if strict => return Err(format!("{name}: {error}")),
                Err(_) => continue,
            };
            if entry.packets != header.packets {
                return Err(format!("{name}: chunk {number}: entry and header differ"));
            }
            let mut sequence = header.first_sequence;
            for block in Blocks::new(&buf[payload]) {
                let block = block.map_err(|error| format!("{name}: {error}"))?;
                if block.kind != BLOCK_EPB {
                    continue;
                }
                let packet = Epb::parse(&block).map_err(|error| format!("{name}: {error}"))?;
                if packet.data != frame(stream, sequence, packet.data.len()) {
                    return Err(format!("{name}: packet {sequence} is not as written"));
                }
                // What a hold copied is there twice.
                if segment.entry.hold == 0 {
                    held.entry(stream).or_default().push(sequence);
                }
                sequence += 1;
                packets += 1;
            }
        }
        if segment.entry.state == SegmentState::Closed {
            if strict && packets != segment.entry.packets {
                return Err(format!("{name}: {packets} packets, its entry says otherwise"));
            }
            if unindexed == 0 && flow_packets != packets {
                return Err(format!("{name}: flows have {flow_packets} packets of {packets}"));
            }
        }
    }
    Ok(held)
}

/// Compares what is held with what must be: every acknowledged packet that the quota has not taken,
/// nothing twice, nothing that was never written, no hole.
pub(crate) fn check_held(held: &Held, ledger: &Ledger, evicted_ns: u64) -> Result<(), String> {
    for (stream, sequences) in held {
        let written = ledger.written.get(stream).copied().unwrap_or(0);
        let in_row = sequences.windows(2).all(|pair| pair[1] == pair[0] + 1);
        if !in_row {
            return Err(format!("stream {stream:?} has holes or repeats: {sequences:?}"));
        }
        if sequences.last().is_some_and(|last| *last >= written) {
            return Err(format!("stream {stream:?} holds what was never written"));
        }
    }
    for (stream, acknowledged) in &ledger.acknowledged {
        let present = held.get(stream).map_or(&[][..], Vec::as_slice);
        let (first, end) = match (present.first(), present.last()) {
            (Some(first), Some(last)) => (*first, last + 1),
            _ => (*acknowledged, *acknowledged),
        };
        if end < *acknowledged {
            return Err(format!(
                "stream {stream:?}: acknowledged up to {acknowledged}, held up to {end}"
            ));
        }
        // What is missing before must have gone for the quota, and the store must say so.
        let last_gone = first.min(*acknowledged).checked_sub(1);
        if let Some(last_gone) = last_gone
            && ledger.times_ns[stream][last_gone as usize] > evicted_ns
        {
            return Err(format!(
                "stream {stream:?}: packets up to {last_gone} are gone, the quota took none later \
                 than {evicted_ns}"
            ));
        }
    }
    Ok(())
}

/// Bytes that the files of a disk have together.
pub(crate) fn disk_bytes(media: &SimMedia) -> Result<u64, String> {
    let text = |error: std::io::Error| error.to_string();
    let names = media.list().map_err(text)?;
    let bytes = |name: &String| media.open(name, OpenMode::Read).and_then(|file| file.len());
    names.iter().map(bytes).sum::<std::io::Result<u64>>().map_err(text)
}

/// The catalog as a reader without the lock sees it.
pub(crate) fn offline_catalog(media: &SimMedia) -> Result<Catalog, String> {
    let volume = Volume::read(volume_of(media), &key_source());
    let volume = volume.map_err(|error| error.to_string())?;
    let (missing, tiered, lost) = Default::default();
    let reader = StoreReader { store: STORE, volumes: vec![volume], missing, tiered, lost };
    Ok(reader.catalog(START_NS))
}

pub(crate) fn check_quota(media: &SimMedia, store: &Store) -> Result<(), String> {
    let status = store.status();
    let volume = &status.volumes[0];
    // A device has the bytes that it has.
    let on_disk = if is_device(media) { volume.used_bytes } else { disk_bytes(media)? };
    if volume.used_bytes > volume.quota_bytes || on_disk > volume.quota_bytes {
        return Err(format!("{on_disk} bytes on disk, {volume:?}: over quota"));
    }
    if on_disk > volume.used_bytes {
        return Err(format!("{on_disk} bytes on disk are more than {volume:?} tells"));
    }
    Ok(())
}

/// Opens a store after a crash and checks everything that must hold then. Gives the ledger on.
pub(crate) fn check_after_crash(media: &SimMedia, ledger: &Ledger) -> Result<(), String> {
    let offline = read_all(&offline_catalog(media)?, true).map_err(|e| format!("offline: {e}"))?;
    let clock = clock();
    clock.advance(Duration::from_secs(3600));
    let opened = open(media, Arc::clone(&clock)).map_err(|error| format!("open: {error}"))?;
    let (store, report) = opened;
    check_recovered(media, store, &report, ledger, &offline, clock)
}

fn check_recovered(
    media: &SimMedia,
    store: Store,
    report: &RecoveryReport,
    ledger: &Ledger,
    offline: &Held,
    clock: Arc<ManualClock>,
) -> Result<(), String> {
    if !report.set_aside.is_empty() {
        return Err(format!("set aside: {:?}", report.set_aside));
    }
    let bad = |it: &&RecoveredSegment| {
        !it.damage.is_empty() || it.unreadable.is_some() || it.entry.damaged
    };
    if let Some(damaged) = report.segments.iter().find(bad) {
        return Err(format!("a crash alone damages nothing: {damaged:?}"));
    }
    check_quota(media, &store)?;
    let catalog = store.catalog(clock.unix_ns());
    let held = read_all(&catalog, true)?;
    check_held(&held, ledger, catalog.evicted_live_ns)?;
    if held != *offline {
        return Err("a reader without the lock saw other packets than recovery keeps".into());
    }
    let running = |run: &RunEntry| run.state == RunState::Running;
    if catalog.runs.iter().any(running) {
        return Err("a run still counts as running".into());
    }
    for (run, ended) in &ledger.runs {
        let entry = catalog.runs.iter().find(|entry| entry.run == *run);
        let state = entry.map(|entry| entry.state);
        if state.is_none() || *ended && state != Some(RunState::Ended) {
            return Err(format!("run {run} was begun, ended: {ended}; the table says {state:?}"));
        }
    }
    let known = |run: RunId| catalog.runs.iter().any(|entry| entry.run == run);
    if let Some(lost) = catalog.segments.iter().find(|segment| !known(segment.entry.run)) {
        return Err(format!("{}: its run is not in the run table", lost.name()));
    }
    let volume = &store.status().volumes[0];
    if store.is_sealed() && volume.spare_keys < 16 || volume.open_segments > 0 {
        return Err(format!("not ready to write: {volume:?}"));
    }
    // The store goes on, under keys that no chunk was ever sealed with.
    let started = Recorder::start(store, Arc::clone(&clock), ledger.clone(), 1);
    let mut recorder = started.map_err(|failed| format!("begin: {}", failed.0))?;
    recorder.open_segment(0).map_err(|error| format!("open a segment: {error}"))?;
    check_quota(media, &recorder.store)?;
    recorder.write_chunk(0, 3, 100, false).expect("there is room").unwrap();
    recorder.end().map_err(|error| format!("end: {error}"))?;
    let Recorder { store, ledger, .. } = recorder;
    let catalog = store.catalog(clock.unix_ns());
    check_held(&read_all(&catalog, true)?, &ledger, catalog.evicted_live_ns)?;
    drop(store);
    let (_, report) = open(media, clock).map_err(|error| format!("open again: {error}"))?;
    match report.is_clean() {
        true => Ok(()),
        false => Err(format!("recovery left something to do: {report:?}")),
    }
}
