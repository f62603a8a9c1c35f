//! Devices that do not take what is written to some of their blocks: the rest goes on, and such
//! places are remembered.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use wirevault_format::footer::CloseReason;
use wirevault_format::table::{SegmentEntry, SegmentState};
use wirevault_index::Volume;
use wirevault_media::block::BlockDevice;
use wirevault_media::block::sim::SimDevice;
use wirevault_media::{BlockMedia, Fault, MediaFile, SimMedia, Survival, Trigger};
use wirevault_storage::{StorageError, Verdict, VolumeStatus};
use wirevault_telemetry::clock::ManualClock;
use wirevault_testkit::hooked::{DiskHook, FileHook, Hooked};

use crate::checks::*;
use crate::support::*;

/// Label, tables, and six places.
const DEVICE_BYTES: u64 = 10 << 20;
const PLACES: u32 = 6;
const QUOTA_BYTES: u64 = (3 << 20) + 5 * SEGMENT_BYTES;
const PACKETS: u32 = 20;

/// Blocks that a device does not take. Nothing of such a write reaches it.
#[derive(Clone, Default)]
struct Spots(Arc<Mutex<Vec<Range<u64>>>>);

impl Spots {
    fn add(&self, bytes: Range<u64>) {
        self.0.lock().unwrap().push(bytes);
    }
}

impl DiskHook for Spots {
    type File = Self;

    fn opened(&self, _name: &str) -> Self {
        self.clone()
    }
}

impl FileHook for Spots {
    fn write(&self, file: &dyn MediaFile, data: &[u8], offset: u64) -> io::Result<()> {
        let end = offset + data.len() as u64;
        let hit = |spot: &Range<u64>| spot.start < end && offset < spot.end;
        match self.0.lock().unwrap().iter().any(hit) {
            // EIO: what Linux says of a write that the medium did not take.
            true => Err(io::Error::from_raw_os_error(5)),
            false => file.write_at(data, offset),
        }
    }
}

/// A store on a device with such blocks.
struct Rig {
    disk: SimMedia,
    spots: Spots,
}

impl Rig {
    fn new(sealed: bool) -> Self {
        let disk = disk_for(Some(DEVICE_BYTES));
        make(&disk, sealed, QUOTA_BYTES, PLACES).unwrap();
        Self { disk: disk.crash_as(Survival::Nothing, 0), spots: Spots::default() }
    }

    fn media(&self) -> BlockMedia {
        let device: Arc<dyn BlockDevice> = Arc::new(SimDevice::on(&self.disk));
        BlockMedia::over(Arc::new(Hooked::new(device, self.spots.clone()))).unwrap()
    }

    /// A block of a place is bad.
    fn spoil(&self, place: u32, at: u64) {
        let start = self.media().label().unwrap().place_offset(place) + at;
        self.spots.add(start..start + 4096);
    }

    fn start(&self, clock: Arc<ManualClock>, ledger: Ledger) -> Result<Recorder, String> {
        let opened = open_through(Arc::new(self.media()), Arc::clone(&clock));
        let (store, _) = opened.map_err(|error| error.to_string())?;
        let started = Recorder::start(store, clock, ledger, 1);
        started.map_err(|failed| failed.0.to_string())
    }

    fn entries(&self) -> Vec<SegmentEntry> {
        Volume::read(volume_of(&self.disk), &key_source()).unwrap().segments.entries
    }
}

fn volume(recorder: &Recorder) -> VolumeStatus {
    recorder.store.status().volumes[0].clone()
}

/// Records segments of four chunks each, as a lane does: what one place does not take goes into
/// another. Gives the places.
fn record(recorder: &mut Recorder, segments: usize) -> Result<Vec<u32>, String> {
    let text = |error: StorageError| error.to_string();
    let mut places = Vec::new();
    for _ in 0..segments {
        recorder.open_segment(0).map_err(text)?;
        places.push(recorder.segment(0).unwrap().place);
        while recorder.chunks(0) < 4 {
            if let Err(error) = recorder.write_chunk(0, PACKETS, 900, false).unwrap() {
                if error.raw_os_error() != Some(5) {
                    return Err(error.to_string());
                }
                recorder.take_back(0, PACKETS);
                break;
            }
            recorder.sync(0).map_err(|error| error.to_string())?;
        }
        recorder.close(0, CloseReason::Age).map_err(text)?;
    }
    Ok(places)
}

