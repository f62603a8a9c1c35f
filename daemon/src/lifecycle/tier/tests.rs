//! Segments go to a simulated tier and from it, with faults at every call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use wirevault_format::{LifeId, StoreId};
use wirevault_index::{Catalog, KeySource, Segment, Whereabouts};
use wirevault_lifecycle::audit::{self, Event, Who};
use wirevault_lifecycle::certificate::{Certificate, Erasure};
use wirevault_media::{ObjectFault, SimObjects};
use wirevault_query::{Request, Summary, run};
use wirevault_seal::service::Refusal;
use wirevault_seal::sim::SimService;
use wirevault_seal::{EpochKeys, EpochOptions, KeyProvider, ServiceKeys};
use wirevault_storage::Store;
use wirevault_telemetry::clock::ManualClock;

use super::{Tier, TierOptions};
use crate::DaemonError;
use crate::lifecycle::Holds;
use crate::lifecycle::audit::Audit;
use crate::lifecycle::month_tests::{Month, Open, PACKETS, Times};

const SEGMENTS: u64 = 3;

/// A store with some closed segments, and a tier.
struct Site {
    month: Month,
    objects: SimObjects,
    keep_local: bool,
    flows: bool,
}

/// Both while they are open.
struct Opened {
    open: Open,
    tier: Tier,
}

impl Site {
    fn new(keep_local: bool) -> Self {
        Self::of(Month::new(), keep_local)
    }

    fn of(mut month: Month, keep_local: bool) -> Self {
        let open = month.open().unwrap();
        let run = open.store.begin_run(false, 1).unwrap();
        for number in 0..SEGMENTS {
            month.record(&open.store, run, number * PACKETS).unwrap();
            month.clock.advance(Duration::from_secs(60));
        }
        open.store.end_run().unwrap();
        Self { month, objects: SimObjects::new(), keep_local, flows: false }
    }

    fn with_flows(self) -> Self {
        Self { flows: true, ..self }
    }

    fn open(&self) -> Opened {
        let open = self.month.open().unwrap();
        let url = "sim://tier".to_owned();
        let (keep_local, flows) = (self.keep_local, self.flows);
        let options = TierOptions { url, rate: None, keep_local, flows };
        let objects = Arc::new(self.objects.clone());
        let tier =
            Tier::open(options, objects, &open.store, &KeySource::Recorded, open.audit.folder());
        let tier = tier.unwrap();
        Opened { open, tier }
    }
}

impl Opened {
    fn store(&self) -> &Store {
        &self.open.store
    }

    fn audit(&self) -> &Audit {
        &self.open.audit
    }

    fn catalog(&self) -> Catalog {
        self.store().catalog(u64::MAX / 2)
    }

    fn segment(&self, at: usize) -> Arc<Segment> {
        Arc::clone(&self.catalog().segments[at])
    }

    fn take(&self, at: usize) -> Result<(), DaemonError> {
        let segment = self.segment(at);
        self.tier.take(self.store(), self.audit(), &Who::Recorder, &segment, "test", &|| false)
    }

    fn places(&self) -> Vec<Whereabouts> {
        self.catalog().segments.iter().map(|segment| segment.whereabouts()).collect()
    }

    fn forget(&self, lives: &[LifeId]) -> Result<Vec<Certificate>, DaemonError> {
        self.tier.forget(self.store(), self.audit(), &Who::Recorder, "test", lives)
    }

    /// Number of packets found in all time, and what the answer says of itself.
    fn ask(&self) -> (usize, Summary) {
        let mut found = Times::default();
        let request = Request::default();
        let summary = run(&self.catalog(), &request, &mut found, &AtomicBool::new(false)).unwrap();
        (found.0.len(), summary)
    }

    /// The same from when the first segment was opened.
    fn ask_since(&self, since_ns: u64) -> (usize, Summary) {
        let mut found = Times::default();
        let request = Request { since_ns: Some(since_ns), ..Request::default() };
        let summary = run(&self.catalog(), &request, &mut found, &AtomicBool::new(false)).unwrap();
        (found.0.len(), summary)
    }
}

const ALL: usize = (SEGMENTS * PACKETS) as usize;

