//! A day of a recorder whose key service does not do what it is asked, for every reason there is.
//! The clock is simulated; keys are seen to as the daemon does it.

use std::sync::Arc;
use std::time::Duration;

use wirevault_format::footer::CloseReason;
use wirevault_index::KeySource;
use wirevault_media::{Media, SimMedia};
use wirevault_seal::epoch::{KeyCondition, WhenOut};
use wirevault_seal::service::Refusal;
use wirevault_seal::sim::SimService;
use wirevault_seal::{EpochKeys, EpochOptions, ServiceKeys};
use wirevault_storage::{CreateOptions, Plan, StorageError, Store, create_planned};
use wirevault_telemetry::clock::ManualClock;

use crate::checks::{check_held, read_all};
use crate::support::*;

const KEY: &str = "key";
const HALF_HOUR: Duration = Duration::from_secs(1800);
/// Half hours of an outage: far more than three epochs of an hour that are fetched ahead.
const DAY: u32 = 48;

/// A store, its recorder, and the service that keeps its key.
struct Scene {
    disk: SimMedia,
    service: Arc<SimService>,
    clock: Arc<ManualClock>,
    options: EpochOptions,
}

impl Scene {
    fn new(when_revoked: WhenOut) -> Self {
        let (disk, service, clock) = (SimMedia::new(), Arc::default(), clock());
        let options = EpochOptions { when_revoked, ..EpochOptions::default() };
        let scene = Self { disk, service, clock, options };
        let volumes: Vec<(Arc<dyn Media>, String)> = vec![(volume_of(&scene.disk), "/sim".into())];
        let plan = Plan::exact(SEGMENT_BYTES, &[(128 << 20, 128)], 1).unwrap();
        let (key, key_path) = (scene.keys().of(STORE, KEY), KEY.to_owned());
        let create = CreateOptions { key: Some(key), key_path, ..options_of(&scene) };
        create_planned(&volumes, STORE, &create, &plan).unwrap();
        scene
    }

    /// The keys as a process that starts knows them.
    fn keys(&self) -> Arc<ServiceKeys> {
        let (service, clock) = (self.service.clone(), self.clock.clone());
        Arc::new(ServiceKeys::new(service, self.options, clock))
    }

    fn open(&self) -> Result<(Store, Arc<EpochKeys>), StorageError> {
        let keys = self.keys();
        let source = KeySource::Service(keys.clone());
        let (store, _) = Store::open(vec![volume_of(&self.disk)], &source, self.clock.clone())?;
        Ok((store, keys.known(STORE).expect("the store named its key")))
    }

    fn start(&self, ledger: Ledger) -> (Recorder, Arc<EpochKeys>) {
        let (store, keys) = self.open().unwrap();
        let started = Recorder::start(store, self.clock.clone(), ledger, 1);
        (started.unwrap_or_else(|failed| panic!("{}", failed.0)), keys)
    }
}

fn options_of(scene: &Scene) -> CreateOptions {
    CreateOptions { clock: scene.clock.clone(), ..options(true) }
}

/// What the daemon's thread for keys does.
fn tend(recorder: &Recorder, keys: &EpochKeys) {
    if keys.is_due() {
        keys.turn().unwrap();
        recorder.store.renew_rings().unwrap();
    }
    keys.tend();
}

/// A segment with packets, from begin to end.
fn record(recorder: &mut Recorder) -> Result<(), StorageError> {
    recorder.open_segment(0)?;
    recorder.write_chunk(0, 4, 200, true).unwrap().unwrap();
    recorder.sync(0).unwrap();
    recorder.close(0, CloseReason::Age)
}

/// All that was acknowledged is there, and sealed.
fn nothing_is_lost(store: &Store, ledger: &Ledger) {
    let catalog = store.catalog(START_NS);
    check_held(&read_all(&catalog, true).unwrap(), ledger, 0).unwrap();
    assert!(catalog.segments.iter().all(|segment| segment.entry.sealed), "never in plain text");
}

