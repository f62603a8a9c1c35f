//! `wirevault verify`: every chunk of every segment is read and checked.

use serde::Serialize;
use wirevault_format::chunk::TAG_BYTES;
use wirevault_format::pcapng::{BLOCK_EPB, Blocks};
use wirevault_index::error::chain;
use wirevault_index::volume::segment_file_name;
use wirevault_index::{Catalog, IndexError, Segment, SegmentReader};
use wirevault_query::filter;
use wirevault_query::summary::Instant;
use wirevault_seal::chain::Chain;
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::args::VerifyArgs;
use crate::error::CliError;
use crate::interrupt::{self, Cancel};
use crate::outcome::Outcome;
use crate::output::{Paint, count_text, put, put_json, size_text};
use crate::{place, progress};

/// Where the CRC of a plain chunk's body stands in its tail.
const BODY_CRC_AT: usize = 40;
/// A question that makes an index look at its addresses and ports.
const ANY_QUESTION: &str = "host 192.0.2.1 or port 1";

/// What was checked and what was found.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Nothing is damaged or missing.
    whole: bool,
    /// The user ended it; `whole` speaks of what was checked until then.
    cancelled: bool,
    segments: u64,
    chunks: u64,
    packets: u64,
    /// Bytes of the chunks on disk.
    bytes: u64,
    /// Segments that were given up for the quota while this ran.
    given_up: u64,
    damaged: Vec<Damaged>,
    missing_volumes: Vec<String>,
}

/// Something that is not as it was written.
#[derive(Debug, Serialize)]
struct Damaged {
    segment: String,
    volume: u16,
    file: String,
    /// Chunk, if it is one.
    chunk: Option<u32>,
    /// Times between which its packets lie.
    from: Option<Instant>,
    until: Option<Instant>,
    what: String,
}

/// Checks a store.
pub(crate) fn verify(args: &VerifyArgs) -> Result<Outcome, CliError> {
    let cancel = interrupt::watch()?;
    let store = place::open(&args.store, args.key.as_deref())?;
    let catalog = store.catalog(SystemClock.unix_ns());
    for volume in store.volumes {
        match volume.ring {
            // Damage of the ring shows as damage of every segment that it held a key for.
            Some(Err(IndexError::Key { source, .. })) if source.is_damage() => {}
            // Without the key nothing can be said about any chunk.
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(_)) | None => {}
        }
    }
    let report = check(&catalog, &cancel);
    match args.json {
        true => put_json(&report)?,
        false => put(&text(&report, Paint::stdout()))?,
    }
    Ok(match report.whole && !report.cancelled {
        true => Outcome::Found,
        false => Outcome::Incomplete,
    })
}

fn check(catalog: &Catalog, cancel: &Cancel) -> Report {
    let bytes = catalog.segments.iter().map(|segment| segment.entry.file_bytes).sum();
    let bar = progress::bytes("checking", bytes);
    let missing = catalog.missing_volumes.iter();
    let mut report = Report {
        missing_volumes: missing.map(|volume| format!("{}: {}", volume.path, volume.why)).collect(),
        ..Report::default()
    };
    for segment in &catalog.segments {
        let mut progress = |bytes| {
            bar.inc(bytes);
            !interrupt::is_set(cancel)
        };
        let found = report.damaged.len();
        let before = (report.chunks, report.packets, report.bytes);
        let checked = Checked { segment, report: &mut report }.run(&mut progress);
        if let Err(error) = checked {
            if error.is_reused() {
                report.damaged.truncate(found);
                (report.chunks, report.packets, report.bytes) = before;
                report.given_up += 1;
                continue;
            }
            let what = chain(&error);
            report.damaged.push(damaged(segment, None, segment.entry.times_ns, what));
        }
        report.segments += 1;
        if interrupt::is_set(cancel) {
            report.cancelled = true;
            break;
        }
    }
    bar.finish_and_clear();
    report.whole = report.damaged.is_empty() && report.missing_volumes.is_empty();
    report
}

/// One segment being checked.
struct Checked<'a> {
    segment: &'a Segment,
    report: &'a mut Report,
}

