//! A volume that is a block device, with no file system between: its files are fixed parts.
//!
//! ```text
//!  0        1 MiB            places offset
//!  | labels | volume.wv | digests.wv | place 0 | place 1 | ...
//! ```
//!
//! The label says where the parts are ([`label`]); it is written when the volume is laid out and
//! never again. Files have the length of their part and keep it: cutting one off does nothing, what
//! lies behind its end is whatever was there. Every place has its segment file at any time;
//! removing one tells the device that its bytes are no longer wanted.
//!
//! All reading and writing goes past the page cache: queues write to the device beside it, some of
//! them without the kernel's block layer, and pages of an earlier use would be read instead.
//!
//! A volume that two machines have is shared: it has several copies of `volume.wv`, and who writes
//! it holds a [`lease`].
//!
//! [`aligned`]: transfers of any length. `content`: what else may stand on one. [`device`]: the
//! device itself, or a plain file standing for one. `sys`: the ioctl that discards. [`sim`]: a
//! simulated one.

pub mod aligned;
mod content;
pub mod device;
pub mod label;
pub mod lease;
pub mod sim;
#[expect(unsafe_code, reason = "the ioctl that discards")]
mod sys;

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    DIGEST_FILE, Erased, Extent, Lock, Media, MediaError, MediaFile, OpenMode, Shape, VOLUME_FILE,
};

use crate::flushes::Flushes;
use device::HostDevice;
use label::{LABEL_BYTES, LABELS, Label, PARTS_ALIGN_BYTES, VOLUME_OFFSET};
use lease::{Claim, Lease, LeaseRecord};

/// Blocks that are looked at after a place was given up.
const PLACE_SAMPLES: u64 = 4;
/// Extension of the names of segment files.
const SEGMENT_SUFFIX: &str = ".pcapng";

/// What a volume of this kind needs of a device.
pub trait BlockDevice: Send + Sync {
    /// Opens it; every file of the volume has a handle of its own.
    fn open(&self, writable: bool) -> io::Result<Arc<dyn MediaFile>>;

    /// Keeps whoever would mount it out, and other writers, unless a lease does that.
    fn lock(&self, leased: bool) -> Result<Lock, MediaError>;

    /// Says that these bytes are not wanted any more; `false` if the device cannot take that.
    fn discard(&self, offset: u64, bytes: u64) -> io::Result<bool>;

    /// The device in words, for messages.
    fn describe(&self) -> String;

    /// Its node.
    fn path(&self) -> Option<PathBuf>;

    /// A number that no other device has.
    fn number(&self) -> io::Result<u64>;
}

/// What blocks read as that were looked at after they had been given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampled {
    /// Nothing but zeros.
    pub zeros: u64,
    /// Something else: what was there, or what the device gives out for nothing.
    pub other: u64,
}

/// A device as a volume.
pub struct BlockMedia {
    device: Arc<dyn BlockDevice>,
    flushes: Flushes,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    label: Option<Label>,
    /// What is laid out next is shared.
    shared: bool,
    /// Our right to write a shared volume.
    lease: Option<Arc<Lease>>,
    /// Places whose bytes were discarded and that were not opened since.
    discarded: HashSet<u32>,
    erased: Erased,
}

