//! A small recorder over a store: it writes chunks as the pipeline does, remembers what was
//! acknowledged, and checks what a store holds against that.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use wirevault_format::chunk::{self, ChunkHeader, HEADER_BYTES};
use wirevault_format::footer::{ChunkEntry, CloseReason};
use wirevault_format::gap::{CAUSES, GAP_BYTES};
use wirevault_format::pcapng::read::{Blocks, Epb};
use wirevault_format::pcapng::{BLOCK_EPB, EpbParts, put_epb};
use wirevault_format::superblock::Superblock;
use wirevault_format::table::{RunEntry, RunState, SegmentState};
use wirevault_format::{Cause, Gap, Interface, LifeId, LinkType, RunId, StoreId};
use wirevault_index::flow_table::FlowOptions;
use wirevault_index::{
    Catalog, ChunkDelta, FlowTable, KeySource, PacketNote, SegmentIndex, StoreReader, Volume,
};
use wirevault_media::sim::SplitMix64;
use wirevault_media::{Media, MediaFile, OpenMode, SimMedia};
use wirevault_packet::dissect;
use wirevault_seal::chain::Chain;
use wirevault_seal::locked::LockedBytes;
use wirevault_seal::{DataSealer, FileProvider, KeyProvider, SealError};
use wirevault_storage::{
    ClosingFacts, CreateOptions, OpenRequest, OpenSegment, Plan, RecoveryReport, StorageError,
    Store, create_planned, finish_segment,
};
use wirevault_telemetry::clock::{Clock, ManualClock};

pub(crate) const STORE: StoreId = StoreId([7; 16]);
pub(crate) const SEGMENT_BYTES: u64 = 1 << 20;
pub(crate) const START_NS: u64 = 1_700_000_000_000_000_000;

/// A key for tests, made once: its file is in the temporary directory.
pub(crate) fn key() -> Arc<dyn KeyProvider> {
    use std::sync::OnceLock;
    static KEY: OnceLock<Arc<FileProvider>> = OnceLock::new();
    let key = KEY.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        Arc::new(FileProvider::create(&dir.path().join("test.key")).unwrap())
    });
    Arc::clone(key) as Arc<dyn KeyProvider>
}

pub(crate) fn key_source() -> KeySource {
    KeySource::Provider(key())
}

pub(crate) fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(START_NS))
}

/// Makes a store on one simulated disk.
pub(crate) fn make(
    media: &SimMedia,
    sealed: bool,
    quota_bytes: u64,
    places: u32,
) -> Result<(), StorageError> {
    let volumes: Vec<(Arc<dyn Media>, String)> = vec![(Arc::new(media.clone()), "/sim".into())];
    let plan = Plan::exact(SEGMENT_BYTES, &[(quota_bytes, places)], 1)?;
    create_planned(&volumes, STORE, &options(sealed), &plan).map(drop)
}

pub(crate) fn options(sealed: bool) -> CreateOptions {
    CreateOptions {
        quota_bytes: None,
        lanes: 1,
        key: sealed.then(key),
        key_path: String::new(),
        clock: clock(),
    }
}

pub(crate) fn open(
    media: &SimMedia,
    clock: Arc<ManualClock>,
) -> Result<(Store, RecoveryReport), StorageError> {
    open_through(Arc::new(media.clone()), clock)
}

pub(crate) fn open_through(
    media: Arc<dyn Media>,
    clock: Arc<ManualClock>,
) -> Result<(Store, RecoveryReport), StorageError> {
    Store::open(vec![media], &key_source(), clock)
}

/// A stream as recovery knows it.
pub(crate) type Stream = (RunId, u16);

