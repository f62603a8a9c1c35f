//! A month of simulated time at a store's quota: rules, holds, certificates and the audit log, with
//! power cuts, a device that fails, a disk that others fill, a clock that jumps and a key service
//! that is away.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use wirevault_format::chunk::{self, ChunkHeader, HEADER_BYTES};
use wirevault_format::footer::CloseReason;
use wirevault_format::gap::CAUSES;
use wirevault_format::limits::CHUNK_BYTES;
use wirevault_format::pcapng::{EpbParts, put_epb};
use wirevault_format::{Interface, LinkType, RunId, StoreId};
use wirevault_index::{KeySource, open_store};
use wirevault_lifecycle::audit::{self, Event, Who};
use wirevault_lifecycle::certificate;
use wirevault_lifecycle::holds::{Hold, HoldList};
use wirevault_media::sim::SplitMix64;
use wirevault_media::{DirMedia, Fault, Media, OpenMode, SimMedia, Trigger};
use wirevault_query::export::{PacketOut, Sink};
use wirevault_query::{Request, run};
use wirevault_seal::epoch::KeyCondition;
use wirevault_seal::service::Refusal;
use wirevault_seal::sim::SimService;
use wirevault_seal::{EpochKeys, EpochOptions, FileProvider, KeyProvider, ServiceKeys};
use wirevault_storage::{
    ClosingFacts, CreateOptions, OpenRequest, Plan, Store, create_planned, finish_segment,
    rebuild_index,
};
use wirevault_telemetry::clock::{Clock, ManualClock};

use super::deleting::{delete_free, settle};
use super::offline::add_hold;
use super::{Holds, Rules};
use crate::DaemonError;
use crate::api::HoldBody;
use crate::lifecycle::audit::Audit;

const STORE: StoreId = StoreId([7; 16]);
const START_NS: u64 = 1_700_000_000_000_000_000;
const DAYS: u64 = 30;
const HOUR: Duration = Duration::from_secs(3600);
const PLACES: u32 = 96;
const SEGMENT_BYTES: u64 = 1 << 20;
pub(crate) const PACKETS: u64 = 20;
/// One segment in so many has packets for the hold.
const RARE: u64 = 20;
/// What the hold wants, and on which days it is added and released.
const HELD: &str = "udp dst port 1003";
const HELD_DAYS: [u64; 2] = [4, 24];
/// On the first of these days the clock goes back, on the second forth again.
const JUMP_DAYS: [u64; 2] = [6, 9];
/// So far. It is no whole number of hours, so that no two packets have the same time.
const JUMP_NS: u64 = 3 * 24 * 3_600_000_000_000 + 77_000;
/// Bytes of the disk, of which the store may have [`QUOTA_BYTES`].
const DISK_BYTES: u64 = 2 * QUOTA_BYTES;
const QUOTA_BYTES: u64 = (8 << 20) + PLACES as u64 * SEGMENT_BYTES;
/// Days on which somebody else takes all that is free.
const FULL_DAYS: Range<u64> = 12..16;
/// Days on which the device fails now and then.
const FAILING_DAYS: Range<u64> = 17..20;
/// The day on which the service of the key does not answer, but for its first hour.
const AWAY_DAY: u64 = 22;

/// A store, its log, and what is known to be in it.
pub(crate) struct Month {
    pub(crate) media: SimMedia,
    pub(crate) folder: tempfile::TempDir,
    /// What opens it the next time.
    pub(crate) key: Arc<dyn KeyProvider>,
    /// Where the key comes from, if that is a service.
    service: Option<(Arc<SimService>, Arc<EpochKeys>)>,
    pub(crate) clock: Arc<ManualClock>,
    /// Times of the packets that the hold wants, of segments that were closed.
    wanted: BTreeSet<u64>,
    /// From when on the hold wants packets.
    since_ns: u64,
    /// Ordinals of the segments that were closed.
    closed: BTreeSet<u64>,
    cuts: u32,
    /// Operations of the device that failed, and what went on behind them.
    failures: u32,
    /// Segments that found no room.
    refused: u32,
}

/// The store while it is open.
pub(crate) struct Open {
    pub(crate) store: Store,
    pub(crate) audit: Arc<Audit>,
    pub(crate) holds: Holds,
}

