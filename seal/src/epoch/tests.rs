//! Outages, revocations and changes of the key, over simulated time.

use wirevault_format::VolumeId;
use wirevault_telemetry::clock::{ManualClock, SystemClock};

use super::*;
use crate::KeyRing;
use crate::one_way::tests::halves;
use crate::sim::{Calls, SimService};

const STORE: StoreId = StoreId([3; 16]);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A recorder with a ring of one key more for each minute, and its service.
struct Rig {
    service: Arc<SimService>,
    clock: Arc<ManualClock>,
    keys: Arc<EpochKeys>,
    ring: KeyRing,
    /// The last writing of the ring.
    written: Vec<u8>,
}

impl Rig {
    fn new(options: EpochOptions) -> Self {
        let (service, clock) = (Arc::new(SimService::default()), Arc::new(ManualClock::new(1)));
        let keys = keys(&service, &clock, options);
        let ring = KeyRing::new(STORE, VolumeId([1; 16]));
        let mut rig = Self { service, clock, keys, ring, written: Vec::new() };
        rig.write().unwrap();
        rig
    }

    fn stopping() -> Self {
        let stop = WhenOut::Stop;
        let options = EpochOptions::default();
        Self::new(EpochOptions { when_exhausted: stop, when_revoked: stop, ..options })
    }

    fn write(&mut self) -> Result<(), SealError> {
        self.keys.may_begin()?;
        self.ring.insert(crate::SegmentKeys::generate()?)?;
        self.ring.advance_epoch();
        self.written = self.ring.encode(&*self.keys)?;
        Ok(())
    }

    /// Minutes in which the ring was written; the others ended with the error.
    fn run(&mut self, time: Duration) -> u64 {
        let minutes = 0..time.as_secs() / 60;
        minutes
            .filter(|_| {
                self.clock.advance(MINUTE);
                self.keys.tend();
                self.write().is_ok()
            })
            .count() as u64
    }

    fn condition(&self) -> KeyCondition {
        self.keys.status().condition
    }

    /// What the next start of the recorder finds.
    fn restart(&self) -> Result<KeyRing, SealError> {
        let keys = keys(&self.service, &self.clock, EpochOptions::default());
        KeyRing::decode(&self.written, &*keys)
    }
}

fn keys(
    service: &Arc<SimService>,
    clock: &Arc<ManualClock>,
    options: EpochOptions,
) -> Arc<EpochKeys> {
    let service = Arc::clone(service) as Arc<dyn KeyService>;
    ServiceKeys::new(service, options, Arc::clone(clock) as Arc<dyn Clock>).of(STORE, "key/1")
}

#[test]
fn an_outage_shorter_than_the_keys_ahead_changes_nothing() {
    let mut rig = Rig::stopping();
    assert_eq!(rig.run(HOUR), 60);
    rig.service.set_away(Some(Refusal::Unreachable));
    // The worst moment: a key had just begun, and its place ahead was still empty.
    let nearly = 3 * HOUR - MINUTE;
    assert_eq!(rig.run(nearly), 179, "three keys were ahead");
    assert_eq!(rig.condition(), KeyCondition::Waiting);
    rig.service.set_away(None);
    // Two for the longest pause, and one for the place of the key that took over at once.
    rig.run(3 * MINUTE);
    assert_eq!((rig.condition(), rig.keys.status().ahead), (KeyCondition::Ready, 3));
}

#[test]
fn a_day_without_the_service_costs_no_writing_and_is_told() {
    let mut rig = Rig::new(EpochOptions::default());
    rig.run(HOUR);
    rig.service.set_away(Some(Refusal::Unreachable));
    let before = rig.service.calls();
    assert_eq!(rig.run(24 * HOUR), 24 * 60);
    assert_eq!(rig.condition(), KeyCondition::Exhausted);
    let Calls { generate, .. } = rig.service.calls();
    assert!(generate - before.generate <= 24 * 60, "once a minute at most: {generate}");
    rig.service.set_away(None);
    let extended = rig.keys.status().epoch;
    rig.run(2 * MINUTE);
    assert_eq!(rig.condition(), KeyCondition::Ready);
    assert_ne!(rig.keys.status().epoch, extended, "a fresh key took over");
    assert_eq!(rig.restart().unwrap().len(), rig.ring.len());
}

