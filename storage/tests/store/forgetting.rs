//! Deletions: cut off at every operation, and looked for in every byte that was ever written.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use wirevault_format::LifeId;
use wirevault_format::chunk::{self, ChunkHeader};
use wirevault_format::footer::{self, CloseReason, Footer};
use wirevault_format::limits::LBA_BYTES;
use wirevault_format::{digest, section, segment};
use wirevault_index::{KeySource, Volume};
use wirevault_media::block::sim::{DEVICE_FILE, SimDevice};
use wirevault_media::{
    BlockMedia, DIGEST_FILE, Fault, Media, MediaFile, OpenMode, SimMedia, Survival, Trigger,
    VOLUME_FILE,
};
use wirevault_seal::forget::SecretId;
use wirevault_seal::locked::LockedBytes;
use wirevault_seal::{
    ForgetLevel, ForgetStore, Forgetful, KeyProvider, KeyRing, Purpose, SealError, SegmentKeys,
};
use wirevault_storage::{Deletion, StorageError, Store};

use crate::checks::{check_after_crash, offline_catalog, read_all};
use crate::every_byte::{Writes, Written, remembered};
use crate::support::*;

const QUOTA_BYTES: u64 = (3 << 20) + 8 * SEGMENT_BYTES;
const PLACES: u32 = 9;
/// Smaller segments have no digests.
const WITH_DIGESTS_BYTES: u64 = digest::SEGMENT_BYTES_MIN;
/// Facts, ports, and two pages of addresses.
const DIGEST_PAGES: usize = 4;

fn disk(device: bool) -> SimMedia {
    let media = disk_for(device.then_some(16 << 20));
    make(&media, true, QUOTA_BYTES, PLACES).unwrap();
    media.crash_as(Survival::Nothing, 0)
}

/// Records six segments of two lanes.
fn record(store: Store, ledger: Ledger) -> Result<(Store, Ledger), Box<(StorageError, Ledger)>> {
    let mut recorder = Recorder::start(store, clock(), ledger, 2)?;
    for _ in 0..3 {
        for lane in 0..2 {
            recorder.open_segment(lane).unwrap();
            recorder.write_chunk(lane, 5, 200, false).unwrap().unwrap();
            recorder.write_chunk(lane, 3, 700, true).unwrap().unwrap();
            recorder.sync(lane).unwrap();
            recorder.close(lane, CloseReason::Age).unwrap();
        }
    }
    recorder.end().unwrap();
    Ok((recorder.store, recorder.ledger))
}

