//! What an interrupted segment still holds: one scan, then one decision table (`docs/RECOVERY.md`
//! has the same rows).
//!
//! The scan follows chunk lengths from the first chunk and, where that breaks, steps by 4 KiB until
//! a header of the same life shows again. The decision for each position rests on four questions
//! and nothing else.

use std::io;

use wirevault_format::chunk::{self, ChunkHeader, HEADER_BYTES, TAG_BYTES};
use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};
use wirevault_format::{FormatError, LifeId};
use wirevault_media::MediaFile;
use wirevault_seal::DataOpener;

/// What to do with a position of an interrupted segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The chunk is whole and in order.
    Keep,
    /// The segment ends before this position: what follows was never acknowledged.
    Cut,
    /// Acknowledged bytes are damaged here: report, keep the chunk's place, go on behind it.
    Damaged,
    /// Acknowledged chunks are missing before this one: report, keep the chunk.
    Hole,
}

/// One row of the decision table; `None` means "either".
pub struct Row {
    /// Letter in `docs/RECOVERY.md`.
    pub case: char,
    /// A header of this life decodes here.
    pub header: Option<bool>,
    /// CRC or tag of the whole chunk is right.
    pub body: Option<bool>,
    /// Number and sequence continue the chunk before.
    pub follows: Option<bool>,
    /// The watermark covers this position.
    pub acknowledged: Option<bool>,
    /// What to do.
    pub decision: Decision,
}

const YES: Option<bool> = Some(true);
const NO: Option<bool> = Some(false);

/// The decision table. A test proves that exactly one row matches every input.
#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row('A', [YES, YES,  YES,  None], Decision::Keep),
    row('B', [YES, YES,  NO,   NO],   Decision::Cut),
    row('C', [YES, NO,   None, NO],   Decision::Cut),
    row('D', [NO,  None, None, NO],   Decision::Cut),
    row('E', [YES, YES,  NO,   YES],  Decision::Hole),
    row('F', [YES, NO,   None, YES],  Decision::Damaged),
    row('G', [NO,  None, None, YES],  Decision::Damaged),
];

/// A row: header, body, follows, acknowledged.
const fn row(case: char, questions: [Option<bool>; 4], decision: Decision) -> Row {
    let [header, body, follows, acknowledged] = questions;
    Row { case, header, body, follows, acknowledged, decision }
}

/// Looks the decision up.
pub fn decide(header: bool, body: bool, follows: bool, acknowledged: bool) -> Decision {
    let is = |want: Option<bool>, have| want.is_none_or(|want| want == have);
    ROWS.iter()
        .find(|row| {
            is(row.header, header)
                && is(row.body, body)
                && is(row.follows, follows)
                && is(row.acknowledged, acknowledged)
        })
        .map(|row| row.decision)
        .expect("the table covers every input: see its test")
}

/// A chunk header of the segment's life, found at `offset`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Offset in the file.
    pub offset: u64,
    /// Header.
    pub header: ChunkHeader,
    /// CRC or tag of the whole chunk is right.
    pub body_ok: bool,
}

/// All chunks of the segment's life that a file shows, in the order of their offsets.
///
/// # Errors
/// Reading the file.
pub fn scan(
    file: &dyn MediaFile,
    life: LifeId,
    data_offset: u64,
    opener: Option<&DataOpener>,
) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut window = Window { file, start: 0, bytes: Vec::new() };
    let mut offset = data_offset;
    while let Some(bytes) = window.at(offset, HEADER_BYTES)? {
        let header = ChunkHeader::decode(bytes).ok().filter(|header| header.life == life);
        let Some(header) = header else {
            offset += LBA_BYTES as u64;
            continue;
        };
        let chunk_bytes = header.chunk_bytes();
        let body_ok = match window.at(offset, chunk_bytes)? {
            Some(bytes) => body_ok(&mut bytes.to_vec(), &header, opener),
            None => false,
        };
        // A header whose body is bad may itself be misplaced, so its length is not trusted.
        let step = if body_ok { chunk_bytes } else { LBA_BYTES };
        found.push(Found { offset, header, body_ok });
        offset += step as u64;
    }
    Ok(found)
}

