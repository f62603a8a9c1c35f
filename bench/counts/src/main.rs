//! One small job of the packet path at a time, for `cargo xtask counts`.
//!
//! Run under callgrind, which counts instructions, and only those within [`measured`]: what a job
//! needs is made before. Instructions do not change with other programs' work or with the clock, so
//! a change of a few per cent is a change of the code.

#![forbid(unsafe_code)]

use std::hint::black_box;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use wirevault_format::chunk::{ChunkHeader, HEADER_BYTES, PAYLOAD_BYTES_MAX, put_plain_tail};
use wirevault_format::limits::CHUNK_BYTES;
use wirevault_format::pcapng::write::{EpbParts, put_epb};
use wirevault_format::{LifeId, LinkType, RunId};
use wirevault_index::flow_table::{BATCH, FlowOptions};
use wirevault_index::{ChunkDelta, FlowTable, PacketNote};
use wirevault_packet::dissect;
use wirevault_seal::SegmentKeys;

/// Flows of the packets that are entered.
const FLOWS: u32 = 10_000;
const PACKETS: u32 = 20_000;
const HEADERS: u32 = 1000;
const AAD_BYTES: usize = 128;

/// A job, by its name.
type Job = (&'static str, fn() -> Result<u64>);

/// Jobs; each gives how many times it did its work.
const JOBS: &[Job] = &[
    ("write a block of 64 B", || blocks(64)),
    ("write a block of 1500 B", || blocks(1500)),
    ("write and read a chunk header", headers),
    ("dissect TCP in IPv4", || dissected(&tcp_ipv4)),
    ("dissect UDP in IPv6 with a VLAN tag", || dissected(&udp_ipv6_vlan)),
    ("dissect TCP in IPv4 in VXLAN", || dissected(&vxlan)),
    ("enter a packet in the flow table", upserts),
    ("seal a chunk", seal),
    ("check sum of a plain chunk", plain_tail),
];

fn main() -> ExitCode {
    match run(std::env::args().nth(1).as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wirevault-counts: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Does one job and prints how often, or prints the names of all.
fn run(name: Option<&str>) -> Result<()> {
    let Some(name) = name else {
        JOBS.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    };
    let Some((_, job)) = JOBS.iter().find(|(known, _)| *known == name) else {
        bail!("there is no job `{name}`; without an argument the jobs are listed");
    };
    println!("{}", job()?);
    Ok(())
}

/// The function whose instructions, and those of what it calls, are counted.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

fn blocks(bytes: usize) -> Result<u64> {
    let (data, mut chunk) = (vec![0x5a; bytes], vec![0; CHUNK_BYTES]);
    measured(|| {
        let (mut at, mut written) = (0, 0);
        let parts = EpbParts {
            interface_id: 0,
            ts_ns: 1_700_000_000_000_000_000,
            orig_len: bytes as u32,
            data: black_box(&data),
            vlan: None,
            flags: None,
            raw_options: &[],
        };
        while let Some(bytes) = put_epb(&mut chunk, at, black_box(&parts)) {
            at += bytes;
            written += 1;
        }
        Ok(written)
    })
}

fn header(sealed: bool) -> ChunkHeader {
    ChunkHeader {
        sealed,
        gaps: false,
        lane: 3,
        link_type: LinkType::ETHERNET,
        life: LifeId([7; 16]),
        run: RunId(9),
        number: 11,
        payload_bytes: PAYLOAD_BYTES_MAX as u32,
        first_sequence: 1_000_000,
        packets: 170,
        times_ns: Some((1, 2)),
        received: 1_000_170,
        shed: 0,
        dropped: 0,
        watermark: 999_000,
    }
}

fn headers() -> Result<u64> {
    let (header, mut chunk) = (header(true), vec![0; CHUNK_BYTES]);
    measured(|| {
        for _ in 0..HEADERS {
            black_box(&header).encode(&mut chunk);
            black_box(ChunkHeader::decode(&chunk[..HEADER_BYTES])?);
        }
        Ok(u64::from(HEADERS))
    })
}

fn dissected(frame: &dyn Fn(u32) -> Vec<u8>) -> Result<u64> {
    let frames: Vec<_> = (0..64).map(frame).collect();
    measured(|| {
        for at in 0..PACKETS as usize {
            black_box(dissect(LinkType::ETHERNET, black_box(&frames[at % frames.len()])));
        }
        Ok(u64::from(PACKETS))
    })
}

fn upserts() -> Result<u64> {
    let note = |number: u32| {
        // All flows, in an order that is not that of the table.
        let frame = tcp_ipv4(number.wrapping_mul(7919) % FLOWS);
        let dissected = dissect(LinkType::ETHERNET, &frame);
        PacketNote {
            key: dissected.key,
            hash: dissected.hash,
            direction: dissected.direction,
            ts_ns: u64::from(number),
            wire_len: 64,
            captured_len: 64,
            tcp_flags: dissected.tcp_flags,
        }
    };
    let notes: Vec<_> = (0..PACKETS).map(note).collect();
    let mut table = FlowTable::new(FlowOptions { flows_max: FLOWS });
    let mut delta = ChunkDelta::new();
    table.begin_chunk(&delta);
    table.upsert(&notes, &mut delta);
    delta.clear();
    delta.number = 1;
    table.begin_chunk(&delta);
    measured(|| notes.chunks(BATCH).for_each(|batch| table.upsert(batch, &mut delta)));
    Ok(u64::from(PACKETS))
}

fn seal() -> Result<u64> {
    let mut sealer = SegmentKeys::generate()?.data_sealer()?;
    let mut payload = vec![0x5a; PAYLOAD_BYTES_MAX];
    measured(|| sealer.seal(0, &[0; AAD_BYTES], &mut payload)).context("sealing")?;
    Ok(1)
}

fn plain_tail() -> Result<u64> {
    let (header, mut chunk) = (header(false), vec![0x5a; CHUNK_BYTES]);
    measured(|| put_plain_tail(black_box(&mut chunk), &header));
    Ok(1)
}

/// A frame of 64 bytes or more: `before` the innermost headers, then these.
fn frame(before: &[u8], headers: &[u8]) -> Vec<u8> {
    let mut frame = [before, headers].concat();
    frame.resize(frame.len().max(64), 0);
    frame
}

fn tcp_ipv4(flow: u32) -> Vec<u8> {
    frame(&ethernet(0x0800), &ipv4(6, flow, &[0x50, 0x10]))
}

fn udp_ipv6_vlan(flow: u32) -> Vec<u8> {
    let mut headers = vec![0, 5, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 17, 64];
    for side in [1, 2] {
        headers.extend([0x26, 0, 0, 0, 0, 0, 0, 0, 0, 0, side, 0]);
        headers.extend(flow.to_be_bytes());
    }
    headers.extend([0x80, 1, 0, 53, 0, 20, 0, 0]);
    frame(&ethernet(0x8100), &headers)
}

fn vxlan(flow: u32) -> Vec<u8> {
    let mut before = ethernet(0x0800);
    before.extend([0x45, 0, 0, 114, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    before.extend([0xc0, 0, 0x12, 0xb5, 0, 94, 0, 0]);
    before.extend([8, 0, 0, 0, 0, 0, 5, 0]);
    before.extend(ethernet(0x0800));
    frame(&before, &ipv4(6, flow, &[0x50, 0x10]))
}

fn ethernet(kind: u16) -> Vec<u8> {
    let mut header = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    header.extend(kind.to_be_bytes());
    header
}

fn ipv4(protocol: u8, flow: u32, offset_and_flags: &[u8; 2]) -> Vec<u8> {
    let [_, a, b, c] = flow.to_be_bytes();
    let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    header.extend([10, a, b, c, 192, 168, 0, 1, 0x80, c, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 1]);
    header.extend(offset_and_flags);
    header.extend([1, 0, 0, 0, 0, 0]);
    header
}