impl Month {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = FileProvider::create(&folder.path().join("key")).unwrap();
        Self::sealed_by(Arc::new(key), folder)
    }

    pub(crate) fn sealed_by(key: Arc<dyn KeyProvider>, folder: tempfile::TempDir) -> Self {
        Self::timed_by(Arc::new(ManualClock::new(START_NS)), key, folder)
    }

    /// Sealed by keys of a service.
    fn served() -> Self {
        let (clock, service) = (Arc::new(ManualClock::new(START_NS)), Arc::<SimService>::default());
        let keys = ServiceKeys::new(service.clone(), EpochOptions::default(), clock.clone());
        let keys = keys.of(STORE, "key");
        let month = Self::timed_by(clock, keys.clone(), tempfile::tempdir().unwrap());
        Self { service: Some((service, keys)), ..month }
    }

    fn timed_by(
        clock: Arc<ManualClock>,
        key: Arc<dyn KeyProvider>,
        folder: tempfile::TempDir,
    ) -> Self {
        let media = SimMedia::with_capacity(DISK_BYTES);
        let month = Self {
            media: media.clone(),
            folder,
            key,
            service: None,
            clock,
            wanted: BTreeSet::new(),
            since_ns: 0,
            closed: BTreeSet::new(),
            cuts: 0,
            failures: 0,
            refused: 0,
        };
        month.create(Arc::new(media), "/sim");
        month
    }

    /// Makes the store there.
    fn create(&self, media: Arc<dyn Media>, path: &str) {
        let plan = Plan::exact(SEGMENT_BYTES, &[(QUOTA_BYTES, PLACES)], 1).unwrap();
        let options = CreateOptions {
            quota_bytes: None,
            lanes: 1,
            key: Some(Arc::clone(&self.key)),
            key_path: String::new(),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
        };
        create_planned(&[(media, path.to_owned())], STORE, &options, &plan).unwrap();
    }

    pub(crate) fn open(&self) -> Result<Open, DaemonError> {
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let key = KeySource::Provider(Arc::clone(&self.key));
        let volumes: Vec<Arc<dyn Media>> = vec![Arc::new(self.media.clone())];
        let (mut store, recovery) = Store::open(volumes, &key, Arc::clone(&clock))?;
        store.set_hold_percent(30);
        let audit = Arc::new(Audit::open(self.folder.path(), store.id(), clock)?);
        settle(&store, &audit, &recovery.deletions)?;
        let holds = Holds::open(audit.folder())?;
        store.set_witness(holds.witness(&store, &audit));
        holds.begin(&store);
        Ok(Open { store, audit, holds })
    }

    /// Records for a day, and keeps holds and rules.
    fn day(&mut self, day: u64) -> Result<(), DaemonError> {
        let open = self.open()?;
        let Open { store, audit, holds } = &open;
        let run = store.begin_run(false, 1)?;
        let listed = holds.report(store).holds.len();
        if day == HELD_DAYS[0] && listed == 0 {
            self.since_ns = self.clock.unix_ns() - (HOUR * 24).as_nanos() as u64;
            let body = HoldBody {
                name: "case".to_owned(),
                filter: HELD.to_owned(),
                since_ns: Some(self.since_ns),
                ..HoldBody::default()
            };
            holds.add(store, audit, &Who::Recorder, body, self.clock.unix_ns())?;
        }
        if day == HELD_DAYS[1] && listed > 0 {
            holds.release(store, audit, &Who::Recorder, "case")?;
        }
        // The quota takes the oldest first, then the rule is faster.
        let hours = if day < DAYS / 2 { 24 * 5 } else { 24 };
        let age = HOUR * hours;
        let rules = format!(
            "store: /s\nreplay:\n  file: /f\nretention:\n  - {{name: old, action: delete, age: \
             {hours}h}}\n"
        );
        let rules = Rules::new(&wirevault_config::parse(&rules, "test").unwrap().retention);
        let full = FULL_DAYS.contains(&day);
        for hour in 0..24 {
            self.tend(store, day, hour)?;
            match self.record(store, run, hour * PACKETS) {
                Err(DaemonError::Store(error)) if full && error.is_exhausted() => {
                    self.refused += 1;
                }
                recorded => recorded?,
            }
            self.clock.advance(HOUR);
            store.heartbeat()?;
            holds.keep(store, audit, &|| false);
            let now_ns = self.clock.unix_ns();
            let steps = rules.plan(&store.catalog(now_ns), now_ns);
            delete_free(store, audit, holds, &Who::Recorder, &steps)?;
            let status = &store.status().volumes[0];
            assert!(status.used_bytes <= status.quota_bytes, "{status:?}");
            let catalog = store.catalog(now_ns);
            let old = catalog.segments.iter().find(|it| {
                let age_ns = now_ns.saturating_sub(it.entry.closed_ns);
                it.entry.hold == 0 && u128::from(age_ns) >= age.as_nanos()
            });
            let left = old.filter(|_| !self.media.power_is_cut());
            assert!(left.is_none(), "the rule leaves {}", left.unwrap().name());
        }
        Ok(store.end_run()?)
    }

    /// What others do to the disk and the clock before a day.
    fn trouble(&mut self, day: u64, random: &mut SplitMix64) {
        let operations = self.media.counts().operations;
        // A power cut somewhere in every other day; the day then goes on behind it.
        if day % 2 == 1 {
            let at = operations + 20 + random.below(300);
            self.media.inject(Trigger::Operation(at), Fault::PowerCut);
        }
        for from in (0..300).step_by(100).filter(|_| FAILING_DAYS.contains(&day)) {
            let at = operations + 20 + from + random.below(100);
            self.media.inject(Trigger::Operation(at), Fault::Eio);
        }
        let now_ns = self.clock.unix_ns();
        match JUMP_DAYS.iter().position(|of| *of == day) {
            Some(0) => self.clock.set_unix_ns(now_ns - JUMP_NS),
            Some(_) => self.clock.set_unix_ns(now_ns + JUMP_NS),
            None => {}
        }
        let theirs = "somebody.else";
        if FULL_DAYS.contains(&day) {
            let file = self.media.open(theirs, OpenMode::Create).unwrap();
            let bytes = file.len().unwrap() + self.media.free_bytes().unwrap();
            file.allocate(bytes).unwrap();
            file.sync().unwrap();
            self.media.sync_dir().unwrap();
        } else if day == FULL_DAYS.end {
            self.media.remove(theirs).unwrap();
            self.media.sync_dir().unwrap();
        }
    }

    /// What the recorder's thread for the key does.
    fn tend(&self, store: &Store, day: u64, hour: u64) -> Result<(), DaemonError> {
        let Some((service, keys)) = &self.service else { return Ok(()) };
        let away = day == AWAY_DAY && hour > 0;
        service.set_away(away.then_some(Refusal::Unreachable));
        if keys.is_due() {
            keys.turn()?;
            store.renew_rings()?;
        }
        keys.tend();
        // The keys that waited last for three hours, and nothing stops behind that.
        let condition = keys.status().condition;
        assert!(!away || hour < 6 || condition == KeyCondition::Exhausted, "{condition:?}");
        assert!(day != DAYS - 1 || condition == KeyCondition::Ready, "{condition:?}");
        Ok(())
    }

    /// One segment of two chunks.
    pub(crate) fn record(
        &mut self,
        store: &Store,
        run: RunId,
        first: u64,
    ) -> Result<(), DaemonError> {
        let mut interface = Interface::unnamed(LinkType::ETHERNET);
        interface.name = Some("sim0".to_owned());
        let (lane, link_type) = (0, LinkType::ETHERNET);
        let open = store.open_segment(OpenRequest { lane, link_type, interfaces: &[interface] })?;
        let mut sealer = open.keys.as_ref().unwrap().data_sealer().unwrap();
        let (mut at, mut wanted) = (open.data_offset, Vec::new());
        let special = (self.closed.len() as u64).is_multiple_of(RARE);
        for number in 0..2 {
            let (mut buf, mut end) = (vec![0; CHUNK_BYTES], HEADER_BYTES);
            let from_ns = self.clock.unix_ns() + u64::from(number) * 1000;
            for n in 0..PACKETS / 2 {
                let port = if special && n == 3 { 1003 } else { 53 };
                let ts_ns = from_ns + n;
                end += put_epb(&mut buf, end, &packet(ts_ns, &frame(port))).unwrap();
                wanted.extend((port == 1003).then_some(ts_ns));
            }
            let header = ChunkHeader {
                sealed: true,
                gaps: false,
                lane,
                link_type,
                life: open.entry.life,
                run,
                number,
                payload_bytes: (end - HEADER_BYTES) as u32,
                first_sequence: first + u64::from(number) * PACKETS / 2,
                packets: (PACKETS / 2) as u32,
                times_ns: Some((from_ns, from_ns + PACKETS / 2 - 1)),
                received: first + PACKETS,
                shed: 0,
                dropped: 0,
                watermark: first,
            };
            header.encode(&mut buf);
            let (aad, payload) = buf.split_at_mut(HEADER_BYTES);
            let payload = &mut payload[..header.payload_bytes as usize];
            let tag = sealer.seal(number, aad, payload).unwrap();
            chunk::put_sealed_tail(&mut buf, &header, &tag);
            let failed = |source| DaemonError::System { what: "writing", source };
            open.file.write_at(&buf[..header.chunk_bytes()], at).map_err(failed)?;
            at += header.chunk_bytes() as u64;
            open.file.sync().map_err(failed)?;
        }
        let (index, chain) = rebuild_index(&open, 2)?;
        let facts = ClosingFacts {
            reason: CloseReason::Age,
            recovered: false,
            damaged: false,
            captured_bytes: PACKETS * 60,
            received: first + PACKETS,
            shed: 0,
            dropped: [0; CAUSES],
            chain,
        };
        let entry =
            store.close_segment(&open, finish_segment(&open, &index, &facts, &*self.clock)?)?;
        self.closed.insert(entry.ordinal);
        self.wanted.extend(wanted);
        Ok(())
    }

    /// Records up to the quota, and stops. Gives the folder of the log, and the packet times of the
    /// first segment.
    fn fill(&mut self) -> (PathBuf, (u64, u64)) {
        let Open { store, audit, .. } = self.open().unwrap();
        (audit.folder().to_owned(), self.fill_up(&store))
    }

    fn fill_up(&mut self, store: &Store) -> (u64, u64) {
        let run = store.begin_run(false, 1).unwrap();
        for number in 0..u64::from(PLACES) {
            self.record(store, run, number * PACKETS).unwrap();
            self.clock.advance(HOUR);
        }
        store.end_run().unwrap();
        store.catalog(0).segments.iter().next().unwrap().entry.times_ns.unwrap()
    }

    /// Everything that was held is there while the hold stands; the log is whole, and names what
    /// is gone.
    fn check(&self, day: u64) {
        let Open { store, audit, .. } = self.open().unwrap();
        let request = Request { filter: HELD.into(), ..Request::default() };
        let mut found = Times::default();
        let catalog = store.catalog(self.clock.unix_ns());
        run(&catalog, &request, &mut found, &AtomicBool::new(false)).unwrap();
        let wanted: Vec<u64> = self.wanted.range(self.since_ns..).copied().collect();
        if (HELD_DAYS[0]..HELD_DAYS[1]).contains(&day) {
            let missing = wanted.iter().find(|ts_ns| !found.0.contains(ts_ns));
            assert_eq!(missing, None, "day {day}: {} of {}", found.0.len(), wanted.len());
        } else if day > HELD_DAYS[1] {
            assert!(store.holds().is_empty());
        }
        let mut deleted = BTreeSet::new();
        let report = audit::read(audit.folder(), Some(&audit.head()), &mut |entry| {
            if let Event::Deleted { segment, .. } = entry.event {
                deleted.insert(segment);
            }
        });
        let report = report.unwrap();
        let whole = (0, Some(report.entries > 0));
        assert_eq!((report.faults.len(), report.anchored), whole, "day {day}");
        let there: BTreeSet<u64> = catalog.segments.iter().map(|it| it.entry.ordinal).collect();
        let mut gone = self.closed.iter().filter(|ordinal| !there.contains(ordinal));
        assert!(gone.all(|ordinal| deleted.contains(ordinal)), "day {day}");
    }
}

