//! Capture files one after the other, as one source.
//!
//! A file that cannot be opened or read on ends with a gap and a line in its report; the next one
//! follows. A file waits, so whoever has to keep up with it may allow it so many bytes at a time.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wirevault_capture::{
    CaptureError, GapInfo, Packet, PacketSink, Polled, ReplayOptions, ReplaySource, Source,
    SourceCounters, SourceReport, SourceState, Speed,
};
use wirevault_format::pcapng::OtherKind;
use wirevault_format::{Cause, Interface};
use wirevault_index::error::chain;

/// What became of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReport {
    /// Path.
    pub path: String,
    /// Packets taken from it.
    pub packets: u64,
    /// Captured bytes of them.
    pub bytes: u64,
    /// Interfaces it describes.
    pub interfaces: u64,
    /// Packets whose time had parts below the nanosecond, or lay outside 1970 to 2554.
    pub times_rounded: u64,
    /// Packets longer than the file's own snap length; what lies behind it, tcpdump does not see.
    pub cut_to_snaplen: u64,
    /// Packets whose fraction of a second was a second or more; it is carried over.
    pub times_carried: u64,
    /// Packets that lost some of their options.
    pub options_cut: u64,
    /// Blocks that were not kept, by kind.
    pub skipped_blocks: BTreeMap<String, u64>,
    /// Format and compression.
    pub notes: Vec<String>,
    /// Why it was not read to its end, if so.
    pub error: Option<String>,
    /// It was read to its end, or to the error.
    pub ended: bool,
}

/// Reports of the files so far, for those who watch.
pub(crate) type Reports = Arc<Mutex<Vec<FileReport>>>;

/// Captured bytes that may still be handed out; whoever has it may allow more.
pub(crate) type Allowance = Arc<AtomicU64>;

/// How often a source without an allowance looks whether it got one.
const LOOK: Duration = Duration::from_millis(5);

/// Files one after the other.
pub(crate) struct ChainSource {
    waiting: VecDeque<PathBuf>,
    current: Option<Current>,
    speed: Speed,
    /// Name to store all interfaces under.
    rename: Option<String>,
    interfaces: Vec<Interface>,
    /// Counters of the files that have ended.
    ended: SourceCounters,
    last_ns: u64,
    kind_of: SourceReport,
    reports: Reports,
    allowance: Allowance,
    over: bool,
}

struct Current {
    source: ReplaySource,
    /// Place in our list for each of the file's interfaces.
    places: Vec<u32>,
    bytes: u64,
}

impl ChainSource {
    /// Opens the first of `files`.
    ///
    /// # Errors
    /// The first file cannot be opened or is no capture.
    pub(crate) fn open(
        files: Vec<PathBuf>,
        speed: Speed,
        rename: Option<String>,
    ) -> Result<Self, CaptureError> {
        let names: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
        let mut waiting = VecDeque::from(files);
        let first = waiting.pop_front().map(|path| open_file(path, speed)).transpose()?;
        // Clocks and notes are those of the file at hand.
        let kind_of = SourceReport {
            kind: "replay",
            name: names.join(", "),
            fanout: None,
            ring_bytes: 0,
            clocks: Vec::new(),
            notes: Vec::new(),
        };
        let mut chain = Self {
            waiting,
            current: None,
            speed,
            rename,
            interfaces: Vec::new(),
            ended: SourceCounters::default(),
            last_ns: 0,
            kind_of,
            reports: Reports::default(),
            allowance: Arc::new(AtomicU64::new(u64::MAX)),
            over: false,
        };
        if let Some((path, source)) = first {
            chain.begin(path, source);
        }
        Ok(chain)
    }

    /// What became of the files so far.
    pub(crate) fn reports(&self) -> Reports {
        Arc::clone(&self.reports)
    }

    /// What it may hand out: everything, until somebody says otherwise.
    pub(crate) fn allowance(&self) -> Allowance {
        Arc::clone(&self.allowance)
    }

    fn begin(&mut self, path: PathBuf, source: ReplaySource) {
        let SourceReport { clocks, notes, .. } = source.report();
        let path = path.display().to_string();
        let report = FileReport { path, notes: notes.clone(), ..FileReport::default() };
        lock(&self.reports).push(report);
        (self.kind_of.clocks, self.kind_of.notes) = (clocks, notes);
        self.current = Some(Current { source, places: Vec::new(), bytes: 0 });
        self.learn();
    }

