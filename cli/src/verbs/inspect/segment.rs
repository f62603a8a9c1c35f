//! `wirevault inspect segment`: what a segment's file says without any key.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use wirevault_format::chunk::{ChunkHeader, HEADER_BYTES};
use wirevault_format::footer::{FOOTER_BYTES, Footer};
use wirevault_format::segment::{REGION_BYTES_MAX, SegmentRegion, decode};
use wirevault_format::{Cause, Interface};
use wirevault_index::volume::segment_file_name;
use wirevault_index::{KeySource, open_store};
use wirevault_query::summary::Instant;

use crate::args::InspectSegmentArgs;
use crate::error::CliError;
use crate::outcome::Outcome;
use crate::output::{put, put_json, size_text, table, table_text};

/// Shows header, chunks and footer.
pub(super) fn show(args: &InspectSegmentArgs) -> Result<Outcome, CliError> {
    let path = match &args.store {
        Some(store) => find(store, &args.segment)?,
        None => PathBuf::from(&args.segment),
    };
    let file = Segment::read(&path)?;
    let region = file.region()?;
    match args.json {
        true => put_json(&file.json(&region))?,
        false => put(&file.text(&region))?,
    }
    Ok(match file.footer {
        Err(_) if file.end_is_torn => Outcome::Incomplete,
        _ => Outcome::Found,
    })
}

/// The file of a segment that is known by its name.
fn find(store: &Path, name: &str) -> Result<PathBuf, CliError> {
    let reader = open_store(store, &KeySource::Recorded)?;
    let catalog = reader.catalog(0);
    let segment = catalog.segments.iter().find(|segment| segment.name() == name);
    let segment = segment.ok_or_else(|| {
        let store = store.display();
        CliError::Usage(format!(
            "{store} has no segment {name}; `wirevault segments --store {store}` lists them"
        ))
    })?;
    let volume = reader.volumes.iter().find(|it| it.superblock.number == segment.volume);
    let dir = volume.map_or_else(|| store.display().to_string(), |it| it.media.describe());
    Ok(Path::new(&dir).join(segment_file_name(segment.place)))
}

/// What was read of a file.
struct Segment {
    path: PathBuf,
    head: Vec<u8>,
    file_bytes: u64,
    /// Offsets and headers, in file order.
    chunks: Vec<(u64, ChunkHeader)>,
    /// Where the chunks end.
    end: u64,
    footer: Result<Box<Footer>, String>,
    /// There are bytes behind the chunks, and no footer ends them.
    end_is_torn: bool,
}

impl Segment {
    fn read(path: &Path) -> Result<Self, CliError> {
        let failed = || CliError::file(path);
        let file = File::open(path).map_err(failed())?;
        let file_bytes = file.metadata().map_err(failed())?.len();
        let head = read_at(&file, 0, REGION_BYTES_MAX as u64, file_bytes).map_err(failed())?;
        let region =
            decode(&head).map_err(|source| CliError::Format { path: path.to_owned(), source })?;
        let (life, mut end) = (region.header.life, region.region_bytes as u64);
        let mut chunks = Vec::new();
        loop {
            let bytes = read_at(&file, end, HEADER_BYTES as u64, file_bytes).map_err(failed())?;
            match ChunkHeader::decode(&bytes) {
                Ok(header) if header.life == life => {
                    let next = end + header.chunk_bytes() as u64;
                    chunks.push((end, header));
                    end = next;
                }
                _ => break,
            }
        }
        let at = file_bytes.saturating_sub(FOOTER_BYTES as u64);
        let page = read_at(&file, at, FOOTER_BYTES as u64, file_bytes).map_err(failed())?;
        let footer = match Footer::decode(&page) {
            Ok(footer) if footer.life == life => Ok(Box::new(footer)),
            Ok(footer) => Err(format!("the footer at byte {at} is of life {}", footer.life)),
            Err(error) => Err(error.to_string()),
        };
        let rest = read_at(&file, end, FOOTER_BYTES as u64, file_bytes).map_err(failed())?;
        let end_is_torn = footer.is_err() && rest.iter().any(|byte| *byte != 0);
        let path = path.to_owned();
        Ok(Self { path, head, file_bytes, chunks, end, footer, end_is_torn })
    }

