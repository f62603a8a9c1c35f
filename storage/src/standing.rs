//! A volume behind a lock of its own, and what is known of it without that lock.
//!
//! Tables are written and flushed under the lock of their volume, so a device that hangs keeps it.
//! Nothing else of the store waits for it then: whoever chooses a volume, or shows its state, looks
//! at its [`Standing`], which is as it was when the last work on the volume ended, and says since
//! when other work goes on.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use wirevault_format::LifeId;
use wirevault_format::footer::CloseReason;
use wirevault_format::table::SegmentEntry;

use crate::bad::Verdict;
use crate::choose::{Candidate, Load, Wear};
use crate::ledger::{self, Ledger, Wanted};
use crate::store::Witness;
use crate::view::VolumeStatus;
use crate::volume::VolumeWriter;

/// Work on a volume that takes longer says that its device hangs: some flushes of a page each, that
/// slow disks end in tenths of a second.
const WORK_MAX: Duration = Duration::from_secs(1);
/// Time after a failure for which no segment opens on a volume while others take them. Then one
/// does, on trial. Whatever cleared itself up (a path that came back, a reset) did so by then.
const PROBATION: Duration = Duration::from_secs(10);
/// The longest such time: it doubles with each trial that fails.
const PROBATION_MAX: Duration = Duration::from_secs(640);

/// A volume that several threads work on, one at a time.
pub(crate) struct SharedVolume {
    writer: Mutex<VolumeWriter>,
    /// Segments that the witness was told of and that are not gone yet.
    told: Mutex<HashSet<LifeId>>,
    /// Segments that were given up while holds wanted something of them.
    unheld: AtomicU64,
    ledger: Arc<RwLock<Ledger>>,
    standing: Mutex<Standing>,
}

/// What is known of a volume.
struct Standing {
    /// As the last work left it.
    status: VolumeStatus,
    /// Ordinal of its oldest closed segment.
    oldest: Option<u64>,
    /// Bytes that segments may take before something has to go.
    left_bytes: u64,
    busy_since: Option<Instant>,
    suspicion: Option<Suspicion>,
    wear: Wear,
}

/// A write or flush of a segment failed.
struct Suspicion {
    why: String,
    /// First ordinal after the failure.
    next_ordinal: u64,
    /// When the next segment may open on trial.
    trial_at: Instant,
    pause: Duration,
}

impl SharedVolume {
    pub(crate) fn new(writer: VolumeWriter) -> Self {
        let standing = Standing {
            status: writer.status(),
            oldest: writer.oldest(),
            left_bytes: writer.left_bytes(),
            busy_since: None,
            suspicion: None,
            wear: Wear::default(),
        };
        let ledger = writer.shared_ledger();
        let (writer, standing) = (Mutex::new(writer), Mutex::new(standing));
        let (told, unheld) = Default::default();
        Self { writer, told, unheld, ledger, standing }
    }