    /// Brings the list of interfaces up to the current file's.
    fn learn(&mut self) {
        let Some(current) = &mut self.current else { return };
        for interface in &current.source.interfaces()[current.places.len()..] {
            let mut interface = interface.clone();
            if let Some(name) = &self.rename {
                interface.name = Some(name.clone());
            }
            let known = self.interfaces.iter().position(|known| *known == interface);
            let place = known.unwrap_or_else(|| {
                self.interfaces.push(interface);
                self.interfaces.len() - 1
            });
            current.places.push(place as u32);
        }
    }

    /// Begins the next file that can be opened. One that cannot is a gap.
    fn next_file(&mut self) -> Polled {
        let Some(path) = self.waiting.pop_front() else {
            self.over = true;
            return Polled::End;
        };
        match open_file(path.clone(), self.speed) {
            Ok((path, source)) => {
                self.begin(path, source);
                Polled::Interfaces
            }
            Err(error) => {
                let report = FileReport {
                    path: path.display().to_string(),
                    error: Some(chain(&error)),
                    ended: true,
                    ..FileReport::default()
                };
                lock(&self.reports).push(report);
                self.ended.unreadable += 1;
                let (from_ns, cause) = (self.last_ns, Cause::ImportUnreadable);
                Polled::Gap(GapInfo { cause, from_ns, until_ns: None, packets: None })
            }
        }
    }

    /// Writes the current file's figures into its report.
    fn tell(&mut self, error: Option<String>, ended: bool) {
        let Some(current) = &mut self.current else { return };
        let counters = current.source.counters();
        let mut reports = lock(&self.reports);
        let Some(report) = reports.last_mut() else { return };
        report.packets = counters.handed;
        report.bytes = current.bytes;
        report.interfaces = current.places.len() as u64;
        report.times_rounded = counters.times_rounded;
        report.cut_to_snaplen = counters.cut_to_snaplen;
        report.times_carried = counters.times_carried;
        report.options_cut = counters.options_cut;
        let skipped = OtherKind::ALL.iter().zip(counters.skipped_blocks);
        let skipped = skipped.filter(|(_, blocks)| *blocks > 0);
        report.skipped_blocks = skipped.map(|(kind, n)| (kind.name().to_owned(), n)).collect();
        report.error = error;
        report.ended = ended;
    }

    fn end_file(&mut self, error: Option<String>) {
        self.tell(error, true);
        if let Some(mut current) = self.current.take() {
            self.ended = sum(&self.ended, &current.source.counters());
        }
    }
}

/// Puts our number for each interface into a packet on its way to the lane.
struct Renumber<'a> {
    sink: &'a mut dyn PacketSink,
    places: &'a [u32],
    bytes: &'a mut u64,
    last_ns: &'a mut u64,
}

impl PacketSink for Renumber<'_> {
    fn packet(&mut self, packet: &Packet<'_>) -> ControlFlow<()> {
        let Some(place) = self.places.get(packet.interface as usize) else {
            return ControlFlow::Break(());
        };
        self.sink.packet(&Packet { interface: *place, ..*packet })?;
        *self.bytes += packet.data.len() as u64;
        *self.last_ns = packet.ts_ns;
        ControlFlow::Continue(())
    }
}

impl Source for ChainSource {
    fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    fn poll(&mut self, sink: &mut dyn PacketSink, wait: Duration) -> Result<Polled, CaptureError> {
        let Some(current) = &mut self.current else {
            return Ok(if self.over { Polled::End } else { self.next_file() });
        };
        if self.allowance.load(Ordering::Relaxed) == 0 {
            thread::sleep(wait.min(LOOK));
            return Ok(Polled::Idle);
        }
        let Current { source, places, bytes } = current;
        let before = *bytes;
        let mut sink = Renumber { sink, places, bytes, last_ns: &mut self.last_ns };
        let polled = source.poll(&mut sink, wait);
        let taken = current.bytes - before;
        self.allowance.update(Ordering::Relaxed, Ordering::Relaxed, |it| it.saturating_sub(taken));
        match polled {
            Ok(Polled::End) => {
                self.end_file(None);
                Ok(self.next_file())
            }
            Ok(Polled::Interfaces) => {
                self.learn();
                Ok(Polled::Interfaces)
            }
            Ok(polled) => {
                self.tell(None, false);
                Ok(polled)
            }
            Err(error) => {
                tracing::error!("{}", chain(&error));
                self.end_file(Some(chain(&error)));
                Ok(self.next_file())
            }
        }
    }

    fn counters(&mut self) -> SourceCounters {
        match &mut self.current {
            Some(current) => sum(&self.ended, &current.source.counters()),
            None => self.ended,
        }
    }

    fn state(&self) -> SourceState {
        if self.over { SourceState::Ended } else { SourceState::Running }
    }

    fn report(&self) -> SourceReport {
        self.kind_of.clone()
    }