fn causes(summary: &Summary) -> Vec<&'static str> {
    summary.gaps.iter().map(|gap| gap.cause.name()).collect()
}

/// Who deleted what, as the log says.
fn certified(audit: &Audit) -> Vec<(Who, Erasure)> {
    let mut certified = Vec::new();
    let read = audit::read(audit.folder(), None, &mut |entry| {
        if let Event::Forgotten(erasure) = entry.event {
            certified.push((entry.who, erasure));
        }
    });
    assert!(read.unwrap().faults.is_empty());
    certified
}

#[test]
fn what_has_moved_is_found_there_and_after_a_restart() {
    let mut site = Site::new(false);
    let opened = site.open();
    let before = opened.ask();
    assert!(before.0 == ALL && before.1.complete && before.1.tier_bytes == 0, "{:?}", before.1);
    for at in 0..2 {
        opened.take(at).unwrap();
    }
    let two = [Whereabouts::Tiered, Whereabouts::Tiered, Whereabouts::Local];
    assert_eq!(opened.places(), two);
    let (found, summary) = opened.ask();
    assert!(found == ALL && summary.complete && summary.tier_bytes > 0, "{summary:?}");
    assert_eq!(opened.store().status().volumes[0].segments, 1);
    let status = opened.tier.status();
    assert_eq!((status.segments, status.trouble), (2, None));
    drop(opened);
    let opened = site.open();
    assert_eq!((opened.places(), opened.ask().0), (two.to_vec(), ALL));
    // Numbers go on behind those that lie in the tier only.
    let last = opened.segment(2).entry.ordinal;
    opened.take(2).unwrap();
    drop(opened);
    let opened = site.open();
    let run = opened.store().begin_run(false, 1).unwrap();
    site.month.record(opened.store(), run, 0).unwrap();
    assert!(opened.segment(3).entry.ordinal > last);
}

#[test]
fn a_copy_that_stays_is_read_where_it_is_quicker() {
    let site = Site::new(true);
    let opened = site.open();
    (0..3).for_each(|at| opened.take(at).unwrap());
    assert_eq!(opened.places(), [Whereabouts::Both; 3]);
    assert_eq!(opened.ask().1.tier_bytes, 0);
    // Not even a silent tier is noticed then.
    site.objects.set_fault(Some(ObjectFault::Unreachable));
    assert!(opened.ask().1.complete);
    site.objects.set_fault(None);
    let life = opened.segment(0).entry.life;
    assert!(opened.store().let_go(life).unwrap() && !opened.store().let_go(life).unwrap());
    assert_eq!(opened.places()[0], Whereabouts::Tiered);
    assert!(opened.ask().0 == ALL && opened.ask().1.complete);
}

#[test]
fn what_the_tier_does_not_give_is_told() {
    let site = Site::new(false);
    let opened = site.open();
    opened.take(1).unwrap();
    for fault in [ObjectFault::Unreachable, ObjectFault::Refused, ObjectFault::Failed] {
        site.objects.set_fault(Some(fault));
        let (found, summary) = opened.ask();
        assert_eq!(found as u64, (SEGMENTS - 1) * PACKETS);
        assert!(!summary.complete && causes(&summary) == ["tier_unreachable"], "{summary:?}");
    }
    site.objects.set_fault(Some(ObjectFault::Missing));
    assert_eq!(causes(&opened.ask().1), ["missing_segment"]);
    site.objects.set_fault(None);
    assert!(opened.ask().1.complete);
    // Without its key it is bytes that nobody can read.
    let names = site.objects.names();
    let key = names.iter().find(|name| name.starts_with("keys/")).unwrap();
    drop(opened);
    let opened = site.open();
    wirevault_media::Objects::delete(&site.objects, key).unwrap();
    let (found, summary) = opened.ask();
    assert_eq!(found as u64, (SEGMENTS - 1) * PACKETS);
    assert_eq!(causes(&summary), ["wrong_key"]);
}

