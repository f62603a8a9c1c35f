//! Another key of the service for a store of two volumes, cut off at every operation of each.

use std::sync::Arc;

use wirevault_format::footer::CloseReason;
use wirevault_index::{KeySource, Volume};
use wirevault_media::{Fault, Media, SimMedia, Survival, Trigger};
use wirevault_seal::service::Refusal;
use wirevault_seal::sim::SimService;
use wirevault_seal::{EpochOptions, KeyProvider, ServiceKeys};
use wirevault_storage::{CreateOptions, Plan, StorageError, Store, create_planned};

use crate::checks::{check_held, read_all};
use crate::support::*;

const FORMER: &str = "former";
const NEXT: &str = "next";

/// Two disks of one store, and the service that keeps its keys.
struct Scene {
    disks: [SimMedia; 2],
    service: Arc<SimService>,
}

/// The keys as a process that starts knows them.
fn keys(service: &Arc<SimService>) -> Arc<ServiceKeys> {
    Arc::new(ServiceKeys::new(service.clone(), EpochOptions::default(), clock()))
}

impl Scene {
    /// A store under the former key, with segments on both disks.
    fn recorded() -> (Self, Ledger) {
        let scene = Self { disks: [SimMedia::new(), SimMedia::new()], service: Arc::default() };
        let volumes = [0, 1].map(|number| (scene.media(number), format!("/{number}")));
        let plan = Plan::exact(SEGMENT_BYTES, &[(16 << 20, 16), (16 << 20, 16)], 1).unwrap();
        let (key, key_path) = (keys(&scene.service).of(STORE, FORMER), FORMER.to_owned());
        let options = CreateOptions { key: Some(key), key_path, ..options(true) };
        create_planned(&volumes, STORE, &options, &plan).unwrap();
        let store = scene.open(&keys(&scene.service)).unwrap();
        let started = Recorder::start(store, clock(), Ledger::default(), 2);
        let mut recorder = started.unwrap_or_else(|failed| panic!("{}", failed.0));
        for _ in 0..2 {
            for lane in 0..2 {
                recorder.open_segment(lane).unwrap();
                recorder.write_chunk(lane, 5, 200, false).unwrap().unwrap();
                recorder.sync(lane).unwrap();
                recorder.close(lane, CloseReason::Age).unwrap();
            }
        }
        recorder.end().unwrap();
        let both = recorder.store.status().volumes.iter().all(|volume| volume.segments > 0);
        assert!(both, "{:?}", recorder.store.status());
        let ledger = std::mem::take(&mut recorder.ledger);
        drop(recorder);
        (scene.as_left(), ledger)
    }

    /// The same disks once more, as they would be found without a crash.
    fn as_left(&self) -> Self {
        let disks = [0, 1].map(|at: usize| self.disks[at].crash_as(Survival::Everything, 0));
        Self { disks, service: Arc::clone(&self.service) }
    }

    fn media(&self, number: usize) -> Arc<dyn Media> {
        Arc::new(self.disks[number].clone())
    }

    fn open(&self, keys: &Arc<ServiceKeys>) -> Result<Store, StorageError> {
        let media = vec![self.media(0), self.media(1)];
        Ok(Store::open(media, &KeySource::Service(Arc::clone(keys)), clock())?.0)
    }

    /// What `wirevault key rotate --to` has the recorder do.
    fn rotate(&self) -> Result<(), StorageError> {
        let keys = keys(&self.service);
        let store = self.open(&keys)?;
        let of_store = keys.known(STORE).unwrap();
        of_store.move_to(NEXT).unwrap();
        store.record_key(&of_store.id(), &of_store.key())
    }

    /// Whether a volume's ring opens, with the keys of all its segments, as long as the service
    /// refuses one of the keys.
    fn opens_without(&self, number: usize, refused: &str) -> bool {
        self.service.set_refused(refused, Some(Refusal::Disabled));
        let volume =
            Volume::read(self.media(number), &KeySource::Service(keys(&self.service))).unwrap();
        self.service.set_refused(refused, None);
        let Some(Ok(ring)) = &volume.ring else { return false };
        let mut closed = volume.segments.entries.iter().filter(|entry| entry.packets > 0);
        closed.all(|entry| ring.get(entry.life).is_some())
    }

    /// Names of the key that the superblocks tell.
    fn named(&self) -> [String; 2] {
        let source = KeySource::Service(keys(&self.service));
        [0, 1].map(|at| Volume::read(self.media(at), &source).unwrap().superblock.key_path)
    }

    /// What must hold however far a rotation has come.
    fn check(&self, ledger: &Ledger) -> Result<(), String> {
        for number in 0..2 {
            if !self.opens_without(number, FORMER) && !self.opens_without(number, NEXT) {
                return Err(format!("volume {number} wants both keys"));
            }
        }
        let readable = |when: &str| {
            let store = self.open(&keys(&self.service)).map_err(|error| format!("{when}: {error}"));
            let held = read_all(&store?.catalog(START_NS), true)?;
            check_held(&held, ledger, 0).map_err(|why| format!("{when}: {why}"))
        };
        readable("found")?;
        let [first, second] = self.named();
        if first != second {
            return Err(format!("after a start the volumes name {first} and {second}"));
        }
        self.rotate().map_err(|error| format!("again: {error}"))?;
        self.service.set_refused(FORMER, Some(Refusal::PendingDeletion));
        let after = readable("without the former key");
        self.service.set_refused(FORMER, None);
        after.and_then(|()| match self.named() == [NEXT; 2] {
            true => Ok(()),
            false => Err(format!("{:?} are named in the end", self.named())),
        })
    }
}

/// A disk that loses its power while the other goes on is a device that fails; both at once are a
/// machine that does: the second disk is then as it was, or the first one is through.
#[test]
fn another_key_survives_a_cut_at_every_operation_of_each_volume() {
    let (recorded, ledger) = Scene::recorded();
    let whole = recorded.as_left();
    whole.rotate().unwrap();
    whole.check(&ledger).unwrap();
    for cut in 0..2 {
        for n in 1..=whole.disks[cut].counts().operations {
            for (survival, alone) in [(0, true), (1, false), (2, false)] {
                let scene = recorded.as_left();
                scene.disks[cut].inject(Trigger::Operation(n), Fault::PowerCut);
                let ended = scene.rotate();
                if !scene.disks[cut].power_is_cut() {
                    continue;
                }
                assert!(ended.is_err(), "disk {cut}, operation {n}");
                let seed = 3 * n + survival;
                let mut found = scene.as_left();
                found.disks[cut] = scene.disks[cut].crash(seed);
                if cut == 0 && !alone {
                    found.disks[1] = recorded.disks[1].crash_as(Survival::Everything, 0);
                }
                if let Err(why) = found.check(&ledger) {
                    panic!("disk {cut}, operation {n}, survival {survival}, alone {alone}: {why}");
                }
            }
        }
    }
}
