//! A simulated disk: deterministic from its seeds, with everything that real disks do to us.
//!
//! # Fault model
//! - A write is volatile until a sync of the same file, submitted after the write completed,
//!   succeeds. Lengths (growing writes, `set_len`, `allocate`) are volatile in the same way;
//!   `set_len` and `allocate` are atomic.
//! - A crash keeps all durable content and, of the rest, a seeded subset by [`Survival`]: of every
//!   512-byte sector one version that was ever written since the last sync, or the synced one.
//!   Order of writing means nothing.
//! - Names: making and removing a file is volatile until `sync_dir`; each name is decided by
//!   itself. Syncing a file does not make its name durable (POSIX promises no more, though ext4 and
//!   XFS do it).
//! - Calls fail, lie, or land elsewhere as scripted with [`SimMedia::inject`].
//! - Space that was never written reads as zeros. [`SimMedia::preload`] gives a file the bytes of
//!   an earlier life, [`SimMedia::poke`] rots bytes in place.
//!
//! A test that cuts the power at every write runs its workload once to learn [`SimMedia::counts`],
//! then again for each `n` with `inject(Trigger::Write(n), Fault::PowerCut)`, and looks at
//! `crash(seed)`. As `crash` leaves the disk itself alone, it also serves as a snapshot at any
//! moment.

mod fault;
mod file;
mod image;
mod objects;
mod rng;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::flushes::Flushes;
use crate::{Lock, Media, MediaError, MediaFile, OpenMode, VOLUME_FILE, check_name};

use fault::{Chooser, Kind, Script, enospc, power_cut};
pub use fault::{Counts, Fault, PowerCut, Survival, Trigger, is_power_cut};
pub use file::{PendingSync, PendingWrite, SimFile};
use image::Image;
pub use image::SECTOR_BYTES;
pub use objects::SimObjects;
pub use rng::SplitMix64;

/// A simulated disk. Clones are handles to the same disk.
#[derive(Clone)]
pub struct SimMedia {
    state: Arc<Mutex<State>>,
}

/// Numbers a file for its whole existence, whatever happens to its name.
type InodeId = u64;

struct State {
    inodes: BTreeMap<InodeId, Inode>,
    names: BTreeMap<String, InodeId>,
    durable_names: BTreeMap<String, InodeId>,
    next_inode: InodeId,
    /// Counts submissions and completions; the time base of "submitted after completed".
    clock: u64,
    script: Script,
    capacity_bytes: u64,
    dead: bool,
    hangs: bool,
    locked: bool,
    flushes: Flushes,
}

#[derive(Default)]
struct Inode {
    image: Image,
    /// Open handles; a nameless file without any is forgotten.
    handles: usize,
}

impl SimMedia {
    /// An empty disk without a limit.
    pub fn new() -> Self {
        Self::with_capacity(u64::MAX)
    }

    /// An empty disk whose files together may have this many bytes; beyond that calls fail with
    /// ENOSPC.
    pub fn with_capacity(capacity_bytes: u64) -> Self {
        Self::from_state(State {
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            next_inode: 1,
            clock: 0,
            script: Script::default(),
            capacity_bytes,
            dead: false,
            hangs: false,
            locked: false,
            flushes: Flushes::default(),
        })
    }

    /// Puts a durable file there with these bytes, for instance those of an earlier life. Replaces
    /// an existing one; counts as nothing.
    pub fn preload(&self, name: &str, bytes: &[u8]) {
        let mut state = self.state();
        let id = state.new_inode(Image::durable(bytes));
        state.names.insert(name.to_owned(), id);
        state.durable_names.insert(name.to_owned(), id);
        state.collect();
    }

    /// Overwrites bytes on the medium itself (bit rot, a foreign write). Errors: `NotFound`.
    pub fn poke(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let id = state.find(name)?;
        state.inode(id).image.poke(bytes, offset);
        Ok(())
    }

    /// Adds a fault to the script. Of several that strike the same call the first added wins.
    pub fn inject(&self, trigger: Trigger, fault: Fault) {
        self.state().script.add(trigger, fault);
    }

    /// Forgets all faults that were injected. A power that is cut stays cut.
    pub fn clear_faults(&self) {
        self.state().script.clear();
    }

    /// Calls counted so far.
    pub fn counts(&self) -> Counts {
        self.state().script.counts
    }

    /// Whether an injected power cut has struck.
    pub fn power_is_cut(&self) -> bool {
        self.state().dead
    }

    /// Cuts the power now: every later call fails.
    pub fn cut_power(&self) {
        self.state().dead = true;
    }

    /// Whether syncs hang from now on: they neither end nor fail until this is taken back. Those in
    /// two steps are for whoever completes them to hold back.
    pub fn hang(&self, hangs: bool) {
        self.state().hangs = hangs;
    }