fn packet<'a>(ts_ns: u64, data: &'a [u8]) -> EpbParts<'a> {
    let orig_len = data.len() as u32;
    EpbParts { interface_id: 0, ts_ns, orig_len, data, vlan: None, flags: None, raw_options: &[] }
}

/// UDP over IPv4.
fn frame(port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x30, 0x39]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 26, 0, 0]);
    frame.resize(60, 0);
    frame
}

/// Times of the packets of an answer; each comes once.
#[derive(Default)]
pub(crate) struct Times(pub(crate) BTreeSet<u64>);

impl Sink for Times {
    fn interface(&mut self, _: u32, _: &Interface) -> std::io::Result<()> {
        Ok(())
    }

    fn packet(&mut self, packet: &PacketOut<'_>) -> std::io::Result<ControlFlow<()>> {
        assert!(self.0.insert(packet.ts_ns), "a packet came twice");
        Ok(ControlFlow::Continue(()))
    }
}

#[test]
fn a_month_alone() {
    let mut month = Month::served();
    let mut random = SplitMix64::new(5);
    for day in 0..DAYS {
        month.trouble(day, &mut random);
        while let Err(error) = month.day(day) {
            if month.media.power_is_cut() {
                month.media = month.media.crash(random.next_u64());
                month.cuts += 1;
            } else {
                assert!(FAILING_DAYS.contains(&day), "day {day}: {}", error.chain());
                month.failures += 1;
            }
        }
        month.media.clear_faults();
        month.check(day);
    }
    assert!(month.cuts >= 10, "{} power cuts", month.cuts);
    assert!(month.failures >= 3, "{} failures of the device", month.failures);
    assert!(month.refused > 0, "there was room on a full disk");
    assert!(month.closed.len() as u64 + u64::from(month.refused) >= DAYS * 24);
    let Month { folder, cuts, failures, refused, .. } = month;
    println!("{cuts} power cuts, {failures} failures of the device, {refused} without room");
    as_an_auditor(&folder.path().join(audit::FOLDER));
}