/// What was acknowledged, and every seal that was ever made: it outlives crashes.
#[derive(Default, Clone)]
pub(crate) struct Ledger {
    /// Sequences below this are acknowledged.
    pub(crate) acknowledged: HashMap<Stream, u64>,
    /// Everything below this was handed to the disk.
    pub(crate) written: HashMap<Stream, u64>,
    /// Time of each packet.
    pub(crate) times_ns: HashMap<Stream, Vec<u64>>,
    /// Runs that were begun, and whether they were ended.
    pub(crate) runs: HashMap<RunId, bool>,
    /// Life and chunk number of every chunk that was sealed.
    pub(crate) sealed: HashSet<(LifeId, u32)>,
}

/// One lane of the small recorder.
pub(crate) struct Lane {
    number: u16,
    open: Option<Writing>,
    next_sequence: u64,
    watermark: u64,
    gaps: u64,
}

struct Writing {
    segment: OpenSegment,
    sealer: Option<DataSealer>,
    index: SegmentIndex,
    table: FlowTable,
    chain: Chain,
    at: u64,
    chunks: u32,
    captured_bytes: u64,
}

/// The small recorder.
pub(crate) struct Recorder {
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) ledger: Ledger,
    pub(crate) run: RunId,
    lanes: Vec<Lane>,
}

impl Recorder {
    pub(crate) fn start(
        mut store: Store,
        clock: Arc<ManualClock>,
        mut ledger: Ledger,
        lanes: u16,
    ) -> Result<Self, (StorageError, Ledger)> {
        let run = match store.begin_run(false, lanes) {
            Ok(run) => run,
            Err(error) => return Err((error, ledger)),
        };
        ledger.runs.insert(run, false);
        let lane = |number| Lane { number, open: None, next_sequence: 0, watermark: 0, gaps: 0 };
        Ok(Self { store, clock, ledger, run, lanes: (0..lanes).map(lane).collect() })
    }

    pub(crate) fn open_segment(&mut self, lane: usize) -> Result<(), StorageError> {
        let lane = &mut self.lanes[lane];
        let mut interface = Interface::unnamed(LinkType::ETHERNET);
        interface.name = Some("sim0".into());
        let request = OpenRequest {
            lane: lane.number,
            link_type: LinkType::ETHERNET,
            interfaces: &[interface],
        };
        let segment = self.store.open_segment(request)?;
        let sealer = segment.keys.as_ref().map(|keys| keys.data_sealer().unwrap());
        lane.open = Some(Writing {
            sealer,
            index: SegmentIndex::new(),
            table: FlowTable::new(FlowOptions { flows_max: segment.flows_max }),
            chain: Chain::new(),
            at: segment.data_offset,
            chunks: 0,
            captured_bytes: 0,
            segment,
        });
        Ok(())
    }

    pub(crate) fn is_open(&self, lane: usize) -> bool {
        self.lanes[lane].open.is_some()
    }

    pub(crate) fn chunks(&self, lane: usize) -> u32 {
        self.lanes[lane].open.as_ref().map_or(0, |open| open.chunks)
    }

    pub(crate) fn segment(&self, lane: usize) -> Option<&OpenSegment> {
        self.lanes[lane].open.as_ref().map(|open| &open.segment)
    }

    pub(crate) fn segment_mut(&mut self, lane: usize) -> Option<&mut OpenSegment> {
        self.lanes[lane].open.as_mut().map(|open| &mut open.segment)
    }