#[test]
fn every_fault_is_told_and_loses_nothing() {
    let site = Site::new(false);
    let opened = site.open();
    let faults = [ObjectFault::Refused, ObjectFault::Full, ObjectFault::Unreachable];
    for fault in faults {
        site.objects.set_fault(Some(fault));
        let error = opened.take(0).unwrap_err().chain();
        assert_eq!(opened.tier.trouble(), Some(error.clone()));
        assert!(error.contains(&fault.to_string()), "{error}");
    }
    site.objects.set_fault(None);
    site.objects.set_rot(true);
    let error = opened.take(0).unwrap_err().chain();
    assert!(error.contains("CRC32C"), "{error}");
    assert_eq!(site.objects.names(), [""; 0], "what rots is not left there");
    assert_eq!(opened.places(), [Whereabouts::Local; 3]);
    assert!(opened.ask().1.complete && opened.tier.status().segments == 0);
    site.objects.set_rot(false);
    opened.take(0).unwrap();
    assert_eq!((opened.tier.trouble(), opened.places()[0]), (None, Whereabouts::Tiered));
}

#[test]
fn nothing_is_overwritten() {
    let site = Site::new(true);
    let opened = site.open();
    let name =
        wirevault_index::tier::segment_object(opened.store().id(), opened.segment(0).entry.life);
    let mut pieces = vec![b"something else".to_vec()];
    wirevault_media::Objects::put(&site.objects, &name, &mut || Ok(pieces.pop())).unwrap();
    let error = opened.take(0).unwrap_err().chain();
    assert!(error.contains("14 bytes instead of") && error.contains("remove it"), "{error}");
    assert_eq!(site.objects.content(&name).unwrap(), b"something else");
    assert_eq!(opened.places()[0], Whereabouts::Local);
}

#[test]
fn a_move_that_is_cut_off_anywhere_is_done_by_the_next_attempt() {
    for call in 0.. {
        let site = Site::new(false).with_flows();
        let opened = site.open();
        site.objects.go_away_at(Some(call));
        let done = opened.take(0);
        assert!(opened.ask().0 >= ALL - PACKETS as usize);
        site.objects.go_away_at(None);
        let whole = done.is_ok();
        assert!(opened.ask().0 == ALL && opened.ask().1.complete, "call {call}");
        drop(opened);
        let opened = site.open();
        opened.take(0).unwrap_or_else(|error| panic!("call {call}: {}", error.chain()));
        let names = site.objects.names();
        assert_eq!(names.len(), 3, "call {call}: {names:?}");
        assert!(names[0].starts_with("flows/day=") && names[0].ends_with(".parquet"), "{names:?}");
        let flows = site.objects.content(&names[0]).unwrap();
        assert!(flows.starts_with(b"PAR1") && flows.ends_with(b"PAR1"), "call {call}");
        assert!(opened.places()[0] == Whereabouts::Tiered && opened.ask().0 == ALL);
        if whole {
            assert!(call > 7, "{call} calls are too few to have been cut off in each");
            return;
        }
    }
}

#[test]
fn a_deletion_that_is_cut_off_anywhere_is_finished() {
    for (keep_local, call) in (0..).flat_map(|call| [(false, call), (true, call)]) {
        let site = Site::new(keep_local).with_flows();
        let opened = site.open();
        (0..2).for_each(|at| opened.take(at).unwrap());
        let entry = opened.segment(0).entry.clone();
        site.objects.go_away_at(Some(call));
        let done = opened.forget(&[entry.life]);
        // From the first step on nobody finds it, and nobody takes that for all there ever was.
        let (found, summary) = opened.ask_since(entry.opened_ns);
        site.objects.go_away_at(None);
        if keep_local {
            assert_eq!(found, ALL - PACKETS as usize, "call {call}");
        }
        assert!(causes(&summary).contains(&"retention"), "call {call}: {summary:?}");
        let whole = done.is_ok();
        drop(opened);
        let opened = site.open();
        opened.tier.resume(opened.store(), opened.audit()).unwrap();
        let life = entry.life.to_string();
        assert!(!site.objects.names().iter().any(|name| name.contains(&life)), "call {call}");
        assert_eq!((site.objects.names().len(), opened.tier.status().segments), (3, 1));
        let (found, summary) = opened.ask_since(entry.opened_ns);
        assert_eq!(found, ALL - PACKETS as usize, "call {call}");
        assert!(causes(&summary).contains(&"retention"), "call {call}: {summary:?}");
        let of_tier = |(_, erasure): &&(Who, Erasure)| {
            let segment = &erasure.segments[0];
            let with_flows = segment.flows.as_ref().is_some_and(|name| name.contains(&life));
            erasure.path == "simulated objects" && segment.life == life && with_flows
        };
        let certified = certified(opened.audit());
        assert_eq!(certified.iter().filter(of_tier).count(), 1, "call {call}: {certified:?}");
        if whole && keep_local {
            assert!(call > 5, "{call} calls are too few to have been cut off in each");
            return;
        }
    }
}

