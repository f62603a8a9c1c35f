//! The best back end that works here.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wirevault_buffer::{Arena, ChunkBuf};
use wirevault_media::MediaFile;

use crate::age::Ages;
use crate::device::{Roots, of_path};
use crate::error::{NvmeError, Refused};
use crate::options::{Backend, QueueOptions, QueueReport};
use crate::passthrough::{PassthroughQueue, is_refusal};
use crate::slot::Slot;
use crate::thread::ThreadQueue;
use crate::uring::UringQueue;
use crate::vfio::{Bus, Controller, VfioQueue};
use crate::{Completion, Queue};

/// Opens the back end that the options ask for. With [`Backend::Auto`] that is io_uring, or the
/// thread where io_uring cannot be had; if the first file that is attached lies on an NVMe device
/// without a file system between, the queue goes over to NVMe commands. The report's `why_not`
/// begins with the reason for what was not taken. The queue keeps track of
/// [ages](Queue::oldest).
///
/// Errors: options beyond limits, or the back end that was asked for by name cannot be had.
pub fn open_best(options: &QueueOptions, arena: &Arena) -> Result<Box<dyn Queue>, NvmeError> {
    options.check()?;
    let mut why_not = None;
    let inner = of_files(options, arena, &mut why_not)?;
    let may_go_over = options.backend == Backend::Auto;
    Ok(Box::new(BestQueue::new(inner, *options, arena, may_go_over, why_not)))
}

/// The back end for files and devices of any kind.
fn of_files(
    options: &QueueOptions,
    arena: &Arena,
    why_not: &mut Option<String>,
) -> Result<Box<dyn Queue>, NvmeError> {
    Ok(match options.backend {
        Backend::Uring => Box::new(UringQueue::new(options, Some(arena))?),
        Backend::Thread => {
            *why_not = Some("the thread queue was asked for by name".to_owned());
            Box::new(ThreadQueue::new(options)?)
        }
        Backend::Auto => match UringQueue::new(options, Some(arena)) {
            Ok(queue) => Box::new(queue),
            Err(error) => Box::new(fall_back(options, &error, why_not)?),
        },
    })
}

/// Opens the back end for a volume that our own driver should have had, and does not.
///
/// Errors: as [`open_best`].
pub fn open_instead(
    options: &QueueOptions,
    arena: &Arena,
    why_not: &str,
) -> Result<Box<dyn Queue>, NvmeError> {
    let inner = open_best(options, arena)?;
    let reason = format!("the kernel drives the device: {why_not}");
    Ok(Box::new(BestQueue::new(inner, *options, arena, false, Some(reason))))
}

/// Makes the back end for another device, by the name that files give it
/// ([`Extent::device`](wirevault_media::Extent::device)).
pub type Successor = Box<dyn Fn(&Path) -> Result<Box<dyn Queue>, NvmeError> + Send>;

/// Opens a queue pair on a controller that was taken from the kernel, and maps the arena for it.
/// Once nothing of that device is attached, a file of another one has `successor` make the queue
/// for that. The queue keeps track of [ages](Queue::oldest).
///
/// Errors: options beyond limits; the arena cannot be mapped; the device has no queue left.
pub fn open_vfio<B: Bus + 'static>(
    options: &QueueOptions,
    arena: &Arena,
    controller: &Arc<Controller<B>>,
    successor: Successor,
) -> Result<Box<dyn Queue>, NvmeError> {
    controller.map_arena(arena)?;
    let inner = Box::new(VfioQueue::new(controller, options)?);
    let mut queue = BestQueue::new(inner, *options, arena, false, None);
    queue.successor = Some(successor);
    Ok(Box::new(queue))
}

fn fall_back(
    options: &QueueOptions,
    error: &NvmeError,
    why_not: &mut Option<String>,
) -> Result<ThreadQueue, NvmeError> {
    *why_not = Some(error.to_string());
    ThreadQueue::new(options)
}