impl BlockMedia {
    /// Takes a device, or a plain file standing for one. It need not be laid out.
    ///
    /// # Errors
    /// It cannot be opened or read; its label is of a newer release.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, MediaError> {
        Self::over(Arc::new(HostDevice::find(path.as_ref())?))
    }

    /// As [`BlockMedia::open`], of any device.
    ///
    /// # Errors
    /// As [`BlockMedia::open`].
    pub fn over(device: Arc<dyn BlockDevice>) -> Result<Self, MediaError> {
        let label = device.open(false).and_then(|file| read_label(&*file));
        let label = label.map_err(|source| MediaError::Io {
            volume: device.describe(),
            action: "read its label",
            source,
        })?;
        let state = Mutex::new(State { label, ..State::default() });
        Ok(Self { device, flushes: Flushes::default(), state })
    }

    /// Where its parts are, if it is laid out.
    pub fn label(&self) -> Option<Label> {
        self.state().label.clone()
    }

    /// The same device, to be laid out as a volume that two machines have.
    pub fn to_be_shared(self) -> Self {
        self.state().shared = true;
        self
    }

    /// Leases of a shared volume as they stand on the device, one for each area that was ever
    /// written; none if it is not shared.
    ///
    /// # Errors
    /// The system's own.
    pub fn leases(&self) -> io::Result<Vec<LeaseRecord>> {
        match self.is_shared() {
            true => lease::read(&*self.device.open(false)?),
            false => Ok(Vec::new()),
        }
    }

    /// Takes the lease of a shared volume, whoever has it now: that one is fenced. From then on
    /// this value may be locked and written.
    ///
    /// # Errors
    /// It is not shared; [`Fenced`](lease::Fenced) if somebody else took it meanwhile; the system's
    /// own.
    pub fn take_lease(&self, claim: &Claim) -> io::Result<Arc<Lease>> {
        let Some(label) = self.label().filter(|label| label.shared) else {
            let text = format!("{} is not a shared volume", self.describe());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        };
        let lease =
            Arc::new(Lease::take(self.device.open(true)?, self.flushes.clone(), &label, claim)?);
        self.state().lease = Some(Arc::clone(&lease));
        Ok(lease)
    }

    /// Makes it a device without a volume: everything before its places, with tables, key rings and
    /// digests, becomes zeros, durably, then the device is told that nothing on it is wanted.
    /// `false` if it cannot take that, and keeps what the places hold. Of a device whose label does
    /// not read only the start and the end are known to be in the way. The caller holds the lock.
    ///
    /// # Errors
    /// The system's own.
    pub fn erase(&self) -> io::Result<bool> {
        let file = self.device.open(true)?;
        let bytes = file.len()?;
        let parts_end = match self.label() {
            Some(label) => label.digests_offset() + label.digests_bytes,
            None => 0,
        };
        let parts_end = parts_end.max(3 * PARTS_ALIGN_BYTES).min(bytes);
        // The label goes last: after a crash it still says how far the keys reach.
        zero(&*file, VOLUME_OFFSET.min(bytes), parts_end)?;
        file.sync()?;
        self.state().label = None;
        zero(&*file, 0, VOLUME_OFFSET.min(bytes))?;
        // File systems and partition tables keep copies at the end of a device.
        zero(&*file, bytes.saturating_sub(PARTS_ALIGN_BYTES).max(parts_end), bytes)?;
        file.sync()?;
        let discarded = self.device.discard(0, bytes)?;
        file.sync()?;
        Ok(discarded)
    }

    /// Looks at this many blocks, spread over the whole device.
    ///
    /// # Errors
    /// The device cannot be read.
    pub fn sample(&self, blocks: u64) -> io::Result<Sampled> {
        let file = self.device.open(false)?;
        sample(&*file, 0..file.len()?, blocks)
    }

    /// Has the device forget a place, and looks whether it did.
    fn forget(&self, start: u64, bytes: u64) -> io::Result<()> {
        let taken = self.device.discard(start, bytes)?;
        // A device that hides what it was told to forget gives zeros; nothing else is relied on.
        let found = self
            .device
            .open(false)
            .and_then(|file| sample(&*file, start..start + bytes, PLACE_SAMPLES));
        let erased = &mut self.state().erased;
        match found {
            _ if !taken => erased.kept += 1,
            Ok(Sampled { other: 0, .. }) => erased.zeros += 1,
            Ok(_) => erased.other += 1,
            Err(_) => erased.unread += 1,
        }
        Ok(())
    }

    /// What stands where labels, file systems and partition tables do; nothing if that is zeros.
    fn content(&self) -> io::Result<Option<&'static str>> {
        let file = self.device.open(false)?;
        let bytes = file.len()?;
        let mut buf = vec![0; PARTS_ALIGN_BYTES as usize];
        for offset in [0, PARTS_ALIGN_BYTES, bytes.saturating_sub(PARTS_ALIGN_BYTES)] {
            let part = buf.len().min(bytes.saturating_sub(offset) as usize);
            file.read_exact_at(&mut buf[..part], offset)?;
            if buf[..part].iter().any(|byte| *byte != 0) {
                let start = if offset == 0 { &buf[..part] } else { &[][..] };
                return Ok(Some(content::name(start)));
            }
        }
        Ok(None)
    }

    /// Whose `volume.wv` counts: ours while we write, else that of the newest writer.
    fn epoch(&self) -> io::Result<u64> {
        match self.lease() {
            Some(lease) => Ok(lease.epoch()),
            None => Ok(lease::ready_epoch(&self.leases()?, u64::MAX)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the file of that name lies: its place, if it is one, offset and bytes.
    fn part(&self, name: &str) -> io::Result<(Option<u32>, u64, u64)> {
        let missing = |why: &str| {
            let text = format!("{} has no {name}: {why}", self.describe());
            io::Error::new(io::ErrorKind::NotFound, text)
        };
        let Some(label) = self.label() else {
            return Err(missing("it is not laid out as a volume"));
        };
        if name == VOLUME_FILE {
            return Ok((None, label.volume_offset(self.epoch()?), label.volume_bytes));
        }
        if name == DIGEST_FILE && label.digests_bytes > 0 {
            return Ok((None, label.digests_offset(), label.digests_bytes));
        }
        let place = place_of(name).filter(|place| *place < label.places);
        let place = place.ok_or_else(|| missing("that is none of its parts"))?;
        Ok((Some(place), label.place_offset(place), label.place_bytes))
    }
}

impl Media for BlockMedia {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn MediaFile>> {
        crate::check_name(name)?;
        let (place, start, bytes) = self.part(name)?;
        let writable = mode != OpenMode::Read;
        if let Some(place) = place.filter(|_| writable) {
            self.state().discarded.remove(&place);
        }
        let device = self.device.open(writable)?;
        let (path, flushes) = (self.device.path(), self.flushes.clone());
        let name = name.to_owned();
        Ok(Arc::new(BlockFile { name, device, path, start, bytes, writable, flushes }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let (Some(place), start, bytes) = self.part(name)? else {
            let text = format!("{name} is a part of {} for good", self.describe());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        };
        if !self.state().discarded.insert(place) {
            let text = format!("{name} was removed already");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        // A discard that is carried out late would hit what another writer put there.
        if self.is_shared() { Ok(()) } else { self.forget(start, bytes) }
    }

    /// Places come and go with the tables, which say what is in them; the others are files.
    fn list(&self) -> io::Result<Vec<String>> {
        let Some(label) = self.label() else { return Ok(Vec::new()) };
        let digests = (label.digests_bytes > 0).then_some(DIGEST_FILE);
        Ok(digests.into_iter().chain([VOLUME_FILE]).map(ToOwned::to_owned).collect())
    }

    /// There are no names to make durable.
    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self) -> Result<Lock, MediaError> {
        let shared = self.label().is_some_and(|label| label.shared);
        match shared && self.lease().is_none() {
            true => Err(MediaError::NotLeased { volume: self.describe() }),
            false => self.device.lock(shared),
        }
    }

    fn describe(&self) -> String {
        self.device.describe()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.total_bytes()
    }

    fn total_bytes(&self) -> io::Result<u64> {
        self.device.open(false)?.len()
    }

    fn file_system(&self) -> io::Result<u64> {
        self.device.number()
    }

    fn is_device(&self) -> bool {
        true
    }

    fn erased(&self) -> Erased {
        self.state().erased
    }

    fn is_shared(&self) -> bool {
        let state = self.state();
        state.label.as_ref().map_or(state.shared, |label| label.shared)
    }

    fn lease(&self) -> Option<Arc<Lease>> {
        self.state().lease.clone()
    }

    fn failed_syncs(&self) -> u64 {
        self.flushes.failed()
    }

    fn foreign(&self) -> io::Result<Option<&'static str>> {
        match self.state().label {
            Some(_) => Ok(None),
            None => self.content(),
        }
    }

    /// What was there before can no longer be opened from the first step on, and what is laid out
    /// can be opened after the last one only: a crash in between leaves a device without a volume.
    fn lay_out(&self, shape: &Shape) -> io::Result<()> {
        let file = self.device.open(true)?;
        let shared = self.state().shared;
        let label = Label::new(shape, file.len()?, shared)?;
        self.state().label = None;
        zero(&*file, 0, LABELS.len() as u64 * LABEL_BYTES as u64)?;
        file.sync()?;
        let leases = if shared { lease::LEASES_OFFSET } else { VOLUME_OFFSET };
        zero(&*file, leases, VOLUME_OFFSET + label.volume_bytes)?;
        file.sync()?;
        let encoded = label.encode();
        for offset in LABELS {
            file.write_at(&encoded, offset)?;
        }
        file.sync()?;
        let mut state = self.state();
        state.label = Some(label);
        state.discarded.clear();
        Ok(())
    }
}

/// A part of a device.
struct BlockFile {
    name: String,
    device: Arc<dyn MediaFile>,
    path: Option<PathBuf>,
    start: u64,
    bytes: u64,
    writable: bool,
    flushes: Flushes,
}

impl BlockFile {
    fn fits(&self, end: Option<u64>) -> io::Result<()> {
        if !self.writable {
            let text = format!("{} was opened to read only", self.name);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        if end.is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        let text = format!("{} is {} bytes of its device and cannot grow", self.name, self.bytes);
        Err(io::Error::new(io::ErrorKind::StorageFull, text))
    }
}

impl MediaFile for BlockFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.bytes.saturating_sub(offset).min(buf.len() as u64) as usize;
        if left == 0 {
            return Ok(0);
        }
        self.device.read_at(&mut buf[..left], self.start + offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.fits(offset.checked_add(data.len() as u64))?;
        self.device.write_at(data, self.start + offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.flushes.note(self.device.sync())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes)
    }

    /// Only checks that it fits: the part keeps its length.
    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.fits(Some(len_bytes))
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.fits(Some(len_bytes))
    }

    fn raw_fd(&self) -> Option<RawFd> {
        self.device.raw_fd()
    }

    fn direct_path(&self) -> Option<PathBuf> {
        self.path.clone()
    }

    fn extent(&self) -> Option<Extent> {
        let device = self.path.clone()?;
        Some(Extent { device, start: self.start, bytes: self.bytes })
    }
}

/// The first label that reads.
fn read_label(file: &dyn MediaFile) -> io::Result<Option<Label>> {
    let device_bytes = file.len()?;
    for offset in LABELS {
        let mut block = [0; LABEL_BYTES];
        if device_bytes < offset + LABEL_BYTES as u64 {
            break;
        }
        file.read_exact_at(&mut block, offset)?;
        if let Some(label) = Label::decode(&block, device_bytes)? {
            return Ok(Some(label));
        }
    }
    Ok(None)
}

/// Reads blocks at even distances, the first and the last among them.
fn sample(file: &dyn MediaFile, range: Range<u64>, blocks: u64) -> io::Result<Sampled> {
    let mut found = Sampled::default();
    let mut block = vec![0; LABEL_BYTES];
    let places = (range.end - range.start) / LABEL_BYTES as u64;
    let blocks = blocks.min(places);
    for number in 0..blocks {
        let place = (places - 1) * number / (blocks - 1).max(1);
        file.read_exact_at(&mut block, range.start + place * LABEL_BYTES as u64)?;
        match block.iter().all(|byte| *byte == 0) {
            true => found.zeros += 1,
            false => found.other += 1,
        }
    }
    Ok(found)
}

fn zero(file: &dyn MediaFile, from: u64, until: u64) -> io::Result<()> {
    let zeros = vec![0; PARTS_ALIGN_BYTES as usize];
    let mut at = from;
    while at < until {
        let bytes = (until - at).min(zeros.len() as u64);
        file.write_at(&zeros[..bytes as usize], at)?;
        at += bytes;
    }
    Ok(())
}

/// Place of the segment file with that name.
fn place_of(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(SEGMENT_SUFFIX)?;
    let plain = digits.len() >= 6 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape =
        Shape { volume_bytes: 3 << 20, digests_bytes: 1 << 20, place_bytes: 1 << 20, places: 4 };

    fn device(bytes: u64) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device");
        std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn parts_are_where_the_label_says() {
        let (_dir, path) = device(16 << 20);
        let media = BlockMedia::open(&path).unwrap();
        assert!(media.foreign().unwrap().is_none() && media.list().unwrap().is_empty());
        let missing = media.open(VOLUME_FILE, OpenMode::Create).err().unwrap();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound, "{missing}");
        media.lay_out(&SHAPE).unwrap();
        assert!(media.content().unwrap().is_some() && media.foreign().unwrap().is_none());

        let media = BlockMedia::open(&path).unwrap();
        assert_eq!(media.list().unwrap(), [DIGEST_FILE, VOLUME_FILE]);
        for (name, start, bytes) in [
            (VOLUME_FILE, 1 << 20, 3 << 20),
            (DIGEST_FILE, 4 << 20, 1 << 20),
            ("000000.pcapng", 5 << 20, 1 << 20),
        ] {
            let file = media.open(name, OpenMode::ReadWrite).unwrap();
            let extent = file.extent().unwrap();
            assert_eq!((extent.start, extent.bytes, file.len().unwrap()), (start, bytes, bytes));
            file.write_at(b"here", 5000).unwrap();
            file.sync().unwrap();
            let raw = std::fs::read(&path).unwrap();
            assert_eq!(&raw[start as usize + 5000..][..4], b"here");
            let full = file.write_at(b"xy", bytes - 1).unwrap_err();
            assert_eq!(full.kind(), io::ErrorKind::StorageFull);
            assert!(file.set_len(4096).is_ok() && file.len().unwrap() == bytes);
        }
        for name in ["000004.pcapng", "00001.pcapng", "00000x.pcapng", "else"] {
            let error = media.open(name, OpenMode::Create).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{name}");
        }
        assert!(media.lay_out(&Shape { places: 40, ..SHAPE }).is_err(), "the device is too small");
        media.lay_out(&Shape { digests_bytes: 0, ..SHAPE }).unwrap();
        let error = media.open(DIGEST_FILE, OpenMode::Create).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_removed_place_is_empty_and_can_be_used_again() {
        let (_dir, path) = device(16 << 20);
        let media = BlockMedia::open(&path).unwrap();
        media.lay_out(&SHAPE).unwrap();
        let write = || {
            let file = media.open("000003.pcapng", OpenMode::CreateNew).unwrap();
            file.write_at(&[7; 9000], 100).unwrap();
            let mut buf = [0; 9100];
            file.read_exact_at(&mut buf, 0).unwrap();
            assert!(buf[100..].iter().all(|byte| *byte == 7) && buf[..100] == [0; 100]);
        };
        write();
        media.remove("000003.pcapng").unwrap();
        let again = media.remove("000003.pcapng").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::NotFound);
        write();
        media.remove("000003.pcapng").unwrap();
        assert!(media.remove(VOLUME_FILE).is_err());
        assert_eq!(media.erased(), Erased { zeros: 2, ..Erased::default() });
        assert_ne!(media.sample(16).unwrap().other, 0, "the labels");
        assert!(media.erase().unwrap());
        assert_eq!(media.sample(16).unwrap(), Sampled { zeros: 16, other: 0 });
        assert!(media.content().unwrap().is_none() && media.list().unwrap().is_empty());
    }

    /// Tables and key rings lie behind the superblocks, and nothing but zeros makes them go where
    /// the device does not discard.
    #[test]
    fn a_device_that_discards_nothing_keeps_its_places_and_no_more() {
        for shared in [false, true] {
            let disk = crate::SimMedia::new();
            let raw = disk.open(sim::DEVICE_FILE, OpenMode::Create).unwrap();
            raw.write_at(&vec![7; 40 << 20], 0).unwrap();
            let media = BlockMedia::over(Arc::new(sim::SimDevice::on(&disk))).unwrap();
            let media = if shared { media.to_be_shared() } else { media };
            media.lay_out(&SHAPE).unwrap();
            let label = media.label().unwrap();
            let bytes = |from: u64, until: u64| {
                let mut bytes = vec![0; (until - from) as usize];
                raw.read_exact_at(&mut bytes, from).unwrap();
                bytes
            };
            let parts_end = label.digests_offset() + label.digests_bytes;
            raw.write_at(&vec![7; (parts_end - VOLUME_OFFSET) as usize], VOLUME_OFFSET).unwrap();
            assert!(!media.erase().unwrap(), "it takes no discard");
            assert!(bytes(0, parts_end).iter().all(|byte| *byte == 0), "shared: {shared}");
            let places = (label.place_offset(0), label.place_offset(label.places));
            assert!(bytes(places.0, places.1).iter().all(|byte| *byte == 7));
            assert!(media.label().is_none() && media.content().unwrap().is_none());
        }
    }

    #[test]
    fn one_writer_at_a_time() {
        let (_dir, path) = device(16 << 20);
        let lock = BlockMedia::open(&path).unwrap().lock().unwrap();
        assert!(BlockMedia::open(&path).unwrap().lock().unwrap_err().is_locked());
        drop(lock);
        BlockMedia::open(&path).unwrap().lock().unwrap();
    }
}