/// A place that was named wrongly was the only one that could be named then.
#[test]
fn a_place_that_takes_nothing_holds_nothing() {
    let site = Site::new(false);
    let opened = site.open();
    let listed = || wirevault_lifecycle::tier::read(opened.audit().folder()).unwrap().coming.len();
    for fault in [ObjectFault::NoPlace, ObjectFault::Refused, ObjectFault::NoCredentials] {
        site.objects.set_fault(Some(fault));
        opened.take(0).unwrap_err();
        assert_eq!(listed(), 0, "{fault}");
    }
    // Who knows what that one took.
    site.objects.set_fault(Some(ObjectFault::Unreachable));
    opened.take(0).unwrap_err();
    site.objects.set_fault(Some(ObjectFault::Refused));
    opened.take(0).unwrap_err();
    assert_eq!(listed(), 1);
}

/// Its key and its bytes lay there for ever, and no list named them.
#[test]
fn a_move_that_is_cut_off_leaves_nothing_of_a_segment_that_goes_instead() {
    let ways = [(false, false), (false, true), (true, false), (true, true)];
    for (call, (by_quota, restarts)) in (0..).flat_map(|call| ways.map(|way| (call, way))) {
        let case = format!("call {call}, by the quota: {by_quota}, restarts: {restarts}");
        let mut site = Site::new(true).with_flows();
        let mut opened = site.open();
        let life = opened.segment(0).entry.life;
        site.objects.go_away_at(Some(call));
        let whole = opened.take(0).is_ok();
        site.objects.go_away_at(None);
        if whole {
            assert!(call > 7, "{call} calls are too few to have been cut off in each");
            return;
        }
        if restarts {
            drop(opened);
            opened = site.open();
        }
        let is_known = |opened: &Opened| {
            opened.catalog().segments.iter().any(|segment| segment.entry.life == life)
        };
        let is_listed = opened.places()[0] == Whereabouts::Both;
        if by_quota {
            let run = opened.store().begin_run(false, 1).unwrap();
            let is_here = |opened: &Opened| {
                let first = opened.segment(0);
                first.entry.life == life && first.media().is_some()
            };
            while is_here(&opened) {
                site.month.record(opened.store(), run, 0).unwrap();
                site.month.clock.advance(Duration::from_secs(60));
            }
            if restarts {
                drop(opened);
                opened = site.open();
            }
            opened.tier.resume(opened.store(), opened.audit()).unwrap();
        } else {
            opened.forget(&[life]).unwrap();
        }
        let names = site.objects.names();
        let is_there = names.iter().any(|name| name.contains(&life.to_string()));
        // What had come by then is the tier's.
        assert_eq!(is_there, by_quota && is_listed, "{case}: {names:?}");
        assert_eq!(is_known(&opened), is_there, "{case}");
        let list = wirevault_lifecycle::tier::read(opened.audit().folder()).unwrap();
        assert_eq!(list.len(), usize::from(is_there), "{case}: {list:?}");
        let reason = if by_quota { "begun before" } else { "test" };
        let of_tier = |it: &&(Who, Erasure)| it.1.path == "simulated objects";
        let certified = certified(opened.audit());
        let certified: Vec<_> = certified.iter().filter(of_tier).collect();
        assert_eq!(certified.len(), usize::from(!is_there), "{case}: {certified:?}");
        assert!(certified.iter().all(|(_, it)| it.reason == reason), "{case}: {certified:?}");
    }
}

