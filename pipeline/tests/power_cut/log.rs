//! A device in memory that keeps a log of what it was told, in the order in which it was done: the
//! bytes of every write, and every flush with what it promised. See the kernel's dm-log-writes.
//!
//! Files of it are written to by threads. Queues of NVMe commands have a log of their commands:
//! [`LoggedRing`] of those that pass through the kernel, and a model's journal of our own driver's.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use wirevault_buffer::ChunkBuf;
use wirevault_media::block::BlockDevice;
use wirevault_media::sim::SplitMix64;
use wirevault_media::{Lock, MediaError, MediaFile, SimMedia};
use wirevault_nvme::passthrough::sim::SimCommands;
use wirevault_nvme::passthrough::{CommandRing, Tag};
use wirevault_nvme::spec::command::{self, Command};
use wirevault_nvme::vfio::model::Journal;
use wirevault_telemetry::books::LaneBooks;

/// Bytes that are written whole or not at all.
const SECTOR_BYTES: usize = 512;

/// Where and what is written; a flush writes nothing.
type Write = Option<(u64, Arc<[u8]>)>;

/// One line of the log. It stands where the operation ended.
#[derive(Clone)]
pub(crate) struct Entry {
    /// Lines that were there when it began: what is before them had ended by then.
    begun: usize,
    /// Packets that were acknowledged while all lines before this one were there.
    acknowledged: u64,
    write: Write,
}

/// What was done to a device from a certain state on.
#[derive(Clone)]
pub(crate) struct Log {
    base: Arc<[u8]>,
    entries: Vec<Entry>,
    /// Packets acknowledged at the end.
    acknowledged: u64,
}

impl Log {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn flushes(&self) -> usize {
        self.entries.iter().filter(|entry| entry.write.is_none()).count()
    }

    /// Packets that were promised when the first `n` lines were all there were.
    pub(crate) fn acknowledged(&self, n: usize) -> u64 {
        self.entries.get(n).map_or(self.acknowledged, |entry| entry.acknowledged)
    }

    /// The device after the first `n` lines, all of them.
    pub(crate) fn prefix(&self, n: usize) -> Vec<u8> {
        let mut image = self.base.to_vec();
        self.writes(n).for_each(|(_, at, bytes)| put(&mut image, at, bytes));
        image
    }

    /// A device that lost its power after the first `n` lines: it has all that a flush promised.
    /// Of the rest, and of what had begun by then, each write is there, or not, or some sectors of
    /// it, and they were carried out in any order.
    pub(crate) fn cut(&self, n: usize, random: &mut SplitMix64) -> Vec<u8> {
        let flushes =
            self.entries[..n.min(self.len())].iter().filter(|entry| entry.write.is_none());
        let durable = flushes.map(|entry| entry.begun).max().unwrap_or(0);
        let mut image = self.prefix(durable);
        let under_way = |at: usize| at < n || self.entries[at].begun <= n;
        let writes = self.writes(self.len());
        let mut volatile: Vec<_> =
            writes.filter(|(at, ..)| *at >= durable && under_way(*at)).collect();
        for left in (1..volatile.len()).rev() {
            volatile.swap(left, random.below(left as u64 + 1) as usize);
        }
        for (_, at, bytes) in volatile {
            let survival = random.below(3);
            for (sector, bytes) in bytes.chunks(SECTOR_BYTES).enumerate() {
                if survival == 1 || survival == 2 && random.below(2) == 0 {
                    put(&mut image, at + (sector * SECTOR_BYTES) as u64, bytes);
                }
            }
        }
        image
    }

    /// Writes among the first `n` lines: line, offset, bytes.
    fn writes(&self, n: usize) -> impl Iterator<Item = (usize, u64, &[u8])> {
        let lines = self.entries[..n.min(self.len())].iter().enumerate();
        lines.filter_map(|(at, entry)| entry.write.as_ref().map(|(to, bytes)| (at, *to, &**bytes)))
    }
}

fn put(image: &mut [u8], at: u64, bytes: &[u8]) {
    image[at as usize..][..bytes.len()].copy_from_slice(bytes);
}

/// The device. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct LoggedDevice {
    state: Arc<Mutex<State>>,
    /// Whose acknowledgements are written down.
    pub(crate) books: Arc<OnceLock<LaneBooks>>,
    /// Gives out the lock.
    locks: SimMedia,
    /// Where places begin and how long they are: flushes of chunks in them are left out, as if the
    /// code had none.
    unflushed: Option<(u64, u64)>,
    /// Where NVMe commands for it go.
    node: Option<PathBuf>,
}

struct State {
    image: Vec<u8>,
    log: Log,
}

impl LoggedDevice {
    pub(crate) fn new(image: Vec<u8>) -> Self {
        let log = Log { base: image.as_slice().into(), entries: Vec::new(), acknowledged: 0 };
        Self {
            state: Arc::new(Mutex::new(State { image, log })),
            books: Arc::default(),
            locks: SimMedia::new(),
            unflushed: None,
            node: None,
        }
    }

    /// The same with a node for NVMe commands.
    pub(crate) fn at(self, node: &Path) -> Self {
        Self { node: Some(node.to_owned()), ..self }
    }

    /// The same without flushes of what is written behind the header of a place.
    pub(crate) fn without_flushes_of_chunks(self, places_offset: u64, place_bytes: u64) -> Self {
        Self { unflushed: Some((places_offset, place_bytes)), ..self }
    }