    /// The disk as found when the power returns: [`Survival::Any`]. This disk is left as it is.
    pub fn crash(&self, seed: u64) -> Self {
        self.crash_as(Survival::Any, seed)
    }

    /// The disk as found after a crash of the given kind, without faults, counters at 0, unlocked.
    pub fn crash_as(&self, survival: Survival, seed: u64) -> Self {
        let state = self.state();
        let chooser = Chooser::new(survival, seed);
        let mut found = BTreeMap::new();
        for name in state.names.keys().chain(state.durable_names.keys()) {
            let (new, old) = (state.names.get(name), state.durable_names.get(name));
            if let Some(id) = if new == old || chooser.keeps_name(name) { new } else { old } {
                found.insert(name.clone(), *id);
            }
        }
        let inodes = found
            .values()
            .filter_map(|id| Some((*id, state.inodes.get(id)?.image.crash(*id, &chooser))))
            .map(|(id, image)| (id, Inode { image, handles: 0 }))
            .collect();
        Self::from_state(State {
            inodes,
            names: found.clone(),
            durable_names: found,
            next_inode: state.next_inode,
            clock: 0,
            script: Script::default(),
            capacity_bytes: state.capacity_bytes,
            dead: false,
            hangs: false,
            locked: false,
            flushes: Flushes::default(),
        })
    }

    /// Takes the disk's one lock.
    pub(crate) fn hold(&self, volume: String) -> Result<Lock, MediaError> {
        let mut state = self.state();
        if state.locked {
            return Err(MediaError::Locked { volume, holder: None });
        }
        state.locked = true;
        Ok(Lock::new(SimLock { state: Arc::clone(&self.state) }))
    }

    fn from_state(state: State) -> Self {
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        guard(&self.state)
    }
}

/// A test that panics while it holds the lock must not hide its message behind a second panic.
fn guard(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for SimMedia {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SimMedia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("SimMedia")
            .field("files", &state.names.keys().collect::<Vec<_>>())
            .field("counts", &state.script.counts)
            .field("dead", &state.dead)
            .finish()
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(power_cut()) } else { Ok(()) }
    }

    fn find(&self, name: &str) -> io::Result<InodeId> {
        self.names.get(name).copied().ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("simulated disk has no file {name}"))
        })
    }

    fn new_inode(&mut self, image: Image) -> InodeId {
        let id = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(id, Inode { image, handles: 0 });
        id
    }

    /// An inode that a name or a handle refers to.
    fn inode(&mut self, id: InodeId) -> &mut Inode {
        self.inodes.entry(id).or_default()
    }

    /// Forgets files that neither a name nor a handle can reach.
    fn collect(&mut self) {
        let named =
            |id: &InodeId| self.names.values().chain(self.durable_names.values()).any(|n| n == id);
        let gone: Vec<InodeId> = self
            .inodes
            .iter()
            .filter(|(id, inode)| inode.handles == 0 && !named(id))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.inodes.remove(&id);
        }
    }

    fn used_bytes(&self) -> u64 {
        self.inodes.values().map(|inode| inode.image.len()).sum()
    }

    /// Fails unless file `id` may grow to `len`.
    fn room_for(&mut self, id: InodeId, len: u64) -> io::Result<()> {
        let growth = len.saturating_sub(self.inode(id).image.len());
        if growth > self.capacity_bytes.saturating_sub(self.used_bytes()) {
            return Err(enospc());
        }
        Ok(())
    }

    /// Runs a change that is neither a write nor a sync under the script: an error fault prevents
    /// it, a power cut strikes when it is done, so that the crash decides what is left of it.
    fn change<T>(&mut self, run: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        self.alive()?;
        match self.script.next(Kind::Other) {
            Some(Fault::Eio) => Err(fault::eio()),
            Some(Fault::Enospc) => Err(enospc()),
            Some(Fault::PowerCut) => {
                let _ = run(self);
                self.dead = true;
                Err(power_cut())
            }
            Some(Fault::Lost | Fault::Misdirected { .. } | Fault::CacheDropped) | None => run(self),
        }
    }
}