    fn region(&self) -> Result<SegmentRegion<'_>, CliError> {
        decode(&self.head).map_err(|source| CliError::Format { path: self.path.clone(), source })
    }

    fn text(&self, region: &SegmentRegion<'_>) -> String {
        let header = &region.header;
        let mut text =
            format!("{}, {}\n\nheader\n", self.path.display(), size_text(self.file_bytes));
        let sealed = if header.sealed { "sealed" } else { "plaintext" };
        let made_by = if header.import { "import" } else { "live capture" };
        for (name, value) in [
            ("store", header.store.to_string()),
            ("life", header.life.to_string()),
            ("ordinal", header.ordinal.to_string()),
            ("place", header.place.to_string()),
            ("run", header.run.to_string()),
            ("lane", header.lane.to_string()),
            ("link type", header.link_type.to_string()),
            ("opened", Instant::from(header.opened_ns).to_string()),
            ("packets are", format!("{sealed}, from {made_by}")),
            ("interfaces", interfaces_text(region)),
        ] {
            line(&mut text, &format!("  {name:<12} {value}"));
        }
        let mut table = table(
            &["chunk", "offset", "bytes", "packets", "first seq", "from", "until", "dropped"],
            &[0, 1, 2, 3, 4, 7],
        );
        for (offset, chunk) in &self.chunks {
            let time = |time: Option<u64>| time.map_or("-".to_owned(), |ns| Instant::from(ns).utc);
            table.add_row([
                chunk.number.to_string(),
                offset.to_string(),
                chunk.chunk_bytes().to_string(),
                chunk.packets.to_string(),
                chunk.first_sequence.to_string(),
                time(chunk.times_ns.map(|times| times.0)),
                time(chunk.times_ns.map(|times| times.1)),
                chunk.dropped.to_string(),
            ]);
        }
        let end = self.end;
        line(&mut text, &format!("\n{} chunks, up to byte {end}", self.chunks.len()));
        text += &table_text(&table, "  ");
        match &self.footer {
            Ok(footer) => text += &footer_text(footer),
            Err(why) => line(&mut text, &format!("\nno footer: {why}")),
        }
        text
    }

    fn json(&self, region: &SegmentRegion<'_>) -> Value {
        let header = &region.header;
        let interfaces: Option<Vec<Value>> = match region.sealed_table {
            Some(_) => None,
            None => Some(region.interfaces.iter().map(interface_json).collect()),
        };
        let times = |times: Option<(u64, u64)>| {
            times.map(
                |times| json!({"from": Instant::from(times.0), "until": Instant::from(times.1)}),
            )
        };
        let chunk = |(offset, chunk): &(u64, ChunkHeader)| {
            json!({
                "number": chunk.number, "offset": offset, "bytes": chunk.chunk_bytes(),
                "payload_bytes": chunk.payload_bytes, "packets": chunk.packets,
                "first_sequence": chunk.first_sequence, "times": times(chunk.times_ns),
                "received": chunk.received, "shed": chunk.shed, "dropped": chunk.dropped,
                "watermark": chunk.watermark, "gaps": chunk.gaps,
            })
        };
        let footer = self.footer.as_ref().map(|footer| footer_json(footer, &times));
        json!({
            "file": self.path.display().to_string(),
            "file_bytes": self.file_bytes,
            "header": {
                "store": header.store.to_string(), "life": header.life.to_string(),
                "run": header.run.to_string(), "ordinal": header.ordinal, "place": header.place,
                "lane": header.lane, "link_type": header.link_type.to_string(),
                "sealed": header.sealed, "import": header.import,
                "opened": Instant::from(header.opened_ns),
                "interfaces": interfaces,
            },
            "chunks": self.chunks.iter().map(chunk).collect::<Vec<_>>(),
            "chunks_end": self.end,
            "footer": footer.as_ref().ok(),
            "no_footer": footer.as_ref().err(),
        })
    }
}

/// Bytes from `offset`, fewer at the end of the file.
fn read_at(file: &File, offset: u64, bytes: u64, file_bytes: u64) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; bytes.min(file_bytes.saturating_sub(offset)) as usize];
    file.read_exact_at(&mut buf, offset)?;
    Ok(buf)
}