/// What was deleted is certified, and nothing else, to somebody who has the log's folder only.
fn as_an_auditor(log: &Path) {
    let (mut reasons, mut copies) = (BTreeMap::new(), BTreeSet::new());
    let report = audit::read(log, None, &mut |entry| match entry.event {
        // What a crash kept from being deleted may have gone for another reason later.
        Event::Deleted { segment, reason, .. } => drop(reasons.insert(segment, reason)),
        Event::Held { copy, .. } => drop(copies.insert(copy)),
        _ => {}
    });
    assert_eq!(report.unwrap().faults.len(), 0);
    let (mut certified, mut why) = (BTreeSet::new(), BTreeSet::new());
    for path in certificate::list(log).unwrap() {
        let certificate = certificate::read(&path).unwrap();
        assert_eq!(certificate::verify(log, &certificate).unwrap(), None, "{}", path.display());
        certified.extend(certificate.erasure.segments.iter().map(|it| it.segment));
        why.insert(certificate.erasure.reason);
    }
    let known = |it: &&u64| reasons.contains_key(it) || copies.contains(it);
    assert_eq!(certified.iter().find(|it| !known(it)), None, "deleted without a word");
    let mut owed = reasons.iter().filter(|(_, reason)| !reason.starts_with("quota"));
    let owed = owed.find(|(segment, _)| !certified.contains(*segment));
    assert_eq!(owed, None, "deleted without a certificate");
    let went = |wanted: &str| why.contains(wanted) || reasons.values().any(|it| it == wanted);
    for reason in ["quota", "rule old", "hold case released"] {
        assert!(went(reason), "nothing went for {reason}");
    }
}