    fn is_live(&self) -> bool {
        false
    }
}

fn open_file(path: PathBuf, speed: Speed) -> Result<(PathBuf, ReplaySource), CaptureError> {
    let source = ReplaySource::open(&ReplayOptions { path: path.clone(), speed })?;
    Ok((path, source))
}

fn sum(a: &SourceCounters, b: &SourceCounters) -> SourceCounters {
    SourceCounters {
        received: a.received + b.received,
        handed: a.handed + b.handed,
        dropped_ring: a.dropped_ring + b.dropped_ring,
        in_ring: a.in_ring + b.in_ring,
        unreadable: a.unreadable + b.unreadable,
        times_rounded: a.times_rounded + b.times_rounded,
        cut_to_snaplen: a.cut_to_snaplen + b.cut_to_snaplen,
        times_carried: a.times_carried + b.times_carried,
        options_cut: a.options_cut + b.options_cut,
        truncated_mirror: a.truncated_mirror + b.truncated_mirror,
        skipped_blocks: std::array::from_fn(|kind| a.skipped_blocks[kind] + b.skipped_blocks[kind]),
    }
}

pub(crate) fn lock(reports: &Reports) -> std::sync::MutexGuard<'_, Vec<FileReport>> {
    reports.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::*;

    /// Writes a classic pcap file of Ethernet frames: (time in s, bytes).
    pub(crate) fn pcap(path: &Path, link_type: u32, packets: &[(u32, Vec<u8>)]) {
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 262_144, link_type] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        for (seconds, data) in packets {
            let length = data.len() as u32;
            for word in [*seconds, 0, length, length] {
                file.extend_from_slice(&word.to_le_bytes());
            }
            file.extend_from_slice(data);
        }
        std::fs::write(path, file).unwrap();
    }

    fn drain(chain: &mut ChainSource) -> (Vec<(u32, u64)>, usize) {
        let (mut packets, mut gaps) = (Vec::new(), 0);
        loop {
            let mut sink = |packet: &Packet<'_>| {
                packets.push((packet.interface, packet.ts_ns));
                ControlFlow::Continue(())
            };
            match chain.poll(&mut sink, Duration::ZERO).unwrap() {
                Polled::End => return (packets, gaps),
                Polled::Gap(_) => gaps += 1,
                _ => {}
            }
        }
    }

    #[test]
    fn files_follow_each_other_and_a_bad_one_is_a_gap() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name);
        pcap(&path("a"), 1, &[(1, vec![0; 60]), (2, vec![0; 70])]);
        pcap(&path("b"), 101, &[(3, vec![0x45; 40])]);
        std::fs::write(path("c"), b"this is no capture at all").unwrap();
        pcap(&path("d"), 1, &[(4, vec![0; 60]), (5, vec![0; 60])]);
        let whole = std::fs::read(path("d")).unwrap();
        std::fs::write(path("d"), &whole[..whole.len() - 5]).unwrap();
        let files = ["a", "b", "c", "missing", "d", "a"].map(path).to_vec();

        let mut chain = ChainSource::open(files, Speed::Full, None).unwrap();
        let reports = chain.reports();
        let (packets, gaps) = drain(&mut chain);
        let seconds = |n: u64| n * 1_000_000_000;
        let expected = [(0, 1), (0, 2), (1, 3), (0, 4), (0, 1), (0, 2)];
        assert_eq!(packets, expected.map(|(interface, s)| (interface, seconds(s))));
        assert_eq!((gaps, chain.interfaces().len()), (3, 2));
        let counters = chain.counters();
        assert_eq!((counters.received, counters.handed, counters.unreadable), (6, 6, 3));
        let reports = lock(&reports).clone();
        let figures: Vec<_> =
            reports.iter().map(|file| (file.packets, file.bytes, file.error.is_some())).collect();
        let expected = [(2, 130, false), (1, 40, false), (0, 0, true), (0, 0, true), (1, 60, true)];
        assert_eq!(figures[..5], expected);
        assert!(reports.iter().all(|file| file.ended), "{reports:?}");
        assert_eq!(chain.state(), SourceState::Ended);
    }

    #[test]
    fn interfaces_can_be_renamed_and_a_first_file_must_open() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("a");
        pcap(&path, 1, &[(1, vec![0; 60])]);
        let rename = Some("eth7".to_owned());
        let chain = ChainSource::open(vec![path], Speed::Full, rename).unwrap();
        assert_eq!(chain.interfaces()[0].name.as_deref(), Some("eth7"));
        let missing = vec![dir.path().join("none")];
        assert!(ChainSource::open(missing, Speed::Full, None).is_err());
    }
}