fn interfaces_text(region: &SegmentRegion<'_>) -> String {
    if region.sealed_table.is_some() {
        return "sealed".to_owned();
    }
    let name = |interface: &Interface| interface.name.clone().unwrap_or_else(|| "unnamed".into());
    region.interfaces.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn interface_json(interface: &Interface) -> Value {
    json!({
        "name": interface.name, "description": interface.description,
        "link_type": interface.link_type.to_string(), "snaplen_bytes": interface.snaplen_bytes,
        "filter": interface.filter, "hardware": interface.hardware, "os": interface.os,
        "clock": interface.clock,
    })
}

fn dropped(footer: &Footer) -> impl Iterator<Item = (&'static str, u64)> {
    let counts = Cause::ALL.iter().map(|cause| (cause.name(), footer.dropped[cause.index()]));
    counts.filter(|(_, packets)| *packets > 0)
}

fn footer_text(footer: &Footer) -> String {
    let mut text = "\nfooter\n".to_owned();
    let times = footer.times_ns.map_or("none".to_owned(), |(from, until)| {
        format!("{} to {}", Instant::from(from), Instant::from(until))
    });
    let dropped: Vec<_> = dropped(footer).map(|(cause, n)| format!("{n} {cause}")).collect();
    let recovered = if footer.recovered { ", by recovery" } else { "" };
    let (reason, closed) = (footer.close_reason.name(), Instant::from(footer.closed_ns));
    for (name, value) in [
        ("closed", format!("{closed}: {reason}{recovered}")),
        ("packets", format!("{}, {}", footer.packets, size_text(footer.captured_bytes))),
        ("times", times),
        ("sequences", format!("{} up to {}", footer.sequences.0, footer.sequences.1)),
        ("received", footer.received.to_string()),
        ("shed", footer.shed.to_string()),
        ("dropped", if dropped.is_empty() { "0".to_owned() } else { dropped.join(", ") }),
        ("flows", footer.flows.to_string()),
        ("not indexed", format!("{} chunks", footer.unindexed_chunks)),
        ("hash", hex(&footer.chain)),
    ] {
        line(&mut text, &format!("  {name:<12} {value}"));
    }
    let mut table = table(&["section", "codec", "parts", "offset", "bytes", "raw"], &[2, 3, 4, 5]);
    for entry in &footer.directory {
        table.add_row([
            format!("{:?}", entry.id),
            format!("{:?}", entry.codec),
            entry.parts.to_string(),
            entry.offset.to_string(),
            entry.blocks_bytes.to_string(),
            entry.raw_bytes.to_string(),
        ]);
    }
    line(&mut text, "\nindex");
    text + &table_text(&table, "  ")
}

fn footer_json(footer: &Footer, times: &impl Fn(Option<(u64, u64)>) -> Option<Value>) -> Value {
    let section = |entry: &wirevault_format::footer::DirectoryEntry| {
        json!({
            "section": format!("{:?}", entry.id), "codec": format!("{:?}", entry.codec),
            "parts": entry.parts, "offset": entry.offset, "bytes": entry.blocks_bytes,
            "raw_bytes": entry.raw_bytes,
        })
    };
    json!({
        "closed": Instant::from(footer.closed_ns), "close_reason": footer.close_reason.name(),
        "recovered": footer.recovered, "chunks": footer.chunks, "packets": footer.packets,
        "captured_bytes": footer.captured_bytes, "times": times(footer.times_ns),
        "sequences": [footer.sequences.0, footer.sequences.1], "received": footer.received,
        "shed": footer.shed,
        "dropped": dropped(footer).collect::<std::collections::BTreeMap<_, _>>(),
        "flows": footer.flows, "unindexed_chunks": footer.unindexed_chunks,
        "hash": hex(&footer.chain), "index_offset": footer.index_offset,
        "sections": footer.directory.iter().map(section).collect::<Vec<_>>(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn line(out: &mut String, text: &str) {
    // Writing into a text cannot fail.
    let _ = writeln!(out, "{text}");
}