/// The crash came between the entry of the hold and its copy. The next start spared nothing until
/// its first look at the holds, and its first segment took the place of the only one that was held.
#[test]
fn the_first_segment_of_a_start_took_what_a_hold_waited_for() {
    let mut month = Month::new();
    let (folder, times_ns) = month.fill();
    list_hold(&folder, Some(times_ns));

    let Open { store, audit, holds } = month.open().unwrap();
    let run = store.begin_run(false, 1).unwrap();
    month.record(&store, run, 0).unwrap();
    assert_eq!((oldest(&store), store.unheld()), (1, 0), "another one goes before it");
    holds.keep(&store, &audit, &|| false);
    assert_eq!(store.holds()[&1].segments, 1, "there is a copy");
    month.record(&store, run, PACKETS).unwrap();
    // Its copy took the place of the third.
    assert_eq!((oldest(&store), store.unheld()), (4, 0), "now it goes in its turn");
}

/// A hold without a window, and a store of which there was no time to look at every segment: what
/// the quota took of the others was told as taken from the hold, and what was known to be wanted
/// was not spared among so much that may be.
#[test]
fn the_quota_took_what_no_hold_wanted_and_an_alarm_said_it_was_held() {
    let mut month = Month::new();
    let (folder, _) = month.fill();
    list_hold(&folder, None);

    let Open { store, audit, holds } = month.open().unwrap();
    let run = store.begin_run(false, 1).unwrap();
    // More than a start looks at; only the first of all has what is held.
    for number in 0..RARE - 1 {
        month.record(&store, run, number * PACKETS).unwrap();
    }
    let taken = "quota, before a hold had its copy";
    let file = folder.join("audit-00000001.log");
    let told = || std::fs::read_to_string(&file).unwrap().contains(taken);
    assert_eq!((oldest(&store), store.unheld(), told()), (1, 0, false));
    // The next one that has some, which nobody has looked at, is a loss.
    month.record(&store, run, RARE * PACKETS).unwrap();
    assert_eq!((oldest(&store), store.unheld(), told()), (1, 1, true));
    holds.keep(&store, &audit, &|| false);
    assert_eq!(store.holds()[&1].segments, u64::from(PLACES).div_ceil(RARE), "the others");
}