/// A back end, and the better one that it may give way to.
struct BestQueue {
    inner: Box<dyn Queue>,
    options: QueueOptions,
    arena: Arena,
    /// No file was attached so far, so that another back end can still be taken.
    may_go_over: bool,
    /// For a device that takes the place of the one at hand.
    successor: Option<Successor>,
    /// Files that are attached.
    attached: usize,
    /// The kernel's refusal of an NVMe command that it had let pass before.
    refusal: Option<String>,
    why_not: Option<String>,
    ages: Ages,
}

impl BestQueue {
    fn new(
        inner: Box<dyn Queue>,
        options: QueueOptions,
        arena: &Arena,
        may_go_over: bool,
        why_not: Option<String>,
    ) -> Self {
        let ages = Ages::new(inner.depth());
        Self {
            inner,
            options,
            arena: arena.clone(),
            may_go_over,
            successor: None,
            attached: 0,
            refusal: None,
            why_not,
            ages,
        }
    }

    /// Takes a queue of NVMe commands if that is possible.
    fn go_over(&mut self, node: &Path) {
        let device = of_path(&Roots::default(), node);
        let commands = device
            .and_then(|device| PassthroughQueue::open(&self.options, Some(&self.arena), &device));
        self.take(commands.map(|queue| Box::new(queue) as _));
    }

    /// Goes over to this queue, or keeps to the one at hand and says why.
    fn take(&mut self, commands: Result<Box<dyn Queue>, NvmeError>) {
        match commands {
            Ok(queue) => {
                self.inner = queue;
                self.why_not = None;
            }
            Err(error) => self.why_not = Some(format!("no NVMe commands: {error}")),
        }
    }

    /// Gives NVMe commands up that the kernel refuses by now, once nothing hangs on them: files
    /// whose writes were refused are let go of by then.
    fn go_back(&mut self) -> Result<(), NvmeError> {
        if self.attached > 0 || self.inner.in_flight() > 0 {
            return Ok(());
        }
        let Some(refusal) = self.refusal.take() else { return Ok(()) };
        let mut why_not = None;
        self.inner = of_files(&self.options, &self.arena, &mut why_not)?;
        let given_up = format!("no NVMe commands any more, the kernel refused one: {refusal}");
        self.why_not = Some(why_not.map_or(given_up.clone(), |why| format!("{given_up}; {why}")));
        Ok(())
    }

    /// Goes over to a device that has taken the place of the one at hand; `other`: it is known to
    /// be another one. Whether there is a queue for it.
    fn follow(&mut self, node: &Path, other: bool) -> bool {
        let Some(successor) = &self.successor else {
            let commands = self.inner.name() == crate::passthrough::NAME;
            if commands {
                self.go_over(node);
            }
            return commands;
        };
        if !other {
            return false;
        }
        match successor(node) {
            Ok(queue) => {
                self.inner = queue;
                self.why_not = None;
                true
            }
            Err(error) => {
                self.why_not = Some(error.to_string());
                false
            }
        }
    }
}

/// Whether a file lies on another device than the one at hand, or on what has come back in its
/// place.
fn is_of_another(error: &NvmeError) -> bool {
    matches!(error, NvmeError::WrongFile { .. } | NvmeError::Broken { .. })
}

impl Queue for BestQueue {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn report(&self) -> QueueReport {
        let mut report = self.inner.report();
        report.why_not.splice(0..0, self.why_not.clone());
        report
    }

    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn attach(&mut self, file: &Arc<dyn MediaFile>) -> Result<Slot, NvmeError> {
        if std::mem::take(&mut self.may_go_over)
            && let Some(extent) = file.extent()
        {
            self.go_over(&extent.device);
        }
        self.go_back()?;
        let mut slot = self.inner.attach(file);
        // Commands go to the device that was there first. One that was away is another one.
        if let Err(error) = &slot
            && self.attached == 0
            && self.inner.in_flight() == 0
            && let Some(extent) = file.extent()
            && self.follow(&extent.device, is_of_another(error))
        {
            slot = self.inner.attach(file);
        }
        self.attached += usize::from(slot.is_ok());
        slot
    }

    fn detach(&mut self, slot: Slot) -> Result<(), NvmeError> {
        self.inner.detach(slot)?;
        self.attached -= 1;
        Ok(())
    }