#[test]
fn a_bad_place_keeps_what_it_took_and_takes_no_other_segment() {
    for sealed in [false, true] {
        let rig = Rig::new(sealed);
        // In the third chunk of its first segment.
        rig.spoil(1, 48 << 10);
        let clock = clock();
        let mut recorder = rig.start(Arc::clone(&clock), Ledger::default()).unwrap();
        assert_eq!(record(&mut recorder, 3).unwrap(), [0, 1, 2]);
        let (status, entries) = (volume(&recorder), rig.entries());
        assert_eq!((status.bad_places, status.verdict()), (1, Verdict::Sound));
        let bad: Vec<bool> = entries.iter().map(|entry| entry.bad).collect();
        assert_eq!(bad, [false, true, false, false, false, false]);
        assert_eq!((entries[1].state, entries[1].chunks), (SegmentState::Closed, 2));
        let catalog = recorder.store.catalog(START_NS);
        check_held(&read_all(&catalog, true).unwrap(), &recorder.ledger, 0).unwrap();
        assert_eq!(rig.entries().iter().filter(|entry| entry.bad).count(), 1);

        let later = record(&mut recorder, 12).unwrap();
        assert!(!later.contains(&1) && later.contains(&0), "{later:?}");
        recorder.end().unwrap();
        let ledger = recorder.ledger;
        drop(recorder.store);
        let mut recorder = rig.start(clock, ledger).unwrap();
        let later = record(&mut recorder, 12).unwrap();
        assert!(!later.contains(&1), "it is remembered: {later:?}");
        assert_eq!((rig.entries()[1].state, rig.entries()[1].bad), (SegmentState::Free, true));
        assert_eq!(volume(&recorder).bad_places, 1);
        let catalog = recorder.store.catalog(START_NS);
        let held = read_all(&catalog, true).unwrap();
        check_held(&held, &recorder.ledger, catalog.evicted_live_ns).unwrap();
    }
}

/// What failed for a moment only is taken when it is tried once more.
#[test]
fn a_failure_that_passes_makes_no_bad_place() {
    let rig = Rig::new(true);
    rig.spoil(0, 48 << 10);
    let mut recorder = rig.start(clock(), Ledger::default()).unwrap();
    recorder.open_segment(0).unwrap();
    while recorder.write_chunk(0, PACKETS, 900, false).unwrap().is_ok() {}
    recorder.take_back(0, PACKETS);
    rig.spots.0.lock().unwrap().clear();
    recorder.sync(0).unwrap();
    recorder.close(0, CloseReason::DeviceFailed).unwrap();
    assert_eq!(volume(&recorder).bad_places, 0);
}

/// Right behind the last chunk, where index and footer go: of a segment that is closed, and of one
/// that a crash left.
#[test]
fn an_index_goes_where_it_is_taken() {
    for (sealed, crash) in [(false, false), (true, false), (false, true), (true, true)] {
        let rig = Rig::new(sealed);
        let mut recorder = rig.start(clock(), Ledger::default()).unwrap();
        recorder.open_segment(0).unwrap();
        for _ in 0..2 {
            recorder.write_chunk(0, PACKETS, 900, true).unwrap().unwrap();
        }
        recorder.sync(0).unwrap();
        let catalog = recorder.store.catalog(START_NS);
        assert!(catalog.segments.is_empty(), "it is not shown by this recorder");
        let open = recorder.segment(0).unwrap();
        let chunks = wirevault_storage::rebuild_index(open, 2).unwrap().0.chunks().to_vec();
        let end = chunks[1].offset + u64::from(chunks[1].chunk_bytes);
        rig.spoil(0, end.next_multiple_of(4096));
        let ledger = match crash {
            false => {
                recorder.close(0, CloseReason::Age).unwrap();
                recorder.end().unwrap();
                recorder.ledger
            }
            true => recorder.ledger,
        };
        drop(recorder.store);
        let (store, report) = open_through(Arc::new(rig.media()), clock()).unwrap();
        assert_eq!((report.segments.len(), report.set_aside.len()), (usize::from(crash), 0));
        let entry = rig.entries()[0].clone();
        assert_eq!((entry.state, entry.bad, entry.chunks), (SegmentState::Closed, true, 2));
        assert_eq!(store.status().volumes[0].bad_places, 1);
        let catalog = store.catalog(START_NS);
        check_held(&read_all(&catalog, true).unwrap(), &ledger, 0).unwrap();
        let reader = catalog.segments[0].open().unwrap();
        assert_eq!(reader.index_damage(), None);
        assert!(reader.footer().unwrap().index_offset > end, "further on");
    }
}