/// Its deletion failed, and that of all others with it.
#[test]
fn a_segment_that_is_deleted_while_it_moves_leaves_nothing() {
    // While it is put, and while it is read back.
    for at in 0..2 {
        let site = Site::new(false).with_flows();
        let opened = site.open();
        let segment = opened.segment(0);
        let life = segment.entry.life;
        let asked = AtomicUsize::new(0);
        let stop = || {
            if asked.fetch_add(1, Ordering::Relaxed) == at {
                opened.forget(&[life]).unwrap();
            }
            false
        };
        let who = Who::Recorder;
        let moved = opened.tier.take(opened.store(), opened.audit(), &who, &segment, "t", &stop);
        moved.unwrap_or_else(|error| panic!("deleted at {at}: {}", error.chain()));
        assert_eq!(asked.into_inner(), 2);
        assert_eq!(site.objects.names(), [""; 0], "deleted at {at}");
        assert_eq!(opened.tier.status().segments, 0);
        assert_eq!(opened.ask().0 as u64, (SEGMENTS - 1) * PACKETS);
    }
}

/// The next deletion wrote it down as its own.
#[test]
fn what_a_silent_tier_left_is_certified_as_begun_before() {
    let site = Site::new(false);
    let opened = site.open();
    (0..2).for_each(|at| opened.take(at).unwrap());
    let lives = [0, 1].map(|at| opened.segment(at).entry.life);
    let alice = Who::User { uid: 1000, gid: 1000 };
    let forget = |who: &Who, reason: &str, life: LifeId| {
        opened.tier.forget(opened.store(), opened.audit(), who, reason, &[life])
    };
    site.objects.set_fault(Some(ObjectFault::Unreachable));
    forget(&alice, "by hand", lives[0]).unwrap_err();
    site.objects.set_fault(None);
    let who = Who::User { uid: 1001, gid: 1001 };
    assert_eq!(forget(&who, "rule old", lives[1]).unwrap().len(), 2);
    let certified: Vec<_> = certified(opened.audit())
        .into_iter()
        .map(|(who, it)| (who, it.reason, it.segments[0].life.clone(), it.segments.len()))
        .collect();
    let [first, second] = lives.map(|life| life.to_string());
    let mine = (who, "rule old".to_owned(), second, 1);
    assert_eq!(certified, [mine, (Who::Recorder, "begun before".to_owned(), first, 1)]);
}

#[test]
fn a_drain_moves_copies_for_holds_first_and_the_youngest_next() {
    let site = Site::new(true);
    let opened = site.open();
    let body = crate::api::HoldBody { name: "case".into(), ..Default::default() };
    let (store, audit, who) = (opened.store(), opened.audit(), Who::Recorder);
    opened.open.holds.add(store, audit, &who, body, 1).unwrap();
    let copies = opened.catalog().segments.iter().filter(|it| it.entry.hold != 0).count() as u64;
    assert_eq!(copies, SEGMENTS);
    assert_eq!(opened.tier.drain(store, audit, &who, &[], &|| true), (0, SEGMENTS + copies));
    assert_eq!(opened.tier.drain(store, audit, &who, &[], &|| false), (SEGMENTS + copies, 0));
    let mut moved = Vec::new();
    audit::read(audit.folder(), None, &mut |entry| {
        if let Event::Tiered { segment, reason, .. } = entry.event {
            assert_eq!(reason, "drain");
            moved.push(segment);
        }
    })
    .unwrap();
    // Copies were made behind what they were copied from.
    assert_eq!(moved, [6, 5, 4, 3, 2, 1]);
    drop(opened);
    // Released, they go from there as well.
    let opened = site.open();
    let tier = Arc::new(opened.tier);
    let holds = Holds::open(opened.open.audit.folder()).unwrap().with_tier(Some(tier));
    holds.release(&opened.open.store, &opened.open.audit, &who, "case").unwrap();
    assert_eq!(site.objects.names().len() as u64, 2 * SEGMENTS);
}

#[test]
fn stopping_leaves_a_segment_where_it_lies() {
    let site = Site::new(false);
    let opened = site.open();
    let segment = opened.segment(0);
    let stopped =
        opened.tier.take(opened.store(), opened.audit(), &Who::Recorder, &segment, "t", &|| true);
    assert!(stopped.unwrap_err().chain().contains("the recorder stops"));
    assert_eq!((opened.places()[0], site.objects.names().len()), (Whereabouts::Local, 0));
}

