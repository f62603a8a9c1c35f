//! A small recorder over a store: it writes chunks as the pipeline does, remembers what was
//! acknowledged, and checks what a store holds against that.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use wirevault_format::chunk::{self, ChunkHeader, HEADER_BYTES};
use wirevault_format::footer::{ChunkEntry, CloseReason};
use wirevault_format::gap::{CAUSES, GAP_BYTES};
use wirevault_format::pcapng::{EpbParts, put_epb};
use wirevault_format::superblock::Superblock;
use wirevault_format::{Cause, Gap, Interface, LifeId, LinkType, RunId, StoreId};
use wirevault_index::flow_table::FlowOptions;
use wirevault_index::{ChunkDelta, FlowTable, KeySource, PacketNote, SegmentIndex, Volume};
use wirevault_media::block::sim::{DEVICE_FILE, SimDevice};
use wirevault_media::{BlockMedia, Lease, Media, OpenMode, SimMedia, Survival};
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
/// Where the small recorder takes its packets, and what it is to keep of them.
pub(crate) const INTERFACE: &str = "uplink-sim0";
pub(crate) const CAPTURE_FILTER: &str = "not host 192.0.2.77";

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

/// What stands on a simulated disk: a device of `bytes` bytes, or files of a directory.
pub(crate) fn disk_for(device_bytes: Option<u64>) -> SimMedia {
    let media = SimMedia::new();
    if let Some(bytes) = device_bytes {
        let device = media.open(DEVICE_FILE, OpenMode::Create).unwrap();
        device.allocate(bytes).unwrap();
        device.sync().unwrap();
        media.sync_dir().unwrap();
    }
    media.crash_as(Survival::Nothing, 0)
}

/// A disk without power is told by whoever uses it.
pub(crate) fn is_device(media: &SimMedia) -> bool {
    media.list().is_ok_and(|names| names.iter().any(|name| name == DEVICE_FILE))
}

/// The volume on a simulated disk.
pub(crate) fn volume_of(media: &SimMedia) -> Arc<dyn Media> {
    match is_device(media) {
        true => Arc::new(BlockMedia::over(Arc::new(SimDevice::on(media))).unwrap()),
        false => Arc::new(media.clone()),
    }
}

/// Makes a store on one simulated disk.
pub(crate) fn make(
    media: &SimMedia,
    sealed: bool,
    quota_bytes: u64,
    places: u32,
) -> Result<(), StorageError> {
    let volumes: Vec<(Arc<dyn Media>, String)> = vec![(volume_of(media), "/sim".into())];
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
    open_through(volume_of(media), clock)
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
    /// Where a chunk was not taken.
    refused_at: Option<u64>,
}

/// The small recorder.
pub(crate) struct Recorder {
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) ledger: Ledger,
    pub(crate) run: RunId,
    /// What has to be ours when something is acknowledged.
    pub(crate) lease: Option<Arc<Lease>>,
    lanes: Vec<Lane>,
}

impl Recorder {
    pub(crate) fn start(
        store: Store,
        clock: Arc<ManualClock>,
        mut ledger: Ledger,
        lanes: u16,
    ) -> Result<Self, Box<(StorageError, Ledger)>> {
        let run = match store.begin_run(false, lanes) {
            Ok(run) => run,
            Err(error) => return Err(Box::new((error, ledger))),
        };
        ledger.runs.insert(run, false);
        let lane = |number| Lane { number, open: None, next_sequence: 0, watermark: 0, gaps: 0 };
        let lanes = (0..lanes).map(lane).collect();
        Ok(Self { store, clock, ledger, run, lease: None, lanes })
    }

    pub(crate) fn open_segment(&mut self, lane: usize) -> Result<(), StorageError> {
        let lane = &mut self.lanes[lane];
        let mut interface = Interface::unnamed(LinkType::ETHERNET);
        interface.name = Some(INTERFACE.into());
        interface.filter = Some(CAPTURE_FILTER.into());
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
            refused_at: None,
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
                policy: None,
                pressure: None,
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

    /// The last chunk, of so many packets, was not taken: they come again in another segment.
    pub(crate) fn take_back(&mut self, lane: usize, packets: u32) {
        let stream = (self.run, lane as u16);
        let lane = &mut self.lanes[lane];
        lane.next_sequence -= u64::from(packets);
        let times = self.ledger.times_ns.get_mut(&stream).expect("packets were written");
        times.truncate(lane.next_sequence as usize);
        let open = lane.open.as_mut().expect("the lane has a segment");
        open.refused_at = Some(open.at);
    }

    /// Acknowledges everything that was written.
    pub(crate) fn sync(&mut self, lane: usize) -> std::io::Result<()> {
        let stream = (self.run, lane as u16);
        let lane = &mut self.lanes[lane];
        if let Some(open) = &lane.open {
            open.segment.file.sync()?;
        }
        if let Some(lease) = &self.lease {
            lease.check()?;
        }
        lane.watermark = lane.next_sequence;
        self.ledger.acknowledged.insert(stream, lane.watermark);
        Ok(())
    }

    /// Closes the lane's segment, or releases it if it is empty. All chunks are acknowledged.
    pub(crate) fn close(&mut self, lane: usize, reason: CloseReason) -> Result<(), StorageError> {
        let lane = &mut self.lanes[lane];
        let Some(open) = lane.open.take() else { return Ok(()) };
        let bad = open.refused_at.is_some_and(|at| open.segment.is_bad_in(at..at + (1 << 20)));
        if open.chunks == 0 {
            return match bad {
                true => self.store.release_bad_place(&open.segment),
                false => self.store.release_segment(&open.segment),
            };
        }
        let facts = ClosingFacts {
            reason,
            recovered: false,
            damaged: false,
            captured_bytes: open.captured_bytes,
            received: lane.next_sequence + lane.gaps,
            shed: 0,
            dropped: [0; CAUSES],
            chain: open.chain.clone().finish(),
        };
        let closed = finish_segment(&open.segment, &open.index, &facts, &*self.clock)
            .map(|finished| if bad { finished.in_bad_place() } else { finished })
            .and_then(|finished| self.store.close_segment(&open.segment, finished));
        if closed.is_err() {
            // It can be closed again.
            lane.open = Some(open);
        }
        closed.map(drop)
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

/// The superblock of a simulated disk.
pub(crate) fn superblock(media: &SimMedia) -> Superblock {
    Volume::read(volume_of(media), &key_source()).unwrap().superblock
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
