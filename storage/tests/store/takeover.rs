//! Two writers of one device: the first is stopped before any of its operations, or in the middle
//! of a write; the second takes over, records, and only then the first goes on.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wirevault_format::table::SegmentState;
use wirevault_index::Catalog;
use wirevault_media::block::BlockDevice;
use wirevault_media::block::sim::SimDevice;
use wirevault_media::sim::SplitMix64;
use wirevault_media::{
    BlockMedia, Claim, Lease, LeaseState, Media, MediaError, MediaFile, Role, SimMedia,
};
use wirevault_nvme::Reservation;
use wirevault_nvme::reserve::sim::{SimHost, SimNamespace};
use wirevault_storage::{Plan, create_planned};
use wirevault_testkit::hooked::{DiskHook, FileHook, Hooked};

use crate::checks::{Held, check_held, read_all};
use crate::support::*;
use crate::workload::record;

const PLACES: u32 = 12;
/// Label, leases, eight times the tables, and the places.
const DEVICE_BYTES: u64 = (1 + 8 * 3 + PLACES as u64) << 20;

/// An empty store on a shared device.
fn shared(sealed: bool) -> SimMedia {
    let disk = disk_for(Some(DEVICE_BYTES));
    let media = BlockMedia::over(Arc::new(SimDevice::on(&disk))).unwrap().to_be_shared();
    let quota_bytes = (3 << 20) + 9 * SEGMENT_BYTES;
    let plan = Plan::exact(SEGMENT_BYTES, &[(quota_bytes, PLACES)], 2).unwrap();
    let volumes: Vec<(Arc<dyn Media>, String)> = vec![(Arc::new(media), "/sim".into())];
    create_planned(&volumes, STORE, &options(sealed), &plan).unwrap();
    disk
}

fn claim(role: Role) -> Claim {
    let (name, interval) = (format!("{role:?}"), Duration::from_secs(1));
    Claim { role, holder: [role as u8; 16], name, interval, exclusive: false }
}

/// A disk that two machines have, and what its controller lets them do.
#[derive(Clone)]
struct Shared {
    disk: SimMedia,
    /// Nothing: it has no reservations.
    namespace: Option<SimNamespace>,
}

impl Shared {
    /// The device as the machine with this role has it.
    fn device(&self, role: Role) -> Arc<dyn BlockDevice> {
        let device: Arc<dyn BlockDevice> = Arc::new(SimDevice::on(&self.disk));
        match &self.namespace {
            None => device,
            Some(namespace) => Arc::new(Hooked::new(device, Guard(namespace.host(role as u128)))),
        }
    }
}

/// A writer that takes the reservation, if there are any, and the lease. Its clock is `hours` late.
fn writer(
    shared: &Shared,
    device: Arc<dyn BlockDevice>,
    role: Role,
    hours: u64,
) -> Result<Recorder, String> {
    let reserve = |namespace: &SimNamespace| {
        Reservation::take(namespace.host(role as u128), 1, 1 + hours).map(drop)
    };
    shared.namespace.as_ref().map_or(Ok(()), reserve).map_err(|error| error.to_string())?;
    let media = BlockMedia::over(device).map_err(|error| error.to_string())?;
    let claim = Claim { exclusive: shared.namespace.is_some(), ..claim(role) };
    let lease = media.take_lease(&claim).map_err(|error| error.to_string())?;
    let clock = clock();
    clock.advance(Duration::from_secs(3600 * hours));
    let (store, report) =
        open_through(Arc::new(media), Arc::clone(&clock)).map_err(|error| error.to_string())?;
    let damaged = report.segments.iter().find(|it| !it.damage.is_empty() || it.entry.damaged);
    assert!(damaged.is_none() && report.set_aside.is_empty(), "{report:?}");
    let started = Recorder::start(store, clock, Ledger::default(), 2);
    let mut recorder = started.map_err(|failed| failed.0.to_string())?;
    recorder.lease = Some(lease);
    Ok(recorder)
}

/// A device carries out what the reservation allows its host.
struct Guard(SimHost);

impl DiskHook for Guard {
    type File = Self;

    fn opened(&self, _name: &str) -> Self {
        Self(self.0.clone())
    }