impl Checked<'_> {
    /// Damage of chunks goes into the report; an error is damage of the segment as a whole.
    fn run(&mut self, progress: &mut impl FnMut(u64) -> bool) -> Result<(), IndexError> {
        let reader = self.segment.open()?;
        if let Some(what) = reader.index_damage() {
            self.whole_damage(format!("its index or footer is damaged: {what}"));
        }
        for damage in reader.damage() {
            let times = damage.from_ns.zip(damage.until_ns);
            let what = format!("an acknowledged chunk is not at byte {}", damage.offset);
            self.chunk_damage(damage.chunk, times, what);
        }
        let known: Vec<u32> = reader.damage().iter().map(|damage| damage.chunk).collect();
        let entries = reader.with_index(|index| index.chunks().to_vec());
        let (mut chain, mut broken) = (Chain::new(), false);
        let mut buf = Vec::new();
        for (number, entry) in (0..).zip(&entries) {
            if known.contains(&number) {
                broken = true;
                continue;
            }
            let read = reader.read_chunk(number, &mut buf).map(|(header, payload)| {
                let tail = payload.end;
                chain.add(match header.sealed {
                    true => &buf[tail..tail + TAG_BYTES],
                    false => &buf[tail + BODY_CRC_AT..tail + BODY_CRC_AT + 4],
                });
                (header.packets, packets(&buf[payload]))
            });
            match read {
                Ok((stated, Ok(counted))) if stated == counted => {
                    self.report.packets += u64::from(counted);
                }
                Ok((stated, Ok(counted))) => {
                    let what = format!("it holds {counted} packets, its header says {stated}");
                    self.chunk_damage(number, entry.times_ns, what);
                }
                Ok((_, Err(what))) => self.chunk_damage(number, entry.times_ns, what),
                Err(error) if error.is_reused() => return Err(error),
                Err(error) => {
                    broken = true;
                    self.chunk_damage(
                        number,
                        entry.times_ns,
                        wirevault_index::error::chain(&error),
                    );
                }
            }
            self.report.chunks += 1;
            self.report.bytes += u64::from(entry.chunk_bytes);
            if !progress(u64::from(entry.chunk_bytes)) {
                return Ok(());
            }
        }
        if let Some(footer) = reader.footer()
            && !broken
            && chain.finish() != footer.chain
        {
            self.whole_damage("the hash in its footer is not that of its chunks".to_owned());
        }
        self.index(&reader)
    }

    /// Decodes every part of the index; most of them are otherwise read only when a question needs
    /// them.
    fn index(&mut self, reader: &SegmentReader) -> Result<(), IndexError> {
        reader.check_padding()?;
        reader.with_index(|index| index.flows().map(drop))?;
        let Ok(program) = filter::compile(ANY_QUESTION, self.segment.entry.link_type) else {
            return Ok(());
        };
        let damage = reader.with_index(|index| index.select(&program, 0, u64::MAX).index_damage);
        if let Some(what) = damage {
            self.whole_damage(what);
        }
        Ok(())
    }

    fn chunk_damage(&mut self, chunk: u32, times_ns: Option<(u64, u64)>, what: String) {
        let times_ns = times_ns.or(self.segment.entry.times_ns);
        self.report.damaged.push(damaged(self.segment, Some(chunk), times_ns, what));
    }

    fn whole_damage(&mut self, what: String) {
        let times_ns = self.segment.entry.times_ns;
        self.report.damaged.push(damaged(self.segment, None, times_ns, what));
    }
}

/// Packets of a payload, or why it is no row of whole blocks.
fn packets(payload: &[u8]) -> Result<u32, String> {
    let mut packets = 0;
    for block in Blocks::new(payload) {
        let block = block.map_err(|error| format!("its blocks are damaged: {error}"))?;
        packets += u32::from(block.kind == BLOCK_EPB);
    }
    Ok(packets)
}

fn damaged(
    segment: &Segment,
    chunk: Option<u32>,
    times_ns: Option<(u64, u64)>,
    what: String,
) -> Damaged {
    Damaged {
        segment: segment.name(),
        volume: segment.volume,
        file: segment_file_name(segment.place),
        chunk,
        from: times_ns.map(|times| times.0.into()),
        until: times_ns.map(|times| times.1.into()),
        what,
    }
}

fn text(report: &Report, paint: Paint) -> String {
    let mut text = String::new();
    for damaged in &report.damaged {
        let Damaged { segment, volume, file, what, .. } = damaged;
        let chunk = damaged.chunk.map_or(String::new(), |chunk| format!(", chunk {chunk}"));
        let times = match (&damaged.from, &damaged.until) {
            (Some(from), Some(until)) => format!("packets from {from} to {until}"),
            _ => "times unknown".to_owned(),
        };
        let place = format!("segment {segment}{chunk} (volume {volume}, {file}), {times}");
        text += &format!("{}: {place}\n  {what}\n", paint.bad("damaged"));
    }
    for volume in &report.missing_volumes {
        text += &format!("{}: volume {volume}\n", paint.bad("missing"));
    }
    let verdict = match (report.whole, report.cancelled) {
        (true, false) => paint.good("whole"),
        (true, true) => "no damage until it was interrupted".to_owned(),
        (false, _) => paint.bad("DAMAGED"),
    };
    let segments = count_text(report.segments, "segment");
    let chunks = count_text(report.chunks, "chunk");
    let (packets, bytes) = (count_text(report.packets, "packet"), size_text(report.bytes));
    text += &format!("{segments}, {chunks}, {packets}, {bytes}: {verdict}\n");
    if report.given_up > 0 {
        let segments = count_text(report.given_up, "segment");
        text += &format!("{segments} given up for the quota meanwhile\n");
    }
    text
}