    /// Writes one chunk of `packets` packets with `data_bytes` each; it is not acknowledged yet.
    /// `None`: the segment is full.
    pub(crate) fn write_chunk(
        &mut self,
        lane: usize,
        packets: u32,
        data_bytes: usize,
        gap: bool,
    ) -> Option<std::io::Result<()>> {
        let stream = (self.run, lane as u16);
        let lane = &mut self.lanes[lane];
        let open = lane.open.as_mut().expect("the lane has a segment");
        let mut buf = vec![0; wirevault_format::limits::CHUNK_BYTES];
        let mut end = HEADER_BYTES;
        let mut delta = ChunkDelta::new();
        delta.number = open.chunks;
        if gap {
            lane.gaps += 1;
            let now_ns = self.clock.unix_ns();
            let gap = Gap {
                cause: Cause::RingOverflow,
                from_ns: now_ns,
                until_ns: Some(now_ns + 5),
                packets: Some(1),
                cumulative: lane.gaps,
                sequence: lane.next_sequence,
            };
            gap.encode((&mut buf[end..end + GAP_BYTES]).try_into().unwrap());
            delta.gaps.push(gap);
            end += GAP_BYTES;
        }
        let mut times: Option<(u64, u64)> = None;
        let mut stamps = Vec::new();
        let mut captured_bytes = 0;
        open.table.begin_chunk(&delta);
        for n in 0..packets {
            self.clock.advance(Duration::from_nanos(1000));
            let ts_ns = self.clock.unix_ns();
            let data = frame(stream, lane.next_sequence + u64::from(n), data_bytes);
            let packet = EpbParts {
                interface_id: 0,
                ts_ns,
                orig_len: data.len() as u32,
                data: &data,
                vlan: None,
                flags: None,
                raw_options: &[],
            };
            end += put_epb(&mut buf, end, &packet).expect("the packets fit a chunk");
            times = Some((times.map_or(ts_ns, |(min_ns, _)| min_ns), ts_ns));
            stamps.push(ts_ns);
            captured_bytes += data.len() as u64;
            let dissected = dissect(LinkType::ETHERNET, &data);
            let note = PacketNote {
                key: dissected.key,
                hash: dissected.hash,
                direction: dissected.direction,
                ts_ns,
                wire_len: data.len() as u32,
                captured_len: data.len() as u32,
                tcp_flags: dissected.tcp_flags,
            };
            open.table.upsert(&[note], &mut delta);
        }
        let header = ChunkHeader {
            sealed: open.sealer.is_some(),
            gaps: gap,
            lane: lane.number,
            link_type: LinkType::ETHERNET,
            life: open.segment.entry.life,
            run: self.run,
            number: open.chunks,
            payload_bytes: (end - HEADER_BYTES) as u32,
            first_sequence: lane.next_sequence,
            packets,
            times_ns: times,
            received: lane.next_sequence + u64::from(packets) + lane.gaps,
            shed: 0,
            dropped: lane.gaps,
            watermark: lane.watermark,
        };
        let chunk_bytes = header.chunk_bytes();
        if open.at + chunk_bytes as u64 > open.segment.data_end {
            return None;
        }
        header.encode(&mut buf);
        match &mut open.sealer {
            Some(sealer) => {
                let (aad, payload) = buf.split_at_mut(HEADER_BYTES);
                let payload = &mut payload[..header.payload_bytes as usize];
                let tag = sealer.seal(header.number, aad, payload).unwrap();
                chunk::put_sealed_tail(&mut buf, &header, &tag);
                open.chain.add(&tag);
                let new = self.ledger.sealed.insert((header.life, header.number));
                assert!(new, "chunk {} of life {} sealed twice", header.number, header.life);
            }
            None => {
                chunk::put_plain_tail(&mut buf, &header);
                open.chain.add(&buf[end + 40..end + 44]);
            }
        }
        delta.chunk = ChunkEntry {
            offset: open.at,
            chunk_bytes: chunk_bytes as u32,
            packets,
            times_ns: times,
            first_sequence: lane.next_sequence,
        };
        // From here on the packets may be on the disk.
        lane.next_sequence += u64::from(packets);
        self.ledger.written.insert(stream, lane.next_sequence);
        self.ledger.times_ns.entry(stream).or_default().extend(stamps);
        let written = open.segment.file.write_at(&buf[..chunk_bytes], open.at);
        if written.is_ok() {
            open.at += chunk_bytes as u64;
            open.chunks += 1;
            open.captured_bytes += captured_bytes;
            open.index.apply(&delta).unwrap();
        }
        Some(written)
    }