fn body_ok(bytes: &mut [u8], header: &ChunkHeader, opener: Option<&DataOpener>) -> bool {
    if !header.sealed {
        return chunk::plain_payload(bytes, header).is_ok();
    }
    let Some(opener) = opener else { return false };
    let parts: Result<_, FormatError> = chunk::sealed_parts(bytes, header);
    parts.is_ok_and(|parts| {
        let tag: [u8; TAG_BYTES] = parts.tag;
        opener.open(header.number, parts.aad, parts.ciphertext, &tag).is_ok()
    })
}

/// A window over the file, read ahead by 1 MiB so that the 4 KiB steps of a resynchronisation cost
/// no read each.
struct Window<'a> {
    file: &'a dyn MediaFile,
    start: u64,
    bytes: Vec<u8>,
}

const READ_AHEAD_BYTES: usize = 1 << 20;
const _: () = assert!(READ_AHEAD_BYTES >= CHUNK_BYTES, "one read holds a chunk");

impl Window<'_> {
    /// The `len` bytes at `offset`, or `None` if the file ends before.
    fn at(&mut self, offset: u64, len: usize) -> io::Result<Option<&[u8]>> {
        let inside =
            offset >= self.start && offset + len as u64 <= self.start + self.bytes.len() as u64;
        if !inside {
            self.bytes.resize(READ_AHEAD_BYTES, 0);
            self.start = offset;
            let mut done = 0;
            while done < self.bytes.len() {
                match self.file.read_at(&mut self.bytes[done..], offset + done as u64)? {
                    0 => break,
                    bytes => done += bytes,
                }
            }
            self.bytes.truncate(done);
        }
        let from = (offset - self.start) as usize;
        Ok(self.bytes.get(from..from + len))
    }
}

/// A place of a recovered segment that should hold packets and does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Number of the chunk.
    pub chunk: u32,
    /// Where it lies.
    pub offset: u64,
    /// Times between which the missing packets lie, as far as the neighbours tell.
    pub from_ns: Option<u64>,
    /// End of that time.
    pub until_ns: Option<u64>,
    /// Packets missing, if both neighbours are there.
    pub packets: Option<u64>,
}

/// An interrupted segment after the decisions.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Chunks that stay, with their offsets. Numbers increase; a missing number is in `damage`.
    pub chunks: Vec<(u64, ChunkHeader)>,
    /// What was acknowledged and is not there.
    pub damage: Vec<Damage>,
    /// Offset behind the last chunk that stays.
    pub end: u64,
}

/// Decides what stays of a scanned segment. `watermark` is the highest that any header of this
/// stream carries, but no higher than where a later segment of the stream goes on (see
/// [`crate::catalog::set_watermarks`]).
pub fn recover(found: &[Found], data_offset: u64, watermark: u64) -> Recovered {
    let mut out = Recovered { end: data_offset, ..Recovered::default() };
    let first = found.first().map_or(0, |found| found.header.first_sequence);
    let (mut number, mut sequence) = (0u32, first);
    for candidate in found {
        if candidate.offset < out.end {
            continue;
        }
        let header = &candidate.header;
        let in_place = candidate.offset == out.end;
        let follows = in_place && header.number == number && header.first_sequence == sequence;
        // The position before this header: nothing readable stands there although it should.
        if !in_place && decide(false, false, false, sequence < watermark) == Decision::Cut {
            break;
        }
        let acknowledged = match candidate.body_ok {
            true => sequence < watermark,
            false => header.first_sequence < watermark && header.packets > 0,
        };
        match decide(true, candidate.body_ok, follows, acknowledged) {
            Decision::Cut => break,
            Decision::Keep => {}
            Decision::Hole if header.number < number => continue,
            Decision::Hole => out.damage.push(Damage {
                chunk: number,
                offset: out.end,
                from_ns: last_time(&out),
                until_ns: header.times_ns.map(|(min_ns, _)| min_ns),
                // Without a chunk before it nobody knows where the segment's sequence began.
                packets: match out.chunks.is_empty() {
                    true => None,
                    false => header.first_sequence.checked_sub(sequence),
                },
            }),
            Decision::Damaged if !follows => continue,
            Decision::Damaged => out.damage.push(Damage {
                chunk: header.number,
                offset: candidate.offset,
                from_ns: header.times_ns.map(|(min_ns, _)| min_ns),
                until_ns: header.times_ns.map(|(_, max_ns)| max_ns.saturating_add(1)),
                packets: Some(u64::from(header.packets)),
            }),
        }
        out.end = candidate.offset + header.chunk_bytes() as u64;
        number = header.number + 1;
        sequence = header.next_sequence();
        out.chunks.push((candidate.offset, header.clone()));
    }
    // Acknowledged packets may be missing at the very end; nothing later shows where they were.
    if !found.is_empty() && sequence < watermark {
        out.damage.push(Damage {
            chunk: number,
            offset: out.end,
            from_ns: last_time(&out),
            until_ns: None,
            packets: Some(watermark - sequence),
        });
    }
    out
}