    fn write(
        &mut self,
        slot: Slot,
        offset: u64,
        buf: ChunkBuf,
        len_bytes: usize,
        token: u64,
    ) -> Result<(), Refused> {
        self.inner.write(slot, offset, buf, len_bytes, token)?;
        self.ages.begin(token, Instant::now());
        Ok(())
    }

    fn sync(&mut self, slot: Slot, token: u64) -> Result<(), NvmeError> {
        self.inner.sync(slot, token)?;
        self.ages.begin(token, Instant::now());
        Ok(())
    }

    fn poll(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        let before = out.len();
        let polled = self.inner.poll(wait, out);
        for end in &out[before..] {
            self.ages.end(end.token());
            if let Err(error) = end.result()
                && is_refusal(error)
                && self.inner.name() == crate::passthrough::NAME
            {
                self.refusal.get_or_insert_with(|| error.to_string());
            }
        }
        polled
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn oldest(&self) -> Option<Instant> {
        self.ages.oldest()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use wirevault_buffer::{ArenaOptions, Hugepages, Pool};
    use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};
    use wirevault_media::{BlockMedia, DirMedia, Media, OpenMode, Shape};

    use super::*;
    use crate::passthrough::Target;
    use crate::passthrough::sim::SimCommands;

    fn arena() -> Arena {
        let bytes = 4 * CHUNK_BYTES;
        let options = ArenaOptions { bytes, hugepages: Hugepages::Off, numa_node: None };
        Arena::new(options).unwrap()
    }

    #[test]
    fn the_reason_for_a_lesser_back_end_is_told() {
        let options = QueueOptions { backend: Backend::Thread, ..QueueOptions::default() };
        let queue = open_best(&options, &arena()).unwrap();
        assert_eq!(queue.name(), "thread");
        assert!(queue.report().why_not[0].contains("by name"), "{:?}", queue.report());
        let error = NvmeError::Setup {
            backend: "io_uring",
            reason: "io_uring is forbidden here",
            source: std::io::Error::from_raw_os_error(libc::EPERM),
        };
        let mut why_not = None;
        let inner = Box::new(fall_back(&options, &error, &mut why_not).unwrap());
        let queue = BestQueue::new(inner, options, &arena(), false, why_not);
        assert!(queue.report().why_not[0].contains("forbidden"), "{:?}", queue.report());
    }

    #[test]
    fn what_is_no_nvme_device_keeps_its_back_end_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device");
        File::create(&path).unwrap();
        let options = QueueOptions { backend: Backend::Thread, ..QueueOptions::default() };
        let inner = Box::new(ThreadQueue::new(&options).unwrap());
        let mut queue = BestQueue::new(inner, options, &arena(), true, None);
        queue.go_over(&path);
        assert_eq!(queue.name(), "thread");
        let report = queue.report();
        assert!(report.why_not[0].contains("no block device"), "{report:?}");
    }

    /// A volume on a file, and a queue of simulated commands to it that the kernel refuses from the
    /// `nth` on.
    fn refusing(folder: &Path, nth: u64) -> (BlockMedia, PassthroughQueue<SimCommands>) {
        let node = folder.join("device");
        File::create(&node).unwrap().set_len(80 << 20).unwrap();
        let media = BlockMedia::open(&node).unwrap();
        let (volume_bytes, place_bytes) = (1 << 20, 16 << 20);
        let shape = Shape { volume_bytes, digests_bytes: 0, place_bytes, places: 4 };
        media.lay_out(&shape).unwrap();
        let target = Target {
            namespace: 1,
            lba_bytes: 4096,
            bytes: 80 << 20,
            transfer_bytes: CHUNK_BYTES,
            must_flush: true,
        };
        let options = QueueOptions::default();
        let mut commands = SimCommands::open(&node, &target, options.depth as usize, 3).unwrap();
        (nth..nth + 8).for_each(|nth| commands.fail(nth, -libc::EACCES));
        (media, PassthroughQueue::over(&options, commands, target).unwrap())
    }