    /// Acknowledges everything that was written.
    pub(crate) fn sync(&mut self, lane: usize) -> std::io::Result<()> {
        let stream = (self.run, lane as u16);
        let lane = &mut self.lanes[lane];
        if let Some(open) = &lane.open {
            open.segment.file.sync()?;
        }
        lane.watermark = lane.next_sequence;
        self.ledger.acknowledged.insert(stream, lane.watermark);
        Ok(())
    }

    /// Closes the lane's segment, or releases it if it is empty. All chunks are acknowledged.
    pub(crate) fn close(&mut self, lane: usize, reason: CloseReason) -> Result<(), StorageError> {
        let lane = &mut self.lanes[lane];
        let Some(open) = lane.open.take() else { return Ok(()) };
        if open.chunks == 0 {
            return self.store.release_segment(&open.segment);
        }
        let facts = ClosingFacts {
            reason,
            recovered: false,
            damaged: false,
            captured_bytes: open.captured_bytes,
            received: lane.next_sequence + lane.gaps,
            shed: 0,
            dropped: [0; CAUSES],
            chain: open.chain.finish(),
        };
        let finished = finish_segment(&open.segment, &open.index, &facts, &*self.clock)?;
        self.store.close_segment(&open.segment, finished).map(drop)
    }

    pub(crate) fn end(&mut self) -> Result<(), StorageError> {
        for lane in 0..self.lanes.len() {
            self.sync(lane).map_err(device_error)?;
            self.close(lane, CloseReason::Stop)?;
        }
        self.store.end_run()?;
        self.ledger.runs.insert(self.run, true);
        Ok(())
    }
}

fn device_error(source: std::io::Error) -> StorageError {
    StorageError::Device { volume: "simulated disk".into(), doing: "sync".into(), source }
}

/// The packet that a stream has at a sequence number: UDP over IPv4, one of seven flows.
pub(crate) fn frame(stream: Stream, sequence: u64, bytes: usize) -> Vec<u8> {
    let bytes = bytes.max(64);
    let mut frame = vec![0x5a; bytes];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&[8, 0]);
    let total = (bytes - 14) as u16;
    frame[14..34].copy_from_slice(&[
        0x45,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        64,
        17,
        0,
        0,
        10,
        0,
        0,
        1,
        10,
        0,
        1,
        (sequence % 7) as u8,
    ]);
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[34..36].copy_from_slice(&(1000 + stream.1).to_be_bytes());
    frame[36..38].copy_from_slice(&53u16.to_be_bytes());
    frame[38..40].copy_from_slice(&(total - 20).to_be_bytes());
    frame[40..42].fill(0);
    frame[42..50].copy_from_slice(&stream.0.0.to_le_bytes());
    frame[50..52].copy_from_slice(&stream.1.to_le_bytes());
    frame[52..60].copy_from_slice(&sequence.to_le_bytes());
    frame
}

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
                held.entry(stream).or_default().push(sequence);
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
    let volume = Volume::read(Arc::new(media.clone()), &key_source());
    let volume = volume.map_err(|error| error.to_string())?;
    let reader = StoreReader { store: STORE, volumes: vec![volume], missing: Vec::new() };
    Ok(reader.catalog(START_NS))
}

/// The superblock of a simulated disk.
pub(crate) fn superblock(media: &SimMedia) -> Superblock {
    Volume::read(Arc::new(media.clone()), &key_source()).unwrap().superblock
}

/// A key service that can be out of reach.
pub(crate) struct Moody {
    pub(crate) key: Arc<dyn KeyProvider>,
    pub(crate) down: std::sync::atomic::AtomicBool,
}

impl KeyProvider for Moody {
    fn id(&self) -> String {
        self.key.id()
    }

    fn wrap(&self, plaintext: &[u8], aad: &[u8]) -> Result<Vec<u8>, SealError> {
        match self.down.load(std::sync::atomic::Ordering::Relaxed) {
            true => {
                Err(SealError::Provider { provider: "moody".into(), source: "out of reach".into() })
            }
            false => self.key.wrap(plaintext, aad),
        }
    }