#[test]
fn an_exhausted_recorder_stops_if_told_to_and_goes_on_by_itself() {
    let mut rig = Rig::stopping();
    rig.run(HOUR);
    rig.service.set_away(Some(Refusal::Throttled));
    let written = rig.run(12 * HOUR);
    assert!((3 * 60 - 1..=4 * 60).contains(&written), "{written} minutes");
    let refused = rig.write().unwrap_err().to_string();
    assert!(refused.contains("`kms.when_exhausted: stop`"), "{refused}");
    assert!(rig.keys.status().stopped);
    rig.service.set_away(None);
    rig.run(2 * MINUTE);
    rig.write().unwrap();
}

#[test]
fn a_quiet_hour_costs_one_key_and_twelve_questions() {
    let mut rig = Rig::new(EpochOptions::default());
    rig.run(2 * HOUR);
    let before = rig.service.calls();
    rig.run(10 * HOUR);
    let after = rig.service.calls();
    assert_eq!(after.generate - before.generate, 10);
    assert!(after.decrypt - before.decrypt <= 10 * 12, "{after:?}");
}

#[test]
fn a_revoked_key_stops_the_next_start_and_nothing_else() {
    for refusal in [Refusal::Disabled, Refusal::PendingDeletion, Refusal::Denied] {
        let mut rig = Rig::new(EpochOptions::default());
        rig.run(HOUR);
        rig.service.set_refused("key/1", Some(refusal));
        assert_eq!(rig.run(24 * HOUR), 24 * 60, "recording goes on");
        assert_eq!(rig.condition(), KeyCondition::Revoked);
        assert!(KeyRing::decode(&rig.written, &*rig.keys).is_ok(), "this process reads on");
        match rig.restart() {
            Err(SealError::Service(failure)) => assert_eq!(failure.refusal, refusal),
            other => panic!("{other:?}"),
        }
        rig.service.set_refused("key/1", None);
        rig.run(2 * MINUTE);
        assert_eq!(rig.condition(), KeyCondition::Ready);
        assert!(rig.restart().is_ok());
    }
}

#[test]
fn a_revocation_is_noticed_within_minutes_and_honoured_if_told_to() {
    let mut rig = Rig::stopping();
    rig.run(HOUR);
    rig.service.set_refused("key/1", Some(Refusal::Disabled));
    let written = rig.run(HOUR);
    assert!(written <= 6, "{written} minutes");
    let refused = rig.write().unwrap_err().to_string();
    assert!(refused.contains("`kms.when_revoked: stop`"), "{refused}");
}

/// The epoch began although no ring could be written with it, so the rings hung from the one before
/// for another epoch after the key was back.
#[test]
fn a_turn_that_was_due_while_the_key_was_revoked_waited_for_the_next_epoch() {
    let mut rig = Rig::stopping();
    rig.run(HOUR);
    rig.service.set_refused("key/1", Some(Refusal::Disabled));
    rig.run(3 * HOUR);
    let before = rig.keys.status();
    assert!(before.stopped && !rig.keys.is_due());
    assert!(rig.keys.turn().is_err(), "nor by hand");
    assert_eq!(rig.keys.status().epoch, before.epoch);
    rig.service.set_refused("key/1", None);
    rig.clock.advance(2 * MINUTE);
    rig.keys.tend();
    assert!(rig.keys.is_due(), "at once, not an epoch later");
    // The first of several rings brings the new epoch by itself; the others are still to follow.
    rig.write().unwrap();
    assert!(rig.keys.is_due());
    rig.keys.turn().unwrap();
    assert!(!rig.keys.is_due() && rig.keys.status().epoch != before.epoch);

    rig.service.set_refused("key/1", Some(Refusal::Disabled));
    rig.run(HOUR);
    rig.service.set_refused("key/1", None);
    rig.keys.turn().expect("whoever asks knows better than the last answer");
    rig.write().unwrap();
}