/// What the refusal comes to within the first hour, and after the keys ahead are used up.
const REASONS: [(Refusal, KeyCondition, KeyCondition); 11] = [
    (Refusal::Unreachable, KeyCondition::Waiting, KeyCondition::Exhausted),
    (Refusal::Throttled, KeyCondition::Waiting, KeyCondition::Exhausted),
    (Refusal::Failing, KeyCondition::Waiting, KeyCondition::Exhausted),
    (Refusal::Credentials, KeyCondition::Waiting, KeyCondition::Exhausted),
    (Refusal::NoCredentials, KeyCondition::Waiting, KeyCondition::Exhausted),
    (Refusal::WrongContext, KeyCondition::Waiting, KeyCondition::Exhausted),
    (Refusal::WrongKey, KeyCondition::Waiting, KeyCondition::Exhausted),
    (Refusal::Disabled, KeyCondition::Revoked, KeyCondition::Revoked),
    (Refusal::PendingDeletion, KeyCondition::Revoked, KeyCondition::Revoked),
    (Refusal::Denied, KeyCondition::Revoked, KeyCondition::Revoked),
    (Refusal::NotFound, KeyCondition::Revoked, KeyCondition::Revoked),
];

#[test]
fn a_day_without_the_service_costs_no_packet_for_whatever_reason() {
    for (refusal, early, late) in REASONS {
        let scene = Scene::new(WhenOut::Extend);
        let (mut recorder, keys) = scene.start(Ledger::default());
        tend(&recorder, &keys);
        scene.service.set_away(Some(refusal));
        for half_hour in 0..DAY {
            scene.clock.advance(HALF_HOUR);
            tend(&recorder, &keys);
            let calls = scene.service.calls();
            record(&mut recorder).unwrap();
            // So whoever answers nothing for minutes holds up nobody but the thread for keys.
            assert_eq!(scene.service.calls(), calls, "{refusal:?}: recording asked the service");
            let condition = keys.status().condition;
            if half_hour < 2 {
                assert_eq!(condition, early, "{refusal:?}, half hour {half_hour}");
            }
            if half_hour > 8 {
                assert_eq!(condition, late, "{refusal:?}, half hour {half_hour}");
            }
        }
        nothing_is_lost(&recorder.store, &recorder.ledger);
        recorder.end().unwrap();
        let ledger = std::mem::take(&mut recorder.ledger);
        drop((recorder, keys));

        // Whoever starts now cannot read what is there, and writes nothing instead.
        let refused = scene.open().err().expect("no key, no start").to_string();
        assert!(refused.contains(refusal.name()), "{refusal:?}: {refused}");
        scene.service.set_away(None);
        let (mut recorder, keys) = scene.start(ledger);
        tend(&recorder, &keys);
        assert_eq!(keys.status().condition, KeyCondition::Ready, "{refusal:?}");
        record(&mut recorder).unwrap();
        nothing_is_lost(&recorder.store, &recorder.ledger);
    }
}

#[test]
fn a_key_taken_away_stops_what_is_told_to_stop_and_begins_again_by_itself() {
    let scene = Scene::new(WhenOut::Stop);
    let (mut recorder, keys) = scene.start(Ledger::default());
    tend(&recorder, &keys);
    record(&mut recorder).unwrap();
    scene.service.set_refused(KEY, Some(Refusal::Disabled));
    let stopped = |error: StorageError| {
        let told = error.to_string();
        assert!(told.contains("when_revoked") && told.contains("enable the key"), "{told}");
    };
    let life = recorder.store.catalog(0).segments.iter().next().unwrap().entry.life;
    for _ in 0..DAY {
        scene.clock.advance(HALF_HOUR);
        tend(&recorder, &keys);
        stopped(record(&mut recorder).unwrap_err());
        // A deletion that was begun could only be finished by the next start.
        stopped(recorder.store.forget(&[life]).unwrap_err());
    }
    nothing_is_lost(&recorder.store, &recorder.ledger);
    scene.service.set_refused(KEY, None);
    scene.clock.advance(HALF_HOUR);
    let spent = keys.status().epoch;
    tend(&recorder, &keys);
    // An epoch was due all the time.
    tend(&recorder, &keys);
    assert_ne!(keys.status().epoch, spent);
    record(&mut recorder).unwrap();
    nothing_is_lost(&recorder.store, &recorder.ledger);
    let deletion = recorder.store.forget(&[life]).unwrap().remove(0);
    recorder.store.settle(&deletion).unwrap();
}