    fn unwrap(&self, wrapped: &[u8], aad: &[u8]) -> Result<LockedBytes, SealError> {
        self.key.unwrap(wrapped, aad)
    }
}

/// The workload of the crash tests: two lanes, chunks of many sizes, segments closed early, more
/// of them than the quota keeps, a second run. Everything follows from the seed. The store works on
/// `through`, which is `media` or stands before it.
pub(crate) fn workload(
    media: &SimMedia,
    through: &Arc<dyn Media>,
    seed: u64,
    ledger: &mut Ledger,
) -> Result<(), String> {
    let clock = clock();
    let mut rng = SplitMix64::new(seed);
    for _ in 0..2 {
        let opened = open_through(Arc::clone(through), Arc::clone(&clock));
        let (store, report) = opened.map_err(|error| error.to_string())?;
        assert!(report.is_clean(), "a store that was closed well: {report:?}");
        let before = std::mem::take(ledger);
        let mut recorder = match Recorder::start(store, Arc::clone(&clock), before, 2) {
            Ok(recorder) => recorder,
            Err((error, before)) => {
                *ledger = before;
                return Err(error.to_string());
            }
        };
        let result = record(media, &mut recorder, &mut rng);
        *ledger = recorder.ledger;
        result?;
    }
    Ok(())
}

fn record(media: &SimMedia, recorder: &mut Recorder, rng: &mut SplitMix64) -> Result<(), String> {
    let text = |error: StorageError| error.to_string();
    for step in 0..26 {
        let lane = rng.below(2) as usize;
        if !recorder.is_open(lane) {
            recorder.open_segment(lane).map_err(text)?;
            check_quota(media, &recorder.store)?;
        }
        for _ in 0..=rng.below(2) {
            let (packets, bytes) = (rng.below(12) as u32, 64 + rng.below(900) as usize);
            let gap = rng.below(4) == 0 || packets == 0;
            let written = recorder.write_chunk(lane, packets, bytes, gap);
            written.expect("a segment has room").map_err(|error| error.to_string())?;
        }
        if rng.below(2) == 0 {
            recorder.sync(lane).map_err(|error| error.to_string())?;
        }
        if step % 9 == 8 {
            recorder.store.heartbeat().map_err(text)?;
        }
        if recorder.chunks(lane) >= 4 {
            recorder.sync(lane).map_err(|error| error.to_string())?;
            recorder.close(lane, CloseReason::Age).map_err(text)?;
        }
    }
    recorder.end().map_err(text)
}

pub(crate) fn check_quota(media: &SimMedia, store: &Store) -> Result<(), String> {
    let status = store.status();
    let volume = &status.volumes[0];
    let on_disk = disk_bytes(media)?;
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
    let bad = |it: &&wirevault_storage::RecoveredSegment| {
        !it.damage.is_empty() || it.unreadable.is_some() || it.entry.damaged
    };
    if let Some(damaged) = report.segments.iter().find(bad) {
        return Err(format!("a crash alone damages nothing: {damaged:?}"));
    }
    check_quota(media, &store)?;
    let catalog = store.catalog(clock.unix_ns(), &[]);
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
    let mut recorder = started.map_err(|(error, _)| format!("begin: {error}"))?;
    recorder.open_segment(0).map_err(|error| format!("open a segment: {error}"))?;
    check_quota(media, &recorder.store)?;
    recorder.write_chunk(0, 3, 100, false).expect("there is room").unwrap();
    recorder.end().map_err(|error| format!("end: {error}"))?;
    let Recorder { store, ledger, .. } = recorder;
    let catalog = store.catalog(clock.unix_ns(), &[]);
    check_held(&read_all(&catalog, true)?, &ledger, catalog.evicted_live_ns)?;
    drop(store);
    let (_, report) = open(media, clock).map_err(|error| format!("open again: {error}"))?;
    match report.is_clean() {
        true => Ok(()),
        false => Err(format!("recovery left something to do: {report:?}")),
    }
}