/// Only what is overwritten goes from such a device.
#[test]
fn a_retired_device_that_takes_no_discard_keeps_neither_tables_nor_keys() {
    let disk = disk(true);
    let store = open(&disk, clock()).unwrap().0;
    let (store, _) =
        record(store, Ledger::default()).unwrap_or_else(|failed| panic!("{}", failed.0));
    drop(store);
    let superblock = superblock(&disk);
    let media = BlockMedia::over(Arc::new(SimDevice::on(&disk))).unwrap();
    let file = media.open(VOLUME_FILE, OpenMode::Read).unwrap();
    let blocks = |file: &dyn MediaFile| {
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let (old, zeros) = (blocks(&*file), [0; LBA_BYTES]);
    let written = |from: u64, until: u64| {
        let part = old[from as usize..until as usize].chunks(LBA_BYTES);
        part.filter(|block| **block != zeros).collect::<Vec<_>>()
    };
    let ring_end = superblock.ring_offset + 2 * superblock.ring_slot_bytes;
    let tables = written(superblock.segments_offset, superblock.ring_offset);
    let keys = written(superblock.ring_offset, ring_end);
    assert!(tables.len() > 2 && keys.len() > 1, "{} and {}", tables.len(), keys.len());
    assert!(!media.erase().unwrap(), "it takes no discard");
    let left = blocks(&*disk.open(DEVICE_FILE, OpenMode::Read).unwrap());
    let left: HashSet<&[u8]> = left.chunks(LBA_BYTES).collect();
    assert!(tables.iter().chain(&keys).all(|block| !left.contains(block)));
}

/// The lives of the oldest closed segments.
fn oldest(store: &Store, count: usize) -> Vec<LifeId> {
    let catalog = store.catalog(START_NS);
    catalog.segments.iter().take(count).map(|segment| segment.entry.life).collect()
}

/// Deletes two segments, then one more, each time to the end.
fn delete(store: &Store, begun: &mut Vec<LifeId>) -> Result<(), StorageError> {
    for count in [2, 1] {
        let lives = oldest(store, count);
        begun.extend(&lives);
        for deletion in store.forget(&lives)? {
            assert_eq!(deletion.segments.len(), count);
            assert!(deletion.segments.iter().all(|segment| segment.chain.is_some()));
            store.settle(&deletion)?;
        }
    }
    Ok(())
}

/// The rings that a disk shows through its interface.
fn rings(media: &SimMedia) -> Vec<KeyRing> {
    let superblock = superblock(media);
    let file = volume_of(media).open(VOLUME_FILE, wirevault_media::OpenMode::Read).unwrap();
    let slot = |slot: u64| {
        let mut bytes = vec![0; superblock.ring_slot_bytes as usize];
        let at = superblock.ring_offset + slot * superblock.ring_slot_bytes;
        file.read_exact_at(&mut bytes, at).unwrap();
        KeyRing::decode(&bytes, &*key()).ok()
    };
    [0, 1].into_iter().filter_map(slot).collect()
}

fn cut_everywhere(device: bool) {
    let media = disk(device);
    let (store, ledger) = record(open(&media, clock()).unwrap().0, Ledger::default())
        .unwrap_or_else(|failed| panic!("{}", failed.0));
    drop(store);
    let recorded = media.crash_as(Survival::Everything, 0);
    let whole = recorded.crash_as(Survival::Everything, 0);
    delete(&open(&whole, clock()).unwrap().0, &mut Vec::new()).unwrap();
    for n in 1..=whole.counts().operations {
        for survival in 0..3 {
            let media = recorded.crash_as(Survival::Everything, 0);
            media.inject(Trigger::Operation(n), Fault::PowerCut);
            let mut begun = Vec::new();
            let cut = open(&media, clock()).and_then(|(store, _)| delete(&store, &mut begun));
            assert!(cut.is_err() && media.power_is_cut(), "operation {n}: {cut:?}");
            let found = media.crash(3 * n + survival);
            if let Err(why) = goes_on(&found, &begun, &ledger) {
                panic!("cut {n}, survival {survival}: {why}");
            }
        }
    }
}

/// What was begun is either finished, or nothing of it has happened.
fn goes_on(found: &SimMedia, begun: &[LifeId], ledger: &Ledger) -> Result<(), String> {
    let readable = |media: &SimMedia| -> Result<HashSet<LifeId>, String> {
        let catalog = offline_catalog(media)?;
        read_all(&catalog, true)?;
        Ok(catalog.segments.iter().map(|segment| segment.entry.life).collect())
    };
    let before = readable(found)?;
    let (store, report) = open(found, clock()).map_err(|error| error.to_string())?;
    let deleted: HashSet<LifeId> =
        begun.iter().copied().filter(|life| !before.contains(life)).collect();
    let finished = report.deletions.iter().flat_map(|deletion| &deletion.segments);
    if let Some(other) = finished.map(|it| it.entry.life).find(|life| !deleted.contains(life)) {
        return Err(format!("{other} was finished, though readers saw it"));
    }
    let named = |ring: &KeyRing| deleted.iter().find(|life| ring.get(**life).is_some()).copied();
    if !report.deletions.is_empty()
        && let Some(life) = rings(found).iter().find_map(named)
    {
        return Err(format!("a ring still holds the key of {life}"));
    }
    for deletion in &report.deletions {
        store.settle(deletion).map_err(|error| error.to_string())?;
        store.settle(deletion).map_err(|error| format!("again: {error}"))?;
    }
    drop(store);
    if readable(found)? != before {
        return Err("finishing a deletion changed what is there".to_owned());
    }
    check_after_crash(found, ledger)
}

#[test]
fn a_deletion_survives_a_cut_at_every_operation() {
    cut_everywhere(false);
}

#[test]
fn a_deletion_on_a_device_survives_a_cut_at_every_operation() {
    cut_everywhere(true);
}

#[test]
fn a_deleted_segment_is_gone_and_the_space_is_free() {
    let media = disk(false);
    let (store, _) = record(open(&media, clock()).unwrap().0, Ledger::default())
        .unwrap_or_else(|failed| panic!("{}", failed.0));
    let used_bytes = |store: &Store| store.status().volumes[0].used_bytes;
    let (lives, before) = (oldest(&store, 2), used_bytes(&store));
    let deletions = store.forget(&lives).unwrap();
    let [deletion] = &deletions[..] else { panic!("{deletions:?}") };
    assert_eq!((deletion.level, deletion.volume), (Some(ForgetLevel::L0), 0));
    assert_eq!(store.catalog(START_NS).segments.len(), 4, "nobody sees them from here on");
    let latest_ns = deletion.segments.iter().filter_map(|it| it.entry.times_ns).map(|it| it.1);
    assert_eq!(Some(store.catalog(START_NS).evicted_live_ns), latest_ns.max());
    let one_ring = rings(&media);
    assert!(one_ring.len() == 1 && one_ring[0].epoch() == deletion.epoch);
    assert_eq!(used_bytes(&store), before, "their bytes count while they are there");
    store.settle(deletion).unwrap();
    let bytes: u64 = deletion.segments.iter().map(|it| it.entry.file_bytes).sum();
    assert_eq!(used_bytes(&store), before - bytes);
    for segment in &deletion.segments {
        let name = wirevault_index::volume::segment_file_name(segment.place);
        assert!(!media.list().unwrap().contains(&name), "{name}");
    }
    assert_eq!(store.forget(&lives[..1]).unwrap(), []);
}

/// One that the quota had taken, or that was on its way to the tier, kept all others from being
/// deleted.
#[test]
fn what_is_gone_or_being_read_keeps_no_other_from_being_deleted() {
    let media = disk(false);
    let (store, _) = record(open(&media, clock()).unwrap().0, Ledger::default())
        .unwrap_or_else(|failed| panic!("{}", failed.0));
    let lives = oldest(&store, 3);
    for deletion in store.forget(&lives[..1]).unwrap() {
        store.settle(&deletion).unwrap();
    }
    let catalog = store.catalog(START_NS);
    let read = catalog.segments.iter().find(|it| it.entry.life == lives[1]).unwrap();
    let pinned = store.pin(read).unwrap();
    let deletions = store.forget(&lives).unwrap();
    let [deletion] = &deletions[..] else { panic!("{deletions:?}") };
    let deleted: HashSet<LifeId> = deletion.segments.iter().map(|it| it.entry.life).collect();
    assert_eq!(deleted, lives[1..].iter().copied().collect());
    store.settle(deletion).unwrap();
    drop(pinned);
    assert_eq!(store.catalog(START_NS).segments.len(), 3);
    assert_eq!(store.forget(&lives).unwrap(), []);
}

/// It was written down as somebody else's.
#[test]
fn what_an_earlier_deletion_left_is_told_apart() {
    let media = disk(false);
    let (store, _) = record(open(&media, clock()).unwrap().0, Ledger::default())
        .unwrap_or_else(|failed| panic!("{}", failed.0));
    let lives = oldest(&store, 2);
    let parts = |deletions: &[Deletion]| -> Vec<(bool, Vec<LifeId>)> {
        let lives = |it: &Deletion| it.segments.iter().map(|it| it.entry.life).collect();
        deletions.iter().map(|deletion| (deletion.begun_before, lives(deletion))).collect()
    };
    let first = store.forget(&lives[..1]).unwrap();
    assert_eq!(parts(&first), [(false, vec![lives[0]])]);
    // Nobody could write that down.
    let second = store.forget(&lives[1..]).unwrap();
    assert_eq!(parts(&second), [(false, vec![lives[1]]), (true, vec![lives[0]])]);
    store.settle(&second[0]).unwrap();
    drop(store);
    let (store, report) = open(&media, clock()).unwrap();
    assert_eq!(parts(&report.deletions), [(true, vec![lives[0]])]);
    store.settle(&report.deletions[0]).unwrap();
    assert_eq!(store.forget(&lives).unwrap(), []);
}

/// Secrets that are really forgotten; what was destroyed is kept beside, to show that it mattered.
#[derive(Default)]
struct Forgets {
    there: Mutex<HashMap<SecretId, Vec<u8>>>,
    destroyed: Mutex<HashMap<SecretId, Vec<u8>>>,
    /// Calls that change something, before one fails.
    calls_left: Mutex<Option<u32>>,
}

impl Forgets {
    fn call(&self) -> Result<(), SealError> {
        let mut left = self.calls_left.lock().unwrap();
        if *left == Some(0) {
            let source = "out of reach".into();
            return Err(SealError::Provider { provider: self.id(), source });
        }
        *left = left.map(|left| left - 1);
        Ok(())
    }
}

impl ForgetStore for Forgets {
    fn id(&self) -> String {
        "simulated".to_owned()
    }

    fn level(&self) -> ForgetLevel {
        ForgetLevel::L2
    }

    fn put(&self, id: SecretId, secret: &[u8]) -> Result<(), SealError> {
        self.call()?;
        self.there.lock().unwrap().insert(id, secret.to_vec());
        Ok(())
    }

    fn get(&self, id: SecretId) -> Result<LockedBytes, SealError> {
        LockedBytes::copy_of(self.there.lock().unwrap().get(&id).ok_or(SealError::Forgotten)?)
    }

    fn destroy_others(&self, kept: SecretId) -> Result<(), SealError> {
        self.call()?;
        let mut there = self.there.lock().unwrap();
        let gone: Vec<SecretId> = there.keys().copied().filter(|id| *id != kept).collect();
        let gone = gone.into_iter().filter_map(|id| Some((id, there.remove(&id)?)));
        self.destroyed.lock().unwrap().extend(gone);
        Ok(())
    }
}

/// A store whose every byte is remembered, and whose ring hangs from secrets that can be forgotten.
struct Case {
    media: SimMedia,
    written: Writes,
    secrets: Arc<Forgets>,
    provider: Arc<dyn KeyProvider>,
}

impl Case {
    fn new() -> Self {
        let secrets = Arc::new(Forgets::default());
        let forgets = Arc::clone(&secrets) as Arc<dyn ForgetStore>;
        let provider: Arc<dyn KeyProvider> = Arc::new(Forgetful::new(key(), forgets));
        let (media, written) = (SimMedia::new(), Arc::default());
        let case = Self { media, written, secrets, provider };
        let quota_bytes = (8 << 20) + u64::from(PLACES) * WITH_DIGESTS_BYTES;
        let plan = wirevault_storage::Plan::exact(WITH_DIGESTS_BYTES, &[(quota_bytes, PLACES)], 1);
        let options = wirevault_storage::CreateOptions {
            key: Some(Arc::clone(&case.provider)),
            ..options(true)
        };
        let volumes = [(case.through(), "/sim".to_owned())];
        wirevault_storage::create_planned(&volumes, STORE, &options, &plan.unwrap()).unwrap();
        case
    }

    fn through(&self) -> Arc<dyn Media> {
        remembered(&self.media, &self.written)
    }

    fn open(&self) -> Result<(Store, Vec<Deletion>), StorageError> {
        let key = KeySource::Provider(Arc::clone(&self.provider));
        let (store, report) = Store::open(vec![self.through()], &key, clock())?;
        Ok((store, report.deletions))
    }

    /// Deletes the two oldest segments after `cut` operations or `calls` calls went well, starts
    /// again, finishes, and looks for them.
    fn run(cut: Option<u64>, calls: Option<u32>) -> (Self, bool) {
        let mut case = Self::new();
        let (store, _) = record(case.open().unwrap().0, Ledger::default())
            .unwrap_or_else(|failed| panic!("{}", failed.0));
        let lives = oldest(&store, 2);
        if let Some(cut) = cut {
            let at = case.media.counts().operations + cut;
            case.media.inject(Trigger::Operation(at), Fault::PowerCut);
        }
        *case.secrets.calls_left.lock().unwrap() = calls;
        let went_well = store
            .forget(&lives)
            .and_then(|done| done.iter().try_for_each(|deletion| store.settle(deletion)))
            .is_ok();
        drop(store);
        *case.secrets.calls_left.lock().unwrap() = None;
        case.media = case.media.crash(cut.unwrap_or(0));
        let (store, deletions) = case.open().unwrap();
        let still: Vec<LifeId> =
            oldest(&store, 2).into_iter().filter(|life| lives.contains(life)).collect();
        assert!(still.is_empty() || still.len() == 2, "half of a deletion");
        let more = if still.is_empty() { Vec::new() } else { store.forget(&still).unwrap() };
        for deletion in deletions.iter().chain(&more) {
            assert_eq!(deletion.level, Some(ForgetLevel::L2));
            store.settle(deletion).unwrap();
        }
        drop(store);
        case.look_for(&lives);
        (case, went_well)
    }

    /// Tries every key of every ring that was ever written, as far as the ring opens with what
    /// secrets there are, on everything that was ever written of these lives.
    fn look_for(&self, lives: &[LifeId]) {
        let (rings, found) = self.opens(lives);
        assert!(rings > 0, "the ring that counts opens");
        assert_eq!(found, Found { named: 0, ..found }, "a ring that opens holds a deleted key");
        assert!(found.chunks.written >= 4 && found.records.written >= 2, "{found:?}");
        assert!(found.heads.written >= 2 && found.footers.written >= 2, "{found:?}");
        assert!(found.digests.written >= 2 * DIGEST_PAGES, "{found:?}");
        assert!(found.kinds().all(|kind| kind.opened == 0), "{found:?}");
        self.tells_nothing();
    }

    fn opens(&self, lives: &[LifeId]) -> (usize, Found) {
        let written = self.written.lock().unwrap();
        let decode = |it: &Written| KeyRing::decode(&it.bytes, &*self.provider).ok();
        let rings: Vec<KeyRing> =
            written.iter().filter(|it| it.file == VOLUME_FILE).filter_map(decode).collect();
        let mut keys: HashMap<LifeId, SegmentKeys> = HashMap::new();
        for ring in &rings {
            keys.extend(ring.entries().map(|entry| (entry.life(), entry.clone())));
        }
        let named = lives.iter().filter(|life| keys.contains_key(life)).count();
        let mut found = Found { named, ..Found::default() };
        for it in written.iter() {
            if it.file == DIGEST_FILE {
                found.digests.add(digest_page(&it.bytes, lives), &keys);
            }
            if !it.file.ends_with(".pcapng") {
                continue;
            }
            found.chunks.add(sealed_chunk(&it.bytes, lives), &keys);
            found.heads.add(segment_head(&it.bytes, lives), &keys);
            for at in (0..it.bytes.len()).step_by(4) {
                found.records.add(index_part(&it.bytes[at..], lives), &keys);
                found.footers.add(footer_page(&it.bytes[at..], lives), &keys);
            }
        }
        (rings.len(), found)
    }

    /// What names the interface and what it was to keep is nowhere as it is.
    fn tells_nothing(&self) {
        for it in self.written.lock().unwrap().iter() {
            for told in [INTERFACE, CAPTURE_FILTER] {
                let told = it.bytes.windows(told.len()).any(|bytes| bytes == told.as_bytes());
                assert!(!told, "{} tells it", it.file);
            }
        }
    }
}

/// Whether keys open something that was written; what is not sealed is open to all.
type Opens<'a> = Box<dyn Fn(&SegmentKeys) -> bool + 'a>;

/// A chunk at the start of these bytes, if it is of one of these lives.
fn sealed_chunk<'a>(bytes: &'a [u8], lives: &[LifeId]) -> Option<Opens<'a>> {
    let header = ChunkHeader::decode(bytes).ok().filter(|header| lives.contains(&header.life))?;
    Some(Box::new(move |keys| {
        let mut bytes = bytes.to_vec();
        !header.sealed || {
            let parts = chunk::sealed_parts(&mut bytes, &header).unwrap();
            let opener = keys.data_opener().unwrap();
            opener.open(header.number, parts.aad, parts.ciphertext, &parts.tag).is_ok()
        }
    }))
}

