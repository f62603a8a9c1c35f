//! The work of a message log: appending records of 1 KiB, reading them in order, reading one,
//! looking up where one is.
//!
//! A record is a packet here: it is sealed, indexed, written to a file and flushed. What it is
//! compared with is what the documents of a message log state of themselves, on a machine that they
//! do not name; they do not say whether anything was flushed.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;
use wirevault_index::Catalog;
use wirevault_query::export::CountSink;
use wirevault_query::{Request, run as ask};

use crate::output::{Output, spread};
use crate::packets::{MemorySource, Packets, STEP_NS, Size};
use crate::pipeline::{Device, wait_until_stored};
use crate::site::{Site, SiteOptions};
use crate::threads::StageTimes;
use crate::traffic::Random;

const BUFFER_BYTES: usize = 64 << 20;
/// Distinct records.
const MEMORY_BYTES: usize = 256 << 20;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Records appended in each run.
    #[arg(long, value_name = "N", default_value_t = 2_000_000)]
    records: u64,
    /// Runs of each; the medians are shown.
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Records looked up, and read, one by one.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    questions: u64,
    #[command(flatten)]
    site: SiteOptions,
}

/// Medians over the runs.
#[derive(Debug, Default, Serialize)]
struct Figures {
    records: u64,
    /// Into nothing, and into files, each until the last record is durable.
    appends_null_per_s: f64,
    appends_file_per_s: f64,
    /// The lane's CPU time for a record: what whoever appends would wait for.
    append_ns: f64,
    /// One record alone, from its coming to its being durable.
    alone_until_durable_ms: f64,
    reads_cold_per_s: f64,
    reads_per_s: f64,
    read_one_per_s: f64,
    lookups_per_s: f64,
}

/// Runs it; false never: it fails if a record is lost or not found.
pub(crate) fn run(options: &Options, mut output: Output) -> Result<bool> {
    ensure!(options.runs > 0 && options.records > 0, "at least one run of at least one record");
    let site = Site::new(options.site.folder.as_deref())?;
    let records = Arc::new(Packets::make(Size::Record, MEMORY_BYTES));
    let runs = (0..options.runs).map(|_| measure(options, &site, &records));
    let runs = runs.collect::<Result<Vec<_>>>()?;
    let median =
        |of: fn(&Figures) -> f64| spread(runs.iter().map(of)).map_or(0.0, |[_, middle, _]| middle);
    let figures = Figures {
        records: runs[0].records,
        appends_null_per_s: median(|run| run.appends_null_per_s),
        appends_file_per_s: median(|run| run.appends_file_per_s),
        append_ns: median(|run| run.append_ns),
        alone_until_durable_ms: median(|run| run.alone_until_durable_ms),
        reads_cold_per_s: median(|run| run.reads_cold_per_s),
        reads_per_s: median(|run| run.reads_per_s),
        read_one_per_s: median(|run| run.read_one_per_s),
        lookups_per_s: median(|run| run.lookups_per_s),
    };
    figures.say(&mut output, options.runs);
    output.finish(&figures)?;
    Ok(true)
}

fn measure(options: &Options, site: &Site, records: &Arc<Packets>) -> Result<Figures> {
    let passes = options.records.div_ceil(records.count);
    let mut figures = Figures { records: records.count * passes, ..Figures::default() };
    append(options, site, records, passes, Device::Null, |took, _, _| {
        figures.appends_null_per_s = figures.records as f64 / took.as_secs_f64();
        Ok(())
    })?;
    let one = Arc::new(Packets::one("one record", vec![2; 1024]));
    append(options, site, &one, 1, Device::File, |took, _, _| {
        figures.alone_until_durable_ms = took.as_secs_f64() * 1e3;
        Ok(())
    })?;
    append(options, site, records, passes, Device::File, |took, lane, (catalog, from_ns)| {
        figures.appends_file_per_s = figures.records as f64 / took.as_secs_f64();
        figures.append_ns = lane.as_nanos() as f64 / figures.records as f64;
        figures.reads_cold_per_s = read_all(catalog, figures.records)?;
        figures.reads_per_s = read_all(catalog, figures.records)?;
        figures.read_one_per_s = one_by_one(options, catalog, from_ns, figures.records, None)?;
        figures.lookups_per_s = one_by_one(options, catalog, from_ns, figures.records, Some(0))?;
        Ok(())
    })?;
    Ok(figures)
}

