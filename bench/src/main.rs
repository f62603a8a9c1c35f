//! `wirevault-bench`: how fast the recorder is, beside what the machine could do at best.
//!
//! ```text
//!  pipeline: packets in memory ──► lane ─► seal ─► write ──► nothing, or a file
//!  soak:     the same for minutes: does it grow?
//!  live:     sender ──► veth ═══ veth ──► lane ─► seal ─► write ──► files
//!  peers:    sender ──► veth ═══ veth ──► wirevaultd, or another recorder
//!  scale:    tables of 100,000 segments ──► open ─► catalog ─► plan
//!  needle:   digests and indexes of 10,000 segments ──► one host
//!  found:    packets at full rate, and single ones that are asked for until they are found
//!  lanes:    the pipeline with 1 to 32 lanes, onto 1 to 8 volumes
//!  records:  the work of a message log: appending, reading, looking up
//!  device:   packets as large as chunks, 1 to 8 lanes ──► seal ─► write ──► files, beside fio
//! ```
//! `index` measures the flow table and the index of a full segment, without a pipeline.
//!
//! Every figure comes with those of the same run that it is measured against: memcpy, AES-256-GCM
//! and O_DIRECT writes. `--json` prints the same as one JSON object; `--save` keeps the run in
//! bench/runs/, and `tables` puts what was kept into the documents.
//!
//! - [`packets`]: packets in memory, and a source that hands them out. [`site`]: a temporary sealed
//!   store and its pipeline. [`limits`] and [`bound`]: what the machine can do. [`threads`]: CPU
//!   time by stage. [`traffic`]: frames with flows as on a link.
//! - [`sender`]: sequence-stamped packets at a steady rate. [`ring`]: a bare reader of the kernel's
//!   ring. [`sys`], below both, and [`live_frames`], a quicker sender, hold the only unsafe code.
//! - [`output`]: how results are printed and kept. [`machine`]: what is known of the machine.

#![deny(unsafe_code)]

mod bound;
mod device;
mod found;
mod index;
mod lanes;
mod limits;
mod live;
#[expect(unsafe_code, reason = "calls of bpf(2)")]
mod live_frames;
mod machine;
mod needle;
mod output;
mod packets;
mod peers;
mod pipeline;
mod records;
mod ring;
mod scale;
mod sender;
mod site;
mod soak;
#[expect(unsafe_code, reason = "one call that sends many frames, a ring shared with the kernel")]
mod sys;
mod tables;
mod threads;
mod traffic;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::output::{Output, OutputOptions};

/// Measures the recorder.
#[derive(Debug, Parser)]
#[command(name = "wirevault-bench", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    output: OutputOptions,
}

#[derive(Debug, Subcommand)]
enum What {
    /// From memory through the pipeline, sealed and indexed, into nothing and into a file.
    #[command(
        after_help = "Example: cargo run --release -p wirevault-bench -- pipeline --device null"
    )]
    Pipeline(pipeline::Options),
    /// The pipeline at full rate for minutes: whether its memory or its cost per packet grows.
    #[command(after_help = "Example: cargo run --release -p wirevault-bench -- soak --secs 600")]
    Soak(soak::Options),
    /// From an interface into sealed and indexed segments, at steady rates. Needs root.
    #[command(
        after_help = "Example: cargo run --release -p wirevault-bench -- live --secs 10 --runs 1"
    )]
    Live(live::Options),
    /// The recorder beside stenotype, tcpdump, netsniff-ng and dumpcap, those that are installed.
    /// Needs root and two cores.
    #[command(
        after_help = "Example: cargo build --release && target/release/wirevault-bench peers"
    )]
    Peers(peers::Options),
    /// A store of very many segments: opening it, its catalog, planning.
    #[command(after_help = "Example: cargo run --release -p wirevault-bench -- scale")]
    Scale(scale::Options),
    /// One host among the segments of 10 TB, with caches and without. Needs root, and 3 GB of disk.
    #[command(after_help = "Example: cargo run --release -p wirevault-bench -- needle")]
    Needle(needle::Options),
    /// How long after its arrival a packet is found, and seen live, at full rate. Needs root.
    #[command(after_help = "Example: cargo run --release -p wirevault-bench -- found --secs 60")]
    Found(found::Options),
    /// To a directory's disk from 1, 2, 4 and 8 lanes, beside one sequential stream of fio.
    #[command(
        after_help = "Example: cargo run --release -p wirevault-bench -- device --folder /var/tmp"
    )]
    Device(device::Options),
    /// The flow table and the index of a full segment, alone.
    #[command(after_help = "Example: cargo run --release -p wirevault-bench -- index --mib 0")]
    Index(index::Options),
    /// From 1 lane to 32, onto 1 volume to 8: what a packet costs.
    #[command(after_help = "Example: cargo run --release -p wirevault-bench -- lanes --mib 2048")]
    Lanes(lanes::Options),
    /// Records of 1 KiB: appending, reading, looking up, as a message log does.
    #[command(after_help = "Example: cargo run --release -p wirevault-bench -- records")]
    Records(records::Options),
    /// Puts the runs that were kept with --save into README.md and docs/SPEC.md.
    Tables,
    /// Takes packets from an interface, copies each once and counts them until SIGINT.
    #[command(hide = true)]
    ReadRing(ring::Options),
}

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("wirevault-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn measure(arguments: &Arguments) -> anyhow::Result<bool> {
    let output = |what| {
        if cfg!(debug_assertions) {
            eprintln!("wirevault-bench: this is a debug build; its figures mean nothing");
        }
        Output::new(&arguments.output, what)
    };
    match &arguments.what {
        What::Pipeline(options) => pipeline::run(options, output("pipeline")?),
        What::Soak(options) => soak::run(options, output("soak")?),
        What::Live(options) => live::run(options, output("live")?),
        What::Peers(options) => peers::run(options, output("peers")?),
        What::Scale(options) => scale::run(options, output("scale")?),
        What::Needle(options) => needle::run(options, output("needle")?),
        What::Found(options) => found::run(options, output("found")?),
        What::Device(options) => device::run(options, output("device")?),
        What::Index(options) => index::run(options, output("index")?),
        What::Lanes(options) => lanes::run(options, output("lanes")?),
        What::Records(options) => records::run(options, output("records")?),
        What::Tables => tables::run(),
        What::ReadRing(options) => ring::run(options),
    }
}