/// Without a recorder nobody was there to write down what gave way to copies for a hold.
#[test]
fn what_the_quota_took_without_a_recorder_was_in_no_log() {
    let mut month = Month::new();
    let path = month.folder.path().join("store");
    let key = KeySource::Provider(Arc::clone(&month.key));
    month.create(Arc::new(DirMedia::create(&path).unwrap()), &path.display().to_string());
    {
        let clock = Arc::clone(&month.clock) as Arc<dyn Clock>;
        let (store, _) = Store::open_dir(&path, &key, clock).unwrap();
        month.fill_up(&store);
    }
    let case = HoldBody { name: "case".into(), filter: HELD.into(), ..HoldBody::default() };
    let report = add_hold(&path, &key, case).unwrap();
    assert!(report.holds[0].segments > 0, "{report:?}");
    let mut taken = Vec::new();
    let folder = audit::folder_of(&path, &STORE.to_string());
    let log = audit::read(&folder, None, &mut |entry| {
        if let Event::Deleted { segment, reason, .. } = entry.event {
            taken.push((segment, reason));
        }
    });
    assert_eq!(log.unwrap().faults.len(), 0);
    assert!(taken.iter().any(|(_, reason)| reason.starts_with("quota")), "{taken:?}");
    let reader = open_store(&path, &key).unwrap();
    let there: Vec<u64> = reader.catalog(0).segments.iter().map(|it| it.entry.ordinal).collect();
    let untold = month.closed.iter().filter(|it| !there.contains(it));
    let untold: Vec<_> = untold.filter(|it| taken.iter().all(|(told, _)| told != *it)).collect();
    assert!(untold.is_empty(), "{untold:?} are gone");
}

/// A hold whose copies a crash kept from being made.
fn list_hold(folder: &Path, window_ns: Option<(u64, u64)>) {
    let mut list = HoldList::load(folder).unwrap();
    let hold = Hold {
        number: list.next_number(0),
        name: "case".to_owned(),
        filter: HELD.to_owned(),
        since_ns: window_ns.map(|(first_ns, _)| first_ns),
        until_ns: window_ns.map(|(_, last_ns)| last_ns + 1),
        reason: None,
        by: Who::Recorder,
        added_ns: START_NS,
        released: false,
    };
    list.add(hold).unwrap();
}

/// Ordinal of the oldest segment that is no copy.
fn oldest(store: &Store) -> u64 {
    let catalog = store.catalog(0);
    let recorded = catalog.segments.iter().filter(|it| it.entry.hold == 0);
    recorded.map(|it| it.entry.ordinal).min().unwrap()
}