/// Appends records, and has a look at what it took and at the store before it is removed. The
/// clock begins when the pipeline runs.
fn append(
    options: &Options,
    site: &Site,
    records: &Arc<Packets>,
    passes: u64,
    device: Device,
    look: impl FnOnce(Duration, Duration, (&Catalog, u64)) -> Result<()>,
) -> Result<()> {
    let from_ns = site.clock.unix_ns();
    let source = Box::new(MemorySource::new(Arc::clone(records), passes, from_ns));
    let (quota_bytes, how) = (options.site.quota_bytes(), device.options(options.site.topology()));
    let pipeline = site.start(source, quota_bytes, BUFFER_BYTES, &how)?;
    let begin = Instant::now();
    wait_until_stored(&pipeline, records.count * passes)?;
    let took = begin.elapsed();
    let lane = Duration::from_nanos(StageTimes::now()?.fill_ns);
    look(took, lane, (&pipeline.catalog(), from_ns))?;
    pipeline.stop();
    pipeline.join()?;
    site.clear()
}

/// Reads everything in order; records a second.
fn read_all(catalog: &Catalog, records: u64) -> Result<f64> {
    let (begin, mut sink) = (Instant::now(), CountSink::default());
    ask(catalog, &Request::default(), &mut sink, &AtomicBool::new(false))?;
    ensure!(sink.packets == records, "{} records were read of {records}", sink.packets);
    Ok(records as f64 / begin.elapsed().as_secs_f64())
}

/// Asks for single records by their time, in random order; questions a second. With a limit of 0
/// each is only looked up: which chunks hold it.
fn one_by_one(
    options: &Options,
    catalog: &Catalog,
    from_ns: u64,
    records: u64,
    limit: Option<u64>,
) -> Result<f64> {
    let mut random = Random(11);
    let begin = Instant::now();
    for _ in 0..options.questions {
        let since_ns = from_ns + random.below(records as usize) as u64 * STEP_NS;
        let request = Request {
            since_ns: Some(since_ns),
            until_ns: Some(since_ns + 1),
            limit,
            ..Request::default()
        };
        let mut sink = CountSink::default();
        black_box(ask(catalog, &request, &mut sink, &AtomicBool::new(false))?);
        let expected = limit.unwrap_or(1);
        ensure!(sink.packets == expected, "{} records, not {expected}", sink.packets);
    }
    Ok(options.questions as f64 / begin.elapsed().as_secs_f64())
}

impl Figures {
    fn say(&self, output: &mut Output, runs: usize) {
        output.say(format!(
            "{} records of 1 KiB, each sealed and indexed, one lane; medians of {runs} runs. \
             Beside it what the documents of a message log state of themselves; no machine is \
             named there.",
            self.records
        ));
        output.table(&[("work", 60), ("here", 12), ("stated there", 12)]);
        let thousands = |per_s: f64| format!("{:.1} k/s", per_s / 1e3);
        for (what, here, there) in [
            ("append, into nothing", thousands(self.appends_null_per_s), "601 k/s"),
            ("append, into a file, flushed", thousands(self.appends_file_per_s), "601 k/s"),
            ("append, time of the caller", format!("{:.5} ms", self.append_ns / 1e6), "0.01 ms"),
            (
                "one record alone until it is flushed",
                format!("{:.1} ms", self.alone_until_durable_ms),
                "-",
            ),
            ("read in order, unsealed, first time", thousands(self.reads_cold_per_s), "500 k/s"),
            ("read in order, unsealed, second time", thousands(self.reads_per_s), "500 k/s"),
            ("read one by its time, a question each", thousands(self.read_one_per_s), "100 k/s"),
            ("look up where one is, a question each", thousands(self.lookups_per_s), "1000 k/s"),
        ] {
            output.row(vec![what.to_owned(), here, there.to_owned()]);
        }
        output.say(
            "A question here is a whole one: plan over all segments, statement of completeness, \
             and a chunk of 256 KiB unsealed and filtered for each record that is read. There a \
             look-up is a binary search in memory.",
        );
        output.at_least(
            "1 KiB records, as a message log states: append",
            " k/s",
            601.0,
            self.appends_file_per_s / 1e3,
        );
        output.at_most("the same: time of the caller", " ms", 0.01, self.append_ns / 1e6);
        output.at_least("the same: read in order", " k/s", 500.0, self.reads_per_s / 1e3);
        output.at_least(
            "the same: look one up, a question each",
            " k/s",
            1000.0,
            self.lookups_per_s / 1e3,
        );
    }
}