/// The keys of the store as a process that starts knows them.
fn keys(service: &Arc<SimService>, key: &str) -> Arc<EpochKeys> {
    let clock = Arc::new(ManualClock::new(1));
    let keys = ServiceKeys::new(service.clone(), EpochOptions::default(), clock);
    keys.of(StoreId([7; 16]), key)
}

/// What lay in the tier needed the former key for ever.
#[test]
fn keys_in_the_tier_follow_to_another_key_wherever_they_are_cut_off() {
    for call in 0.. {
        let service = Arc::new(SimService::default());
        let first = keys(&service, "former");
        let month = Month::sealed_by(first.clone(), tempfile::tempdir().unwrap());
        let mut site = Site::of(month, false);
        let opened = site.open();
        (0..2).for_each(|at| opened.take(at).unwrap());
        let lives = [0, 1].map(|at| opened.segment(at).entry.life);
        let (store, go_on) = (opened.store(), || false);
        opened.tier.follow_key(store, &go_on).unwrap();
        assert_eq!(opened.tier.behind(), 0, "they are where they belong");
        first.move_to("next").unwrap();
        store.record_key(&first.id(), &first.key()).unwrap();
        assert_eq!(opened.tier.behind(), 2);
        site.objects.go_away_at(Some(call));
        let whole = opened.tier.follow_key(store, &go_on).is_ok();
        site.objects.go_away_at(None);
        assert!(opened.ask().0 == ALL && opened.ask().1.complete, "call {call}");
        assert_eq!(opened.tier.trouble().is_none(), whole);
        if call % 3 == 0 {
            // Nothing of it is left, how far it may have come.
            opened.forget(&lives).unwrap();
            assert_eq!(site.objects.names(), [""; 0], "call {call}");
            continue;
        }
        drop(opened);

        site.month.key = keys(&service, "next");
        let opened = site.open();
        assert!(opened.ask().0 == ALL && opened.ask().1.complete, "call {call}, after a start");
        opened.tier.follow_key(opened.store(), &go_on).unwrap();
        assert_eq!((opened.tier.behind(), opened.tier.trouble()), (0, None), "call {call}");
        assert_eq!(site.objects.names().len(), 4, "call {call}: {:?}", site.objects.names());
        drop(opened);

        service.set_refused("former", Some(Refusal::PendingDeletion));
        site.month.key = keys(&service, "next");
        let opened = site.open();
        assert!(opened.ask().0 == ALL && opened.ask().1.complete, "call {call}, without it");
        if whole {
            assert!(call > 10, "{call} calls are too few to have been cut off in each");
            return;
        }
    }
}

/// A move back, before all had followed to the other key: names are used again.
#[test]
fn keys_in_the_tier_follow_back() {
    let service = Arc::new(SimService::default());
    let own = keys(&service, "one");
    let site = Site::of(Month::sealed_by(own.clone(), tempfile::tempdir().unwrap()), false);
    let opened = site.open();
    (0..2).for_each(|at| opened.take(at).unwrap());
    let before = site.objects.names();
    for key in ["two", "one", "three"] {
        own.move_to(key).unwrap();
        opened.store().record_key(&own.id(), &own.key()).unwrap();
        // One each time.
        let done = std::cell::Cell::new(0);
        let stop = || done.replace(done.get() + 1) > 0;
        opened.tier.follow_key(opened.store(), &stop).unwrap();
        assert!(opened.ask().0 == ALL && opened.ask().1.complete, "{key}");
    }
    assert_eq!(opened.tier.behind(), 1);
    opened.tier.follow_key(opened.store(), &|| false).unwrap();
    assert_eq!((opened.tier.behind(), site.objects.names().len()), (0, before.len()));
    ["one", "two"].iter().for_each(|key| service.set_refused(key, Some(Refusal::Disabled)));
    drop(opened);
    let mut site = site;
    site.month.key = keys(&service, "three");
    assert!(site.open().ask().1.complete);
}