/// The header of a segment, with its interfaces.
fn segment_head<'a>(bytes: &'a [u8], lives: &[LifeId]) -> Option<Opens<'a>> {
    let region = segment::decode(bytes).ok().filter(|it| lives.contains(&it.header.life))?;
    Some(Box::new(move |keys| {
        region.sealed_table.is_none_or(|(aad, salt, table)| {
            let mut table = table.to_vec();
            keys.open_record(Purpose::SegmentHeader, &salt, aad, &mut table).is_ok_and(|()| {
                let interface = &segment::read_interface_table(&table).unwrap()[0];
                interface.name.as_deref() == Some(INTERFACE)
                    && interface.filter.as_deref() == Some(CAPTURE_FILTER)
            })
        })
    }))
}

/// A part of an index.
fn index_part<'a>(bytes: &'a [u8], lives: &[LifeId]) -> Option<Opens<'a>> {
    let part = section::decode(bytes).ok().filter(|part| lives.contains(&part.header.life))?;
    Some(Box::new(move |keys| {
        let aad = part.header.aad();
        !part.header.sealed
            || keys.open_record(Purpose::Index, &part.salt, &aad, &mut part.body.to_vec()).is_ok()
    }))
}

/// A footer. Its seal proves who wrote it; its fields are in the clear, as the table's are.
fn footer_page<'a>(bytes: &'a [u8], lives: &[LifeId]) -> Option<Opens<'a>> {
    let page = bytes.get(..footer::FOOTER_BYTES)?;
    let footer = Footer::decode(page).ok().filter(|footer| lives.contains(&footer.life))?;
    Some(Box::new(move |keys| {
        let (aad, salt, tag) = footer::seal_of(page);
        !footer.sealed || keys.open_record(Purpose::Footer, &salt, aad, &mut tag.to_vec()).is_ok()
    }))
}