/// Whoever looked once a second saw an exhausted key become a revoked one, and the audit log had no
/// word of the answer between.
#[test]
fn a_condition_that_nobody_looked_at_is_among_the_changes() {
    let mut rig = Rig::new(EpochOptions::default());
    rig.run(HOUR);
    rig.service.set_away(Some(Refusal::Unreachable));
    rig.run(6 * HOUR);
    rig.service.set_away(None);
    rig.run(2 * MINUTE);
    rig.service.set_refused("key/1", Some(Refusal::Disabled));
    rig.run(HOUR);
    let changes = rig.keys.changes();
    use KeyCondition::{Exhausted, Ready, Revoked, Waiting};
    let path: Vec<_> = changes.iter().map(|it| (it.from, it.to)).collect();
    let told = [(Ready, Waiting), (Waiting, Exhausted), (Exhausted, Ready), (Ready, Revoked)];
    assert_eq!(path, told);
    assert!(changes[2].trouble.is_none() && changes[3].trouble.is_some(), "{changes:?}");
    assert_eq!(rig.keys.changes(), [], "told once");
}

#[test]
fn a_start_without_new_keys_goes_on_with_the_last_one() {
    let mut rig = Rig::new(EpochOptions::default());
    rig.run(HOUR);
    rig.keys = keys(&rig.service, &rig.clock, EpochOptions::default());
    KeyRing::decode(&rig.written, &*rig.keys).unwrap();
    rig.service.set_away(Some(Refusal::Failing));
    rig.write().unwrap();
    assert_eq!(rig.condition(), KeyCondition::Exhausted);
    rig.service.set_away(None);
    rig.run(2 * MINUTE);
    assert_eq!(rig.condition(), KeyCondition::Ready);

    let blank = keys(&rig.service, &rig.clock, EpochOptions::default());
    rig.service.set_away(Some(Refusal::Failing));
    assert!(blank.wrap(&[1; 32], b"").is_err(), "it has no key at all");
}

#[test]
fn rings_of_another_key_open_and_the_next_one_hangs_from_the_new_key() {
    let mut rig = Rig::new(EpochOptions::default());
    rig.run(HOUR);
    let before = rig.written.clone();
    rig.service.set_refused("key/2", Some(Refusal::NotFound));
    assert!(rig.keys.move_to("key/2").is_err());
    assert_eq!(rig.keys.key(), "key/1", "a failed move changes nothing");
    rig.service.set_refused("key/2", None);
    rig.keys.move_to("key/2").unwrap();
    rig.write().unwrap();
    assert_eq!((rig.keys.key(), rig.keys.id()), ("key/2".into(), "sim:2".into()));
    rig.service.set_refused("key/1", Some(Refusal::PendingDeletion));
    assert!(rig.restart().is_ok(), "the new ring needs the new key only");
    rig.written = before;
    assert!(rig.restart().is_err(), "the ring before needs the old one");
}

#[test]
fn a_turn_takes_the_next_key_at_once() {
    let mut rig = Rig::new(EpochOptions::default());
    rig.run(MINUTE);
    let first = rig.keys.status().epoch;
    rig.keys.turn().unwrap();
    assert_ne!(rig.keys.status().epoch, first);
    assert!(!rig.keys.is_due());
    rig.run(MINUTE);
    rig.clock.advance(HOUR);
    assert!(rig.keys.is_due());
}

/// The clock went on while keys were fetched, and the time since the answer was taken below zero.
#[test]
fn keys_are_fetched_while_a_clock_goes_on() {
    let service = Arc::new(SimService::default()) as Arc<dyn KeyService>;
    let keys = ServiceKeys::new(service, EpochOptions::default(), Arc::new(SystemClock));
    let keys = keys.of(STORE, "key/1");
    keys.tend();
    assert_eq!(keys.status().ahead, EpochOptions::default().ahead);
}

#[test]
fn a_ring_of_another_store_does_not_open() {
    let rig = Rig::new(EpochOptions::default());
    let service = Arc::clone(&rig.service) as Arc<dyn KeyService>;
    let clock = Arc::clone(&rig.clock) as Arc<dyn Clock>;
    let services = ServiceKeys::new(service, EpochOptions::default(), clock);
    let stranger = services.of(StoreId([4; 16]), "key/1");
    match KeyRing::decode(&rig.written, &*stranger) {
        Err(SealError::Service(failure)) => assert_eq!(failure.refusal, Refusal::WrongContext),
        other => panic!("{other:?}"),
    }
    assert!(services.keeps("sim:1") && !services.keeps("file:1") && !services.keeps(""));
}