    /// Looks at the volume, after whoever works on it.
    pub(crate) fn look(&self) -> MutexGuard<'_, VolumeWriter> {
        lock(&self.writer)
    }

    /// Works on the volume, after whoever does so now.
    pub(crate) fn work<T>(&self, work: impl FnOnce(&mut VolumeWriter) -> T) -> T {
        let mut writer = self.look();
        self.standing().busy_since = Some(Instant::now());
        let done = work(&mut writer);
        let left_bytes = writer.left_bytes();
        let mut standing = self.standing();
        (standing.status, standing.oldest) = (writer.status(), writer.oldest());
        standing.left_bytes = left_bytes;
        standing.busy_since = None;
        done
    }

    /// Tells the witness of segments that are to be given up here, of each once. For all but what
    /// comes up between a plan and its doing, before the volume is locked.
    pub(crate) fn tell(&self, witness: &Witness, going: &[SegmentEntry]) {
        let mut told = lock(&self.told);
        for entry in going.iter().filter(|entry| told.insert(entry.life)) {
            let waited = self.ledger().is_waiting(entry.ordinal);
            self.unheld.fetch_add(u64::from(witness(entry, waited)), Ordering::Relaxed);
        }
    }

    /// Segments that were given up while holds wanted something of them.
    pub(crate) fn unheld(&self) -> u64 {
        self.unheld.load(Ordering::Relaxed)
    }

    /// See [`Ledger::spare`].
    pub(crate) fn spare(&self, holding: bool, wanted: impl Fn(u64) -> Option<Wanted>) {
        // Whoever changed it left it whole.
        let mut ledger = self.ledger.write().unwrap_or_else(PoisonError::into_inner);
        ledger.spare(holding, wanted);
    }

    /// They are gone.
    pub(crate) fn are_gone<'a>(&self, gone: impl Iterator<Item = &'a SegmentEntry>) {
        let mut told = lock(&self.told);
        for entry in gone {
            told.remove(&entry.life);
        }
    }

    /// What the segment table adds up to.
    pub(crate) fn ledger(&self) -> RwLockReadGuard<'_, Ledger> {
        ledger::read(&self.ledger)
    }

    /// Whether work on it can be expected to end.
    pub(crate) fn is_well(&self) -> bool {
        let standing = self.standing();
        standing.status.failed.is_none() && !standing.hangs()
    }

    /// State of the volume.
    pub(crate) fn status(&self) -> VolumeStatus {
        let standing = self.standing();
        let suspect = standing.suspicion.as_ref().map(|suspicion| suspicion.why.clone());
        VolumeStatus { suspect, hangs: standing.hangs(), ..standing.status.clone() }
    }

    /// What the choice of a volume depends on.
    pub(crate) fn candidate(&self, load: Load) -> Candidate {
        let now = Instant::now();
        let standing = self.standing();
        let status = &standing.status;
        let verdict = status.verdict();
        let worn = standing.wear.exhausted || verdict == Verdict::Worn;
        Candidate {
            failed: status.failed.is_some() || verdict == Verdict::Spent,
            doubted: standing.failed_lately(now) || standing.hangs() || load.stalled,
            strained: load.crowded || worn,
            open_segments: status.open_segments + load.opening,
            queue: load.queue,
            used_percent: standing.wear.used_percent,
            quota_segments: status.quota_bytes / status.segment_bytes,
            free_segments: standing.left_bytes / status.segment_bytes,
            oldest: standing.oldest,
        }
    }

    /// Whether it failed, now or lately.
    pub(crate) fn has_failed(&self) -> bool {
        let standing = self.standing();
        standing.status.failed.is_some() || standing.failed_lately(Instant::now())
    }

    /// A write or flush of a segment failed, of which the next one has this ordinal.
    pub(crate) fn suspect(&self, why: &str, next_ordinal: u64) {
        let now = Instant::now();
        let mut standing = self.standing();
        let pause = match &standing.suspicion {
            None => PROBATION,
            // Segments that were open together fail together.
            Some(before) if now < before.trial_at => before.pause,
            Some(before) => (before.pause * 2).min(PROBATION_MAX),
        };
        let (why, trial_at) = (why.to_owned(), now + pause);
        standing.suspicion = Some(Suspicion { why, next_ordinal, trial_at, pause });
    }

    /// A segment was opened. If that is a trial, the next one waits for its end.
    pub(crate) fn note_opened(&self) {
        if let Some(suspicion) = &mut self.standing().suspicion {
            suspicion.trial_at = Instant::now() + suspicion.pause;
        }
    }

    /// A segment was closed; one that was opened after the failure clears the volume.
    pub(crate) fn note_closed(&self, entry: &SegmentEntry) {
        let well = entry.close_reason != CloseReason::DeviceFailed;
        let clears = |it: &mut Suspicion| well && entry.ordinal >= it.next_ordinal;
        self.standing().suspicion.take_if(clears);
    }

    /// It is another volume from now on, of which nothing is known.
    pub(crate) fn is_new(&self) {
        let mut standing = self.standing();
        (standing.suspicion, standing.wear) = (None, Wear::default());
    }

    /// What the device tells of its wear.
    pub(crate) fn set_wear(&self, wear: Wear) {
        self.standing().wear = wear;
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        lock(&self.standing)
    }
}

impl Standing {
    fn failed_lately(&self, now: Instant) -> bool {
        self.suspicion.as_ref().is_some_and(|it| now < it.trial_at)
    }

    fn hangs(&self) -> bool {
        self.busy_since.is_some_and(|since| since.elapsed() > WORK_MAX)
    }
}

/// What is behind these locks is whole whenever somebody lets go of them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