fn last_time(recovered: &Recovered) -> Option<u64> {
    recovered
        .chunks
        .iter()
        .filter_map(|(_, header)| header.times_ns)
        .map(|(_, max_ns)| max_ns)
        .max()
}

#[cfg(test)]
mod tests {
    use wirevault_format::{LinkType, RunId};

    use super::*;

    #[test]
    fn exactly_one_row_matches_every_input() {
        for bits in 0..16u8 {
            let input = [bits & 8 != 0, bits & 4 != 0, bits & 2 != 0, bits & 1 != 0];
            let matching = ROWS.iter().filter(|row| {
                let want = [row.header, row.body, row.follows, row.acknowledged];
                want.iter().zip(input).all(|(want, have)| want.is_none_or(|want| want == have))
            });
            assert_eq!(matching.count(), 1, "input {input:?}");
        }
    }

    /// A chunk of 10 packets in one logical block, the `n`th of its segment.
    fn at(n: u32, watermark: u64) -> Found {
        let time = 100 * u64::from(n);
        let header = ChunkHeader {
            sealed: false,
            gaps: false,
            lane: 0,
            link_type: LinkType::ETHERNET,
            life: LifeId([1; 16]),
            run: RunId(1),
            number: n,
            payload_bytes: 100,
            first_sequence: 10 * u64::from(n),
            packets: 10,
            times_ns: Some((time, time + 50)),
            received: 0,
            shed: 0,
            dropped: 0,
            watermark,
        };
        let offset = 4096 + u64::from(n) * LBA_BYTES as u64;
        Found { offset, header, body_ok: true }
    }

    fn numbers(recovered: &Recovered) -> Vec<u32> {
        recovered.chunks.iter().map(|(_, header)| header.number).collect()
    }

    #[test]
    fn a_hole_above_the_watermark_cuts() {
        let found = [at(0, 0), at(1, 0), at(3, 10)];
        let recovered = recover(&found, 4096, 10);
        assert_eq!((numbers(&recovered), recovered.damage.len()), (vec![0, 1], 0));
    }

    #[test]
    fn a_hole_below_the_watermark_is_damage_and_the_rest_stays() {
        let found = [at(0, 0), at(2, 10), at(3, 30)];
        let recovered = recover(&found, 4096, 30);
        assert_eq!(numbers(&recovered), [0, 2, 3]);
        let damage = &recovered.damage[0];
        assert_eq!((damage.chunk, damage.packets), (1, Some(10)));
        assert_eq!((damage.from_ns, damage.until_ns), (Some(50), Some(200)));
    }

    #[test]
    fn a_torn_chunk_above_the_watermark_cuts_and_below_it_is_damage() {
        let mut torn = at(1, 0);
        torn.body_ok = false;
        let found = [at(0, 0), torn, at(2, 10)];
        assert_eq!(numbers(&recover(&found, 4096, 10)), [0]);
        let recovered = recover(&found, 4096, 30);
        assert_eq!(numbers(&recovered), [0, 1, 2]);
        assert_eq!((recovered.damage.len(), recovered.damage[0].chunk), (1, 1));
    }

    #[test]
    fn acknowledged_packets_missing_at_the_end_are_damage() {
        let recovered = recover(&[at(0, 0)], 4096, 30);
        assert_eq!(recovered.damage[0].packets, Some(20));
    }

    #[test]
    fn an_empty_file_holds_nothing() {
        assert_eq!(recover(&[], 4096, 0), Recovered { end: 4096, ..Recovered::default() });
    }
}