impl Media for SimMedia {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn MediaFile>> {
        check_name(name)?;
        let mut state = self.state();
        state.alive()?;
        let id = match (state.find(name), mode) {
            (Ok(_), OpenMode::CreateNew) => {
                let text = format!("simulated disk already has a file {name}");
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            (Ok(id), _) => id,
            (Err(e), OpenMode::Read | OpenMode::ReadWrite) => return Err(e),
            (Err(_), OpenMode::Create | OpenMode::CreateNew) => state.change(|state| {
                let id = state.new_inode(Image::default());
                state.names.insert(name.to_owned(), id);
                Ok(id)
            })?,
        };
        state.inode(id).handles += 1;
        drop(state);
        Ok(Arc::new(SimFile::new(Arc::clone(&self.state), id, name, mode != OpenMode::Read)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        let mut state = self.state();
        state.alive()?;
        state.find(name)?;
        state.change(|state| {
            state.names.remove(name);
            state.collect();
            Ok(())
        })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.alive()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state();
        state.change(|state| {
            state.durable_names = state.names.clone();
            state.collect();
            Ok(())
        })
    }

    fn lock(&self) -> Result<Lock, MediaError> {
        let file = self.open(VOLUME_FILE, OpenMode::Create).map_err(|source| MediaError::Io {
            volume: self.describe(),
            action: "open volume.wv to lock it",
            source,
        })?;
        let lock = self.hold(self.describe())?;
        Ok(Lock::new((lock, file)))
    }

    fn describe(&self) -> String {
        "simulated disk".to_owned()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.state();
        state.alive()?;
        Ok(state.capacity_bytes.saturating_sub(state.used_bytes()))
    }

    fn total_bytes(&self) -> io::Result<u64> {
        let state = self.state();
        state.alive()?;
        Ok(state.capacity_bytes)
    }

    fn file_system(&self) -> io::Result<u64> {
        Ok(Arc::as_ptr(&self.state).addr() as u64)
    }

    fn failed_syncs(&self) -> u64 {
        self.state().flushes.failed()
    }
}

struct SimLock {
    state: Arc<Mutex<State>>,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        guard(&self.state).locked = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(media: &SimMedia, name: &str) -> Option<Vec<u8>> {
        let file = media.open(name, OpenMode::Read).ok()?;
        let mut buf = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut buf, 0).unwrap();
        Some(buf)
    }

    fn synced(media: &SimMedia, name: &str, data: &[u8]) -> Arc<dyn MediaFile> {
        let file = media.open(name, OpenMode::Create).unwrap();
        file.write_at(data, 0).unwrap();
        file.sync().unwrap();
        media.sync_dir().unwrap();
        file
    }

    #[test]
    fn synced_content_survives_every_crash() {
        let media = SimMedia::new();
        let file = synced(&media, "a", &[7; 3000]);
        file.write_at(&[8; 512], 512).unwrap();
        for seed in 0..200 {
            let found = content(&media.crash(seed), "a").unwrap();
            assert_eq!(found.len(), 3000);
            assert!(found[..512].iter().all(|b| *b == 7));
            assert!(found[512..1024].iter().all(|b| *b == found[512]), "a sector is old or new");
            assert!(found[1024..].iter().all(|b| *b == 7));
        }
    }

    #[test]
    fn unsynced_writes_are_kept_lost_and_torn() {
        let media = SimMedia::new();
        let file = synced(&media, "a", &[0; 4096]);
        file.write_at(&[1; 4096], 0).unwrap();
        let found: Vec<_> = (0..200).map(|s| content(&media.crash(s), "a").unwrap()).collect();
        let count = |f: &dyn Fn(&[u8]) -> bool| found.iter().filter(|c| f(c)).count();
        assert!(count(&|c| c.iter().all(|b| *b == 1)) > 5, "kept");
        assert!(count(&|c| c.iter().all(|b| *b == 0)) > 5, "lost");
        assert!(count(&|c| c[0] == 1 && c[4095] == 0) > 5, "torn");
        assert!(count(&|c| c[0] == 0 && c[4095] == 1) > 5, "only the end");
        assert_eq!(content(&media.crash(9), "a"), content(&media.crash(9), "a"), "deterministic");
    }

    #[test]
    fn names_are_volatile_until_the_directory_is_synced() {
        let media = SimMedia::new();
        synced(&media, "old", b"o");
        let file = media.open("new", OpenMode::CreateNew).unwrap();
        file.write_at(b"n", 0).unwrap();
        file.sync().unwrap();
        media.remove("old").unwrap();
        let found = media.crash_as(Survival::Nothing, 0);
        assert_eq!(found.list().unwrap(), ["old"]);
        assert_eq!(content(&found, "old").unwrap(), b"o");
        assert_eq!(media.crash_as(Survival::Everything, 0).list().unwrap(), ["new"]);
        media.sync_dir().unwrap();
        assert_eq!(media.crash_as(Survival::Nothing, 0).list().unwrap(), ["new"]);
    }

    #[test]
    fn power_cut_strikes_once_and_for_all() {
        let media = SimMedia::new();
        let file = synced(&media, "a", &[0; 1024]);
        media.inject(Trigger::Write(3), Fault::PowerCut);
        file.write_at(&[1; 512], 0).unwrap();
        let e = file.write_at(&[2; 512], 512).unwrap_err();
        assert!(is_power_cut(&e) && media.power_is_cut());
        assert!(is_power_cut(&file.sync().unwrap_err()));
        assert!(is_power_cut(&file.read_at(&mut [0], 0).unwrap_err()));
        assert!(is_power_cut(&media.open("a", OpenMode::Read).err().unwrap()));
        assert!(is_power_cut(&media.list().unwrap_err()));
        assert!(media.lock().is_err());
        let seen: Vec<_> = (0..64).map(|s| content(&media.crash(s), "a").unwrap()[512]).collect();
        assert!(seen.contains(&0) && seen.contains(&2), "the write in flight may have landed");
    }

    #[test]
    fn power_can_go_at_every_operation() {
        let workload = |media: &SimMedia| -> io::Result<()> {
            let file = media.open("a", OpenMode::CreateNew)?;
            file.allocate(4096)?;
            file.write_at(&[1; 600], 0)?;
            file.set_len(600)?;
            file.sync()?;
            media.sync_dir()?;
            media.remove("a")
        };
        let whole = SimMedia::new();
        workload(&whole).unwrap();
        assert_eq!(whole.counts(), Counts { writes: 1, syncs: 1, operations: 7 });
        for n in 1..=7 {
            let media = SimMedia::new();
            media.inject(Trigger::Operation(n), Fault::PowerCut);
            assert!(is_power_cut(&workload(&media).unwrap_err()), "operation {n}");
            for seed in 0..20 {
                let found = media.crash(seed);
                if n == 7
                    && let Some(bytes) = content(&found, "a")
                {
                    assert_eq!(bytes, [1; 600]);
                }
            }
        }
    }

    #[test]
    fn errors_lies_and_strays() {
        let media = SimMedia::new();
        let file = synced(&media, "a", &[0; 4096]);
        media.inject(Trigger::Write(2), Fault::Eio);
        media.inject(Trigger::Write(3), Fault::Enospc);
        media.inject(Trigger::Write(4), Fault::Lost);
        media.inject(Trigger::Write(5), Fault::Misdirected { by_bytes: 1024 });
        media.inject(Trigger::Sync(2), Fault::Eio);
        assert_eq!(file.write_at(&[2; 512], 0).unwrap_err().raw_os_error(), Some(libc::EIO));
        let e = file.write_at(&[3; 512], 0).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::StorageFull);
        file.write_at(&[4; 512], 0).unwrap();
        file.write_at(&[5; 512], 0).unwrap();
        let found = content(&media, "a").unwrap();
        assert_eq!((found[0], found[1024]), (0, 5));
        assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(libc::EIO));
        file.sync().unwrap();
        let found = media.crash_as(Survival::Nothing, 0);
        assert_eq!(content(&found, "a").unwrap()[1024], 0, "the failed sync is not made good");
    }