    /// Opening the node succeeds for whoever may write to it; commands pass by other rules.
    #[test]
    fn a_node_whose_commands_are_refused_is_left_to_its_back_end() {
        let dir = tempfile::tempdir().unwrap();
        let arena = arena();
        let options = QueueOptions { backend: Backend::Thread, ..QueueOptions::default() };
        // A Flush is refused, or a Write only, or neither.
        for (nth, backend) in [(1, "thread"), (2, "thread"), (3, "passthrough")] {
            let inner = Box::new(ThreadQueue::new(&options).unwrap());
            let mut queue = BestQueue::new(inner, options, &arena, true, None);
            let (_, mut commands) = refusing(dir.path(), nth);
            let tried = commands.try_out();
            queue.take(tried.map(|()| Box::new(commands) as _));
            assert_eq!(queue.name(), backend);
            let why_not = queue.report().why_not.concat();
            assert_eq!(why_not.contains("CAP_SYS_ADMIN"), backend == "thread", "{why_not}");
        }
    }

    #[test]
    fn commands_that_are_refused_later_are_given_up_for_files_that_come() {
        let dir = tempfile::tempdir().unwrap();
        let arena = arena();
        let pool = Pool::new(arena.clone());
        let (media, mut commands) = refusing(dir.path(), 3);
        commands.try_out().unwrap();
        let options = QueueOptions { backend: Backend::Thread, ..QueueOptions::default() };
        let mut queue = BestQueue::new(Box::new(commands), options, &arena, false, None);
        let write = |queue: &mut BestQueue, slot| {
            queue.write(slot, 0, pool.take().unwrap(), LBA_BYTES, 1).unwrap();
            let mut out = Vec::new();
            while queue.in_flight() > 0 {
                queue.poll(Duration::from_secs(1), &mut out).unwrap();
            }
            out[0].result().is_ok()
        };
        let files = ["000000.pcapng", "000001.pcapng"]
            .map(|name| media.open(name, OpenMode::Create).unwrap());
        let slot = queue.attach(&files[0]).unwrap();
        assert!(!write(&mut queue, slot), "it is told, so that it is stored elsewhere");
        queue.detach(slot).unwrap();
        let slot = queue.attach(&files[1]).unwrap();
        assert_eq!(queue.name(), "thread");
        assert!(write(&mut queue, slot));
        let why_not = queue.report().why_not.concat();
        assert!(why_not.contains("refused one"), "{why_not}");
    }

    #[test]
    fn ages_begin_with_submissions_and_end_with_completions() {
        let arena = arena();
        let dir = tempfile::tempdir().unwrap();
        let media = DirMedia::open(dir.path()).unwrap();
        let file = media.open("a", OpenMode::Create).unwrap();
        let mut queue = open_best(&QueueOptions::default(), &arena).unwrap();
        let slot = queue.attach(&file).unwrap();
        assert_eq!(queue.oldest(), None);
        let begin = Instant::now();
        let pool = Pool::new(arena);
        queue.write(slot, 0, pool.take().unwrap(), LBA_BYTES, 1).unwrap();
        let oldest = queue.oldest().unwrap();
        assert!(oldest >= begin);
        queue.write(slot, 8192, pool.take().unwrap(), LBA_BYTES, 2).unwrap();
        assert_eq!(queue.oldest(), Some(oldest));
        let mut out = Vec::new();
        while queue.in_flight() > 0 {
            queue.poll(Duration::from_secs(1), &mut out).unwrap();
        }
        assert_eq!(queue.oldest(), None);
        queue.sync(slot, 3).unwrap();
        assert!(queue.oldest().is_some());
    }

    #[test]
    fn names_and_limits_are_obeyed() {
        let arena = arena();
        let named = QueueOptions { backend: Backend::Thread, ..QueueOptions::default() };
        assert_eq!(open_best(&named, &arena).unwrap().name(), "thread");
        for bad in [
            QueueOptions { depth: 0, ..named },
            QueueOptions { depth: 1 << 20, ..named },
            QueueOptions { slots: 0, ..named },
        ] {
            assert!(matches!(open_best(&bad, &arena), Err(NvmeError::Option { .. })));
        }
    }
}