    /// What was done so far.
    pub(crate) fn log(&self) -> Log {
        let acknowledged = self.acknowledged();
        Log { acknowledged, ..self.state().log.clone() }
    }

    fn lines(&self) -> usize {
        self.state().log.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledged(&self) -> u64 {
        self.books.get().map_or(0, |books| {
            let snapshot = books.snapshot();
            assert!(snapshot.balances(), "{snapshot:?}");
            snapshot.watermark
        })
    }

    fn enter(&self, begun: usize, write: Write) {
        let mut state = self.state();
        // Under the lock: the line is not there yet, so nothing that it promises is counted.
        let acknowledged = self.acknowledged();
        if let Some((at, bytes)) = &write {
            put(&mut state.image, *at, bytes);
        }
        state.log.entries.push(Entry { begun, acknowledged, write });
    }
}

impl BlockDevice for LoggedDevice {
    fn open(&self, _writable: bool) -> io::Result<Arc<dyn MediaFile>> {
        Ok(Arc::new(LoggedFile { device: self.clone(), unflushed: AtomicBool::new(false) }))
    }

    fn lock(&self, _leased: bool) -> Result<Lock, MediaError> {
        wirevault_media::Media::lock(&self.locks)
    }

    fn discard(&self, _offset: u64, _bytes: u64) -> io::Result<bool> {
        Ok(false)
    }

    fn describe(&self) -> String {
        "logged device".to_owned()
    }

    fn path(&self) -> Option<PathBuf> {
        self.node.clone()
    }

    fn number(&self) -> io::Result<u64> {
        Ok(1)
    }
}

struct LoggedFile {
    device: LoggedDevice,
    unflushed: AtomicBool,
}

impl MediaFile for LoggedFile {
    fn name(&self) -> &str {
        "logged device"
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.device.state();
        let rest = state.image.get(offset as usize..).unwrap_or_default();
        let bytes = rest.len().min(buf.len());
        buf[..bytes].copy_from_slice(&rest[..bytes]);
        Ok(bytes)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let begun = self.device.lines();
        let is_chunk = |(from, bytes)| offset >= from && !(offset - from).is_multiple_of(bytes);
        self.unflushed.store(self.device.unflushed.is_some_and(is_chunk), Ordering::Relaxed);
        self.device.enter(begun, Some((offset, data.into())));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let begun = self.device.lines();
        if !self.unflushed.load(Ordering::Relaxed) {
            self.device.enter(begun, None);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.device.state().image.len() as u64)
    }

    fn set_len(&self, _len_bytes: u64) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a device keeps its length"))
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.set_len(len_bytes)
    }

    fn raw_fd(&self) -> Option<RawFd> {
        None
    }

    fn direct_path(&self) -> Option<PathBuf> {
        None
    }
}

impl Journal for LoggedDevice {
    fn begun(&mut self) -> usize {
        self.lines()
    }

    fn ended(&mut self, begun: usize, write: Option<(u64, &[u8])>) {
        self.enter(begun, write.map(|(at, bytes)| (at, bytes.into())));
    }
}

/// NVMe commands for a logged device. They end late and in any order, and are in its log as soon as
/// the queue sees that: a flush that was submitted before that does not cover them.
pub(crate) struct LoggedRing {
    inner: SimCommands,
    device: LoggedDevice,
    /// What operations hold, as it was when they began.
    held: HashMap<usize, Arc<[u8]>>,
    /// Lines of the log when a command began, and what it writes where.
    under_way: HashMap<(u32, u32), (usize, Write)>,
    lba_bytes: u64,
}

impl LoggedRing {
    pub(crate) fn new(inner: SimCommands, device: LoggedDevice, lba_bytes: u32) -> Self {
        let (held, under_way) = (HashMap::new(), HashMap::new());
        Self { inner, device, held, under_way, lba_bytes: lba_bytes.into() }
    }
}

impl CommandRing for LoggedRing {
    fn hold(&mut self, index: usize, buf: ChunkBuf) {
        self.held.insert(index, Arc::from(&buf[..]));
        self.inner.hold(index, buf);
    }

    fn release(&mut self, index: usize) -> Option<ChunkBuf> {
        self.inner.release(index)
    }

    fn push(&mut self, tag: Tag, command: Command, data: Option<Range<usize>>) -> bool {
        let block = u64::from(command.dwords[1]) << 32 | u64::from(command.dwords[0]);
        assert_eq!(command.opcode == command::io::WRITE, data.is_some());
        let held = |range| Arc::from(&self.held[&(tag.index as usize)][range]);
        let write = data.clone().map(|range| (block * self.lba_bytes, held(range)));
        self.under_way.insert((tag.index, tag.piece), (self.device.lines(), write));
        self.inner.push(tag, command, data)
    }

    fn ask(&mut self, tag: Tag, command: Command) -> bool {
        self.inner.ask(tag, command)
    }

    fn enter(&mut self, wait: Duration) -> io::Result<()> {
        self.inner.enter(wait)
    }

    fn next(&mut self) -> Option<(Tag, i32)> {
        let (tag, result) = self.inner.next()?;
        assert_eq!(result, 0, "no command fails here");
        let (begun, write) = self.under_way.remove(&(tag.index, tag.piece)).expect("a command");
        self.device.enter(begun, write);
        Some((tag, result))
    }

    fn leads_to_device(&self, node: &Path) -> io::Result<bool> {
        self.inner.leads_to_device(node)
    }
}