    #[test]
    fn ignored_syncs_lose_data() {
        let media = SimMedia::new();
        media.inject(Trigger::EverySync, Fault::Lost);
        synced(&media, "a", &[1; 512]);
        assert_eq!(content(&media.crash_as(Survival::Nothing, 0), "a").unwrap(), b"");
    }

    #[test]
    fn capacity_is_a_limit() {
        let media = SimMedia::with_capacity(1000);
        let file = media.open("a", OpenMode::Create).unwrap();
        file.allocate(900).unwrap();
        assert_eq!(media.free_bytes().unwrap(), 100);
        file.write_at(&[1; 900], 0).unwrap();
        let e = file.write_at(&[1; 101], 900).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.allocate(1001).unwrap_err().kind(), io::ErrorKind::StorageFull);
        media.remove("a").unwrap();
        assert_eq!(media.free_bytes().unwrap(), 100, "an open file keeps its space");
        drop(file);
        assert_eq!(media.free_bytes().unwrap(), 1000);
    }

    #[test]
    fn old_lives_and_rot() {
        let media = SimMedia::new();
        media.preload("a", &[9; 1024]);
        let file = media.open("a", OpenMode::ReadWrite).unwrap();
        file.write_at(&[1; 512], 0).unwrap();
        file.sync().unwrap();
        media.poke("a", 600, &[0xFF]).unwrap();
        let found = content(&media.crash(3), "a").unwrap();
        assert_eq!((found[0], found[512], found[600]), (1, 9, 0xFF));
        assert_eq!(media.counts().writes, 1);
        let reader = media.open("a", OpenMode::Read).unwrap();
        assert_eq!(reader.write_at(b"x", 0).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn one_writer() {
        let media = SimMedia::new();
        let lock = media.lock().unwrap();
        assert!(media.clone().lock().unwrap_err().is_locked());
        drop(lock);
        let _lock = media.lock().unwrap();
        media.crash(1).lock().unwrap();
    }
}