/// Places whose headers are not taken: each costs one attempt, and when there are too many of them
/// the volume takes no more.
#[test]
fn a_device_with_too_many_bad_places_is_spent() {
    let rig = Rig::new(true);
    (0..4).for_each(|place| rig.spoil(place, 0));
    let mut recorder = rig.start(clock(), Ledger::default()).unwrap();
    let verdicts = [Verdict::Sound, Verdict::Worn, Verdict::Worn, Verdict::Spent];
    for (bad, verdict) in (1..).zip(verdicts) {
        assert!(matches!(recorder.open_segment(0), Err(StorageError::Device { .. })));
        let status = volume(&recorder);
        assert_eq!((status.bad_places, status.verdict()), (bad, verdict));
        assert!(status.failed.is_none(), "its tables go on: {status:?}");
    }
    let error = recorder.open_segment(0).unwrap_err();
    assert!(matches!(error, StorageError::Spent { bad_places: 4, places: 6, .. }), "{error}");
    assert!(error.to_string().contains("replace its device"), "{error}");
}

/// Tables that cannot be written either tell of the device, not of a place.
#[test]
fn a_device_that_takes_nothing_has_no_bad_places() {
    let rig = Rig::new(false);
    let mut recorder = rig.start(clock(), Ledger::default()).unwrap();
    rig.spots.add(0..DEVICE_BYTES);
    assert!(recorder.open_segment(0).is_err());
    assert!(volume(&recorder).failed.is_some());
    rig.spots.0.lock().unwrap().clear();
    recorder.store.rejoin_volume(0).unwrap();
    assert_eq!(volume(&recorder).bad_places, 0);
    record(&mut recorder, 2).unwrap();
    assert!(rig.entries().iter().all(|entry| !entry.bad));
}

/// Whatever a power cut leaves: nothing acknowledged is lost, and what was closed in the bad place
/// has the mark.
#[test]
fn a_bad_place_survives_a_cut_at_every_operation() {
    let workload = |rig: &Rig, ledger: &mut Ledger| -> Result<(), String> {
        rig.spoil(1, 48 << 10);
        let clock = clock();
        for _ in 0..2 {
            let mut recorder = rig.start(Arc::clone(&clock), ledger.clone())?;
            let recorded = record(&mut recorder, 5);
            let ended = recorded.and_then(|_| recorder.end().map_err(|error| error.to_string()));
            *ledger = recorder.ledger;
            ended?;
        }
        Ok(())
    };
    let whole = Rig::new(true);
    workload(&whole, &mut Ledger::default()).unwrap();
    let (operations, mut marked) = (whole.disk.counts().operations, 0);
    for at in 1..=operations {
        let (rig, mut ledger) = (Rig::new(true), Ledger::default());
        rig.disk.inject(Trigger::Operation(at), Fault::PowerCut);
        assert!(workload(&rig, &mut ledger).is_err(), "cut {at}");
        let rig = Rig { disk: rig.disk.crash(at), spots: rig.spots };
        let entry = rig.entries()[1].clone();
        let closed = entry.state == SegmentState::Closed && !entry.recovered;
        assert!(entry.bad || !closed, "cut {at}: {entry:?}");
        marked += u32::from(entry.bad);
        if let Err(why) = check_after_crash(&rig.disk, &ledger) {
            panic!("cut {at}: {why}");
        }
        assert!(rig.entries()[1].bad || !entry.bad, "cut {at}: the mark stays");
    }
    println!("{operations} cuts, the place was marked at {marked} of them");
    assert!(marked > 0);
}
