//! `wirevault inspect volume`: superblock, tables and the state of the key ring.

use std::collections::HashSet;
use std::fmt::Write as _;

use serde_json::{Value, json};
use wirevault_format::LifeId;
use wirevault_format::table::{RunEntry, RunState, SegmentEntry, SegmentState};
use wirevault_index::Volume;
use wirevault_index::error::chain;
use wirevault_media::open_volume;
use wirevault_query::summary::Instant;
use wirevault_seal::KeyRing;

use crate::args::InspectVolumeArgs;
use crate::error::CliError;
use crate::outcome::Outcome;
use crate::output::{count_text, put, put_json, size_text, table, table_text};
use crate::place::key_source;

/// Shows a volume.
pub(super) fn show(args: &InspectVolumeArgs) -> Result<Outcome, CliError> {
    let media = open_volume(&args.dir)?;
    let volume = Volume::read(media, &key_source(args.key.as_deref())?)?;
    match args.json {
        true => put_json(&json(&volume))?,
        false => put(&text(&volume))?,
    }
    Ok(Outcome::Found)
}

/// Places that hold something.
fn used(volume: &Volume) -> impl Iterator<Item = (usize, &SegmentEntry)> {
    let entries = volume.segments.entries.iter().enumerate();
    entries.filter(|(_, entry)| entry.state != SegmentState::Free)
}

fn runs(volume: &Volume) -> impl Iterator<Item = &RunEntry> {
    volume.runs.entries.iter().filter(|run| run.state != RunState::None)
}

/// The key ring in words; never what is in it.
fn ring(volume: &Volume) -> String {
    match &volume.ring {
        None => "none: packets are stored unencrypted".to_owned(),
        Some(Ok(ring)) => {
            let keys = count_text(ring.len() as u64, "key");
            format!("opens; epoch {}, {keys}, {} of them spare", ring.epoch(), spares(volume, ring))
        }
        Some(Err(error)) => format!("does not open: {}", chain(error)),
    }
}

/// Keys that no segment has taken yet.
fn spares(volume: &Volume, ring: &KeyRing) -> usize {
    let taken: HashSet<LifeId> = used(volume).map(|(_, entry)| entry.life).collect();
    ring.entries().filter(|keys| !taken.contains(&keys.life())).count()
}

fn text(volume: &Volume) -> String {
    let superblock = &volume.superblock;
    let mut text =
        format!("{}\n\nsuperblock, slot {}\n", volume.media.describe(), volume.superblock_slot);
    let time = |ns: u64| if ns == 0 { "nothing".to_owned() } else { Instant::from(ns).utc };
    let number = format!("{} of {}", superblock.number, superblock.volume_paths.len());
    let slot = |offset: u64, what: String| format!("at byte {offset}, {what} a slot");
    for (name, value) in [
        ("store", superblock.store.to_string()),
        ("volume", format!("{}, number {number}", superblock.volume)),
        ("generation", superblock.generation.to_string()),
        ("created", Instant::from(superblock.created_ns).utc),
        ("replaces", if superblock.replacement { "one that is gone" } else { "none" }.to_owned()),
        ("quota", size_text(superblock.quota_bytes)),
        ("segments", size_text(superblock.segment_bytes)),
        ("places", superblock.places.to_string()),
        ("given up", format!("live up to {}", time(superblock.evicted_live_ns))),
        ("", format!("imports up to {}", time(superblock.evicted_import_ns))),
        (
            "segment table",
            slot(superblock.segments_offset, count_text(superblock.segments_pages.into(), "page")),
        ),
        (
            "run table",
            slot(superblock.runs_offset, count_text(superblock.runs_pages.into(), "page")),
        ),
        ("key ring", slot(superblock.ring_offset, size_text(superblock.ring_slot_bytes))),
        ("key", format!("{} {}", superblock.key_id, superblock.key_path).trim().to_owned()),
        ("volumes", superblock.volume_paths.join(", ")),
    ] {
        line(&mut text, &format!("  {name:<14} {value}"));
    }
    line(&mut text, &format!("\nkey ring, slot {}\n  {}", volume.ring_slot, ring(volume)));
    segments_text(&mut text, volume);
    runs_text(&mut text, volume);
    text
}