    fn discard(&self, device: &dyn BlockDevice, offset: u64, bytes: u64) -> io::Result<bool> {
        self.0.may_write()?;
        device.discard(offset, bytes)
    }
}

impl FileHook for Guard {
    fn write(&self, file: &dyn MediaFile, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.may_write()?;
        file.write_at(data, offset)
    }

    fn sync(&self, file: &dyn MediaFile) -> io::Result<()> {
        self.0.may_write()?;
        file.sync()
    }
}

/// The user of a device is stopped before its operation number `at`; `half`: when the first half of
/// that is done.
struct Point {
    at: u64,
    half: bool,
    done: AtomicU64,
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Point {
    /// Whether the user is stopped here.
    fn reached(&self) -> bool {
        self.done.fetch_add(1, Ordering::Relaxed) + 1 == self.at
    }

    fn stop(&self) {
        if let Some(meanwhile) = self.meanwhile.lock().unwrap().take() {
            meanwhile();
        }
    }
}

/// Stops the user of a device there.
struct Stop(Arc<Point>);

impl DiskHook for Stop {
    type File = Self;

    fn opened(&self, _name: &str) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl FileHook for Stop {
    fn read(&self, file: &dyn MediaFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.0.reached() {
            self.0.stop();
        }
        file.read_at(buf, offset)
    }

    fn write(&self, file: &dyn MediaFile, data: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        if self.0.reached() {
            if self.0.half {
                // Whole sectors, as devices write.
                done = (data.len() / 2).next_multiple_of(512).min(data.len());
                file.write_at(&data[..done], offset)?;
            }
            self.0.stop();
        }
        file.write_at(&data[done..], offset + done as u64)
    }

    fn sync(&self, file: &dyn MediaFile) -> io::Result<()> {
        if self.0.reached() {
            self.0.stop();
        }
        file.sync()
    }
}

/// What the second writer found and did while the first one was stopped.
struct Takeover {
    /// What was there when it took over.
    found: Held,
    /// What the quota had taken by then.
    evicted_ns: u64,
    recorder: Recorder,
}

fn take_over(shared: &Shared) -> Takeover {
    let device = shared.device(Role::Standby);
    let mut recorder = writer(shared, device, Role::Standby, 1).unwrap();
    let catalog = recorder.store.catalog(START_NS);
    let found = read_all(&catalog, true).unwrap();
    some_segments(&mut recorder);
    Takeover { found, evicted_ns: catalog.evicted_live_ns, recorder }
}

/// Two closed segments and an open one, all acknowledged.
fn some_segments(recorder: &mut Recorder) {
    for segment in 0..3 {
        if !recorder.is_open(0) {
            recorder.open_segment(0).unwrap();
        }
        for _ in 0..3 {
            recorder.write_chunk(0, 5, 700, false).unwrap().unwrap();
        }
        recorder.sync(0).unwrap();
        if segment < 2 {
            recorder.close(0, wirevault_format::footer::CloseReason::Age).unwrap();
        }
    }
}

/// Runs the first writer until it ends or notices; gives its operations, and whether it was
/// stopped.
fn run(sealed: bool, reserved: bool, at: u64, half: bool) -> (u64, bool) {
    let disk = shared(sealed);
    let namespace = reserved.then(SimNamespace::default);
    let both = Shared { disk: disk.clone(), namespace };
    // The epochs of the second are the higher ones then, whoever claims first.
    let before = BlockMedia::over(Arc::new(SimDevice::on(&disk))).unwrap();
    before.take_lease(&claim(Role::Standby)).unwrap().end().unwrap();
    let second: Arc<Mutex<Option<Takeover>>> = Arc::default();
    let meanwhile = {
        let (both, second) = (both.clone(), Arc::clone(&second));
        move || *second.lock().unwrap() = Some(take_over(&both))
    };
    let meanwhile: Box<dyn FnOnce() + Send> = Box::new(meanwhile);
    let (done, meanwhile) = (AtomicU64::new(0), Mutex::new(Some(meanwhile)));
    let point = Arc::new(Point { at, half, done, meanwhile });
    let device = Hooked::new(both.device(Role::Primary), Stop(Arc::clone(&point)));
    let (mut ledger, mut ended) = (Ledger::default(), Ok(()));
    let mut lease: Option<Arc<Lease>> = None;
    match writer(&both, Arc::new(device), Role::Primary, 0) {
        Ok(mut first) => {
            ended = record(&disk, &mut first, &mut SplitMix64::new(7));
            (ledger, lease) = (first.ledger.clone(), first.lease.clone());
        }
        Err(why) => ended = ended.and(Err(why)),
    }
    let operations = point.done.load(Ordering::Relaxed);
    let Some(Takeover { found, evicted_ns, mut recorder }) = second.lock().unwrap().take() else {
        ended.unwrap();
        return (operations, false);
    };
    let what = format!("sealed {sealed}, reserved {reserved}, stopped at {at}, half {half}");
    if let Err(why) = recorder.lease.as_ref().unwrap().check() {
        // The first one had not looked at the leases yet, and took over itself.
        assert!(at <= 2 && ended.is_ok() && !reserved, "{what}: {why}");
        return (operations, false);
    }
    // The first writer's last acknowledgements: what was there when it was stopped.
    check_held(&found, &ledger, evicted_ns).unwrap_or_else(|why| panic!("{what}: {why}"));
    if let Some(lease) = &lease {
        // Whoever was refused a write has not looked yet why.
        let _ = lease.check();
        let lost = lease.lost().unwrap_or_else(|| panic!("{what}: it did not notice"));
        assert_eq!(lost.by.as_ref().map(|(_, name)| name.as_str()), Some("Standby"));
        // Under a reservation it cannot even say that.
        assert_eq!(lease.end().is_err(), reserved, "{what}");
    }
    assert!(ended.is_err(), "{what}: {ended:?}");
    some_segments(&mut recorder);
    let contested =
        || recorder.store.catalog(START_NS).segments.iter().any(|it| it.entry.contested);
    assert!(!(reserved && contested()), "{what}: nobody writes late");
    let evicted_ns = recorder.store.catalog(START_NS).evicted_live_ns;
    let check = |held: &Held, who: &str, ledger: &Ledger| {
        let mut both = ledger.clone();
        both.written.extend(found.iter().map(|(it, all)| (*it, all.last().unwrap() + 1)));
        check_held(held, &both, evicted_ns).unwrap_or_else(|why| panic!("{what}, {who}: {why}"));
        for (stream, sequences) in held.iter().filter(|(stream, _)| found.contains_key(stream)) {
            let before = &found[stream];
            let from = before.iter().position(|it| *it == sequences[0]).unwrap();
            assert_eq!(sequences[..], before[from..], "{what}, {who}: {stream:?}");
        }
    };
    let reader = crate::checks::offline_catalog(&disk).unwrap();
    let offline = read_all(&reader, true).unwrap_or_else(|why| panic!("{what}, reader: {why}"));
    indexes_are_whole(&reader, &what);
    check(&offline, "a reader", &recorder.ledger);
    let (written, lease) = (recorder.ledger.clone(), recorder.lease.clone());
    recorder.end().unwrap();
    drop(recorder);
    lease.unwrap().end().unwrap();
    // The first machine comes back.
    let third = writer(&both, both.device(Role::Primary), Role::Primary, 2).unwrap();
    let catalog = third.store.catalog(START_NS);
    indexes_are_whole(&catalog, &what);
    let held = read_all(&catalog, true).unwrap();
    check(&held, "the next writer", &written);
    (operations, true)
}

/// No late write hit the index of a closed segment.
fn indexes_are_whole(catalog: &Catalog, what: &str) {
    for segment in catalog.segments.iter().filter(|it| it.entry.state == SegmentState::Closed) {
        let reader = segment.open().unwrap_or_else(|why| panic!("{what}: {why}"));
        assert_eq!(reader.index_damage(), None, "{what}: {}", segment.name());
    }
}

/// Stops it at each `step`th operation, by turns before it and when half of it is done.
fn stopped_everywhere(sealed: bool, reserved: bool, step: usize) {
    let (operations, _) = run(sealed, reserved, u64::MAX, false);
    let (mut tried, mut stops) = (0, 0);
    for at in (1..=operations).step_by(step) {
        stops += u64::from(run(sealed, reserved, at, tried % 2 == 0).1);
        tried += 1;
    }
    println!("sealed {sealed}, reserved {reserved}: {stops} take-overs of {operations} operations");
    assert!(stops + 2 >= tried, "{stops} of {tried}: the second took over everywhere");
}

#[test]
fn a_sealed_store_survives_a_take_over_at_every_operation() {
    stopped_everywhere(true, false, 1);
}

#[test]
fn a_plain_store_survives_a_take_over_at_every_third_operation() {
    stopped_everywhere(false, false, 3);
}

/// The device itself refuses what the first writer does late.
#[test]
fn a_reserved_store_survives_a_take_over_at_every_third_operation() {
    stopped_everywhere(true, true, 3);
}

/// It acknowledged less than is there: its index would come over chunks that the second has found.
#[test]
fn a_fenced_writer_closes_nothing() {
    let both = Shared { disk: shared(true), namespace: None };
    let mut first = writer(&both, both.device(Role::Primary), Role::Primary, 0).unwrap();
    some_segments(&mut first);
    let _second = take_over(&both);
    let bytes = || {
        let device = SimDevice::on(&both.disk).open(false).unwrap();
        let mut bytes = vec![0; DEVICE_BYTES as usize];
        device.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let before = bytes();
    let why = first.close(0, wirevault_format::footer::CloseReason::Age).unwrap_err();
    assert!(why.to_string().contains("lease"), "{why}");
    assert!(bytes() == before, "it wrote something");
}

/// Whatever the first writer carries out late lands where it would have put it. The index that the
/// second one made of what it found stands behind all of that.
#[test]
fn late_chunks_miss_the_index_of_a_segment_that_was_taken_over() {
    for sealed in [false, true] {
        let both = Shared { disk: shared(sealed), namespace: None };
        let mut first = writer(&both, both.device(Role::Primary), Role::Primary, 0).unwrap();
        some_segments(&mut first);
        let Takeover { found, recorder, .. } = take_over(&both);
        let mut late = 0;
        while let Some(written) = first.write_chunk(0, 5, 700, false) {
            written.unwrap();
            late += 1;
        }
        assert!(late > 10, "up to where chunks end: {late}");
        for catalog in
            [recorder.store.catalog(START_NS), crate::checks::offline_catalog(&both.disk).unwrap()]
        {
            indexes_are_whole(&catalog, &format!("sealed {sealed}"));
            let held = read_all(&catalog, true).unwrap();
            assert!(found.iter().all(|(stream, sequences)| held[stream] == *sequences));
        }
    }
}

/// The two never claim the same epoch, and what each says of itself is what the other reads.
#[test]
fn epochs_and_states_are_told() {
    let disk = shared(false);
    let media = || BlockMedia::over(Arc::new(SimDevice::on(&disk))).unwrap();
    assert!(matches!(media().lock(), Err(MediaError::NotLeased { .. })));
    assert_eq!(media().leases().unwrap(), []);
    let first = media();
    let a = first.take_lease(&claim(Role::Primary)).unwrap();
    assert_eq!((a.epoch(), a.is_contested()), (2, false));
    a.beat().unwrap();
    let second = media();
    let b = second.take_lease(&claim(Role::Standby)).unwrap();
    assert_eq!((b.epoch(), b.is_contested()), (3, true));
    assert!(b.check().is_ok() && !b.rivals_are_gone().unwrap());
    let lost = a.beat().unwrap_err();
    assert_eq!(wirevault_media::fenced(&lost).unwrap().epoch, 2);
    a.end().unwrap();
    assert!(b.rivals_are_gone().unwrap());
    let states: Vec<_> = media().leases().unwrap().iter().map(|it| (it.epoch, it.state)).collect();
    assert_eq!(states, [(2, LeaseState::Fenced), (3, LeaseState::Held)]);
    b.end().unwrap();
    // A writer that is silent for as many take-overs as there are areas still has its own.
    let third = media();
    let silent = third.take_lease(&claim(Role::Primary)).unwrap();
    for n in 0..20 {
        let lease = media().take_lease(&claim(Role::Standby)).unwrap();
        assert_ne!(lease.epoch() % 8, silent.epoch() % 8, "take-over {n}");
    }
}