#[test]
fn a_start_asks_a_silent_service_once_for_all_rings() {
    let rig = Rig::new(EpochOptions::default());
    let keys = keys(&rig.service, &rig.clock, EpochOptions::default());
    rig.service.set_away(Some(Refusal::Unreachable));
    let before = rig.service.calls().decrypt;
    for _ in 0..16 {
        assert!(KeyRing::decode(&rig.written, &*keys).is_err());
    }
    assert_eq!(rig.service.calls().decrypt, before + 1);
}

/// With a key that only seals beside the service, and `seal` for all that may happen to that.
fn sealing(rig: &Rig, pair: &OneWayKey) -> Arc<EpochKeys> {
    let public = OneWayKey::read(&pair.path().with_file_name("public.pem")).unwrap();
    let seal = WhenOut::Seal;
    let options = EpochOptions { when_exhausted: seal, when_revoked: seal, ..Default::default() };
    let service = Arc::clone(&rig.service) as Arc<dyn KeyService>;
    let clock = Arc::clone(&rig.clock) as Arc<dyn Clock>;
    let keys = ServiceKeys::new(service, options, clock).sealing_with(Some(Arc::new(public)));
    keys.of(STORE, "key/1")
}

#[test]
fn a_start_without_the_service_seals_one_way_and_adds_to_what_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let (pair, _) = halves(dir.path());
    let mut rig = Rig::new(EpochOptions::default());
    rig.keys = sealing(&rig, &pair);
    rig.write().unwrap();
    assert_eq!(rig.keys.status().one_way, None);
    let before = rig.ring.len();

    for refusal in [Refusal::Unreachable, Refusal::Disabled] {
        rig.service.set_away(Some(refusal));
        rig.keys = sealing(&rig, &pair);
        rig.ring = KeyRing::decode(&rig.written, &*rig.keys).unwrap();
        assert!(rig.ring.is_empty() && rig.ring.shut().all(|why| rig.keys.may_leave_shut(why)));
        assert_eq!(rig.run(2 * HOUR), 2 * 60, "{}", refusal.name());
        let status = rig.keys.status();
        assert_eq!((status.one_way, status.stopped), (Some(pair.name()), false));
    }
    rig.service.set_away(None);
    // The service opens what hangs from its key; the rest needs the pair.
    rig.keys = sealing(&rig, &pair);
    let read = KeyRing::decode(&rig.written, &*rig.keys).unwrap();
    assert_eq!((read.len(), read.shut().count()), (before, 2));
    let read = KeyRing::decode(&rig.written, &*pair.keys_of(STORE)).unwrap();
    assert_eq!((read.len(), read.shut().count()), (2 * 2 * 60, 1));
}

#[test]
fn a_key_taken_away_lets_the_rings_hang_from_the_public_key_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let (pair, _) = halves(dir.path());
    let mut rig = Rig::new(EpochOptions::default());
    rig.keys = sealing(&rig, &pair);
    rig.run(HOUR);
    rig.service.set_refused("key/1", Some(Refusal::Denied));
    rig.run(6 * MINUTE);
    assert!(rig.keys.is_due(), "a revocation does not wait for the epoch's end");
    rig.keys.turn().unwrap();
    rig.write().unwrap();
    assert_eq!(rig.keys.status().one_way, Some(pair.name()));
    let read = KeyRing::decode(&rig.written, &*pair.keys_of(STORE)).unwrap();
    assert_eq!(read.len(), rig.ring.len(), "all that this process knows");
    rig.service.set_refused("key/1", None);
    rig.run(5 * MINUTE);
    assert!(rig.keys.is_due(), "and neither does its end");
    rig.keys.turn().unwrap();
    rig.write().unwrap();
    assert_eq!(rig.keys.status().one_way, None);
    assert_eq!(rig.restart().unwrap().len(), rig.ring.len());
}