fn segments_text(text: &mut String, volume: &Volume) {
    let mut table = table(
        &["place", "ordinal", "state", "packets", "bytes", "lane", "link", "run", "life"],
        &[0, 1, 3, 4, 5],
    );
    for (place, entry) in used(volume) {
        table.add_row([
            place.to_string(),
            entry.ordinal.to_string(),
            format!("{:?}", entry.state).to_lowercase(),
            entry.packets.to_string(),
            entry.file_bytes.to_string(),
            entry.lane.to_string(),
            entry.link_type.to_string(),
            entry.run.to_string(),
            entry.life.to_string(),
        ]);
    }
    line(text, &format!("\nsegment table, {} used", count_text(table.row_count() as u64, "place")));
    if table.row_count() > 0 {
        *text += &table_text(&table, "  ");
    }
}

fn runs_text(text: &mut String, volume: &Volume) {
    let mut table = table(&["run", "state", "kind", "lanes", "started", "ended"], &[3]);
    for run in runs(volume) {
        let ended = match run.ended_ns {
            0 => format!("alive at {}", Instant::from(run.alive_ns)),
            ended_ns => Instant::from(ended_ns).utc,
        };
        table.add_row([
            run.run.to_string(),
            format!("{:?}", run.state).to_lowercase(),
            if run.import { "import" } else { "live" }.to_owned(),
            run.lanes.to_string(),
            Instant::from(run.started_ns).utc,
            ended,
        ]);
    }
    line(text, &format!("\nrun table, {}", count_text(table.row_count() as u64, "run")));
    if table.row_count() > 0 {
        *text += &table_text(&table, "  ");
    }
}

fn json(volume: &Volume) -> Value {
    let superblock = &volume.superblock;
    let time = |ns: u64| (ns > 0).then(|| Instant::from(ns));
    let ring = match &volume.ring {
        None => Value::Null,
        Some(Ok(ring)) => json!({
            "opens": true, "epoch": ring.epoch(), "keys": ring.len(),
            "spares": spares(volume, ring),
        }),
        Some(Err(error)) => json!({"opens": false, "why": chain(error)}),
    };
    let segment = |(place, entry): (usize, &SegmentEntry)| {
        json!({
            "place": place, "ordinal": entry.ordinal,
            "state": format!("{:?}", entry.state).to_lowercase(), "sealed": entry.sealed,
            "import": entry.import, "recovered": entry.recovered, "damaged": entry.damaged,
            "bad": entry.bad,
            "hold": entry.hold,
            "lane": entry.lane, "link_type": entry.link_type.to_string(),
            "run": entry.run.to_string(), "life": entry.life.to_string(),
            "opened": time(entry.opened_ns), "closed": time(entry.closed_ns),
            "from": entry.times_ns.map(|times| Instant::from(times.0)),
            "until": entry.times_ns.map(|times| Instant::from(times.1)),
            "packets": entry.packets, "captured_bytes": entry.captured_bytes,
            "file_bytes": entry.file_bytes, "chunks": entry.chunks,
        })
    };
    let run = |run: &RunEntry| {
        json!({
            "run": run.run.to_string(), "state": format!("{:?}", run.state).to_lowercase(),
            "import": run.import, "lanes": run.lanes, "started": time(run.started_ns),
            "alive": time(run.alive_ns), "ended": time(run.ended_ns),
        })
    };
    json!({
        "path": volume.media.describe(),
        "superblock": {
            "slot": volume.superblock_slot, "generation": superblock.generation,
            "store": superblock.store.to_string(), "volume": superblock.volume.to_string(),
            "number": superblock.number, "volume_paths": superblock.volume_paths,
            "sealed": superblock.sealed, "created": time(superblock.created_ns),
            "replacement": superblock.replacement,
            "quota_bytes": superblock.quota_bytes, "segment_bytes": superblock.segment_bytes,
            "places": superblock.places, "evicted_live": time(superblock.evicted_live_ns),
            "evicted_import": time(superblock.evicted_import_ns), "key_id": superblock.key_id,
            "key_path": superblock.key_path, "segments_offset": superblock.segments_offset,
            "runs_offset": superblock.runs_offset, "ring_offset": superblock.ring_offset,
        },
        "key_ring": ring,
        "segments": used(volume).map(segment).collect::<Vec<_>>(),
        "runs": runs(volume).map(run).collect::<Vec<_>>(),
    })
}

fn line(out: &mut String, text: &str) {
    // Writing into a text cannot fail.
    let _ = writeln!(out, "{text}");
}