/// A page of a digest.
fn digest_page<'a>(bytes: &'a [u8], lives: &[LifeId]) -> Option<Opens<'a>> {
    let page = digest::decode(bytes).ok().filter(|page| lives.contains(&page.header.life))?;
    Some(Box::new(move |keys| {
        let header = &page.header;
        let (payload, tag) = page.body.split_at(usize::from(header.payload_bytes));
        let opener = keys.digest_opener(&page.salt).unwrap();
        tag.first_chunk().is_none_or(|tag| {
            let number = u32::from(header.page);
            opener.open(number, &header.aad(), &mut payload.to_vec(), tag).is_ok()
        })
    }))
}

/// What was written of deleted lives, and what of it opens with some key of any ring.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Kind {
    written: usize,
    opened: usize,
}

impl Kind {
    fn add(&mut self, opens: Option<Opens<'_>>, keys: &HashMap<LifeId, SegmentKeys>) {
        if let Some(opens) = opens {
            self.written += 1;
            self.opened += usize::from(keys.values().any(opens));
        }
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Found {
    /// Deleted lives that a ring holds.
    named: usize,
    chunks: Kind,
    /// Headers of segments: names of interfaces, what they were to keep.
    heads: Kind,
    /// Parts of indexes and filters.
    records: Kind,
    footers: Kind,
    /// Pages of digests.
    digests: Kind,
}

impl Found {
    fn kinds(&self) -> impl Iterator<Item = Kind> {
        [self.chunks, self.heads, self.records, self.footers, self.digests].into_iter()
    }
}

/// At level L2: not even who has every byte that was ever written, and every secret that is left.
#[test]
fn nothing_ever_written_opens_a_deleted_segment() {
    let (case, went_well) = Case::run(None, None);
    assert!(went_well);
    // The forgetting is what does it: with the destroyed secrets all of it opens.
    let catalog = Volume::read(case.through(), &KeySource::Provider(Arc::clone(&case.provider)));
    assert!(catalog.unwrap().ring.unwrap().is_ok());
    let lives: Vec<LifeId> = {
        let written = case.written.lock().unwrap();
        let lives = written.iter().filter_map(|it| ChunkHeader::decode(&it.bytes).ok());
        lives.map(|header| header.life).take(3).collect()
    };
    let destroyed = std::mem::take(&mut *case.secrets.destroyed.lock().unwrap());
    case.secrets.there.lock().unwrap().extend(destroyed);
    let (_, found) = case.opens(&lives[..1]);
    let opens = |kind: Kind| kind.written > 0 && kind.opened == kind.written;
    assert!(found.named == 1 && found.kinds().all(opens), "{found:?}");
}

#[test]
fn nor_after_a_crash_between_any_two_steps() {
    let mut cuts = 0;
    while !Case::run(Some(cuts + 1), None).1 {
        cuts += 1;
    }
    let calls = (0..4).filter(|calls| !Case::run(None, Some(*calls)).1).count();
    println!("{cuts} operations of the disk, {calls} calls of what forgets");
    assert!(cuts >= 8 && calls == 2, "{cuts} {calls}");
}
